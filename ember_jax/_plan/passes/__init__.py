"""Passes: each rewrites a plan to a plan that gives the same answers. One file each, one idea each."""

from .. import ir
from .fuse import fuse as fuse
from .gather import gather as gather
from .hoist import hoist as hoist
from .merge import merge as merge
from .unused import unused as unused


def simplify(plan: ir.Plan) -> ir.Plan:
    """What can be done to an operator's plan before it is known how it is mapped."""
    return unused(merge(plan))


def arrange(plan: ir.Plan) -> ir.Plan:
    """What is done to a plan with all its lanes, before it runs."""
    return gather(fuse(hoist(plan)))
