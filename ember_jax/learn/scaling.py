"""How accuracy grows, or falls, with the number of calls: exact laws, estimates from samples, and the best number.

Design note. There are two kinds of functions here.

*Laws* are closed forms. They say how often a design (a vote, a filter, a tournament, a cascade) is right, from how
often its samples, verifiers, judges and stages are. They are ordinary JAX, so a design can be optimised through them by
`jax.grad` before anything is paid. They assume that the samples of one query are independent, and that an answer is
either right or wrong. All wrong answers count as equal, which is the worst case for a vote.

*Estimates* begin with samples. `vote_at_k` and `pass_at_k` are unbiased. No unbiased estimate exists for more calls
than samples: P(right) of a vote of k is a polynomial of degree k in the accuracy of a query, and n samples tell only
the first n moments of how accuracies are spread over queries. Beyond the samples `fit` extrapolates by a model for each
query, after "Are More LLM Calls All You Need?" (Chen et al., 2024, arXiv 2403.02419). `best_k` says, by a bootstrap
over queries, whether the samples suffice to name a best number of calls.

The model has a known error. At a query whose accuracy is near 1/2 it takes chance for skill, so far beyond the samples
its curves are too flat: 0.60 at 101 calls, from twenty samples of a mixture whose truth is 0.51. The best number of
calls comes out right there, because it is near the samples.

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


@functools.lru_cache(maxsize=65536)  # a data set has few different counts
def vote_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of `vote_accuracy` at `k` from `n` samples of which `c` are right.

    It is the share of subsets of `k` of the samples in which a vote is right; it relates to `vote_accuracy` as
    `pass_at_k` does to `coverage`. It is exact, and takes and returns Python numbers.

    **Raises:** `ValueError` unless `0 <= c <= n` and `1 <= k <= n`; for `k` above `n` there is no unbiased estimate.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"vote_at_k(n={n}, c={c}, k={k}): it takes 0 <= c <= n and 1 <= k <= n.")
    half = (k + 1) // 2
    subset = 2 * half - 1  # a vote of an even number is right as often as a vote of one fewer
    won = sum(math.comb(c, right) * math.comb(n - c, subset - right) for right in range(half, subset + 1))
    return won / math.comb(n, subset)


class BestK(NamedTuple):
    """The best number of calls, and how well it is known.

    **Fields:**

    - `k`: the least odd number of calls whose accuracy is within the tolerance of the best.
    - `low`, `high`: the interval of `k` over bootstrap samples of the queries, at the given level.
    - `accuracy`: the predicted accuracy at `k`.
    - `is_known`: whether `low` and `high` are at most 2 from `k`, which is one step between odd numbers. If not, these
        samples cannot tell which number is best.
    """

    k: int
    low: int
    high: int
    accuracy: float
    is_known: bool

    def __str__(self) -> str:
        interval = f"between {self.low} and {self.high} calls"
        if not self.is_known:
            return f"not known: {interval} may be best; more queries, or more samples of each, would tell"
        return f"{self.k} calls are best ({interval}), with a predicted accuracy of {self.accuracy:.1%}"


class Scaling(eqx.Module):
    """A model of how the accuracy of each query changes with the number of calls; made by `fit`.

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
        self, max_k: int = 101, level: float = 0.95, tolerance: float = 1e-3, resamples: int = 1000, seed: int = 0
    ) -> BestK:
        """The best odd number of calls up to `max_k`, and whether it is known.

        **Arguments:**

        - `max_k`: the most calls that are considered.
        - `level`: the probability of the interval, as 0.95.
        - `tolerance`: how much accuracy may be given up for fewer calls.
        - `resamples`: how often the queries are drawn again, each time as many as there are.
        - `seed`: the seed of these draws.
        """
        ks = np.arange(1, max_k + 1, 2)
        curves = _curves(np.asarray(self.parameters, float), np.asarray(self.is_easy), ks.astype(float), np)
        draws = np.random.default_rng(seed).multinomial(len(curves), np.full(len(curves), 1 / len(curves)), resamples)
        means = np.concatenate([curves.mean(0, keepdims=True), draws @ curves / len(curves)])
        # The first number within the tolerance of the best, and not the best itself: saturated curves go on growing by
        # less than samples can show, and the best would always be `max_k`.
        best = ks[np.argmax(means >= means.max(1, keepdims=True) - tolerance, axis=1)]
        k = int(best[0])
        tail = (1 - level) / 2
        low, high = (int(q) for q in np.quantile(best[1:], [tail, 1 - tail], method="nearest"))
        return BestK(k, low, high, float(means[0, best[0] // 2]), k - low <= 2 and high - k <= 2)


# The numbers of calls at which votes are fitted by default. They are odd: at an even number a vote is no better than
# with one call fewer, and the model, a smooth curve, has no such steps.
_AT = (1, 3, 5, 9, 19, 49, 99)


def fit(right: Bool[ArrayLike, "queries samples"], at: Sequence[int] | None = None) -> Scaling:
    """Learns from a few samples of each query how a vote's accuracy changes with their number.

    ```python
    answers = jax.vmap(non.Ensemble(llm, n=20))(questions, keys)
    model = learn.scaling.fit(jax.vmap(lambda answers, gold: answers == gold)(answers, golds))
    model.accuracy(51), print(model.best_k())
    ```

    The accuracy at fewer calls than samples is estimated by `vote_at_k`, and `fit_curves` does the rest. Twenty samples
    of two hundred queries are enough where queries are easy or hard; no number of queries makes up for fewer than five
    samples.

    **Arguments:**

    - `right`: which samples are right. Leave out queries that have failed samples. If wrong answers differ among
        themselves, a vote is better than this predicts; measure such votes and give their accuracy to `fit_curves`.
    - `at`: numbers of calls at which the model is fitted; by default those of 1, 3, 5, 9, 19, 49 and 99 that there are
        samples for.

    **Raises:** `ValueError` for fewer than five samples, and for what is not right or wrong.
    """
    samples = np.asarray(right)
    if samples.dtype != bool or samples.ndim != 2 or not samples.shape[0] or samples.shape[1] < 5:
        raise ValueError(
            f"scaling.fit takes bool[queries, samples], right or wrong, with at least 5 samples; not {samples.dtype}"
            f"{list(samples.shape)}."
        )
    n = samples.shape[1]
    points = [k for k in _AT if k <= n] if at is None else list(at)
    return fit_curves(np.array([[vote_at_k(n, c, k) for k in points] for c in samples.sum(1).tolist()]), points)


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


def _floats(*values: ArrayLike) -> list[jax.Array]:
    """Arrays of one shape and JAX's own floating type."""
    return jnp.broadcast_arrays(*(jnp.asarray(value, jnp.result_type(float)) for value in values))


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """`part / whole`; 0, with a gradient that is no NaN, where `whole` is 0."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _log_choose(n: ArrayLike, k: ArrayLike) -> jax.Array:
    n, k = _floats(n, k)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
