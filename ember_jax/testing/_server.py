"""A server on this machine that speaks OpenAI's protocol: simulated answers, and the faults that a test asks for.

It has chat completions, embeddings, scores of documents as vLLM has them, and decisions.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import RefusedRequestError
from ..providers.base import DOCUMENT, EMBED, RANK, Message, Request, Response
from ..providers.sim import SimModel, delay, reply, words_of
from ..providers.vectors import packed, unpacked
from . import _decisions

if TYPE_CHECKING:
    from aiohttp import web


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    **Fields:**

    - `status`: the answer's HTTP status.
    - `headers`: the answer's further headers. As pairs they may name a header twice.
    - `body`: the answer's body; by default the simulated answer for status 200, else an error in OpenAI's form.
    - `edit`: changes the simulated answer: it gets the completion as a tree of JSON and returns what is sent, another
        tree, or a string or bytes for what is no JSON. The server counts the answer and its tokens as if nothing was
        changed.
    - `delay`: seconds before the answer.
    - `pad`: how many bytes of white space stand before the body. Some services send them to keep a connection alive.
    - `drip`: seconds between the ten pieces in which the body is sent; 0 sends it at once.
    - `reset`: whether the connection is reset, without an answer.
    - `truncate`: whether the connection is closed after half of the body.
    """

    status: int = 200
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = field(default_factory=dict)
    body: str | bytes | None = None
    edit: Callable[[dict[str, Any]], Any] | None = None
    delay: float = 0.0
    pad: int = 0
    drip: float = 0.0
    reset: bool = False
    truncate: bool = False


@dataclass(frozen=True)
class ReceivedRequest:
    """One request as it came: its JSON body, its headers (without the key), and `time.monotonic()` in seconds."""

    body: Any
    headers: Mapping[str, str]
    time: float


# The longest body of a request, in bytes: longer than the prompts of any test. aiohttp's own limit is one MiB.
_MAX_BODY = 2**26
# How many connections may wait to be accepted: a thousand may come within one round of the event loop.
_BACKLOG = 4096
# How many pieces a body that drips is cut into.
_PIECES = 10


# The fields of a request that no simulated answer depends on.
_NOT_DRAWN_FROM = ("model", "messages", "stream", "stream_options")


