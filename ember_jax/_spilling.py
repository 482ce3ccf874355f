"""A mapping within a bound of memory: what was used of late lies in memory, the rest in a file.

Design note. Values lie in two generations. What is put or asked for becomes young, and is found without a lock. Beyond
the bound the old ones go to the file, first those that came first, about a megabyte at a time (some milliseconds);
when no old one is left, the young ones are old. So a lookup need not note anything; the price is that what is always
in use may be read back once in a generation.

The file is only appended to, by the process that made it, and has no name: it is gone when the process ends, however it
ends. A forked process reads what its parent had written before, by the descriptor that it inherits, and writes to a
file of its own. A database would do neither: its connections do not survive a fork, and its file must be cleaned up.

Where a value lies in the file is known in memory, in records of 11 bytes and the rest of the key after its first two
bytes, by which they are gathered: with a million keys of 16 bytes 40 bytes for each, 30 with ten million. Records are
only appended, so that nobody waits until a table is built anew, and one is found by searching some hundred bytes.
"""

import errno
import os
import tempfile
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

V = TypeVar("V")

_BATCH_BYTES = 1 << 20
# A place in a file: an offset of 6 bytes, a length of 5.
_PLACE_BYTES, _LENGTH_BITS = 11, 40


class Spilling(Generic[V]):
    """Values by digest; a digest's value never changes. Used from any thread.

    **Arguments:**

    - `most_bytes`: how much may lie in memory.
    - `size`: the bytes that a value takes there, with its key and its share of the mapping; always the same ones.
    - `encode`, `decode`: to bytes, and back to an equal value.

    What cannot be written stays in memory, with a `RuntimeWarning`.
    """

    def __init__(
        self, most_bytes: int, size: Callable[[V], int], encode: Callable[[V], bytes], decode: Callable[[bytes], V]
    ):
        self._most = most_bytes
        self._size, self._encode, self._decode = size, encode, decode
        self._bytes = 0
        self._young: dict[bytes, V] = {}
        self._old: dict[bytes, V] = {}
        self._order: Iterator[bytes] = iter(())  # of the old ones, with some that are young again
        self._file: _File | None = None
        self._inherited: list[_File] = []
        _all.add(self)

    def get(self, key: bytes) -> V | None:
        """The value of a key, or `None`."""
        value = self._young.get(key)
        if value is None:
            with _lock:
                value = self._found(key)
                if value is not None:
                    self._use(key, value)
        return value

    def put(self, key: bytes, value: V) -> None:
        """Keeps a value."""
        if key not in self._young:
            with _lock:
                self._use(key, value)

    def in_memory(self) -> int:
        """How many values lie in memory."""
        with _lock:
            return len(self._young) + len(self._old)

    # Ctrl-C may end each of these between two steps. So a value is taken from one place when it lies in the next, and
    # never counted when it lies in none.

    def _use(self, key: bytes, value: V) -> None:
        if key in self._young:
            return
        self._young[key] = value
        if self._old.pop(key, None) is None:
            self._bytes += self._size(value)
            if self._bytes > self._most:
                self._spill()

    def _spill(self) -> None:
        """Makes room for a batch."""
        least = self._most - min(_BATCH_BYTES, self._most // 16)
        while self._bytes > least:
            batch = self._oldest(self._bytes - least)
            if not batch:
                self._old, self._young = {**self._old, **self._young} if self._old else self._young, {}
                self._order = iter(tuple(self._old))
                continue
            try:
                self._write(batch)
            except OSError as error:
                self._most = 2 * self._bytes  # seldom tried again
                _warn(error)
                return
            for key, value in batch.items():
                size = self._size(value)
                if key in self._old:
                    self._bytes -= size
                    del self._old[key]

    def _oldest(self, size: int) -> dict[bytes, V]:
        """The old values that came first, of so many bytes, as far as there are."""
        batch: dict[bytes, V] = {}
        for key in self._order:
            value = self._old.get(key)
            if value is not None:  # else it was used again
                batch[key] = value
                size -= self._size(value)
                if size <= 0:
                    break
        return batch

    def _write(self, batch: dict[bytes, V]) -> None:
        for file in self._files():
            batch = {key: value for key, value in batch.items() if file.find(key) is None}
        if batch:
            self._file = self._file or _File()
            self._file.append({key: self._encode(value) for key, value in batch.items()})

    def _found(self, key: bytes) -> V | None:
        for values in (self._young, self._old):
            if key in values:
                return values[key]
        for file in self._files():
            place = file.find(key)
            if place is not None:
                return self._decode(file.read(place))
        return None

    def _files(self) -> list["_File"]:
        return [self._file, *self._inherited] if self._file else self._inherited

    def _after_fork(self) -> None:
        self._file, self._inherited = None, self._files()


class _File:
    """Values in a file without a name, readable by its owner alone. Raises `OSError` if it cannot be written."""

    def __init__(self) -> None:
        self._descriptor = _open()
        # not at exit: other threads may still read
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._end = 0
        self._places: defaultdict[bytes, bytearray] = defaultdict(bytearray)

    def append(self, values: Mapping[bytes, bytes]) -> None:
        data = b"".join(values.values())
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, memoryview(data)[written:], self._end + written)
        at, self._end = self._end, self._end + len(data)
        for key, value in values.items():
            self._places[key[:2]] += key[2:] + (at << _LENGTH_BITS | len(value)).to_bytes(_PLACE_BYTES, "big")
            at += len(value)

    def find(self, key: bytes) -> int | None:
        """The place of a value, or `None`."""
        records, rest = self._places.get(key[:2], b""), key[2:]
        width = len(rest) + _PLACE_BYTES
        at = records.find(rest)
        while at > 0 and at % width:
            at = records.find(rest, at + 1)
        return None if at < 0 else int.from_bytes(records[at + len(rest) : at + width], "big")

    def read(self, place: int) -> bytes:
        offset, length = place >> _LENGTH_BITS, place & ((1 << _LENGTH_BITS) - 1)
        data = b""
        while len(data) < length:  # one call reads at most 2 GiB
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "a temporary file of this process was damaged by another")
            data += more
        return data


def _warn(error: OSError) -> None:
    warnings.warn(
        f"no temporary file can be written ({error}), so texts and answers stay in memory. Make room, or name another "
        "folder by the environment variable TMPDIR.",
        RuntimeWarning,
        stacklevel=2,
    )


def _open() -> int:
    # Where nobody has named a folder: /tmp is often kept in memory, /var/tmp never is.
    is_named = any(name in os.environ for name in ("TMPDIR", "TEMP", "TMP"))
    folder = "/var/tmp" if not is_named and os.access("/var/tmp", os.W_OK) else None
    descriptor, path = tempfile.mkstemp(prefix="ember_jax-", dir=folder)
    os.unlink(path)
    return descriptor


# One lock for all, held over a fork, so that a forked process finds none half changed. The same thread may enter again:
# a garbage collection within may run anybody's code.
_lock = threading.RLock()
_all: weakref.WeakSet[Spilling[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for spilling in _all:
        spilling._after_fork()
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
