"""What every construct is tested with: simulated models of known skill, and the transform matrix with counted calls."""

import jax
import jax.numpy as jnp
import numpy as np

import ember_jax as ember
from ember_jax.testing import Sim, SimModel, VirtualClock

# One second each, so that virtual time is the length of the critical path in calls. Prices are powers of two.
MODELS = {
    "sure": SimModel(accuracy=1.0, latency=1.0),
    "weak": SimModel(accuracy=0.6, latency=1.0, verify_accuracy=0.8, judge_accuracy=0.7),
    "even": SimModel(accuracy=0.5, latency=1.0, verify_accuracy=0.5, judge_accuracy=0.5),
    "never": SimModel(accuracy=0.0, latency=1.0, verify_accuracy=0.0, judge_accuracy=0.0),
}


class Fails(ember.Operator):
    """A member that always fails, when it is called."""

    llm: ember.LLM = ember.LLM("sim/small", max_tokens=0)

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        return self.llm(question, key)


def session(**settings):
    """A session without a journal, whose `sim` has the models above."""
    return ember.session(journal=None, providers={"sim": Sim(MODELS)}, **settings)


def asking():
    """A class of operators that ask a model, and a list that has one more each time that their `forward` is traced."""
    traced = []

    class Asks(ember.Operator):
        llm: ember.LLM

        def forward(self, question: ember.Text) -> ember.Text:
            traced.append(1)
            return self.llm(question)

    return Asks, traced


def llm(name, **settings):
    """A model of those above."""
    with session():
        return ember.LLM(f"sim/{name}", **settings)


def questions(count, seed=0):
    """Distinct arithmetic questions, and their answers as words."""
    numbers = np.random.default_rng(seed).integers(100, 10**6, (count, 2)).tolist()
    return ember.text([f"What is {a} + {b}?" for a, b in numbers]), [str(a + b) for a, b in numbers]


def calls(op, *args):
    """What an operator returns, the requests that it makes, and the virtual seconds that it takes."""
    with VirtualClock() as clock, session() as run:
        out = jax.block_until_ready(op(*args))
        return out, run.report().requests, clock.now


def check_transforms(op, requests=None, seconds=None):
    """An operator of `(question, key)` gives, under every transformation, what it gives line by line.

    `requests` and `seconds` are of one question under a transformation; not checked where `None`. What a `vmap` gives
    is compared with the rest, for one question each.
    """
    asked, _ = questions(4)
    keys = jax.random.split(jax.random.key(7), 4)
    digests = lambda out: np.asarray(jax.tree.leaves(out)[0])
    batched, made, took = calls(jax.vmap(op), asked, keys)
    assert requests is None or made == 4 * requests
    assert seconds is None or took == seconds
    nested = calls(jax.vmap(jax.vmap(op)), asked.reshape(2, 2), keys.reshape(2, 2))[0]
    np.testing.assert_array_equal(digests(nested), digests(batched).reshape(2, 2, *digests(batched).shape[1:]))
    with VirtualClock(), session():
        np.testing.assert_array_equal(digests(op(asked[0], keys[0])), digests(batched)[0])
    for jit in (jax.jit, ember.jit):
        out, made, took = calls(jit(op), asked[1], keys[1])
        np.testing.assert_array_equal(digests(out), digests(batched)[1])
        assert requests is None or made == requests
        assert seconds is None or took == seconds


def assert_rate(hits, probability):
    """Within four standard errors of a probability that is not 0 or 1."""
    hits = np.asarray(hits, float)
    error = np.sqrt(probability * (1 - probability) / hits.size)
    z = (hits.mean() - probability) / error
    assert abs(z) < 4, f"{hits.mean():.5f} of {hits.size:,} where {probability:.5f} is right: z = {z:.1f}"


def sweep(op, count, model_settings, seed=0):
    """Which of `count` questions an operator answers right, with simulated models of given settings."""
    asked, gold = questions(count, seed)
    models = {name: SimModel(latency=0.0, **settings) for name, settings in model_settings.items()}
    with ember.session(journal=None, providers={"sim": Sim(models)}) as run:
        answers = jax.vmap(op)(asked, jax.random.split(jax.random.key(seed), count))
        right = np.asarray(answers == ember.text(gold))
        return jnp.asarray(right), run.report()
