"""What has no meaning lane by lane is refused when an operator is traced."""

from jax.extend import core as jex

from .._errors import UnsupportedError
from .equations import Host, Print, binds_axes, jaxprs_in, mapped_axes, name, view


def refuse(jaxpr: jex.Jaxpr) -> None:
    """Checks an operator's jaxpr.

    **Raises:** `UnsupportedError` for a collective or `axis_index` over an axis from outside the operator, and for an
    ordered effect.
    """
    for eqn in jaxpr.eqns:
        axes = mapped_axes(eqn)  # those inside an operator's own `vmap` are gone
        if axes:
            raise UnsupportedError(
                f"`{name(eqn)}` over the axis {', '.join(axes)!r} stands inside an operator. An operator's "
                "lanes run side by side and do not meet, so collectives and `axis_index` have no meaning in it. Return "
                "the values and reduce them outside, or pass the index in as an argument."
            )
        seen = view(eqn)
        if isinstance(seen, Host | Print) and seen.is_ordered:
            raise UnsupportedError(
                f"an ordered `{name(eqn)}` stands inside an operator. Its lanes run side by side, so there is "
                "no one order. Use ordered=False; an ordered io_callback may be an ember.host(fn, out=…, pure=False)."
            )
        if not binds_axes(eqn):
            for inner in jaxprs_in(eqn):
                refuse(inner)
