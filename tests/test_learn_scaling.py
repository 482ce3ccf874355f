"""Scaling laws: the published tables, exact enumeration, and what the fit says, and does not say, from few samples."""

import collections
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import non
from ember_jax.learn import _kinds, _plurality, scaling

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
        votes = scaling.vote_at_k(n, np.arange(n + 1), k)
        assert abs(np.dot(binomial(p, n), votes) - majority(p, k)) < 1e-12
        passes = scaling.pass_at_k(n, np.arange(n + 1), k)
        assert abs(np.dot(binomial(p, n), passes) - (1 - (1 - p) ** k)) < 1e-12


def test_pass_at_k_of_large_numbers_is_exact_in_single_precision():
    exact = 1 - math.comb(19_700, 500) / math.comb(20_000, 500)
    np.testing.assert_allclose(scaling.pass_at_k(20_000, 300, 500), exact, rtol=1e-4)
    assert np.isnan(scaling.pass_at_k(3, 1, 4))


def test_votes_of_subsets_broadcast_and_are_counted_exactly():
    n, c, k = np.array([[7], [20], [100]])[:, None], np.array([[0], [3], [7]])[None], np.arange(1, 8)

    def share(n, c, k):
        votes = 2 * ((k + 1) // 2) - 1
        ways = sum(math.comb(c, r) * math.comb(n - c, votes - r) for r in range(votes // 2 + 1, votes + 1))
        return ways / math.comb(n, votes)

    exact = np.vectorize(share)(*np.broadcast_arrays(n, c, k))
    np.testing.assert_allclose(scaling.vote_at_k(n, c, k), exact, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(scaling.vote_at_k, (None, None, 0)))(100, 55, np.arange(1, 100))[-1],
                               share(100, 55, 99), atol=1e-5)  # fmt: skip
    assert float(scaling.vote_at_k(3, 2, 3)) == 1.0
    none = scaling.vote_at_k([3, 3, 3, 3], [1, -1, 4, 1], [4, 1, 1, 0])
    assert np.isnan(none).all()


def test_a_vote_of_words_counts_every_subset_in_every_order():
    answers = ["4", "5", "4", "3", "5", "7"]
    golds = ["5", "4", "9"]
    found = scaling.plurality_at_k([answers] * 3, golds, np.arange(1, 8))
    for gold, row in zip(golds, found, strict=True):
        for k in range(1, 7):
            won = [collections.Counter(some).most_common(1)[0][0] for some in itertools.permutations(answers, k)]
            assert row[k - 1] == pytest.approx(np.mean([w == gold for w in won]), abs=1e-6)
    assert np.isnan(found[:, 6]).all()
    documented = scaling.plurality_at_k([["4", "5", "4", "3"]], ["4"], np.arange(1, 5))
    np.testing.assert_allclose(documented, [[1 / 2, 1 / 2, 2 / 3, 1]], atol=1e-6)


def test_ties_are_broken_as_non_vote_breaks_them():
    orders = list(itertools.permutations(["a", "b", "b", "a", "c"]))
    chosen = jax.vmap(non.Vote(ember.LLM("sim/small"), n=5).choose)(ember.text(orders)).tolist()
    share = np.mean([answer == "b" for answer in chosen])
    assert share == scaling.plurality_at_k([orders[0]], ["b"], 5)[0] == 0.5


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_a_vote_of_words_is_unbiased(x64, k):
    p, n = [0.4, 0.35, 0.25], 5
    every = list(itertools.product(range(3), repeat=n))
    chances = np.array([math.prod(p[a] for a in answers) for answers in every])
    won = [collections.Counter(answers[:k]).most_common(1)[0][0] == 0 for answers in every]
    found = scaling.plurality_at_k(np.array(every), np.zeros(len(every), int), k)
    assert chances @ np.asarray(found) == pytest.approx(chances @ np.array(won), abs=1e-12)


def test_two_answers_are_votes_of_right_and_wrong():
    draws = samples(np.linspace(0, 1, 9), 21, 0)
    k = np.arange(1, 22, 2)
    found = scaling.plurality_at_k(draws.astype(int), np.ones(9, int), k)
    np.testing.assert_allclose(found, scaling.vote_at_k(21, draws.sum(1)[:, None], k), atol=1e-5)


def test_answers_are_words_integers_or_text_and_several_may_be_right():
    words = [["Paris", "the Paris.", "Rome", "paris"], ["1", "2", "2", "1"]]
    k = np.array([1, 3, 4])
    of = lambda answers, golds, **how: np.asarray(scaling.plurality_at_k(answers, golds, k, **how))
    expected = of([[0, 0, 1, 0], [0, 1, 1, 0]], [0, 0])
    np.testing.assert_array_equal(of(words, ["paris", 1]), expected)
    np.testing.assert_array_equal(of(ember.text(words), ember.text(["PARIS", "1"])), expected)
    np.testing.assert_array_equal(of(jnp.array([[0, 0, 1, 0], [0, 1, 1, 0]]), jnp.array([0, 0])), expected)
    np.testing.assert_array_equal(of(words, [[True, True, False, True], [True, False, False, True]]), expected)
    np.testing.assert_array_equal(of(words, [["paris", "rome"], "2"])[:, 0], [1, 0.5])
    assert of(words, ["paris", "1"], normalize=None)[0, 0] == 0.25


def samples(p, count, seed):
    draws = np.random.default_rng(seed)
    return draws.uniform(size=(len(p), count)) < np.asarray(p)[:, None]


def as_words(right):
    """Answers of questions with one wrong answer, and what is right."""
    return right.astype(int), np.ones(len(right), int)


def of_mixture(mixture, count, seed):
    share, p1, p2 = mixture
    return np.where(np.arange(count) < share * count, p1, p2)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_model_of_the_paper_finds_the_best_number_from_curves(mixture):
    at = [2, 5, 10, 20, 50, 100]
    p = of_mixture(mixture, 10, 0)
    model = scaling.fit_curves([[majority(x, k) for k in at] for x in p.tolist()], at)
    best = model.best_k()
    assert best.k == 5 and best.low <= 5 <= best.high
    np.testing.assert_array_equal(model.is_easy, p > 0.5)
    share, p1, p2 = mixture
    truth = scaling.mixture_accuracy([share, 1 - share], [p1, p2], jnp.array([5, 19, 101]))
    np.testing.assert_allclose(model.accuracy(jnp.array([5, 19, 101])), truth, atol=6e-3)


# -- from words: oracles ---------------------------------------------------------------------------------------------


def competition(wrong, k, least=0):
    """P(right wins) when it has j of k votes, and the others are drawn from `wrong`, for each j, by polynomials.

    Fewer than j of each wrong answer, or j of t of them, which the right one survives in one of t + 1 orders: the
    integral of y^t, by a quadrature that is exact for up to eleven ties.
    """
    nodes, weights = np.polynomial.legendre.leggauss(6)
    nodes, weights = (nodes + 1) / 2, weights / 2
    won = np.zeros(k + 1)
    logs = np.array([math.lgamma(i + 1) for i in range(k + 1)])
    for j in range(max(1, least), k + 1):
        left = k - j
        i = np.arange(min(j, left) + 1)
        # Divided by the largest terms, so that neither the powers nor the factorials leave the range of floats.
        terms = np.exp(i * np.log(np.asarray(wrong)[:, None] * max(left, 1)) - logs[i])
        terms /= terms.sum(1, keepdims=True)
        scale = np.log(np.exp(i * np.log(np.asarray(wrong)[:, None] * max(left, 1)) - logs[i]).sum(1)).sum()
        total = 0.0
        for y, weight in zip(nodes, weights, strict=True):
            product = np.ones(1)
            for row in terms:
                row = row.copy()
                if len(row) == j + 1:
                    row[j] *= y
                product = np.convolve(product, row)[: left + 1]
            total += weight * (product[left] if len(product) > left else 0.0)
        if total > 0:
            won[j] = math.exp(math.log(total) + scale + logs[left] - left * math.log(max(left, 1)))
    return won


def exact_votes(p, wrong, ks):
    """The accuracy of votes at questions with P(right) `p`, and wrong answers in the shares `wrong`."""
    p = np.asarray(p)
    if len(wrong) == 1:
        return np.array([np.mean(scaling.vote_accuracy(p, k)) for k in ks])
    found = []
    for k in ks:
        j = np.arange(k + 1)
        ways = np.array([math.lgamma(k + 1) - math.lgamma(i + 1) - math.lgamma(k - i + 1) for i in j])
        inside = np.clip(p, 1e-12, 1 - 1e-12)[:, None]
        right = np.exp(ways + j * np.log(inside) + (k - j) * np.log1p(-inside))
        relevant = int(np.flatnonzero(right.max(0) > 1e-9)[0])
        found.append(float((right @ competition(wrong, k, relevant)).mean()))
    return np.array(found)


def test_the_oracle_of_words_is_enumeration():
    p, wrong = 0.4, np.array([0.5, 0.3, 0.2])
    every = np.concatenate([[p], (1 - p) * wrong])
    for k in (1, 2, 3, 5):
        outcomes = itertools.product(range(4), repeat=k)
        won = sum(math.prod(every[list(o)]) for o in outcomes if collections.Counter(o).most_common(1)[0][0] == 0)
        assert exact_votes([p], wrong, [k])[0] == pytest.approx(won, abs=1e-9)


TWENTY = np.full(20, 1 / 20)
HEAVY = np.arange(1, 41) ** -1.5 / (np.arange(1, 41) ** -1.5).sum()


def beta(a, b, count):
    """P(right) of questions: quantiles of a beta distribution."""
    grid = np.linspace(0, 1, 20_001)[1:-1]
    up_to = np.cumsum(grid ** (a - 1) * (1 - grid) ** (b - 1))
    return np.interp((np.arange(count) + 0.5) / count, up_to / up_to[-1], grid)


FAMILIES = {
    "one competes, easy and hard": (lambda n: of_mixture(MIXTURES[0], n, 0), np.ones(1)),
    "one competes, and more are near": (lambda n: beta(5, 3, n), np.ones(1)),
    "twenty different, hard": (lambda n: beta(1, 3, n), TWENTY),
    "twenty different, simulated": (lambda n: np.full(n, 0.45), TWENTY),
    "heavy tail": (lambda n: beta(2, 3, n), HEAVY),
}


def words(p, wrong, count, seed):
    """Answers by number: 0 is right."""
    draw = np.random.default_rng(seed)
    right = draw.uniform(size=(len(p), count)) < np.asarray(p)[:, None]
    return np.where(right, 0, 1 + draw.choice(len(wrong), (len(p), count), p=wrong))


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_samples_predict_votes_of_nineteen_and_of_hundreds(family):
    skill, wrong = FAMILIES[family]
    p, ks = skill(1000), np.array([5, 19, 99, 259])
    model = scaling.fit(words(p, wrong, 20, 0), np.zeros(len(p), int))
    truth = exact_votes(p, wrong, ks)
    np.testing.assert_allclose(model.accuracy(ks), truth, atol=0.025)
    best = model.best_k(101)
    some = np.array([1, 3, 5, 9, 19, 35, 51, 75, 101])
    some = np.unique([*some, best.k])
    exact = dict(zip(some.tolist(), exact_votes(p, wrong, some), strict=True))
    assert not best.is_known or max(exact.values()) - exact[best.k] < 0.003


def test_the_simulated_models_own_wrong_answers_make_votes_better_and_better():
    """Of easy and hard questions, which one wrong answer would make worse from 5 calls on: with twenty of them a vote
    goes from 83 % at 5 calls to 99 % at 21. It is not that 3 calls are best."""
    p = of_mixture(MIXTURES[0], 300, 1)
    model = scaling.fit(words(p, TWENTY, 20, 1), np.zeros(300, int))
    truth = exact_votes(p, TWENTY, [5, 21])
    assert truth == pytest.approx([0.835, 0.989], abs=0.001)
    np.testing.assert_allclose(model.accuracy(np.array([5, 21])), truth, atol=0.025)
    best = model.best_k()
    assert best.k >= 15 and best.accuracy > 0.98
    # The same as right and wrong alone: nothing is claimed, and the reason is told.
    alone = scaling.fit(words(p, TWENTY, 20, 1) == 0).best_k()
    assert not alone.is_known and alone.low <= 5 and alone.high >= best.k - 6
    assert "do not tell whether wrong answers agree" in str(alone)


def test_answers_that_are_seldom_right_double_with_votes_if_errors_scatter():
    """As in a game of 24: one sample of 25 is right, most errors are made once, and a vote of 99 is right twice as
    often. One call is not best, and right and wrong alone cannot say so."""
    draw = np.random.default_rng(0)
    p = np.where(np.arange(100) < 60, 0.0, draw.beta(1.0, 8.0, 100))
    errors = np.arange(1, 201) ** -0.4 / (np.arange(1, 201) ** -0.4).sum()
    answers = words(p, errors, 100, 0)
    model = scaling.fit(answers, np.zeros(100, int))
    one, many = model.accuracy(np.array([1, 99]))
    assert 0.03 < one < 0.06 and many > 2 * one
    best = model.best_k()
    assert not best.is_known or best.k > 21
    assert best.high > 41
    alone = scaling.fit(answers == 0).best_k()
    assert (alone.k, alone.is_known) == (1, False) and alone.high > 41
    some = draw.permuted(answers, axis=1)[:, :20]
    low, high = scaling.fit(some, np.zeros(100, int)).interval(99)
    assert low < many < high


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("seed", range(2))
def test_twenty_samples_of_two_hundred_queries_tell_where_the_best_number_is(mixture, seed):
    p = of_mixture(mixture, 200, seed)
    model = scaling.fit(*as_words(samples(p, 20, seed)))
    best = model.best_k()
    assert abs(best.k - 5) <= 2 and best.low <= 5 <= best.high
    k = jnp.array([1, 5, 19])
    truth = scaling.mixture_accuracy([mixture[0], 1 - mixture[0]], mixture[1:], k)
    np.testing.assert_allclose(model.accuracy(k), truth, atol=0.035)  # four standard errors or more
    low, high = model.interval(k)
    assert np.all((low < truth) & (truth < high))
    assert best.is_known == (best.loss <= 3e-3)
    assert model.accuracies(k).shape == (200, 3) and model.samples == 20
    np.testing.assert_allclose(model.accuracies(k).mean(0), model.accuracy(k), atol=1e-6)


def test_many_queries_make_the_best_number_known():
    best = scaling.fit(*as_words(samples(of_mixture(MIXTURES[0], 4000, 0), 20, 0))).best_k()
    assert best.is_known and str(best).startswith(f"{best.k} calls are best (between {best.low} and {best.high}")
    assert abs(best.k - 5) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_few_queries_near_a_half_tell_nothing_and_that_is_said(seed):
    p = np.random.default_rng(seed).uniform(0.4, 0.6, 30)
    best = scaling.fit(*as_words(samples(p, 10, seed))).best_k()
    assert not best.is_known and best.high - best.low > 4
    assert re.match(
        r"not known: between \d+ and \d+ calls may be best, and \d+ may be up to [\d.]+ points below", str(best)
    )
    assert str(best).endswith("more questions, or more samples of each, would tell")


def test_what_is_saturated_is_known_from_right_and_wrong_alone():
    right = samples(np.full(200, 0.97), 20, 0)
    best = scaling.fit(right).best_k(max_k=51)
    assert best.is_known and best.k <= 9
    # And what they tell of a vote is the worst case.
    k = np.array([1, 5, 19])
    worst = scaling.fit(*as_words(right)).accuracy(k)
    np.testing.assert_allclose(scaling.fit(right).accuracy(k), worst, atol=1e-6)
    low, high = scaling.fit(samples(np.full(100, 0.45), 20, 0)).interval(np.array([19, 101]))
    truth = exact_votes([0.45], TWENTY, [19, 101])
    assert np.all(low < 0.35) and np.all(high > truth - 0.001)


def test_an_interval_of_a_prediction_covers_what_it_predicts():
    """Of 24 data sets of 40 questions, far beyond the samples. An interval of 95 % holds in less than 20 of 24 with a
    probability of 0.006."""
    k, held = np.array([5, 99]), np.zeros(2)
    truth = exact_votes(beta(1, 3, 2000), TWENTY, k)
    for seed in range(24):
        p = np.random.default_rng([1, seed]).beta(1, 3, 40)
        low, high = scaling.fit(words(p, TWENTY, 20, seed), np.zeros(40, int)).interval(k)
        held += np.asarray((low <= truth) & (truth <= high))
    assert np.all(held >= 20)


def test_right_and_wrong_and_the_samples_of_everything_right():
    model = scaling.fit(np.zeros((20, 20), int), np.zeros(20, int))
    assert float(model.accuracy(51)) == pytest.approx(1.0, abs=1e-3)
    low, high = model.interval(1)
    assert (low, high) == pytest.approx((0.8389, 1.0), abs=1e-3)  # Wilson's, of 20 of 20
    assert model.best_k().k == 1 and str(model.best_k()).startswith("1 call is best")
    assert repr(model) == "<VoteScaling: 20 questions, 20 samples of each>"


# -- kinds of questions ----------------------------------------------------------------------------------------------


def partitions(n, most=None):
    if n == 0:
        yield ()
    for first in range(min(n, most or n), 0, -1):
        for rest in partitions(n - first, first):
            yield (first, *rest)


def arrangements(counts):
    """In how many ways samples can be put into sets of these sizes."""
    ways = math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))
    return ways // math.prod(math.factorial(times) for times in collections.Counter(counts).values())