class ChatServer:
    """An OpenAI-compatible HTTP/1.1 server on 127.0.0.1, in a thread of its own, while the `with` block lasts.

    **Arguments:**

    - `model`: answers every request, whatever model it names; its reply depends on that name.
    - `latency`: seconds before each answer; `None` is the model's own.
    - `faults`: what goes wrong with request 0, 1, …: a sequence, or a function of the number. `None` is nothing.
    - `fresh`: equal requests get independent samples, as from a real server; otherwise equal answers. The answers to
        one request with `n` are independent in either case.
    - `most_samples`: how many answers one request may have; one that asks for more gets so many. `None` refuses `n`.
    - `api_key`: requests without it as bearer token get status 401; `None` lets all pass.
    - `together`: no answer is sent before this many requests have been in flight at once. It proves parallelism
        without a clock: a client that sends fewer waits until it gives up.
    - `decides`: whether it serves decisions: OpenAI's and Google's `/v1/decisions`, and `/v1/systemone`. Their
        probabilities are those of the letters that the model would choose by. If not, these are not found (404).
    - `tls`: serves over TLS, by this context of the standard library, which holds the server's certificate.

    **Attributes:**

    - `base_url`: the URL for `OpenAI(base_url=…)`. Raises `RuntimeError` while the server is not running.
    - `requests`: the requests that have come so far, in order.
    - `in_flight_max`: the most requests that were in flight at once.
    - `answered`: the numbers of the requests to which a simulated answer was sent, to its last byte.
    - `input_tokens`, `output_tokens`: the tokens of those answers, as the answers say.

    **Example:**

        with ChatServer(faults=[Fault(status=429, headers={"retry-after": "1"})]) as server:
            provider = OpenAI(base_url=server.base_url)
    """

    def __init__(
        self,
        model: SimModel | None = None,
        *,
        latency: float | None = 0.0,
        faults: Callable[[int], Fault | None] | Sequence[Fault | None] | None = None,
        fresh: bool = False,
        most_samples: int | None = 128,
        api_key: str | None = None,
        together: int = 1,
        decides: bool = False,
        tls: ssl.SSLContext | None = None,
    ):
        self.requests: list[ReceivedRequest] = []
        self.in_flight_max = 0
        self.answered: list[int] = []
        self.input_tokens = self.output_tokens = 0
        self._model = SimModel() if model is None else model
        self._latency = latency
        self._faults = () if faults is None else faults
        self._fresh = fresh
        self._most_samples = most_samples
        self._api_key = api_key
        self._together = together
        self._decides = decides
        self._tls = tls
        self._in_flight = 0
        self._seen: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def base_url(self) -> str:
        if self._thread is None:
            raise RuntimeError("The server is not running; use it as `with ChatServer() as server: …`.")
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "ChatServer":
        if self._thread is not None:
            raise RuntimeError("The server is already running; make another ChatServer().")
        started: concurrent.futures.Future[int] = concurrent.futures.Future()
        thread = threading.Thread(target=self._run, args=(started,), name="ChatServer", daemon=True)
        thread.start()
        self._port = started.result()
        self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()
        self._thread = None

    def _run(self, started: "concurrent.futures.Future[int]") -> None:
        try:
            asyncio.run(self._serve(started))
        except (ImportError, OSError) as error:
            # aiohttp is not installed, or no socket can be had. The thread that waits in `__enter__` raises the error.
            if started.done():
                raise
            started.set_exception(error)

    def _stop(self) -> None:
        # Requests that wait go on at once. Else closing would take as long as their delay.
        self._stopping.set()
        self._gathered.set()

    async def _serve(self, started: "concurrent.futures.Future[int]") -> None:
        # Imported when a server starts: providers do not need it, and it is slow to import.
        from aiohttp import web

        self._loop = asyncio.get_running_loop()
        self._stopping, self._gathered = asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/embeddings", self._handle)
        app.router.add_post("/v1/rerank", self._handle)
        app.router.add_post("/v1/decisions", self._handle)
        app.router.add_post("/v1/systemone", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG, ssl_context=self._tls).start()
            started.set_result(runner.addresses[0][1])
            await self._stopping.wait()
        finally:
            await runner.cleanup()

    async def _handle(self, request: "web.Request") -> "web.StreamResponse":
        raw = await request.read()
        number = len(self.requests)
        body = _parsed(raw)
        self.requests.append(ReceivedRequest(body, _masked(request.headers), time.monotonic()))
        self._in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self._in_flight)
        if self.in_flight_max >= self._together:
            self._gathered.set()
        try:
            await self._gathered.wait()
            return await self._respond(request, number, body, self._fault(number))
        finally:
            self._in_flight -= 1

    def _fault(self, number: int) -> Fault:
        if callable(self._faults):
            return self._faults(number) or Fault()
        return (self._faults[number] if number < len(self._faults) else None) or Fault()

    async def _respond(self, request: "web.Request", number: int, body: Any, fault: Fault) -> "web.StreamResponse":
        # Imported late for the reason that `_serve` gives.
        from aiohttp import web
        from multidict import CIMultiDict

        await self._pause(fault.delay)
        if fault.reset:
            _reset(request)
            return web.Response()
        status, content, answers, kind = fault.status, fault.body, list[Response](), "application/json"
        if content is None:
            status, content, answers = await self._content(request, number, body, status)
            content = _edited(content, fault) if answers else content
            if answers and body.get("stream"):
                kind, content = "text/event-stream", _events(content, body.get("stream_options") or {})
        content = b" " * fault.pad + (content.encode() if isinstance(content, str) else content)
        headers = CIMultiDict({"Content-Type": kind, "x-request-id": f"req-{number}"})
        headers.update(fault.headers)
        headers["Content-Length"] = str(len(content))
        response = web.StreamResponse(status=status, headers=headers)
        with contextlib.suppress(ConnectionError):  # the client has gone
            await response.prepare(request)
            if fault.truncate:
                await response.write(content[: len(content) // 2])
                if request.transport is not None:
                    request.transport.close()
                return response
            async for piece, is_last in self._pieces(content, fault.drip):
                if is_last and answers:  # before it is sent: who has all of it may look at the counts at once
                    self.answered.append(number)
                    self.input_tokens += answers[0].input_tokens
                    self.output_tokens += sum(answer.output_tokens for answer in answers)
                await response.write(piece)
            await response.write_eof()
        return response

    async def _pieces(self, content: bytes, drip: float) -> AsyncIterator[tuple[bytes, bool]]:
        """The pieces of a body, which come with so many seconds between them; and which of them is the last."""
        size = -(-len(content) // _PIECES) if drip else len(content)
        for start in range(0, len(content), max(size, 1)):
            await self._pause(drip if start else 0.0)
            yield content[start : start + size], start + size >= len(content)

    async def _content(
        self, request: "web.Request", number: int, body: Any, status: int
    ) -> tuple[int, str, list[Response]]:
        """The status and the body of an answer whose fault gives no body; and the simulated responses in it."""
        if status != 200:
            return status, _error("This fault was asked for.", "injected"), []
        if self._api_key is not None and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            return 401, _error("The API key is missing or wrong.", "invalid_api_key"), []
        if request.path.endswith(_decisions.PATHS):
            await self._pause(self._latency or 0.0)
            return _decision(self._model if self._decides else None, request.path, body)
        try:
            numbers = {"/v1/embeddings": _for_vectors, "/v1/rerank": _for_scores}.get(request.path)
            asked = self._samples(body) if numbers is None else [numbers(body)]
        except (KeyError, TypeError, AttributeError):
            return 400, _error("The body is not a request of this endpoint.", "invalid_request_error"), []
        if self._most_samples is None and len(asked) > 1:
            return 400, _error("Only one completion choice is allowed.", "invalid_request_error"), []
        try:
            answers = [reply(self._model, one) for one in asked[: self._most_samples]]
        except RefusedRequestError as refusal:
            return 400, _error(str(refusal), "invalid_request_error"), []
        seconds = max(delay(self._model, one) for one in asked) if self._latency is None else self._latency
        await self._pause(seconds)
        if asked[0].embeds:
            return 200, _embeddings(answers[0], asked[0]), answers
        if asked[0].ranks:
            return 200, _results(answers[0], asked[0]), answers
        return 200, _completion(answers, number, bool(asked[0].parameters.get("logprobs"))), answers

    def _samples(self, body: Any) -> list[Request]:
        """The questions that a request asks, one for each answer that it wants."""
        one = {name: value for name, value in body.items() if name != "n"}
        asked = [self._request(one) for _ in range(body.get("n", 1))]
        if self._fresh:
            return asked
        return [dataclasses.replace(sample, sample=str(i) if i else None) for i, sample in enumerate(asked)]

    def _request(self, body: Any) -> Request:
        messages = tuple(Message(str(m["role"]), m["content"]) for m in body["messages"])
        if not all(isinstance(m.content, str) for m in messages):
            raise TypeError("a message's content is text here")
        parameters = {k: v for k, v in body.items() if k not in _NOT_DRAWN_FROM}
        asked = Request("sim", str(body["model"]), messages, parameters)
        if not self._fresh:
            return asked
        digest = asked.digest().hex()
        sample = str(self._seen[digest])
        self._seen[digest] += 1
        return Request("sim", asked.model, messages, parameters, sample)

    async def _pause(self, seconds: float) -> None:
        """Waits for some seconds, or until the server is stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()


def _decision(model: SimModel | None, path: str, body: Any) -> tuple[int, str, list[Response]]:
    """The status and the body of an answer to a request for decisions; a model that is `None` decides nothing."""
    if model is None:
        return 404, _error("Not Found", "not_found"), []
    try:
        decided, answers = _decisions.decided(model, path, body)
    except (KeyError, TypeError, AttributeError, ValueError):
        return 422, _error("The body is not a request of this endpoint.", "invalid_request_error"), []
    return 200, json.dumps(decided), answers


def _for_vectors(body: Any) -> Request:
    """The request that a body for `/embeddings` is. As OpenAI's, the server refuses an empty text."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise TypeError("each text is a string that is not empty")
    parameters = {k: v for k, v in body.items() if k not in ("model", "input")}
    return Request("sim", str(body["model"]), tuple(Message(EMBED, text) for text in texts), parameters)


def _for_scores(body: Any) -> Request:
    """The request that a body for `/rerank` is."""
    query, documents = body["query"], body["documents"]
    if not documents or not all(isinstance(text, str) for text in (query, *documents)):
        raise TypeError("the query and each document are strings")
    messages = (Message(RANK, query), *(Message(DOCUMENT, document) for document in documents))
    return Request("sim", str(body["model"]), messages)


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _masked(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with the key replaced. A test that fails may print them: that there was a key can then be seen."""
    return {name: "Bearer (masked)" if name.lower() == "authorization" else value for name, value in headers.items()}


def _reset(request: "web.Request") -> None:
    """Resets a connection: to close it with a linger time of 0 sends RST in place of FIN."""
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def _error(message: str, code: str) -> str:
    return json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}})


def _edited(completion: str, fault: Fault) -> str | bytes:
    if fault.edit is None:
        return completion
    edited = fault.edit(json.loads(completion))
    return edited if isinstance(edited, str | bytes) else json.dumps(edited)


def _embeddings(response: Response, asked: Request) -> str:
    """Simulated vectors as the protocol's JSON; the last comes first, as their places count."""
    vectors = unpacked(response.text, len(asked.messages))
    in_words = asked.parameters.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": packed(vector) if in_words else vector.tolist()}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": response.input_tokens, "total_tokens": response.input_tokens}
    return json.dumps({"object": "list", "data": data[::-1], "model": response.model, "usage": usage})


def _results(response: Response, asked: Request) -> str:
    """Simulated scores as the protocol's JSON, the best first."""
    scores = unpacked(response.text, 1)[0].tolist()
    results = [
        {"index": i, "relevance_score": scores[i], "document": {"text": asked.messages[1 + i].content}}
        for i in sorted(range(len(scores)), key=lambda i: -scores[i])
    ]
    usage = {"prompt_tokens": response.input_tokens, "total_tokens": response.input_tokens}
    return json.dumps({"id": "rerank-1", "model": response.model, "usage": usage, "results": results})


def _events(completion: str | bytes, options: Mapping[str, Any]) -> str | bytes:
    """A completion as server-sent events, with a chunk for each word; what is none as it is."""
    whole = _parsed(completion if isinstance(completion, bytes) else completion.encode())
    if not isinstance(whole, dict) or not whole.get("choices"):
        return completion
    usage, choice = whole.pop("usage"), whole.pop("choices")[0]
    listed = iter((choice.get("logprobs") or {}).get("content") or ())
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in words_of(choice["message"]["content"])]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    for said, token in zip(choices[1:], listed, strict=False):
        said["logprobs"] = {"content": [token]}
    choices.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
    chunks = [{**whole, "object": "chat.completion.chunk", "choices": [c]} for c in choices]
    chunks += [{**whole, "choices": [], "usage": usage}] if options.get("include_usage") else []
    return "".join(f"data: {data}\n\n" for data in (*map(json.dumps, chunks), "[DONE]"))


def _completion(responses: Sequence[Response], number: int, with_logprobs: bool) -> str:
    """Simulated answers to one prompt as the protocol's JSON."""
    inputs, outputs = responses[0].input_tokens, sum(response.output_tokens for response in responses)
    return json.dumps(
        {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": responses[0].model,
            "choices": [_choice(i, response, with_logprobs) for i, response in enumerate(responses)],
            "usage": {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs},
        }
    )


def _choice(index: int, response: Response, with_logprobs: bool) -> dict[str, Any]:
    """One answer. Its first word has the log-probability and the alternatives."""
    words = response.text.split()
    logprobs: list[dict[str, Any]] = [{"token": w, "logprob": 0.0, "top_logprobs": []} for w in words]
    if logprobs:
        top = [{"token": token, "logprob": logprob} for token, logprob in response.alternatives]
        logprobs[0].update(logprob=response.logprob, top_logprobs=top)
    return {
        "index": index,
        "message": {"role": "assistant", "content": response.text, "refusal": None},
        "logprobs": {"content": logprobs} if with_logprobs else None,
        "finish_reason": "stop",
    }
