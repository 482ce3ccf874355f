"""`evaluate`: an operator on a data set, scored.

Design note. All rows are lanes of one `jax.vmap`, and all operators steps of one program, so every call starts as soon
as it can, equal ones are paid once, and the program is traced once for each kind of operator. In a row each operator is
`metered(attempt(op))`: what it used is its own, whoever else asked for the same, and a row that fails is told apart
from one that is wrong. A score that is an operator stands in the same program, behind the answer that it scores, in a
meter of its own; one that is a Python function is called afterwards. Nothing is kept here: a second run is answered by
the journal, and a row's key depends on its own words alone, so that rows may be added, dropped and put in another
order.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._boundary import typed_errors
from .._enclosing import Usage, attempt, metered
from .._jit import jit
from .._runtime import session as sessions
from .._text import failed
from .._text.operations import fold_in
from .._text.text import Text, text
from .._types import Key
from .data import Asked, Columns, as_array, asked, columns_of, gold_of
from .latency import Spans
from .result import Result
from .scores import NAMED, Score

_PROGRAM = "evaluate"


def evaluate(
    op: Callable[..., Any],
    data: Any,
    score: str | Score = "normalized",
    *,
    key: Key | None = None,
    gold: str | None = None,
) -> Result:
    """Asks an operator every question of a data set, all at once, and scores the answers.

    ```python
    result = ember.evaluate(op, [("What is 2 + 2?", "4"), ("What is 3 * 3?", "9")], "number")
    print(result)
    result.to_pandas()
    ```

    A row that fails, also while it is scored, is left out and counted, never scored as wrong. What was answered is in
    the journal: after Ctrl-C, a spent budget, or failures, the same call pays for the rest alone.

    **Arguments:**

    - `op`: an operator, an LLM, or any function that JAX can trace.
    - `data`: a list of `(question, gold)` pairs or of dicts, a dict of columns, a data frame, a data set of Hugging
        Face, or anything that has a length and can be indexed. Columns are given to the arguments of their name; one
        argument that has none gets the only column left, or the only one with a usual name (question, prompt, input,
        query, problem, text).
    - `score`: how an answer is compared with the right one: `"exact"`, `"normalized"`, `"number"`, `"choice"`,
        `"regex"` or `"f1"`, see `ember.scores`; a Python function of strings `(answer, gold)` or `(question, answer,
        gold)`, which gets the gold answer as it is in the data; or an operator of the same arguments, and `key` if it
        takes one, such as a judge. It gives a number, or true and false.
    - `key`: a PRNG key, of which each row gets one that is folded from its question: `ember.fold_in(key, question)`.
        Equal rows are one sample. Without it operators that may do without are called so.
    - `gold`: the column of right answers; by default `gold`, `answer`, `target` or `label`, whichever is there first
        and is no argument of `op`.

    **Returns:** a `Result`.

    **Raises:** `ValueError` for data without rows, or whose columns do not fit the operator's arguments, and for a
    score that there is not; `TypeError` for what is no data, no score, or no key.
    """
    return evaluate_all({_name(op): op}, data, score, key=key, gold=gold)[_name(op)]


def evaluate_all(
    operators: Mapping[str, Callable[..., Any]],
    data: Any,
    score: str | Score,
    *,
    key: Key | None = None,
    gold: str | None = None,
) -> dict[str, Result]:
    """Evaluates several operators, by name, in one sweep; as `evaluate` otherwise."""
    scored = _scorer(score)
    columns = columns_of(data)
    right = gold_of(columns, gold, operators)
    rows = {name: asked(name, op, columns, right, key) for name, op in operators.items()}
    found = _sweep(operators, scored, rows, columns, right)
    return {name: _result(found[name], scored, rows[name], columns, right) for name in operators}


def _name(op: Callable[..., Any]) -> str:
    return getattr(op, "__name__", type(op).__name__)


# -- the program -----------------------------------------------------------------------------------------------------


class _Tried(NamedTuple):
    """What a part of a row gave, whether it failed, and what it used; `why` is failed text if it did."""

    out: Any
    why: Text
    ok: Any
    usage: Usage


class _Found(NamedTuple):
    """An operator's answers, their scores if they are the program's to give, and how long the calls took."""

    answer: _Tried
    score: _Tried | None
    seconds: np.ndarray


def _tried(name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> _Tried:
    def part(*args: Any, **kwargs: Any) -> Any:
        out = jax.tree.map(lambda leaf: text(leaf) if isinstance(leaf, str) else leaf, fn(*args, **kwargs))
        return out, text("")  # which says why if what failed are numbers

    part.__name__ = name  # the scope that its calls are found by
    ((out, why), ok), usage = metered(attempt(jit(part)))(*args, **kwargs)
    return _Tried(out, why, ok, usage)


def _row(operators: Mapping[str, Callable[..., Any]], judge: "_Judge | None", rows: Any, gold: Any) -> Any:
    found = {}
    for name, op in operators.items():
        arguments, key = rows[name]
        keyed = {} if key is None else {"key": key}
        answer = _tried(_scope(name), op, **arguments, **keyed)
        score = None
        if judge is not None:
            score = _tried(f"{_scope(name)} score", judge, next(iter(arguments.values())), answer.out, gold, key)
        found[name] = answer, score
    return found


_row.__name__ = _PROGRAM
_row = jit(_row)


def _scope(name: str) -> str:
    return name.replace("/", ":")  # which sets operators apart in a scope


def _sweep(
    operators: Mapping[str, Callable[..., Any]],
    score: "Score | _Judge",
    rows: Mapping[str, Asked],
    columns: Columns,
    right: str,
) -> dict[str, _Found]:
    judge = score if isinstance(score, _Judge) else None
    lanes = {name: (row.arguments, row.keys) for name, row in rows.items()}
    gold = None if judge is None else as_array(right, columns[right])
    with Spans(sessions.current(), f"{_PROGRAM}/metered/attempt") as spans, typed_errors():
        found = jax.vmap(functools.partial(_row, operators, judge))(lanes, gold)
        jax.block_until_ready(found)
    count = len(columns[right])
    return {name: _Found(answer, score, spans.seconds(_scope(name), count)) for name, (answer, score) in found.items()}


# -- scores ----------------------------------------------------------------------------------------------------------


class _Judge(eqx.Module):
    """A score that is an operator, called with what it takes."""

    score: Any

    def __call__(self, question: Any, answer: Any, gold: Any, key: Key | None) -> jax.Array:
        given = (question, answer, gold)[-_arity(self.score) :]
        value = self.score(*given, **self._keyed(key))
        if not eqx.is_array_like(value) or jnp.ndim(value):
            raise TypeError(
                f"the score {_name(self.score)} gives {value!r:.80}; a score is a number, or true and false. Words are "
                'compared, as in `verdict == "yes"`.'
            )
        return jnp.asarray(value, jnp.float32)

    def _keyed(self, key: Key | None) -> dict[str, Key]:
        parameter = inspect.signature(self.score).parameters.get("key")
        if parameter is None or (key is None and parameter.default is not parameter.empty):
            return {}
        return {"key": fold_in(jax.random.key(0) if key is None else key, "score")}


def _scorer(score: Any) -> "Score | _Judge":
    """A score by its name, or as it was given.

    **Raises:** `ValueError` for a name that there is none of, `TypeError` for what is no score.
    """
    if isinstance(score, str):
        if score not in NAMED:
            near = difflib.get_close_matches(score, NAMED, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no score {score!r}; there are {', '.join(NAMED)}.{meant}")
        return NAMED[score]
    if not callable(score):
        raise TypeError(f"a score is a name such as 'normalized', a function or an operator, not {score!r:.60}.")
    if _arity(score) not in (2, 3):
        raise TypeError(
            f"the score {_name(score)} takes {_arity(score)} arguments; it is called with (answer, gold), or with "
            "(question, answer, gold)."
        )
    return _Judge(score) if isinstance(score, eqx.Module) else score


def _arity(score: Callable[..., Any]) -> int:
    """How many arguments without a default a score has; its key apart."""
    parameters = inspect.signature(score).parameters.values()
    ordinary = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in ordinary and p.default is p.empty and p.name != "key" for p in parameters)


# -- what comes out --------------------------------------------------------------------------------------------------


def _result(found: _Found, score: "Score | _Judge", row: Asked, columns: Columns, right: str) -> Result:
    causes = _causes(found.answer)
    answers = _answers(found.answer.out, causes)
    if found.score is not None:
        scores = np.asarray(found.score.out, np.float64)
        causes = [cause or told for cause, told in zip(causes, _causes(found.score), strict=True)]
    else:
        questions = columns[next(iter(row.names.values()))]
        scores = _scores(score, questions, answers, columns[right], causes)
    for i in np.flatnonzero(np.isnan(scores)):
        causes[i] = causes[i] or "ValueError: the score is not a number"
    usage = found.answer.usage
    return Result(
        data=columns,
        gold=right,
        answers=answers,
        scores=np.where([cause == "" for cause in causes], scores, np.nan),
        causes=tuple(causes),
        seconds=found.seconds,
        calls=np.asarray(usage.calls),
        input_tokens=np.asarray(usage.input_tokens),
        output_tokens=np.asarray(usage.output_tokens),
        costs=np.asarray(usage.cost, np.float64),
        score_costs=np.zeros(len(answers)) if found.score is None else np.asarray(found.score.usage.cost, np.float64),
    )


def _scores(
    score: Any, questions: Sequence[Any], answers: Sequence[Any], gold: Sequence[Any], causes: list[str]
) -> np.ndarray:
    """The scores of a Python function; where it raises, the row has failed, and `causes` is told."""
    scores = np.full(len(answers), np.nan)
    arity = _arity(score)
    for i, row in enumerate(zip(questions, answers, gold, strict=True)):
        if not causes[i]:
            try:
                scores[i] = score(*row[-arity:])
            except Exception as error:  # whatever it is: the other rows are answered, and paid
                causes[i] = f"{_told(error)} (raised by the score {_name(score)})"
    return scores


def _causes(tried: _Tried) -> list[str]:
    """Why each row failed; empty where it did not.  An answer may be failed text though nothing was raised."""
    texts = [leaf for leaf in jax.tree.leaves((tried.why, tried.out), is_leaf=_is_text) if _is_text(leaf)]
    digests = np.concatenate([np.asarray(t.digests).reshape(len(tried.ok), -1) for t in texts], axis=1)
    causes = [""] * len(digests)
    if failed.among(digests) is not None:
        found = map(failed.among, digests)
        causes = ["" if digest is None else _told(failed.cause_of(digest)) for digest in found]
    return causes


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _answers(out: Any, causes: Sequence[str]) -> list[Any]:
    """Each row's answer in Python's values, strings for Texts; `None` where it failed."""
    kept = np.array([not cause for cause in causes])
    leaves, tree = jax.tree.flatten(out, is_leaf=_is_text)
    columns = [np.asarray(leaf[kept]) if _is_text(leaf) else np.asarray(leaf)[kept] for leaf in leaves]
    rows = iter(zip(*(column.tolist() if column.dtype == object else column for column in columns), strict=True))
    return [jax.tree.unflatten(tree, next(rows)) if is_kept else None for is_kept in kept]


def _is_text(value: Any) -> bool:
    return isinstance(value, Text)
