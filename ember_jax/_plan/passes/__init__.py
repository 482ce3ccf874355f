"""Passes: each rewrites a plan to a plan that gives the same answers. One file each, one idea each."""

import dataclasses

from .. import ir
from .fuse import fuse as fuse
from .gather import gather as gather
from .give import give as give
from .hoist import hoist as hoist
from .merge import merge as merge
from .sink import sink as sink
from .take import take as take
from .unbatch import unbatch as unbatch
from .unused import unused as unused


def simplify(plan: ir.Plan, records: int | None = None) -> ir.Plan:
    """What can be done to an operator's plan before it is known how it is mapped.

    **Arguments:**

    - `plan`: the plan as lowered.
    - `records`: how many of its outputs are wanted, the first ones, which are kept for the replay. The others are there
        to show how the replay uses them. By default all outputs are wanted, for themselves.
    """
    plan = unused(merge(plan))
    if records is None:
        return unused(unbatch(plan))
    plan = unbatch(plan, frozenset(range(records)))
    return unused(dataclasses.replace(plan, outputs=plan.outputs[:records]))


def arrange(plan: ir.Plan) -> ir.Plan:
    """What is done to a plan with all its lanes, before it runs."""
    return give(gather(fuse(take(hoist(plan)))))
