"""Writes `openai.json`: what OpenAI's own SDK sends for the calls that `test_sdk_openai.py` makes.

python -m venv sdk && sdk/bin/pip install openai==3.57.0 && sdk/bin/python tests/sdk/record_openai.py
"""

import importlib
import json
import typing

import loopback

MODEL, VECTORS = "gpt-5", "text-embedding-3-small"
ASKED = "What is 2 + 2?"
PIXEL = "data:image/png;base64,iVBORw0KGgo="
PAGE = "data:application/pdf;base64,JVBERi0="
SOUND = "UklGRgAAAABXQVZF"  # RIFF, WAVE
FAR = "https://example.com/a.png", "https://example.com/a.pdf"
TEXTS = ["a market", "a town"]
SETTINGS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "max_completion_tokens": 100,
    "stop": ["END", "\n"],
    "seed": 7,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "top_logprobs": 5,
    "reasoning_effort": "low",
    "verbosity": "low",
    "service_tier": "flex",
    "prompt_cache_key": "k1",
    "safety_identifier": "u1",
    "metadata": {"a": "b"},
    "store": False,
}
# What Responses takes of it by the same name.
SHARED = ("temperature", "top_p", "top_logprobs", "service_tier", "prompt_cache_key", "safety_identifier", "metadata")

# -- what is answered ------------------------------------------------------------------------------------------------

REVIEW = {
    "score": 3,
    "mood": "glad",
    "tags": ["x"],
    "by": {"name": "Anna", "age": None},
    "others": [],
    "sure": True,
    "share": 0.5,
    "note": None,
}
CALL = {"name": "add", "arguments": '{"a": 2, "b": 2}'}
_USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
_CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}


def answer(path, body):
    """What the service might answer: a review in JSON, or a call of the tool whose result is not there yet."""
    if path.endswith("/embeddings"):
        vectors = [{"object": "embedding", "index": i, "embedding": "AACAPwAAAAAAAAAA"} for i in range(len(TEXTS))]
        return {"object": "list", "model": body["model"], "data": vectors, "usage": _USAGE}
    calls = "tools" in body and '"call_1"' not in json.dumps(body)
    if path.endswith("/responses"):
        return _response(calls)
    if body.get("stream"):
        chunks = [
            {**_CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "4"}}]},
            {**_CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {**_CHUNK, "choices": [], "usage": _USAGE},
        ]
        return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    message = {"role": "assistant", "content": None if calls else json.dumps(REVIEW)}
    if calls:
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": CALL}]
    choices = [
        {"index": i, "finish_reason": "tool_calls" if calls else "stop", "message": message}
        for i in range(body.get("n", 1))
    ]
    return {**_CHUNK, "object": "chat.completion", "choices": choices, "usage": _USAGE}


def _response(calls):
    said = {"type": "output_text", "text": json.dumps(REVIEW), "annotations": []}
    output = [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]}]
    if calls:
        output = [
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "abc"},
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "status": "completed", **CALL},
        ]
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": MODEL,
        "status": "completed",
        "output": output,
        "usage": _USAGE,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


# -- what is asked ---------------------------------------------------------------------------------------------------


def review(pydantic):
    """A class that an answer is to be of, for a package of pydantic's."""

    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=40)
        age: int | None

    class Review(pydantic.BaseModel):
        """A review."""

        score: int = pydantic.Field(description="How good it is.", ge=1, le=5)
        mood: typing.Literal["glad", "sad"]
        tags: list[str] = pydantic.Field(max_length=4)
        by: Person
        others: list[Person] = pydantic.Field(max_length=2)
        sure: bool
        share: float
        note: str | None = pydantic.Field(description="If any.")

    return Review


