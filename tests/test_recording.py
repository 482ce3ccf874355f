"""What is returned is what was called: decisions and draws are recorded, numbers are computed again."""

import collections
import functools
import os

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._plan.recording import Recording

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
LANES = 1000


async def _echo(value):
    return value


echo = ember.host(_echo, out=SCALAR)
TRANSFORMS = {"vmap": jax.vmap, "jit(vmap)": lambda f: jax.jit(jax.vmap(f))}
if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
    TRANSFORMS["ember.jit(vmap)"] = lambda f: ember.jit(jax.vmap(f))


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return TRANSFORMS[request.param]


# -- near ties -------------------------------------------------------------------------------------------------------

WIDE = jax.random.normal(jax.random.key(1), (64, 256), jnp.float32)
OUT = jax.random.normal(jax.random.key(2), (256,), jnp.float32) * 0.1
XS = jax.random.normal(jax.random.key(3), (LANES, 64), jnp.float32)


def tied(x):
    """Two scores that are equal up to the order in which they are summed."""
    hidden = jnp.tanh(x @ WIDE)
    return hidden @ OUT, hidden[::-1] @ OUT[::-1]


@pytest.fixture(scope="module")
def ties():
    """Skips where batching happens to round as one lane alone does, so that nothing could be told apart."""
    decide = lambda x: jnp.argmax(jnp.stack(tied(x)))
    alone = jax.jit(lambda xs: jax.lax.map(decide, xs))(XS)
    if bool((alone == jax.jit(jax.vmap(decide))(XS)).all()):
        pytest.skip("this machine rounds batches as it rounds single lanes")


@jax.custom_jvp
def one_hot_max(scores):
    return jax.nn.one_hot(jnp.argmax(scores), 2)


one_hot_max.defjvp(lambda p, t: (one_hot_max(*p), t[0]))


def float_loop(a, b):
    return jax.lax.while_loop(lambda c: c[1] < b, lambda c: (c[0] + 1, c[1] + 1), (0.0, a))[0]


DECISIONS = {
    "argmax": lambda a, b: jnp.argmax(jnp.stack([a, b])).astype(jnp.float32),
    "comparison": lambda a, b: jnp.where(a < b, 1.0, 2.0),
    "cond": lambda a, b: jax.lax.cond(a < b, lambda: 1.0, lambda: 2.0),
    "argsort": lambda a, b: jnp.argsort(jnp.stack([a, b]))[0].astype(jnp.float32),
    "sort along": lambda a, b: jax.lax.sort((jnp.stack([a, b]), jnp.array([1.0, 2.0])), num_keys=1)[1][0],
    "top_k": lambda a, b: jax.lax.top_k(jnp.stack([a, b]), 1)[1][0].astype(jnp.float32),
    "floor": lambda a, b: jnp.floor((a - b) * 1e3),
    "sign": lambda a, b: jnp.sign(a - b),
    "floor division": lambda a, b: a // b,
    "remainder": lambda a, b: jnp.round((a % b) * 10),
    "custom_jvp": lambda a, b: one_hot_max(jnp.stack([a, b]))[0],
    "cast": lambda a, b: (1e8 * (a - b)).astype(jnp.int32).astype(jnp.float32),
    "inside jit": jax.jit(lambda a, b: jnp.where(a < b, 1.0, 2.0)),
    "inside checkpoint": jax.checkpoint(lambda a, b: jnp.where(a < b, 1.0, 2.0)),
    "float loop": float_loop,
}


@pytest.fixture(scope="module")
def decided(ties):
    """What each of them decides in one program, and what the host was called with."""

    def run(x):
        a, b = tied(x)
        choices = {name: decide(a, b) for name, decide in DECISIONS.items()}
        return {name: (choice, echo(choice)) for name, choice in choices.items()}

    return jax.jit(jax.vmap(ember.jit(run)))(XS)


@pytest.mark.parametrize("name", DECISIONS)
def test_what_is_returned_is_what_was_called(decided, name):
    choice, called = decided[name]
    assert len(np.unique(called)) > 1
    np.testing.assert_array_equal(choice, called)


