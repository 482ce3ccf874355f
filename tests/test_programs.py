"""Random operator programs: in every form, and with every pass on and off, what plain JAX callbacks give.

Design note. A program is data: a `Block` of `Step`s on earlier values, each value of one kind. One interpreter runs it
with either of two languages: `EMBER` is the library, and `PLAIN` is the oracle, where words are digests, and every text
operation and host call is a `jax.pure_callback` of the same Python function. Numbers are whole and stay within ±99, so
that equality is exact; words stay short, since a loop may double them.

Line by line is the reference for calls: no form may make a call that it does not make. Equal calls of pure functions
are made once in a plan, so a form makes each call at most once. What no output needs is made by no plan, so there the
reference is the program without it.
"""

import collections
import contextlib
import dataclasses
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax._engine.segments import SegmentRunner
from ember_jax._jax.internals import jit_is_disabled
from ember_jax._plan import passes
from ember_jax._runtime.session import Session
from ember_jax._text import grammar, store
from ember_jax.providers import callable as callables

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
EXAMPLES = 2_000 if NIGHTLY else 88

# -- kinds of values -------------------------------------------------------------------------------------------------

VECTOR = 3
VECTORS = {"number": "numbers", "text": "texts"}
ELEMENTS = {vector: element for element, vector in VECTORS.items()}
SHAPES = {
    "number": jax.ShapeDtypeStruct((), jnp.float32),
    "flag": jax.ShapeDtypeStruct((), jnp.bool_),
    "numbers": jax.ShapeDtypeStruct((VECTOR,), jnp.float32),
    "text": jax.ShapeDtypeStruct((store.DIGEST_WORDS,), jnp.uint32),
    "texts": jax.ShapeDtypeStruct((VECTOR, store.DIGEST_WORDS), jnp.uint32),
}
OUT = {"text": ember.Text, "texts": ember.Text[str(VECTOR)]}
Kinds = tuple[str, ...]

calls: list[tuple[Any, ...]] = []  # what Python functions were called with


def python_value(kind: str, array: Any) -> Any:
    """What a Python function is given for an array of a kind."""
    words = store.get_array(np.asarray(array)) if kind in OUT else []
    return words if kind == "texts" else words[0] if kind == "text" else np.asarray(array)[()]


def array_value(kind: str, value: Any) -> np.ndarray:
    """The inverse of `python_value`."""
    if kind not in OUT:
        return np.asarray(value, SHAPES[kind].dtype)
    words = np.asarray([value] if kind == "text" else value, object)
    return store.put_array(words).reshape(SHAPES[kind].shape)


def as_callback(fn: Callable[..., Any], takes: Kinds, gives: Kinds) -> Callable[..., Any]:
    """A Python function as a plain JAX callback on digests and numbers."""

    def run(*arrays: Any) -> Any:
        result = fn(*map(python_value, takes, arrays))
        results = result if len(gives) > 1 else (result,)
        return tuple(map(array_value, gives, results))

    def bind(*values: Any) -> Any:
        raw = [jax.random.key_data(v) if k == "key" else v for k, v in zip(takes, values, strict=True)]
        outs = jax.pure_callback(run, tuple(SHAPES[g] for g in gives), *raw, vmap_method="sequential")
        return outs if len(gives) > 1 else outs[0]

    return bind


# -- steps without blocks --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation in both languages, and how long its words may be, given how long those it takes are."""

    takes: Kinds
    gives: Kinds
    ember: Callable[..., Any]
    plain: Callable[..., Any]
    length: Callable[[list[int]], int] = max
    calls: bool = False


def numeric(takes: Kinds, gives: str, fn: Callable[..., Any]) -> Op:
    return Op(takes, (gives,), fn, fn)


def on_words(takes: Kinds, gives: str, fn: Callable[..., Any], python: Callable[..., Any], length: Any = max) -> Op:
    return Op(takes, (gives,), fn, as_callback(python, takes, (gives,)), length)


def host(takes: Kinds, gives: Kinds, fn: Callable[..., Any], *, is_async: bool = False, pure: bool = True) -> Op:
    """A call of a Python function; its words have at most eight characters."""

    def note(*values: Any) -> Any:
        calls.append((fn.__name__, *(v if isinstance(v, str) else str(v) for v in values)))
        return fn(*values)

    async def note_async(*values: Any) -> Any:
        return note(*values)

    out = tuple(OUT.get(kind, SHAPES[kind]) for kind in gives)
    made = ember.host(note_async if is_async else note, out if len(out) > 1 else out[0], pure=pure)
    return Op(takes, gives, made, as_callback(note, takes, gives), lambda _: 8, calls=True)


def whole(x: Any) -> Any:
    """A number as all numbers here are: between -99 and 99, and no negative zero, which has two spellings."""
    x = jnp.clip(x, -99, 99)
    return jnp.where(x == 0, jnp.zeros_like(x), x)


def integer(x: Any) -> Any:
    return x.astype(jnp.int32)


def digits(words: str) -> float:
    number = grammar.last_number(words)
    return float("nan") if number is None else float(number)


def known(x: Any) -> Any:
    return whole(jnp.round(jnp.where(jnp.isnan(x), -1, x)))


