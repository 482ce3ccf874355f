"""The virtual clock; and on it the makespan of a plan is the critical path, exactly: no call starts late.

Times are whole ticks of 1/64 s, so that floating point adds them exactly and every comparison is one of equality.
"""

import asyncio
import concurrent.futures
import functools
import heapq
import itertools
import math
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import (
    FLOAT,
    HANG,
    INT,
    TICK,
    Builder,
    array,
    critical,
    mix,
    on_loop,
    over_lanes,
    plans,
    rows,
    run,
)

import ember_jax as ember
from ember_jax._plan import ir
from ember_jax._runtime.loop import get_loop
from ember_jax.errors import CancelledError, UnsupportedError
from ember_jax.providers.base import Provider
from ember_jax.providers.sim import delay
from ember_jax.testing import Sim, SimModel, VirtualClock

# -- the makespan ----------------------------------------------------------------------------------------------------


@given(plans(2, 2, 2), st.integers(1, 4), st.data())
def test_every_call_starts_when_its_last_input_is_ready(body, lanes, data):
    plan, args, wanted = over_lanes(body, lanes), rows(data, lanes, 2), []
    outputs, _, end = critical(plan, args, [0, 0], 0, (), wanted)
    found, makespan, witness = run(plan, args)
    assert makespan == end
    assert Counter(witness.calls) == Counter(wanted)  # by lane, so each lane ends when its own critical path does
    for one, other in zip(found, outputs, strict=True):
        np.testing.assert_array_equal(one, other)


@given(plans(2, 2, 1), st.integers(1, 4), st.integers(1, 5), st.data())
def test_with_a_few_slots_the_makespan_is_within_grahams_bound(body, lanes, slots, data):
    """R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969: true of every greedy schedule of any DAG."""
    plan, args, wanted = over_lanes(body, lanes), rows(data, lanes, 2), []
    *_, path = critical(plan, args, [0, 0], 0, (), wanted)
    work = sum(end - begin for _, _, begin, end in wanted)
    _, makespan, witness = run(plan, args, slots=slots)
    assert sorted(c[:2] for c in witness.calls) == sorted(c[:2] for c in wanted)
    assert makespan >= path
    assert work <= slots * makespan <= work + (slots - 1) * path


def chain(stages, cost):
    """A plan of calls one after another; the first input is their cost."""
    builder = Builder(INT)
    value = builder.call(0, cost=cost)
    for _ in range(stages - 1):
        value = builder.call(0, value, cost=cost)
    return builder.plan([value])


def most_in_flight(events, plan):
    """The most lanes that had made their first call and not ended their last."""
    first, last = plan.nodes[0].function.number, plan.nodes[-1].function.number
    steps = [(kind == "begins" and number == first) - (kind == "ends" and number == last) for kind, _, number in events]
    return max(itertools.accumulate(steps))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(1, 5))
def test_a_window_of_lanes_of_equal_length(lanes, window, stages, each):
    body = chain(stages, lambda number, given: each)
    _, makespan, witness = run(over_lanes(body, lanes), [np.zeros(lanes, np.int32)], window=window)
    assert makespan == -(-lanes // window) * stages * each
    assert most_in_flight(witness.events, body) == min(lanes, window)
    assert len(witness.calls) == lanes * stages


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 12), st.integers(1, 3))
def test_a_window_of_lanes_is_a_list_schedule(costs, window, stages):
    """The next lane starts as soon as one of the window ends."""
    body = chain(stages, lambda number, given: given[0])
    _, makespan, witness = run(over_lanes(body, len(costs)), [np.array(costs, np.int32)], window=window)
    places = [0] * window
    starts, ends = [], []
    for each in costs:
        starts.append(heapq.heappop(places))
        ends.append(starts[-1] + stages * each)
        heapq.heappush(places, ends[-1])
    assert makespan == max(ends)
    assert most_in_flight(witness.events, body) <= window
    first, last = body.nodes[0].function.number, body.nodes[-1].function.number
    assert [at for _, at in sorted((c[0], c[2]) for c in witness.calls if c[1] == first)] == starts
    assert [at for _, at in sorted((c[0], c[3]) for c in witness.calls if c[1] == last)] == ends


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.data())
def test_lanes_inside_lanes_that_have_started_go_first(outer, inner, window, data):
    """No lane starts while a lane inside one that has started could."""
    within = Builder(INT)
    within = within.plan([within.call(0)])
    body = Builder(INT)
    before = body.call(0)
    every = body.words(lambda x: np.arange(inner) + x, before, type=array(inner))
    (outs,) = body.add(ir.Lanes, (every,), [array(inner)], within, (inner,), ((True,),))
    after = body.call(body.words(functools.partial(mix, 0), outs))
    body = body.plan([after])
    plan, args = over_lanes(body, outer), rows(data, outer, 1)
    _, _, witness = run(plan, args, window=window)

    opening = body.nodes[0].function.number
    could = 0  # lanes inside that have not started
    for kind, lane, number in witness.events:
        if number == opening:
            assert kind == "ends" or not could
            could += inner * (kind == "ends")
        elif len(lane) == 2:
            could -= kind == "begins"
    assert len(witness.calls) == outer * (2 + inner)
    # a lane makes one call at a time, and none while it waits for lanes inside
    assert max(itertools.accumulate({"begins": 1, "ends": -1}[kind] for kind, _, _ in witness.events)) <= window


