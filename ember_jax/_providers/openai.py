"""Chat completions, the protocol of OpenAI and of every server that imitates it.

`OpenAI.build` makes a request and `OpenAI.read` understands an answer, both as plain data; `OpenAI.complete` is the
only place that does IO.
"""

import asyncio
import datetime
import email.utils
import functools
import json
import math
import os
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._errors import (
    AuthenticationError,
    ConnectionFailedError,
    MalformedResponseError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from .._regex import regex
from . import prices, quota
from .base import Provider, Request, Response

if TYPE_CHECKING:
    import httpx

_DEFAULT_BASE = "https://api.openai.com/v1"
_DEFAULT_HOST = "api.openai.com"

# uvicorn, and with it vLLM, closes a connection after 5 idle seconds.  Ours must let go first: a request sent just as
# the server closes is lost, and a POST is not sent again by the client.
_KEEPALIVE = 4.0

_QUOTED = 300


# A body from this size on is sent in pieces: in one it would hold up the event loop, and aiohttp warns of it.
_LARGE = 1 << 20
_PIECE = 1 << 16


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


class OpenAI(Provider):
    """OpenAI, or a server that speaks its chat-completions protocol.

    **Arguments:**

    - `base_url`: up to and with `/v1`. By default the environment's `OPENAI_BASE_URL`, else OpenAI itself.
    - `api_key`: by default the environment's `OPENAI_API_KEY`, whatever the `base_url`; `""` sends none.
    - `client`: an `httpx.AsyncClient` of your own, for a proxy or another TLS setup (the environment's proxies are not
        used otherwise). It is used as it is, its timeouts included, and never closed here.
    - `timeout`: seconds to wait for the connection, again for the answer to begin, and for each further piece of it.
        An answer that comes in pieces without end is `Retry(deadline=…)`'s to stop.

    The environment is read at each call. Prices are those of the provider name that it is registered under. Raises
    `ValueError` for a `base_url` that is not one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | None" = None,
        timeout: float = 120.0,
    ):
        fault = "" if base_url is None else _fault_in(base_url)
        if fault:
            raise ValueError(f"OpenAI(base_url=…): {fault}")
        self._base_url = base_url
        self._api_key = api_key
        self._client = client
        self._timeout = timeout
        self._own: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient] | None = None

    def __repr__(self) -> str:
        return f"OpenAI(base_url={self._base_url!r}, timeout={self._timeout!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._api_key or self._client is not None:
            raise TypeError(
                "an OpenAI(api_key=…) or OpenAI(client=…) is not pickled: the key would lie in the bytes. Leave both "
                "out, and each process reads OPENAI_API_KEY."
            )
        return OpenAI, (self._base_url, self._api_key, None, self._timeout)

    @property
    def endpoint(self) -> str:
        """The base URL. Raises `RefusedRequestError` for an `OPENAI_BASE_URL` that is not one."""
        return self._base()

    def check(self, model: str) -> None:
        """Every name may be a model: only the server knows, and asking it would be IO."""

    def cost(self, request: Request, input_tokens: float, output_tokens: float) -> float:
        return prices.cost(request.provider, request.model, input_tokens, output_tokens)

    def most_output(self, request: Request) -> float:
        return prices.context_window(request.provider, request.model)

    def build(self, request: Request) -> tuple[str, dict[str, str], dict[str, Any]]:
        """The URL, the headers and the JSON body to send.

        Raises `AuthenticationError` where OpenAI itself is asked without a key, `RefusedRequestError` for parameters
        that this library sets itself and for an `OPENAI_BASE_URL` that is not one.
        """
        base = self._base()
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        elif urllib.parse.urlsplit(base).hostname == _DEFAULT_HOST:
            raise AuthenticationError(
                f"{_id(request)}: there is no API key. Set the environment variable OPENAI_API_KEY, or "
                f"register({request.provider!r}, OpenAI(api_key=…))."
            )
        taken = sorted({"model", "messages", "n", "stream"} & request.parameters.keys())
        if taken:
            raise RefusedRequestError(
                f"{_id(request)}: the parameter {taken[0]!r} is not yours to set. The model id and the prompt set "
                "`model` and `messages`; more samples are more calls with other keys; answers are not streamed."
            )
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        body = {"model": request.model, "messages": messages, **request.parameters}
        return f"{base}/chat/completions", headers, body

    def read(self, status: int, headers: Mapping[str, str], body: bytes, request: Request) -> Response:
        """What an HTTP answer to `request` says.

        Raises `AuthenticationError` (401, 403), `RateLimitError` (429), `ServerError` (408, 5xx), `RefusedRequestError`
        (any other 4xx, a redirect, spent credit, or a model that declines) and `MalformedResponseError`.
        """
        headers = {name.lower(): value for name, value in headers.items()}
        if not 200 <= status < 300:
            raise self._failure(status, headers, body, request)
        completion = self._decoded(body, headers.get("content-type", ""), request)
        if not completion.choices:
            raise MalformedResponseError(f"{_id(request)}: the answer has no choices.", status=status)
        choice = completion.choices[0]
        if choice.message.content is None:
            raise self._no_text(choice, request)
        usage = completion.usage or _Usage()
        tokens = max(usage.prompt_tokens or 0, 0), max(usage.completion_tokens or 0, 0)
        return Response(
            text=choice.message.content,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost=_cost(request, completion.model, tokens) if completion.usage else math.nan,
            logprob=_summed(choice.logprobs),
            model=completion.model or request.model,
            request_id=headers.get("x-request-id", ""),
            alternatives=_alternatives(choice.logprobs),
            quota=quota.read(headers, lambda: _now(headers)),
        )

    async def complete(self, request: Request) -> Response:
        # Imported on the first request: they take a fifth of a second that `import ember_jax` must not take.
        import aiohttp
        import httpx

        url, headers, body = self.build(request)
        content = _encoded(body, request)
        client = self._client or await self._own_client()
        try:
            address = _parsed(url)
            if len(content) < _LARGE:
                answer = await client.post(address, headers=headers, content=content)
            else:
                sized = {**headers, "Content-Length": str(len(content))}
                answer = await client.post(address, headers=sized, content=_pieces(content))
        except httpx.InvalidURL as error:
            failure = RefusedRequestError(f"{_id(request)}: {url} is not a URL: {error}.")
        except httpx.DecodingError as error:
            failure = MalformedResponseError(f"{_id(request)}: the answer cannot be decompressed: {error}")
        except (httpx.TransportError, aiohttp.ClientError, OSError) as error:
            # The transport maps most of aiohttp's errors to httpx's, but not that of an answer that is not HTTP.
            words = self._scrubbed(str(error)) or type(error).__name__
            hint = " Give OpenAI(timeout=…) more seconds." if isinstance(error, httpx.ReadTimeout) else ""
            # Of the errors of a connection only this one is sure to come before anything is sent; the transport calls
            # it a timeout, and names the cause.
            unconnected = httpx.ConnectError | aiohttp.ClientConnectorError
            was_sent = not isinstance(error, unconnected) and not isinstance(error.__cause__, unconnected)
            failure = ConnectionFailedError(
                f"{_id(request)}: no complete answer from {url}: {words}.{hint}", was_sent=was_sent
            )
        else:
            return self.read(answer.status_code, answer.headers, answer.content, request)
        # Raised here, not above: the transport's error holds the request's headers, and with them the key, and must
        # not travel along as the cause.
        raise failure

    async def close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            await _retire(*own)

    async def _own_client(self) -> "httpx.AsyncClient":
        """The client of the running loop; connections cannot outlive the loop that opened them."""
        loop = asyncio.get_running_loop()
        if self._own is not None and self._own[0] is loop:
            return self._own[1]
        old, self._own = self._own, (loop, client := _open_client(self._timeout))
        if old is not None:
            await _retire(*old)
        return client

    def _base(self) -> str:
        base = self._base_url
        if base is None:
            base = os.environ.get("OPENAI_BASE_URL", "").strip() or _DEFAULT_BASE
            if fault := _fault_in(base):
                raise RefusedRequestError(f"The environment variable OPENAI_BASE_URL: {fault}")
        return base.rstrip("/")

    def _key(self) -> str:
        key = os.environ.get("OPENAI_API_KEY", "") if self._api_key is None else self._api_key
        # A key read from a file ends with a newline.
        key = key.strip()
        if not all("!" <= c <= "~" for c in key):
            raise AuthenticationError(
                "The API key (OPENAI_API_KEY, or OpenAI(api_key=…)) has a character that no key has; copy it again."
            )
        return key

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes, request: Request) -> ProviderError:
        kind, advice = _meaning(status)
        if status == 429 and b"insufficient_quota" in body:  # OpenAI's word for an account without credit
            kind, advice = RefusedRequestError, " The account has no credit; waiting does not help."
        words = self._scrubbed(_stated(body) or _readable(body)) or "(no message)"
        return kind(
            f"{_id(request)}: HTTP {status}: {words}{advice}",
            status=status,
            retry_after=_retry_after(headers),
            quota=quota.read(headers, lambda: _now(headers)),
        )

    def _decoded(self, body: bytes, content_type: str, request: Request) -> "_Completion":
        # Imported on the first answer, so that `import ember_jax` stays cheap.
        import msgspec

        try:
            return msgspec.json.decode(body, type=_Completion)
        except (ValueError, RecursionError) as error:
            # Some gateways state an error with status 200.
            words = self._scrubbed(_stated(body) or _fault(body, error))
            kind = self._scrubbed(content_type)
            hint = "" if "json" in kind else f" It is {kind!r}; does the base URL end with /v1?"
            raise MalformedResponseError(
                f"{_id(request)}: the answer is not a chat completion: {words}.{hint}", status=200
            ) from None

    def _no_text(self, choice: "_Choice", request: Request) -> ProviderError:
        refusal = choice.message.refusal
        if refusal is not None or choice.finish_reason == "content_filter":
            words = self._scrubbed(refusal or "its content filter stopped the answer.")
            return RefusedRequestError(f"{_id(request)}: the model declined: {words}", status=200)
        words = f"{_id(request)}: the answer has no text (finish_reason {choice.finish_reason!r})."
        if choice.finish_reason is None:
            return MalformedResponseError(words, status=200)
        # a whole answer: it was paid for, and would be again
        return RefusedRequestError(words + " Give it more max_tokens." * (choice.finish_reason == "length"), status=200)

    def _scrubbed(self, words: str) -> str:
        """A provider's own words on one line, without anything that is or looks like a key, and not too long."""
        key = self._key()
        if key:
            words = words.replace(key, "[key]")
        words = " ".join(_SECRET.sub("[key]", words).split())
        return words if len(words) <= _QUOTED else words[: _QUOTED - 1] + "…"


# What msgspec checks an answer against.  Fields that are not here are ignored.


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


_SECRET = regex(r"\bsk-[^\s\"'<>,;)]+|\bBearer\s+[^\s\"'<>,;)]+")


def _id(request: Request) -> str:
    return f"{request.provider}/{request.model}"


def _fault_in(base_url: str) -> str:
    """Why a base URL cannot be used, or nothing."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        # Reading the port is what checks it.
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_whole = None, False
    if parts is None or not is_whole:
        return "give a whole URL, such as 'http://localhost:8000/v1'."
    # A password in a URL would be shown wherever the URL is.
    if parts.username or parts.password or parts.query or parts.fragment:
        return "give the URL without user, password, query and fragment; the key is an argument of its own."
    return ""


@functools.lru_cache(maxsize=64)  # parsing takes as long as the rest of a request's building, and all go to one address
def _parsed(url: str) -> "httpx.URL":
    import httpx

    return httpx.URL(url)


def _open_client(timeout: float) -> "httpx.AsyncClient":
    """An HTTP client on the running loop with as many connections as there are requests in flight."""
    # Imported on the first request, see `complete`.
    import aiohttp
    import httpx
    import httpx_aiohttp

    tls = httpx.create_ssl_context()

    def session() -> aiohttp.ClientSession:
        # The session is ours because limits of httpx reach the transport's own session only as far as they are
        # numbers: `None`, which to httpx is "no limit", leaves aiohttp's default of 100.  How many requests are in
        # flight is the runtime's to decide, so `limit=0`: none.
        connector = aiohttp.TCPConnector(limit=0, ssl=tls, keepalive_timeout=_KEEPALIVE)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    class NoCookies(httpx.Cookies):
        def extract_cookies(self, response: httpx.Response) -> None:
            pass

    class Client(httpx.AsyncClient):
        """Neither it nor its transport keeps cookies: calls must not depend on each other.

        httpx would look for them in each answer, by way of urllib, also where a policy lets none through: 30 µs.
        """

        @property
        def cookies(self) -> httpx.Cookies:  # pyright: ignore[reportIncompatibleMethodOverride]  # it is not set
            return none

    none = NoCookies()
    transport = httpx_aiohttp.AiohttpTransport(verify=tls, client=session)
    return Client(transport=transport, timeout=timeout)


async def _retire(loop: asyncio.AbstractEventLoop, client: "httpx.AsyncClient") -> None:
    """Closes a client, on its own loop where that still lives."""
    if loop is asyncio.get_running_loop() or loop.is_closed():
        await client.aclose()
    else:
        asyncio.run_coroutine_threadsafe(client.aclose(), loop)


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # `json.dumps` would make one for each call


def _encoded(body: Mapping[str, Any], request: Request) -> bytes:
    """The JSON to send; half of a surrogate pair in a prompt is escaped, as JSON can."""
    try:
        return _encode(body).encode("ascii")
    except (TypeError, ValueError) as error:
        raise RefusedRequestError(f"{_id(request)}: a parameter is not a JSON value: {error}") from None


def _meaning(status: int) -> tuple[type[ProviderError], str]:
    """What a status other than 200 is raised as, and the advice that goes with it."""
    if status in (401, 403):
        return AuthenticationError, " Check OPENAI_API_KEY, or the argument api_key of OpenAI(api_key=…)."
    if status == 429:
        return RateLimitError, ""
    if status == 408 or 500 <= status < 600:
        return ServerError, ""
    if 400 <= status < 500:
        return RefusedRequestError, ""
    if 300 <= status < 400:
        return RefusedRequestError, " The server redirects; give its final address as base_url."
    return MalformedResponseError, ""


def _tree(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _fault(body: bytes, error: ValueError | RecursionError) -> str:
    """Why a body could not be read as a completion.

    The reader's own words are only added to ours: they change from one release to the next. They say where the fault
    is, and quote nothing of the body, which may be a completion.
    """
    import msgspec

    if not body:
        return "it is empty"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"its JSON has another form ({error})"
    # The reader looks at the bytes of a string only when it decodes it, and has no type of error for what it finds.
    try:
        body.decode()
    except UnicodeDecodeError as where:
        return f"it is not UTF-8 (byte {where.start})"
    return f"it is not whole JSON ({error})"


def _readable(body: bytes) -> str:
    """A body as text. JSON is written anew, because a key in it might be hidden from the eye by escapes."""
    tree = _tree(body)
    return body.decode("utf-8", "replace") if tree is None else json.dumps(tree, ensure_ascii=False)


def _stated(body: bytes) -> str:
    """The provider's own error message, where the body is JSON that has one in a usual place."""
    tree = _tree(body)
    error = tree.get("error", tree) if isinstance(tree, dict) else None
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a provider asks to wait, in any of the three forms that are in use."""
    seconds = _number(headers.get("retry-after-ms"), 1e-3)
    if seconds is None:
        seconds = _number(headers.get("retry-after"), 1.0)
    if seconds is None and (then := _timestamp(headers.get("retry-after"))) is not None:
        seconds = then - _now(headers)
    return None if seconds is None else max(seconds, 0.0)


def _now(headers: Mapping[str, str]) -> float:
    """The time by the server's clock where it says, because ours may be off by more than what it is asked for."""
    said = _timestamp(headers.get("date"))
    return time.time() if said is None else said


def _number(value: str | None, unit: float) -> float | None:
    try:
        number = float((value or "").partition(",")[0])  # a header that came twice is one, with commas between
    except ValueError:
        return None
    return number * unit if math.isfinite(number) else None


def _timestamp(value: str | None) -> float | None:
    """The seconds since 1970 of an HTTP date, which is in GMT where it names no zone."""
    try:
        date = email.utils.parsedate_to_datetime(value or "")
        return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _cost(request: Request, model: str | None, tokens: tuple[int, int]) -> float:
    """By the model that answered, else by the one that was asked for: a dated name may not be in the table."""
    dollars = prices.cost(request.provider, model or request.model, *tokens)
    return prices.cost(request.provider, request.model, *tokens) if math.isnan(dollars) else dollars


def _summed(logprobs: _Logprobs | None) -> float:
    if logprobs is None or not logprobs.content:
        return math.nan
    return math.fsum(token.logprob for token in logprobs.content)


def _alternatives(logprobs: _Logprobs | None) -> tuple[tuple[str, float], ...]:
    first = logprobs.content[0] if logprobs is not None and logprobs.content else None
    return tuple((c.token, c.logprob) for c in (first.top_logprobs or ())) if first is not None else ()
