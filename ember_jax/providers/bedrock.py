"""Amazon Bedrock, over Converse, its protocol for the models of all vendors. Nothing here does IO.

The shapes are those of the service's own model, which botocore 1.44.8 has as `bedrock-runtime/2023-09-30`; what is sent
is what boto3 sends, see `tests/sdk/bedrock.json`. A name of a model is quoted as a whole, `:` and `/` as well: so it is
sent, and what is sent is signed.
"""

import collections
import itertools
import json
import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .._regex import regex
from ..errors import (
    AuthenticationError,
    MalformedResponseError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from . import prices, quota
from .base import Finish, Message, Part, Request, Response, Tokens, audio_format
from .clouds import AWS
from .converse_events import ConverseEvents, can_read
from .dialect import (
    Dialect,
    Failure,
    HTTPAnswer,
    HTTPRequest,
    Listing,
    Meaning,
    Service,
    Stream,
    count,
    decoded,
    field_of,
    refused,
    stated,
    tree_of,
    usage_in,
)
from .fitting import fitted
from .http import TIMEOUT, HTTPProvider, Vendor

if TYPE_CHECKING:
    import httpx
    import httpx2

SERVICE = Service(
    "Bedrock",
    "",  # that of the region
    ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "AWS_ENDPOINT_URL"),
    ("AWS_BEARER_TOKEN_BEDROCK",),
    otherwise="Without a key check AWS_PROFILE or AWS_ACCESS_KEY_ID, and that the account may use the model.",
)


