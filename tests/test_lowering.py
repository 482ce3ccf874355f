"""Plans and lanes: what becomes a segment, what waits for what; a lane's numbers never depend on its company."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.extend import core as jex
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._plan.lower import lower
from ember_jax._plan.passes import arrange, simplify
from ember_jax.errors import UnsupportedError

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
HANGS = 20.0  # seconds after which a barrier that did not open is a failure; none is ever waited out in a good run


async def _echo(value):
    return value


async def _say(words):
    return words + "."


echo = ember.host(_echo, out=SCALAR)
say = ember.host(_say, out=ember.Text)


# -- bits and company ------------------------------------------------------------------------------------------------

MATRIX = jax.random.normal(jax.random.key(0), (32, 32)) / 6


def layer_norm(x):
    return (x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-5)


SEGMENTS = {
    "matmul": lambda x, key: jnp.outer(x, jnp.cos(x)) @ MATRIX @ x,
    "tanh": lambda x, key: jnp.tanh(x) * jnp.exp(x),
    "softmax": lambda x, key: jax.nn.softmax(x @ MATRIX),
    "layer norm": lambda x, key: layer_norm(MATRIX @ x),
    "normal": lambda x, key: jax.random.normal(key, (32,)) * x,
    "everything": lambda x, key: jax.nn.softmax(
        layer_norm(jnp.tanh(MATRIX @ (x + jax.random.normal(key, (32,)))) @ MATRIX)
    ),
}
WIDE = 300


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_lanes_bits_do_not_depend_on_its_company(name):
    """The host sees, and gives back, the segment's own bits."""
    bits = ember.host(lambda x: x.view(np.uint32), out=jax.ShapeDtypeStruct((32,), jnp.uint32))
    run = ember.jit(lambda x, key: bits(SEGMENTS[name](x, key)))
    xs = jax.random.normal(jax.random.key(1), (WIDE, 32))
    keys = jax.random.split(jax.random.key(2), WIDE)
    with ember.session():
        together = np.asarray(jax.vmap(run)(xs, keys))
    for count in (1, 9, 130):
        with ember.session():
            np.testing.assert_array_equal(jax.vmap(run)(xs[:count], keys[:count]), together[:count])
    for lane in (0, WIDE - 1):
        with ember.session():
            np.testing.assert_array_equal(run(xs[lane], keys[lane]), together[lane])


def test_what_all_lanes_share_gives_the_same_bits_as_what_they_vary():
    bits = ember.host(lambda x: x.view(np.uint32), out=jax.ShapeDtypeStruct((32,), jnp.uint32))
    run = ember.jit(lambda x, m: bits(jax.nn.softmax(jnp.tanh(x @ m) @ m)))
    xs = jax.random.normal(jax.random.key(1), (20, 32))
    with ember.session():
        shared = jax.vmap(run, (0, None))(xs, MATRIX)
    with ember.session():
        varied = jax.vmap(run)(xs, jnp.broadcast_to(MATRIX, (20, 32, 32)))
    np.testing.assert_array_equal(shared, varied)


# -- calls in flight together ----------------------------------------------------------------------------------------


class Gate:
    """Host calls that end only when a number of them are in flight at once."""

    def __init__(self, needed):
        self.all = asyncio.Barrier(needed)
        self.number = ember.host(self._number, out=SCALAR)
        self.words = ember.host(self._words, out=ember.Text)

    async def _pass(self):
        await asyncio.wait_for(self.all.wait(), HANGS)

    async def _number(self, value):
        await self._pass()
        return value * 2

    async def _words(self, words):
        await self._pass()
        return words.upper()


@ember.operator
def _wrap(x: Float[Array, ""]) -> Float[Array, ""]:
    return echo(x)


def _nested(gate):
    @ember.operator
    def one(x: Float[Array, ""]) -> Float[Array, ""]:
        return gate.number(x)

    @ember.operator
    def two(x: Float[Array, ""]) -> Float[Array, ""]:
        return one(x + 1) + one(x + 2)

    return lambda x: two(x * 10) + two(x * 20) + jax.jit(two)(x * 30)


