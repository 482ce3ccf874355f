"""Writes `anthropic.json`: what Anthropic's own SDK sends.

python -m venv sdk && sdk/bin/pip install anthropic==2.14.0 && sdk/bin/python tests/sdk/record_anthropic.py
"""

import importlib

import loopback

ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 1},
}
# With all that the service does not take of a schema, each with a number or a word of its own.
SCHEMA = {
    "type": "object",
    "description": "A review.",
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 5, "description": "How good it is."},
        "mood": {"type": "string", "enum": ["glad", "sad"]},
        "kind": {"const": "review"},
        "note": {"anyOf": [{"type": "string", "maxLength": 80}, {"type": "null"}], "description": "If any."},
        "when": {"type": "string", "format": "date"},
        "how": {"type": "string", "format": "color", "pattern": "^#"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 4},
        "pair": {
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0},
            "minItems": 2,
            "maxItems": 2,
            "title": "Pair",
        },
        "by": {"$ref": "#/$defs/Person"},
        "either": {"oneOf": [{"type": "boolean"}, {"$ref": "#/$defs/Person"}]},
    },
    "required": ["score", "mood"],
    "additionalProperties": False,
    "$defs": {
        "Person": {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1}},
            "required": ["name"],
        },
    },
}


def cases(anthropic, client):
    """What is sent, by name."""
    said = {"model": "claude-opus-5-5", "max_tokens": 256, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    create = client.messages.create
    form = {"type": "json_schema", "schema": anthropic.transform_schema(SCHEMA)}
    return {
        "plain": lambda: create(**said),
        "system": lambda: create(**said, system="Be brief."),
        "settings": lambda: create(
            **said,
            stop_sequences=["END"],
            thinking={"type": "adaptive", "display": "summarized"},
            output_config={"effort": "low"},
            cache_control={"type": "ephemeral", "ttl": "1h"},
            service_tier="standard_only",
            metadata={"user_id": "u1"},
        ),
        "schema": lambda: create(**said, output_config={"format": form, "effort": "low"}),
        "no thinking": lambda: create(**said, thinking={"type": "disabled"}),
        "on trial": lambda: client.beta.messages.create(**said, speed="fast", betas=["fast-mode-2026-02-01"]),
    }


def main():
    anthropic = importlib.import_module("anthropic")
    with (
        loopback.listening(lambda path, body: ANSWER) as server,
        anthropic.Anthropic(base_url=server.url, api_key=loopback.KEY) as client,
    ):
        sent = server.sent(cases(anthropic, client))
    loopback.write("anthropic", f"anthropic {anthropic.__version__}", sent, schema=SCHEMA)


if __name__ == "__main__":
    main()
