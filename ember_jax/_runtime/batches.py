"""Requests that differ in a part and are ready at once go together, as one request of many parts.

These are requests for vectors, whose parts are texts, and questions that are decided about one conversation.

Design note. The life of a call stays what it is: each part, called a text below, has a question of its own, which the
journal, equal calls in flight and the report know. Only on its way to the provider it shares a request. A batch is one
request for all that paces and pays: one turn at the gate and one of a limit's `rpm`, the tokens of all texts, one
reservation, one place in flight, one retry. A text that waits for its batch holds none of these, so no limit can keep a
batch from its texts.

A batch is sent when it is full, or when nothing joins it for some rounds of the event loop. A timer was rejected: any
wait is too long for the last batch, and too short for a loop that is busy. While texts that are to join are with the
journal, which is asked before, the batch waits for them.

Services refuse a batch for one bad text in it. So a refused batch is halved until the text stands alone, and so is one
that a filter has stopped, or that a budget cannot reserve for. Texts without words, which some services refuse and
others take, are parted from the others first. Each lane is told the error of its own text. Billed tokens are shared out
by length, what all have in common evenly, so that they sum to what was billed.
"""

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from ..errors import MalformedResponseError, ProviderError, RefusedRequestError
from ..providers.base import DECIDE, EMBED, BatchLimits, Finish, Message, Request, Response, Tokens
from ..providers.tokens import overflow
from ..providers.vectors import packed, unpacked
from .budget import Excessive
from .events import Attempt
from .scheduler import Task
from .shares import shares

# After how many rounds of the loop without a text a batch is sent. A call takes up to three from one task to another.
_ROUNDS = 4
# The statuses of a refusal that may be about one of the texts, or about how many they are.
_AT_FAULT = (400, 413, 422)

# How much may be in one request like a request.
Limits: TypeAlias = Callable[[Request], BatchLimits]
# Sends one request; each attempt is appended to the list.
Send: TypeAlias = Callable[[Request, list[Attempt], Task | None], Coroutine[Any, Any, Response]]


def _own(request: Request) -> tuple[Message, ...]:
    """What of a request's messages are texts that others may join."""
    return tuple(m for m in request.messages if m.role in (EMBED, DECIDE))


def _shared(request: Request) -> tuple[Message, ...]:
    """What the texts of a batch have in common, which stands before them."""
    return request.messages[: len(request.messages) - len(_own(request))]


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages)


@dataclasses.dataclass(slots=True)
class _Joining:
    """A text that waits for its answer."""

    request: Request
    attempts: list[Attempt]
    task: Task | None
    size: int
    answer: "asyncio.Future[Response]"


