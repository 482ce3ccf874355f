"""A session's own runner: operators run where it says, by its interface alone, and else nothing changes."""

import asyncio
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._engine.device import device
from ember_jax._engine.engine import LaneEngine
from ember_jax._engine.segments import run_segment
from ember_jax._host import Caller
from ember_jax._plan import ir
from ember_jax._runtime.repeats import Repeated
from ember_jax._runtime.runner import Runner

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
XS = jnp.linspace(-1.0, 1.0, 5)
WORDS = ember.text([f"word {i}" for i in range(5)])
asking = ember.LLM("sim/small")


class InTurn(Runner):
    """Makes one call after another, and one lane after another."""

    async def run(self, operator, inputs, session, tally):
        with jax.enable_x64(operator.x64), jax.default_device(device()):
            return await self.outputs(operator.plan, inputs, session, (operator.name, ()), tally), None

    async def outputs(self, plan, inputs, session, where, tally):
        values = {**dict(enumerate(inputs)), **plan.constants}
        for node in plan.nodes:
            outs = await self.step(node, [values[v] for v in node.inputs], session, where, tally)
            values.update(zip(node.outputs, outs, strict=True))
        return [np.asarray(values[v]) for v in plan.outputs]

    async def step(self, node, given, session, where, tally):
        scope, lane = where
        scope = f"{scope}/{node.scope}" if node.scope else scope
        match node:
            case ir.Segment():
                return list(map(np.asarray, run_segment(node, given)))
            case ir.Words():
                return node.function(*given) if node.batched else [node.function.one(given)]
            case ir.Call(batch=()):
                caller = Caller(lane, scope, stands_for=node.asked * node.lanes, tally=tally)
                return await node.function.run(session, caller, given)
            case ir.Branch() if not node.late:
                which, *operands = given
                chosen = node.branches[min(max(int(which), 0), len(node.branches) - 1)]
                return await self.outputs(chosen, operands, session, (scope, lane), tally)
            case ir.Lanes() if not node.late:
                rows = []
                for place in itertools.product(*map(range, node.sizes)):
                    mine = [
                        np.asarray(x)[tuple(p for p, m in zip(place, mapped, strict=True) if m)]
                        for x, mapped in zip(given, node.mapped, strict=True)
                    ]
                    if node.first is not None:
                        mine += map(np.asarray, run_segment(node.first, [mine[v] for v in node.first.inputs]))
                    rows.append(await self.outputs(node.body, mine, session, (scope, lane + place), tally))
                return [np.stack(r).reshape(*node.sizes, *r[0].shape) for r in zip(*rows, strict=True)]
        raise NotImplementedError(f"{node!r:.80}")


class Watched(Runner):
    """Hands on to the lane engine, and remembers what it was given."""

    def __init__(self):
        self.engine, self.ran = LaneEngine(), []

    async def run(self, operator, inputs, session, tally):
        self.ran.append((operator, [np.shape(x) for x in inputs], session, tally.known))
        return await self.engine.run(operator, inputs, session, tally)


class Gauge:
    """Calls, of which it is counted how many are in flight at once."""

    def __init__(self):
        self.now = self.most = 0
        self.call = ember.host(self._call, out=SCALAR)

    async def _call(self, x):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        return x * 2


def program(gauge):
    @ember.operator
    def inner(x: Float[Array, ""]) -> Float[Array, ""]:
        return gauge.call(x) + 1

    @ember.operator
    def outer(x: Float[Array, ""], word: ember.Text) -> tuple[Float[Array, ""], ember.Text]:
        y = gauge.call(x)
        z = jax.lax.cond(y > 0, lambda y: inner(y) * gauge.call(y + 5), inner, y)
        return jnp.tanh(z) + inner(x + 9), asking(word + "?")

    return outer


