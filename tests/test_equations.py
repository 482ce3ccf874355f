"""What the room that knows JAX says of equations, on every JAX: what they are, their siblings, and what degrades."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import ember_jax as ember
from ember_jax._jax import equations, jaxprs
from ember_jax._jax.axes import Crossing, one_lane
from ember_jax._jax.equations import (
    Broadcast,
    Checkpoint,
    ClosedCall,
    Cond,
    CustomDerivative,
    Host,
    Print,
    Scan,
    Select,
    While,
    view,
)
from ember_jax._plan import ir

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
X, XS = jnp.float32(1.5), jnp.arange(4.0)


def add_one(x):
    return x + 1


def traced(fn, *args):
    """The jaxpr of a function, and its last equation that is no conversion."""
    closed = jax.make_jaxpr(fn)(*args)
    return closed, [eqn for eqn in closed.jaxpr.eqns if equations.name(eqn) != "convert_element_type"][-1]


def seen(fn, *args):
    return view(traced(fn, *args)[1])


def check_sibling(fn, *args, change):
    """A program whose last equation is replaced by its sibling, with jaxprs traced anew, gives the same."""
    closed, eqn = traced(fn, *args)
    assert closed.jaxpr.eqns[-1] is eqn
    one = change(view(eqn))
    again = jaxprs.assemble(closed.jaxpr.invars, closed.jaxpr.outvars, [*closed.jaxpr.eqns[:-1], one])
    for found, wanted in zip(jaxprs.evaluated(again, *args), jax.tree.leaves(fn(*args)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def retraced(closed):
    """An equal jaxpr that is another one."""
    return jax.make_jaxpr(functools.partial(jaxprs.evaluated, closed))(*closed.in_avals)


# -- what equations are ----------------------------------------------------------------------------------------------


def scan(x, xs, reverse=False):
    """Two constants, three leaves that are carried, two that are scanned over, one that is stacked."""
    step = lambda c, y: (({"a": c["a"] + x, "b": (c["b"][0] * 2, y[0])}), y[1] + xs[0] * c["a"])
    return lax.scan(step, {"a": x, "b": (x, x)}, (xs, xs), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_knows_its_parts(reverse):
    found = seen(functools.partial(scan, reverse=reverse), X, XS)
    assert isinstance(found, Scan)
    parts = (found.constants, found.carry, found.xs, found.length, found.reverse, found.unroll)
    assert parts == (2, 3, 5, 4, reverse, 1)
    assert len(found.body.in_avals) == len(found.eqn.invars) == 7 and len(found.body.out_avals) == 4
    check_sibling(functools.partial(scan, reverse=reverse), X, XS, change=lambda s: s.holding(retraced(s.body)))


def test_a_map_and_a_bounded_loop_are_scans():
    mapped = seen(lambda xs: lax.map(jnp.sin, xs), XS)
    assert isinstance(mapped, Scan) and (mapped.constants, mapped.carry, mapped.length) == (0, 0, 4)
    loop = seen(lambda x: lax.fori_loop(0, 5, lambda i, y: y * i, x), X)
    assert isinstance(loop, Scan) and (loop.carry, loop.length) == (2, 5)


def test_a_while_loop_knows_its_parts():
    loop = lambda x, xs: lax.while_loop(
        lambda c: (c[0] < xs[0]) & (c[0] < x), lambda c: (c[0] + x, c[1] * c[0]), (x, x)
    )
    found = seen(loop, X, XS)
    assert isinstance(found, While)
    assert (found.condition_constants, found.body_constants, found.constants) == (2, 1, 3)
    assert [v.dtype for v in found.condition.out_avals] == [bool] and len(found.body.out_avals) == 2
    check_sibling(loop, X, XS, change=lambda w: w.holding(retraced(w.condition), retraced(w.body)))


def test_a_choice_knows_its_branches():
    cond = lambda x: lax.cond(x > 1, jnp.sin, jnp.cos, x)
    found = seen(cond, X)
    assert isinstance(found, Cond) and len(found.branches) == 2
    check_sibling(cond, X, change=lambda c: c.holding([retraced(b) for b in c.branches]))


def test_a_switch_knows_its_branches_in_order():
    switch = lambda i, x: lax.switch(i, [lambda x: x, lambda x: x * 2, lambda x: x * 3], x)
    found = seen(switch, 1, X)
    assert isinstance(found, Cond)
    assert [float(jaxprs.evaluated(b, X)[0]) for b in found.branches] == [1.5, 3.0, 4.5]


@jax.custom_jvp
def with_jvp(x):
    return x * 2


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))


@jax.custom_vjp
def with_vjp(x):
    return x * 2


with_vjp.defvjp(lambda x: (x * 2, None), lambda _, g: (g,))


def test_calls_hold_what_they_run():
    named = seen(jax.jit(add_one), X)
    assert isinstance(named, ClosedCall) and named.name == "add_one"
    assert equations.is_named(named.eqn, "add_one") and not equations.is_named(named.eqn, "other")
    kept = seen(jax.checkpoint(add_one, policy=jax.checkpoint_policies.everything_saveable, prevent_cse=False), X)
    assert isinstance(kept, Checkpoint) and kept.prevent_cse is False
    assert kept.policy is jax.checkpoint_policies.everything_saveable
    jvp, vjp = seen(with_jvp, X), seen(with_vjp, X)
    assert isinstance(jvp, CustomDerivative) and isinstance(vjp, CustomDerivative)
    assert (jvp.mode, vjp.mode) == ("jvp", "vjp")
    for found, wanted in ((named, 2.5), (kept, 2.5), (jvp, 3.0), (vjp, 3.0)):
        body = equations.called(found.eqn)
        assert body is not None and jaxprs.evaluated(body, X) == [wanted]


def test_what_is_inlined_stands_where_it_was_called():
    op = ember.jit(lambda q: ember.host(len, out=jax.ShapeDtypeStruct((), jnp.int32))(q))
    inside = lambda q: [equations.name(e) for e in jax.make_jaxpr(op)(q).jaxpr.eqns]
    host = ember.host(add_one, SCALAR)
    names = [equations.name(e) for e in jax.make_jaxpr(lambda x: host(x))(X).jaxpr.eqns]
    assert "pure_callback" in names and "jit" not in names
    assert not [name for name in inside(ember.text("q")) if "bound" in name]


def test_callbacks_tell_their_function_and_order():
    pure = seen(lambda x: jax.pure_callback(add_one, SCALAR, x), X)
    assert isinstance(pure, Host) and pure.function is add_one and pure.is_pure and not pure.is_ordered
    np.testing.assert_array_equal(pure.callback(np.float32(1))[0], 2)
    for ordered in (False, True):
        impure = seen(lambda x: io_callback(add_one, SCALAR, x, ordered=ordered), X)
        assert isinstance(impure, Host) and not impure.is_pure and impure.is_ordered == ordered
        for effect in (
            lambda x: jax.debug.print("{}", x, ordered=ordered),
            lambda x: jax.debug.callback(print, x, ordered=ordered),
        ):
            printed = view(jax.make_jaxpr(effect)(X).jaxpr.eqns[-1])
            assert isinstance(printed, Print) and printed.is_ordered == ordered


def test_choices_and_copies_of_numbers():
    assert isinstance(seen(lambda x: lax.select_n(x > 0, x, x + 1), XS), Select)
    spread = seen(lambda x: lax.broadcast_in_dim(x, (2, 4, 3), (1,)), XS)
    assert isinstance(spread, Broadcast) and (spread.shape, spread.dimensions) == ((2, 4, 3), (1,))
    assert seen(jnp.sin, X) is None


def asks(x):
    return jax.pure_callback(add_one, SCALAR, x)


HOLDERS = {
    "itself": asks,
    "cond": lambda x: lax.cond(x > 0, asks, add_one, x),
    "scan": lambda x: lax.scan(lambda c, _: (asks(c), None), x, None, length=2)[0],
    "while": lambda x: lax.while_loop(lambda c: c < 9, asks, x),
    "jit": jax.jit(asks),
    "checkpoint": jax.checkpoint(asks),
    "custom_jvp": jax.custom_jvp(asks),
    "root": lambda x: lax.custom_root(lambda y: y - x, x, lambda f, y: y - asks(f(y)) * 0 - f(y), lambda g, y: y),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_calls_are_found_wherever_they_stand(name):
    if name == "custom_jvp":
        HOLDERS[name].defjvp(lambda p, t: (HOLDERS[name](*p), t[0]))
    closed = jax.make_jaxpr(HOLDERS[name])(X)
    assert any(map(equations.calls_host, closed.jaxpr.eqns)) and any(map(equations.leaves_xla, closed.jaxpr.eqns))
    quiet = jax.make_jaxpr(lambda x: lax.cond(x > 0, lambda: jax.debug.print("{}", x), lambda: None))(X)
    assert any(map(equations.leaves_xla, quiet.jaxpr.eqns)) and not any(map(equations.calls_host, quiet.jaxpr.eqns))


def test_a_root_whose_solver_calls_has_its_own_derivative():
    """In JAX 0.12 it is an object that shows no jaxpr; its calls are found, and its derivative is its rule's."""
    asked = []

    def counted(y):
        asked.append(float(y))
        return y

    call = ember.host(counted, out=SCALAR)

    def root(x):
        newton = lambda f, y: lax.fori_loop(0, 20, lambda i, y: y - call(f(y)) / (3 * y * y), y)
        return lax.custom_root(lambda y: y**3 - x, jnp.float32(1), newton, lambda g, y: y / g(1.0))

    with ember.session():
        np.testing.assert_allclose(ember.jit(root)(8.0), 2, rtol=1e-6)
        once = len(asked)
        np.testing.assert_allclose(jax.grad(ember.jit(root))(8.0), 1 / 12, rtol=1e-5)
        assert len(asked) == once > 5
        np.testing.assert_allclose(jax.vmap(ember.jit(root))(jnp.array([8.0, 27.0])), [2, 3], rtol=1e-6)


