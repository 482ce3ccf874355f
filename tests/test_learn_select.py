"""`select_models`: the plateau, conjunctive systems against exhaustive search, and what is counted."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import ember_jax as ember
from ember_jax import errors, learn, providers
from ember_jax.learn._select import _distinct, _greedy

ROWS = 12
QUESTIONS = ember.text([f"q{i}" for i in range(ROWS)])
GOLDS = ember.text(["solved"] * ROWS)


class Chain(ember.Operator):
    """Modules in a row, each told its own task and what came before."""

    modules: tuple[ember.LLM, ...]

    def forward(self, question: ember.Text) -> ember.Text:
        words = question
        for module in self.modules:
            words = module(words)
        return words


def chain(count, model="skilled/m0"):
    return Chain(tuple(ember.LLM(model, system=str(i)) for i in range(count)))


def skilled(skill):
    """A session whose models do a task or spoil what was done: `skill(model, module, question)` says which."""

    async def answer(request):  # "q7 0 1": the modules that have done their task at question 7
        module = int(request.messages[0].content)
        words = request.messages[-1].content
        question = int(words.split()[0][1:])
        done = f"{words} {module}" if skill(int(request.model[1:]), module, question) else words
        if not request.parameters.get("last"):
            return done
        return "solved" if done == " ".join([words.split()[0], *map(str, range(module + 1))]) else done

    return ember.session(providers={"skilled": providers.Callable(answer)})


def with_end(op):
    """The last module says whether all have done their task."""
    return Chain((*op.modules[:-1], op.modules[-1].replace(last=True)))


def models(count):
    return [f"skilled/m{i}" for i in range(count)]


def equal(answer, gold):
    return answer == gold


def allocation(op):
    return tuple(int(str(llm.model)[-1]) for llm in op.modules)


# -- the plateau -----------------------------------------------------------------------------------------------------

# Model 0 is useless, model 1 only locates (module 0), model 2 only solves (module 1): no single change away from a
# system with two wrong models is rewarded.
PLATEAU = {(1, 0), (2, 1)}


def perfect(question, answer, gold, module, model):
    """Whether the module's model cannot do its task."""
    able = [(module == f"modules.{m}") & (model == f"skilled/m{i}") for i, m in PLATEAU]
    return ~jnp.any(jnp.stack(able))


@ember.operator
def perfect_operator(
    question: ember.Text, answer: ember.Text, gold: ember.Text, module: ember.Text, model: ember.Text, key: ember.Key
) -> jax.Array:
    return perfect(question, answer, gold, module, model) & (jax.random.uniform(key) >= 0)


@pytest.mark.parametrize(("diagnoser", "stuck"), [(None, 6), (perfect, 0), (perfect_operator, 0)])
def test_the_plateau(diagnoser, stuck):
    found = []
    with skilled(lambda model, module, question: (model, module) in PLATEAU):
        for start in itertools.product(models(3), repeat=2):
            op = with_end(Chain(tuple(ember.LLM(m, system=str(i)) for i, m in enumerate(start))))
            best, trace = learn.select_models(op, (QUESTIONS, GOLDS), equal, models(3), diagnoser=diagnoser)
            found.append(trace.trials[trace.best].score)
            assert (found[-1] == 1) == (allocation(best) == (1, 2))
            assert len(trace.trials) <= 9
    assert set(found) <= {0.0, 1.0} and found.count(0.0) == stuck


def test_a_diagnosis_of_another_module_asks_no_answer_again():
    asked = collections.Counter()

    async def answer(request):
        words = f"{request.messages[-1].content} {request.model}"
        asked[request.messages[0].content, words] += 1
        return words

    with ember.session(journal=None, providers={"skilled": providers.Callable(answer)}):
        diagnosed = collections.Counter()
        blame = lambda question, answer, gold, module, model: diagnosed.update([(answer, module)]) or 0.5
        _, trace = learn.select_models(chain(2), (QUESTIONS, GOLDS), equal, models(2), diagnoser=blame)
    last = {words: count for (module, words), count in asked.items() if module == "1"}
    assert len(last) == sum(last.values()) == len(trace.trials) * ROWS
    assert {module for _, module in diagnosed} == {"modules.0", "modules.1"} and set(diagnosed.values()) == {1}


# -- conjunctive systems ---------------------------------------------------------------------------------------------


def conjunctive(seed, modules, rows=ROWS):
    """Which of five models does which module's task at which question; an answer is right where all are done."""
    draw = np.random.default_rng(seed)
    return draw.uniform(size=(5, modules, rows)) < draw.uniform(0.5, 1.0, (5, modules, 1))


class Recorded:
    """Rows of a conjunctive system as the search sees them."""

    def __init__(self, can):
        self.can, self.trials, self.steps = can, {}, 0
        self.models, self.paths = range(can.shape[0]), range(can.shape[1])
        self.first = (0,) * can.shape[1]

    def run(self, allocations, module=None):
        self.steps += 1
        rows = np.array([self.can[list(a), self.paths].all(0) for a in allocations], float)
        self.trials |= dict(zip(allocations, rows.mean(1).tolist(), strict=True))
        return rows


