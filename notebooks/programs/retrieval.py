"""Retrieval: 10,000 documents as vectors, the nearest by one matrix product, the best of those by a reranker, and an
answer from them in the prompt."""

import re

import jax
import jax.numpy as jnp

import ember_jax as ember

NEAR, K = 20, 2
towns = ["Aldershot", "Bergamo", "Cremona", "Dunkirk", "Ebersberg", "Falmouth", "Grenoble", "Haarlem"]
hours = [f"The market of {town} opens at {6 + i} in the morning." for i, town in enumerate(towns)]
documents = ember.text([*hours, *[f"Parcel {i} was sent to warehouse {i % 7}." for i in range(9_992)]])


def reader(request):
    *passages, question = request.messages[-1].content.splitlines()
    town = re.search(r"in (\w+)\?", question)[1]
    return next((p.split(" at ")[1].split()[0] for p in passages if town in p), "I cannot tell.")


ember.register("mine", ember.providers.Callable(reader))
embedder = ember.Embedder("sim/small", dim=256)  # or "openai/text-embedding-3-small", with a key
reranker = ember.Reranker("sim/small")  # or "cohere/rerank-v3.5"
with ember.session() as run:
    index = jax.block_until_ready(jax.vmap(embedder)(documents))  # [documents, dim]
    # One text for each lane, and 96 of them in a request.
    assert run.report().calls == 10_000 and run.report().requests == 105

    class Answerer(ember.Operator):
        llm: ember.LLM
        embedder: ember.Embedder
        reranker: ember.Reranker
        documents: ember.Text
        index: jax.Array

        def forward(self, question: ember.Text) -> tuple[ember.Text, jax.Array]:
            _, near = jax.lax.top_k(self.index @ self.embedder(question), NEAR)  # vectors of length 1: the cosines
            _, best = jax.lax.top_k(self.reranker(question, self.documents[near]), K)
            places = near[best]
            passages = ember.join("\n", self.documents[places])
            return self.llm(ember.format("{passages}\n{question}", passages=passages, question=question)), places

    questions = ember.text([f"When does the market open in {town}?" for town in [*towns, "Inverness"]])
    before = run.report()
    answerer = Answerer(ember.LLM("mine/reader"), embedder, reranker, documents, index)
    answers, places = jax.vmap(answerer)(questions)
    # Nine questions share one request for their vectors; each has its documents scored, and is answered, by itself.
    requests = (run.report() - before).requests
    assert requests == 1 + 2 * len(questions)
    again = jax.vmap(embedder)(documents)
    assert jnp.array_equal(again, index) and (run.report() - before).requests == requests

for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
    print(question, answer)
assert answers.tolist() == [str(6 + i) for i in range(len(towns))] + ["I cannot tell."]
assert places[:-1, 0].tolist() == list(range(len(towns)))
# The prompt that was sent holds the passages that were found.
sent = run.calls(op="Answerer", lane=3, answer=answers[3])[0].messages[-1].content
assert sent == "\n".join([*documents[places[3]].tolist(), questions.tolist()[3]])
