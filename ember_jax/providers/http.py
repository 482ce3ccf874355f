"""HTTP for vendors: what is the same in all protocols over it.

It finds the base URL and the key, holds the client, reads the headers that ask to wait or tell a quota, scrubs
credentials from a service's words, and raises the typed errors. The client sends and waits, see `transport.py`. What
differs between protocols is in a `Dialect`; `dialect.py` says how a vendor is added.

`HTTPProvider` is final and holds a dialect, and a vendor's public class holds an `HTTPProvider`. Nothing overrides a
method. (The alternative was a base class with hooks that vendors override. Then neither the base class nor a vendor
could be read or tested without the other.)
"""

import abc
import asyncio
import datetime
import difflib
import email.utils
import json
import math
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .._regex import regex
from ..errors import (
    AuthenticationError,
    ConnectionFailedError,
    MalformedResponseError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from . import prices, quota, tokens
from .base import BatchLimits, Decisions, Finish, Provider, Request, Response, Tokens
from .clouds import Cloud
from .dialect import (
    Dialect,
    Failure,
    HTTPAnswer,
    HTTPRequest,
    Meaning,
    SampledAnswers,
    Service,
    Stream,
    readable,
    stated,
)
from .environment import first_set
from .transport import GivenClient, NoAnswer, OwnClient

if TYPE_CHECKING:
    import httpx
    import httpx2

# How many seconds a service may take to answer by default, as in the vendors' own clients: models that reason take
# minutes before the first byte comes, and an answer that is given up is billed all the same.
TIMEOUT = 600.0

# How many characters of a service's words an error quotes.
_QUOTED = 300


class Vendor(Provider):
    """A vendor's public class, abstract: it answers by the `HTTPProvider` that a final class holds in `_http`."""

    _http: "HTTPProvider"

    @abc.abstractmethod
    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None" = None,
        timeout: float = TIMEOUT,
    ):
        """The arguments of every vendor, see `HTTPProvider`; their defaults are the vendor's own."""

    def __repr__(self) -> str:
        return repr(self._http)

    @property
    def endpoint(self) -> str:
        """The base URL. Raises `RefusedRequestError` if an environment variable holds one that is no URL."""
        return self._http.endpoint

    @property
    def service(self) -> Service:
        """Where the service is, and the environment variables that its users set."""
        return self._http.service

    @property
    def cloud(self) -> Cloud | None:
        """Whose credentials are sent if there is no key; `None` where only keys are."""
        return self._http.cloud

    @property
    def price_table(self) -> str:
        return self._http.price_table

    def check(self, model: str) -> None:
        """Every name may be a model: only the server knows, and asking it would be IO."""
        self._http.check(model)

    def cost(self, request: Request, tokens: Tokens) -> float:
        return self._http.cost(request, tokens)

    def most_cost(self, request: Request, tokens: Tokens) -> float:
        return self._http.most_cost(request, tokens)

    def most_output(self, request: Request) -> float:
        return self._http.most_output(request)

    def most_samples(self, request: Request) -> int:
        return self._http.most_samples(request)

    def batch_limits(self, request: Request) -> BatchLimits:
        return self._http.batch_limits(request)

    def least_prefix(self, request: Request) -> float:
        return self._http.least_prefix(request)

    def marks_prefix(self, request: Request) -> bool:
        return self._http.marks_prefix(request)

    def decisions(self, request: Request) -> Decisions | None:
        return self._http.decisions(request)

    def build(self, request: Request) -> tuple[str, dict[str, str], dict[str, Any]]:
        """The URL, the headers and the JSON body that are sent, see `HTTPProvider.build`."""
        return self._http.build(request)

    def read(self, status: int, headers: Mapping[str, str], body: bytes, request: Request) -> Response:
        """What an HTTP answer to `request` says, see `HTTPProvider.read`."""
        return self._http.read(status, headers, body, request)

    async def complete(self, request: Request) -> Response:
        return await self._http.complete(request)

    async def stream(self, request: Request, told: Callable[[str], object]) -> Response:
        return await self._http.stream(request, told)

    async def models(self) -> tuple[str, ...]:
        """The names of its models, as the service lists them, see `HTTPProvider.models`."""
        return await self._http.models()

    async def close(self) -> None:
        await self._http.close()


