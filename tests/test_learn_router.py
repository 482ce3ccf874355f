"""Routers and gates that learn: end to end against what the large model costs, and their gradients in closed form."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_jax as ember
from ember_jax import learn, non, testing

KEY = jax.random.key(0)

# -- end to end: one model is right on sums, another one, at 100 times the price, on everything -----------------------

MODELS = {
    "small": testing.SimModel(lambda prompt: 0.97 if "+" in prompt else 0.1, latency=0.0),
    "large": testing.SimModel(0.97, latency=0.0, input_price=15.0, output_price=60.0),
}
EASY, TRAINED, HELD_OUT, BATCH, EPOCHS = 0.85, 640, 400, 64, 6
USD = 1000.0  # what a dollar is worth, in right answers: one of the large model costs 0.136
SMALL, LARGE = (ember.LLM(f"sim/{name}", temperature=0) for name in MODELS)


def questions():
    """Different questions, in two sets, and what is right."""
    draw = np.random.default_rng(0)
    a, b = np.divmod(draw.choice(8100, TRAINED + HELD_OUT, replace=False), 90) + np.array(10)
    easy = draw.random(len(a)) < EASY
    asked = ember.text([f"What is {x} {'+' if e else '*'} {y}?" for x, y, e in zip(a, b, easy, strict=True)])
    golds = ember.text([str(x + y if e else x * y) for x, y, e in zip(a, b, easy, strict=True)])
    return (asked[:TRAINED], golds[:TRAINED]), (asked[TRAINED:], golds[TRAINED:])


def loss_of(op, question, gold, key):
    answer, usage = ember.metered(op)(question, key)
    return USD * usage.cost - (answer == gold).astype(float)


def fit(loss, op, batches, **settings):
    """Adam on the expected loss."""
    optimiser, grad = optax.adam(0.1), learn.value_and_grad(loss, **settings)

    @eqx.filter_jit
    def step(op, state, batch, key):
        _, grads = grad(op, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction raises a float to an integer power
            updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(op, updates), state

    state = optimiser.init(eqx.filter(op, eqx.is_inexact_array))
    for i in range(EPOCHS * TRAINED // BATCH):
        start = i * BATCH % TRAINED
        batch = jax.tree.map(lambda column, start=start: column[start : start + BATCH], batches, is_leaf=is_text)
        op, state = step(op, state, batch, jax.random.key(i))
    return op


def is_text(leaf):
    return isinstance(leaf, ember.Text)


def outcome(op, asked, golds):
    """Mean accuracy and cost."""
    answers, usage = jax.vmap(ember.metered(op))(asked)
    return np.mean(answers == golds), np.mean(usage.cost)


def cascade(scorer, **settings):
    return non.Cascade([SMALL, LARGE], scorer, thresholds=0.0, **settings)


def learned_router(batches):
    op = non.Router([SMALL, LARGE], non.LinearRule(2, dim=64), sampled=True)
    return dataclasses.replace(fit(loss_of, op, batches, samples=2), sampled=False)


def learned_gate(batches):
    of_scorer = lambda scorer, *example: loss_of(cascade(scorer, temperature=1.0), *example)
    return cascade(fit(of_scorer, non.LinearScorer(dim=64), batches, estimator="enumerate"))


@pytest.mark.parametrize("learned", [learned_router, learned_gate])
def test_what_is_learned_is_as_good_as_the_large_model_at_a_quarter_of_its_cost(learned):
    train, held_out = questions()
    with ember.session(providers={"sim": testing.Sim(MODELS)}) as run:
        op = learned(train)
        assert run.report().requests <= 2 * TRAINED  # at temperature 0 a model is asked a question once, in all epochs
        accuracy, cost = outcome(op, *held_out)
        best, dear = outcome(LARGE, *held_out)
        worst, _ = outcome(SMALL, *held_out)
    assert worst < 0.9 * best  # which is what there is to learn
    assert accuracy >= 0.98 * best
    assert cost <= 0.25 * dear


# -- gradients -------------------------------------------------------------------------------------------------------

NUMBERS = ember.text(["2", "5", "8"])


def stage(i):
    """Answers the digit of a question with a number of two digits, without a call."""
    return lambda question: ember.format(f"0.{{question}}{i}", question=question)


def shortfall(op, question, key):
    return (ember.parse_number(op(question, key)) - 0.5) ** 2


def number(question, answer):
    return ember.parse_number(answer)


def test_enumeration_through_a_cascade_is_the_formula_of_its_gates():
    op = non.Cascade([stage(9), stage(1), stage(5)], number, thresholds=[0.4, 0.7], temperature=0.3)
    value, grads = learn.value_and_grad(shortfall, estimator="enumerate")(op, (NUMBERS,), KEY)

    def expected(thresholds):
        answers = jnp.array([[0.29, 0.59, 0.89], [0.21, 0.51, 0.81], [0.25, 0.55, 0.85]])
        first, second = jax.nn.sigmoid((answers[:2] - thresholds[:, None]) / 0.3)
        losses = (answers - 0.5) ** 2
        return jnp.mean(first * losses[0] + (1 - first) * (second * losses[1] + (1 - second) * losses[2]))

    wanted, slopes = jax.value_and_grad(expected)(op.thresholds)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(grads.thresholds, slopes, rtol=1e-4)
    assert grads.temperature == 0  # or it would learn to be 0, and beyond


@pytest.mark.nightly
def test_both_estimators_agree_on_a_router_in_a_cascade():
    rule = eqx.tree_at(lambda rule: rule.weight, non.LinearRule(2, dim=4), jnp.arange(8.0).reshape(2, 4) / 4)
    router = non.Router([stage(1), lambda question: ember.text("0.9")], rule, sampled=True)
    op = non.Cascade([router, stage(7)], number, thresholds=0.6, temperature=0.2)
    exact = learn.value_and_grad(shortfall, estimator="enumerate")(op, (NUMBERS,), KEY)
    step = learn.value_and_grad(shortfall, samples=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = jax.jit(jax.vmap(lambda key: step(op, (NUMBERS,), key)))(jax.random.split(KEY, 200))
    for wanted, found in zip(jax.tree.leaves(exact), jax.tree.leaves(drawn), strict=True):
        error = np.std(found, axis=0) / np.sqrt(len(found))
        assert np.all(np.abs(np.mean(found, axis=0) - wanted) <= 4 * error)
    assert np.all(np.abs(exact[1].stages[0].rule.bias) > 0.01)
    assert np.all(np.abs(exact[1].thresholds) > 0.01)
