"""How a request is sent to a service: over a client of our own, or over one that a user has made.

Design note. Our own client is aiohttp's, over HTTP/1.1 with a connection for each request in flight. What one call
takes of the CPU by it, with a thousand in flight, is 1; with TLS it is 1.2. Below httpx's interface aiohttp takes
2.8, httpx's own transport 100, and httpx with HTTP/2, a thousand streams on four connections, 12: so HTTP/2 would
save connections and nothing else. (pyreqwest, which is Rust's reqwest, would halve what aiohttp takes. But with its
version 0.15.1 Python 3.11 is aborted now and then when it ends soon after a request.) A user's own client is one of
httpx, or of httpx2, which vendors' own packages use. It is for what ours does not know, such as a proxy or a
certificate.

The clients raise some dozen exceptions. All that matters of one is in `NoAnswer`: its words, and whether the service
may have begun to work, and so to bill.
"""

import abc
import asyncio
import contextlib
import functools
import importlib
import io
import os
import re
import ssl
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeAlias

from .._regex import regex
from .dialect import HTTPAnswer

# How many seconds an idle connection is kept. uvicorn, and with it vLLM, closes a connection after 5 idle seconds. The
# client must close it first: a request that is sent just as the server closes is lost, and the client does not send a
# POST again by itself.
_KEEPALIVE = 4.0
# The seconds within which a connection has to be made, if the timeout is longer.
_CONNECT = 60.0
# An answer that comes in pieces without end is given up after so many times the timeout.
_WHOLE = 6.0


# Is given a piece of an answer's body.
OnBytes: TypeAlias = Callable[[bytes], object]


class NoAnswer(Exception):
    """No answer came, or none that can be read.

    **Attributes:**

    - `words`: the client's own, which may quote a credential.
    - `was_sent`: whether the service may have got the request.
    - `timed_out`: whether it was given up by its timeout.
    - `is_unreadable`: whether an answer came that cannot be decompressed.
    """

    def __init__(
        self, error: BaseException, *, was_sent: bool = True, timed_out: bool = False, is_unreadable: bool = False
    ):
        super().__init__()
        self.words = str(error) or type(error).__name__
        self.was_sent = was_sent
        self.timed_out = timed_out
        self.is_unreadable = is_unreadable


class Transport(abc.ABC):
    """Sends requests. Used on the event loop."""

    @abc.abstractmethod
    async def post(
        self, url: str, headers: Mapping[str, str], content: bytes, take: OnBytes | None = None
    ) -> HTTPAnswer:
        """Sends a request, and returns the whole answer. Redirects are not followed, and cookies are not kept.

        Of an answer of success, `take` is given each piece of the body when it comes.

        **Raises:** `NoAnswer`; `ValueError` for what is no URL.
        """

    @abc.abstractmethod
    async def get(self, url: str, headers: Mapping[str, str]) -> HTTPAnswer:
        """Likewise, for what is only looked up."""


class OwnClient(Transport):
    """Our own client, on the running loop, with as many connections as there are requests in flight.

    One that is collected before it was closed is closed then.

    **Arguments:**

    - `timeout`: seconds to wait for the answer to begin, and again for each further piece of it.
    """

    def __init__(self, timeout: float):
        # Imported at the first request: it takes a fifth of a second that `import ember_jax` must not take.
        import aiohttp

        self._aiohttp = aiohttp
        # How many requests are in flight is for the runtime to decide, so connections must not be limited, which to
        # aiohttp is `limit=0`. No cookies, as calls must not depend on each other.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_certificates(), keepalive_timeout=_KEEPALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=_WHOLE * timeout, sock_connect=min(timeout, _CONNECT), sock_read=timeout
            ),
        )

        self._forgotten = weakref.finalize(
            self, _close_soon, self._session.close, asyncio.get_running_loop(), os.getpid()
        )

    async def post(
        self, url: str, headers: Mapping[str, str], content: bytes, take: OnBytes | None = None
    ) -> HTTPAnswer:
        data = content if len(content) < _LARGE else io.BytesIO(content)
        sent = self._session.post(_parsed(url), data=data, headers=headers, allow_redirects=False)
        return await self._answered(sent, take)

    async def get(self, url: str, headers: Mapping[str, str]) -> HTTPAnswer:
        return await self._answered(self._session.get(_parsed(url), headers=headers, allow_redirects=False))

    async def _answered(self, sent: Any, take: OnBytes | None = None) -> HTTPAnswer:
        known = self._aiohttp
        try:
            async with sent as answer:
                if take is None or not _is_success(answer.status):
                    body = await answer.read()
                else:
                    body = await _taken(answer.content.iter_any(), take)
        except known.InvalidURL as error:
            raise ValueError(str(error)) from None
        except (known.ClientConnectorError, known.ConnectionTimeoutError) as error:
            raise NoAnswer(error, was_sent=False, timed_out=isinstance(error, TimeoutError)) from None
        except known.ClientPayloadError as error:
            raise NoAnswer(error, is_unreadable=isinstance(error.__cause__, _undecoded())) from None
        except (known.ClientError, OSError) as error:  # `TimeoutError` is an `OSError`
            raise NoAnswer(error, timed_out=isinstance(error, TimeoutError)) from None
        return HTTPAnswer(answer.status, _joined(answer.headers.items()), body)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._session.closed

    async def close(self) -> None:
        """Closes all connections."""
        self._forgotten.detach()
        await self._session.close()


