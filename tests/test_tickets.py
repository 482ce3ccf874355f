"""Operators in one `jax.jit` run at once, and cost, raise and count as if they ran one after another."""

import asyncio
import collections
import concurrent.futures
import contextlib
import gc
import inspect
import json
import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._engine import island, tickets
from ember_jax._runtime.loop import get_loop
from ember_jax.errors import RepeatedSampleWarning


@pytest.fixture(autouse=True)
def no_tickets_of_other_tests():
    """Programs that failed elsewhere may have left some, which nobody comes for."""
    tickets._flights.clear()


# Against hangs only.
_HANG = 60.0
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
FIVE = range(5)


class Gate:
    """Lets calls through when as many wait at it as are expected; counts them."""

    def __init__(self):
        self.expected, self.made = 1, collections.Counter()

    def expect(self, calls):
        self.expected, self.waiting = calls, 0
        self.made.clear()
        self.open = asyncio.Event()

    async def __call__(self, x):
        self.made[float(x)] += 1
        self.waiting += 1
        if self.waiting == self.expected:
            self.open.set()
        await asyncio.wait_for(self.open.wait(), _HANG / 2)
        return x + 1


gate = Gate()


async def at_gate(x):
    return await gate(x)


meet = ember.host(at_gate, SCALAR)


@ember.operator
def op(x: Float[Array, ""]) -> Float[Array, ""]:
    return meet(x) * x


def known(x):
    return (lax.stop_gradient(x) + 1) * x


@ember.operator
def keyed(x: Float[Array, ""], key: ember.Key) -> Float[Array, ""]:
    return meet(x + jax.random.uniform(key)) * x


def at_once(program, calls, *args):
    """Runs a program whose calls end only when so many are in flight; its result and the session's report."""
    gate.expect(calls)
    with ember.session() as session:
        result = jax.block_until_ready(program(*args))
    assert not tickets._flights
    return result, session.report()


def five(f):
    return lambda x: sum(f(x + i) for i in FIVE)


def branches(f):
    return lambda x: lax.cond(x > 0, lambda: f(x) + f(x + 1), lambda: f(x + 2) * f(x + 3))


def steps(f):
    return lambda x: lax.scan(lambda c, i: (c + f(i) + f(i + 10), c), x, jnp.arange(3.0))[0]


def unrolled(f):
    return lambda x: lax.scan(lambda c, i: (c + f(i), c), x, jnp.arange(3.0), unroll=3)[0]


def nested_jit(f):
    g = jax.jit(lambda x: f(x) * 2)
    return lambda x: g(x) + g(x + 1) + f(x + 2)


def deep_and_shallow(f):
    """The second stands eleven instructions below the first."""

    def run(x):
        y = x
        for i in range(5):
            y = jnp.sort(jnp.stack([y, y + i]))[1] / 2
        return f(x) + f(y + 100)

    return run


def checkpointed(f):
    return jax.checkpoint(lambda x: f(x) + f(jnp.sin(x)))


