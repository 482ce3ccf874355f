"""Claims: which process is asking what, so that several that share a file do not pay for one question twice.

Design note. A claim is a row that is committed before a request is sent, and deleted with the commit of its answer. A
process that finds another's claim waits for the answer, and asks for itself only if the claim ends without one.

A claim is as good as its owner, the writer that made it. An owner says every few seconds until when it vouches for
itself. If it is killed, its claims are void: at once where its process is known to be gone, and else when that time is
over. One row is renewed for an owner, and not one for each claim, of which there may be thousands. (A lock of the
file system would also end with its process. But each claim would need one, and systems differ in how they keep them.)

The rows are written by the writer's thread, in the transactions of its answers. A disk that is full thus refuses the
claim, and no request is sent whose answer could not be kept.
"""

import contextlib
import math
import os
import platform
import secrets
import sqlite3
import time
from collections.abc import Iterable
from typing import NamedTuple

from .file import transaction

# For how many seconds an owner vouches for itself, and how often it does.
LEASE, BEAT = 15.0, 5.0

_OWNER_OF = "select host, pid, until from claims join owners on owners.id = claims.owner where digest = ?"


class _Owner(NamedTuple):
    """A row of `owners`: the host's name, the process there, and the time until which it vouches for itself."""

    host: str
    pid: int
    until: float

    def is_alive(self) -> bool:
        # A time further ahead than a lease was written when the clock showed another time.
        if not time.time() < self.until <= time.time() + LEASE:
            return False
        # Only on its own host does a number name a process. Windows has no signal that asks and does nothing.
        if os.name != "posix" or self.host != platform.node():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it is another user's
            return True
        return True


def is_claimed(connection: sqlite3.Connection, digest: bytes) -> bool:
    """Whether somebody who is alive has a claim."""
    row = connection.execute(_OWNER_OF, (digest,)).fetchone()
    return row is not None and _Owner(*row).is_alive()


class Claims:
    """The claims of one writer. Used by its thread, within transactions of its connection but for `close`."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection
        # Drawn, and not numbered by SQLite, which gives the number of a row that was removed again.
        self._id = secrets.randbits(62)
        self._vouched = -math.inf
        # What is claimed in the file; and what the transaction that runs adds to it and takes from it.
        self._held: set[bytes] = set()
        self._made: set[bytes] = set()
        self._ended: set[bytes] = set()

    def make(self, digest: bytes, old: bytes | None) -> bool:
        """Claims a question. Returns false if it is answered already, or if another's claim to it is good.

        `old` is the digest of an answer that is of no use, which does not count as one.
        """
        known = "select 1 from calls where digest = ? and answer_digest is not ?"
        if self._connection.execute(known, (digest, old)).fetchone() is not None:
            return False
        claim = "insert into claims (digest, owner) values (?, ?) on conflict do nothing"
        if not self._connection.execute(claim, (digest, self._id)).rowcount:
            if is_claimed(self._connection, digest):
                return False
            self._connection.execute("update claims set owner = ? where digest = ?", (self._id, digest))
        self._made.add(digest)
        self._ended.discard(digest)
        return True

    def end(self, digests: Iterable[bytes]) -> None:
        """Ends this writer's claims to questions, and leaves those of others."""
        ended = (self._held | self._made).intersection(digests) if self._made else self._held.intersection(digests)
        if ended:
            mine = [(digest, self._id) for digest in ended]
            self._connection.executemany("delete from claims where digest = ? and owner = ?", mine)
            self._ended |= ended
            self._made -= ended

    @property
    def wait(self) -> float | None:
        """After how many seconds without a transaction one is needed that vouches; `None` for never."""
        return BEAT if self._held else None

    def vouch(self) -> None:
        """Vouches for the owner for another lease, if it is time to. The first time, removes owners that are dead."""
        now = time.time()
        if not (self._held or self._made) or 0 <= now - self._vouched < BEAT:
            return
        if self._vouched == -math.inf:
            for number, *owner in self._connection.execute("select id, host, pid, until from owners").fetchall():
                if not _Owner(*owner).is_alive():  # it was killed, else it would have removed itself
                    self._remove(number)
        values = self._id, platform.node(), os.getpid(), now + LEASE
        self._connection.execute("insert or replace into owners (id, host, pid, until) values (?, ?, ?, ?)", values)
        self._vouched = now

    def committed(self) -> None:
        """The transaction was committed."""
        if self._made or self._ended:
            self._held |= self._made
            self._held -= self._ended
            self._made, self._ended = set(), set()

    def undone(self) -> None:
        """The transaction was undone."""
        self._made, self._ended = set(), set()
        self._vouched = -math.inf

    def close(self) -> None:
        """Removes the owner with all of its claims, in a transaction. Where that fails, they end with the lease."""
        if self._vouched > -math.inf:
            with contextlib.suppress(sqlite3.Error), transaction(self._connection):
                self._remove(self._id)

    def _remove(self, number: int) -> None:
        self._connection.execute("delete from claims where owner = ?", (number,))
        self._connection.execute("delete from owners where id = ?", (number,))
