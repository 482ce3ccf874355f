"""What a scheduler is asked, what it is told, and what its order is worth: on the virtual clock, against theorems.

Makespans are in whole ticks, so that every comparison is one of equality.
"""

import asyncio
import contextlib
import functools
import inspect
import itertools
import math
import random
import re
import textwrap
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from plans import HANG, INT, TICK, Builder, critical, over_lanes, plans, rows, run

import ember_jax as ember
from ember_jax import CriticalPath, Limit, Retry, Scheduler, Topological
from ember_jax._plan import ir
from ember_jax._plan.passes import arrange
from ember_jax._plan.paths import paths
from ember_jax._runtime.loop import get_loop
from ember_jax._runtime.scheduler import Path
from ember_jax._runtime.turns import Turns
from ember_jax.errors import RateLimitError, SchedulerError, ServerError, SweepError
from ember_jax.providers.callable import Callable
from ember_jax.testing import VirtualClock

FLOAT = jax.ShapeDtypeStruct((), np.float32)


def example():
    """The class that the documentation shows, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(Scheduler) or "", re.DOTALL)
    names = {"ember": ember}
    exec(textwrap.dedent(code).partition("with ember.session")[0], names)
    return names["ShortestFirst"]()


class RandomOrder(Scheduler):
    """Whichever, while there is a slot."""

    def __init__(self, slots, seed):
        self.slots, self.random, self.waiting = slots, random.Random(seed), []

    def priority(self, task):
        return self.random.random()

    def add(self, task):
        self.waiting.append(task)

    def next(self):
        if not self.waiting or not self.slots:
            return None
        self.slots -= 1
        return self.waiting.pop(self.random.randrange(len(self.waiting)))

    def ended(self, task):
        self.slots += 1


class Audited(Scheduler):
    """Another scheduler, with what it was told: each task waits, is started and ends, once and in this order."""

    def __init__(self, scheduler):
        self.inner, self.states, self.starts, self.added = scheduler, {}, [], []

    def priority(self, task):
        assert self.states[task] == "started"
        return self.inner.priority(task)

    def add(self, task):
        assert self.states.get(task, "ended") == "ended"
        self.states[task] = "waits"
        self.added.append(task)
        self.inner.add(task)

    def next(self):
        task = self.inner.next()
        if task is not None:
            assert self.states[task] == "waits"
            self.states[task] = "started"
            self.starts.append(task)
        return task

    def ended(self, task):
        assert self.states[task] == "started"
        self.states[task] = "ended"
        self.inner.ended(task)

    def all_have_ended(self):
        return set(self.states.values()) <= {"ended"}


BUILT_IN = [Topological, CriticalPath]


# -- the makespan ----------------------------------------------------------------------------------------------------


@given(st.sampled_from(BUILT_IN), plans(2, 2, 2), st.integers(1, 4), st.data())
def test_without_slots_the_makespan_is_the_critical_path(kind, body, lanes, data):
    plan, args, wanted = over_lanes(body, lanes), rows(data, lanes, 2), []
    outputs, _, end = critical(plan, args, [0, 0], 0, (), wanted)
    found, makespan, witness = run(plan, args, scheduler=kind())
    assert makespan == end
    assert Counter(witness.calls) == Counter(wanted)
    for one, other in zip(found, outputs, strict=True):
        np.testing.assert_array_equal(one, other)


SLOTTED = [Topological, CriticalPath, functools.partial(RandomOrder, seed=0)]


@given(st.sampled_from(SLOTTED), plans(2, 2, 1), st.integers(1, 4), st.integers(1, 5), st.data())
def test_with_slots_the_makespan_is_within_grahams_bound(kind, body, lanes, slots, data):
    """R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969: true of every greedy schedule of any DAG."""
    plan, args, wanted = over_lanes(body, lanes), rows(data, lanes, 2), []
    *_, path = critical(plan, args, [0, 0], 0, (), wanted)
    work = sum(end - begin for _, _, begin, end in wanted)
    scheduler = Audited(kind(slots))
    _, makespan, witness = run(plan, args, scheduler=scheduler)
    assert sorted(c[:2] for c in witness.calls) == sorted(c[:2] for c in wanted)
    assert makespan >= path
    assert work <= slots * makespan <= work + (slots - 1) * path
    assert len(scheduler.starts) == len(wanted)
    steps = [{"begins": 1, "ends": -1}[kind] for kind, _, _ in witness.events]
    assert max(itertools.accumulate(steps), default=0) <= slots


UNIT = {"cost": lambda number, given: 1}


def in_tree(parents):
    """Calls of one tick: `parents[i]`, which is at most i, waits for call i + 1, so that call 0 is the last."""
    builder, made = Builder(INT), {}
    for i in reversed(range(len(parents) + 1)):
        children = [made[k + 1] for k, parent in enumerate(parents) if parent == i]
        made[i] = builder.call(*(children or [0]), **UNIT)
    return builder.plan([made[0]])


@given(st.data(), st.integers(1, 24), st.integers(1, 5))
def test_critical_path_first_is_optimal_on_in_trees(data, size, slots):
    """T. C. Hu, "Parallel sequencing and assembly line problems", 1961; its length of the shortest schedule."""
    parents = [data.draw(st.integers(max(0, i - 3), i)) for i in range(size)]
    level = [1]
    for parent in parents:
        level.append(level[parent] + 1)
    above = lambda depth: sum(at > depth for at in level)
    optimum = max(depth + -(-above(depth) // slots) for depth in range(max(level)))
    assert run(in_tree(parents), [np.int32(0)], scheduler=CriticalPath(slots))[1] == optimum


@given(st.integers(1, 12), st.integers(2, 4))
def test_critical_path_first_takes_a_chain_before_what_nobody_waits_for(length, slots):
    """A chain, and before it in the program as many independent calls as fill the other slots all the while."""
    builder = Builder(INT)
    alone = [builder.call(0, **UNIT) for _ in range(length * (slots - 1))]
    last = 0
    for _ in range(length):
        last = builder.call(last, **UNIT)
    plan = builder.plan([*alone, last])
    of = lambda scheduler: run(plan, [np.int32(0)], scheduler=scheduler)[1]
    assert of(CriticalPath(slots)) == length
    assert of(Topological(slots)) == length * (slots - 1) // slots + length


@pytest.mark.parametrize(("kind", "wanted"), [(Topological, [0, 0, 1, 1, 2, 2]), (CriticalPath, [0, 1, 2, 0, 1, 2])])
def test_the_order_of_lanes_in_stages(kind, wanted):
    """With one slot: deepest first ends one lane before the other begins; critical path first goes stage by stage."""
    builder = Builder(INT)
    last = 0
    for _ in range(2):
        last = builder.call(last, **UNIT)
    scheduler = Audited(kind(1))
    run(over_lanes(builder.plan([last]), 3), [np.zeros(3, np.int32)], scheduler=scheduler)
    assert [task.lane for task in scheduler.starts] == [(i,) for i in wanted]
    assert {(task.depth, task.ahead) for task in scheduler.starts} == {(0, 1), (1, 0)}


# -- depth and ahead -------------------------------------------------------------------------------------------------

LONG = 1000


@given(plans(2, 2, 1), st.integers(1, 2), st.data())
def test_depth_and_ahead_are_when_a_call_begins_and_what_its_delay_delays(body, lanes, data):
    """Where the run decides nothing: all calls take a tick, and then one of them takes very long."""
    assume(all(is_fixed(node) for node in nodes(body)))
    plan = over_lanes(body, lanes)
    found = paths(arrange(plan))
    calls = {node.function: node for node in nodes(plan) if isinstance(node, ir.Call)}
    assert {call.function for call in found} == set(calls)
    assume(calls)
    slow = data.draw(st.sampled_from(sorted(calls, key=lambda f: (f.number, id(f)))))
    path = next(path for call, path in found.items() if call.function is slow)
    args = rows(data, lanes, 2)
    for function in calls:
        function.cost = lambda number, given: 1
    _, end, witness = run(plan, args)
    assert end == max(path.depth + 1 + path.ahead for path in found.values())
    slow.number, before = -1, slow.number
    try:
        slow.cost = lambda number, given: LONG
        _, end, witness = run(plan, args)
    finally:
        slow.number = before
    begins = {begin for _, number, begin, _ in witness.calls if number == -1}
    assert begins == {path.depth}
    assert end == path.depth + LONG + path.ahead


def nodes(plan):
    """All nodes, those within others too."""
    for node in plan.nodes:
        yield node
        for inner in node.plans:
            yield from nodes(inner)


def is_fixed(node):
    match node:
        case ir.Branch():
            return len(node.branches) == 1
        case ir.Scan():
            return node.length == 1
        case _:
            return not isinstance(node, ir.While)


def one_call(inputs, outputs):
    builder = Builder(*[INT] * inputs)
    return builder.plan([builder.call(*range(inputs))] * outputs)


def of_calls(plan):
    """By the order in which calls were made."""
    found = sorted(paths(plan).items(), key=lambda item: item[0].function.number)
    return [path for _, path in found]


def test_of_a_scan_a_call_stands_in_the_first_step():
    body, builder = one_call(1, 1), Builder(INT)
    (out,) = builder.add(ir.Scan, [builder.call(0)], [INT], body, 0, 1, 10, False)
    plan = builder.plan([builder.call(out)])
    assert of_calls(plan) == [Path(1, 10), Path(0, 11), Path(11, 0)]


def test_a_while_loop_makes_one_turn_and_asks_twice():
    condition, body, builder = one_call(1, 1), one_call(1, 1), Builder(INT)
    (out,) = builder.add(ir.While, [builder.call(0)], [INT], condition, body, 0, 0)
    plan = builder.plan([builder.call(out)])
    assert of_calls(plan) == [Path(1, 3), Path(2, 2), Path(0, 4), Path(4, 0)]


def test_of_branches_the_longer_counts():
    short, long = Builder(INT), Builder(INT)
    short, long = short.plan([short.call(0)]), long.plan([long.call(long.call(long.call(0)))])
    builder = Builder(INT)
    before = builder.call(0)
    (out,) = builder.add(ir.Branch, [before, 0], [INT], (short, long))
    plan = builder.plan([builder.call(out)])
    assert of_calls(plan) == [Path(1, 1), Path(1, 3), Path(2, 2), Path(3, 1), Path(0, 4), Path(4, 0)]


async def _wait(seconds, x):
    await asyncio.sleep(float(seconds))
    return x


wait = ember.host(_wait, out=FLOAT, pure=False)


def carried_early(x):
    """The carry of a step is there before its output."""
    return jax.lax.scan(lambda c, s: ((d := wait(1, c + s)), wait(1, d)), x, jnp.arange(4.0))[1]


def test_steps_that_wait_for_the_carry_alone():
    scheduler = Audited(Topological())
    with VirtualClock() as clock, ember.session(scheduler=scheduler):
        jax.block_until_ready(ember.jit(carried_early)(jnp.float32(1)))
        assert clock.now == 5
    assert {(task.depth, task.ahead) for task in scheduler.starts} == {(0, 4), (1, 0)}
    assert {task.model for task in scheduler.starts} == {"host"}


def test_an_empty_batch_and_a_scan_without_steps_make_no_call():
    builder = Builder(INT)
    one = builder.call(0)
    (out,) = builder.add(ir.Scan, [one], [INT], one_call(1, 1), 0, 1, 0, False)
    plan = builder.plan([builder.call(out)])
    assert [path for call, path in paths(plan).items() if call in plan.nodes] == [Path(0, 1), Path(1, 0)]


# -- models, limits, retries -----------------------------------------------------------------------------------------


class Model:
    """A model that takes its time, and fails once at some prompts; it answers with the prompt and a dot."""

    def __init__(self, seconds=0.0, faults=()):
        self.seconds, self.faults, self.asked = seconds, dict(faults), []
        self.in_flight, self.most = Counter(), Counter()

    async def __call__(self, request):
        prompt = request.messages[-1].content
        self.asked.append((asyncio.get_running_loop().time(), prompt))
        self.in_flight[request.model] += 1
        self.most[request.model] = max(self.most[request.model], self.in_flight[request.model])
        try:
            await asyncio.sleep(self.seconds)
            if prompt in self.faults:
                raise self.faults.pop(prompt)
        finally:
            self.in_flight[request.model] -= 1
        return prompt + "."


@contextlib.contextmanager
def session(model, **settings):
    with VirtualClock() as clock, ember.session(providers={"ours": Callable(model)}, **settings) as opened:
        opened.clock = clock
        yield opened


ember.register("ours", Callable(lambda request: ""))
M = ember.LLM("ours/m")


@ember.jit
def alone_and_chain(chain):
    """Four calls that nobody waits for, and a chain of four."""
    alone = [M(f"alone {i}") for i in range(4)]
    for _ in range(4):
        chain = M(chain)
    return *alone, chain


@pytest.mark.parametrize("scheduler", [None, CriticalPath()])
def test_critical_path_first_at_the_gate_of_a_model(scheduler):
    """One call a second; each takes one and a half, so the chain can go every other second.

    Its last call comes before nothing, as those do that had come before it.
    """
    model = Model(1.5)
    with session(model, scheduler=scheduler, limits={"ours": Limit(rpm=60)}) as opened:
        jax.block_until_ready(alone_and_chain(ember.text("chain")))
        end = opened.clock.now
    at = [round(when, 6) for when, prompt in model.asked if prompt.startswith("chain")]
    if scheduler is None:
        assert (at, end) == ([4.0, 5.5, 7.0, 8.5], pytest.approx(10.0, abs=1e-6))
    else:
        assert (at, end) == ([0.0, 2.0, 4.0, 7.0], pytest.approx(8.5, abs=1e-6))


@pytest.mark.parametrize(("scheduler", "end"), [(Topological(2), 2 + 4), (CriticalPath(2), 4)])
def test_critical_path_first_with_two_slots(scheduler, end):
    """A slot that is given back goes to the call that the same end has set off, if that comes first."""
    with session(Model(1.0), scheduler=scheduler) as opened:
        jax.block_until_ready(alone_and_chain(ember.text("chain")))
        assert opened.clock.now == end


def test_the_documented_example_keeps_three_of_a_model_and_takes_the_shortest_first():
    model, other = Model(1.0), ember.LLM("ours/other")
    lengths = np.random.default_rng(0).permutation(20) + 1
    prompts = ember.text([f"{'x' * 4 * n}" for n in lengths])
    both = ember.jit(lambda prompt: (M(prompt), other(prompt)))
    with session(model, scheduler=example()) as opened:
        jax.block_until_ready(jax.vmap(both)(prompts))
        assert opened.clock.now == math.ceil(20 / 3)
    assert model.most == {"m": 3, "other": 3}
    asked = sorted((when, len(prompt) // 4) for when, prompt in model.asked)
    assert asked == sorted([((n - 1) // 3, n) for n in range(1, 21)] * 2)


def test_answers_that_are_known_and_equal_calls_are_not_asked_about():
    scheduler, ask = Audited(Topological(1)), ember.jit(lambda prompt: M(prompt))
    with session(Model(1.0), scheduler=scheduler) as opened:
        words = ember.text(["a", "a", "b"])
        jax.block_until_ready(jax.vmap(ask)(words))
        assert opened.clock.now == 2
        jax.block_until_ready(jax.vmap(ask)(words))
        assert opened.clock.now == 2
        assert opened.report().calls == 6
    assert len(scheduler.starts) == 2
    assert {task.model for task in scheduler.starts} == {"ours/m"}


@pytest.mark.parametrize("retry_after", [None, 8.0])
def test_no_slot_is_held_while_a_call_waits_to_be_tried_again(retry_after):
    """The first call is refused; while it waits, the others go through the only slot."""
    error = RateLimitError("429", retry_after=retry_after) if retry_after else ServerError("503")
    model, other, scheduler = Model(1.0, {"first": error}), ember.LLM("ours/other"), Audited(Topological(1))
    retry = Retry(first=16.0, longest=16.0)
    program = ember.jit(lambda prompt: (M(prompt), *(other(f"{i}") for i in range(3))))
    with session(model, scheduler=scheduler, retry=retry) as opened:
        opened._sender._uniform = lambda: 0.5  # of 16 seconds
        jax.block_until_ready(program(ember.text("first")))
        assert opened.report().retries == 1
    first, again = (when for when, prompt in model.asked if prompt == "first")
    assert sorted(when for when, _ in model.asked) == [0.0, 1.0, 2.0, 3.0, again]
    assert again == first + 1.0 + 8.0
    assert len(scheduler.starts) == 5
    assert len(set(scheduler.starts)) == 4
    assert scheduler.all_have_ended()


def test_a_call_that_is_tried_again_at_once_has_ended_before():
    scheduler, ask = Audited(CriticalPath(1)), ember.jit(lambda prompt: M(prompt))
    model = Model(1.0, {"a": ServerError("503")})
    with session(model, scheduler=scheduler, retry=Retry(first=0.0)):
        assert str(ask(ember.text("a"))) == "a."
    assert [when for when, _ in model.asked] == [0.0, 1.0]
    assert scheduler.starts == scheduler.added
    assert len(set(scheduler.starts)) == 1
    assert len(scheduler.starts) == 2


def test_calls_that_fail_end_and_the_others_go_on():
    faults = {f"{i}": ServerError("503") for i in range(5)}
    scheduler = Audited(CriticalPath(2))
    with session(Model(1.0, faults), scheduler=scheduler, retry=Retry(attempts=1)) as opened:
        with pytest.raises(SweepError, match="5 of 12 lanes failed"):
            jax.block_until_ready(jax.vmap(ember.jit(lambda p: M(p)))(ember.text([f"{i}" for i in range(12)])))
        assert opened.clock.now == 6
    assert len(scheduler.starts) == 12
    assert scheduler.all_have_ended()


def test_two_sweeps_share_the_slots_of_a_session():
    scheduler = Audited(Topological(3))
    model = Model(1.0)
    one, other = (ember.jit(lambda prompt, k=k: M(prompt + f" {k}")) for k in range(2))
    with session(model, scheduler=scheduler) as opened:
        words = ember.text([f"{i}" for i in range(6)])
        program = jax.jit(lambda words: (jax.vmap(one)(words), jax.vmap(other)(words)))
        jax.block_until_ready(program(words))
        assert opened.clock.now == 4
    assert model.most == {"m": 3}
    assert scheduler.all_have_ended()


def test_blocking_host_functions_may_make_calls_while_every_slot_is_taken():
    ask = ember.jit(lambda prompt: M(prompt))
    shout = ember.host(lambda words: str(ask(words)).upper(), out=ember.Text)
    with session(Model(1.0), scheduler=Topological(1)):
        answers = jax.vmap(ember.jit(lambda words: M(shout(words))))(ember.text(["a", "b"]))
        assert answers.tolist() == ["A..", "B.."]


# -- cancellation ----------------------------------------------------------------------------------------------------


def on_loop(coroutine_function):
    with VirtualClock():
        return get_loop().submit(coroutine_function()).result(HANG)


async def hold(turns, seconds=1.0, log=None, name=None):
    async with turns.turn(turns.task("m", (), "", Path())):
        if log is not None:
            log.append((asyncio.get_running_loop().time(), name))
        await asyncio.sleep(seconds)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 9)), max_size=12), st.integers(1, 3))
def test_whoever_is_cancelled_whenever_every_start_has_one_end(calls, slots):
    """Calls come at some tick, last some ticks, and are cancelled at some tick if they are there still."""
    scheduler, log = Audited(Topological(slots)), []

    async def scenario():
        turns = Turns(scheduler)

        async def one(begin, ticks, cancelled, name):
            await asyncio.sleep(begin * TICK)
            await hold(turns, ticks * TICK, log, name)

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(one(*call, name)) for name, call in enumerate(calls)]
        for task, (_, _, at) in zip(tasks, calls, strict=True):
            loop.call_later(at * TICK, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        await hold(turns, 0.0, log, "last")
        await asyncio.sleep(1.0)

    on_loop(scenario)
    assert log[-1][1] == "last"
    assert scheduler.all_have_ended()
    assert len(scheduler.starts) == len(scheduler.added)


def test_one_that_was_cancelled_while_it_waited_takes_no_time():
    log = []

    async def scenario():
        turns = Turns(Topological(1))
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(hold(turns, 1.0, log, name)) for name in range(3)]
        loop.call_later(0.5, tasks[1].cancel)
        await asyncio.gather(*tasks, return_exceptions=True)

    on_loop(scenario)
    assert log == [(0.0, 0), (1.0, 2)]


def test_a_session_goes_on_when_the_loop_it_ran_on_was_closed():
    scheduler, ask = Audited(Topological(1)), ember.jit(lambda prompt: M(prompt))
    with ember.session(providers={"ours": Callable(Model(1.0))}, scheduler=scheduler) as opened:
        with VirtualClock() as clock:
            opened_turns = opened.turns
            assert opened_turns is not None
            waiting = [get_loop().submit(hold(opened_turns, math.inf)) for _ in range(2)]
            get_loop().submit(asyncio.sleep(1.0)).result(HANG)
            assert clock.now == 1.0
        assert all(future.cancelled() for future in waiting)
        with VirtualClock():
            assert str(ask(ember.text("a"))) == "a."


@pytest.mark.parametrize("rounds", [2, 16])
def test_a_loop_that_is_closed_leaves_no_slot_taken_and_no_question_pending(rounds):
    """Closed before the first call was started, and while it was in flight."""
    turns, log = Turns(Topological(1)), []

    async def scenario():
        task = asyncio.get_running_loop().create_task(hold(turns, math.inf, log, "first"))
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(scenario())
    assert bool(log) == (rounds == 16)
    asyncio.run(asyncio.wait_for(hold(turns, 0.0, log, "second"), HANG))
    assert log[-1][1] == "second"


# -- a scheduler at fault --------------------------------------------------------------------------------------------


class Fifo(Scheduler):
    def __init__(self):
        self.waiting = []

    def priority(self, task):
        return 0.0

    def add(self, task):
        self.waiting.append(task)

    def next(self):
        return self.waiting.pop(0) if self.waiting else None

    def ended(self, task):
        pass


def faulty(method, function):
    return type("Faulty", (Fifo,), {method: function})


def again(self):
    return self.waiting[0] if self.waiting else None


def raises(self, task=None):
    raise KeyError("lost")


def leaves(self, task=None):
    raise SystemExit("bye")


FAULTS = {
    # name: (method, what it does, what the error says)
    "add raises": ("add", raises, r"Faulty\.add\(\) raised KeyError: 'lost'"),
    "next raises": ("next", raises, r"Faulty\.next\(\) raised KeyError: 'lost'"),
    "priority raises": ("priority", raises, r"Faulty\.priority\(\) raised KeyError: 'lost'"),
    "next leaves": ("next", leaves, r"Faulty\.next\(\) raised SystemExit: bye"),
    "twice": (
        "next",
        again,
        r"Faulty\.next\(\) gave a task a second time, which is in flight\. Give tasks .* each once",
    ),
    "nothing": (
        "next",
        lambda self: None,
        r"next\(\) gave None while nothing was in flight and 3 calls waited.*Give a",
    ),
    "no task": ("next", lambda self: "m", r"next\(\) gave 'm', which is no task"),
    "no number": ("priority", lambda self, task: None, r"priority\(\) gave None\. Give a number"),
    "nan": ("priority", lambda self, task: math.nan, r"priority\(\) gave nan\. Give a number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_that_names_the_class_and_what_it_did(name):
    method, function, message = FAULTS[name]
    model, ask = Model(1.0), jax.vmap(ember.jit(lambda prompt: M(prompt)))
    with session(model, scheduler=faulty(method, function)()) as opened:
        with pytest.raises(SweepError, match=r"lanes failed") as caught:
            jax.block_until_ready(ask(ember.text(["a", "b", "c"])))
        causes = [failure.cause for failure in caught.value.failures]
        assert causes
        for cause in causes:
            assert isinstance(cause, SchedulerError)
            assert re.search(message, str(cause))
        assert len({id(cause) for cause in causes}) == len(causes)
        assert len(model.asked) == 3 - len(causes)  # what was in flight has ended, and is kept
        with pytest.raises(SweepError, match=r"Faulty\."):  # and what comes later raises at once
            jax.block_until_ready(ask(ember.text(["d", "e"])))
        assert opened.clock.now <= 1.0


def test_a_fault_at_the_end_of_a_call_fails_those_that_wait():
    class Faulty(Fifo):
        taken = False

        def next(self):
            if self.taken or not self.waiting:
                return None
            self.taken = True
            return self.waiting.pop(0)

        def ended(self, task):
            raise ValueError("no such task")

    with session(Model(1.0), scheduler=Faulty()):
        with pytest.raises(SweepError, match=r"Faulty\.ended\(\) raised ValueError: no such task") as caught:
            jax.block_until_ready(jax.vmap(ember.jit(lambda prompt: M(prompt)))(ember.text(["a", "b", "c"])))
        assert [failure.lane for failure in caught.value.failures] == [(1,), (2,)]
        assert isinstance(caught.value.failures[0].cause.__cause__, ValueError)


def test_a_scheduler_of_two_sessions_gives_what_does_not_wait():
    shared = Fifo()

    async def scenario():
        one, other = Turns(shared), Turns(shared)
        found = await asyncio.gather(hold(one), hold(other), return_exceptions=True)
        with pytest.raises(SchedulerError, match=r"Fifo\.next\(\) gave a task that does not wait here"):
            await hold(one)
        return found

    first, second = on_loop(scenario)
    assert first is None
    assert isinstance(second, SchedulerError)


@pytest.mark.parametrize("slots", [0, -1, 1.5, "3"])
@pytest.mark.parametrize("kind", BUILT_IN)
def test_slots_are_whole_numbers(kind, slots):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(slots={slots!r}\): give a whole number"):
        kind(slots)


def test_a_session_takes_a_scheduler_and_not_its_class_or_a_name():
    with pytest.raises(TypeError, match=r"given a class; make one: CriticalPath\(\)"):
        ember.session(scheduler=CriticalPath)
    with pytest.raises(TypeError, match=r"takes an ember\.Scheduler, not str"):
        ember.session(scheduler="critical path")


def test_a_scheduler_says_all_four():
    class Forgetful(Scheduler):
        def add(self, task):
            pass

    with pytest.raises(TypeError, match="abstract"):
        Forgetful()
