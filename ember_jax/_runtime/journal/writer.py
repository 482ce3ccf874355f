"""How answers are written: by a thread, many in one transaction."""

import asyncio
import collections
import contextlib
import operator
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..._text.store import digest_of
from ...errors import JournalError, JournalWriteError
from .base import Entry
from .claims import Claims
from .columns import COLUMNS
from .file import failure, transaction

# Answers in one transaction. The first of them waits until the last is written, so there is a bound.
_MOST = 1024

_PUT_TEXT = "insert into texts (digest, words) values (?, ?) on conflict do nothing"
_PUT_CALL = f"""insert into calls ({", ".join(c.name for c in COLUMNS)})
    values ({", ".join("?" for _ in COLUMNS)}) on conflict do nothing"""
# Only the answer that was read is superseded: another process may have put another in its place since.
_SUPERSEDE = """update or ignore calls set digest = ?, error = ?, superseded = 1
    where digest = ? and answer_digest = ?"""
_PUT_MESSAGE = """insert into messages (call, position, role, text) select ?, ?, ?, id from texts where digest = ?
    on conflict do nothing"""


class Row(NamedTuple):
    """An entry as rows of the file's tables.

    **Fields:**

    - `texts`: the digest and the words of each message.
    - `call`: the row of `calls`, as `_PUT_CALL` takes it.
    - `messages`: the position, the role and the words' digest of each message.
    - `supersedes`: what `_SUPERSEDE` takes; nothing if the answer supersedes none.
    """

    texts: list[tuple[bytes, str]]
    call: tuple[Any, ...]
    messages: list[tuple[int, str, bytes]]
    supersedes: tuple[Any, ...] = ()


def row_of(digest: bytes, entry: Entry) -> Row:
    """An entry as rows of the tables."""
    said = [m.words for m in entry.request.messages]
    texts = [(digest_of(words), words) for words in said]
    messages = [(i, m.role, texts[i][0]) for i, m in enumerate(entry.request.messages)]
    values = [*_values(entry)]
    for i, write in _WRITES:
        values[i] = write(values[i])
    old = entry.supersedes
    moved = () if old is None else (old.digest, old.response.fault, digest, digest_of(old.response.text))
    return Row(texts, (digest, *values), messages, moved)


_DIGEST, *_OTHERS = COLUMNS
# Gets all values of an entry in one call. A function for each column would take twice as long.
_values = operator.attrgetter(*(column.source for column in _OTHERS))
_WRITES = tuple((i, column.write) for i, column in enumerate(_OTHERS) if column.write)


class Claim(NamedTuple):
    """A question that a lane is about to ask; `old` is the digest of an answer to it that is of no use."""

    digest: bytes
    old: bytes | None


class Release(NamedTuple):
    """A question that a lane has claimed, and that stays without an answer."""

    digest: bytes


class _Put(NamedTuple):
    """A lane that waits for a commit.

    **Fields:**

    - `what`: what the lane has brought. `None` if it has brought nothing, and waits for what could not be committed
        before (`Writer.held`) to be tried again.
    - `loop`, `done`: the lane's event loop, and the future that it waits for there.
    """

    what: Row | Claim | Release | None
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[bool]


