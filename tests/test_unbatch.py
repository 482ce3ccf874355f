"""An inner `vmap` over a plain function: its lanes flow from call to call, and make only the calls of their branch."""

import asyncio
import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax._operator.boundary import boundary_for
from ember_jax._operator.lower import program_of
from ember_jax._plan import ir

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
HANGS = 20.0  # seconds after which a barrier that did not open is a failure; none is ever waited out in a good run
LANES, WIDTH = 4, 8


def plan_of(fn, *args):
    return program_of(boundary_for(fn), args, {})[0].plan


def nodes_of(plan):
    """All nodes of a plan, inner ones too."""
    return [n for node in plan.nodes for n in (node, *(m for inner in node.plans for m in nodes_of(inner)))]


def kinds(plan):
    return collections.Counter(type(n).__name__ for n in nodes_of(plan) if not isinstance(n, ir.Segment | ir.Words))


class Held:
    """Lane 0's first call ends only once another lane has made its second one."""

    def __init__(self, shape=()):
        self._went_on = None
        self.made = collections.Counter()
        self.first = ember.host(self._first, out=jax.ShapeDtypeStruct(shape, jnp.float32))
        self.second = ember.host(self._second, out=SCALAR)

    def _event(self):
        if self._went_on is None:
            self._went_on = asyncio.Event()
        return self._went_on

    async def _first(self, lane, x):
        self.made["first"] += 1
        event = self._event()
        if lane == 0:
            await asyncio.wait_for(event.wait(), HANGS)
        return x

    async def _second(self, lane, x):
        self.made["second"] += 1
        if lane != 0:
            self._event().set()
        return np.float32(np.sum(x))


class Free(Held):
    """The same calls, held up by nothing."""

    async def _first(self, lane, x):
        self.made["first"] += 1
        return x


KEY = jax.random.key(0)
W = jax.random.normal(KEY, (WIDTH, WIDTH))
MLP = eqx.nn.MLP(WIDTH, 3, 16, 2, key=KEY)
NORM = eqx.nn.LayerNorm(WIDTH)
ATTENTION = eqx.nn.MultiheadAttention(2, WIDTH, key=KEY)
GRU = eqx.nn.GRUCell(WIDTH, WIDTH, key=KEY)

# What stands between two calls, on what the first gave: float32[WIDTH], and the lane's number.
BETWEEN = {
    "nothing": lambda x, k: x,
    "arithmetic": lambda x, k: (x * 2 + 1) / 3 - x**2,
    "of the lane's own": lambda x, k: x * k,
    "where": lambda x, k: jnp.where(x > 0, x, jnp.arange(8.0)),
    "where of a scalar": lambda x, k: jnp.where(x.max() > 0, x[2], x.min()),
    "indexing": lambda x, k: x[2] + x[-1],
    "an index that is computed": lambda x, k: x[jnp.argmax(x)] + W[jnp.argmin(x)],
    "a reduction": lambda x, k: x.sum() + x.mean() + x.max(),
    "a product": lambda x, k: W @ x,
    "a product of both": lambda x, k: jnp.outer(x, x) @ W,
    "an MLP": lambda x, k: MLP(x),
    "layer norm": lambda x, k: NORM(x),
    "attention": lambda x, k: ATTENTION(*(3 * [x[None] * jnp.ones((5, 1))])).sum(0),
    "a scan": lambda x, k: jax.lax.scan(lambda c, u: (GRU(u * jnp.ones(WIDTH), c), c.sum()), jnp.zeros(WIDTH), x)[0],
    "softmax": lambda x, k: jax.nn.softmax(x) * jax.nn.logsumexp(x),
    "sorting": lambda x, k: jnp.sort(x)[:3] + x[jnp.argsort(x)[:3]],
    "cumulative": lambda x, k: jnp.cumsum(x),
    "top k": lambda x, k: jax.lax.top_k(x, 2)[0],
    "concatenation": lambda x, k: jnp.concatenate([x, jnp.ones(2)]),
    "stacking": lambda x, k: jnp.stack([x, x * 2, jnp.ones(WIDTH)]),
    "writing": lambda x, k: x.at[jnp.argmax(x)].set(0.0).at[1].add(2.0),
    "a draw": lambda x, k: x + jax.random.normal(jax.random.fold_in(KEY, k.astype(jnp.int32)), (WIDTH,)),
    "a draw from a seed": lambda x, k: x * jax.random.uniform(jax.random.key(k.astype(jnp.int32))),
    "a choice": lambda x, k: x[jax.random.categorical(jax.random.fold_in(KEY, k.astype(jnp.int32)), x)],
    "one hot": lambda x, k: jnp.einsum("i,ij,j->", x, W, jax.nn.one_hot(jnp.argmax(x), WIDTH)),
    "an inner vmap": lambda x, k: jax.vmap(lambda a: a * x.sum() + k)(x),
    "a branch without calls": lambda x, k: jax.lax.cond(x[0] > 0, lambda: x.sum(), lambda: x.max()),
    "words": lambda x, k: ember.parse_number(ember.format("{x:.3f} and {k:.1f}", x=x[0], k=k)),
    "words and numbers": lambda x, k: (
        (ember.format("{x:.1f}", x=x[0]) == "0.5").astype(jnp.float32)
        + ember.features(ember.format("{x:.1f}", x=x[1]), 4)
    ),
}