# What people give as a key to a server that asks for none, as the manuals of local servers tell them to. It is an
# ordinary word, which an error may need.
_NO_KEY = regex(
    r"|-|k|x|key|api-?key|token|test|dummy|fake|any(thing)?|local(-model)?|empty|none|null|n/?a|no|unused"
    r"|not-(needed|used)|no-key(-required)?|ollama|lm-?studio|llama(\.cpp)?|vllm|sglang|litellm",
    re.IGNORECASE,
)
# So many characters make a key that is looked for within words too.
_LONG = 16

_BOOLEANS = {"true": True, "false": False}

# What looks like a key, in case it is another one than the key that we know.
_SECRET = regex(
    r"\bsk-[^\s\"'<>,;)]+|\bAIza[\w-]{20,}|\bya29\.[\w-]+|\b(?:ABSK|bedrock-api-key-)[\w+/=]{20,}"
    r"|\bBearer\s+[^\s\"'<>,;)]+"
)


# How a base URL ends that names a version of the API.
_VERSION = regex(r"/v[0-9]+[a-z0-9]*$")


class _Access:
    """Where a service is asked, and with which key: as the arguments of `HTTPProvider` say, or else the environment."""

    def __init__(self, service: Service, base_url: str | None, api_key: str | None, cloud: Cloud | None):
        self._service = service
        self._base_url = base_url
        self._api_key = api_key
        self._cloud = cloud

    def base(self) -> str:
        """The base URL. Raises `RefusedRequestError` if an environment variable holds one that is no URL."""
        base, service = self._base_url, self._service
        if base is None:
            name, base = first_set(service.base_variables)
            base = base or service.base_url or (self._cloud.host() if self._cloud else "")
            if not base:
                raise RefusedRequestError(
                    f"There is no base URL. Set the environment variable {service.base_variables[0]}, or give it: "
                    f"{service.made('base_url=…')}."
                )
            if fault := _fault_in(base):
                raise RefusedRequestError(f"The environment variable {name}: {fault}")
        base = base.rstrip("/")
        return base + service.version if service.version and not _VERSION.search(base) else base

    def key(self) -> str:
        """The key, or an empty string. Raises `AuthenticationError` for one that cannot be any."""
        # Stripped, as a key that was read from a file ends with a newline.
        key = (self._api_key or "").strip()
        if self._api_key is None and (self._cloud is None or self._cloud.takes_key()):
            key = first_set(self._service.key_variables)[1]
        if not all("!" <= c <= "~" for c in key):
            service = self._service
            raise AuthenticationError(
                f"The API key ({service.key_variables[0]}, or {service.made('api_key=…')}) has a character that no key "
                "has; copy it again."
            )
        return key

    def cloud(self) -> Cloud | None:
        """Whose credentials are sent; `None` where a key is, or nothing."""
        return None if self._cloud is None or self.key() else self._cloud

    def placed(self, path: str) -> str:
        """A dialect's path as it is below the base URL. Raises `RefusedRequestError` if a part of it is not known."""
        return path if self._cloud is None else self._cloud.placed(path, has_key=bool(self.key()))

    def scrubbed(self, words: str) -> str:
        """A service's own words on one line, shortened, with `[key]` for whatever is or looks like a key.

        The words are scrubbed before they are shortened: a key that is cut in two would not be found.
        """
        key = self.key()
        for secret in self._cloud.secrets() if self._cloud else ():
            words = words.replace(secret, "[key]")
        if not _NO_KEY.fullmatch(key):
            # A short key may be part of a word. Vendors' keys are long, and services run them together with more.
            exact = re.escape(key)
            words = re.sub(exact if len(key) >= _LONG else rf"(?<!\w){exact}(?!\w)", lambda _: "[key]", words)
        words = " ".join(_SECRET.sub("[key]", words).split())
        return words if len(words) <= _QUOTED else words[: _QUOTED - 1] + "…"


