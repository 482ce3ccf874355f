"""`table`: what nested `vmap`s return, as the columns of a long-form table."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import TextError
from .text import Text

Column = list[Any] | np.ndarray


def table(results: Any, /, **axes: Any) -> dict[str, Column]:
    """Turns the results of nested `vmap`s into columns, one row for each lane: `pandas.DataFrame(ember.table(…))`.

    ```python
    answers = jax.vmap(lambda llm: jax.vmap(llm)(questions))(llms)       # Text["models questions"]
    ember.table({"answer": answers}, model=names, question={"question": questions, "subject": subjects})
    # {"model": […], "question": […], "subject": […], "answer": […]}
    ```

    **Arguments:**

    - `results`: a pytree of arrays, keys and Texts that all begin with the axes named.
    - `axes`: what each leading axis is, in the order of the `vmap`s, the outermost first. For each a sequence of its
        labels (a list, an array, a Text, a Series), a dictionary of several such sequences, each a column under its own
        name (and none under the axis's), or the axis's length, for the labels 0, 1, ….

    **Returns:** the columns by name, the labels first. The index of the outermost axis changes slowest from row to row.
    Each leaf of `results` is a column named by its path, joined with dots (`usage.cost`); the column is named `value`
    if the leaf is the whole of `results`. A column of numbers is a NumPy array, a column of words a list of `str`. If a
    leaf has axes beyond those named, each entry of its column is a nested list.

    **Raises:** `TextError` if a leaf's shape does not begin with the lengths of the axes (the message names the axis),
    if two columns have one name, or for labels that are no sequence.
    """
    labels = {axis: _labels(axis, given) for axis, given in axes.items()}
    lengths = {axis: _length(axis, columns) for axis, columns in labels.items()}
    shape = tuple(lengths.values())
    rows = np.indices(shape).reshape(len(shape), math.prod(shape))
    out: dict[str, Column] = {}
    for (axis, columns), row in zip(labels.items(), rows, strict=True):
        for name, column in columns.items():
            _add(out, name, _take(column, row), f"axis `{axis}`")
    leaves, _ = jax.tree_util.tree_flatten_with_path(results, is_leaf=lambda node: isinstance(node, Text))
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        _add(out, name, _column(name, leaf, lengths), "the results")
    return out


def _add(out: dict[str, Column], name: str, column: Column, source: str) -> None:
    if name in out:
        raise TextError(
            f"two columns of ember.table are named `{name}`; the second is from {source}. Rename the axis, the key "
            "of its dictionary, or the leaf of the results."
        )
    out[name] = column


# -- labels ----------------------------------------------------------------------------------------------------------


def _labels(axis: str, given: Any) -> dict[str, Column]:
    if isinstance(given, Mapping):
        return {str(name): _sequence(f"{axis}[{name!r}]", column) for name, column in given.items()}
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return {axis: np.arange(given)}
    return {axis: _sequence(axis, given)}


def _sequence(name: str, given: Any) -> Column:
    given = given.tolist() if isinstance(given, Text) else given
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return list(given)
    array = _numpy(given)  # an array, or what NumPy makes one of, such as a pandas Series
    if array.ndim:
        return array if array.ndim == 1 else array.tolist()
    raise TextError(
        f"`{name}` of ember.table is {given!r:.80}; an axis takes a sequence of its labels, a dictionary of such "
        "sequences, or its length."
    )


def _length(axis: str, columns: dict[str, Column]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise TextError(
            f"the columns of axis `{axis}` of ember.table have lengths {lengths}; they need one, the axis's."
        )
    return next(iter(lengths.values()))


def _take(column: Column, rows: np.ndarray) -> Column:
    return column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows.tolist()]


# -- results ---------------------------------------------------------------------------------------------------------


def _column(name: str, leaf: Any, lengths: dict[str, int]) -> Column:
    array = _of_leaf(name, leaf)
    for i, (axis, length) in enumerate(lengths.items()):
        if array.shape[i : i + 1] != (length,):
            raise TextError(
                f"axis `{axis}` of ember.table has length {length}, but the results' leaf `{name}` has shape "
                f"{array.shape}, in which it would be axis {i}. Name the axes in the order of the vmaps, the outermost "
                "first."
            )
    rows = array.reshape(math.prod(lengths.values()), *array.shape[len(lengths) :])
    return rows if rows.ndim == 1 and rows.dtype != object else rows.tolist()


def _of_leaf(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, Text):
        return np.asarray(leaf)
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        return _numpy(leaf)
    if isinstance(leaf, str):
        return np.asarray(leaf, object)
    hint = " Register its class with jax.tree_util.register_dataclass." if dataclasses.is_dataclass(leaf) else ""
    raise TextError(
        f"the results' leaf `{name}` of ember.table is of type {type(leaf).__name__}; it takes arrays and Texts.{hint}"
    )


def _numpy(array: Any) -> np.ndarray:
    """An array in NumPy's own dtypes: pandas knows neither JAX's keys, which become their key data, nor bfloat16."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(array))
    array = np.asarray(array)
    # 2 says that a package added the dtype to NumPy: it is one of ml_dtypes. All of these fit into float32 or int32.
    if array.dtype.isbuiltin == 2:
        return array.astype(np.float32 if jnp.issubdtype(array.dtype, jnp.inexact) else np.int32)
    return array
