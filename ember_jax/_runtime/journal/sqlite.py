"""The journal as one SQLite file.

Design note. The file is in write-ahead mode: a commit appends to a log beside it, and readers never wait for writers.
`synchronous=NORMAL`: a commit is handed to the operating system, so no death of the process, `kill -9` included, loses
it. A power cut may lose the commits of the last moments, those since the log was last copied into the file; what is
left is whole, as transactions are all or nothing in the order they were made. (`FULL` would sync the disk for each
commit, milliseconds for what the next run can ask again.)

Answers wait for a writer thread, which commits all that wait in one transaction (group commit, as databases do): under
load a commit is shared by hundreds of answers. Point reads are made on the event loop, on a connection of their own;
they see what any process had committed when the loop's round began, as a transaction for each of them would cost as
much as they do. Several processes may use one file on one machine; on a network's file system only processes of the
same host may.

What could not be committed, because the disk is full, stays in memory and goes first with the next attempt; until then
no call is made, as its answer might be lost.

What is sent lies once in `texts`, by its digest (see `_text.store`), however many calls it is part of. Answers, most of
which differ, lie in their calls' rows, so that a call costs two entries in an index by digest and not three: those are
what a commit mostly writes, a page for each. An answer is compared with its digest when it is read: it is the one that
was given, or an error. The header names the program and the schema's version, and nothing is written before they have
been read.
"""

import asyncio
import collections
import contextlib
import datetime
import functools
import json
import math
import os
import queue
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..._errors import JournalError, JournalFileError, JournalWriteError
from ..._providers.base import Response
from ..._text.store import digest_of
from .. import log
from ..loop import get_loop
from . import queries
from .base import AbstractJournal, Entry
from .calls import Answer, Call, Calls, Lane, answer_digests, digests, lane_index, moment

APPLICATION = 0x656D6272  # "embr", where SQLite's header says whose file it is
VERSION = 2

# Seconds that another process may hold the file; its commits take milliseconds.
_PATIENCE = 60.0
# The length of the log, in pages of 4 KiB, from which on it is copied into the file. That syncs the disk twice, so four
# times as seldom as by default.
_LOG_PAGES = 4000
# Answers in one transaction, which the last of them waits for.
_MOST = 1024

_SCHEMA = (
    "create table texts (id integer primary key, digest blob not null unique, words text not null)",
    # `sample` is the key's bits, null for the one sample of a call without a key; `cost` and `logprob` are null where
    # unknown, `began` and `ended` are seconds since 1970, `answered_by` is the model that the service names, `lane` and
    # `scope` tell who has asked first.
    """create table calls (
        id integer primary key, digest blob not null unique,
        provider text not null, endpoint text not null, model text not null, parameters text not null, sample text,
        answer text not null, answer_digest blob not null, answered_by text not null, request_id text not null,
        input_tokens integer not null, output_tokens integer not null, cost real, logprob real,
        alternatives text not null, began real not null, ended real not null, attempts integer not null,
        lane text not null, scope text not null)""",
    """create table messages (
        call integer not null references calls, position integer not null, role text not null,
        text integer not null references texts, primary key (call, position)) without rowid""",
)
_GET = """select answer_digest, answer, input_tokens, output_tokens, cost, logprob, answered_by, request_id,
    alternatives from calls where digest = ?"""
_PUT_TEXT = "insert into texts (digest, words) values (?, ?) on conflict do nothing"
_PUT_CALL = """insert into calls (digest, provider, endpoint, model, parameters, sample, answer, answer_digest,
    answered_by, request_id, input_tokens, output_tokens, cost, logprob, alternatives, began, ended, attempts, lane,
    scope)
    values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing"""
_PUT_MESSAGE = """insert into messages (call, position, role, text) select ?, ?, ?, id from texts where digest = ?
    on conflict do nothing"""