def test_facts_are_those_of_the_primitive():
    of = lambda fn, *args: equations.facts(traced(fn, *args)[1])
    assert of(lambda x: lax.stop_gradient(lax.optimization_barrier(x)), X).is_idle
    assert of(jnp.floor, X).is_flat and of(lambda x: lax.rem(x, 2.0), X).decides
    alone, along = of(lambda x: lax.sort(x), XS), of(lambda x: lax.sort((x, x), num_keys=1), XS)
    assert (alone.decides, along.decides) == (False, True) and alone.verb == along.verb == "sorts"
    assert of(jnp.sin, X) == equations.Facts()


def test_a_sibling_says_nothing_of_where_it_lies():
    _, eqn = traced(lambda x: jnp.reshape(x, (2, 2)), XS)
    assert equations.unsharded(eqn).primitive is eqn.primitive
    np.testing.assert_array_equal(jaxprs.evaluate(equations.unsharded(eqn), [XS])[0], XS.reshape(2, 2))


# -- forms that no JAX has yet ---------------------------------------------------------------------------------------


@pytest.fixture(params=["scan", "cond", "while"])
def unknown(request, monkeypatch):
    """A primitive that a later JAX writes down otherwise."""

    def other(eqn):
        raise KeyError("its_new_parameter")

    monkeypatch.setitem(equations._VIEWS, request.param, other)
    return request.param


