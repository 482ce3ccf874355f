"""A model of how the answers to questions spread, for votes of more samples than there are.

Design note. Of a question with `n` samples nothing is known without a bias about a vote of more than `n`. It is
known better if the questions of a data set are seen together, as draws from one population (an empirical Bayes model,
Robbins, 1956). A question is of a *kind*, which says two things:

- how likely a sample is right: a number `p`, or a draw from a beta distribution. Mixtures of these come close to any
  distribution (Diaconis and Ylvisaker, 1985), and need few parts for smooth ones and for ones in clumps.
- how a wrong sample is distributed over wrong answers. With probability `u` it is one that attracts, and else a draw
  from a Pitman-Yor process of discount `d` and strength `t` (Pitman and Yor, 1997). For `d = 0` that is a Dirichlet
  process; for `0 < d < 1` the tail is heavy, a power law; for `d < 0` there are `t / -d` wrong answers, and the larger
  `-d` the more alike they are in frequency. One competitor, twenty different errors, and a new error each time are
  three of these.

How likely the counts of a question are under a kind is a closed form. The population of kinds has a hierarchical
Dirichlet process as its prior (Teh et al., 2006), over the two parts of a kind. So the questions share kinds, and the
two parts may depend on each other where the data say so. It is sampled by a blocked Gibbs sampler (Ishwaran and James,
2001). A draw of it gives every question a kind, and then a value of `p` by its own samples. The spread of the draws is
what the data leave open.

How often a vote of `k` is right for a kind is `sum over j of Bin(j; k, p) P(no wrong answer has j of k - j)`, ties
counted as in `_plurality`. The second factor is found by simulation of the process, the same for all `k` and all data.

What it assumes: the samples of a question are independent; a question has one right answer (where several are, the most
frequent is taken for it, and the others for wrong); and the questions are exchangeable.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._plurality import AnswerCounts


class Wrong(NamedTuple):
    """How wrong samples are distributed over wrong answers; see above.

    **Fields:**

    - `attracts`: u.
    - `discount`: d.
    - `strength`: t.
    """

    attracts: float
    discount: float
    strength: float


_NEVER_TWICE = 1e9  # the strength of a process that gives a new answer each time


def _uniform(answers: int, alike: float) -> Wrong:
    return Wrong(0.0, -alike, alike * answers)


AGREE = Wrong(0.0, -1.0, 1.0)  # one wrong answer
DIFFER = Wrong(0.0, 0.0, _NEVER_TWICE)
_PLAIN = (
    AGREE,
    *(_uniform(answers, 1000.0) for answers in (2, 3, 5, 8, 12, 20, 40)),
    *(_uniform(answers, 1.0) for answers in (2, 5, 20)),
    *(Wrong(0.0, 0.0, strength) for strength in (0.3, 1.0, 3.0, 10.0, 30.0)),
    *(Wrong(0.0, discount, strength) for discount in (0.5, 0.75) for strength in (1.0, 5.0, 20.0)),
    DIFFER,
)
_ATTRACTED = tuple(
    Wrong(attracts, *tail)
    for attracts in (0.15, 0.25, 0.4, 0.55, 0.7, 0.85)
    for tail in ((-1.0, 1.0), (0.0, _NEVER_TWICE), (-1000.0, 20_000.0), (0.75, 3.0), (0.0, 3.0))
)
ANY = _PLAIN + _ATTRACTED
_PLAIN_SHARE = 0.6

# P(right): numbers, as dense near 0 and 1 as samples can tell them apart; and beta distributions, by mean and by a + b.
_POINTS = np.sin(np.linspace(0, np.pi / 2, 25)) ** 2
_MEANS = np.sin(np.linspace(0, np.pi / 2, 17)[1:-1]) ** 2
_SPREADS = (60.0, 20.0, 8.0, 3.0)
_BETAS = np.array([(mean * spread, (1 - mean) * spread) for spread in _SPREADS for mean in _MEANS])
_POINTS_SHARE = 0.1
RIGHTS = len(_POINTS) + len(_BETAS)
_FINER = 8  # how many steps the values that are drawn from a beta distribution take between two points
VALUES = _FINER * (len(_POINTS) - 1) + 1

# How many questions' worth it counts that a question has a kind of its own, at least, and as a share of the questions,
# as of more questions more may be told apart; and what part of that it counts for each half of a kind. They were chosen
# by the errors over sixteen families of one competitor, of many wrong answers and of heavy tails, with 200 and with
# 1,000 questions (`benchmarks/votes.py` has some). Halves and doubles of them changed the errors by a tenth.
_OWN, _OWN_SHARE, _PARTS = 20.0, 0.04, 0.2
# Chains that begin anew each, as one chain may stay with one of two explanations for long.
_CHAINS, _DRAWS, _BURNT = 4, 150, 150
_SIMULATED = 1000  # processes of each kind


# -- which kinds there are -------------------------------------------------------------------------------------------


def draw(tallies: Sequence[AnswerCounts], wrong: Sequence[Wrong], seed: int) -> np.ndarray:
    """Draws the kinds of questions, each with a value of P(right), given their samples: `int32[draws, questions]`, rows
    of `accuracies`.

    **Arguments:**

    - `tallies`: of the questions.
    - `wrong`: how wrong samples may be distributed.
    - `seed`: of the draws.
    """
    of_right, of_wrong = _right_likelihood(tallies), _wrong_likelihood(tallies, wrong)
    prior = _prior_right(), _prior_wrong(wrong)
    streams = np.random.default_rng(seed).spawn(_CHAINS)
    chains = [_chain(of_right, of_wrong, *prior, rng) for rng in streams]
    return _with_values(np.concatenate(chains), tallies, np.random.default_rng([seed, 1]))


def _with_values(kinds: np.ndarray, tallies: Sequence[AnswerCounts], rng: np.random.Generator) -> np.ndarray:
    """Draws P(right) of each question, given its kind and its samples, and puts its value in place of its distribution.

    The mean of the kind would do for all questions together, but of a question that is right twenty times of twenty it
    would say no more than of all others of that kind.
    """
    from scipy.special import xlog1py, xlogy

    grid, weights = _beta_grid()
    of_wrong, of_right = np.divmod(kinds, RIGHTS)
    found = np.empty(kinds.shape, np.int32)
    counts = np.array([(max(t.right, default=0), sum(t.right) + sum(t.wrong)) for t in tallies])
    for right, total in np.unique(counts, axis=0):
        same = (counts == (right, total)).all(1)
        likely = weights * _relative((xlogy(right, grid) + xlog1py(total - right, -grid))[None])
        for kind in np.unique(of_right[:, same]):
            taken = same & (of_right == kind)
            drawn = rng.random(taken.sum()) * likely[kind].sum()
            found[taken] = np.minimum(np.searchsorted(likely[kind].cumsum(), drawn, side="right"), VALUES - 1)
    return (of_wrong * VALUES + found).astype(np.int32)


def _chain(
    of_right: np.ndarray,
    of_wrong: np.ndarray,
    prior_right: np.ndarray,
    prior_wrong: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    shares = np.outer(prior_wrong, prior_right)
    own = _OWN + _OWN_SHARE * len(of_right)
    base = own * shares
    found = np.empty((_DRAWS, len(of_right)), np.int32)
    for step in range(_DRAWS + _BURNT):
        # The two parts of a question's kind, one after the other, so that no array is of questions by kinds.
        right = _pick((of_wrong @ shares) * of_right, rng)
        kind = _pick(of_wrong * shares[:, right].T, rng) * RIGHTS + right
        counts = np.bincount(kind, minlength=shares.size).reshape(shares.shape)
        parts = _tables(counts, base, rng)
        by_wrong = _dirichlet(_PARTS * own * prior_wrong + parts.sum(1), rng)
        by_right = _dirichlet(_PARTS * own * prior_right + parts.sum(0), rng)
        base = own * np.outer(by_wrong, by_right)
        shares = _dirichlet((base + counts).ravel(), rng).reshape(shares.shape)
        if step >= _BURNT:
            found[step - _BURNT] = kind
    return found


def _prior_right() -> np.ndarray:
    points = np.full(len(_POINTS), _POINTS_SHARE / len(_POINTS))
    return np.concatenate([points, np.full(len(_BETAS), (1 - _POINTS_SHARE) / len(_BETAS))])


def _prior_wrong(wrong: Sequence[Wrong]) -> np.ndarray:
    plain = np.array([w.attracts == 0 for w in wrong])
    shares = np.where(plain, _PLAIN_SHARE / max(plain.sum(), 1), (1 - _PLAIN_SHARE) / max((~plain).sum(), 1))
    return shares / shares.sum()


def _pick(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row a column, drawn by weight."""
    up_to = weights.cumsum(1)
    drawn = (up_to <= rng.random((len(weights), 1)) * up_to[:, -1:]).sum(1)
    return np.minimum(drawn, weights.shape[1] - 1)