# -- the file --------------------------------------------------------------------------------------------------------


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Opens a journal's file, in autocommit mode.

    **Raises:** `JournalFileError` if it is no journal that this version reads, or if there is none and `create` is
    false; the file is left as it is. `JournalWriteError` if it cannot be opened.
    """
    with _told(path), contextlib.ExitStack() as undo:
        if create:
            _make(path)
        elif not path.exists():
            raise JournalFileError(f"there is no journal at {path}.")
        size, log = path.stat().st_size, _size(path, "-wal")
        if log and not size:  # SQLite would take the file for a new one, and drop its log
            raise _damaged(path, "its log has lost the file it belongs to")
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        undo.callback(connection.close)
        with transaction(connection, "deferred"):  # as it is at one moment: another process may be making it
            is_new = _is_new(connection, path)
        if is_new:
            _initialise(connection, path)
        elif not log and size % _pragma(connection, "page_size"):
            raise _damaged(path, "it ends within a page")
        if _pragma(connection, "journal_mode = wal") != "wal":
            raise JournalWriteError(
                f"the file system of {path} has no shared memory, without which several processes cannot share a "
                f"journal. {_ELSEWHERE}"
            )
        _pragma(connection, "synchronous = normal")
        _pragma(connection, f"wal_autocheckpoint = {_LOG_PAGES}")
        undo.pop_all()
        return connection


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only a new file is opened here: POSIX drops a process's locks on a file when any descriptor of it is closed.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _size(path: Path, suffix: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(f"{path}{suffix}").st_size
    return 0


def _pragma(connection: sqlite3.Connection, words: str) -> Any:
    row = connection.execute(f"pragma {words}").fetchone()
    return row and row[0]


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is empty. Raises `JournalFileError` if it is not a journal of this version."""
    owner, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if owner == APPLICATION and version == VERSION:
        return False
    if owner == APPLICATION:
        other = "Upgrade ember_jax" if version > VERSION else "Read it with the ember_jax that wrote it"
        raise JournalFileError(
            f"{path} is a journal of version {version}, and this ember_jax reads version {VERSION}. "
            f"It was left as it is. {other}, or use another file. {_ELSEWHERE}"
        )
    if owner or version or connection.execute("select count(*) from sqlite_master").fetchone()[0]:
        raise JournalFileError(f"{path} is another program's database. It was left as it is. {_ELSEWHERE}")
    return True