def fold_words(key: Any, t: Any) -> Any:
    for word in t:
        key = jax.random.fold_in(key, word)
    return key


def score(t: str) -> float:
    return float(sum(map(ord, t)) % 13)


def say(t: str) -> str:
    return t[-3:][::-1] + str(len(t) % 10)


def grade(t: str, x: np.float32) -> float:
    return float((len(t) + int(x)) % 7 - 2)


def sample(t: str, index: np.int32) -> str:
    return f"{t[:2]}{abs(int(index)) % 5} "


def voice(t: str, key: np.ndarray) -> str:
    return f"{t[:1]}{int(key.sum() % 4)}"


def halve(x: np.float32) -> float:
    return float(int(x) // 2)


def total(xs: np.ndarray) -> float:
    return float(int(xs.sum()) % 50)


def spread(t: str) -> list[str]:
    return [t[:2], t[-2:], str(len(t) % 3)]


def judge(t: str, ts: list[str]) -> tuple[str, float]:
    return max(ts)[:4], float(len(t) - len(ts[0]))


def tell(t: str) -> float:
    return float(len(t) % 5)


def ring(x: np.float32) -> str:
    return str(int(x) % 3)


_sample = host(("text", "index"), ("text",), sample)
one, two, three = ("number",), ("number",) * 2, ("number",) * 3

OPS: dict[str, Op] = {
    "add": numeric(two, "number", lambda x, y: whole(x + y)),
    "multiply": numeric(two, "number", lambda x, y: whole(x * y)),
    "larger": numeric(two, "number", jnp.maximum),
    "distance": numeric(two, "number", lambda x, y: whole(jnp.abs(x - y))),
    "half": numeric(one, "number", lambda x: whole(jnp.floor(x / 2))),
    "remainder": numeric(one, "number", lambda x: whole(x % 5)),
    "constant": numeric((), "number", lambda: jnp.float32(2)),
    "less": numeric(two, "flag", lambda x, y: x < y),
    "equal": numeric(two, "flag", lambda x, y: x == y),
    "not": numeric(("flag",), "flag", jnp.logical_not),
    "pick": numeric(("flag", *two), "number", jnp.where),
    "stack": numeric(three, "numbers", lambda *xs: jnp.stack(xs)),
    "first": numeric(("numbers",), "number", lambda xs: xs[0]),
    "sum": numeric(("numbers",), "number", lambda xs: whole(jnp.sum(xs))),
    "best": numeric(("numbers",), "number", lambda xs: jnp.argmax(xs).astype(jnp.float32)),
    "shift": numeric(("numbers", "number"), "numbers", lambda xs, x: whole(xs - x)),
    "draw": numeric(("key",), "number", lambda k: jax.random.randint(k, (), -5, 6).astype(jnp.float32)),
    "flip": numeric(("key",), "flag", lambda k: jax.random.bernoulli(k)),
    "next key": numeric(("key",), "key", lambda k: jax.random.split(k)[1]),
    "fold number": numeric(("key", "number"), "key", lambda k, x: jax.random.fold_in(k, integer(jnp.abs(x)))),
    "fold text": Op(("key", "text"), ("key",), ember.fold_in, fold_words),
    "same": Op(("text", "text"), ("flag",), lambda t, u: t == u, lambda t, u: jnp.all(t == u)),
    "choose": Op(("flag", "text", "text"), ("text",), ember.where, jnp.where),
    "stack texts": Op(("text",) * 3, ("texts",), lambda *ts: ember.stack(ts), lambda *ts: jnp.stack(ts)),
    "last": Op(("texts",), ("text",), lambda ts: ts[-1], lambda ts: ts[-1]),
    "words": on_words((), "text", lambda: ember.text("No 5"), lambda: "No 5", lambda _: 4),
    "plus": on_words(("text", "text"), "text", lambda t, u: t + u, lambda t, u: t + u, sum),
    "format": on_words(
        ("text", "number"),
        "text",
        lambda t, x: ember.format("{t} {x}", t=t, x=integer(x)),
        lambda t, x: f"{t} {int(x)}",
        lambda lengths: sum(lengths) + 4,
    ),
    "join": on_words(
        ("text", "texts"),
        "text",
        lambda t, ts: ember.join(" ", [t, ember.join("-", ts)]),
        lambda t, ts: " ".join([t, "-".join(ts)]),
        lambda lengths: lengths[0] + 3 * lengths[1] + 3,
    ),
    "lower": on_words(("text",), "text", lambda t: ember.normalize(t, "case"), str.lower),
    "trim": on_words(("text",), "text", lambda t: ember.normalize(t, "space"), lambda t: " ".join(t.split())),
    "parse": Op(
        ("text",),
        ("number",),
        lambda t: known(ember.parse_number(t)),
        lambda t: known(as_callback(digits, ("text",), ("number",))(t)),
    ),
    "score": host(("text",), ("number",), score),
    "say": host(("text",), ("text",), say, is_async=True),
    "grade": host(("text", "number"), ("number",), grade),
    "sample": dataclasses.replace(
        _sample,
        takes=("text", "number"),
        ember=lambda t, x: _sample.ember(t, integer(x)),
        plain=lambda t, x: _sample.plain(t, integer(x)),
    ),
    "voice": host(("text", "key"), ("text",), voice),
    "halve": host(one, ("number",), halve, is_async=True),
    "total": host(("numbers",), ("number",), total),
    "spread": host(("text",), ("texts",), spread),
    "judge": host(("text", "texts"), ("text", "number"), judge),
}
IMPURE = {
    "tell": host(("text",), ("number",), tell, pure=False),
    "ring": host(one, ("text",), ring, pure=False),
}


# -- programs --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """An operation on earlier values, by number; control flow has blocks, and `how` is what else there is to say."""

    op: str
    args: tuple[int, ...]
    gives: Kinds
    blocks: tuple["Block", ...] = ()
    how: Any = None


@dataclasses.dataclass(frozen=True, repr=False)
class Block:
    """Steps; the first value of its own has number `first`, and those below it are the enclosing blocks'."""

    first: int
    takes: Kinds
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def __repr__(self) -> str:
        return "\n" + "\n".join(self.lines(""))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis would write out the constructors

    def lines(self, indent: str) -> Iterator[str]:
        names = [f"v{self.first + i}: {kind}" for i, kind in enumerate(self.takes)]
        yield f"{indent}({', '.join(names)}) -> {', '.join(f'v{v}' for v in self.outputs)}"
        value = self.first + len(self.takes)
        for step in self.steps:
            made = ", ".join(f"v{value + i}" for i in range(len(step.gives)))
            how = "" if step.how is None else f" [{step.how}]"
            yield f"{indent}  {made} = {step.op}({', '.join(f'v{v}' for v in step.args)}){how}"
            for block in step.blocks:
                yield from block.lines(indent + "    ")
            value += len(step.gives)

    def __call__(self, language: str, outer: Sequence[Any], *args: Any) -> tuple[Any, ...]:
        values = [*outer, *args]
        for step in self.steps:
            values += run_step(language, step, values)
        return tuple(values[v] for v in self.outputs)

    def walk(self) -> Iterator[Step]:
        """All steps, with those of inner blocks."""
        for step in self.steps:
            yield step
            for block in step.blocks:
                yield from block.walk()

    def needed(self) -> "Block":
        """The program without the steps that no output needs; `dead` stands in their place."""
        wanted, steps = set(self.outputs), list[Step]()
        value = self.first + len(self.takes) + sum(len(s.gives) for s in self.steps)
        for step in reversed(self.steps):
            value -= len(step.gives)
            if wanted.isdisjoint(range(value, value + len(step.gives))):
                step = Step("dead", (), step.gives)
            wanted.update(step.args, *(b.reads() for b in step.blocks))
            steps.append(dataclasses.replace(step, blocks=tuple(b.needed() for b in step.blocks)))
        return dataclasses.replace(self, steps=tuple(reversed(steps)))

    def reads(self) -> set[int]:
        """The values of enclosing blocks that this one uses."""
        used = {*self.outputs, *(v for s in self.steps for v in s.args)}
        used.update(*(b.reads() for s in self.steps for b in s.blocks))
        return {v for v in used if v < self.first}


def run_step(language: str, step: Step, values: list[Any]) -> Sequence[Any]:
    """The values that a step gives."""
    args = [values[v] for v in step.args]
    if step.op == "dead":
        return [None] * len(step.gives)
    if step.op in CONTROL:
        blocks = [functools.partial(b, language, tuple(values)) for b in step.blocks]
        return CONTROL[step.op](language, step.how, blocks, *args)
    result = getattr({**OPS, **IMPURE}[step.op], language)(*args)
    return result if len(step.gives) > 1 else [result]


def wrapped(language: str, how: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function called through something."""

    def forward(*args: Any) -> Any:
        return fn(*args)

    def annotated(*args: Any) -> Any:
        return fn(*args)

    annotated.__annotations__ = {"args": Any, "return": Any}
    of_ember = {"operator": lambda: ember.operator(annotated), "ember.jit": lambda: ember.jit(forward)}
    of_jax = {
        "function": lambda: fn,
        "jax.jit": lambda: jax.jit(forward),
        # Line by line it is a function: JAX drops calls in it whose answers nobody needs, which a plan may not.
        "checkpoint": lambda: forward if jit_is_disabled() else jax.checkpoint(forward),
    }
    return of_jax[how]() if how in of_jax else of_ember[how]() if language == "ember" else forward


def run_while(language: str, how: Any, blocks: Any, *args: Any) -> Any:
    condition, body = blocks
    carry = jax.lax.while_loop(
        lambda carry: (carry[0] < how) & condition(*carry[1:])[0],
        lambda carry: (carry[0] + 1, *body(*carry[1:])),
        (jnp.int32(0), *args),
    )
    return carry[1:]


def run_fori(language: str, how: Any, blocks: Any, *args: Any) -> Any:
    (body,) = blocks
    trips, *carry = (how, *args) if how is not None else (integer(jnp.abs(args[0])) % 4, *args[1:])
    return jax.lax.fori_loop(0, trips, lambda i, carry: body(jnp.float32(i), *carry), tuple(carry))


def run_scan(language: str, how: Any, blocks: Any, carry: Any, xs: Any) -> Any:
    (body,) = blocks
    return jax.lax.scan(body, carry, xs, reverse=how)


def run_vmap(language: str, how: Any, blocks: Any, *args: Any) -> Any:
    (body,) = blocks
    through, axes = how
    if through == "ember.jit of vmap":
        return wrapped(language, "ember.jit", jax.vmap(body, axes))(*args)
    return jax.vmap(wrapped(language, through, body), axes)(*args)


CONTROL: dict[str, Callable[..., Any]] = {
    "cond": lambda language, how, blocks, flag: jax.lax.cond(flag, *blocks),
    "switch": lambda language, how, blocks, x: jax.lax.switch(integer(x) % 3, blocks),
    "while": run_while,
    "fori": run_fori,
    "scan": run_scan,
    "map": lambda language, how, blocks, xs: jax.lax.map(blocks[0], xs),
    "vmap": run_vmap,
    "call": lambda language, how, blocks, *args: wrapped(language, how, blocks[0])(*args),
}


# -- random programs -------------------------------------------------------------------------------------------------

INPUTS: Kinds = ("number", "text", "numbers", "key")
SHORT, LONG = 16, 200  # characters of what a loop carries, and of anything
WRAPPERS = ("operator", "ember.jit", "jax.jit", "checkpoint")
THROUGH = ("function", *WRAPPERS, "ember.jit of vmap")

CALLED = [name for name, op in OPS.items() if op.calls]
SORTS = {
    "calls": CALLED,
    "words": [name for name, op in OPS.items() if not op.calls and "text" in (*op.takes, *op.gives)],
    "numbers": [name for name, op in OPS.items() if "text" not in (*op.takes, *op.gives)],
}


class Writer:
    """Draws the steps of one block. `kinds` and `lengths` are those of all values that it sees."""

    def __init__(self, draw: Any, kinds: list[str], lengths: list[int], depth: int, impure: bool):
        self.draw, self.kinds, self.lengths, self.depth, self.impure = draw, kinds, lengths, depth, impure
        self.first = len(kinds)
        self.steps: list[Step] = []

    def seen(self, kind: str, longest: int = LONG) -> list[int]:
        """The values of a kind, the latest first."""
        values = range(len(self.kinds) - 1, -1, -1)
        return [v for v in values if self.kinds[v] == kind and self.lengths[v] <= longest]

    def value(self, kind: str, longest: int = LONG) -> int:
        """A value of a kind, one of the latest; if need be by a step of its own."""
        if not self.seen(kind, longest):
            self.add({"flag": "less", "texts": "spread"}[kind])
        return self.draw(st.sampled_from(self.seen(kind, longest)[:3]))

    def result(self, kind: str, longest: int = LONG) -> int:
        """A value of a kind for an output; most often one that a step of this block makes."""
        latest = next(iter(self.seen(kind, longest)), -1)
        if latest < self.first and self.draw(st.integers(0, 3)):
            self.add(self.draw(st.sampled_from([n for n, op in OPS.items() if op.gives == (kind,)])))
        return self.value(kind, longest)

    def add(self, op: str) -> None:
        """Adds a step without blocks, unless its words could become too long."""
        spec = {**OPS, **IMPURE}[op]
        args = tuple(self.value(kind) for kind in spec.takes)
        words = [self.lengths[v] for v, kind in zip(args, spec.takes, strict=True) if kind in OUT]
        length = spec.length(words or [0])
        if length <= LONG:
            self.put(Step(op, args, spec.gives), length)

    def put(self, step: Step, length: int) -> None:
        self.steps.append(step)
        self.kinds += step.gives
        self.lengths += [length if kind in OUT else 0 for kind in step.gives]

    def block(self, takes: Kinds, gives: Kinds, longest: int = LONG, given: Sequence[int] = ()) -> tuple[Block, int]:
        """A block of one or two steps, and how long its words may be."""
        lengths = [*self.lengths, *(given or [SHORT] * len(takes))]
        inner = Writer(self.draw, [*self.kinds, *takes], lengths, self.depth + 1, self.impure)
        for _ in range(self.draw(st.integers(1, 2))):
            inner.any()
        outputs = tuple(inner.result(kind, longest) for kind in gives)
        block = Block(len(self.kinds), takes, tuple(inner.steps), outputs)
        return block, max((inner.lengths[v] for v in outputs), default=0)

    def any(self) -> None:
        """Adds a step of any sort."""
        sort = self.draw(st.sampled_from([*SORTS, "again", "control"][: None if self.depth < 2 else -1]))
        if sort == "control":
            self.control(self.draw(st.sampled_from([c for c in CONTROL if c != "vmap" or not self.impure])))
        elif sort == "again" and (repeatable := [s for s in self.steps if s.op in CALLED]):
            self.put(self.draw(st.sampled_from(repeatable)), 8)
        else:
            names = [*SORTS.get(sort, CALLED), *(IMPURE if self.impure else ())]
            self.add(self.draw(st.sampled_from(names)))

    def some(self, kinds: Sequence[str], count: int) -> Kinds:
        return tuple(self.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=count)))

    def control(self, op: str) -> None:
        """Adds a step with blocks."""
        match op:
            case "cond" | "switch":
                gives = self.some(["number", "text", "flag", "texts", "key"], 2)
                args = (self.value("flag" if op == "cond" else "number"),)
                blocks, lengths = zip(*(self.block((), gives) for _ in range(2 if op == "cond" else 3)), strict=True)
                self.put(Step(op, args, gives, blocks), max(lengths))
            case "while":
                gives, args = self.carry()
                condition, body = self.block(gives, ("flag",))[0], self.block(gives, gives, SHORT)[0]
                self.put(Step(op, args, gives, (condition, body), self.draw(st.integers(1, 3))), SHORT)
            case "fori":
                gives, args = self.carry()
                trips = self.draw(st.sampled_from([2, 0, 3, None]))
                args = args if trips is not None else (self.value("number"), *args)
                self.put(Step(op, args, gives, (self.block(("number", *gives), gives, SHORT)[0],), trips), SHORT)
            case "scan":
                (kind,), (carry,) = self.carry(1)
                xs, given = self.vector()
                y = self.draw(st.sampled_from(list(VECTORS)))
                body, _ = self.block((kind, self.kinds_of(xs)[0]), (kind, y), SHORT, [SHORT, given])
                how = self.draw(st.booleans())
                self.put(Step(op, (carry, xs), (kind, VECTORS[y]), (body,), how), SHORT)
            case "map":
                xs, given = self.vector()
                gives = self.some(list(VECTORS), 2)
                body, length = self.block(self.kinds_of(xs), gives, given=[given])
                self.put(Step(op, (xs,), tuple(VECTORS[g] for g in gives), (body,)), length)
            case "vmap":
                self.vmap()
            case "call":
                args = tuple(self.value(kind) for kind in self.some(["number", "text", "numbers", "key"], 2))
                gives = self.some(["number", "text", "texts"], 2)
                body, length = self.block(
                    tuple(self.kinds[v] for v in args), gives, given=[self.lengths[v] for v in args]
                )
                self.put(Step(op, args, gives, (body,), self.draw(st.sampled_from(WRAPPERS))), length)

    def vmap(self) -> None:
        """Adds lanes over a vector, with a second one or with something that they share."""
        xs, given = self.vector()
        args, axes, takes, lengths = [xs], [0], [*self.kinds_of(xs)], [given]
        second = self.draw(st.sampled_from(["none", "vector", "shared"]))
        if second != "none":
            other = self.vector()[0] if second == "vector" else self.value(self.draw(st.sampled_from(["text", "key"])))
            args.append(other)
            axes.append(0 if second == "vector" else None)
            takes += self.kinds_of(other) if second == "vector" else [self.kinds[other]]
            lengths.append(self.lengths[other])
        gives = self.some(list(VECTORS), 2)
        body, length = self.block(tuple(takes), gives, given=lengths)
        how = (self.draw(st.sampled_from(THROUGH)), tuple(axes))
        self.put(Step("vmap", tuple(args), tuple(VECTORS[g] for g in gives), (body,), how), length)

    def vector(self) -> tuple[int, int]:
        """A vector, and how long its words may be."""
        value = self.value(self.draw(st.sampled_from(list(ELEMENTS))))
        return value, self.lengths[value]

    def kinds_of(self, vector: int) -> Kinds:
        return (ELEMENTS[self.kinds[vector]],)

    def carry(self, count: int = 2) -> tuple[Kinds, tuple[int, ...]]:
        """What a loop carries: kinds, and first values."""
        kinds = self.some([k for k in ("number", "text", "key") if self.seen(k, SHORT)], count)
        return kinds, tuple(self.value(kind, SHORT) for kind in kinds)


@st.composite
def programs(draw: Any, impure: bool = False) -> Block:
    writer = Writer(draw, list(INPUTS), [0, 6, 0, 0], 0, impure)
    for _ in range(draw(st.integers(2, 4))):
        writer.any()
    gives = writer.some(["number", "text", "numbers", "texts", "flag"], 2)
    last = [v for v in range(len(INPUTS), len(writer.kinds)) if writer.kinds[v] != "key"][-2:]
    outputs = (*(writer.result(kind) for kind in gives), *last)
    return Block(0, INPUTS, tuple(writer.steps), outputs)


WORDS = ("a", "Bb 2", "c -7", "Dd  e", "")
ROWS = 4  # each input's, for two axes of two lanes; one axis has the first three
numbers = st.integers(-4, 4).map(np.float32)
columns = st.tuples(
    st.lists(numbers, min_size=ROWS, max_size=ROWS),
    st.lists(st.sampled_from(WORDS), min_size=ROWS, max_size=ROWS),
    st.lists(st.tuples(numbers, numbers, numbers), min_size=ROWS, max_size=ROWS),
    st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS),
)


# -- forms and passes ------------------------------------------------------------------------------------------------

# Those that `simplify` and `arrange` call by name; a new one is taken up here by itself.
PASSES = tuple(
    name
    for name in (*passes.simplify.__code__.co_names, *passes.arrange.__code__.co_names)
    if inspect.isfunction(getattr(passes, name, None))
)
SETTINGS = ((), *((name,) for name in PASSES), PASSES)  # the passes that are off


@contextlib.contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Plans are made without some passes; what was made before keeps its plan."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(passes, name, lambda plan, *_, **__: plan))
        yield


def over(fn: Callable[..., Any], axes: Sequence[Sequence[bool]]) -> Callable[..., Any]:
    """A function under one `vmap` for each lane axis; `axes[i][k]` says whether argument i has axis k."""
    for mapped in list(zip(*axes, strict=True))[::-1]:
        fn = jax.vmap(fn, tuple(0 if m else None for m in mapped))
    return fn


@dataclasses.dataclass(frozen=True)
class Form:
    """A way of running a program: of an operator or of a plain function, over so many lane axes."""

    axes: int
    run: Callable[[Callable[..., Any], Any], Callable[..., Any]]
    on: str = "operator"


FORMS = {
    "eager": Form(0, lambda f, axes: f),
    "jax.jit": Form(0, lambda f, axes: jax.jit(f)),
    "jax.jit of a function": Form(0, lambda f, axes: jax.jit(f), "function"),
    "ember.jit": Form(0, lambda f, axes: ember.jit(f)),
    "ember.jit of a function": Form(0, lambda f, axes: ember.jit(f), "function"),
    "vmap": Form(1, over),
    "jax.jit of vmap": Form(1, lambda f, axes: jax.jit(over(f, axes))),
    "ember.jit of vmap": Form(1, lambda f, axes: ember.jit(over(f, axes)), "function"),
    "vmap of ember.jit": Form(1, lambda f, axes: over(ember.jit(f), axes), "function"),
    "vmap of vmap": Form(2, over),
    "ember.jit of vmap of vmap": Form(2, lambda f, axes: ember.jit(over(f, axes)), "function"),
}
SIZES = ((), (3,), (2, 2))


@dataclasses.dataclass(frozen=True)
class Case:
    """A form, the passes that are off, and which lane axes each input has."""

    form: str
    off: tuple[str, ...]
    axes: tuple[tuple[bool, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return SIZES[FORMS[self.form].axes]

    @property
    def strides(self) -> tuple[int, ...]:
        return (2, 1) if len(self.sizes) == 2 else (1,) * len(self.sizes)

    def rows(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """For each lane, which row of each input it gets."""
        own = lambda lane, mine: sum(i * m * n for i, m, n in zip(lane, mine, self.strides, strict=True))
        places = itertools.product(*map(range, self.sizes))
        return {lane: tuple(own(lane, mine) for mine in self.axes) for lane in places}


@st.composite
def cases(draw: Any, form: str) -> Case:
    count = FORMS[form].axes
    which = st.tuples(*[st.booleans()] * count)
    axes = draw(st.lists(which, min_size=len(INPUTS), max_size=len(INPUTS)))
    # each `vmap` maps something; the question, if nothing else
    axes[1] = tuple(m or not any(mine[k] for mine in axes) for k, m in enumerate(axes[1]))
    return Case(form, draw(st.sampled_from(SETTINGS)), tuple(axes))


KEYS = jax.random.split(jax.random.key(0), ROWS)


class Trial:
    """A program on some data: what it gives and calls line by line, and what it gives as plain JAX callbacks."""

    def __init__(self, program: Block, data: Any):
        self.program = program
        x, t, xs, seeds = data
        self.columns = (jnp.asarray(x), ember.text(t), jnp.asarray(xs), KEYS[jnp.asarray(seeds)])
        self.pruned = program.needed()
        self.plain = jax.jit(functools.partial(program, "plain", ()))
        self.by_line = functools.cache(self._by_line)  # on the instance, and forgotten with it
        self.oracle = functools.cache(self._oracle)

    def arguments(self, rows: tuple[int, ...]) -> list[Any]:
        return [column[row] for column, row in zip(self.columns, rows, strict=True)]

    def function(self, on: str) -> Callable[..., Any]:
        """The program as a fresh operator or function, so that its plan is made anew."""
        return wrapped("ember", on, functools.partial(self.program, "ember", ()))

    def _by_line(self, rows: tuple[int, ...], *, pruned: bool) -> tuple[list[Any], collections.Counter[Any]]:
        program = self.pruned if pruned else self.program
        with jax.disable_jit(), without(() if pruned else ("unused",)):  # a nested operator under `vmap` is a plan
            found, made = counted(program, "ember", (), *self.arguments(rows))
        return found, made

    def _oracle(self, rows: tuple[int, ...]) -> tuple[list[Any], collections.Counter[Any]]:
        raw = [a.digests if isinstance(a, ember.Text) else a for a in self.arguments(rows)]
        return counted(self.plain, *raw)

    def run(self, case: Case) -> tuple[list[Any], collections.Counter[Any]]:
        form = FORMS[case.form]
        with without(case.off):
            run = form.run(self.function(form.on), case.axes)
            return counted(
                run, *(batched(c, mine, case.sizes) for c, mine in zip(self.columns, case.axes, strict=True))
            )


def batched(column: Any, mapped: Sequence[bool], sizes: Sequence[int]) -> Any:
    """The rows of a column, along the lane axes that it has."""
    place = np.arange(int(np.prod(sizes))).reshape(sizes)
    return column[place[tuple(slice(None) if m else 0 for m in mapped)]]


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x.digests if isinstance(x, ember.Text) else x) for x in tree]


def counted(run: Callable[..., Any], *args: Any) -> tuple[list[np.ndarray], collections.Counter[Any]]:
    """What `run` gives, and the calls that it made, in a session of its own."""
    calls.clear()
    with ember.session():
        found = leaves(jax.block_until_ready(run(*args)))
    return found, collections.Counter(calls)


def allowed(trial: Trial, case: Case, *, pruned: bool) -> collections.Counter[Any]:
    """The calls that the lanes make line by line.

    Where XLA runs the program, also those that it makes of plain callbacks: it moves one that depends on nothing in a
    loop out of the loop, and calls it even if the loop has no turn.
    """
    lanes = case.rows().values()
    limit = sum((trial.by_line(mine, pruned=pruned)[1] for mine in lanes), collections.Counter[Any]())
    if case.form == "jax.jit of a function":
        limit |= sum((trial.oracle(mine)[1] for mine in lanes), collections.Counter[Any]())
    return limit


def check_values(trial: Trial, case: Case, found: Sequence[np.ndarray], *, pruned: bool = False) -> None:
    """Each lane's results are the oracle's, and so are those of line by line."""
    lanes = list(case.rows().values())
    for mine in lanes:
        for line, want in zip(trial.by_line(mine, pruned=pruned)[0], trial.oracle(mine)[0], strict=True):
            np.testing.assert_array_equal(line, want)
    for k, leaf in enumerate(found):
        np.testing.assert_array_equal(leaf, np.stack([trial.oracle(mine)[0][k] for mine in lanes]).reshape(leaf.shape))


def examples(form: str, count: int, test: Callable[..., None], **given: Any) -> None:
    """Runs a property on so many examples; by day those of a form are always the same, and no other form's."""
    run = hypothesis.given(**given)(test)
    run = hypothesis.settings(max_examples=count, suppress_health_check=list(hypothesis.HealthCheck))(run)
    (run if NIGHTLY else hypothesis.seed(list(FORMS).index(form))(run))()


@pytest.mark.parametrize("form", FORMS)
def test_random_programs_give_what_plain_callbacks_give_for_no_more_calls(form):
    def test(program: Block, data: Any, case: Case) -> None:
        trial = Trial(program, data)
        found, made = trial.run(case)
        planned = form != "eager"
        pruned = planned and "unused" not in case.off
        check_values(trial, case, found, pruned=pruned)
        limit = allowed(trial, case, pruned=pruned)
        assert made <= limit, f"more calls than line by line: {made - limit}"
        assert not planned or set(made.values()) <= {1}, f"equal calls were made more than once: {made}"

    examples(form, -(-EXAMPLES // len(FORMS)), test, program=programs(), data=columns, case=cases(form))


# Not where XLA runs a `cond` with callbacks in it: it (JAX 0.10.2) now and then drops operands, but not
# their shardings, and fails ("RET_CHECK failure ... leaf_count"), with no operator in the program.
@pytest.mark.parametrize(
    "form", [f for f in FORMS if FORMS[f].axes < 2 and f not in ("eager", "jax.jit of a function")]
)
def test_impure_calls_are_made_as_often_as_line_by_line(form):
    def impure(made: collections.Counter[Any]) -> dict[Any, int]:
        return {call: count for call, count in made.items() if call[0] in IMPURE}

    def test(program: Block, data: Any, case: Case) -> None:
        trial = Trial(program, data)
        found, made = trial.run(case)
        check_values(trial, case, found)
        assert impure(made) == impure(allowed(trial, case, pruned=False))

    examples(form, EXAMPLES // 40, test, program=programs(impure=True), data=columns, case=cases(form))


def test_every_operation_is_drawn():
    met = collections.Counter[Any]()

    def test(program: Block) -> None:
        met.update(step.op for step in program.walk())
        met.update((step.op, inner.op) for step in program.walk() for b in step.blocks for inner in b.steps)
        met.update(("repeated", s.op in CALLED) for s in program.steps if program.steps.count(s) > 1)
        met.update(("unused", s.op) for s in program.needed().steps if s.op == "dead")

    examples("eager", 600, test, program=programs())
    assert met.keys() >= {*OPS, *CONTROL, ("repeated", True), ("unused", "dead")}
    nested = {(outer, inner) for outer in CONTROL for inner in CONTROL}
    assert len(met.keys() & nested) > len(nested) // 3


# -- what the random programs found ----------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [lambda f: f, lambda f: jax.vmap(f, (0, None))], ids=["one", "vmap"])
@pytest.mark.parametrize("length", [1, 3, 5_000])
def test_a_scan_whose_steps_have_nothing_left_to_do(length, transform):
    """The call in its body is unused, so that every step ends when it starts."""

    def program(x, t):
        last, _ = jax.lax.scan(lambda c, _: (SCORE(t), (x, x))[1], x, None, length)
        return last % 5, SCORE(t + "!")

    calls.clear()
    x = jnp.float32(7) if transform(program) is program else jnp.full(2, 7.0)
    with ember.session():
        left, scored = transform(ember.jit(program))(x, ember.text("a"))
    assert np.unique(left) == 2
    assert np.unique(scored) == (ord("a") + ord("!")) % 13
    assert calls == [("score", "a!")]


# -- what each pass is for -------------------------------------------------------------------------------------------


def answer(request: Any) -> str:
    return request.messages[-1].content.upper()


@contextlib.contextmanager
def asked() -> Iterator[Any]:
    """A session whose report counts the calls that a plan asks for, be they then merged or not."""
    calls.clear()
    with ember.session(providers={"sim": callables.Callable(answer)}) as session:
        yield session


llm = ember.LLM("sim/small", temperature=1)
KEY = jax.random.key(0)
SAY, SCORE, HALVE = (OPS[name].ember for name in ("say", "score", "halve"))


def off(name: str) -> Any:
    return pytest.mark.parametrize("off", [(), (name,), PASSES], ids=["on", "off", "all off"])


@off("unused")
def test_unused_drops_calls_whose_answers_nobody_needs(off):
    def program(t):
        SAY(SAY(t) + "?")
        return SCORE(t), jax.lax.cond(t == "a", lambda: (SCORE(t + "b"), SCORE(t)), lambda: (0.0, 0.0))[1]

    with asked(), without(off):
        ember.jit(program)(ember.text("a"))
    unused = [("say", "a"), ("say", "a1?"), ("score", "ab")]
    assert sorted(calls) == sorted([("score", "a"), *(unused if off else [])])


@off("merge")
def test_merge_asks_once_for_equal_calls(off, monkeypatch):
    """Without it the session still answers the second call with the first one's answer."""

    def program(t, key):
        return llm(t + t, key), llm(t + t, key), SAY(t), SAY(t)

    made = calls_of_sessions(monkeypatch)
    with asked() as session, without(off):
        answers = ember.jit(program)(ember.text("a"), KEY)
    assert [str(a) for a in answers] == ["AA", "AA", "a1", "a1"]
    assert (len(made), session.report().calls, session.report().requests) == (2 if off else 1, 2, 1)
    assert calls == [("say", "a")]


def calls_of_sessions(monkeypatch):
    """A list that grows with every call that a plan makes, for however many of the program it stands."""
    made = []
    ask = Session.ask

    def noting(self, request, *args):
        made.append(request)
        return ask(self, request, *args)

    monkeypatch.setattr(Session, "ask", noting)
    return made


@off("hoist")
def test_hoist_asks_once_for_what_no_lane_varies(off, monkeypatch):
    """Outside both axes, outside the inner one, and where both vary."""

    def program(t, x, y):
        say = lambda *numbers: llm(ember.format("{t} {n}", t=t, n=jnp.stack(numbers))[0], KEY)
        return llm(t, KEY), say(x), say(x + y)

    made = calls_of_sessions(monkeypatch)
    with asked() as session, without(off):
        over(ember.jit(program), ((False, False), (True, False), (True, True)))(
            ember.text("a"), jnp.arange(2) * 10, jnp.arange(6).reshape(2, 3)
        )
    report = session.report()
    assert len(made) == (18 if off else 1 + 2 + 6)
    assert (report.calls, report.requests) == (18, 1 + 2 + 6 - 1)  # 0 and 0 + 0 are one question


def segments_run(program: Callable[..., Any], args: Sequence[Any]) -> list[tuple[int, bool]]:
    """How many lanes each segment was run for, and whether as slices of the inputs or as rows of lanes."""
    runs: list[tuple[int, bool]] = []

    run = SegmentRunner.run

    def noted(self: SegmentRunner, shared: Any, columns: Any, count: int) -> list[np.ndarray]:
        runs.append((count, all(isinstance(c, np.ndarray) for c in columns)))
        return run(self, shared, columns, count)

    with mock.patch.object(SegmentRunner, "run", noted), asked():
        program(*args)
    return runs


@off("fuse")
def test_fuse_makes_one_executable_of_what_waits_for_the_same_calls(off):
    program = lambda x: HALVE(x * 2 + 1) * 2 + x
    with without(off):
        runs = segments_run(ember.jit(program), [jnp.float32(3)])
    assert len(runs) == (4 if off == PASSES else 2 if off else 1)  # what follows the call is the replay's, and unused
    assert calls == [("halve", "7.0")]


@off("gather")
def test_gather_computes_what_depends_on_inputs_from_their_slices(off):
    program = lambda x, y: HALVE(HALVE(x * 2) + HALVE(y * 3))
    with without(off):
        runs = segments_run(jax.vmap(ember.jit(program)), [jnp.arange(3.0), jnp.arange(3.0) + 9])
    assert all(count == 3 for count, _ in runs)
    assert [sliced for _, sliced in runs].count(True) == (0 if off else 1)
    assert len(calls) == 3 * 3
