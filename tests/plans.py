"""Random plans of calls that take time, and when each of their calls begins and ends, as their data allow."""

import asyncio
import contextlib
import functools
import itertools
import math

import jax
import numpy as np
from hypothesis import strategies as st

from ember_jax._engine.runners import Runners
from ember_jax._engine.sweep import Sweep
from ember_jax._engine.window import WINDOW
from ember_jax._host import HostCall
from ember_jax._plan import ir
from ember_jax._plan.passes import arrange
from ember_jax._runtime.loop import get_loop
from ember_jax._runtime.turns import Turns
from ember_jax.testing import VirtualClock

HANG = 60.0  # real seconds after which a test has failed; none waits for it
TICK = 1 / 64
INT = jax.ShapeDtypeStruct((), np.int32)
FLOAT = jax.ShapeDtypeStruct((), np.float32)


def ticks():
    return asyncio.get_running_loop().time() / TICK


def on_loop(coroutine):
    return get_loop().submit(coroutine).result(HANG)


# -- plans that take time --------------------------------------------------------------------------------------------


def mix(number, *values):
    """Some number below 1009 that depends on all arguments and their order."""
    return functools.reduce(lambda total, v: (total * 31 + int(np.sum(v)) + 7) % 1009, values, number)


def cost(number, values):
    """How many ticks a call takes; one in eight takes none."""
    return mix(number, *values) % 8


class Timed(HostCall):
    """A call that takes its cost. `number` tells it from the others; the witness is given in place of a session."""

    pure = False

    def __init__(self, number, arity, cost=cost):
        self.number, self.cost = number, cost
        self.ranks = (0,) * arity

    async def run(self, witness, caller, arrays):
        async with witness.turn(caller):
            began = ticks()
            witness.events.append(("begins", caller.lane, self.number))
            await asyncio.sleep(self.cost(self.number, arrays) * TICK)
            witness.events.append(("ends", caller.lane, self.number))
            witness.calls.append((caller.lane, self.number, began, ticks()))
        return [np.int32(mix(self.number, *arrays))]


class Witness:
    """What happened: each call with its lane, number, beginning and end. So many slots there are, or a scheduler."""

    keeping = "nothing"

    def __init__(self, slots=None, scheduler=None):
        self.slots = contextlib.nullcontext() if slots is None else asyncio.Semaphore(slots)
        self.turns = None if scheduler is None else Turns(scheduler)
        self.calls = []
        self.events = []

    def turn(self, caller):
        if self.turns is None:
            return self.slots
        return self.turns.turn(self.turns.task("host", caller.lane, caller.scope, caller.path))


def run(plan, args=(), *, slots=None, scheduler=None, window=WINDOW):
    """Runs a plan, arranged, from virtual time 0: its outputs, when it ended, what happened."""
    plan = arrange(plan)

    async def sweep():
        witness = Witness(slots, scheduler)
        outputs = await Sweep(plan, Runners(plan, False), witness, get_loop().threads, "test", window).run(args)
        return outputs, ticks(), witness

    with VirtualClock():
        return on_loop(sweep())


def array(*shape):
    return jax.ShapeDtypeStruct(shape, np.int32)


class Builder:
    """A plan in the making. `scalars` are the values that the next step may take."""

    numbers = itertools.count()

    def __init__(self, *types):
        self.inputs = len(types)
        self.types = list(types)
        self.nodes = []
        self.scalars = [v for v, t in enumerate(types) if not t.shape]

    def add(self, kind, inputs, types, *details):
        self.types += types
        made = tuple(range(len(self.types) - len(types), len(self.types)))
        self.nodes.append(kind(tuple(inputs), made, "", *details))
        return made

    def words(self, function, *inputs, type=INT):
        run = lambda *values: [np.asarray(function(*values), np.int32)]
        return self.add(ir.Words, inputs, [type], run, True)[0]

    def call(self, *inputs, cost=cost, number=None):
        number = next(self.numbers) if number is None else number
        return self.add(ir.Call, inputs, [INT], Timed(number, len(inputs), cost), ())[0]

    def plan(self, outputs):
        return ir.Plan(self.inputs, tuple(self.types), {}, tuple(self.nodes), tuple(outputs))