def chain(calls, between):
    def one(k, x):
        y = between(calls.first(k, x), k)
        return calls.second(k, jnp.sum(jnp.atleast_1d(y)))

    return one


XS = jax.random.normal(jax.random.key(3), (LANES, WIDTH))
KS = jnp.arange(float(LANES))


@pytest.mark.parametrize("name", BETWEEN)
def test_lanes_of_an_inner_vmap_do_not_wait_for_each_other(name):
    held, free = Held((WIDTH,)), Free((WIDTH,))
    flowing = ember.jit(lambda ks, xs: jax.vmap(chain(held, BETWEEN[name]))(ks, xs) + 1)
    with ember.session():
        found = flowing(KS, XS)
    with ember.session():
        wanted = jnp.stack([chain(free, BETWEEN[name])(k, x) + 1 for k, x in zip(KS, XS, strict=True)])
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)
    assert held.made == {"first": LANES, "second": LANES}


@pytest.mark.parametrize("outer", ["vmap of ember.jit", "jit of vmap", "scan"])
def test_also_where_the_whole_is_transformed(outer):
    """Lanes within lanes: inner lane 0 of each outer one is held until another inner lane of any has gone on."""
    held, free = Held(), Free()
    inner = lambda calls: lambda scale, ks, xs: jax.vmap(chain(calls, lambda x, k: x * scale))(ks, xs)
    run = ember.jit(inner(held))
    scales, xs = jnp.array([1.0, 2.0, 3.0]), XS[:, 0]
    forms = {
        "vmap of ember.jit": lambda: jax.vmap(run, (0, None, None))(scales, KS, xs),
        "jit of vmap": lambda: jax.jit(jax.vmap(run, (0, None, None)))(scales, KS, xs),
        "scan": lambda: jax.lax.scan(lambda _, s: (None, run(s, KS, xs)), None, scales)[1],
    }
    wanted = jnp.stack([jax.vmap(chain(free, lambda x, k: x * s))(KS, xs) for s in scales])
    with ember.session():
        np.testing.assert_allclose(forms[outer](), wanted, rtol=1e-6)


@pytest.mark.parametrize("in_axes", [(0, 1), (0, -1)])
@pytest.mark.parametrize("out_axes", [0, 1])
def test_whichever_axis_is_mapped(in_axes, out_axes):
    """The width equals the number of lanes, so that only the right axis gives the right numbers."""
    held, free = Held((LANES,)), Free((LANES,))
    xs = jax.random.normal(KEY, (LANES, LANES))

    def program(calls):
        def one(k, x):
            y = W[:LANES, :LANES] @ calls.first(k, x)
            return y * calls.second(k, y)

        return lambda ks, xs: jax.vmap(one, in_axes, out_axes)(ks, xs)

    with ember.session():
        found = ember.jit(program(held))(KS, xs)
    np.testing.assert_allclose(found, program(free)(KS, xs), rtol=1e-4)


