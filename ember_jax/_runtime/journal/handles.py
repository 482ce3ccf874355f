"""What a journal has open of its file, while other threads may close it and processes may be forked."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import weakref
from pathlib import Path
from typing import Any, NamedTuple

from ..._text.store import digest_of
from ...providers.base import Response
from .. import log
from ..loop import get_loop
from .claims import is_claimed
from .file import connect, damaged, failure, translated
from .reader import Reader, response
from .writer import Claim, Release, Row, Writer


class Open(NamedTuple):
    """What is open: a connection for each."""

    reader: Reader
    writer: Writer


class Handles:
    """Opens a journal's file when it is first used, and again after it was closed. Closes it when it is collected.

    **Attributes:**

    - `open`: what is open now; `None` if nothing is. Another thread may set it to `None` at any time.

    **Raises:** `JournalError`, by each method, if the file cannot be used.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.RLock()
        self.open: Open | None = None
        self._forgotten: weakref.finalize[..., Handles] | None = None
        _all.add(self)

    def get(self, digest: bytes) -> Response | None:
        """The answer that the file had when this round of the loop first read it."""
        try:
            with self._lock:  # another thread may close the reader
                row = self.opened().reader.row(digest)
        except sqlite3.Error as error:
            raise failure(self._path, error) from error
        if row is None:
            return None
        if digest_of(row[1]) != row[0]:
            raise damaged(self._path, f"the words of the answer to {digest.hex()[:12]}… are not those it had")
        return response(row)

    def get_now(self, digest: bytes) -> Response | None:
        """The answer that the file has at this moment."""
        with self._lock:
            if self.open is not None:
                self.open.reader.end()
            return self.get(digest)

    def is_claimed(self, digest: bytes) -> bool:
        """Whether somebody asks the question at this moment."""
        with translated(self._path), self._lock:
            reader = self.opened().reader
            reader.end()
            return is_claimed(reader.connection, digest)

    async def safe(self, what: Row | Claim | None) -> bool:
        """Waits until something, or with `None` what was held, is committed. Returns what `Writer.submit` tells."""
        with self._lock:  # nothing may be submitted to a writer that another thread is closing
            done = self.opened().writer.submit(what)
        # A loop whose time is virtual lets no time pass while threads work for it.
        working = get_loop().threads.working
        working.add(done)
        try:
            return await done
        finally:
            working.discard(done)

    def release(self, digest: bytes) -> None:
        """Ends a claim. If that cannot be committed it is held, and told to the next call that is to be sent."""
        with self._lock:
            self.opened().writer.submit(Release(digest)).add_done_callback(_retrieved)

    def close(self) -> None:
        """Waits until what was submitted is committed, and closes the file."""
        with self._lock:
            open, self.open = self.open, None
            if open is not None:
                self._detach()
                open.reader.close()
        if open is not None:
            open.writer.close()

    def opened(self) -> Open:
        """What is open; opens it if it is not."""
        with self._lock:
            if self.open is None:
                with contextlib.ExitStack() as undo:  # closes the reader if the writer cannot be opened
                    reader = connect(self._path, create=True)
                    undo.callback(reader.close)
                    writer = connect(self._path)
                    undo.pop_all()
                log.journal_opened(self._path)
                self.open = Open(Reader(reader, self._lock), Writer(self._path, writer))
                self._forgotten = weakref.finalize(self, _abandon, *self.open)
                self._forgotten.atexit = False  # `close_all` is for that
            return self.open

    def forked(self) -> None:
        """In a forked process: drops the parent's connections, which SQLite allows neither to use nor to close."""
        _inherited.append(self.open)
        self._detach()
        self.open, self._lock = None, threading.RLock()

    def _detach(self) -> None:
        if self._forgotten is not None:
            self._forgotten.detach()
            self._forgotten = None


def _abandon(reader: Reader, writer: Writer) -> None:
    """Closes what nobody can use any more. Called by the collector, in any thread, so nothing here may wait."""
    writer.abandon(reader.close)


def close_all() -> None:
    """Closes the files of all journals, which may be used again."""
    for handles in list(_all):
        handles.close()


def _retrieved(done: asyncio.Future[bool]) -> None:
    """Nobody waits for it, and asyncio logs exceptions that nobody has retrieved."""
    if not done.cancelled():
        done.exception()


_all: weakref.WeakSet[Handles] = weakref.WeakSet()
# Parents' connections in a forked process. They are held for ever, as Python closes a connection that nothing holds.
_inherited: list[Any] = []


def _after_fork() -> None:
    for handles in _all:
        handles.forked()


os.register_at_fork(after_in_child=_after_fork)
