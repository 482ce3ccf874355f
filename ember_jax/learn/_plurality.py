"""Votes of words: how often each answer was given, and the unbiased estimate of a vote of fewer samples than there are.

Design note. Of the `n` samples of a question, a vote of `k` takes a subset at random. All subsets are counted, none is
drawn. Let the right answer have `j` of the `k` votes. It wins if every other answer has fewer; if `t` others have `j`
too, it is the first among the samples in one of `t + 1` orders, which is how `non.Vote` breaks ties. Other answers with
counts `c` are independent but for the sum, so the subsets are the coefficients of a product of polynomials, one for
each answer: `sum of C(c, i) x^i over i < j`, plus `C(c, j) x^j y` where `y` counts ties.

Every term is positive, so no digit is lost. Binomials are divided by powers of two, to stay in the range of floats.
"""

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._text import failed
from .._text.operations import NORMALIZERS
from .._text.text import Text

# The most samples of a question: up to here the binomials divided by powers of two are above the least float.
MOST_SAMPLES = 1000


class AnswerCounts(NamedTuple):
    """How often the different answers of a question were given, the most frequent first.

    **Fields:**

    - `right`: the answers that are right; several may be.
    - `wrong`: the others.
    """

    right: tuple[int, ...]
    wrong: tuple[int, ...]


class Tallies(NamedTuple):
    """The tallies of questions of which each has so many samples."""

    questions: list[AnswerCounts]
    samples: int


def tallies(answers: Any, golds: Any, normalize: str | None, name: str) -> Tallies:
    """Counts the answers of each question.

    **Arguments:**

    - `answers`: Text of shape `[questions, samples]`, lists of lists of `str`, or integers of that shape.
    - `golds`: `[questions]`: the right answers, or a list of those accepted for each question; or
        `bool[questions, samples]`: which samples are right.
    - `normalize`: how words are brought to one form.
    - `name`: of the function that was called, for errors.

    **Raises:** `TypeError` for answers that are neither words nor integers; `ValueError` for other shapes, and for
    equal answers of which some are said to be right and some wrong.
    """
    rows = _rows(answers, name)
    counts = {len(row) for row in rows}
    if len(counts) != 1 or not 1 <= min(counts) <= MOST_SAMPLES:
        raise ValueError(
            f"{name} takes answers of shape [questions, samples], with as many samples of each question, 1 to "
            f"{MOST_SAMPLES:,}; these have {', '.join(map(str, sorted(counts))) or 'no questions'}."
        )
    form = _form(rows, normalize, name)
    same = [[form(answer) for answer in row] for row in rows]
    is_right = _verdicts(same, golds, form, name)
    return Tallies([_tally(i, *both, name) for i, both in enumerate(zip(same, is_right, strict=True))], counts.pop())


def _rows(answers: Any, name: str) -> list[list[Any]]:
    rows = _plain(answers)
    if not isinstance(rows, list | tuple) or not all(isinstance(row, list | tuple) for row in rows):
        raise ValueError(f"{name} takes answers of shape [questions, samples], not {answers!r:.60}.")
    return [list(row) for row in rows]


def _plain(values: Any) -> Any:
    """Text, and arrays of NumPy and of JAX, as nested lists. Raises the cause of failed text, which has no words."""
    if isinstance(values, Text) and (digest := failed.among(np.asarray(values.digests))) is not None:
        raise failed.cause_of(digest).with_traceback(None)
    return values.tolist() if hasattr(values, "tolist") else values


def _form(rows: list[list[Any]], normalize: str | None, name: str) -> Callable[[Any], Any]:
    """What two answers must have in common to be one: for words, how they read when they are normalised."""
    kinds = {type(answer) for row in rows for answer in row}
    if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
        return lambda answer: answer if isinstance(answer, str) else int(answer)
    if kinds != {str}:
        raise TypeError(
            f"{name} takes answers as words or as integers, not {', '.join(sorted(kind.__name__ for kind in kinds))}. "
            "Votes compare words; of floats, take the words that they are written in."
        )
    if normalize is not None and normalize not in NORMALIZERS:
        raise ValueError(f"{name}(normalize={normalize!r}): it is one of {sorted(NORMALIZERS)}, or None.")
    bare = functools.cache((lambda words: words) if normalize is None else NORMALIZERS[normalize])
    return lambda answer: bare(answer if isinstance(answer, str) else str(answer))


