"""What a run is expected to come to: from answers that are there already, with intervals.

Design note. Two kinds of answers tell what a run will use.

- Those of a *pilot*, which has run some lanes of the very program, drawn at random. Its unit is the lane: the sums over
  a lane contain how often branches are taken, and that the samples of a question are alike. Of `N` lanes, `n` are known
  with the mean `m` and the standard deviation `s` of their sums. The sum over the others is `(N - n) m`, and its
  variance is that of the mean plus that of the new lanes: `s² (N - n) N / n`.
- Those of *earlier calls* of the same operators to the same models. Their unit is the call, as a journal does not know
  in which run a lane was. A call that stands for `w` calls of the plan adds `w x` to the sum. The variance is computed
  from sums of residuals by outermost lane, for the calls of a lane are alike ("clusters"): that of the mean, with
  weights `w`, plus that of the new calls, with weights `sqrt(w)`. Calls that a branch decides are related to those that
  are certain, by the residuals of a ratio. For one call in each lane both formulas agree.

Intervals are those of Student's t, so that few answers make them wide, and never leave the bounds that are known. Lanes
that cost much are few, so the sums are skewed, and t is corrected for it (Hall, 1992). The third cumulant of the error
is that of the mean, less that of the new lanes or calls, whose skewness works the other way.

The time is that of the longest chain of calls in the slowest lane, or what the limits and the calls in flight at once
take, whichever is more; and at most both together (R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969).
In between nothing is known, and a uniform number is drawn. How long a call takes is drawn as a lognormal number, as
latencies of services mostly are, with parameters that are themselves drawn as far as the answers leave them open. That
makes the interval; such draws have no mean, so the mean is that of calls with the parameters that the answers show. No
call takes longer than a client waits.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .._intervals import unskewed

# How many draws an expected time is made of, and of which part of them the interval is made.
_DRAWS = 400
_LEVEL = 0.95
# How many seconds clients wait for an answer, if they were not told otherwise; and how often its mean a call takes at
# most, where they were.
_PATIENCE, _MOST_MEANS = 600.0, 10
# What of an answer counts, in the order of the rows of a tally: requests, input tokens, output tokens, US dollars.
_QUANTITIES = 4

# The calls of one operator to one model: the scope and the model's id.
CallSite = tuple[str, str]


class Observation(NamedTuple):
    """One answer that is there.

    **Fields:**

    - `group`: who asked, and whom.
    - `lane`: the outermost lane that asked; `None` outside of lanes.
    - `amounts`: one request, its input and output tokens, and US dollars.
    - `seconds`: how long it took; NaN if that is not known.
    """

    group: CallSite
    lane: int | None
    amounts: tuple[float, float, float, float]
    seconds: float


class Pilot(NamedTuple):
    """What a pilot has found: it has run the lanes `taken` of `lanes`, and was given these answers."""

    lanes: int
    taken: Sequence[int]
    answers: Sequence[Observation]


class Sums(NamedTuple):
    """Expected sums.

    **Fields:**

    - `models`: the sums of the quantities, by model.
    - `variance`, `third`: the variance and the third cumulant of the error of each quantity's sum over all models.
    - `freedom`: the degrees of freedom that the variance was found with.
    - `answers`: how many answers it was found from.
    """

    models: Mapping[str, np.ndarray]
    variance: np.ndarray
    third: np.ndarray
    freedom: float
    answers: int

    @property
    def total(self) -> np.ndarray:
        """The sums over all models."""
        return sum(self.models.values(), np.zeros(_QUANTITIES))

    def interval(self) -> np.ndarray:
        """The two ends of the interval of each quantity's sum, as `float64[2, quantities]`."""
        from scipy.special import stdtrit  # imported here: it takes a tenth of a second; JAX depends on it

        spread, total = np.sqrt(self.variance), self.total
        if not self.freedom:
            return np.where(spread == 0, total, np.array([[-np.inf], [np.inf]]))
        is_known = (spread > 0) & np.isfinite(spread)
        skewness = np.where(is_known, self.third / np.where(is_known, spread, 1.0) ** 3, 0.0)
        t = stdtrit(self.freedom, (1 + _LEVEL) / 2)
        errors = np.where(is_known, np.stack([unskewed(t, skewness), unskewed(-t, skewness)]), np.array([[t], [-t]]))
        return total - np.where(spread == 0, 0.0, spread) * errors


