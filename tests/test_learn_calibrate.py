"""`calibrate_cascade`: against brute force, within the budget, and no call more than once."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import learn
from ember_jax.learn._calibrate import _Choices, _hard, _on_grid, _Ordered, _Table
from ember_jax.testing import Sim, SimModel

ROWS = 60
COSTS = (1e-6, 10e-6, 100e-6)
# Of three stages, which answers are right, and what is said of each: right ones score higher, mostly.
_draw = np.random.default_rng(0)
RIGHT = _draw.uniform(size=(ROWS, 3)) < np.array([0.55, 0.75, 0.95])
GRADE = (np.round(np.clip(np.where(RIGHT, 0.7, 0.4) + _draw.normal(0, 0.18, RIGHT.shape), 0, 1) * 20) / 20).astype("f4")


class Cascade(ember.Operator):
    """The first answer above its threshold, else the last stage's; with the fields of `non.Cascade`."""

    stages: tuple
    scorer: object
    thresholds: jax.Array

    def forward(self, question: ember.Text) -> ember.Text:
        return self.answer(0, question)

    def answer(self, i, question):
        said = self.stages[i](question)
        if i == len(self.stages) - 1:
            return said
        scorer = self.scorer[i] if isinstance(self.scorer, tuple) else self.scorer
        passes = scorer(question, said) > self.thresholds[i]
        return jax.lax.cond(passes, lambda: said, lambda: self.answer(i + 1, question))


class Stage(ember.Operator):
    """Answers by table; its one call, of one token in and none that costs going out, says what it costs."""

    llm: ember.LLM
    number: int = eqx.field(static=True)

    def forward(self, question: ember.Text) -> ember.Text:
        call = self.llm.complete(question)
        row = ember.parse_number(question).astype(jnp.int32)
        right = jnp.asarray(RIGHT)[row, self.number]
        return ember.format("{right} {row} {stage}", right=right, row=row, stage=self.number) + ember.where(
            call.output_tokens >= 0, ember.text(""), ember.text("?")
        )


def grade(question: ember.Text, answer: ember.Text) -> jax.Array:
    def of(answer):
        _, row, stage = answer.split()
        return GRADE[int(row), int(stage)]

    return ember.host(of, out=jax.ShapeDtypeStruct((), jnp.float32))(answer)


def correct(answer, gold):
    return ember.host(lambda answer: answer.startswith("True"), out=jax.ShapeDtypeStruct((), jnp.bool_))(answer)


class Asking(ember.Operator):
    """The same from a model that is asked first, and paid."""

    llm: ember.LLM

    def forward(self, question: ember.Text, answer: ember.Text) -> jax.Array:
        says = self.llm(ember.join(" ", [question, answer]))
        return jnp.where(says == "", jnp.nan, grade(question, answer))


def session():
    prices = {f"s{i}": SimModel(latency=0, input_price=cost * 1e6, output_price=0) for i, cost in enumerate(COSTS)}
    return ember.session(providers={"sim": Sim(prices)})


def cascade(scorer=grade):
    return Cascade(tuple(Stage(ember.LLM(f"sim/s{i}"), i) for i in range(3)), scorer, jnp.full(2, 0.5))


QUESTIONS = ember.text([str(i) for i in range(ROWS)])
DATA = QUESTIONS, jnp.zeros(ROWS)


def outcome(order, thresholds):
    """The cascade, row by row."""
    right, cost = 0.0, 0.0
    for row in range(ROWS):
        for i, stage in enumerate(order):
            cost += COSTS[stage]
            if i == len(order) - 1 or GRADE[row, stage] > thresholds[i]:
                right += RIGHT[row, stage]
                break
    return right / ROWS, cost / ROWS


@functools.cache
def every_outcome():
    return [
        outcome(order, thresholds)
        for length in (1, 2, 3)
        for order in itertools.permutations(range(3), length)
        for thresholds in itertools.product(*(np.unique(GRADE[:, s]) for s in order[:-1]))
    ]


