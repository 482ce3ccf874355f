"""Derivatives through operators are plain JAX's with the calls' results as constants, and cost no further call."""

import collections
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import testing
from ember_jax.errors import GradientError

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
Vector = Float[Array, "3"]
Number = Float[Array, ""]

made: list[float] = []


async def _price(number):
    made.append(float(number))
    return 0.5 * float(number) + 1


price = ember.host(_price, out=SCALAR)


def known_price(number):
    """What `price` says, as plain JAX knows it: a constant."""
    return jax.lax.stop_gradient(0.5 * number + 1)


# -- programs: each takes the call, and gives a function of a vector -------------------------------------------------


def straight(call):
    return lambda x: call(x[0]) * x[1] * x[1] + jnp.sin(x[2]) * call(x[2])


def cond(call):
    return lambda x: jax.lax.cond(
        call(x[0]) > 1.2, lambda: call(x[1]) * x[1] ** 2 * x[0], lambda: jnp.exp(x[2]) * x[0] * x[0]
    )


def switch(call):
    branches = [
        lambda x: x[0] ** 3,
        lambda x: call(x[0]) * x[0] * x[1],
        lambda x: call(x[1]) * jnp.cos(x[1]) * call(x[2]),
    ]
    return lambda x: jax.lax.switch(jnp.argmax(x), branches, x) * x[2]


def scan(call):
    def step(carry, v):
        carry = carry * v + call(v) * jnp.tanh(carry)
        return carry, carry * carry

    def run(x):
        last, history = jax.lax.scan(step, x[0], x)
        return last + jnp.sum(history)

    return run


def cond_in_scan(call):
    def step(carry, v):
        carry = jax.lax.cond(call(v) > 1.1, lambda c: c * v * call(v + 1), lambda c: c + v * v, carry)
        return carry, None

    return lambda x: jax.lax.scan(step, x[0] * x[1], x, reverse=True)[0]


def mapped(call):
    return lambda x: jnp.prod(jax.lax.map(lambda v: call(v) * v * v, x))


def fori(call):
    return lambda x: jax.lax.fori_loop(0, 2, lambda i, c: c * x[1] * call(x[i]) + x[0], x[2])


def custom_jvp(call):
    @jax.custom_jvp
    def pushed(v):
        return call(v) * v

    pushed.defjvp(lambda p, t: (pushed(*p), t[0] * p[0] * 7))
    return lambda x: pushed(x[0]) * pushed(x[1]) * x[2]


def custom_vjp(call):
    @jax.custom_vjp
    def pulled(v):
        return call(v) * v

    pulled.defvjp(lambda v: (pulled(v), v), lambda v, g: (g * v * 7,))
    return lambda x: pulled(x[0]) * pulled(x[1]) * x[2]


def checkpoint_inside(call):
    return lambda x: jax.checkpoint(scan(call))(x) * x[1] + jax.checkpoint(cond(call))(x + 1)


def nested(call):
    inner = operator(cond(call)) if call is price else cond(call)
    return lambda x: inner(x) * inner(x * x) + call(x[1]) * x[1]


def inner_vmap(call):
    inner = operator(straight(call)) if call is price else straight(call)
    return lambda x: jnp.sum(jax.vmap(inner)(jnp.stack([x, x + 1])) * x[:2]) * x[0]


def inner_grad(call):
    """An operator that differentiates an operator."""
    inner = operator(straight(call)) if call is price else straight(call)
    return lambda x: jnp.sum(jax.grad(inner)(x) * x * x)


def straight_through(call):
    """Forwards a choice, backwards a softmax."""

    @jax.custom_vjp
    def choose(logits):
        return jax.nn.one_hot(jnp.argmax(logits), 3)

    choose.defvjp(lambda v: (choose(v), jax.nn.softmax(v)), lambda p, g: (p * (g - jnp.sum(p * g)),))
    return lambda x: jnp.sum(choose(x) * x * call(jnp.sum(choose(x) * jnp.arange(3.0)))) * x[0]


def steps_and_sorts(call):
    """What is recorded although it is a floating-point number keeps its derivative."""

    def run(x):
        keys, along = jax.lax.sort((x, x * x), num_keys=1)
        return call(jnp.floor(x[0] * 3)) * (x[1] % 0.7) * along[0] + jnp.round(x[2]) * keys[1] * jnp.sign(x[0])

    return run


def top_k(call):
    def run(x):
        best, which = jax.lax.top_k(x, 2)
        return call(best[0]) * best[1] * x[which[0]]

    return run


PROGRAMS = {
    f.__name__: f
    for f in (
        straight,
        cond,
        switch,
        scan,
        cond_in_scan,
        mapped,
        fori,
        custom_jvp,
        custom_vjp,
        checkpoint_inside,
        nested,
        inner_vmap,
        inner_grad,
        straight_through,
        steps_and_sorts,
        top_k,
    )
}
REVERSE_ONLY = {"custom_vjp", "straight_through"}


