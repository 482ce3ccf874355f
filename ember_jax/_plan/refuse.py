"""What has no meaning lane by lane is refused when an operator is traced."""

from jax.extend import core as jex

from .._errors import UnsupportedError
from .jaxprs import open_jaxpr


def refuse(jaxpr: jex.Jaxpr) -> None:
    """Checks an operator's jaxpr.

    **Raises:** `UnsupportedError` for a collective or `axis_index` over an axis from outside the operator, and for an
    ordered effect.
    """
    for eqn in jaxpr.eqns:
        axes = _outer_axes(eqn)
        if axes:
            raise UnsupportedError(
                f"`{eqn.primitive.name}` over the axis {', '.join(axes)!r} stands inside an operator. An operator's "
                "lanes run side by side and do not meet, so collectives and `axis_index` have no meaning in it. Return "
                "the values and reduce them outside, or pass the index in as an argument."
            )
        if type(eqn.params.get("effect")).__name__ == "OrderedDebugEffect" or eqn.params.get("ordered"):
            raise UnsupportedError(
                f"an ordered `{eqn.primitive.name}` stands inside an operator. Its lanes run side by side, so there is "
                "no one order. Use ordered=False; an ordered io_callback may be an ember.host(fn, out=…, pure=False)."
            )
        if eqn.primitive.name != "shard_map":  # whose axes are its own
            for inner in jex.jaxprs_in_params(eqn.params):
                refuse(open_jaxpr(inner))


def _outer_axes(eqn: jex.JaxprEqn) -> list[str]:
    """Names of mapped axes that an equation runs over; inside an operator's own `vmap` none is left."""
    named = {str(getattr(e, "name", "")) for e in eqn.effects if type(e).__name__ == "NamedAxisEffect"}
    if eqn.primitive.name == "ppermute":  # has no such effect in JAX 0.10
        axis = eqn.params["axis_name"]
        named.update(map(str, axis if isinstance(axis, tuple | list) else (axis,)))
    return sorted(named)
