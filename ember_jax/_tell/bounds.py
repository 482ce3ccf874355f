"""What a plan's calls come to at least and at most, before it runs: each lane and step is gone through without asking.

Design note. A plan is run on what is known of its inputs: words by their digests, numbers not at all. A text operation
on known words is done; one on what a call will answer makes a text that is known by bounds on its tokens, and has a
digest made up for it, so that it moves through equations like any other. Lanes and the steps of a `scan` are gone
through one by one, so that the prompts of a sweep are counted and not guessed. Of a branch any side may be taken: the
least of the leasts and the most of the mosts. A `while` tests once at least, and has no most.
"""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

import jax
import numpy as np

from .._host import HostCall
from .._plan import ir
from .._plan.walk import Walk
from .._text import lengths, store
from .._text.elementwise import NUMBER, TEXT, TEXTS, Kind
from .._text.lengths import UNKNOWN, Span
from .known import Known, constants, move, one_of

# What calls come to, a row for each quantity with its least and most: by the model that is asked, by the scope that
# asks and the model, and under `""` all together.
Key = str | tuple[str, str]
ByModel = Mapping[Key, np.ndarray]
# One call: its function, its operands, and the types of its results. What it comes to, and its results. Operands and
# results are digests, or `None`; only a single text may be one of several.
Ask = Callable[[HostCall, Sequence[Known | None], Sequence[Any]], tuple[ByModel, Sequence["np.ndarray | None"]]]


def added(tallies: Sequence[ByModel]) -> ByModel:
    """What several come to together."""
    total: dict[Key, np.ndarray] = {}
    for tally in tallies:
        for name, amounts in tally.items():
            total[name] = total[name] + amounts if name in total else amounts
    return total


def either(tallies: Sequence[ByModel]) -> ByModel:
    """What one of several comes to."""
    if len(tallies) == 1:
        return tallies[0]
    found: dict[Key, np.ndarray] = {}
    for name in dict.fromkeys(name for tally in tallies for name in tally):
        ways = [tally[name] for tally in tallies if name in tally]
        ways += [np.zeros_like(ways[0])] * (len(ways) < len(tallies))
        found[name] = np.stack([np.min(ways, 0)[:, 0], np.max(ways, 0)[:, 1]], -1)
    return found


def _repeated(tally: ByModel, least: int) -> ByModel:
    """What so many times come to, or any number more."""
    return {n: np.stack([least * a[:, 0], np.where(a[:, 1] > 0, math.inf, 0.0)], -1) for n, a in tally.items()}


class Texts:
    """Words by their digests; of text that is not known yet, bounds by digests that are made up for them."""

    def __init__(self) -> None:
        self._spans: dict[bytes, Span] = {}

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


class Bounds(Walk[Known | None, ByModel]):
    """Goes through plans.

    **Arguments:**

    - `ask`: what one call comes to.
    - `scope`: the operator that the plan is of.

    **Attributes:**

    - `texts`: what is known of the words.
    - `scope`: the operators that the step stands in that the walk is at, outermost first.
    """

    def __init__(self, ask: Ask, scope: str = ""):
        self._ask = ask
        self.scope = scope
        self.texts = Texts()

    def of(self, plan: ir.Plan, inputs: Sequence[Known | None]) -> ByModel:
        """What one run of a plan comes to."""
        return self.through(plan, inputs, None, {})[1]

    def constants(self, plan: ir.Plan) -> Mapping[int, Known | None]:
        return _constants(plan)

    def together(self, runs: Sequence[ByModel], begin: Known | None) -> ByModel:
        return added(runs)

    def step(self, plan: ir.Plan, node: ir.Node, given: Sequence[Known | None], begin: Known | None) -> Any:
        match node:
            case ir.Segment():
                return move(node, given), {}
            case ir.Words():
                return [self._words(node, given, [plan.types[v] for v in node.inputs])], {}
            case ir.Call():
                with self._inside(node):
                    return self._call(node, given, plan)
            case ir.Take():
                return given, {}
        return (), {}

    def control(self, node: ir.Node, given: Sequence[Known | None], begin: Known | None) -> Any:
        with self._inside(node):
            outs, tallies = zip(*(self._runs(held, given) for held in node.held), strict=True)
        if node.runs == "one":
            return [_same(ways) for ways in zip(*outs, strict=True)], either(tallies)
        # nothing fails here, and what stands for a failure is no words
        extras = [Known(self.texts.digest(Span(0, 0))) if is_text(aval) else None for aval in node.extras]
        return [*outs[-1], *extras], added(tallies)

    @contextlib.contextmanager
    def _inside(self, node: ir.Node) -> Iterator[None]:
        """Within, the walk is at a step."""
        outer, self.scope = self.scope, within(self.scope, node.scope)
        yield
        self.scope = outer

    def _runs(self, held: ir.Held, given: Sequence[Known | None]) -> tuple[list[Known | None], ByModel]:
        """All runs of a plan that a step holds, one by one if it is known how many they are."""
        if held.least is not None:
            any_run = self.any_run(held, given, None)
            return [any_run[i] for i in held.carried], _repeated(self.enter(held, any_run, None)[1], held.least)
        carry = [given[held.inputs[i]] for i in held.carried]
        places = list(np.ndindex(held.sizes))
        made: dict[tuple[int, ...], list[Known | None]] = {}
        tallies: list[ByModel] = []
        for place in reversed(places) if held.reverse else places:
            mine = [_at(given[k], tuple(compress(place, held.parts.get(i, ())))) for i, k in enumerate(held.inputs)]
            for i, value in zip(held.carried, carry, strict=True):
                mine[i] = value
            outs, tally = self.enter(held, mine, None)
            carry, made[place] = outs[: len(carry)], outs[len(carry) :]
            tallies.append(tally)
        return [*carry, *_stacked([made[place] for place in places], held.sizes)], added(tallies)

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
        return Known(self.texts.array(what, aval.shape))

    def _words(self, node: ir.Words, mine: Sequence[Known | None], types: Sequence[Any]) -> Known | None:
        op = node.function
        if op.result != TEXT:
            return None
        core = op.ranks[0]
        batch = types[0].shape[: len(types[0].shape) - core]
        operands: list[tuple[Kind, Any]] = [
            (kind, np.dtype(t.dtype) if kind == NUMBER else self.texts.array(k, t.shape))
            for k, t, kind in zip(mine, types, op.operands, strict=True)
        ]
        made = [
            self.texts.digest(lengths.result(op, [self._element(kind, array, lane) for kind, array in operands]))
            for lane in np.ndindex(*batch)
        ]
        return Known(np.array(made, np.uint32).reshape(*batch, store.DIGEST_WORDS))

    def _element(self, kind: Kind, array: Any, lane: tuple[int, ...]) -> Any:
        """One element of a text operation's operand; of a number its dtype."""
        if kind == NUMBER:
            return array
        if kind == TEXTS:
            return [self.texts.text(row.tobytes()) for row in array[lane]]
        return self.texts.text(array[lane].tobytes())


def within(scope: str, inner: str) -> str:
    """The scope of what stands in `inner` within `scope`."""
    return f"{scope}/{inner}" if scope and inner else scope or inner


@functools.lru_cache(maxsize=256)
def _constants(plan: ir.Plan) -> dict[int, Known | None]:
    return constants(plan)


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