# What was found for such systems elsewhere counts every candidate of every step: 18, 29, 38 and 59 of them.
@pytest.mark.parametrize(("modules", "candidates"), [(2, 18), (3, 29), (4, 38), (6, 59)])
def test_allocations_grow_with_the_number_of_modules_and_not_with_its_power(modules, candidates):
    tried, counted, gaps = [], [], []
    for seed in range(40):
        search = Recorded(conjunctive(seed, modules, rows=100))
        _greedy(search, None)
        every = search.can[:, 0]
        for module in range(1, modules):
            every = (every[:, None] & search.can[None, :, module]).reshape(-1, 100)
        tried.append(len(search.trials))
        counted.append(5 * search.steps)
        gaps.append(every.mean(1).max() - max(search.trials.values()))
    assert abs(np.mean(counted) / candidates - 1) < 0.2
    assert np.mean(tried) < candidates and np.mean(tried) < 10 * modules
    assert np.mean(gaps) < 2e-3 and np.mean(np.array(gaps) < 1e-6) >= 0.9


def distinct_calls(can):
    """How many different calls all allocations come to: a module sees which of those before it have done their task."""
    histories = [{()} for _ in range(ROWS)]
    count = 0
    for module in range(can.shape[1]):
        count += 5 * sum(map(len, histories))
        histories = [{(*h, bool(d)) for h in of for d in can[:, module, q]} for q, of in enumerate(histories)]
    return count


def test_greedy_search_is_near_exhaustive_search_and_pays_for_no_call_twice():
    can = conjunctive(0, 3)
    truth = {a: can[a, range(3)].all(0).mean() for a in itertools.product(range(5), repeat=3)}
    with skilled(lambda model, module, question: can[model, module, question]) as run:
        op = with_end(chain(3))
        greedy, trace = learn.select_models(op, (QUESTIONS, GOLDS), equal, models(5))
        requests = run.report().requests
        every, full = learn.select_models(op, (QUESTIONS, GOLDS), equal, models(5), method="exhaustive")
    for trial in (*trace.trials, *full.trials):
        assert abs(trial.score - truth[tuple(int(m[-1]) for m in trial.models.values())]) < 1e-6
        assert trial.calls == 3 * ROWS and trial.failed == 0
    assert len(full.trials) == 125 and truth[allocation(every)] == max(truth.values())
    assert len(trace.trials) < 29 and truth[allocation(greedy)] == max(truth.values())
    # A module's answer depends on its model and on which modules before it have done their task.
    assert requests <= ROWS * 5 * (1 + 2 + 4) and run.report().requests == distinct_calls(can)


# -- the rest --------------------------------------------------------------------------------------------------------


def test_random_search_draws_allocations_once_and_a_budget_bounds_every_method():
    with skilled(lambda model, module, question: model == 1):
        op, data = with_end(chain(2)), (QUESTIONS, GOLDS)
        _, some = learn.select_models(op, data, equal, models(3), method="random", budget=5)
        _, more = learn.select_models(op, data, equal, models(3), method="random", budget=100)
        _, one = learn.select_models(op, data, equal, models(3), budget=1)
        best, greedy = learn.select_models(op, data, equal, models(3), budget=5)
    distinct = lambda trace: {tuple(t.models.values()) for t in trace.trials}
    assert len(some.trials) == len(distinct(some)) == 5 and len(distinct(more)) == 9
    assert distinct(one) == {("skilled/m0", "skilled/m0")}
    assert len(greedy.trials) == 5 and allocation(best) == (0, 0)  # on the plateau, where nothing is the best


@pytest.mark.parametrize(("count", "budget"), [(7, 3), (7, 7), (7, 9), (2**70, 4)])
def test_places_are_drawn_once_also_among_more_than_a_machine_counts(count, budget):
    places = _distinct(count, budget, jax.random.key(0))
    assert len(set(places)) == len(places) == min(count, budget) and min(places) >= 0 and max(places) < count


def test_rows_that_fail_are_left_out_and_counted():
    def skill(model, module, question):
        if model == 1 and question < 4:
            raise errors.RefusedRequestError("no")
        return model == 1 or question % 2 == 0

    with skilled(skill):
        best, trace = learn.select_models(with_end(chain(1)), (QUESTIONS, GOLDS), equal, models(2))
    assert [(t.score, t.failed) for t in trace.trials] == [(0.5, 0), (1.0, 4)]
    assert allocation(best) == (1,)


class Keyed(ember.Operator):
    """One call that draws."""

    llm: ember.LLM

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        return self.llm(question, key)


