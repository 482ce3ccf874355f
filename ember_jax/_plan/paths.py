"""Where each call of a plan stands on its longest chain of calls: how many come before it, and how many after.

Design note. Two walks in the manner of the critical path method: forward for the calls before, backward for those
after. Both are of the plan and not of a run, so they are made once for all lanes: of a branch that is yet to be chosen
the longer one counts, a `while_loop` makes one turn, and a call in a `scan` stands where it does in the first step,
with all further steps after it. So what is ahead of a lane never grows as it goes on. A walk goes through what steps
hold as the lane engine does: what is given early is waited for alone, and what is taken late delays only who takes it.
"""

import itertools
from collections.abc import Iterable, Mapping

from .._runtime.scheduler import Path
from . import ir


def paths(plan: ir.Plan) -> dict[ir.Call, Path]:
    """How many calls come before and after each call of a plan, one after another; a batch counts as one."""
    depths: dict[ir.Call, int] = {}
    aheads: dict[ir.Call, int] = {}
    _before(plan, 0, {}, depths)
    _after(plan, 0, {}, aheads)
    return {call: Path(depth, aheads[call]) for call, depth in depths.items()}


def _before(plan: ir.Plan, begin: int, late: Mapping[int, int], found: dict[ir.Call, int]) -> list[int]:
    """After how many calls each node of a plan ends that begins after some.

    `late` says it of the inputs of the step around the plan; `found` is given the calls before each call.
    """
    ends: list[int] = []
    values: dict[int, int] = {}
    for node in plan.nodes:
        given = [values.get(v, begin) for v in node.inputs]
        missing = node.late if isinstance(node, ir.Branch | ir.Lanes) else ()
        start = max([begin, *(n for k, n in enumerate(given) if k not in missing)])
        end, early = start, {}
        match node:
            case ir.Take():
                end = max(begin, late[node.position])
            case ir.Call():
                found[node] = min(start, found.get(node, start))
                end = start + _length(node)
            case ir.Branch():
                inside = (_before(branch, start, dict(enumerate(given)), found) for branch in node.branches)
                end = max(itertools.chain([start], *inside))
            case ir.Enclosed():
                end = _last(node.body, start, found)
            case ir.Loop():
                end = _last(node.condition, start, found)
                end = _last(node.condition, _last(node.body, end, found), {})
            case ir.Scan() if node.length:
                end = _last(node.body, start, found) + (node.length - 1) * _carried(node.body)
            case ir.Lanes():
                inside = _before(node.body, start, dict(enumerate(given)), found)
                early = {n.position: e for n, e in zip(node.body.nodes, inside, strict=True) if isinstance(n, ir.Give)}
                end = max([start, *inside])
            case _:
                pass
        ends.append(end)
        values.update({v: early.get(k, end) for k, v in enumerate(node.outputs)})
    return ends


def _after(plan: ir.Plan, end: int, given: Mapping[int, int], found: dict[ir.Call, int]) -> tuple[int, dict[int, int]]:
    """How many calls come from the beginning of a plan on, one after another, and from each of its late inputs on.

    `end` says how many come after its end, `given` how many after what it gives early; `found` is given the calls after
    each call.
    """
    values: dict[int, int] = {}
    late: dict[int, int] = {}
    whole = end
    for node in reversed(plan.nodes):
        then = [values.get(v, end) for v in node.outputs]
        rest = max([end, *then])
        start, taken = rest, {}
        match node:
            case ir.Take():
                late[node.position] = max(rest, late.get(node.position, rest))
            case ir.Give():
                start = max(end, given[node.position])
            case ir.Call():
                found[node] = max(rest, found.get(node, rest))
                start = rest + _length(node)
            case ir.Branch():
                start, taken = _either(_after(branch, rest, {}, found) for branch in node.branches)
            case ir.Enclosed():
                start, _ = _after(node.body, rest, {}, found)
            case ir.Loop():
                start, _ = _after(node.condition, rest, {}, {})
                start, _ = _after(node.body, start, {}, found)
                start, _ = _after(node.condition, start, {}, found)
            case ir.Scan() if node.length:
                start = _steps(node, rest, found)
            case ir.Lanes():
                early = {n.position for n in node.body.nodes if isinstance(n, ir.Give)}
                last = max([end, *(n for k, n in enumerate(then) if k not in early)])
                start, taken = _after(node.body, last, dict(enumerate(then)), found)
            case _:
                pass
        for k, v in enumerate(node.inputs):
            missing = isinstance(node, ir.Branch | ir.Lanes) and k in node.late
            values[v] = max(values.get(v, end), taken.get(k, end) if missing else start)
        whole = max(whole, start)
    return whole, late


def _steps(node: ir.Scan, rest: int, found: dict[ir.Call, int]) -> int:
    """How many calls come from the beginning of a scan on, with `rest` after its end."""
    following = rest  # from the beginning of the second step on
    if node.length > 1:
        last, _ = _after(node.body, rest, dict.fromkeys(range(node.carry), rest), {})
        following = last + (node.length - 2) * _carried(node.body)
    end = rest if _gives(node.body) else following
    return _after(node.body, end, dict.fromkeys(range(node.carry), following), found)[0]


def _carried(body: ir.Plan) -> int:
    """How many calls a step of a scan makes, one after another, before the next one begins."""
    ends = _before(body, 0, {}, {})
    gives = _gives(body)
    return max((e for n, e in zip(body.nodes, ends, strict=True) if isinstance(n, ir.Give) or not gives), default=0)


def _gives(body: ir.Plan) -> bool:
    return any(isinstance(node, ir.Give) for node in body.nodes)


def _last(plan: ir.Plan, begin: int, found: dict[ir.Call, int]) -> int:
    return max([begin, *_before(plan, begin, {}, found)])


def _length(node: ir.Call) -> int:
    """One; a batch of no calls makes none."""
    return int(0 not in node.batch)


def _either(branches: Iterable[tuple[int, dict[int, int]]]) -> tuple[int, dict[int, int]]:
    """The longest of what may be chosen."""
    starts, lates = zip(*branches, strict=True)
    positions = set().union(*lates)
    return max(starts), {k: max(late[k] for late in lates if k in late) for k in positions}
