"""What is said of plans before they run, against every run that they could have."""

import dataclasses
import itertools
import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from plans import INT, Builder, array, over_lanes, plans

from ember_jax._engine.steps.table import START
from ember_jax._plan import ir
from ember_jax._plan.counts import count
from ember_jax._plan.passes import arrange
from ember_jax._plan.paths import paths
from ember_jax._tell.bounds import Bounds
from ember_jax._tell.known import Known, operands
from ember_jax._tell.longest import chain

ENDLESS = 10**6  # turns of a loop that has no bound
TURNS = (0, 1, ENDLESS)
MANY = 2000  # runs of one plan that are gone through at most


def of_runs(plan, worth, plan_of, turns):
    """What calls come to in each run that a plan could have: some number for each."""
    return plan_of(plan, [of_step(node, worth, plan_of, turns) for node in plan.nodes])


def of_step(node, worth, plan_of, turns):
    inner = [of_runs(plan, worth, plan_of, turns) for plan in node.plans]
    match node:
        case ir.Call():
            return {worth(node)}
        case ir.Branch():
            return set().union(*inner)
        case ir.While():
            test, body = inner
            return {t + n * (u + b) for t in test for u in test for b in body for n in turns}
        case ir.Scan():
            return times(inner[0], node.length)
        case ir.Lanes() if plan_of is longest:
            return inner[0] if 0 not in node.sizes else {0}
        case ir.Lanes():
            return times(inner[0], math.prod(node.sizes))
        case ir.Enclosed():
            return inner[0]
        case _:
            return {0}


def times(one, runs):
    found = {0}
    for _ in range(runs):
        found = {a + b for a in found for b in one}
        assume(len(found) <= MANY)
    return found


def total(plan, steps):
    found = {0}
    for step in steps:
        found = {a + b for a in found for b in step}
        assume(len(found) <= MANY)
    return found


def longest(plan, steps):
    """How long a plan takes if each step waits for those that make its inputs."""
    assume(math.prod(map(len, steps)) <= MANY)
    found = set()
    for lengths in itertools.product(*steps):
        ready = {}
        for node, length in zip(plan.nodes, lengths, strict=True):
            end = max([0, *(ready.get(v, 0) for v in node.inputs)]) + length
            ready.update(dict.fromkeys(node.outputs, end))
        found.add(max(ready.values(), default=0))
    return found


def one(call):
    return 1


def bounds(runs):
    """The least and the most; what a loop repeats has none."""
    return min(runs), max(runs) if max(runs) < ENDLESS else math.inf


def without_words(plan):
    """Text operations here have numbers as operands, of which nothing is to be known."""
    bare = lambda n: ir.Foreign(n.inputs, n.outputs, "", None) if isinstance(n, ir.Words) else n
    return dataclasses.replace(plan, nodes=tuple(bare(node.with_plans(without_words)) for node in plan.nodes))


@given(plans(2, 2, 2), st.integers(1, 2))
def test_as_many_calls_as_some_run_makes(body, lanes):
    plan = over_lanes(body, lanes)
    found = count(plan)
    assert (found.least, found.most) == bounds(of_runs(plan, one, total, TURNS))
    arranged = count(arrange(plan))
    assert arranged.least <= found.least and arranged.most <= found.most


@given(plans(2, 2, 2), st.integers(1, 2))
def test_calls_come_to_what_they_come_to_in_some_run(body, lanes):
    plan = without_words(over_lanes(body, lanes))
    amounts = lambda n: np.array([[n, n]], float)
    ask = lambda function, given, outs: ({"": amounts(1), f"{function.number}": amounts(1)}, [None] * len(outs))
    found = Bounds(ask).of(plan, [None, None])
    for name, rows in found.items():
        runs = of_runs(plan, lambda call, name=name: name in ("", f"{call.function.number}"), total, TURNS)
        assert tuple(rows[0]) == bounds(runs)


@given(plans(2, 2, 2), st.integers(1, 2))
def test_the_longest_chain_is_that_of_some_run(body, lanes):
    plan = over_lanes(body, lanes)
    found = chain(plan).calls
    assert (found.least, found.most) == bounds(of_runs(plan, one, longest, TURNS))


@given(plans(2, 2, 2), st.integers(1, 2))
def test_a_call_stands_on_no_longer_path_than_the_longest_of_one_turn(body, lanes):
    plan = over_lanes(body, lanes)
    found = [path.depth + 1 + path.ahead for path in paths(plan).values()]
    assert max(found, default=0) == max(of_runs(plan, one, longest, (1,)))


def test_lanes_of_nobody_make_no_call_and_nothing_waits_for_them():
    body, builder = Builder(INT), Builder(array(0), INT)
    body = body.plan([body.call(0)])
    (outs,) = builder.add(ir.Lanes, (0,), [array(0)], body, (0,), ((True,),))
    plan = builder.plan([builder.call(outs)])
    assert [(path.depth, path.ahead) for path in paths(plan).values()] == [(0, 0)]


def test_what_a_loop_hands_on_is_known_in_each_turn_and_what_it_makes_is_not():
    digests = np.arange(8, dtype=np.uint32).reshape(2, 4)
    kept, made, row = Known(digests[0]), Known(digests[1]), Known(digests)
    step = Builder(INT, INT, INT)
    calls = [step.call(0), step.call(1), step.call(2)]
    body = step.plan([0, calls[1]])
    scan = ir.Scan((0, 1, 2), (3, 4), "", body, 0, 2, 2, False)
    plan = ir.Plan(3, (INT,) * 5, {}, (scan,), (3, 4))
    found = [first for first, *_ in operands(plan, [kept, made, row]).values()]
    assert found[0] is kept and found[1] is None
    assert found[2].chosen and found[2].rows() == row.rows()


def test_the_engine_starts_each_kind_of_node():
    def leaves(cls):
        return set().union(*map(leaves, cls.__subclasses__())) if cls.__subclasses__() else {cls}

    assert START.keys() == leaves(ir.Node)