def test_lanes_of_two_inner_axes():
    held, free = Held(), Free()

    def program(calls):
        one = chain(calls, lambda x, k: jnp.sin(x) + k)
        return lambda ks, xs: jax.vmap(jax.vmap(one, (None, 0)), (0, None))(ks, xs)

    ks, xs = jnp.arange(3.0), XS[:, 0]
    with ember.session():
        found = ember.jit(program(held))(ks, xs)
    np.testing.assert_allclose(found, program(free)(ks, xs), rtol=1e-5)
    assert held.made["first"] == held.made["second"] == 12


def test_operators_with_branches_and_loops_flow_into_each_other():
    held = Held()
    other = ember.host(lambda x: x + 1, out=SCALAR)

    @ember.operator
    def ask(k: jax.Array, x: jax.Array) -> jax.Array:
        y = held.first(k, x)
        return jax.lax.cond(y > 0, lambda: other(y), lambda: y)

    @ember.operator
    def answer(k: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 2, lambda _, c: other(c), held.second(k, x))

    run = ember.jit(lambda ks, xs: jax.vmap(lambda k, x: answer(k, ask(k, x) * 2))(ks, xs))
    xs = XS[:, 0]
    wanted = np.where(xs > 0, xs + 1, xs) * 2 + 2
    np.testing.assert_allclose(run(KS, xs), wanted, rtol=1e-6)


# -- only the calls of the branch that is taken ----------------------------------------------------------------------


class Counted:
    """Host calls that are counted by name, each call by its argument."""

    def __init__(self):
        self.made = collections.Counter()

    def __getattr__(self, name):  # once for each name
        if name.startswith("_"):
            raise AttributeError(name)

        def call(x):
            self.made[name] += 1
            return np.float32(x * 2)

        function = ember.host(call, out=SCALAR)
        setattr(self, name, function)
        return function

    def words(self, name):
        def call(t):
            self.made[name] += 1
            return f"{t} {name}"

        return ember.host(call, out=ember.Text)


def both(fn, *args):
    """A program's value inside `ember.jit`, and line by line without any `vmap`; both with calls counted."""
    found, plain = Counted(), Counted()
    with ember.session():
        value = ember.jit(lambda *xs: jax.vmap(fn(found))(*xs))(*args)
    with ember.session():
        rows = [fn(plain)(*row) for row in zip(*args, strict=True)]
    return (value, found.made), (rows, plain.made)


X = jnp.array([0.5, -1.0, 2.0, -3.0, 1.5])


def agree(fn, *args):
    (found, made), (wanted, needed) = both(fn, *args)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, stacked)
    assert all(made[name] <= needed[name] for name in needed), (made, needed)
    return made


def test_a_batched_cond_calls_one_branch_of_each_lane():
    made = agree(lambda c: lambda x: jax.lax.cond(c.test(x) > 0, lambda: c.yes(x), lambda: c.no(x)), X)
    assert made == {"test": 5, "yes": 3, "no": 2}


def test_a_batched_cond_on_inputs_alone():
    made = agree(lambda c: lambda x: c.after(jax.lax.cond(x > 0, lambda: c.yes(x), lambda: x)), X)
    assert made == {"yes": 3, "after": 5}


def test_chains_of_calls_in_a_branch():
    made = agree(
        lambda c: lambda x: jax.lax.cond(c.test(x) > 0, lambda y: jnp.sin(c.b(c.a(y) + 1)) * y, lambda y: y, x), X
    )
    assert made == {"test": 5, "a": 3, "b": 3}


def test_branches_within_branches():
    def fn(c):
        def one(x):
            y = c.test(x)
            inner = lambda: jax.lax.cond(y > 3, lambda: c.big(y), lambda: c.small(y) + x)
            return jax.lax.cond(y > 0, inner, lambda: c.no(x))

        return one

    assert agree(fn, X) == {"test": 5, "big": 1, "small": 2, "no": 2}


