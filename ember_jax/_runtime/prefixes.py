"""Calls that begin alike: one of them is sent first, and the others read what the service has kept of it.

Design note. A service that keeps the beginning of a prompt bills it less to the calls that begin with it later, often a
tenth. A sweep sends its calls at once, so that none comes later: each pays for all of it. So the first call of a
*prefix* is sent alone, and the others wait until it was answered, or has begun to be. From then on nobody waits, as
long as the service keeps it.

**What begins alike.** Prompts are compared as they were sent, from their first character: system prompt, earlier turns
and the text of a template alike. A prompt is looked up by its first 2,048 characters, and then compared with the few
that were found to begin so; shorter ones are never looked at. A common beginning counts if it is as long as the service
asks for, a quarter of the prompt at least, and cheaper when it was kept: without a price nobody waits.

**Who goes first** is decided when a call has its turn to be sent, and not when it comes. So the order is that of the
scheduler and of the limits, and whoever is waited for is in flight: it needs no money, place or slot that a waiting
call could hold. A call that finds another one in flight gives all of these back. If the first one fails, the next one
that has its turn goes first; when three have failed in a row, nobody waits any more.

**Services that keep what they are told to** are told only of what is shared, as to keep costs more than not to. So
calls that are ready at once are gathered for some rounds of the event loop, which take no time, and what they have in
common is marked, up to the end of a line or word. A call that stays alone is sent as it is.

A service has read a prompt long before it has answered. So nobody waits for longer than half a minute.
"""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Sequence

from ..errors import ProviderError, RateLimitError
from ..providers.base import Message, Provider, Request, Tokens
from .pricing import Pricing
from .rounds import after

# The characters that prompts are looked up by. They are about 512 tokens, the least that any service keeps.
_HEAD = 2_048
# How large a part of a prompt the common beginning is at least, to be waited for: a quarter.
_PART = 4
# For how many rounds calls are gathered. Those of a batch come within seven, see `turns.py`.
_ROUNDS = 12
# For how many seconds a service keeps a prefix after it was last read. Anthropic says five minutes, OpenAI five to ten.
_KEPT = 300.0
# For how many seconds the first call is waited for at most.
_LONGEST = 30.0
# How many first calls may fail in a row.
_MOST_FAILED = 3
# How many beginnings are remembered, and how many prefixes of each.
_MOST_HEADS, _MOST_OF_HEAD = 256, 8
# How many characters of a prompt are compared, and kept for it, at most.
_MOST_COMPARED = 131_072
# Between the messages of a prompt, and between a message's role and its words.
_NEXT, _SAYS = "\x1e", "\x1f"


@dataclasses.dataclass(slots=True, eq=False)
class _Prefix:
    """Prompts that begin alike, with one model.

    `text` is what the service keeps of them: what is marked, or where nothing has to be, the prompt of one of them.
    """

    text: str
    needs_mark: bool
    is_marked: bool = False
    calls: int = 1
    kept_until: float = -math.inf
    failed: int = 0
    gathering: "asyncio.Future[None] | None" = None
    first: "asyncio.Future[None] | None" = None

    def gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to wait for others that begin alike."""
        self.is_marked, self.kept_until, self.failed = False, -math.inf, 0
        self.release()
        if self.gathering is None:
            self.gathering = loop.create_future()
            after(_ROUNDS, self._gathered, loop)

    def _gathered(self) -> None:
        ended, self.gathering = self.gathering, None
        if self.calls > 1:
            self.text, self.is_marked = _up_to_a_word(self.text), True
        if ended is not None:
            ended.set_result(None)

    def holds(self, now: float) -> "asyncio.Future[None] | None":
        """What a call has to wait for before it is sent; `None` for nothing."""
        if self.gathering is not None:
            return self.gathering
        return None if self.is_free(now) else self.first

    def is_free(self, now: float) -> bool:
        """Whether a call need not be first, and nobody has to wait for one."""
        return now < self.kept_until or self.failed >= _MOST_FAILED or not self.is_kept_when_read

    @property
    def is_kept_when_read(self) -> bool:
        """Whether the service keeps it of the next call that it reads: a call that stays alone is not marked."""
        return self.is_marked or not self.needs_mark

    def release(self) -> None:
        """Nobody has to wait for the first call any more."""
        if self.first is not None:
            self.first.set_result(None)
            self.first = None

    @property
    def is_idle(self) -> bool:
        return self.gathering is None and self.first is None


class Beginning:
    """How one call's prompt begins. Used on the event loop."""

    __slots__ = ("_loop", "_mine", "_prefix", "_sent", "_timer")

    def __init__(self, prefix: _Prefix, loop: asyncio.AbstractEventLoop):
        self._prefix, self._loop = prefix, loop
        # What the service keeps of it when it has read it.
        self._sent: str | None = None
        # If it is sent first: what the others wait for, and what ends their wait after the longest time.
        self._mine: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def ready(self) -> None:
        """Waits while a call that begins alike is sent first. To be awaited with nothing in hand."""
        while (held := self._prefix.holds(self._loop.time())) is not None:
            await asyncio.shield(held)

    def begins(self) -> bool:
        """Whether the call may be sent now. If it is the first one, others wait for it until it is `ended`."""
        prefix, now = self._prefix, self._loop.time()
        if prefix.holds(now) is not None:
            return False
        self._sent = prefix.text if prefix.is_kept_when_read else None
        if not prefix.is_free(now):
            self._mine = prefix.first = self._loop.create_future()
            self._timer = self._loop.call_later(_LONGEST, self.read)
        return True

    def marked(self, request: Request) -> Request:
        """The request as it is sent: it says what others begin with too, where the service has to be told."""
        prefix = self._prefix
        return dataclasses.replace(request, shared=_place(prefix.text, request)) if prefix.is_marked else request

    def read(self, words: str = "") -> None:
        """The service has read the prompt: it has answered, or begun to."""
        prefix = self._prefix
        if prefix.is_kept_when_read and self._sent == prefix.text:
            prefix.kept_until, prefix.failed = self._loop.time() + _KEPT, 0
        self.ended()

    def failed(self, error: ProviderError) -> None:
        """It has failed. A refusal as one too many says nothing of the prompt."""
        if self._is_first and not isinstance(error, RateLimitError):
            self._prefix.failed += 1

    def ended(self) -> None:
        """It is not in flight any more, in whatever way."""
        if self._is_first:
            self._prefix.release()
        if self._timer is not None:
            self._timer.cancel()
        self._mine = self._timer = None

    @property
    def _is_first(self) -> bool:
        return self._mine is not None and self._prefix.first is self._mine


