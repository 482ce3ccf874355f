"""Keys of equations and segments: equal for what does the same, also when it is traced again, and for nothing else."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ember_jax as ember
from ember_jax._engine import segments
from ember_jax._jax.equal import of_equation
from ember_jax._jax.values import raw_aval
from ember_jax._plan import equal, ir
from ember_jax._plan.lower import lower

X = jnp.arange(3.0)
KEPT = []  # what keys are made of, as they compare constants by identity


def keys(f, *args):
    """The keys of a function's equations, in order, traced anew."""
    jaxpr = jax.make_jaxpr(lambda *args: f(*args))(*args)
    KEPT.append(jaxpr)
    return [of_equation(eqn) for eqn in jaxpr.eqns]


ALIKE = {
    "arithmetic": lambda x: jnp.sin(x) * 2 + 1,
    "loop": lambda x: lax.fori_loop(0, 3, lambda i, a: a * i + 1, x),
    "branch": lambda x: lax.cond(x[0] > 0, lambda: x + 1, lambda: x * 2),
    "scan": lambda x: lax.scan(lambda c, a: (c + a, c * a), 0.0, x),
    "nested": lambda x: jax.jit(lambda y: jax.nn.softmax(y) + lax.map(jnp.cos, y))(x),
    "draw": lambda x: jax.random.normal(jax.random.key(0), (2,)) + jax.random.uniform(jax.random.key(1)),
    "closed over": lambda x: jax.jit(lambda y: y @ jnp.ones((3, 3)) + X)(x),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_traced_twice_is_equal(name):
    first, second = keys(ALIKE[name], X), keys(ALIKE[name], X)
    assert first == second and list(map(hash, first)) == list(map(hash, second)) and first


def other_constant(value):
    constant = np.full(3, value, np.float32)
    KEPT.append(constant)
    return lambda x: jax.jit(lambda y: y + constant)(x)


# Of each group no two are equal.
DIFFERENT = {
    "literals": [lambda x: x * 0.0, lambda x: x * -0.0, lambda x: x * 1.0],
    "kinds": [lambda x: x.sum() * 1, lambda x: x.astype(int).sum() * 1],
    "parameters": [lambda x: lax.cumsum(x), lambda x: lax.cumsum(x, reverse=True), lambda x: lax.cumprod(x)],
    "bodies": [
        lambda x: lax.fori_loop(0, 3, lambda i, a: a + i, x),
        lambda x: lax.fori_loop(0, 3, lambda i, a: a - i, x),
    ],
    "wiring": [
        lambda x: jax.jit(lambda a, b: a - b)(x, x),
        lambda x: jax.jit(lambda a, b: b - a)(x, x),
        lambda x: jax.jit(lambda a, b: a - a)(x, x),
    ],
    "results": [
        lambda x: jax.jit(lambda a: (a + 1, a + 2))(x),
        lambda x: jax.jit(lambda a: (a + 2, a + 1))(x),
    ],
    "branches": [
        lambda x: lax.cond(x[0] > 0, lambda: x + 1, lambda: x * 2),
        lambda x: lax.cond(x[0] > 0, lambda: x * 2, lambda: x + 1),
    ],
    "constants": [other_constant(1.0), other_constant(2.0)],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_not_equal(name):
    found = [tuple(keys(f, X)) for f in DIFFERENT[name]]
    assert len(set(found)) == len(found)


def test_how_numbers_are_drawn_is_part_of_an_equation():
    found = set()
    for partitionable in (False, True):
        with jax.threefry_partitionable(partitionable):
            found.add(tuple(keys(lambda x: jax.random.bits(jax.random.key(0), (3,)), X)))
    assert len(found) == 2


def segment(f, *args):
    """A function without calls as one segment."""
    plan = lower(jax.make_jaxpr(f)(*args))
    KEPT.append(plan)
    return ir.Segment(
        tuple(range(plan.inputs)),
        plan.outputs,
        "",
        tuple(e for node in plan.nodes for e in node.equations),
        tuple(raw_aval(jax.typeof(x)) for x in jax.tree.leaves(f(*args))),
        plan.constants,
    )


def test_segments_are_compared_by_what_goes_in_and_out():
    of = lambda f: equal.of_segment(segment(f, X, X))
    assert of(lambda a, b: a - b) == of(lambda a, b: a - b) != of(lambda a, b: b - a)
    assert of(lambda a, b: (a + 1, b * 2)) != of(lambda a, b: (b * 2, a + 1))


def test_what_cannot_be_compared_has_executables_of_its_own():
    odd = segment(lambda x: jnp.sin(x), X)
    (equation,) = odd.equations
    with_array = equation.eqn.replace(params={**equation.eqn.params, "array": np.zeros(2)})
    odd = ir.Segment(odd.inputs, odd.outputs, "", (ir.Equation(with_array, (0,), (1,)),), odd.avals, {})
    with pytest.raises(TypeError):
        equal.of_segment(odd)
    assert segments.runner_for(odd, [False], False) is not segments.runner_for(odd, [False], False)


def test_another_number_of_lanes_compiles_nothing():
    compiled = collections.Counter()
    listen = lambda name, seconds, fun_name="", **_: compiled.update([fun_name] if "backend_compile" in name else [])
    jax.monitoring.register_event_duration_secs_listener(listen)
    call = ember.host(lambda x: x + 1, jax.ShapeDtypeStruct((), jnp.float32))
    op = ember.jit(lambda x: jnp.tanh(call(jnp.sin(x) * 3)) ** 2)
    try:
        for lanes in (5, 6, 7, (2, 3)):
            mapped = jax.vmap(op) if isinstance(lanes, int) else jax.vmap(jax.vmap(op))
            xs = np.linspace(0, 1, np.prod(lanes), dtype=np.float32).reshape(lanes)
            np.testing.assert_allclose(mapped(xs), np.tanh(np.sin(xs) * 3 + 1) ** 2, rtol=1e-5)
            if lanes == 5:
                assert compiled.pop("jit(_run)") == 1  # the record's; what follows the call is the replay's
            assert not compiled["jit(_run)"]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
