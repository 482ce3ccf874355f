"""Chat completions, the protocol of OpenAI and of every server that imitates it. Nothing here does IO."""

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from .._regex import regex
from ..errors import MalformedResponseError, RefusedRequestError, ServerError
from . import decisions, embeddings, prices, quota, rerank
from .base import BatchLimits, Decisions, Finish, Part, Request, Response, Tokens
from .chat import PartForm, chat_content, chat_messages
from .chunks import COUNTED, Chunks
from .dialect import (
    Dialect,
    Failure,
    HTTPAnswer,
    HTTPRequest,
    Meaning,
    SampledAnswers,
    Service,
    Stream,
    count,
    decoded,
    dollars,
    stated_in,
    usage_in,
)
from .http import TIMEOUT, HTTPProvider, Vendor
from .logprobs import Candidate, Token, alternatives, of_text, summed
from .meanings import of_litellm, of_openai
from .responses import Responses

if TYPE_CHECKING:
    import httpx
    import httpx2

SERVICE = Service("OpenAI", "https://api.openai.com/v1", ("OPENAI_BASE_URL",), ("OPENAI_API_KEY",))


class OpenAI(Vendor):
    """OpenAI, or a server that speaks one of its protocols, chat completions or Responses.

    **Arguments:**

    - `base_url`: the server's URL up to and with `/v1`. By default the environment's `OPENAI_BASE_URL`, else OpenAI
        itself.
    - `api_key`: by default the environment's `OPENAI_API_KEY`, whatever the `base_url`; `""` sends none.
    - `client`: an `AsyncClient` of httpx or httpx2, for a proxy or another TLS setup. (Without it, proxies of the
        environment are not used.) It is used as it is, its timeouts included, and never closed here.
    - `timeout`: seconds to wait for the answer to begin, and again for each further piece of it. The whole answer may
        take six times as long. `Retry(deadline=…)` bounds a call and all that it waits for.

    - `api`: `"chat"` or `"responses"`; by default Responses for those of OpenAI's models that speak nothing else (the
        `pro` ones, `codex`, `deep-research`, `computer-use`), and chat completions for all others. Settings are those
        of chat completions in both.

    The environment is read at each call. Prices are looked up by the provider name that it is registered under.

    **Raises:** `ValueError` for a `base_url` that is no whole URL, and another `api`; `TypeError` for another `client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None" = None,
        timeout: float = TIMEOUT,
        api: Literal["chat", "responses"] | None = None,
    ):
        if api not in (None, "chat", "responses"):
            raise ValueError(f'OpenAI(api={api!r}): give "chat" or "responses", or None to decide by the model.')
        dialect = {None: ChatOrResponses, "chat": ChatCompletions, "responses": Responses}[api](SERVICE)
        self._http = HTTPProvider(dialect, base_url, api_key, client, timeout)


# OpenAI's models that decide without words [openai 3.57.0].
_DECIDING = regex(r"gpt-6-luna\b")
# OpenAI's models that are had by Responses alone.
_RESPONSES_ALONE = regex(r"(?:o\d+|gpt-\d[\w.]*)-pro\b|.*-codex\b|codex-|.*deep-research|computer-use")


@dataclass(frozen=True)
class ChatOrResponses(Dialect):
    """The dialect of OpenAI: Responses for models that have nothing else, and chat completions."""

    service: Service
    embeds: ClassVar[bool] = True
    ranks: ClassVar[bool] = True  # as gateways do that are asked by it
    quota_headers: ClassVar[tuple[str, ...]] = quota.FAMILIES

    def _of(self, request: Request) -> Dialect:
        is_alone = request.asks_words and _RESPONSES_ALONE.match(request.model)
        return Responses(self.service) if is_alone else ChatCompletions(self.service)

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def build(self, request: Request) -> HTTPRequest | Failure:
        if request.decides:
            return decisions.built(decisions.OF_OPENAI, decisions.OPENAI, request)
        return self._of(request).build(request)

    def read(self, answer: HTTPAnswer, request: Request) -> Response | SampledAnswers | Failure:
        if request.decides:
            return decisions.read(decisions.OF_OPENAI, answer, request)
        return self._of(request).read(answer, request)

    def stream(self, request: Request) -> Stream | None:
        return self._of(request).stream(request)

    def most_output(self, request: Request) -> float:
        return self._of(request).most_output(request)

    def most_samples(self, request: Request) -> int:
        return self._of(request).most_samples(request)

    def decisions(self, request: Request) -> Decisions | None:
        has_it = _DECIDING.match(request.model) and decisions.takes(decisions.OF_OPENAI, request)
        return decisions.OPENAI if has_it else None

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        return ChatCompletions(self.service).meaning(answer)


_COMMON = BatchLimits()


@dataclass(frozen=True)
class Deviations:
    """How a service that imitates OpenAI differs from it in what it is sent.

    **Fields:**

    - `renamed`: parameters with the names that it has for them.
    - `key_header`: the header that it reads the key from; empty for a bearer token.
    - `counts_logprobs`: whether `logprobs` is the number of alternatives, and there is no `top_logprobs`.
    - `most_samples`: how many samples one request may ask for; 128 is OpenAI's limit.
    - `batch`: how much may be in one request for vectors.
    - `content`: the form of a message's parts.
    - `has_stream_options`: whether it must be asked for the tokens of an answer that it streams.
    - `decisions`: what its `/systemone` takes of questions, if it has that.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    key_header: str = ""
    counts_logprobs: bool = False
    most_samples: int = 128
    batch: BatchLimits = _COMMON
    content: PartForm = chat_content
    has_stream_options: bool = True
    decisions: Decisions | None = None