@ember.operator
def inner(x: Float[Array, "64"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    choice = DECISIONS["argmax"](*tied(x))
    return choice, echo(choice)


def in_scan(x):
    def step(carry, shift):
        choice = DECISIONS["argmax"](*tied(x + shift + carry * 0))
        return carry + 1, (choice, echo(choice))

    return jax.lax.scan(step, 0.0, jnp.arange(2.0))[1]


def in_cond(x):
    a, b = tied(x)
    return jax.lax.cond(
        a < b, lambda: (1.0, echo(1.0)), lambda: (DECISIONS["sign"](b, a), echo(DECISIONS["sign"](b, a)))
    )


NESTINGS = {
    "nested operator": inner,
    "vmapped nested operator": lambda x: jax.vmap(inner)(jnp.stack([x, x + 1])),
    "scan": in_scan,
    "cond": in_cond,
    "map": lambda x: jax.lax.map(inner, jnp.stack([x, x + 1])),
}


def test_the_same_under_every_transformation(ties, transform):
    choice, called = transform(inner)(XS)
    np.testing.assert_array_equal(choice, called)


@pytest.mark.parametrize("name", NESTINGS)
def test_what_is_returned_is_what_was_called_wherever_it_stands(ties, name):
    choice, called = jax.jit(jax.vmap(ember.jit(NESTINGS[name])))(XS)
    np.testing.assert_array_equal(choice, called)


# -- draws -----------------------------------------------------------------------------------------------------------

IMPLS = ["threefry2x32", "rbg"]
if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
    IMPLS.append("unsafe_rbg")
DRAWS = {
    "randint": lambda key: jax.random.randint(key, (), 0, 1000).astype(jnp.float32),
    "bernoulli": lambda key: jax.random.bernoulli(key).astype(jnp.float32),
    "categorical": lambda key: jax.random.categorical(key, jnp.zeros(9)).astype(jnp.float32),
    "choice": lambda key: jax.random.choice(key, jnp.arange(9.0)),
    "permutation": lambda key: jax.random.permutation(key, jnp.arange(9.0))[0],
    "normal": jax.random.normal,
    "normal of a split": lambda key: jax.random.normal(jax.random.split(jax.random.fold_in(key, 3), 3)[2]),
    "gumbel": jax.random.gumbel,
    "loop": lambda key: jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + jax.random.uniform(jax.random.fold_in(key, c[0]))), (0, 0.0)
    )[1],
}


@pytest.mark.parametrize("kind", ["typed", "legacy"])
@pytest.mark.parametrize("impl", IMPLS)
def test_draws_are_the_ones_that_calls_were_made_with(impl, kind, names=None):
    names = list(DRAWS) if names is None else names
    keys = jax.random.split(jax.random.key(7, impl=impl), 20)

    def run(key):
        key = jax.random.wrap_key_data(key, impl=impl) if kind == "legacy" else key
        values = jnp.stack([DRAWS[n](key) for n in names])
        return values, jax.vmap(echo)(values)

    drawn, called = jax.jit(jax.vmap(ember.jit(run)))(jax.random.key_data(keys) if kind == "legacy" else keys)
    assert all(len(np.unique(c)) > 1 for c in called.T)
    np.testing.assert_allclose(drawn, called, rtol=1e-5, atol=1e-6)
    discrete = [i for i, n in enumerate(names) if n not in ("normal", "normal of a split", "gumbel", "loop")]
    np.testing.assert_array_equal(drawn[:, discrete], called[:, discrete])


def test_bits_of_a_raw_generator_are_the_ones_that_calls_were_made_with(transform):
    def run(state):
        _, bits = jax.lax.rng_bit_generator(state, (), jnp.uint32)
        value = (bits % jnp.uint32(1000)).astype(jnp.float32)
        return value, echo(value)

    drawn, called = transform(ember.jit(run))(jax.random.bits(jax.random.key(0), (20, 4), jnp.uint32))
    np.testing.assert_array_equal(drawn, called)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_continuous_draw_decides_and_is_returned(impl, transform):
    def run(key):
        noise = jax.random.normal(key)
        return noise, jax.lax.cond(noise > 0, lambda: echo(1.0), lambda: echo(-1.0))

    noise, side = transform(ember.jit(run))(jax.random.split(jax.random.key(3, impl=impl), 50))
    np.testing.assert_array_equal(jnp.sign(noise), side)


