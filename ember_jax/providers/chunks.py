"""Chat completions that come in pieces: the stream of OpenAI's protocol, put together to the answer that it stands for.

Design note. What is put together is the JSON that the service would have sent in one piece. So it is read by what reads
such answers, and a streamed answer is kept, priced and counted as any other. Nothing here does IO.
"""

import json
from collections.abc import Mapping
from typing import Any

from .dialect import Stream
from .sse import ServerEvents

# The fields of a completion of which the last value counts.
_FIELDS = ("id", "model", "usage", "service_tier", "system_fingerprint", "error")

# What is asked with it, so that the last chunk has the tokens.
COUNTED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class Chunks(Stream):
    """The chunks of one chat completion. `asks` is what is sent to have them."""

    def __init__(self, asks: Mapping[str, Any] = COUNTED) -> None:
        self.asks = asks
        self._events = ServerEvents()
        self._completion: dict[str, Any] = {}
        self._message: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._choice: dict[str, Any] = {}
        self._has_choice = self._is_done = False
        # What was sent in place of a chunk.
        self._foreign: bytes | None = None

    def feed(self, raw: bytes) -> str:
        return "".join(map(self._event, self._events.feed(raw)))

    def whole(self) -> bytes | None:
        if self._foreign is not None:
            return self._foreign
        if not (self._is_done or "error" in self._completion or self._choice.get("finish_reason")):
            return None
        calls = {"tool_calls": [call for _, call in sorted(self._calls.items())]} if self._calls else {}
        choice = {**self._choice, "message": {"content": None, **self._message, **calls}}
        return json.dumps({**self._completion, "choices": [choice] if self._has_choice else []}).encode()

    def _event(self, data: bytes) -> str:
        if data.strip() == b"[DONE]":
            self._is_done = True
            return ""
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            self._foreign = self._foreign or data
            return ""
        if chunk.get("object") == "error":  # older servers' form
            chunk = {"error": chunk}
        self._completion.update({name: chunk[name] for name in _FIELDS if chunk.get(name) is not None})
        choices = [c for c in chunk.get("choices") or () if isinstance(c, dict) and not c.get("index")]
        return "".join(map(self._said, choices))

    def _said(self, choice: dict[str, Any]) -> str:
        self._has_choice = True
        for name in ("finish_reason", "error"):
            if choice.get(name) is not None:
                self._choice[name] = choice[name]
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict) and isinstance(listed := logprobs.get("content"), list):
            self._choice.setdefault("logprobs", {"content": []})["content"] += listed
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return ""
        for name in ("refusal", "reasoning_content", "reasoning"):
            if isinstance(words := delta.get(name), str):
                self._message[name] = self._message.get(name, "") + words
        for call in delta.get("tool_calls") or ():
            self._call(call)
        return self._content(delta.get("content"))

    def _content(self, content: Any) -> str:
        """Adds words, or the list of parts that some services send; returns the words."""
        before = self._message.get("content")
        if isinstance(content, str):
            if isinstance(before, list):
                before.append({"type": "text", "text": content})
            else:
                self._message["content"] = (before or "") + content
            return content
        if not isinstance(content, list):
            return ""
        parts = [{"type": "text", "text": before}] if isinstance(before, str) else before or []
        self._message["content"] = [*parts, *content]
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))

    def _call(self, call: Any) -> None:
        if not isinstance(call, dict):
            return
        known = self._calls.setdefault(call.get("index") or 0, {"function": {"name": "", "arguments": ""}})
        if call.get("id"):
            known["id"] = call["id"]
        function = call.get("function")
        for name in ("name", "arguments"):
            if isinstance(function, dict) and isinstance(words := function.get(name), str):
                known["function"][name] += words
