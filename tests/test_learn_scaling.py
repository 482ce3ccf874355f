"""Scaling laws: the published tables, exact enumeration, and what the fit says, and does not say, from few samples."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ember_jax.learn import scaling

# (share of easy queries, P(right) there, P(right) at hard ones): rises to K* and falls.
MIXTURES = [(0.6, 0.85, 0.35), (0.5, 0.8, 0.4)]
PRINTED = 5e-7  # of six digits


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def binomial(p, k):
    """P(c right of k) for c = 0, ..., k."""
    return [math.comb(k, c) * p**c * (1 - p) ** (k - c) for c in range(k + 1)]


def majority(p, k):
    """P(right) of a majority of k, an even split counted as half."""
    return sum(b * (1.0 if 2 * c > k else 0.5 if 2 * c == k else 0.0) for c, b in enumerate(binomial(p, k)))


# -- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mixture", "threshold", "turns", "best", "accuracies"),
    [
        (MIXTURES[0], 0.4333, 4.327, 5, {1: 0.650000, 3: 0.676250, 5: 0.678101, 101: 0.600395}),
        (MIXTURES[1], 0.3333, 5.419, 5, {1: 0.600000, 3: 0.624000, 5: 0.629760, 101: 0.510448}),
    ],
)
def test_the_published_mixtures(x64, mixture, threshold, turns, best, accuracies):
    share, p1, p2 = mixture
    odd = np.arange(1, 103, 2)
    found = scaling.mixture_accuracy([share, 1 - share], [p1, p2], odd)
    for k, accuracy in accuracies.items():
        assert abs(found[k // 2] - accuracy) < PRINTED
    assert odd[np.argmax(found)] == best
    assert abs(scaling.critical_share(p1, p2) - threshold) < 5e-5
    assert abs(scaling.turning_point(share, p1, p2) - turns) < 5e-4
    assert scaling.regime(share, p1, p2) == "up-down"


@pytest.mark.parametrize(
    ("found", "printed"),
    [
        (lambda: scaling.vote_accuracy(0.2, 10), 0.019581),
        (lambda: scaling.filter_vote_accuracy(0.4, 0.9, 0.3, 5), 0.69789),
        (lambda: scaling.vote_accuracy(0.4, 5), 0.31744),
        (lambda: scaling.filter_vote_accuracy(0.7, 0.5, 0.6, 11), 0.78306),
        (lambda: scaling.vote_accuracy(0.7, 11), 0.92178),
        (lambda: scaling.verifier_accuracy(0.3, 0.9, 0.1, 1), 0.30000),
        (lambda: scaling.verifier_accuracy(0.3, 0.9, 0.1, 3), 0.57888),
        (lambda: scaling.verifier_accuracy(0.3, 0.9, 0.1, 10), 0.78238),
        (lambda: scaling.verifier_accuracy(0.3, 0.9, 0.1, 10**6), 0.79412),
        (lambda: scaling.knockout_accuracy(0.3, 0.7, 8), 0.578435),
        (lambda: scaling.weighted_vote_accuracy(np.array([0.8, 0.75, 0.7, 0.65, 0.6])), 0.8537),
        (lambda: scaling.weighted_vote_accuracy(np.array([0.8, 0.75, 0.7, 0.65, 0.6]), np.ones(5)), 0.8401),
        (lambda: scaling.pass_at_k(10, 3, 5), 0.916667),
    ],
)
def test_the_published_numbers(x64, found, printed):
    digits = len(str(printed)) - 2
    assert abs(found() - printed) <= 0.5000001 * 10**-digits


def test_the_published_cascade(x64):
    law = scaling.cascade_law([0.7, 0.8, 0.9], [1, 10, 100], [0.9, 0.9, 1], [0.2, 0.2, 1])
    assert abs(law.accuracy - 0.920160) < PRINTED and abs(law.cost - 11.54) < 5e-3


def test_votes_of_odd_and_even_numbers_in_single_precision():
    p, k = np.array([0.0, 0.2, 0.5, 0.83, 1.0]), np.arange(1, 52)
    found = scaling.vote_accuracy(p[:, None], k[None])
    np.testing.assert_allclose(found, [[majority(x, n) for n in k.tolist()] for x in p.tolist()], atol=2e-5)


def test_the_derivative_of_a_vote(x64):
    slope = lambda p, k: jax.grad(scaling.vote_accuracy)(p, k)
    for p, k in itertools.product([0.2, 0.5, 0.7], [1, 2, 3, 8]):
        m = (k + 1) // 2
        assert abs(slope(p, k) - m * math.comb(2 * m - 1, m) * (p * (1 - p)) ** (m - 1)) < 1e-12
    assert slope(0.0, 1) == slope(1.0, 1) == 1 and slope(0.0, 3) == slope(1.0, 3) == 0


def increments(share, p1, p2, steps=4000):
    """The signs of F(3) - F(1), F(5) - F(3), ...: easy queries' gain against hard ones' loss, in logarithms."""
    m = np.arange(1, steps)
    gain = np.log(share * (2 * p1 - 1)) + m * np.log(p1 * (1 - p1))
    loss = np.log((1 - share) * (1 - 2 * p2)) + m * np.log(p2 * (1 - p2))
    return np.sign(gain - loss)


def test_the_regimes_are_what_the_increments_say():
    draws = np.random.default_rng(0).uniform(size=(200, 3)) * [0.9, 0.48, 0.46] + [0.05, 0.51, 0.02]
    pattern = {(1, 1): "increasing", (-1, -1): "decreasing", (1, -1): "up-down", (-1, 1): "down-up"}
    seen = set()
    for (share, p1, p2), turn in zip(draws.tolist(), scaling.turning_point(*draws.T).tolist(), strict=True):
        signs = increments(share, p1, p2)
        if signs[-1] == np.sign(1 - p1 - p2):  # else it turns later than was looked at
            assert scaling.regime(share, p1, p2) == pattern[signs[0], signs[-1]]
            seen.add(scaling.regime(share, p1, p2))
        turns = np.nonzero(np.diff(signs))[0].tolist()
        if turns:  # signs[i] is of the step from 2 i + 1 calls
            assert len(turns) == 1 and abs(turn - (2 * turns[0] + 3)) < 1 + 1e-3 * turn
    assert seen == set(pattern.values())
    assert scaling.regime(0.6, 0.7, 0.3) == "increasing" and scaling.regime(0.4, 0.7, 0.3) == "decreasing"


def outcomes(p, accept_right, accept_wrong, n):
    """Every way in which n samples are right or wrong and accepted or not, with its probability."""
    for right in itertools.product([True, False], repeat=n):
        for accepted in itertools.product([True, False], repeat=n):
            chance = math.prod(
                (p if r else 1 - p) * (accept if a else 1 - accept)
                for r, a in zip(right, accepted, strict=True)
                for accept in [accept_right if r else accept_wrong]
            )
            yield chance, [r for r, a in zip(right, accepted, strict=True) if a] or right


@pytest.mark.parametrize("n", [1, 4])
def test_filters_and_verifiers_against_enumeration(x64, n):
    p, right, wrong = np.array(
        [(p, *a) for p in (0.0, 0.4, 1.0) for a in [(0.9, 0.3), (0.5, 0.6), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)]]
    ).T
    voted, picked = [], []
    for rates in zip(p, right, wrong, strict=True):
        every = [(chance, sum(kept) / len(kept)) for chance, kept in outcomes(*rates, n)]
        voted.append(sum(chance * (np.sign(share - 0.5) + 1) / 2 for chance, share in every))
        picked.append(sum(chance * share for chance, share in every))
    np.testing.assert_allclose(scaling.filter_vote_accuracy(p, right, wrong, n), voted, atol=1e-12)
    np.testing.assert_allclose(scaling.verifier_accuracy(p, right, wrong, n), picked, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_a_knockout_against_enumeration(n):
    def winner(game, right):
        """P(right) of a game's winner, when it is known which candidates are right."""
        if isinstance(game, int):
            return float(right[game])
        a, b = (winner(side, right) for side in game)
        return a * b + (a + b - 2 * a * b) * 0.8

    game = {1: 0, 2: (0, 1), 3: (2, (0, 1)), 5: ((2, 3), (4, (0, 1))), 6: ((4, 5), ((0, 1), (2, 3)))}[n]
    every = itertools.product([True, False], repeat=n)
    expected = sum(0.3 ** sum(f) * 0.7 ** (n - sum(f)) * winner(game, f) for f in every)
    assert abs(scaling.knockout_accuracy(0.3, 0.8, n) - expected) < 1e-6


