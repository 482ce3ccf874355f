"""The file of a journal: how it is opened and made, whose it is, and what its errors mean."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import JournalError, JournalFileError, JournalWriteError
from .columns import OLDEST, VERSION
from .tables import APPLICATION, TABLES, migration

# Seconds that a write waits for another process to release the file. That process's commits take milliseconds.
_PATIENCE = 60.0
# The length of the log, in pages of 4 KiB, from which on SQLite copies it into the file. A copy syncs the disk twice:
# SQLite's own length, 1000 pages, would do so four times as often.
_LOG_PAGES = 4000


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Opens a journal's file, in autocommit mode. With `create` it is made if there is none.

    **Raises:** `JournalFileError` if it is no journal that this version reads, or if there is none and `create` is
    false; the file is left as it is. `JournalWriteError` if it cannot be opened.
    """
    with translated(path), contextlib.ExitStack() as undo:
        if create:
            _make(path)
        elif not path.exists():
            raise JournalFileError(f"there is no journal at {path}.")
        # Each check is before the statement that would write: what is no journal of ours must be left as it is.
        length, log = path.stat().st_size, size(path, "-wal")
        if log and not length:  # SQLite would take the empty file for a new one, and drop the log with its answers
            raise damaged(path, "its log has lost the file it belongs to")
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        undo.callback(connection.close)
        # One transaction for all questions: between two of them another process may make the file.
        with transaction(connection, "deferred"):
            version = _version(connection, path)
        if version and not log and length % _pragma(connection, "page_size"):
            raise damaged(path, "it ends within a page")
        if version < VERSION:
            _bring_up(connection, path)
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
    # `O_EXCL` opens no file that is there. POSIX drops all locks that a process has on a file when it closes any
    # descriptor of it, and this process may have the file open as a database.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def size(path: Path, suffix: str = "") -> int:
    """The bytes of the file, or of the one beside it whose name ends with `suffix`; 0 if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(f"{path}{suffix}").st_size
    return 0


def _pragma(connection: sqlite3.Connection, words: str) -> Any:
    row = connection.execute(f"pragma {words}").fetchone()
    return row and row[0]


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the file, 0 if it is empty. Raises `JournalFileError` if it is no journal that can be read."""
    owner, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if owner == APPLICATION and OLDEST <= version <= VERSION:
        return version
    if owner == APPLICATION:
        other = "Upgrade ember_jax" if version > VERSION else "Read it with the ember_jax that wrote it"
        raise JournalFileError(
            f"{path} is a journal of version {version}, and this ember_jax reads versions {OLDEST} to {VERSION}. "
            f"It was left as it is. {other}, or use another file. {_ELSEWHERE}"
        )
    if owner or version or connection.execute("select count(*) from sqlite_master").fetchone()[0]:
        raise JournalFileError(f"{path} is another program's database. It was left as it is. {_ELSEWHERE}")
    return 0


def _bring_up(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the tables of an empty file, or those of an earlier version into those of this one.

    It is one transaction, header and all: a process that dies in it leaves the file as it was, and the next one that
    opens the file does all of it.
    """
    with transaction(connection):
        # Asked again, as another process may have done it meanwhile. It cannot do so now: the transaction is one that
        # writes.
        version = _version(connection, path)
        for statement in migration(version) if version else TABLES:
            connection.execute(statement)
        if not version:
            _pragma(connection, f"application_id = {APPLICATION}")
        _pragma(connection, f"user_version = {VERSION}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, mode: str = "immediate") -> Iterator[None]:
    """What is written inside is committed as a whole, or not at all.

    An `immediate` transaction keeps other processes from writing from its beginning. A `deferred` one keeps nobody from
    writing, and all that it reads is the state of one moment.
    """
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
    """What an error of SQLite or of the file system means for the journal at `path`, as an error of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the bits above are SQLite's extended codes, of finer kinds
    if code == sqlite3.SQLITE_NOTADB:
        return JournalFileError(f"{path} is no journal: it is not a SQLite file. It was left as it is. {_ELSEWHERE}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT):
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return JournalWriteError(
            f"the journal {path} cannot grow: the disk is full. No further call is made; what was kept before is safe. "
            "Make room and run the same program again: only what is missing is asked."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalWriteError(f"another process has held the journal {path} for {_PATIENCE:g} seconds. End it.")
    words = str(error) if code else getattr(error, "strerror", None) or str(error)
    return JournalWriteError(f"the journal {path} cannot be used: {words}. {_ELSEWHERE}")


def damaged(path: Path, how: str) -> JournalFileError:
    """The error for a file whose content cannot be what was written."""
    return JournalFileError(
        f"the journal {path} is damaged: {how}. It was left as it is. Move it away, with its files {path.name}-wal and "
        f"{path.name}-shm, to begin another; the command `sqlite3 {path.name} .recover` saves what can be read."
    )


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the file system inside are raised as what they mean for the journal at `path`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise failure(path, error) from error
