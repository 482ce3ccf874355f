"""Equations that only move the entries of arrays, or only pick some of them. NumPy runs the moves without XLA."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex


def is_move(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation only moves the entries of its operands."""
    return eqn.primitive.name in _MOVES


def moved(eqn: jex.JaxprEqn, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The result of an equation that is a move; `None` if its parameters have a form that is not known."""
    try:
        return _MOVES[eqn.primitive.name](eqn.params, *arrays)
    except (KeyError, AttributeError):
        return None


def picks_from(eqn: jex.JaxprEqn) -> slice | None:
    """The operands out of which an equation picks its result, as a slice of its operands; `None` if it picks nothing.

    Which entries are picked depends on the other operands and is not known here. `dynamic_slice` and `gather` pick
    entries of the first operand, along leading axes; `select_n` picks among all operands after the first.
    """
    return _CHOICES.get(eqn.primitive.name)


def _broadcast(params: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    shape, places = params["shape"], params["broadcast_dimensions"]
    spread = [x.shape[places.index(axis)] if axis in places else 1 for axis in range(len(shape))]
    return np.broadcast_to(x.reshape(spread), shape)


def _slice(params: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    starts, limits = params["start_indices"], params["limit_indices"]
    return x[tuple(map(slice, starts, limits, params["strides"] or [None] * len(starts)))]


_MOVES: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "slice": _slice,
    "squeeze": lambda params, x: np.squeeze(x, params["dimensions"]),
    "stack": lambda params, *xs: np.stack(xs, params["axis"]),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
}
# The primitives that pick, and the operands that they pick from.
_CHOICES = {"dynamic_slice": slice(1), "gather": slice(1), "select_n": slice(1, None)}