class Batches:
    """Answers requests for vectors, and for decisions. Used on the event loop.

    **Arguments:**

    - `send`: sends a request of several texts.
    - `limits`: how much a model's provider takes at once.
    """

    def __init__(self, send: Send, limits: Limits = lambda request: BatchLimits()):
        self._send = send
        self._limits = limits
        self._open: dict[Any, _Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    def batch(self, request: Request) -> "_Batch":
        """The batch that a request is to join. Somebody has to `leave` it for each time that it was asked for."""
        loop = asyncio.get_running_loop()
        # Equal but for the text. The loop may be another, after a fork or within a virtual clock.
        alike = dataclasses.replace(request, messages=_shared(request))
        key = loop, alike.digest(), request.forms, request.decides
        found = self._open.get(key)
        if found is None:
            closed = lambda: self._open.pop(key, None)
            found = self._open[key] = _Batch(loop, self._start, closed, self._limits(request))
        found.expected += 1
        return found

    def _start(self, members: list[_Joining]) -> None:
        running = asyncio.get_running_loop().create_task(self._answer(members))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        left = len(members)

        def ended(answer: "asyncio.Future[Response]") -> None:
            nonlocal left
            left -= 1
            if not left:  # answered; or nobody waits any more
                running.cancel()

        for member in members:
            member.answer.add_done_callback(ended)

    async def _answer(self, members: list[_Joining]) -> None:
        """Sends a batch, and tells each of its texts how it went."""
        first, attempts = members[0], []
        texts = tuple(message for m in members for message in _own(m.request))
        request = dataclasses.replace(first.request, messages=(*_shared(first.request), *texts))
        try:
            # A scheduler sees the batch as the call of its first text.
            response = await self._send(request, attempts, first.task)
            _tell_attempts(request, members, attempts)
            if len(members) > 1 and response.finish == Finish.CONTENT_FILTER and not response.answers:
                return await self._in_two(members)
            answers = _of_texts(request, response, [m.size for m in members])
        except RefusedRequestError as error:
            _tell_attempts(request, members, attempts)
            if len(members) == 1 or error.status not in _AT_FAULT:
                return _fail(members, _with_hint(error, members))
            return await self._in_two(members)
        except Excessive:
            return await self._in_two(members)
        except Exception as error:
            _tell_attempts(request, members, attempts)
            return _fail(members, error)
        except asyncio.CancelledError:
            for member in members:
                member.answer.cancel()
            raise
        for member, answer in zip(members, answers, strict=True):
            if not member.answer.done():
                member.answer.set_result(answer)
        return None

    async def _in_two(self, members: list[_Joining]) -> None:
        await asyncio.gather(*map(self._answer, _parted(members)))


class _Batch:
    """Texts that wait to be sent together.

    **Attributes:**

    - `expected`: how many are to join, and may yet not do so.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[list[_Joining]], None],
        closed: Callable[[], object],
        limits: BatchLimits,
    ):
        self.expected = 0
        self._loop, self._start, self._closed, self._limits = loop, start, closed, limits
        self._members: list[_Joining] = []
        self._bytes = self._quiet = 0
        self._looks = False

    def leave(self) -> None:
        """One that was expected has joined, or will not."""
        self.expected -= 1
        self._quiet = 0
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._look)

    async def join(self, request: Request, attempts: list[Attempt], task: Task | None) -> Response:
        """The answer to one request, which has gone with others; its attempts are those of the batch.

        **Raises:** `RefusedRequestError` for a text that is longer than the model reads, which is not sent; what the
        batch raises.
        """
        if (why := overflow(request, self._limits.each)) is not None:
            self.leave()
            raise why
        size = _size(_own(request))
        # A token has a byte at least. What it has is known to the service alone.
        if self._bytes + size > self._limits.tokens:
            self._flush()
        member = _Joining(request, attempts, task, size, self._loop.create_future())
        self._members.append(member)
        self._bytes += size
        self._quiet = 0
        if len(self._members) == self._limits.texts:
            self._flush()
        self.leave()
        return await member.answer

    def _look(self) -> None:
        """Sends what has gathered, if nothing joined for some rounds and nothing is about to."""
        self._looks = False
        if self.expected:  # the last of them looks again
            return
        self._quiet += 1
        if self._quiet <= _ROUNDS:
            self._looks = True
            self._loop.call_soon(self._look)
            return
        self._closed()
        self._flush()

    def _flush(self) -> None:
        members = [m for m in self._members if not m.answer.done()]  # without those who were cancelled
        self._members, self._bytes = [], 0
        if members:
            self._start(members)


def _parted(members: list[_Joining]) -> list[list[_Joining]]:
    """A refused batch in two: those without words and the others, or halves."""
    empty = [_is_empty(member) for member in members]
    if any(empty) and not all(empty):
        return [[m for m, is_empty in zip(members, empty, strict=True) if is_empty is part] for part in (False, True)]
    half = len(members) // 2
    return [members[:half], members[half:]]


def _is_empty(member: _Joining) -> bool:
    return not any(message.content.strip() for message in _own(member.request))


def _with_hint(error: RefusedRequestError, members: Sequence[_Joining]) -> RefusedRequestError:
    """The refusal of texts, with what may be the cause."""
    if error.status not in _AT_FAULT or not all(map(_is_empty, members)):
        return error
    told, words = copy.copy(error), str(error)
    words += "." * words[-1].isalnum()
    told.args = (f"{words} The text has no words, which some services refuse. Leave it out, or give it some.",)
    return told


def _of_texts(request: Request, response: Response, sizes: Sequence[int]) -> list[Response]:
    """The answers to the texts of a batch, from that to the batch: tokens and cost are shared out by the texts' sizes.

    **Raises:** `MalformedResponseError` if it is not one answer for each text.
    """
    answers = _decided(request, response, len(sizes)) if request.decides else _vectors(request, response, len(sizes))
    weights = _weights(request, sizes)
    bills = zip(*(shares(int(count), weights) for count in response.tokens), strict=True)
    told = [(answer, Tokens(*bill)) for answer, bill in zip(answers, bills, strict=True)]
    whole = sum(bill.input for _, bill in told)
    return [
        answer._replace(
            input_tokens=int(bill.input),
            output_tokens=int(bill.output),
            cached_tokens=int(bill.cached),
            cache_write_tokens=int(bill.cache_write),
            reasoning_tokens=int(bill.reasoning),
            cost=response.cost * (bill.input / whole if whole else 1 / len(sizes)),
            answers=(),
        )
        for answer, bill in told
    ]


def _vectors(request: Request, response: Response, n: int) -> list[Response]:
    try:
        vectors = unpacked(response.text, n)
    except ValueError:
        raise MalformedResponseError(
            f"{request.provider}/{request.model}: the answer is not one vector for each text. A provider of one's own "
            "that gives vectors is an ember.providers.Encoder."
        ) from None
    return [response._replace(text=packed(vector)) for vector in vectors]


def _decided(request: Request, response: Response, n: int) -> list[Response]:
    answers = [answer for answer in response.answers or (response,) if isinstance(answer, Response)]
    if len(answers) != n:
        raise MalformedResponseError(
            f"{request.provider}/{request.model}: the answer has {len(answers)} decisions for {n} questions."
        )
    return answers


def _weights(request: Request, sizes: Sequence[int]) -> list[int]:
    """By what the texts of a request share its bill: by their sizes, and what they have in common evenly."""
    common = _size(_shared(request))
    return [common + len(sizes) * size for size in sizes]


def _tell_attempts(request: Request, members: Sequence[_Joining], attempts: Sequence[Attempt]) -> None:
    """Each text was in all of a batch's attempts; what was billed for one that failed is shared out."""
    weights = _weights(request, [m.size for m in members])
    for attempt in attempts:
        billed = attempt.error.tokens if attempt.error is not None else None
        counts = shares(int(billed.input), weights) if isinstance(billed, Tokens) else None
        for i, member in enumerate(members):
            error = copy.copy(attempt.error)
            if error is not None and counts is not None:
                error.tokens = Tokens(counts[i])
            member.attempts.append(attempt._replace(error=error))


def _fail(members: Sequence[_Joining], error: Exception) -> None:
    for member in members:
        if not member.answer.done():
            # A copy, as raised in several one exception would gather the tracebacks of all.
            member.answer.set_exception(copy.copy(error) if isinstance(error, ProviderError) else error)