def _branches(gate):
    """Calls of both sides of one structure, and of two structures, at once."""

    def side(x):
        return jax.lax.cond(
            x > 1,
            lambda: gate.number(x) + jax.lax.cond(x > 2, lambda: gate.number(x + 1), lambda: gate.number(x + 2)),
            lambda: gate.number(-x) + jax.lax.scan(lambda c, v: (c + gate.number(v), None), 0.0, x[None] - 7)[0],
        )

    return lambda x: side(x) + side(x - 3) + jax.lax.switch(1, [jnp.sin, gate.number], x * 100)


TOGETHER = {
    # name: (how many calls must be in flight, the program)
    "independent calls": (5, lambda gate: lambda x: sum(gate.number(x + i) for i in range(5))),
    "between numbers": (
        3,
        lambda gate: lambda x: gate.number(jnp.sin(x)) * gate.number(jnp.cos(x)) + gate.number(x * x),
    ),
    "after a shared call": (3, lambda gate: lambda x: sum(gate.number(echo(x) * i) for i in range(1, 4))),
    "nested operators": (6, _nested),
    "map": (4, lambda gate: lambda x: jnp.sum(jax.lax.map(gate.number, x + jnp.arange(4.0)))),
    "inner vmap of a host function": (4, lambda gate: lambda x: jnp.sum(jax.vmap(gate.number)(x + jnp.arange(4.0)))),
    "inner vmap of an operator": (
        8,
        lambda gate: lambda x: jnp.sum(jax.vmap(_nested_pair(gate))(x + 10 * jnp.arange(4.0))),
    ),
    "branches": (5, _branches),
    "checkpoint": (2, lambda gate: lambda x: jax.checkpoint(gate.number)(x) + jax.checkpoint(gate.number)(x + 1)),
    "words and numbers": (
        2,
        lambda gate: lambda x: gate.number(x) * (gate.words(ember.format("{x}", x=x)) != "A").astype(jnp.float32),
    ),
}


def _nested_pair(gate):
    @ember.operator
    def pair(x: Float[Array, ""]) -> Float[Array, ""]:
        return gate.number(x) + gate.number(x + 1)

    return pair


@pytest.mark.parametrize("lanes", [None, 3])
@pytest.mark.parametrize("name", TOGETHER)
def test_independent_calls_are_in_flight_together(name, lanes):
    count, program = TOGETHER[name]
    x = jnp.float32(3.25)
    with ember.session():
        gate = Gate(count * (lanes or 1))
        run = ember.jit(program(gate))
        found = run(x) if lanes is None else jax.vmap(run)(jnp.stack([x, x + 0.125, x + 0.25]))
    with ember.session():
        plain = program(Gate(1))
        wanted = plain(x) if lanes is None else jnp.stack([plain(x), plain(x + 0.125), plain(x + 0.25)])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_call_waits_for_what_it_needs_and_for_nothing_else():
    """`after` needs only the quick one of two independent calls, and the slow one ends only once it has run."""
    started = {}

    async def quick(x):
        return x

    async def slow(x):
        await asyncio.wait_for(started.setdefault("after", asyncio.Event()).wait(), HANGS)
        return x

    async def after(x):
        started.setdefault("after", asyncio.Event()).set()
        return x + 1

    quick, slow, after = (ember.host(f, out=SCALAR) for f in (quick, slow, after))

    def run(x):
        both = jnp.stack([jnp.sin(x), jnp.cos(x)])  # numbers in common must not tie them together
        a, b = slow(both[0]), quick(both[1])
        c = after(jnp.exp(b) * 2)
        return a + c, jnp.tanh(a) * b

    total, _ = ember.jit(run)(jnp.float32(0.5))
    np.testing.assert_allclose(total, np.sin(0.5) + np.exp(np.cos(0.5)) * 2 + 1, rtol=1e-5)