def over_lanes(body, lanes):
    """A plan of lanes; each gets its own numbers."""
    builder = Builder(*[array(lanes)] * body.inputs)
    mapped = ((True,),) * body.inputs
    types = [array(lanes)] * len(body.outputs)
    return builder.plan(builder.add(ir.Lanes, range(body.inputs), types, body, (lanes,), mapped))


@st.composite
def plans(draw, inputs, outputs, depth):
    """A random plan of calls and text operations, with branches, loops, scans and inner lanes `depth` deep."""
    builder = Builder(*[INT] * inputs)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(STEPS if depth else STEPS[:3]))
        taken = draw(st.lists(st.sampled_from(builder.scalars), min_size=1, max_size=3))
        builder.scalars += kind(draw, builder, taken, depth - 1)
    return builder.plan(draw(st.lists(st.sampled_from(builder.scalars), min_size=outputs, max_size=outputs)))


def a_call(draw, builder, taken, depth):
    return [builder.call(*taken, number=draw(NUMBERS))]


def some_words(draw, builder, taken, depth):
    return [builder.words(functools.partial(mix, draw(NUMBERS)), *taken)]


def a_branch(draw, builder, taken, depth):
    count = draw(st.integers(1, 3))
    which = builder.words(lambda x: x % (count + 2) - 1, taken[0])  # also below and above, where JAX clamps
    branches = tuple(draw(plans(len(taken), 2, depth)) for _ in range(count))
    return builder.add(ir.Branch, (which, *taken), [INT, INT], branches)


def a_loop(draw, builder, taken, depth):
    """At most three turns, counted by the first carry. The condition makes a call too."""
    limit = builder.words(lambda x: x % 4, taken[0])
    zero = builder.words(lambda x: 0, taken[0])
    condition = Builder(INT, INT, INT)
    asked = condition.call(1, 2, number=draw(NUMBERS))
    condition = condition.plan([condition.words(lambda limit, count, _: count < limit, 0, 1, asked)])
    turn = draw(plans(len(taken) + 2, 1, depth))
    body = Builder(*turn.types[: turn.inputs])
    body.nodes, body.types = list(turn.nodes), list(turn.types)
    body = body.plan([body.words(lambda count: count + 1, len(taken)), *turn.outputs])
    carry = (zero, taken[-1])
    return builder.add(ir.While, (limit, *taken, *carry), [INT, INT], condition, body, 1, len(taken))


