"""Data sets as columns, and columns as the arguments of operators.

Nothing is imported to know a kind of data set by: a data frame, or a data set of Hugging Face, is met by the names of
its columns, anything else by its length and its rows.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._text.operations import fold_in
from .._text.text import text
from .._types import Key, key_problem

Columns = dict[str, list[Any]]

# What columns are called that hold the right answer, and that hold the question; of pairs, the first of each.
_GOLD = ("gold", "answer", "target", "label")
_QUESTION = ("question", "prompt", "input", "query", "problem", "text")


class Asked(NamedTuple):
    """What an operator is called with.

    **Fields:**

    - `names`: the column of each argument, by the argument's name.
    - `arguments`: the columns as arrays and Texts, by the argument's name.
    - `keys`: one for each row, `None` if the operator is called without.
    """

    names: Mapping[str, str]
    arguments: dict[str, Any]
    keys: Key | None


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
    names = getattr(data, "column_names", None)  # Hugging Face
    names = getattr(data, "columns", None) if names is None else names  # pandas, polars
    if isinstance(names, Mapping):
        raise TypeError(f"this is a data set of several splits; evaluate one, such as data[{next(iter(names), '')!r}].")
    if isinstance(data, Mapping) or names is not None:
        return {str(name): _list(str(name), data[name]) for name in (data if names is None else names)}
    if isinstance(data, str) or not _has(data, "__getitem__") or not _has(data, "__len__"):
        hint = "; make a list of it" if _has(data, "__next__") else ""
        raise TypeError(
            "data is a list of (question, gold) pairs or of dicts, a dict of columns, a data frame, or anything that "
            f"has a length and can be indexed, not {type(data).__name__}{hint}."
        )
    rows = data.tolist() if _has(data, "tolist") else [data[i] for i in range(len(data))]  # arrays, and pandas' series
    return _of_rows(rows)


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
    raise TypeError(f"row {i} of the data is a {type(row).__name__}; give (question, gold) pairs, or dicts.")


def _list(name: str, column: Any) -> list[Any]:
    if isinstance(column, str) or not _has(column, "__iter__"):
        raise TypeError(f"the column {name!r} of the data is a {type(column).__name__}, not a list of values.")
    return [_plain(value) for value in (column.tolist() if _has(column, "tolist") else column)]


def _plain(value: Any) -> Any:
    """Without NumPy and pandas: what is written out, and so a row's key, must not depend on what held the data."""
    if _has(value, "tolist"):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _has(value: Any, method: str) -> bool:
    return callable(getattr(value, method, None))


# -- arguments -------------------------------------------------------------------------------------------------------


def gold_of(columns: Columns, given: str | None, operators: Mapping[str, Callable[..., Any]]) -> str:
    """The name of the column with the right answers: the one given, or one of the usual names.

    **Raises:** `ValueError` if it is not there.
    """
    taken = {name for op in operators.values() for name in _parameters(op)}
    found = [given] if given is not None else [name for name in _GOLD if name not in taken]
    name = next((name for name in found if name in columns), None)
    if name is None:
        how = f"no column {given!r}" if given is not None else f"no column of right answers ({', '.join(_GOLD)})"
        raise ValueError(
            f"the data has {how} among its columns {_quoted(columns)}; name it, as in evaluate(…, gold='solution')."
        )
    return name


def asked(name: str, op: Callable[..., Any], columns: Columns, gold: str, key: Key | None) -> Asked:
    """What an operator is called with, row by row.

    **Raises:** `ValueError` where an argument has no column; `TypeError` for a column that is no array.
    """
    names = _matched(name, op, columns, gold)
    arguments = {argument: as_array(column, columns[column]) for argument, column in names.items()}
    return Asked(names, arguments, _keys(op, [columns[c] for c in names.values()], key))


def _matched(name: str, op: Callable[..., Any], columns: Columns, gold: str) -> dict[str, str]:
    parameters = _parameters(op)
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


def _parameters(op: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What an operator takes besides its key."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(op).parameters
    return {name: p for name, p in given.items() if name != "key" and p.kind not in several}


def as_array(name: str, column: Sequence[Any]) -> Any:
    """A column as a Text or an array.

    **Raises:** `TypeError` for values that are neither, or of unequal shapes.
    """
    try:
        if _is_text(column):  # not through NumPy, which makes each string as long as the longest
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


def _keys(op: Callable[..., Any], columns: Sequence[Sequence[Any]], key: Key | None) -> Key | None:
    """A key for each row, folded from what is asked, so that rows may come and go; `None` where none is needed."""
    parameter = inspect.signature(op).parameters.get("key")
    if parameter is None or (key is None and parameter.default is not inspect.Parameter.empty):
        return None
    key = jax.random.key(0) if key is None else key
    if problem := key_problem(key):
        raise TypeError(f"evaluate(key=…) is {problem}.")
    keys = jnp.broadcast_to(key, (len(columns[0]), *key.shape))
    for column in columns:
        words = text([value if isinstance(value, str) else repr(value) for value in column])
        keys = jax.vmap(fold_in)(keys, words)
    return keys


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _listed(columns: Columns, told: str) -> str:
    return told.format(_quoted(columns)) if columns else ""
