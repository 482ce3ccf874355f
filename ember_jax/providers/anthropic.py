"""Messages, the protocol of Anthropic. Nothing here does IO.

What the service takes and says is read off its own SDK for Python, version 2.14.0: what that sends (`tests/sdk` has
it), and the types of its answers. Where the older public reference says otherwise, the SDK counts: the key is a bearer
token and no `x-api-key`, and the version is of 2026.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .._regex import regex
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
    Listing,
    Meaning,
    Service,
    count,
    decoded,
    dollars,
    refused,
    stated,
    stated_in,
    tree_of,
    usage_in,
)
from .fitting import fitted
from .http import TIMEOUT, HTTPProvider, Vendor
from .meanings import NO_CREDIT, of_litellm

if TYPE_CHECKING:
    import httpx
    import httpx2

SERVICE = Service(
    "Anthropic",
    "https://api.anthropic.com",
    ("ANTHROPIC_BASE_URL",),
    # The second is what the SDK looks for next. It sends both in the same way.
    ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
)


class Anthropic(Vendor):
    """Anthropic, or a server that speaks its Messages protocol.

    Settings have the names that they have for other providers: `max_completion_tokens` is `max_tokens`, `stop` is
    `stop_sequences`, `reasoning_effort` is `output_config.effort` (and `"none"` is `thinking={"type": "disabled"}`),
    `response_format` is `output_config.format`. Others are sent as they are: `thinking`, `cache_control`, `speed`,
    `service_tier`, `tools`, …; `betas` is a list for the header `anthropic-beta`. What the service has not (`seed`,
    `logprobs`, penalties) is refused before anything is sent, and so are `temperature`, `top_p` and `top_k` of models
    that take none (Opus and Sonnet from 4.7 on, Haiku after 4.5, Fable and Mythos).

    Without `max_tokens` an answer has at most 21,333 tokens, its thinking included, or what an older model can write if
    that is less. A schema is sent without what the service does not take of it, such as bounds of numbers; they stand
    in its descriptions instead. What the price table does not tell (searches of the web, inference in the US alone)
    leaves the cost of an answer unknown.

    **Arguments:**

    - `base_url`: the server's URL up to and without `/v1`. By default the environment's `ANTHROPIC_BASE_URL`, else
        Anthropic itself.
    - `api_key`: by default the environment's `ANTHROPIC_API_KEY`, else its `ANTHROPIC_AUTH_TOKEN`, whatever the
        `base_url`; `""` sends none.
    - `client`: an `AsyncClient` of httpx or httpx2, for a proxy or another TLS setup. (Without it, proxies of the
        environment are not used.) It is used as it is, its timeouts included, and never closed here.
    - `timeout`: seconds to wait for the answer to begin, and again for each further piece of it. The whole answer may
        take six times as long. `Retry(deadline=…)` bounds a call and all that it waits for.

    The environment is read at each call. Prices are looked up by the provider name that it is registered under.

    **Raises:** `ValueError` for a `base_url` that is no whole URL; `TypeError` for another `client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None" = None,
        timeout: float = TIMEOUT,
    ):
        self._http = HTTPProvider(Messages(SERVICE), base_url, api_key, client, timeout)


@dataclass(frozen=True)
class Messages(Dialect):
    """The dialect of Messages. A server that imitates Anthropic has a `Service` of its own."""

    service: Service
    listing: ClassVar[Listing] = Listing(
        "/v1/models?limit=1000", {"anthropic-version": "2026-10-21"}, cursor=("last_id", "after_id")
    )
    # A gateway such as LiteLLM's proxy speaks this protocol to us, and has headers of another one.
    quota_headers: ClassVar[tuple[str, ...]] = (quota.ANTHROPIC, *quota.FAMILIES)

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def build(self, request: Request) -> HTTPRequest | Failure:
        if (refused := _refused(request)) is not None:
            return refused
        given = {k: v for k, v in request.parameters.items() if k not in _TRANSLATED}
        config = _output_config(request)
        if isinstance(config, Failure):
            return config
        turns = [_sent(m) for m in request.messages if m.role != "system"]
        if (fault := next((turn for turn in turns if isinstance(turn, Failure)), None)) is not None:
            return fault
        body = {
            "model": request.model,
            "max_tokens": int(self.most_output(request)),
            "messages": turns,
            **given,
            **_tools(given),
            **_renamed(request.parameters),
            **({"output_config": config} if config else {}),
        }
        if system := _BETWEEN.join(m.content for m in request.messages if m.role == "system"):
            body["system"] = system
        if request.shared > (0, 0):
            _mark(body, request)
        return HTTPRequest("/v1/messages", {"anthropic-version": _VERSION, **_betas(request.parameters)}, body)

    def read(self, answer: HTTPAnswer, request: Request) -> Response | Failure:
        message = decoded(answer, _Reply, "a message", "does the base URL end before /v1?")
        if isinstance(message, Failure):
            return message._replace(tokens=_tokens(usage_in(answer.body, _Usage)))
        tokens = _tokens(message.usage)
        if message.error is not None:
            why = stated_in(message.error) or "it does not say why."
            return Failure(_kind(message.error), "the service failed while it answered: {}", (why,), tokens)
        said = _said(message, "tools" in request.parameters)
        if said is None:
            why = stated(answer.body) or "its JSON has another form (no list of blocks in `content`)"
            return Failure(MalformedResponseError, "the answer is not a message: {}.", (why,), tokens)
        return _response(answer, request, message, said, tokens)

    def most_output(self, request: Request) -> float:
        """What is sent as `max_tokens` of a request that sets none, so that no answer is longer."""
        return next((most for begin, most in _WRITES_LESS if request.model.startswith(begin)), _MOST)

    def least_prefix(self, request: Request) -> float:
        return next((least for begin, least in _LEAST_KEPT if request.model.startswith(begin)), _LEAST)

    def marks_prefix(self, request: Request) -> bool:
        """Unless the user has marked what is to be kept."""
        return "cache_control" not in request.parameters and "'cache_control'" not in repr(
            request.parameters.get("tools")
        )

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        if answer.status == 429 and _code(answer.body) in _SPENT:
            return NO_CREDIT
        return of_litellm(answer, self.service)


_VERSION = "2026-10-21"

# The service takes no request without `max_tokens`. An answer comes as a whole, and this is how many tokens of it come
# within the ten minutes that we wait for it, at the pace that the SDK reckons with: 128,000 an hour. It refuses to send
# a request for more, unless it streams; the service does not.
_MOST = 21_333
# Models that can write less, by how their names begin; the service refuses what is above. For Opus 4 and 4.1 it is what
# the SDK has as their most without streaming.
_WRITES_LESS = (
    ("claude-3-5-", 8_192),
    ("claude-3-7-", _MOST),
    ("claude-3-", 4_096),
    ("claude-opus-4-0", 8_192),
    ("claude-opus-4-1", 8_192),
    ("claude-opus-4-2025", 8_192),
    ("claude-4-opus-2025", 8_192),
)

# The fewest tokens of a prompt's beginning that the service keeps, by how a model's name begins, as in LiteLLM's table
# (1.110.2). What is marked and shorter is not kept, and no error.
_LEAST_KEPT = (
    ("claude-haiku-4-5", 4_096),
    ("claude-opus-4-5", 4_096),
    ("claude-opus-4-6", 4_096),
    ("claude-opus-4-7", 2_048),
    ("claude-3-haiku", 2_048),
    ("claude-3-5-haiku", 2_048),
    ("claude-opus-5", 512),
    ("claude-haiku-5", 512),
    ("claude-sonnet-5-", 512),
    ("claude-fable-5", 512),
    ("claude-mythos-5", 512),
)
_LEAST = 1_024

# What stands between several system prompts.
_BETWEEN = "\n\n"

# -- what is asked ---------------------------------------------------------------------------------------------------

_NO_PROBABILITIES = "It does not say how likely its words are."
_NO_PENALTY = "Say in the prompt what the model should avoid."
# What other services take, with what to do.
_UNKNOWN = {
    "n": "More samples are more calls with other keys.",
    "seed": "It draws without a seed; `llm(prompt, key)` is an independent sample for each key, and is kept.",
    "logprobs": _NO_PROBABILITIES,
    "top_logprobs": _NO_PROBABILITIES,
    "logit_bias": _NO_PENALTY,
    "frequency_penalty": _NO_PENALTY,
    "presence_penalty": _NO_PENALTY,
    "repetition_penalty": _NO_PENALTY,
    "min_p": "Models that draw by parameters at all take `temperature`, `top_p` and `top_k`.",
    "verbosity": "Say in the prompt how long the answer should be, or give reasoning_effort.",
}
# A pair of names that mean one thing, of which a request has one.
_SAME = (("max_tokens", "max_completion_tokens"), ("stop_sequences", "stop"))
_TRANSLATED = frozenset(
    ("betas", "logprobs", "max_completion_tokens", "output_config", "reasoning_effort", "response_format", "stop")
)

# Models that refuse `top_p`, `top_k`, and any `temperature` but 1 with a 400: "`temperature` is deprecated for this
# model". LiteLLM's table (1.110.2) marks these; a model that is not known to refuse them is asked.
_DRAWS_ALONE = regex(
    r"claude-(?:(?:fable|mythos)\b|(?:opus|sonnet|haiku)-(?:latest|[5-9]|[1-9]\d|4-(?:[7-9]|[1-9]\d))(?!\d))"
)


def _refused(request: Request) -> Failure | None:
    """Why the service would not take a request's parameters, where that is known."""
    given = request.parameters
    if taken := sorted({"model", "messages", "system", "stream"} & given.keys()):
        return Failure(
            RefusedRequestError,
            f"the parameter {taken[0]!r} is not yours to set. The model id and the prompt set `model` and `messages`, "
            "`LLM(…, system=…)` sets `system`; answers are not streamed.",
        )
    for name in _UNKNOWN:
        if name in given and given[name] is not False:  # `logprobs=False` wants none
            return refused(name, f"Anthropic has no such parameter. {_UNKNOWN[name]}")
    for name, other in _SAME:
        if name in given and other in given:
            return refused(other, f"It means the same as {name!r}, which is given too.")
    if _DRAWS_ALONE.match(request.model):
        for name in ("temperature", "top_p", "top_k"):
            if name in given and not (name == "temperature" and given[name] == 1):
                return refused(name, "This model takes none, and draws in its own way.")
    return None


# Whose thoughts are given back: a conversation may go on with another vendor's model.
_OURS = "anthropic"


def _sent(message: Message) -> dict[str, Any] | Failure:
    """A message as this protocol has it: the results of tools are the user's."""
    if not message.parts:
        return {"role": message.role, "content": message.content}
    if any(part.kind == "audio" for part in message.parts):
        return Failure(RefusedRequestError, "Anthropic takes no audio. Ask another model, or say it in words.")
    kept = [part for part in message.parts if part.kind != "thought" or part.name == _OURS]
    blocks = [_block(part) for part in kept if part.value or part.kind != "text"]
    return {"role": "user" if message.role == "tool" else message.role, "content": blocks}


def _block(part: Part) -> dict[str, Any]:
    match part.kind:
        case "thought":  # as it came, see `_said`
            return tree_of(part.value.encode()) or {}
        case "tool_call":
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": tree_of(part.value.encode()) or {}}
        case "tool_result":
            return {"type": "tool_result", "tool_use_id": part.id, "content": part.value}
        case "image" | "file":
            block = {"type": "image" if part.kind == "image" else "document", "source": _source(part.value)}
            return block | ({"title": part.name} if part.kind == "file" and part.name else {})
        case _:
            return {"type": "text", "text": part.value}


def _source(url: str) -> dict[str, Any]:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    if kind.startswith("text/"):
        return {"type": "text", "media_type": "text/plain", "data": base64.b64decode(data).decode("utf-8", "replace")}
    return {"type": "base64", "media_type": kind, "data": data}


def _mark(body: dict[str, Any], request: Request) -> None:
    """Marks the end of what a request shares with others, so that it is kept: in a block of words."""
    count, characters = request.shared
    shared = list(request.messages[:count])
    if characters:
        shared.append(request.messages[count]._replace(content=request.messages[count].content[:characters]))
    systems = [m.content for m in shared if m.role == "system"]
    turns = [m.content for m in shared if m.role != "system"]
    # The service reads all that is a system prompt before the turns, wherever it stands.
    if turns and systems == [m.content for m in request.messages if m.role == "system"]:
        turn = body["messages"][len(turns) - 1]
        turn["content"] = _marked(turn["content"], len(turns[-1]))
    elif systems:
        body["system"] = _marked(body["system"], len(_BETWEEN.join(systems)))


def _marked(words: Any, end: int) -> Any:
    """Words as blocks, of which the first is to be kept; as they are if it would be blank."""
    if not isinstance(words, str) or not words[:end].strip():
        return words
    end = end if words[end:].strip() else len(words)
    kept = {"type": "text", "text": words[:end], "cache_control": {"type": "ephemeral"}}
    return [kept, {"type": "text", "text": words[end:]}] if words[end:] else [kept]


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tools that are given as chat completions has them, as this protocol does."""
    sent: dict[str, Any] = {}
    if isinstance(tools := given.get("tools"), list):
        sent["tools"] = [_tool(tool) for tool in tools]
    match given.get("tool_choice"):
        case "required":
            sent["tool_choice"] = {"type": "any"}
        case str() as choice:
            sent["tool_choice"] = {"type": choice}
        case {"type": "function", "function": {"name": name}}:
            sent["tool_choice"] = {"type": "tool", "name": name}
    return sent


def _tool(tool: Any) -> Any:
    match tool:
        case {"type": "function", "function": {"name": name, "parameters": schema, **rest}}:
            described = {"description": rest["description"]} if rest.get("description") else {}
            return {"name": name, **described, "input_schema": schema}
    return tool


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that have another name here, by that name."""
    renamed: dict[str, Any] = {}
    if "max_completion_tokens" in given:
        renamed["max_tokens"] = given["max_completion_tokens"]
    if "stop" in given:
        stop = given["stop"]
        renamed["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if given.get("reasoning_effort") == "none" and "thinking" not in given:
        renamed["thinking"] = {"type": "disabled"}
    return renamed


def _betas(given: Mapping[str, Any]) -> dict[str, str]:
    """The header that asks for what the service has on trial, as `speed` of some models."""
    betas = given.get("betas") or []
    names = betas if isinstance(betas, list) else [betas]
    return {"anthropic-beta": ",".join(map(str, names))} if names else {}


def _output_config(request: Request) -> dict[str, Any] | Failure:
    """What is asked of the output: how much effort, and in which form."""
    given = request.parameters
    config = given.get("output_config") or {}
    if not isinstance(config, dict):
        return refused("output_config", "It is an object, with `effort` and `format`.")
    effort, form = given.get("reasoning_effort"), given.get("response_format")
    if effort == "minimal":
        return refused("reasoning_effort", 'The least effort is "low"; "none" is no thinking.')
    wished: dict[str, Any] = {} if effort in (None, "none") else {"effort": effort}
    match form:
        case None | {"type": "text"}:
            pass
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            if isinstance(fits := fitted(schema), Failure):
                return fits
            wished["format"] = {"type": "json_schema", "schema": fits}
        case {"type": "json_object"}:
            return refused("response_format", "Anthropic knows schemas, but not any JSON; ask for it in the prompt.")
        case _:
            wished["format"] = form
    if both := sorted(config.keys() & wished.keys()):
        name = {"effort": "reasoning_effort", "format": "response_format"}[both[0]]
        return refused(name, f"`output_config` says `{both[0]}` too.")
    return {**config, **wished}


# -- what is answered ------------------------------------------------------------------------------------------------

# What msgspec checks an answer against. Fields that are not here are ignored.


@dataclass
class _CacheCreation:
    ephemeral_1h_input_tokens: int | None = None


@dataclass
class _ThoughtDetails:
    thinking_tokens: int | None = None


@dataclass
class _ToolUse:
    web_search_requests: int | None = None


@dataclass
class _Usage:
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _ThoughtDetails | None = None
    server_tool_use: _ToolUse | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None


@dataclass
class _StopDetails:
    category: str | None = None
    explanation: str | None = None


@dataclass
class _Reply:
    # A list of blocks: objects with a `type`, see `_said`. It is checked there.
    content: Any = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None
    usage: _Usage | None = None
    error: Any = None


_FINISHES = {
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "max_tokens": Finish.LENGTH,
    "model_context_window_exceeded": Finish.LENGTH,
    "tool_use": Finish.TOOL_CALLS,
    "refusal": Finish.REFUSAL,
    # Not the vendor's: what servers that imitate it pass on from others (aimock 1.43).
    "content_filter": Finish.CONTENT_FILTER,
}

# An error may stand in an answer whose status says success, if the service fails after it has begun to answer.
_KINDS: dict[str, type[ProviderError]] = {
    "authentication_error": AuthenticationError,
    "permission_error": AuthenticationError,
    "billing_error": RefusedRequestError,
    "invalid_request_error": RefusedRequestError,
    "not_found_error": RefusedRequestError,
    "request_too_large": RefusedRequestError,
    "rate_limit_error": RateLimitError,
}

# What a refusal as one too many (429) has as its code if it is for money. To wait cures the third code of the SDK's,
# `ramp_limit_exceeded`.
_SPENT = ("contract_spend_limit_reached", "enforced_spend_limit_reached")


def _kind(error: Any) -> type[ProviderError]:
    return _KINDS.get(str(error.get("type")), ServerError) if isinstance(error, dict) else ServerError


def _code(body: bytes) -> Any:
    """The code in the details of an error; `None` if it has none."""
    match tree_of(body):
        case {"error": {"details": {"error_code": code}}}:
            return code
    return None


class _Spoken(NamedTuple):
    """What a message says, and how it ended."""

    text: str
    reasoning: str
    finish: Finish
    tool_calls: tuple[Part, ...] = ()


def _said(message: _Reply, has_tools: bool) -> _Spoken | None:
    """What a message says; `None` if that cannot be told."""
    blocks = message.content
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        return None
    texts = [block.get("text") for block in blocks if block.get("type") == "text"]
    if not all(isinstance(words, str) for words in texts):
        return None
    # Citations cut one text into several blocks, so that nothing is put between them.
    text = "".join(texts)
    thoughts = [block for block in blocks if block.get("type") in ("thinking", "redacted_thinking")]
    reasoning = "".join(words for block in thoughts if isinstance(words := block.get("thinking"), str))
    finish = _FINISHES.get(message.stop_reason or "", Finish.OTHER)
    if finish == Finish.REFUSAL:
        return _Spoken(_declined(message) or text, reasoning, finish)
    if has_tools and finish != Finish.REFUSAL and (calls := _calls(blocks)):
        # What was thought before a call has to be given back with it, as it came.
        kept = [Part("thought", json.dumps(block), _OURS) for block in thoughts]
        return _Spoken(text, reasoning, finish, (*kept, *calls))
    # A model that only thought has said nothing, also where the service says that this is all.
    is_answer = bool(text.strip()) or not thoughts
    return _Spoken(text, reasoning, finish if is_answer or finish != Finish.STOP else Finish.OTHER)


def _calls(blocks: list[dict[str, Any]]) -> list[Part]:
    return [
        Part("tool_call", json.dumps(block.get("input") or {}), str(block.get("name")), str(block.get("id")))
        for block in blocks
        if block.get("type") == "tool_use"
    ]


def _declined(message: _Reply) -> str:
    """What the service says of why it declined. The text of such an answer may be the begin of another one."""
    details = message.stop_details or _StopDetails()
    return details.explanation or (f"(category {details.category})" if details.category else "")


def _response(answer: HTTPAnswer, request: Request, message: _Reply, said: _Spoken, counted: Tokens | None) -> Response:
    tokens, usage = counted or Tokens(), message.usage or _Usage()
    return Response(
        text=said.text,
        input_tokens=int(tokens.input),
        output_tokens=int(tokens.output),
        cost=_cost(answer, request, message.model or request.model, usage, counted),
        model=message.model or request.model,
        request_id=answer.headers.get("request-id") or message.id or "",
        finish=said.finish,
        reasoning=said.reasoning,
        cached_tokens=int(tokens.cached),
        cache_write_tokens=int(tokens.cache_write),
        reasoning_tokens=int(tokens.reasoning),
        service_tier=usage.service_tier or "",
        tool_calls=said.tool_calls,
    )


# -- what it costs ---------------------------------------------------------------------------------------------------


def _tokens(usage: _Usage | None) -> Tokens | None:
    """What is billed, `None` if the service does not say. It counts what a cache has to do with beside the input."""
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    cached, written = count(usage.cache_read_input_tokens), count(usage.cache_creation_input_tokens)
    details, created = usage.output_tokens_details, usage.cache_creation
    return Tokens(
        count(usage.input_tokens) + cached + written,
        count(usage.output_tokens),
        cached,
        written,
        count(details.thinking_tokens) if details else 0,
        count(created.ephemeral_1h_input_tokens) if created else 0,
    )


def _cost(answer: HTTPAnswer, request: Request, model: str, usage: _Usage, tokens: Tokens | None) -> float:
    """By the price table; where it knows none, what a gateway says; else NaN."""
    known = math.nan
    if tokens is not None and not _has_other_prices(usage):
        if usage.speed is not None and "speed" in request.parameters:  # a wish that is not always granted
            request = dataclasses.replace(request, parameters={**request.parameters, "speed": usage.speed})
        known = prices.cost(request, tokens, model, usage.service_tier or "")
    return dollars(answer.headers.get("x-litellm-response-cost")) if math.isnan(known) else known


def _has_other_prices(usage: _Usage) -> bool:
    """Whether a bill has more in it than the table knows: searches of the web, inference in the US alone.

    The latter is dearer by a tenth, by LiteLLM's table (1.110.2).
    """
    searches = usage.server_tool_use.web_search_requests if usage.server_tool_use else None
    return bool(searches or usage.inference_geo == "us")
