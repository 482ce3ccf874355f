"""Noticing samples that were meant to be independent and are not.

Without a key a call is "sample 0": equal keyless calls are one call. That is what a program wants for a question asked
in every epoch, and not what it wants for five votes. So a sweep warns, once, when one lane asks the same keyless sample
twice, and when a call of several lanes collapses to one.
"""

from typing import Any

_FIX = (
    "Equal calls without a key are one sample, asked once. For independent samples split a key and pass it: "
    "`llm(prompt, key)`."
)


class Repeats:
    """What a sweep's keyless calls were. Used from the event loop."""

    def __init__(self, operator: str):
        self._operator = operator
        self._by_lane: dict[Any, set[bytes]] = {}
        # The digest that a call had, `None` once it had another, and how often: once in a lane, or it is `_twice`.
        self._by_call: dict[Any, tuple[bytes | None, int]] = {}
        self._twice: str | None = None
        self._everywhere: tuple[str, int] | None = None

    def saw(self, lane: Any, node: Any, digest: bytes) -> None:
        """Notes that a lane made a keyless call that draws a sample."""
        if not node.warns:
            return
        seen = self._by_lane.setdefault(lane, set())
        if (digest in seen or node.asked > 1) and self._twice is None:
            self._twice = node.scope or self._operator
        if node.lanes > 1 and self._everywhere is None:
            self._everywhere = (node.scope or self._operator, node.lanes)
        seen.add(digest)
        first, calls = self._by_call.get(node, (digest, 0))
        self._by_call[node] = digest if digest == first else None, calls + 1

    def ended(self, lane: Any) -> None:
        """Forgets a lane that makes no further call."""
        self._by_lane.pop(lane, None)

    def warning(self, lanes: int) -> str | None:
        """What to warn of, if anything, after a sweep of so many lanes."""
        if self._twice is not None:
            return f"{self._twice} asks the same sample more than once in one lane. {_FIX}"
        if self._everywhere is not None:
            return "{} asks one and the same sample in all {} lanes. ".format(*self._everywhere) + _FIX
        for node, (digest, calls) in self._by_call.items():
            if lanes > 1 and calls == lanes and digest is not None:
                return f"{node.scope or self._operator} asks one and the same sample in all {lanes} lanes. {_FIX}"
        return None
