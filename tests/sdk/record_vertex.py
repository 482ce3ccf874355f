"""Writes `vertex.json`: what the vendors' own packages send to Vertex AI for the calls that `test_vertex.py` makes.

python -m venv sdk && sdk/bin/pip install google-genai==3.6.1 anthropic==2.14.0 "google-auth[requests]"
sdk/bin/python tests/sdk/record_vertex.py
"""

import os

import anthropic
import google.auth.credentials
import loopback
from google import genai
from google.genai import types

TURNS = [("user", "What is 2 + 2?"), ("model", "4"), ("user", "And 3 + 3?")]
CALLS = {
    "plain": ("gemini-2.5-flash", {}),
    "sampled": (
        "gemini-2.5-flash",
        {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 100, "stop_sequences": ["END"], "seed": 7},
    ),
    "structured": ("gemini-3-pro", {"response_mime_type": "application/json", "response_json_schema": loopback.SCHEMA}),
    "budget": ("gemini-2.5-flash", {"thinking_config": {"thinking_budget": 1024, "include_thoughts": True}}),
    "another's": ("meta/llama-4-scout", {}),
    "tuned": ("projects/p-1/locations/us-central1/endpoints/7", {}),
}
ANSWER = {"candidates": [{"content": {"parts": [{"text": "6"}], "role": "model"}, "finishReason": "STOP"}]}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": "6"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 1},
}


class Known(google.auth.credentials.Credentials):
    """Credentials whose token is there."""

    def __init__(self):
        super().__init__()
        self.token = "t"

    def refresh(self, request):
        pass


def main():
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "GEMINI_", "ANTHROPIC_")):
            del os.environ[name]
    with loopback.listening(lambda path, body: MESSAGE if "anthropic" in path else ANSWER) as server:
        sent = server.sent(cases(server.url))
    packages = f"google-genai {genai.__version__}, anthropic {anthropic.__version__}"
    loopback.write("vertex", packages, sent)


def cases(url):
    """What is sent, by name."""
    options = types.HttpOptions(base_url=url)
    place = {"project": "p-1", "location": "us-central1"}
    client = genai.Client(vertexai=True, **place, credentials=Known(), http_options=options)
    express = genai.Client(vertexai=True, api_key=loopback.KEY, http_options=options)
    claude = anthropic.AnthropicVertex(
        base_url=f"{url}/v1", project_id="p-1", region="us-central1", credentials=Known(), max_retries=0
    )
    contents = [types.Content(role=role, parts=[types.Part(text=text)]) for role, text in TURNS]
    turns = [{"role": {"model": "assistant"}.get(role, role), "content": text} for role, text in TURNS]

    def call(client, model, config):
        settings = types.GenerateContentConfig(system_instruction="Be brief.", **config)
        return lambda: client.models.generate_content(model=model, contents=contents, config=settings)

    return {
        **{name: call(client, *given) for name, given in CALLS.items()},
        "models": lambda: list(client.models.list()),
        "express": call(express, "gemini-2.5-flash", {}),
        "claude": lambda: claude.messages.create(
            model="claude-haiku-4-5@20251001", max_tokens=100, system="Be brief.", messages=turns
        ),
    }


if __name__ == "__main__":
    main()
