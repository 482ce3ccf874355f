"""Numeric segments: which may run on the event loop's thread, and whose fault it is when one fails."""

import asyncio
import collections
import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import errors, testing
from ember_jax._engine import segments
from ember_jax._engine.segments import SegmentRunner
from ember_jax._engine.stack import Stack
from ember_jax._engine.steps.table import START
from ember_jax._jax.whole import InexactError
from ember_jax._plan import ir
from ember_jax._plan.lower import lower
from ember_jax._plan.passes import arrange, simplify

FLOAT = jax.ShapeDtypeStruct((), jnp.float32)
MILLISECOND = 0.001

# -- what is known to be quick ---------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only while a segment runs: each run takes what is next."""

    def __init__(self):
        self.takes = []
        self.now = 0.0
        self.is_running = False

    def __call__(self):
        if self.is_running:
            self.now += self.takes.pop(0)
        self.is_running = not self.is_running
        return self.now


class Timed:
    """A runner of one segment, whose runs take what they are said to."""

    def __init__(self):
        (node,) = arrange(simplify(lower(jax.make_jaxpr(lambda x: jnp.tanh(x) + 1)(jnp.zeros(3))))).nodes
        self.clock = Clock()
        self.runner = SegmentRunner(node, [False], False, self.clock)
        self.is_quick = self.runner.is_quick

    def run(self, lanes, seconds):
        """A run of some lanes."""
        rows = np.arange(3.0 * lanes, dtype=np.float32).reshape(lanes, 3)
        self.clock.takes, self.clock.is_running = [seconds], False
        traced = self.runner._traced
        (found,) = self.runner.run([], [rows], lanes)
        np.testing.assert_allclose(found, np.tanh(rows) + 1, rtol=1e-6)
        return self.runner._traced > traced


def test_a_run_is_quick_only_when_one_without_compiling_was():
    timed = Timed()
    assert not timed.is_quick(1)
    assert timed.run(1, 0.0)  # it compiles: what it took says nothing, and no time at all would say too much
    assert not timed.is_quick(1)
    assert not timed.run(1, MILLISECOND)
    assert timed.is_quick(1)
    timed.run(1, 9 * MILLISECOND)
    assert not timed.is_quick(1)


@pytest.mark.parametrize("seconds", [0.0, MILLISECOND])
def test_what_is_compiled_anew_is_not_timed(seconds):
    timed = Timed()
    for lanes in (1, 100, 1000):  # each capacity is an executable of its own
        assert timed.run(lanes, seconds)
        assert not timed.is_quick(lanes)


def test_few_lanes_do_not_vouch_for_many():
    timed = Timed()
    for _ in range(2):
        timed.run(129, MILLISECOND)
    assert timed.is_quick(129) and timed.is_quick(200)
    assert not timed.is_quick(300) and not timed.is_quick(2048)
    timed.run(2048, 1.5 * MILLISECOND)  # it was measured: most of it is done once for all lanes
    assert timed.is_quick(2048) and timed.is_quick(300)
    timed.run(300, 5 * MILLISECOND)  # the last run of about as many tells best
    assert not timed.is_quick(300) and timed.is_quick(129)


def test_what_calls_python_never_runs_on_the_loop():
    timed = Timed()
    timed.run(1, 0.0), timed.run(1, 0.0)
    assert timed.is_quick(1)
    object.__setattr__(timed.runner._segment, "calls_python", True)
    assert not timed.is_quick(1)


def test_a_segment_leaves_the_loops_thread_until_it_is_known_to_be_quick(monkeypatch):
    ran = []
    run = SegmentRunner.run

    def noted(self, *args):
        ran.append(threading.current_thread().name)
        return run(self, *args)

    monkeypatch.setattr(SegmentRunner, "run", noted)
    monkeypatch.setattr(segments, "_LOOP_SECONDS", np.inf)  # so that every time that is known is quick
    echo = ember.host(lambda x: x, FLOAT)
    program = ember.jit(lambda x: echo(jnp.sin(x) * 3.25))
    for i in range(4):
        program(jnp.float32(i))
    assert ran == ["ember-host", "ember-host", "ember-loop", "ember-loop"]