@pytest.mark.parametrize("run", [jax.vmap, lambda op: jax.jit(jax.vmap(op))], ids=["vmap", "jit of vmap"])
def test_a_runner_that_takes_one_step_after_another_gives_the_same(run):
    gauges = Gauge(), Gauge()
    with ember.session() as lanes:
        expected = run(program(gauges[0]))(XS, WORDS)
    with ember.session() as in_turn:
        in_turn.runner = InTurn()
        found = run(program(gauges[1]))(XS, WORDS)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert found[1].tolist() == expected[1].tolist()
    assert gauges[0].most > 5 and gauges[1].most == 1
    assert in_turn.report() == lanes.report() and in_turn.report().islands == 1
    paths = [{(c.lane, c.scope, c.answer) for c in session.calls()} for session in (lanes, in_turn)]
    assert paths[0] == paths[1] and len(paths[0]) == 5


def test_a_runner_is_given_the_same_operator_at_each_run_and_in_each_session():
    op, runner = jax.jit(program(Gauge())), Watched()
    for _ in range(2):
        with ember.session() as session:
            session.runner = runner
            for x in XS[:2]:
                jax.block_until_ready(op(x, ember.text("word")))
            assert [ran[2] for ran in runner.ran[-2:]] == [session] * 2
    (operator, *_), *_ = runner.ran
    assert all(ran[0] is operator for ran in runner.ran) and len(runner.ran) == 4
    assert operator.name == "outer" and not operator.x64
    assert {ran[3] for ran in runner.ran} == {operator.least} == {1}
    assert all(len(shapes) == operator.plan.inputs for _, shapes, *_ in runner.ran)


def test_operators_that_are_launched_run_by_the_sessions_runner_too():
    one, other, runner = program(Gauge()), program(Gauge()), Watched()
    with ember.session() as session:
        session.runner = runner
        word = ember.text("word")
        jax.block_until_ready(jax.jit(lambda x: one(x, word)[0] + other(x, word)[0])(XS[0]))
    assert len(runner.ran) == 2


def test_the_innermost_session_says_which_runner_it_is_and_without_one_it_is_the_lane_engine():
    op, outer, inner = jax.vmap(program(Gauge())), Watched(), Watched()
    with ember.session() as session:
        session.runner = outer
        jax.block_until_ready(op(XS, WORDS))
        with ember.session() as within:
            within.runner = inner
            jax.block_until_ready(op(XS, WORDS))
        with ember.session() as plain:
            jax.block_until_ready(op(XS, WORDS))
    assert (len(outer.ran), len(inner.ran)) == (1, 1)
    assert plain.runner is None and plain.report().islands == 1


class Warns(Runner):
    async def run(self, operator, inputs, session, tally):
        repeated = Repeated(f"{operator.name} was not run at all.", None)
        return [np.zeros(a.shape, a.dtype) for a in operator.plan.avals], repeated


class Fails(Runner):
    async def run(self, operator, inputs, session, tally):
        raise ember.errors.SweepError([ember.errors.LaneFailure((2,), operator.name, ConnectionError("gone"))], 5)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["vmap", "jit of vmap"])
def test_what_a_runner_warns_of_is_shown_and_what_it_raises_is_raised(wrap):
    op = wrap(jax.vmap(program(Gauge())))
    with ember.session() as session:
        session.runner = Warns()
        with pytest.warns(ember.errors.RepeatedSampleWarning, match="outer was not run at all"):
            jax.block_until_ready(op(XS, WORDS))
    with pytest.raises(ember.errors.SweepError) as raised, ember.session() as session:
        session.runner = Fails()
        jax.block_until_ready(op(XS, WORDS))
    assert [failure.lane for failure in raised.value.failures] == [(2,)] and "gone" in str(raised.value)


def test_a_runner_is_abstract_or_final():
    with pytest.raises(TypeError, match=r"abstract method '?run"):
        Runner()
    assert all(getattr(getattr(Runner, name), "__isabstractmethod__", False) for name in vars(Runner) if name[0] != "_")
