"""`Maybe` and `Many`: a value that may be absent, and a list of any length up to a bound, in arrays of a fixed size.

Design note. JAX fixes every shape when it traces. So what is absent, or behind the end of a list, has a place all the
same: zeros, `False` or empty words stand in it, and an array beside it says so. A value that no answer has, such as
NaN, was rejected: integers and words have none, and a NaN behind a mask spoils gradients.
"""

import dataclasses
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

_T = TypeVar("_T")


class Maybe(eqx.Module, Generic[_T]):
    """A value that may be absent.

    **Attributes:**

    - `value`: the value; zeros, `False` or empty words where it is absent.
    - `is_there`: boolean, whether it is there.
    """

    value: Any
    is_there: jax.Array

    def tolist(self) -> Any:
        """The value as plain Python, or `None`; of several lanes, nested lists of these."""
        return _plain(jax.tree.map(np.asarray, self), self.is_there.ndim)


class Many(eqx.Module, Generic[_T]):
    """A list of any length up to a bound.

    **Attributes:**

    - `values`: the values, with a further axis of the bound's size; zeros, `False` or empty words behind the end.
    - `length`: int32, how many there are.
    """

    values: Any
    length: jax.Array

    @property
    def mask(self) -> jax.Array:
        """Which values are there: booleans, with the further axis."""
        bound = jax.tree.leaves(self.values)[0].shape[self.length.ndim]
        places = jax.lax.broadcasted_iota(jnp.int32, (*self.length.shape, bound), self.length.ndim)
        return places < jnp.expand_dims(self.length, -1)

    def tolist(self) -> Any:
        """The values as plain Python, in a list of their number; `None` where the call failed (see `ember.attempt`). Of
        several lanes, nested lists of these."""
        return _plain(jax.tree.map(np.asarray, self), self.length.ndim)


def _plain(tree: Any, lanes: int = 0) -> Any:
    """What a pytree of NumPy arrays means; `lanes` is the number of axes before those of one answer."""
    if lanes:
        return [_plain(_at(tree, i), lanes - 1) for i in range(len(jax.tree.leaves(tree)[0]))]
    match tree:
        case Maybe():
            return _plain(tree.value) if tree.is_there else None
        case Many():  # a length that failed is the least integer
            return [_plain(_at(tree.values, i)) for i in range(tree.length)] if tree.length >= 0 else None
        case _ if hasattr(tree, "tolist"):  # a Text, whose methods give what is here, or an array
            return tree.tolist()
        case _:  # an instance of a class of fields
            return jax.tree.map(_plain, tree, is_leaf=lambda inner: hasattr(inner, "tolist"))


def _at(tree: Any, index: int) -> Any:
    # An array of rank 0 in place of a scalar, which is no array.
    return jax.tree.map(lambda array: array[index, ...], tree)


@dataclasses.dataclass(frozen=True)
class Bound:
    """How many elements a list has at most."""

    most: int


def at_most(most: int) -> Bound:
    """The bound of a list in a class of fields, as in `topics: Annotated[list[str], ember.at_most(5)]`.

    **Raises:** `ValueError` for a bound that is no whole number of at least 1.
    """
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"at_most({most!r}): give a whole number, at least 1.")
    return Bound(most)
