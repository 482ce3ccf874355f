"""Chat completions, the protocol of OpenAI and of every server that imitates it. Nothing here does IO."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .._errors import MalformedResponseError, RefusedRequestError
from . import prices, quota
from .base import Request, Response
from .dialect import Dialect, Failure, HTTPAnswer, HTTPRequest, Meaning, Service, decoded
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
            return completion
        if not completion.choices:
            return Failure(MalformedResponseError, "the answer has no choices.")
        choice = completion.choices[0]
        if choice.message.content is None:
            return _no_text(choice)
        usage = completion.usage or _Usage()
        tokens = max(usage.prompt_tokens or 0, 0), max(usage.completion_tokens or 0, 0)
        model = completion.model or request.model
        return Response(
            text=choice.message.content,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost=prices.of_answer(request.provider, request.model, model, *tokens) if completion.usage else math.nan,
            logprob=_summed(choice.logprobs),
            model=model,
            request_id=answer.headers.get("x-request-id", ""),
            alternatives=_alternatives(choice.logprobs),
        )

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        # OpenAI answers 429 as well for an account without credit. As a refusal for too many requests it would be tried
        # again, and never succeed.
        if answer.status == 429 and b"insufficient_quota" in answer.body:
            return Meaning(RefusedRequestError, " The account has no credit; waiting does not help.")
        return None


# The forms that msgspec checks an answer against. Fields of the answer that are not here are ignored.


@dataclass
class _Message:
    content: str | None = None
    refusal: str | None = None


@dataclass
class _Candidate:
    token: str
    logprob: float


@dataclass
class _Token:
    logprob: float
    top_logprobs: list[_Candidate] | None = None


@dataclass
class _Logprobs:
    content: list[_Token] | None = None


@dataclass
class _Choice:
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


@dataclass
class _Usage:
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass
class _Completion:
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


def _no_text(choice: _Choice) -> Failure:
    refusal = choice.message.refusal
    if refusal is not None or choice.finish_reason == "content_filter":
        said = refusal or "its content filter stopped the answer."
        return Failure(RefusedRequestError, "the model declined: {}", (said,))
    if choice.finish_reason is None:
        return Failure(MalformedResponseError, "the answer has no text (finish_reason None).")
    # The answer is whole, but has no text. It was paid for, and another attempt would be too, so it is not malformed
    # but refused, which is not tried again.
    advice = " Give it more max_tokens." * (choice.finish_reason == "length")
    words = "the answer has no text (finish_reason {!r})." + advice
    return Failure(RefusedRequestError, words, (choice.finish_reason,))


def _summed(logprobs: _Logprobs | None) -> float:
    if logprobs is None or not logprobs.content:
        return math.nan
    return math.fsum(token.logprob for token in logprobs.content)


def _alternatives(logprobs: _Logprobs | None) -> tuple[tuple[str, float], ...]:
    first = logprobs.content[0] if logprobs is not None and logprobs.content else None
    return tuple((c.token, c.logprob) for c in (first.top_logprobs or ())) if first is not None else ()