def chat(openai, client, pydantic):
    """What is asked by chat completions, by name."""
    said = {"model": MODEL, "messages": [{"role": "user", "content": ASKED}]}
    create = client.chat.completions.create
    add = openai.pydantic_function_tool(_add(pydantic), name="add", description="Adds.")
    parts = [
        {"type": "text", "text": "Look and listen."},
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "image_url", "image_url": {"url": FAR[0]}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": PAGE}},
        {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
    ]

    def tools():
        first = create(**said, tools=[add], tool_choice="required", parallel_tool_calls=False)
        result = {"role": "tool", "tool_call_id": "call_1", "content": "4"}
        create(model=MODEL, messages=[*said["messages"], first.choices[0].message, result], tools=[add])

    return {
        "plain": lambda: create(**said),
        "system": lambda: create(model=MODEL, messages=[{"role": "system", "content": "Be brief."}, *said["messages"]]),
        "turns": lambda: create(model=MODEL, messages=[*said["messages"], *_TURNS]),
        "settings": lambda: create(**said, **SETTINGS),
        "samples": lambda: create(**said, n=3),
        "attachments": lambda: create(model=MODEL, messages=[{"role": "user", "content": parts}]),
        "wanted tools": lambda: create(**said, tools=[add], tool_choice="required", parallel_tool_calls=False),
        "tools": tools,
        "schema": lambda: client.chat.completions.parse(**said, response_format=review(pydantic)),
        "stream": lambda: list(create(**said, stream=True, stream_options={"include_usage": True})),
    }


_TURNS = [{"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3 + 3?"}]


def responses(openai, client, pydantic):
    """What is asked by Responses, by name."""
    said = [{"role": "user", "content": ASKED}]
    kept = {"model": MODEL, "store": False}
    create = client.responses.create
    add = openai.pydantic_function_tool(_add(pydantic), name="add", description="Adds.")
    parts = [
        {"type": "input_text", "text": "Look."},
        {"type": "input_image", "image_url": PIXEL},
        {"type": "input_image", "image_url": FAR[0]},
        {"type": "input_file", "filename": "a.pdf", "file_data": PAGE},
        {"type": "input_file", "file_url": FAR[1]},
    ]
    thoughts = ["reasoning.encrypted_content"]

    def tools():
        # The one that parses brings tools into the form of Responses; it is the SDK's own.
        first = client.responses.parse(**kept, input=said, tools=[add], include=thoughts)
        result = {"type": "function_call_output", "call_id": "call_1", "output": "4"}
        client.responses.parse(**kept, input=[*said, *first.output, result], tools=[add], include=thoughts)

    return {
        "responses: plain": lambda: create(**kept, input=said),
        "responses: system": lambda: create(**kept, input=[{"role": "system", "content": "Be brief."}, *said]),
        "responses: settings": lambda: create(
            **kept,
            input=said,
            max_output_tokens=100,
            reasoning={"effort": "low", "summary": "auto"},
            text={"verbosity": "low"},
            include=["message.output_text.logprobs"],
            truncation="auto",
            **{name: SETTINGS[name] for name in SHARED},
        ),
        "responses: attachments": lambda: create(**kept, input=[{"type": "message", "role": "user", "content": parts}]),
        "responses: tools": tools,
        "responses: schema": lambda: client.responses.parse(**kept, input=said, text_format=review(pydantic)),
    }


def _add(pydantic):
    return pydantic.create_model("Add", a=(int, ...), b=(int, ...))


def fields():
    """The names of what the SDK's types let be asked, by the end of the path."""
    types = importlib.import_module("openai.types")
    chats, answers = importlib.import_module("openai.types.chat"), importlib.import_module("openai.types.responses")
    typed = {
        "chat/completions": chats.completion_create_params.CompletionCreateParamsBase,
        "responses": answers.response_create_params.ResponseCreateParamsBase,
        "embeddings": types.embedding_create_params.EmbeddingCreateParams,
    }
    return {path: sorted(typing.get_type_hints(kind)) for path, kind in typed.items()}


def main():
    openai, pydantic = importlib.import_module("openai"), importlib.import_module("pydantic")
    with (
        loopback.listening(answer) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=loopback.KEY) as client,
    ):
        cases = {
            **chat(openai, client, pydantic),
            **responses(openai, client, pydantic),
            "vectors": lambda: client.embeddings.create(model=VECTORS, input=TEXTS, dimensions=3),
        }
        sent = server.sent(cases)
    loopback.write("openai", f"openai {openai.__version__}", sent, fields=fields())


if __name__ == "__main__":
    main()