# What closes clients that were forgotten; a loop holds its tasks weakly.
_closing: set[asyncio.Task[None]] = set()


def _close_soon(close: Callable[[], Coroutine[Any, Any, None]], loop: asyncio.AbstractEventLoop, process: int) -> None:
    """Closes a client on its loop. Called by the collector, in any thread, so nothing here may wait."""

    def start() -> None:
        task = loop.create_task(close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    # A forked process shares the connections with its parent, whose they are.
    if process == os.getpid():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(start)


class GivenClient(Transport):
    """A client that a user has made, an `AsyncClient` of httpx or httpx2. It is used as it is, and not closed.

    **Arguments:**

    - `timeout`: as for `OwnClient`. The client's own timeouts count besides.

    **Raises:** `TypeError` for what is no such client.
    """

    def __init__(self, client: Any, timeout: float):
        kinds = [kind for kind in type(client).__mro__ if kind.__name__ == "AsyncClient"]
        package = next((p for kind in kinds if (p := kind.__module__.partition(".")[0]) in _PACKAGES), None)
        if package is None:
            raise TypeError(f"it takes an AsyncClient of {' or '.join(_PACKAGES)}, not {type(client).__name__}.")
        self._client = client
        self._timeout = timeout
        self._known = importlib.import_module(package)

    async def post(
        self, url: str, headers: Mapping[str, str], content: bytes, take: OnBytes | None = None
    ) -> HTTPAnswer:
        data: Any = content
        if len(content) >= _LARGE:
            headers = {**headers, "Content-Length": str(len(content))}
            data = _pieces(content)
        if take is None:
            sent = self._client.post(url, headers=headers, content=data, follow_redirects=False)
        else:
            opened = self._client.stream("POST", url, headers=headers, content=data, follow_redirects=False)
            sent = _streamed(opened, take)
        return await self._answered(sent)

    async def get(self, url: str, headers: Mapping[str, str]) -> HTTPAnswer:
        return await self._answered(self._client.get(url, headers=headers, follow_redirects=False))

    async def _answered(self, sent: Coroutine[Any, Any, Any]) -> HTTPAnswer:
        whole = asyncio.timeout(_WHOLE * self._timeout)
        try:
            async with whole:
                answer = await sent
        except self._known.InvalidURL as error:
            raise ValueError(str(error)) from None
        except self._known.DecodingError as error:
            raise NoAnswer(error, is_unreadable=True) from None
        # Whatever else a transport raises, which may be any package's: what was sent may be billed.
        except Exception as error:
            timed_out = isinstance(error, self._known.ReadTimeout) or whole.expired()
            raise NoAnswer(error, was_sent=not _is_unconnected(error), timed_out=timed_out) from None
        return HTTPAnswer(answer.status_code, _joined(answer.headers.multi_items()), answer.content)


async def _streamed(opened: Any, take: OnBytes) -> Any:
    """An answer of httpx whose pieces were given to `take`, as it is where it was read as a whole."""
    async with opened as answer:
        if _is_success(answer.status_code):
            answer._content = await _taken(answer.aiter_bytes(), take)
        else:
            await answer.aread()
    return answer


def _is_success(status: int) -> bool:
    return 200 <= status < 300


async def _taken(pieces: AsyncIterator[bytes], take: OnBytes) -> bytes:
    """A body whose pieces are each given to `take` when they come."""
    body = []
    async for piece in pieces:
        take(piece)
        body.append(piece)
    return b"".join(body)


_PACKAGES = ("httpx", "httpx2")

# A body of this many bytes or more is sent in pieces. Sent as a whole it would hold up the event loop.
_LARGE = 1 << 20
_PIECE = 1 << 16


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


def _is_unconnected(error: BaseException) -> bool:
    """Whether there was no connection. httpx over aiohttp raises timeouts, whose cause is the error to look for."""
    kinds = {kind.__name__ for e in (error, error.__cause__) for kind in type(e).__mro__}
    return bool(kinds & {"ConnectError", "ClientConnectorError"})


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their names in lower case; the values of a name that comes twice are joined, as RFC 9110 has it."""
    found: dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


# The characters that stand in a URL as they are.
_WRITTEN_OUT = regex(r"[\w.~:/?#\[\]@!$&'()*+,;=%-]*", re.ASCII)


# Parsing a URL takes as long as building the rest of a request, and mostly all requests go to one address.
@functools.lru_cache(maxsize=64)
def _parsed(url: str) -> Any:
    import yarl

    try:
        # Sent as it is written, as it may be signed: else `%3A` would be sent as `:`.
        return yarl.URL(url, encoded=_WRITTEN_OUT.fullmatch(url) is not None)
    except ValueError:
        return url  # aiohttp raises its own error for it


@functools.cache
def _undecoded() -> type[Exception]:
    from aiohttp import http_exceptions

    return http_exceptions.ContentEncodingError


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust: what the environment names, as OpenSSL has it, else Mozilla's list."""
    import certifi

    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    return ssl.create_default_context(cafile=file or (None if folder else certifi.where()), capath=folder or None)