def test_keys_are_inputs_outputs_carries_and_xs(transform):
    def run(key):
        def step(carry, x):
            carry, sub = jax.random.split(carry)
            value = echo(jax.random.uniform(sub) + jax.random.uniform(x))
            return carry, (value, sub)

        last, (values, subs) = jax.lax.scan(step, key, jax.random.split(jax.random.fold_in(key, 1), 3))
        chosen = jax.lax.cond(values[0] > 1, lambda: last, lambda: key)
        return {"last": last, "values": values, "subs": subs, "chosen": chosen}

    def plain(key):
        last, subs, values = key, [], []
        for x in jax.random.split(jax.random.fold_in(key, 1), 3):
            last, sub = jax.random.split(last)
            subs.append(sub)
            values.append(jax.random.uniform(sub) + jax.random.uniform(x))
        chosen = last if values[0] > 1 else key
        return {"last": last, "values": jnp.stack(values), "subs": jnp.stack(subs), "chosen": chosen}

    keys = jax.random.split(jax.random.key(5), 4)
    found = transform(ember.jit(run))(keys)
    for i in range(4):
        want = plain(keys[i])
        np.testing.assert_allclose(found["values"][i], want.pop("values"), rtol=1e-6)
        for name, key in want.items():
            assert found[name].dtype == keys.dtype
            np.testing.assert_array_equal(jax.random.key_data(found[name][i]), jax.random.key_data(key))


# -- prints ----------------------------------------------------------------------------------------------------------

printed: list = []


def note(tag):
    return lambda value: printed.append((tag, float(value)))


def on_a_branch(x):
    def taken():
        jax.debug.callback(note("high"), x)
        return echo(x) * 2

    def other():
        jax.debug.callback(note("low"), x)
        return x

    return jax.lax.cond(x > 1.5, taken, other)


def in_a_scan(x):
    def step(carry, v):
        jax.debug.callback(note("step"), carry)
        return carry + 1, carry * v

    last, _ = jax.lax.scan(step, x, jnp.arange(2.0))
    return echo(last) + last


def in_a_loop(x):
    def body(carry):
        jax.debug.callback(note("turn"), carry)
        return carry + 1

    return echo(x) + jax.lax.while_loop(lambda c: c < 3, body, x)


@ember.operator
def prints_only(x: Float[Array, ""]) -> Float[Array, ""]:
    jax.debug.callback(note("inner"), x)
    return x * 2


PRINTERS = {
    "branch": (on_a_branch, [("low", 0), ("low", 1), ("high", 2), ("high", 3)]),
    "plain branch": (lambda x: on_a_branch(x) * 0 + echo(x), [("low", 0), ("low", 1), ("high", 2), ("high", 3)]),
    "scan": (in_a_scan, [("step", float(x + i)) for x in range(4) for i in range(2)]),
    "loop": (in_a_loop, [("turn", float(t)) for x in range(4) for t in range(x, 3)]),
    "without a call": (prints_only, [("inner", float(x)) for x in range(4)]),
    "nested": (lambda x: prints_only(x) + echo(x), [("inner", float(x)) for x in range(4)]),
    "checkpoint": (jax.checkpoint(prints_only.fn), [("inner", float(x)) for x in range(4)]),
    "jit": (jax.jit(on_a_branch), [("low", 0), ("low", 1), ("high", 2), ("high", 3)]),
}
EAGER = {"eager": lambda f: lambda xs: [f(x) for x in xs]}


@pytest.mark.parametrize("mode", ["eager", *TRANSFORMS])
@pytest.mark.parametrize("name", PRINTERS)
def test_prints_fire_once_per_lane_on_the_taken_branch(name, mode):
    fn, wanted = PRINTERS[name]

    @ember.operator
    def op(x: Float[Array, ""]) -> Float[Array, ""]:
        return fn(x)

    printed.clear()
    jax.block_until_ready({**TRANSFORMS, **EAGER}[mode](op)(jnp.arange(4.0)))
    jax.effects_barrier()
    assert collections.Counter(printed) == collections.Counter(wanted)


@pytest.mark.parametrize("mode", ["eager", *TRANSFORMS])
def test_a_print_shows_a_texts_words(mode, capfd):
    @ember.operator
    def op(t: ember.Text) -> ember.Text:
        jax.debug.print("got {}", t)
        return t + "!"

    texts = ember.text(["one", "two"])
    jax.block_until_ready({**TRANSFORMS, **EAGER}[mode](op)(texts))
    jax.effects_barrier()
    out = capfd.readouterr().out
    assert out.count("one") == out.count("two") == 1
    assert len(out.splitlines()) == 2


