"""Somebody's own callback runs in a thread, as it may block."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._jax.equations import Host
from ..._jax.jaxprs import evaluate
from ..._jax.nan import nan_is_a_value
from ..._jax.values import from_raw, to_raw
from ..._plan import ir
from ..device import device
from ..lane import Frame, inputs_of
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.Foreign) -> None:
    work = functools.partial(_evaluate, node, inputs_of(frame, node), machine.runners.x64)
    machine.tasks.await_step(frame, index, machine.threads.run(work))


def _evaluate(node: ir.Foreign, raw: Sequence[Any], x64: bool) -> list[np.ndarray]:
    """Runs the equation as JAX would, outside any program."""
    with jax.enable_x64(x64):
        seen = node.seen
        with jax.default_device(device()), nan_is_a_value():
            values = [from_raw(jnp.asarray(x), v.aval) for x, v in zip(raw, seen.eqn.invars, strict=True)]
        # a callback is called as it is: to compile a program around each would gain nothing
        outs = seen.callback(*values) if isinstance(seen, Host) else evaluate(seen.eqn, values)
        return [np.asarray(to_raw(out)) for out in outs]