def brute_force(budget):
    allowed = [(round(right, 9), -cost) for right, cost in every_outcome() if cost <= budget * (1 + 1e-9)]
    right, cost = max(allowed)
    return right, -cost


BY_NIGHT = [pytest.param(budget, marks=pytest.mark.nightly) for budget in (1e-6, 200e-6)]


@pytest.mark.parametrize("budget", [8e-6, 30e-6, *BY_NIGHT])
def test_the_grid_equals_brute_force_and_gradients_come_near(budget):
    with session() as run:
        op, trace = learn.calibrate_cascade(cascade(), DATA, correct, budget)
        requests = run.report().requests
        _, soft = learn.calibrate_cascade(cascade(), DATA, correct, budget, method="gradient")
        assert run.report().requests == requests == 3 * ROWS
    best = trace.orders[0]
    right, cost = brute_force(budget)
    assert (best.fitted_score, best.fitted_cost) == (pytest.approx(right), pytest.approx(cost, rel=1e-5))
    singles = [RIGHT[:, i].mean() for i in range(3) if COSTS[i] <= budget]
    assert best.fitted_score >= max(singles)
    by_gradient = soft.orders[0].fitted_score
    assert max(singles) <= by_gradient <= best.fitted_score + 1e-9 and by_gradient >= best.fitted_score - 0.05
    for order in (*trace.orders, *soft.orders):
        assert outcome(order.stages, order.thresholds) == (
            pytest.approx(order.fitted_score),
            pytest.approx(order.fitted_cost, rel=1e-5),
        )
        assert order.fitted_cost <= budget * (1 + 1e-6)
    for found in (trace, soft):
        assert dataclasses.replace(found.best, score=0, cost=0) == dataclasses.replace(found.orders[0], score=0, cost=0)
    assert tuple(stage.number for stage in op.stages) == best.stages
    np.testing.assert_array_equal(op.thresholds, np.float32(best.thresholds))


def ran(op):
    """The mean score and cost of a cascade that runs."""
    answers, usage = jax.vmap(ember.metered(op))(QUESTIONS)
    return np.mean(np.asarray(jax.vmap(correct)(answers, DATA[1]))), np.mean(np.asarray(usage.cost, float))


def test_what_is_promised_is_what_the_cascade_does_and_costs_with_its_scorers():
    with session():
        scorers = Asking(ember.LLM("sim/s0")), grade
        op, trace = learn.calibrate_cascade(cascade(scorers), DATA, correct, 40e-6)
        best = trace.best
        score, cost = ran(op)
    assert (best.fitted_score, best.fitted_cost) == (pytest.approx(score), pytest.approx(cost, rel=1e-4))
    assert op.scorer == tuple(scorers[i] for i in best.stages[:-1])
    # The last stage has no scorer, and so comes last wherever it is.
    assert {order.stages for order in trace.orders if 2 in order.stages} == {(0, 2), (1, 2), (0, 1, 2), (1, 0, 2)}


def test_every_threshold_tells_the_scores_apart_also_of_four_stages():
    draw = np.random.default_rng(1)
    right = draw.uniform(size=(40, 4)) < np.array([0.4, 0.6, 0.7, 0.9])
    grades = (np.round(draw.uniform(size=(40, 4)) + 0.4 * right, 1)).astype(np.float32)
    cost = np.broadcast_to([1.0, 3.0, 9.0, 27.0], (40, 4))
    stages = _Ordered(right.T.astype(float), grades[:, :3].T, cost.T)
    every = [_hard(np.array(t, np.float32), stages) for t in itertools.product(*(np.unique(g) for g in stages.grade))]
    found = _on_grid(stages, 100)
    assert (np.diff(found.cost) > 0).all() and (np.diff(found.score) > 0).all()
    for budget in (5.0, 12.0, 30.0):
        place = found.at(budget)
        assert found.cost[place] <= budget
        assert found.score[place] == pytest.approx(max(score for score, cost in every if cost <= budget))
        assert _hard(found.thresholds[place], stages) == (found.score[place], found.cost[place])
    assert found.at(0.5) == -1
    assert _on_grid(stages, 3).at(12.0) >= 0  # a coarse grid keeps the budget too