def _dirichlet(strengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = np.maximum(rng.standard_gamma(strengths), 1e-300)  # strengths may be so small that all is rounded to 0
    return drawn / drawn.sum()


def _tables(counts: np.ndarray, base: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many of the questions of each kind came from the base, and not from another question of that kind: the tables
    of a Chinese restaurant franchise."""
    found = np.zeros(counts.shape)
    taken = np.nonzero(counts)
    seated, strength = counts[taken][:, None], base[taken][:, None]
    nth = np.arange(seated.max())
    found[taken] = ((rng.random((len(seated), len(nth))) * (strength + nth) < strength) & (nth < seated)).sum(1)
    return found


# -- how likely samples are ------------------------------------------------------------------------------------------


def _right_likelihood(tallies: Sequence[AnswerCounts]) -> np.ndarray:
    """`float64[questions, RIGHTS]`, relative to the largest of each question."""
    from scipy.special import betaln, xlog1py, xlogy  # imported here: it takes a tenth of a second

    right = np.array([max(t.right, default=0) for t in tallies])[:, None]
    wrong = np.array([sum(t.right) + sum(t.wrong) for t in tallies])[:, None] - right
    points = xlogy(right, _POINTS) + xlog1py(wrong, -_POINTS)
    a, b = _BETAS.T
    return _relative(np.concatenate([points, betaln(a + right, b + wrong) - betaln(a, b)], 1))


def _wrong_likelihood(tallies: Sequence[AnswerCounts], wrong: Sequence[Wrong]) -> np.ndarray:
    """`float64[questions, wrong]`, relative to the largest of each question.

    It is the probability of the partition of wrong samples by answer. If one answer attracts, it is the sum over which
    of the answers that is, or none of those that were seen.
    """
    seen = [tuple(sorted((*t.right[1:], *t.wrong), reverse=True)) for t in tallies]
    distinct = {counts: i for i, counts in enumerate(dict.fromkeys(seen))}
    tails = list(dict.fromkeys((w.discount, w.strength) for w in wrong))
    by_tail = _Partitions(tails, max(map(sum, distinct)))
    attracts = np.array([w.attracts for w in wrong])
    of_tail = np.array([tails.index((w.discount, w.strength)) for w in wrong])
    found = np.empty((len(distinct), len(wrong)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for counts, i in distinct.items():
            total = sum(counts)
            terms = [total * np.log1p(-attracts) + by_tail.log_chance(counts)[of_tail]]
            for count, times in Counter(counts).items():
                place = counts.index(count)
                others = by_tail.log_chance((*counts[:place], *counts[place + 1 :]))[of_tail]
                some = math.log(times) + count * np.log(attracts) + (total - count) * np.log1p(-attracts) + others
                terms.append(np.where(attracts > 0, some, -np.inf))
            found[i] = np.logaddexp.reduce(terms, 0)
    return _relative(found[[distinct[counts] for counts in seen]])


class _Partitions:
    """How likely partitions are under Pitman-Yor processes (their "exchangeable partition probability function")."""

    def __init__(self, tails: Sequence[tuple[float, float]], most: int):
        discount, strength = np.array(tails).T[:, :, None]
        i = np.arange(1, most + 1)
        up_to = lambda steps: np.concatenate([np.zeros((len(tails), 2)), np.log(steps).cumsum(1)], 1)
        # Columns are numbers of answers, of samples, and of samples of one answer. A process of finitely many answers
        # has none beyond them.
        more = strength + i * discount
        with np.errstate(divide="ignore"):
            self._new = up_to(np.where(more > 1e-9, more, 0.0))
        self._all, self._again = up_to(strength + i), up_to(i - discount)

    def log_chance(self, counts: Sequence[int]) -> np.ndarray:
        """The logarithm of the probability of these counts, for each process."""
        again = self._again[:, list(counts)].sum(1) if counts else 0.0
        return self._new[:, len(counts)] - self._all[:, sum(counts)] + again


def _relative(logarithms: np.ndarray) -> np.ndarray:
    return np.exp(logarithms - logarithms.max(1, keepdims=True))


# -- how often votes are right ---------------------------------------------------------------------------------------


def accuracies(wrong: Sequence[Wrong], most: int) -> np.ndarray:
    """How often a vote of 1, 2, ..., `most` samples is right, for each way to be wrong and value of P(right):
    `float64[wrong * VALUES, most]`."""
    sizes = (64, 128, 256, 512, 1024, 2048, 4096)
    return _accuracies(tuple(wrong), next((size for size in sizes if size >= most), most))[:, :most]


@functools.lru_cache(maxsize=4)
def _accuracies(wrong: tuple[Wrong, ...], most: int) -> np.ndarray:
    from scipy.special import gammaln, xlog1py, xlogy

    grid, _ = _beta_grid()
    wins = [_wins(w, most) for w in wrong]
    found = np.empty((len(wrong), VALUES, most))
    for k in range(1, most + 1):
        j = np.arange(k + 1)
        ways = gammaln(k + 1) - gammaln(j + 1) - gammaln(k - j + 1)
        chances = np.exp(ways + xlogy(j, grid[:, None]) + xlog1py(k - j, -grid[:, None]))
        found[:, :, k - 1] = np.stack([w[k - j, j] for w in wins]) @ chances.T
    found = found.reshape(-1, most)
    found.flags.writeable = False
    return found


def _beta_grid() -> tuple[np.ndarray, np.ndarray]:
    """Values of P(right), and their weights in each of its distributions: `float64[values]`, `[RIGHTS, values]`."""
    from scipy.special import betainc

    grid = np.sin(np.linspace(0, np.pi / 2, VALUES)) ** 2  # the points, and others between them
    edges = np.concatenate([[0.0], (grid[1:] + grid[:-1]) / 2, [1.0]])
    betas = np.diff(betainc(*_BETAS.T[:, :, None], edges), axis=1)
    return grid, np.concatenate([np.eye(VALUES)[::_FINER], betas])


def _wins(wrong: Wrong, most: int) -> np.ndarray:
    """How often `j` right votes win against `n` wrong ones: `float64[most + 1, most + 1]`, by `n` and `j`."""
    top, tied = _tops(wrong, most)
    found = np.zeros((most + 1, most + 2))
    n = np.broadcast_to(np.arange(most + 1)[:, None], top.shape)
    share = 1 / (tied + 1)
    np.add.at(found, (n, top), share)
    np.add.at(found, (n, top + 1), 1 - share)
    found = found.cumsum(1)[:, :-1] / top.shape[1]
    found[:, 0] = 0.0
    return found


def _tops(wrong: Wrong, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The most votes that a wrong answer has among `n` wrong ones, and how many answers have as many: `int[n, draws]`.

    A sample is one of an answer with `c` samples in proportion to `c - d`, and of a new one in proportion to `t + d m`,
    where `m` is the number of answers. The former is drawn as the answer of an earlier sample, which is accepted with
    probability `(c - d) / c`; if `d` is negative, as that of an earlier sample, or any of the answers, in proportion.
    """
    rng, rows = np.random.default_rng(0), np.arange(_SIMULATED)
    attracts, discount, strength = wrong
    counts = np.zeros((_SIMULATED, most + 1), np.int32)  # the first answer is the one that attracts
    answer_of = np.zeros((_SIMULATED, most), np.int32)
    samples, answers = np.zeros(_SIMULATED, int), np.zeros(_SIMULATED, int)  # all but those of the first answer
    top, tied = np.zeros((most + 1, _SIMULATED), int), np.zeros((most + 1, _SIMULATED), int)
    for n in range(1, most + 1):
        drawn = np.zeros(_SIMULATED, int)
        other = rng.random(_SIMULATED) >= attracts
        is_new = rng.random(_SIMULATED) * (strength + samples) < strength + discount * answers
        new = np.flatnonzero(other & (is_new | (samples == 0)))
        drawn[new] = answers[new] + 1
        left = np.flatnonzero(other & (drawn == 0))
        while len(left):
            some = answer_of[left, (rng.random(len(left)) * samples[left]).astype(int)]
            if discount < 0:
                any_of = rng.random(len(left)) * (samples[left] - discount * answers[left]) >= samples[left]
                some = np.where(any_of, 1 + (rng.random(len(left)) * answers[left]).astype(int), some)
                is_taken = np.full(len(left), True)
            else:
                is_taken = rng.random(len(left)) * counts[left, some] < counts[left, some] - discount
            drawn[left[is_taken]] = some[is_taken]
            left = left[~is_taken]
        answer_of[rows, np.where(other, samples, most - 1)] = drawn
        counts[rows, drawn] += 1
        samples += other
        answers[new] += 1
        now = counts[rows, drawn]
        top[n] = np.maximum(top[n - 1], now)
        tied[n] = np.where(now > top[n - 1], 1, tied[n - 1] + (now == top[n - 1]))
    return top, tied
