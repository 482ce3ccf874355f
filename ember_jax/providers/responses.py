"""OpenAI's Responses, which some of its models speak alone. Nothing here does IO.

Design note. Settings and conversations are those of chat completions, so that a program does not change with its model,
and are given their names here. What the service would keep of a conversation it is asked not to keep (`store`): the
whole conversation is sent each time, with what a model thought before it wanted tools called, as it came.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..errors import (
    AuthenticationError,
    MalformedResponseError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from . import prices, quota
from .base import Finish, Message, Part, Request, Response, Tokens
from .dialect import (
    Dialect,
    Failure,
    HTTPAnswer,
    HTTPRequest,
    Meaning,
    Service,
    count,
    decoded,
    dollars,
    lenient,
    stated_in,
    tree_of,
    usage_in,
)
from .logprobs import Token, alternatives, summed
from .meanings import of_litellm, of_openai


@dataclass(frozen=True)
class Responses(Dialect):
    """The dialect of Responses."""

    service: Service
    quota_headers: ClassVar[tuple[str, ...]] = quota.FAMILIES

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def build(self, request: Request) -> HTTPRequest | Failure:
        given = request.parameters
        if taken := sorted(_TAKEN & given.keys()):
            return _refused(
                taken[0],
                "is not yours to set. The model id and the prompt set `model` and `input`, `LLM(…, system=…)` the "
                "system prompt; answers are not streamed.",
            )
        if unknown := sorted(_UNKNOWN & given.keys()):
            return _refused(unknown[0], "is unknown to Responses. Take it out: `llm.replace(" + unknown[0] + "=None)`.")
        limits = [name for name in _LIMITS if name in given]
        if len(limits) > 1:
            return _refused(limits[1], f"means the same as {limits[0]!r}, which is given too.")
        if any(part.kind == "audio" for message in request.messages for part in message.parts):
            return Failure(RefusedRequestError, "Responses takes no audio. Ask another model, or say it in words.")
        body: dict[str, Any] = {
            "model": request.model,
            "input": [item for message in request.messages for item in items(message)],
            "store": False,
            **{name: value for name, value in given.items() if name not in _MAPPED},
        }
        if limits:
            body["max_output_tokens"] = given[limits[0]]
        if "reasoning_effort" in given:
            body["reasoning"] = {**_object(given.get("reasoning")), "effort": given["reasoning_effort"]}
        text = _text(given)
        if isinstance(text, Failure):
            return text
        if text:
            body["text"] = text
        return HTTPRequest("/responses", {}, {**body, **_include(given), **_tools(given)})

    def read(self, answer: HTTPAnswer, request: Request) -> Response | Failure:
        reply = decoded(answer, _ResponseObject, "of Responses", "does the base URL end with /v1?")
        if isinstance(reply, Failure):
            return reply._replace(tokens=_tokens(usage_in(answer.body, _Usage)))
        tokens = _tokens(reply.usage)
        if reply.error or reply.status in ("failed", "cancelled"):
            why = stated_in(reply.error) or f"its status is {reply.status}."
            return Failure(_kind(reply.error), "the service failed while it answered: {}", (why,), tokens)
        said = _said(reply, "tools" in request.parameters)
        if said is None:
            words = "the answer is not of Responses: its JSON has another form (no list of items in `output`)."
            return Failure(MalformedResponseError, words, (), tokens)
        return _response(answer, request, reply, said, tokens)

    def most_output(self, request: Request) -> float:
        limit = request.parameters.get("max_output_tokens")
        return limit if type(limit) is int else prices.context_window(request.provider, request.model)

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        return of_openai(answer) or of_litellm(answer, self.service)


# -- what is asked ---------------------------------------------------------------------------------------------------

_TAKEN = frozenset(("background", "conversation", "input", "instructions", "messages", "model", "n", "stream"))
# What chat completions takes and Responses does not. More samples are more requests.
_UNKNOWN = frozenset(
    (
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "modalities",
        "prediction",
        "presence_penalty",
        "seed",
        "stop",
        "web_search_options",
    )
)
_LIMITS = ("max_output_tokens", "max_tokens", "max_completion_tokens")
# What has another name or place here.
_MAPPED = frozenset((*_LIMITS, "logprobs", "reasoning_effort", "response_format", "tool_choice", "tools", "verbosity"))
# Whose thoughts are given back: a conversation may go on with another vendor's model.
_OURS = "openai"


def _refused(name: str, why: str) -> Failure:
    return Failure(RefusedRequestError, f"the parameter {name!r} {why}")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def items(message: Message) -> list[dict[str, Any]]:
    """A message as items: what a model thought, the calls of tools and their results are items of their own."""
    if not message.parts:
        # The service takes a string of any role. llama.cpp's server takes what a model said as an item alone, as it is
        # answered: with its type, and its text in a list.
        if message.role != "assistant":
            return [{"role": message.role, "content": message.content}]
        return [
            {
                "type": "message",
                "role": message.role,
                "content": [_content(Part("text", message.content), message.role)],
            }
        ]
    items: list[dict[str, Any]] = []
    contents = []
    for part in message.parts:
        match part.kind:
            case "thought":
                if part.name == _OURS:
                    items.append(_object(tree_of(part.value.encode())))
            case "tool_call":
                items.append({"type": "function_call", "call_id": part.id, "name": part.name, "arguments": part.value})
            case "tool_result":
                items.append({"type": "function_call_output", "call_id": part.id, "output": part.value})
            case _:
                contents.append(_content(part, message.role))
    if not contents:
        return items
    said = {"type": "message", "role": message.role, "content": contents}
    # A model says something before it wants tools called.
    calls = [item for item in items if item.get("type") == "function_call"]
    return [*(item for item in items if item not in calls), said, *calls]


def _content(part: Part, role: str) -> dict[str, Any]:
    match part.kind:
        case "image":
            return {"type": "input_image", "image_url": part.value}
        case "file" if part.value.startswith("data:"):
            return {"type": "input_file", "filename": part.name, "file_data": part.value}
        case "file":
            return {"type": "input_file", "file_url": part.value}
        case _:
            return {"type": "output_text" if role == "assistant" else "input_text", "text": part.value}


def _text(given: Mapping[str, Any]) -> dict[str, Any] | Failure:
    """In which form the text of the answer is wished for."""
    wished = dict(_object(given.get("text")))
    if "verbosity" in given:
        wished["verbosity"] = given["verbosity"]
    match given.get("response_format"):
        case None:
            pass
        case {"type": "json_schema", "json_schema": dict() as schema}:
            wished["format"] = {"type": "json_schema", **schema}
        case {"type": "json_object" | "text" as kind}:
            wished["format"] = {"type": kind}
        case other:
            return _refused("response_format", f"is {other!r:.60}, which has no form that Responses knows.")
    return wished


def _include(given: Mapping[str, Any]) -> dict[str, Any]:
    wished: list[Any] = list(given.get("include") or ())
    if given.get("logprobs"):
        wished.append("message.output_text.logprobs")
    if "tools" in given:  # they have to be given back, and the service keeps nothing
        wished.append("reasoning.encrypted_content")
    return {"include": list(dict.fromkeys(wished))} if wished else {}


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tools that are given as chat completions has them, as Responses does: flat."""
    sent: dict[str, Any] = {}
    if isinstance(tools := given.get("tools"), list):
        sent["tools"] = [_flat(tool) for tool in tools]
    if "tool_choice" in given:
        sent["tool_choice"] = _flat(given["tool_choice"])
    return sent