# name: the program of an operator, calls that must be in flight at once, all calls
PROGRAMS = {
    "two": (lambda f: lambda x: f(x) + f(x + 1), 2, 2),
    "five": (five, 5, 5),
    "a tuple of five": (lambda f: lambda x: tuple(f(x + i) for i in FIVE), 5, 5),
    "a branch": (branches, 2, 2),
    "unrolled steps": (unrolled, 3, 3),
    "functions in jax.jit": (nested_jit, 3, 3),
    "deep and shallow": (deep_and_shallow, 2, 2),
    "vmaps of their own": (
        lambda f: lambda x: [jax.vmap(f)(x + 10 * i + jnp.arange(3.0)) for i in FIVE],
        15,
        15,
    ),
    "a vmap around": (lambda f: lambda x: jax.vmap(five(f))(x + 10 * jnp.arange(3.0)), 15, 15),
    "value_and_grad": (lambda f: jax.value_and_grad(five(f)), 5, 5),
    "grad of vmap": (lambda f: jax.grad(lambda x: jax.vmap(five(f))(x + 10 * jnp.arange(3.0)).sum()), 15, 15),
    "vmap of grad": (lambda f: lambda x: jax.vmap(jax.grad(five(f)))(x + 10 * jnp.arange(3.0)), 15, 15),
    "checkpoint": (lambda f: jax.grad(checkpointed(f)), 2, 2),
    "jvp": (lambda f: lambda x: jax.jvp(five(f), (x,), (x,)), 5, 5),
    "an operator dropped": (lambda f: lambda x: (f(x), f(x + 1), f(x + 2))[1:], 2, 2),
    "scan": (steps, 1, 6),
    "a chain": (lambda f: lambda x: f(f(f(x))), 1, 3),
    "a chain and one beside it": (lambda f: lambda x: f(f(x)) + f(x + 50), 1, 3),
    "no turn of a loop": (lambda f: lambda x: lax.while_loop(lambda c: c < 0, lambda c: f(c) + f(c + 1), x), 1, 0),
    "one": (lambda f: f, 1, 1),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_operators_in_one_jit_run_at_once_and_make_the_same_calls(name):
    make, flying, calls = PROGRAMS[name]
    x = jnp.float32(2)
    run = jax.jit(make(op))
    wanted = jax.jit(make(known))(x)
    for _ in range(2):  # compiled, and again
        found, _ = at_once(run, flying, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
        assert gate.made.total() == calls and set(gate.made.values()) <= {1}


def test_each_sweep_counts_once():
    assert at_once(jax.jit(five(op)), 5, jnp.float32(1))[1].islands == 5


def test_operators_overlap_whose_keys_are_split_one_after_another():
    def run(x, key):
        answers = []
        for i in FIVE:
            key, mine = jax.random.split(key)
            answers.append(keyed(x + i, mine))
        return answers

    at_once(jax.jit(run), 5, jnp.float32(0), jax.random.key(0))


def test_operators_overlap_whose_words_are_made_one_after_another():
    async def answer(word):
        await gate(0.0)
        return word + "!"

    ask = ember.operator(_annotated(ember.host(answer, ember.Text)))

    def run(word):
        longer = [word + "a", word + "a" + "b", word + "a" + "b" + "c"]
        return [ask(w) for w in (word, *longer)]

    found, _ = at_once(jax.jit(run), 4, ember.text("w"))
    assert [str(w) for w in found] == ["w!", "wa!", "wab!", "wabc!"]


def _annotated(call):
    def asked(word: ember.Text) -> ember.Text:
        return call(word)

    return asked


def test_a_branch_that_is_not_taken_launches_nothing():
    run = jax.jit(lambda x: lax.cond(x > 5, lambda: op(x) + op(x + 1), lambda: x))
    found, report = at_once(run, 1, jnp.float32(1))
    assert found == 1 and not gate.made and report.islands == 0


def test_the_second_call_makes_no_island_and_compiles_nothing():
    compiled = []
    run = jax.jit(five(op))
    at_once(run, 5, jnp.float32(1))
    before = island.made
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    at_once(run, 5, jnp.float32(100))
    assert island.made == before and not compiled


# -- where nothing is launched ---------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """The tickets of what is launched."""
    found, launch = [], tickets.launch

    def noted(sweep, loop):
        found.append(launch(sweep, loop))
        return found[-1]

    monkeypatch.setattr(tickets, "launch", noted)
    return found


def test_one_launch_for_each_operator_of_somebodys_program(launched):
    at_once(jax.jit(five(op)), 5, 1.0)
    assert len({int(ticket.item()) for ticket in launched}) == 5


def test_what_has_effects_is_not_launched(launched, capsys):
    seen = []
    note = ember.host(lambda x: seen.append(float(x)) or x, SCALAR, pure=False)

    @ember.operator
    def impure(x: Float[Array, ""]) -> Float[Array, ""]:
        return note(x)

    @ember.operator
    def prints(x: Float[Array, ""]) -> Float[Array, ""]:
        jax.debug.print("x {}", x)
        return x

    with ember.session():
        jax.block_until_ready(jax.jit(lambda x: impure(x) + prints(x))(1.0))
    jax.effects_barrier()
    assert seen == [1.0] and capsys.readouterr().out == "x 1.0\n" and not launched


def test_without_a_program_around_nothing_is_launched(launched):
    at_once(ember.jit(five(op)), 5, 1.0)
    at_once(jax.vmap(op), 3, jnp.arange(3.0))
    at_once(jax.grad(op), 1, jnp.float32(1))
    at_once(op, 1, 1.0)
    assert not launched


def test_in_a_plan_launches_are_dropped(launched):
    jitted, mapped = jax.jit(five(op)), jax.jit(lambda xs: jax.vmap(op)(xs).sum())
    at_once(jitted, 5, 1.0)  # traced before, launches and all
    at_once(mapped, 3, jnp.arange(3.0))
    launched.clear()

    def run(x):
        return jitted(x) + mapped(x + 10 * jnp.arange(3.0))

    assert "launch" not in str(ember.lower(run)(1.0))
    _, report = at_once(ember.jit(run), 7, 1.0)  # one number is asked for by both
    assert report.islands == 1 and not launched


# -- a launch is a hint ----------------------------------------------------------------------------------------------


def test_a_wait_without_a_launch_runs_the_sweep_itself(monkeypatch):
    run = jax.jit(lambda x: op(x) + op(x + 1))
    monkeypatch.setattr(tickets, "launch", lambda sweep, _: [sweep.close(), tickets.NONE][1])
    found, report = at_once(run, 1, jnp.float32(2))
    assert found == 6 + 12 and gate.made.total() == report.islands == 2


async def known_answer():
    return "answer"


def test_a_ticket_that_comes_twice_serves_once():
    ticket = tickets.launch(known_answer(), get_loop())
    assert tickets.take(ticket).result() == "answer"
    assert tickets.take(ticket) is None and tickets.take(tickets.NONE) is None


def test_tickets_that_nobody_takes_are_given_up(monkeypatch):
    monkeypatch.setattr(tickets, "_MOST", 3)

    async def endless():
        await asyncio.Event().wait()

    given = [int(tickets.launch(endless(), get_loop()).item()) for _ in range(5)]
    assert list(tickets._flights) == given[2:]
    tickets.abandon()
    assert not tickets._flights

    async def others():
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert not get_loop().submit(others()).result(_HANG)


def test_a_sweep_that_is_given_up_before_it_begins_is_closed():
    async def never():
        raise AssertionError

    held, sweep = threading.Event(), never()
    get_loop().call(lambda: held.wait(_HANG))
    work = tickets.Flight(sweep, get_loop()).work
    work.cancel()
    held.set()
    with pytest.raises(concurrent.futures.CancelledError):
        work.result()
    assert inspect.getcoroutinestate(sweep) == inspect.CORO_CLOSED


def test_a_ticket_is_the_same_at_the_end_of_its_way():
    numbers = np.array([[0, 1, 2**23 + 1, 2**24 - 1]], np.float32)
    assert np.array_equal(np.hstack([tickets.later(n[None, None]) for n in numbers[0]]), numbers)


def test_the_session_open_at_the_launch_counts(monkeypatch):
    gate.expect(2)
    take = tickets.take
    with contextlib.ExitStack() as others:
        monkeypatch.setattr(tickets, "take", lambda ticket: [others.enter_context(ember.session()), take(ticket)][1])
        with ember.session() as session:
            jax.block_until_ready(jax.jit(lambda x: op(x) + op(x + 1))(jnp.float32(3)))
            assert session.report().islands == 2


def test_operands_are_the_launched_sweeps_own():
    """XLA uses a callback's buffers again once it has returned."""
    size = 1 << 16
    vector = jax.ShapeDtypeStruct((size,), jnp.float32)
    gate.expect(4)

    async def held(x):
        gate.waiting += 1
        if gate.waiting == 4:
            gate.open.set()
        await asyncio.wait_for(gate.open.wait(), _HANG)
        return x

    keep = ember.host(held, vector)

    @ember.operator
    def whole(x: Float[Array, "n"]) -> Float[Array, "n"]:
        return keep(x)

    xs = jnp.arange(size, dtype=jnp.float32)
    found = jax.jit(lambda x: [whole(jnp.sin(x * i)) for i in range(1, 5)])(xs)
    for i, got in enumerate(found, 1):
        np.testing.assert_allclose(got, np.sin(np.asarray(xs) * np.float32(i)), atol=0.05)


# -- failures --------------------------------------------------------------------------------------------------------


class Refused(Exception):
    pass


def failing_and_endless(ended):
    both = asyncio.Event()

    async def refuse(x):
        await asyncio.wait_for(both.wait(), _HANG)
        raise Refused(f"not {float(x)}")

    async def endless(x):
        both.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(float(x))

    fails, hangs = ember.host(refuse, SCALAR), ember.host(endless, SCALAR)

    @ember.operator
    def failing(x: Float[Array, ""]) -> Float[Array, ""]:
        return fails(x)

    @ember.operator
    def hanging(x: Float[Array, ""]) -> Float[Array, ""]:
        return hangs(x)

    return failing, hanging


def test_an_error_is_raised_with_its_type_and_the_others_are_cancelled():
    ended = []
    failing, hanging = failing_and_endless(ended)
    # the failed one is waited for first: the other's result is needed deeper
    run = jax.jit(lambda x: (failing(x), hanging(jnp.sin(x))))
    with pytest.raises(Refused, match="not 1"), ember.session():
        jax.block_until_ready(run(jnp.float32(1)))
    assert len(ended) == 1 and not tickets._flights and not get_loop().works


def test_a_program_works_after_one_that_failed():
    failing, hanging = failing_and_endless([])
    with pytest.raises(Refused), ember.session():
        jax.block_until_ready(jax.jit(lambda x: (failing(x), hanging(jnp.sin(x))))(jnp.float32(2)))
    assert at_once(jax.jit(five(op)), 5, jnp.float32(1))[1].islands == 5


def test_warnings_come_from_the_wait():
    ask = ember.LLM("sim/small", temperature=1.0)

    @ember.operator
    def twice(word: ember.Text) -> ember.Text:
        return ember.join(" ", [ask(word), ask(word)])

    @jax.jit
    def run(word):
        return twice(word), twice(word + "!")

    with ember.session(), pytest.warns(RepeatedSampleWarning):
        jax.block_until_ready(run(ember.text("a")))


# -- programs of their own -------------------------------------------------------------------------------------------


def interrupted():
    """Ctrl-C when two sweeps are in flight, of which one is waited for."""
    arrived = []

    async def pending(x):
        arrived.append(x)
        if len(arrived) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    stalls = ember.host(pending, SCALAR)

    @ember.operator
    def stall(x: Float[Array, ""]) -> Float[Array, ""]:
        return stalls(x)

    run = jax.jit(lambda x: stall(x) + stall(x + 1))
    outcome = "no KeyboardInterrupt"
    try:
        # JAX raises an error of its own, and Ctrl-C follows when its callback has been left
        with contextlib.suppress(Exception):
            jax.block_until_ready(run(jnp.float32(1)))
        threading.Event().wait(_HANG / 2)
    except KeyboardInterrupt:
        outcome = "KeyboardInterrupt"

    async def others():
        return len(asyncio.all_tasks()) - 1

    left = get_loop().submit(others()).result(_HANG)
    found, _ = at_once(jax.jit(five(op)), 5, jnp.float32(1))
    return {"outcome": outcome, "left": left, "tickets": len(tickets._flights), "after": float(found)}


def on_four_devices():
    """Each device launches and waits for its own lanes; an input that is whole or sharded is one sweep."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jnp.arange(4.0)
    sharded = jax.device_put(xs, NamedSharding(mesh, PartitionSpec("d")))
    split = {"mesh": mesh, "in_specs": PartitionSpec("d"), "out_specs": PartitionSpec("d")}
    both = lambda x: op(x) + op(x + 10)
    found = {}
    found["shard_map"] = at_once(jax.jit(jax.shard_map(jax.vmap(both), **split)), 2, sharded)[0].tolist()
    found["sharded"] = at_once(jax.jit(jax.vmap(both)), 8, sharded)[0].tolist()
    found["whole"] = at_once(jax.jit(jax.vmap(both)), 8, xs)[0].tolist()
    found["gradient"] = at_once(jax.jit(jax.grad(lambda x: jax.vmap(both)(x).sum())), 8, sharded)[0].tolist()
    return found


STANDALONE = {"interrupted": interrupted, "devices": on_four_devices}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(STANDALONE[sys.argv[1]]()))
    sys.stdout.flush()
    sys.exit()


def standalone(name, devices=1):
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **flags}, timeout=2 * _HANG)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "never awaited" not in done.stderr and "was destroyed" not in done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_ctrl_c_cancels_what_was_launched():
    after = float(sum(known(jnp.float32(1 + i)) for i in FIVE))
    assert standalone("interrupted") == {"outcome": "KeyboardInterrupt", "left": 0, "tickets": 0, "after": after}


def test_on_four_devices():
    value = [float(x * (x + 1) + (x + 10) * (x + 11)) for x in range(4)]
    found = standalone("devices", devices=4)
    gradient = [2.0 * x + 12 for x in range(4)]
    assert found == {"shard_map": value, "sharded": value, "whole": value, "gradient": gradient}


def test_nothing_is_left():
    gc.collect()
    assert not tickets._flights and not get_loop().works