# -- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32"])
def test_integers_wrap_around_as_in_jax(dtype, transform):
    same = ember.host(_echo, out=jax.ShapeDtypeStruct((), dtype))
    run = lambda x: (same(x * x * x), x * x * x + same(x))
    xs = jnp.array([100, 101, 127, 3], dtype)
    cubed, total = transform(ember.jit(run))(xs)
    assert cubed.dtype == total.dtype == dtype
    np.testing.assert_array_equal(cubed, xs * xs * xs)
    np.testing.assert_array_equal(total, xs * xs * xs + xs)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "int8", "uint8", "bool", "complex64", "int4", "float8_e4m3fn"]
)
def test_every_dtype_crosses_unchanged(dtype, transform):
    seen = []

    async def look(value):
        seen.append(value)
        return value

    same = ember.host(look, out=jax.ShapeDtypeStruct((), dtype))
    xs = jnp.array([0, 1, 1], dtype)
    found, picked = transform(ember.jit(lambda x: (same(x), jax.lax.select(same(x) == x, x, same(x)))))(xs)
    assert found.dtype == picked.dtype == dtype
    assert {v.dtype for v in seen} == {np.dtype(xs.dtype)}
    np.testing.assert_array_equal(found, xs)
    np.testing.assert_array_equal(picked, xs)


@pytest.mark.parametrize("mode", TRANSFORMS)
def test_double_precision_is_kept_under_enable_x64(mode):
    with jax.enable_x64(True):
        same = ember.host(_echo, out=jax.ShapeDtypeStruct((), jnp.float64))
        whole = ember.host(_echo, out=jax.ShapeDtypeStruct((), jnp.int64))

        def run(x, i, shared):
            total = jax.lax.cond(x > 0.3 + 1e-13, lambda: same(x * 3) + shared, lambda: same(x))
            return total, whole(i * 2) + 1, same(shared * 2)

        xs, large = jnp.array([0.3 + 2e-13, 0.3]), jnp.array([2**40, 2**41])
        f = ember.jit(lambda x, i: run(x, i, jnp.asarray(1e-13)))
        total, wholes, shared = TRANSFORMS[mode](lambda pair: f(*pair))((xs, large))
        assert (total.dtype, wholes.dtype) == (jnp.float64, jnp.int64)
        np.testing.assert_allclose(total, [(0.3 + 2e-13) * 3 + 1e-13, 0.3], rtol=1e-15)
        np.testing.assert_array_equal(wholes, [2**41 + 1, 2**42 + 1])
        np.testing.assert_array_equal(shared, [2e-13] * 2)


def test_ten_megabytes_cross():
    total = ember.host(lambda x: x.sum(dtype=np.float64), out=SCALAR)
    keep = ember.host(_echo, out=jax.ShapeDtypeStruct((1300, 1000), jnp.float32))
    data = jnp.arange(2 * 1300 * 1000, dtype=jnp.float32).reshape(2, 1300, 1000) % 7
    sums, back = jax.vmap(ember.jit(lambda x: (total(x * 2), keep(x) + x)))(data)
    np.testing.assert_array_equal(sums, 2 * np.asarray(data, np.float64).sum((1, 2)))
    np.testing.assert_array_equal(back, 2 * data)


def test_arrays_of_no_elements_and_batches_of_no_lanes():
    empty = ember.host(_echo, out=jax.ShapeDtypeStruct((0, 3), jnp.float32))
    run = ember.jit(lambda x: (empty(x * 2), x + 1, jnp.sum(x) + echo(jnp.sum(x))))
    assert [a.shape for a in jax.vmap(run)(jnp.zeros((4, 0, 3)))] == [(4, 0, 3), (4, 0, 3), (4,)]
    none = jnp.zeros((0,))
    double = ember.operator(_double)
    for batch in (
        jax.vmap(double),
        ember.jit(jax.vmap(double)),
        ember.jit(lambda x: jax.lax.map(double, x)),
        ember.jit(lambda x: jax.lax.scan(lambda c, v: (c, double(v)), 0, x)[1]),
        jax.vmap(echo),
        jax.vmap(jax.grad(double)),
    ):
        assert batch(none).shape == (0,)


