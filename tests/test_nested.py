"""Operators in operators: each is traced and lowered once, and only what runs is arranged."""

import concurrent.futures
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._engine import island
from ember_jax._plan import lower

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
echo = ember.host(lambda x: x, out=SCALAR)
XS = jnp.linspace(0.1, 0.9, 4)


@pytest.fixture
def counted(monkeypatch):
    """What was done since: `jaxprs` made by `jax.make_jaxpr`, programs `lowered`, islands `arranged`."""
    jax.jit(ember.jit(echo))(0.0)  # what is made once in a process
    jaxprs, make = [], jax.make_jaxpr
    monkeypatch.setattr(jax, "make_jaxpr", lambda *args, **kwargs: jaxprs.append(args) or make(*args, **kwargs))
    lowered, arranged = lower.lowered, island.arranged

    def since():
        return {"jaxprs": len(jaxprs), "lowered": lower.lowered - lowered, "arranged": island.arranged - arranged}

    return since


def asks(i):
    """An operator of its own, and what it computes, in plain JAX."""

    @ember.operator
    def inner(x: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sin(echo(x * i)) * echo(x)

    return inner, lambda x: jnp.sin(x * i) * x


def three_deep(x):
    inner, _ = asks(1)
    middle = ember.operator(_annotated(lambda x: inner(x) + inner(x + 1)))
    return ember.operator(_annotated(lambda x: middle(x) * middle(x + 2)))(x)


def _annotated(fn):
    def op(x: Float[Array, ""]) -> Float[Array, ""]:
        return fn(x)

    return op


@pytest.mark.parametrize(
    "run", [jax.jit, lambda f: f, lambda f: jax.jit(jax.jit(f))], ids=["jit", "alone", "jit twice"]
)
def test_twenty_operators_in_one_are_each_lowered_once_and_none_is_arranged(counted, run):
    inner, plain = zip(*map(asks, range(20)), strict=True)
    outer = run(ember.jit(lambda x: sum(op(x) for op in inner)))
    with ember.session() as session:
        value = outer(jnp.float32(0.5))
    np.testing.assert_allclose(value, sum(f(0.5) for f in plain), rtol=1e-6)
    # of each the function's own jaxpr, and that of its record
    assert counted() == {"jaxprs": 42, "lowered": 21, "arranged": 1}
    assert session.report().islands == 1


def test_one_operator_in_many_places_is_lowered_once(counted):
    inner, plain = asks(3)
    value = jax.jit(ember.jit(lambda x: sum(inner(x + i) for i in range(20))))(jnp.float32(0.5))
    np.testing.assert_allclose(value, sum(plain(0.5 + i) for i in range(20)), rtol=1e-5)
    assert counted() == {"jaxprs": 4, "lowered": 2, "arranged": 1}


def test_operators_nested_three_deep_are_each_lowered_once(counted):
    value = jax.jit(ember.jit(three_deep))(jnp.float32(0.5))
    f = asks(1)[1]
    np.testing.assert_allclose(value, (f(0.5) + f(1.5)) * (f(2.5) + f(3.5)), rtol=1e-6)
    # the function, the outermost operator, the one in it, the innermost
    assert counted() == {"jaxprs": 8, "lowered": 4, "arranged": 1}


def attempted(f):
    return lambda x: ember.attempt(f)(x)[0]


# What stands around an operator inside another one, and the programs that are lowered besides these two.
AROUND = {
    "vmap": (lambda f: lambda x: jnp.sum(jax.vmap(f)(x + XS)), 0),
    "vmap of vmap": (lambda f: lambda x: jnp.sum(jax.vmap(jax.vmap(f))(x + XS.reshape(2, 2))), 0),
    "cond": (lambda f: lambda x: jax.lax.cond(x > 0, f, lambda x: f(x) + f(x + 1), x), 0),
    "scan": (lambda f: lambda x: jnp.sum(jax.lax.scan(lambda c, y: (f(c), f(y)), x, XS)[1]), 0),
    "while": (lambda f: lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, f(c[1])), (0, x))[1], 0),
    "grad": (jax.grad, 0),
    "jvp": (lambda f: lambda x: jax.jvp(f, (x,), (x,))[1], 0),
    "vjp": (lambda f: lambda x: jax.vjp(f, x)[1](x)[0], 0),
    "checkpoint": (lambda f: jax.grad(jax.checkpoint(f)), 0),
    "vmap of grad": (lambda f: lambda x: jnp.sum(jax.vmap(jax.grad(f))(x + XS)), 0),
    "grad of vmap": (lambda f: jax.grad(lambda x: jnp.sum(jax.vmap(f)(x + XS))), 0),
    "jit": (jax.jit, 0),
    "attempt": (attempted, 1),
    "metered": (lambda f: lambda x: ember.metered(f)(x)[0], 1),
    "vmap of attempt": (lambda f: lambda x: jnp.sum(jax.vmap(attempted(f))(x + XS)), 1),
}


