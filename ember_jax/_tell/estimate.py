"""What a plan will ask for, cost and take: bounds, told before anything is paid, and what is expected."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._host import HostCall
from .._model.asking import ModelCall, otherwise
from .._model.choose import ChoiceCall
from .._model.decide import DecideCall
from .._model.reranker import RankCall
from .._model.structured import StructuredCall, longest_wrong, repair_of
from .._plan import ir
from .._runtime.earlier import answers
from .._runtime.journal.columns import CallRecord
from .._runtime.limits import MOST_IN_FLIGHT, Limit, checked, pool_of, seconds_of
from .._runtime.session import Session
from .._text import lengths, store
from .._text.lengths import UNKNOWN, Span
from ..providers import tokens
from ..providers.base import Request, Response, Tokens
from ..providers.questions import parted
from . import expect
from .alike import CommonPrompts
from .bounds import Bounds, ByModel, either, is_text
from .expect import CallSite, Observation, Pilot
from .known import Known
from .longest import chain

# The model id that stands in a request for a model that is not known, and the name of such a model in an estimate.
_NOBODY, _UNKNOWN = "unknown/unknown", "an unknown model"
# How many combinations of models and settings are tried at most, where a call may ask one of several.
_WAYS = 64
# The rows of a tally. Each is two numbers, the least and the most.
_CALLS, _REQUESTS, _INPUT, _OUTPUT, _COST, _UNCACHED = range(6)


class Range(NamedTuple):
    """Bounds of a number: `least`, and `most`, which is infinite if nothing bounds the number."""

    least: float
    most: float

    def __str__(self) -> str:
        return self.written("{:,.0f}")

    def written(self, how: str) -> str:
        """The bounds in words, with numbers in the format `how`."""
        least = how.format(self.least)
        if math.isinf(self.most):
            return f"{least} or more"
        most = how.format(self.most)
        return least if least == most else f"{least} to {most}"


@dataclasses.dataclass(frozen=True)
class Amounts:
    """Bounds of what calls ask for and cost.

    **Fields:**

    - `calls`: how many calls are made, with all repairs of structured answers at most.
    - `input_tokens`: at least the number of words in their prompts, and at most the number of bytes, with an allowance
        for what a service adds. An answer that stands in a later prompt counts from no token to the most that it can
        have.
    - `output_tokens`: at least one for each call, and at most its `max_tokens`, or the model's own limit if known.
    - `cost_usd`: US dollars, by the prices of the session in force.
    """

    calls: Range
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range

    def row(self) -> list[str]:
        """The fields as cells of a table."""
        numbers = [str(r) for r in (self.calls, self.input_tokens, self.output_tokens)]
        return [*numbers, self.cost_usd.written("${:,.6f}")]


class Likely(NamedTuple):
    """What is expected of a number, with an interval that holds the number in 95 of 100 cases."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.written("{:,.0f}")

    def written(self, how: str) -> str:
        """The numbers in words, each in the format `how`."""
        if math.isnan(self.mean):
            return "an unknown number of"
        mean, low, high = (how.format(x) for x in self)
        return mean if low == mean == high else f"{mean} ({low} to {high})"


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a run is expected to come to, from answers that are there.

    It is that of a run in which nothing fails and nothing is replayed, as the bounds are. The calls are those that are
    sent. Repairs of structured answers are among them only as far as a pilot has met them.

    **Fields:**

    - `calls`, `input_tokens`, `output_tokens`, `cost_usd`, `seconds`: each a `Likely`, with `mean`, `low` and `high`.
        The seconds are NaN if no answer tells how long it took.
    - `answers`: from how many answers this was found.
    - `source`: where they are from, in words.
    """

    calls: Likely
    input_tokens: Likely
    output_tokens: Likely
    cost_usd: Likely
    seconds: Likely
    answers: int
    source: str

    def __str__(self) -> str:
        cost = "an unknown cost" if math.isnan(self.cost_usd.mean) else self.cost_usd.written("${:,.6f}")
        told = [f"{self.calls} calls", f"{self.input_tokens} input tokens", f"{self.output_tokens} output tokens", cost]
        if not math.isnan(self.seconds.mean):
            low, high = _duration(self.seconds.low), _duration(self.seconds.high)
            told.append(f"{_duration(self.seconds.mean)} ({low} to {high})")
        return f"expected, by {self.answers:,} answers {self.source}: {', '.join(told)}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bounds of what a plan will ask for, cost and take, and what is expected of it; `str` shows a table.

    These are bounds for one run in which nothing fails and nothing is replayed. Calls that are known to be equal count
    once in the lower bounds. Calls that depend on answers, and calls with keys, are taken to differ. Where the
    samples of a prompt may be sent, and billed, as one request, the lower bounds take that they are; and where prompts
    are known to begin alike, that all but the first read it where the service has kept it, at that price.

    **Fields:** those of `Amounts`, of all models together, and

    - `seconds`: how many seconds the run takes at least, under the limits, with the latency that was given.
    - `models`: `Amounts` by model.
    - `uncached_usd`: bounds as `cost_usd`, if no service keeps what prompts have in common.
    - `expected`: an `Expected`, with intervals; `None` where too little is known. See `Plan.estimate`.
    - `prices`: the names and versions of the tables that the costs are by; empty for prices of the session's own.
    """

    calls: Range
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range
    seconds: float
    models: Mapping[str, Amounts]
    uncached_usd: Range
    expected: Expected | None = None
    prices: str = ""

    def row(self) -> list[str]:
        """All models together, as cells of a table."""
        return Amounts(self.calls, self.input_tokens, self.output_tokens, self.cost_usd).row()

    def __str__(self) -> str:
        rows = [["", "calls", "input tokens", "output tokens", "US dollars"]]
        rows += [[name, *amounts.row()] for name, amounts in self.models.items()]
        if len(self.models) != 1:
            rows.append(["all", *self.row()])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]).rstrip() for r in rows]
        if self.uncached_usd.least > self.cost_usd.least:
            without = self.uncached_usd.written("${:,.6f}")
            lines.append(f"{without} if the service keeps nothing of what prompts have in common")
        lines += [f"at least {_duration(self.seconds)}"] if self.seconds else []
        lines += [str(self.expected)] if self.expected is not None else []
        return "\n".join([*lines, f"prices: {self.prices}"] if self.prices else lines)