def _double(x: Float[Array, ""]) -> Float[Array, ""]:
    return echo(x) * 2 * x


# -- the split itself ------------------------------------------------------------------------------------------------


def split(fn, *args, needed=None):
    closed = jax.make_jaxpr(fn)(*args)
    return Recording(closed, [True] * len(closed.jaxpr.outvars) if needed is None else needed)


def slots(fn, *args, needed=None):
    return [(tuple(s.shape), s.dtype.name) for s in split(fn, *args, needed=needed).slots]


V = jnp.array([0.3, -1.2, 2.5, 0.7])
KEY = jax.random.key(0)


def branches(x):
    return jax.lax.cond(
        x[0] > 0, lambda: echo(x[0]) * echo(x[1]) * x[1], lambda: echo(x[2]) * x[3] + jnp.argmax(x).astype(jnp.float32)
    )


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (lambda x: jnp.tanh(x) @ x + jnp.sort(x)[0], []),
        (lambda x: jnp.argmax(x), [((), "int32")]),
        (lambda x: (x > 0) & (x < 1), [((4,), "bool")] * 2),
        (lambda x: echo(x[0]) + 0 * x[1], [((), "float32")]),
        (lambda x: (echo(x[0]), x)[1], []),
        (lambda x: jax.jit(lambda y: (y * 2, jnp.argmin(y)))(x)[0], []),
        (lambda x: jax.random.split(KEY)[0], [((2,), "uint32")]),
        # what exclusive branches record shares its place: two calls here, one call and a choice there
        (branches, [((), "bool"), ((), "float32"), ((), "float32"), ((), "int32")]),
        (lambda x: jax.lax.scan(lambda c, v: (c * echo(v), None), 1.0, x)[0], [((4,), "float32")]),
        (lambda x: jax.lax.scan(lambda c, v: (c + 1, echo(v)), 1.0, x)[0], []),
        (lambda x: jax.lax.map(lambda v: v > echo(v), x), [((4,), "bool")]),
        (
            lambda x: jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] + echo(c[0]), c[1] + 1), (x[0], 0))[1],
            [((), "int32")],
        ),
    ],
)
def test_only_what_is_needed_is_recorded(fn, wanted):
    assert sorted(slots(fn, V)) == sorted(wanted)


bits = jax.random.key_data
# The key's bits are discrete, so they are recorded; nobody needs the call.
CALLS_NOBODY_NEEDS = {
    "alone": lambda call, key: (call(), bits(key))[1],
    "known": lambda call, key: (call(), bits(jax.random.key(3)))[1],
    "branch": lambda call, key: jax.lax.cond(True, lambda: (call(), bits(key))[1], lambda: bits(key)),
    "scan": lambda call, key: jax.lax.scan(lambda k, _: ((call(), k)[1], bits(k)), key, length=3)[1],
    "loop": lambda call, key: bits(jax.lax.fori_loop(0, 3, lambda _, k: (call(), k)[1], key)),
    "lanes": lambda call, key: jax.vmap(lambda _: (call(), bits(key))[1])(jnp.arange(2)),
    "operator": lambda call, key: ember.jit(lambda key: (call(), bits(key))[1])(key),
    "attempt": lambda call, key: ember.attempt(lambda key: (call(), bits(key))[1])(key)[0],
    "checkpoint": lambda call, key: jax.checkpoint(lambda key: (call(), bits(key))[1])(key),
}


@pytest.mark.parametrize("name", CALLS_NOBODY_NEEDS)
def test_a_plan_of_no_steps_records_what_is_known(name):
    keys, called = jax.random.split(jax.random.key(0), 3), []
    call = ember.host(lambda x: called.append(x) or x, SCALAR)
    fn = functools.partial(CALLS_NOBODY_NEEDS[name], lambda: call(jnp.float32(1)))
    expected = np.stack([CALLS_NOBODY_NEEDS[name](lambda: None, key) for key in keys])
    for one in (ember.jit(fn), jax.jit(ember.jit(fn))):
        np.testing.assert_array_equal(one(keys[1]), expected[1])
    for many in (jax.vmap(ember.jit(fn)), jax.jit(jax.vmap(ember.jit(fn))), ember.jit(jax.vmap(fn))):
        np.testing.assert_array_equal(many(keys), expected)
    assert called == []


