"""The journal as one SQLite file.

Design note. The file is in write-ahead mode: a commit appends to a log beside it, and readers never wait for writers.
`synchronous=NORMAL`: a commit is handed to the operating system, so no death of the process, `kill -9` included, loses
it. A power cut may lose the commits of the last moments, those since the log was last copied into the file; what is
left is whole, as transactions are all or nothing in the order they were made. (`FULL` would sync the disk for each
commit, milliseconds for what the next run can ask again.)

Answers wait for a writer thread, which commits all that wait in one transaction (group commit, as databases do). Under
load hundreds of answers share a commit. Single answers are read on the event loop, on a connection of their own. The
reads of one round of the loop share a transaction, as a transaction for each would cost as much as the read. So they
see what any process had committed when the round began. Several processes may use one file on one machine; on a
network's file system only processes of the same host may.

What could not be committed, because the disk is full, stays in memory and goes first with the next attempt; until then
no call is made, as its answer might be lost. Each call asks when its turn has come to be sent, and not before: most of
a sweep's calls have passed any earlier point when the disk is found to be full. A call that is paid for then also
claims its question, see `claims`.

A text that is sent lies once in `texts`, by its digest (see `_text.store`), however many calls it is part of. Answers,
most of which differ, lie in the rows of their calls and not in `texts`. So a call makes two entries in an index by
digest and not three. Such entries are most of what a commit writes, as each changes a page of its own. When an answer
is read, it is compared with its digest: a reader gets the answer that was given, or an error. The file's header names
the program and the schema's version, and nothing is written before both have been read.

What is kept of a call is in `columns`, how the file is opened in `file`, how answers get in and out in `writer` and
`reader`, what is open in `handles`,
who asks what in `claims`, how calls are searched in `queries`. Here is what ties them together.
"""

import asyncio
import contextlib
import datetime
import functools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..._text.store import digest_of
from ...providers.base import Response
from . import queries
from .base import AbstractJournal, Claimed, Entry, is_other
from .calls import Answer, Calls, LaneIndex, digests
from .columns import CallRecord
from .file import connect, size, transaction, translated
from .handles import Handles
from .stats import Stats, read_stats
from .writer import Claim, row_of

# The seconds from one look at another process's claim to the next, which grow from the first to the last.
_FIRST_LOOK, _LAST_LOOK = 0.02, 1.0


@contextlib.contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a journal's file for the block alone, in whatever thread it runs."""
    with translated(path), contextlib.closing(connect(path)) as connection:
        yield connection


def _read(path: Path, ids: Sequence[int]) -> Iterator[CallRecord]:
    with _connection(path) as connection:
        yield from queries.read(connection, ids)