def control(name, inside):
    """A program whose control flow does something inside."""
    return {
        "scan": lambda x: lax.scan(lambda c, _: (inside(c), None), x, None, length=3)[0],
        "cond": lambda x: lax.cond(x > 0, inside, lambda x: x, x),
        "while": lambda x: lax.while_loop(lambda c: c < 3, inside, x),
    }[name]


def test_an_unknown_form_without_calls_is_numbers(unknown):
    """It runs as it stands: in the plan, in the replay, and differentiated where JAX does."""
    call = ember.host(add_one, SCALAR)
    f = control(unknown, lambda c: c * 2)
    op = ember.jit(lambda x: call(f(x)) + f(x))
    plan = ember.lower(lambda x: call(f(x)))(X)
    assert {type(node) for node in plan._plan.nodes} == {ir.Segment, ir.Call}
    np.testing.assert_array_equal(op(X), f(X) + 1 + f(X))
    xs = jnp.array([0.5, 1.5])
    np.testing.assert_array_equal(jax.vmap(op)(xs), jax.vmap(lambda x: f(x) + 1 + f(x))(xs))
    np.testing.assert_array_equal(
        ember.jit(lambda xs: jax.vmap(lambda x: call(f(call(x))))(xs))(xs), [f(x + 1) + 1 for x in xs]
    )
    if unknown != "while":
        np.testing.assert_array_equal(jax.grad(op)(X), jax.grad(f)(X))


