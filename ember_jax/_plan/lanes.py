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
import math
from collections.abc import Callable, Sequence
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
WINDOW = 16_384
# Lanes that start together, and share what is computed before they do.
_BLOCK = CAPACITIES[-1]


class Lane:
    """One lane: its index (outermost `vmap` first), the lane it is nested in, whether it failed or is in flight."""

    __slots__ = ("failed", "flying", "index", "parent")

    def __init__(self, index: tuple[int, ...], parent: "Lane | None" = None):
        self.index = index
        self.parent = parent
        self.failed = False
        self.flying = parent is not None


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


class Spread:
    """A step that spreads into lanes: which of them have started, and what they gave."""

    __slots__ = ("done", "inputs", "inside", "left", "node", "outputs", "started")

    def __init__(self, node: ir.Lanes, inside: tuple[Frame, int], done: Callable[[list[Any]], None]):
        self.node = node
        self.inputs = _inputs(inside[0], node)
        self.inside = inside
        self.done = done
        self.left = math.prod(node.sizes)
        self.started = 0
        self.outputs = [np.zeros((*node.sizes, *a.shape), a.dtype) for a in node.body.avals]


class Sweep:
    """One run of a plan, with all its lanes, on the event loop.

    **Arguments:**

    - `plan`: what is run.
    - `runners`: the executables of its segments.
    - `session`: whom calls are made through.
    - `threads`: where slow work goes.
    - `name`: the operator, for errors.
    - `window`: how many lanes may be in flight.
    """

    def __init__(
        self,
        plan: ir.Plan,
        runners: "Runners",
        session: Session,
        threads: Threads,
        name: str,
        window: int = WINDOW,
    ):
        self._plan, self._runners, self._session, self._threads, self._name = plan, runners, session, threads, name
        self._window = window
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._ready: list[tuple[Frame, int]] = []
        self._landed: list[tuple[asyncio.Task[Any], Callable[[Any], object], Callable[[BaseException], object]]] = []
        self._collected: dict[ir.Segment, list[tuple[Frame, int]]] = {}
        self._spreads: list[Spread] = []  # lanes that are yet to start; the deepest are last, and start first
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pumping = False
        self._failures: list[LaneFailure] = []
        self._uploaded: dict[int, tuple[Any, jax.Array]] = {}
        self._open = 0
        self._total = 1
        self._repeats = Repeats(name)

    async def run(self, args: Sequence[Any]) -> list[Any]:
        """Runs the plan on its inputs; returns its outputs.

        **Raises:** the cause if there was only one lane and it failed; `SweepError` if some of several did.
        """
        outputs: list[Any] = []
        self._enter(self._plan, args, Lane(()), outputs.extend)
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
        return outputs

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
            for task, succeed, fail in landed:
                self._settle(task, succeed, fail)
            while True:
                while self._ready:
                    frame, index = self._ready.pop()
                    self._start(frame, index)
                if self._spreads and self._open < self._window:
                    self._spread(self._spreads[-1])
                elif self._collected:
                    self._run_segments()
                else:
                    break
        except BaseException as error:  # a fault of the engine must not leave the caller waiting
            if not self._ended.done():
                self._ended.set_exception(error)
            raise
        if not self._tasks and not self._pumping and not self._ended.done():
            self._ended.set_result(None)

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

    def _fail(self, frame: Frame, index: int, error: BaseException, lane: Lane | None = None) -> None:
        """Ends a lane, the frame's own if no other is given, at a step."""
        lane = lane or frame.lane
        if isinstance(error, SweepError):  # calls of a batch inside this lane
            self._failures.extend(error.failures)
            self._total += error.lanes - 1
        elif not lane.failed:  # a lane is told once, by its first failure
            self._failures.append(LaneFailure(lane.index, self._scope(frame, index), error))
        while lane is not None and not lane.failed:  # what a lane is nested in cannot finish either
            lane.failed = True
            self._fly(lane, False)
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

    def _fly(self, lane: Lane, flying: bool) -> None:
        """Counts a lane as in flight, or not: one that waits for lanes of its own must not keep them from starting."""
        if lane.flying != flying and lane.parent is not None:
            lane.flying = flying
            self._open += 1 if flying else -1

    # -- what takes time ---------------------------------------------------------------------------------------------

    def _task(self, work: Any, succeed: Callable[[Any], object], fail: Callable[[BaseException], object]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._land, succeed, fail))

    def _land(
        self, succeed: Callable[[Any], object], fail: Callable[[BaseException], object], task: asyncio.Task[Any]
    ) -> None:
        self._tasks.discard(task)
        self._landed.append((task, succeed, fail))
        self._schedule()

    def _settle(
        self, task: asyncio.Task[Any], succeed: Callable[[Any], object], fail: Callable[[BaseException], object]
    ) -> None:
        if task.cancelled():
            if not self._ended.done():
                self._ended.cancel()
            return
        error = task.exception()
        if error is None:
            succeed(task.result())
        else:
            fail(error)

    # -- lanes -------------------------------------------------------------------------------------------------------

    def _spread(self, spread: Spread) -> None:
        """Starts the next block of lanes, after the segment that is computed for them at once."""
        node, start = spread.node, spread.started
        room = max(1, self._window - self._open)
        stop = min(start + min(_BLOCK, room), math.prod(node.sizes))
        spread.started = stop
        self._open += stop - start
        if stop == math.prod(node.sizes):
            self._spreads.remove(spread)
        places = np.unravel_index(np.arange(start, stop), node.sizes)
        axes = [[k for k, m in enumerate(mine) if m] for mine in node.mapped]
        rows = [x[tuple(places[k] for k in mine)] if mine else x for x, mine in zip(spread.inputs, axes, strict=True)]
        outer = spread.inside[0].lane
        lanes = [Lane(outer.index + at, outer) for at in zip(*(p.tolist() for p in places), strict=True)]
        go = functools.partial(self._lanes_start, spread, lanes, rows)
        if node.first is None:
            go([])
            return
        runner, sharing = self._runners[node.first], self._runners.sharing[node.first]
        inputs = [rows[v] for v in node.first.inputs]
        shared = [self._upload(x) for x, s in zip(inputs, sharing, strict=True) if s]
        # an input that is shared by these lanes, but not by all lanes of the sweep, is given to each
        varying = [
            x if axes[v] else np.broadcast_to(x, (stop - start, *np.shape(x)))
            for v, x, s in zip(node.first.inputs, inputs, sharing, strict=True)
            if not s
        ]
        run = functools.partial(runner.run, shared, varying, stop - start)
        if runner.is_quick(stop - start):
            go(run())
        else:
            fail = lambda error: [self._fail(*spread.inside, error, lane) for lane in lanes]
            self._task(self._threads.run(run), go, fail)

    def _lanes_start(self, spread: Spread, lanes: list[Lane], rows: list[Any], computed: Sequence[np.ndarray]) -> None:
        node = spread.node
        columns = [x if any(m) else itertools.repeat(x) for x, m in zip(rows, node.mapped, strict=True)]
        columns += computed
        depth = len(spread.inside[0].lane.index)
        for lane, *args in reversed(list(zip(lanes, *columns))):  # noqa: B905  (shared inputs repeat for ever)
            done = functools.partial(self._lane_done, spread, lane, lane.index[depth:])
            self._enter(node.body, args, lane, done, spread.inside)

    def _lane_done(self, spread: Spread, lane: Lane, at: tuple[int, ...], outputs: list[Any]) -> None:
        for array, output in zip(spread.outputs, outputs, strict=True):
            array[at] = output
        self._fly(lane, False)
        spread.left -= 1
        if not spread.left:
            spread.done(spread.outputs)

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
                self._take_time(frame, index, self._call(frame, node))
            case ir.Foreign():
                work = functools.partial(_evaluate, node, _inputs(frame, node), self._runners.x64)
                self._take_time(frame, index, self._threads.run(work))
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

    def _take_time(self, frame: Frame, index: int, work: Any) -> None:
        self._task(work, functools.partial(self._complete, frame, index), functools.partial(self._fail, frame, index))

    def _call(self, frame: Frame, node: ir.Call) -> Any:
        unkeyed = functools.partial(self._repeats.saw, frame.lane, node)
        caller = Caller(frame.lane.index, node.scope, unkeyed=unkeyed)
        return node.function.run_batch(self._session, caller, _inputs(frame, node))

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
        def done(outputs: list[Any]) -> None:
            self._fly(frame.lane, True)
            self._complete(frame, index, outputs)

        self._fly(frame.lane, False)
        spread = Spread(node, (frame, index), done)
        self._total += spread.left - 1
        if spread.left:
            self._spreads.append(spread)
        else:
            spread.done(spread.outputs)

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
        columns = [[frame.values[v] for frame, _ in waiting] for v in varying]
        run = functools.partial(runner.run, shared, columns, len(waiting))
        if runner.is_quick(len(waiting)):
            self._segment_done(waiting, run())
        else:
            fail = lambda error: [self._fail(frame, index, error) for frame, index in waiting]
            self._task(self._threads.run(run), functools.partial(self._segment_done, waiting), fail)

    def _segment_done(self, waiting: list[tuple[Frame, int]], outputs: Sequence[np.ndarray]) -> None:
        rows = zip(*outputs, strict=True) if outputs else itertools.repeat(())
        for (frame, index), row in zip(waiting, rows):  # noqa: B905  (without outputs there is a row for all)
            self._complete(frame, index, row)

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

    def __init__(self, plan: ir.Plan):
        super().__init__()
        self.x64 = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
        self.sharing: dict[ir.Segment, tuple[bool, ...]] = {}
        _find_sharing(plan, [True] * plan.inputs, self.sharing)

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
                if node.first is not None:
                    found[node.first] = tuple(inner[v] for v in node.first.inputs)
                    inner += [False] * len(node.first.outputs)
                _find_sharing(node.body, inner, found)


def _inputs(frame: Frame, node: ir.Node) -> list[Any]:
    values = frame.values
    return [values[v] for v in node.inputs]


def _evaluate(node: ir.Foreign, raw: Sequence[Any], x64: bool) -> list[np.ndarray]:
    """Runs somebody's callback as JAX would, outside any program."""
    with jax.enable_x64(x64):
        values = [from_raw(jnp.asarray(x), v.aval) for x, v in zip(raw, node.eqn.invars, strict=True)]
        # a callback is called as it is: to compile a program around each would gain nothing
        outs = node.eqn.params["callback"](*values) if is_host(node.eqn) else evaluate(node.eqn, values)
        return [np.asarray(to_raw(out)) for out in outs]
