"""Samples of one question that are wanted at once are asked for by one request.

Design note. Calls that are equal but for their keys, as those of a vote, differ in nothing that a service is sent. A
service that can give several answers to one request reads, and bills, their prompt once. So calls that are ready to be
sent within some rounds of the event loop are *gathered* by what they ask, and sent as one request. The rounds take no
time, on a virtual clock none at all. The alternative, a pass over the plan, would not see calls of several lanes, of
several operators, or of a loop.

All else about a call stays its own: its digest and its place in the journal, so that a larger vote asks for what is
missing alone; its claim against other processes; what its answer is read as; its lane. Answers are given to calls in
the order of their keys. What concerns the request is done once, by the sender: the scheduler's turn, the place at the
limits, the reservation (the prompt once, and so many answers), the attempts.

What is billed is shared out in whole tokens: those of the prompt evenly, the first calls taking one more where they do
not divide; those of the answers by the length of each, as services tell their sum alone. So the sums over the calls are
the bill.

Some servers ignore the number of answers, and some refuse it. Calls without an answer are asked again. If a server has
given one answer where several were asked for, or has refused a request and then answers one of its calls alone, its
model is asked one by one for the rest of the session. A single answer that is of no use is asked for again by itself.

The request runs in a task of its own: a call that is cancelled does not cancel the others. A budget that cannot
reserve for all answers of a request is asked for halves of it.
"""

import asyncio
import copy
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias

from ..errors import ProviderError, RefusedRequestError
from ..providers.base import Form, Message, Provider, Request, Response, Tokens
from . import log
from .budget import Excessive
from .events import Attempt
from .pricing import Pricing
from .rounds import after
from .scheduler import Task
from .sending import OnTurn, Sender
from .shares import shares

# For how many rounds of the event loop calls are gathered. The samples of one lane, and those of a batch, come in one
# (counted); the second is for those that have waited for something together.
_ROUNDS = 2

# The statuses of a refusal that may be about the number of answers. `None` is that of a server error that is taken for
# a refusal, see `Tries.disguised`.
_AT_FAULT = (None, 400, 422)

# What becomes of a call that has no answer: it is gathered again, it is sent by itself, or that is done because its
# request was refused.
_Next: TypeAlias = Literal["again", "alone", "refused"]
_Question: TypeAlias = tuple[str, str, tuple[Message, ...], str, tuple[Form, ...]]


@dataclasses.dataclass(slots=True, eq=False)
class _Sampled:
    """One of the calls that are gathered; its outcome is its answer, or what becomes of it."""

    request: Request
    attempts: list[Attempt]
    turn: OnTurn | None
    task: Task | None
    outcome: "asyncio.Future[Response | _Next]"
    flight: "asyncio.Task[None] | None" = None
    others: "Sequence[_Sampled]" = ()

    @property
    def waits(self) -> bool:
        return not self.outcome.done()

    def left(self) -> None:
        """It was cancelled. If all calls of its request were, so is the request."""
        if self.flight is not None and not any(member.waits for member in self.others):
            self.flight.cancel()

    def fails(self, error: BaseException) -> None:
        if not self.waits:
            return
        if isinstance(error, asyncio.CancelledError):
            self.outcome.cancel()
        else:
            self.outcome.set_exception(error)
            self.outcome.exception()  # retrieved: the call may be cancelled before it runs, and asyncio would log it


class _Fewer(Exception):
    """Some calls of a request need not be sent any more, when its turn has come."""


