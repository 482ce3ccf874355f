"""What is known of a plan's calls before it runs: digests that go unchanged from its inputs to them.

Design note. Which model an LLM call asks is data, a digest among the plan's inputs. This follows arrays of digests
through equations that only move them, into branches, loops, scans and lanes, to the operands of each call. Where a
lane, a step or a choice picks one of several, all that it may be are kept. No word is read here.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex

from .._jax.equations import called
from .._jax.moves import is_move, moved, picks_from
from .._plan import ir
from .._plan.walk import Walk

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


def constants(of: ir.Plan | ir.Segment) -> dict[int, Known | None]:
    """What is known of the constants."""
    return {value: known(constant) for value, constant in of.constants.items()}


def operands(plan: ir.Plan, inputs: Sequence[Known | None]) -> dict[ir.Call, list[Known | None]]:
    """What is known of the operands of each call in a plan."""
    walk = _CallOperands()
    walk.through(plan, inputs, None, {})
    return walk.found


class _CallOperands(Walk[Known | None, None]):
    """The domain of digests; `found` is what calls are given."""

    def __init__(self) -> None:
        self.found: dict[ir.Call, list[Known | None]] = {}

    def constants(self, plan: ir.Plan) -> Mapping[int, Known | None]:
        return constants(plan)

    def part(self, value: Known | None, begin: Known | None) -> Known | None:
        return one_of([value])  # some row, it is not known which

    def together(self, runs: Sequence[None], begin: Known | None) -> None:
        return None

    def step(self, plan: ir.Plan, node: ir.Node, given: Sequence[Known | None], begin: Known | None) -> Any:
        match node:
            case ir.Call():
                known = self.found.get(node)
                self.found[node] = [*given] if known is None else [*map(one_of, zip(known, given, strict=True))]
            case ir.Segment():
                return move(node, given), None
            case ir.Take():
                return given, None
        return (), None


def one_of(parts: Iterable[Known | None]) -> Known | None:
    rows: dict[bytes, None] = {}
    for part in parts:
        if part is None:
            return None
        rows.update(dict.fromkeys(part.rows()))
    return Known(np.frombuffer(b"".join(rows), np.uint32).reshape(-1, 4), chosen=True)


# -- equations that move digests -------------------------------------------------------------------------------------


def move(segment: ir.Segment, given: Sequence[Known | None]) -> list[Known | None]:
    """What a segment's outputs are, where its equations only move what is known."""
    values = {**constants(segment), **dict(zip(segment.inputs, given, strict=True))}
    for equation in segment.equations:
        inputs = [None if v is None else values.get(v) for v in equation.inputs]
        values.update(zip(equation.outputs, _moved(equation.eqn, inputs), strict=True))
    return [values.get(v) for v in segment.outputs]


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