def _flat(tool: Any) -> Any:
    match tool:
        # A schema that is not strict is as the function has it; those that are strict have all fields required.
        case {"type": "function", "function": {"parameters": _} as function}:
            return {"type": "function", "strict": False, **function}
        case {"type": "function", "function": {"name": name}}:
            return {"type": "function", "name": name}
    return tool


# -- what is answered ------------------------------------------------------------------------------------------------

# What msgspec checks an answer against. Fields that are not here are ignored.


@dataclass
class _InputCounts:
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


@dataclass
class _OutputCounts:
    reasoning_tokens: int | None = None


@dataclass
class _Usage:
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputCounts | None = None
    output_tokens_details: _OutputCounts | None = None
    cost: float | None = None


@dataclass
class _Incomplete:
    reason: str | None = None


@dataclass
class _ResponseObject:
    # A list of items: objects with a `type`, see `_said`. It is checked there.
    output: Any = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    error: Any = None
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    service_tier: str | None = None


_CUT = {"max_output_tokens": Finish.LENGTH, "content_filter": Finish.CONTENT_FILTER}

# What a failure is that an answer with status 200 tells, by its code.
_KINDS: dict[str, type[ProviderError]] = {
    "rate_limit_exceeded": RateLimitError,
    "invalid_api_key": AuthenticationError,
    "invalid_prompt": RefusedRequestError,
    "invalid_image": RefusedRequestError,
    "image_too_large": RefusedRequestError,
    "unsupported_image_media_type": RefusedRequestError,
}