@dataclass(frozen=True)
class ChatCompletions(Dialect):
    """The dialect of chat completions. A server that imitates OpenAI has a `Service` of its own."""

    service: Service
    deviations: Deviations = Deviations()
    embeds: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    # Gateways that speak this protocol to us, and stand before other vendors' models, pass those vendors' headers on.
    quota_headers: ClassVar[tuple[str, ...]] = quota.FAMILIES

    def authorization(self, key: str) -> dict[str, str]:
        header = self.deviations.key_header
        return {header: key} if header else {"Authorization": f"Bearer {key}"}

    def build(self, request: Request) -> HTTPRequest | Failure:
        if request.embeds:
            return embeddings.built(request, dict(self.deviations.renamed))
        if request.ranks:
            return rerank.built(request, "/rerank")
        if request.decides and (limits := self.decisions(request)) is not None:
            return decisions.built(decisions.OF_SYSTEMONE, limits, request)
        taken = sorted({"model", "messages", "n", "stream"} & request.parameters.keys())
        if taken:
            return Failure(
                RefusedRequestError,
                f"the parameter {taken[0]!r} is not yours to set. The model id and the prompt set `model` and "
                "`messages`; more samples are more calls with other keys; `llm.stream(prompt)` streams.",
            )
        messages = chat_messages(request, self.deviations.content)
        body = {"model": request.model, "messages": messages, **request.parameters}
        if (seed := request.seed()) is not None:
            body["seed"] = seed
        if request.answers > 1:
            body["n"] = request.answers
        for name, own in self.deviations.renamed:
            if name in body and own in body:
                return Failure(RefusedRequestError, f"the parameters {name!r} and {own!r} are one; give one of them.")
            if name in body:
                body[own] = body.pop(name)
        if self.deviations.counts_logprobs and body.get("logprobs") is True:
            body["logprobs"] = body.pop("top_logprobs", None) or 1
        return HTTPRequest("/chat/completions", {}, body)

    def read(self, answer: HTTPAnswer, request: Request) -> Response | SampledAnswers | Failure:
        if request.embeds:
            return embeddings.read(answer, request)
        if request.ranks:
            return rerank.read(answer, request)
        if request.decides:
            return decisions.read(decisions.OF_SYSTEMONE, answer, request)
        completion = decoded(answer, _Completion, "a chat completion", "does the base URL end with /v1?")
        if isinstance(completion, Failure):
            return completion._replace(tokens=_tokens(usage_in(answer.body, _Usage)))
        tokens = _tokens(completion.usage)
        if (request.answers == 1 or not completion.choices) and (why := _why_failed(completion)) is not None:
            return Failure(ServerError, "the service failed while it answered: {}", (why,), tokens)
        if not completion.choices:
            return Failure(MalformedResponseError, "the answer has no choices.", (), tokens)
        if request.answers > 1:
            return _samples(answer, request, completion, tokens)
        choice = completion.choices[0]
        said = _said(choice.message, choice.finish_reason, "tools" in request.parameters)
        if isinstance(said, str):
            return Failure(MalformedResponseError, said, (), tokens)
        return _response(answer, request, completion, said, tokens)

    def stream(self, request: Request) -> Chunks:
        return Chunks(COUNTED if self.deviations.has_stream_options else {"stream": True})

    def most_output(self, request: Request) -> float:
        return prices.context_window(request.provider, request.model)

    def most_samples(self, request: Request) -> int:
        # Each sample has a seed of its own, and one request has one seed.
        return 1 if {"seed", "n", "stream"} & request.parameters.keys() else self.deviations.most_samples

    def batch_limits(self, request: Request) -> BatchLimits:
        return self.deviations.batch

    def decisions(self, request: Request) -> Decisions | None:
        return self.deviations.decisions if decisions.takes(decisions.OF_SYSTEMONE, request) else None

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        # llama.cpp parses an answer before it sends it, and sends none that it cannot parse. Under a JSON schema that
        # happens now and then, so it is no fault of the request.
        if answer.status == 500 and b"The model produced output that does not match the expected" in answer.body:
            return Meaning(MalformedResponseError, " The server could not read its own model's answer.")
        return of_openai(answer) or of_litellm(answer, self.service)


