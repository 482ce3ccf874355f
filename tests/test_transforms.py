"""The transform matrix: every kind of operator, under every transformation, is its own line-by-line run.

Numbers are multiples of 1/8, so that every route to them gives the same bits, and calls can be compared by what they
were called with.
"""

import collections
import itertools
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

import ember_jax as ember
from ember_jax import testing

MODES = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit, "eqx.filter_jit": eqx.filter_jit}
BATCHES = ("one", "vmap", "vmap of vmap")
EVERYTHING = list(itertools.product(MODES, BATCHES))
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
# By day each operator meets every batch, each with another mode, and its gradient one of these pairs; of `jax.jit` and
# `eqx.filter_jit`, which differ in how they take arguments, it meets one. All of them by night.
JITS = ("jax.jit", "eqx.filter_jit")
BY_DAY = [(("eager", "vmap"), (jit, "one"), ("ember.jit", "vmap of vmap")) for jit in JITS]
LANES = 6
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)

Words = ember.Text
Pair = Float[Array, "2"]
Number = Float[Array, ""]

UNREAD = " nobody reads this"

made: list[tuple] = []  # what host functions were called with


async def _say(prompt):
    made.append(("say", prompt))
    return prompt + "."


async def _strong(prompt):
    made.append(("strong", prompt))
    return prompt.upper()


async def _score(words, number):
    made.append(("score", words, float(number)))
    return len(words) * 0.5 + float(number) * 0.25


def _halve(number):
    made.append(("halve", float(number)))
    return number / 2


def _foreign(number):
    made.append(("foreign", float(number)))
    return np.asarray(number * 2, np.float32)


say = ember.host(_say, out=ember.Text)
strong = ember.host(_strong, out=ember.Text)
score = ember.host(_score, out=SCALAR)
halve = ember.host(_halve, out=SCALAR)


class Ask(ember.Operator):
    llm: ember.LLM

    def forward(self, t: Words, x: Pair) -> tuple[Words, Number]:
        return self.llm(t), x[0] * 2


class Complete(ember.Operator):
    llm: ember.LLM

    def forward(self, t: Words, x: Pair) -> tuple[Words, Number]:
        answer = self.llm.complete(ember.format("{t} {i} + 1", t=t, i=jnp.int32(7)))
        return answer.text, answer.output_tokens.astype(jnp.float32) * x[0] * x[1]


@ember.operator
def chain(t: Words, x: Pair) -> tuple[Words, Number]:
    second = say(say(t) + "?")
    return second, score(second, x[0]) * x[1]


class Cascade(ember.Operator):
    gate: Float[Array, "2"]

    def forward(self, t: Words, x: Pair) -> tuple[Words, Number]:
        draft = say(t)
        logit = score(draft, 1.0) * self.gate[0] + x[0] * self.gate[1]
        return jax.lax.cond(
            logit > 2,
            lambda: (strong(t), score(t, 2.0) * x[0] * self.gate[0]),
            lambda: (draft, logit * x[1]),
        )


class Router(ember.Operator):
    weights: Float[Array, "3 2"]

    def forward(self, t: Words, x: Pair) -> tuple[Words, Number]:
        logits = self.weights @ x
        branches = [
            lambda: (say(t), x[0] * x[0]),
            lambda: (strong(t), score(t, 3.0) * x[1]),
            lambda: (t, x[0] * x[1]),
        ]
        words, value = jax.lax.switch(jnp.argmax(logits), branches)
        return words, value * jax.nn.softmax(logits)[0]


@ember.operator
def until_stop(t: Words, x: Pair) -> tuple[Words, Int[Array, ""]]:
    """As many turns as the lane's score needs."""

    def turn(carry):
        words, turns = carry
        return say(words), turns + 1

    return jax.lax.while_loop(lambda carry: score(carry[0], x[0]) < 3, turn, (t, jnp.int32(0)))


@ember.operator
def conversation(t: Words, x: Pair) -> tuple[Words, Float[Array, "3"]]:
    def turn(carry, bonus):
        history, total = carry
        answer = say(history)
        total = total * x[1] + score(answer, 0.5) + bonus * x[0]
        return (history + answer, total), total

    (history, _), totals = jax.lax.scan(turn, (t, x[0]), jnp.arange(3.0))
    return history, totals