def test_no_weights_are_better_than_log_odds_and_ties_go_to_the_first():
    p = jnp.array([0.8, 0.7, 0.7, 0.6])
    best = scaling.weighted_vote_accuracy(p)
    for weights in np.random.default_rng(0).normal(size=(20, 4)):
        assert scaling.weighted_vote_accuracy(p, weights) <= best + 1e-6
    assert scaling.weighted_vote_accuracy(jnp.array([0.9, 0.6]), jnp.ones(2)) == np.float32(0.9)
    with pytest.raises(ValueError, match="up to 20"):
        scaling.weighted_vote_accuracy(jnp.full(21, 0.6))


def test_coverage_keeps_small_probabilities_and_has_derivatives_at_the_ends():
    np.testing.assert_allclose(scaling.coverage(1e-6, 10), 1 - (1 - 1e-6) ** 10, rtol=1e-5)
    np.testing.assert_allclose(scaling.coverage([0.3, 1.0, 0.7], [4, 1, 2]), [1 - 0.7**4, 1, 1 - 0.3**2], rtol=1e-6)
    slope = jax.vmap(jax.grad(scaling.coverage))
    np.testing.assert_allclose(slope(jnp.array([0.0, 0.8, 1.0]), jnp.array([3.0, 2.0, 1.0])), [3, 0.4, 1], rtol=1e-5)