# What msgspec checks an answer against. Fields that are not here are ignored.


@dataclass
class _Callee:
    name: str
    arguments: Any = ""


@dataclass
class _ToolCall:
    function: _Callee
    id: str | None = None


@dataclass
class _Message:
    # A string, or a list of parts: objects with a `type`, see `_parts`. It is checked there: what cannot be read has no
    # default, as without it there is no answer.
    content: Any = None
    refusal: str | None = None
    # Servers of models that reason use one of the two names.
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_ToolCall] | None = None


@dataclass
class _Logprobs:
    content: list[Token] | None = None
    # The form of completions that are no chat, which Together has for both: a value for each token.
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None

    @property
    def listed(self) -> list[Token] | None:
        if self.content is not None or self.tokens is None or self.token_logprobs is None:
            return self.content
        tops = [[Candidate(*pair) for pair in (top or {}).items()] for top in self.top_logprobs or ()]
        tops += [[] for _ in self.tokens[len(tops) :]]
        listed = zip(self.tokens, self.token_logprobs, tops, strict=False)
        return [Token(logprob, token, None, top) for token, logprob, top in listed]


@dataclass
class _Choice:
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    error: Any = None
    index: int | None = None


@dataclass
class _InputDetails:
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


@dataclass
class _OutputDetails:
    reasoning_tokens: int | None = None


@dataclass
class _Usage:
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    # US dollars, which some gateways state.
    cost: float | None = None


@dataclass
class _Completion:
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
    error: Any = None


# -- what was said ---------------------------------------------------------------------------------------------------

# The names are those of OpenAI, and of services that imitate it or stand before others, in small letters.
_FINISHES = {
    "stop": Finish.STOP,
    "eos": Finish.STOP,
    "eos_token": Finish.STOP,
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "complete": Finish.STOP,
    "length": Finish.LENGTH,
    "max_tokens": Finish.LENGTH,
    "model_length": Finish.LENGTH,
    "model_context_window_exceeded": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "tool_use": Finish.TOOL_CALLS,
    "tool_call": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
    "safety": Finish.CONTENT_FILTER,
    "refusal": Finish.REFUSAL,
}


