"""Conversations in the form of chat completions, which most services and packages take."""

from collections.abc import Callable
from typing import Any, TypeAlias

from .base import Message, Part, Request, audio_format


def chat(request: Request) -> list[dict[str, Any]]:
    """The messages of a request as chat completions has them, for a function behind `Callable`.

    ```python
    ember.providers.Callable(lambda r: litellm.acompletion(model=r.model, messages=chat(r), **r.parameters))
    ```
    """
    return chat_messages(request, chat_content)


# A part of a message, that is no result and no call of a tool, as it is sent.
PartForm: TypeAlias = Callable[[Part], dict[str, Any]]


def chat_messages(request: Request, form: PartForm) -> list[dict[str, Any]]:
    """The messages of a request, with parts that have a form of their own."""
    return [sent for message in request.messages for sent in _sent(message, form)]


def _sent(message: Message, form: PartForm) -> list[dict[str, Any]]:
    """A message: the results of tools are messages of their own."""
    if not message.parts:
        return [{"role": message.role, "content": message.content}]
    results = [p for p in message.parts if p.kind == "tool_result"]
    if results:
        return [{"role": "tool", "tool_call_id": p.id, "content": p.value} for p in results]
    calls = [p for p in message.parts if p.kind == "tool_call"]
    if calls:
        called = [{"id": p.id, "type": "function", "function": {"name": p.name, "arguments": p.value}} for p in calls]
        return [{"role": message.role, "content": message.content or None, "tool_calls": called}]
    return [{"role": message.role, "content": [form(p) for p in message.parts if p.kind != "thought"]}]


def chat_content(part: Part) -> dict[str, Any]:
    """A part as OpenAI has it."""
    match part.kind:
        case "image":
            return {"type": "image_url", "image_url": {"url": part.value}}
        case "file":
            return {"type": "file", "file": {"filename": part.name, "file_data": part.value}}
        case "audio":
            kind, _, data = part.value.partition(",")
            return {"type": "input_audio", "input_audio": {"data": data, "format": audio_format(kind)}}
        case _:
            return {"type": "text", "text": part.value}


def mistral_content(part: Part) -> dict[str, Any]:
    """A part as Mistral has it: files are documents with an address, and audio says no format [mistralai 3.7.0]."""
    match part.kind:
        case "file":
            name = {"document_name": part.name} if part.name else {}
            return {"type": "document_url", "document_url": part.value, **name}
        case "audio":
            return {"type": "input_audio", "input_audio": part.value.partition(",")[2]}
        case _:
            return chat_content(part)
