"""How the answer to one call is read."""

import asyncio
import contextlib
import json
import math
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

from ..._providers.base import Response

_GET = """select answer_digest, answer, input_tokens, output_tokens, cost, logprob, answered_by, request_id,
    alternatives from calls where digest = ?"""


class Reader:
    """Reads one answer at a time. The reads of one round of an event loop are one transaction.

    **Arguments:**

    - `connection`: a connection that nothing else uses.
    - `lock`: the lock under which `row` and `close` are called. The loop calls `end`, which takes it itself.
    """

    def __init__(self, connection: sqlite3.Connection, lock: threading.RLock):
        self._connection = connection
        self._lock = lock

    def row(self, digest: bytes) -> Any:
        """The row of an answer, or `None`."""
        if not self._connection.in_transaction:
            with contextlib.suppress(RuntimeError):  # where no loop runs each read is a transaction by itself
                asyncio.get_running_loop().call_soon(self.end)
                self._connection.execute("begin")
        return self._connection.execute(_GET, (digest,)).fetchone()

    def end(self) -> None:
        """Ends the transaction, if there is one."""
        with self._lock, contextlib.suppress(sqlite3.ProgrammingError):  # the connection was closed meanwhile
            if self._connection.in_transaction:
                self._connection.execute("commit")

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def response(row: Sequence[Any]) -> Response:
    """The answer that a row holds."""
    _, text, input_tokens, output_tokens, cost, logprob, model, request_id, alternatives = row
    return Response(
        text=text,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost=math.nan if cost is None else cost,
        logprob=math.nan if logprob is None else logprob,
        model=model,
        request_id=request_id,
        alternatives=tuple((token, x) for token, x in json.loads(alternatives)) if alternatives else (),
    )