def a_scan(draw, builder, taken, depth):
    length, carry, reverse = draw(st.integers(0, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    xs = builder.words(lambda x: (x + np.arange(length)) % 1009, taken[-1], type=array(length))
    body = draw(plans(len(taken) + carry + 1, carry + 1, depth))
    inputs = (*taken, *(taken[:1] * carry), xs)
    types = [INT] * carry + [array(length)]
    *carried, ys = builder.add(ir.Scan, inputs, types, body, len(taken), carry, length, reverse)
    return [*carried, builder.words(functools.partial(mix, 0), ys)]


def enclosed(draw, builder, taken, depth):
    how = draw(st.sampled_from(["attempt", "metered"]))
    body = draw(plans(len(taken), 2, depth))
    return builder.add(ir.Enclosed, taken, [INT, INT, *ir.EXTRAS[how]], body, how)[:2]


def inner_lanes(draw, builder, taken, depth):
    sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    one_axis = draw(st.integers(0, len(sizes) - 1))
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    every = builder.words(lambda x: (x + numbers) % 1009, taken[0], type=array(*sizes))
    length = sizes[one_axis]
    one = builder.words(lambda x: (x + np.arange(length)) % 1009, taken[-1], type=array(length))
    alone = tuple(k == one_axis for k in range(len(sizes)))
    mapped = ((False,) * len(sizes), (True,) * len(sizes), alone)
    body = draw(plans(3, 1, depth))
    (outs,) = builder.add(ir.Lanes, (taken[0], every, one), [array(*sizes)], body, sizes, mapped)
    return [builder.words(functools.partial(mix, 0), outs)]


NUMBERS = st.integers(0, 1008)  # drawn, and not counted on, so that an example stays the same example
STEPS = (a_call, a_call, some_words, a_branch, a_loop, a_scan, enclosed, inner_lanes)


def critical(plan, args, at, start, lane, calls):
    """The oracle: a plan's outputs, when each is ready, and when all is done. Notes its calls as a witness does.

    `at` says when each argument is ready. A step begins when the last of its inputs is ready, but a branch when it is
    known which, and each lane where there is something to do for it.
    """
    values, ready = dict(enumerate(args)), dict(enumerate(at))
    end = start
    for node in plan.nodes:
        given, when = [values[v] for v in node.inputs], [max(start, ready[v]) for v in node.inputs]
        outputs, done, last = one_step(node, given, when, start, lane, calls)
        values.update(zip(node.outputs, outputs, strict=True))
        ready.update(zip(node.outputs, done, strict=True))
        end = max(end, last)
    done = [max(start, ready[v]) for v in plan.outputs]
    return [values[v] for v in plan.outputs], done, max([end, *done])


def one_step(node, given, when, start, lane, calls):
    begin = max(when, default=start)
    match node:
        case ir.Words():
            outputs, end = node.function(*given), begin
        case ir.Call():
            outputs, end = [mix(node.function.number, *given)], begin + node.function.cost(node.function.number, given)
            calls.append((lane, node.function.number, begin, end))
        case ir.Branch():
            which = min(max(given[0], 0), len(node.branches) - 1)
            outputs, _, end = critical(node.branches[which], given[1:], when[1:], when[0], lane, calls)
        case ir.While():
            outputs, end = whole_loop(node, given, begin, lane, calls)
        case ir.Scan():
            outputs, end = whole_scan(node, given, begin, lane, calls)
        case ir.Enclosed():
            outputs, _, end = critical(node.body, given, [begin] * len(given), begin, lane, calls)
            outputs += [None] * len(ir.EXTRAS[node.how])
        case ir.Lanes():
            return all_lanes(node, given, when, start, lane, calls)
    return outputs, [end] * len(outputs), end


def whole_loop(node, given, at, lane, calls):
    split = node.condition_constants, node.condition_constants + node.body_constants
    of_condition, of_body, carry = given[: split[0]], given[split[0] : split[1]], given[split[1] :]
    while True:
        args = of_condition + carry
        (go_on,), _, at = critical(node.condition, args, [at] * len(args), at, lane, calls)
        if not go_on:
            return carry, at
        args = of_body + carry
        carry, _, at = critical(node.body, args, [at] * len(args), at, lane, calls)


def whole_scan(node, given, begin, lane, calls):
    """A step waits for the carry of the one before."""
    constants, carry = given[: node.constants], given[node.constants : node.constants + node.carry]
    ys, ends, at = {}, [begin], begin
    for i in reversed(range(node.length)) if node.reverse else range(node.length):
        args = [*constants, *carry, *(xs[i] for xs in given[node.constants + node.carry :])]
        outputs, done, end = critical(node.body, args, [at] * len(args), at, lane, calls)
        carry, ys[i] = outputs[: node.carry], outputs[node.carry :]
        at = max(done[: node.carry])
        ends.append(end)
    columns = [[ys[i][k] for i in range(node.length)] for k in range(len(node.body.outputs) - node.carry)]
    return [*carry, *columns], max(ends)


def all_lanes(node, given, when, start, lane, calls):
    """An output is ready when every lane has it."""
    outputs = [np.zeros(node.sizes, np.int32) for _ in node.body.outputs]
    ready, end = [start] * len(outputs), start
    for at in np.ndindex(node.sizes):
        args = [x[tuple(i for i, m in zip(at, mine, strict=True) if m)] if any(mine) else x
                for x, mine in zip(given, node.mapped, strict=True)]  # fmt: skip
        outs, done, last = critical(node.body, args, when, start, lane + at, calls)
        for array, out in zip(outputs, outs, strict=True):
            array[at] = out
        ready, end = [max(pair) for pair in zip(ready, done, strict=True)], max(end, last)
    return outputs, ready, end


def rows(data, lanes, inputs):
    numbers = st.lists(st.integers(0, 1008), min_size=lanes, max_size=lanes)
    return [np.array(data.draw(numbers), np.int32) for _ in range(inputs)]
