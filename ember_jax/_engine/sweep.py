"""The lane engine: every lane goes through the plan at its own pace.

Design note. A lane is a frame: the plan it is in, its values, and for each node how many it still waits for. Nodes that
wait for nothing lie on one stack for all lanes; it is worked off on the event loop's thread until nothing is ready, so
a lane costs no task, no lock and no polling. Only a host call is a task. Control nodes push frames of their own plan.
The stack makes it depth first: a lane that can go on does so before another starts.

Numeric segments are not run when they are ready but collected, and run for all lanes that wait for the same one when
nothing else is ready (continuous batching, as inference servers do with tokens). A segment that is not known to be
quick runs in a thread, and the loop goes on with other lanes. Where one fails, each lane is computed alone: it is
mostly one of them that has failed.

A failed node stops its lane, never another one: it is not completed, so nothing after it starts; calls of the lane that
are in flight finish and are kept. Where an attempt catches the failure, the other lanes in it stop as well. The sweep
ends when nothing is ready, collected or in flight. An exception that belongs to no lane is a fault of the engine:
nothing starts after it, and it is raised when what is in flight has ended.
"""

import asyncio
import functools
import itertools
import math
import traceback
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InternalError, LaneFailure, SweepError, can_be_caught
from .._host import Caller, Used
from .._jax.equations import Host
from .._jax.jaxprs import evaluate
from .._jax.nan import nan_is_a_value
from .._jax.values import from_raw, to_raw
from .._plan import ir
from .._runtime.progress import Tally
from .._runtime.scheduler import NOWHERE
from .._runtime.session import Session
from .._runtime.threads import Threads
from .._text.failed import digest_for
from .device import device
from .lane import Frame, Lane, Part, Spread, inputs_of, is_seen
from .repeats import Repeats
from .runners import Runners
from .segments import CAPACITIES, SegmentRunner

# Lanes in flight at once; the rest wait outside memory. More than any provider lets through: each call in flight is a
# connection, and the limiter has a thousand of them unless it is given more. Where limits are low it is no smaller:
# which models lanes will ask is known by their data alone, all of it is 90 MB (5.5 kB for a lane that waits to ask its
# model), and fewer lanes share less; with 512 of them and 64 calls in flight a call took a tenth more CPU.
WINDOW = 16_384
# What an attempt adds where nothing has failed.
_NOT_FAILED = [np.zeros(a.shape, a.dtype) for a in ir.EXTRAS["attempt"]]
# Lanes that start together, and share what is computed before they do.
_BLOCK = CAPACITIES[-1]


