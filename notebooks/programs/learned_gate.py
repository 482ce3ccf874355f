"""A learned gate whose training is interrupted, kept in three ways, and resumed: bit for bit what it would have been.

The gate reads the question and draws whether to ask the large model; its expected loss is differentiated.
"""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import ember_jax as ember
from ember_jax import learn, testing

models = {"small": testing.SimModel(lambda prompt: 0.97 if "+" in prompt else 0.1), "large": testing.SimModel(0.97)}
ember.register("sim", testing.Sim(models))
questions = ember.text([f"What is {i} {'+*'[i % 2]} 17?" for i in range(64)])
golds = ember.text([str(i * 17 if i % 2 else i + 17) for i in range(64)])
optimiser, STEPS, PRICE = optax.adam(0.3), 8, 0.4


class Gated(ember.Operator):
    small: ember.LLM
    large: ember.LLM
    gate: eqx.nn.Linear

    def forward(self, question: ember.Text, key: ember.Key) -> tuple[ember.Text, jax.Array]:
        up = learn.sample(self.gate(ember.features(question, 64)), key)
        return jax.lax.cond(up == 1, lambda: self.large(question), lambda: self.small(question)), up


def loss(op, question, gold, key):
    answer, up = op(question, key)
    return PRICE * up - (answer == gold).astype(float)


@eqx.filter_jit
def step(state, key):
    op, moments = state
    value, grads = learn.value_and_grad(loss, samples=4)(op, (questions, golds), key)
    updates, moments = optimiser.update(grads, moments)
    return (eqx.apply_updates(op, updates), moments), value


def train(state, steps):
    for i in steps:
        state, value = step(state, jax.random.fold_in(jax.random.key(1), i))
    return state, float(value)


def new(seed):
    op = Gated(ember.LLM("sim/small"), ember.LLM("sim/large"), eqx.nn.Linear(64, 2, key=jax.random.key(seed)))
    return op, optimiser.init(eqx.filter(op, eqx.is_inexact_array))


with ember.session() as run, tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    half, first = train(new(0), range(STEPS))
    whole, last = train(half, range(STEPS, 2 * STEPS))
    paid = run.report().requests

    eqx.tree_serialise_leaves(folder / "gate.eqx", half)
    ember.save(folder / "gate.ember", half)
    kept = {
        "eqx.tree_serialise_leaves": eqx.tree_deserialise_leaves(folder / "gate.eqx", new(1)),
        "ember.save": ember.load(folder / "gate.ember", new(1)),
    }
    try:
        import orbax.checkpoint as orbax
    except ImportError:
        print("orbax is not installed: that part is skipped")
    else:
        arrays, rest = eqx.partition(half, eqx.is_array)
        with orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "gate.orbax", arrays)
            checkpointer.wait_until_finished()
            kept["orbax"] = eqx.combine(checkpointer.restore(folder / "gate.orbax", arrays), rest)
    for way, state in kept.items():
        assert eqx.tree_equal(state, half) and eqx.tree_equal(train(state, range(STEPS, 2 * STEPS))[0], whole), way
        print(f"{way}: resumed training equals the uninterrupted one")
    assert not eqx.tree_equal(half, whole)

assert run.report().requests == paid <= 128  # a question has one answer of each model, whatever is drawn
right = jnp.stack([jax.vmap(llm)(questions) == golds for llm in (half[0].small, half[0].large)])
best = jnp.max(right - jnp.array([[0.0], [PRICE]]), axis=0)  # what the better member is worth, for each question
print(f"loss {first:.3f}, then {last:.3f}, at best {-best.mean():.3f}; {paid} answers paid")
assert last < -best.mean() + 0.02
