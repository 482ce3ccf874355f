"""One request's way to its provider and back: its turn, the provider, and another attempt where that can help.

A call that waits to be tried again holds neither a slot of the scheduler nor a place in flight. It keeps its turn at
the gate, so that it does not wait again behind the calls that came after it.
"""

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from ..errors import ConnectionFailedError, ProviderError, RateLimitError
from ..providers.base import Provider, Request, Response, Tokens
from ..providers.quota import Quota
from . import dropping, log, retry
from .budget import Hold
from .events import Attempt
from .feed import SpokenWords
from .gate import Admission, Gate, Limiter, TooLong
from .limits import Limit, Statistics
from .prefixes import Beginning, Prefixes
from .pricing import Pricing
from .retry import Retry, Tries
from .scheduler import Path, Task
from .sizes import Sizes
from .turns import Turns
from .verdict import Docket, NotSent, Tracked

# Is awaited when a request has its turn to be sent. Returns its answer, if there is one by then.
OnTurn: TypeAlias = Callable[[], Awaitable[Response | None]]


class Sender:
    """Sends requests as limits allow, and sends them again as a policy says. Used on the event loop.

    **Arguments:**

    - `provider`: finds a provider by name.
    - `count`: adds one, or so much, to a count of the session's report.
    - `limits`: by provider, or by `provider/model`.
    - `policy`: what is tried again.
    - `pricing`: what calls cost, and what that is taken from.
    - `uniform`: draws from [0, 1).
    - `turns`: asks the session's scheduler, if it has one.
    - `prefixes`: those that calls have in common, so that one of them is sent first; `None` to send all at once.
    """

    def __init__(
        self,
        provider: Callable[[str], Provider],
        count: Callable[..., None],
        limits: Mapping[str, Limit],
        policy: Retry,
        pricing: Pricing,
        uniform: Callable[[], float] = random.random,
        turns: Turns | None = None,
        prefixes: Prefixes | None = None,
    ):
        self._provider = provider
        self._count = count
        self._limits = dict(limits)
        self._policy = policy
        self._pricing = pricing
        self._uniform = uniform
        self._turns = turns
        self._prefixes = prefixes
        self._limiter: Limiter | None = None
        self._sizes: dict[str, Sizes] = {}
        self._docket = Docket()

    def statistics(self) -> dict[str, Statistics]:
        """What the calls of each model do, by `provider/model`."""
        return {} if self._limiter is None else self._limiter.statistics()

    def task(self, request: Request, turns: Turns, lane: tuple[int, ...], scope: str, path: Path) -> Task:
        """A request as the scheduler sees it."""
        return turns.task(f"{request.provider}/{request.model}", lane, scope, path, self.estimate(request))

    def estimate(self, request: Request) -> float:
        """The tokens that a request is estimated to use."""
        return self._sizes_of(request).estimate(request)

    def send(
        self,
        request: Request,
        attempts: list[Attempt],
        turn: OnTurn | None = None,
        task: Task | None = None,
        words: SpokenWords | None = None,
    ) -> Coroutine[Any, Any, Response]:
        """Answers a request.

        **Arguments:**

        - `attempts`: each attempt is appended to it.
        - `turn`: is awaited when the request has its turn to be sent, each time. If it returns an answer or raises,
            nothing is sent. `None` if nothing but the provider can have an answer.
        - `task`: `None` if no scheduler is to be asked.
        - `words`: are given the answer's words as they come. When there were any, the request is not sent again.

        **Raises:** what `turn` raises; the `ProviderError` of the last attempt, or of another call if this one could
        only fail as that has; `Excessive` for a request for several answers, or of several questions, of which the
        budget may pay for fewer; `RateLimitError` for a call that is not sent, as the service holds it back for longer
        than the policy allows; `ConnectionFailedError` at the call's deadline; `BudgetError` before an attempt that the
        budget cannot pay; `SchedulerError` if the scheduler fails.
        """
        # The coroutine itself, and not one that awaits it: each takes time, of which a local call takes little.
        if self._policy.deadline is None:
            return self._try(request, None, attempts, turn, task, words)
        return self._in_time(request, attempts, turn, task, words)

    async def _in_time(
        self,
        request: Request,
        attempts: list[Attempt],
        turn: OnTurn | None,
        task: Task | None,
        words: SpokenWords | None,
    ) -> Response:
        deadline = asyncio.timeout(None)  # it begins to run with the first attempt, see `_try`
        try:
            async with deadline:
                return await self._try(request, deadline, attempts, turn, task, words)
        except TimeoutError:
            if not deadline.expired():  # it is another's, such as that of a Python function behind the provider
                raise
        raise ConnectionFailedError(
            f"{request.provider}/{request.model}: no answer within {self._policy.deadline:g} s, a call's deadline. "
            "Give Retry(deadline=…) more seconds."
        )

    async def _try(
        self,
        request: Request,
        deadline: asyncio.Timeout | None,
        attempts: list[Attempt],
        turn: OnTurn | None,
        task: Task | None,
        words: SpokenWords | None,
    ) -> Response:
        """Attempts, until one succeeds or no other can."""
        loop = asyncio.get_running_loop()  # which asks the system for the process, and takes a microsecond
        hold = self._pricing.hold(request)
        provider = self._provider(request.provider)  # one for all attempts: who answers the first is asked again
        gate, call = self._gate(request, provider, loop), self._docket.track(request, provider)
        tries, began, place, clock = Tries(self._policy, request), 0.0, None, loop.time
        begins: Beginning | None = None
        if self._prefixes is not None and not provider.is_local:
            begins = self._prefixes.of(request, provider, self._sizes_of(request).of_characters, loop)
        dropping.hold(provider)
        try:
            while True:
                trial = None
                try:
                    if begins is not None:
                        await begins.ready()
                    trial = None if call.is_free else await call.trial()
                    # The reservation comes before the turn. In the other order a call that waits for money would hold a
                    # slot, which calls that are cheap enough could use.
                    if not hold.is_reserved():
                        await hold.reserve(is_divisible=request.answers > 1 or request.decides_several)
                    # An open gate is passed without an admission: that costs time, of which a local call takes little.
                    is_free = gate.is_open and task is None
                    # A call that was sent before has its deadline, which runs already.
                    patience = self._policy.seconds if tries.made else self._policy.patience
                    admission = None if is_free else await self._admitted(call, gate, place, patience, task)
                    if admission is not None:
                        place = admission.turn
                    # The last moment before the request is sent, as it may have waited for hours.
                    if turn is not None and (known := await self._known(gate, admission, turn)) is not None:
                        return known
                    if (why := call.fault()) is not None:
                        if admission is not None:
                            gate.give_back(admission)
                        raise why
                    # Another that begins alike may have been sent while this one waited for its turn.
                    if begins is not None and not begins.begins():
                        if admission is not None:
                            gate.give_back(admission)
                        hold.give_back()
                        continue
                    if tries.made:
                        self._count("retries")
                    else:
                        began = clock()
                        if deadline is not None and self._policy.deadline is not None:
                            deadline.reschedule(began + self._policy.deadline)
                    tries.made += 1
                    return await self._attempt(call, provider, gate, admission, hold, attempts, words, begins)
                except TooLong as wait:
                    raise _too_long(request, self._policy, wait) from None
                except NotSent as told:
                    raise told.cause from None
                except ProviderError as error:
                    if begins is not None:
                        begins.failed(error)
                    seconds, is_held = self._again(request, error, tries, gate, clock() - began)
                finally:
                    if begins is not None:
                        begins.ended()
                    if trial is not None:
                        call.done(trial)
                    if self._turns is not None and task is not None:
                        self._turns.leave(task)
                # A call that the gate holds back need not sleep too. But if there is a scheduler, it sleeps here, as at
                # the gate it would hold the scheduler's slot.
                if not is_held or task is not None:
                    await asyncio.sleep(seconds)
        finally:
            dropping.let_go(provider)
            hold.give_back()

    def _again(
        self, request: Request, error: ProviderError, tries: Tries, gate: Gate, spent: float
    ) -> tuple[float, bool]:
        """The seconds until a failed call is sent again, and whether the gate holds back the model's calls so long.

        Raises the error, or the refusal that it is in disguise, if the call is not sent again.
        """
        model, shut = f"{request.provider}/{request.model}", gate.shut_s()
        refusal, seconds = tries.disguised(error), tries.wait(error, spent, self._uniform())
        # The gate holds calls back if the service has said how long to wait, or if it refuses all of them.
        refuses_all = isinstance(error, RateLimitError) and error.retry_after is None and shut > 0
        if refuses_all and seconds is not None:
            seconds = shut if spent + shut <= self._policy.seconds else None
        if refusal is not None or seconds is None:
            log.gave_up(model, error, tries.made)
            raise error if refusal is None else refusal
        log.retry(model, error, tries.made, seconds, gate.statistics().rate)
        return seconds, refuses_all or error.retry_after is not None

    async def _admitted(
        self, call: Tracked, gate: Gate, place: tuple[float, int] | None, patience: float, task: Task | None
    ) -> Admission | None:
        """Waits until the scheduler, if any, has started the request, and then for its turn at the gate.

        Returns the gate's admission, or `None` if the gate is open.
        """
        priority = 0.0
        if self._turns is not None and task is not None:
            await self._turns.enter(task)
            priority = self._turns.priority(task)
        if gate.is_open:
            return None
        size = self._sizes_of(call.request).estimate(call.request, count=gate.limits_tokens)
        return await gate.enter(size, priority=priority, turn=place, patience=patience, refused=call.fault)

    async def _known(self, gate: Gate, admission: Admission | None, turn: OnTurn) -> Response | None:
        """Tells that a request has its turn; if it is then not to be sent, gives the turn back to the gate."""
        is_to_be_sent = False
        try:
            known = await turn()
            is_to_be_sent = known is None
            return known
        finally:
            if admission is not None and not is_to_be_sent:
                gate.give_back(admission)

    async def _attempt(
        self,
        call: Tracked,
        provider: Provider,
        gate: Gate,
        admission: Admission | None,
        hold: Hold,
        attempts: list[Attempt],
        words: SpokenWords | None,
        begins: Beginning | None,
    ) -> Response:
        """One attempt: sends the request, and tells its outcome to the gate, the budget, the report and `attempts`."""
        self._count("requests")
        request, began = call.request, time.time()
        try:
            sent = request if begins is None else begins.marked(request)
            answering = provider.complete(sent) if words is None else provider.stream(sent, _giving(words, begins))
            response = self._pricing.priced(request, await answering, provider)
        except ProviderError as error:
            if words is not None and words.said:  # which another answer might contradict
                error.should_retry = False
            attempts.append(Attempt(began, time.time(), error))
            self._count("failed")
            is_refused = isinstance(error, RateLimitError)
            if is_refused:
                self._count("throttled")
            if call.failed(error):  # before the gate hears of it, and lets the next one through
                gate.dismiss()
            quota = error.quota if isinstance(error.quota, Quota) else None
            gate.failed(admission, is_refused, error.retry_after, quota)
            if isinstance(error.tokens, Tokens):  # billed, although it is no answer
                cost = self._pricing.cost(request, error.tokens)
                self._bill(request, error.tokens, cost)
                hold.settle(cost)
            elif retry.may_be_billed(error):
                self._lose(request, hold)
            raise
        except BaseException:
            self._lose(request, hold)
            if admission is not None:
                gate.abandoned(admission)
            raise
        self._bill(request, response.tokens, response.cost)
        hold.settle(response.cost)
        call.answered()
        if begins is not None:
            begins.read()
        attempts.append(Attempt(began, time.time()))
        if admission is not None:
            used = response.input_tokens + response.output_tokens
            gate.succeeded(admission, used or None, response.quota)
            self._sizes_of(request).learn(request, response, count=gate.limits_tokens)
        # The quota is about this moment and was told to the gate. It is no part of an answer that is kept.
        return response if response.quota is None else response._replace(quota=None)

    def _bill(self, request: Request, tokens: Tokens, cost: float) -> None:
        self._count("input_tokens", int(tokens.input))
        self._count("output_tokens", int(tokens.output))
        self._count("cost_usd", cost)
        if tokens.cached or tokens.cache_write:
            self._count("cached_tokens", int(tokens.cached))
            plain = self._pricing.cost(request, tokens._replace(cached=0, cache_write=0, cache_write_1h=0))
            self._count("cache_saved_usd", plain - self._pricing.cost(request, tokens))

    def _lose(self, request: Request, hold: Hold) -> None:
        """A request was sent, and nobody knows whether it is billed."""
        worst = self._pricing.worst(request)
        hold.lose(worst)
        self._count("lost")
        self._count("lost_usd", worst)

    def _sizes_of(self, request: Request) -> Sizes:
        found = self._sizes.get(request.model)
        if found is None:
            found = self._sizes[request.model] = Sizes(request.model)
        return found

    def _gate(self, request: Request, provider: Provider, loop: asyncio.AbstractEventLoop) -> Gate:
        # All times that a limiter knows are those of one loop. A session may meet another loop: after a fork, or within
        # a virtual clock.
        if self._limiter is None or self._limiter.loop is not loop:
            self._limiter = Limiter(self._limits, loop, functools.partial(_held, self._count))
        return self._limiter.gate(request.provider, request.model, provider.is_local)


def _giving(words: SpokenWords, begins: Beginning | None) -> Callable[[str], object]:
    """Takes the words of an answer as they come; with the first of them the prompt was read."""
    if begins is None:
        return words.give

    def give(said: str) -> None:
        if said:
            begins.read()
        words.give(said)

    return give


def _held(count: Callable[..., None], model: str, by: str, seconds: float, added: float, waiting: int) -> None:
    count("held_s", added)
    log.held(model, by, seconds, waiting)


def _too_long(request: Request, policy: Retry, wait: TooLong) -> RateLimitError:
    name = "deadline" if wait.patience == policy.deadline else "seconds"
    return RateLimitError(
        f"{request.provider}/{request.model}: not sent, as it would wait for {wait.seconds:,.0f} s, which is longer "
        f"than Retry({name}={wait.patience:g}) lets a call be tried. It is held by {wait.by}. Run the program again "
        f"later, or give Retry({name}=…) more seconds.",
        retry_after=wait.seconds,
    )
