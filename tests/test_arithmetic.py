"""Arithmetic on trees that hold words: the numbers alone change, or the first use of a Text names the cause."""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from constructs import session

import ember_jax as ember
from ember_jax._text import store
from ember_jax.errors import TextError, UnknownDigestError


@pytest.fixture(autouse=True)
def usual_promotion():
    """As users have it: where promotion is strict, JAX itself refuses most of this."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Graded(ember.Operator):
    prompt: ember.Text
    llm: ember.LLM
    weights: jax.Array
    half: jax.Array

    def forward(self, question: ember.Text) -> ember.Text:
        return self.llm(self.prompt + question)


def graded(weights=(1.0, 2.0)):
    return Graded(
        ember.text("Be exact: "),
        ember.LLM("sim/small", system="Kind.", temperature=0.7),
        jnp.array(weights),
        jnp.bfloat16(2),
    )


NUMBERS = eqx.is_inexact_array
QUESTION = ember.text("What is 3 + 4?")


def loss(op):
    return jnp.sum(op.weights**2)


def digests(op):
    return [np.asarray(t.digests).tobytes() for t in jax.tree.leaves(op, is_leaf=is_text) if is_text(t)]


def is_text(value):
    return isinstance(value, ember.Text)


# -- what changes the digests ----------------------------------------------------------------------------------------

FLOATS = {
    "optax.incremental_update": lambda op: optax.incremental_update(op, op, 0.1),
    "a mean": lambda op: jax.tree.map(lambda *x: sum(x) / len(x), op, op, op),
    "optax.ema": lambda op: optax.ema(0.9).update(op, optax.ema(0.9).init(op))[0],
    "a cast": lambda op: jax.tree.map(lambda x: x.astype(jnp.bfloat16), op),
    "a jitted mean": jax.jit(lambda op: jax.tree.map(lambda *x: sum(x) / len(x), op, op)),
}
INTEGERS = {
    "optax.apply_updates": lambda op: optax.apply_updates(op, jax.tree.map(lambda x: jnp.zeros(x.shape), op)),
    "a sum": lambda op: jax.tree.map(jnp.add, op, op),
}
USES = {
    "call": lambda op: op(QUESTION),
    "ember.jit": lambda op: ember.jit(op)(QUESTION),
    "vmap": lambda op: jax.vmap(op)(QUESTION.reshape(1)),
    "llm": lambda op: op.llm(QUESTION),
    "tolist": lambda op: op.prompt.tolist(),
    "str": lambda op: str(op.prompt),
    "+": lambda op: op.prompt + "!",
    "==": lambda op: op.prompt == "x",
    "format": lambda op: ember.format("{x}", x=op.prompt),
    "stack": lambda op: ember.stack([op.prompt, op.prompt]),
    "where": lambda op: ember.where(True, op.prompt, "x"),
    "join": lambda op: ember.join(",", [op.prompt, "x"]),
    "host": lambda op: ember.host(len, jax.ShapeDtypeStruct((), int))(op.prompt),
    "save": lambda op: ember.save(Path(tempfile.gettempdir(), "never written"), op),
}
IDIOM = (
    r"arithmetic was done on all leaves.*eqx\.partition\(tree, eqx\.is_inexact_array\)"
    r".*optim\.init\(eqx\.filter\(tree, eqx\.is_inexact_array\)\)"
)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", FLOATS)
def test_words_that_became_floats_are_told_at_their_first_use(change, use):
    changed = FLOATS[change](graded())
    assert "which are no digests" in repr(changed)
    with session(), pytest.raises(TextError, match=f"(?s)holds an array of b?float.. in place of digests.*{IDIOM}"):
        jax.block_until_ready(USES[use](changed))


@pytest.mark.parametrize("use", [use for use in USES if use not in ("==", "stack", "where")])
@pytest.mark.parametrize("change", INTEGERS)
def test_digests_that_were_changed_are_told_when_their_words_are_needed(change, use):
    with session(), pytest.raises((UnknownDigestError, jax.errors.JaxRuntimeError), match=f"(?s){IDIOM}"):
        jax.block_until_ready(USES[use](INTEGERS[change](graded())))


def test_a_scan_that_averages_words_is_told_by_jax():
    with pytest.raises(TypeError, match=r"prompt\.digests has type uint32\[4\] but"):
        jax.lax.scan(lambda op, x: (optax.incremental_update(op, op, 0.1), x), graded(), jnp.ones(2))


# -- the idiom -------------------------------------------------------------------------------------------------------


def of_numbers(change, *ops):
    """What README says to do: the numbers are taken out, changed, and put back."""
    numbers = [eqx.filter(op, NUMBERS) for op in ops]
    return eqx.combine(change(*numbers), ops[0])


@pytest.mark.parametrize(
    "optimiser", [optax.adam(0.1), optax.adamw(0.1), optax.sgd(0.1, momentum=0.9), optax.lion(0.1)]
)
def test_an_optimiser_of_the_numbers_changes_no_word_and_is_the_optimiser_of_the_numbers(optimiser):
    op = graded()
    state = optimiser.init(eqx.filter(op, NUMBERS))
    plain, plain_state = op.weights, optimiser.init(op.weights)
    for _ in range(3):
        grads = eqx.filter_grad(loss)(op)
        updates, state = optimiser.update(grads, state, eqx.filter(op, NUMBERS))
        op = eqx.apply_updates(op, updates)
        updates, plain_state = optimiser.update(2 * plain, plain_state, plain)
        plain = optax.apply_updates(plain, updates)
    np.testing.assert_allclose(op.weights, plain, rtol=1e-6)
    assert digests(op) == digests(graded())
    with session():
        assert str(op(QUESTION)) == str(graded()(QUESTION))


def test_means_and_averages_of_the_numbers():
    ops = [graded((1.0, 2.0)), graded((3.0, 6.0))]
    mean = of_numbers(lambda *trees: jax.tree.map(lambda *x: sum(x) / len(x), *trees), *ops)
    moved = of_numbers(lambda new, old: optax.incremental_update(new, old, 0.25), *ops)
    cast = of_numbers(lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree), ops[0])
    assert mean.weights.tolist() == [2.0, 4.0] and moved.weights.tolist() == [2.5, 5.0]
    assert cast.weights.dtype == jnp.bfloat16 and mean.half == 2
    assert digests(mean) == digests(moved) == digests(cast) == digests(ops[0])


def test_integer_updates_of_zero_leave_the_words():
    op = graded()
    assert digests(optax.apply_updates(op, jax.tree.map(jnp.zeros_like, op))) == digests(op)


def test_digests_are_uint32_and_nothing_else_is():
    assert ember.text("a").digests.dtype == np.uint32
    for dtype in (np.int32, np.float32, np.uint8):
        with pytest.raises(TextError, match=f"holds an array of {np.dtype(dtype)} in place of digests"):
            _ = ember.Text(np.zeros((2, store.DIGEST_WORDS), dtype)).shape
