"""Writes `gemini.json`: what Google's own package sends for the calls that `test_gemini.py` makes.

python -m venv sdk && sdk/bin/pip install google-genai==3.6.1 && sdk/bin/python tests/sdk/record_gemini.py
"""

import importlib

import loopback

TURNS = [("user", "What is 2 + 2?"), ("model", "4"), ("user", "And 3 + 3?")]
CALLS = {
    "plain": ("gemini-2.5-flash", {}),
    "sampled": (
        "gemini-2.5-flash",
        {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "max_output_tokens": 100,
            "stop_sequences": ["END"],
            "seed": 7,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
        },
    ),
    "log-probabilities": ("gemini-2.5-flash", {"response_logprobs": True, "logprobs": 5}),
    "structured": ("gemini-3-pro", {"response_mime_type": "application/json", "response_json_schema": loopback.SCHEMA}),
    "budget": ("gemini-2.5-flash", {"thinking_config": {"thinking_budget": 1024, "include_thoughts": True}}),
    "level": ("gemini-3-pro", {"thinking_config": {"thinking_level": "low"}}),
    "its own": (
        "tunedModels/mine",
        {
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
            "cached_content": "cachedContents/x",
            "service_tier": "flex",
            "labels": {"a": "b"},
        },
    ),
}
# Vectors of three texts. A list of strings would be one content, and so one vector, for the second of the models.
TEXTS = ["a cat", "", "two dogs"]
VECTORS = {
    "vectors": ("gemini-embedding-001", {}),
    "short vectors": ("gemini-embedding-2", {"output_dimensionality": 256, "task_type": "RETRIEVAL_DOCUMENT"}),
    "titled vectors": ("gemini-embedding-001", {"task_type": "RETRIEVAL_DOCUMENT", "title": "Animals"}),
}
ANSWER = {
    "candidates": [{"content": {"parts": [{"text": "6"}], "role": "model"}, "finishReason": "STOP"}],
    "embeddings": [{"values": [0.5]}] * len(TEXTS),
}


def cases(client, types):
    """What is sent, by name."""
    contents = [types.Content(role=role, parts=[types.Part(text=text)]) for role, text in TURNS]

    def call(model, config):
        settings = types.GenerateContentConfig(system_instruction="Be brief.", **config)
        return lambda: client.models.generate_content(model=model, contents=contents, config=settings)

    texts = [types.Content(parts=[types.Part(text=text)]) for text in TEXTS]

    def embed(model, config):
        settings = types.EmbedContentConfig(**config)
        return lambda: client.models.embed_content(model=model, contents=texts, config=settings)

    calls = {name: call(*given) for name, given in CALLS.items()}
    vectors = {name: embed(*given) for name, given in VECTORS.items()}
    return {**calls, **vectors, "models": lambda: list(client.models.list())}


def main():
    genai, types = importlib.import_module("google.genai"), importlib.import_module("google.genai.types")
    with loopback.listening(lambda path, body: ANSWER) as server:
        options = types.HttpOptions(base_url=server.url)
        sent = server.sent(cases(genai.Client(api_key=loopback.KEY, http_options=options), types))
    loopback.write("gemini", f"google-genai {genai.__version__}", sent)


if __name__ == "__main__":
    main()
