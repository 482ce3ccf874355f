"""Calls to the host: what calls of Python functions and of language models have in common.

A host call is an equation whose callback is a `HostCall`. Inside an operator the plan runs it on the event loop, lane
by lane; outside one, in an ordinary JAX program, the callback does so itself, for all lanes of a batch at once.
"""

import abc
import asyncio
import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from . import _callback
from ._jax import source
from ._jax.source import SourceLine
from ._runtime import failures, interrupt, repeats
from ._runtime import session as sessions
from ._runtime.feed import SpokenWords
from ._runtime.loop import forbid_in_loop
from ._runtime.progress import Tally
from ._runtime.scheduler import NOWHERE, Path
from ._runtime.typed import typed_errors
from .errors import LaneFailure, SweepError
from .providers.base import Response, Tokens

# How many calls of a batch begin at once. Between blocks the loop takes in the answers that have come. Would all begin
# at once, it would see none before the last had begun, and a process that is killed then would have kept none.
_BLOCK = 1024


class Used:
    """What the calls of some part of a program have used, answered anew or from the journal."""

    def __init__(self) -> None:
        self._counts = np.zeros(4, np.int64)
        self._cost = 0.0

    def add(self, response: Response) -> None:
        """Counts an answer."""
        self._counts += 1, response.input_tokens, response.output_tokens, response.is_cut
        self._cost += response.cost

    def bill(self, tokens: Tokens, cost: float) -> None:
        """Counts what was billed for a request that was not answered."""
        self._counts += 0, int(tokens.input), int(tokens.output), 0
        self._cost += cost

    def arrays(self) -> list[np.ndarray]:
        """Calls, input tokens, output tokens, US dollars, and answers that were cut."""
        calls, read, written, cut = (np.int32(n) for n in np.minimum(self._counts, 2**31 - 1))
        return [calls, read, written, np.float32(self._cost), cut]  # type: ignore[list-item]


class Caller(NamedTuple):
    """Who makes a call: which lane, in which operator, and whom to tell when it is a sample without a key.

    `remembers` says whether a pure function's earlier result may be given again; line by line, it is run each time.
    `saw` is told of samples without a key, with the lane and the step that draw them. `stands_for` counts the equal
    calls of the program that this one is made for; what it uses is added to `used`. `path` is where it stands in its
    plan, for a scheduler; `tally` is told of the sweep's calls of models; `words` are given a model's as they come.
    """

    lane: tuple[int, ...] = ()
    scope: str = ""
    remembers: bool = True
    saw: Callable[[Any, Any, bytes], None] | None = None
    of_lane: Any = None
    of_step: Any = None
    stands_for: int = 1
    used: tuple[Used, ...] = ()
    path: Path = NOWHERE
    tally: Tally = Tally()  # one that nobody reads
    words: SpokenWords | None = None

    def unkeyed(self, digest: bytes) -> None:
        """Tells of a sample without a key."""
        if self.saw is not None:
            self.saw(self.of_lane, self.of_step, digest)