class Prefixes:
    """The prefixes that a session's calls have in common. Used on the event loop.

    **Arguments:**

    - `pricing`: what calls cost.
    - `is_on`: whether any call waits for another.

    **Attributes:**

    - `is_on`: likewise.
    """

    def __init__(self, pricing: Pricing, is_on: bool):
        self._pricing = pricing
        self.is_on = is_on
        self._heads: dict[int, list[_Prefix]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def of(
        self,
        request: Request,
        provider: Provider,
        tokens: Callable[[int], float],
        loop: asyncio.AbstractEventLoop,
    ) -> Beginning | None:
        """How a call begins that has come; `None` if it need not wait for others, and none for it.

        **Arguments:**

        - `tokens`: how many tokens so many characters are.
        """
        text = self.text(request, provider)
        if not text or tokens(len(text)) < (least := provider.least_prefix(request)):
            return None
        if loop is not self._loop:  # times are those of a loop, and of one that was closed nothing goes on
            self._loop, self._heads = loop, {}
        settings = [repr(request.parameters.get(name)) for name in ("tools", "response_format", "thinking")]
        alike = self._alike(hash((request.provider, request.model, *settings, text[:_HEAD])))
        index, size = shared_with([prefix.text for prefix in alike], text)
        if not is_shared(size, text, tokens, least):
            prefix = _Prefix(text, provider.marks_prefix(request))
            if len(alike) >= _MOST_OF_HEAD:
                alike.remove(next((other for other in alike if other.is_idle), alike[0]))
            alike.append(prefix)
            if prefix.needs_mark:
                prefix.gather(loop)
            return Beginning(prefix, loop)
        prefix = alike[index]
        prefix.calls += 1
        # What is kept is another's whole prompt, or what is marked, which has to be all of it.
        if prefix.needs_mark and not (prefix.is_marked and size == len(prefix.text)):
            prefix.text = prefix.text[:size]
            prefix.gather(loop)
        return Beginning(prefix, loop)

    def text(self, request: Request, provider: Provider) -> str:
        """The prompt as others are compared with it; empty if its service keeps none of it, or none is cheaper so."""
        if not self.is_on or provider.is_local or not request.asks_words:
            return ""
        if sum(len(message.content) for message in request.messages) < _HEAD:
            return ""
        if provider.least_prefix(request) == math.inf or not self._is_cheaper(request):
            return ""
        text = _flat(request.messages)
        return text if len(text) >= _HEAD else ""

    def _is_cheaper(self, request: Request) -> bool:
        """Whether tokens that were kept are known to cost less than others."""
        count = _HEAD
        kept = self._pricing.cost(request, Tokens(count, cached=count))
        return kept < self._pricing.cost(request, Tokens(count))

    def _alike(self, head: int) -> list[_Prefix]:
        """The prefixes with such a beginning."""
        found = self._heads.get(head)
        if found is None:
            if len(self._heads) >= _MOST_HEADS:  # those that came first are dropped
                del self._heads[next(iter(self._heads))]
            found = self._heads[head] = []
        return found


def shared_with(texts: Sequence[str], text: str) -> tuple[int, int]:
    """Which of some texts begins most like another one, and with how many characters; 0 and 0 of none."""
    common = [_common(other, text) for other in texts]
    size = max(common, default=0)
    return (common.index(size), size) if common else (0, 0)


def is_shared(size: int, text: str, tokens: Callable[[int], float], least: float) -> bool:
    """Whether a common beginning of so many characters is long enough, for its service and for a prompt."""
    return size * _PART >= len(text) and tokens(size) >= least


def _flat(messages: Sequence[Message]) -> str:
    """The words of messages in one, up to the first that has more than words."""
    said: list[str] = []
    for message in messages:
        if message.parts:
            break
        said.append(f"{message.role}{_SAYS}{message.content}{_NEXT}")
    return "".join(said)[:_MOST_COMPARED]


def _place(text: str, request: Request) -> tuple[int, int]:
    """Where a prefix of `_flat` ends: how many whole messages it has, and how many characters of the next one."""
    left = len(text)
    for index, message in enumerate(request.messages):
        begin = len(message.role) + len(_SAYS)
        if left <= begin + len(message.content):
            return index, max(left - begin, 0)
        left -= begin + len(message.content) + len(_NEXT)
    return len(request.messages), 0


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # they are equal up to `low`, and not up to `high`
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _up_to_a_word(text: str) -> str:
    """A common beginning up to the end of a message, a line or a word, if one ends in its last tenth.

    What chance has made equal behind that would end the mark in the midst of a question.
    """
    for mark in (_NEXT, "\n", " "):
        end = text.rfind(mark) + len(mark)
        if end >= 0.9 * len(text):
            return text[:end]
    return text