def test_an_unknown_form_with_calls_is_an_error_that_names_it(unknown):
    call = ember.host(add_one, SCALAR)
    with pytest.raises(ember.errors.UnsupportedError) as raised:
        ember.jit(control(unknown, call))(X)
    message = str(raised.value)
    primitive = "while_loop" if unknown == "while" else unknown
    assert f"JAX {jax.__version__} writes `{primitive}`" in message and "0.10.2 to " in message
    assert "its_new_parameter" in message


def test_lanes_meet_in_an_equation_whose_parameters_are_unknown():
    """A rule that misses a parameter says so; the lanes wait for each other, and the values are the same."""
    _, eqn = traced(lambda x: jnp.transpose(x), jnp.ones((3, 3)))
    with pytest.raises(Crossing, match="transpose is written in a way that no rule knows"):
        one_lane(eqn.replace(params={}), [0], 3)


# -- what has no meaning lane by lane --------------------------------------------------------------------------------

CALL = ember.host(add_one, SCALAR)


def test_a_mutable_array_beside_calls_is_refused_and_one_beside_none_works():
    def own(x):
        ref = jax.new_ref(x)
        ref[...] = ref[...] * 10
        return ref[...] + CALL(x)

    def inside(x):
        def without_calls(x):
            ref = jax.new_ref(x)
            ref[...] = ref[...] * 10
            return ref[...]

        return jax.jit(without_calls)(x) + CALL(x)

    given = jax.new_ref(jnp.zeros(3))
    for refused in (
        ember.jit(own),
        lambda x: ember.jit(lambda r: r[0] + CALL(x))(given),
        ember.jit(lambda x: given[0]),
    ):
        with pytest.raises(ember.errors.UnsupportedError, match="mutable array"):
            refused(X)
    assert ember.jit(inside)(X) == 15 + 2.5


def test_a_loop_that_each_lane_leaves_by_itself_is_told_to_be_mapped_from_outside():
    asked = []

    def counted(x):
        asked.append(float(x))
        return x + 1

    call = ember.host(counted, SCALAR)
    loop = lambda x: lax.while_loop(lambda c: c < 3, call, x)
    with pytest.raises(ember.errors.UnsupportedError, match=r"`jax.vmap\(ember.jit\(f\)\)`"):
        ember.jit(lambda xs: jax.vmap(loop)(xs))(XS)
    for mapped in (ember.jit(jax.vmap(loop)), jax.vmap(ember.jit(loop))):
        with ember.session():
            asked.clear()
            np.testing.assert_array_equal(mapped(XS), [3, 3, 3, 3])
        assert sorted(asked) == [0, 1, 2]  # equal calls are made once


def test_a_batch_of_nobody_asks_nobody_and_has_its_types():
    nobody = ember.jit(lambda xs: CALL(jax.vmap(CALL)(xs[:0]).sum()))
    assert nobody(XS) == 1
    pair = ember.host(lambda x, y: x + y, SCALAR)
    prefix = ember.jit(lambda xs: lax.associative_scan(jax.vmap(lambda a, b: pair(a, b)), xs))
    np.testing.assert_array_equal(prefix(XS), np.cumsum(XS))


def test_a_choice_between_what_its_index_is_computed_from_and_another():
    def f(x):
        answer = CALL(x)
        s, c = jnp.sin(answer), jnp.cos(answer)
        return lax.select_n(jnp.clip((c * 3).astype(jnp.int32), 0, 1), s, c)

    np.testing.assert_array_equal(ember.jit(lambda xs: jax.vmap(f)(xs))(XS), [f(x) for x in XS])


def test_a_linear_solve_that_calls_tells_its_own_way_to_a_gradient():
    scale = lambda b: CALL(X * 0) * b
    solve = lambda b: lax.custom_linear_solve(scale, b, lambda f, b: b / CALL(X * 0), lambda f, b: b)
    with pytest.raises(ember.errors.GradientError, match=r"custom_linear_solve.*Make its calls before it"):
        jax.grad(ember.jit(solve))(X)
    np.testing.assert_array_equal(ember.jit(jax.grad(solve))(X), 1)
