"""Chat completions, the protocol of OpenAI and of every server that imitates it. Nothing here does IO."""

import bisect
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .._errors import MalformedResponseError, RefusedRequestError, ServerError
from . import prices, quota
from .base import Finish, Request, Response, Tokens
from .dialect import Dialect, Failure, HTTPAnswer, HTTPRequest, Meaning, Service, decoded, lenient, stated, tree_of
from .http import HTTPProvider, Vendor

if TYPE_CHECKING:
    import httpx

SERVICE = Service("OpenAI", "https://api.openai.com/v1", ("OPENAI_BASE_URL",), ("OPENAI_API_KEY",))


class OpenAI(Vendor):
    """OpenAI, or a server that speaks its chat-completions protocol.

    **Arguments:**

    - `base_url`: the server's URL up to and with `/v1`. By default the environment's `OPENAI_BASE_URL`, else OpenAI
        itself.
    - `api_key`: by default the environment's `OPENAI_API_KEY`, whatever the `base_url`; `""` sends none.
    - `client`: an `httpx.AsyncClient` of your own, for a proxy or another TLS setup. (Without it, proxies of the
        environment are not used.) It is used as it is, its timeouts included, and never closed here.
    - `timeout`: seconds to wait for the connection, again for the answer to begin, and for each further piece of it.
        It does not stop an answer that comes in pieces without end; `Retry(deadline=…)` does.

    The environment is read at each call. Prices are looked up by the provider name that it is registered under.

    **Raises:** `ValueError` for a `base_url` that is no whole URL.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | None" = None,
        timeout: float = 120.0,
    ):
        self._http = HTTPProvider(ChatCompletions(SERVICE), base_url, api_key, client, timeout)


@dataclass(frozen=True)
class ChatCompletions(Dialect):
    """The dialect of chat completions. A server that imitates OpenAI has a `Service` of its own."""

    service: Service
    # Gateways that speak this protocol to us, and stand before Anthropic's models, pass Anthropic's headers on.
    quota_headers: ClassVar[tuple[str, ...]] = (quota.OPENAI, quota.ANTHROPIC)

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def build(self, request: Request) -> HTTPRequest | Failure:
        taken = sorted({"model", "messages", "n", "stream"} & request.parameters.keys())
        if taken:
            return Failure(
                RefusedRequestError,
                f"the parameter {taken[0]!r} is not yours to set. The model id and the prompt set `model` and "
                "`messages`; more samples are more calls with other keys; answers are not streamed.",
            )
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        return HTTPRequest(
            "/chat/completions", {}, {"model": request.model, "messages": messages, **request.parameters}
        )

    def read(self, answer: HTTPAnswer, request: Request) -> Response | Failure:
        completion = decoded(answer, _Completion, "a chat completion", "does the base URL end with /v1?")
        if isinstance(completion, Failure):
            return completion._replace(tokens=_stated_tokens(answer.body))
        tokens = _tokens(completion.usage)
        if not completion.choices:
            return Failure(MalformedResponseError, "the answer has no choices.", (), tokens)
        choice = completion.choices[0]
        message, reason = choice.message, choice.finish_reason
        if choice.error is not None or reason == "error":
            said = stated(_encoded_error(choice.error)) or "it says no more of it."
            return Failure(ServerError, "the service failed while it answered: {}", (said,), tokens)
        text, reasoning = _parts(message)
        if text is None and reason is None and message.refusal is None:
            return Failure(MalformedResponseError, "the answer has no text (finish_reason None).", (), tokens)
        model = completion.model or request.model
        first, last = _place(choice.logprobs, text or "", bool(reasoning))
        return Response(
            text=(text or message.refusal or "") if message.refusal is None else message.refusal,
            input_tokens=int(tokens.input) if tokens else 0,
            output_tokens=int(tokens.output) if tokens else 0,
            cost=_cost(answer, request, model, completion.service_tier or "", completion.usage),
            logprob=_summed(choice.logprobs, first, last),
            model=model,
            request_id=answer.headers.get("x-request-id") or completion.id or "",
            alternatives=_alternatives(choice.logprobs, first, last),
            finish=_finish(message, text, reason),
            reasoning=reasoning,
            cached_tokens=int(tokens.cached) if tokens else 0,
            cache_write_tokens=int(tokens.cache_write) if tokens else 0,
            reasoning_tokens=int(tokens.reasoning) if tokens else 0,
            service_tier=completion.service_tier or "",
            fingerprint=completion.system_fingerprint or "",
        )

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        # OpenAI answers 429 as well for an account without credit. As a refusal for too many requests it would be tried
        # again, and never succeed.
        if answer.status == 429 and b"insufficient_quota" in answer.body:
            return Meaning(RefusedRequestError, " The account has no credit; waiting does not help.")
        return None


# What msgspec checks an answer against. Fields that are not here are ignored.


@dataclass
class _Message:
    # A string, or a list of parts, each an object with a `type`. What is neither is no text.
    content: Any = None
    refusal: str | None = None
    # Servers of models that reason use one of the two names.
    reasoning_content: Any = None
    reasoning: Any = None


@dataclass
class _Candidate:
    token: str
    logprob: float


@dataclass
class _Token:
    logprob: float
    token: str = ""
    # The token's own bytes in UTF-8, of which the token's words may show half a character.
    bytes: list[int] | None = None
    top_logprobs: list[_Candidate] | None = None


@dataclass
class _Logprobs:
    content: list[_Token] | None = None


@dataclass
class _Choice:
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    error: Any = None


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


# -- what was said ---------------------------------------------------------------------------------------------------

# The names of services that imitate OpenAI are among them.
_FINISHES = {
    "stop": Finish.STOP,
    "eos": Finish.STOP,
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "length": Finish.LENGTH,
    "max_tokens": Finish.LENGTH,
    "model_length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "tool_use": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
    "refusal": Finish.REFUSAL,
}


def _finish(message: _Message, text: str | None, reason: str | None) -> Finish:
    if message.refusal is not None:
        return Finish.REFUSAL
    if reason is None:
        return Finish.STOP if text == "" else Finish.OTHER
    finish = _FINISHES.get(reason, Finish.OTHER)
    # Without a text nothing was said, whatever the service calls it.
    return Finish.OTHER if text is None and finish == Finish.STOP else finish


def _parts(message: _Message) -> tuple[str | None, str]:
    """The text of a message, `None` if it has none, and the reasoning."""
    text, reasoning = message.content, _words(message.reasoning_content) or _words(message.reasoning) or ""
    if isinstance(text, list):
        # What is known to be no part of the text is told by its type; texts have different ones.
        thoughts = [part for part in text if isinstance(part, dict) and part.get("type") in _THOUGHTS]
        rest = [part for part in text if not (isinstance(part, dict) and part.get("type") in _THOUGHTS)]
        reasoning = reasoning or _words(thoughts) or ""
        text = _words(rest)
    return (text if isinstance(text, str) else None), reasoning


_THOUGHTS = ("reasoning", "thinking", "reasoning_text", "redacted_thinking", "summary_text")


def _words(value: Any) -> str | None:
    """The words in a string, in a part, or in all parts of a list; `None` if there are none."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return next(
            (found for k in ("text", "thinking", "content") if (found := _words(value.get(k))) is not None), None
        )
    if isinstance(value, list):
        found = [words for part in value if (words := _words(part)) is not None]
        return "".join(found) if found else None
    return None