def test_ten_thousand_lanes_have_no_barrier_between_stages():
    lanes, stages = 10_000, 3
    costs = np.ceil(64 * np.random.default_rng(0).lognormal(sigma=1.0, size=(lanes, stages))).astype(np.int32)

    async def wait(ticks, after):
        await asyncio.sleep(int(ticks) * TICK)
        return ticks + after

    wait = ember.host(wait, out=INT, pure=False)

    @ember.jit
    def one(ticks):
        total = jnp.int32(0)
        for stage in range(stages):
            total = wait(ticks[stage], total)
        return total

    with VirtualClock() as clock, ember.session():
        found = jax.block_until_ready(jax.vmap(one)(costs))
    np.testing.assert_array_equal(found, costs.sum(1))
    assert clock.now == costs.sum(1).max() * TICK
    assert clock.now < costs.max(0).sum() * TICK  # what a barrier after each stage would take


def test_numbers_between_calls_take_no_time():
    """Traced: every segment compiles, in a thread, and no call waits for more than its own inputs."""

    async def wait(ticks, x):
        await asyncio.sleep(int(ticks) * TICK)
        return x

    wait = ember.host(wait, out=FLOAT, pure=False)

    @ember.jit
    def one(ticks, x):
        left = wait(ticks[1], jnp.sin(wait(ticks[0], jnp.tanh(x))))
        right = wait(ticks[2], jnp.cos(x))
        both = jax.lax.cond(x > 0, lambda: wait(ticks[3], left * right), lambda: jnp.exp(left))
        return jax.lax.fori_loop(0, ticks[4], lambda i, c: wait(i + 1, c) * 0.5, both) + wait(ticks[5], left)

    ticks = np.random.default_rng(1).integers(1, 9, (12, 6)).astype(np.int32)
    xs = np.linspace(-1, 1, 12, dtype=np.float32)
    with VirtualClock() as clock, ember.session():
        jax.block_until_ready(jax.vmap(one)(ticks, xs))
    left = ticks[:, 0] + ticks[:, 1]
    both = np.maximum(left, ticks[:, 2]) + (xs > 0) * ticks[:, 3]
    assert clock.now / TICK == np.maximum(both + ticks[:, 4] * (ticks[:, 4] + 1) // 2, left + ticks[:, 5]).max()


# -- the clock -------------------------------------------------------------------------------------------------------


def test_timers_fire_exactly_at_their_time_and_in_the_order_they_were_set():
    """Also where they are closer together than the system's clock can tell."""
    fired = []

    async def scenario():
        loop = asyncio.get_running_loop()
        note = lambda name: fired.append((name, loop.time()))
        for name, when in enumerate([3.0, 2.0**-40, 2.0**-41, 1e9, 3.0, 0.0, -1.0]):
            loop.call_at(when, note, name)
        cancelled = loop.call_later(2.0, note, "cancelled")
        loop.call_later(1.0, cancelled.cancel)
        same = loop.call_at(4.0, lambda: other.cancel())
        other = loop.call_at(4.0, note, "cancelled by what fires at the same time")
        assert (same.when(), other.cancelled()) == (4.0, False)
        await asyncio.sleep(2e9)

    with VirtualClock() as clock:
        on_loop(scenario())
        assert clock.now == 2e9
    assert fired == [(6, 0.0), (5, 0.0), (2, 2.0**-41), (1, 2.0**-40), (0, 3.0), (4, 3.0), (3, 1e9)]
    assert clock.now == 2e9


def test_a_timeout_is_at_its_time_and_one_that_is_not_reached_moves_nothing():
    async def scenario():
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), 2.5)
        assert loop.time() == 2.5
        await asyncio.wait_for(asyncio.sleep(1), 100)
        async with asyncio.timeout(7):
            await asyncio.gather(*(asyncio.sleep(n / 4) for n in range(20)))
        await asyncio.sleep(0)
        return loop.time()

    with VirtualClock() as clock:
        assert on_loop(scenario()) == clock.now == 2.5 + 1 + 19 / 4


