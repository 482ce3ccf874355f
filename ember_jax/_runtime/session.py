"""A session: the providers that calls are made through, the journal that keeps answers, and the counts of both.

The life of a call is always the same. The journal is asked for its answer. If it has none, and no equal call is in
flight (`SingleFlight`), then the call reserves its worst case of the budget, waits for its turn at the limits, and goes
to its provider, again where that can help (`Sender`). The answer gets its price, is kept by the journal, and only then
reaches its lane.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import math
import os
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from .._jax.internals import CALLBACK_ERRORS
from ..errors import Keeping, PilotError, RefusedRequestError
from ..providers import registry
from ..providers.base import Provider, Request, Response, Tokens
from ..providers.prices import Price
from . import failures, log, progress
from .answering import Answering, Asking, Mends, Read, itself, never
from .budget import Budget, Funds
from .call_log import Log
from .deciding import Deciding
from .dropping import all_closed, drop
from .events import Attempt, CallEnded, Ending, Meter, Watcher
from .feed import SpokenWords
from .gate import TOLD_SECONDS
from .host_results import HostResults
from .journal.base import AbstractJournal
from .journal.calls import Answer, Calls, LaneIndex, digests
from .journal.columns import CallRecord
from .journal.handles import close_all
from .journal.place import UNSET, places
from .limits import Limit, Statistics, checked
from .loop import Loop, get_loop
from .oddities import Oddities
from .prefixes import Prefixes
from .pricing import Pricing
from .progress import Tally
from .retry import Retry
from .runner import Runner
from .samples import Samples
from .scheduler import NOWHERE, Path, Scheduler
from .sending import Sender
from .trace import Trace
from .turns import Turns


@dataclasses.dataclass(frozen=True)
class Report:
    """What a session did.

    **Fields:**

    - `calls`: how many LLM calls lanes have asked for.
    - `requests`: how many requests were sent to providers; each attempt of a call is one.
    - `replayed`: how many calls the journal answered.
    - `merged`: how many calls shared the request of an equal call, which a plan had merged them with or which was in
        flight.
    - `decided`: how many of the calls have probabilities that a service gave of given options, see `LLM.decide`.
        Questions of that kind which were asked by letters are not among them.
    - `repairs`: how many of the calls had a model mend an answer of its own that did not fit its schema.
    - `retries`: how many of the requests were another attempt, after one that failed.
    - `throttled`: how many of the requests were refused as one too many (429).
    - `held_s`: seconds for which calls of a model were all held back, the waits of more than three seconds added up:
        by a limit that is given, told or found out, or as a service asked to wait. `run.statistics()` says which.
    - `failed`: how many of the requests got an error instead of an answer, refusals included.
    - `cut`: how many calls had an answer that ended before all was said, by a limit or a filter.
    - `input_tokens`, `output_tokens`: the tokens of the requests that were answered, and of those that were billed
        without an answer.
    - `cached_tokens`: those of the input tokens that came out of a service's cache.
    - `cost_usd`: the cost in US dollars of the same requests; NaN if the cost of one is unknown.
    - `cache_saved_usd`: what they would have cost more without such a cache; NaN if the price of one is unknown. To
        write into a cache may cost more than it has saved so far: it is then negative.
    - `lost`: how many requests were sent and are possibly billed, because their answers were lost.
    - `lost_usd`: what these cost at most, which is no part of `cost_usd`; NaN if a price is unknown, infinite if
        nothing bounds an answer.
    - `saved_usd`: what the replayed and merged calls would have cost; NaN if the cost of one is unknown.
    - `islands`: how often an operator ran as a plan.
    - `barriers`: how often lanes inside an operator waited for each other, in the sense of `explain`.
    - `prices`: the names and versions of the price tables that costs are by; empty where they are by none.

    `later - earlier` is what was done between two reports of a session, as in one epoch of a training.
    """

    calls: int = 0
    requests: int = 0
    replayed: int = 0
    merged: int = 0
    decided: int = 0
    repairs: int = 0
    retries: int = 0
    throttled: int = 0
    held_s: float = 0.0
    failed: int = 0
    cut: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    cache_saved_usd: float = 0.0
    lost: int = 0
    lost_usd: float = 0.0
    saved_usd: float = 0.0
    islands: int = 0
    barriers: int = 0
    prices: str = ""

    def __sub__(self, earlier: "Report") -> "Report":
        if not isinstance(earlier, Report):
            return NotImplemented
        counts = {n: v - getattr(earlier, n) for n, v in vars(self).items() if n != "prices"}
        return Report(**counts, prices=self.prices)

    def __str__(self) -> str:
        rows = self._rows()
        names, values = max(len(name) for name, _ in rows), max(len(value) for _, value in rows)
        return "\n".join(f"{name:<{names}}  {value:>{values}}" for name, value in rows)

    def _repr_html_(self) -> str:
        cells = (f'<tr><td>{name}</td><td style="text-align: right">{value}</td></tr>' for name, value in self._rows())
        return f"<table>{''.join(cells)}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        """The fields as they are shown, each its name and its value in words; an unknown cost is `unknown`."""
        counts = {name: value for name, value in vars(self).items() if name != "prices"}
        rows = [(_title(name), _shown(name, value)) for name, value in counts.items()]
        return [*rows, ("prices", self.prices)] if self.prices else rows


def _title(name: str) -> str:
    if name == "lost_usd":  # a count has the name without its unit
        return "lost at most"
    return name.replace("_", " ").removesuffix(" usd").removesuffix(" s")


def _shown(name: str, value: float) -> str:
    if name.endswith("_s"):
        return f"{value:,.0f} s"
    if not name.endswith("_usd"):
        return f"{value:,}"
    return f"${value:,.6f}" if math.isfinite(value) else "unknown"


# How many seconds the end of a session waits for a provider to close its connections.
_CLOSE_SECONDS = 2.0


class Session:
    """The state behind `ember.session`; calls reach it from the event loop.

    **Attributes:**

    - `turns`: asks the session's scheduler on behalf of calls; `None` without a scheduler.
    - `watchers`: functions that are told of each call when it has ended, on the event loop. They must not raise.
    - `trace`: when each call was made; `trace.save("run.json")` writes it for Perfetto, `trace.plot()` draws it.
    - `limits`: a `Limit` by provider or by model, as they were given.
    - `pricing`: what its calls cost.
    - `oddities`: warns of what is odd about answers.
    - `runner`: where its operators run. May be set; `None` stands for the lane engine, which is not known down here.
    - `results`: results of host functions.
    - `progress`: whether bars show its sweeps, `None` to decide.
    - `journals`: where answers are kept.
    - `keeping`: for how long the answers of services are.
    - `samples`: sends the samples of a question as one request.
    - `prefixes`: what prompts have in common, of which one is sent first.
    - `deciding`: knows which models decide questions without words.
    - `lanes`: the outermost lanes that make calls, where it is a pilot's; else `None`, and all do.
    """

    def __init__(
        self,
        journal: AbstractJournal | str | os.PathLike[str] | None,
        providers: Mapping[str, Provider],
        limits: Mapping[str, Limit] | None = None,
        retry: Retry | None = None,
        scheduler: Scheduler | None = None,
        progress: bool | None = None,
        prices: Mapping[str, Price] | None = None,
        budget_usd: float | None = None,
        join_samples: bool = True,
        share_prefixes: bool = True,
    ):
        for name, given in (("limits", limits), ("prices", prices)):
            if given is not None and not isinstance(given, Mapping):
                kind = name.removesuffix("s").capitalize()
                raise TypeError(
                    f'session({name}=…) takes a dict by provider or model, as in {{"openai": {kind}(…)}}, not '
                    f"{type(given).__name__}."
                )
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"session(retry=…) takes an ember.Retry, as in Retry(attempts=3), not {retry!r:.40}.")
        for name, is_on in (("join_samples", join_samples), ("share_prefixes", share_prefixes)):
            if not isinstance(is_on, bool):
                raise TypeError(f"session({name}=…) takes True or False, not {is_on!r:.40}.")
        if progress not in (None, True, False):
            raise TypeError(f"session(progress=…) takes True, False, or None to decide, not {progress!r:.40}.")
        # Where answers of services are kept, and where those of local models and host functions without a name are.
        self._lasting, self._passing = places(journal)
        self.keeping: Keeping = self._lasting.keeping
        self.journals = (self._lasting,) if self._passing is self._lasting else (self._lasting, self._passing)
        self._closes = not isinstance(
            journal, AbstractJournal
        )  # a journal that the caller made is the caller's to close
        self._providers = dict(providers)
        self._counts: dict[str, float] = {n: v for n, v in vars(Report()).items() if n != "prices"}
        self.results = HostResults(self._lasting)
        self.progress = progress
        self._log, self.trace, self.oddities = Log(), Trace(), Oddities()
        self.watchers: list[Watcher] = []
        self.runner: Runner[Any, Session] | None = None
        self.turns = _turns(scheduler)
        self.lanes: Container[int] | None = None
        self._budget = Budget(math.inf if budget_usd is None else budget_usd)
        self.limits = checked(limits or {}, self.provider)
        self.pricing = Pricing(prices or {}, self.provider, self._budget)
        self.prefixes = Prefixes(self.pricing, share_prefixes)
        self._sender = Sender(
            self.provider,
            self.count,
            self.limits,
            retry or Retry(),
            self.pricing,
            turns=self.turns,
            prefixes=self.prefixes,
        )
        self.samples = Samples(self._sender, self.provider, self.pricing, join_samples)
        self.deciding = Deciding(self.provider)
        self._answering = Answering(self._sender, self.samples, self.deciding, self._counts, self.provider)

    def __dir__(self) -> list[str]:
        # What a user has of it; the rest is for calls.
        return ["budget", "calls", "forget", "limits", "report", "statistics", "trace"]

    def watch(self) -> None:
        """From now on remembers each call, for `calls` and `trace`.

        `ember.session` calls this. The process's own session remembers no calls.
        """
        self.watchers += [self._log.note, self.trace.add]

    def report(self) -> Report:
        """The counts of what was done so far."""
        tables = ", ".join(sorted(self.pricing.tables))
        return Report(**self._counts, prices=tables)  # type: ignore[arg-type]

    def calls(
        self,
        lane: LaneIndex | None = None,
        op: str | None = None,
        answer: Answer | None = None,
        failed: bool | None = None,
    ) -> Calls:
        """The LLM calls that have ended so far, failed ones included: all, or those that match all arguments given.

        ```python
        run.calls(answer=answers[3]).show()  # the prompt that was sent, and who sent it
        ```

        **Arguments:**

        - `lane`: a lane's index, the outermost `vmap` first, or the first indices of it. A call that was made once for
            many lanes is found by each of them.
        - `op`: the name of an operator that the calls stand in, or the names of several nested ones, joined by `/`;
            `repair` for the calls that had a model mend its answer, see `LLM.structured`.
            Equal calls that a plan makes as one stand where the first of them does.
        - `answer`: the model's whole answer, as a `str` or a Text. Of a Text with several strings, any one may match.
        - `failed`: whether the calls failed.

        **Returns:** one `CallRecord` for each time that a lane asked, in the order in which they ended. To remember a
        call takes 4 us and some 300 bytes, without its words. The last 262,144 calls are remembered;
        `Journal(path).calls` has older ones.

        **Raises:** `TypeError` for a lane or an answer that is none.
        """
        return self._log.calls(lane, op, answer, failed)

    def held(self) -> list[str]:
        """What holds back calls for more than some seconds: words for each model of which any wait."""
        told = [(model, stats) for model, stats in self.statistics().items() if stats.held_s > TOLD_SECONDS]
        return [f"{model} waits {stats.held_s:,.0f} s for {stats.held_by}" for model, stats in told]

    def forget(self, calls: CallRecord | Iterable[CallRecord]) -> int:
        """Deletes the answers of calls, in the journal too, so that a program that makes them again asks the model.

        ```python
        run.forget(run.calls(op="Judge", lane=3))
        ```

        All results of host functions that this session has in memory are dropped too: they may have been made of these
        answers, and nothing records which were.

        **Arguments:**

        - `calls`: what `calls` returns, or some of it.

        **Returns:** how many answers were deleted. Calls that failed have none, and equal calls have one together.

        **Raises:** `TypeError` for what is no call; `JournalError` if the journal cannot be written.
        """
        asked = digests(calls)
        self._answering.forget(asked)
        self.results.clear()
        return sum(journal.drop(asked) for journal in self.journals)

    @property
    def budget(self) -> Funds:
        """What is spent, reserved and left of the budget, in US dollars."""
        return self._budget.funds()

    def count(self, name: str, amount: float = 1) -> None:
        """Adds `amount` to one of the report's counts. Called on the event loop."""
        self._counts[name] += amount

    def counted(self) -> dict[str, float]:
        """The report's counts so far, and `waiting`: how many calls wait for their turn."""
        return {**self._counts, "waiting": sum(s.waiting for s in self.statistics().values())}

    @contextlib.contextmanager
    def sweeping(self, operator: str, tally: Tally) -> Iterator[None]:
        """Within, a sweep runs: its begin and end are logged, and a bar shows the calls that `tally` counts.

        Used on the event loop. On a loop with a virtual clock there is no bar, as its timer would move the clock.
        """
        began = time.perf_counter()
        log.sweep_began(operator, tally.known)
        is_shown = progress.is_wanted(self.progress) and not get_loop().is_virtual
        try:
            with progress.shown(tally, self) if is_shown else contextlib.nullcontext():
                yield
        finally:
            log.sweep_ended(operator, tally.ended, time.perf_counter() - began)

    def provider(self, name: str) -> Provider:
        """The session's own provider of that name, else the one that is registered. Raises `ModelError` for none."""
        return registry.get(name, self._providers)

    def close(self) -> None:
        """Frees the connections of the session's own providers, and the journal's file if the session opened it."""
        for provider in self._providers.values():
            with contextlib.suppress(concurrent.futures.TimeoutError):  # a connection that will not close is left
                drop(provider, loop()).result(_CLOSE_SECONDS)
        if self._closes:
            self._lasting.close()

    def statistics(self) -> dict[str, Statistics]:
        """How the calls of each model are paced, by `provider/model`."""
        return self._sender.statistics()

    def check(self, model_id: str) -> None:
        """Raises `ModelError` if a model id is malformed, or names a provider or model known not to exist."""
        registry.check(model_id, self._providers)

    async def ask(
        self,
        request: Request,
        lane: tuple[int, ...] = (),
        scope: str = "",
        stands_for: int = 1,
        path: Path = NOWHERE,
        used: Sequence[Meter] = (),
        read: Read = itself,
        words: SpokenWords | None = None,
        mends: Mends = never,
        instead: tuple[Request, Read] | None = None,
    ) -> Any:
        """Answers one LLM call, which stands for `stands_for` equal calls of the program. Used on the event loop.

        **Arguments:**

        - `request`: what is asked.
        - `lane`, `scope`: who asks, outermost first.
        - `path`: where the call stands in its plan, for a scheduler.
        - `used`: are told what it used, and what was billed for attempts that gave no answer.
        - `read`: makes what is returned of the answer; by default it is the answer. Reading is part of the call: an
            answer that is of no use fails it, is kept for audit, and is asked for again by another session.
        - `words`: are given the answer's words as they come.
        - `mends`: whether the caller goes on from an answer that is of no use. It is then not asked for again.
        - `instead`: of a question that is to be decided without words, what is asked where the service does not; with
            a `read` of its own. It is asked of the same provider.

        **Raises:** what `read` raises, which is `MalformedResponseError` for an answer that is of no use; the
        `ProviderError` of the last attempt, `BudgetError`, `SchedulerError` or `JournalError`; `NoAnswerError` for an
        answer that is kept and paid for, and that has nothing to go on with.
        """
        self._counts["calls"] += stands_for
        self._counts["merged"] += stands_for - 1
        provider = self.provider(request.provider)
        endpoint = provider.endpoint
        # The endpoint is part of the digest: one provider name may stand for other servers in other sessions, and a
        # model of the same name there would answer something else.
        journal = self._passing if endpoint is None else self._lasting
        is_paid = endpoint is not None and not provider.is_local

        def asking(request: Request, read: Read) -> Asking:
            digest = request.digest(endpoint or "")
            task = None if self.turns is None else self._sender.task(request, self.turns, lane, scope, path)
            return Asking(digest, journal, endpoint or "", is_paid, lane, scope, [], task, read, words, mends)

        asked, before = asking(request, read), list[Attempt]()
        began = time.time()
        response: Response | None = None
        error: BaseException | None = None
        how: Ending = "failed"
        try:
            if instead is not None and not self.deciding.is_known(request) and journal.get(asked.digest) is None:
                other = asking(*instead)
                if journal.get(other.digest) is not None:  # it was asked so before, and paid for
                    request, asked, instead = instead[0], other, None
            refused: RefusedRequestError | None = None
            try:
                response, how = await self._answering.answer(request, asked)
            except RefusedRequestError as refusal:
                if instead is None or not self.deciding.is_undecided(refusal):
                    raise
                refused = refusal
            if instead is not None and refused is not None:
                undecided, before = request, asked.attempts
                request, asked = instead[0], asking(*instead)
                response, how = await self._answering.answer(request, asked)
                self.deciding.lettered(undecided, refused)
            assert response is not None
            # Of equal calls that were sent as one, one was paid for; of replayed and merged ones none was.
            if saved := stands_for - (how == "answered"):
                self.count("saved_usd", saved * response.cost)
            for meter in used:
                meter.add(response)
            if response.is_cut:
                self._counts["cut"] += stands_for
            if request.decides:
                self._counts["decided"] += stands_for
            self.oddities.look_at(request, response)
            return self._answering.value(response, asked)
        except BaseException as caught:
            error = caught
            raise
        finally:
            attempts = [*before, *asked.attempts]
            if used:
                _bill(self.pricing, request, attempts, used)
            if self.watchers:
                now, digest = time.time(), asked.digest
                ended = CallEnded(digest, request, lane, scope, how, began, now, response, error, attempts, stands_for)
                for watch in self.watchers:
                    watch(ended)