def operator(fn):
    @ember.operator
    def run(x: Vector) -> Number:
        return fn(x)

    return run


OPERATORS = {name: operator(program(price)) for name, program in PROGRAMS.items()}
ONE = jnp.array([0.7, 0.45, -0.3])
FOUR = jnp.array([[0.7, 0.45, -0.3], [-0.2, 1.3, 0.6], [1.6, -0.8, 1.1], [0.15, 0.35, 2.2]])
TANGENT = jnp.array([1.0, -2.0, 0.5])

# name: what is done, what to, and whether it needs forward mode
TRANSFORMS = {
    "jit(value_and_grad)": (lambda f: jax.jit(jax.value_and_grad(f)), ONE, False),
    "vmap(grad)": (lambda f: jax.vmap(jax.grad(f)), FOUR, False),
    "grad(vmap)": (lambda f: ember.jit(jax.grad(lambda xs: jnp.sum(jax.vmap(f)(xs) ** 2))), FOUR, False),
    "jvp": (lambda f: lambda x: jax.jvp(f, (x,), (TANGENT,)), ONE, True),
    "hessian": (lambda f: jax.jit(jax.hessian(f)), ONE, True),
    "jit(vmap(jacfwd(jacrev)))": (lambda f: jax.jit(jax.vmap(jax.jacfwd(jax.jacrev(f)))), FOUR, True),
    "grad(checkpoint)": (lambda f: jax.grad(jax.checkpoint(f)), ONE, False),
    "jit(vmap(grad(checkpoint)))": (lambda f: jax.jit(jax.vmap(jax.grad(jax.checkpoint(f)))), FOUR, False),
}
PAIRS = [
    (name, transform)
    for i, name in enumerate(PROGRAMS)
    for j, (transform, (_, _, forward)) in enumerate(TRANSFORMS.items())
    if not (forward and name in REVERSE_ONLY)
    # By day each program meets one of them, and each of them a program in eight; all of them by night.
    if (j - 3 * i) % len(TRANSFORMS) == 0 or os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
]


def counted(run):
    made.clear()
    with ember.session() as session:
        result = jax.block_until_ready(run())
    return result, collections.Counter(made), session.report()


_needed = {}


def needed(name, lanes):
    """The calls of the same lanes without any derivative."""
    if (name, lanes) not in _needed:
        run = jax.vmap(OPERATORS[name])
        _needed[name, lanes] = counted(lambda: run(FOUR if lanes else ONE[None]))[1]
    return _needed[name, lanes]


@pytest.mark.parametrize(("name", "transform"), PAIRS)
def test_derivatives_are_plain_jaxs_and_cost_no_extra_call(name, transform):
    apply, x, _ = TRANSFORMS[transform]
    try:
        wanted = apply(PROGRAMS[name](known_price))(x)
    except TypeError as error:
        if "_check_closed_call() got an unexpected keyword argument" not in str(error):
            raise
        pytest.skip("JAX 0.10's own check of jaxprs (JAX_ENABLE_CHECKS) refuses this program without calls too")
    found, calls, report = counted(lambda: apply(OPERATORS[name])(x))
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    assert calls == needed(name, x.ndim == 2)
    assert report.islands in ((1, 2) if "checkpoint" in transform else (1,))


# -- training --------------------------------------------------------------------------------------------------------


class Blend(ember.Operator):
    """A learned weighting of what two models' answers score."""

    cheap: ember.LLM
    dear: ember.LLM
    weights: Float[Array, "2"]

    def forward(self, question: ember.Text) -> Number:
        answers = [self.cheap(question), self.dear(question)]
        scores = jnp.stack([ember.parse_number(a) for a in answers])
        return jax.nn.softmax(self.weights) @ (scores == 5).astype(jnp.float32)


def sim(accuracy=1.0):
    return testing.SimModel(accuracy=accuracy, latency=0.0)


def test_ten_steps_train_the_gate_and_leave_the_settings_as_they_are():
    questions = ember.text([f"What is {i} + {5 - i}?" for i in range(6)])
    model = Blend(
        ember.LLM("sim/small", temperature=0.7, top_p=jnp.float32(0.9)),
        ember.LLM("sim/large", system="Be exact.", temperature=0.1),
        jnp.array([0.5, -0.5]),
    )
    optimiser = optax.sgd(2.0, momentum=0.5)
    before = jax.tree.leaves((model.cheap, model.dear))

    @eqx.filter_value_and_grad
    def loss(model, questions):
        return -jnp.mean(jax.vmap(model)(questions))

    @eqx.filter_jit
    def step(model, state, questions):
        value, grads = loss(model, questions)
        updates, state = optimiser.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    with ember.session(providers={"sim": testing.Sim({"small": sim(0.0), "large": sim(1.0)})}) as run:
        values = []
        for _ in range(10):
            model, state, value = step(model, state, questions)
            values.append(float(value))
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(values[0], -jax.nn.softmax(jnp.array([0.5, -0.5]))[1], rtol=1e-6)
    assert values[-1] < -0.95
    after = jax.tree.leaves((model.cheap, model.dear))
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert run.report().requests == 12
    assert run.report().islands == 10


