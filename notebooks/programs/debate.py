"""A debate of three that stops as soon as all agree: a `while_loop` with calls, which each question leaves by itself.

The debaters are simulated. Each begins with a number of its own, and comes one step closer to the largest that it
reads, so a question with a distance of d between them needs d further rounds.
"""

import re

import jax
import jax.numpy as jnp

import ember_jax as ember

ROUNDS = 6


def persuaded(request):
    distance, *said = map(int, re.findall(r"\d+", request.messages[-1].content))
    if not said:
        return str(distance if request.model == "c" else 0)
    return str(min(said["abc".index(request.model)] + 1, max(said)))


ember.register("mine", ember.providers.Callable(persuaded))
debaters = jax.tree.map(lambda *t: jnp.stack(t), *(ember.LLM(f"mine/{name}") for name in "abc"))


@ember.operator
def debate(question: ember.Text) -> tuple[ember.Text, jax.Array]:
    def ask(prompt):
        return jax.vmap(lambda llm: llm(prompt))(debaters)

    def go_on(state):
        answers, rounds = state
        return (rounds < ROUNDS) & jnp.any(answers != answers[0])

    def again(state):
        answers, rounds = state
        prompt = ember.format("{q}\nThe answers so far: {said}", q=question, said=ember.join(", ", answers))
        return ask(prompt), rounds + 1

    answers, rounds = jax.lax.while_loop(go_on, again, (ask(question), 1))
    return answers[0], rounds


distances = jnp.arange(8)
with ember.session() as run:
    (answers, rounds), usage = jax.vmap(ember.metered(debate))(ember.format("Where is {d}?", d=distances))
print(answers.tolist(), rounds, usage.calls)
assert rounds.tolist() == [min(1 + d, ROUNDS) for d in range(8)]
assert answers.tolist() == [str(min(d, ROUNDS - 1)) for d in range(8)]
assert usage.calls.tolist() == [3 * r for r in rounds.tolist()]
assert run.report().requests == 3 * sum(rounds.tolist())