def _verdicts(
    same: list[list[Any]], golds: Any, form: Callable[[Any], Any], name: str
) -> list[list[bool]] | list[np.ndarray]:
    if np.issubdtype(getattr(golds, "dtype", object), np.bool_) or _is_of_bools(golds):
        verdicts = np.asarray(golds)
        if verdicts.shape != (len(same), len(same[0])):
            raise ValueError(
                f"{name}: which samples are right has the shape of the answers, {[len(same), len(same[0])]}, not "
                f"{list(verdicts.shape)}."
            )
        return list(verdicts)
    accepted = list(_plain(golds))
    if len(accepted) != len(same):
        raise ValueError(f"{name}: there are {len(accepted)} golds for {len(same)} questions; give one for each.")
    forms = [{form(one) for one in (g if isinstance(g, list | tuple | set) else [g])} for g in accepted]
    return [[answer in right for answer in row] for row, right in zip(same, forms, strict=True)]


def _is_of_bools(golds: Any) -> bool:
    rows = golds if isinstance(golds, list | tuple) else []
    return bool(rows) and all(isinstance(row, list | tuple) and row and type(row[0]) is bool for row in rows)


def _tally(question: int, answers: list[Any], is_right: Any, name: str) -> AnswerCounts:
    votes = collections.Counter(answers)
    right = collections.Counter(answer for answer, r in zip(answers, is_right, strict=True) if r)
    for answer, count in right.items():
        if count != votes[answer]:
            raise ValueError(
                f"{name}: at question {question} the answer {answer!r:.60} is right in {count} of {votes[answer]} "
                "samples. Equal answers are right or wrong together; if they differ before they are normalised, give "
                "normalize=None."
            )
    of = lambda some: tuple(sorted(some, reverse=True))
    return AnswerCounts(of(right.values()), of(count for answer, count in votes.items() if answer not in right))


def accuracies(tally: AnswerCounts) -> np.ndarray:
    """How often a vote of 1, 2, ..., n of the samples is right, as `float64[n]`."""
    others = lambda i: (*tally.right[:i], *tally.right[i + 1 :], *tally.wrong)
    return sum((_wins(c, others(i)) for i, c in enumerate(tally.right)), np.zeros(sum(tally.right) + sum(tally.wrong)))


@functools.lru_cache(maxsize=8192)  # a data set has few different tallies
def _wins(right: int, others: Sequence[int]) -> np.ndarray:
    """How often an answer wins that `right` samples give."""
    n = right + sum(others)
    found = np.zeros(n + 1)
    for j in range(1, right + 1):
        may_tie = [c for c in others if c >= j]
        ways = np.ones((1, 1))  # by ties, and by samples
        for c in may_tie:
            wider = np.zeros((ways.shape[0] + 1, ways.shape[1] + j))
            for i, chance in enumerate(_chances(c)[:j]):
                wider[:-1, i : i + ways.shape[1]] += chance * ways
            wider[1:, j:] += _chances(c)[j] * ways
            ways = wider
        fair = (1 / np.arange(1, len(ways) + 1)) @ ways
        rest = np.convolve(fair, _chances(n - right - sum(may_tie)))[: n - j + 1]
        found[j : j + len(rest)] += _chances(right)[j] * rest
    found = found[1:] / _chances(n)[1:]
    found.flags.writeable = False
    return found


@functools.lru_cache(maxsize=MOST_SAMPLES + 1)
def _chances(n: int) -> np.ndarray:
    """`C(n, i) / 2^n` for i = 0, ..., n."""
    return np.array([math.comb(n, i) / 2**n for i in range(n + 1)])