def _why_failed(completion: _Completion) -> str | None:
    """Why the service failed while it answered, in its own words; `None` if it did not."""
    choice = completion.choices[0] if completion.choices else _Choice(_Message())
    reason, why = choice.finish_reason, stated_in(choice.error) or stated_in(completion.error)
    # Some gateways send an empty `error` with every answer. One beside the choices counts only if it says something,
    # and if the answer did not end by itself.
    is_error = any(choice.error.values()) if isinstance(choice.error, dict) else choice.error
    has_failed = is_error or (why if reason is None else reason.casefold() == "error")
    return (why or "it does not say why.") if has_failed else None


class _Content(NamedTuple):
    """What a message says, and how it ended."""

    text: str
    reasoning: str
    finish: Finish
    tool_calls: tuple[Part, ...] = ()


def _said(message: _Message, reason: str | None, has_tools: bool) -> _Content | str:
    """What a message says, or in our words why that cannot be told."""
    calls = tuple(map(_called, itertools.count(), message.tool_calls or ())) if has_tools else ()
    if calls:  # some servers give another reason beside them
        text, reasoning, _ = _parts(message) if _is_content(message.content) else ("", "", None)
        cut = _FINISHES.get((reason or "").casefold()) == Finish.LENGTH
        return _Content(text or "", reasoning, Finish.LENGTH if cut else Finish.TOOL_CALLS, calls)
    if not _is_content(message.content):
        return "the answer is not a chat completion: its JSON has another form (no string and no parts in `content`)."
    text, reasoning, refusal = _parts(message)
    if refusal or (refusal is not None and text is None):
        return _Content(refusal, reasoning, Finish.REFUSAL)
    # A model that only thought has said nothing, also where the service says that this is all.
    is_answer = text is not None and not (reasoning and not text.strip())
    if reason is None:
        if text is None:
            return "the answer has no text (finish_reason None)."
        # Nothing says that the model had more to say, so that an empty text is its answer.
        return _Content(text, reasoning, Finish.STOP if is_answer and not text else Finish.OTHER)
    finish = _FINISHES.get(reason.casefold(), Finish.OTHER)
    return _Content(text or "", reasoning, finish if is_answer or finish != Finish.STOP else Finish.OTHER)


def _called(number: int, call: _ToolCall) -> Part:
    # Arguments are JSON in a string; some servers send the JSON itself, and some no id.
    given = call.function.arguments
    arguments = given if isinstance(given, str) else json.dumps(given)
    return Part("tool_call", arguments or "{}", call.function.name, call.id or f"call_{number}")


def _is_content(content: Any) -> bool:
    is_list = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    return content is None or isinstance(content, str) or is_list


def _parts(message: _Message) -> tuple[str | None, str, str | None]:
    """The text of a message, its reasoning, and its refusal; there may be none of the first and the last."""
    reasoning = _words(message.reasoning_content) or _words(message.reasoning) or ""
    if not isinstance(message.content, list):
        return message.content, reasoning, message.refusal
    # What is no part of the text is told by its type. Texts have several types, and sometimes none.
    texts, thoughts, refusals = [], [], []
    for part in message.content:
        kind = str(part.get("type"))
        if kind == "refusal":
            refusals.append(part.get("refusal"))
        else:
            (thoughts if kind.startswith(_THOUGHTS) else texts).append(part)
    return _words(texts), reasoning or _words(thoughts) or "", message.refusal or _words(refusals)


# How the types of parts begin that are reasoning.
_THOUGHTS = ("reasoning", "thinking", "redacted_thinking", "summary")


