"""Writes `mistral.json`: what Mistral's own SDK sends for the calls that `test_sdk_mistral.py` makes.

python -m venv sdk && sdk/bin/pip install mistralai==3.7.0 && sdk/bin/python tests/sdk/record_mistral.py
"""

import importlib
import importlib.metadata
import json

import loopback

MODEL, VECTORS = "mistral-large-latest", "mistral-embed"
ASKED = "What is 2 + 2?"
PIXEL, FAR = "data:image/png;base64,iVBORw0KGgo=", "https://example.com/a.png"
PAGE = "data:application/pdf;base64,JVBERi0="
SOUND = "UklGRgAAAABXQVZF"  # RIFF, WAVE
TEXTS = ["a market", "a town"]
SETTINGS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["END"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "logprobs": True,
    "top_logprobs": 5,
    "reasoning_effort": "high",
    "safe_prompt": True,
}
CALL = {"name": "add", "arguments": '{"a": 2, "b": 2}'}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
REVIEW = {"score": 3, "note": None}
_USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def review(pydantic):
    """A class that an answer is to be of, for a package of pydantic's."""

    class Review(pydantic.BaseModel):
        """A review."""

        score: int = pydantic.Field(description="How good it is.")
        note: str | None

    return Review


def answer(path, body):
    """What the service might answer: a review in JSON, or a call of the tool whose result is not there yet."""
    if path.endswith("/embeddings"):
        vectors = [{"object": "embedding", "index": i, "embedding": [1.0, 0.0, 0.0]} for i in range(len(TEXTS))]
        return {"id": "e", "object": "list", "model": VECTORS, "data": vectors, "usage": _USAGE}
    calls = "tools" in body and '"call_1"' not in json.dumps(body)
    if body.get("stream"):
        whole = {"index": 0, "delta": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}
        chunk = {"id": "c", "model": MODEL, "choices": [whole], "usage": _USAGE}
        return b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(chunk).encode()
    message = {"role": "assistant", "content": "" if calls else json.dumps(REVIEW)}
    if calls:
        message["tool_calls"] = [{"id": "call_1", "function": CALL}]
    choices = [
        {"index": i, "finish_reason": "tool_calls" if calls else "stop", "message": message}
        for i in range(body.get("n", 1))
    ]
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": choices,
        "usage": _USAGE,
    }


def cases(client, pydantic):
    """What is asked, by name."""
    said = [{"role": "user", "content": ASKED}]
    complete = client.chat.complete
    parts = [
        {"type": "text", "text": "Look and listen."},
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "image_url", "image_url": {"url": FAR}},
        {"type": "document_url", "document_url": PAGE, "document_name": "a.pdf"},
        {"type": "input_audio", "input_audio": SOUND},
    ]

    def tools():
        first = complete(model=MODEL, messages=said, tools=[ADD])
        result = {"role": "tool", "tool_call_id": "call_1", "content": "4"}
        complete(model=MODEL, messages=[*said, first.choices[0].message, result], tools=[ADD])

    return {
        "plain": lambda: complete(model=MODEL, messages=said),
        "system": lambda: complete(model=MODEL, messages=[{"role": "system", "content": "Be brief."}, *said]),
        "settings": lambda: complete(model=MODEL, messages=said, max_tokens=100, random_seed=7, **SETTINGS),
        "samples": lambda: complete(model=MODEL, messages=said, n=3),
        "attachments": lambda: complete(model=MODEL, messages=[{"role": "user", "content": parts}]),
        "tools": tools,
        "schema": lambda: client.chat.parse(review(pydantic), model=MODEL, messages=said),
        "stream": lambda: list(client.chat.stream(model=MODEL, messages=said)),
        "vectors": lambda: client.embeddings.create(
            model=VECTORS, inputs=TEXTS, output_dimension=3, encoding_format="base64"
        ),
    }


def main():
    mistral, pydantic = importlib.import_module("mistralai.client"), importlib.import_module("pydantic")
    with loopback.listening(answer) as server, mistral.Mistral(api_key=loopback.KEY, server_url=server.url) as client:
        sent = server.sent(cases(client, pydantic))
    loopback.write("mistral", f"mistralai {importlib.metadata.version('mistralai')}", sent)


if __name__ == "__main__":
    main()
