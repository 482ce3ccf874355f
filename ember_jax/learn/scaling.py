"""How accuracy grows, or falls, with the number of calls: exact laws, estimates from samples, and the best number.

Design note. There are two kinds of functions here.

*Laws* are closed forms. They say how often a design (a vote, a filter, a tournament, a cascade) is right, from how
often its samples, verifiers, judges and stages are. They are ordinary JAX, so a design can be optimised through them by
`jax.grad` before anything is paid. They assume that the samples of one query are independent, and that an answer is
either right or wrong. All wrong answers count as equal, which is the worst case for a vote.

*Estimates* begin with samples. `vote_at_k`, `plurality_at_k` and `pass_at_k` are unbiased. No unbiased estimate exists
for more calls than samples. `fit` takes the answers themselves, since right and wrong alone do not tell how a vote goes
on: whether wrong answers agree decides it. Up to as many calls as there are samples it is unbiased. Beyond them it adds
the change that a model expects, which learns from all questions together how right and wrong answers are distributed;
see `_kinds`. `best_k` says whether the samples suffice to name a best number of calls. `fit_curves` takes measured
accuracies instead, and fits the curves of "Are More LLM Calls All You Need?" (Chen et al., 2024, arXiv 2403.02419) to
each query.

In single precision the laws are right to 1e-5 for up to a hundred calls; `jax.enable_x64` gives more.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc, gammaln, xlog1py, xlogy
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .. import _intervals
from .._text.text import Text
from . import _kinds, _plurality

# -- laws ------------------------------------------------------------------------------------------------------------


@jax.jit
def vote_accuracy(p: ArrayLike, k: ArrayLike) -> jax.Array:
    """How often a vote of `k` samples is right, each of which is right with probability `p`.

    It is `I_p((k + 1) / 2, (k + 1) / 2)`, the regularised incomplete beta function, for odd `k`; a vote of an even
    number, ties broken by the first or at random, is right as often as that of one fewer.

    **Arguments:** arrays that broadcast against each other.

    - `p`: P(right) of one sample.
    - `k`: the number of samples, at least 1.

    **Returns:** P(right) of the vote, of the broadcast shape.
    """
    p, k = _floats(p, k)
    half = jnp.floor((k + 1) / 2)
    # For one or two samples the law is `p` itself. `betainc` would give the same value, but its derivative is undefined
    # at p = 0 and 1. It is given 2 where its value is not used, so that no NaN comes into the gradient from there.
    return jnp.where(half == 1, p, betainc(jnp.maximum(half, 2), jnp.maximum(half, 2), p))


@jax.jit
def mixture_accuracy(shares: ArrayLike, p: ArrayLike, k: ArrayLike) -> jax.Array:
    """How often a vote of `k` is right over queries of several difficulties: `vote_accuracy`, weighted by the shares.

    **Arguments:**

    - `shares`, `p`: `float[levels]`, the share of the queries and P(right) of one sample, for each level.
    - `k`: the number of samples, of any shape.

    **Returns:** P(right) of the vote at a query drawn by the shares, of the shape of `k`.
    """
    shares, p = _floats(shares, p)
    k = jnp.asarray(k)
    accuracies = vote_accuracy(p, k.reshape(*k.shape, 1))
    return jnp.sum(jnp.broadcast_to(shares, accuracies.shape) * accuracies, -1)


Regime = Literal["increasing", "decreasing", "up-down", "down-up"]


def critical_share(p1: ArrayLike, p2: ArrayLike) -> jax.Array:
    """The share of easy queries above which three calls are better than one: `1 - 1/t`.

    **Arguments:** `p1` > 1/2 and `p2` < 1/2, P(right) of one sample at easy and at hard queries.
    """
    p1, p2 = _floats(p1, p2)
    t = p2 * (1 - p2) * (0.5 - p2) / (p1 * (1 - p1) * (p1 - 0.5)) + 1
    return 1 - 1 / t


def regime(share: float, p1: float, p2: float) -> Regime:
    """What more calls do to a vote's accuracy over easy and hard queries.

    Two more calls gain on easy queries an amount proportional to `(p1 (1 - p1))^m`, where m grows with the number of
    calls, and lose on hard queries an amount proportional to `(p2 (1 - p2))^m`. The difference changes its sign at most
    once. With many calls the queries whose accuracy is nearer to 1/2 prevail: the hard ones if `p1 + p2 > 1`.

    **Arguments:**

    - `share`: of easy queries.
    - `p1` > 1/2 and `p2` < 1/2: P(right) of one sample at easy and at hard queries.

    **Returns:** `"increasing"`, `"decreasing"`, `"up-down"` (up to a maximum, then down) or `"down-up"`.
    """
    starts_up = share >= float(critical_share(p1, p2))
    if p1 + p2 > 1:
        return "up-down" if starts_up else "decreasing"
    if p1 + p2 < 1:
        return "increasing" if starts_up else "down-up"
    return "increasing" if starts_up else "decreasing"


def turning_point(share: ArrayLike, p1: ArrayLike, p2: ArrayLike) -> jax.Array:
    """The number of calls at which a vote's accuracy over easy and hard queries turns.

    In the regime `"up-down"` it is where the accuracy is highest, within one of the best odd number of calls; in
    `"down-up"` it is where the accuracy is lowest. In the other two regimes it means nothing. The arguments are those
    of `regime`; they may be arrays, which broadcast.
    """
    share, p1, p2 = _floats(share, p1, p2)
    odds = share * (2 * p1 - 1) / ((1 - share) * (1 - 2 * p2))
    return 2 * jnp.log(odds) / jnp.log(p2 * (1 - p2) / (p1 * (1 - p1)))


@functools.partial(jax.jit, static_argnames="n")
def filter_vote_accuracy(p: ArrayLike, accept_right: ArrayLike, accept_wrong: ArrayLike, n: int) -> jax.Array:
    """How often a vote is right that is held over those of `n` samples that a filter accepts, or over all if it accepts
    none.

    Filtering can hurt: it does if the filter accepts wrong answers more often than right ones.

    **Arguments:** arrays of one shape

    - `p`: P(right) of one sample.
    - `accept_right`, `accept_wrong`: P(accepted) of a right and of a wrong sample.
    - `n`: the number of samples.
    """
    p, right, wrong = (x.reshape(*x.shape, 1) for x in _floats(p, accept_right, accept_wrong))
    accepted = p * right + (1 - p) * wrong
    if_accepted, if_rejected = _ratio(p * right, accepted), _ratio(p * (1 - right), 1 - accepted)
    count = jnp.broadcast_to(jnp.arange(1.0, n + 1), (*p.shape[:-1], n))
    chances = jnp.exp(_log_choose(n, count) + xlogy(count, accepted) + xlog1py(n - count, -accepted))
    some = jnp.sum(chances * vote_accuracy(if_accepted, count), -1)
    return some + ((1 - accepted) ** n * vote_accuracy(if_rejected, n))[..., 0]


@jax.jit
def verifier_accuracy(p: ArrayLike, accept_right: ArrayLike, accept_wrong: ArrayLike, k: ArrayLike) -> jax.Array:
    """How often a sample is right that is picked at random from those of `k` that a verifier accepts, or from all if it
    accepts none.

    The law is of "Networks of Networks" (Davis et al., 2024, arXiv 2407.16831). As `k` grows it tends to P(right) of an
    accepted sample.

    **Arguments:** arrays that broadcast against each other: those of `filter_vote_accuracy`, and `k`, the number of
    samples.
    """
    p, right, wrong, k = _floats(p, accept_right, accept_wrong, k)
    accepted = p * right + (1 - p) * wrong
    none = (1 - accepted) ** k
    return (1 - none) * _ratio(p * right, accepted) + none * _ratio(p * (1 - right), 1 - accepted)


@functools.partial(jax.jit, static_argnames="n")
def knockout_accuracy(p: ArrayLike, judge: ArrayLike, n: int) -> jax.Array:
    """How often the winner of a tournament among `n` samples is right.

    **Arguments:** arrays that broadcast against each other

    - `p`: P(right) of one sample.
    - `judge`: P(the right one wins) where one of a pair is right and one wrong.
    - `n`: the number of samples. Where an odd number is left, the last one goes on, and comes first in the next round,
        as in `non.Knockout`.
    """
    p, judge = _floats(p, judge)
    field = [p] * n
    while len(field) > 1:
        pairs = zip(field[::2], field[1::2], strict=False)
        winners = [a * b + (a * (1 - b) + b * (1 - a)) * judge for a, b in pairs]
        field = field[len(field) - len(field) % 2 :] + winners
    return field[0]


_MOST_VOTERS = 20  # all 2^n outcomes are enumerated, in arrays of that many rows


@jax.jit
def weighted_vote_accuracy(p: Float[ArrayLike, "n"], weights: Float[ArrayLike, "n"] | None = None) -> jax.Array:
    """How often a weighted vote of independent members is right, by enumeration.

    **Arguments:**

    - `p`: P(right) of each.
    - `weights`: the weight of each member's answer. By default it is `log(p / (1 - p))`, which is the best choice
        (Nitzan and Paroush, 1982). Ties go to the first member.

    **Raises:** `ValueError` for more than 20 members.
    """
    p = _floats(p)[0]
    weights = jnp.log(p) - jnp.log1p(-p) if weights is None else _floats(weights)[0]
    if p.ndim != 1 or weights.shape != p.shape or len(p) > _MOST_VOTERS:
        raise ValueError(
            f"weighted_vote_accuracy takes `p` and `weights` of rank 1 and one length, up to {_MOST_VOTERS}, not "
            f"{p.shape} and {weights.shape}."
        )
    right = jnp.asarray(np.indices((2,) * len(p)).reshape(len(p), -1).T, bool)  # one row for each outcome
    chances = jnp.prod(jnp.where(right, *jnp.broadcast_arrays(p, 1 - p, right)[:2]), 1)
    margin = jnp.where(right, *jnp.broadcast_arrays(weights, -weights, right)[:2])
    # A margin below this is taken for a tie: equal weights may differ by rounding when they are added up.
    total, least = jnp.sum(margin, 1), 1e-5 * jnp.sum(jnp.abs(weights))
    wins = jnp.where(jnp.abs(total) <= least, right[:, 0], total > 0)
    return jnp.sum(jnp.where(wins, chances, 0))


class Law(NamedTuple):
    """The accuracy and the cost of a cascade.

    **Fields:**

    - `accuracy`: how often its answer is right.
    - `cost`: the mean of what a query costs.
    """

    accuracy: jax.Array
    cost: jax.Array


@jax.jit
def cascade_law(
    p: Float[ArrayLike, "stages"],
    cost: Float[ArrayLike, "stages"],
    accept_right: Float[ArrayLike, "stages"],
    accept_wrong: Float[ArrayLike, "stages"],
) -> Law:
    """The accuracy and mean cost of a cascade of independent stages, after FrugalGPT (arXiv 2305.05176).

    **Arguments:** `float[stages]`

    - `p`: P(right) of each stage's answer.
    - `cost`: what asking it costs.
    - `accept_right`, `accept_wrong`: P(accepted) of a right and of a wrong answer; the last stage accepts everything,
        whatever is given for it.
    """
    p, cost, right, wrong = _floats(p, cost, accept_right, accept_wrong)
    right, wrong = right.at[-1].set(1), wrong.at[-1].set(1)
    passed_on = 1 - (p * right + (1 - p) * wrong)
    reached = jnp.concatenate([jnp.ones_like(p[:1]), jnp.cumprod(passed_on[:-1])])
    return Law(jnp.sum(reached * p * right), jnp.sum(reached * cost))


@jax.jit
def coverage(p: ArrayLike, k: ArrayLike) -> jax.Array:
    """How often some of `k` samples is right: `1 - (1 - p)^k`. Its estimate from samples is the mean of `pass_at_k`."""
    p, k = _floats(p, k)
    # Two formulas, one on each side of 1/2. For a small p, 1 - (1 - p)^k would lose its digits by cancellation; at p =
    # 1 the logarithm in the other formula has no derivative. Each is given a p from its own side, so that neither
    # brings a NaN into the gradient where it is not used.
    rare, usual = jnp.minimum(p, 0.5), jnp.maximum(p, 0.5)
    return jnp.where(p < 0.5, -jnp.expm1(xlog1py(k, -rare)), 1 - (1 - usual) ** k)


# -- estimates -------------------------------------------------------------------------------------------------------


@jax.jit
def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> jax.Array:
    """The unbiased estimate of `coverage` at `k` from `n` samples of which `c` are right: `1 - C(n-c, k) / C(n, k)`.

    It is computed as a product, which is right where the binomials would overflow (Chen et al., 2021, arXiv
    2107.03374). The arguments are arrays that broadcast against each other. The result is NaN where `k > n`, for which
    there is no unbiased estimate.
    """
    n, c, k = _floats(n, c, k)
    # All k are wrong if the i-th is, given that those before it were: (n - c - i) / (n - i).
    step = lambda i, wrong: wrong * jnp.where(i < k, jnp.maximum(n - c - i, 0) / jnp.maximum(n - i, 1), 1)
    wrong = jax.lax.fori_loop(0, jnp.max(k).astype(int), step, jnp.ones_like(n))
    return jnp.where(k <= n, 1 - wrong, jnp.nan)


@jax.jit
def vote_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> jax.Array:
    """The unbiased estimate of `vote_accuracy` at `k` from `n` samples of which `c` are right.

    It is the share of subsets of `k` of the samples in which a vote is right, if all wrong answers agree; it relates to
    `vote_accuracy` as `pass_at_k` does to `coverage`. `plurality_at_k` is the estimate where they need not agree.

    The arguments are arrays that broadcast against each other. The result is NaN where `k > n`, for which there is no
    unbiased estimate, and for what cannot be (`k < 1`, `c < 0`, `c > n`).
    """
    n, c, k = _floats(n, c, k)
    half = jnp.floor((k + 1) / 2)  # a vote of an even number is right as often as a vote of one fewer
    # Of 2m samples m are right with probability S(m) = C(c, m) C(n-c, m) / C(n, 2m). Only then do the last of them and
    # one more change a vote of 2m - 1: if the one before the last is of one kind and both of these are of the other.
    # So the vote of 2m + 1 gains S(m) / 2 · ((c - m) - (n - c - m)) / (n - 2m) on that of 2m - 1.

    def step(m: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        even, won = carry
        m = m.astype(n.dtype)
        ways = jnp.maximum(c - m + 1, 0) * jnp.maximum(n - c - m + 1, 0) / m**2
        left = jnp.maximum((n - 2 * m + 2) * (n - 2 * m + 1), 1)
        even = even * ways * (2 * m) * (2 * m - 1) / left
        gain = even / 2 * (2 * c - n) / jnp.maximum(n - 2 * m, 1)
        return even, won + jnp.where(m < half, gain, 0)

    start = jnp.ones_like(n), c / jnp.maximum(n, 1)
    _, won = jax.lax.fori_loop(1, jnp.max(half).astype(int), step, start)
    won = jnp.clip(won, 0, 1)  # a sum that is rounded may be just outside
    return jnp.where((k >= 1) & (k <= n) & (c >= 0) & (c <= n), won, jnp.nan)


def plurality_at_k(answers: Any, golds: Any, k: ArrayLike, *, normalize: str | None = "answer") -> jax.Array:
    """The unbiased estimate of how often a vote of `k` answers of each question is right.

    It is the share of subsets of `k` of a question's samples whose most frequent answer is right. All subsets are
    counted, none is drawn. Of answers that are equally frequent the one that was given first wins, as in `non.Vote`;
    over all orders of the samples each of them is first equally often.

    ```python
    scaling.plurality_at_k([["4", "5", "4", "3"]], ["4"], np.arange(1, 5))  # [[1/2, 1/2, 2/3, 1]]
    ```

    **Arguments:**

    - `answers`, `golds`, `normalize`: as of `fit`.
    - `k`: numbers of calls, of any shape.

    **Returns:** `float[questions, *k.shape]`; NaN where `k` is more than the samples, or less than 1.

    **Raises:** as `fit`.
    """
    found = _plurality.tallies(answers, golds, normalize, "scaling.plurality_at_k")
    at = np.asarray(k)
    known = (at >= 1) & (at <= found.samples)
    each = np.stack([_plurality.accuracies(tally) for tally in found.questions])
    return _array(np.where(known, each[:, np.where(known, at, 1) - 1], np.nan))


class BestK(NamedTuple):
    """The best number of calls, and how well it is known.

    **Fields:**

    - `k`: the least odd number of calls whose predicted accuracy is within the tolerance of the best.
    - `low`, `high`: between these is the best number, with the given probability at least.
    - `accuracy`: the predicted accuracy at `k`.
    - `is_known`: whether `loss` is within the margin. If not, these samples cannot tell which number is best.
    - `loss`: how much less accurate than the best number of calls `k` is at most, with the given probability.
    - `reason`: why it is not known, in words; empty if it is only that there are too few questions or samples.
    """

    k: int
    low: int
    high: int
    accuracy: float
    is_known: bool
    loss: float = math.nan
    reason: str = ""

    def __str__(self) -> str:
        if not self.is_known:
            may = (
                f"between {self.low} and {self.high} calls may be best" if self.low < self.high else f"{self.k} may be"
            )
            why = self.reason or "more questions, or more samples of each, would tell"
            return f"not known: {may}, and {self.k} may be up to {100 * self.loss:.1f} points below the best; {why}"
        calls = "1 call is" if self.k == 1 else f"{self.k} calls are"
        return (
            f"{calls} best (between {self.low} and {self.high} calls), with a predicted accuracy of {self.accuracy:.1%}"
        )


class _Curve(NamedTuple):
    """The accuracy at each odd number of calls, as predicted and as it may be: `float64[ks]` and `[draws, ks]`."""

    predicted: np.ndarray
    draws: np.ndarray


def _best(ks: np.ndarray, curves: Sequence[_Curve], level: float, tolerance: float, margin: float) -> BestK:
    """The best of some numbers of calls if each of some curves may be the true one; the first is the one told."""
    _intervals.check_level(level)
    # The first number within the tolerance of the best, and not the best itself: saturated curves go on growing by less
    # than samples can show, and the best would always be the last.
    first = lambda curve: np.argmax(curve >= curve.max(-1, keepdims=True) - tolerance, -1)
    chosen = int(first(curves[0].predicted))
    tail = (1 - level) / 2
    ends = [np.quantile(ks[first(curve.draws)], [tail, 1 - tail], method="nearest") for curve in curves]
    # The number was chosen by the same samples, so a one-sided quantile of this level would be too low.
    lost = [np.quantile(curve.draws.max(1) - curve.draws[:, chosen], 1 - tail) for curve in curves]
    loss, (low, high) = float(max(lost)), (int(np.min(ends)), int(np.max(ends)))
    k = int(ks[chosen])
    return BestK(k, min(low, k), max(high, k), float(curves[0].predicted[chosen]), loss <= margin, loss)


class Scaling(eqx.Module):
    """A model of how the accuracy of each query changes with the number of calls; made by `fit_curves`.

    The accuracy of an easy query is `1 - exp(-a1 k - a2 sqrt(k) - a3)`, of a hard one `exp(-a1 k - a2 sqrt(k) - a3)`.

    **Fields:**

    - `parameters`: `float[queries, 3]`, a1, a2 and a3.
    - `is_easy`: `bool[queries]`.
    """

    parameters: Float[Array, "queries 3"]
    is_easy: Bool[Array, "queries"]

    def accuracies(self, k: ArrayLike) -> jax.Array:
        """The predicted accuracy of every query: `float[queries, *k.shape]`."""
        k = jnp.asarray(k, self.parameters.dtype)
        return _curves(self.parameters, self.is_easy, k, jnp)

    def accuracy(self, k: ArrayLike) -> jax.Array:
        """The predicted accuracy over all queries, of the shape of `k`."""
        return jnp.mean(self.accuracies(k), 0)

    def best_k(
        self,
        max_k: int = 101,
        level: float = 0.95,
        tolerance: float = 1e-3,
        resamples: int = 1000,
        seed: int = 0,
        margin: float = 3e-3,
    ) -> BestK:
        """The best odd number of calls up to `max_k`, and whether it is known.

        What is not known here is which queries are drawn; the curves are taken to be those of the model.

        **Arguments:**

        - `max_k`: the most calls that are considered.
        - `level`: the probability of the interval and of the loss, as 0.95.
        - `tolerance`: how much accuracy may be given up for fewer calls.
        - `resamples`: how often the queries are drawn again, each time as many as there are.
        - `seed`: the seed of these draws.
        - `margin`: up to which loss the best number counts as known.
        """
        ks = np.arange(1, max_k + 1, 2)
        curves = _curves(np.asarray(self.parameters, float), np.asarray(self.is_easy), ks.astype(float), np)
        draws = np.random.default_rng(seed).multinomial(len(curves), np.full(len(curves), 1 / len(curves)), resamples)
        return _best(ks, [_Curve(curves.mean(0), draws @ curves / len(curves))], level, tolerance, margin)


class _Population(NamedTuple):
    """Questions as votes meet them, if wrong answers are distributed in one of some ways.

    **Fields:**

    - `unbiased`: `float64[questions, samples]`, the estimates for votes of 1, 2, ... samples.
    - `kinds`: `int32[draws, questions]`, which kind and P(right) each question may have, see `_kinds.draw`.
    - `wrong`: the ways.
    """

    unbiased: np.ndarray
    kinds: np.ndarray
    wrong: tuple[_kinds.Wrong, ...]

    def modelled(self, ks: np.ndarray) -> np.ndarray:
        """How often votes are right for each kind and P(right): `float64[kinds, ks]`."""
        return _kinds.accuracies(self.wrong, int(ks.max()))[:, ks - 1]

    def each(self, ks: np.ndarray) -> np.ndarray:
        """The accuracy at each question: `float64[questions, ks]`."""
        samples, of_kind = self.unbiased.shape[1], self.modelled(ks)
        expected = np.zeros((self.unbiased.shape[0], len(ks)))
        for kinds in self.kinds:
            expected += of_kind[kinds]
        return np.where(ks <= samples, self.unbiased[:, np.minimum(ks, samples) - 1], expected / len(self.kinds))

    def curve(self, ks: np.ndarray, draws: int, seed: int) -> _Curve:
        """The mean over questions, as it is predicted and as it may be for all that could be asked."""
        samples = self.unbiased.shape[1]
        at = np.minimum(ks, samples)
        gained = self.modelled(ks) - self.modelled(at)
        weights = np.random.default_rng(seed).standard_exponential((draws, len(self.unbiased)))
        weights /= weights.sum(1, keepdims=True)  # the Bayesian bootstrap (Rubin, 1981)
        kinds = [self.kinds[i % len(self.kinds)] for i in range(draws)]
        by_kind = (np.bincount(of, w, len(gained)) for of, w in zip(kinds, weights, strict=True))
        beyond = np.stack([shares @ gained for shares in by_kind])
        mean = self.unbiased.mean(0)[at - 1] + np.bincount(self.kinds.ravel(), minlength=len(gained)) @ gained / (
            self.kinds.size
        )
        return _Curve(np.clip(mean, 0, 1), np.clip(weights @ self.unbiased[:, at - 1] + beyond, 0, 1))

    def interval(self, ks: np.ndarray, level: float, draws: int, seed: int) -> list[_intervals.Interval]:
        """The interval of the mean over all questions that could be asked, for each number of calls."""
        questions, curve = len(self.unbiased), self.curve(ks, draws, seed)
        if questions < 2:
            return [(math.nan, math.nan)] * len(ks)
        # The bootstrap's variance is that of n questions around their mean, which are closer to it by a degree of
        # freedom.
        variance = curve.draws.var(0) * questions / (questions - 1)
        of = lambda mean, spread: _intervals.of_spread(float(mean), float(spread), questions, level)
        return [of(*both) for both in zip(curve.predicted, variance, strict=True)]


_BOOLEANS = (
    "right and wrong alone do not tell whether wrong answers agree: give the answers themselves, "
    "`scaling.fit(answers, golds)`"
)


class VoteScaling:
    """How the accuracy of a vote changes with the number of calls; made by `fit`.

    Up to the number of samples, accuracies are the unbiased estimates of `plurality_at_k`. For more calls, the change
    that the model of `_kinds` expects is added to the estimate for all samples. If it was made of right and wrong
    alone, they are those of the worst case, that all wrong answers of a question agree.
    """

    def __init__(self, worst: _Population, best: _Population | None = None):
        self._worst, self._best = worst, best

    @property
    def samples(self) -> int:
        """How many samples of each question there were."""
        return self._worst.unbiased.shape[1]

    def __repr__(self) -> str:
        questions, samples = self._worst.unbiased.shape
        return f"<VoteScaling: {questions:,} questions, {samples:,} samples of each>"

    def accuracies(self, k: ArrayLike) -> jax.Array:
        """The predicted accuracy of every question: `float[questions, *k.shape]`.

        That of one question is known badly; their mean is known well. Beyond the samples it is the expectation of the
        model, and has no constant added.
        """
        ks, shape = _whole(k)
        return _array(self._worst.each(ks).reshape(-1, *shape))

    def accuracy(self, k: ArrayLike) -> jax.Array:
        """The predicted accuracy over all questions, of the shape of `k`."""
        ks, shape = _whole(k)
        return _array(self._worst.curve(ks, 1, 0).predicted.reshape(shape))

    def interval(
        self, k: ArrayLike, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """An interval of the accuracy over all questions that could be asked, of the shape of `k`.

        It is Wilson's, by the variance of a Bayesian bootstrap over questions, each of a kind that is drawn from what
        its samples leave open. Of right and wrong alone it reaches from the worst case to the best one, in which no
        wrong answer is given twice.

        **Returns:** the interval's two ends; NaN for a single question.

        **Raises:** `ValueError` for a level that is not between 0 and 1.
        """
        _intervals.check_level(level)
        ks, shape = _whole(k)
        found = np.array([population.interval(ks, level, resamples, seed) for population in self._populations])
        low, high = found[:, :, 0].min(0), found[:, :, 1].max(0)
        return _array(low.reshape(shape)), _array(high.reshape(shape))

    def best_k(
        self,
        max_k: int = 101,
        level: float = 0.95,
        tolerance: float = 1e-3,
        resamples: int = 1000,
        seed: int = 0,
        margin: float = 3e-3,
    ) -> BestK:
        """The best odd number of calls up to `max_k`, and whether it is known.

        It is known if no other number is better by more than the margin, at the given level: over questions that are
        drawn again, and over what the samples leave open of each. (Of twenty questions that is too little: in one of
        ten data sets the loss was more than is told. Of fifty and more it held.) Of right and wrong alone it is known
        only if it is the same whether wrong answers agree or not.

        **Arguments:**

        - `max_k`: the most calls that are considered.
        - `level`: the probability of the interval and of the loss, as 0.95.
        - `tolerance`: how much accuracy may be given up for fewer calls.
        - `resamples`: how often the questions are drawn again.
        - `seed`: the seed of these draws.
        - `margin`: up to which loss the best number counts as known.
        """
        ks = np.arange(1, max_k + 1, 2)
        found = _best(ks, [p.curve(ks, resamples, seed) for p in self._populations], level, tolerance, margin)
        return found if found.is_known or self._best is None else found._replace(reason=_BOOLEANS)

    @property
    def _populations(self) -> list[_Population]:
        return [self._worst] if self._best is None else [self._worst, self._best]


def _whole(k: ArrayLike) -> tuple[np.ndarray, tuple[int, ...]]:
    """Numbers of calls as a flat array, and their shape.

    **Raises:** `ValueError` for what is no whole number from 1 on.
    """
    at = np.asarray(k)
    ks = at.astype(int).ravel()
    if not ks.size or (ks < 1).any() or (ks != at.ravel()).any():
        raise ValueError(f"numbers of calls are whole, and at least 1; not {k!r:.60}.")
    return ks, at.shape


def fit(answers: Any, golds: Any = None, *, normalize: str | None = "answer", seed: int = 0) -> VoteScaling:
    """Learns from a few samples of each question how a vote's accuracy changes with their number.

    ```python
    answers = jax.vmap(non.Ensemble(llm, n=20))(questions, keys)
    model = learn.scaling.fit(answers, golds)
    model.accuracy(51), print(model.best_k())
    ```

    Up to as many calls as there are samples the accuracy is the unbiased estimate of `plurality_at_k`. Beyond them the
    change is that of a model, see `_kinds`: samples of a question are independent, it has one right answer (where
    several are given, the most frequent; the others count as wrong there), and how often it is right and how the wrong
    answers spread is learned from all questions together. No number of questions makes up for fewer than five samples.

    **Arguments:**

    - `answers`: the samples: Text of shape `[questions, samples]`, lists of lists of `str`, or integers, which are
        equal where answers are. Leave out questions that have failed samples.
    - `golds`: the right answer of each question, or a list of those that are accepted; or, where a program decides,
        which samples are right: `bool[questions, samples]`. Without it `answers` says which samples are right. Then the
        accuracies are those of the worst case, that all wrong answers agree, and the best number of calls is known only
        if it does not depend on that. Of questions with two answers, give these: `fit(right.astype(int),
        np.ones(len(right), int))`.
    - `normalize`: how words are brought to one form before they are compared, as of `non.Vote`; `None` compares them as
        they are.
    - `seed`: of the draws by which the model is found.

    **Raises:** `TypeError` for answers that are neither words nor integers; `ValueError` for fewer than five samples,
    for other shapes, and for equal answers that are right and wrong; and for a failed sample what it failed with.
    """
    if golds is None:
        samples = np.asarray(answers) if not isinstance(answers, Text) else np.empty(answers.shape, object)
        if samples.dtype != bool or samples.ndim != 2 or not samples.shape[0] or samples.shape[1] < 5:
            raise ValueError(
                "scaling.fit takes answers and golds; or bool[questions, samples], right or wrong, with at least 5 "
                f"samples; not {samples.dtype}{list(samples.shape)} alone."
            )
        counts = [(int(c), samples.shape[1] - int(c)) for c in samples.sum(1)]
        of_right = [(c,) if c else () for c, _ in counts]
        agree = [_plurality.AnswerCounts(r, (w,) if w else ()) for r, (_, w) in zip(of_right, counts, strict=True)]
        differ = [_plurality.AnswerCounts(r, (1,) * w) for r, (_, w) in zip(of_right, counts, strict=True)]
        return VoteScaling(_population(agree, (_kinds.AGREE,), seed), _population(differ, (_kinds.DIFFER,), seed))
    found = _plurality.tallies(answers, golds, normalize, "scaling.fit")
    if found.samples < 5:
        raise ValueError(f"scaling.fit takes at least 5 samples of each question, not {found.samples}.")
    return VoteScaling(_population(found.questions, _kinds.ANY, seed))


def _population(tallies: Sequence[_plurality.AnswerCounts], wrong: tuple[_kinds.Wrong, ...], seed: int) -> _Population:
    unbiased = np.stack([_plurality.accuracies(tally) for tally in tallies])
    return _Population(unbiased, _kinds.draw(tallies, wrong, seed), wrong)


def fit_curves(accuracy: Float[ArrayLike, "queries points"], at: Sequence[int]) -> Scaling:
    """Learns a `Scaling` from measured accuracies, of votes or of anything else that takes a number of calls.

    Each query is fitted by least squares twice, as an easy and as a hard one, and the better fit is taken. As in Chen
    et al., a1 and a2 are at least 1e-6, and the search starts at (1, 1, 1).

    **Arguments:**

    - `accuracy`: of each query, at each number of calls.
    - `at`: these numbers, at least three different ones; odd ones for votes.

    **Raises:** `ValueError` for fewer numbers, for other shapes, and for what is no accuracy.
    """
    measured, points = np.asarray(accuracy, float), np.asarray(at, float)
    if points.ndim != 1 or len(set(points.tolist())) < 3 or measured.ndim != 2 or measured.shape[1:] != points.shape:
        raise ValueError(
            "scaling.fit_curves takes float[queries, points] and at least three different numbers of calls, one for "
            f"each point; not {list(measured.shape)} and {list(at)}."
        )
    if not measured.shape[0] or not np.all((measured >= 0) & (measured <= 1)):
        raise ValueError("scaling.fit_curves takes accuracies in [0, 1], of at least one query; failed rows have none.")
    # Queries with equal measurements have equal fits, so each distinct row is fitted once.
    distinct, of_query = np.unique(measured, axis=0, return_inverse=True)
    fits = [_fit_one(row, points) for row in distinct]
    parameters = np.array([parameters for parameters, _ in fits])[of_query]
    return Scaling(jnp.asarray(parameters, jnp.result_type(float)), jnp.array([easy for _, easy in fits])[of_query])


def _fit_one(measured: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, bool]:
    from scipy.optimize import least_squares  # imported here: it takes a tenth of a second, and only fits need it

    residuals = lambda a, is_easy: _curve(a[0], a[1], a[2], at, is_easy, np) - measured
    bounds = ([1e-6, 1e-6, -np.inf], np.inf)
    tried = [(least_squares(residuals, np.ones(3), bounds=bounds, args=(easy,)), easy) for easy in (True, False)]
    found, is_easy = min(tried, key=lambda result: result[0].cost)
    return found.x, is_easy


def _curves(parameters: Any, is_easy: Any, k: Any, numbers: Any) -> Any:
    """The modelled accuracies `[queries, *k.shape]`, clipped to [0, 1]. `numbers` is `jax.numpy` or `numpy`."""
    shape = (len(parameters), *k.shape)
    of_query = lambda x: numbers.broadcast_to(x.reshape(-1, *(1,) * k.ndim), shape)
    a1, a2, a3, is_easy = (of_query(x) for x in (*parameters.T, is_easy))
    return numbers.clip(_curve(a1, a2, a3, numbers.broadcast_to(k, shape), is_easy, numbers), 0, 1)


def _curve(a1: Any, a2: Any, a3: Any, k: Any, is_easy: Any, numbers: Any) -> Any:
    wrong_or_right = numbers.exp(-(a1 * k + a2 * numbers.sqrt(k) + a3))
    return numbers.where(is_easy, 1 - wrong_or_right, wrong_or_right)


# -- arrays ----------------------------------------------------------------------------------------------------------


def _array(values: np.ndarray) -> jax.Array:
    return jnp.asarray(values, jnp.result_type(float))


def _floats(*values: ArrayLike) -> list[jax.Array]:
    """Arrays of one shape and JAX's own floating type."""
    return jnp.broadcast_arrays(*(jnp.asarray(value, jnp.result_type(float)) for value in values))


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """`part / whole`; 0, with a gradient that is no NaN, where `whole` is 0."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _log_choose(n: ArrayLike, k: ArrayLike) -> jax.Array:
    n, k = _floats(n, k)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


__all__ = [
    "BestK",
    "Law",
    "Regime",
    "Scaling",
    "VoteScaling",
    "cascade_law",
    "coverage",
    "critical_share",
    "filter_vote_accuracy",
    "fit",
    "fit_curves",
    "knockout_accuracy",
    "mixture_accuracy",
    "pass_at_k",
    "plurality_at_k",
    "regime",
    "turning_point",
    "verifier_accuracy",
    "vote_accuracy",
    "vote_at_k",
    "weighted_vote_accuracy",
]


def __dir__() -> list[str]:
    return __all__