def _words(value: Any) -> str | None:
    """The words in a string, in a part, or in all parts of a list; `None` if there are none."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        found = (_words(value.get(name)) for name in ("text", "thinking", "content", "summary"))
        return next((words for words in found if words is not None), None)
    if isinstance(value, list):
        found = [words for part in value if (words := _words(part)) is not None]
        return "".join(found) if found else None
    return None


def _response(
    answer: HTTPAnswer, request: Request, completion: _Completion, said: _Content, counted: Tokens | None
) -> Response:
    model = completion.model or request.model
    tokens = counted or Tokens()
    logprobs = completion.choices[0].logprobs
    listed = logprobs.listed if logprobs is not None else None
    if listed:
        listed = of_text(listed, said.text, has_reasoning=bool(said.reasoning or tokens.reasoning))
    return Response(
        text=said.text,
        input_tokens=int(tokens.input),
        output_tokens=int(tokens.output),
        cost=_cost(answer, request, model, completion.service_tier or "", completion.usage, counted),
        logprob=summed(listed) if listed else math.nan,
        model=model,
        request_id=answer.headers.get("x-request-id") or completion.id or "",
        alternatives=alternatives(listed) if listed else (),
        finish=said.finish,
        reasoning=said.reasoning,
        cached_tokens=int(tokens.cached),
        cache_write_tokens=int(tokens.cache_write),
        reasoning_tokens=int(tokens.reasoning),
        service_tier=completion.service_tier or "",
        fingerprint=completion.system_fingerprint or "",
        tool_calls=said.tool_calls,
    )


def _samples(
    answer: HTTPAnswer, request: Request, completion: _Completion, tokens: Tokens | None
) -> SampledAnswers | Failure:
    """What each choice says, by the order of their indices; a failure if none of them says anything."""
    numbered = sorted(enumerate(completion.choices), key=lambda c: c[0] if c[1].index is None else c[1].index)
    each: list[Response | Failure] = []
    for _, choice in numbered[: request.answers]:
        alone = dataclasses.replace(completion, choices=[choice])
        if (why := _why_failed(alone)) is not None:
            each.append(Failure(ServerError, "the service failed while it answered: {}", (why,)))
            continue
        said = _said(choice.message, choice.finish_reason, "tools" in request.parameters)
        if isinstance(said, str):
            each.append(Failure(MalformedResponseError, said))
        else:
            each.append(_response(answer, request, alone, said, None))
    answered = next((one for one in each if isinstance(one, Response)), None)
    if answered is None:
        failure = each[0]
        assert isinstance(failure, Failure)
        return failure._replace(tokens=tokens)
    counted = tokens or Tokens()
    whole = answered._replace(
        input_tokens=int(counted.input),
        output_tokens=int(counted.output),
        cost=_cost(answer, request, answered.model, answered.service_tier, completion.usage, tokens),
        cached_tokens=int(counted.cached),
        cache_write_tokens=int(counted.cache_write),
        reasoning_tokens=int(counted.reasoning),
    )
    return SampledAnswers(whole, tuple(each))


# -- what it costs ---------------------------------------------------------------------------------------------------


def _tokens(usage: _Usage | None) -> Tokens | None:
    """What is billed, `None` if the service does not say."""
    if usage is None or (usage.prompt_tokens is None and usage.completion_tokens is None):
        return None
    read, written = usage.prompt_tokens_details, usage.completion_tokens_details
    # xAI and Google count the reasoning beside the completion, and only in the total. It is billed as any output.
    beside = 0 if usage.prompt_tokens is None else (usage.total_tokens or 0) - max(usage.prompt_tokens, 0)
    return Tokens(
        count(usage.prompt_tokens),
        max(count(usage.completion_tokens), beside),
        count(read.cached_tokens) if read else 0,
        count(read.cache_write_tokens) if read else 0,
        count(written.reasoning_tokens) if written else 0,
    )


def _cost(
    answer: HTTPAnswer, request: Request, model: str, tier: str, usage: _Usage | None, tokens: Tokens | None
) -> float:
    """By the price table; where it knows none, what the service says itself; else NaN."""
    known = math.nan if tokens is None else prices.cost(request, tokens, model, tier)
    if not math.isnan(known):
        return known
    return dollars(usage.cost if usage is not None else None, answer.headers.get("x-litellm-response-cost"))
