"""`evaluate`: an operator on a data set, scored.

Design note. All rows are lanes of one `jax.vmap`, and all operators are steps of one program. So every call starts as
soon as it can, equal calls are paid once, and the program is traced once for each kind of operator.

In each row an operator runs as `metered(attempt(op))`. `metered` counts what the operator has used by itself, also if
another operator asked for the same. `attempt` tells a row that fails apart from a row that is wrong.

A score that is an operator stands in the same program, behind the answer that it scores, in a meter of its own. A score
that is a Python function is called afterwards.

With `to` each row ends with a delivery (`_operator/delivery.py`) of its answer to the file (`rows.py`). A score that is
an operator is delivered with it, and a score by name is computed as the row is written. A function of the user's is
left to the `Result`: nobody knows how long it takes, or whether it may be called in another thread.

Nothing else is kept here. A second run is answered by the journal. A row's key depends on the row's own words alone, so
that rows may be added, dropped and put in another order.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._operator.boundary import boundary_for
from .._operator.delivery import addresses, deliver, receiving
from .._operator.jit import jit
from .._operator.lower import program_of
from .._operator.traced import name_of
from .._plan.described import described
from .._runtime import session as sessions
from .._runtime.typed import typed_errors
from .._text.text import Text
from .._types import Key, is_key
from .data import Asked, Columns, as_array, asked, check_key, columns_of, gold_of
from .latency import Spans
from .result import Result
from .rows import LanesRead, RowFile, digest
from .scorer import Answered, Scorer, answered, scored, scorer
from .scores import Score
from .tried import causes_of, values_of

_PROGRAM = "evaluate"


def evaluate(
    op: Callable[..., Any],
    data: Any,
    score: str | Score = "normalized",
    *,
    key: Key | None = None,
    gold: str | None = None,
    to: str | os.PathLike[str] | None = None,
) -> Result:
    """Asks an operator every question of a data set, all at once, and scores the answers.

    ```python
    result = ember.evaluate(op, [("What is 2 + 2?", "4"), ("What is 3 * 3?", "9")], "number")
    print(result)
    result.to_pandas()
    ```

    A row that fails, in the operator or in the score, is counted as failed and left out of the accuracy. It is never
    scored as wrong. What was answered is in the journal: after Ctrl-C, a spent budget or failures, the same call of
    `evaluate` pays only for the rest.

    **Arguments:**

    - `op`: an operator, an LLM, or any function that JAX can trace.
    - `data`: a list of `(question, gold)` pairs or of dicts; two columns `(questions, golds)`, as a tuple of two lists,
        arrays, series or Texts; a dict of columns, a data frame, a data set of Hugging Face; or anything that has a
        length and can be indexed. A list is one of rows, a tuple of two is columns. Columns are given to the arguments
        of their name; one argument that has none gets the only column left, or the only one with a usual name
        (question, prompt, input, query, problem, text).
    - `score`: how an answer is compared with the right one: `"exact"`, `"normalized"`, `"number"`, `"choice"`,
        `"regex"` or `"f1"`, see `ember.scores`; a Python function of strings `(answer, gold)` or `(question, answer,
        gold)`, which gets the gold answer as it is in the data, and as the question the operator's first argument; or
        an operator of the same arguments, and `key` if it takes one, such as a judge, or `@ember.operator` over
        arithmetic of JAX. It gives a number, or true and false.
    - `key`: a PRNG key. Each row gets a key that is folded from its question, `ember.fold_in(key, question)`, so equal
        rows are one sample. Without it an operator whose `key` may be `None` is called without a key.
    - `gold`: the column of right answers; by default `gold`, `answer`, `target` or `label`, whichever is there first
        and is no argument of `op`.
    - `to`: a file that each row is written to when it has finished: `.jsonl`, `.csv`, or `.parquet` with pyarrow, which
        is complete at the end. A row has its `index`, the data's columns, `answer`, `score`, whether it `failed`, why
        (`failure`), and `run`, which tells rows of this program apart from others. The score of a Python function is
        left empty. If the file is there, its rows are kept and not written again, but for failed ones, which are asked
        again; so after a crash the same program completes it.

    **Returns:** a `Result`.

    **Raises:** `ValueError` for data without rows, or that may be read in two ways (a tuple of two pairs), or whose
    columns do not fit the operator's arguments, and for a score that there is not; `TypeError` for what is no operator,
    no data, no score, or no key. Of a file `to`, before anything is asked: `ValueError` for one with rows of other
    data, another operator, key or score, `ImportError` for Parquet without pyarrow, `OSError` for one that cannot be
    written, which is raised at the end if that is found out later.
    """
    return evaluate_all({name_of(op): op}, data, score, key=key, gold=gold, to=to)[name_of(op)]


def evaluate_all(
    operators: Mapping[str, Callable[..., Any]],
    data: Any,
    score: str | Score,
    *,
    key: Key | None = None,
    gold: str | None = None,
    to: str | os.PathLike[str] | None = None,
) -> dict[str, Result]:
    """Evaluates several operators in one sweep, and returns their results by name; else as `evaluate`.

    `to` is for a single operator.
    """
    check_key(key)
    by = scorer(score, key)
    columns = columns_of(data)
    right = gold_of(columns, gold, operators)
    rows = {name: asked(name, op, columns, right, key, by.is_keyed) for name, op in operators.items()}
    gold_array = None if by.in_program is None else as_array(right, columns[right])
    questions = {name: row.question for name, row in rows.items()}
    given = (operators, questions, by.in_program, score if isinstance(score, str) else None)
    lanes = {name: (row.arguments, row.keys) for name, row in rows.items()}
    with contextlib.ExitStack() as inside:
        at = None
        if to is not None:
            (row,) = rows.values()
            operator = _digest(given, lanes, gold_array, key, name_of(by.fn))
            asks = columns[row.names[row.question]]
            read = functools.partial(_read, by, isinstance(score, str), asks, columns[right])
            file = RowFile(to, columns, operator, read)
            inside.callback(file.close)
            at = addresses(inside.enter_context(receiving(file.add)), len(columns[right]))
        spans = inside.enter_context(Spans(sessions.current(), f"{_PROGRAM}/metered/attempt"))
        with typed_errors():
            found = jax.block_until_ready(jax.vmap(functools.partial(_row, *given))(lanes, gold_array, at))
    of_row = lambda name: spans.seconds(_scope(name), len(columns[right]))
    return {name: _result(found[name], by, rows[name], columns, right, of_row(name)) for name in operators}


def _in_program(
    operators: Mapping[str, Callable[..., Any]],
    questions: Mapping[str, str],
    judge: Scorer | None,
    named: str | None,
    lanes: Mapping[str, tuple[dict[str, Any], Key | None]],
    gold: Any,
    at: Any,
) -> dict[str, Answered]:
    """A row of the program; `at` is where it is delivered to, `None` for nowhere."""
    found = {}
    for name, op in operators.items():
        arguments, key = lanes[name]
        found[name] = answered(_scope(name), judge, op, (), arguments, (arguments[questions[name]], gold, key))
        if named is not None:
            _require_one(name, found[name].answer.out, named)
        if at is not None:
            deliver(at, _without_usage(found[name]))
    return found


_in_program.__name__ = _PROGRAM  # the first part of the scope of its calls
_row = jit(_in_program)


def _require_one(name: str, out: Any, score: str) -> None:
    """Raises `TypeError` for a result that no named score can compare, while nothing is paid yet."""
    if not isinstance(out, Text | jax.Array) or out.ndim:
        kind = f"{type(out).__name__} of rank {out.ndim}" if isinstance(out, Text | jax.Array) else type(out).__name__
        raise TypeError(
            f"{name} gives a {kind}, and the score {score!r} compares one text, or one number. Let the operator return "
            "that, or give a function `score=lambda answer, gold: …`, which gets what it gives."
        )


def _scope(name: str) -> str:
    return name.replace("/", ":")  # which sets operators apart in a scope


# -- the file of rows ------------------------------------------------------------------------------------------------


def _without_usage(found: Answered) -> Answered:
    """What is written of a row: each array that is delivered takes time."""
    score = None if found.score is None else found.score._replace(usage=None)
    return Answered(found.answer._replace(usage=None), score)


def _read(
    by: Scorer, is_named: bool, questions: Sequence[Any], golds: Sequence[Any], found: Any, indices: Sequence[int]
) -> LanesRead:
    """What rows that were delivered are, as they are written. Called in a thread."""
    if not is_named and by.in_program is None:
        causes = causes_of(found.answer)
        return LanesRead(values_of(found.answer.out, causes), [None] * len(causes), causes)
    answers, scores, causes = scored(found, by, [questions[i] for i in indices], [golds[i] for i in indices])
    return LanesRead(answers, scores.tolist(), causes)


def _digest(given: tuple[Any, ...], lanes: Any, gold: Any, key: Key | None, score: str) -> str:
    """Of all that answers depend on besides the row: the operator's plan and its words and numbers, key and score.

    The plan is that of one row, and so the same for any number of rows.
    """
    first = jax.tree.map(lambda column: column[0], (lanes, gold))
    program, inputs = program_of(boundary_for(_in_program), (*given, *first, None), {})
    values = [*inputs[: len(inputs) - len(jax.tree.leaves(first))], *([] if key is None else [key])]
    arrays = [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in values]
    data = [part for a in arrays for part in (f"{a.dtype}{a.shape}", a.tobytes())]
    return digest(described(program.plan), *data, score)


def _result(found: Answered, by: Scorer, row: Asked, columns: Columns, right: str, seconds: np.ndarray) -> Result:
    answers, scores, causes = scored(found, by, columns[row.names[row.question]], columns[right])
    usage = found.answer.usage
    score_costs = np.zeros(len(answers)) if found.score is None else found.score.usage.cost
    return Result(
        data=columns,
        gold=right,
        answers=answers,
        scores=scores,
        causes=tuple(causes),
        seconds=seconds,
        calls=np.asarray(usage.calls),
        input_tokens=np.asarray(usage.input_tokens),
        output_tokens=np.asarray(usage.output_tokens),
        costs=np.asarray(usage.cost, np.float64),
        score_costs=np.asarray(score_costs, np.float64),
        cut=np.asarray(usage.cut),
    )
