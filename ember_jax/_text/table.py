"""`table`: what nested `vmap`s return, as the columns of a long-form table.

Design note. A lane that failed is a row like the others, with `None` where it has no words and a column that says why.
To raise its cause there, as what needs the words does, was rejected: one lane would hide the rows of all others.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import TextError, told
from . import failed, store
from .text import Text

ColumnValues = list[Any] | np.ndarray


def table(results: Any, /, *, errors: Literal["none", "raise"] = "none", **axes: Any) -> dict[str, ColumnValues]:
    """Turns the results of nested `vmap`s into columns, one row for each lane: `pandas.DataFrame(ember.table(…))`.

    ```python
    answers = jax.vmap(lambda llm: jax.vmap(llm)(questions))(llms)       # Text["models questions"]
    ember.table({"answer": answers}, model=names, question={"question": questions, "subject": subjects})
    # {"model": […], "question": […], "subject": […], "answer": […]}
    ```

    **Arguments:**

    - `results`: a pytree of arrays, keys and Texts that all begin with the axes named.
    - `errors`: what becomes of lanes with failed text (see `ember.attempt`). With `"none"` their words, and integers
        that failed, are `None`, and a last column `cause` says why, in words; it is `None` for lanes that did not fail,
        and left out if none did. With `"raise"` the cause of the first such lane is raised.
    - `axes`: what each leading axis is, in the order of the `vmap`s, the outermost first. For each a sequence of its
        labels (a list, an array, a Text, a Series), a dictionary of several such sequences, each a column under its own
        name (and none under the axis's), or the axis's length, for the labels 0, 1, ….

    **Returns:** the columns by name, the labels first. The index of the outermost axis changes slowest from row to row.
    Each leaf of `results` is a column named by its path, joined with dots (`usage.cost`); the column is named `value`
    if the leaf is the whole of `results`. A column of numbers is a NumPy array, a column of words a list of `str`. If a
    leaf has axes beyond those named, each entry of its column is a nested list.

    **Raises:** `TextError` if a leaf's shape does not begin with the lengths of the axes (the message names the axis),
    if two columns have one name, for labels that are no sequence, or for other `errors`; the cause of a failed lane,
    with `errors="raise"`.
    """
    if not isinstance(errors, str) or errors not in ("none", "raise"):
        raise TextError(
            f'errors={errors!r:.80} of ember.table is neither "none" nor "raise". (An axis needs another name.)'
        )
    labels = {axis: _labels(axis, given) for axis, given in axes.items()}
    lengths = {axis: _length(axis, columns) for axis, columns in labels.items()}
    shape = tuple(lengths.values())
    indices = np.indices(shape).reshape(len(shape), math.prod(shape))
    out: dict[str, ColumnValues] = {}
    for (axis, columns), index in zip(labels.items(), indices, strict=True):
        for name, column in columns.items():
            _add(out, name, _take(column, index), f"axis `{axis}`")
    leaves, _ = jax.tree_util.tree_flatten_with_path(results, is_leaf=lambda node: isinstance(node, Text))
    named = [(jax.tree_util.keystr(path, simple=True, separator=".") or "value", leaf) for path, leaf in leaves]
    found = [(name, _rows(name, leaf, lengths)) for name, leaf in named]
    causes = _causes([leaf for _, leaf in named if isinstance(leaf, Text)], math.prod(shape))
    if errors == "raise" and causes:
        raise causes[min(causes)].with_traceback(None)
    is_failed = np.isin(np.arange(math.prod(shape)), list(causes))
    for name, rows in found:
        _add(out, name, _column(rows, is_failed), "the results")
    if causes:
        why = [told(causes[row]) if row in causes else None for row in range(math.prod(shape))]
        _add(out, "cause_of_failure" if "cause" in out else "cause", why, "lanes that failed")
    return out


def _causes(texts: Sequence[Text], rows: int) -> dict[int, BaseException]:
    """Why the first of a row's texts failed, for each row in which one did."""
    digests = [np.asarray(t.digests).reshape(rows, t.size // max(rows, 1) * store.DIGEST_WORDS) for t in texts]
    if failed.first(digests) is None:
        return {}
    found = enumerate(map(failed.first, zip(*digests, strict=True)))
    return {row: failed.cause_of(digest) for row, digest in found if digest is not None}


def _add(out: dict[str, ColumnValues], name: str, column: ColumnValues, source: str) -> None:
    if name in out:
        raise TextError(
            f"two columns of ember.table are named `{name}`; the second is from {source}. Rename the axis, the key "
            "of its dictionary, or the leaf of the results."
        )
    out[name] = column


# -- labels ----------------------------------------------------------------------------------------------------------


def _labels(axis: str, given: Any) -> dict[str, ColumnValues]:
    if isinstance(given, Mapping):
        return {str(name): _sequence(f"{axis}[{name!r}]", column) for name, column in given.items()}
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return {axis: np.arange(given)}
    return {axis: _sequence(axis, given)}


def _sequence(name: str, given: Any) -> ColumnValues:
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


def _length(axis: str, columns: dict[str, ColumnValues]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise TextError(
            f"the columns of axis `{axis}` of ember.table have lengths {lengths}; they need one, the axis's."
        )
    return next(iter(lengths.values()))


def _take(column: ColumnValues, rows: np.ndarray) -> ColumnValues:
    return column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows.tolist()]


# -- results ---------------------------------------------------------------------------------------------------------


def _rows(name: str, leaf: Any, lengths: dict[str, int]) -> np.ndarray:
    """A leaf with one axis for the rows, before any further ones."""
    array = _of_leaf(name, leaf)
    for i, (axis, length) in enumerate(lengths.items()):
        if array.shape[i : i + 1] != (length,):
            raise TextError(
                f"axis `{axis}` of ember.table has length {length}, but the results' leaf `{name}` has shape "
                f"{array.shape}, in which it would be axis {i}. Name the axes in the order of the vmaps, the outermost "
                "first."
            )
    return array.reshape(math.prod(lengths.values()), *array.shape[len(lengths) :])


def _column(rows: np.ndarray, is_failed: np.ndarray) -> ColumnValues:
    # The least integer stands for one that failed; in the column it would be taken for a number. NaN is none, and
    # whether False is a failure does not show.
    if rows.dtype.kind == "i" and is_failed.any():
        lost = (rows == failed.number(rows.dtype)) & is_failed.reshape(-1, *[1] * (rows.ndim - 1))
        if lost.any():
            rows = rows.astype(object)
            rows[lost] = None
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