def test_a_lane_goes_on_while_another_is_held_up():
    """Lane 0's first call ends only when lane 1 has made its last."""
    finished = {}

    async def first(lane, x):
        if lane == 0:
            await asyncio.wait_for(finished.setdefault("event", asyncio.Event()).wait(), HANGS)
        return x

    async def last(lane, x):
        if lane == 1:
            finished.setdefault("event", asyncio.Event()).set()
        return x

    first, last = ember.host(first, out=SCALAR), ember.host(last, out=SCALAR)

    def run(lane, x):
        a = jnp.tanh(first(lane, x))
        b = jax.lax.cond(a > 0, lambda: echo(a) * 2, lambda: a)
        return last(lane, jax.lax.fori_loop(0, 3, lambda i, c: echo(c) + 1, b))

    found = jax.jit(jax.vmap(ember.jit(run)))(jnp.arange(3), jnp.array([0.5, 1.0, -1.0]))
    t = np.tanh([0.5, 1.0, -1.0])
    np.testing.assert_allclose(found, np.where(t > 0, 2 * t, t) + 3, rtol=1e-6)


# -- what becomes what -----------------------------------------------------------------------------------------------


def plan(fn, *args):
    return arrange(simplify(lower(jax.make_jaxpr(fn)(*args))))


def kinds(plan):
    """Nodes of a plan and of all plans inside, by kind."""
    found = []
    for node in plan.nodes:
        found.append(type(node).__name__)
        for body in node.plans:
            found += kinds(body)
    return sorted(found)


T = ember.text("a")
X = jnp.float32(0.5)
V = jnp.arange(3.0)


@pytest.mark.parametrize(
    ("fn", "args", "wanted"),
    [
        pytest.param(lambda t: say(say(t) + "?"), (T,), ["Call", "Call", "Words"], id="text only: no segment"),
        pytest.param(lambda t: ember.format("{t}", t=say(t)), (T,), ["Call", "Words"], id="format: no segment"),
        pytest.param(lambda x: echo(jnp.sin(x) * 2 + 1), (X,), ["Call", "Segment"], id="one segment before a call"),
        pytest.param(
            lambda x: (jnp.cos(echo(x)) + x, jnp.sin(x)),
            (X,),
            ["Call", "Segment", "Segment"],
            id="by what they wait for",
        ),
        pytest.param(
            lambda x: (jnp.cos(echo(x)), jnp.sin(echo(2 * x))),
            (X,),
            ["Call", "Call", "Segment", "Segment", "Segment"],
            id="two calls",
        ),
        pytest.param(
            lambda x: (jnp.cos(echo(x)), jnp.sin(echo(x))), (X,), ["Call", "Segment"], id="equal calls are one"
        ),
        pytest.param(lambda x: (echo(x), x)[1], (X,), [], id="an unused call is dropped"),
        pytest.param(lambda x: jax.lax.stop_gradient(echo(x)), (X,), ["Call"], id="identities are nothing"),
        pytest.param(lambda x: jax.jit(jax.jit(lambda y: echo(y)))(x), (X,), ["Call"], id="jit is inlined"),
        pytest.param(lambda x: jax.checkpoint(lambda y: echo(y))(x), (X,), ["Call"], id="checkpoint is inlined"),
        pytest.param(lambda x: _wrap(_wrap(x)), (X,), ["Call", "Call"], id="nested operators are inlined"),
        pytest.param(lambda v: jax.vmap(_wrap)(v), (V,), ["Call", "Lanes"], id="nested operators under vmap are lanes"),
        pytest.param(lambda v: jax.lax.map(echo, v), (V,), ["Call", "Lanes"], id="map"),
        pytest.param(
            lambda x: jax.lax.cond(x > 0, echo, lambda y: y, x), (X,), ["Branch", "Call", "Segment"], id="cond"
        ),
        pytest.param(
            lambda x: jax.lax.while_loop(lambda c: c < 3, lambda c: echo(c) + 1, x),
            (X,),
            ["Call", "Segment", "Segment", "While"],
            id="while",
        ),
        pytest.param(
            lambda x: (
                jax.lax.while_loop(lambda c: c < 3, lambda c: c + 1, x) + jax.lax.scan(lambda c, v: (c + v, v), x, V)[0]
            ),
            (X,),
            ["Segment"],
            id="control flow without calls is numeric",
        ),
        pytest.param(
            lambda v: jnp.linalg.cholesky(jnp.eye(3) + 0 * v[:, None]), (V,), ["Segment"], id="linear algebra"
        ),
    ],
)
def test_nodes(fn, args, wanted):
    found = kinds(plan(fn, *args))
    assert found == wanted