def test_a_switch():
    fn = lambda c: (
        lambda x: jax.lax.switch(
            (c.test(x) > 0).astype(jnp.int32) + (x > 1).astype(jnp.int32), [lambda: c.a(x), lambda: c.b(x), lambda: x]
        )
    )
    assert agree(fn, X) == {"test": 5, "a": 2, "b": 1}


def test_a_call_that_both_sides_use_is_made_once_in_each_lane():
    def fn(c):
        def one(x):
            y = c.common(x)
            return jax.lax.cond(c.test(x) > 0, lambda: y + c.yes(x), lambda: y * 2)

        return one

    assert agree(fn, X) == {"common": 5, "test": 5, "yes": 3}


def test_results_used_outside_too_are_made_for_every_lane():
    def fn(c):
        def one(x):
            y = c.used(x)
            return jax.lax.cond(c.test(x) > 0, lambda: y, lambda: x), y

        return one

    assert agree(fn, X) == {"used": 5, "test": 5}


def test_what_follows_a_branch_may_choose_again():
    def fn(c):
        def one(x):
            y = jax.lax.cond(c.test(x) > 0, lambda: c.yes(x), lambda: x)
            z = c.after(y)
            return jax.lax.cond(c.test(x) > 0, lambda: c.again(z), lambda: z)

        return one

    assert agree(fn, X) == {"test": 5, "yes": 3, "after": 5, "again": 3}


def test_words_in_branches():
    calls = Counted()
    weigh, strong = calls.words("weighed"), calls.words("strong")

    def one(t):
        draft = weigh(t)
        doubt = ember.parse_number(draft) > 2
        return jax.lax.cond(doubt, lambda: strong(ember.format("again {d}", d=draft)), lambda: draft)

    with ember.session():
        found = ember.jit(lambda ts: jax.vmap(one)(ts))(ember.text(["a 1", "b 3", "c 2", "d 5"]))
    assert found.tolist() == ["a 1 weighed", "again b 3 weighed strong", "c 2 weighed", "again d 5 weighed strong"]
    assert calls.made == {"weighed": 4, "strong": 2}


def test_operators_in_branches_of_an_inner_vmap():
    calls = Counted()

    @ember.operator
    def deep(x: jax.Array) -> jax.Array:
        return calls.b(calls.a(x))

    one = lambda x: jax.lax.cond(calls.test(x) > 0, deep, lambda y: y, x)
    with ember.session():
        found = ember.jit(lambda xs: jax.vmap(one)(xs))(X)
    np.testing.assert_allclose(found, np.where(X > 0, X * 4, X))
    assert calls.made == {"test": 5, "a": 3, "b": 3}


def test_where_computes_both_sides_as_it_says():
    calls = Counted()
    with ember.session():
        ember.jit(lambda xs: jax.vmap(lambda x: jnp.where(calls.test(x) > 0, calls.yes(x), calls.no(x)))(xs))(X)
    assert calls.made == {"test": 5, "yes": 5, "no": 5}


def test_gradients_through_branches_that_were_not_taken():
    """What was recorded of a side that was not taken are zeros, of which no derivative may be seen."""

    def program(c):
        def one(w, x):
            up = lambda: w * jnp.log(c.yes(x)) / c.yes(x)
            return jax.lax.cond(c.test(x) > 0, up, lambda: w * x)

        return lambda w: jnp.sum(jax.vmap(one, (None, 0))(w, X))

    calls = Counted()
    with ember.session():
        value, slope = jax.value_and_grad(ember.jit(program(calls)))(jnp.float32(1.5))
    wanted = np.sum(np.where(X > 0, np.log(np.abs(2 * X)) / (2 * X), X))
    np.testing.assert_allclose(value, 1.5 * wanted, rtol=1e-6)
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)
    assert calls.made == {"test": 5, "yes": 3}


# -- what meets, and what waits --------------------------------------------------------------------------------------


class Gate:
    """Calls that end only when a number of them are in flight at once."""

    def __init__(self, needed):
        self.all = asyncio.Barrier(needed)
        self.call = ember.host(self._call, out=SCALAR)

    async def _call(self, x):
        await asyncio.wait_for(self.all.wait(), HANGS)
        return x


def free(x):
    return x


free_call = ember.host(free, out=SCALAR)


