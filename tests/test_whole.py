"""Equations on whole numbers in NumPy: the bits are XLA's, for each rule, alone and in segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend import core as jex

from ember_jax._jax import whole
from ember_jax._jax.values import to_raw
from ember_jax._types import is_key

LANES = 5
DTYPES = (np.bool_, np.int8, np.int32, np.uint8, np.uint32, np.float32)
INTEGERS = (np.int8, np.int32, np.uint32)
SMALLEST = np.finfo(np.float32).tiny


def values(rng, shape, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "f":
        special = [np.nan, np.inf, -np.inf, 0.0, -0.0, SMALLEST / 4, -SMALLEST / 4, SMALLEST, 1.0, -1.0, 1.5]
        return rng.choice(special, shape).astype(dtype)
    ends = np.iinfo(dtype)
    few = rng.integers(-3 if dtype.kind == "i" else 0, 4, shape)
    any_ = rng.integers(ends.min, ends.max, shape, endpoint=True, dtype=dtype)
    return np.where(rng.random(shape) < 0.5, few, any_).astype(dtype)


def keys(rng, shape):
    return rng.integers(0, 2**32, (*shape, 2), dtype=np.uint32)


def evaluated(closed, lanes):
    """A jaxpr by the rules alone; each value has lanes in front, keys as key data."""
    known = dict(zip(closed.jaxpr.invars, lanes, strict=True))
    known.update((v, np.asarray(c)[None]) for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True))
    read = lambda v: whole.literal(v) if isinstance(v, jex.Literal) else known[v]
    for eqn in closed.jaxpr.eqns:
        rule = whole.evaluator(eqn)
        assert rule is not None, f"no rule evaluates {eqn}"
        known.update(zip(eqn.outvars, rule(*map(read, eqn.invars)), strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


def check(f, *lanes, key_argument=None):
    """Compares, bit for bit, each lane with what XLA computes for it alone; `lanes` may have one row for all."""
    wrap = lambda args: [jax.random.wrap_key_data(a) if i == key_argument else a for i, a in enumerate(args)]
    flat = lambda *args: [to_raw(o) for o in jax.tree.leaves(f(*wrap(args)))]
    one = lambda i: [a[i if len(a) > 1 else 0] for a in lanes]
    inner = jax.make_jaxpr(lambda *args: jax.tree.leaves(f(*args)))(*wrap(one(0)))
    got = evaluated(inner, lanes)
    for i in range(LANES):
        expected = jax.jit(flat)(*one(i))
        for out, row in zip(expected, got, strict=True):
            mine = np.array(row[i if len(row) > 1 else 0])
            assert (mine.dtype, mine.shape) == (out.dtype, out.shape)
            assert mine.tobytes() == np.asarray(out).tobytes(), (i, mine, out)
    return {eqn.primitive.name for eqn in inner.jaxpr.eqns}


def grids(dtype, *shapes):
    return lambda rng: [values(rng, (LANES, *shape), dtype) for shape in shapes]


def of(f, dtypes, *shapes):
    return [(f, grids(dtype, *shapes)) for dtype in dtypes]


def counts(rng):
    return [rng.integers(-9, 9, (LANES, 3, 4)).astype(np.float32)]


RULES = {
    "add": of(lambda x, y: x + y, INTEGERS, (3,), (3,)),
    "sub": of(lambda x, y: x - y, INTEGERS, (3,), (3,)),
    "mul": of(lambda x, y: x * y, INTEGERS, (3,), (3,)),
    "neg": of(lambda x: -x, INTEGERS, (3,)),
    "abs": of(jnp.abs, (np.int8, np.int32), (3,)),
    "sign": of(jnp.sign, (np.int8, np.int32), (3,)),
    "max": of(lax.max, (np.bool_, *INTEGERS), (3,), (3,)),
    "min": of(lax.min, (np.bool_, *INTEGERS), (3,), (3,)),
    "and": of(lambda x, y: x & y, (np.bool_, *INTEGERS), (3,), (3,)),
    "or": of(lambda x, y: x | y, (np.bool_, *INTEGERS), (3,), (3,)),
    "xor": of(lambda x, y: x ^ y, (np.bool_, *INTEGERS), (3,), (3,)),
    "not": of(lambda x: ~x, (np.bool_, *INTEGERS), (3,)),
    "eq": of(lambda x, y: x == y, DTYPES, (9,), (9,)),
    "ne": of(lambda x, y: x != y, DTYPES, (9,), (9,)),
    "lt": of(lambda x, y: x < y, DTYPES, (9,), (9,)),
    "le": of(lambda x, y: x <= y, DTYPES, (9,), (9,)),
    "gt": of(lambda x, y: x > y, DTYPES, (9,), (9,)),
    "ge": of(lambda x, y: x >= y, DTYPES, (9,), (9,)),
    "select_n": [
        *of(lambda x, y: lax.select(x, y, jnp.ones_like(y)), (np.bool_,), (3,), (3,)),
        (
            lambda i, x: lax.select_n(jnp.clip(i, 0, 2), x, x + 1, x * 2),
            lambda rng: [values(rng, (LANES,), np.int32), values(rng, (LANES, 2, 3), np.int32)],
        ),
        (
            lambda p, x: lax.select_n(p, x, x[::-1]),
            lambda rng: [values(rng, (LANES,), np.bool_), values(rng, (LANES, 4), np.float32)],
        ),
    ],
    "clamp": [
        (
            lambda x, a: lax.clamp(jnp.int32(-2), x, a),
            lambda rng: [values(rng, (LANES, 4), np.int32), values(rng, (LANES,), np.int32)],
        ),
    ],
    "convert_element_type": [
        (lambda x, to=to: lax.convert_element_type(x, to), grids(dtype, (9,))) for dtype in DTYPES[:-1] for to in DTYPES
    ],
    "copy": of(jnp.copy, DTYPES, (3,)),
    "optimization_barrier": of(lax.optimization_barrier, DTYPES, (3,)),
    "reshape": of(lambda x: x.reshape(3, 4), DTYPES, (2, 6)),
    "squeeze": of(lambda x: lax.squeeze(x, (0, 2)), DTYPES, (1, 3, 1)),
    "broadcast_in_dim": of(lambda x: lax.broadcast_in_dim(x, (4, 3, 2), (1, 2)), DTYPES, (3, 1)),
    "slice": of(lambda x: lax.slice(x, (1, 0), (5, 3), (2, 1)), DTYPES, (6, 3)),
    "concatenate": [
        (
            lambda x, y: jnp.concatenate([x, y], 1),
            lambda rng: [values(rng, (LANES, 2, 3), np.int32)[:n] for n in (5, 1)],
        )
    ],
    "transpose": of(lambda x: x.transpose(2, 0, 1), DTYPES, (2, 3, 4)),
    "rev": of(lambda x: lax.rev(x, (0, 1)), DTYPES, (2, 3)),
    "iota": of(lambda x: (x, lax.broadcasted_iota(np.int32, (2, 3), 1)), DTYPES[:1], ()),
    "dynamic_slice": [
        (
            lambda x, i, j: lax.dynamic_slice(x, (i, j), (2, 2)),
            lambda rng: [values(rng, (LANES, 4, 3), np.float32)] + [values(rng, (LANES,), np.int32) for _ in range(2)],
        ),
        (
            lambda x, i: lax.dynamic_slice(x, (i,), (1,)),  # of what all lanes share
            lambda rng: [values(rng, (1, 4), np.float32), values(rng, (LANES,), np.int8)],
        ),
    ],
    "dynamic_update_slice": [
        (
            lambda x, y, i: lax.dynamic_update_slice(x, y, (i, jnp.int32(1))),
            lambda rng: [
                values(rng, (1, 4, 3), np.float32),
                values(rng, (LANES, 2, 2), np.float32),
                values(rng, (LANES,), np.int32),
            ],
        )
    ],
    "reduce_and": of(lambda x: lax.reduce_and(x, (1,)), (np.bool_,), (3, 2)),
    "reduce_or": of(lambda x: lax.reduce_or(x, (0, 1)), (np.bool_,), (3, 2)),
    "reduce_max": of(lambda x: lax.reduce_max(x, (1,)), (np.bool_, *INTEGERS), (3, 2)),
    "reduce_min": of(lambda x: lax.reduce_min(x, (0,)), (np.bool_, *INTEGERS), (3, 2)),
    "reduce_sum": [
        *of(lambda x: lax.reduce_sum(x, (1,)), INTEGERS, (3, 4)),
        (lambda x: lax.reduce_sum(x, (1,)), counts),
    ],
    "reduce_prod": of(lambda x: lax.reduce_prod(x, (1,)), INTEGERS, (3, 4)),
    "argmax": of(lambda x: lax.argmax(x, 1, np.int32), DTYPES, (3, 9)),
    "argmin": of(lambda x: lax.argmin(x, 0, np.int32), DTYPES, (9, 3)),
    "cumsum": of(lambda x: lax.cumsum(x, 1, reverse=True), INTEGERS, (3, 4)),
    "cummax": of(lambda x: lax.cummax(x, 0), INTEGERS, (3, 4)),
    "cummin": of(lambda x: lax.cummin(x, 1), INTEGERS, (3, 4)),
    "sort": of(lambda x: lax.sort(x, dimension=0), (np.bool_, *INTEGERS), (5, 2)),
    "jit": of(jax.jit(lambda x: x + 1), INTEGERS, (3,)),
    "custom_jvp_call": of(jax.custom_jvp(lambda x: x + 1), INTEGERS, (3,)),
    "custom_vjp_call": of(jax.custom_vjp(lambda x: x + 1), INTEGERS, (3,)),
}
RULES["custom_jvp_call"][0][0].defjvp(lambda x, t: (x[0] + 1, t[0]))
RULES["custom_vjp_call"][0][0].defvjp(lambda x: (x + 1, None), lambda _, t: (t,))
# Keys are the first argument.
OF_KEYS = {
    "random_fold_in": (lambda k, i: jax.random.fold_in(k, i), (), np.uint32),
    "random_split": (lambda k, i: jax.random.split(k, (2, 3)), (), np.uint32),
    "many": (lambda k, i: jax.random.split(k, 40), (), np.uint32),  # so many that NumPy hashes them
    "random_unwrap": (lambda k, i: jax.random.key_data(k), (3,), np.uint32),
    "random_wrap": (lambda k, i: jax.random.wrap_key_data(jax.random.key_data(k) ^ i), (), np.uint32),
    "picked": (lambda k, i: k[i], (3,), np.int32),
    "turned": (lambda k, i: jnp.where(i > 0, k, k[::-1]).reshape(2, 2).T, (4,), np.int32),
    "joined": (lambda k, i: jnp.concatenate([k, jnp.broadcast_to(k[0], (2,))]), (4,), np.int32),
    "of each": (lambda k, i: jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(3) + i), (), np.int32),
    "of all": (lambda k, i: jax.vmap(jax.random.fold_in, (0, None))(k, i), (3,), np.uint32),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_the_bits_of_xla(name):
    seen = set()
    for number, (f, inputs) in enumerate(RULES[name]):
        rng = np.random.default_rng(number)
        seen |= check(f, *inputs(rng))
        seen |= check(f, *[a[:1] for a in inputs(rng)])  # nothing varies
    assert name in seen


@pytest.mark.parametrize("name", OF_KEYS)
def test_rules_for_keys_give_the_bits_of_jax(name):
    f, shape, dtype = OF_KEYS[name]
    rng = np.random.default_rng(0)
    seen = check(f, keys(rng, (LANES, *shape)), values(rng, (LANES,), dtype), key_argument=0)
    seen |= check(f, keys(rng, (1, *shape)), values(rng, (LANES,), dtype), key_argument=0)
    assert name in seen or not name.startswith("random_")


def test_every_rule_is_compared():
    calls = {"pjit", "closed_call"}  # names of `jit` in other releases, and what tracing no longer makes
    assert RULES.keys() | {n for n in OF_KEYS if n.startswith("random_")} == whole.RULES.keys() - calls


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_threefry_of_integers_and_of_arrays_is_one(words):
    arrays = [np.array([w], np.uint32) for w in words]
    assert whole.threefry(*words) == tuple(int(a[0]) for a in whole.threefry(*arrays))


NOT_EXACT = {
    "a sum of floats": (lambda x: x + 1.0, np.float32),
    "a product": (lambda x: x @ x, np.float32),
    "a float to a whole number": (lambda x: x.astype(np.int32), np.float32),
    "a half compared": (lambda x: x > 0, np.float16),
    "a division": (lambda x: x // 3, np.int32),
    "another generator's keys": (lambda x: jax.random.split(jax.random.key(0, impl="rbg")), np.float32),
    "a draw": (lambda x: jax.random.uniform(jax.random.key(0)), np.float32),
}


@pytest.mark.parametrize("name", NOT_EXACT)
def test_what_only_xla_computes_is_left_to_it(name):
    f, dtype = NOT_EXACT[name]
    closed = jax.make_jaxpr(f)(np.zeros(3, dtype))
    assert any(whole.evaluator(eqn) is None for eqn in closed.jaxpr.eqns)


@pytest.mark.parametrize("row", [[0.5, 0.25], [2.0**24, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_sum_whose_order_matters_is_left_to_xla(row):
    (eqn,) = jax.make_jaxpr(lambda x: lax.reduce_sum(x, (0,)))(np.zeros(2, np.float32)).jaxpr.eqns
    rule = whole.evaluator(eqn)
    with pytest.raises(whole.InexactError):
        rule(np.array([row], np.float32))


def test_is_key_is_what_rules_take_for_one():
    assert is_key(jax.random.key(0)) and whole.evaluator(
        jax.make_jaxpr(jax.random.key_data)(jax.random.key(0)).jaxpr.eqns[0]
    )
