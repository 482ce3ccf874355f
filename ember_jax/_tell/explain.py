"""A plan in words: how many calls, what runs at once, what waits for what and why, where everything meets.

Design note. Steps with calls are grouped by what they are and by the groups that they wait for, so that a wide layer is
one line; the groups of equal waits make a section, and sections that repeat are told once. What a step waits for is the
nearest steps with calls behind its inputs, as the bits of an integer; groups are made level by level, so a group is
complete before anything waits for it, and its own bits take it out of a set in one operation. So the work is that of
`fuse`, and never a set of everything that a step needs, near and far.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Literal

from .._plan import ir
from .._plan.counts import Count, count, count_of
from .longest import Link, chain, links
from .order import order
from .show import Models, asked, ranges, shortened, what

# What a step reads of those it waits for, in the order in which it is said.
Purpose = Literal["text", "numbers", "choice", "itself"]
_PURPOSES: dict[Purpose, str] = {
    "text": "to write the text",
    "numbers": "to compute the numbers",
    "choice": "to choose the branch",
    "itself": "to hand its answer on",
}
# What plans are in the steps that hold them, where it is not said as in the plan.
_ROLES = {"while": "to decide whether to go on", "do": "each turn", "of": "of it"}
# How many of a group one step waits for.
_SHARE = {"all": "", "one": "one of the {} in ", "some": "some of the {} in "}
# Sections, and groups of one, that are told at most; of more the middle is left out.
_SECTIONS, _GROUPS = 24, 12
# Stands for the section of what a step starts without, which is told where it is made.
_LATE = -1
# The longest repeating pattern that is looked for, in sections.
_PERIOD = 4


@dataclasses.dataclass(frozen=True, order=True)
class _Wait:
    """A group that is waited for: its section, its place there, how many of it, and what for."""

    section: int
    place: int
    share: str
    purposes: tuple[Purpose, ...]


@dataclasses.dataclass(eq=False)
class _ToldGroup:
    """Steps that are told in the same words: one of them, where they are told, all of them as bits, how many."""

    node: ir.Node
    section: int
    place: int
    kind: Hashable
    bits: int = 0
    size: int = 0


@dataclasses.dataclass(eq=False)
class _Section:
    """Groups of steps that wait for the same."""

    waits: tuple[_Wait, ...]
    groups: list[_ToldGroup]

    def shape(self, index: int) -> Hashable:
        """Equal for sections that read the same, told at some index."""
        waits = tuple((index - w.section, w.place, w.share, w.purposes) for w in self.waits)
        return waits, tuple((g.size, g.kind) for g in self.groups)


def explain(plan: ir.Plan, name: str, models: Models, remarks: Mapping[ir.Call, str]) -> str:
    """The plan in words; `remarks` are what is to be said of calls besides."""
    made = count(plan)
    if not made.most:
        return f"{name} makes no call."
    story = _Story(models, remarks)
    lines = list(story.tell(plan, ""))
    return "\n".join([f"{name} makes {made}.{story.longest(plan)}", *lines])


class _Story:
    """Plans as sections, each made once, and the numbers that their steps were told under."""

    def __init__(self, models: Models, remarks: Mapping[ir.Call, str]):
        self._models = models
        self._said_of = remarks
        self._sections: dict[ir.Plan, list[_Section]] = {}
        self._late: dict[ir.Node, list[_ToldGroup]] = {}  # what a step does not wait for, though something in it does
        self._group_of: dict[ir.Node, _ToldGroup] = {}
        self._numbers: dict[ir.Node, int] = {}  # by a group's node
        self._next = itertools.count(1)

    # -- what is told ------------------------------------------------------------------------------------------------

    def tell(self, plan: ir.Plan, margin: str) -> Iterator[str]:
        """The lines of a plan."""
        sections = self._of(plan)
        blocks = list(_runs([s.shape(i) for i, s in enumerate(sections)]))
        head, tail = (blocks, []) if len(blocks) <= _SECTIONS else (blocks[: _SECTIONS // 2], blocks[-_SECTIONS // 2 :])
        for block in head:
            yield from self._block(sections, *block, margin)
        if tail:
            yield self._left_out(sections[head[-1][1] : tail[0][0]], "more steps", margin)
        for block in tail:
            yield from self._block(sections, *block, margin)

    def _block(self, sections: Sequence[_Section], start: int, stop: int, period: int, margin: str) -> Iterator[str]:
        for index in range(start, start + period):
            yield from self._section(sections, index, margin)
        times = (stop - start) // period - 1
        if times:
            what = f"the same {f'{period} ' if period > 1 else ''}again, {times:,} time{'s' * (times > 1)}"
            yield self._left_out(sections[start + period : stop], what, margin)

    def _section(self, sections: Sequence[_Section], index: int, margin: str) -> Iterator[str]:
        section = sections[index]
        head = f"After {self._waiting(sections, index)}" if section.waits else "First"
        if sum(g.size for g in section.groups) > 1 and any(w.share != "all" for w in section.waits):
            head = f"Each after {head.removeprefix('After ')}"
        yield f"{margin}{head}{', at once' * (len(section.groups) > 1)}:"
        shown = section.groups if len(section.groups) <= _GROUPS else section.groups[: _GROUPS - 1]
        for group in shown:
            yield from self._group(group, section.waits, margin + "  ")
        if len(shown) < len(section.groups):
            rest = _Section(section.waits, section.groups[len(shown) :])
            yield self._left_out([rest], "more steps", margin + "  ")

    def _left_out(self, sections: Sequence[_Section], what: str, margin: str) -> str:
        groups = [g for s in sections for g in s.groups]
        for group in groups:
            self._numbers[group.node] = next(self._next)
        calls = sum((count_of(g.node).times(g.size) for g in groups), Count())
        return f"{margin}… {what}: {ranges(self._numbers[g.node] for g in groups)}, {calls}"

    def _waiting(self, sections: Sequence[_Section], index: int) -> str:
        """What a section waits for, by purpose."""
        by_purpose: dict[tuple[Purpose, ...], dict[str, list[int]]] = {}
        for wait in sections[index].waits:
            if wait.section == _LATE:
                by_purpose.setdefault(wait.purposes, {})["what it started without"] = []
                continue
            group = sections[wait.section].groups[wait.place]
            share = _SHARE[wait.share].format(f"{group.size:,}")
            by_purpose.setdefault(wait.purposes, {}).setdefault(share, []).append(self._numbers[group.node])
        return ", and ".join(
            _listed([f"{share}step{'s' * (len(n) > 1)} {ranges(n)}" if n else share for share, n in shares.items()])
            + ", "
            + _listed([_PURPOSES[p] for p in why])
            for why, shares in by_purpose.items()
        )

    def _group(self, group: _ToldGroup, waits: Sequence[_Wait], margin: str) -> Iterator[str]:
        number = self._numbers[group.node] = next(self._next)
        scope = f"{group.node.scope}: " if group.node.scope else ""
        yield f"{margin}{number:,}. {scope}{self._described(group.node, group.size)}"
        margin += " " * (len(f"{number:,}") + 2)
        yield from (margin + remark for remark in _remarks(group.node, self._said_of))
        if late := self._late.get(group.node):
            yield f"{margin}does not wait for {_listed(shortened(list(map(self._named, late))))}; what needs it does"
        if group.node.runs == "one" and not any("choice" in w.purposes for w in waits):
            yield f"{margin}which one is known from the start"
        for held in group.node.held:
            yield from self._nested(_role(held), held.plan, margin)

    def _named(self, group: _ToldGroup) -> str:
        number = self._numbers.get(group.node)  # it may be told only later
        return self._described(group.node, group.size) if number is None else f"step {number:,}"

    def _nested(self, label: str, plan: ir.Plan, margin: str) -> Iterator[str]:
        lines = list(self.tell(plan, ""))
        if not lines:
            yield f"{margin}{label}: no call"
        elif len(lines) == 2 and lines[0] == "First:":
            yield f"{margin}{label}: {lines[1].strip()}"
        else:
            yield f"{margin}{label}, {count(plan)}:"
            yield from (f"{margin}  {line}" for line in lines)

    def _described(self, node: ir.Node, size: int) -> str:
        if isinstance(node, ir.Call):
            several = size > 1 or bool(node.batch)
            return asked(node, size * math.prod(node.batch) if several else None, self._models)
        times = f"{size:,} times at once: " if size > 1 else ""
        return f"{times}{what(node, self._models)}, {count_of(node).times(size)}"

    def longest(self, plan: ir.Plan) -> str:
        """The longest chain of calls; after the plan was told."""
        length, path = chain(plan)
        if length.most == 1:
            return "" if count(plan).most == 1 else " None waits for another."
        return f" The longest chain is {length}, one after another: {self._path(path)}."

    def _path(self, path: Link | None) -> str:
        words: list[str] = []
        for step, inside, _ in [*links(path)][::-1]:
            group = self._group_of.get(step)
            number = self._numbers.get(group.node) if group else None  # what was left out has none
            word = "…" if number is None else f"{number:,}"
            if inside is not None:  # of what is run in turn
                least, most = step.held[-1].times
                word = f"{least:,} × ({self._path(inside)})" if least == most else f"n × ({self._path(inside)})"
            if word != "…" or words[-1:] != ["…"]:
                words.append(word)
        return " → ".join(shortened(words))

    # -- how it is found ---------------------------------------------------------------------------------------------

    def _of(self, plan: ir.Plan) -> list[_Section]:
        if plan not in self._sections:
            self._sections[plan] = self._sections_of(plan)
        return self._sections[plan]

    def _sections_of(self, plan: ir.Plan) -> list[_Section]:
        busy, reads, levels, late = _reads(plan)
        sections: dict[tuple[_Wait, ...], tuple[int, _Section]] = {}
        groups: dict[Hashable, _ToldGroup] = {}
        group_of: dict[int, _ToldGroup] = {}  # by bit
        taken = _ToldGroup(ir.Take((), (), "", 0), _LATE, 0, "")
        for bit in sorted(range(len(busy)), key=levels.__getitem__):
            node = plan.nodes[busy[bit]]
            if isinstance(node, ir.Take):
                group_of[bit] = taken
                taken.bits |= 1 << bit
                continue
            waits = _waits(reads[bit], group_of)
            later = _groups(late[bit], group_of)
            index, section = sections.setdefault(waits, (len(sections), _Section(waits, [])))
            kind = (self._kind(node), *((g.section, g.place) for g in later))
            group = groups.setdefault((index, kind), _ToldGroup(node, index, len(section.groups), kind))
            if not group.size:
                section.groups.append(group)
            group.bits |= 1 << bit
            group.size += 1
            group_of[bit] = self._group_of[node] = group
            if later:
                self._late[node] = later
        return [section for _, section in sections.values()]

    def _kind(self, node: ir.Node) -> Hashable:
        """Equal for steps that are told in the same words."""
        inner = tuple(tuple(s.shape(i) for i, s in enumerate(self._of(p))) for p in node.plans)
        return self._described(node, 1), node.scope, *_remarks(node, self._said_of), inner


def _reads(plan: ir.Plan) -> tuple[list[int], list[dict[Purpose, int]], list[int], list[int]]:
    """The steps with calls, and those that take what came late; what each reads of them.

    **Returns:** the steps; for each, the nearest that it waits for, as bits by purpose; how deep it stands, those that
    it starts without included, so that they are told before it; these, as bits.
    """
    maker = {v: i for i, node in enumerate(plan.nodes) for v in node.outputs}
    behind, level = [0] * len(plan.nodes), [0] * len(plan.nodes)
    busy: list[int] = []
    reads: list[dict[Purpose, int]] = []
    later: list[int] = []
    for index in order(plan):
        node = plan.nodes[index]
        sources = [(k, maker[v]) for k, v in enumerate(node.inputs) if v in maker]
        level[index] = max((level[s] for _, s in sources), default=0)
        if not count_of(node).most and not isinstance(node, ir.Take):
            for source in {s for _, s in sources}:
                behind[index] |= behind[source]
            continue
        level[index] += not isinstance(node, ir.Take)
        read: dict[Purpose, int] = {}
        missing = 0
        for k, source in sources:
            if k in node.late:
                missing |= behind[source]
            elif behind[source]:
                purpose = _purpose(node, k, plan.nodes[source])
                read[purpose] = read.get(purpose, 0) | behind[source]
        behind[index] = 1 << len(busy)
        busy.append(index)
        reads.append(read)
        later.append(missing)
    return busy, reads, [level[i] for i in busy], later


def _purpose(node: ir.Node, operand: int, source: ir.Node) -> Purpose:
    if node.runs == "one" and operand == 0:
        return "choice"
    match source:
        case ir.Words():
            return "text"
        case ir.Segment():
            return "numbers"
        case _:
            return "itself"


def _waits(read: Mapping[Purpose, int], group_of: Mapping[int, _ToldGroup]) -> tuple[_Wait, ...]:
    """The groups that a step waits for."""
    found: list[_Wait] = []
    waited = functools.reduce(int.__or__, read.values(), 0)
    for group in _groups(waited, group_of):
        mine = waited & group.bits
        share = "all" if mine == group.bits else "some" if mine & (mine - 1) else "one"
        purposes: tuple[Purpose, ...] = tuple(p for p in _PURPOSES if read.get(p, 0) & mine)
        found.append(_Wait(group.section, group.place, share, purposes))
    return tuple(sorted(found))


def _groups(bits: int, group_of: Mapping[int, _ToldGroup]) -> list[_ToldGroup]:
    """The groups of some steps."""
    found: list[_ToldGroup] = []
    while bits:
        group = group_of[(bits & -bits).bit_length() - 1]
        found.append(group)
        bits &= ~group.bits
    return found


def _runs(shapes: Sequence[Hashable]) -> Iterator[tuple[int, int, int]]:
    """Shapes as runs (start, stop, period) of as many as `period` that come again and again."""
    start = 0
    while start < len(shapes):
        best = (start + 1, 1)
        for period in range(1, _PERIOD + 1):
            stop = start + period
            while stop < len(shapes) and shapes[stop] == shapes[stop - period]:
                stop += 1
            stop -= (stop - start) % period
            if stop - start > period:
                best = max(best, (stop, -period))
        yield start, best[0], abs(best[1])
        start = best[0]


def _remarks(node: ir.Node, said_of: Mapping[ir.Call, str]) -> Iterator[str]:
    """What is to be said of a step besides its calls: what it stands for, and where and why everything meets."""
    if isinstance(node, ir.Call):
        if node in said_of:
            yield said_of[node]
        if node.lanes > 1:
            yield f"the same in all {node.lanes:,} lanes, so it is made once, before they start"
        if node.asked > 1:
            yield f"stands {node.asked:,} times in the program with the same arguments, and is made once"
    gives = any(plan.gives for plan in node.plans)
    if node.runs == "all" and gives:
        yield "gives some results before its lanes end, to steps that wait for these alone"
    match node:
        case ir.Call() | ir.Lanes() if node.meets:
            yield f"barrier: what comes after waits for the slowest, as {_listed(node.meets)}"
        case ir.Enclosed() if node.how == "attempt":
            yield "barrier: what comes after waits for all of it, as it may fail until it has ended"
        case ir.Enclosed():
            yield "barrier: what comes after waits for all of it, as all of it is counted"
    if node.runs == "in turn":
        each = _role(node.held[-1])
        if gives:
            yield f"barrier: {each} waits for what the one before carried, and for nothing else of it"
        else:
            yield f"barrier: {each} is given what the one before carried, so it waits for all of that one's calls"


def _role(held: ir.Held) -> str:
    """What a plan is in the step that holds it, in a sentence."""
    return _ROLES.get(held.role, held.role)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
