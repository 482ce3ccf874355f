"""Notices samples that were meant to be independent and are not.

Without a key a call is "sample 0": equal calls without a key are one call. A program wants this for a question that it
asks in every epoch. It does not want it for five votes. So a sweep warns, once, when a lane asks for the same sample
twice, and when all lanes of several ask for one and the same.
"""

from typing import Any

_FIX = (
    "Equal calls without a key are one sample, asked once. For independent samples split a key and pass it: "
    "`llm(prompt, key)`."
)


class Repeats:
    """The samples without a key that a sweep has drawn. Used from the event loop.

    **Arguments:**

    - `operator`: what is run, named in warnings where a call stands in no operator of its own.
    """

    def __init__(self, operator: str):
        self._operator = operator
        # By lane that has not ended: the digests of its requests.
        self._by_lane: dict[Any, set[bytes]] = {}
        # By call of the plan: the digest of its requests, or `None` if they differ; and how often it was made. That is
        # once for each lane, or there are two equal ones in a lane, and `_twice` is warned of before this.
        self._by_call: dict[Any, tuple[bytes | None, int]] = {}
        # Where a lane asked for the same sample twice.
        self._twice: str | None = None
        # Where the plan itself makes one call for several lanes, and for how many.
        self._everywhere: tuple[str, int] | None = None

    def saw(self, lane: Any, node: Any, digest: bytes) -> None:
        """Notes that a lane made a call without a key that draws a sample, and the digest of its request."""
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
