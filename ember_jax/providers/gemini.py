"""Google's Gemini, over `generateContent`, its own protocol. Nothing here does IO.

The wire is that of google-genai 3.6.1, which `tests/sdk/gemini.json` has in full. The paths begin with `/v1` and not,
as Google's guides have it, with `/v1beta`. Names are in camel case, except within `thinkingConfig`.
"""

import json
import math
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..errors import (
    AuthenticationError,
    MalformedResponseError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from . import decisions, embeddings, prices, quota
from .base import BatchLimits, Decisions, Finish, Message, Part, Request, Response, Tokens
from .dialect import (
    Dialect,
    Failure,
    HTTPAnswer,
    HTTPRequest,
    Listing,
    Meaning,
    SampledAnswers,
    Service,
    count,
    decoded,
    stated,
    tree_of,
    usage_in,
)
from .http import TIMEOUT, HTTPProvider, Vendor
from .logprobs import Candidate, Token, alternatives, of_text, summed
from .meanings import of_litellm

if TYPE_CHECKING:
    import httpx
    import httpx2

SERVICE = Service(
    "Gemini",
    "https://generativelanguage.googleapis.com",
    ("GOOGLE_GEMINI_BASE_URL",),
    ("GOOGLE_API_KEY", "GEMINI_API_KEY"),  # if both are set, the SDK takes the first
    version="/v1",
)


class Gemini(Vendor):
    """Google's Gemini, or a server that speaks its protocol.

    **Arguments:**

    - `base_url`: the server's URL; `/v1` is added to one that does not end with a version. By default the
        environment's `GOOGLE_GEMINI_BASE_URL`, else Google itself.
    - `api_key`: by default the environment's `GOOGLE_API_KEY`, else `GEMINI_API_KEY`, whatever the `base_url`; `""`
        sends none.
    - `client`: an `AsyncClient` of httpx or httpx2, for a proxy or another TLS setup. It is used as it is, its timeouts
        included, and never closed here.
    - `timeout`: seconds to wait for the answer to begin, and again for each further piece of it. The whole answer may
        take six times as long.

    Settings have the names that other services use, too: `max_tokens` (thoughts count in it), `stop`, `logprobs`,
    `top_logprobs`, `response_format`, `reasoning_effort`. `include_thoughts=True` shows the thoughts, as the answer's
    reasoning. Of Google's own there are `safety_settings`, `thinking_config`, `cached_content`, `tools` and others.

    An `Embedder` takes `task_type`, such as `"RETRIEVAL_DOCUMENT"` or `"RETRIEVAL_QUERY"`, and `title`. Vectors that
    have another number of dimensions than the model's own may be of another length than 1.

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
        self._http = HTTPProvider(GenerateContent(SERVICE), base_url, api_key, client, timeout)


@dataclass(frozen=True)
class GenerateContent(Dialect):
    """The dialect of `generateContent`."""

    service: Service
    listing: ClassVar[Listing] = Listing(
        "/models?pageSize=1000", {}, "models", "name", "models/", ("nextPageToken", "pageToken")
    )
    embeds: ClassVar[bool] = True
    # Google tells no quota in headers, but gateways do.
    quota_headers: ClassVar[tuple[str, ...]] = quota.FAMILIES

    def authorization(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key}

    def build(self, request: Request) -> HTTPRequest | Failure:
        if request.embeds:
            return _embed(request)
        if request.decides:
            return decisions.built(decisions.OF_GOOGLE, decisions.GOOGLE, request)
        asked = _asked(request)
        if isinstance(asked, str):
            return Failure(RefusedRequestError, asked)
        system = [{"text": m.content} for m in request.messages if m.role == "system"]
        body: dict[str, Any] = {
            "contents": [
                {"parts": _sent(m), "role": _ROLES.get(m.role, m.role)} for m in request.messages if m.role != "system"
            ],
        }
        if system:
            body["systemInstruction"] = {"parts": system, "role": "user"}
        return HTTPRequest(f"{_path(request)}:generateContent", {}, {**body, **asked})

    def read(self, answer: HTTPAnswer, request: Request) -> Response | SampledAnswers | Failure:
        if request.embeds:
            return _embedded(answer, request)
        if request.decides:
            return decisions.read(decisions.OF_GOOGLE, answer, request)
        said = decoded(answer, _Generated, "of generateContent", "is the base URL right?")
        if isinstance(said, Failure):
            return said._replace(tokens=_tokens(usage_in(answer.body, _Usage, "usageMetadata")))
        tokens = _tokens(said.usageMetadata)
        if not said.candidates:
            if said.promptFeedback is not None and said.promptFeedback.blockReason:
                return _response(request, said, _SaidContent("", "", Finish.CONTENT_FILTER), tokens, None)
            return Failure(
                MalformedResponseError, "the answer has no candidates: {}", (stated(answer.body) or "nothing",), tokens
            )
        content = _content(said.candidates[0], (tokens or Tokens()).reasoning > 0, "tools" in request.parameters)
        if content is None:
            words = "the answer is not of generateContent: its JSON has another form (no list of parts in `content`)."
            return Failure(MalformedResponseError, words, (), tokens)
        return _response(request, said, content, tokens, said.candidates[0])

    def least_prefix(self, request: Request) -> float:
        return next((least for begin, least in _LEAST_KEPT if request.model.startswith(begin)), _LEAST)

    def most_output(self, request: Request) -> float:
        limit = request.parameters.get("max_output_tokens")
        return limit if type(limit) is int else prices.context_window(request.provider, request.model)

    def batch_limits(self, request: Request) -> BatchLimits:
        return BatchLimits(texts=100)  # "at most 100 requests can be in one batch"

    def decisions(self, request: Request) -> Decisions | None:
        # Which models do is not stated, so each of them is asked once.
        return decisions.GOOGLE if decisions.takes(decisions.OF_GOOGLE, request) else None

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        details = list(_details(answer.body))
        # Google answers 400 for a key that it does not know.
        if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
            return Meaning(AuthenticationError, self.service.advice)
        seconds = next((s for detail in details if (s := _seconds(detail.get("retryDelay"))) is not None), None)
        if answer.status == 429:
            # It asks to wait for some seconds also where the quota of a day is used up.
            if any("PerDay" in name for detail in details for name in _quotas(detail)):
                return Meaning(RefusedRequestError, " The quota of the day is used up.")
            return Meaning(RateLimitError, "", seconds)
        if answer.status >= 500 and seconds is not None:
            return Meaning(ServerError, "", seconds)
        return of_litellm(answer, self.service)


def _resource(request: Request) -> str:
    """The model by its name as a resource. That may begin with another collection, as a tuned one's does."""
    return request.model if "/" in request.model else f"models/{request.model}"


def _path(request: Request) -> str:
    return f"/{urllib.parse.quote(_resource(request), safe='/:@')}"


# -- vectors ---------------------------------------------------------------------------------------------------------

# Settings of a request for vectors, with the names that they are sent under. Decimals are as exact as base64, for they
# were float32, so `encoding_format` is of no matter.
_OF_VECTORS = {
    "dimensions": "outputDimensionality",
    "output_dimensionality": "outputDimensionality",
    "task_type": "taskType",
    "title": "title",
}


def _embed(request: Request) -> HTTPRequest | Failure:
    """What to send for the vectors of a request's texts: a content for each, as several in one are one vector."""
    if unknown := sorted(request.parameters.keys() - _OF_VECTORS.keys() - {"encoding_format"}):
        return Failure(RefusedRequestError, f"Gemini has no parameter {unknown[0]!r} for vectors; leave it out.")
    given = {_OF_VECTORS[k]: v for k, v in request.parameters.items() if k in _OF_VECTORS}
    asked = [
        {"model": _resource(request), "content": {"parts": [{"text": message.content}]}, **given}
        for message in request.messages
    ]
    return HTTPRequest(f"{_path(request)}:batchEmbedContents", {}, {"requests": asked})


def _embedded(answer: HTTPAnswer, request: Request) -> Response | Failure:
    """What an answer with a status of success says: the vectors in the order of the texts."""
    said = decoded(answer, _Embedded, "of batchEmbedContents", "is the base URL right?")
    if isinstance(said, Failure):
        return said._replace(tokens=_tokens(usage_in(answer.body, _Usage, "usageMetadata")))
    vectors = [embedding.values for embedding in said.embeddings]
    return embeddings.response(answer, request, vectors, _tokens(said.usageMetadata), request.model, "")


# -- what is asked ---------------------------------------------------------------------------------------------------

_ROLES = {"assistant": "model", "tool": "user"}
# Whose parts are given back as they came: a conversation may go on with another vendor's model.
_OURS = "gemini"


def _sent(message: Message) -> list[dict[str, Any]]:
    """The parts of a message. What a model said that wants tools called is given back as it came, see `_content`."""
    if not message.parts:
        return [{"text": message.content}]
    whole = next((part.value for part in message.parts if part.kind == "thought" and part.name == _OURS), None)
    if whole is not None:
        return tree_of(whole.encode()) or []
    return [_part(part) for part in message.parts if part.kind != "thought" and (part.value or part.kind != "text")]


def _part(part: Part) -> dict[str, Any]:
    match part.kind:
        case "tool_call":
            return {"functionCall": {"name": part.name, "args": tree_of(part.value.encode()) or {}, **_id(part)}}
        case "tool_result":
            return {"functionResponse": {"name": part.name, "response": {"output": part.value}, **_id(part)}}
        case "text":
            return {"text": part.value}
    if not part.value.startswith("data:"):
        return {"fileData": {"fileUri": part.value}}
    kind, _, data = part.value.removeprefix("data:").partition(";base64,")
    return {"inlineData": {"mimeType": kind, "data": data}}


def _id(part: Part) -> dict[str, str]:
    return {} if part.id.startswith(_MADE_UP) else {"id": part.id}


# The fewest tokens of a prompt's beginning that are kept without being asked for, by how a model's name begins, as in
# LiteLLM's table (1.110.2). Models before 2.5 keep only what is uploaded to be kept.
_LEAST_KEPT = (("gemini-2.5-pro", 2_048), ("gemini-2.5-", 1_024), ("gemini-2", math.inf), ("gemini-1", math.inf))
_LEAST = 4_096

# How the ids begin of calls that came without one.
_MADE_UP = "gemini-call-"

# Settings that stand in `generationConfig`, and beside it, under their names in camel case.
_CONFIG = frozenset(
    (
        "audio_transcription_config",
        "enable_enhanced_civic_answers",
        "frequency_penalty",
        "image_config",
        "max_output_tokens",
        "media_resolution",
        "presence_penalty",
        "response_json_schema",
        "response_logprobs",
        "response_mime_type",
        "response_modalities",
        "response_schema",
        "speech_config",
        "stop_sequences",
        "temperature",
        "thinking_config",
        "top_k",
        "top_p",
    )
)
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_BESIDE = frozenset(("cached_content", "labels", "safety_settings", "service_tier", "store", "tool_config", "tools"))
# What other services have another form of.
_MAPPED = frozenset(
    (
        "include_thoughts",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "tool_choice",
        "top_logprobs",
    )
)
_TAKEN = frozenset(("candidate_count", "contents", "messages", "model", "n", "stream", "system_instruction"))


def _asked(request: Request) -> dict[str, Any] | str:
    """The body besides the words; or in our words why there is none."""
    given = request.parameters
    if taken := sorted(_TAKEN & given.keys()):
        return (
            f"the parameter {taken[0]!r} is not yours to set. The model id and the prompt set the model and the "
            "contents; more samples are more calls with other keys; answers are not streamed."
        )
    if unknown := sorted(given.keys() - _CONFIG - _BESIDE - _MAPPED):
        return f"Gemini has no parameter {unknown[0]!r}; leave it out."
    limits = [name for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in given]
    if len(limits) > 1:
        return f"the parameters {limits[0]!r} and {limits[1]!r} are one; give one of them."
    config: dict[str, Any] = {_camel(k): v for k, v in given.items() if k in _CONFIG}
    if limits:
        config["maxOutputTokens"] = given[limits[0]]
    if "stop" in given:
        config["stopSequences"] = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    if "seed" in given:
        config["seed"] = given["seed"] if (seed := request.seed()) is None else seed
    if logprobs := given.get("logprobs"):
        config["responseLogprobs"] = True
        if logprobs is not True:  # Google's own form, the number of alternatives
            config["logprobs"] = logprobs
    if "top_logprobs" in given:
        config["logprobs"] = given["top_logprobs"]
    form = _answer_form(given.get("response_format"))
    if form is None:
        return "the parameter 'response_format' is of no type that Gemini has: 'json_schema', 'json_object', 'text'."
    config |= form
    if thinking := _thinking(request):
        config["thinkingConfig"] = thinking
    beside = {_camel(k): v for k, v in given.items() if k in _BESIDE} | _tools(given)
    return {**beside, "generationConfig": config} if config else beside


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tools that are given as chat completions has them, as this protocol does; others as they are."""
    sent: dict[str, Any] = {}
    tools = given.get("tools")
    if isinstance(tools, list):
        functions = [tool["function"] for tool in tools if isinstance(tool, dict) and tool.get("type") == "function"]
        others = [tool for tool in tools if not (isinstance(tool, dict) and tool.get("type") == "function")]
        declared = [
            {"name": f["name"], "description": f.get("description", ""), "parametersJsonSchema": f["parameters"]}
            for f in functions
        ]
        sent["tools"] = ([{"functionDeclarations": declared}] if declared else []) + others
    match given.get("tool_choice"):
        case str() as choice:
            sent["toolConfig"] = {"functionCallingConfig": {"mode": _MODES.get(choice, choice.upper())}}
        case {"function": {"name": name}}:
            sent["toolConfig"] = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": [name]}}
    return sent


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _answer_form(given: Any) -> dict[str, Any] | None:
    """What asks for an answer in JSON, from OpenAI's form of it; `None` if it is another one."""
    match given:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_object"}:
            return {"responseMimeType": "application/json"}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    return None


# How many tokens of thought an effort is, as Google's endpoint for chat completions has it.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
# These models take a budget, and later ones a level.
_WITH_BUDGET = ("gemini-1", "gemini-2")


def _thinking(request: Request) -> dict[str, Any]:
    given = request.parameters
    said: dict[str, Any] = {}
    if "reasoning_effort" in given:
        effort = str(given["reasoning_effort"]).lower()
        takes_budget = request.model.rpartition("/")[2].startswith(_WITH_BUDGET)
        if effort == "none" or (effort in _BUDGETS and takes_budget):
            said["thinking_budget"] = _BUDGETS[effort]
        else:
            said["thinking_level"] = effort.upper()
    if "include_thoughts" in given:
        said["include_thoughts"] = given["include_thoughts"]
    own = given.get("thinking_config")
    return {**said, **own} if isinstance(own, dict) else said


# -- what is answered ------------------------------------------------------------------------------------------------

# What msgspec checks an answer against. Fields that are not here are ignored.


@dataclass
class _Probable:
    token: str = ""
    logProbability: float | None = None


@dataclass
class _TopCandidates:
    candidates: list[_Probable] | None = None


@dataclass
class _LogprobsResult:
    chosenCandidates: list[_Probable] | None = None
    topCandidates: list[_TopCandidates] | None = None


@dataclass
class _OneCandidate:
    # An object with a list of parts, either of which may be missing. It is checked in `_parts`: what cannot be read has
    # no default, as without it there is no answer.
    content: Any = None
    finishReason: str | None = None
    avgLogprobs: float | None = None
    logprobsResult: _LogprobsResult | None = None


@dataclass
class _Usage:
    promptTokenCount: int | None = None
    toolUsePromptTokenCount: int | None = None
    candidatesTokenCount: int | None = None
    thoughtsTokenCount: int | None = None
    cachedContentTokenCount: int | None = None
    totalTokenCount: int | None = None


@dataclass
class _Feedback:
    blockReason: str | None = None


@dataclass
class _Generated:
    candidates: list[_OneCandidate] | None = None
    promptFeedback: _Feedback | None = None
    usageMetadata: _Usage | None = None
    modelVersion: str | None = None
    responseId: str | None = None


@dataclass
class _VectorValues:
    values: Any


@dataclass
class _Embedded:
    embeddings: list[_VectorValues]
    usageMetadata: _Usage | None = None


_FINISHES = {
    "STOP": Finish.STOP,
    "MAX_TOKENS": Finish.LENGTH,
    "SAFETY": Finish.CONTENT_FILTER,
    "RECITATION": Finish.CONTENT_FILTER,
    "BLOCKLIST": Finish.CONTENT_FILTER,
    "PROHIBITED_CONTENT": Finish.CONTENT_FILTER,
    "SPII": Finish.CONTENT_FILTER,
    "IMAGE_SAFETY": Finish.CONTENT_FILTER,
    "IMAGE_PROHIBITED_CONTENT": Finish.CONTENT_FILTER,
    "IMAGE_RECITATION": Finish.CONTENT_FILTER,
    "MODEL_ARMOR": Finish.CONTENT_FILTER,
    "MALFORMED_FUNCTION_CALL": Finish.TOOL_CALLS,
    "UNEXPECTED_TOOL_CALL": Finish.TOOL_CALLS,
    "TOO_MANY_TOOL_CALLS": Finish.TOOL_CALLS,
    "MALFORMED_RESPONSE": Finish.ERROR,
}


class _SaidContent(NamedTuple):
    """What a candidate says, and how it ended."""

    text: str
    reasoning: str
    finish: Finish
    tool_calls: tuple[Part, ...] = ()


def _content(candidate: _OneCandidate, has_thought: bool, has_tools: bool) -> _SaidContent | None:
    """What a candidate says; `None` if that cannot be told. Thoughts are counted also where they are not shown."""
    parts = _parts(candidate.content)
    if parts is None:
        return None
    words = [(bool(part.get("thought")), part["text"]) for part in parts if isinstance(part.get("text"), str)]
    text = "".join(text for is_thought, text in words if not is_thought)
    reasoning = "".join(text for is_thought, text in words if is_thought)
    finish = _FINISHES.get(candidate.finishReason or "", Finish.OTHER)
    if finish == Finish.STOP:
        if any("functionCall" in part for part in parts):
            finish = Finish.TOOL_CALLS
        elif not text.strip() and (reasoning or has_thought):
            finish = Finish.OTHER  # a model that only thought has said nothing
    calls = [part["functionCall"] for part in parts if has_tools and isinstance(part.get("functionCall"), dict)]
    if not calls:
        return _SaidContent(text, reasoning, finish)
    # Signatures of thoughts stand in any of the parts, and have to be given back where they were.
    whole = Part("thought", json.dumps(parts), _OURS)
    wanted = [
        Part("tool_call", json.dumps(c.get("args") or {}), str(c.get("name")), c.get("id") or f"{_MADE_UP}{i}")
        for i, c in enumerate(calls)
    ]
    return _SaidContent(text, reasoning, finish, (whole, *wanted))


def _parts(content: Any) -> list[dict[str, Any]] | None:
    """The parts of a content; `None` if it is none. Of an answer without words parts or the content may be missing."""
    if content is None:
        return []
    parts = content.get("parts") if isinstance(content, dict) else content
    if parts is None:
        return []
    return parts if isinstance(parts, list) and all(isinstance(part, dict) for part in parts) else None


def _response(
    request: Request, said: _Generated, content: _SaidContent, counted: Tokens | None, candidate: _OneCandidate | None
) -> Response:
    model = (said.modelVersion or request.model).removeprefix("models/")
    tokens = counted or Tokens()
    listed = _listed(candidate.logprobsResult if candidate else None)
    if listed:
        listed = of_text(listed, content.text, has_reasoning=bool(content.reasoning or tokens.reasoning))
    logprob = summed(listed) if listed else math.nan
    if math.isnan(logprob) and candidate is not None and candidate.avgLogprobs is not None and not tokens.reasoning:
        logprob = candidate.avgLogprobs * tokens.output  # some models tell the mean alone
    return Response(
        text=content.text,
        input_tokens=int(tokens.input),
        output_tokens=int(tokens.output),
        cost=math.nan if counted is None else prices.cost(request, counted, model),
        logprob=logprob,
        model=model,
        request_id=said.responseId or "",
        alternatives=alternatives(listed) if listed else (),
        finish=content.finish,
        reasoning=content.reasoning,
        cached_tokens=int(tokens.cached),
        reasoning_tokens=int(tokens.reasoning),
        tool_calls=content.tool_calls,
    )


def _listed(result: _LogprobsResult | None) -> list[Token]:
    """The tokens of an answer, as chat completions list them."""
    chosen = (result.chosenCandidates if result else None) or []
    places = (result.topCandidates if result else None) or []
    tops = [[Candidate(c.token, c.logProbability) for c in place.candidates or ()] for place in places]
    tops += [[] for _ in chosen[len(tops) :]]
    return [Token(c.logProbability, c.token, None, top) for c, top in zip(chosen, tops, strict=False)]


# -- what it costs ---------------------------------------------------------------------------------------------------


def _tokens(usage: _Usage | None) -> Tokens | None:
    """What is billed, `None` if the service does not say."""
    if usage is None or (usage.promptTokenCount is None and usage.candidatesTokenCount is None):
        return None
    read = count(usage.promptTokenCount) + count(usage.toolUsePromptTokenCount)
    thoughts = count(usage.thoughtsTokenCount)
    written = count(usage.candidatesTokenCount)
    # Thoughts are billed as any output. Google counts them beside the candidates, and some gateways in them; the total
    # tells which.
    total = count(usage.totalTokenCount) - read
    written = max(total, written) if total > 0 else written + thoughts
    return Tokens(read, written, count(usage.cachedContentTokenCount), 0, min(thoughts, written))


# -- what an error says ----------------------------------------------------------------------------------------------


def _details(body: bytes) -> Iterator[dict[str, Any]]:
    """The details of an error: objects with an `@type`, such as `…/google.rpc.RetryInfo`."""
    tree = tree_of(body)
    if isinstance(tree, list) and len(tree) == 1:
        tree = tree[0]
    error = tree.get("error") if isinstance(tree, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return (detail for detail in details if isinstance(detail, dict)) if isinstance(details, list) else iter(())


def _quotas(detail: dict[str, Any]) -> Iterator[str]:
    """The quotas that a refused request went beyond, such as `GenerateRequestsPerDayPerProjectPerModel`."""
    violations = detail.get("violations")
    for violation in violations if isinstance(violations, list) else ():
        if isinstance(violation, dict):
            yield str(violation.get("quotaId"))


def _seconds(duration: Any) -> float | None:
    """A duration as protobuf writes it, such as `27.5s`, in seconds; `None` if it is none."""
    try:
        seconds = float(duration.removesuffix("s"))
    except (AttributeError, ValueError):
        return None
    return seconds if 0 <= seconds < math.inf else None
