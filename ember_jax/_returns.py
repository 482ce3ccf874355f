"""What a Python function returns: as it is declared, checked, and as bytes that can be kept."""

import base64
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ._jax.values import Aval
from ._text import failed, store
from ._text.text import Text, TextAnnotation, digests_of
from .errors import EmberError, HostResultError


@dataclasses.dataclass(frozen=True)
class _Out:
    """One result of a host function, without batch axes."""

    is_text: bool
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def aval(self) -> Aval:
        return Aval((*self.shape, store.DIGEST_WORDS), np.uint32) if self.is_text else Aval(self.shape, self.dtype)

    def __str__(self) -> str:
        return f"Text{list(self.shape)}" if self.is_text else f"{self.dtype}{list(self.shape)}"


def _is_spec(value: Any) -> bool:
    return value is Text or isinstance(value, TextAnnotation | Aval)


def _out_spec(leaf: Any) -> _Out:
    if leaf is Text or leaf is str:
        return _Out(True, (), np.dtype(object))
    if isinstance(leaf, TextAnnotation):
        try:
            return _Out(True, tuple(map(int, leaf.dimensions.split())), np.dtype(object))
        except ValueError:
            raise TypeError(f"ember.host: out={leaf!r} needs numbers as dimensions, as in ember.Text['3'].") from None
    if isinstance(leaf, Aval):
        return _Out(False, tuple(leaf.shape), np.dtype(jax.dtypes.canonicalize_dtype(leaf.dtype)))
    if any(leaf is scalar for scalar in (bool, int, float, complex)):
        return _Out(False, (), np.dtype(jax.dtypes.canonicalize_dtype(leaf)))
    raise TypeError(
        f"ember.host: out= holds {leaf!r}; it takes ember.Text, bool, int, float, a jax.ShapeDtypeStruct, or a pytree "
        "of them, such as jax.ShapeDtypeStruct((3,), jnp.float32)."
    )


class Returns:
    """What a function is declared to return. Compared by identity.

    **Arguments:**

    - `out`: the `out=` of `ember.host`.

    **Attributes:**

    - `avals`: the arrays that stand for it.
    """

    def __init__(self, out: Any):
        leaves, self._tree = jax.tree.flatten(out, is_leaf=_is_spec)
        self._specs = tuple(map(_out_spec, leaves))
        self._is_one = self._tree == jax.tree.structure(0)
        self.avals = tuple(spec.aval for spec in self._specs)

    def values(self, arrays: Sequence[Any]) -> Any:
        """What the caller gets: the tree, with Texts in it."""
        values = [Text(r) if spec.is_text else r for spec, r in zip(self._specs, arrays, strict=True)]
        return jax.tree.unflatten(self._tree, values)

    def failed(self, digest: bytes) -> list[np.ndarray]:
        """What stands for it where an argument is failed text."""
        return [failed.result(digest, s.shape, None if s.is_text else s.dtype) for s in self._specs]

    def read(self, name: object, result: Any) -> list[np.ndarray]:
        """What the function of a name has returned, as arrays. Raises `HostResultError` for anything else."""
        if self._is_one:
            return [_read(name, self._specs[0], result)]
        try:
            leaves = self._tree.flatten_up_to(result)
        except ValueError:
            declared = jax.tree.unflatten(self._tree, list(map(str, self._specs)))
            raise HostResultError(
                f"the host function {name} returned {_describe(result)}, but its out= says {declared}."
            ) from None
        return [_read(name, spec, leaf) for spec, leaf in zip(self._specs, leaves, strict=True)]

    # In memory, for as long as the digests in it mean words.

    def unpacked(self, raw: bytes) -> list[np.ndarray]:
        """The inverse of `packed`."""
        if self._is_one:
            return [np.frombuffer(raw, self.avals[0].dtype).reshape(self.avals[0].shape)]
        results, at = [], 0
        for aval in self.avals:
            end = at + aval.size * aval.dtype.itemsize
            results.append(np.frombuffer(raw[at:end], aval.dtype).reshape(aval.shape))
            at = end
        return results

    # In a journal, with the words themselves.

    def encoded(self, results: Sequence[np.ndarray]) -> bytes:
        """The arrays as JSON."""
        rows = [
            store.get_array(r) if spec.is_text else base64.b64encode(r.tobytes()).decode()
            for spec, r in zip(self._specs, results, strict=True)
        ]
        return json.dumps(rows).encode()

    def decoded(self, row: bytes) -> list[np.ndarray]:
        """The inverse of `encoded`."""
        results = []
        for spec, kept in zip(self._specs, json.loads(row), strict=True):
            if spec.is_text:
                words = np.empty(len(kept), object)
                words[:] = kept
                results.append(store.put_array(words).reshape(*spec.shape, store.DIGEST_WORDS))
            else:
                results.append(np.frombuffer(base64.b64decode(kept), spec.dtype).reshape(spec.shape))
        return results


def packed(results: Sequence[np.ndarray]) -> bytes:
    """Arrays as bytes."""
    return b"".join([r.tobytes() for r in results])


def _read(name: object, spec: _Out, leaf: Any) -> np.ndarray:
    if spec.is_text:
        return _words(name, spec, leaf)
    if type(leaf) is np.ndarray and leaf.dtype == spec.dtype and leaf.shape == spec.shape:
        return leaf.copy()  # the function may write into its own again
    try:
        array = np.asarray(leaf)
    except ValueError:  # ragged lists
        array = np.asarray(None)
    whole = spec.dtype.kind in "iu" and array.dtype.kind in "iu"
    fits = array.shape == spec.shape and (whole or np.can_cast(array.dtype, spec.dtype, "same_kind"))
    if not fits or (whole and not np.array_equal(array, array.astype(spec.dtype))):
        raise HostResultError(
            f"the host function {name} returned {_describe(leaf)}, but its out= says {spec}. "
            "Convert it in the function, or declare what it returns."
        )
    return array.astype(spec.dtype)


def _words(name: object, spec: _Out, leaf: Any) -> np.ndarray:
    if isinstance(leaf, str | list | tuple | Text) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OU"):
        try:
            digests = np.asarray(leaf.digests) if isinstance(leaf, Text) else digests_of(leaf)
        except EmberError as error:
            raise HostResultError(f"the host function {name} returned what is no Text: {error}") from None
        if digests.shape[:-1] == spec.shape:
            return digests
    raise HostResultError(f"the host function {name} returned {_describe(leaf)}, but its out= says {spec}.")


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray | jax.Array):
        return f"an array {value.dtype}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}: {value!r:.80}"
    return f"{value!r:.80} of type {type(value).__name__}"
