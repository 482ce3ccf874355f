"""A loop of a model and a tool: a `while_loop` whose carry is the conversation, and each question leaves it by itself.

The model is a simulated one that sums numbers and cannot add; the tool is a Python function that can.
"""

import re

import jax

import ember_jax as ember

TURNS = 8
used = []


def model(request):
    question, *lines = request.messages[-1].content.splitlines()
    numbers = re.findall(r"\d+", question)
    results = [line for line in lines if line.startswith("RESULT")]
    if len(results) == len(numbers) - 1:
        return f"ANSWER {results[-1].split()[1]}" if results else f"ANSWER {numbers[0]}"
    so_far = results[-1].split()[1] if results else numbers[0]
    return f"ADD {so_far} {numbers[len(results) + 1]}"


def add(wish: str) -> str:
    used.append(wish)
    return str(sum(map(int, wish.split()[1:])))


ember.register("mine", ember.providers.Callable(model))
llm, tool = ember.LLM("mine/model"), ember.host(add, out=ember.Text)
is_answer = ember.host(lambda said: said.startswith("ANSWER"), out=bool)


@ember.operator
def agent(question: ember.Text) -> tuple[ember.Text, jax.Array]:
    def go_on(state):
        _, said, turns = state
        return ~is_answer(said) & (turns < TURNS)

    def turn(state):
        talk, said, turns = state
        talk = ember.format("{talk}\n{said}\nRESULT {result}", talk=talk, said=said, result=tool(said))
        return talk, llm(talk), turns + 1

    _, said, turns = jax.lax.while_loop(go_on, turn, (question, llm(question), 0))
    return said, turns


lists = [[7], [1, 2], [3, 4, 5], [1, 1, 1, 1, 1], [3, 4, 6]]
questions = ember.text([f"What is the sum of {', '.join(map(str, numbers))}?" for numbers in lists])
with ember.session() as run:
    said, turns = jax.vmap(agent)(questions)
print(said.tolist(), turns, used)
assert said.tolist() == [f"ANSWER {sum(numbers)}" for numbers in lists]
assert turns.tolist() == [len(numbers) - 1 for numbers in lists]
assert run.report().requests == sum(map(len, lists))
# The third and the last question both ask for 3 + 4: a pure tool is used once.
assert sorted(used) == sorted({f"ADD {sum(n[:i])} {n[i]}" for n in lists for i in range(1, len(n))})