def estimate(
    plan: ir.Plan,
    given: Sequence[Known | None],
    session: Session,
    limits: Mapping[str, Limit] | None,
    latency: float,
    name: str = "",
    pilot: Pilot | None = None,
) -> Estimate:
    """What a plan asks for, costs and takes, from what is known of its inputs, and of answers that are there.

    **Arguments:**

    - `given`: what is known of each input; `None` for what is not text.
    - `session`: whose prices and providers count.
    - `limits`: as of `session`; `None` for those of the session.
    - `latency`: the seconds that one call takes at least.
    - `name`: the operator that the plan is of.
    - `pilot`: what a pilot of the plan has found.

    **Raises:** `ValueError` for a latency that is negative or infinite; `TypeError` and `ModelError` for limits as
    `session` does.
    """
    if not 0 <= latency < math.inf:
        raise ValueError(f"estimate(latency={latency!r}): give the seconds that a call takes, at least 0.")
    limits = session.limits if limits is None else checked(limits, session.provider)
    asked = _Estimator(session, name)
    tally = asked.bounds.of(plan, given)
    rows = {model: found for model, found in tally.items() if isinstance(model, str) and model}
    whole = tally.get("", np.zeros((6, 2)))
    total = _amounts(whole)
    depth = chain(plan).calls.least
    paced = asked.paced({model: found[:, 0] for model, found in rows.items()}, limits, latency)
    bounds = Estimate(
        **vars(total),
        seconds=max(depth * latency, paced),
        models={model: _amounts(found) for model, found in rows.items()},
        uncached_usd=Range(*map(float, whole[_UNCACHED])),
        prices=", ".join(dict.fromkeys(filter(None, map(session.pricing.table, rows.keys() - {_UNKNOWN})))),
    )
    groups = {key: found for key, found in tally.items() if not isinstance(key, str)}
    known = _known(groups, session, pilot)
    if known is None:
        return bounds
    return dataclasses.replace(bounds, expected=_expected(asked, bounds, *known, limits, depth, pilot))