def both(first: Sums, then: Sums) -> Sums:
    """The sums of both, which are independent."""
    names = dict.fromkeys([*first.models, *then.models])
    none = np.zeros(_QUANTITIES)
    models = {name: first.models.get(name, none) + then.models.get(name, none) for name in names}
    freedom = min(first.freedom, then.freedom)
    variance, third = first.variance + then.variance, first.third + then.third
    return Sums(models, variance, third, freedom, first.answers + then.answers)


def of_pilot(pilot: Pilot) -> Sums:
    """The sums over all lanes, from those that a pilot has run, and over what is done once for all lanes."""
    place = {lane: i for i, lane in enumerate(pilot.taken)}
    models = list(dict.fromkeys(answer.group[1] for answer in pilot.answers))
    by_lane = np.zeros((len(pilot.taken), len(models), _QUANTITIES))
    once = np.zeros((len(models), _QUANTITIES))
    for answer in pilot.answers:
        into = once if answer.lane is None else by_lane[place[answer.lane]]
        into[models.index(answer.group[1])] += answer.amounts
    known, rest = len(pilot.taken), pilot.lanes - len(pilot.taken)
    sums = once + by_lane.sum(0) * (1 + rest / known)
    each = by_lane.sum(1)
    variance = each.var(0, ddof=1) if known > 1 else np.full(_QUANTITIES, np.inf if rest else 0.0)
    spread = variance * rest * pilot.lanes / known if rest else np.zeros(_QUANTITIES)
    third = _skewed(each) * ((each - each.mean(0)) ** 3).mean(0) * rest * (rest**2 / known**2 - 1)
    freedom = known - 1 if rest else math.inf
    return Sums(dict(zip(models, sums, strict=True)), spread, third, freedom, len(pilot.answers))


def of_calls(
    answers: Mapping[CallSite, Sequence[Observation]], counts: Mapping[CallSite, tuple[float, float]]
) -> Sums | None:
    """The sums over the calls of each group, of which the least and the most are given, from earlier answers of these.

    Where a branch or a loop decides how many there are, they are taken to be as frequent as before, among the calls of
    the groups whose number is certain. `None` if there are no answers of such groups.
    """
    amounts = {group: np.array([a.amounts for a in answers[group]]).reshape(-1, _QUANTITIES) for group in counts}
    certain = {group: most for group, (least, most) in counts.items() if least == most}
    before = sum(len(amounts[group]) for group in certain)
    if not before:
        return None
    ratio = sum(certain.values()) / before
    models: dict[str, np.ndarray] = {}
    clusters = _Clusters()
    shared = np.zeros((2, _QUANTITIES))  # what each certain call is followed by, on the average
    for group, (least, most) in counts.items():
        rows = amounts[group]
        if not len(rows):  # it was never taken
            continue
        count = certain.get(group, min(max(len(rows) * ratio, least), most))
        weights = np.array([count / len(rows), math.sqrt(count / len(rows))])[:, None]
        models[group[1]] = models.get(group[1], 0) + weights[0] * rows.sum(0)
        if group not in certain:
            shared += weights * rows.sum(0) / before
        center = rows.mean(0) if group in certain else 0.0
        for answer, row in zip(answers[group], rows - center, strict=True):
            clusters.add(answer, weights * row)
    if shared.any():
        for group in certain:
            for answer in answers[group]:
                clusters.add(answer, -shared)
    return Sums(models, *clusters.cumulants(), sum(map(len, amounts.values())))