def _bill(pricing: Pricing, request: Request, attempts: Sequence[Attempt], used: Sequence[Meter]) -> None:
    """Tells meters what was billed for the attempts that gave no answer."""
    billed = [a.error.tokens for a in attempts if a.error is not None and isinstance(a.error.tokens, Tokens)]
    for tokens in billed:
        cost = pricing.cost(request, tokens)
        for meter in used:
            meter.bill(tokens, cost)


def _turns(scheduler: Scheduler | None) -> Turns | None:
    if scheduler is None or isinstance(scheduler, Scheduler):
        return scheduler and Turns(scheduler)
    if isinstance(scheduler, type):
        raise TypeError(f"session(scheduler={scheduler.__name__}) is given a class; make one: {scheduler.__name__}().")
    raise TypeError(f"session(scheduler=…) takes an ember.Scheduler, not {type(scheduler).__name__}.")


# The sessions that are open, innermost last. The stack is the process's. A stack for each thread, or a context
# variable, would not do: XLA runs host callbacks on threads of its own, which know nothing of the thread that
# dispatched them.
_lock = threading.Lock()
_open: list[Session] = []
_default: Session | None = None


def current() -> Session:
    """The innermost open session, or else the process's own, which is made at first use and never closed by a user."""
    global _default
    with _lock:
        if _open:
            return _open[-1]
        if _default is None:
            _default = Session(UNSET, {})
        return _default