def test_what_sleeps_for_ever_does_not_end_time():
    async def forever():
        await asyncio.sleep(math.inf)

    with VirtualClock() as clock:
        sleeping = get_loop().submit(forever())
        on_loop(asyncio.sleep(1.0))
        for _ in range(50):  # between any two of these the loop may have nothing left to do
            on_loop(asyncio.sleep(0))
        assert clock.now == 1.0
        assert sleeping.cancel()


@pytest.mark.parametrize("how", ["the pool", "to_thread", "an executor"])
def test_work_in_threads_takes_no_time(how):
    """The thread ends only when the loop has come round many times with a timer pending."""
    rounds = threading.Semaphore(0)
    work = lambda: [rounds.acquire(timeout=HANG) for _ in range(5)]

    async def scenario():
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, lambda: None)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            ways = {
                "the pool": lambda: get_loop().threads.run(work),
                "to_thread": lambda: asyncio.to_thread(work),
                "an executor": lambda: loop.run_in_executor(pool, work),
            }
            working = asyncio.ensure_future(ways[how]())
            for _ in range(5):
                await asyncio.sleep(0)
                # a message from elsewhere wakes the loop while the thread works
                await asyncio.wrap_future(outside.submit(rounds.release))
                assert loop.time() == 0
            assert await working == [True] * 5
        assert loop.time() == 0
        await asyncio.sleep(2.0)
        return loop.time()

    with VirtualClock(), concurrent.futures.ThreadPoolExecutor() as outside:
        assert on_loop(scenario()) == 2.0


async def _nap(x):
    await asyncio.sleep(float(x))
    return x


nap = ember.host(_nap, out=FLOAT, pure=False)
doze = ember.jit(lambda x: nap(x))


@pytest.mark.parametrize("via", ["a def", "to_thread"])
def test_calls_of_a_host_function_in_a_thread_take_their_time_and_are_not_outrun(via):
    """While the thread waits for a call time goes on; while it computes between two calls it does not."""
    seen = []

    def calls(x):
        for _ in range(3):
            doze(jnp.float32(x))
            seen.append(clock.now)
            np.linalg.eigh(np.eye(64))
        return x

    async def in_thread(x):
        return await asyncio.to_thread(calls, x)

    inner = ember.host(calls if via == "a def" else in_thread, out=FLOAT, pure=False)
    with VirtualClock() as clock, ember.session():
        ember.jit(lambda x: nap(x * 8) + inner(x))(jnp.float32(2))
    assert seen == [2, 4, 6]
    assert clock.now == 16


def test_a_thread_that_nobody_awaits_does_not_hold_time_up():
    hold = threading.Event()

    async def scenario():
        abandoned = asyncio.create_task(get_loop().threads.run(lambda: hold.wait(HANG)))
        await asyncio.sleep(0)
        abandoned.cancel()
        await asyncio.sleep(3.0)
        return asyncio.get_running_loop().time()

    with VirtualClock():
        assert on_loop(scenario()) == 3.0
        hold.set()


class Watched(Provider):
    """Simulated models, and what was asked of them."""

    def __init__(self, model):
        self.sim, self.requests = Sim({"slow": model}), []

    def check(self, model):
        self.sim.check(model)

    async def complete(self, request):
        self.requests.append(request)
        return await self.sim.complete(request)

    async def close(self):
        await self.sim.close()


def test_simulated_models_answer_in_virtual_time():
    model = SimModel(latency=1000.0, sigma=1.0)
    provider = Watched(model)
    with VirtualClock() as clock, ember.session(providers={"sim": provider}):
        llm = ember.LLM("sim/slow")
        ask = ember.jit(lambda prompt: llm(prompt))
        jax.block_until_ready(jax.vmap(ask)(ember.text([f"What is {i} + {i}?" for i in range(20)])))
        assert clock.now == max(delay(model, request) for request in provider.requests)
        before = clock.now
        jax.block_until_ready(jax.vmap(ask)(ember.text(["What is 3 + 3?"])))  # replayed
        assert clock.now == before
    assert len(provider.requests) == 20


def test_the_old_loop_comes_back_and_the_virtual_one_is_gone():
    own = get_loop()
    before = set(threading.enumerate())
    with VirtualClock():
        virtual = get_loop()
        assert virtual is not own
        assert on_loop(virtual.threads.run(threading.current_thread)).is_alive()
        late = virtual.work(asyncio.sleep(0))
    assert get_loop() is own
    assert virtual.asyncio.is_closed()
    late.cancel()  # of no effect, and no error
    late.wait_for_end(0)
    for thread in set(threading.enumerate()) - before:  # those of its pool
        thread.join(HANG)
        assert not thread.is_alive()
    assert on_loop(asyncio.sleep(0, "runs")) == "runs"