@ember.operator
def mapped(t: Words, x: Pair) -> Pair:
    return jax.lax.map(lambda v: score(t, v) * v, x)


@ember.operator
def turns(t: Words, x: Pair) -> tuple[Words, Number]:
    body = lambda i, carry: (say(carry[0]), carry[1] * x[0] + score(carry[0], 0.25))
    return jax.lax.fori_loop(0, 2, body, (t, x[1]))


class Nested(ember.Operator):
    cascade: Cascade

    def forward(self, t: Words, x: Pair) -> tuple[Words, Number]:
        words, value = self.cascade(t, x)
        again, other = self.cascade(words + "!", x * value)
        return again, other + value


@ember.operator
def inner_jit(t: Words, x: Pair) -> tuple[Words, Number]:
    return jax.jit(lambda u, v: (say(u), score(u, v[1]) * v[0] * v[0]))(t, x)


@ember.operator
def inner_vmap(t: Words, x: Pair) -> tuple[Words, Pair, Pair]:
    """The same operator over two different axes of lanes, and a host function."""
    _, by_number = jax.vmap(chain, (None, 0))(t, jnp.stack([x, x + 1]))
    by_words, _ = jax.vmap(chain, (0, None))(ember.stack([t, t + "#"]), x)
    return ember.join(" ", by_words), by_number, jax.vmap(score, (None, 0))(t, x) * x


@jax.custom_jvp
def _pushed(t, v):
    return score(t, v) * v


@_pushed.defjvp
def _(primals, tangents):
    return _pushed(*primals), tangents[1] * 8


@ember.operator
def custom_jvp(t: Words, x: Pair) -> Number:
    return _pushed(t, x[0]) * x[1]


@jax.custom_vjp
def _pulled(t, v):
    return score(t, v) * v


_pulled.defvjp(lambda t, v: (_pulled(t, v), v), lambda v, g: (None, g * v * 4))


@ember.operator
def custom_vjp(t: Words, x: Pair) -> Number:
    return _pulled(t, x[0]) * x[1]


@ember.operator
def checkpointed(t: Words, x: Pair) -> Number:
    return jax.checkpoint(lambda u, v: score(say(u), v[0]) * v[0] * v[1])(t, x)


@ember.operator
def numbers_through_host(t: Words, x: Pair) -> Number:
    return halve(x[0] * 3) * x[1] + halve(x[1])


@ember.operator
def unused_and_repeated(t: Words, x: Pair) -> tuple[Words, Number]:
    strong(t + UNREAD)
    return say(t), score(t, x[0]) * x[1] + score(t, x[0]) + halve(x[0] + 100) * 0


@ember.operator
def somebodys_callback(t: Words, x: Pair) -> Number:
    doubled = jax.pure_callback(_foreign, SCALAR, jax.lax.stop_gradient(x[0]), vmap_method="sequential")
    return score(t, doubled) * doubled * x[1]


@ember.operator
def text_only(t: Words, x: Pair) -> Words:
    return ember.where(t == "aa", ember.format("{t}/{t}", t=t), t + ember.normalize(t + " B", "case"))


@ember.operator
def numbers_only(t: Words, x: Pair) -> tuple[Number, Int[Array, ""]]:
    return jax.lax.cond(x[0] > x[1], lambda: x[0] * 3, lambda: x[1] * x[1]), jnp.argmax(x)


@ember.operator
def everything_in_a_scan(t: Words, x: Pair) -> tuple[Words, Number]:
    def step(carry, v):
        words, total = carry
        up = score(words, v) > total
        words = jax.lax.cond(up, lambda: say(words), lambda: words)
        return (words, jnp.where(up, total + v * x[1], total * x[0])), None

    return jax.lax.scan(step, (t, x[0]), x)[0]