class Samples:
    """Sends the samples of a question as one request where that can be. Used on the event loop.

    **Arguments:**

    - `sender`: sends all requests.
    - `provider`: finds a provider by name.
    - `pricing`: what calls cost.
    - `is_on`: whether any calls are sent as one.

    **Attributes:**

    - `is_on`: likewise.
    """

    def __init__(self, sender: Sender, provider: Callable[[str], Provider], pricing: Pricing, is_on: bool):
        self._sender = sender
        self._provider = provider
        self._pricing = pricing
        self.is_on = is_on
        self._gathering: dict[_Question, list[_Sampled]] = {}
        # Models that were found to give one answer to a request, by provider and name.
        self._singles: set[tuple[str, str]] = set()

    def most(self, request: Request) -> int:
        """How many samples of the request's question may be asked for at once, as far as is known."""
        if not self.is_on or request.sample is None or (request.provider, request.model) in self._singles:
            return 1
        provider = self._provider(request.provider)
        return 1 if provider.is_local else provider.most_samples(request)

    async def send(
        self, request: Request, attempts: list[Attempt], turn: OnTurn | None = None, task: Task | None = None
    ) -> Response:
        """Answers a request, see `Sender.send`; together with other samples of its question, if there are any."""
        after: _Next = "alone"
        while self.most(request) > 1:
            member = _Sampled(request, attempts, turn, task, asyncio.get_running_loop().create_future())
            self._gather(member)
            try:
                outcome = await member.outcome
            except asyncio.CancelledError:
                member.outcome.cancel()
                member.left()
                raise
            if isinstance(outcome, Response):
                return outcome
            if outcome != "again":
                after = outcome
                break
        response = await self._sender.send(request, attempts, turn, task)
        if after == "refused":
            self._is_single(request)
        return response

    def _is_single(self, request: Request) -> None:
        model = request.provider, request.model
        if model not in self._singles:
            self._singles.add(model)
            log.one_by_one("/".join(model))

    def _gather(self, member: _Sampled) -> None:
        request, loop = member.request, member.outcome.get_loop()
        parameters = repr(sorted(request.parameters.items(), key=lambda item: item[0]))
        question = request.provider, request.model, request.messages, parameters, request.forms
        gathered = self._gathering.get(question)
        # Of a loop that was closed meanwhile, as after a fork, nothing goes on.
        if gathered is None or gathered[0].outcome.get_loop() is not loop:
            gathered = self._gathering[question] = []
            after(_ROUNDS, lambda: self._close(question, gathered), loop)
        gathered.append(member)

    def _close(self, question: _Question, gathered: Sequence[_Sampled]) -> None:
        """Sends what was gathered."""
        if self._gathering.get(question) is gathered:
            del self._gathering[question]
        members = sorted((m for m in gathered if m.waits), key=lambda m: m.request.sample or "")
        most = self.most(members[0].request) if members else 1
        for first in range(0, len(members), most):
            self._start(members[first : first + most])

    def _start(self, members: Sequence[_Sampled]) -> None:
        """Sends some calls as one request; a single one is sent in its own task, as if it was never gathered."""
        members = [member for member in members if member.waits]
        if len(members) == 1:
            members[0].outcome.set_result("alone")
        elif members:
            flight = members[0].outcome.get_loop().create_task(self._fly(members))
            for member in members:
                member.flight, member.others = flight, members

    async def _fly(self, members: Sequence[_Sampled]) -> None:
        """Sends calls as one request, and tells each its outcome."""
        first, attempts = members[0], list[Attempt]()
        request = dataclasses.replace(first.request, sample=None, answers=len(members))
        task = first.task and dataclasses.replace(first.task, tokens=self._sender.estimate(request))
        try:
            whole = await self._sender.send(request, attempts, lambda: _turn(members), task)
        except _Fewer:
            self._start(members)
        except Excessive:
            half = len(members) // 2
            self._start(members[:half])
            self._start(members[half:])
        except BaseException as error:
            _tell(members, attempts)
            is_refused = isinstance(error, RefusedRequestError) and error.status in _AT_FAULT
            for member in members:
                if is_refused and member.waits:
                    member.outcome.set_result("refused")
                member.fails(error)
        else:
            _tell(members, attempts)
            self._share(members, request, whole)

    def _share(self, members: Sequence[_Sampled], request: Request, whole: Response) -> None:
        """Gives each call its answer, and its share of the bill."""
        outcomes = whole.answers[: len(members)] or (whole,)
        if len(outcomes) == 1:
            self._is_single(request)
        bills = _bills(whole, outcomes)
        costs = self._costs(request, whole, bills)
        for member, outcome, bill, cost in zip(members, outcomes, bills, costs, strict=False):
            if not member.waits:
                continue
            if isinstance(outcome, ProviderError):
                error = _with_tokens(outcome, bill)
                member.attempts[-1] = member.attempts[-1]._replace(error=error)
                member.outcome.set_result("alone")
            else:
                answer = outcome._replace(
                    input_tokens=int(bill.input),
                    output_tokens=int(bill.output),
                    cached_tokens=int(bill.cached),
                    cache_write_tokens=int(bill.cache_write),
                    reasoning_tokens=int(bill.reasoning),
                    cost=cost,
                    answers=(),
                    quota=None,
                )
                member.outcome.set_result(answer)
        for member in members[len(outcomes) :]:
            if member.waits:
                del member.attempts[-1]  # it was asked, and has told nothing of this call
                member.outcome.set_result("again")

    def _costs(self, request: Request, whole: Response, bills: Sequence[Tokens]) -> list[float]:
        """The US dollars of each bill, which are together the cost of the whole."""
        # A prompt's price may depend on its length, so what was billed is divided, and no part of it priced anew.
        cost, tokens = whole.cost, whole.tokens
        if not tokens.input + tokens.output:
            return [cost / len(bills)] * len(bills)
        prompt = self._pricing.cost(request, tokens._replace(output=0, reasoning=0))
        if not (0 <= prompt <= cost and tokens.input and tokens.output):  # it is not known, or another tier's
            prompt = cost * tokens.input / (tokens.input + tokens.output)
        answers = cost - prompt
        return [prompt * b.input / max(tokens.input, 1) + answers * b.output / max(tokens.output, 1) for b in bills]