# How many answers of one operator and model are looked at, at most: the last ones.
_MOST_ANSWERS = 1000


def answer(
    session: Session, request: Request, response: Response, scope: str, lane: tuple[int, ...], seconds: float = math.nan
) -> Observation:
    """An answer as what is expected of others like it. A price of the session's own counts, else what it has cost."""
    cost = session.pricing.priced(request, response, session.provider(request.provider)).cost
    amounts = (1, response.input_tokens, response.output_tokens, cost)
    return Observation((scope, f"{request.provider}/{request.model}"), lane[0] if lane else None, amounts, seconds)


def _earlier(session: Session, scope: str, model: str) -> list[Observation]:
    """What a model has answered to an operator before."""
    found: dict[bytes, Observation] = {}
    for call in answers(session, model, scope, _MOST_ANSWERS):
        known = found.get(call.digest)
        if known is not None and known.seconds >= 0:
            continue
        provider, _, name = call.model.partition("/")
        response = Response("", call.input_tokens, call.output_tokens, call.cost)
        response = response._replace(
            cached_tokens=call.cached_tokens,
            cache_write_tokens=call.cache_write_tokens,
            reasoning_tokens=call.reasoning_tokens,
        )
        request = Request(provider, name, (), call.parameters)
        found[call.digest] = answer(session, request, response, call.scope, call.lane, _took(call))
    return list(found.values())


def _known(
    groups: Mapping[CallSite, np.ndarray], session: Session, pilot: Pilot | None
) -> tuple[expect.Sums, list[Sequence[Observation]]] | None:
    """What is expected of the calls of a plan, and the answers by group; `None` if nothing is known of some."""
    found: dict[CallSite, Sequence[Observation]] = {group: _earlier(session, *group) for group in groups}
    reached = {answer.group for answer in pilot.answers} if pilot is not None else set()
    # What a pilot has not reached it did not need, unless it is certain to be called.
    left = {g: rows for g, rows in groups.items() if g not in reached and (pilot is None or rows[_CALLS, 0] > 0)}
    if not groups or not all(found[g] for g, rows in left.items() if rows[_CALLS, 0] > 0):
        return None
    sums = expect.of_calls(found, {group: _times(rows) for group, rows in left.items()})
    if pilot is not None:
        of_pilot = expect.of_pilot(pilot)
        sums = of_pilot if sums is None else expect.both(of_pilot, sums)
    return None if sums is None else (sums, list(found.values()))


def _times(rows: np.ndarray) -> tuple[float, float]:
    """How many requests are sent for the calls of a group; those that are known to be equal are sent once."""
    return (rows[_REQUESTS, 0],) * 2 if rows[_CALLS, 0] == rows[_CALLS, 1] else (rows[_REQUESTS, 0], rows[_REQUESTS, 1])


def _took(call: CallRecord) -> float:
    """The seconds from the last request of a call to its answer; NaN if they are not remembered."""
    if call.tried:
        return call.tried[-1].ended - call.tried[-1].began
    return call.ended - call.began if call.how == "answered" else math.nan


