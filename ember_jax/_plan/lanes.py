"""The lane engine: every lane goes through the plan at its own pace.

Design note. A lane is a frame: the plan it is in, its values, and for each node how many it still waits for. Nodes that
wait for nothing lie on one stack for all lanes; it is worked off on the event loop's thread until nothing is ready, so
a lane costs no task, no lock and no polling. Only a host call is a task. Control nodes push frames of their own plan.
The stack makes it depth first: a lane that can go on does so before another starts.

Numeric segments are not run when they are ready but collected, and run for all lanes that wait for the same one when
nothing else is ready (continuous batching, as inference servers do with tokens). A segment that is slow, or must be
compiled, runs in a thread, and the loop goes on with other lanes.

A failed node stops its lane, never another one: it is not completed, so nothing after it starts; calls of the lane that
are in flight finish and are kept. The sweep ends when nothing is ready, collected or in flight.
"""

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import LaneFailure, SweepError
from .._host import Caller
from .._runtime.session import Session
from .._runtime.threads import Threads
from . import ir
from .jaxprs import evaluate, from_raw, is_host, to_raw
from .repeats import Repeats
from .segments import CAPACITIES, SegmentRunner

# Lanes in flight at once; the rest wait outside memory. More than any provider lets through.
_WINDOW = 16_384


class Lane:
    """One lane: its index (outermost `vmap` first), the lane it is nested in, and whether it failed."""

    __slots__ = ("failed", "index", "parent")

    def __init__(self, index: tuple[int, ...], parent: "Lane | None" = None):
        self.index = index
        self.parent = parent
        self.failed = False


class Frame:
    """One run of a plan by a lane; `inside` is the frame and step that hold it."""

    __slots__ = ("done", "inside", "lane", "left", "plan", "values", "waits")

    def __init__(
        self,
        plan: ir.Plan,
        args: Sequence[Any],
        lane: Lane,
        done: Callable[[list[Any]], None],
        inside: "tuple[Frame, int] | None",
    ):
        self.plan = plan
        self.lane = lane
        self.inside = inside
        self.done = done
        self.values: list[Any] = [*args, *itertools.repeat(None, plan.size - plan.inputs)]
        for value, constant in plan.constants.items():
            self.values[value] = constant
        self.waits = list(plan.waits)
        self.left = len(plan.nodes)


