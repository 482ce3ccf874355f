"""A gradient that is zero by mistake is an error, before anything is paid; one that may be other than zero is none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import learn
from ember_jax.errors import GradientError

KEY = jax.random.key(0)
XS = jnp.asarray([0.3, -0.7])
QUESTIONS = ember.text(["What is 2 + 3?", "What is 4 + 4?"])


class Net(ember.Operator):
    w: Float[Array, "2"]
    llm: ember.LLM

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        up = self.draw(key)
        return jax.lax.cond(up == 1, lambda: self.llm(question), lambda: question)

    def draw(self, key):
        return learn.sample(self.w, key)


class Undrawn(Net):
    def draw(self, key):
        return jax.random.categorical(key, self.w)


def net(kind=Net):
    return kind(jnp.asarray([0.1, -0.2]), ember.LLM("sim/small"))


def cost(op, question, x, key):
    answer, usage = ember.metered(op)(question, key)
    return usage.cost + x * (answer == question).astype(float)


def twice(op, x):
    """The second carry is reached at the second step alone."""
    step = lambda carry, _: ((op.w[0] * x, carry[0]), None)
    return jax.lax.scan(step, (jnp.zeros(()), jnp.zeros(())), None, length=2)[0][1]


PATHS = {
    "numbers": lambda op, q, x, key: op.w[0] * x,
    "numbers beside a call": lambda op, q, x, key: op.w[1] * (op.llm(q) == q).astype(float),
    "a branch": lambda op, q, x, key: jax.lax.cond(x > 0, lambda: op.w[0], lambda: 1.0),
    "the second step of a scan": lambda op, q, x, key: twice(op, x),
    "a checkpoint": lambda op, q, x, key: jax.checkpoint(lambda w: w.sum())(op.w),
    "a custom derivative": lambda op, q, x, key: jax.nn.relu(op.w[0]),
    "a while loop": lambda op, q, x, key: jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1]), (0, op.w[0])
    )[1],
    "a draw": lambda op, q, x, key: learn.sample(op.w, key).astype(float) * x,
    "a draw in a scan": lambda op, q, x, key: jax.lax.scan(
        lambda c, k: (c + learn.sample(op.w, k).astype(float) * x, None), 0.0, jax.random.split(key, 2)
    )[0],
    "a draw in an operator": cost,
    "rounded, and not": lambda op, q, x, key: jnp.round(op.w[0]) + op.w[1],
}
NO_PATHS = {
    "a draw that is no decision": lambda op, q, x, key: jax.random.categorical(key, op.w).astype(float) * x,
    "a choice": lambda op, q, x, key: jnp.argmax(op.w).astype(float) * x,
    "a comparison": lambda op, q, x, key: jnp.where(op.w[0] > op.w[1], x, 2 * x),
    "rounding": lambda op, q, x, key: jnp.round(op.w[0]) * x + jnp.sign(op.w[1]),
    "stopped": lambda op, q, x, key: jax.lax.stop_gradient(op.w).sum() * x,
    "stopped in a branch": lambda op, q, x, key: jax.lax.cond(x > 0, lambda w: jnp.floor(w[0]), lambda w: x, op.w),
    "stopped in a scan": lambda op, q, x, key: jax.lax.scan(lambda c, _: (jnp.floor(c), None), op.w[0], None, 3)[0],
    "not at all": lambda op, q, x, key: x**2,
    "words": lambda op, q, x, key: ember.parse_number(op.llm(ember.format("{q} {w}", q=q, w=op.w[0]))),
    "a draw of something else": lambda op, q, x, key: learn.sample(jnp.zeros(2), key).astype(float) * x,
}


def gradient(loss, op, **kwargs):
    return learn.value_and_grad(loss, **kwargs)(op, (QUESTIONS, XS), KEY)


@pytest.mark.parametrize("name", PATHS)
def test_what_a_parameter_reaches_has_a_gradient(name):
    _, grads = gradient(PATHS[name], net(), samples=2)
    assert jnp.isfinite(grads.w).all()


@pytest.mark.parametrize("name", NO_PATHS)
@pytest.mark.parametrize("jit", [False, True])
def test_what_no_parameter_reaches_is_an_error_before_anything_is_paid(name, jit):
    estimate = learn.value_and_grad(NO_PATHS[name])
    with ember.session() as run:
        with pytest.raises(GradientError, match=r"(?s)gradient is zero.*`learn\.sample\(logits, key\)`"):
            (eqx.filter_jit(estimate) if jit else estimate)(net(), (QUESTIONS, XS), KEY)
        assert run.report().calls == 0


def test_a_network_that_draws_by_itself_is_told_to_sample():
    with ember.session() as run, pytest.raises(GradientError, match=r"learn\.sample"):
        gradient(cost, net(Undrawn))
    assert run.report().calls == 0


@pytest.mark.parametrize("estimator", ["score", "enumerate"])
def test_both_estimators_ask(estimator):
    gradient(PATHS["a draw"], net(), estimator=estimator)
    with pytest.raises(GradientError, match="gradient is zero"):
        gradient(NO_PATHS["a choice"], net(), estimator=estimator)


def test_an_operator_without_parameters_has_nothing_that_could_be_learned():
    value, grads = gradient(lambda op, q, x, key: x, ember.LLM("sim/small"))
    assert value == pytest.approx(XS.mean()) and not jax.tree.leaves(eqx.filter(grads, eqx.is_inexact_array))