def test_a_whole_value_that_is_needed_late_holds_nobody_up():
    """The rubric and the drafts are asked at once; only what grades waits for both."""
    gate = Gate(1 + LANES)

    def program(x, xs):
        rubric = gate.call(x)
        drafts = jax.vmap(gate.call)(xs)
        return jax.vmap(lambda d: free_call(d * rubric))(drafts)

    with ember.session():
        found = ember.jit(program)(jnp.float32(3), XS[:, 0])
    np.testing.assert_allclose(found, XS[:, 0] * 3, rtol=1e-6)


def test_what_needs_an_early_answer_of_all_lanes_does_not_wait_for_their_later_calls():
    gate = Gate(1 + LANES)

    def program(xs):
        first = jax.vmap(free_call)(xs)
        later = jax.vmap(lambda a: gate.call(a * 2))(first)
        return gate.call(first.sum()), later

    with ember.session():
        total, later = ember.jit(program)(XS[:, 0])
    np.testing.assert_allclose(total, XS[:, 0].sum(), rtol=1e-5)
    np.testing.assert_allclose(later, XS[:, 0] * 2, rtol=1e-6)


MEETING = {
    "reduce_sum": lambda a: a - a.mean(),
    "sort": lambda a: jnp.sort(a),
    "cumsum": lambda a: jnp.cumsum(a),
    "rev": lambda a: a[::-1],
}


@pytest.mark.parametrize("name", MEETING)
def test_lanes_that_meet_say_why(name):
    def program(xs):
        first = jax.vmap(free_call)(xs)
        return jax.vmap(lambda a: free_call(a * 2))(MEETING[name](first))

    found = [n for n in nodes_of(plan_of(program, XS[:, 0])) if isinstance(n, ir.Call | ir.Lanes)]
    assert any(name in reason for n in found for reason in n.meets), [n.meets for n in found]
    with ember.session():
        np.testing.assert_allclose(ember.jit(program)(XS[:, 0]), MEETING[name](XS[:, 0]) * 2, rtol=1e-5, atol=1e-6)


def test_what_no_lane_varies_is_asked_once():
    calls = Counted()

    def program(x, xs):
        return jax.vmap(lambda y: calls.second(calls.first(y) + calls.shared(x)))(xs)

    plan = plan_of(program, X[0], X)
    with ember.session(journal=None):
        found = ember.jit(program)(X[0], X)
    np.testing.assert_allclose(found, 4 * (X + X[0]), rtol=1e-6)
    assert calls.made == {"first": 5, "shared": 1, "second": 5}
    assert kinds(plan) == {"Lanes": 1, "Call": 3}


def test_a_failed_lane_leaves_the_others_alone():
    done = []

    def shaky(x):
        if x < 0:
            raise ValueError("below zero")
        done.append(float(x))
        return x

    call = ember.host(shaky, out=SCALAR)
    run = ember.jit(lambda xs: jax.vmap(lambda x: call(free_call(x) + 1))(xs))
    with pytest.raises(ember.errors.SweepError, match=r"2 of 5 lanes failed") as raised, ember.session():
        run(X * 2)
    assert [f.lane for f in raised.value.failures] == [(1,), (3,)]
    assert sorted(done) == [2.0, 4.0, 5.0]


def test_one_batch_alone_stays_a_batch():
    assert kinds(plan_of(lambda xs: jax.vmap(lambda x: free_call(x * 2) + 1)(xs), X)) == {"Call": 1}


def test_a_branch_that_is_chosen_by_what_all_lanes_gave():
    """Who is above the mean asks again; nobody else does, though their answers are there to be asked about."""
    calls = Counted()

    def program(xs):
        answers = jax.vmap(calls.first)(xs)
        above = answers - answers.mean()
        return jax.vmap(lambda a, b: jax.lax.cond(b > 0, lambda: calls.again(a), lambda: a))(answers, above)

    with ember.session():
        found = ember.jit(program)(X)
    np.testing.assert_allclose(found, np.where(X.mean() < X, 4 * X, 2 * X), rtol=1e-6)
    assert calls.made == {"first": 5, "again": int(np.sum(X.mean() < X))}