class FailsAt(ember.Operator):
    """A stage that fails at the first question."""

    stage: Stage

    def forward(self, question: ember.Text) -> ember.Text:
        refused = self.stage.llm.replace(max_tokens=0)
        return jax.lax.cond(question == "0", lambda: refused(question), lambda: self.stage(question))


def test_rows_that_fail_are_left_out_and_what_the_scorer_cannot_tell_is_not_accepted():
    with session():
        whole = cascade(scorer=lambda question, answer: jnp.where(question == "1", jnp.nan, grade(question, answer)))
        op = dataclasses.replace(whole, stages=(*whole.stages[:2], FailsAt(whole.stages[2])))
        _, trace = learn.calibrate_cascade(op, DATA, correct, 1.0)
        assert (trace.rows, trace.failed) == (ROWS, 1)
        single = {order.stages: order for order in trace.orders}
        # Nothing is chosen about a single stage, so its score is the same on every row.
        assert single[2,].score == pytest.approx(RIGHT[1:, 2].mean()) == pytest.approx(single[2,].fitted_score)
        # No threshold is below what is not known: question 1 goes on to the last stage.
        assert single[0, 2].fitted_cost >= COSTS[0] + COSTS[2] / (ROWS - 1) * (1 - 1e-6)


def test_one_table_answers_every_budget_and_asks_nothing_again():
    with session() as run:
        _, trace = learn.calibrate_cascade(cascade(), DATA, correct, 30e-6)
        for budget in (1e-6, 8e-6, 20e-6, 60e-6, 1.0):
            op, found = trace.cascade(budget)
            assert (found.fitted_score, found.fitted_cost) == (
                pytest.approx(brute_force(budget)[0]),
                pytest.approx(brute_force(budget)[1], rel=1e-5),
            )
            assert tuple(stage.number for stage in op.stages) == found.stages
            np.testing.assert_array_equal(op.thresholds, np.float32(found.thresholds))
        assert run.report().requests == 3 * ROWS
        assert trace.cascade(30e-6)[1].thresholds == trace.best.thresholds
        again, other = learn.calibrate_cascade(cascade(), DATA, correct, 8e-6)
        assert trace.frontier == other.frontier and again.thresholds.tolist() == pytest.approx(other.best.thresholds)
        with pytest.raises(ValueError, match=r"below.*cheapest cascade of this table"):
            trace.cascade(1e-7)
        _, soft = learn.calibrate_cascade(cascade(), DATA, correct, 30e-6, method="gradient", folds=0)
        assert soft.frontier == (soft.best,) and np.isnan(soft.best.score)


def drawn(draw, rows):
    """Three stages whose grades say a little, as a table: scores on the rows look better than they are."""
    right = draw.uniform(size=(rows, 3)) < np.array([0.55, 0.65, 0.75])
    grades = np.where(right, 0.55, 0.45) + draw.normal(0, 0.2, right.shape)
    cost = np.broadcast_to([1.0, 3.0, 9.0], right.shape)
    return _Table(right.astype(float), grades.astype(np.float32), cost, np.zeros_like(cost), 0)


def test_scores_are_those_at_questions_that_the_choice_has_not_seen():
    draw = np.random.default_rng(0)
    orders = [order for length in (1, 2, 3) for order in itertools.permutations(range(3), length)]
    future, told, fitted, held, true = drawn(draw, 20_000), [], [], [], []
    search = functools.partial(_on_grid, grid=12)
    for _ in range(40):
        found = _Choices(drawn(draw, 60), orders, search, 5)
        best = found.best(8.0)
        score, cost = _hard(np.array(best.thresholds, np.float32), future.of(best.stages))
        fitted.append(best.fitted_score)
        told.append(best.score)
        held.append(best.cost)
        true.append((score, cost))
    score, cost = np.mean(true, 0)
    assert np.mean(fitted) > score + 0.05  # on the same rows it is far too good
    # Four fifths of the rows choose a little worse than all do. Two standard errors of the mean over data sets:
    assert score - 0.03 < np.mean(told) < score + 2 * np.std(told) / np.sqrt(40)
    assert np.mean(held) == pytest.approx(cost, rel=0.1)


