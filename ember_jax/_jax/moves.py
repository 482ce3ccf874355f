"""Equations that move the entries of arrays and change none, or pick some of them: done with NumPy, without XLA."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex


def is_move(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation only moves the entries of its operands."""
    return eqn.primitive.name in _MOVES


def moved(eqn: jex.JaxprEqn, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The result of an equation that is a move; `None` where it is written in a way that is not known."""
    try:
        return _MOVES[eqn.primitive.name](eqn.params, *arrays)
    except (KeyError, AttributeError):
        return None


def picks_from(eqn: jex.JaxprEqn) -> slice | None:
    """Which operands an equation picks whole entries of for its result, it is not known here which; or `None`.

    For `dynamic_slice` and `gather` that is the first one, whose entries along leading axes are picked.
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
# What picks among its operands, with where these stand.
_CHOICES = {"dynamic_slice": slice(1), "gather": slice(1), "select_n": slice(1, None)}