# Of each thread, what ends with the outermost operator that it calls; see `prepared`.
_threads = threading.local()


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Within, an operator is called. What it begins by `prepare` ends with the block."""
    if getattr(_threads, "inside", None) is not None:  # in another operator's
        yield
        return
    with contextlib.ExitStack() as inside:
        _threads.inside, _threads.is_preparing = inside, False
        try:
            yield
        finally:
            _threads.inside = None


def prepare() -> None:
    """The operator that this thread has called has to be traced first: from now on the bar tells of it."""
    inside = getattr(_threads, "inside", None)
    if inside is not None and not _threads.is_preparing:
        _threads.is_preparing = True
        session, running = current(), loop()
        if progress.is_wanted(session.progress) and not running.is_virtual:
            inside.enter_context(progress.preparing(session, running))


def admit(session: Session, lane: tuple[int, ...]) -> None:
    """Raises `PilotError` for a call of a lane that is not one of those that a pilot's session is for."""
    if session.lanes is not None and lane and lane[0] not in session.lanes:
        raise PilotError(f"lane {list(lane)} is not one of those that this pilot runs.")


@contextlib.contextmanager
def piloting(around: Session, lanes: Container[int], watch: Watcher) -> Iterator[None]:
    """Within, calls are made in a session, but only those of some outermost lanes; `watch` is told of each."""
    pilot = copy.copy(around)  # it shares all that has a state: counts, budget, journal, limits
    pilot.lanes, pilot.watchers = lanes, [*around.watchers, watch]
    with _lock:
        _open.append(pilot)
    try:
        yield
        _wait_for_dispatched()
    finally:
        with _lock:
            _open.remove(pilot)