class Bedrock(Vendor):
    """Amazon Bedrock: models by the names that it has for them, of profiles and others by their ARN.

    Requests are signed by `botocore` with the credentials that it finds (`pip install "ember_jax[bedrock]"`), or bear a
    key of Bedrock, which needs no package. A stream needs the package, too: without it an answer comes in one piece.

    **Arguments:**

    - `base_url`: the server's URL, such as that of a VPC's endpoint. By default the environment's
        `AWS_ENDPOINT_URL_BEDROCK_RUNTIME`, else `AWS_ENDPOINT_URL`, else the service of the region.
    - `api_key`: a key of Bedrock. By default the environment's `AWS_BEARER_TOKEN_BEDROCK`, unless a `profile` is given;
        `""` is none, so that requests are signed.
    - `client`: an `AsyncClient` of httpx or httpx2, for a proxy or another TLS setup. It is used as it is, its timeouts
        included, and never closed here. (One over httpx-aiohttp 0.2.0 changes the path, and so breaks signatures.)
    - `timeout`: seconds to wait for the answer to begin, and again for each further piece of it. The whole answer may
        take six times as long.
    - `region`: by default that of the environment's `AWS_REGION`, `AWS_DEFAULT_REGION`, or of the profile.
    - `profile`: whose credentials to use, in the files of AWS's tools; by default as botocore finds them.

    Settings have the names that they have for other providers: `max_tokens`, `temperature`, `top_p`, `stop`, `tools`,
    `response_format`, `reasoning_effort`, `service_tier`. Those of Converse are `guardrail_config`,
    `performance_config`, `request_metadata`, `prompt_variables`, `additional_model_response_field_paths` and others.
    What else is given is the model's own, and sent in `additionalModelRequestFields`: `thinking`, `top_k`, ….

    The environment is read at each call. Prices are looked up by the provider name that it is registered under.

    **Raises:** `ValueError` for a `base_url` that is no whole URL; `TypeError` for another `client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None" = None,
        timeout: float = TIMEOUT,
        region: str | None = None,
        profile: str | None = None,
    ):
        self._http = HTTPProvider(Converse(SERVICE), base_url, api_key, client, timeout, AWS(region, profile))


@dataclass(frozen=True)
class Converse(Dialect):
    """The dialect of Converse."""

    service: Service
    # Models are listed by another service, on a host of its own.
    listing: ClassVar[Listing] = Listing(
        "/foundation-models", {}, "modelSummaries", "modelId", moved=("//bedrock-runtime.", "//bedrock.")
    )
    # Amazon tells no quota in headers, but gateways do.
    quota_headers: ClassVar[tuple[str, ...]] = quota.FAMILIES

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def build(self, request: Request) -> HTTPRequest | Failure:
        asked = _asked(request)
        if isinstance(asked, Failure):
            return asked
        turns = _turns(request.messages)
        if isinstance(turns, Failure):
            return turns
        system = [{"text": m.content} for m in request.messages if m.role == "system" and m.content]
        body = {"messages": turns, **({"system": system} if system else {}), **asked}
        return HTTPRequest(f"/model/{urllib.parse.quote(request.model, safe='')}/converse", {}, body)

    def read(self, answer: HTTPAnswer, request: Request) -> Response | Failure:
        said = decoded(answer, _Conversed, "of Converse", "is the base URL right?")
        if isinstance(said, Failure):
            return said._replace(tokens=_tokens(usage_in(answer.body, _Billed)))
        tokens = _tokens(said.usage)
        blocks = _blocks(said.output)
        if blocks is None:
            # A stream may end with an error, and gateways send one with a status of success.
            meant = self.meaning(answer)
            kind = MalformedResponseError if meant is None else meant.kind
            why = stated(answer.body) or "its JSON has another form (no list in `output.message.content`)"
            return Failure(kind, "the answer is not of Converse: {}.", (why,), tokens)
        has_tools = bool(request.parameters.keys() & {"tools", "tool_config"})
        return _response(answer, request, said, _uttered(blocks, said.stopReason, has_tools), tokens)

    def stream(self, request: Request) -> Stream | None:
        return ConverseEvents() if can_read() else None

    def least_prefix(self, request: Request) -> float:
        return math.inf  # it keeps what is marked by a `cachePoint`, and none is sent

    def most_output(self, request: Request) -> float:
        return prices.context_window(request.provider, request.model)

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        # A name may be followed by a URL, or follow the name of a service.
        said = answer.headers.get("x-amzn-errortype") or field_of(answer.body, "__type") or ""
        name = str(said).partition(":")[0].rpartition("#")[2]
        kind = _KINDS.get(name[:1].upper() + name[1:])
        if kind is RateLimitError and b"per day" in answer.body:
            return Meaning(RefusedRequestError, " The quota of the day is used up.")
        if name == "ModelErrorException" and field_of(answer.body, "originalStatusCode") in range(400, 408):
            return Meaning(RefusedRequestError)  # the model itself refuses what it was asked
        return None if kind is None else Meaning(kind, self.service.advice if kind is AuthenticationError else "")


_KINDS = {
    "AccessDeniedException": AuthenticationError,
    "ExpiredTokenException": AuthenticationError,
    "IncompleteSignatureException": AuthenticationError,
    "InvalidSignatureException": AuthenticationError,
    "MissingAuthenticationTokenException": AuthenticationError,
    "UnrecognizedClientException": AuthenticationError,
    "ServiceQuotaExceededException": RateLimitError,
    "ThrottlingException": RateLimitError,
    "InternalServerException": ServerError,
    "ModelErrorException": ServerError,
    # With the status 429, though nobody has asked too often.
    "ModelNotReadyException": ServerError,
    "ModelStreamErrorException": ServerError,
    "ModelTimeoutException": ServerError,
    "ServiceUnavailableException": ServerError,
    "ResourceNotFoundException": RefusedRequestError,
    "ValidationException": RefusedRequestError,
}

# -- what is asked ---------------------------------------------------------------------------------------------------

# Settings that stand beside the messages, under their names in camel case.
_BESIDE = frozenset(
    (
        "additional_model_response_field_paths",
        "guardrail_config",
        "performance_config",
        "project_identifier",
        "prompt_variables",
        "request_metadata",
        "tool_config",
    )
)
# Those of `inferenceConfig`, with all names that they have.
_INFERENCE = {
    "max_tokens": "maxTokens",
    "max_completion_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop": "stopSequences",
    "stop_sequences": "stopSequences",
}
_MAPPED = frozenset(
    (
        "additional_model_request_fields",
        "logprobs",
        "output_config",
        "reasoning_effort",
        "response_format",
        "seed",
        "service_tier",
        "tool_choice",
        "tools",
    )
)
# All that has a place of its own. The rest is the model's.
_NOT_THE_MODELS = frozenset((*_BESIDE, *_INFERENCE, *_MAPPED))
_TAKEN = frozenset(("messages", "model", "modelId", "model_id", "stream", "system"))
_NO_PROBABILITIES = "It does not say how likely its words are."
# What other services take, with what to do.
_UNKNOWN = {
    "n": "More samples are more calls with other keys.",
    "logprobs": _NO_PROBABILITIES,
    "top_logprobs": _NO_PROBABILITIES,
}


def _asked(request: Request) -> dict[str, Any] | Failure:
    """The body besides the words, or why there is none."""
    given = request.parameters
    if taken := sorted(_TAKEN & given.keys()):
        return Failure(
            RefusedRequestError,
            f"the parameter {taken[0]!r} is not yours to set. The model id and the prompt set the model and the "
            "messages, `LLM(…, system=…)` the system prompt; `llm.stream` streams.",
        )
    for name in _UNKNOWN:
        if name in given and given[name] is not False:  # `logprobs=False` wants none
            return refused(name, f"Converse has no such parameter. {_UNKNOWN[name]}")
    names: dict[str, str] = {}
    for name in (name for name in given if name in _INFERENCE):
        if (other := names.setdefault(_INFERENCE[name], name)) != name:
            return refused(max(name, other), f"It means the same as {min(name, other)!r}, which is given too.")
    config = {place: _listed(given[name]) if place == "stopSequences" else given[name] for place, name in names.items()}
    body = {_camel(name): value for name, value in given.items() if name in _BESIDE}
    body |= {"inferenceConfig": config} if config else {}
    output, tools, own = _output_config(given), _tools(given), _fields(request)
    if (fault := next((part for part in (output, tools, own) if isinstance(part, Failure)), None)) is not None:
        return fault
    tier = given.get("service_tier")
    body |= {} if tier is None else {"serviceTier": {"type": tier} if isinstance(tier, str) else tier}
    parts = {"outputConfig": output, "toolConfig": tools, "additionalModelRequestFields": own}
    return {**body, **{name: part for name, part in parts.items() if part}}


def _fields(request: Request) -> dict[str, Any] | Failure:
    """What is the model's own."""
    given = request.parameters
    fields = {name: value for name, value in given.items() if name not in _NOT_THE_MODELS}
    if "seed" in given:
        fields["seed"] = given["seed"] if (seed := request.seed()) is None else seed
    if given.get("reasoning_effort") == "none":
        if "claude" not in request.model:
            return refused("reasoning_effort", "No thinking is asked for in a model's own words, which differ.")
        fields.setdefault("thinking", {"type": "disabled"})
    more = given.get("additional_model_request_fields") or {}
    if not isinstance(more, dict):
        return refused("additional_model_request_fields", "It is an object.")
    return {**fields, **more}


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _output_config(given: Mapping[str, Any]) -> dict[str, Any] | Failure:
    """What is asked of the output: how much effort, and in which form."""
    config = given.get("output_config") or {}
    if not isinstance(config, dict):
        return refused("output_config", "It is an object, with `effort` and `textFormat`.")
    effort = given.get("reasoning_effort")
    if effort == "minimal":
        return refused("reasoning_effort", 'The least effort is "low"; "none" is no thinking.')
    wished: dict[str, Any] = {} if effort in (None, "none") else {"effort": effort}
    match given.get("response_format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema, **rest}}:
            if isinstance(fits := fitted(schema), Failure):
                return fits
            named = {name: rest[name] for name in ("name", "description") if rest.get(name)}
            structure = {"jsonSchema": {**named, "schema": json.dumps(fits)}}
            wished["textFormat"] = {"type": "json_schema", "structure": structure}
        case _:
            return refused("response_format", "Converse knows schemas, but not any JSON; ask for it in the prompt.")
    if both := sorted(config.keys() & wished.keys()):
        name = {"effort": "reasoning_effort", "textFormat": "response_format"}[both[0]]
        return refused(name, f"`output_config` says `{both[0]}` too.")
    return {**config, **wished}


def _tools(given: Mapping[str, Any]) -> dict[str, Any] | Failure:
    """Tools that are given as chat completions has them, as this protocol does; others as they are."""
    tools = given.get("tools")
    if not isinstance(tools, list):
        return {}
    sent: dict[str, Any] = {"tools": [_tool(tool) for tool in tools]}
    match given.get("tool_choice"):
        case None:
            pass
        case "auto" | "any" as choice:
            sent["toolChoice"] = {choice: {}}
        case "required":
            sent["toolChoice"] = {"any": {}}
        case "none":
            return refused("tool_choice", 'There is no "none" here; leave `tools` out.')
        case {"type": "function", "function": {"name": name}}:
            sent["toolChoice"] = {"tool": {"name": name}}
        case choice:
            sent["toolChoice"] = choice
    return sent


def _tool(tool: Any) -> Any:
    match tool:
        case {"type": "function", "function": {"name": name, "parameters": schema, **rest}}:
            more = {word: rest[word] for word in ("description", "strict") if rest.get(word)}
            return {"toolSpec": {"name": name, **more, "inputSchema": {"json": schema}}}
    return tool


# -- the words -------------------------------------------------------------------------------------------------------

# Whose thoughts are given back: a conversation may go on with another vendor's model.
_OURS = "bedrock"
_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_OFFICE = "application/vnd.openxmlformats-officedocument"
_DOCUMENTS = {
    "application/pdf": "pdf",
    "application/msword": "doc",
    f"{_OFFICE}.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    f"{_OFFICE}.spreadsheetml.sheet": "xlsx",
    "text/csv": "csv",
    "text/html": "html",
    "text/markdown": "md",
}
# What a document's name may not have.
_UNNAMED = regex(r"[^A-Za-z0-9()\[\]-]+")


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]] | Failure:
    """The messages as this protocol has them: its two roles take turns, and the results of tools are the user's."""
    said = [("user" if m.role == "tool" else m.role, m) for m in messages if m.role != "system"]
    turns = []
    for role, group in itertools.groupby(said, lambda pair: pair[0]):
        blocks = [block for _, message in group for block in _sent(message)]
        if (fault := next((block for block in blocks if isinstance(block, Failure)), None)) is not None:
            return fault
        turns.append({"role": role, "content": blocks})
    names: collections.Counter[str] = collections.Counter()
    for document in (block["document"] for turn in turns for block in turn["content"] if "document" in block):
        names[document["name"]] += 1
        if (number := names[document["name"]]) > 1:  # two of one name are refused
            document["name"] += f" ({number})"
    return turns