def test_keys_costs_and_what_is_shown():
    questions, golds = [f"What is {i} + 5?" for i in range(30)], [i + 5.0 for i in range(30)]
    right = lambda answer, gold: ember.parse_number(answer) == gold
    op = Keyed(ember.LLM("sim/small"))
    with ember.session() as run:
        best, trace = learn.select_models(op, (questions, golds), right, ["sim/small", "sim/large"])
        spent = run.report()
        again = learn.select_models(best, (questions, golds), right, ["sim/small", "sim/large"])[1]
        assert run.report().requests == spent.requests == 60
        assert sum(t.cost for t in trace.trials) == pytest.approx(spent.cost_usd, rel=1e-4)
    assert str(best.llm.model) == "sim/large" and str(op.llm.model) == "sim/small"
    assert again.trials == trace.trials
    small, large = trace.trials
    assert trace.best == 1 and 0.5 < small.score < large.score and large.cost == pytest.approx(100 * small.cost)
    frame = trace.to_pandas()
    assert list(frame.columns) == ["llm", "score", "failed", "calls", "cost"] and frame.llm[1] == "sim/large"
    assert str(trace).splitlines()[2].startswith(f"* sim/large  {large.score:.4f}")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": []}, ValueError, "list of model ids"),
        ({"models": "skilled/m0"}, ValueError, "list of model ids"),
        ({"models": ["skilled/m0", "nobody/x"]}, errors.ModelError, "nobody"),
        ({"op": lambda: lambda question: question}, ValueError, "at least one"),
        ({"data": (QUESTIONS, GOLDS[:2])}, ValueError, "unequal length: {'question': 12, 'gold': 2}"),
        ({"data": {"question": []}}, ValueError, "no rows"),
        ({"key": 3}, TypeError, "`key` is 3 of type int"),
        ({"diagnoser": lambda question, answer, gold: 1}, TypeError, r"the diagnoser <lambda> takes .*, model\)"),
        ({"budget": 0}, ValueError, "at least 1"),
        ({"method": "random"}, ValueError, "takes a budget"),
        ({"method": "best"}, ValueError, "'exhaustive'"),
        ({"method": "exhaustive", "diagnoser": perfect}, ValueError, "asks no diagnoser"),
        ({"method": "exhaustive", "models": models(4097)}, ValueError, "4,097 allocations"),
        ({"op": lambda: chain(1, ember.text(models(2)))}, ValueError, "modules.0 is 2 models in one"),
    ],
)
def test_errors_say_what_is_taken(change, error, message):
    with skilled(lambda model, module, question: True):
        given = {"op": lambda: chain(1), "data": (QUESTIONS, GOLDS), "models": models(2)} | change
        with pytest.raises(error, match=message):
            learn.select_models(given.pop("op")(), given.pop("data"), equal, **given)


def test_a_model_that_is_there_twice_counts_once():
    with skilled(lambda model, module, question: model == 1):
        _, trace = learn.select_models(
            with_end(chain(1)), (QUESTIONS, GOLDS), equal, [*models(2), *models(2)], method="exhaustive", budget=2
        )
    assert [t.models["modules.0"] for t in trace.trials] == models(2)


def test_where_every_row_fails_the_cause_is_told():
    def skill(model, module, question):
        raise errors.RefusedRequestError("no credit")

    with skilled(skill), pytest.raises(ValueError, match="24 of 24 times with RefusedRequestError: no credit"):
        learn.select_models(chain(1), (QUESTIONS, GOLDS), equal, models(2))


class About(ember.Operator):
    """One call about two columns."""

    llm: ember.LLM

    def forward(self, question: ember.Text, context: ember.Text) -> ember.Text:
        return self.llm(question + context)


@ember.operator
def same(answer: ember.Text, gold: ember.Text) -> jax.Array:
    return answer == gold


@ember.operator
def sampled(question: ember.Text, answer: ember.Text, gold: ember.Text, key: ember.Key) -> jax.Array:
    return (answer == gold) & (question != gold) & (jax.random.uniform(key) >= 0)


def asked(question, answer, gold):
    return question + "?" == gold


@pytest.mark.parametrize(
    ("score", "key"), [("exact", None), (equal, 1), (asked, None), (same, 1), (sampled, None), (sampled, 1)]
)
def test_data_and_scores_are_those_of_evaluate(score, key):
    key = None if key is None else jax.random.key(key)
    rows = [{"question": f"q{i}", "context": "?", "target": f"q{i}?" if i else "no"} for i in range(4)]
    echo = ember.session(providers={"mine": providers.Callable(lambda request: request.messages[-1].content)})
    with echo:
        op = About(ember.LLM("mine/a"))
        _, trace = learn.select_models(op, rows, score, ["mine/a"], key=key)
        assert trace.trials[0].score == ember.evaluate(op, rows, score, key=key).accuracy == 0.75
        by_name = [row | {"target": 0, "right": row["target"]} for row in rows]
        assert learn.select_models(op, by_name, score, ["mine/a"], key=key, gold="right")[1].trials[0].score == 0.75


def test_a_filtered_series_is_a_column():
    golds = pandas.Series(GOLDS.tolist(), index=range(100, 100 + len(GOLDS)))
    with skilled(lambda model, module, question: True):
        assert learn.select_models(with_end(chain(1)), (QUESTIONS, golds), equal, models(2))[1].trials[0].score == 1
