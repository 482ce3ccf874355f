"""Writes `cohere.json`: what Cohere's own package sends for the calls that `test_cohere.py` makes.

It needs cohere, in an environment of its own: `pip install cohere==7.3.1 && python tests/sdk/record_cohere.py`.
"""

import importlib.metadata

import cohere
from echo import echo, write

TEXTS = ["a cat", "two dogs"]
CALLS = {
    "vectors": lambda client: client.embed(
        model="embed-v4.0", input_type="search_document", texts=TEXTS, embedding_types=["float"]
    ),
    "short vectors": lambda client: client.embed(
        model="embed-v4.0",
        input_type="search_query",
        texts=TEXTS,
        embedding_types=["float"],
        output_dimension=256,
        truncate="NONE",
        max_tokens=512,
        priority=3,
    ),
    "scores": lambda client: client.rerank(model="rerank-v3.5", query="a dog", documents=TEXTS),
    "scores of the beginning": lambda client: client.rerank(
        model="rerank-v3.5", query="a dog", documents=TEXTS, max_tokens_per_doc=100, priority=3
    ),
    "models": lambda client: client.models.list(page_size=1000),
}
ANSWER = {"id": "1", "embeddings": {"float": [[0.5]] * len(TEXTS)}, "results": [], "models": []}


def main():
    with echo(ANSWER) as (address, seen):
        client = cohere.ClientV2(api_key="k", base_url=address)
        for call in CALLS.values():
            call(client)
    write("cohere.json", f"cohere {importlib.metadata.version('cohere')}", dict(zip(CALLS, seen, strict=True)))


if __name__ == "__main__":
    main()