def _expected(
    asked: "_Estimator",
    bounds: Estimate,
    sums: expect.Sums,
    answers: Sequence[Sequence[Observation]],
    limits: Mapping[str, Limit],
    depth: float,
    pilot: Pilot | None,
) -> Expected:
    hard = [bounds.calls, bounds.input_tokens, bounds.output_tokens, bounds.cost_usd]
    total, (low, high) = sums.total, sums.interval()
    # Equal calls are sent once, so fewer requests may be sent than calls are made; that is in `total` already.
    likely = [
        Likely(*(float(np.clip(x, least if i else 0.0, most)) for x in (mean, *ends)))
        for i, (mean, *ends, (least, most)) in enumerate(zip(total, low, high, hard, strict=True))
    ]
    each = expect.latency(answers)
    time = Likely(math.nan, math.nan, math.nan)
    if each is not None:
        rows = {model: np.array([0, *found]) for model, found in sums.models.items()}
        scaled = lambda factor: {model: factor * found for model, found in rows.items()}
        paced = lambda latency, factor: asked.paced(scaled(factor), limits, latency, is_likely=True)
        depth, spread = max(depth, 1), math.sqrt(sums.variance[0]) / total[0]
        time = Likely(*expect.seconds(each, depth, total[0] / depth, min(spread, 1.0), paced))
        time = Likely(*(max(x, bounds.seconds) for x in time))
    source = "of earlier calls" if pilot is None else f"of {len(pilot.taken):,} of {pilot.lanes:,} lanes"
    return Expected(*likely, seconds=time, answers=sums.answers, source=source)