def _kind(error: Any) -> type[ProviderError]:
    return _KINDS.get(str(_object(error).get("code")), ServerError)


class _SaidItems(NamedTuple):
    """What an answer says, and how it ended."""

    text: str
    reasoning: str
    finish: Finish
    tool_calls: tuple[Part, ...] = ()
    tokens: tuple[Token, ...] = ()


def _said(reply: _ResponseObject, has_tools: bool) -> _SaidItems | None:
    """What an answer says; `None` if that cannot be told."""
    items = reply.output
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    contents = [c for item in items if item.get("type") == "message" for c in item.get("content") or ()]
    text = "".join(str(c.get("text") or "") for c in contents if c.get("type") == "output_text")
    refusal = "".join(str(c.get("refusal") or "") for c in contents if c.get("type") == "refusal")
    thoughts = [item for item in items if item.get("type") == "reasoning"]
    reasoning = "".join(
        str(part.get("text") or "")
        for item in thoughts
        for part in (item.get("summary") or []) + (item.get("content") or [])
    )
    if refusal:
        return _SaidItems(refusal, reasoning, Finish.REFUSAL)
    finish = Finish.STOP if reply.status in (None, "completed") else Finish.OTHER
    if reply.status == "incomplete":
        finish = _CUT.get((reply.incomplete_details or _Incomplete()).reason or "", Finish.OTHER)
    calls = [item for item in items if item.get("type") == "function_call"] if has_tools else []
    if calls:
        kept = [Part("thought", json.dumps(item), _OURS) for item in thoughts]
        wanted = [
            Part("tool_call", str(c.get("arguments") or "{}"), str(c.get("name")), str(c.get("call_id"))) for c in calls
        ]
        ended = finish if finish == Finish.LENGTH else Finish.TOOL_CALLS
        return _SaidItems(text, reasoning, ended, (*kept, *wanted))
    # A model that only thought has said nothing, also where the service says that this is all.
    if finish == Finish.STOP and thoughts and not text.strip():
        finish = Finish.OTHER
    listed = [token for c in contents for token in c.get("logprobs") or ()]
    return _SaidItems(text, reasoning, finish, (), _listed(listed))


def _listed(tokens: list[Any]) -> tuple[Token, ...]:
    try:
        return tuple(lenient(token, Token) for token in tokens)
    except ValueError:
        return ()


def _response(
    answer: HTTPAnswer, request: Request, reply: _ResponseObject, said: _SaidItems, counted: Tokens | None
) -> Response:
    tokens, tier = counted or Tokens(), reply.service_tier or ""
    model = reply.model or request.model
    known = dollars(None) if counted is None else prices.cost(request, counted, model, tier)
    if known != known:  # NaN: the table does not know it, and gateways say it
        known = dollars(reply.usage.cost if reply.usage else None, answer.headers.get("x-litellm-response-cost"))
    listed = list(said.tokens)
    return Response(
        text=said.text,
        input_tokens=int(tokens.input),
        output_tokens=int(tokens.output),
        cost=known,
        logprob=summed(listed) if listed else float("nan"),
        model=model,
        request_id=answer.headers.get("x-request-id") or reply.id or "",
        alternatives=alternatives(listed) if listed else (),
        finish=said.finish,
        reasoning=said.reasoning,
        cached_tokens=int(tokens.cached),
        cache_write_tokens=int(tokens.cache_write),
        reasoning_tokens=int(tokens.reasoning),
        service_tier=tier,
        tool_calls=said.tool_calls,
    )


def _tokens(usage: _Usage | None) -> Tokens | None:
    """What is billed, `None` if the service does not say."""
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    read, written = usage.input_tokens_details or _InputCounts(), usage.output_tokens_details or _OutputCounts()
    return Tokens(
        count(usage.input_tokens),
        count(usage.output_tokens),
        count(read.cached_tokens),
        count(read.cache_write_tokens),
        count(written.reasoning_tokens),
    )