gate = Cascade(jnp.array([0.5, 0.25]))
llm = ember.LLM("sim/small")
OPERATORS = {
    "llm": Ask(llm),
    "completion": Complete(llm),
    "chain": chain,
    "cascade": gate,
    "switch": Router(jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])),
    "while": until_stop,
    "scan": conversation,
    "map": mapped,
    "fori": turns,
    "nested": Nested(gate),
    "inner jit": inner_jit,
    "inner vmap": inner_vmap,
    "custom_jvp": custom_jvp,
    "custom_vjp": custom_vjp,
    "checkpoint": checkpointed,
    "numbers through host": numbers_through_host,
    "unused and repeated": unused_and_repeated,
    "somebody's callback": somebodys_callback,
    "text only": text_only,
    "numbers only": numbers_only,
    "everything in a scan": everything_in_a_scan,
}
NOT_DIFFERENTIABLE = {"while", "text only"}
TEXTS = ember.text(["a", "aa", "b c", "dddd", "e" * 5, "f" * 7])
XS = jnp.array([[0.5, 1], [3, 0.25], [-1, 2], [1.5, 1.5], [0.25, 4], [8, -0.5]])
assert len(TEXTS) == len(XS) == LANES


def value(op):
    return lambda t, x: op(t, x)


def gradient(op):
    def total(x, t):
        numbers = [n for n in jax.tree.leaves(op(t, x)) if jnp.issubdtype(n.dtype, jnp.inexact)]
        return sum(jnp.sum(n) for n in numbers)

    return lambda t, x: jax.grad(total)(x, t)


def batched(batch, f):
    return {"one": lambda: f, "vmap": lambda: jax.vmap(f), "vmap of vmap": lambda: jax.vmap(jax.vmap(f))}[batch]()


def data(batch):
    match batch:
        case "one":
            return TEXTS[1], XS[1]
        case "vmap":
            return TEXTS, XS
        case _:
            return TEXTS.reshape(2, 3), XS.reshape(2, 3, 2)


def counted(run):
    """What `run` returns, the host calls it made, and the LLM calls it asked for, in a session of its own."""
    made.clear()
    sim = testing.Sim({"small": testing.SimModel(accuracy=1.0, latency=0.0)})
    with ember.session(providers={"sim": sim}) as session:
        result = jax.block_until_ready(run())
    return result, collections.Counter(made), session.report()