def _sent(message: Message) -> list[dict[str, Any] | Failure]:
    if not message.parts:
        return [{"text": message.content}]
    kept = [part for part in message.parts if part.kind != "thought" or part.name == _OURS]
    return [_block(part) for part in kept if part.value or part.kind != "text"]


def _block(part: Part) -> dict[str, Any] | Failure:
    match part.kind:
        case "thought":  # as it came, see `_uttered`
            return tree_of(part.value.encode()) or {}
        case "tool_call":
            called = {"toolUseId": part.id, "name": part.name, "input": tree_of(part.value.encode()) or {}}
            return {"toolUse": called}
        case "tool_result":
            content = [{"text": part.value}] if part.value else []
            return {"toolResult": {"toolUseId": part.id, "content": content}}
        case "text":
            return {"text": part.value}
    held = _held(part.value)
    if held is None:
        return Failure(
            RefusedRequestError,
            f"Bedrock takes an {part.kind} from S3 (`s3://bucket/key`), or with the request, but follows no other "
            "URL. Load it before.",
        )
    kind, ending, source = held
    if part.kind == "audio":
        return {"audio": {"format": audio_format(part.value) if kind else ending, "source": source}}
    if part.kind == "image":
        return {"image": {"format": _IMAGES.get(kind, ending), "source": source}}
    form = _DOCUMENTS.get(kind) or ("txt" if kind.startswith("text/") else ending)
    stem = part.name.rpartition(".")[0] or part.name
    name = " ".join(_UNNAMED.sub(" ", stem).split())[:190] or "document"
    return {"document": {"format": form, "name": name, "source": source}}


