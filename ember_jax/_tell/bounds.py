"""What a plan's calls come to at least and at most, before it runs: each lane and step is gone through without asking.

Design note. A plan is run on what is known of its inputs: words by their digests, numbers not at all. A text operation
on known words is done; one on what a call will answer makes a text that is known by bounds on its tokens, and has a
digest made up for it, so that it moves through equations like any other. Lanes and the steps of a `scan` are gone
through one by one, so that the prompts of a sweep are counted and not guessed. Of a branch any side may be taken: the
least of the leasts and the most of the mosts. A `while` tests once at least, and has no most.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._host import HostCall
from .._plan import ir, rewrite
from .._text import lengths, store
from .._text.elementwise import NUMBER, TEXT, TEXTS, Kind
from .._text.lengths import UNKNOWN, Span
from .known import Known, known, move, one_of

# What calls come to, a row for each quantity with its least and most: by the model that is asked, by the scope that
# asks and the model, and under `""` all together.
Key = str | tuple[str, str]
Tally = Mapping[Key, np.ndarray]
# One call: its function, its operands, and the types of its results. What it comes to, and its results. Operands and
# results are digests, or `None`; only a single text may be one of several.
Ask = Callable[[HostCall, Sequence[Known | None], Sequence[Any]], tuple[Tally, Sequence["np.ndarray | None"]]]


def added(tallies: Sequence[Tally]) -> Tally:
    """What several come to together."""
    total: dict[Key, np.ndarray] = {}
    for tally in tallies:
        for name, amounts in tally.items():
            total[name] = total[name] + amounts if name in total else amounts
    return total


def either(tallies: Sequence[Tally]) -> Tally:
    """What one of several comes to."""
    if len(tallies) == 1:
        return tallies[0]
    found: dict[Key, np.ndarray] = {}
    for name in dict.fromkeys(name for tally in tallies for name in tally):
        ways = [tally[name] for tally in tallies if name in tally]
        ways += [np.zeros_like(ways[0])] * (len(ways) < len(tallies))
        found[name] = np.stack([np.min(ways, 0)[:, 0], np.max(ways, 0)[:, 1]], -1)
    return found


def _endless(tally: Tally) -> Tally:
    """What any number of times comes to, from none on."""
    return {n: np.stack([0 * a[:, 0], np.where(a[:, 1] > 0, math.inf, 0.0)], -1) for n, a in tally.items()}


class Bounds:
    """Goes through plans.

    **Arguments:**

    - `ask`: what one call comes to.
    - `scope`: the operator that the plan is of.

    **Attributes:**

    - `scope`: the operators that the call stands in which `ask` is asked about, outermost first.
    """

    def __init__(self, ask: Ask, scope: str = ""):
        self._ask = ask
        self.scope = scope
        self._spans: dict[bytes, Span] = {}
        self._parts: list[Tally] = []

    # -- texts -------------------------------------------------------------------------------------------------------

    def text(self, digest: bytes) -> str | Span:
        """The words of a digest, or their bounds."""
        span = self._spans.get(digest)
        if span is not None:
            return span
        words = store.peek(digest)
        return UNKNOWN if words is None else words

    def digest(self, text: str | Span) -> np.ndarray:
        """The digest `uint32[4]` of some words, or one made up for bounds."""
        if isinstance(text, str):
            return store.put_one(text)
        made_up = hashlib.blake2b(repr(text).encode(), digest_size=store.DIGEST_BYTES, person=b"bounds").digest()
        self._spans[made_up] = text
        return np.frombuffer(made_up, np.uint32)

    def one(self, rows: Sequence[bytes]) -> str | Span:
        """What is one of several texts."""
        if len(rows) == 1:
            return self.text(rows[0])
        spans = [lengths.span(self.text(row)) for row in rows]
        return Span(min(s.least for s in spans), max(s.most for s in spans))

    def array(self, what: Known | None, shape: tuple[int, ...]) -> np.ndarray:
        """Digests of a shape, whatever is known of them."""
        if what is not None and not what.chosen:
            return what.digests
        return np.broadcast_to(self.digest(UNKNOWN if what is None else self.one(what.rows())), shape)

    # -- plans -------------------------------------------------------------------------------------------------------

    def of(self, plan: ir.Plan, inputs: Sequence[Known | None]) -> Tally:
        """What one run of a plan comes to."""
        return self._run(plan, inputs, ())[1]

    def _run(
        self, plan: ir.Plan, inputs: Sequence[Known | None], late: Sequence[Known | None]
    ) -> tuple[list[Known | None], Tally]:
        """A plan's outputs, and what it comes to; `late` is all that is given to the step that holds it."""
        values = {v: k for v, k in enumerate(inputs) if k is not None}
        values.update(_constants(plan))
        tallies: list[Tally] = []
        for node in _ordered(plan):
            mine = [values.get(v) for v in node.inputs]
            outer, self.scope = self.scope, within(self.scope, node.scope)
            outs: Sequence[Known | None] = ()
            match node:
                case ir.Segment():
                    move(node, values)
                case ir.Words():
                    outs = [self._words(node, mine, [plan.types[v] for v in node.inputs])]
                case ir.Take():
                    outs = [late[node.position]]
                case ir.Call():
                    outs, tally = self._call(node, mine, plan)
                    tallies.append(tally)
                case ir.Branch():
                    ways = [self._run(branch, mine[1:], mine) for branch in node.branches]
                    outs = [_same(ks) for ks in zip(*(w[0] for w in ways), strict=True)]
                    tallies.append(either([w[1] for w in ways]))
                case ir.Loop():
                    outs, tally = self._loop(node, mine)
                    tallies.append(tally)
                case ir.Scan():
                    outs, tally = self._scan(node, mine)
                    tallies.append(tally)
                case ir.Enclosed():
                    outs, tally = self._enclosed(node, mine)
                    tallies.append(tally)
                case ir.Lanes():
                    outs, tally = self._lanes(node, mine)
                    tallies.append(tally)
            self.scope = outer
            values.update({v: k for v, k in zip(node.outputs, outs, strict=False) if k is not None})
        return [values.get(v) for v in plan.outputs], added(tallies)

    def _call(self, node: ir.Call, mine: Sequence[Known | None], plan: ir.Plan) -> Any:
        """Makes each call of a batch."""
        operands = [self._operand(k, plan.types[v]) for k, v in zip(mine, node.inputs, strict=True)]
        outs = [_without(len(node.batch), plan.types[v]) for v in node.outputs]
        lanes = list(np.ndindex(*node.batch))
        asked = [self._ask(node.function, [_at(k, lane) for k in operands], outs) for lane in lanes]
        results = [[None if r is None else Known(r) for r in found] for _, found in asked]
        return _stacked(results, node.batch), added([tally for tally, _ in asked])

    def _operand(self, what: Known | None, aval: Any) -> Known | None:
        """What is known of a call's operand; a single text may be one of several."""
        if not is_text(aval) or (what is not None and what.chosen and len(aval.shape) == 1):
            return what
        return Known(self.array(what, aval.shape))

    def _words(self, node: ir.Words, mine: Sequence[Known | None], types: Sequence[Any]) -> Known | None:
        op = node.function
        if op.result != TEXT:
            return None
        core = op.ranks[0]
        batch = types[0].shape[: len(types[0].shape) - core]
        operands: list[tuple[Kind, Any]] = [
            (kind, np.dtype(t.dtype) if kind == NUMBER else self.array(k, t.shape))
            for k, t, kind in zip(mine, types, op.operands, strict=True)
        ]
        made = [
            self.digest(lengths.result(op, [self._element(kind, array, lane) for kind, array in operands]))
            for lane in np.ndindex(*batch)
        ]
        return Known(np.array(made, np.uint32).reshape(*batch, store.DIGEST_WORDS))

    def _element(self, kind: Kind, array: Any, lane: tuple[int, ...]) -> Any:
        """One element of a text operation's operand; of a number its dtype."""
        if kind == NUMBER:
            return array
        if kind == TEXTS:
            return [self.text(row.tobytes()) for row in array[lane]]
        return self.text(array[lane].tobytes())

    def _loop(self, node: ir.Loop, mine: Sequence[Known | None]) -> Any:
        first = node.condition_constants + node.body_constants
        at = node.body_constants
        # what the body hands on as it is; of all else nothing is known
        carry = [k if node.body.outputs[i] == at + i else None for i, k in enumerate(mine[first:])]
        _, test = self._run(node.condition, [*mine[: node.condition_constants], *carry], ())
        _, body = self._run(node.body, [*mine[node.condition_constants : first], *carry], ())
        return carry, added([test, _endless(added([test, body]))])

    def _scan(self, node: ir.Scan, mine: Sequence[Known | None]) -> Any:
        constants, carry = mine[: node.constants], list(mine[node.constants : node.constants + node.carry])
        xs, tallies = mine[node.constants + node.carry :], []
        made: dict[int, list[Known | None]] = {}
        steps = range(node.length)
        for step in reversed(steps) if node.reverse else steps:
            outs, tally = self._run(node.body, [*constants, *carry, *(_at(x, (step,)) for x in xs)], ())
            carry, made[step] = outs[: node.carry], outs[node.carry :]
            tallies.append(tally)
        return [*carry, *_stacked([made[s] for s in steps], (node.length,))], added(tallies)

    def _enclosed(self, node: ir.Enclosed, mine: Sequence[Known | None]) -> Any:
        outs, tally = self._run(node.body, mine, ())
        # nothing fails here, and what stands for a failure is no words
        extras = [Known(self.digest(Span(0, 0))) if is_text(aval) else None for aval in ir.EXTRAS[node.how]]
        return [*outs, *extras], tally

    def _lanes(self, node: ir.Lanes, mine: Sequence[Known | None]) -> Any:
        rows, tallies = [], []
        for lane in np.ndindex(*node.sizes):
            places = [tuple(i for i, m in zip(lane, mapped, strict=True) if m) for mapped in node.mapped]
            given = list(map(_at, mine, places))
            if node.first is not None:
                values = {v: k for v, k in enumerate(given) if k is not None}
                move(node.first, values)
                given += [values.get(v) for v in node.first.outputs]
            outs, tally = self._run(node.body, given, given)
            rows.append(outs)
            tallies.append(tally)
        return _stacked(rows, node.sizes), added(tallies)