def test_the_chances_of_partitions_add_up_to_one():
    tails = [(w.discount, w.strength) for w in _kinds.ANY if w.attracts == 0]
    by_tail = _kinds._Partitions(tails, 6)
    total = sum(arrangements(counts) * np.exp(by_tail.log_chance(counts)) for counts in partitions(6))
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    # Two answers drawn uniformly with three of them: 1 / 9 for the same set of three samples, by hand.
    uniform = _kinds._Partitions([(-1e6, 3e6)], 3)
    assert np.exp(uniform.log_chance((3,))) == pytest.approx(1 / 9, rel=1e-4)
    assert np.exp(uniform.log_chance((2, 1))) == pytest.approx(2 / 9, rel=1e-4)


def test_votes_of_a_kind_are_what_is_known_of_it():
    ks = np.arange(1, 100)
    one = _kinds.accuracies((_kinds.AGREE,), 99)[:: _kinds._FINER]
    odd = ks[::2]
    exact = scaling.vote_accuracy(_kinds._POINTS[:, None], odd)
    np.testing.assert_allclose(one[:, odd - 1], exact, atol=1e-4)
    never_twice = _kinds.accuracies((_kinds.DIFFER,), 99)[:: _kinds._FINER]
    q = 1 - _kinds._POINTS[:, None]
    # None right, or one right that is not the first of k different answers.
    lost = q**ks + ks * (1 - q) * q ** (ks - 1) * (1 - 1 / ks)
    np.testing.assert_allclose(never_twice, 1 - lost, atol=1e-9)
    twenty = _kinds.accuracies((_kinds._uniform(20, 1000.0),), 99)[:: _kinds._FINER]
    for i in (6, 9, 12):
        truth = exact_votes(_kinds._POINTS[i : i + 1], TWENTY, [5, 19, 99])
        np.testing.assert_allclose(twenty[i, [4, 18, 98]], truth, atol=0.025)  # a thousand simulations


