"""Data and keys by one rule: every form is the same data, two columns and two rows are told apart or refused."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import learn, non
from ember_jax._evaluate.data import columns_of
from ember_jax._evaluate.signatures import takes_key
from ember_jax.non import _members
from ember_jax.testing import Sim, SimModel

# -- rows and columns ------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
GOLDS = WORDS | st.integers(-9, 9) | st.floats(allow_nan=False, width=32)
ROWS = st.lists(st.tuples(WORDS, GOLDS), min_size=1, max_size=4)


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


COLUMN = {"list": list, "array": objects, "series": pandas.Series, "tuple": tuple}
FORMS = {
    "pairs": lambda q, g: list(zip(q, g, strict=True)),
    "lists of two": lambda q, g: [list(row) for row in zip(q, g, strict=True)],
    "pairs of a dict": lambda q, g: [({"question": a}, b) for a, b in zip(q, g, strict=True)],
    "dicts": lambda q, g: [{"question": a, "gold": b} for a, b in zip(q, g, strict=True)],
    "two dicts in a tuple": lambda q, g: tuple({"question": a, "gold": b} for a, b in zip(q, g, strict=True)),
    "columns": lambda q, g: {"question": q, "gold": g},
    "frame": lambda q, g: pandas.DataFrame({"question": objects(q), "gold": objects(g)}),
    "a Text and a list": lambda q, g: (ember.text(q), g),
    "a frame and a list": lambda q, g: (pandas.DataFrame({"question": objects(q)}), g),
    "a dict and a list": lambda q, g: ({"question": q}, g),
}


@hypothesis.given(ROWS, st.sampled_from(sorted(COLUMN)), st.sampled_from(sorted(COLUMN)))
def test_every_form_is_the_same_columns_whatever_their_length(rows, left, right):
    questions, golds = map(list, zip(*rows, strict=True))
    expected = {"question": questions, "gold": golds}
    for form in FORMS.values():
        assert columns_of(form(questions, golds)) == expected
    two = COLUMN[left](questions), COLUMN[right](golds)
    if left == right == "tuple" and len(rows) == 2:  # as a tuple of two rows is
        with pytest.raises(ValueError, match="two rows or two columns"):
            columns_of(two)
    else:
        assert columns_of(two) == expected


@hypothesis.given(ROWS)
def test_a_tuple_of_rows_is_rows_or_refused_and_never_columns(rows):
    if len(rows) == 2:
        with pytest.raises(ValueError, match="two rows or two columns"):
            columns_of(tuple(rows))
    else:
        assert columns_of(tuple(rows)) == columns_of(rows)


@pytest.fixture(scope="module")
def stages():
    """A cascade over simulated models that sample, with a scorer that does."""
    small, large = ember.LLM("sim/small", temperature=0.7), ember.LLM("sim/large", temperature=0.7)
    return non.Cascade([small, large], scorer=non.Grader(small, sampled=True))


def simulated():
    models = {"small": SimModel(accuracy=0.5, latency=0), "large": SimModel(accuracy=1.0, latency=0)}
    return ember.session(providers={"sim": Sim(models)})


QUESTIONS = [f"What is {i} + 1?" for i in range(6)]


@pytest.mark.parametrize(
    "data",
    [
        [(q, i + 1) for i, q in enumerate(QUESTIONS)],
        (QUESTIONS, range(1, 7)),
        (ember.text(QUESTIONS), np.arange(1, 7)),
        pandas.DataFrame({"prompt": QUESTIONS, "answer": np.arange(1, 7), "level": "easy"}),
    ],
    ids=["pairs", "two columns", "arrays", "frame"],
)
def test_who_searches_takes_the_data_of_who_evaluates(data, stages):
    with simulated():
        right = ember.evaluate(stages.stages[1], data, "number")
        assert (right.accuracy, len(right)) == (1, 6)
        assert learn.pareto({"large": stages.stages[1]}, data, "number", resamples=1).table["accuracy"] == [1]
        models = ["sim/small", "sim/large", "sim/small"]
        best, trace = learn.select_models(stages.stages[0], data, "number", models)
        assert str(best.model) == "sim/large" and trace.trials[-1].score == 1
        _, order = learn.calibrate_cascade(stages, data, "number", 1.0)
        assert {o.stages: o.score for o in order.orders}[1,] == 1 and order.rows == 6


@pytest.mark.parametrize("key", [None, 3])
def test_a_calibrated_cascades_answers_are_there_when_it_is_evaluated(key, stages):
    key = None if key is None else jax.random.key(key)
    with simulated() as run:
        learn.calibrate_cascade(stages, (QUESTIONS, range(1, 7)), "number", 1.0, key=key)
        requests = run.report().requests
        assert requests == 6 * 4  # of two stages and their two scorers
        result = ember.evaluate(stages, (QUESTIONS, range(1, 7)), "number", key=key)
        assert result.calls.sum() > 6 and run.report().requests == requests


# -- keys ------------------------------------------------------------------------------------------------------------


@ember.operator
def keyless(question: ember.Text) -> ember.Text:
    return question


@ember.operator
def keyed(question: ember.Text, key: ember.Key) -> ember.Text:
    return ember.format("{q} {x}", q=question, x=jax.random.uniform(key))


LLM = ember.LLM("sim/small")
# Whether each is called with a key: where one was given, and where none was.
CALLED_WITH = {
    "keyless": (keyless, False, False),
    "keyed": (keyed, True, True),
    "an LLM": (LLM, True, False),
    "a construct": (non.Vote(LLM, n=3), True, False),
    "a function": (lambda question, key: question, True, True),
    "a key by name alone": (lambda question, *, key: question, True, True),
    "arguments of any name": (lambda question, **rest: question, False, False),
    "a bound key": (functools.partial(LLM, key=jax.random.key(7)), False, False),
    "attempted": (ember.attempt(keyed), True, True),
    "mapped": (jax.vmap(keyed), True, True),
    "compiled": (ember.jit(LLM), True, False),
    "compiled by JAX": (jax.jit(lambda question, key: question), True, True),
}


@pytest.mark.parametrize("name", CALLED_WITH)
def test_constructs_and_searches_have_one_rule_for_keys(name):
    fn, given, without = CALLED_WITH[name]
    assert (takes_key(fn), takes_key(fn, is_given=False)) == (given, without)
    assert _members.takes_key(fn) == given


def test_what_does_not_tell_its_arguments_is_told_by_both():
    for rule in (takes_key, _members.takes_key):
        with pytest.raises(TypeError, match=r"built-in function max>,? does not tell its arguments"):
            rule(max)


def test_a_bound_key_stays_and_its_samples_are_one():
    bound = functools.partial(keyed, key=jax.random.key(7))
    once = str(bound("q"))
    assert ember.evaluate(bound, [("q", once)], "exact", key=jax.random.key(1)).accuracy == 1
    with pytest.raises(ValueError, match="takes no key, so all its samples are one"):
        non.Ensemble(bound, n=2)


@ember.operator
def draws(answer: ember.Text, gold: ember.Text, key: ember.Key) -> Float[Array, ""]:
    return jax.random.uniform(key)


@ember.operator
def may_draw(answer: ember.Text, gold: ember.Text, key: ember.Key | None = None) -> Float[Array, ""]:
    return jnp.float32(-1) if key is None else jax.random.uniform(key)


@pytest.mark.parametrize("op", [keyless, keyed])
def test_the_key_of_a_score_is_the_rows_own_whatever_the_operator_takes(op):
    rows = [(question, "") for question in "abc"]
    of = lambda key: [jax.random.uniform(ember.fold_in(ember.fold_in(key, q), "score")) for q in "abc"]
    for key in (jax.random.key(4), None):
        wanted = of(jax.random.key(0) if key is None else key)
        np.testing.assert_allclose(ember.evaluate(op, rows, draws, key=key).scores, wanted, rtol=1e-6)
        may = ember.evaluate(op, rows, may_draw, key=key).scores
        np.testing.assert_allclose(may, [-1] * 3 if key is None else wanted, rtol=1e-6)


@ember.operator
def about(question: ember.Text, context: ember.Text) -> ember.Text:
    return question + context


@ember.operator
def asks(question: ember.Text, answer: ember.Text, gold: ember.Text) -> Float[Array, ""]:
    return (question == "q").astype(float)


def test_the_question_of_a_score_is_the_first_argument_whatever_its_name():
    rows = {"context": ["c"], "question": ["q"], "gold": ["qc"]}
    assert ember.evaluate(about, rows, asks).accuracy == 1
    assert ember.evaluate(about, rows, lambda question, answer, gold: question == "q").accuracy == 1