def _held(url: str) -> tuple[str, str, dict[str, Any]] | None:
    """The type of what a URL holds, or of what it names the ending of its name, and the source as it is sent."""
    if url.startswith("s3://"):
        return "", url.rpartition(".")[2].lower(), {"s3Location": {"uri": url}}
    if not url.startswith("data:"):
        return None
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    kind = kind.partition(";")[0].lower()
    return kind, kind.rpartition("/")[2], {"bytes": data}


# -- what is answered ------------------------------------------------------------------------------------------------

# What msgspec checks an answer against. Fields that are not here are ignored.


@dataclass
class _CacheWrite:
    ttl: str | None = None
    inputTokens: int | None = None


@dataclass
class _Billed:
    inputTokens: int | None = None
    outputTokens: int | None = None
    cacheReadInputTokens: int | None = None
    cacheWriteInputTokens: int | None = None
    cacheDetails: list[_CacheWrite] | None = None


@dataclass
class _ServedTier:
    type: str | None = None


@dataclass
class _PromptRouter:
    invokedModelId: str | None = None


@dataclass
class _AnswerTrace:
    promptRouter: _PromptRouter | None = None


@dataclass
class _Conversed:
    # Checked in `_blocks`: what cannot be read has no default, as without it there is no answer.
    output: Any = None
    stopReason: str | None = None
    usage: _Billed | None = None
    serviceTier: _ServedTier | None = None
    trace: _AnswerTrace | None = None