def test_the_same_kind_is_found_again():
    p = np.where(np.arange(400) < 200, 0.2, 0.8)
    tallies = [_plurality.AnswerCounts((int(c),), (20 - int(c),)) for c in samples(p, 20, 0).sum(1) if 0 < c < 20]
    kinds = _kinds.draw(tallies, (_kinds.AGREE,), 0)
    assert kinds.max() < _kinds.VALUES
    modelled = _kinds.accuracies((_kinds.AGREE,), 1)[:, 0][kinds].mean(0)  # P(right) of one sample, by question
    raw = np.array([t.right[0] / 20 for t in tallies])
    true = np.where(raw < 0.5, 0.2, 0.8)
    assert np.abs(modelled - true).mean() < 0.4 * np.abs(raw - true).mean()  # drawn to what others are like


def test_a_question_is_known_by_its_own_samples_too():
    # One population in which every P(right) is as likely: the best guess of one sample's is (c + 1) / (n + 2).
    right = samples(np.random.default_rng(0).uniform(size=400), 20, 0).sum(1)
    tallies = [_plurality.AnswerCounts((int(c),), (20 - int(c),)) for c in right if 0 < c < 20]
    modelled = _kinds.accuracies((_kinds.AGREE,), 1)[:, 0][_kinds.draw(tallies, (_kinds.AGREE,), 0)].mean(0)
    guess = np.array([(t.right[0] + 1) / 22 for t in tallies])
    assert np.sqrt(np.mean((modelled - guess) ** 2)) < 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling.fit(np.ones((10, 4), bool)), "at least 5 samples"),
        (lambda: scaling.fit(np.ones((10, 9))), "answers and golds"),
        (lambda: scaling.fit(ember.text([["a"] * 9])), "answers and golds"),
        (lambda: scaling.fit(np.ones((0, 9), bool)), r"bool\[0, 9\]"),
        (lambda: scaling.fit([["a"] * 4], ["a"]), "at least 5 samples of each question, not 4"),
        (lambda: scaling.fit([["a"] * 5, ["a"] * 6], ["a", "a"]), "as many samples of each question.*5, 6"),
        (lambda: scaling.fit([["a"] * 5], ["a", "b"]), "2 golds for 1 questions"),
        (lambda: scaling.fit([["a"] * 5], [[True] * 4]), r"\[1, 5\], not \[1, 4\]"),
        (lambda: scaling.fit([["a"] * 5], [[True] * 4 + [False]]), "right in 4 of 5 samples"),
        (lambda: scaling.fit(["aaaaa"], ["a"]), r"shape \[questions, samples\]"),
        (lambda: scaling.fit([["a"] * 5], ["a"], normalize="answers"), "normalize='answers'"),
        (lambda: scaling.fit([["a"] * 5], ["a"]).accuracy(0), "at least 1"),
        (lambda: scaling.fit([["a"] * 5], ["a"]).accuracy(2.5), "whole"),
        (lambda: scaling.fit([["a"] * 5], ["a"]).interval(3, level=95), "level=95"),
        (lambda: scaling.fit_curves(np.ones((10, 2)), [1, 3]), "three different"),
        (lambda: scaling.fit_curves(np.ones((10, 3)), [1, 1, 3]), "three different"),
        (lambda: scaling.fit_curves(np.full((10, 3), np.nan), [1, 3, 5]), "accuracies"),
    ],
)
def test_errors_say_what_is_taken(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_samples_that_failed_say_why():
    with ember.session(providers={"mine": ember.providers.Callable(lambda request: 1 / 0)}, journal=None):
        failed, _ = ember.attempt(ember.LLM("mine/x"))(ember.text("What is 1 + 1?"))
        answers = ember.stack([ember.text("2")] * 5 + [failed]).reshape(1, 6)
        with pytest.raises(ZeroDivisionError):
            scaling.fit(answers, ["2"])
        with pytest.raises(ZeroDivisionError):
            scaling.fit([["2"] * 6], ember.stack([failed]))


def test_floats_are_no_words():
    with pytest.raises(TypeError, match="words or as integers, not float"):
        scaling.fit([[0.5] * 5], [0.5])
