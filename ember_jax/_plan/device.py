"""Where numeric segments run: a CPU device of our own, that nobody else's programs occupy.

Design note. JAX's CPU device lets 32 programs be in flight, also those that only wait for another's result; who
dispatches one more waits for a place. A loop that dispatches without looking at results (`loss = step(params)` many
times, or forty `jnp` operations on one answer) takes them all, and then the first program's callback, whose segments
need a place too, waits for one that is free only when it has ended: for ever, in plain JAX as well (0.10.2,
`tests/test_deadlock.py`). A client of our own has its own places. It also runs a program in the thread that asks for
it, without the hand-over to a pool: 27 us instead of 68 for a small one.

This is the one file that makes such a client; JAX has no public name for it. With a JAX that has none at all segments
run where everything does, as safe as plain JAX.
"""

import functools
import threading
from typing import Any

import jax

_lock = threading.Lock()


def device() -> Any:
    """The device, made on first use; no part of `jax.devices()`."""
    with _lock:  # a cached function may run twice at once
        return _device()


@functools.cache
def _device() -> Any:
    try:  # jaxlib 0.10
        from jaxlib.xla_client import make_cpu_client

        client = make_cpu_client(asynchronous=False, num_devices=1)
    except (ImportError, TypeError):  # a later one has it elsewhere, or makes it otherwise
        return jax.local_devices(backend="cpu")[0]
    return client.local_devices()[0]