class session:
    """Runs calls under settings of their own, and counts them.

    ```python
    with ember.session() as run:
        answers = jax.vmap(op)(questions)
    print(run.report())
    ```

    **Arguments:**

    - `journal`: the file where answers are kept, made if it is not there; `"memory"` to keep them as long as the
        session, `None` or `"off"` for none. (A file of such a name is `"./memory"`.) By default the user's own,
        `journal.db` in the user's data folder, or what the environment variable `EMBER_JAX_JOURNAL` says: a file,
        `memory` or `off`. The user's own keeps what services answer; answers
        of simulated models and of Python functions it does not, they are kept as long as the session.
    - `providers`: providers by name that are used in place of the registered ones of that name.
    - `limits`: a `Limit` by provider, as `"openai"`, or by model, as `"openai/gpt-4o"`, which takes precedence. A
        provider's limit is shared by its models that have none of their own. Without a limit calls are paced as the
        provider's headers say, or else as the provider is found to allow; calls of simulated models and Python
        functions are then not paced.
    - `retry`: how often, and for how long, calls are tried that may succeed later.
    - `scheduler`: a `Scheduler` that decides which calls start now, and which of them go first where limits hold them
        back: `Topological()`, `CriticalPath()`, or one's own. Without one calls start when they are ready, and pass
        limits in the order in which they came.
    - `progress`: whether a bar shows how far the calls of a sweep are, if that takes more than half a second; by
        default where standard error is a terminal, and in notebooks.
    - `prices`: a `Price` by provider, as `"local"`, or by model, as `"local/my-model"`, which takes precedence; both
        take precedence over the table of the installed package `genai_prices`. It knows cached input, long prompts,
        service tiers and prices that change by the hour; `ember.Price` says more. The cost of a model without any
        price, or of a service tier without one, is NaN, and there is one warning.
    - `budget_usd`: US dollars that calls may cost at most, however many are in flight. A call is sent only if the most
        that it may cost, by its `max_tokens` or else by the model's own limit, fits into what is left. Else it waits
        until other calls are settled. If that does not help, it and all calls after it raise `BudgetError`, and the
        calls in flight finish. `run.budget` says what is spent, reserved and left. Replayed calls cost nothing. With 0
        no call is sent, not even a free one.
        The cap holds by the prices known here, the dearest that may apply, and does not cover models without a price.
    - `join_samples`: whether calls that are equal but for their keys, and are ready at once, are sent as one request
        where the service takes that (`n` of chat completions), so that their prompt is billed once; and likewise the
        questions of `LLM.decide` about one conversation. Each of them is
        still kept, counted and failed by itself; the report's `requests` is less than its `calls`. Of the tokens that
        are billed each has a part: of the prompt an equal one, of the answers one by its length.
    - `share_prefixes`: whether calls whose long prompts begin alike wait until one of them was answered, or has begun
        to be, where the service keeps what it has read and bills it less to those that come later. They then read it
        at that price, and take the time of one call more. What begins alike may be a system prompt, earlier turns, or
        the text of a template; it has as many tokens as the service asks for, mostly 1,024, and is a quarter of the
        prompt. Anthropic is told to keep it (`cache_control`), unless the LLM's own settings say what to keep. Calls
        of models without a price for it never wait.

    Sessions nest; the innermost open one counts. They belong to the process, not to a thread.

    **Raises:** `JournalError` if the file cannot be used; on leaving, the typed error behind a `JaxRuntimeError` that
    one of its calls caused; `ModelError` for a limit or price of a provider that is not there.
    """

    def __init__(
        self,
        *,
        journal: AbstractJournal | str | os.PathLike[str] | None = UNSET,
        providers: Mapping[str, Provider] | None = None,
        limits: Mapping[str, Limit] | None = None,
        retry: Retry | None = None,
        scheduler: Scheduler | None = None,
        progress: bool | None = None,
        prices: Mapping[str, Price] | None = None,
        budget_usd: float | None = None,
        join_samples: bool = True,
        share_prefixes: bool = True,
    ):
        self._session = Session(
            journal,
            providers or {},
            limits,
            retry,
            scheduler,
            progress,
            prices,
            budget_usd,
            join_samples,
            share_prefixes,
        )
        self._session.watch()
        self._began = 0.0

    def __enter__(self) -> Session:
        self._began = time.perf_counter()
        log.session_opened()
        with _lock:
            _open.append(self._session)
        return self._session

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            _wait_for_dispatched()
        with _lock:
            _open.remove(self._session)
        self._session.close()
        log.session_closed(time.perf_counter() - self._began, vars(self._session.report()))
        if error is not None and (typed := failures.typed(error)) is not None:
            raise typed from error


def _wait_for_dispatched() -> None:
    """Waits until JAX has computed all that was dispatched.

    JAX dispatches asynchronously. The calls of a program that was started in the session may not have begun when the
    session is left, and would then be made in another session.
    """
    for array in jax.live_arrays():
        if not array.is_deleted() and not array.is_ready():
            with contextlib.suppress(*CALLBACK_ERRORS):  # the error is raised again where the user reads the array
                array.block_until_ready()


def loop() -> Loop:
    """The process's event loop, which frees the providers' connections before it ends."""
    running = get_loop()
    if registry.close_all not in running.closers:
        with _lock:  # another thread may have added the closers since
            if registry.close_all not in running.closers:
                running.closers += [all_closed, _close_journals, registry.close_all]
    return running


async def _close_journals() -> None:
    close_all()
