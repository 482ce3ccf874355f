"""A plan in words of which two differ where the plans do something else, in this process or another."""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from .._jax.equal import described as equation
from . import ir

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")

# What is told otherwise, and the line of the user's program, which moves when something else is edited.
_UNTOLD = ("equations", "avals", "line")


def described(plan: ir.Plan) -> str:
    """All that a plan does. Of Python functions, and of operators' own classes, only the names are told."""
    return _ADDRESS.sub("", "\n".join(_lines(plan)))


def _lines(plan: ir.Plan) -> Iterator[str]:
    yield f"{plan.inputs} {[(a.dtype, a.shape) for a in plan.types]} {plan.outputs}"
    yield from (f"{value} = {np.asarray(constant).tolist()}" for value, constant in plan.constants.items())
    for node in plan.nodes:
        named = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        told = {n: v for n, v in named.items() if isinstance(v, int | str | tuple) and n not in (*node.holds, *_UNTOLD)}
        yield f"{type(node).__name__} {told}"
        match node:
            case ir.Words() | ir.Call():
                yield repr(node.function)
            case ir.Foreign():
                yield repr(node.seen)
            case ir.Segment():
                yield from (f"{equation(e.eqn)} {e.inputs} {e.outputs}" for e in node.equations)
                yield from (f"{value} = {np.asarray(x).tolist()}" for value, x in node.constants.items())
            case _:
                for held in node.plans:
                    yield from _lines(held)