# -- what has no derivative ------------------------------------------------------------------------------------------


def test_what_depends_on_an_answer_alone_has_gradient_zero():
    llm = ember.LLM("sim/small")

    @ember.operator
    def of_the_answer(x: Number) -> Number:
        answer = llm.complete(ember.format("{x:.2f} + 1", x=x))
        numbers = [answer.output_tokens.astype(jnp.float32), ember.features(answer.text, 4).sum(), answer.logprob]
        return sum(numbers) + ember.parse_number(answer.text) + price(x)

    with ember.session(providers={"sim": testing.Sim({"small": sim()})}):
        value, slope = jax.value_and_grad(of_the_answer)(jnp.float32(2))
        assert value != 0
        assert slope == 0
        assert jax.jit(jax.jvp, static_argnums=0)(of_the_answer, (jnp.float32(2),), (jnp.float32(1),))[1] == 0


def test_a_hard_threshold_has_gradient_zero():
    hard = operator(lambda x: jnp.where(price(x[0]) * x[1] > 0.1, 2.0, 3.0) + (x[2] > 0).astype(jnp.float32))
    np.testing.assert_array_equal(jax.vmap(jax.grad(hard))(FOUR), jnp.zeros((4, 3)))


def loop(x, stopped=False):
    start = jax.lax.stop_gradient(x) if stopped else x
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + price(c[0]), c[1] * 2), (start, start))[1] * x


class Loop(ember.Operator):
    stopped: bool

    def forward(self, x: Number) -> Number:
        return loop(x, self.stopped)


DERIVATIVES = {
    "grad": jax.grad,
    "jit(grad)": lambda f: jax.jit(jax.grad(f)),
    "ember.jit(grad)": lambda f: ember.jit(jax.grad(f)),
    "vmap(grad)": lambda f: lambda x: jax.vmap(jax.grad(f))(x[None])[0],
    "grad(vmap)": lambda f: jax.grad(lambda x: jax.vmap(f)(x[None])[0]),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1],
    "grad(checkpoint)": lambda f: jax.grad(jax.checkpoint(f)),
}


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_a_loop_with_calls_refuses_to_be_differentiated_and_says_what_to_do(derivative):
    with pytest.raises(GradientError, match=r"(?s)`while_loop` that makes calls.*jax\.lax\.scan.*stop_gradient"):
        DERIVATIVES[derivative](Loop(stopped=False))(jnp.float32(0.5))


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_a_loop_with_calls_is_a_constant_behind_stop_gradient(derivative):
    found = DERIVATIVES[derivative](Loop(stopped=True))(jnp.float32(0.5))
    # 0.5 -> 1.75 -> 3.625: two turns
    assert found == 0.5 * 4


def test_a_loop_with_calls_that_only_gives_words_and_counts_is_differentiated_around():
    add = ember.host(lambda words, x: words + "x" * int(x), out=ember.Text)

    @ember.operator
    def run(x: Number) -> Number:
        turn = lambda c: (add(c[0], x), c[1] + 1)
        words, turns = jax.lax.while_loop(lambda c: c[1] < 3, turn, (ember.text("a"), jnp.int32(0)))
        return x * x * turns.astype(jnp.float32) * (words == "axxxxxx").astype(jnp.float32)

    assert jax.grad(run)(jnp.float32(2)) == 12


def test_a_loop_without_calls_keeps_its_forward_derivative():
    @ember.operator
    def run(x: Number) -> Number:
        return jax.lax.while_loop(lambda c: c < 10, lambda c: c * c, x) * price(x)

    _, slope = jax.jvp(run, (jnp.float32(2),), (jnp.float32(1),))
    assert slope == 4 * 2.0**3 * known_price(2.0)  # 2 -> 4 -> 16 is x**4


def test_a_loop_without_calls_whose_bound_alone_is_learned_has_reverse_derivative_zero():
    def run(call):
        return lambda x: jax.lax.while_loop(lambda c: c < x[0], lambda c: c + 0.25, 0.0) * x[1] * call(x[2])

    slope = jax.jit(jax.grad(operator(run(price))))(ONE)
    np.testing.assert_allclose(slope, jax.grad(run(known_price))(ONE), rtol=1e-6)
    assert slope[1] != 0


def test_a_loop_without_calls_is_a_constant_of_reverse_mode_behind_stop_gradient():
    def run(call):
        def power(x):
            fixed = jax.lax.stop_gradient(x)
            return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * fixed), (0, fixed))[1]

        return lambda x: power(x[0]) * x[1] * call(x[2])

    slope = jax.vmap(jax.grad(operator(run(price))))(FOUR)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(run(known_price)))(FOUR), rtol=1e-6)
