"""How the answers of a data set are scored: by a name, by a function of Python's values, or by an operator.

Design note. A score that is an operator is part of the program, behind the answer that it scores. A score that is a
function is called afterwards, in the calling thread, row by row. It gets strings, and the right answer as it is in the
data. So the function need be neither traceable nor safe for threads, and a new lambda causes no compilation, which it
would as a part of the program.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._operator.traced import name_of
from .._text.operations import fold_in
from .._types import Key
from ..errors import told
from .scores import NAMED
from .signatures import parameters_of, takes_key
from .tried import Attempted, causes_of, tried, values_of

# The arguments that a score may take. One that takes two is called with the last two.
_SCORED = (("answer", "gold"), ("question", "answer", "gold"))


class Scorer(eqx.Module):
    """A function or an operator that gives a number for a row.

    **Fields:**

    - `fn`: the function or operator.
    - `role`: what it is called in errors, such as `"score"`. An operator's key is folded from it too, so that it draws
        independently of the operator that it scores.
    - `count`: how many arguments it takes, without a key.
    - `is_keyed`: whether it is called with a key.
    """

    fn: Any
    role: str = eqx.field(static=True)
    count: int = eqx.field(static=True)
    is_keyed: bool = eqx.field(static=True)

    @property
    def in_program(self) -> "Scorer | None":
        """Itself if it is an operator, which is called in the program; `None` if it is a function."""
        return self if isinstance(self.fn, eqx.Module) else None

    def __call__(self, row: Sequence[Any], key: Key | None) -> jax.Array:
        """The number that an operator gives for a row, as `float32[]`; `key` is the row's key.

        **Raises:** `TypeError` if it gives what is no single number.
        """
        keyed = {"key": fold_in(key, self.role)} if self.is_keyed and key is not None else {}
        value = self.fn(*row[-self.count :], **keyed)
        if not eqx.is_array_like(value) or jnp.ndim(value):
            raise TypeError(
                f"the {self.role} {name_of(self.fn)} gives {value!r:.80}; it is a number, or true and false. Words are "
                'compared, as in `verdict == "yes"`.'
            )
        return jnp.asarray(value, jnp.float32)

    def of_rows(self, rows: Iterable[Sequence[Any]], causes: list[str]) -> np.ndarray:
        """The number that a function gives for each row, as `float64[rows]`; NaN for a row that has failed.

        A row with an entry in `causes` is skipped. If the function raises, its error is entered there.
        """
        scores = np.full(len(causes), np.nan)
        for i, row in enumerate(rows):
            if not causes[i]:
                try:
                    scores[i] = self.fn(*row[-self.count :])
                except Exception as error:  # any exception: the other rows are answered and paid, and must be kept
                    causes[i] = f"{told(error)} (raised by the {self.role} {name_of(self.fn)})"
        return scores


def scorer(score: Any, key: Key | None) -> Scorer:
    """The scorer of a score, which is given by its name or as a function or operator.

    `key` is the key that the rows' keys are folded from, or `None`.

    **Raises:** `ValueError` for an unknown name, `TypeError` for what is no score.
    """
    if isinstance(score, str):
        if score not in NAMED:
            near = difflib.get_close_matches(score, NAMED, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no score {score!r}; there are {', '.join(NAMED)}.{meant}")
        return of_role("score", NAMED[score], _SCORED, key)
    if not callable(score):
        raise TypeError(f"a score is a name such as 'normalized', a function or an operator, not {score!r:.60}.")
    return of_role("score", score, _SCORED, key)


def of_role(role: str, fn: Any, forms: Sequence[tuple[str, ...]], key: Key | None) -> Scorer:
    """The scorer of a function or an operator, which must take as many arguments as one of `forms`, besides a key.

    **Raises:** `TypeError` for a function that takes another number of arguments.
    """
    parameters = parameters_of(fn, f"the {role}").values()
    is_operator = isinstance(fn, eqx.Module)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in several]
    needed = [p for p in needed if not (is_operator and p.name == "key")]
    if len(needed) not in map(len, forms) or any(p.kind is p.KEYWORD_ONLY for p in needed):
        taken = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
        meant = " or ".join(f"({', '.join(form)})" for form in forms)
        raise TypeError(f"the {role} {name_of(fn)} takes {taken}; it is called with {meant}.")
    return Scorer(fn, role, len(needed), is_operator and takes_key(fn, key is not None))


# -- answers and their scores ----------------------------------------------------------------------------------------


class Answered(NamedTuple):
    """An answer, and its score if the score is an operator; else `None`, as a function is called afterwards."""

    answer: Attempted
    score: Attempted | None


class Scored(NamedTuple):
    """The answers of all rows as Python's values, their scores, and their causes.

    A cause says in words why the row has no score (then NaN); it is empty if the row has one.
    """

    answers: list[Any]
    scores: np.ndarray
    causes: list[str]


def answered(
    name: str,
    judge: Scorer | None,
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    row: tuple[Any, Any, Key | None],
) -> Answered:
    """Calls an operator in a program, and scores its answer there if the score is an operator.

    The score has a meter of its own, so that what it costs is not counted as the operator's.

    **Arguments:**

    - `name`: the scope of the operator's calls.
    - `judge`: the score if it is an operator, else `None`.
    - `op`, `args`, `kwargs`: the operator and its arguments.
    - `row`: what the score needs besides the answer: the question, the right answer, the row's key.
    """
    answer = tried(name, op, *args, **kwargs)
    if judge is None:
        return Answered(answer, None)
    question, gold, key = row
    return Answered(answer, tried(f"{name} {judge.role}", judge, (question, answer.out, gold), key))


def scored(found: Answered, by: Scorer, questions: Sequence[Any], golds: Sequence[Any]) -> Scored:
    """The scores of all rows; NaN where the answer or the score failed."""
    causes = causes_of(found.answer)
    answers = values_of(found.answer.out, causes)
    if found.score is None:
        scores = by.of_rows(zip(questions, answers, golds, strict=True), causes)
    else:
        scores = np.array(found.score.out, np.float64)
        causes = [cause or why for cause, why in zip(causes, causes_of(found.score), strict=True)]
    for i in np.flatnonzero(np.isnan(scores)):
        causes[i] = causes[i] or f"ValueError: the {by.role} is not a number"
    scores[[cause != "" for cause in causes]] = np.nan
    return Scored(answers, scores, causes)
