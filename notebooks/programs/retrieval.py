"""Retrieval: documents as vectors, the nearest by one matrix product, and an answer from the passages in the prompt."""

import re

import jax
import jax.numpy as jnp

import ember_jax as ember

DIM, K = 512, 2
towns = ["Aldershot", "Bergamo", "Cremona", "Dunkirk", "Ebersberg", "Falmouth", "Grenoble", "Haarlem"]
documents = ember.text([f"The market of {town} opens at {6 + i} in the morning." for i, town in enumerate(towns)])


def reader(request):
    *passages, question = request.messages[-1].content.splitlines()
    town = re.search(r"in (\w+)\?", question)[1]
    return next((p.split(" at ")[1].split()[0] for p in passages if town in p), "I cannot tell.")


ember.register("mine", ember.providers.Callable(reader))
index = ember.features(documents, DIM)  # [documents, DIM]


class Answerer(ember.Operator):
    llm: ember.LLM
    documents: ember.Text
    index: jax.Array

    def forward(self, question: ember.Text) -> tuple[ember.Text, jax.Array]:
        _, places = jax.lax.top_k(self.index @ ember.features(question, DIM), K)
        passages = ember.join("\n", self.documents[places])
        return self.llm(ember.format("{passages}\n{question}", passages=passages, question=question)), places


questions = ember.text([f"When does the market open in {town}?" for town in [*towns, "Inverness"]])
with ember.session() as run:
    answers, places = jax.vmap(Answerer(ember.LLM("mine/reader"), documents, index))(questions)
for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
    print(question, answer)
assert answers.tolist() == [str(6 + i) for i in range(len(towns))] + ["I cannot tell."]
assert places[:-1, 0].tolist() == list(range(len(towns)))
assert jnp.array_equal(places, jax.lax.top_k(ember.features(questions, DIM) @ index.T, K)[1])
assert run.report().requests == len(questions)
# The prompt that was sent holds the passages that were found.
sent = run.calls(lane=3)[0].messages[-1].content
assert sent == "\n".join([*documents[places[3]].tolist(), questions.tolist()[3]])