@pytest.mark.parametrize("mapped", [False, True], ids=["once", "lanes"])
@pytest.mark.parametrize("name", AROUND)
def test_an_operator_is_lowered_once_whatever_stands_around_it(name, mapped, counted):
    around, besides = AROUND[name]
    inner, _ = asks(2)
    outer, xs = ember.jit(lambda x: around(inner)(x) + inner(x)), (XS if mapped else XS[0])
    value = (jax.vmap(outer) if mapped else outer)(xs)
    made = counted()
    assert (made["lowered"], made["arranged"]) == (2 + besides, 1)
    with jax.disable_jit():
        line_by_line = jnp.stack([around(inner)(x) + inner(x) for x in jnp.atleast_1d(xs)])
    np.testing.assert_allclose(jnp.atleast_1d(value), line_by_line, rtol=1e-5)


def test_an_operator_that_is_mapped_is_arranged_with_its_lanes_only(counted):
    inner, plain = asks(5)
    np.testing.assert_allclose(jax.vmap(jax.vmap(inner))(XS.reshape(2, 2)), plain(XS).reshape(2, 2), rtol=1e-6)
    assert counted()["arranged"] == 1


def test_lowering_a_program_arranges_nothing_until_it_runs_and_then_once(counted):
    inner, plain = asks(6)
    compiled = jax.jit(ember.jit(inner)).lower(XS[0]).compile()
    assert counted()["arranged"] == 0
    for x in XS:
        np.testing.assert_allclose(compiled(x), plain(x), rtol=1e-6)
    assert counted()["arranged"] == 1


def test_threads_that_run_a_program_for_the_first_time_at_once_arrange_it_once(counted):
    inner, plain = asks(7)
    compiled, together = jax.jit(inner).lower(XS[0]).compile(), threading.Barrier(len(XS))

    def run(x):
        together.wait(60)
        return compiled(x)

    with concurrent.futures.ThreadPoolExecutor(len(XS)) as threads:
        np.testing.assert_allclose(jnp.stack([*threads.map(run, XS)]), plain(XS), rtol=1e-6)
    assert counted()["arranged"] == 1


def test_a_program_that_was_traced_with_64_bits_has_them_when_it_first_runs():
    beyond = ember.host(lambda x: np.float32(x - np.float32(x)), out=SCALAR)
    with jax.enable_x64(True):
        x = jnp.float32(1)
        compiled = jax.jit(ember.jit(lambda x: beyond(x.astype(jnp.float64) / 3))).lower(x).compile()
    third = np.float64(1) / 3
    assert compiled(x) == np.float32(third - np.float32(third)) != 0


def test_an_operator_in_what_only_xla_can_run_is_arranged_for_itself(counted):
    inner, _ = asks(2)

    @ember.jit
    def outer(x):
        return jax.lax.custom_linear_solve(lambda v: v, x, lambda _, b: echo(inner(b))) + inner(x)

    x = jnp.float32(0.5)
    np.testing.assert_allclose(outer(x), 2 * jnp.sin(2 * x) * x, rtol=1e-6)
    assert (counted()["lowered"], counted()["arranged"]) == (2, 2)