class Sweep:
    """One run of a plan over lanes, on the event loop.

    **Arguments:**

    - `plan`: what every lane runs.
    - `runners`: the executables of its segments.
    - `session`: whom calls are made through.
    - `name`: the operator, for errors.
    """

    def __init__(
        self,
        plan: ir.Plan,
        runners: "Runners",
        session: Session,
        threads: Threads,
        name: str,
    ):
        self._plan, self._runners, self._session, self._threads, self._name = plan, runners, session, threads, name
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._ready: list[tuple[Frame, int]] = []
        self._landed: list[tuple[asyncio.Task[Any], list[tuple[Frame, int]]]] = []
        self._collected: dict[ir.Segment, list[tuple[Frame, int]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pumping = False
        self._failures: list[LaneFailure] = []
        self._uploaded: dict[int, tuple[Any, jax.Array]] = {}
        self._lanes: Iterator[tuple[Lane, Sequence[Any]]] = iter(())
        self._open = 0
        self._total = 0
        self._repeats = Repeats(name)

    async def run(
        self,
        lanes: Iterator[tuple[tuple[int, ...], Sequence[Any]]],
        finished: Callable[[tuple[int, ...], list[Any]], None],
    ) -> None:
        """Runs all lanes; `finished` gets each one's index and outputs.

        **Raises:** the cause if the only lane failed, `SweepError` if some of several did.
        """
        self._finished = finished
        self._lanes = ((Lane(index), args) for index, args in lanes)
        self._schedule()
        try:
            await self._ended
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            raise
        if self._failures:
            self._failures.sort(key=lambda f: f.lane)
            if self._total == 1 and len(self._failures) == 1:
                raise self._failures[0].cause
            raise SweepError(self._failures, self._total)

    def warning(self) -> str | None:
        """What the user should know of a sweep that ended well."""
        return self._repeats.warning(self._total)

    # -- the stack ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Works the stack off soon; what completes in the same turn of the loop is batched together."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        try:
            landed, self._landed = self._landed, []
            for task, waiting in landed:
                self._settle(task, waiting)
            while True:
                while self._ready:
                    frame, index = self._ready.pop()
                    self._start(frame, index)
                if self._open < _WINDOW and self._admit():
                    continue
                if not self._collected:
                    break
                self._run_segments()
        except BaseException as error:  # a fault of the engine must not leave the caller waiting
            if not self._ended.done():
                self._ended.set_exception(error)
            raise
        if not self._tasks and not self._pumping and not self._ended.done():
            self._ended.set_result(None)

    def _admit(self) -> bool:
        for lane, args in itertools.islice(self._lanes, 256):
            self._open += 1
            self._total += 1
            self._enter(self._plan, args, lane, functools.partial(self._leave, lane))
        return bool(self._ready)

    def _leave(self, lane: Lane, outputs: list[Any]) -> None:
        self._open -= 1
        self._finished(lane.index, outputs)

    def _enter(
        self,
        plan: ir.Plan,
        args: Sequence[Any],
        lane: Lane,
        done: Callable[[list[Any]], None],
        inside: tuple[Frame, int] | None = None,
    ) -> None:
        frame = Frame(plan, args, lane, done, inside)
        if not frame.left:
            done([frame.values[v] for v in plan.outputs])
        for index in plan.first:
            self._ready.append((frame, index))

    def _complete(self, frame: Frame, index: int, outputs: Sequence[Any]) -> None:
        plan, values = frame.plan, frame.values
        for value, output in zip(plan.nodes[index].outputs, outputs, strict=True):
            values[value] = output
        waits = frame.waits
        for follower in plan.followers[index]:
            waits[follower] -= 1
            if not waits[follower]:
                self._ready.append((frame, follower))
        frame.left -= 1
        if not frame.left:
            frame.done([values[v] for v in plan.outputs])

    def _fail(self, frame: Frame, index: int, error: BaseException) -> None:
        scope = self._scope(frame, index)
        if isinstance(error, SweepError):  # calls of a batch inside this lane
            self._failures.extend(error.failures)
            self._total += error.lanes - 1
        else:
            self._failures.append(LaneFailure(frame.lane.index, scope, error))
        lane: Lane | None = frame.lane
        while lane is not None and not lane.failed:  # what a lane is nested in cannot finish either
            lane.failed = True
            self._open -= 1
            lane = lane.parent

    def _scope(self, frame: Frame, index: int) -> str:
        """Where a step stands: the operators it is in, outermost first."""
        path: list[str] = []
        at: tuple[Frame, int] | None = (frame, index)
        while at is not None:
            frame, index = at
            path.append(frame.plan.nodes[index].scope)
            at = frame.inside
        return "/".join(filter(None, (self._name, *reversed(path))))

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _start(self, frame: Frame, index: int) -> None:
        if frame.lane.failed:
            return
        node = frame.plan.nodes[index]
        match node:
            case ir.Segment():
                self._collected.setdefault(node, []).append((frame, index))
            case ir.Words():
                self._words(frame, index, node)
            case ir.Call():
                self._task(self._call(frame, node), [(frame, index)])
            case ir.Foreign():
                work = functools.partial(_evaluate, node, _inputs(frame, node), self._runners.x64)
                self._task(self._threads.run(work), [(frame, index)])
            case ir.Branch():
                self._branch(frame, index, node)
            case ir.Scan():
                self._scan(frame, index, node)
            case ir.Loop():
                self._while(frame, index, node)
            case ir.Lanes():
                self._nested(frame, index, node)

    def _words(self, frame: Frame, index: int, node: ir.Words) -> None:
        try:
            outputs = node.function(*_inputs(frame, node))
        except Exception as error:  # a text operation on this lane's words: the lane's failure, whatever it is
            self._fail(frame, index, error)
        else:
            self._complete(frame, index, outputs)

    async def _call(self, frame: Frame, node: ir.Call) -> list[Any]:
        caller = Caller(frame.lane.index, node.scope, unkeyed=functools.partial(self._repeats.saw, frame.lane, node))
        return [await node.function.run_batch(self._session, caller, _inputs(frame, node))]

    def _task(self, work: Any, waiting: list[tuple[Frame, int]]) -> None:
        """Starts what takes time: a call of one lane, or a slow segment of several."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._land, waiting))

    def _land(self, waiting: list[tuple[Frame, int]], task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._landed.append((task, waiting))
        self._schedule()

    def _settle(self, task: asyncio.Task[Any], waiting: list[tuple[Frame, int]]) -> None:
        if task.cancelled():
            if not self._ended.done():
                self._ended.cancel()
            return
        error = task.exception()
        if error is not None:
            for frame, index in waiting:
                self._fail(frame, index, error)
            return
        for (frame, index), outputs in zip(waiting, task.result(), strict=True):
            self._complete(frame, index, outputs)

    def _branch(self, frame: Frame, index: int, node: ir.Branch) -> None:
        which, *operands = _inputs(frame, node)
        chosen = node.branches[min(max(int(which), 0), len(node.branches) - 1)]
        self._enter(chosen, operands, frame.lane, functools.partial(self._complete, frame, index), (frame, index))

    def _while(self, frame: Frame, index: int, node: ir.Loop) -> None:
        inputs = _inputs(frame, node)
        first = node.condition_constants + node.body_constants
        of_condition, of_body = inputs[: node.condition_constants], inputs[node.condition_constants : first]

        def test(carry: list[Any]) -> None:
            args = [*of_condition, *carry]
            self._enter(node.condition, args, frame.lane, functools.partial(step, carry), (frame, index))

        def step(carry: list[Any], outputs: list[Any]) -> None:
            if bool(outputs[0]):
                self._enter(node.body, [*of_body, *carry], frame.lane, test, (frame, index))
            else:
                self._complete(frame, index, carry)

        test(inputs[first:])

    def _scan(self, frame: Frame, index: int, node: ir.Scan) -> None:
        inputs = _inputs(frame, node)
        constants = inputs[: node.constants]
        xs = inputs[node.constants + node.carry :]
        order = range(node.length)[:: -1 if node.reverse else 1]
        ys: list[list[Any]] = [[]] * node.length

        def finish(carry: list[Any]) -> None:
            stacked = [
                np.stack([y[k] for y in ys]) if ys else np.zeros((0, *aval.shape), aval.dtype)
                for k, aval in enumerate(node.body.avals[node.carry :])
            ]
            self._complete(frame, index, [*carry, *stacked])

        if not node.carry:  # `lax.map`: steps that do not depend on each other run at once
            left = node.length

            def land(step: int, outputs: list[Any]) -> None:
                nonlocal left
                ys[step] = outputs
                left -= 1
                if not left:
                    finish([])

            for step in order[::-1]:  # pushed last is started first
                args = [*constants, *(x[step] for x in xs)]
                self._enter(node.body, args, frame.lane, functools.partial(land, step), (frame, index))
            if not node.length:
                finish([])
            return

        steps = iter(order)

        def advance(carry: list[Any]) -> None:
            step = next(steps, None)
            if step is None:
                finish(carry)
            else:
                args = [*constants, *carry, *(x[step] for x in xs)]
                self._enter(node.body, args, frame.lane, functools.partial(stepped, step), (frame, index))

        def stepped(step: int, outputs: list[Any]) -> None:
            ys[step] = outputs[node.carry :]
            advance(outputs[: node.carry])

        advance(inputs[node.constants : node.constants + node.carry])

    def _nested(self, frame: Frame, index: int, node: ir.Lanes) -> None:
        outputs = [np.zeros((*node.sizes, *a.shape), a.dtype) for a in node.body.avals]
        left = int(np.prod(node.sizes))

        def land(at: tuple[int, ...], outs: list[Any]) -> None:
            nonlocal left
            for output, out in zip(outputs, outs, strict=True):
                output[at] = out
            left -= 1
            self._open -= 1
            if not left:
                self._complete(frame, index, outputs)

        if not left:
            self._complete(frame, index, outputs)
            return
        self._total += left - 1
        self._open += left
        for at, args in reversed(list(lane_arguments(node.sizes, node.mapped, _inputs(frame, node)))):
            lane = Lane(frame.lane.index + at, frame.lane)
            self._enter(node.body, args, lane, functools.partial(land, at), (frame, index))

    # -- segments ----------------------------------------------------------------------------------------------------

    def _run_segments(self) -> None:
        collected, self._collected = self._collected, {}
        for segment, waiting in collected.items():
            runner = self._runners[segment]
            for start in range(0, len(waiting), CAPACITIES[-1]):
                self._run_segment(runner, segment, waiting[start : start + CAPACITIES[-1]])

    def _run_segment(self, runner: SegmentRunner, segment: ir.Segment, waiting: list[tuple[Frame, int]]) -> None:
        sharing = self._runners.sharing[segment]
        first = waiting[0][0].values
        shared = [self._upload(first[v]) for v, s in zip(segment.inputs, sharing, strict=True) if s]
        varying = [v for v, s in zip(segment.inputs, sharing, strict=True) if not s]
        rows = [[frame.values[v] for v in varying] for frame, _ in waiting]
        run = functools.partial(runner.run, shared, rows)
        if not runner.is_quick(len(rows)):
            self._task(self._threads.run(run), waiting)
            return
        for (frame, index), outputs in zip(waiting, run(), strict=True):
            self._complete(frame, index, outputs)

    def _upload(self, value: Any) -> jax.Array:
        """A shared input as a device array, uploaded once in a sweep."""
        known = self._uploaded.get(id(value))
        if known is None:
            with jax.enable_x64(self._runners.x64):
                known = self._uploaded[id(value)] = (value, jnp.asarray(value))
        return known[1]


class Runners(dict[ir.Segment, SegmentRunner]):
    """The executables of a plan's segments, made on first use.

    **Attributes:**

    - `sharing`: for each segment, which inputs no lane varies.
    - `x64`: the configuration under which the program was traced; the loop's thread knows nothing of it.
    """

    def __init__(self, plan: ir.Plan, shared: Sequence[bool]):
        super().__init__()
        self.x64 = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
        self.sharing: dict[ir.Segment, tuple[bool, ...]] = {}
        _find_sharing(plan, shared, self.sharing)

    def __missing__(self, segment: ir.Segment) -> SegmentRunner:
        runner = self[segment] = SegmentRunner(segment, self.sharing[segment], self.x64)
        return runner


def _find_sharing(plan: ir.Plan, shared: Sequence[bool], found: dict[ir.Segment, tuple[bool, ...]]) -> None:
    is_shared = dict(enumerate(shared))
    for node in plan.nodes:
        mine = [is_shared.get(v, False) for v in node.inputs]
        match node:
            case ir.Segment():
                # A plan that stands in two places is given two different "shared" inputs.
                found[node] = (False,) * len(mine) if node in found else tuple(mine)
            case ir.Branch():
                for branch in node.branches:
                    _find_sharing(branch, mine[1:], found)
            case ir.Loop():
                first = node.condition_constants + node.body_constants
                varying = [False] * (len(mine) - first)
                _find_sharing(node.condition, mine[: node.condition_constants] + varying, found)
                _find_sharing(node.body, mine[node.condition_constants : first] + varying, found)
            case ir.Scan():
                varying = [False] * (len(mine) - node.constants)
                _find_sharing(node.body, mine[: node.constants] + varying, found)
            case ir.Lanes():
                inner = [s and not any(m) for s, m in zip(mine, node.mapped, strict=True)]
                _find_sharing(node.body, inner, found)


def lane_arguments(
    sizes: Sequence[int], mapped: Sequence[Sequence[bool]], arrays: Sequence[np.ndarray]
) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
    """The index and arguments of each lane; an argument's mapped axes lead it, outermost first."""
    axes = [[k for k, m in enumerate(mine) if m] for mine in mapped]
    for index in itertools.product(*map(range, sizes)):
        yield index, [a[tuple(index[k] for k in mine)] if mine else a for a, mine in zip(arrays, axes, strict=True)]


def _inputs(frame: Frame, node: ir.Node) -> list[Any]:
    values = frame.values
    return [values[v] for v in node.inputs]


def _evaluate(node: ir.Foreign, raw: Sequence[Any], x64: bool) -> list[list[np.ndarray]]:
    """Runs somebody's callback as JAX would, outside any program."""
    with jax.enable_x64(x64):
        values = [from_raw(jnp.asarray(x), v.aval) for x, v in zip(raw, node.eqn.invars, strict=True)]
        # a callback is called as it is: to compile a program around each would gain nothing
        outs = node.eqn.params["callback"](*values) if is_host(node.eqn) else evaluate(node.eqn, values)
        return [[np.asarray(to_raw(out)) for out in outs]]