@pytest.mark.parametrize(
    "law",
    [
        lambda p: scaling.verifier_accuracy(p, 0.9, 0.2, 4),
        lambda p: scaling.knockout_accuracy(p, 0.8, 5),
        lambda p: scaling.weighted_vote_accuracy(jnp.stack([p, p, p * p])),
        lambda p: scaling.cascade_law(jnp.stack([p, p]), [1, 10], [0.9, 1], [0.2, 1]).accuracy,
    ],
)
def test_laws_are_ordinary_jax(law):
    p = jnp.array([0.3, 0.6])
    slope = jax.jit(jax.vmap(jax.grad(law)))(p)
    law = jax.vmap(law)
    np.testing.assert_allclose(slope, (law(p + 1e-2) - law(p - 1e-2)) / 2e-2, rtol=5e-3)


# -- estimates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.45, 0.9])
def test_estimates_from_samples_are_unbiased(x64, p):
    n = 9
    for k in range(1, n + 1):
        votes = [scaling.vote_at_k(n, c, k) for c in range(n + 1)]
        assert abs(np.dot(binomial(p, n), votes) - majority(p, k)) < 1e-12
        passes = scaling.pass_at_k(n, np.arange(n + 1), k)
        assert abs(np.dot(binomial(p, n), passes) - (1 - (1 - p) ** k)) < 1e-12


def test_pass_at_k_of_large_numbers_is_exact_in_single_precision():
    exact = 1 - math.comb(19_700, 500) / math.comb(20_000, 500)
    np.testing.assert_allclose(scaling.pass_at_k(20_000, 300, 500), exact, rtol=1e-4)
    assert np.isnan(scaling.pass_at_k(3, 1, 4))
    with pytest.raises(ValueError, match="k <= n"):
        scaling.vote_at_k(3, 1, 4)


def samples(p, count, seed):
    draws = np.random.default_rng(seed)
    return draws.uniform(size=(len(p), count)) < np.asarray(p)[:, None]


def of_mixture(mixture, count, seed):
    share, p1, p2 = mixture
    return np.where(np.arange(count) < share * count, p1, p2)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_model_of_the_paper_finds_the_best_number_from_curves(mixture):
    at = [2, 5, 10, 20, 50, 100]
    p = of_mixture(mixture, 10, 0)
    model = scaling.fit_curves([[majority(x, k) for k in at] for x in p.tolist()], at)
    assert model.best_k().k == 5
    np.testing.assert_array_equal(model.is_easy, p > 0.5)
    share, p1, p2 = mixture
    truth = scaling.mixture_accuracy([share, 1 - share], [p1, p2], jnp.array([5, 19, 101]))
    np.testing.assert_allclose(model.accuracy(jnp.array([5, 19, 101])), truth, atol=6e-3)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("seed", range(3))
def test_twenty_samples_of_two_hundred_queries_tell_the_best_number(mixture, seed):
    p = of_mixture(mixture, 200, seed)
    model = scaling.fit(samples(p, 20, seed))
    best = model.best_k()
    assert abs(best.k - 5) <= 2 and best.low <= 5 <= best.high
    k = jnp.array([1, 5, 19])
    truth = scaling.mixture_accuracy([mixture[0], 1 - mixture[0]], mixture[1:], k)
    np.testing.assert_allclose(model.accuracy(k), truth, atol=0.035)  # four standard errors or more
    assert best.is_known == (best.k - best.low <= 2 and best.high - best.k <= 2)


def test_many_queries_make_the_best_number_known():
    best = scaling.fit(samples(of_mixture(MIXTURES[0], 2000, 0), 20, 0)).best_k()
    assert best.is_known and str(best).startswith(f"{best.k} calls are best (between {best.low} and {best.high}")


@pytest.mark.parametrize("seed", range(3))
def test_few_queries_near_a_half_tell_nothing_and_that_is_said(seed):
    p = np.random.default_rng(seed).uniform(0.4, 0.6, 30)
    best = scaling.fit(samples(p, 10, seed)).best_k()
    assert not best.is_known and best.high - best.low > 4
    assert str(best).startswith("not known: between")


def test_what_is_saturated_asks_for_no_more_calls():
    best = scaling.fit(samples(np.full(100, 0.95), 20, 0)).best_k(max_k=51)
    assert best.is_known and best.k <= 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling.fit(np.ones((10, 4), bool)), "at least 5 samples"),
        (lambda: scaling.fit(np.ones((10, 9))), "bool"),
        (lambda: scaling.fit(np.ones((0, 9), bool)), r"bool\[0, 9\]"),
        (lambda: scaling.fit(np.ones((2, 9), bool), at=[1, 3, 11]), "k <= n"),
        (lambda: scaling.fit_curves(np.ones((10, 2)), [1, 3]), "three different"),
        (lambda: scaling.fit_curves(np.ones((10, 3)), [1, 1, 3]), "three different"),
        (lambda: scaling.fit_curves(np.full((10, 3), np.nan), [1, 3, 5]), "accuracies"),
    ],
)
def test_errors_say_what_is_taken(call, message):
    with pytest.raises(ValueError, match=message):
        call()
