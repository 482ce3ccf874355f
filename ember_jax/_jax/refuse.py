"""Refuses, when an operator is traced, equations that have no meaning in lanes which run side by side."""

from jax.extend import core as jex

from ..errors import UnsupportedError
from .equations import (
    Host,
    Print,
    While,
    binds_axes,
    calls_host,
    jaxprs_in,
    lanes_leave_alone,
    mapped_axes,
    meets_devices,
    name,
    touches_ref,
    view,
)


def refuse(jaxpr: jex.Jaxpr) -> None:
    """Checks an operator's jaxpr, and the jaxprs that it holds.

    **Raises:** `UnsupportedError`, which names the equation and a way out, for a collective or `axis_index` over an
    axis from outside the operator; for an ordered effect; for a mutable array beside calls; for a `shard_map` over
    several devices that makes calls; and for a `while_loop` with calls that `vmap` has made one loop of all lanes.
    """
    asks = any(map(calls_host, jaxpr.eqns))
    for eqn in jaxpr.eqns:
        if asks and touches_ref(eqn):
            raise UnsupportedError(
                f"a mutable array (`{name(eqn)}`, of jax.new_ref) stands in an operator beside calls. Steps of an "
                "operator run as soon as their data are there, so there is no order in which it would be written and "
                "read. Carry an array through the loop instead, as in `x = x.at[i].set(y)`, and return it."
            )
        if meets_devices(eqn) and calls_host(eqn):
            raise UnsupportedError(
                "a `shard_map` over several devices with calls in it stands inside an operator. An operator's calls "
                "are made on the host, where no device may wait for the others. Put the operator inside the shard_map, "
                "or map it with jax.vmap."
            )
        # Axes of a `vmap` inside the operator do not show: `vmap` has replaced collectives over them while tracing.
        axes = mapped_axes(eqn)
        if axes:
            raise UnsupportedError(
                f"`{name(eqn)}` over the axis {', '.join(axes)!r} stands inside an operator. An operator's "
                "lanes run side by side and do not meet, so collectives and `axis_index` have no meaning in it. Return "
                "the values and reduce them outside, or pass the index in as an argument."
            )
        seen = view(eqn)
        if isinstance(seen, While) and lanes_leave_alone(seen) and calls_host(eqn):
            raise UnsupportedError(
                "a `jax.lax.while_loop` that makes calls, and that each lane leaves when its own condition says so, "
                "stands in a `jax.vmap` inside an operator: JAX has made one loop of all lanes there, which goes on "
                "asking for those that are done. Put the operator inside: `jax.vmap(ember.jit(f))`."
            )
        if isinstance(seen, Host | Print) and seen.is_ordered:
            raise UnsupportedError(
                f"an ordered `{name(eqn)}` stands inside an operator. Its lanes run side by side, so there is "
                "no one order. Use ordered=False; an ordered io_callback may be an ember.host(fn, out=…, pure=False)."
            )
        if not binds_axes(eqn):
            for inner in jaxprs_in(eqn):
                refuse(inner)
