"""Results of pure host functions, so that what JAX runs twice is asked for once."""

from collections import OrderedDict
from typing import Any

from .journal.memory import lock


class Memo:
    """The most recently used results of pure host functions, within a bound on their bytes. Used from any thread.

    JAX may run a program's host side twice: `jax.checkpoint` does so in the backward pass, and a derivative rule may
    call its function again. The result of a pure function is then taken from here, and the function does not run again.
    A memo is no journal: it drops what was not used for the longest time.

    **Arguments:**

    - `most_bytes`: the bound.

    **Attributes:**

    - `cleared`: how often `clear` was called.
    """

    def __init__(self, most_bytes: int = 64 << 20):
        self._most = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self.cleared = 0

    def get(self, key: Any) -> Any:
        """The result of a key, or `None`."""
        with lock:
            row = self._rows.get(key)
            if row is None:
                return None
            self._rows.move_to_end(key)
            return row[0]

    def put(self, key: Any, result: Any, size: int, since: int | None = None) -> None:
        """Keeps a result of `size` bytes, dropping the least recently used ones beyond the bound.

        `since` is what `cleared` was when the function began; `None` to keep the result whatever was cleared. If
        `cleared` has grown since, the result is not kept: the function may have made it of answers that the user has
        told the session to forget.
        """
        with lock:
            if since is not None and self.cleared != since:
                return
            _, replaced = self._rows.pop(key, (None, 0))
            self._bytes -= replaced
            # A key and its share of the dictionary take about 256 bytes.
            self._rows[key] = (result, size + 256)
            self._bytes += size + 256
            while self._bytes > self._most:
                _, (_, dropped) = self._rows.popitem(last=False)
                self._bytes -= dropped

    def clear(self) -> None:
        """Drops all."""
        with lock:
            self._rows.clear()
            self._bytes = 0
            self.cleared += 1
