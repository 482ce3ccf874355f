"""Writes `cohere.json`: what Cohere's own package sends for the calls that `test_cohere.py` makes.

python -m venv sdk && sdk/bin/pip install cohere==7.3.1 && sdk/bin/python tests/sdk/record_cohere.py
"""

import importlib
import importlib.metadata

import loopback

TEXTS = ["a cat", "two dogs"]
ANSWER = {"id": "1", "embeddings": {"float": [[0.5]] * len(TEXTS)}, "results": [], "models": []}


def cases(client):
    """What is sent, by name."""
    return {
        "vectors": lambda: client.embed(
            model="embed-v4.0", input_type="search_document", texts=TEXTS, embedding_types=["float"]
        ),
        "short vectors": lambda: client.embed(
            model="embed-v4.0",
            input_type="search_query",
            texts=TEXTS,
            embedding_types=["float"],
            output_dimension=256,
            truncate="NONE",
            max_tokens=512,
            priority=3,
        ),
        "scores": lambda: client.rerank(model="rerank-v3.5", query="a dog", documents=TEXTS),
        "scores of the beginning": lambda: client.rerank(
            model="rerank-v3.5", query="a dog", documents=TEXTS, max_tokens_per_doc=100, priority=3
        ),
        "models": lambda: client.models.list(page_size=1000),
    }


def main():
    cohere = importlib.import_module("cohere")
    with loopback.listening(lambda path, body: ANSWER) as server:
        sent = server.sent(cases(cohere.ClientV2(api_key=loopback.KEY, base_url=server.url)))
    loopback.write("cohere", f"cohere {importlib.metadata.version('cohere')}", sent)


if __name__ == "__main__":
    main()
