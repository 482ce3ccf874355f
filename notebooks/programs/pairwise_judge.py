"""A pairwise judge, and the answers' strengths by Bradley and Terry: in closed form, and by optax from wins alone.

The simulated judge prefers a to b with probability sigmoid(strength of a - strength of b), and tells it by its
log-probabilities.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ember_jax as ember
from ember_jax import providers

STRENGTHS = {"a haiku": 0.0, "a sonnet": 0.7, "a limerick": -0.9, "an ode": 1.3, "a list": -1.1}
names, KEYS = list(STRENGTHS), 120


def judge(request):
    first, second = (line[3:] for line in request.messages[-1].content.splitlines() if line[1:3] == ". ")
    p = 1 / (1 + math.exp(STRENGTHS[second] - STRENGTHS[first]))
    drawn = "AB"[int(request.sample[-8:], 16) / 2**32 >= p]  # the bits of the key are uniform
    return providers.Response(drawn, alternatives=(("A", math.log(p)), ("B", math.log(1 - p))), model=request.model)


ember.register("mine", providers.Callable(judge))
llm = ember.LLM("mine/judge")


@ember.operator
def compare(a: ember.Text, b: ember.Text, key: ember.Key) -> tuple[jax.Array, jax.Array]:
    choice = llm.choose("Which is the better answer?", ember.stack([a, b]), key)
    return choice.index == 0, choice.probs[0]


i, j = np.triu_indices(len(names), 1)  # each pair once
answers, keys = ember.text(names), jax.random.split(jax.random.key(0), (len(i), KEYS))
with ember.session() as run:
    wins, probs = jax.vmap(jax.vmap(compare, (None, None, 0)))(answers[i], answers[j], keys)
assert run.report().requests == len(i) * KEYS

# In closed form, from the judge's probabilities: a strength is the mean of the log-odds against all others.
odds = jnp.zeros((len(names), len(names))).at[i, j].set(jax.scipy.special.logit(probs[:, 0]))
exact = jnp.sum(odds - odds.T, axis=1) / len(names)


def loss(strengths):
    margin = (strengths[i] - strengths[j])[:, None]
    return -jnp.mean(jax.nn.log_sigmoid(jnp.where(wins, margin, -margin)))


def step(state, _):
    strengths, moments = state
    updates, moments = optimiser.update(jax.grad(loss)(strengths), moments)
    return (optax.apply_updates(strengths, updates), moments), None


optimiser, start = optax.adam(0.05), jnp.zeros(len(names))
(fitted, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), length=1000)


def won(shares):
    """How often each answer wins, given how often the first of each pair does."""
    return start.at[i].add(shares).at[j].add(1 - shares)


true = jnp.array(list(STRENGTHS.values()))
for name, *row in zip(names, true, exact, fitted, won(wins.mean(1)), strict=True):
    print(f"{name:11}", *(f"{x:6.2f}" for x in row))
np.testing.assert_allclose(exact, true, atol=1e-5)
# At the best fit every answer is expected to win as often as it did.
np.testing.assert_allclose(won(jax.nn.sigmoid(fitted[i] - fitted[j])), won(wins.mean(1)), atol=1e-3)
np.testing.assert_allclose(fitted, true, atol=0.3)
