"""A mapping within a bound of memory: values that were used lately lie in memory, the others in a file.

Design note. The values in memory are in two generations, young and old. A value that is put or asked for becomes young;
young values are found without a lock. When the bound is exceeded, old values go to the file, the first that came first,
about a megabyte at a time (which takes some milliseconds). When no old value is left, all young values become old. So a
lookup of a young value need not note that the value was used, as a strict order by last use would demand. The price is
that a value which is always in use may be written and read back once in a generation.

The file has no name, so it is gone when the process ends, however it ends. It is only appended to, and only by the
process that made it. A forked process reads what its parent had written before the fork, by the descriptor that it
inherits, and writes to a file of its own. A database was rejected: its connections do not survive a fork, and its file
would have to be cleaned up.

Where a value lies in the file is known in memory, by records. A record is the key without its first two bytes, and a
place of 11 bytes. Records are gathered by the first two bytes of their keys, and are only appended. So nobody ever
waits until a hash table is built anew, as with a `dict`. A record is found by a search through some hundred bytes. With
a million keys of 16 bytes this takes 40 bytes for each, and 30 with ten million.
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

# How many bytes are moved to the file at a time.
_BATCH_BYTES = 1 << 20
# A place in a file: an offset of 6 bytes, a length of 5.
_PLACE_BYTES, _LENGTH_BITS = 11, 40


class Spilling(Generic[V]):
    """Values by digest; a digest's value never changes. Used from any thread.

    **Arguments:**

    - `most_bytes`: how many bytes of values may lie in memory.
    - `size`: gives the bytes that a value takes in memory, with its key and its share of the mapping. It must give the
        same number each time: the number is added when the value comes and subtracted when it goes.
    - `encode`, `decode`: turn a value into bytes, and these into an equal value.

    If the file cannot be written, values stay in memory beyond the bound, and there is a `RuntimeWarning`.
    """

    def __init__(
        self, most_bytes: int, size: Callable[[V], int], encode: Callable[[V], bytes], decode: Callable[[bytes], V]
    ):
        self._most = most_bytes
        self._size, self._encode, self._decode = size, encode, decode
        self._bytes = 0
        self._young: dict[bytes, V] = {}
        self._old: dict[bytes, V] = {}
        # The keys of the old values, in the order in which they came. Some of these values may be young again by now.
        self._order: Iterator[bytes] = iter(())
        self._file: _File | None = None
        self._inherited: list[_File] = []
        _all.add(self)

    def get(self, key: bytes) -> V | None:
        """The value of a key, or `None`. Raises `OSError` if the file cannot be read."""
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

    # Ctrl-C may end each of these methods between any two steps. So a value is put into its new place before it is
    # taken from the old one, and its bytes are subtracted before it is deleted: no value is lost, and none that is in
    # no place stays counted.

    def _use(self, key: bytes, value: V) -> None:
        if key in self._young:
            return
        self._young[key] = value
        if self._old.pop(key, None) is None:
            self._bytes += self._size(value)
            if self._bytes > self._most:
                self._spill()

    def _spill(self) -> None:
        """Moves old values to the file until there is room for a batch more."""
        least = self._most - min(_BATCH_BYTES, self._most // 16)
        while self._bytes > least:
            batch, sizes = self._oldest(self._bytes - least)
            if not batch:
                self._old, self._young = {**self._old, **self._young} if self._old else self._young, {}
                self._order = iter(tuple(self._old))
                continue
            try:
                self._write(batch)
            except OSError as error:
                # The next attempt is when twice as much lies in memory. To try at each value would make all of them
                # slow.
                self._most = 2 * self._bytes
                _warn(error)
                return
            for key, size in zip(batch, sizes, strict=True):
                if key in self._old:
                    self._bytes -= size
                    del self._old[key]

    def _oldest(self, size: int) -> tuple[dict[bytes, V], list[int]]:
        """The old values that came first, until they make up `size` bytes or none is left; and the bytes of each."""
        batch: dict[bytes, V] = {}
        sizes: list[int] = []
        for key in self._order:
            value = self._old.get(key)
            if value is not None:  # else it was used again
                batch[key] = value
                sizes.append(of_one := self._size(value))
                size -= of_one
                if size <= 0:
                    break
        return batch, sizes

    def _write(self, batch: dict[bytes, V]) -> None:
        for file in self._inherited:
            batch = {key: value for key, value in batch.items() if file.find(key) is None}
        if batch:
            self._file = self._file or _File()
            self._file.append(batch, self._encode)

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
        # Closed when this object is collected, but not at the interpreter's exit, when other threads may still read.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._end = 0
        self._places: defaultdict[bytes, bytearray] = defaultdict(bytearray)

    def append(self, values: Mapping[bytes, V], encode: Callable[[V], bytes]) -> None:
        """Writes those of some values that are not in the file, such as were not read back from it."""
        # One loop over all: what it does for a value is most of what a value takes that does not stay in memory.
        pieces: list[bytes] = []
        records: list[tuple[bytearray, bytes]] = []
        at, places = self._end, self._places
        for key, value in values.items():
            held, rest = places[key[:2]], key[2:]
            if rest in held and _record(held, rest) is not None:
                continue
            pieces.append(raw := encode(value))
            records.append((held, rest + (at << _LENGTH_BITS | len(raw)).to_bytes(_PLACE_BYTES, "big")))
            at += len(raw)
        data = b"".join(pieces)
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, memoryview(data)[written:], self._end + written)
        self._end = at
        for held, record in records:
            held += record

    def find(self, key: bytes) -> int | None:
        """The place of a value: its offset and its length in one integer; or `None`."""
        held = self._places.get(key[:2])
        return None if held is None else _record(held, key[2:])

    def read(self, place: int) -> bytes:
        offset, length = place >> _LENGTH_BITS, place & ((1 << _LENGTH_BITS) - 1)
        data = b""
        while len(data) < length:  # one call reads at most 2 GiB
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "a temporary file of this process was damaged by another")
            data += more
        return data


def _record(held: bytearray, rest: bytes) -> int | None:
    """The place in the record of a key, of which the first two bytes are those that the records are gathered by."""
    width = len(rest) + _PLACE_BYTES
    # The bytes of the key may also occur across two records, or in a place. Only a multiple of the width is a hit.
    at = held.find(rest)
    while at > 0 and at % width:
        at = held.find(rest, at + 1)
    return None if at < 0 else int.from_bytes(held[at + len(rest) : at + width], "big")


def _warn(error: OSError) -> None:
    warnings.warn(
        f"no temporary file can be written ({error}), so texts and answers stay in memory. Make room, or name another "
        "folder by the environment variable TMPDIR.",
        RuntimeWarning,
        stacklevel=2,
    )


def _open() -> int:
    # If no environment variable names a folder, /var/tmp is taken and not /tmp: /tmp is often kept in memory, which is
    # what the file is to save, and /var/tmp never is.
    is_named = any(name in os.environ for name in ("TMPDIR", "TEMP", "TMP"))
    folder = "/var/tmp" if not is_named and os.access("/var/tmp", os.W_OK) else None
    descriptor, path = tempfile.mkstemp(prefix="ember_jax-", dir=folder)
    os.unlink(path)
    return descriptor


# One lock serves all these mappings. It is held over a fork, so that a forked process finds no mapping half changed. It
# is reentrant: while a thread holds it, a garbage collection may run anybody's code, which may use a mapping.
_lock = threading.RLock()
_all: weakref.WeakSet[Spilling[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for spilling in _all:
        spilling._after_fork()
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
