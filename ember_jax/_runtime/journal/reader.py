"""How the answer to one call is read."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

from ...providers.base import Response
from .columns import READ

# The columns in the order of the fields of `Response`, up to the last that is kept, with null for one between them that
# is not. So a row is the fields of a response but for the few that have to be made from what is stored. Fields by name,
# in a dictionary, would take three times as long.
_KEPT = {column.source.removeprefix("response."): column for column in READ if column.source.startswith("response.")}
_COUNT = 1 + max(map(Response._fields.index, _KEPT))
_COLUMNS = [_KEPT.get(field) for field in Response._fields[:_COUNT]]
_GET = f"select answer_digest, {', '.join(c.name if c else 'null' for c in _COLUMNS)} from calls where digest = ?"
_READS = tuple((i, c.read) for i, c in enumerate(_COLUMNS) if c and c.read)


class Reader:
    """Reads one answer at a time. The reads of one round of an event loop are one transaction.

    A transaction for each read would cost as much as the read.

    **Arguments:**

    - `connection`: a connection that nothing else uses.
    - `lock`: the lock that a caller of `row` or `close` must hold. `end` takes the lock itself, as the loop calls it.
    """

    def __init__(self, connection: sqlite3.Connection, lock: threading.RLock):
        self.connection = connection
        self._lock = lock

    def row(self, digest: bytes) -> Any:
        """The row of an answer, or `None`. The answer's digest is first, then the fields of a `Response`."""
        if not self.connection.in_transaction:
            with contextlib.suppress(RuntimeError):  # where no loop runs each read is a transaction by itself
                asyncio.get_running_loop().call_soon(self.end)
                self.connection.execute("begin")
        return self.connection.execute(_GET, (digest,)).fetchone()

    def end(self) -> None:
        """Ends the transaction, if there is one."""
        with self._lock, contextlib.suppress(sqlite3.ProgrammingError):  # the connection was closed meanwhile
            if self.connection.in_transaction:
                self.connection.execute("commit")

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()


def response(row: Sequence[Any]) -> Response:
    """The answer that a row holds."""
    _, *values = row
    for i, read in _READS:
        values[i] = read(values[i])
    return Response(*values)
