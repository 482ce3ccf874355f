"""Accuracy against k, of a vote and of pass@k, and what eight samples of each question say of twenty-five.

The model is often right on easy questions and seldom on hard ones, so a vote of more is not better; the exact laws say.
"""

import jax
import jax.numpy as jnp
import numpy as np

import ember_jax as ember
from ember_jax import non, testing
from ember_jax.learn import scaling

EASY, HARD, QUESTIONS, FEW, MANY = 0.85, 0.35, 200, 8, 25
uneven = testing.SimModel(lambda prompt: EASY if "+" in prompt else HARD, wrong_answers=1, latency=0.0)
ember.register("sim", testing.Sim({"uneven": uneven}))

easy = np.arange(QUESTIONS) % 2 == 0
questions = ember.text([f"What is {i} {'+' if e else '*'} 7?" for i, e in enumerate(easy)])
golds = ember.text([str(i + 7 if e else i * 7) for i, e in enumerate(easy)])
keys = jax.random.split(jax.random.key(0), QUESTIONS)


def sample(n):
    return jax.vmap(non.Ensemble(ember.LLM("sim/uneven"), n=n))(questions, keys)


with ember.session() as run:
    few = sample(FEW)
    paid = run.report().requests
    many = sample(MANY)  # pays for the new samples only
assert (paid, run.report().requests) == (QUESTIONS * FEW, QUESTIONS * MANY)
assert np.all(few == many[:, :FEW])

ks = np.arange(1, MANY + 1, 4)
shares, p = np.array([0.5, 0.5]), np.array([EASY, HARD])
votes = np.array([np.mean(scaling.plurality_at_k(many, golds, k)) for k in ks.tolist()])
fitted = scaling.fit(few, golds)
predicted, law = np.asarray(fitted.accuracy(ks)), np.asarray(scaling.mixture_accuracy(shares, p, ks))
right = jnp.sum(few == golds.reshape(-1, 1), axis=1)
passed = np.array([np.mean(scaling.pass_at_k(FEW, right, k)) for k in range(1, FEW + 1)])
exact = np.array([np.mean(scaling.coverage(p, k)) for k in range(1, FEW + 1)])

for name, row in {"k": ks, "measured": votes, "predicted": predicted, "law": law, "pass@1..8": passed}.items():
    print(f"{name:10}", *(f"{x:6.3g}" for x in row))
print(fitted.best_k(MANY))
low, high = fitted.interval(ks)
assert np.all((low <= law) & (law <= high)), (low, high)
np.testing.assert_allclose(votes, law, atol=0.06)
np.testing.assert_allclose(passed, exact, atol=0.05)