def test_an_output_that_nobody_needs_records_nothing_and_is_not_replayed():
    recording = split(lambda x: (echo(x[0]), jnp.argmax(x), jnp.sum(x)), V, needed=[False, False, True])
    assert recording.slots == ()
    assert recording.replay([V], []) == [None, None, jnp.sum(V)]


STEPS = {
    "sin": lambda x, i: (jnp.sin(x) * 2, i),
    "shift": lambda x, i: (jnp.roll(x, 1) + x[i % 4], i + 1),
    "argmax": lambda x, i: (x * 0.5, jnp.argmax(x).astype(jnp.int32)),
    "where": lambda x, i: (jnp.where(x > 0, x, x * 3 - 1), i),
    "count": lambda x, i: (x, i + jnp.sum(x > 0.1, dtype=jnp.int32)),
    "sort": lambda x, i: (jnp.sort(x), i),
    "order": lambda x, i: (x[jnp.argsort(-x)], i),
    "top": lambda x, i: (x - jax.lax.top_k(x, 2)[0][1], i + jax.lax.top_k(x, 2)[1][0]),
    "floor": lambda x, i: (x - jnp.floor(x) + i.astype(jnp.float32) * 0.1, i),
    "call": lambda x, i: (x.at[0].add(echo(x[i % 4])), i),
    "cond": lambda x, i: jax.lax.cond(x[0] > 0, lambda: (x + echo(x[1]), i + 1), lambda: (x * 2, i)),
    "switch": lambda x, i: (jax.lax.switch(i % 3, [jnp.cos, lambda y: y * echo(y[0]), jnp.negative], x), i),
    "scan": lambda x, i: jax.lax.scan(
        lambda c, v: ((c[0] * 0.5 + v, c[1] + (v > 0).astype(jnp.int32)), None), (x, i), x
    )[0],
    "scan call": lambda x, i: (x + jax.lax.scan(lambda c, v: (c * 0.5 + echo(v), c), x[0], x)[1], i),
    "while": lambda x, i: jax.lax.while_loop(lambda c: c[1] < 5, lambda c: (c[0] * 0.5 + 1, c[1] + 1), (x, i)),
    "while call": lambda x, i: jax.lax.while_loop(
        lambda c: c[1] < 3, lambda c: (c[0] + echo(c[0][0]), c[1] + 1), (x, i)
    ),
    "draw": lambda x, i: (x + jax.random.normal(jax.random.fold_in(KEY, i), (4,)), i),
    "jit": lambda x, i: jax.jit(lambda y, j: (y * echo(y[2]), j + jnp.argmin(y).astype(jnp.int32)))(x, i),
    "checkpoint": lambda x, i: jax.checkpoint(lambda y, j: (jnp.where(y > 0, echo(y[0]), y), j + 1))(x, i),
    "custom": lambda x, i: (jax.nn.relu(x) + jax.nn.softmax(x), i),
}


@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5),
    needed=st.sampled_from([(True, True), (True, False), (False, True)]),
    x=st.lists(st.sampled_from([-2.0, -0.7, 0.0, 0.25, 1.0, 3.5]), min_size=4, max_size=4),
)
@settings(max_examples=max(15, settings.default.max_examples // 8))
def test_replaying_a_record_gives_what_the_program_gives(steps, needed, x):
    def program(x, i):
        for step in steps:
            x, i = STEPS[step](x, i)
        return x, i

    args = [jnp.array(x), jnp.int32(1)]
    recording = split(program, *args, needed=needed)
    wanted = jax.jit(program)(*args)
    outs, recorded = jax.jit(recording.record)(args)
    assert [(r.shape, r.dtype) for r in recorded] == [(s.shape, s.dtype) for s in recording.slots]
    given = [a if r else None for a, r in zip(args, recording.reads, strict=True)]
    replayed = recording.replay(given, recorded)
    text = str(jax.make_jaxpr(recording.replay)(given, recorded))
    assert "pure_callback" not in text
    for out, again, want, n in zip(outs, replayed, wanted, needed, strict=True):
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
        if n:
            np.testing.assert_allclose(again, want, rtol=1e-5, atol=1e-6)
        else:
            assert again is None