# -- whose fault it is -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["on the loop", "in a thread"])
def place(request, monkeypatch):
    """Where segments run, NaN being checked for."""
    is_quick = request.param == "on the loop"
    monkeypatch.setattr(SegmentRunner, "is_quick", lambda self, count: is_quick and not self._segment.calls_python)
    jax.config.update("jax_debug_nans", True)
    with testing.VirtualClock():  # threads of its own, in which nothing has run before
        yield request.param
    jax.config.update("jax_debug_nans", False)


class Asked:
    """A host function of a number that notes what it was asked."""

    def __init__(self):
        self.times = collections.Counter()

    def __call__(self, x):
        self.times[float(x)] += 1
        return x


# A log of -1 is NaN. The numbers are made between two calls, or of inputs alone, before the lanes start.
CHAINS = {
    "between calls": lambda ask, x: ask(jnp.log(ask(x)) + 10),
    "of inputs": lambda ask, x: ask(jnp.log(x) + 10),
}


@pytest.mark.parametrize("name", CHAINS)
def test_nan_in_one_lane_is_that_lanes_failure(place, name):
    asked = Asked()
    ask = ember.host(asked, FLOAT, pure=False)
    sweep = jax.vmap(ember.jit(lambda x: CHAINS[name](ask, x)))
    good, bad = jnp.ones(6), jnp.ones(6).at[4].set(-1)
    np.testing.assert_array_equal(sweep(good), np.full(6, 10))  # everything is compiled
    asked.times.clear()
    with pytest.raises(errors.SweepError) as raised:
        sweep(bad)
    ((failure,), lanes) = raised.value.failures, raised.value.lanes
    assert (failure.lane, lanes, type(failure.cause)) == ((4,), 6, FloatingPointError)
    assert asked.times == ({1: 5, -1: 1, 10: 5} if name == "between calls" else {10: 5})


def test_an_attempt_catches_nan_in_its_lane(place):
    asked = Asked()
    ask = ember.host(asked, FLOAT, pure=False)
    out, ok = jax.vmap(ember.attempt(lambda x: ask(jnp.log(ask(x)) + 10)))(jnp.array([1.0, -1.0, 1.0]))
    assert np.asarray(ok).tolist() == [True, False, True]
    np.testing.assert_array_equal(np.asarray(out), [10, np.nan, 10])
    assert asked.times == {1: 2, -1: 1, 10: 2}


