"""What a plan will ask for, cost and take, told before anything is paid."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._asking import ModelCall
from ._choose import ChoiceCall
from ._host import HostCall
from ._plan import ir
from ._providers import tokens
from ._providers.base import Request, Tokens
from ._runtime.limits import MOST_IN_FLIGHT, Limit, pool_of, seconds_of
from ._runtime.session import Session
from ._tell.bounds import Bounds, Tally, either, is_text
from ._tell.chain import chain
from ._tell.known import Known
from ._text import store
from ._text.lengths import UNKNOWN, Span

# The model id that stands in a request for a model that is not known, and the name of such a model in an estimate.
_NOBODY, _UNKNOWN = "unknown/unknown", "an unknown model"
# How many combinations of models and settings are tried at most, where a call may ask one of several.
_WAYS = 64
# The rows of a tally. Each is two numbers, the least and the most.
_CALLS, _REQUESTS, _INPUT, _OUTPUT, _COST = range(5)


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

    - `calls`: how many calls are made.
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


@dataclasses.dataclass(frozen=True)
class Estimate(Amounts):
    """Bounds of what a plan will ask for, cost and take; `str` shows a table.

    These are bounds for one run in which nothing fails and nothing is replayed. Calls that are known to be equal count
    once in the lower bounds. Calls that depend on answers, and calls with keys, are taken to differ.

    **Fields:** those of `Amounts`, of all models together, and

    - `seconds`: how many seconds the run takes at least, under the limits, with the latency that was given.
    - `models`: `Amounts` by model.
    """

    seconds: float
    models: Mapping[str, Amounts]

    def __str__(self) -> str:
        rows = [["", "calls", "input tokens", "output tokens", "US dollars"]]
        rows += [[name, *amounts.row()] for name, amounts in self.models.items()]
        if len(self.models) != 1:
            rows.append(["all", *self.row()])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]).rstrip() for r in rows]
        return "\n".join([*lines, f"at least {_duration(self.seconds)}"] if self.seconds else lines)


def estimate(
    plan: ir.Plan,
    given: Sequence[Known | None],
    session: Session,
    limits: Mapping[str, Limit] | None,
    latency: float,
) -> Estimate:
    """Bounds of what a plan asks for, costs and takes, from what is known of its inputs.

    **Arguments:**

    - `given`: what is known of each input; `None` for what is not text.
    - `session`: whose prices and providers count.
    - `limits`: as of `session`; `None` for those of the session.
    - `latency`: the seconds that one call takes.

    **Raises:** `ValueError` for a latency that is negative or infinite; `TypeError` and `ModelError` for limits as
    `session` does.
    """
    if not 0 <= latency < math.inf:
        raise ValueError(f"estimate(latency={latency!r}): give the seconds that a call takes, at least 0.")
    limits = session.limits if limits is None else session.checked(limits)
    asked = _Asked(session)
    tally = asked.bounds.of(plan, given)
    models = {name: _amounts(rows) for name, rows in tally.items() if name}
    total = _amounts(tally.get("", np.zeros((5, 2))))
    waits = chain(plan).calls.least * latency
    paced = asked.paced(tally, limits, latency)
    return Estimate(**vars(total), seconds=max(waits, paced), models=models)


class _Asked:
    """Tallies the calls of one plan, by the prices of a session."""

    def __init__(self, session: Session):
        self._session = session
        self._seen: set[bytes] = set()
        self._largest = 0.0  # the lower bound of the tokens of the call for which it is highest
        self.bounds = Bounds(self._ask)

    def _ask(self, function: HostCall, given: Sequence[Known | None], outs: Sequence[Any]) -> tuple[Tally, list[Any]]:
        if not isinstance(function, ModelCall):
            return {}, [self._result(UNKNOWN, out) for out in outs]
        # The model and each setting may be one of several, and each combination is tried, if they are few. The words of
        # a prompt are not tried one by one: only their length counts, which is bounded.
        static = function.operands
        first = 2 + static.has_system
        heads = [0, *range(first, first + len(static.names))]
        ways = [k.rows() for h in heads if (k := given[h]) is not None]
        if math.prod(map(len, ways)) > _WAYS:
            ways = [[self.bounds.digest(self.bounds.one(rows)).tobytes()] for rows in ways]
        tallies = [self._one(function, given, dict(zip(heads, way, strict=True))) for way in itertools.product(*ways)]
        answer = Span(0, max(tally[""][_OUTPUT, 1] for tally in tallies))
        if isinstance(function, ChoiceCall) and (options := given[-1 - static.has_key]) is not None:
            answer = self.bounds.one(options.rows())
        return either(tallies), [self._result(answer, out) for out in outs]

    def _one(self, function: ModelCall, given: Sequence[Known | None], heads: Mapping[int, bytes]) -> Tally:
        """The tally of one call, whose model and settings are certain: `heads`, by the operand's index."""
        has_key, count = function.operands.has_key, len(given)
        arrays, unknown = [], []
        for i, k in enumerate(given):
            if k is None or (has_key and i == count - 1):
                arrays.append(np.zeros(2, np.uint32))  # a key
                continue
            rows = [heads[i]] if i in heads else [row.tobytes() for row in k.digests.reshape(-1, 4)]
            texts = [self.bounds.one(k.rows())] if k.chosen and i not in heads else list(map(self.bounds.text, rows))
            unknown += [t for t in texts if isinstance(t, Span) and i not in heads]
            filled = [t if isinstance(t, str) else _NOBODY if i == 0 else "" for t in texts]
            shape = (4,) if k.chosen else k.digests.shape
            arrays.append(np.stack(list(map(store.put_one, filled))).reshape(shape))
        request = function.asks(*function.operands.request(arrays))
        name = f"{request.provider}/{request.model}"
        amounts = self._amounts(request, unknown, name != _NOBODY)
        if name != _NOBODY and not unknown and request.sample is None:
            self._count_once(request, amounts)
        self._largest = max(self._largest, amounts[_INPUT, 0] + amounts[_OUTPUT, 0])
        return {_UNKNOWN if name == _NOBODY else name: amounts, "": amounts}

    def _amounts(self, request: Request, unknown: Sequence[Span], is_known: bool) -> np.ndarray:
        """The rows of a call's tally, as `float64[5, 2]`.

        `unknown` are the lengths of those words that are not known and so not in the request. `is_known` says whether
        the model is known.
        """
        least, most = tokens.bounds(request)
        inputs = least + sum(s.least for s in unknown), most + sum(s.most for s in unknown)
        pricing, limit = self._session.pricing, tokens.output_limit(request)
        outputs = 1, pricing.most_output(request) if is_known else math.inf if limit is None else limit
        least, most = (Tokens(*n) for n in zip(inputs, outputs, strict=True))
        costs = (pricing.cost(request, least), pricing.most(request, most)) if is_known else (math.nan, math.nan)
        prices = (0.0, math.inf) if any(map(math.isnan, costs)) else costs
        return np.array([(1, 1), (1, 1), inputs, outputs, prices], float)

    def _count_once(self, request: Request, amounts: np.ndarray) -> None:
        """Takes a call out of the lower bounds if an equal one was counted before: both will share one answer."""
        digest = request.digest()
        if digest in self._seen:
            amounts[_REQUESTS:, 0] = 0
        self._seen.add(digest)

    def _result(self, text: Span | str, out: Any) -> np.ndarray | None:
        """The digests of a call's result, if it is text; else `None`."""
        return np.broadcast_to(self.bounds.digest(text), out.shape) if is_text(out) else None

    def paced(self, tally: Tally, limits: Mapping[str, Limit], latency: float) -> float:
        """The seconds that the calls take at least under the limits, which several models may share."""
        pools: dict[str, np.ndarray] = {}
        slots: dict[str, float] = {}
        for name, rows in tally.items():
            if name in ("", _UNKNOWN):
                continue
            provider, _, model = name.partition("/")
            pool = pool_of(limits, provider, model)
            pools[pool] = pools.get(pool, 0) + rows
            most = math.inf if self._session.provider(provider).is_local else MOST_IN_FLIGHT
            slots[pool] = limits.get(pool, Limit()).in_flight or most
        times = [0.0]
        for pool, rows in pools.items():
            requests, used = rows[_REQUESTS, 0], rows[_INPUT, 0] + rows[_OUTPUT, 0]
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