class HTTPProvider(Provider):
    """A service over HTTP.

    **Arguments:**

    - `dialect`: its protocol.
    - `base_url`: what the dialect's paths are appended to. By default the environment's, else the service's own.
    - `api_key`: by default the environment's, whatever the `base_url`; `""` sends none.
    - `client`: an `AsyncClient` of httpx or httpx2, to use as it is. It is not closed here.
    - `timeout`: seconds to wait for the answer to begin, and again for each further piece of it. The whole answer may
        take six times as long, also with a client of one's own. A connection has to be made within a minute of it.
    - `cloud`: where the service is, and whose credentials are sent if there is no key; `None` for what has one place
        for all, and keys alone.

    The environment is read at each call, so that a variable may be set after the provider was made.

    **Raises:** `ValueError` for a `base_url` that is no whole URL; `TypeError` for another client.
    """

    def __init__(
        self,
        dialect: Dialect,
        base_url: str | None,
        api_key: str | None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None",
        timeout: float,
        cloud: Cloud | None = None,
    ):
        fault = "" if base_url is None else _fault_in(base_url)
        if fault:
            raise ValueError(f"{dialect.service.made('base_url=…')}: {fault}")
        self._dialect = dialect
        # The vendor's own host, which is never asked without a key. Other servers may need none. It is `None` where
        # each user has a host of the vendor's.
        self._host = urllib.parse.urlsplit(dialect.service.base_url).hostname
        self._access = _Access(dialect.service, base_url, api_key, cloud)
        self._cloud = cloud
        self._base_url = base_url
        self._api_key = api_key
        try:
            self._given = None if client is None else GivenClient(client, timeout)
        except TypeError as error:
            raise TypeError(f"{dialect.service.made('client=…')}: {error}") from None
        self._timeout = timeout
        # The models that were listed last; none before that.
        self._listed: tuple[str, ...] = ()
        # A client of our own, with the loop that its connections belong to; made at the first request.
        self._own: tuple[asyncio.AbstractEventLoop, OwnClient] | None = None

    def __repr__(self) -> str:
        where = self._cloud.arguments if self._cloud else ""
        return self._dialect.service.made(f"base_url={self._base_url!r}, timeout={self._timeout!r}{where}")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._api_key or self._given is not None:
            service = self._dialect.service
            article = "an" if service.maker[0] in "AEIOU" else "a"
            raise TypeError(
                f"{article} {service.made('api_key=…')} or {service.made('client=…')} is not pickled: the key would "
                f"lie in the bytes. Leave both out, and each process reads {service.key_variables[0]}."
            )
        return HTTPProvider, (self._dialect, self._base_url, self._api_key, None, self._timeout, self._cloud)

    @property
    def endpoint(self) -> str:
        """The base URL. Raises `RefusedRequestError` if an environment variable holds one that is no URL."""
        return self._access.base()

    @property
    def service(self) -> Service:
        """Where the service is, and the environment variables that its users set."""
        return self._dialect.service

    @property
    def cloud(self) -> Cloud | None:
        """Whose credentials are sent if there is no key; `None` where only keys are."""
        return self._cloud

    @property
    def price_table(self) -> str:
        return prices.table()

    def check(self, model: str) -> None:
        """Every name may be a model: only the server knows, and asking it would be IO."""

    def cost(self, request: Request, tokens: Tokens) -> float:
        return prices.cost(request, tokens)

    def most_cost(self, request: Request, tokens: Tokens) -> float:
        return prices.most_cost(request, tokens)

    def most_output(self, request: Request) -> float:
        return self._dialect.most_output(request)

    def most_samples(self, request: Request) -> int:
        return self._dialect.most_samples(request)

    def batch_limits(self, request: Request) -> BatchLimits:
        window = prices.context_window(request.provider, request.model)
        return self._dialect.batch_limits(request)._replace(each=window)

    def least_prefix(self, request: Request) -> float:
        return self._dialect.least_prefix(request)

    def marks_prefix(self, request: Request) -> bool:
        return self._dialect.marks_prefix(request)

    def decisions(self, request: Request) -> Decisions | None:
        return self._dialect.decisions(request)

    def build(self, request: Request) -> tuple[str, dict[str, str], dict[str, Any]]:
        """The URL, the headers and the JSON body to send.

        Of a cloud's credentials the headers are not among them: a signature is one of the bytes and the moment.

        **Raises:** `AuthenticationError` if the vendor's own host would be asked without a key;
        `RefusedRequestError` if an environment variable holds a base URL that is no URL, if the prompt is longer than
        the model can read, or if the dialect refuses the request.
        """
        if (failure := _beyond(request, self._dialect)) is not None:
            raise _raised(failure, self._access, _id(request), None)
        base, authorization = self._authorized(_id(request))
        window = prices.context_window(request.provider, request.model)
        if (overflow := tokens.overflow(request, window)) is not None:
            raise overflow
        built = _first_built(request, self._dialect)
        if isinstance(built, Failure):
            raise _raised(built, self._access, _id(request), None)
        headers = {"Content-Type": "application/json", **built.headers, **authorization}
        return base + self._access.placed(built.path), headers, built.body

    def _authorized(self, asked: str) -> tuple[str, Mapping[str, str]]:
        """The base URL, and the headers of the key; for what is asked, by which an error begins."""
        base, key, service = self._access.base(), self._access.key(), self._dialect.service
        is_own = self._host in (None, urllib.parse.urlsplit(base).hostname)
        if not key and service.needs_key and is_own and self._cloud is None:
            raise AuthenticationError(
                f"{asked}: there is no API key. Set the environment variable {service.key_variables[0]}, or "
                f"register({asked.partition('/')[0]!r}, {service.made('api_key=…')})."
            )
        return base, self._dialect.authorization(key) if key else {}

    def read(self, status: int, headers: Mapping[str, str], body: bytes, request: Request) -> Response:
        """What an HTTP answer to `request` says.

        Raises `AuthenticationError` (401, 403), `RateLimitError` (429), `ServerError` (408, 409, 5xx),
        `RefusedRequestError` (any other 4xx, a redirect, or a model that declines) and `MalformedResponseError`, except
        where the dialect finds that an error is another than its status says.
        """
        answer = HTTPAnswer(status, {name.lower(): value for name, value in headers.items()}, body)
        return self._understood(answer, request)

    def _understood(self, answer: HTTPAnswer, request: Request) -> Response:
        """What a whole answer says."""
        dialect, access = self._dialect, self._access
        if not 200 <= answer.status < 300:
            error = _failure(answer, _id(request), dialect, access, self._nearest(answer, request))
            if request.decides and answer.status == 501:  # the model has no head for it, and will never have
                raise RefusedRequestError(str(error), status=501, quota=error.quota)
            raise error
        said = dialect.read(answer, request)
        if isinstance(said, Failure):
            raise _raised(said, access, _id(request), answer.status)
        response = said.whole if isinstance(said, SampledAnswers) else self._scrubbed(said)
        if isinstance(said, SampledAnswers):
            raised = lambda failure: _raised(failure, access, _id(request), answer.status)
            each = [raised(one) if isinstance(one, Failure) else self._scrubbed(one) for one in said.each]
            response = response._replace(answers=tuple(each))
        left = _quota(answer, dialect)
        return response if left is None else response._replace(quota=left)

    def _scrubbed(self, response: Response) -> Response:
        """The answer without what may be a key in the words of a refusal, which will stand in an error."""
        if response.finish != Finish.REFUSAL:
            return response
        return response._replace(text=self._access.scrubbed(response.text))

    def _nearest(self, answer: HTTPAnswer, request: Request) -> str:
        """A hint, if the service may not know the model, and one with a similar name was listed before; else empty."""
        # Some services answer 400 for a model that they do not know, and say so.
        is_about_model = answer.status == 404 or (answer.status == 400 and b"model" in answer.body.lower())
        if not is_about_model or request.model in self._listed:
            return ""
        near = difflib.get_close_matches(request.model, self._listed, n=1)
        return f" Did you mean '{request.provider}/{near[0]}'?" if near else ""

    async def models(self) -> tuple[str, ...]:
        """The names of its models, as the service lists them.

        A later error of a model that is not known names the nearest of them.

        **Raises:** `ProviderError`, as `build`, `read` and `complete` do.
        """
        listing, service = self._dialect.listing, self._dialect.service
        asked = service.name or service.maker.lower()
        await self._ready(asked)
        base, authorization = self._authorized(asked)
        found: dict[str, None] = {}
        begin = ""
        while True:
            url = base.replace(*listing.moved, 1) + listing.page(begin)
            headers = {**listing.headers, **authorization}
            answer = await self._got(url, {**headers, **self._signature("GET", url, headers, b"")}, asked)
            if not 200 <= answer.status < 300:
                raise _failure(answer, asked, self._dialect, self._access)
            page = listing.read(answer)
            if isinstance(page, Failure):
                raise _raised(page, self._access, asked, answer.status)
            names, begin = page
            is_more = not found.keys() >= set(names)
            found.update(dict.fromkeys(names))
            if not (begin and is_more):  # a page without anything new would be followed by itself
                self._listed = tuple(found)
                return self._listed

    async def _got(self, url: str, headers: Mapping[str, str], asked: str) -> HTTPAnswer:
        transport = self._given or await self._own_client()
        try:
            return await transport.get(url, headers)
        except ValueError as error:
            failure = RefusedRequestError(f"{asked}: {url} is not a URL: {error}.")
        except NoAnswer as error:
            failure = self._unanswered(error, asked, url)
        raise failure  # for the reason that `complete` gives

    async def complete(self, request: Request) -> Response:
        return await self._asked(request)

    async def stream(self, request: Request, told: Callable[[str], object]) -> Response:
        return await self._asked(request, self._dialect.stream(request), told)

    async def _asked(
        self, request: Request, stream: Stream | None = None, told: Callable[[str], object] | None = None
    ) -> Response:
        """The answer, which comes in one piece, or in those that `stream` puts together and `told` is told."""
        await self._ready(_id(request))
        url, headers, body = self.build(request)
        take = None
        if stream is not None and told is not None:
            body = {**body, **stream.asks}
            url = url.removesuffix(stream.ending[0]) + stream.ending[1]
            take = lambda raw: told(stream.feed(raw))
        content = _encoded(body, request)
        headers |= self._signature("POST", url, headers, content)
        transport = self._given or await self._own_client()
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            answer = await transport.post(url, headers, content, take)
            if stream is not None and answer.headers.get("content-type", "").startswith(stream.content_type):
                answer = answer._replace(body=_put_together(stream))
        except ValueError as error:
            failure = RefusedRequestError(f"{_id(request)}: {url} is not a URL: {error}.")
        except NoAnswer as error:
            hint = ""
            if error.timed_out and error.was_sent:
                hint = f" {_burnt(request, clock() - began, self, self._dialect.service)}"
            failure = self._unanswered(error, _id(request), url, hint)
        else:
            return self._understood(answer, request)
        # Raised here and not in the `except` blocks. There Python would attach the client's error as the context, and
        # that error may hold the request's headers, and with them the key.
        raise failure

    async def _ready(self, asked: str) -> None:
        """Waits until a cloud's credentials are there, if they are what is sent.

        **Raises:** `AuthenticationError` if there are none; `ConnectionFailedError` if it is not known.
        """
        cloud = self._access.cloud()
        if cloud is None or cloud.is_ready():
            return
        if (failure := await asyncio.to_thread(cloud.fetch)) is not None:
            words = failure.words.format(*map(self._access.scrubbed, failure.said))
            raise failure.kind(f"{asked}: {words}", was_sent=False)

    def _signature(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> Mapping[str, str]:
        """The headers of a cloud's credentials, if they are what is sent; for what is sent right now."""
        cloud = self._access.cloud()
        return {} if cloud is None else cloud.authorization(method, url, headers, content)

    def _unanswered(self, error: NoAnswer, asked: str, url: str, hint: str = "") -> ProviderError:
        words = self._access.scrubbed(error.words)
        if error.is_unreadable:
            return MalformedResponseError(f"{asked}: the answer cannot be decompressed: {words}")
        return ConnectionFailedError(f"{asked}: no complete answer from {url}: {words}.{hint}", was_sent=error.was_sent)

    async def close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            await _retire(*own)

    async def _own_client(self) -> OwnClient:
        """The client of the running loop. A new loop gets a new client: connections belong to the loop they are of."""
        loop = asyncio.get_running_loop()
        if self._own is not None and self._own[0] is loop:
            return self._own[1]
        old, self._own = self._own, (loop, client := OwnClient(self._timeout))
        if old is not None:
            await _retire(*old)
        return client


def _beyond(request: Request, dialect: Dialect) -> Failure | None:
    """Why a service is not asked for numbers, whatever the key; `None` if it is, or words are asked for."""
    maker = dialect.service.maker
    if request.embeds and not dialect.embeds:
        return Failure(RefusedRequestError, f"{maker} is not asked for vectors here; take a model of another service.")
    if request.ranks and not dialect.ranks:
        other = "take a model of another service, as `cohere/rerank-v3.5`"
        return Failure(RefusedRequestError, f"{maker} is not asked for scores of documents here; {other}.")
    if request.decides and dialect.decisions(request) is None:
        return Failure(RefusedRequestError, f"{maker} decides nothing without words; `llm.choose` asks.")
    return None


def _first_built(request: Request, dialect: Dialect) -> HTTPRequest | Failure:
    """What to send for a request in the first of its forms that the dialect does not refuse; else why it refuses.

    To raise the refusal would do as well: the next form would then be asked. But that would count as a request that
    failed, of each call that asks before the first is answered.
    """
    built = dialect.build(request)
    if isinstance(built, Failure):
        others = (dialect.build(request.in_form(i + 1)) for i in range(len(request.forms)))
        return next((other for other in others if isinstance(other, HTTPRequest)), built)
    return built


def _put_together(stream: Stream) -> bytes:
    """The body that a stream stands for. Raises `NoAnswer` if it ended too early."""
    body = stream.whole()
    if body is None:
        raise NoAnswer(EOFError("the stream ended before the answer did"))
    return body


def _burnt(request: Request, seconds: float, provider: Provider, service: Service) -> str:
    """What a request took that was given up, and how to wait longer."""
    highest = tokens.bounds(request)[1]
    output = request.answers * tokens.most_output(request, provider)
    answer = f"up to {output:,.0f} tokens of the answer" if output < math.inf else "an answer of any length"
    prompt = f"up to {highest:,.0f} tokens of the prompt" if highest < math.inf else "the prompt"
    billed = f"{prompt} and {answer}"
    return f"It took {seconds:,.1f} s, and is possibly billed: {billed}. Give {service.made('timeout=…')} more seconds."


def _failure(answer: HTTPAnswer, asked: str, dialect: Dialect, access: _Access, hint: str = "") -> ProviderError:
    """The exception for an answer with a status of failure. The dialect is asked first for what it means."""
    meant = dialect.meaning(answer)
    kind, advice, seconds = meant or _meaning(answer.status, dialect.service)
    advice += hint
    words = access.scrubbed(stated(answer.body) or readable(answer.body)) or "(no message)"
    if words == "Internal Server Error":  # what web frameworks say of an exception that nobody has caught
        advice += " The server does not say why; its log may."
    if advice and words[-1].isalnum():
        words += "."
    return kind(
        f"{asked}: HTTP {answer.status}: {words}{advice}",
        status=answer.status,
        retry_after=_retry_after(answer.headers) if seconds is None else seconds,
        quota=_quota(answer, dialect),
        # What the dialect has found in the answer is more exact.
        should_retry=_BOOLEANS.get(answer.headers.get("x-should-retry", "").lower()) if meant is None else None,
    )


def _raised(failure: Failure, access: _Access, asked: str, status: int | None) -> ProviderError:
    """The exception for what a dialect says is a failure."""
    words = failure.words.format(*map(access.scrubbed, failure.said))
    return failure.kind(f"{asked}: {words}", status=status, tokens=failure.tokens)


def _id(request: Request) -> str:
    return f"{request.provider}/{request.model}"


def _fault_in(base_url: str) -> str:
    """Why a base URL cannot be used; empty if it can."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        # `parts.port` raises ValueError for a port that is no number.
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_whole = None, False
    if parts is None or not is_whole:
        return "give a whole URL, such as 'http://localhost:8000/v1'."
    # A password in the URL would be shown wherever the URL is: in errors, in a repr, in the journal.
    if parts.username or parts.password or parts.query or parts.fragment:
        return "give the URL without user, password, query and fragment; the key is an argument of its own."
    return ""


async def _retire(loop: asyncio.AbstractEventLoop, client: OwnClient) -> None:
    """Closes a client, on the loop that its connections belong to if that loop still lives, else on this one."""
    if loop is asyncio.get_running_loop() or loop.is_closed():
        await client.close()
    else:
        asyncio.run_coroutine_threadsafe(client.close(), loop)


# An encoder is kept, as `json.dumps` would make one for each call.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _encoded(body: Mapping[str, Any], request: Request) -> bytes:
    """The JSON to send, in ASCII. JSON's escapes can write half of a surrogate pair in a prompt, and UTF-8 cannot.

    **Raises:** `RefusedRequestError` for a parameter that is no JSON value, such as NaN.
    """
    try:
        return _encode(body).encode("ascii")
    except (TypeError, ValueError) as error:
        raise RefusedRequestError(f"{_id(request)}: a parameter is not a JSON value: {error}") from None


def _meaning(status: int, service: Service) -> Meaning:
    """What a status of failure means, whatever the dialect."""
    if status in (401, 403):
        return Meaning(AuthenticationError, service.advice)
    if status == 429:
        return Meaning(RateLimitError)
    # 408 is a timeout and 409 a conflict of the moment. Anthropic's 529 means that it is overloaded.
    if status in (408, 409) or 500 <= status < 600:
        return Meaning(ServerError)
    if 400 <= status < 500:
        return Meaning(RefusedRequestError)
    if 300 <= status < 400:
        return Meaning(RefusedRequestError, " The server redirects; give its final address as base_url.")
    return Meaning(MalformedResponseError)


def _quota(answer: HTTPAnswer, dialect: Dialect) -> quota.Quota | None:
    return quota.read(answer.headers, lambda: _now(answer.headers), dialect.quota_headers)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a service asks to wait; `None` if it does not.

    There are three forms in use: `retry-after-ms` in milliseconds, `retry-after` in seconds, and `retry-after` as a
    date. LiteLLM's proxy puts `llm_provider-` before the names that it passes on.
    """
    for prefix in ("", "llm_provider-"):
        said = headers.get(f"{prefix}retry-after")
        seconds = _number(headers.get(f"{prefix}retry-after-ms"), 1e-3)
        if seconds is None:
            seconds = _number(said, 1.0)
        if seconds is None and (then := _timestamp(said)) is not None:
            seconds = then - _now(headers)
        if seconds is not None:
            return max(seconds, 0.0)
    return None


def _now(headers: Mapping[str, str]) -> float:
    """The time in seconds since 1970, by the server's clock if the headers tell it.

    It is compared with times that the server names. Our own clock may be off by more than the seconds asked for.
    """
    said = _timestamp(headers.get("date"))
    return time.time() if said is None else said


def _number(value: str | None, unit: float) -> float | None:
    try:
        # A header that came twice is one value here, with a comma between the two. The first one counts.
        number = float((value or "").partition(",")[0])
    except ValueError:
        return None
    return number * unit if math.isfinite(number) else None


def _timestamp(value: str | None) -> float | None:
    """The seconds since 1970 of an HTTP date, which is in GMT if it names no zone; `None` for what is no date."""
    try:
        date = email.utils.parsedate_to_datetime(value or "")
        return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