def test_nan_that_comes_in_is_no_lanes_failure(place):
    number = ember.host(lambda x: np.nan if x < 0 else x, FLOAT)
    echo = ember.host(lambda x: x, FLOAT)
    found = jax.vmap(ember.jit(lambda x: echo(number(x) * 2)))(jnp.array([1.0, -1.0]))
    np.testing.assert_array_equal(np.asarray(found), [2, np.nan])
    found = jax.vmap(ember.jit(lambda x: echo(jnp.where(number(x) > 1, x, jnp.nan) * 2)))(jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(np.asarray(found), [np.nan, 6])


def test_python_in_a_segment_is_called_once_in_each_lane_and_fails_alone():
    seen = collections.Counter()

    def picky(x):
        seen[float(x)] += 1
        if x == 2:
            raise RuntimeError("not two")
        return x

    def op(x):  # only XLA can run what solves the equation
        solve = lambda _, b: jax.pure_callback(picky, FLOAT, b, vmap_method="sequential")
        return echo(jax.lax.custom_linear_solve(lambda v: v, x, solve))

    echo = ember.host(lambda x: x, FLOAT)
    with pytest.raises(errors.SweepError, match="not two") as raised:
        jax.vmap(ember.jit(op))(jnp.arange(4.0))
    assert [f.lane for f in raised.value.failures] == [(2,)]
    assert seen == {0: 1, 1: 1, 2: 1, 3: 1}


# -- faults of the engine --------------------------------------------------------------------------------------------


def test_a_fault_of_the_engine_stops_new_calls_and_keeps_those_in_flight(tmp_path):
    begun, ended = collections.Counter(), collections.Counter()
    gates = []

    async def step(x):
        begun[float(x)] += 1
        if gates and x > 0:
            await gates[0].wait()
        ended[float(x)] += 1
        return x + 10

    step = ember.host(step, FLOAT, cache="step:v1")
    sweep = jax.vmap(ember.jit(lambda x: step(step(x))))
    complete = Stack.complete

    def faulty(self, frame, index, outputs, *rest):
        if gates and not gates[0].is_set():
            gates[0].set()  # the others are in flight, and end after this
            raise KeyError("a secret prompt")
        complete(self, frame, index, outputs, *rest)

    async def gate():
        return asyncio.Event()

    with ember.session(journal=tmp_path / "run.db"):
        gates.append(ember._runtime.session.loop().submit(gate()).result())
        with mock.patch.object(Stack, "complete", faulty), pytest.raises(errors.InternalError) as raised:
            sweep(jnp.arange(6.0))
        assert begun == ended == dict.fromkeys(range(6), 1)
    error = raised.value
    assert "a fault of ember_jax itself" in str(error) and "KeyError in test_segments.py" in str(error)
    assert "secret" not in str(error) and isinstance(error.cause, KeyError) and error.__cause__ is error.cause
    gates.clear()
    with ember.session(journal=tmp_path / "run.db"):
        np.testing.assert_array_equal(sweep(jnp.arange(6.0)), np.arange(6) + 20)
    assert begun == dict.fromkeys([*range(6), *range(10, 16)], 1)


def test_a_fault_before_the_first_step_is_told(monkeypatch):
    echo = ember.host(lambda x: x, FLOAT)

    def faulty(self, *args, **kwargs):
        raise KeyError

    monkeypatch.setattr(Stack, "enter", faulty)
    with pytest.raises(errors.InternalError, match="a fault of ember_jax itself"):
        ember.jit(lambda x: echo(x))(jnp.float32(1))


def test_no_attempt_makes_a_value_of_a_fault(monkeypatch):
    echo = ember.host(lambda x: x, FLOAT)

    def faulty(*args):
        raise KeyError

    monkeypatch.setitem(START, ir.Branch, faulty)
    with pytest.raises(errors.InternalError):
        ember.attempt(lambda x: jax.lax.cond(echo(x) > 1, lambda: echo(x + 1), lambda: x))(jnp.float32(1))


def test_a_sum_whose_order_matters_is_compiled_in_a_thread_and_from_then_on():
    """NumPy finds out when it adds, on the event loop, which must not be left with the compiling."""
    rows = np.array([[1.0, 2.0], [0.1, 0.2]], np.float32)
    (segment,) = arrange(simplify(lower(jax.make_jaxpr(jnp.sum)(jnp.zeros(2))))).nodes
    runner = SegmentRunner(segment, [False], False)
    assert runner.is_quick(1)
    np.testing.assert_array_equal(runner.run([], [rows[:1]], 1)[0], [3])
    assert runner.is_quick(1)
    with pytest.raises(InexactError):
        runner.run([], [rows], 2)
    assert not runner.is_quick(2)  # as it has to be compiled
    outputs, failed = runner.outcomes([], [rows], 2)
    np.testing.assert_array_equal(outputs[0], jax.jit(jax.vmap(jnp.sum))(rows))
    assert failed == {}
    other = SegmentRunner(segment, [False], False)
    np.testing.assert_array_equal(other.outcomes([], [rows], 2)[0][0], outputs[0])  # found out in the thread
