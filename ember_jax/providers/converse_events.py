"""Converse that comes in pieces: AWS's event stream, put together to the answer that it stands for.

Design note. The frames of the stream are binary, with checksums; botocore reads them. What is put together is the JSON
that the service would have sent in one piece, as in `chunks.py`. Nothing here does IO.
"""

import base64
import importlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from .dialect import Stream


def can_read() -> bool:
    """Whether the package is there that reads the frames."""
    return importlib.util.find_spec("botocore") is not None


class ConverseEvents(Stream):
    """The events of one answer. It needs botocore."""

    ending: ClassVar[tuple[str, str]] = ("/converse", "/converse-stream")
    content_type: ClassVar[str] = "application/vnd.amazon.eventstream"

    def __init__(self) -> None:
        self.asks: Mapping[str, Any] = {}
        self._known = importlib.import_module("botocore.eventstream")
        self._frames = self._known.EventStreamBuffer()
        self._answer: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        # The input of tools, which comes as pieces of JSON.
        self._inputs: dict[int, str] = {}
        self._error: dict[str, Any] | None = None

    def feed(self, raw: bytes) -> str:
        try:
            self._frames.add_data(raw)
            return "".join([self._event(frame) for frame in self._frames])
        except self._known.ParserError as error:
            self._error = self._error or {"message": f"the stream is damaged: {error}"}
            return ""

    def whole(self) -> bytes | None:
        if self._error is not None:
            return json.dumps({**self._answer, **self._error}).encode()
        if "stopReason" not in self._answer:
            return None
        for index, words in self._inputs.items():
            self._blocks[index]["toolUse"]["input"] = _tree(words)
        content = [block for _, block in sorted(self._blocks.items())]
        return json.dumps({**self._answer, "output": {"message": {"role": "assistant", "content": content}}}).encode()

    def _event(self, frame: Any) -> str:
        headers, said = frame.headers, _tree(frame.payload.decode("utf-8", "replace"))
        kind = headers.get(":message-type")
        if kind == "exception":
            self._error = {**said, "__type": headers.get(":exception-type")}
        elif kind == "error":
            self._error = {"__type": headers.get(":error-code"), "message": headers.get(":error-message")}
        match headers.get(":event-type"):
            case "contentBlockStart":
                self._begun(said)
            case "contentBlockDelta":
                return self._grown(said)
            case "messageStop" | "metadata":
                self._answer |= said
        return ""

    def _begun(self, said: dict[str, Any]) -> None:
        start = said.get("start")
        if isinstance(start, dict) and isinstance(call := start.get("toolUse"), dict):
            index = said.get("contentBlockIndex", 0)
            self._blocks[index] = {"toolUse": {**call, "input": {}}}
            self._inputs[index] = ""

    def _grown(self, said: dict[str, Any]) -> str:
        index = said.get("contentBlockIndex", 0)
        match said.get("delta"):
            case {"text": str() as text}:
                block = self._blocks.setdefault(index, {"text": ""})
                block["text"] = block.get("text", "") + text
                return text
            case {"toolUse": {"input": str() as words}} if index in self._inputs:
                self._inputs[index] += words
            case {"reasoningContent": dict() as thought}:
                self._thought(index, thought)
        return ""

    def _thought(self, index: int, thought: dict[str, Any]) -> None:
        block = self._blocks.setdefault(index, {"reasoningContent": {}})["reasoningContent"]
        if isinstance(more := thought.get("redactedContent"), str):
            known = base64.b64decode(block.get("redactedContent", ""))
            block["redactedContent"] = base64.b64encode(known + base64.b64decode(more)).decode()
        for name in ("text", "signature"):
            if isinstance(words := thought.get(name), str):
                said = block.setdefault("reasoningText", {"text": ""})
                said[name] = said.get(name, "") + words


def _tree(words: str) -> dict[str, Any]:
    """An object of JSON; an empty one for what is none."""
    try:
        tree = json.loads(words)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}