class HostCall(_callback.EagerFunction):
    """A call that the event loop makes for one lane.

    **Attributes:**

    - `ranks`: the rank of each operand of one call; further leading axes are a batch.
    - `pure`: whether equal calls are the same call.
    - `asks_model`: whether it is a call of a model. Such calls are what a session counts, and what its bar shows.
    """

    ranks: tuple[int, ...]
    pure: bool
    asks_model: ClassVar[bool] = False

    # Whether calls draw samples that equal calls share; the line is then known that makes them.
    draws_shared = False

    @abc.abstractmethod
    async def run(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Makes one call."""

    async def run_batch(
        self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Makes the calls of a batch at once, and stacks their results.

        **Raises:** what a single call raised; `SweepError` if calls of a batch failed, after the others finished.
        """
        batch = arrays[0].shape[: arrays[0].ndim - self.ranks[0]]
        if not batch:
            return await self.run(session, caller, arrays)
        failed: list[LaneFailure] = []
        outer, of_all = caller.lane, caller[1:]

        async def call(lane: tuple[int, ...]) -> list[np.ndarray]:
            outputs: list[np.ndarray] = []
            try:
                outputs = await self.run(session, Caller(outer + lane, *of_all), [a[lane] for a in arrays])
            except Exception as error:
                failed.append(LaneFailure(outer + lane, caller.scope or str(self), error))
            return outputs

        lanes = list(itertools.product(*map(range, batch)))
        create_task = asyncio.get_running_loop().create_task
        calls: list[asyncio.Task[list[np.ndarray]]] = []
        try:
            for start in range(0, len(lanes), _BLOCK):
                if start:
                    await asyncio.sleep(0)
                calls += [create_task(call(lane)) for lane in lanes[start : start + _BLOCK]]
            # One after another, where `gather` would be called back by each: mostly all have ended with the first.
            outcomes = [await call for call in calls]
        except asyncio.CancelledError:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            raise
        if failed:
            raise SweepError(sorted(failed, key=lambda failure: failure.lane), len(lanes), session.keeping)
        return [np.array(c).reshape(*batch, *c[0].shape) for c in zip(*outcomes, strict=True)]

    async def _sweep(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Makes the calls of a batch, and says so; a single call is no sweep."""
        batch = arrays[0].shape[: arrays[0].ndim - self.ranks[0]]
        if not batch:
            return await self.run(session, caller, arrays)
        tally = Tally(math.prod(batch) if self.asks_model else 0)
        with session.sweeping(caller.scope, tally):
            return await self.run_batch(session, caller._replace(tally=tally), arrays)

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        return self._wait(arrays, in_callback=True)[0]

    def call_now(self, *arrays: Any) -> list[np.ndarray]:
        """Makes the call from ordinary Python, outside any JAX program."""
        results, drawn, session = self._wait(arrays, in_callback=False)
        self._warn_of_line(session, drawn)
        return results

    def streamed(self, arrays: Sequence[Any]) -> Generator[str, None, tuple[list[np.ndarray], str]]:
        """Makes the call from ordinary Python, and yields the words of its answer as they come.

        **Returns:** the call's results, and the words that were yielded.
        """
        forbid_in_loop(str(self))
        loop, session, words, drawn = sessions.loop(), sessions.current(), SpokenWords(), []
        saw = lambda lane, step, digest: drawn.append(digest)
        caller = Caller(scope=str(self), remembers=False, saw=saw, words=words)
        results = yield from words.taken(loop, self.run(session, caller, [np.asarray(a) for a in arrays]))
        self._warn_of_line(session, drawn)
        return results, words.said

    def _warn_of_line(self, session: sessions.Session, drawn: Sequence[bytes]) -> None:
        for digest in drawn:
            if repeated := repeats.of_line(str(self), session, digest):
                repeated.warn()

    def call_at(self, place: "Placed", arrays: Sequence[Any]) -> list[np.ndarray]:
        """Makes the calls of a JAX program whose line is known."""
        results, drawn, _ = self._wait(arrays, in_callback=True)
        if repeated := repeats.of_batch(str(self), place.line, drawn, place.asked_before):
            repeated.warn()
        return results

    def _wait(
        self, arrays: Sequence[Any], *, in_callback: bool
    ) -> tuple[list[np.ndarray], list[bytes], sessions.Session]:
        """Makes the calls of a batch; also returns the digests of samples drawn without a key, and the session."""
        forbid_in_loop(str(self))
        values = [np.asarray(a) for a in arrays]
        loop, session = sessions.loop(), sessions.current()
        drawn: list[bytes] = []
        saw = lambda lane, step, digest: drawn.append(digest)
        work = loop.work(self._sweep(session, Caller(scope=str(self), remembers=in_callback, saw=saw), values))
        try:
            return interrupt.wait(work, in_callback=in_callback), drawn, session
        except Exception as error:  # also a host function's own
            raise failures.raised(error) from None


@dataclasses.dataclass(frozen=True)
class Placed(_callback.HostFunction):
    """A call that stands in a line of the user's program; the callback that JAX sees.

    It compares by its line too: JAX keeps programs by their callbacks, and each is to know its own.
    """

    call: HostCall
    line: SourceLine | None
    asked_before: bool

    def __str__(self) -> str:
        return str(self.call)

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        return self.call.call_at(self, arrays)


def invoke(call: HostCall, out: Sequence[jax.ShapeDtypeStruct], *arrays: Any) -> tuple[jax.Array, ...]:
    """Makes a call: line by line where nothing is traced, as a callback where something is.

    **Raises:** what the call raised, with its own type, where no `jax.jit` stands around it.
    """
    with typed_errors():
        if not call.draws_shared or _callback.is_now(arrays):
            return _callback.invoke(call, out, *arrays, effectful=not call.pure)
        line = source.of_caller()
        placed = Placed(call, line, repeats.asked_before(line, call, arrays))
        return _callback.bind_values(placed, out, *arrays)
