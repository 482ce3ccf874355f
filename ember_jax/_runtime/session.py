"""A session: whom calls are made through, where answers are kept, and what was counted.

One call's life, always the same: journal, single flight, provider, journal, lane.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import jax

from .._errors import ProviderError, RefusedRequestError
from .._providers import registry
from .._providers.base import Provider, Request, Response
from . import failures
from .flight import SingleFlight
from .journal import Journal, Memo, MemoryJournal, NoJournal
from .loop import Loop, get_loop


@dataclasses.dataclass(frozen=True)
class Report:
    """What a session did.

    **Fields:**

    - `calls`: LLM calls asked for by lanes.
    - `requests`: requests sent to providers.
    - `replayed`: calls answered by the journal.
    - `merged`: calls that shared the request of an equal one, in the plan or in flight.
    - `failed`: requests that a provider did not answer.
    - `input_tokens`, `output_tokens`: of the requests sent.
    - `cost_usd`: of the requests sent; NaN if the price of one is unknown.
    - `islands`: operators run as a plan.
    """

    calls: int = 0
    requests: int = 0
    replayed: int = 0
    merged: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    islands: int = 0

    def __str__(self) -> str:
        rows = [(f.name.replace("_", " "), getattr(self, f.name)) for f in dataclasses.fields(self)]
        shown = [(name, f"${value:,.6f}" if name == "cost usd" else f"{value:,}") for name, value in rows]
        width = max(len(value) for _, value in shown)
        return "\n".join(f"{name:<14} {value:>{width}}" for name, value in shown)


_CLOSE_SECONDS = 2.0


class Session:
    """The state behind `ember.session`; calls reach it from the event loop."""

    def __init__(self, journal: Journal, providers: Mapping[str, Provider]):
        self._journal = journal
        self._providers = dict(providers)
        self._counts: dict[str, float] = dataclasses.asdict(Report())
        self._flights = SingleFlight()
        self._host_flights = SingleFlight()
        self._memo = Memo()
        self._declining: set[tuple[str, str]] = set()

    def report(self) -> Report:
        """What was done so far."""
        return Report(**self._counts)  # type: ignore[arg-type]

    def count(self, name: str, amount: float = 1) -> None:
        """Adds to one of the report's counts."""
        self._counts[name] += amount

    def provider(self, name: str) -> Provider:
        """A provider of the session, or one that is registered for all."""
        return self._providers.get(name) or registry.get(name)

    def close(self) -> None:
        """Frees the connections of the session's own providers."""
        for provider in self._providers.values():
            with contextlib.suppress(concurrent.futures.TimeoutError):  # a connection that will not close is dropped
                loop().submit(provider.close()).result(_CLOSE_SECONDS)

    def check(self, model_id: str) -> None:
        """Raises `ModelError` if a model id is malformed, or names a provider or model known not to exist."""
        registry.check(model_id, self._providers)

    async def ask(self, request: Request, stands_for: int = 1) -> Response:
        """Answers one LLM call, or so many equal ones that a plan has made one of."""
        self.count("calls", stands_for)
        self.count("merged", stands_for - 1)
        digest = request.digest()
        row = self._journal.get(digest)
        if row is not None:
            self.count("replayed")
            return _decode(row)
        response, shared = await self._flights.do(digest, self._send, request, digest)
        if shared:
            self.count("merged")
        return response

    async def _send(self, request: Request, digest: bytes) -> Response:
        response = await self._complete(request)
        self.count("input_tokens", response.input_tokens)
        self.count("output_tokens", response.output_tokens)
        self.count("cost_usd", response.cost)
        await self._journal.put(digest, _encode(response))
        return response

    async def _complete(self, request: Request) -> Response:
        """Sends a request; once more without its optional parameters, if those may be why it is refused."""
        model = request.provider, request.model
        if model in self._declining:
            request = request.without_optional()
        self.count("requests")
        try:
            return await self.provider(request.provider).complete(request)
        except RefusedRequestError as error:
            self.count("failed")
            if not request.optional or error.status not in _AT_FAULT:
                raise
        except ProviderError:
            self.count("failed")
            raise
        response = await self._complete(request.without_optional())
        self._declining.add(model)  # it was them: this model is not asked for them again
        return response

    async def remember(
        self, key: Any, size: Callable[[Any], int], work: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        """The result of a pure host call: from memory, from an equal call in flight, or by doing the work."""
        known = self._memo.get(key)
        if known is not None:
            return known
        result, shared = await self._host_flights.do(key, work, *args)
        if not shared:
            self._memo.put(key, result, size(result))
        return result

    async def journaled(self, digest: bytes, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """The row of a digest; the work is done, and its row kept, if there is none."""

        async def do() -> bytes:
            row = await work()
            await self._journal.put(digest, row)
            return row

        return self._journal.get(digest) or (await self._host_flights.do(digest, do))[0]


# The statuses by which a service says that it does not know a parameter; `None` is a provider that is not HTTP.  With
# status 200 a model declines, and would again.
_AT_FAULT = (None, 400, 422)


def _encode(response: Response) -> bytes:
    return json.dumps(vars(response)).encode()


def _decode(row: bytes) -> Response:
    fields = json.loads(row)
    # JSON knows no tuples
    fields["alternatives"] = tuple((token, logprob) for token, logprob in fields["alternatives"])
    return Response(**fields)


# The sessions that are open, innermost last. A stack of the process and not of the thread: XLA runs host callbacks on
# threads of its own, which know nothing of the thread that dispatched them.
_lock = threading.Lock()
_open: list[Session] = []
_default: Session | None = None


def current() -> Session:
    """The innermost open session, or the process's own."""
    global _default
    with _lock:
        if _open:
            return _open[-1]
        if _default is None:
            _default = Session(MemoryJournal(), {})
        return _default


_UNSET: Any = object()


class session:
    """Runs calls under settings of their own, and counts them.

    ```python
    with ember.session() as run:
        answers = jax.vmap(op)(questions)
    print(run.report())
    ```

    **Arguments:**

    - `journal`: where answers are kept: a journal of the session's own in memory by default, `None` for none.
    - `providers`: providers by name that are used in place of the registered ones of that name.

    Sessions nest; the innermost open one counts. They belong to the process, not to a thread.

    **Raises:** on leaving, the typed error behind a `JaxRuntimeError` that one of its calls caused.
    """

    def __init__(self, *, journal: Journal | None = _UNSET, providers: Mapping[str, Provider] | None = None):
        chosen = MemoryJournal() if journal is _UNSET else NoJournal() if journal is None else journal
        self._session = Session(chosen, providers or {})

    def __enter__(self) -> Session:
        with _lock:
            _open.append(self._session)
        return self._session

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            _wait_for_dispatched()
        with _lock:
            _open.remove(self._session)
        self._session.close()
        if error is not None and (typed := failures.typed(error)) is not None:
            raise typed from error


def _wait_for_dispatched() -> None:
    """Waits until JAX has computed what was dispatched: its calls may not have begun, and are the session's."""
    for array in jax.live_arrays():
        if not array.is_deleted() and not array.is_ready():
            with contextlib.suppress(*failures.FROM_JAX):  # raised where the array is read
                array.block_until_ready()


def loop() -> Loop:
    """The process's event loop, which frees the providers' connections before it ends."""
    running = get_loop()
    if registry.close_all not in running.closers:
        running.closers.append(registry.close_all)
    return running
