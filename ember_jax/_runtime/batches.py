"""Requests for vectors that are ready at once go together, as one request of many texts.

Design note. The life of a call stays what it is: each text has a question of its own, which the journal, equal calls in
flight and the report know. Only on its way to the provider it shares a request. A batch is one request for all that
paces and pays: one turn at the gate and one of a limit's `rpm`, the tokens of all texts, one reservation, one place in
flight, one retry. A text that waits for its batch holds none of these, so no limit can keep a batch from its texts.

A batch is sent when it is full, or when nothing joins it for some rounds of the event loop. A timer was rejected: any
wait is too long for the last batch, and too short for a loop that is busy. While texts that are to join are with the
journal, which is asked before, the batch waits for them.

Services refuse a batch for one bad text in it. So a refused batch is halved until the text stands alone. Texts without
words, which some services refuse and others take, are parted from the others first. Each lane is told the error of its
own text. Billed tokens are shared out by length, so that they sum to what was billed.
"""

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from ..errors import MalformedResponseError, ProviderError, RefusedRequestError
from ..providers.base import BatchLimits, Request, Response, Tokens
from ..providers.tokens import overflow
from ..providers.vectors import packed, unpacked
from .events import Attempt
from .scheduler import Task
from .shares import shares

# After how many rounds of the loop without a text a batch is sent. A call takes up to three from one task to another.
_ROUNDS = 4
# The statuses of a refusal that may be about one of the texts, or about how many they are.
_AT_FAULT = (400, 413, 422)

# How much may be in one request to the model of a request.
Limits: TypeAlias = Callable[[Request], BatchLimits]
# Sends one request; each attempt is appended to the list.
Send: TypeAlias = Callable[[Request, list[Attempt], Task | None], Coroutine[Any, Any, Response]]


@dataclasses.dataclass(slots=True)
class _Joining:
    """A text that waits for its vector."""

    request: Request
    attempts: list[Attempt]
    task: Task | None
    size: int
    answer: "asyncio.Future[Response]"


class Batches:
    """Answers requests for vectors. Used on the event loop.

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
        key = loop, dataclasses.replace(request, messages=request.messages[:0]).digest(), request.forms
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
        request = dataclasses.replace(first.request, messages=tuple(m.request.messages[0] for m in members))
        try:
            # A scheduler sees the batch as the call of its first text.
            response = await self._send(request, attempts, first.task)
            _tell_attempts(members, attempts)
            answers = _of_texts(request, response, [m.size for m in members])
        except RefusedRequestError as error:
            _tell_attempts(members, attempts)
            if len(members) == 1 or error.status not in _AT_FAULT:
                return _fail(members, _with_hint(error, members))
            await asyncio.gather(*map(self._answer, _parted(members)))
            return None
        except Exception as error:
            _tell_attempts(members, attempts)
            return _fail(members, error)
        except asyncio.CancelledError:
            for member in members:
                member.answer.cancel()
            raise
        for member, answer in zip(members, answers, strict=True):
            if not member.answer.done():
                member.answer.set_result(answer)
        return None


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
        size = len(request.messages[0].content.encode("utf-8", "surrogatepass"))
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
    return not member.request.messages[0].content.strip()


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

    **Raises:** `MalformedResponseError` if it is not one vector for each text.
    """
    try:
        vectors = unpacked(response.text, len(sizes))
    except ValueError:
        raise MalformedResponseError(
            f"{request.provider}/{request.model}: the answer is not one vector for each text. A provider of one's own "
            "that gives vectors is an ember.providers.Encoder."
        ) from None
    tokens = shares(response.input_tokens, sizes)
    whole = sum(tokens)
    parts = [n / whole if whole else 1 / len(sizes) for n in tokens]
    told = zip(vectors, tokens, parts, strict=True)
    return [response._replace(text=packed(v), input_tokens=n, cost=response.cost * part) for v, n, part in told]


def _tell_attempts(members: Sequence[_Joining], attempts: Sequence[Attempt]) -> None:
    """Each text was in all of a batch's attempts; what was billed for one that failed is shared out."""
    sizes = [m.size for m in members]
    for attempt in attempts:
        billed = attempt.error.tokens if attempt.error is not None else None
        counts = shares(int(billed.input), sizes) if isinstance(billed, Tokens) else None
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
