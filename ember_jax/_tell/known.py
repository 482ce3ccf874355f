"""What is known of a plan's calls before it runs: digests that go unchanged from its inputs to them.

Design note. Which model an LLM call asks is data, a digest among the plan's inputs. This follows arrays of digests
through equations that only move them, into branches, loops, scans and lanes, to the first operand of each call. Where a
lane, a step or a choice picks one of several, all that it may be are kept. No word is read here, nor any other operand
looked at.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex

from .._jax.equations import called
from .._jax.moves import is_move, moved, picks_from
from .._plan import ir

_DIGEST = (np.dtype(np.uint32), (4,))


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """An array of digests, `uint32[..., 4]`; or, if `chosen`, what is one of the rows of `uint32[n, 4]`."""

    digests: np.ndarray
    chosen: bool = False

    def rows(self) -> list[bytes]:
        """The distinct digests, in order."""
        return list(dict.fromkeys(row.tobytes() for row in self.digests.reshape(-1, 4)))


def known(array: Any) -> Known | None:
    """A concrete array as what is known, if it can hold digests."""
    found = np.asarray(array)
    return Known(np.ascontiguousarray(found)) if (found.dtype, found.shape[-1:]) == _DIGEST else None


def first_operands(plan: ir.Plan, inputs: Sequence[Known | None]) -> dict[ir.Call, Known | None]:
    """What is known of the first operand of each call in a plan."""
    found: dict[ir.Call, Known | None] = {}
    _follow(plan, inputs, (), found)
    return found


def _follow(
    plan: ir.Plan, inputs: Sequence[Known | None], late: Sequence[Known | None], found: dict[ir.Call, Known | None]
) -> None:
    """Follows what is given to a plan; `late` is all that is given to the step that holds it."""
    values = {v: k for v, k in enumerate(inputs) if k is not None}
    values.update({v: k for v, c in plan.constants.items() if (k := known(c))})
    for node in plan.nodes:
        mine = [values.get(v) for v in node.inputs]
        match node:
            case ir.Call():
                found[node] = mine[0] if node not in found else one_of([found[node], mine[0]])
            case ir.Segment():
                move(node, values)
            case ir.Take():
                if (taken := late[node.position]) is not None:
                    values[node.outputs[0]] = taken
            case ir.Branch():
                for branch in node.branches:
                    _follow(branch, mine[1:], mine, found)
            case ir.Loop():
                first = node.condition_constants + node.body_constants
                carry = _carried(node.body, mine[first:], node.body_constants)
                _follow(node.condition, [*mine[: node.condition_constants], *carry], (), found)
                _follow(node.body, [*mine[node.condition_constants : first], *carry], (), found)
            case ir.Scan():
                xs = node.constants + node.carry
                carry = _carried(node.body, mine[node.constants : xs], node.constants)
                _follow(node.body, [*mine[: node.constants], *carry, *map(_row, mine[xs:])], (), found)
            case ir.Enclosed():
                _follow(node.body, mine, (), found)
            case ir.Lanes():
                lane = _lane(node, mine)
                _follow(node.body, lane, lane, found)


def _lane(node: ir.Lanes, inputs: Sequence[Known | None]) -> list[Known | None]:
    """What one lane's body is given."""
    lane = [_row(k) if any(m) else k for k, m in zip(inputs, node.mapped, strict=True)]
    if node.first is None:
        return lane
    values = {v: k for v, k in enumerate(lane) if k is not None}
    move(node.first, values)
    return [*lane, *(values.get(v) for v in node.first.outputs)]


def _carried(body: ir.Plan, first: Sequence[Known | None], at: int) -> list[Known | None]:
    """A loop's carry: where the body hands on what it was given, it is what it was at first."""
    outputs = body.outputs[: len(first)]
    return [k if out == at + i else None for i, (k, out) in enumerate(zip(first, outputs, strict=True))]


def _row(whole: Known | None) -> Known | None:
    """One row of an array, it is not known which."""
    return None if whole is None else one_of([whole])


def one_of(parts: Iterable[Known | None]) -> Known | None:
    rows: dict[bytes, None] = {}
    for part in parts:
        if part is None:
            return None
        rows.update(dict.fromkeys(part.rows()))
    return Known(np.frombuffer(b"".join(rows), np.uint32).reshape(-1, 4), chosen=True)


# -- equations that move digests -------------------------------------------------------------------------------------


def move(segment: ir.Segment, values: dict[int, Known]) -> None:
    """Adds what a segment's outputs are, where its equations only move what is known."""
    values.update({v: k for v, c in segment.constants.items() if (k := known(c))})
    for equation in segment.equations:
        inputs = [None if v is None else values.get(v) for v in equation.inputs]
        outs = _moved(equation.eqn, inputs)
        values.update({v: k for v, k in zip(equation.outputs, outs, strict=True) if k is not None})


def _moved(eqn: jex.JaxprEqn, inputs: Sequence[Known | None]) -> list[Known | None]:
    unknown: list[Known | None] = [None] * len(eqn.outvars)
    if not any(inputs):
        return unknown
    body = called(eqn)
    if body is not None:
        return _through(body, inputs)
    picked = picks_from(eqn)
    if picked is not None:
        return [one_of(inputs[picked])]
    if not is_move(eqn) or not all(inputs):
        return unknown
    if any(k.chosen for k in inputs if k):
        return [one_of(inputs)]
    result = moved(eqn, [k.digests for k in inputs if k])
    return unknown if result is None else [known(result)]


def _through(closed: jex.ClosedJaxpr, inputs: Sequence[Known | None]) -> list[Known | None]:
    values: dict[Any, Known | None] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    read = lambda atoms: [None if isinstance(a, jex.Literal) else values.get(a) for a in atoms]
    for eqn in closed.jaxpr.eqns:
        values.update(zip(eqn.outvars, _moved(eqn, read(eqn.invars)), strict=True))
    return read(closed.jaxpr.outvars)