async def _turn(members: Sequence[_Sampled]) -> None:
    """Is awaited when the request has its turn: what is answered by now, or must not be asked, is left out.

    **Raises:** `_Fewer` if anything is.
    """
    waiting = [member for member in members if member.waits]
    turns = [member.turn() for member in waiting if member.turn is not None]
    found = await _all(turns) if turns else [None] * len(waiting)
    for member, known in zip(waiting, found, strict=True):
        if isinstance(known, BaseException):
            member.fails(known)
        elif known is not None and member.waits:
            member.outcome.set_result(known)
    if not all(member.waits for member in members):
        raise _Fewer


async def _all(turns: Sequence[Awaitable[Response | None]]) -> Sequence[Response | BaseException | None]:
    return await asyncio.gather(*turns, return_exceptions=True)


def _tell(members: Sequence[_Sampled], attempts: Sequence[Attempt]) -> None:
    """Tells each call the attempts of its request; what was billed for those that failed is the first one's."""
    of_others = [a if a.error is None else a._replace(error=_with_tokens(a.error, None)) for a in attempts]
    waiting = [member for member in members if member.waits]
    for i, member in enumerate(waiting):
        member.attempts += of_others if i else attempts


def _with_tokens(error: ProviderError, tokens: Tokens | None) -> ProviderError:
    if error.tokens == tokens:
        return error
    other = copy.copy(error)
    other.tokens = tokens
    return other


def _bills(whole: Response, outcomes: Sequence[Response | ProviderError]) -> list[Tokens]:
    """What is billed of each answer, in whole tokens: their sums are the bill's."""
    even = [1] * len(outcomes)
    said = [0 if isinstance(one, ProviderError) else len(one.text) + len(one.reasoning) for one in outcomes]
    called = [0 if isinstance(one, ProviderError) else sum(len(p.value) for p in one.tool_calls) for one in outcomes]
    lengths = [1 + a + b for a, b in zip(said, called, strict=True)]
    tokens = whole.tokens
    by = {"output": lengths, "reasoning": lengths}
    columns = [shares(int(count), by.get(name, even)) for name, count in tokens._asdict().items()]
    return [Tokens(*row) for row in zip(*columns, strict=True)]