class _Clusters:
    """Residuals, summed by outermost lane."""

    def __init__(self) -> None:
        self._sums: dict[object, np.ndarray] = {}

    def add(self, answer: Observation, residual: np.ndarray) -> None:
        """Adds residuals of an answer, one for the mean and one for the new calls, as `float64[2, quantities]`."""
        cluster = id(answer) if answer.lane is None else (answer.lane,)
        self._sums[cluster] = self._sums.get(cluster, 0) + residual

    def cumulants(self) -> tuple[np.ndarray, np.ndarray, float]:
        """The second and third cumulant of each sum's error, and with how many degrees of freedom they were found."""
        freedom = len(self._sums) - 1
        if not freedom:
            return np.full(_QUANTITIES, np.inf), np.zeros(_QUANTITIES), 0
        sums = np.array(list(self._sums.values()))
        third = _skewed(sums[:, 0]) * (sums[:, 0] ** 3 - sums[:, 1] ** 3).sum(0)
        return (sums**2).sum((0, 1)) * len(sums) / freedom, third, freedom


def _skewed(rows: np.ndarray) -> np.ndarray:
    """Which columns are corrected for skewness: `bool[columns]`.

    Those of two values are not, such as the number of calls where one branch has one more: the ends of Student's t hold
    well there, and corrected ones are too wide.
    """
    return np.array([len(np.unique(np.round(column / (np.ptp(column) or 1.0), 6))) > 2 for column in rows.T])


class Latency(NamedTuple):
    """How long a call takes: the mean and the variance in seconds, and how many answers told it."""

    mean: float
    variance: float
    answers: int


def latency(groups: Iterable[Sequence[Observation]]) -> Latency | None:
    """How long a call of a chain takes, each group having the same part in it; `None` if that is not known."""
    known = [[a.seconds for a in answers if a.seconds >= 0] for answers in groups]
    known = [seconds for seconds in known if seconds]
    if not known:
        return None
    means, variances = (
        [float(np.mean(s)) for s in known],
        [float(np.var(s, ddof=1)) if len(s) > 1 else 0.0 for s in known],
    )
    return Latency(statistics.fmean(means), statistics.fmean(variances), min(map(len, known)))


def seconds(
    each: Latency, depth: float, at_once: float, spread: float, paced: Callable[[float, float], float]
) -> tuple[float, float, float]:
    """The expected seconds of a run, and their interval.

    **Arguments:**

    - `each`: how long a call takes.
    - `depth`: how many calls are made one after another.
    - `at_once`: in how many lanes such a chain of calls is made.
    - `spread`: the standard deviation of the number of calls, as a part of that number.
    - `paced`: the seconds that limits and calls in flight take, if a call takes so long, and if there are so many times
        the expected calls.
    """
    draws = np.random.default_rng(0)
    mean, variance = depth * max(each.mean, 1e-9), depth * each.variance
    # In the first half with the parameters that the answers show, and in the second with drawn ones.
    sigma = np.full(2 * _DRAWS, math.sqrt(math.log1p(variance / mean**2)))
    middle = math.log(mean) - sigma**2 / 2
    if each.answers > 1:
        freedom, drawn = each.answers - 1, slice(_DRAWS, None)
        sigma[drawn] *= np.sqrt(freedom / draws.chisquare(freedom, _DRAWS))
        middle[drawn] += sigma[drawn] * draws.normal(size=_DRAWS) / math.sqrt(each.answers * depth)
    longest = math.log(depth * max(_PATIENCE, _MOST_MEANS * each.mean))
    # The largest of many is where all of them are below: the root of a uniform number is how likely that is of one.
    slowest = np.clip(draws.uniform(size=len(sigma)) ** (1 / max(at_once, 1.0)), 1e-12, 1 - 1e-12)
    of_one = np.array([statistics.NormalDist().inv_cdf(u) for u in slowest])
    chains = np.exp(np.minimum(middle + sigma * of_one, longest))
    means = np.exp(np.minimum(middle + sigma**2 / 2, longest)) / depth
    factors = np.maximum(1 + spread * draws.normal(size=len(sigma)), 0.0)
    limited = np.array([paced(float(m), float(f)) for m, f in zip(means, factors, strict=True)])
    # The last call's own time is a part of the chain.
    both = np.minimum(chains, np.maximum(limited - means, 0.0))
    found = np.maximum(chains, limited) + draws.uniform(size=len(sigma)) * both
    low, high = np.quantile(found[_DRAWS:], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(np.clip(found[:_DRAWS].mean(), low, high)), float(low), float(high)
