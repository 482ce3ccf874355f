"""A tree of thoughts, by a beam in a `lax.scan`: every thought is continued, scored, and the best few are kept.

The problem is to write four digits whose number is as near to a multiple of 97 as can be, so that plain Python can do
the same search beside it, and count the calls.
"""

import jax
import jax.numpy as jnp

import ember_jax as ember

DEPTH, BRANCHES, BEAM = 4, 3, 4


def think(words):
    task, _, thought = words.rpartition(": ")
    if task.startswith("Continue"):
        return str((7 * sum(map(int, thought)) + 3 * int(task.split()[-1]) + len(thought)) % 10)
    return f"{int(thought) % 97} too many"


ember.register("mine", ember.providers.Callable(lambda request: think(request.messages[-1].content)))
thinker, judge = (ember.LLM(f"mine/{name}", temperature=0) for name in ("thinker", "judge"))


def grow(thought, branch):
    return thought + thinker(ember.format("Continue in way {b}: {t}", b=branch, t=thought))


def value(thought):
    return -ember.parse_number(judge(ember.format("How good is: {t}", t=thought)))


@ember.operator
def search(beam: ember.Text["beam"]) -> tuple[ember.Text["beam"], jax.Array]:
    def step(beam, _):
        thoughts, _ = beam
        grown = jax.vmap(lambda t: jax.vmap(lambda b: grow(t, b))(jnp.arange(BRANCHES)))(thoughts).reshape(-1)
        scores = jax.vmap(value)(grown)
        best, places = jax.lax.top_k(scores, BEAM)
        return (grown[places], best), None

    return jax.lax.scan(step, (beam, jnp.zeros(BEAM)), None, length=DEPTH)[0]


def by_hand(beam):
    """The same search, and all that it asks."""
    asked = set()
    ask = lambda words: (asked.add(words), think(words))[1]
    for _ in range(DEPTH):
        grown = [t + ask(f"Continue in way {b}: {t}") for t in beam for b in range(BRANCHES)]
        beam = sorted(grown, key=lambda t: float(ask(f"How good is: {t}").split()[0]))[:BEAM]
    return beam, asked


with ember.session() as run:
    found, values = jax.jit(search)(ember.text(list("1234")))
best, asked = by_hand(list("1234"))
print(found.tolist(), values, f"{run.report().requests} calls")
assert found.tolist() == best
assert values.tolist() == [-(int(t) % 97) for t in best]
assert run.report().requests == len(asked) == DEPTH * BEAM * BRANCHES * 2