def plain(tree):
    """Leaves as NumPy, words as strings."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda v: isinstance(v, ember.Text))
    return [np.asarray(leaf) for leaf in leaves]


_references = {}


def reference(name):
    """Line by line, one element after the other in a Python loop: for each lane its results and what it called."""
    if name not in _references:
        op = OPERATORS[name]
        runs = [counted(lambda t=TEXTS[i], x=XS[i]: op(t, x)) for i in range(LANES)]
        _references[name] = [(plain(result), calls, report.calls) for result, calls, report in runs]
    return _references[name]


def lanes_of(batch):
    return [1] if batch == "one" else range(LANES)


def expected(batch, rows):
    """Results of lanes, stacked as the batch is."""
    rows = [rows[i] for i in lanes_of(batch)]
    lead = {"one": (), "vmap": (LANES,), "vmap of vmap": (2, 3)}[batch]
    return [np.stack(leaf).reshape((*lead, *leaf[0].shape)) for leaf in zip(*rows, strict=True)]


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        if b.dtype.kind in "fc":
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)


def assert_calls(batch, name, calls, report):
    """Exactly what the lanes need, each no more often than line by line."""
    needed = sum((reference(name)[i][1] for i in lanes_of(batch)), collections.Counter())
    unread = {call for call in needed if UNREAD in str(call[1])}
    if name == "inner vmap":  # reads one result of each lane; what only the other needs is not asked
        assert set(calls) <= set(needed)
    else:
        assert set(calls) in (set(needed), set(needed) - unread)
    assert calls <= needed
    assert report.calls <= sum(reference(name)[i][2] for i in lanes_of(batch))


@pytest.mark.parametrize(
    ("name", "mode", "batch"),
    [(name, *pair) for i, name in enumerate(OPERATORS) for pair in (EVERYTHING if NIGHTLY else BY_DAY[i % 2])],
)
def test_values_and_calls_are_those_of_the_eager_run(name, mode, batch):
    run = MODES[mode](batched(batch, value(OPERATORS[name])))
    result, calls, report = counted(lambda: run(*data(batch)))
    assert_same(plain(result), expected(batch, [row for row, _, _ in reference(name)]))
    assert_calls(batch, name, calls, report)


_gradients = {}


def reference_gradient(name):
    """Plain JAX on `forward`, without the boundary: its host calls are callbacks behind `stop_gradient`."""
    if name not in _gradients:
        op = OPERATORS[name]
        run = jax.jit(lambda t, x: gradient(op.forward)(t, x))
        _gradients[name] = [plain(counted(lambda t=TEXTS[i], x=XS[i]: run(t, x))[0]) for i in range(LANES)]
    return _gradients[name]


DIFFERENTIABLE = [name for name in OPERATORS if name not in NOT_DIFFERENTIABLE]


@pytest.mark.parametrize(
    ("name", "mode", "batch"),
    [
        (name, *pair)
        for i, name in enumerate(DIFFERENTIABLE)
        for pair in (EVERYTHING if NIGHTLY else [BY_DAY[i % 2][i % 3]])
    ],
)
def test_gradients_are_those_of_plain_jax_and_cost_no_extra_call(name, mode, batch):
    run = MODES[mode](batched(batch, gradient(OPERATORS[name])))
    result, calls, report = counted(lambda: run(*data(batch)))
    assert_same(plain(result), expected(batch, reference_gradient(name)))
    assert set(calls) <= set(sum((reference(name)[i][1] for i in lanes_of(batch)), collections.Counter()))
    assert all(count == 1 for count in calls.values())
    assert report.calls <= sum(reference(name)[i][2] for i in lanes_of(batch))


# -- only the needed calls, asked for and not only paid for ----------------------------------------------------------


class LLMCascade(ember.Operator):
    cheap: ember.LLM
    dear: ember.LLM
    gate: Float[Array, ""]

    def forward(self, t: Words, x: Pair) -> Words:
        draft = self.cheap(t)
        return jax.lax.cond(x[0] * self.gate > 0.4, lambda: self.dear(draft + " again"), lambda: draft)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_cascade_asks_exactly_what_its_lanes_need(mode, nested):
    op = LLMCascade(llm, ember.LLM("sim/small", temperature=0), jnp.float32(1))
    up = int((XS[:, 0] > 0.4).sum())
    assert 0 < up < LANES
    t, x = data("vmap of vmap" if nested else "vmap")
    run = MODES[mode](lambda t, x: (jax.vmap(jax.vmap(op)) if nested else jax.vmap(op))(t, x))
    _, _, report = counted(lambda: run(t, x))
    assert report.calls == report.requests == LANES + up


@pytest.mark.parametrize("mode", MODES)
def test_each_lane_leaves_its_own_loop(mode):
    asked: list[int] = []

    async def ask(lane, words):
        asked.append(int(lane))
        return words + "."

    host = ember.host(ask, out=ember.Text)

    @ember.operator
    def turns_of(lane: Int[Array, ""], turns: Int[Array, ""]) -> Words:
        done = lambda carry: carry[1] < turns
        return jax.lax.while_loop(done, lambda c: (host(lane, c[0]), c[1] + 1), (ember.text("go"), jnp.int32(0)))[0]

    turns = jnp.array([3, 0, 7, 1, 2])
    run = MODES[mode](lambda lanes, turns: jax.vmap(turns_of)(lanes, turns))
    answers, _, _ = counted(lambda: run(jnp.arange(5), turns))
    assert answers.tolist() == ["go" + "." * n for n in turns.tolist()]
    assert collections.Counter(asked) == collections.Counter({i: n for i, n in enumerate(turns.tolist()) if n})


@pytest.mark.parametrize("mode", ["ember.jit", "jax.jit"])
def test_one_operator_in_two_vmaps_of_different_axes_keeps_its_arguments_apart(mode):
    """Each `vmap` shares another argument among its lanes."""

    def both(xs, ys, x, y):
        return [
            jax.vmap(weighed, (0, None))(xs, y),
            jax.vmap(weighed, (None, 0))(x, ys),
            jax.vmap(weighed, (0, None))(xs, x),
        ]

    xs, ys = jnp.arange(3.0), jnp.arange(3.0) + 5
    found, _, _ = counted(lambda: MODES[mode](both)(xs, ys, xs[1], ys[2]))
    for got, want in zip(found, [xs * 10 + 7, 10 + ys, xs * 10 + 1], strict=True):
        np.testing.assert_array_equal(got, want / 2)


@ember.operator
def weighed(a: Number, b: Number) -> Number:
    return halve(a * 10 + b)