def test_folds_are_dealt_by_hand():
    """One stage that is right on all rows but one, and a dear one that is always right, at a budget for either."""
    score = np.array([[0.0, 1.0], *[[1.0, 1.0]] * 5])
    table = _Table(score, np.zeros((6, 2), np.float32), np.broadcast_to([1.0, 5.0], (6, 2)), np.zeros((6, 2)), 0)
    found = _Choices(table, [(0,), (1,)], functools.partial(_on_grid, grid=10), 6)
    best = found.best(10.0)
    # In the fold that holds the first row both are as good on the others, and the cheap one, which fails, is taken.
    assert (best.stages, best.fitted_score, best.fitted_cost) == ((1,), 1.0, 5.0)
    assert (best.score, best.cost) == (pytest.approx(5 / 6), pytest.approx((1 + 5 * 5) / 6))
    cheap, dear = found.frontier()
    assert (cheap.stages, cheap.score, dear.stages, dear.score) == ((0,), pytest.approx(5 / 6), (1,), best.score)
    assert [order.score for order in found.orders(10.0)] == pytest.approx([1, 5 / 6])


def test_what_is_shown():
    with session():
        _, trace = learn.calibrate_cascade(cascade(), DATA, correct, 30e-6, grid=5)
    lines = str(trace).splitlines()
    best, chosen = trace.orders[0], trace.best
    told = f"chosen: score {chosen.score:.4f}, ${chosen.cost:.6f} a question, held out"
    assert lines[0] == f"{ROWS} questions, 0 failed; {told}" and len(lines) == 3 + len(trace.orders)
    fitted = f"{best.fitted_score:7.4f}  ${best.fitted_cost:.6f}"
    assert lines[3].startswith(f"{best.score:7.4f}  ${best.cost:.6f}  {fitted}  stages {best.stages[0]} > ")
    assert list(trace.to_pandas().score) == [order.score for order in trace.orders]


def test_errors_say_what_is_wrong():
    with session():
        with pytest.raises(ValueError, match="cheapest stage costs"):
            learn.calibrate_cascade(cascade(), DATA, correct, 1e-7)
        with pytest.raises(ValueError, match="'grid' or 'gradient'"):
            learn.calibrate_cascade(cascade(), DATA, correct, 1.0, method="best")
        with pytest.raises(ValueError, match="there is no score 'numbers'"):
            learn.calibrate_cascade(cascade(), DATA, "numbers", 1.0)
        with pytest.raises(ValueError, match="at 60 of 60 with ValueError: the score is not a number"):
            learn.calibrate_cascade(cascade(), DATA, lambda answer, gold: gold * jnp.nan, 1.0)
        with pytest.raises(ValueError, match="grid=0"):
            learn.calibrate_cascade(cascade(), DATA, correct, 1.0, grid=0)
        with pytest.raises(ValueError, match=r"folds=1.*at least 2"):
            learn.calibrate_cascade(cascade(), DATA, correct, 1.0, folds=1)
        with pytest.raises(TypeError, match="not LLM, which is without stages, scorer, thresholds"):
            learn.calibrate_cascade(ember.LLM("sim/s0"), DATA, correct, 1.0)
        with pytest.raises(TypeError, match="not the class Cascade"):
            learn.calibrate_cascade(ember.non.Cascade, DATA, correct, 1.0)
        with pytest.raises(TypeError, match="gives one number for an answer"):
            learn.calibrate_cascade(cascade(lambda question, answer: answer), DATA, correct, 1.0)
    unknown = ember.session(providers={"sim": ember.providers.Callable(lambda request: "yes")})
    with unknown, pytest.raises(ValueError, match="price of a model is unknown"):
        learn.calibrate_cascade(cascade(), DATA, correct, 1.0)
