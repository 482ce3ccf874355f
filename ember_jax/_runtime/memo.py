"""Results of pure host functions, so that what JAX runs twice is asked for once."""

from collections import OrderedDict

from .journal.memory import lock

# What a row takes besides the bytes of its key and value: their objects, and its share of the dictionary.
_OVERHEAD = 256


class Memo:
    """The most recently used results of pure host functions, within a bound on their bytes. Used from any thread.

    JAX may run a program's host side twice: `jax.checkpoint` does so in the backward pass, and a derivative rule may
    call its function again. The result of a pure function is then taken from here, and the function does not run again.
    A memo is no journal: it drops what was not used for the longest time. Results are kept as bytes: as arrays they
    would take three times as much.

    **Arguments:**

    - `most_bytes`: the bound.
    """

    def __init__(self, most_bytes: int = 64 << 20):
        self._most = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, key: bytes) -> bytes | None:
        """The result of a key, or `None`."""
        with lock:
            result = self._rows.get(key)
            if result is not None:
                self._rows.move_to_end(key)
            return result

    def put(self, key: bytes, result: bytes) -> None:
        """Keeps a result, dropping the least recently used ones beyond the bound."""
        with lock:
            replaced = self._rows.pop(key, None)
            if replaced is not None:
                self._bytes -= _size(key, replaced)
            self._rows[key] = result
            self._bytes += _size(key, result)
            while self._bytes > self._most:
                self._bytes -= _size(*self._rows.popitem(last=False))

    def clear(self) -> None:
        """Drops all."""
        with lock:
            self._rows.clear()
            self._bytes = 0


def _size(key: bytes, result: bytes) -> int:
    return len(key) + len(result) + _OVERHEAD