def _initialise(connection: sqlite3.Connection, path: Path) -> None:
    with transaction(connection):
        if _is_new(connection, path):  # to this process, now that no other one can write
            for statement in _SCHEMA:
                connection.execute(statement)
            _pragma(connection, f"application_id = {APPLICATION}")
            _pragma(connection, f"user_version = {VERSION}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, mode: str = "immediate") -> Iterator[None]:
    """All or nothing; other processes' writes wait. What a `deferred` one reads is of one moment."""
    connection.execute(f"begin {mode}")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back after some errors
            connection.execute("rollback")
        raise


_ELSEWHERE = (
    "Name another file with `ember.session(journal=…)` or the environment variable EMBER_JAX_JOURNAL, or keep nothing "
    "with `journal=None`."
)


def failure(path: Path, error: Exception) -> JournalError:
    """What an error of SQLite or of the file system means for the journal at `path`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the higher bits say more than is needed
    if code == sqlite3.SQLITE_NOTADB:
        return JournalFileError(f"{path} is no journal: it is not a SQLite file. It was left as it is. {_ELSEWHERE}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT):
        return _damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return JournalWriteError(
            f"the journal {path} cannot grow: the disk is full. No further call is made; what was kept before is safe. "
            "Make room and run the same program again: only what is missing is asked."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalWriteError(f"another process has held the journal {path} for {_PATIENCE:g} seconds. End it.")
    words = str(error) if code else getattr(error, "strerror", None) or str(error)
    return JournalWriteError(f"the journal {path} cannot be used: {words}. {_ELSEWHERE}")


def _damaged(path: Path, how: str) -> JournalFileError:
    return JournalFileError(
        f"the journal {path} is damaged: {how}. It was left as it is. Move it away, with its files {path.name}-wal and "
        f"{path.name}-shm, to begin another; the command `sqlite3 {path.name} .recover` saves what can be read."
    )


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise failure(path, error) from error


# -- rows ------------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """An entry as SQLite takes it."""

    texts: list[tuple[bytes, str]]
    call: tuple[Any, ...]
    messages: list[tuple[int, str, bytes]]


def _row(digest: bytes, entry: Entry) -> _Row:
    request, response = entry.request, entry.response
    texts = [(digest_of(m.content), m.content) for m in request.messages]
    messages = [(i, m.role, texts[i][0]) for i, m in enumerate(request.messages)]
    call = (
        digest,
        request.provider,
        entry.endpoint,
        request.model,
        _encode(dict(request.parameters)) if request.parameters else "{}",
        request.sample,
        response.text,
        digest_of(response.text),
        _unicode(response.model),
        _unicode(response.request_id),
        _whole(response.input_tokens),
        _whole(response.output_tokens),
        float(response.cost),  # NaN becomes null
        float(response.logprob),
        _encode(response.alternatives) if response.alternatives else "",
        entry.began,
        entry.ended,
        entry.attempts,
        queries.lane_words(entry.lane),
        entry.scope,
    )
    return _Row(texts, call, messages)


_encode = json.JSONEncoder(sort_keys=True).encode  # `json.dumps` would make one for each call


def _unicode(words: str) -> str:
    return words if words.isascii() else words.encode("utf-8", "replace").decode()


def _whole(number: int) -> int:
    """A count as SQLite can hold it: one row that cannot be bound would spoil its whole transaction."""
    return max(-(2**63), min(int(number), 2**63 - 1))


def _response(row: Sequence[Any]) -> Response:
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


# -- writing ---------------------------------------------------------------------------------------------------------


class _Put(NamedTuple):
    """A row that waits to be committed, and who waits for it; no row asks whether those that are held can be."""

    row: _Row | None
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[bool]


class _Writer:
    """Commits rows in a thread of its own, those that wait together in one transaction.

    **Attributes:**

    - `held`: rows that could not be committed.
    - `has_failed`: whether there ever were any.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.held: list[_Row] = []
        self.has_failed = False
        self._path = path
        self._file = _identity(path)
        self._connection = connection
        self._waiting: queue.SimpleQueue[list[_Put] | None] = queue.SimpleQueue()
        # Those of each loop's round: the thread that is woken for each of them takes the interpreter from the loop.
        self._lock = threading.Lock()
        self._gathered: dict[asyncio.AbstractEventLoop, list[_Put]] = {}
        self._thread = threading.Thread(target=self._serve, name="ember-journal", daemon=True)
        self._thread.start()

    def submit(self, row: _Row | None) -> asyncio.Future[bool]:
        """Is done when a row is safe, and those that were held; says whether all were the first of their digests."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        with self._lock:
            puts = self._gathered.get(loop)
            if puts is None:
                puts = self._gathered[loop] = []
                loop.call_soon(self._flush, loop)
            puts.append(_Put(row, loop, done))
        return done

    def close(self) -> None:
        """Ends the thread after what waits."""
        with self._lock:
            for puts in self._gathered.values():
                self._waiting.put(puts)
            self._gathered.clear()
            self._waiting.put(None)
        self._thread.join()
        self._connection.close()

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:  # also to put them: behind the end that another thread puts they would wait for ever
            if puts := self._gathered.pop(loop, None):
                self._waiting.put(puts)

    def _serve(self) -> None:
        while (puts := self._waiting.get()) is not None:
            is_last = False
            while len(puts) < _MOST and not self._waiting.empty() and not is_last:
                more = self._waiting.get()
                is_last = more is None
                puts += more or []
            self._commit(puts)
            if is_last:
                break

    def _commit(self, puts: list[_Put]) -> None:
        rows = [*self.held, *(put.row for put in puts if put.row is not None)]
        try:
            are_new = self._write(rows)
        except (sqlite3.Error, OSError, JournalError) as error:
            self.held, self.has_failed = rows, True
            told = error if isinstance(error, JournalError) else failure(self._path, error)
            settle = lambda done: done.set_exception(type(told)(*told.args))  # a traceback of its own for each lane
        else:
            self.held = []
            settle = lambda done: done.set_result(are_new)
        _tell(puts, settle)

    def _write(self, rows: list[_Row]) -> bool:
        if not rows:
            return True
        if _identity(self._path) != self._file:
            raise JournalWriteError(f"the journal {self._path} was moved or deleted while it was in use: begin anew.")
        with transaction(self._connection):
            self._connection.executemany(_PUT_TEXT, {text: None for row in rows for text in row.texts})
            written = self._connection.executemany(_PUT_CALL, [row.call for row in rows]).rowcount
            ids = self._ids(rows, are_new=written == len(rows))
            messages = [(call, *message) for call, row in zip(ids, rows, strict=True) for message in row.messages]
            self._connection.executemany(_PUT_MESSAGE, messages)
        return written == len(rows)

    def _ids(self, rows: Sequence[_Row], are_new: bool) -> Iterable[int]:
        """Of calls that were just put; new ones have been given one number after another."""
        if are_new:
            (last,) = self._connection.execute("select last_insert_rowid()").fetchone()
            return range(last - len(rows) + 1, last + 1)
        find = "select id from calls where digest = ?"
        return [self._connection.execute(find, row.call[:1]).fetchone()[0] for row in rows]


def _tell(puts: list[_Put], settle: Callable[[asyncio.Future[bool]], None]) -> None:
    waiting = collections.defaultdict(list)
    for put in puts:
        waiting[put.loop].append(put.done)
    for loop, all_done in waiting.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(functools.partial(_settle, all_done, settle))


def _settle(all_done: list[asyncio.Future[bool]], settle: Callable[[asyncio.Future[bool]], None]) -> None:
    for done in all_done:
        if not done.done():  # who waited may have been cancelled
            settle(done)


def _identity(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


# -- the journal -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stats:
    """What a journal holds.

    **Fields:**

    - `calls`: answered calls; `models`: how many of each model, by its id.
    - `texts`: different texts that were sent.
    - `input_tokens`, `output_tokens`: of all calls.
    - `cost_usd`: of the calls whose price is known; `unpriced` counts the others.
    - `bytes`: of the file and its log.
    - `oldest`, `newest`: when the first and the last answer came, in seconds since 1970; NaN if there is none.
    """

    calls: int
    models: Mapping[str, int]
    texts: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    unpriced: int
    bytes: int
    oldest: float
    newest: float

    def __str__(self) -> str:
        rows = {name: f"{getattr(self, name):,}" for name in ("calls", "texts", "input_tokens", "output_tokens")}
        rows["cost_usd"] = f"${self.cost_usd:,.6f}"
        rows |= {name: f"{getattr(self, name):,}" for name in ("unpriced", "bytes")}
        rows |= {name: moment(getattr(self, name)) for name in ("oldest", "newest")}
        rows |= {name: f"{count:,}" for name, count in self.models.items()}
        left, right = max(map(len, rows)), max(map(len, rows.values()))
        return "\n".join(f"{name.replace('_', ' '):<{left}} {value:>{right}}" for name, value in rows.items())


def _seconds(since: datetime.datetime | str) -> float:
    moment = datetime.datetime.fromisoformat(since) if isinstance(since, str) else since
    return moment.astimezone().timestamp()


class _Reader:
    """Point reads; those of one round of an event loop are one transaction. Closed under the lock that is given."""

    def __init__(self, connection: sqlite3.Connection, lock: threading.RLock):
        self._connection = connection
        self._lock = lock

    def row(self, digest: bytes) -> Any:
        """The row of an answer, or `None`."""
        if not self._connection.in_transaction:
            with contextlib.suppress(RuntimeError):  # no loop runs here: each read is by itself
                asyncio.get_running_loop().call_soon(self.end)
                self._connection.execute("begin")
        return self._connection.execute(_GET, (digest,)).fetchone()

    def end(self) -> None:
        """Ends the transaction, if there is one."""
        with self._lock, contextlib.suppress(sqlite3.ProgrammingError):  # it was closed meanwhile
            if self._connection.in_transaction:
                self._connection.execute("commit")

    def close(self) -> None:
        self._connection.close()


class _Open(NamedTuple):
    reader: _Reader
    writer: _Writer


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
        self._lock = threading.RLock()
        self._open: _Open | None = None
        _journals.add(self)

    def __repr__(self) -> str:
        return f"Journal({str(self.path)!r})"

    def check(self) -> None:
        """Makes the file if there is none. Raises `JournalError` if it cannot be used."""
        connect(self.path, create=True).close()

    def get(self, digest: bytes) -> Response | None:
        try:
            with self._lock:  # another thread may close it
                row = self._opened().reader.row(digest)
        except sqlite3.Error as error:
            raise failure(self.path, error) from error
        if row is None:
            return None
        if digest_of(row[1]) != row[0]:
            raise _damaged(self.path, f"the words of the answer to {digest.hex()[:12]}… are not those it had")
        return _response(row)

    def _get_now(self, digest: bytes) -> Response | None:
        """The answer as it is at this moment, not at the beginning of the loop's round."""
        with self._lock:
            if self._open is not None:
                self._open.reader.end()
            return self.get(digest)

    async def ready(self, digest: bytes) -> Response | None:
        open = self._open  # another thread may close it
        if open is None or not open.writer.has_failed:
            return None
        if open.writer.held:
            await self._safe(None)
        return self._get_now(digest)  # it may have been committed since it was looked for

    async def put(self, digest: bytes, entry: Entry) -> Response:
        is_new = await self._safe(_row(digest, entry))
        return entry.response if is_new else self._get_now(digest) or entry.response

    def drop(self, digests: Iterable[bytes]) -> int:
        if not self.path.exists():
            return 0
        with self._connection() as connection, transaction(connection):
            return queries.delete(connection, digests)

    def close(self) -> None:
        with self._lock:
            open, self._open = self._open, None
            if open is not None:
                open.reader.close()
        if open is not None:
            open.writer.close()

    def stats(self) -> Stats:
        """What the file holds. Raises `JournalError` if there is none, or if it is no journal."""
        with self._connection() as connection:
            totals = connection.execute(
                "select count(*), total(input_tokens), total(output_tokens), total(cost), count(*) - count(cost),"
                " min(ended), max(ended) from calls"
            ).fetchone()
            models = connection.execute(
                "select provider || '/' || model, count(*) from calls group by 1 order by 2 desc, 1"
            ).fetchall()
            (texts,) = connection.execute("select count(*) from texts").fetchone()
        calls, input_tokens, output_tokens, cost, unpriced, oldest, newest = totals
        return Stats(
            calls=calls,
            models=dict(models),
            texts=texts,
            input_tokens=int(input_tokens),
            output_tokens=int(output_tokens),
            cost_usd=cost,
            unpriced=unpriced,
            bytes=_size(self.path, "") + _size(self.path, "-wal"),
            oldest=math.nan if oldest is None else oldest,
            newest=math.nan if newest is None else newest,
        )

    def calls(
        self,
        *,
        model: str | None = None,
        answer: Answer | None = None,
        since: datetime.datetime | str | None = None,
        before: datetime.datetime | str | None = None,
        contains: str | None = None,
        lane: Lane | None = None,
        op: str | None = None,
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
            one row, and no call that failed.
        - `digest`: the first digits of the digest.

        **Returns:** one `Call` for each answer.

        **Raises:** `JournalError` if there is no file, or it is no journal; `TypeError` or `ValueError` for an argument
        that cannot be read.
        """
        answers = None if answer is None else json.dumps([digest.hex() for digest in answer_digests(answer)])
        asked = {
            "model": model,
            "answers": answers,
            "since": None if since is None else _seconds(since),
            "before": None if before is None else _seconds(before),
            "contains": contains,
            "lane": None if lane is None else queries.lane_words(lane_index(lane)),
            "op": op,
            "digest": None if digest is None else digest.lower(),
        }
        with self._connection() as connection:
            return Calls(queries.find(connection, asked), self._read)

    def forget(self, calls: Call | Iterable[Call]) -> int:
        """Deletes calls, with the words that are then no other call's, so that they are asked again.

        **Returns:** how many there were.

        **Raises:** `TypeError` for what is no call; `JournalError` if the file cannot be written.
        """
        return self.drop(digests(calls))

    def compact(self) -> None:
        """Makes the file as short as what it holds, which takes a while. Raises `JournalError` if it cannot be."""
        with self._connection() as connection:
            connection.execute("vacuum")
            connection.execute("pragma wal_checkpoint(truncate)").fetchone()

    def _read(self, ids: Sequence[int]) -> Iterator[Call]:
        with self._connection() as connection:
            yield from queries.read(connection, ids)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, for any thread."""
        with _told(self.path), contextlib.closing(connect(self.path)) as connection:
            yield connection

    async def _safe(self, row: _Row | None) -> bool:
        with self._lock:  # nothing may be submitted to a writer that another thread is closing
            done = self._opened().writer.submit(row)
        working = get_loop().threads.working  # virtual time stands still while the writer works
        working.add(done)
        try:
            return await done
        finally:
            working.discard(done)

    def _opened(self) -> _Open:
        with self._lock:
            if self._open is None:
                with contextlib.ExitStack() as undo:
                    reader = connect(self.path, create=True)
                    undo.callback(reader.close)
                    writer = connect(self.path)
                    undo.pop_all()
                log.journal_opened(self.path)
                self._open = _Open(_Reader(reader, self._lock), _Writer(self.path, writer))
            return self._open

    def _forget(self) -> None:
        """In a forked process: its parent's connections are not to be used here, nor closed."""
        _inherited.append(self._open)
        self._open, self._lock = None, threading.RLock()


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    for journal in _journals:
        journal._forget()


os.register_at_fork(after_in_child=_after_fork)
