"""Where numeric segments run: a CPU device of our own, which nobody else's programs occupy.

Design note. JAX's CPU device has places for 32 programs in flight. A program that only waits for another's result holds
a place too, and whoever dispatches one more waits for a place. A loop that dispatches without looking at results
(`loss = step(params)` many times, or forty `jnp` operations on one answer) takes all places. Then the callback of the
first program, whose segments need a place, would wait for one that is free only when that program has ended: for ever,
in plain JAX as well (0.10.2, `tests/test_deadlock.py`). A client of our own has its own places. It also runs a program
in the thread that asks for it, without handing it over to a pool: 27 us instead of 68 for a small one.

Where no such client can be made, segments run where everything does, as safe as plain JAX.
"""

import functools
import threading
from typing import Any

import jax

from .._jax.internals import new_cpu_device

_lock = threading.Lock()


def device() -> Any:
    """The device, made on first use; no part of `jax.devices()`."""
    with _lock:  # `functools.cache` alone lets two threads make one each
        return _device()


@functools.cache
def _device() -> Any:
    return new_cpu_device() or jax.local_devices(backend="cpu")[0]
