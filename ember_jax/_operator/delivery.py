"""Delivery: a lane's results handed over while other lanes still run.

Design note. It is a host call at the end of a lane, like any other: so its operands are what the lane gives, numbers
that XLA computes included, and the engine needs to know nothing of it. (To be told by the engine when a lane has ended
would not do: what it records are the lane's calls, of which the results are computed when all lanes have ended.) Who
is handed the results is named by a number among the operands, so that programs differ by it in nothing.
"""

import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._host import Caller, HostCall, invoke
from .._jax.values import to_raw
from .._runtime.session import Session

# Is handed the number of a lane, the tree of its results, and its leaves, on the event loop. What it returns is awaited
# before the lane ends, unless it is `None`.
Receiver: TypeAlias = Callable[[int, Any, Sequence[np.ndarray]], Awaitable[None] | None]

_receivers: dict[int, Receiver] = {}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class _Delivery(HostCall):
    """Hands over one lane's results."""

    ranks: tuple[int, ...]
    tree: Any
    pure = False

    def __str__(self) -> str:
        return "delivery"

    async def run(self, session: Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        receiver, lane = arrays[0].tolist()
        waited = _receivers[receiver](lane, self.tree, arrays[1:])
        if waited is not None:
            await waited
        return []


@contextlib.contextmanager
def receiving(receiver: Receiver) -> Iterator[int]:
    """Within, a receiver is handed what is delivered to its number, which this gives."""
    number = next(_numbers)
    _receivers[number] = receiver
    try:
        yield number
    finally:
        del _receivers[number]


def addresses(receiver: int, lanes: int) -> jax.Array:
    """Where each of some lanes delivers, as `int32[lanes, 2]`: to that receiver, with its own number."""
    return jnp.asarray(np.stack([np.full(lanes, receiver, np.int32), np.arange(lanes, dtype=np.int32)], axis=1))


def deliver(address: jax.Array, results: Any) -> None:
    """Hands over a pytree of arrays and Texts, in a program, when it is known. Keys go as their data."""
    leaves, tree = jax.tree.flatten(results)
    arrays = [to_raw(jnp.asarray(leaf)) for leaf in leaves]
    call = _Delivery((1, *(array.ndim for array in arrays)), tree)
    invoke(call, (), address, *arrays)