_FINISHES = {
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "max_tokens": Finish.LENGTH,
    "model_context_window_exceeded": Finish.LENGTH,
    "tool_use": Finish.TOOL_CALLS,
    "malformed_tool_use": Finish.TOOL_CALLS,
    "guardrail_intervened": Finish.CONTENT_FILTER,
    "content_filtered": Finish.CONTENT_FILTER,
    "malformed_model_output": Finish.ERROR,
}


def _blocks(output: Any) -> list[dict[str, Any]] | None:
    """The blocks of an answer; `None` if it is none."""
    match output:
        case {"message": {"content": list() as blocks}} if all(isinstance(block, dict) for block in blocks):
            texts = [block["text"] for block in blocks if "text" in block]
            return blocks if all(isinstance(text, str) for text in texts) else None
    return None


class _Uttered(NamedTuple):
    """What an answer says, and how it ended."""

    text: str
    reasoning: str
    finish: Finish
    tool_calls: tuple[Part, ...] = ()


def _uttered(blocks: list[dict[str, Any]], reason: str | None, has_tools: bool) -> _Uttered:
    text = "".join(map(_text, blocks))
    thoughts = [block for block in blocks if "reasoningContent" in block]
    reasoning = "".join(map(_thought, thoughts))
    finish = _FINISHES.get(reason or "", Finish.OTHER)
    calls = [block["toolUse"] for block in blocks if has_tools and isinstance(block.get("toolUse"), dict)]
    # What the service calls itself, it has called.
    calls = [call for call in calls if call.get("type") != "server_tool_use"]
    if calls:
        # What was thought before a call has to be given back with it, as it came.
        kept = [Part("thought", json.dumps(block), _OURS) for block in thoughts]
        wanted = [
            Part("tool_call", json.dumps(c.get("input") or {}), str(c.get("name")), str(c.get("toolUseId")))
            for c in calls
        ]
        return _Uttered(text, reasoning, finish, (*kept, *wanted))
    # A model that only thought has said nothing, also where the service says that this is all.
    is_answer = bool(text.strip()) or not thoughts
    return _Uttered(text, reasoning, finish if is_answer or finish != Finish.STOP else Finish.OTHER)


def _text(block: dict[str, Any]) -> str:
    """The words of a block. Those that sources are cited for stand in a list."""
    match block:
        case {"text": str() as text}:
            return text
        case {"citationsContent": {"content": list() as cited}}:
            return "".join(map(_text, [part for part in cited if isinstance(part, dict)]))
    return ""


def _thought(block: dict[str, Any]) -> str:
    match block:
        case {"reasoningContent": {"reasoningText": {"text": str() as text}}}:
            return text
    return ""


def _response(
    answer: HTTPAnswer, request: Request, said: _Conversed, uttered: _Uttered, counted: Tokens | None
) -> Response:
    router = said.trace.promptRouter if said.trace else None
    model = (router.invokedModelId if router else None) or request.model
    tier = (said.serviceTier.type if said.serviceTier else None) or ""
    tokens = counted or Tokens()
    return Response(
        text=uttered.text,
        input_tokens=int(tokens.input),
        output_tokens=int(tokens.output),
        cost=float("nan") if counted is None else prices.cost(request, counted, model, tier),
        model=model,
        request_id=answer.headers.get("x-amzn-requestid", ""),
        finish=uttered.finish,
        reasoning=uttered.reasoning,
        cached_tokens=int(tokens.cached),
        cache_write_tokens=int(tokens.cache_write),
        service_tier=tier,
        tool_calls=uttered.tool_calls,
    )


def _tokens(usage: _Billed | None) -> Tokens | None:
    """What is billed, `None` if the service does not say. It counts what a cache has to do with beside the input."""
    if usage is None or (usage.inputTokens is None and usage.outputTokens is None):
        return None
    cached, written = count(usage.cacheReadInputTokens), count(usage.cacheWriteInputTokens)
    for_long = sum(count(write.inputTokens) for write in usage.cacheDetails or () if write.ttl == "1h")
    read = count(usage.inputTokens) + cached + written
    return Tokens(read, count(usage.outputTokens), cached, written, 0, min(for_long, written))
