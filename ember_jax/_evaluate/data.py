"""Data sets as columns, and columns as the arguments of operators.

No library is imported to recognise a kind of data set. A data frame, or a data set of Hugging Face, is recognised by
having names of columns, and anything else is read by its length and its rows. One rule tells rows from columns: a tuple
of two is two columns, the questions and the right answers; any other sequence is a sequence of rows.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._text.operations import fold_in
from .._text.text import text
from .._types import Key, key_problem
from .signatures import parameters_of, takes_key

Columns = dict[str, list[Any]]

# The usual names of the column of right answers, and of that of questions. The two columns of pairs get the first of
# each.
_GOLD = ("gold", "answer", "target", "label")
_QUESTION = ("question", "prompt", "input", "query", "problem", "text")


class Asked(NamedTuple):
    """What an operator is called with.

    **Fields:**

    - `names`: the name of the column of each argument, by the argument's name.
    - `arguments`: the columns as arrays and Texts, with one row for each row of the data, by the argument's name; and
        `key` if the operator is called with one.
    - `keys`: a key for each row; `None` if neither the operator nor a score is called with one.
    """

    names: Mapping[str, str]
    arguments: dict[str, Any]
    keys: Key | None

    @property
    def question(self) -> str:
        """The name of the operator's first argument, which is what a score gets as the question."""
        return next(iter(self.names))


# -- columns ---------------------------------------------------------------------------------------------------------


def columns_of(data: Any) -> Columns:
    """A data set's columns, as lists of Python's own values.

    **Raises:** `TypeError` for what is no data set; `ValueError` for one without rows, or whose columns are of unequal
    length.
    """
    columns = _columns(data)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of the data are of unequal length: {lengths}.")
    if not any(lengths.values()):
        raise ValueError(f"the data has no rows{_listed(columns, ' in its columns {}')}.")
    return columns


def _columns(data: Any) -> Columns:
    if _is_two_columns(data):
        questions, golds = data
        asked = {_QUESTION[0]: questions} if _names(questions) is None else _columns(questions)
        return {name: _list(name, column) for name, column in {**asked, _GOLD[0]: golds}.items()}
    names = _names(data)
    if names is not None:
        return {str(name): _list(str(name), data[name]) for name in names}
    if isinstance(data, str) or not _has(data, "__getitem__") or not _has(data, "__len__"):
        hint = "; make a list of it" if _has(data, "__next__") else ""
        raise TypeError(
            "data is a list of (question, gold) pairs or of dicts, a tuple (questions, golds) of two columns, a dict "
            "of columns, a data frame, or anything that has a length and can be indexed, not "
            f"{type(data).__name__}{hint}."
        )
    rows = data.tolist() if _has(data, "tolist") else [data[i] for i in range(len(data))]  # arrays, and pandas' series
    return _of_rows(rows)


def _names(data: Any) -> Sequence[Any] | None:
    """The names of the columns of data, if it has columns by name; else `None`.

    **Raises:** `TypeError` for a data set of several splits.
    """
    names = getattr(data, "column_names", None)  # Hugging Face
    names = getattr(data, "columns", None) if names is None else names  # pandas, polars
    if isinstance(names, Mapping):
        raise TypeError(f"this is a data set of several splits; take one, such as data[{next(iter(names), '')!r}].")
    if names is None and not isinstance(data, Mapping):
        return None
    return list(data if names is None else names)


def _is_two_columns(data: Any) -> bool:
    """Whether data is the tuple `(questions, golds)`.

    **Raises:** `ValueError` for a tuple of two pairs, which may be meant as two columns of length two or as two rows.
        To take either for the other would score answers against questions.
    """
    if not isinstance(data, tuple) or len(data) != 2 or all(isinstance(part, Mapping) for part in data):
        return False
    if all(isinstance(part, tuple) and len(part) == 2 for part in data):
        raise ValueError(
            "a tuple of two pairs may be two rows or two columns. Rows are a list, [(question, gold), …]; columns are "
            "lists in a tuple, ([question, …], [gold, …])."
        )
    return True


def _of_rows(rows: Sequence[Any]) -> Columns:
    """The columns of rows, which are dicts of equal keys, or pairs whose first one may be a dict of arguments."""
    dicts = [_as_dict(i, row) for i, row in enumerate(rows)]
    names = list(dicts[0]) if dicts else []
    for i, row in enumerate(dicts):
        if row.keys() != set(names):
            raise ValueError(f"row {i} of the data has the columns {sorted(row)}, where row 0 has {sorted(names)}.")
    return {name: [_plain(row[name]) for row in dicts] for name in names}


def _as_dict(i: int, row: Any) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return {str(name): value for name, value in row.items()}
    if isinstance(row, tuple | list) and len(row) == 2:
        asked = row[0] if isinstance(row[0], Mapping) else {_QUESTION[0]: row[0]}
        return {**asked, _GOLD[0]: row[1]}
    many = f" of {len(row)}" if _has(row, "__len__") and not isinstance(row, str) else ""
    raise TypeError(
        f"row {i} of the data is a {type(row).__name__}{many}; rows are (question, gold) pairs or dicts, and two "
        "columns are a tuple (questions, golds)."
    )


def _list(name: str, column: Any) -> list[Any]:
    values = column.tolist() if _has(column, "tolist") else column
    if isinstance(values, str | bytes | Mapping | AbstractSet) or not _has(values, "__iter__"):
        raise TypeError(f"the column {name!r} of the data is a {type(column).__name__}, not a list of values.")
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """A value as one of Python's own types.

    A row's key is made of its values in words, which must not depend on whether NumPy, pandas or a list held the data.
    """
    if _has(value, "tolist"):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _has(value: Any, method: str) -> bool:
    return callable(getattr(value, method, None))


