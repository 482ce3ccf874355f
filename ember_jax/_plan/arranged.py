"""What is run: an operator's plan with all its lanes, as the last passes leave it."""

import dataclasses

from . import ir, passes
from .counts import asked, count


@dataclasses.dataclass(frozen=True, eq=False)
class Arranged:
    """An operator as it runs. Compared by identity, so that whoever runs it may keep by it what it has made for it.

    - `name`: the operator's, for errors.
    - `plan`: with all its lanes, arranged.
    - `x64`: whether 64-bit types were enabled where the operator was traced; a thread that runs it knows nothing of it.
    - `least`: how many calls of models a run asks for at least, as a session counts them.
    """

    name: str
    plan: ir.Plan
    x64: bool
    least: int


def arrange(name: str, plan: ir.Plan, x64: bool) -> Arranged:
    """An operator's simplified plan, arranged."""
    plan = passes.arrange(plan)
    return Arranged(name, plan, x64, count(plan, asked).least)
