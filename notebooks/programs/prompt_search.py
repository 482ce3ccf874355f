"""Prompts found by a genetic algorithm in a `lax.scan`: the fitter half stays, and is crossed and mutated by a model.

A prompt that stays is asked the same questions again, and none of them is paid twice.
"""

import jax
import jax.numpy as jnp

import ember_jax as ember

POPULATION, GENERATIONS, WORDS = 8, 6, ["please", "think", "step", "by", "step.", "Answer", "briefly", "in", "digits"]
GOOD = {"think": 3, "step.": 2, "digits": 4}  # what helps the simulated model; nobody else knows
asked = []


def mine(request):
    words = request.messages[-1].content
    asked.append((request.model, words))
    if request.model == "writer":  # takes the first half of one prompt and the second of the other, and adds a word
        first, second, word = words.splitlines()
        return f"{' '.join(first.split()[:4])} {' '.join(second.split()[4:])} {word}"
    instruction, a, b = words.splitlines()
    skill = sum(worth for word, worth in GOOD.items() if word in instruction.split())
    return str(int(a) + int(b) if int(a) < skill else "I do not know")


ember.register("mine", ember.providers.Callable(mine))
solver, writer = (ember.LLM(f"mine/{name}", temperature=0) for name in ("solver", "writer"))
numbers = jnp.arange(10)
words = ember.text(WORDS)


def fitness(prompt):
    ask = lambda a: ember.parse_number(solver(ember.format("{prompt}\n{a}\n5", prompt=prompt, a=a)))
    return jnp.mean(jax.vmap(ask)(numbers) == numbers + 5)


def child(parents, key):
    one, two, word = jax.random.split(key, 3)
    a, b = (parents[jax.random.randint(k, (), 0, len(parents))] for k in (one, two))
    return writer(ember.format("{a}\n{b}\n{word}", a=a, b=b, word=words[jax.random.randint(word, (), 0, len(WORDS))]))


@ember.operator
def evolve(prompts: ember.Text["n"], key: ember.Key) -> tuple[ember.Text["n"], jax.Array]:
    def generation(prompts, key):
        scores = jax.vmap(fitness)(prompts)
        parents = prompts[jnp.argsort(-scores)[: POPULATION // 2]]
        children = jax.vmap(child, (None, 0))(parents, jax.random.split(key, POPULATION // 2))
        return ember.concatenate([parents, children]), jnp.max(scores)

    return jax.lax.scan(generation, prompts, jax.random.split(key, GENERATIONS))


with ember.session() as run:
    found, path = ember.jit(evolve)(ember.text([f"Add {word}" for word in WORDS[:POPULATION]]), jax.random.key(0))
    best = fitness(found[0])
print(found[0], path, run.report(), sep="\n")
assert best == path[-1] > path[0] and jnp.all(jnp.diff(path) >= 0)
assert best == sum(worth for word, worth in GOOD.items() if word in str(found[0]).split()) / len(numbers)
# No prompt is asked a question twice, though half of each generation was in the one before.
assert len(asked) == len(set(asked)) == run.report().requests < run.report().calls
