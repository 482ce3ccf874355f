"""Text operations: pure Python on words, element by element, inside any JAX program.

Design note. A text operation is a callback: XLA gives it digests and receives digests or numbers. The operation is
elementwise over its leading axes, so a batch axis that `vmap` adds is one more leading axis and needs no batching rule.
An operator's plan runs the operation directly on the strings of one lane (`ElementwiseOp.one`), without XLA.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import _callback
from . import failed, store

Kind = Literal["text", "texts", "number"]
# What the function is given for one element of an operand:
# - TEXT: a string, which is one digest of the array;
# - TEXTS: a list of strings, which is the last axis of strings of the array;
# - NUMBER: a NumPy scalar.
# `_CORE_RANK` counts the axes of the array that belong to one element; a digest's own axis is one of them.
TEXT: Final = "text"
TEXTS: Final = "texts"
NUMBER: Final = "number"
_CORE_RANK = {TEXT: 1, TEXTS: 2, NUMBER: 0}


@dataclass(frozen=True)
class ElementwiseOp(_callback.HostFunction):
    """One text operation, compared by value: `function(*static, *elements)` for every element.

    `function` must be a function of a module and `static` must be hashable. Two calls of the same operation then
    compare equal, so JAX sees one callback and does not trace or compile a program again.

    **Arguments:**

    - `function`, `static`: what computes one element, and its leading arguments.
    - `operands`: what one element of each operand is. Each array has the same batch axes in front.
    - `result`: `TEXT`, or the dtype of the numbers that one element gives.
    - `shape`: the shape of one element's numbers; `()` for text. It is read only when an operand has failed, since
        `function` then does not run and gives no array whose shape could be taken.
    """

    function: Callable[..., Any]
    static: tuple[Hashable, ...]
    operands: tuple[Kind, ...]
    result: Literal["text"] | np.dtype
    shape: tuple[int, ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        """For each operand, how many trailing axes of its array belong to one element. The axes before are a batch."""
        return tuple(_CORE_RANK[kind] for kind in self.operands)

    def __call__(self, *arrays: Any) -> Sequence[np.ndarray]:
        arrays = tuple(np.asarray(a) for a in arrays)
        kind = self.operands[0]
        batch = arrays[0].shape[: arrays[0].ndim - _CORE_RANK[kind]]
        # Some element depends on failed text, so each element is run alone: the others still give their results.
        if self._first_failed(arrays) is not None:
            rows = [self.one([a[at] for a in arrays]) for at in np.ndindex(batch)]
            return [np.asarray(rows).reshape(*batch, *rows[0].shape)]
        columns = [_column(kind, array, len(batch)) for kind, array in zip(self.operands, arrays, strict=True)]
        results = [self.function(*self.static, *row) for row in zip(*columns, strict=True)]
        if self.result == TEXT:
            words = np.empty(len(results), object)  # not np.asarray(results): that is `<U`, which drops trailing NULs
            words[:] = results
            return [store.put_array(words).reshape(*batch, store.DIGEST_WORDS)]
        if not results:
            return [np.zeros((), self.result)]
        return [np.asarray(results, self.result).reshape((*batch, *np.shape(results[0])))]

    def one(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Runs on one element, without batch axes. A lane of a plan calls this; most runs are of this kind.

        **Arguments:**

        - `arrays`: one array for each operand, of the rank that `ranks` says.

        **Returns:** the digest `uint32[4]` of the result, or its numbers. If any text among the operands has failed,
        the function does not run and the result stands for the same failure.
        """
        if (digest := self._first_failed(arrays)) is not None:
            return failed.result(digest, self.shape, None if self.result is TEXT else self.result)
        values = [_element(kind, array) for kind, array in zip(self.operands, arrays, strict=True)]
        result = self.function(*self.static, *values)
        return store.put_one(result) if self.result is TEXT else np.asarray(result, self.result)

    def _first_failed(self, arrays: Sequence[np.ndarray]) -> bytes | None:
        return failed.first([a for kind, a in zip(self.operands, arrays, strict=True) if kind != NUMBER])

    def __str__(self) -> str:
        return self.function.__name__.strip("_")


def _element(kind: Kind, array: np.ndarray) -> Any:
    if kind == TEXT:
        return store.get(array.tobytes())
    return array[()] if kind == NUMBER else store.get_array(array)


def _column(kind: Kind, array: np.ndarray, batch_rank: int) -> list[Any]:
    if kind == NUMBER:
        return list(array.ravel())
    words = store.get_array(array)
    if kind == TEXT:
        return words
    # The number of rows is taken from the shape and not from `len(words) // length`, since the lists may be empty.
    length, rows = array.shape[batch_rank], int(np.prod(array.shape[:batch_rank], dtype=int))
    return [words[i * length : (i + 1) * length] for i in range(rows)]


def elementwise(
    function: Callable[..., Any],
    static: tuple[Hashable, ...],
    operands: Sequence[tuple[Any, Kind]],
    result: Literal["text"] | jax.ShapeDtypeStruct,
) -> jax.Array:
    """Applies a function to every element of some arrays, which broadcast against each other.

    **Arguments:**

    - `function`, `static`: `function(*static, *elements)` computes one element; see `ElementwiseOp` for what they must
        be.
    - `operands`: arrays (digests for text) with what one element of each is.
    - `result`: `TEXT`, or the shape and dtype of one element's numbers.

    **Returns:** digests `uint32[*batch, 4]`, or numbers `[*batch, *result.shape]`.
    """
    arrays = [jnp.asarray(array) for array, _ in operands]
    kinds: tuple[Kind, ...] = tuple(kind for _, kind in operands)
    cores = [a.shape[a.ndim - _CORE_RANK[k] :] for a, k in zip(arrays, kinds, strict=True)]
    batch = np.broadcast_shapes(*(a.shape[: a.ndim - len(c)] for a, c in zip(arrays, cores, strict=True)))
    arrays = [jnp.broadcast_to(a, (*batch, *c)) for a, c in zip(arrays, cores, strict=True)]
    if result == TEXT:
        out, dtype = jax.ShapeDtypeStruct((*batch, store.DIGEST_WORDS), np.uint32), TEXT
    else:
        out, dtype = jax.ShapeDtypeStruct((*batch, *result.shape), result.dtype), np.dtype(result.dtype)
    # An empty batch has no element to compute, so it makes no callback.
    if 0 in batch:
        return jnp.zeros(out.shape, out.dtype)
    shape = () if result == TEXT else result.shape
    op = ElementwiseOp(function, static, kinds, dtype, shape)
    return _callback.invoke(op, [out], *arrays)[0]