# -- arguments -------------------------------------------------------------------------------------------------------


def gold_of(columns: Columns, given: str | None, operators: Mapping[str, Callable[..., Any]]) -> str:
    """The name of the column with the right answers: `given`, or else the first usual name that is there.

    A usual name that is an argument of an operator is not taken.

    **Raises:** `ValueError` if no such column is there.
    """
    taken = {argument for name, op in operators.items() for argument in _parameters(name, op)}
    found = [given] if given is not None else [name for name in _GOLD if name not in taken]
    name = next((name for name in found if name in columns), None)
    if name is None:
        how = f"no column {given!r}" if given is not None else f"no column of right answers ({', '.join(_GOLD)})"
        raise ValueError(f"the data has {how} among its columns {_quoted(columns)}; name it, as in `gold='solution'`.")
    return name


def asked(
    name: str, op: Callable[..., Any], columns: Columns, gold: str, key: Key | None, is_keyed: bool = False
) -> Asked:
    """What an operator is called with, row by row.

    **Arguments:**

    - `name`, `op`: the operator's name, for errors, and the operator.
    - `columns`: the data.
    - `gold`: the name of the column of right answers, which is no argument.
    - `key`: the key that the rows' keys are folded from; `None` for none.
    - `is_keyed`: whether anybody else, such as a score, is called with a row's key.

    **Raises:** `ValueError` where an argument has no column; `TypeError` for a column that is no array.
    """
    names = _matched(name, op, columns, gold)
    arguments = {argument: as_array(column, columns[column]) for argument, column in names.items()}
    takes = takes_key(op, key is not None)
    keys = row_keys([columns[c] for c in names.values()], key) if takes or is_keyed else None
    return Asked(names, {**arguments, "key": keys} if takes else arguments, keys)


def _matched(name: str, op: Callable[..., Any], columns: Columns, gold: str) -> dict[str, str]:
    """The column of each argument: the one of its name.

    If one argument has none, it gets the one column that is left, or the one that is left with a usual name.
    """
    parameters = _parameters(name, op)
    found = {argument: argument for argument in parameters if argument in columns and argument != gold}
    missing = [a for a, p in parameters.items() if p.default is inspect.Parameter.empty and a not in found]
    spare = [column for column in columns if column != gold and column not in found]
    usual = [column for column in spare if column in _QUESTION]
    for candidates in (usual, spare):
        if len(missing) == len(candidates) == 1:
            found[missing.pop()] = candidates[0]
    if not parameters:
        raise ValueError(f"{name} has no argument by name, so no column is its; give a function of (question).")
    if missing or not found:
        arguments = _quoted(missing or parameters)
        raise ValueError(
            f"{name} takes {arguments}, which {'is' if len(missing) == 1 else 'are'} not among the data's columns "
            f"{_quoted(columns)} ({gold!r} is the right answer). Columns are matched to arguments by name: rename one."
        )
    return {argument: found[argument] for argument in parameters if argument in found}


def _parameters(name: str, op: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of an operator that can be given by name, without its key."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = parameters_of(op, f"the operator {name!r}")
    return {argument: p for argument, p in parameters.items() if argument != "key" and p.kind in named}


def as_array(name: str, column: Sequence[Any]) -> Any:
    """A column as a Text or an array, with a row for each row of the data.

    **Raises:** `TypeError` for values that are neither text nor numbers, for unequal shapes, and for integers that do
    not fit into JAX's own.
    """
    try:
        if _is_text(column):
            # Not by way of a NumPy array of strings, each of which takes as many bytes as the longest.
            return text(list(column))
        array = np.asarray(column)
        if array.dtype.kind not in "biufc":
            odd = next((i for i, value in enumerate(column) if not isinstance(value, bool | int | float)), 0)
            raise TypeError(f"row {odd} is {column[odd]!r:.60} of type {type(column[odd]).__name__}.")
        made = jnp.asarray(array)
    except (TypeError, ValueError) as error:  # JAX's and NumPy's; a TextError is one
        raise TypeError(f"the column {name!r} of the data is neither text nor numbers: {error}") from None
    if array.dtype.kind in "iu" and not np.array_equal(array, np.asarray(made)):
        raise TypeError(f"the column {name!r} of the data has integers that do not fit into {made.dtype}, JAX's own.")
    return made


def _is_text(value: Any) -> bool:
    while isinstance(value, Sequence) and value and not isinstance(value, str):
        value = value[0]
    return isinstance(value, str)


def check_key(key: Key | None) -> None:
    """Raises `TypeError` if `key` is neither a key nor `None`."""
    if key is not None and (problem := key_problem(key)):
        raise TypeError(f"`key` is {problem}.")


def row_keys(columns: Sequence[Sequence[Any]], key: Key | None) -> Key:
    """A key for each row, folded from the row's own values.

    Keys that were split by the row's number would change when a row is added or moved, and what the journal has of the
    other rows would be of no use.
    """
    key = jax.random.key(0) if key is None else key
    keys = jnp.broadcast_to(key, (len(columns[0]), *key.shape))
    for column in columns:
        words = text([value if isinstance(value, str) else repr(value) for value in column])
        keys = jax.vmap(fold_in)(keys, words)
    return keys


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _listed(columns: Columns, told: str) -> str:
    return told.format(_quoted(columns)) if columns else ""