odd_p = jex.Primitive("somebodys_primitive")
odd_p.def_impl(lambda x: x * 3)
odd_p.def_abstract_eval(lambda x: x)
jax.interpreters.mlir.register_lowering(odd_p, jax.interpreters.mlir.lower_fun(lambda x: x * 3, multiple_results=False))


def test_an_unknown_primitive_is_numeric():
    program = lambda x: echo(odd_p.bind(x) + 1) * odd_p.bind(x)
    assert kinds(plan(lambda x: echo(odd_p.bind(x) + 1), X)) == ["Call", "Segment"]
    assert ember.jit(program)(X) == (1.5 + 1) * 1.5


def test_segments_are_split_by_the_set_of_calls_they_wait_for():
    """Of two calls: what needs neither, one, the other, both. Four segments, whatever the order of the program."""

    def program(x):
        a, b = echo(x), echo(x + 1)
        free, of_a, of_b, of_both = jnp.sin(x), jnp.sin(a), jnp.sin(b), jnp.sin(a * b)
        return of_both * 2, of_b * 2, of_a * 2, free * 2, jnp.cos(of_a) + free

    assert kinds(plan(program, X)).count("Segment") == 4


# -- what has no meaning lane by lane --------------------------------------------------------------------------------

COLLECTIVES = {
    "psum": lambda x: jax.lax.psum(x, "axis"),
    "pmax": lambda x: jax.lax.pmax(x, "axis"),
    "all_gather": lambda x: jax.lax.all_gather(x, "axis").sum(),
    "ppermute": lambda x: jax.lax.ppermute(x, "axis", [(0, 0)]),
    "all_to_all": lambda x: jax.lax.all_to_all(x[None], "axis", 0, 0).sum(),
    "psum_scatter": lambda x: jax.lax.psum_scatter(x[None], "axis").sum(),
    "axis_index": lambda x: x + jax.lax.axis_index("axis").astype(jnp.float32),
    "inside a branch": lambda x: jax.lax.cond(x > 0, lambda: echo(jax.lax.psum(x, "axis")), lambda: x),
    "inside jit": lambda x: jax.jit(lambda y: jax.lax.psum(y, "axis"))(x),
}


def shard_mapped(fn):
    mesh = jax.make_mesh((1,), ("axis",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec()
    return jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


@pytest.mark.parametrize("around", ["vmap", "shard_map"])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_inside_an_operator_are_refused(name, around):
    run = ember.jit(lambda x: echo(COLLECTIVES[name](x)))
    wrap = {"vmap": lambda f: lambda x: jax.vmap(f, axis_name="axis")(x[None])[0], "shard_map": shard_mapped}[around]
    with pytest.raises(UnsupportedError, match=r"(?s)axis.*inside an operator.*reduce them outside"):
        wrap(run)(X)


def test_a_collective_over_an_axis_of_the_operators_own_is_fine():
    run = ember.jit(lambda v: echo(jnp.sum(jax.vmap(lambda x: jax.lax.psum(x, "own") * x, axis_name="own")(v))))
    assert run(V) == 9


ORDERED = {
    "io_callback": lambda x: io_callback(lambda v: v, SCALAR, x, ordered=True),
    "debug.callback": lambda x: (jax.debug.callback(lambda v: None, x, ordered=True), x)[1],
    "debug.print": lambda x: (jax.debug.print("{}", x, ordered=True), x)[1],
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ORDERED)
def test_ordered_effects_inside_an_operator_are_refused(name, nested):
    effect = ORDERED[name]
    fn = (lambda x: jax.lax.cond(x > 0, effect, lambda y: y, x)) if nested else effect
    with pytest.raises(UnsupportedError, match=r"(?s)ordered.*no one order.*ordered=False"):
        ember.jit(lambda x: echo(x) + fn(x))(X)


def test_an_unordered_io_callback_runs_once_for_each_lane():
    seen = []

    def note(value):
        seen.append(float(value))
        return np.float32(value * 2)

    run = ember.jit(lambda x: io_callback(note, SCALAR, x) + echo(x))
    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(V), V * 3)
    assert sorted(seen) == [0, 1, 2]