def within(scope: str, inner: str) -> str:
    """The scope of what stands in `inner` within `scope`."""
    return f"{scope}/{inner}" if scope and inner else scope or inner


@functools.lru_cache(maxsize=256)
def _ordered(plan: ir.Plan) -> list[ir.Node]:
    """A plan's steps, each after all that it needs, also what it can start without."""
    return rewrite.in_order(plan.nodes)


@functools.lru_cache(maxsize=256)
def _constants(plan: ir.Plan) -> dict[int, Known]:
    return {v: k for v, c in plan.constants.items() if (k := known(c))}


def _without(axes: int, aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape[axes:], aval.dtype)


def is_text(aval: Any) -> bool:
    """Whether values of a type can be digests."""
    return aval.shape[-1:] == (store.DIGEST_WORDS,) and aval.dtype == np.uint32


def _at(whole: Known | None, place: tuple[int, ...]) -> Known | None:
    """A part of an array; what is one of several rows is so in all parts."""
    return whole if whole is None or whole.chosen or not place else Known(whole.digests[place])


def _same(ways: Sequence[Known | None]) -> Known | None:
    """What is one of several."""
    first = ways[0]
    if first is not None and all(k and not k.chosen and np.array_equal(k.digests, first.digests) for k in ways):
        return first
    return one_of(ways)


def _stacked(rows: Sequence[Sequence[Known | None]], sizes: tuple[int, ...]) -> list[Known | None]:
    """The outputs of lanes, or of steps."""
    outs: list[Known | None] = []
    for column in zip(*rows, strict=True):
        if any(k is None or k.chosen for k in column):
            outs.append(one_of(column))
        else:
            whole = np.stack([k.digests for k in column if k is not None])
            outs.append(Known(whole.reshape(*sizes, *whole.shape[1:])))
    return outs