def _encoded_error(error: Any) -> bytes:
    return json.dumps({"error": error}).encode()


# -- log-probabilities -----------------------------------------------------------------------------------------------


def _place(logprobs: _Logprobs | None, text: str, has_reasoning: bool) -> tuple[int, int]:
    """From which token to which, that one excluded, the answer's text goes; (0, 0) if that cannot be told.

    vLLM and llama.cpp list the tokens of the reasoning too, the mark that ends it, and that which ends the answer.
    """
    tokens = (logprobs.content or []) if logprobs is not None else []
    whole, ends = b"", []
    for token in tokens:
        whole += token.token.encode("utf-8", "replace") if token.bytes is None else bytes(b & 255 for b in token.bytes)
        ends.append(len(whole))
    sought = text.strip().encode("utf-8", "replace")
    begin = whole.rfind(sought) if sought else -1
    if begin < 0:
        return (0, 0) if has_reasoning else (0, len(tokens))
    return bisect.bisect_right(ends, begin), bisect.bisect_left(ends, begin + len(sought)) + 1


def _summed(logprobs: _Logprobs | None, first: int, last: int) -> float:
    tokens = (logprobs.content or [])[first:last] if logprobs is not None else []
    return math.fsum(token.logprob for token in tokens) if tokens else math.nan


def _alternatives(logprobs: _Logprobs | None, first: int, last: int) -> tuple[tuple[str, float], ...]:
    tokens = (logprobs.content or [])[first:last] if logprobs is not None else []
    return tuple((c.token, c.logprob) for c in (tokens[0].top_logprobs or ())) if tokens else ()


# -- what it costs ---------------------------------------------------------------------------------------------------


def _tokens(usage: _Usage | None) -> Tokens | None:
    if usage is None:
        return None
    read, written = usage.prompt_tokens_details or _InputDetails(), usage.completion_tokens_details or _OutputDetails()
    # xAI and Google count the reasoning beside the completion, and only in the total. It is billed as any output.
    beside = (usage.total_tokens or 0) - (usage.prompt_tokens or 0)
    counts = (
        usage.prompt_tokens,
        max(usage.completion_tokens or 0, beside),
        read.cached_tokens,
        read.cache_write_tokens,
        written.reasoning_tokens,
    )
    return Tokens(*(max(count or 0, 0) for count in counts))


def _stated_tokens(body: bytes) -> Tokens | None:
    """What a body that is no completion says that it bills."""
    tree = tree_of(body)
    usage = tree.get("usage") if isinstance(tree, dict) else None
    try:
        return _tokens(lenient(usage, _Usage)) if isinstance(usage, dict) else None
    except ValueError:
        return None


def _cost(answer: HTTPAnswer, request: Request, model: str, tier: str, usage: _Usage | None) -> float:
    """By the price table; where it knows none, what the service says itself; else NaN."""
    tokens = _tokens(usage)
    dollars = math.nan if tokens is None else prices.cost(request, tokens, model, tier)
    if not math.isnan(dollars):
        return dollars
    if usage is not None and usage.cost is not None and usage.cost >= 0:
        return usage.cost
    try:
        return float(answer.headers.get("x-litellm-response-cost", ""))
    except ValueError:
        return math.nan