class _Estimator:
    """Tallies the calls of one plan, by the prices of a session."""

    def __init__(self, session: Session, scope: str):
        self._session = session
        self._seen: set[bytes] = set()
        # Models that may give several samples to one request, with how many.
        self._most: dict[str, float] = {}
        self._common = CommonPrompts(session.prefixes)
        self._largest = 0.0  # the lower bound of the tokens of the call for which it is highest
        self.bounds = Bounds(self._ask, scope)

    def _ask(self, function: HostCall, given: Sequence[Known | None], outs: Sequence[Any]) -> tuple[ByModel, list[Any]]:
        if not isinstance(function, ModelCall):
            return {}, [self._result(UNKNOWN, out) for out in outs]
        # The model and each setting may be one of several, and each combination is tried, if they are few. The words of
        # a prompt are not tried one by one: only their length counts, which is bounded.
        static = function.operands
        first = 2 + static.has_system
        heads = [0, *range(first, first + len(static.names))]
        ways = [k.rows() for h in heads if (k := given[h]) is not None]
        if math.prod(map(len, ways)) > _WAYS:
            ways = [[self.bounds.texts.digest(self.bounds.texts.one(rows)).tobytes()] for rows in ways]
        tallies = [self._one(function, given, dict(zip(heads, way, strict=True))) for way in itertools.product(*ways)]
        rounds = 1 + (function.repairs if isinstance(function, StructuredCall) else 0)
        answer = Span(0, max(tally[""][_OUTPUT, 1] for tally in tallies) / rounds)
        if isinstance(function, ChoiceCall | DecideCall) and (options := given[-1 - static.has_key]) is not None:
            answer = self.bounds.texts.one(options.rows())
        return either(tallies), [self._result(answer, out) for out in outs]

    def _one(self, function: ModelCall, given: Sequence[Known | None], heads: Mapping[int, bytes]) -> ByModel:
        """The tally of one call, whose model and settings are certain: `heads`, by the operand's index."""
        has_key, count = function.operands.has_key, len(given)
        arrays, unknown = [], []
        for i, k in enumerate(given):
            if k is None or (has_key and i == count - 1):
                arrays.append(np.zeros(2, np.uint32))  # a key
                continue
            rows = [heads[i]] if i in heads else [row.tobytes() for row in k.digests.reshape(-1, 4)]
            texts = (
                [self.bounds.texts.one(k.rows())]
                if k.chosen and i not in heads
                else list(map(self.bounds.texts.text, rows))
            )
            unknown += [t for t in texts if isinstance(t, Span) and i not in heads]
            if i == 1 and isinstance(function, RankCall) and isinstance(texts[0], Span):
                # The model reads the query before each document.
                unknown += [Span(0, texts[0].most)] * (math.prod(function.shape) - 1)
            if i == 2 and function.operands.has_system and isinstance(texts[0], Span):
                unknown.append(Span(0, tokens.PER_MESSAGE))  # of its message, without which the request is made
            filled = [t if isinstance(t, str) else _NOBODY if i == 0 else "" for t in texts]
            shape = (4,) if k.chosen else k.digests.shape
            arrays.append(np.stack(list(map(store.put_one, filled))).reshape(shape))
        bare, extra = function.operands.request(arrays)
        asked = function.asks(bare, extra)
        ways = [(way, otherwise(way, bare, extra)) for way in self._ways(function, asked)]
        return either([self._asked(way, request, unknown) for way, request in ways if request is not None])

    def _ways(self, function: ModelCall, request: Request) -> list[ModelCall]:
        """The call, and how else the same may be asked: of a question to decide nobody may know which it will be."""
        other = function.instead()
        if other is None or f"{request.provider}/{request.model}" == _NOBODY:
            return [function] if other is None else [function, other]
        if self._session.deciding.limits(request) is None:
            return [other]
        return [function] if self._session.deciding.is_known(request) else [function, other]

    def _asked(self, function: ModelCall, request: Request, unknown: Sequence[Span]) -> ByModel:
        """The tally of one request."""
        name = f"{request.provider}/{request.model}"
        kept = self._kept(request, has_words=not unknown) if name != _NOBODY else 0.0
        amounts = self._amounts(request, unknown, name != _NOBODY, kept)
        if name != _NOBODY and not unknown and request.sample is None:
            self._count_once(request, amounts)
        shown = _UNKNOWN if name == _NOBODY else name
        # What is expected is by the answers to such questions, and a repair is another one.
        whole = amounts + self._repairs(function, request, unknown, amounts[_OUTPUT, 1], name != _NOBODY)
        return {shown: whole, (self.bounds.scope, shown): amounts, "": whole}

    def _repairs(
        self, function: ModelCall, request: Request, unknown: Sequence[Span], answer: float, is_known: bool
    ) -> np.ndarray:
        """What a model's repairs of its answer come to: nothing at least. An answer has at most `answer` tokens."""
        total = np.zeros((6, 2))
        if isinstance(function, StructuredCall):
            spans = list(unknown)
            for _ in range(function.repairs):
                request = repair_of(request, "", longest_wrong(function))
                spans.append(Span(0, answer))
                total[:, 1] += self._amounts(request, spans, is_known)[:, 1]
        return total

    def _kept(self, request: Request, has_words: bool) -> float:
        """The fewest tokens that a prompt has in common with one before. What is not known stands in its last turn."""
        if not has_words:
            request = dataclasses.replace(request, messages=tuple(m for m in request.messages[:-1] if m.content))
        return lengths.span(self._common.shared(request, self._session.provider(request.provider))).least

    def _amounts(self, request: Request, unknown: Sequence[Span], is_known: bool, kept: float = 0.0) -> np.ndarray:
        """The rows of a call's tally, as `float64[6, 2]`.

        `unknown` are the lengths of those words that are not known and so not in the request. `is_known` says whether
        the model is known; `kept`, how many tokens the service may have kept at least.
        """
        least, most = tokens.bounds(request)
        inputs = least + sum(s.least for s in unknown), most + sum(s.most for s in unknown)
        pricing, limit = self._session.pricing, tokens.output_limit(request)
        bounded = pricing.most_output(request) if is_known else math.inf if limit is None else limit
        outputs = request.asks_words, bounded
        # A text whose vector is asked for may go with others.
        samples, many, requests, largest = self._session.samples, 1.0, (1.0 - request.embeds, 1.0), 0.0
        if samples.is_on and request.decides:
            most_questions = self._session.deciding.most(request) if is_known else math.inf
            requests, largest = (1 / most_questions, 1.0), most_questions * inputs[0]
            inputs = self._decided(request, inputs[0], most_questions, is_known and not unknown), inputs[1]
        elif samples.is_on and request.sample is not None:
            many = samples.most(request) if is_known else math.inf  # a model that is not known may be any
        if many > 1:
            self._most[f"{request.provider}/{request.model}"] = many
            inputs = self._shared(request, inputs[0], many, is_whole=is_known and not unknown), inputs[1]
        self._largest = max(self._largest, largest, inputs[0] + many * outputs[0])
        least, most = (Tokens(*n) for n in zip(inputs, outputs, strict=True))
        known = least._replace(cached=min(kept, least.input))
        costs = [pricing.cost(request, known), pricing.cost(request, least), pricing.most(request, most)]
        cached, plain, top = (0.0, 0.0, math.inf) if not is_known or any(map(math.isnan, costs)) else costs
        return np.array([(1, 1), requests, inputs, outputs, (cached, top), (plain, top)], float)

    def _shared(self, request: Request, tokens: float, many: float, is_whole: bool) -> float:
        """The fewest tokens that are billed for a call's prompt, which one request may share among many samples."""
        if not is_whole:  # words are not known: it may be the prompt of any other call
            return tokens / many
        return tokens * self._is_first(dataclasses.replace(request, sample=None), "samples")

    def _decided(self, request: Request, least: float, many: float, is_whole: bool) -> float:
        """The fewest tokens that are billed for a question to decide; one request may share its state among many."""
        if not is_whole:
            return least / many
        state, _ = parted(request)
        said = tokens.bounds(dataclasses.replace(request, messages=state))[0]
        return least - said * (not self._is_first(dataclasses.replace(request, messages=state), "state"))

    def _is_first(self, request: Request, of: str) -> bool:
        """Whether no such request was counted before."""
        digest = request.digest(of)
        is_first = digest not in self._seen
        self._seen.add(digest)
        return is_first

    def _count_once(self, request: Request, amounts: np.ndarray) -> None:
        """Takes a call out of the lower bounds if an equal one was counted before: both will share one answer."""
        digest = request.digest()
        if digest in self._seen:
            amounts[_REQUESTS:, 0] = 0
        self._seen.add(digest)

    def _result(self, text: Span | str, out: Any) -> np.ndarray | None:
        """The digests of a call's result, if it is text; else `None`."""
        return np.broadcast_to(self.bounds.texts.digest(text), out.shape) if is_text(out) else None

    def paced(
        self, models: Mapping[str, np.ndarray], limits: Mapping[str, Limit], latency: float, is_likely: bool = False
    ) -> float:
        """The seconds that so many calls of models take at least under the limits, which several models may share.

        `models` are the rows of a tally, of one number each. What is only likely takes each call for a request.
        """
        pools: dict[str, np.ndarray] = {}
        slots: dict[str, float] = {}
        for name, rows in models.items():
            if name == _UNKNOWN:
                continue
            provider, _, model = name.partition("/")
            pool = pool_of(limits, provider, model)
            rows = rows.copy()
            rows[_REQUESTS] /= 1 if is_likely else self._most.get(name, 1)
            pools[pool] = pools.get(pool, 0) + rows
            most = math.inf if self._session.provider(provider).is_local else MOST_IN_FLIGHT
            slots[pool] = limits.get(pool, Limit()).in_flight or most
        times = [0.0]
        for pool, rows in pools.items():
            requests, used = rows[_REQUESTS], rows[_INPUT] + rows[_OUTPUT]
            if requests:
                # The last request begins when the limits have let all tokens before it through. Which call is the last
                # is not known, so the largest one is taken, with which the bound is lowest.
                before = seconds_of(limits.get(pool, Limit()), requests, max(used - self._largest, 0.0))
                times += [before + latency, math.ceil(requests / slots[pool]) * latency]
        return max(times)


def _amounts(rows: np.ndarray) -> Amounts:
    found = [Range(*map(float, row)) for row in rows]
    return Amounts(_whole(found[_CALLS]), _whole(found[_INPUT]), _whole(found[_OUTPUT]), found[_COST])


def _whole(bounds: Range) -> Range:
    return Range(*(int(n) if n < math.inf else n for n in bounds))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"