def test_an_error_inside_is_raised_and_the_old_loop_comes_back():
    own = get_loop()

    async def fail(x):
        await asyncio.sleep(1.5)
        raise KeyError("as it is")

    failing = ember.jit(lambda x: ember.host(fail, out=FLOAT)(x))
    clock = VirtualClock()
    with pytest.raises(KeyError, match="as it is"), clock, ember.session():
        failing(jnp.float32(1))
    assert (clock.now, get_loop()) == (1.5, own)


def test_a_clock_may_be_opened_again_and_starts_at_nought():
    clock = VirtualClock()
    assert clock.now == 0
    for seconds in (3.0, 0.25):
        with clock:
            on_loop(asyncio.sleep(seconds))
        assert clock.now == seconds


def test_calls_of_other_threads_are_cancelled_when_it_closes():
    begun = threading.Event()

    async def wait(x):
        begun.set()
        await asyncio.Event().wait()

    hangs = ember.jit(lambda x: ember.host(wait, out=FLOAT)(x))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with VirtualClock():
            future = pool.submit(hangs, jnp.float32(1))
            assert begun.wait(HANG)
        assert isinstance(future.exception(HANG), CancelledError)


def test_two_clocks_at_once_are_refused():
    with VirtualClock() as clock:
        with pytest.raises(UnsupportedError, match=r"open already.*Close it first"), VirtualClock():
            pass
        with pytest.raises(UnsupportedError, match="open already"), clock:
            pass
        on_loop(asyncio.sleep(1.0))
        assert clock.now == 1.0


@pytest.mark.parametrize("is_async", [True, False])
def test_a_clock_within_a_host_function_is_refused(is_async):
    def change(x):
        with VirtualClock():
            return x

    async def change_there(x):
        return change(x)

    changing = ember.jit(lambda x: ember.host(change_there if is_async else change, out=FLOAT)(x))
    own = get_loop()
    with pytest.raises(UnsupportedError, match=r"while calls run.*before they start"):
        changing(jnp.float32(1))
    assert get_loop() is own


# -- traced programs: what their data allow, and no more -------------------------------------------------------------


async def _wait(seconds, x):
    await asyncio.sleep(float(seconds))
    return x


wait = ember.host(_wait, out=FLOAT, pure=False)


def late_operand(x, xs):
    """The branch is known before what it is given."""
    late = wait(5.0, x)
    return jax.lax.cond(x > 0, lambda: wait(5.0, x + 1) + late, lambda: late)


def late_operand_of_the_other_branch(x, xs):
    late = wait(5.0, x)
    return jax.lax.cond(x > 0, lambda: wait(4.0, x + 1), lambda: late)


def rubric(x, xs):
    """No lane varies the rubric, which their second calls need."""
    return jax.vmap(ember.jit(lambda a: wait(1.0, wait(a, a) + wait(3.0, x))))(xs)


def early_outputs(x, xs):
    """The first answers' sum is asked about while the lanes go on."""
    first = jax.vmap(lambda a: wait(a, a))(xs)
    return wait(3.0, first.sum()), jax.vmap(lambda a: wait(3.0, a))(first)


TRACED = {
    # name: (the program, its makespan)
    "calls that a carry does not need": (lambda x, xs: jax.lax.scan(lambda c, s: (c + 1, wait(1, s + c)), x, xs)[1], 1),
    "one call for the carry and one for the output": (
        lambda x, xs: jax.lax.scan(lambda c, s: ((d := wait(1, c + s)), wait(1, d)), x, xs)[1],
        4 + 1,
    ),
    "a late operand": (late_operand, 5),
    "a late operand of the other branch": (late_operand_of_the_other_branch, 5),
    "a rubric": (rubric, 4 + 1),
    "early outputs": (early_outputs, 4 + 3),
    "lanes of an inner vmap": (lambda x, xs: jax.vmap(lambda a: wait(5 - a, wait(a, a) * 2))(xs), 5),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_programs(name):
    program, makespan = TRACED[name]
    x, xs = jnp.float32(1), jnp.arange(1.0, 5.0)
    with VirtualClock() as clock, ember.session():
        found = jax.block_until_ready(ember.jit(program)(x, xs))
        assert clock.now == makespan
    with VirtualClock(), ember.session(), jax.disable_jit():
        wanted = jax.block_until_ready(program(x, xs))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
