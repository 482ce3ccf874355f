"""Intervals hold their level: proportions by exact enumeration, other scores by simulation."""

import math

import numpy as np
import pytest

from ember_jax import _intervals

SIZES = (20, 50, 200)


def binomial(n, p):
    """P(k right of n), for k = 0, ..., n and each p."""
    ways = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)])
    k = np.arange(n + 1)
    return np.exp(ways + k * np.log(p)[:, None] + (n - k) * np.log1p(-p)[:, None])


# -- proportions, exactly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    # Newcombe, 1998, Statistics in Medicine 17:857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_the_literature(right, rows, low, high):
    assert _intervals.wilson(right, rows, 0.95) == pytest.approx((low, high), abs=5e-5)
    assert _intervals.wilson(rows - right, rows, 0.95) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("rows", SIZES)
def test_the_interval_of_a_proportion_covers_95_of_100(rows):
    """Counts are whole, so that no interval covers each truth in as many data sets; on the average it is 95 of 100."""
    ends = np.array([_intervals.of_mean(np.repeat([1.0, 0.0], [k, rows - k]), 0.95) for k in range(rows + 1)])
    truths = np.linspace(0.005, 0.995, 199)
    holds = (ends[:, 0] <= truths[:, None]) & (truths[:, None] <= ends[:, 1])
    covered = (binomial(rows, truths) * holds).sum(1)
    assert covered.mean() == pytest.approx(0.95, abs=0.01)
    near = np.array([covered[abs(truths - truth) < 0.025].mean() for truth in np.arange(0.05, 0.96, 0.05)])
    assert near.min() > 0.93 and near.max() < 0.97
    assert covered.min() > 0.83  # near 0 and 1, where the usual interval covers next to nothing


def test_percentiles_of_a_bootstrap_would_not():
    """In 64 of 100 data sets of 20 rows they hold a truth of 0.95, and of 20 right of 20 they are a point."""
    up_to = binomial(20, np.maximum(np.arange(1, 20) / 20, 1e-300)).cumsum(1)
    ends = [(0, 0), *((int((row < 0.025).sum()), int((row < 0.975).sum())) for row in up_to), (20, 20)]
    holds = np.array([low <= 19 <= high for low, high in ends])
    assert (binomial(20, np.array([0.95]))[0] * holds).sum() == pytest.approx(0.64, abs=0.005)
    assert _intervals.of_mean(np.ones(20), 0.95) == pytest.approx((0.8389, 1.0), abs=5e-5)  # Wilson's, of 20 of 20


# -- scores and numbers, by simulation -------------------------------------------------------------------------------


def pick(draw, size, values, chances):
    return draw.choice(np.array(values, float), size, p=chances)


SCORES = {
    "beta(2, 2)": (lambda d, n: d.beta(2, 2, n), 0.5),
    "beta(5, 1)": (lambda d, n: d.beta(5, 1, n), 5 / 6),
    "beta(1/2, 1/2)": (lambda d, n: d.beta(0.5, 0.5, n), 0.5),
    "an F1": (lambda d, n: np.where(d.random(n) < 0.3, d.random(n), d.random(n) < 0.6), 0.57),
    "thirds": (lambda d, n: d.binomial(3, 0.8, n) / 3, 0.8),
    "halves": (lambda d, n: pick(d, n, [0, 0.5, 1], [0.1, 0.2, 0.7]), 0.8),
    "mostly right": (lambda d, n: np.where(d.random(n) < 0.7, 1.0, d.random(n)), 0.85),
}
NUMBERS = {
    "grades": (lambda d, n: pick(d, n, [1, 2, 3, 4, 5], [0.05, 0.1, 0.15, 0.3, 0.4]), 3.9),
    "normal": (lambda d, n: d.normal(3, 1, n), 3.0),
    "tokens": (lambda d, n: d.lognormal(0, 0.5, n), math.exp(0.125)),
    "one of two prices": (lambda d, n: np.where(d.random(n) < 0.3, 101.0, 1.0), 31.0),
}


def coverage(interval, draw, truth, rows, count=2000):
    rng = np.random.default_rng(rows)
    ends = np.array([interval(draw(rng, rows)) for _ in range(count)])
    return ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()


@pytest.mark.parametrize("rows", SIZES)
def test_the_interval_of_scores_covers_95_of_100(rows):
    found = {name: coverage(lambda x: _intervals.of_mean(x, 0.95), *case, rows) for name, case in SCORES.items()}
    # 2,000 data sets tell a coverage to 0.01 (two standard errors).
    assert all(0.93 <= share <= 0.975 for share in found.values()), found
    assert np.mean(list(found.values())) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("rows", SIZES)
def test_the_interval_of_numbers_covers_95_of_100(rows):
    found = {name: coverage(lambda x: _intervals.of_numbers(x, 0.95), *case, rows) for name, case in NUMBERS.items()}
    assert all(0.93 <= share <= 0.975 for share in found.values()), found