class Sweep:
    """One run of a plan, with all its lanes, on the event loop.

    **Arguments:**

    - `plan`: what is run.
    - `runners`: the executables of its segments.
    - `session`: whom calls are made through.
    - `threads`: where slow work goes.
    - `name`: the operator, for errors.
    - `window`: how many lanes may be in flight.
    - `tally`: counts its calls.
    """

    def __init__(
        self,
        plan: ir.Plan,
        runners: Runners,
        session: Session,
        threads: Threads,
        name: str,
        window: int = WINDOW,
        tally: Tally | None = None,
    ):
        self._plan, self._runners, self._session, self._threads, self._name = plan, runners, session, threads, name
        self._window = window
        self._tally = tally or Tally()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._ready: list[tuple[Frame, int]] = []
        self._landed: deque[asyncio.Task[Any]] = deque()
        self._collected: dict[ir.Segment, list[tuple[Frame, int]]] = {}
        self._waiting: dict[
            tuple[Frame, int], list[tuple[Frame, int]]
        ] = {}  # by the step that started without an input
        self._spreads: list[Spread] = []  # lanes that are yet to start; the deepest are last, and start first
        self._steps: dict[asyncio.Task[Any], tuple[Frame, int]] = {}
        self._blocks: dict[asyncio.Task[Any], tuple[Callable[[Any], object], Callable[[BaseException], object]]] = {}
        self._pumping = False
        # By the lane that the user sees, and its index where it is one of a batch.
        self._failures: dict[tuple[Lane, tuple[int, ...]], LaneFailure] = {}
        self._fault: InternalError | None = None
        self._uploaded: dict[int, tuple[Any, jax.Array]] = {}
        self._open = 0
        self._total = 1
        self._repeats = Repeats(name)
        self._scopes: dict[tuple[str, str], str] = {}
        self._paths = runners.paths if session.turns is not None else {}
        self._saw, self._land = self._repeats.saw, self._landed_soon  # bound once: a method is made anew at each use

    async def run(self, args: Sequence[Any]) -> list[Any]:
        """Runs the plan on its inputs; returns its outputs.

        **Raises:** the cause if there was only one lane and it failed; `SweepError` if some of several did;
        `InternalError` if the engine itself did, when what was in flight has ended.
        """
        outputs: list[Any] = []
        try:
            self._enter(self._plan, args, Lane(()), outputs.extend)
        except Exception as error:
            self._fault = _fault(error)
        self._schedule()
        try:
            await self._ended
        except asyncio.CancelledError:
            tasks = [*self._steps, *self._blocks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        if self._fault is not None:
            raise self._fault from self._fault.cause
        if self._failures:
            failures = sorted(self._failures.values(), key=lambda f: f.lane)
            if self._total == 1 and len(failures) == 1:
                raise failures[0].cause
            raise SweepError(failures, self._total)
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
            if self._fault is None:
                self._work_off()
        except BaseException as error:  # a fault of the engine: the caller is told when what is in flight has ended
            self._fault = _fault(error)
        if self._fault is not None:
            self._wind_down()
        if not (self._steps or self._blocks or self._pumping or self._ended.done()):
            self._ended.set_result(None)

    def _work_off(self) -> None:
        while self._landed:
            self._settle(self._landed.popleft())
        started = False
        while True:
            while self._ready:
                frame, index = self._ready.pop()
                self._start(frame, index)
            more = self._spreads and self._open < self._window
            if more and not started:
                self._spread(self._spreads[-1])
                started = True
            elif self._collected:
                self._run_segments()
            else:
                break
        if more:  # the calls of this block go out before the next one starts
            self._schedule()

    def _wind_down(self) -> None:
        """After a fault nothing starts any more, and what is in flight ends for the journal alone."""
        while self._landed:
            task = self._landed.popleft()
            self._steps.pop(task, None)
            self._blocks.pop(task, None)
            if not task.cancelled():
                task.exception()  # marked as seen

    def _enter(
        self,
        plan: ir.Plan,
        args: Sequence[Any],
        lane: Lane,
        done: Callable[[list[Any]], None] | None,
        inside: tuple[Frame, int] | None = None,
        carried: Callable[[int, Any], None] | None = None,
    ) -> None:
        frame = Frame(plan, args, lane, done, inside)
        frame.scope = self._scope(*inside) if inside else self._name
        frame.carried = carried
        if not frame.left:
            self._leave(frame)
        for index in plan.first:
            self._ready.append((frame, index))

    def _leave(self, frame: Frame) -> None:
        outputs = [frame.values[v] for v in frame.plan.outputs]
        if frame.done is None:
            self._lane_done(frame.lane, outputs)
        else:
            frame.done(outputs)

    def _complete(self, frame: Frame, index: int, outputs: Sequence[Any], told: Collection[int] = ()) -> None:
        """Ends a step; those who wait for it go on, but for some that were told before."""
        plan, values = frame.plan, frame.values
        for value, output in zip(plan.nodes[index].outputs, outputs, strict=True):
            values[value] = output
        if index in plan.takers:
            self._hand_in(frame, index)
        followers = plan.followers[index]
        self._go_on(frame, [f for f in followers if f not in told] if told else followers)
        frame.left -= 1
        if not frame.left:
            self._leave(frame)

    def _go_on(self, frame: Frame, followers: Iterable[int]) -> None:
        """Tells steps that one they wait for is done."""
        waits = frame.waits
        for follower in followers:
            waits[follower] -= 1
            if not waits[follower]:
                self._ready.append((frame, follower))

    def _fail(self, frame: Frame, index: int, error: BaseException, lane: Lane | None = None) -> None:
        """Ends a lane, the frame's own if no other is given, at a step; or the part of it that may fail alone."""
        lane = lane or frame.lane
        part = lane.attempt if can_be_caught(error) else None
        if part is not None and part.failed:  # told already
            return
        if part is None and isinstance(error, SweepError):  # calls of a batch inside this lane
            are_seen = is_seen(frame, index)
            self._total += (error.lanes - 1) * are_seen
            for failure in error.failures:
                self._tell(lane, failure, failure.lane if are_seen else ())
        elif part is None and not lane.failed:
            self._tell(lane, LaneFailure(lane.index, self._scope(frame, index), error))
        while lane is not None and not lane.failed:  # what a lane is nested in cannot finish either
            lane.failed = True
            if part is not None and lane is part:
                self._catch(part, error)
                return
            self._fly(lane, False)
            lane = lane.parent

    def _tell(self, lane: Lane, failure: LaneFailure, at: tuple[int, ...] = ()) -> None:
        """Notes why a lane that the user sees has failed: of lanes inside it, why the first of them did."""
        known = self._failures.setdefault((lane.seen, at), failure)
        if failure.lane < known.lane:
            self._failures[lane.seen, at] = failure

    def _catch(self, part: Part, error: BaseException) -> None:
        """Goes on after a part of a lane that has failed."""
        # lanes inside it are not wanted any more, whether they have started or not
        self._spreads = [s for s in self._spreads if not s.inside[0].lane.is_in(part)]
        for lane in part.lanes:
            lane.failed = True
            self._fly(lane, False)
        part.lanes.clear()
        self._fly(part.whole, True)
        assert part.caught is not None
        part.caught(error)

    def _scope(self, frame: Frame, index: int) -> str:
        """Where a step stands: the operators it is in, outermost first."""
        return self._within(frame.scope, frame.plan.nodes[index].scope)

    def _within(self, scope: str, inner: str) -> str:
        if not inner:
            return scope
        found = self._scopes.get((scope, inner))  # asked for with every call
        if found is None:
            found = self._scopes[scope, inner] = f"{scope}/{inner}" if scope else inner
        return found

    def _fly(self, lane: Lane, flying: bool) -> None:
        """Counts a lane as in flight, or not: one that waits for lanes of its own must not keep them from starting."""
        lane = lane.whole
        if lane.flying != flying and lane.parent is not None and not (flying and lane.failed):
            lane.flying = flying
            self._open += 1 if flying else -1

    # -- what takes time ---------------------------------------------------------------------------------------------

    def _await_step(self, frame: Frame, index: int, work: Coroutine[Any, Any, Any]) -> None:
        """Does what takes time of one lane's step, which ends or fails with it."""
        task = self._loop.create_task(work)
        self._steps[task] = frame, index
        task.add_done_callback(self._land)

    def _await_block(
        self,
        work: Coroutine[Any, Any, Any],
        succeed: Callable[[Any], object],
        fail: Callable[[BaseException], object],
    ) -> None:
        """Does what takes time for many lanes."""
        task = self._loop.create_task(work)
        self._blocks[task] = succeed, fail
        task.add_done_callback(self._land)

    def _landed_soon(self, task: asyncio.Task[Any]) -> None:
        self._landed.append(task)
        self._schedule()

    def _settle(self, task: asyncio.Task[Any]) -> None:
        step, block = self._steps.pop(task, None), self._blocks.pop(task, None)
        if task.cancelled():
            if not self._ended.done():
                self._ended.cancel()
            return
        error = task.exception()
        if step is not None:
            node = step[0].plan.nodes[step[1]]
            self._tally.ended += isinstance(node, ir.Call) and not node.batch  # a batch counts its own
            if error is None:
                self._complete(*step, task.result())
            else:
                self._fail(*step, error)
        elif block is not None:
            succeed, fail = block
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
        late = node.late
        rows = [
            x[tuple(places[a] for a in mine)] if mine and k not in late else x
            for k, (x, mine) in enumerate(zip(spread.inputs, axes, strict=True))
        ]
        outer = spread.inside[0].lane
        lanes = [Lane(outer.index + at, spread) for at in zip(*(p.tolist() for p in places), strict=True)]
        go = functools.partial(self._lanes_start, spread, lanes, rows)
        if node.first is None:
            go([], {})
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
        self._compute(runner, shared, varying, stop - start, go)

    def _lanes_start(
        self,
        spread: Spread,
        lanes: list[Lane],
        rows: list[Any],
        computed: Sequence[np.ndarray],
        errors: Mapping[int, BaseException],
    ) -> None:
        node = spread.node
        whole = [k in node.late or not any(m) for k, m in enumerate(node.mapped)]
        columns = [itertools.repeat(x) if w else x for x, w in zip(rows, whole, strict=True)]
        columns += computed
        started = list(enumerate(zip(lanes, *columns)))  # noqa: B905  (shared inputs repeat for ever)
        for i, (lane, *args) in reversed(started):
            if i not in errors:
                self._enter(node.body, args, lane, None, spread.inside)
        for i, error in errors.items():
            self._fail(*spread.inside, error, lanes[i])

    def _lane_done(self, lane: Lane, outputs: list[Any]) -> None:
        spread = lane.spread
        assert spread is not None
        at = spread.place(lane)
        for array, output in zip(spread.outputs, outputs, strict=True):
            array[at] = output
        self._repeats.ended(lane)
        self._fly(lane, False)
        for part in lane.attempts():
            part.lanes.discard(lane)
        spread.left -= 1
        if not spread.left:
            self._spread_done(spread)

    def _give(self, frame: Frame, index: int, node: ir.Give) -> None:
        """Gives one output of a lane; with the last lane's it is complete, for those who wait for it alone."""
        value, position = frame.values[node.inputs[0]], node.position
        if frame.carried is not None:
            frame.carried(position, value)
        else:
            self._give_of_lane(frame.lane, position, value)
        self._complete(frame, index, ())

    def _give_of_lane(self, lane: Lane, position: int, value: Any) -> None:
        spread = lane.spread
        assert spread is not None
        spread.outputs[position][spread.place(lane)] = value
        spread.early[position] -= 1
        if not spread.early[position]:
            outer, step = spread.inside
            value = outer.plan.nodes[step].outputs[position]
            outer.values[value] = spread.outputs[position]
            if step in outer.plan.takers:
                self._hand_in(outer, step)
            for follower in spread.awaited:
                if value in outer.plan.nodes[follower].inputs:
                    spread.awaited[follower] -= 1
                    if not spread.awaited[follower]:
                        self._go_on(outer, [follower])

    def _take(self, frame: Frame, index: int, node: ir.Take) -> None:
        """Takes an input that the lane, or the branch, has started without, or waits for it."""
        assert frame.inside is not None
        outer, step = frame.inside
        holder = outer.plan.nodes[step]
        value = outer.values[holder.inputs[node.position]]
        if value is None:
            self._waiting.setdefault(frame.inside, []).append((frame, index))
            return
        if isinstance(holder, ir.Lanes) and frame.lane.spread is not None:
            places = zip(frame.lane.spread.place(frame.lane), holder.mapped[node.position], strict=True)
            at = tuple(i for i, mapped in places if mapped)
            value = value[at] if at else value
        self._complete(frame, index, (value,))

    def _hand_in(self, frame: Frame, made: int) -> None:
        """Lets lanes and branches go on that wait for what a step has made."""
        for index in frame.plan.takers[made]:
            self._ready += self._waiting.pop((frame, index), ())

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
            case ir.Call() if 0 in node.batch:  # nobody is there to ask
                types = [frame.plan.types[v] for v in node.outputs]
                self._complete(frame, index, [np.zeros(t.shape, t.dtype) for t in types])
            case ir.Call():
                self._await_step(frame, index, self._call(frame, index, node))
            case ir.Foreign():
                work = functools.partial(_evaluate, node, inputs_of(frame, node), self._runners.x64)
                self._await_step(frame, index, self._threads.run(work))
            case ir.Branch():
                self._branch(frame, index, node)
            case ir.Scan():
                self._scan(frame, index, node)
            case ir.Loop():
                self._while(frame, index, node)
            case ir.Lanes():
                self._nested(frame, index, node)
            case ir.Enclosed():
                self._enclosed(frame, index, node)
            case ir.Give():
                self._give(frame, index, node)
            case ir.Take():
                self._take(frame, index, node)

    def _words(self, frame: Frame, index: int, node: ir.Words) -> None:
        try:
            given = inputs_of(frame, node)
            outputs = node.function(*given) if node.batched else (node.function.one(given),)
        except Exception as error:  # a text operation on this lane's words: the lane's failure, whatever it is
            self._fail(frame, index, error)
        else:
            self._complete(frame, index, outputs)

    def _call(self, frame: Frame, index: int, node: ir.Call) -> Coroutine[Any, Any, Any]:
        scope = self._scope(frame, index)
        self._tally.begun += math.prod(node.batch)
        if node.meets:
            self._session.count("barriers")
        lane, path = frame.lane, self._paths.get(node, NOWHERE)
        stands_for = node.asked * node.lanes
        caller = Caller(lane.index, scope, True, self._saw, lane.whole, node, stands_for, lane.used, path, self._tally)
        run = node.function.run_batch if node.batch else node.function.run
        return run(self._session, caller, inputs_of(frame, node))

    def _branch(self, frame: Frame, index: int, node: ir.Branch) -> None:
        which, *operands = inputs_of(frame, node)
        chosen = min(max(int(which), 0), len(node.branches) - 1)
        self._tally.known += self._runners.more[node][chosen]
        branch = node.branches[chosen]
        self._enter(branch, operands, frame.lane, functools.partial(self._complete, frame, index), (frame, index))

    def _enclosed(self, frame: Frame, index: int, node: ir.Enclosed) -> None:
        def ended(outputs: list[Any]) -> None:
            extras = _NOT_FAILED if used is None else used.arrays()
            self._complete(frame, index, [*outputs, *extras])

        def failed(error: BaseException) -> None:
            outputs = [np.zeros(a.shape, a.dtype) for a in node.body.avals]
            self._complete(frame, index, [*outputs, np.frombuffer(digest_for(_cause(error)), np.uint32)])

        catches = node.how == "attempt"
        used = None if catches else Used()
        part = Part(frame.lane, failed if catches else None, used)
        self._enter(node.body, inputs_of(frame, node), part, ended, (frame, index))

    def _while(self, frame: Frame, index: int, node: ir.Loop) -> None:
        inputs = inputs_of(frame, node)
        first = node.condition_constants + node.body_constants
        of_condition, of_body = inputs[: node.condition_constants], inputs[node.condition_constants : first]
        (more,) = self._runners.more[node]

        def test(carry: list[Any]) -> None:
            args = [*of_condition, *carry]
            self._enter(node.condition, args, frame.lane, functools.partial(step, carry), (frame, index))

        def step(carry: list[Any], outputs: list[Any]) -> None:
            if bool(outputs[0]):
                self._tally.known += more
                self._enter(node.body, [*of_body, *carry], frame.lane, test, (frame, index))
            else:
                self._complete(frame, index, carry)

        test(inputs[first:])

    def _scan(self, frame: Frame, index: int, node: ir.Scan) -> None:
        inputs = inputs_of(frame, node)
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

        if not node.body.nodes:  # what is left of a scan may only hand values on; no frame, so no step, is needed
            carry = inputs[node.constants : node.constants + node.carry]
            for step in order:
                args = [*constants, *carry, *(x[step] for x in xs)]
                outputs = [args[v] if v < len(args) else node.body.constants[v] for v in node.body.outputs]
                carry, ys[step] = outputs[: node.carry], outputs[node.carry :]
            finish(carry)
            return

        steps = iter(order)
        left = node.length
        gives = any(isinstance(n, ir.Give) for n in node.body.nodes)

        def advance(carry: list[Any]) -> None:
            step = next(steps, None)
            if step is None:
                last[:] = carry
                return
            args = [*constants, *carry, *(x[step] for x in xs)]
            given: dict[int, Any] = {}

            def carried(position: int, value: Any) -> None:
                given[position] = value
                if len(given) == node.carry:
                    advance([given[k] for k in range(node.carry)])

            def stepped(outputs: list[Any]) -> None:
                nonlocal left
                ys[step] = outputs[node.carry :]
                left -= 1
                if not gives:
                    advance(outputs[: node.carry])
                if not left:
                    finish(last)

            self._enter(node.body, args, frame.lane, stepped, (frame, index), carried)

        last = inputs[node.constants : node.constants + node.carry]
        if node.length:
            advance(list(last))
        else:
            finish(last)

    def _nested(self, frame: Frame, index: int, node: ir.Lanes) -> None:
        self._fly(frame.lane, False)
        if node.meets:
            self._session.count("barriers")
        spread = Spread(node, (frame, index))
        self._total += (spread.left - 1) * spread.is_seen
        if spread.left:
            self._spreads.append(spread)
        else:
            self._spread_done(spread)

    def _spread_done(self, spread: Spread) -> None:
        frame, index = spread.inside
        self._fly(frame.lane, True)
        self._complete(frame, index, spread.outputs, {step for step, left in spread.awaited.items() if not left})

    # -- segments ----------------------------------------------------------------------------------------------------

    def _run_segments(self) -> None:
        collected, self._collected = self._collected, {}
        for segment, all_waiting in collected.items():
            runner = self._runners[segment]
            waiting = [(frame, index) for frame, index in all_waiting if not frame.lane.failed]
            for start in range(0, len(waiting), CAPACITIES[-1]):
                self._run_segment(runner, segment, waiting[start : start + CAPACITIES[-1]])

    def _run_segment(self, runner: SegmentRunner, segment: ir.Segment, waiting: list[tuple[Frame, int]]) -> None:
        sharing = self._runners.sharing[segment]
        first = waiting[0][0].values
        shared = [self._upload(first[v]) for v, s in zip(segment.inputs, sharing, strict=True) if s]
        varying = [v for v, s in zip(segment.inputs, sharing, strict=True) if not s]
        columns = [[frame.values[v] for frame, _ in waiting] for v in varying]
        self._compute(runner, shared, columns, len(waiting), functools.partial(self._segment_done, waiting))

    def _compute(
        self,
        runner: SegmentRunner,
        shared: Sequence[Any],
        columns: Sequence[Any],
        count: int,
        done: Callable[[Sequence[np.ndarray], Mapping[int, BaseException]], object],
    ) -> None:
        """Runs a segment for some lanes; `done` is told its outputs, and the errors of the lanes that failed."""
        if runner.is_quick(count):
            try:
                outputs = runner.run(shared, columns, count)
            except Exception:  # some lane's, which is found in a thread
                pass
            else:
                done(outputs, {})
                return
        work = functools.partial(runner.outcomes, shared, columns, count)
        fail = lambda error: done((), {i: error for i in range(count)})  # noqa: C420  (whose type is not known)
        self._await_block(self._threads.run(work), lambda outcomes: done(*outcomes), fail)

    def _segment_done(
        self,
        waiting: list[tuple[Frame, int]],
        outputs: Sequence[np.ndarray],
        errors: Mapping[int, BaseException],
    ) -> None:
        rows = zip(*outputs, strict=True) if outputs else itertools.repeat(())
        for i, ((frame, index), row) in enumerate(zip(waiting, rows)):  # noqa: B905  (without outputs a row for all)
            if i in errors:
                self._fail(frame, index, errors[i])
            else:
                self._complete(frame, index, row)

    def _upload(self, value: Any) -> jax.Array:
        """A shared input as a device array, uploaded once in a sweep."""
        known = self._uploaded.get(id(value))
        if known is None:
            with jax.enable_x64(self._runners.x64), jax.default_device(device()), nan_is_a_value():
                known = self._uploaded[id(value)] = (value, jnp.asarray(value))
        return known[1]


def _fault(error: BaseException) -> InternalError:
    """What a user is told of an exception that nothing of the user's has raised."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return InternalError(
        f"a fault of ember_jax itself, not of your program: {type(error).__name__} in {FilePath(where.filename).name}, "
        f"line {where.lineno}. No call was begun after it; those in flight ended, and what they were answered is kept "
        "in the journal. Please report it with the traceback of its cause, which is `error.cause`.",
        error,
    )


def _cause(error: BaseException) -> BaseException:
    """Why a part failed: of a batch of calls, or of the lanes of a sweep, that a single one did."""
    return error.failures[0].cause if isinstance(error, SweepError) and len(error.failures) == 1 else error


def _evaluate(node: ir.Foreign, raw: Sequence[Any], x64: bool) -> list[np.ndarray]:
    """Runs somebody's callback as JAX would, outside any program."""
    with jax.enable_x64(x64):
        seen = node.seen
        with jax.default_device(device()), nan_is_a_value():
            values = [from_raw(jnp.asarray(x), v.aval) for x, v in zip(raw, seen.eqn.invars, strict=True)]
        # a callback is called as it is: to compile a program around each would gain nothing
        outs = seen.callback(*values) if isinstance(seen, Host) else evaluate(seen.eqn, values)
        return [np.asarray(to_raw(out)) for out in outs]