class Journal(AbstractJournal):
    """Keeps answers in a SQLite file, for this process and others, now and later.

    The file is made when it is first written to, readable by its owner alone. It holds prompts and answers, what they
    cost and when they were made, and no credentials.

    **Arguments:**

    - `path`: the file. Log and index lie beside it while it is in use, named `…-wal` and `…-shm`: copy all three.

    **Example:**

        with ember.session(journal="run.db"):
            answers = jax.vmap(op)(questions)
        print(ember.Journal("run.db").stats())
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser().absolute()
        self._handles = Handles(self.path)

    def __repr__(self) -> str:
        return f"Journal({str(self.path)!r})"

    def check(self) -> None:
        """Makes the file if there is none. Raises `JournalError` if it cannot be used."""
        connect(self.path, create=True).close()

    def get(self, digest: bytes) -> Response | None:
        return self._handles.get(digest)

    async def ready(self, digest: bytes) -> Response | None:
        open = self._handles.open
        if open is None or not open.writer.has_failed:  # nearly always: no answer was ever held back, so none is found
            return None
        if open.writer.held:
            await self._handles.safe(None)  # raises if it still cannot be committed, and no request is sent
        return self._handles.get_now(digest)  # the answer may have been among what was held, and be committed now

    async def claim(self, digest: bytes, old: Response | None) -> Response | None:
        try:
            is_made = await self._handles.safe(Claim(digest, None if old is None else digest_of(old.text)))
        except asyncio.CancelledError:
            self.release(digest)  # it may be committed all the same
            raise
        if is_made:
            return None
        known = self._handles.get_now(digest)
        if known is None or not is_other(known, old):
            raise Claimed
        return known

    async def freed(self, digest: bytes) -> None:
        seconds = _FIRST_LOOK
        while self._handles.is_claimed(digest):
            await asyncio.sleep(seconds)
            seconds = min(1.5 * seconds, _LAST_LOOK)

    def release(self, digest: bytes) -> None:
        self._handles.release(digest)

    async def put(self, digest: bytes, entry: Entry) -> Response:
        is_new = await self._handles.safe(row_of(digest, entry))
        # `is_new` is about all rows of the commit, so after `False` this answer may or may not have been the first. The
        # file says which one it keeps.
        return entry.response if is_new else self._handles.get_now(digest) or entry.response

    def drop(self, digests: Iterable[bytes]) -> int:
        if not self.path.exists():
            return 0
        with _connection(self.path) as connection, transaction(connection):
            return queries.delete(connection, digests)

    def close(self) -> None:
        self._handles.close()

    def stats(self) -> Stats:
        """What the file holds. Raises `JournalError` if there is none, or if it is no journal."""
        with _connection(self.path) as connection:
            return read_stats(connection, size(self.path) + size(self.path, "-wal"))

    def calls(
        self,
        *,
        model: str | None = None,
        answer: Answer | None = None,
        since: datetime.datetime | str | None = None,
        before: datetime.datetime | str | None = None,
        contains: str | None = None,
        lane: LaneIndex | None = None,
        op: str | None = None,
        failed: bool | None = None,
        digest: str | None = None,
    ) -> Calls:
        """The calls whose answers the file holds, oldest first; all, or those that are asked for.

        ```python
        ember.Journal("run.db").calls(op="Judge", contains="I cannot").show()
        ```

        **Arguments:**

        - `model`: as `provider/model`.
        - `answer`: what the model said, whole, as a `str` or a Text; any of a Text's strings.
        - `since`, `before`: when they were answered, as a `datetime` or as ISO 8601 has it, `"2026-01-31"`, or with a
            time.
        - `contains`: words in a message or in the answer.
        - `lane`, `op`: who has asked, as for a session's `calls`. The file knows the first who did, as equal calls are
            one row.
        - `failed`: whether the answers are of no use, such as a structured one that does not fit its schema. The file
            knows no call that failed without an answer.
        - `digest`: the first digits of the digest.

        **Returns:** one `CallRecord` for each answer.

        **Raises:** `JournalError` if there is no file, or it is no journal; `TypeError` or `ValueError` for an argument
        that cannot be read.
        """
        asked = {
            "model": model,
            "answer": answer,
            "since": since,
            "before": before,
            "contains": contains,
            "lane": lane,
            "op": op,
            "failed": failed,
            "digest": digest,
        }
        where, values = queries.conditions(asked)
        with _connection(self.path) as connection:
            return Calls(queries.find(connection, where, values), functools.partial(_read, self.path))

    def forget(self, calls: CallRecord | Iterable[CallRecord]) -> int:
        """Deletes calls, with the words that are then no other call's, so that they are asked again.

        **Returns:** how many there were.

        **Raises:** `TypeError` for what is no call; `JournalError` if the file cannot be written.
        """
        return self.drop(digests(calls))

    def compact(self) -> None:
        """Gives the space of what was deleted back to the file system, which rewrites the file and takes a while.

        **Raises:** `JournalError` if the file cannot be written.
        """
        with _connection(self.path) as connection:
            connection.execute("vacuum")
            connection.execute("pragma wal_checkpoint(truncate)").fetchone()