def test_nearly_all_alike_is_told_as_well_as_twenty_rows_can():
    """Rows that differ are seldom: no method knows how much they do. Student's t holds the truth in 76 of 100."""
    draw = lambda rng, n: np.where(rng.random(n) < 0.9, 1.0, rng.random(n))
    assert coverage(lambda x: _intervals.of_mean(x, 0.95), draw, 0.95, 20) > 0.9
    assert coverage(lambda x: _intervals.of_mean(x, 0.95), draw, 0.95, 200) > 0.93


def test_intervals_of_few_and_of_equal_rows():
    assert all(map(math.isnan, _intervals.of_mean(np.array([]), 0.95)))
    assert all(map(math.isnan, _intervals.of_mean(np.array([0.5]), 0.95)))
    assert all(map(math.isnan, _intervals.of_numbers(np.array([2.0]), 0.95)))
    assert all(map(math.isnan, _intervals.of_difference(np.ones(1), np.ones(1), 0.95)))
    assert _intervals.of_mean(np.array([1.0]), 0.95) == _intervals.wilson(1, 1, 0.95)
    low, high = _intervals.of_mean(np.full(20, 0.5), 0.95)
    assert 0.4 < low < 0.5 < high < 0.6
    assert _intervals.of_numbers(np.full(20, 3.0), 0.95) == (3.0, 3.0)
    assert _intervals.of_numbers(np.array([1.0, 101.0]), 0.95) == pytest.approx(
        [1 + 100 * end for end in _intervals.wilson(1, 2, 0.95)]
    )


def test_a_correction_for_skewness_is_the_inverse_of_halls_cubic():
    t, a = np.linspace(-2.5, 2.5, 11), 0.3
    cubic = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
    np.testing.assert_allclose(_intervals.unskewed(cubic, a), t, atol=1e-12)
    np.testing.assert_array_equal(_intervals.unskewed(t, 0.0), t)
    np.testing.assert_allclose(_intervals.unskewed(t, 1e-6), t, atol=1e-5)


# -- differences -----------------------------------------------------------------------------------------------------


def paired(chances):
    """Rights and wrongs of two operators on the same rows, by P(both), P(first alone), P(second alone)."""

    def draw(rng, n):
        which = rng.choice(4, n, p=[*chances, 1 - sum(chances)])
        return np.stack([which <= 1, (which == 0) | (which == 2)]).astype(float)

    return draw, chances[1] - chances[2]


DIFFERENCES = {
    "as good": paired((0.5, 0.1, 0.1)),
    "better": paired((0.5, 0.3, 0.1)),
    "much better": paired((0.4, 0.3, 0.05)),
    "independent": paired((0.56, 0.24, 0.14)),
}


@pytest.mark.parametrize("rows", SIZES)
def test_the_interval_of_a_difference_covers_95_of_100(rows):
    of = lambda both: _intervals.of_difference(*both, 0.95)
    found = {name: coverage(of, *case, rows) for name, case in DIFFERENCES.items()}
    graded = lambda rng, n: np.stack([rng.beta(3, 1, n), rng.beta(2, 1, n)])
    found["graded"] = coverage(of, graded, 3 / 4 - 2 / 3, rows)
    # With 20 rows two that are as good differ on four or so, and what four can say is coarse.
    assert all(0.93 <= share <= (0.99 if rows == 20 else 0.97) for share in found.values()), found
    assert np.mean(list(found.values())) == pytest.approx(0.955, abs=0.012)


def test_a_difference_is_paired():
    """Two operators that are right and wrong together differ by nothing; their own intervals overlap all the same."""
    right = np.repeat([1.0, 0.0], 50)
    low, high = _intervals.of_difference(right, right, 0.95)
    assert -0.03 < low < 0 < high < 0.03
    better = right.copy()
    better[50:62] = 1  # on 12 rows more, and on none less
    low, high = _intervals.of_difference(better, right, 0.95)
    assert low > 0.04 and high < 0.2
    assert _intervals.of_mean(right, 0.95)[1] > _intervals.of_mean(better, 0.95)[0]


# -- the bootstrap ---------------------------------------------------------------------------------------------------


def test_a_bootstrap_of_two_rows_is_a_binomial():
    means = _intervals.bootstrap(np.array([[0.0, 1.0], [1.0, np.nan]]), 20_000)
    share = [np.mean(means[:, 0] == value) for value in (0, 0.5, 1)]
    assert share == pytest.approx([0.25, 0.5, 0.25], abs=4 * math.sqrt(0.25 / 20_000))
    # The second column has no mean where only the second row was drawn, which is where the first one's is 1.
    np.testing.assert_array_equal(np.isnan(means[:, 1]), means[:, 0] == 1)
