"""Scores of an answer against what is right, from 0 to 1; `ember.evaluate` takes each by its name.

They are plain functions of strings, which can be called, and given arguments by `functools.partial`, as in
`functools.partial(ember.scores.number, tolerance=0.01)`. The right answer (`gold`) may be a list of accepted answers:
the best score counts.
"""

import functools
import math
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .._choose import LETTERS, chosen
from .._text import grammar
from .._text.operations import NORMALIZERS

Score: TypeAlias = Callable[..., Any]


def _of_accepted(score: Callable[..., float]) -> Callable[..., float]:
    """Makes a score that accepts several right answers of one that takes a single one: the best score counts.

    The score raises `ValueError` for an empty list, and for a right answer that is NaN.
    """

    @functools.wraps(score)
    def best(answer: Any, gold: Any, **settings: Any) -> float:
        accepted = list(gold) if isinstance(gold, list | tuple | set | np.ndarray) else [gold]
        if not accepted:
            raise ValueError("the list of accepted answers is empty.")
        forms = [form for one in accepted for form in _forms(one)]
        return max(score(_words(answer), form, **settings) for form in forms)

    return best


def _forms(gold: Any) -> list[Any]:
    """The values that an accepted answer may stand for: of a whole float, the integer too.

    A data frame turns a column of whole numbers into floats if one value is missing, and the missing one into NaN.

    **Raises:** `ValueError` for NaN.
    """
    if not isinstance(gold, float):
        return [gold]
    if math.isnan(gold):
        raise ValueError("the gold answer is missing: it is NaN.")
    return [gold, int(gold)] if gold.is_integer() else [gold]


def _words(value: Any) -> str:
    """An answer or a right answer in words: a string as it is, a number as Python writes it.

    **Raises:** `TypeError` for what is neither.
    """
    if isinstance(value, str | bool | int | float | np.generic):
        return str(value)
    raise TypeError(
        f"this score compares words and numbers, not {value!r:.60} of type {type(value).__name__}. Give `evaluate` a "
        "function of (answer, gold)."
    )


@_of_accepted
def exact(answer: str, gold: Any) -> float:
    """1 if the words are the same, apart from white space around them; else 0."""
    return float(answer.strip() == _words(gold).strip())


@_of_accepted
def normalized(answer: str, gold: Any) -> float:
    """1 if the words are the same after `ember.normalize(…, "answer")`; else 0.

    It removes case, articles, and punctuation at the ends of words.
    """
    bare = NORMALIZERS["answer"]
    return float(bare(answer) == bare(_words(gold)))


@_of_accepted
def number(answer: str, gold: Any, *, tolerance: float = 1e-6) -> float:
    """1 if the last number of the answer is that of the right answer, as `ember.parse_number` reads them; else 0.

    An answer without a number scores 0.

    **Arguments:**

    - `tolerance`: the difference that is allowed, relative to the larger of the two.

    **Raises:** `ValueError` if there is no number in the right answer.
    """
    right = grammar.last_number(_words(gold))
    if right is None:
        raise ValueError(f"there is no number in the gold answer {gold!r:.60}.")
    found = grammar.last_number(answer)
    return float(found is not None and math.isclose(float(found), float(right), rel_tol=tolerance))


@_of_accepted
def choice(answer: str, gold: Any) -> float:
    """1 if the answer names the right letter (`B`, `(b)`, `B. Paris`, `The answer is B`); 0 if another one or none.

    The right answer is a letter, or the option's index as an integer, from 0.

    **Raises:** `ValueError` for a right answer that is no letter.
    """
    letter = LETTERS[gold : gold + 1] if isinstance(gold, int | np.integer) else str(gold).strip().upper()
    if len(letter) != 1 or letter not in LETTERS:
        raise ValueError(f"the gold answer {gold!r:.60} is no letter; give one of A to Z, or a place from 0 on.")
    return float(chosen(answer, [""] * len(LETTERS)) == LETTERS.index(letter))


@_of_accepted
def regex(answer: str, gold: Any) -> float:
    """1 if the right answer, a regular expression, is found in the answer; else 0. `^(?:…)$` matches the whole of it.

    **Raises:** `re.error` for what is no regular expression.
    """
    return float(re.search(_words(gold), answer) is not None)


@_of_accepted
def f1(answer: str, gold: Any) -> float:
    """The harmonic mean of precision and recall of the answer's words: the F1 of SQuAD.

    Words are compared without case, punctuation and articles. A word that stands there twice counts twice. Two answers
    without any words score 1. Rajpurkar et al., 2016, arXiv 1606.05250.
    """
    found, right = _squad_tokens(answer), _squad_tokens(_words(gold))
    if not found or not right:
        return float(found == right)
    # 2 · precision · recall / (precision + recall), with precision = both / found and recall = both / right
    both = (Counter(found) & Counter(right)).total()
    return 2 * both / (len(found) + len(right))


# This is SQuAD's normalisation, so that figures can be compared with published ones. `ember.normalize` differs: it
# keeps punctuation inside words.
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def _squad_tokens(words: str) -> list[str]:
    return _ARTICLE.sub(" ", words.lower().translate(_PUNCTUATION)).split()


NAMED: dict[str, Score] = {s.__name__: s for s in (exact, normalized, number, choice, regex, f1)}