class Writer:
    """Commits rows in a thread of its own, those that wait together in one transaction.

    **Attributes:**

    - `held`: rows and ends of claims that could not be committed; they go first with the next attempt.
    - `has_failed`: whether any ever could not be.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.held: list[Row | Release] = []
        self.has_failed = False
        self._path = path
        self._file = _identity(path)
        self._connection = connection
        self._claims = Claims(connection)
        self._waiting: queue.SimpleQueue[list[_Put] | None] = queue.SimpleQueue()
        # What each loop submits in one round is gathered here and handed over together. Handed over one by one, each
        # would wake the thread, and the thread would take the interpreter from the loop.
        self._lock = threading.Lock()
        self._gathered: dict[asyncio.AbstractEventLoop, list[_Put]] = {}
        self._last: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._serve, name="ember-journal", daemon=True)
        self._thread.start()

    def submit(self, what: Row | Claim | Release | None) -> asyncio.Future[bool]:
        """Hands something over, or with `None` asks that what is held is tried again.

        Returns a future that is done when that and all that was held are committed. Its result is for a claim whether
        it was made, and else whether each row of that commit was the first of its digest.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        with self._lock:
            puts = self._gathered.get(loop)
            if puts is None:
                puts = self._gathered[loop] = []
                loop.call_soon(self._flush, loop)
            puts.append(_Put(what, loop, done))
        return done

    def close(self) -> None:
        """Ends the thread after it has committed what waits."""
        with self._lock:
            for puts in self._gathered.values():
                self._waiting.put(puts)
            self._gathered.clear()
            self._waiting.put(None)
        self._thread.join()
        self._claims.close()
        self._connection.close()

    def abandon(self, then: Callable[[], object]) -> None:
        """Closes it without waiting: its own thread does, and then calls a function.

        It takes no lock, as the collector may call it in a thread that holds the lock.
        """
        self._last = then
        self._waiting.put(None)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        # The lock is held for the `put` too. Without it another thread's `close` might put its end mark first, and rows
        # behind the end mark would wait for ever.
        with self._lock:
            if puts := self._gathered.pop(loop, None):
                self._waiting.put(puts)

    def _serve(self) -> None:
        while (puts := self._next()) is not None:
            is_last = False
            # Takes what is there without waiting. A pause to gather more would delay a lone answer, and under load the
            # next answers gather while this commit runs.
            while len(puts) < _MOST and not self._waiting.empty() and not is_last:
                more = self._waiting.get()
                is_last = more is None
                puts += more or []
            self._commit(puts)
            if is_last:
                break
        if self._last is not None:
            with self._lock:
                puts = [put for waiting in self._gathered.values() for put in waiting]
                self._gathered.clear()
            if puts:  # ends of claims, whose lanes were cancelled
                self._commit(puts)
            self._claims.close()
            self._connection.close()
            self._last()

    def _next(self) -> list[_Put] | None:
        """What waits, or `None` at the end. It is nothing when the owner of claims has to vouch for itself."""
        try:
            return self._waiting.get(timeout=self._claims.wait)
        except queue.Empty:
            return []

    def _commit(self, puts: list[_Put]) -> None:
        claims = [put.what for put in puts if isinstance(put.what, Claim)]
        kept = [*self.held, *(put.what for put in puts if isinstance(put.what, Row | Release))]
        try:
            are_new, made = self._write(kept, claims)
        except (sqlite3.Error, OSError, JournalError) as error:
            self._claims.undone()
            if kept:
                self.held, self.has_failed = kept, True
            told = error if isinstance(error, JournalError) else failure(self._path, error)
            _tell(puts, [told] * len(puts))
        else:
            self._claims.committed()
            self.held = []
            _tell(puts, [next(made) if isinstance(put.what, Claim) else are_new for put in puts])

    def _write(self, kept: list[Row | Release], claims: list[Claim]) -> tuple[bool, Iterator[bool]]:
        """Commits what is kept and what is claimed. Tells whether all rows are new, and which claims are made."""
        # SQLite goes on writing to a file that was moved or deleted. Its answers would be kept where nobody looks.
        if _identity(self._path) != self._file:
            raise JournalWriteError(f"the journal {self._path} was moved or deleted while it was in use: begin anew.")
        rows = [what for what in kept if isinstance(what, Row)]
        with transaction(self._connection):
            are_new = self._put(rows) if rows else True
            self._claims.end(row.call[0] for row in rows)
            made = [self._claims.make(*claim) for claim in claims]
            # After the claims: a lane that is cancelled may have brought both, in this order.
            self._claims.end(what.digest for what in kept if isinstance(what, Release))
            self._claims.vouch()
        return are_new, iter(made)

    def _put(self, rows: list[Row]) -> bool:
        self._connection.executemany(_PUT_TEXT, {text: None for row in rows for text in row.texts})
        self._connection.executemany(_SUPERSEDE, [row.supersedes for row in rows if row.supersedes])
        written = self._connection.executemany(_PUT_CALL, [row.call for row in rows]).rowcount
        ids = self._ids(rows, are_new=written == len(rows))
        messages = [(call, *message) for call, row in zip(ids, rows, strict=True) for message in row.messages]
        self._connection.executemany(_PUT_MESSAGE, messages)
        return written == len(rows)

    def _ids(self, rows: Sequence[Row], are_new: bool) -> Iterable[int]:
        """The ids of the calls that were just put, in order. If all are new, SQLite has numbered them one by one."""
        if are_new:
            (last,) = self._connection.execute("select last_insert_rowid()").fetchone()
            return range(last - len(rows) + 1, last + 1)
        find = "select id from calls where digest = ?"
        return [self._connection.execute(find, row.call[:1]).fetchone()[0] for row in rows]


def _tell(puts: list[_Put], outcomes: Sequence[bool | JournalError]) -> None:
    """Settles the futures of lanes, each on its own loop, which is woken once for all of its lanes."""
    waiting = collections.defaultdict(list)
    for put, outcome in zip(puts, outcomes, strict=True):
        waiting[put.loop].append((put.done, outcome))
    for loop, settled in waiting.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile, so nobody waits there
            loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: list[tuple[asyncio.Future[bool], bool | JournalError]]) -> None:
    for done, outcome in settled:
        if done.done():  # the lane that waited may have been cancelled
            continue
        if isinstance(outcome, bool):
            done.set_result(outcome)
        else:  # an exception for each lane: raised in several, one would gather the tracebacks of all
            done.set_exception(type(outcome)(*outcome.args))


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at the path; `None` if there is none."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None
