"""`evaluate`: scores by hand, intervals in closed form, failures apart from wrong answers, nothing paid twice."""

import asyncio
import collections
import functools
import math
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas
import pytest
from constructs import asking
from jaxtyping import Array

import ember_jax as ember
from ember_jax import _intervals, scores
from ember_jax._evaluate import data as datasets
from ember_jax._evaluate.latency import Spans
from ember_jax._evaluate.scores import NAMED
from ember_jax._runtime.events import CallEnded
from ember_jax.providers.base import Request, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer

matplotlib.use("agg")

PNG = b"\x89PNG\r\n\x1a\n"


class Shouting:
    """Answers in capitals, for an eighth of a dollar; refuses what holds "bad"."""

    def __init__(self):
        self.asked = collections.Counter()

    def __call__(self, request):
        prompt = request.messages[-1].content
        self.asked[prompt] += 1
        if "bad" in prompt:
            raise ember.errors.RefusedRequestError("refused", status=400)
        return Response(prompt.upper(), 3, 2, 0.125)


@pytest.fixture
def model():
    answers = Shouting()
    with ember.session(journal=None, providers={"mine": Callable(answers)}):
        yield answers


@pytest.fixture
def llm(model):
    return ember.LLM("mine/m")


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "answer", "gold", "expected"),
    [
        (scores.exact, " Paris\n", "Paris", 1),
        (scores.exact, "paris", "Paris", 0),
        (scores.exact, "4", 4, 1),
        (scores.exact, "4", 4.0, 1),
        (scores.normalized, "4.0.", [3.5, 4.0], 1),
        (scores.normalized, "4", 4.5, 0),
        (scores.exact, "b", ["a", "b"], 1),
        (scores.normalized, "The  PARIS.", "paris", 1),
        (scores.normalized, "3.14", "314", 0),
        (scores.number, "so it is 1,234.50 dollars.", 1234.5, 1),
        (scores.number, "x = 3/4", "the end. #### 0.75", 1),
        (scores.number, "about 3.1416", math.pi, 0),
        (scores.number, "many", "7", 0),
        (scores.number, "1e-7", "0", 0),
        (scores.choice, "The answer is (C).", "c", 1),
        (scores.choice, "C. Paris", 2, 1),
        (scores.choice, "B", "C", 0),
        (scores.choice, "I do not know", "A", 0),
        (scores.regex, "it was in 1969, I think", r"\b19\d\d\b", 1),
        (scores.regex, "it was in 2069", [r"^19", r"^20"], 0),
        (scores.f1, "The Cat sat!", "a cat", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        (scores.f1, "x x y", "x x x z", 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        (scores.f1, "dog", "cat", 0),
        (scores.f1, "the", "", 1),
        (scores.f1, "", "cat", 0),
        (scores.f1, "new york city", ["boston", "york", "new york"], 2 * (2 / 3) / (2 / 3 + 1)),
        (scores.f1, "it's well-known", "its wellknown", 1),
    ],
)
def test_scores_by_hand(score, answer, gold, expected):
    assert score(answer, gold) == pytest.approx(expected)
    assert NAMED[score.__name__] is score


def test_a_tolerance_is_relative():
    near = functools.partial(scores.number, tolerance=0.01)
    assert [near("100.9", 100), near("102", 100), near("1.009e-9", "1e-9")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("score", "gold", "told"),
    [
        ("number", "none", "no number"),
        ("choice", "AB", "no letter"),
        ("choice", -1, "no letter"),
        ("exact", [], "empty"),
        ("normalized", math.nan, "missing"),
        ("exact", None, "None"),
    ],
)
def test_a_gold_answer_that_a_score_cannot_use_is_a_failure_and_not_wrong(score, gold, told, llm):
    result = ember.evaluate(
        llm, [("a", "A"), ("b 1", gold)] if score == "choice" else [("7", "7"), ("b 1", gold)], score
    )
    assert (result.failed, result.accuracy) == (1, 1)
    assert told in result.causes[1]


# -- intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_result_is_by_what_its_scores_are(llm):
    rows = [(f"x{i}", f"X{i}" if i % 4 else "no") for i in range(40)]
    result = ember.evaluate(llm, rows, "exact")
    assert result.accuracy == 0.75
    assert result.interval(0.9) == _intervals.wilson(30, 40, 0.9)
    graded = ember.evaluate(llm, rows, lambda answer, gold: len(gold) / 10)
    values = np.array([len(gold) / 10 for _, gold in rows])
    low, high = graded.interval()
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(40), rel=0.15)
    assert "95 %, Wilson" in str(graded)
    points = ember.evaluate(llm, rows, lambda answer, gold: 10 * len(gold))
    assert points.interval() == _intervals.of_numbers(100 * values, 0.95)
    assert "95 %, Student" in str(points)
    with pytest.raises(ValueError, match="level=95"):
        result.interval(95)


# -- data ------------------------------------------------------------------------------------------------------------


class HuggingFace:
    """The interface of `datasets.Dataset` that is used."""

    def __init__(self, columns):
        self._columns = columns
        self.column_names = list(columns)

    def __getitem__(self, name):
        return self._columns[name]


class Indexable:
    """A data set of rows that are made when they are asked for, as PyTorch's are."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        if i >= 5:
            raise AssertionError(i)
        return {"question": f"q{i}", "level": np.float64(i / 2), "gold": f"Q{i} AT {i / 2}"}


COLUMNS = {name: [Indexable()[i][name] for i in range(5)] for name in Indexable()[0]}
FORMS = {
    "columns": COLUMNS,
    "arrays": {name: np.array(column) for name, column in COLUMNS.items()},
    "a Text": COLUMNS | {"question": ember.text(COLUMNS["question"])},
    "pandas": pandas.DataFrame(COLUMNS, index=list("edcba")),
    "datasets": HuggingFace(COLUMNS),
    "indexable": Indexable(),
    "dicts": [Indexable()[i] for i in range(5)],
    "an array of dicts": np.array([Indexable()[i] for i in range(5)]),
    "pairs": [
        ({"question": r["question"], "level": r["level"]}, r["gold"]) for r in map(Indexable().__getitem__, range(5))
    ],
}


class At(ember.Operator):
    llm: ember.LLM

    def forward(self, level: jax.Array, question: ember.Text, key: ember.Key) -> ember.Text:
        draw = jax.random.uniform(key)
        return self.llm(ember.format("{q} at {level} and {draw:.4f}", q=question, level=level, draw=draw))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_the_same_data(form, llm, model):
    result = ember.evaluate(At(llm), FORMS[form], lambda answer, gold: answer.startswith(gold), key=jax.random.key(3))
    assert result.accuracy == 1
    assert result.data == {k: COLUMNS[k] for k in result.data}
    keys = [ember.fold_in(ember.fold_in(jax.random.key(3), repr(i / 2)), f"q{i}") for i in range(5)]
    assert result.answers == [f"Q{i} AT {i / 2} AND {jax.random.uniform(keys[i]):.4f}" for i in range(5)]
    assert sum(model.asked.values()) == 5


@pytest.mark.parametrize("name", ["question", "prompt", "problem", "sentence"])
def test_the_one_text_column_may_have_any_name(name, llm):
    assert ember.evaluate(llm, {name: ["a"], "target": ["A"]}, "exact").accuracy == 1


def test_a_usual_name_goes_before_others_and_a_named_column_is_gold(llm):
    data = {"id": ["1"], "question": ["a"], "answer": ["no"], "solution": ["A"]}
    result = ember.evaluate(llm, data, "exact", gold="solution")
    assert (result.accuracy, result.gold) == (1, "solution")
    assert "data_answer" in result.to_pandas().columns


def test_the_gold_column_is_none_that_the_operator_takes():
    @ember.operator
    def same(question: ember.Text, answer: ember.Text) -> ember.Text:
        return question + answer

    assert ember.evaluate(same, {"question": ["a"], "answer": ["b"], "label": ["ab"]}, "exact").accuracy == 1


def test_arguments_with_a_default_may_have_a_column_or_none():
    def asks(question, extra="!"):
        return question + extra

    assert ember.evaluate(asks, [("a", "a!")], "exact").accuracy == 1
    assert ember.evaluate(asks, {"question": ["a"], "extra": ["?"], "gold": ["a?"]}, "exact").accuracy == 1


@ember.operator
def two(question: ember.Text, context: ember.Text) -> ember.Text:
    return question + context


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        ([], ValueError, "no rows"),
        ({"question": [], "gold": []}, ValueError, "no rows in its columns 'question', 'gold'"),
        ([("a", "b"), ("a",)], TypeError, "row 1 of the data is a tuple"),
        ([{"question": "a", "gold": "b"}, {"question": "a"}], ValueError, r"row 1 .* \['question'\]"),
        ({"question": ["a", "b"], "gold": ["a"]}, ValueError, "unequal length: {'question': 2, 'gold': 1}"),
        ({"question": "abc", "gold": ["a"]}, TypeError, "'question' of the data is a str"),
        ({"question": ember.text("abc"), "gold": ["a", "b", "c"]}, TypeError, "'question' of the data is a Text"),
        ({"question": {"a", "b"}, "gold": ["a", "b"]}, TypeError, "'question' of the data is a set"),
        ("abc", TypeError, "not str"),
        (iter([("a", "b")]), TypeError, "make a list of it"),
        ([["a", "b", "c"], ["A", "B", "C"]], TypeError, r"row 0 of the data is a list of 3; .* tuple \(questions"),
        ((["a", "b"], ["A"]), ValueError, "unequal length: {'question': 2, 'gold': 1}"),
        (([], []), ValueError, "no rows in its columns 'question', 'gold'"),
        (("a", "A"), TypeError, "'question' of the data is a str"),
        ((("a", "A"), ("b", "B")), ValueError, "two rows or two columns. Rows are a list"),
        ({"question": ["a"], "context": ["a"]}, ValueError, r"no column of right answers .* 'question', 'context'"),
        (
            {"question": ["a"], "gold": ["b"]},
            ValueError,
            "two takes 'context', which is not among .* 'gold'",
        ),
        ({"x": ["a"], "y": ["a"], "gold": ["b"]}, ValueError, "takes 'question', 'context', which are not"),
        ({"question": ["a", None], "context": ["a", "b"], "gold": ["b", "b"]}, TypeError, r"'question' .* \[1\]"),
        ({"question": ["a"], "context": [2**40], "gold": ["b"]}, TypeError, "'context' .* fit"),
        ({"question": ["a"], "context": [{"b": 1}], "gold": ["b"]}, TypeError, "'context' .* neither text nor numbers"),
    ],
)
def test_data_that_does_not_fit_is_told(data, error, told):
    with pytest.raises(error, match=told):
        ember.evaluate(two, data)


def test_rows_of_arrays_are_rows(llm):
    assert ember.evaluate(llm, np.array([("a", "A"), ("b", "no")]), "exact").accuracy == 0.5
    with pytest.raises(TypeError, match="row 0 of the data is a str"):
        ember.evaluate(llm, pandas.Series(["a", "b"], index=[3, 4]))


def test_what_keeps_a_column_from_being_one_is_told(llm):
    with pytest.raises(TypeError, match=r"'question' .* row 0 is None of type NoneType"):
        ember.evaluate(llm, [(None, "A"), ("b", "B")])
    with pytest.raises(ValueError, match="<lambda> has no argument by name"):
        ember.evaluate(lambda *args: args[0], [("a", "A")])


def test_splits_are_to_be_chosen_from():
    splits = HuggingFace({})
    splits.column_names = {"train": ["question"], "test": ["question"]}
    with pytest.raises(TypeError, match=r"data\['train'\]"):
        ember.evaluate(two, splits)


@pytest.mark.parametrize(
    ("score", "error", "told"),
    [
        ("normalised", ValueError, "Did you mean 'normalized'"),
        (3, TypeError, "not 3"),
        (lambda answer: 1, TypeError, r"the score <lambda> takes \(answer\); it is called with \(answer, gold\) or \("),
        (lambda *args: 1, TypeError, r"takes \(\*args\); it is called"),
        (lambda answer, gold, *, strict: 1, TypeError, r"takes \(answer, gold, \*, strict\); it is called"),
        (lambda answer, gold, key, more: 1, TypeError, r"takes \(answer, gold, key, more\); it is called"),
        (max, TypeError, r"the score, <built-in function max>, does not tell its arguments; call it in a function"),
        (ember.LLM("sim/small"), TypeError, r"the score LLM takes \(prompt, key=None\); it is called"),
        (two, TypeError, "the score two gives Text.*`verdict == "),
    ],
)
def test_what_is_no_score_is_told(score, error, told, llm):
    with pytest.raises(error, match=told):
        ember.evaluate(llm, [("a", "A")], score)


def test_what_is_no_key_is_told(llm):
    with pytest.raises(TypeError, match=r"`key` is 7 of type int, not a PRNG key"):
        ember.evaluate(llm, [("a", "A")], key=7)
    with pytest.raises(TypeError, match=r"`key` is 7 of type int, not a PRNG key"):  # also where nobody takes one
        ember.evaluate(lambda question: question, [("a", "A")], key=7)


@pytest.mark.parametrize(
    ("op", "error", "told"),
    [
        ("sim/small", TypeError, r"not 'sim/small'; for a model id, `ember.LLM\('sim/small'\)`"),
        (None, TypeError, "give an operator, an LLM or a function, not None"),
        (max, TypeError, "the operator 'max', <built-in function max>, does not tell its arguments"),
        (str.upper, ValueError, "upper has no argument by name"),
    ],
)
def test_what_is_no_operator_is_told(op, error, told):
    with pytest.raises(error, match=told):
        ember.evaluate(op, [("a", "A")])


# -- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_says_what_it_took(llm):
    @ember.operator
    def twice(question: ember.Text) -> ember.Text:
        again = lambda: llm(llm(question) + "?")
        return jax.lax.cond(question == "a", again, lambda: llm(question))

    result = ember.evaluate(twice, {"question": ["a", "b"], "gold": ["A?", "x"], "more": [1, 2]}, "exact")
    assert result.answers == ["A?", "B"]
    np.testing.assert_array_equal(result.scores, [1, 0])
    np.testing.assert_array_equal(result.calls, [2, 1])
    np.testing.assert_array_equal(result.costs, [0.25, 0.125])
    np.testing.assert_array_equal(result.input_tokens, [6, 3])
    np.testing.assert_array_equal(result.output_tokens, [4, 2])
    assert (len(result), result.cost, result.score_cost, result.failed) == (2, 0.375, 0, 0)
    frame = result.to_pandas()
    assert frame["answer"].tolist() == ["A?", "B"]
    assert frame["more"].tolist() == [1, 2]
    assert frame["score"].mean() == result.accuracy == 0.5
    assert repr(result) == "<Result: accuracy 0.500 [0.095, 0.905], 2 rows, $0.375>"
    told = dict(line.split("  ", 1) for line in str(result).splitlines())
    assert told["cost"].strip() == "$0.375, $0.188 a row"
    assert told["tokens"].strip() == "9 + 6"


def test_failures_are_left_out_and_counted(llm, model):
    rows = [("a", "A"), ("bad b", "BAD B"), ("c", "x"), ("bad d", "BAD D")]
    result = ember.evaluate(llm, rows, "exact")
    assert result.accuracy == 0.5
    assert result.interval() == _intervals.wilson(1, 2, 0.95)
    np.testing.assert_array_equal(result.ok, [True, False, True, False])
    assert result.answers == ["A", None, "C", None]
    assert result.failures() == {"RefusedRequestError: refused": [1, 3]}
    np.testing.assert_array_equal(result.costs, [0.125, 0, 0.125, 0])
    assert "4, of which 2 failed" in str(result)
    assert "2: RefusedRequestError: refused" in str(result)
    assert result.to_pandas()["failure"].tolist() == ["", "RefusedRequestError: refused"] * 2


def test_what_a_failed_row_has_used_is_counted(llm):
    result = ember.evaluate(lambda question: llm(llm(question) + "bad"), [("a", "A")], "exact")
    assert (result.failed, result.cost, result.calls[0]) == (1, 0.125, 1)
    assert math.isnan(result.accuracy)
    assert all(map(math.isnan, result.interval()))
    assert "accuracy nan" in repr(result)


def test_an_answer_that_is_failed_text_is_a_failure(llm):
    result = ember.evaluate(lambda question: ember.attempt(llm)(question)[0], [("a", "A"), ("bad", "BAD")], "exact")
    assert result.causes == ("", "RefusedRequestError: refused")


def test_numbers_and_several_results_are_answers_too(llm):
    def counts(question):
        answer = llm(question)
        return {"words": answer, "number": ember.parse_number(answer)}

    data = [("3", 3.0), ("bad 4", 4.0), ("5", 6.0)]
    result = ember.evaluate(counts, data, lambda answer, gold: answer["number"] == gold)
    assert result.answers == [{"words": "3", "number": 3}, None, {"words": "5", "number": 5}]
    np.testing.assert_array_equal(result.scores, [1, np.nan, 0])
    by_name = ember.evaluate(lambda question: ember.parse_number(llm(question)), data, "number")
    np.testing.assert_array_equal(by_name.scores, [1, np.nan, 0])
    with pytest.raises(TypeError, match="counts gives a dict, and the score 'exact' compares one text, or one number"):
        ember.evaluate(counts, data[:1], "exact")


def test_a_host_function_fails_in_its_rows_alone():
    FLOAT = jax.ShapeDtypeStruct((), np.float32)
    halve = ember.host(lambda words: float(words) / 2, out=FLOAT)
    result = ember.evaluate(lambda question: halve(question), [("3", 1.5), ("three", 1.5)], "number")
    assert result.accuracy == 1
    assert result.causes[1].startswith("ValueError: could not convert")


def test_a_constant_is_an_operator_too():
    result = ember.evaluate(lambda question: "7", [("a", "7"), ("b", "8")], "exact")
    assert (result.accuracy, result.cost) == (0.5, 0)
    assert np.isnan(result.seconds).all()


def test_a_session_is_not_needed():
    assert ember.evaluate(lambda question: question + "!", [("a", "a!")]).accuracy == 1


# -- scores that are functions and operators -------------------------------------------------------------------------


def test_a_function_gets_the_gold_answer_as_it_is_and_fails_in_its_rows_alone(llm):
    seen = []

    def score(question, answer, gold):
        seen.append((question, answer, gold))
        return {"half": 0.5, "nan": math.nan}[gold["is"]]

    rows = [("a", {"is": "half"}), ("bad", {"is": "half"}), ("b", {"is": "?"}), ("c", {"is": "nan"})]
    result = ember.evaluate(llm, rows, score)
    assert seen == [("a", "A", {"is": "half"}), ("b", "B", {"is": "?"}), ("c", "C", {"is": "nan"})]
    np.testing.assert_array_equal(result.scores, [0.5, np.nan, np.nan, np.nan])
    assert result.answers == ["A", None, "B", "C"]
    assert result.causes[2] == "KeyError: '?' (raised by the score score)"
    assert result.causes[3] == "ValueError: the score is not a number"


def test_an_operator_scores_in_the_same_sweep_and_is_paid_apart(llm, model):
    @ember.operator
    def judge(question: ember.Text, answer: ember.Text, gold: ember.Text, key: ember.Key) -> jax.Array:
        verdict = llm(ember.format("{q} {a} {g}", q=question, a=answer, g=gold), key)
        return (answer == gold) & (verdict != "")

    rows = [("a", "A"), ("b", "x"), ("bad", "BAD"), ("c", "is bad"), ("d", "D")]
    with ember.session(journal=None, providers={"mine": Callable(model)}) as run:
        result = ember.evaluate(llm, rows, judge)
        assert run.report().islands == 1
    np.testing.assert_array_equal(result.scores, [1, 0, np.nan, np.nan, 1])
    assert result.answers == ["A", "B", None, "C", "D"]
    np.testing.assert_array_equal(result.costs, [0.125, 0.125, 0, 0.125, 0.125])
    np.testing.assert_array_equal(result.score_costs, [0.125, 0.125, 0, 0, 0.125])
    assert (result.cost, result.score_cost) == (0.5, 0.375)
    assert "$0.375" in dict(line.split("  ", 1) for line in str(result).splitlines())["score's cost"]
    assert model.asked["a A A"] == 1


def test_a_list_of_gold_answers_is_a_text_of_an_operator(llm):
    @ember.operator
    def among(answer: ember.Text, gold: ember.Text["n"]) -> jax.Array:
        return jnp.mean((answer == gold).astype(jnp.float32))

    result = ember.evaluate(llm, [("a", ["A", "b"]), ("b", ["A", "b"])], among)
    np.testing.assert_array_equal(result.scores, [0.5, 0])


# -- keys, and what is paid ------------------------------------------------------------------------------------------


def test_a_rows_key_stays_with_its_question(llm, model):
    key = jax.random.key(5)
    op = lambda question, key: llm(ember.format("{q} {draw:.5f}", q=question, draw=jax.random.uniform(key)))
    first = ember.evaluate(op, [(f"q{i}", "") for i in range(6)], "exact", key=key)
    assert first.answers[2] == f"Q2 {jax.random.uniform(ember.fold_in(key, 'q2')):.5f}"
    before = sum(model.asked.values())
    again = ember.evaluate(op, [("new", ""), ("q4", ""), ("q2", "")], "exact", key=key)
    assert again.answers[1:] == [first.answers[4], first.answers[2]]
    assert sum(model.asked.values()) - before == 3  # this session keeps no answers
    assert model.asked[first.answers[4].lower()] == 2


def test_without_a_key_a_question_is_asked_without_one():
    samples = []

    def answers(request: Request):
        samples.append(request.sample)
        return "x"

    def keyed(question: ember.Text, key: ember.Key) -> ember.Text:
        return ember.LLM("mine/m")(question, key)

    with ember.session(journal=None, providers={"mine": Callable(answers)}):
        ember.evaluate(ember.LLM("mine/m"), [("a", "x")])
        ember.evaluate(ember.operator(keyed), [("a", "x")])
        ember.evaluate(ember.operator(keyed), [("a", "x")], key=jax.random.key(0))
    assert samples[0] is None
    assert samples[1] == samples[2] is not None


def test_a_second_run_is_answered_by_the_journal_and_more_rows_pay_for_themselves(tmp_path):
    rows = [(f"What is {i} + 1?", str(i + 1)) for i in range(8)]
    made = []
    with ChatServer() as server:
        for count in (5, 5, 8):
            local = {"local": OpenAI(base_url=server.base_url, api_key="")}
            with ember.session(
                journal=tmp_path / "run.db", providers=local, prices={"local": ember.Price(1, 1)}
            ) as run:
                op = ember.LLM("local/m", temperature=1.0)
                result = ember.evaluate(op, rows[:count], "number", key=jax.random.key(1))
            made.append((len(server.requests), result.answers, result.cost))
            # What was there before took no time.
            assert np.isnan(result.seconds).sum() == run.report().replayed
    assert [requests for requests, _, _ in made] == [5, 5, 8]
    assert made[0][1:] == made[1][1:]
    assert result.answers[:5] == made[0][1]


def test_after_a_spent_budget_the_rest_is_paid(tmp_path):
    answers = Shouting()
    rows = [(f"q{i}", f"Q{i}") for i in range(6)]
    price = ember.Price(0, 62_500)  # two tokens are an eighth of a dollar
    evaluate = lambda: ember.evaluate(ember.LLM("mine/m", max_tokens=2), rows, "exact")
    open_session = lambda budget: ember.session(
        journal=tmp_path / "run.db",
        providers={"mine": Callable(answers)},
        prices={"mine": price},
        budget_usd=budget,
        limits={"mine": ember.Limit(in_flight=1)},
    )
    with pytest.raises(ember.errors.SweepError, match="budget"), open_session(0.5):
        evaluate()
    assert sum(answers.asked.values()) == 4
    with open_session(0.25):
        result = evaluate()
    assert sum(answers.asked.values()) == 6
    assert (result.accuracy, result.failed, result.cost) == (1, 0, 0.75)


def test_a_second_evaluation_traces_nothing(llm):
    Asks, traced = asking()
    ember.evaluate(Asks(ember.LLM("mine/a")), [("a", "A"), ("b", "B")])
    once = len(traced)
    ember.evaluate(Asks(ember.LLM("mine/b")), [("c", "C"), ("d", "D")], "exact")
    assert len(traced) == once


# -- latency ---------------------------------------------------------------------------------------------------------


def ended(lane, scope, began, until, digest=b"", how="answered"):
    return CallEnded(digest, Request("p", "m", ()), lane, scope, how, began, until, None, None, (), 1)


def test_latency_is_from_the_first_call_to_the_last_answer():
    with ember.session(journal=None) as run, Spans(run, "e/m") as spans:
        for call in [
            ended((0,), "e/m/op", 1.0, 3.0),
            ended((0, 2), "e/m/op/Vote", 2.0, 7.5),
            ended((0,), "e/m/op score", 7.5, 99.0),
            ended((0,), "other", 0.0, 99.0),
            ended((), "e/m/op", 0.0, 99.0),
            ended((1,), "e/m/op", 4.0, 5.0, b"x"),
            ended((1,), "e/m/op", 5.0, 5.0, b"x", "replayed"),
            ended((2,), "e/m/op", 4.0, 5.0, b"y"),
            ended((2,), "e/m/op", 5.0, 5.0, b"x", "replayed"),
            ended((4,), "e/m/op", 5.0, 6.0, b"z", "failed"),
        ]:
            for watch in run.watchers[-1:]:
                watch(call)
    np.testing.assert_array_equal(spans.seconds("op", 5), [6.5, 1.0, np.nan, np.nan, 1.0])
    assert spans.saw not in run.watchers


def test_the_seconds_of_a_row_are_those_of_its_chain():
    async def slow(request):
        await asyncio.sleep(0.02)
        return request.messages[-1].content

    with ember.session(journal=None, providers={"mine": Callable(slow)}):
        llm = ember.LLM("mine/m")
        result = ember.evaluate(lambda question: llm(llm(question) + "!"), [("a", "a!"), ("b", "b!")], "exact")
    assert (result.seconds >= 0.04).all()  # not less than two sleeps; how much more is the machine's affair
    assert "latency" in str(result)


# -- size, and pictures ----------------------------------------------------------------------------------------------


def test_ten_thousand_rows():
    data = {"question": [str(i) for i in range(10_000)], "gold": [str(i if i % 10 else -1) for i in range(10_000)]}
    result = ember.evaluate(lambda question: ember.format("it is {q}", q=question), data, "number")
    assert result.accuracy == 0.9
    assert len(result.to_pandas()) == 10_000


def test_a_picture_is_drawn_in_axes_or_written(llm, tmp_path):
    rows = [("a", "A"), ("b", "x"), ("bad", "x"), ("d", "D")]
    binary = ember.evaluate(llm, rows, "exact")
    ax = binary.plot()
    assert [bar.get_height() for bar in ax.patches] == [2, 1, 1]
    matplotlib.pyplot.close(ax.figure)
    graded = ember.evaluate(llm, rows, lambda answer, gold: 0.25)
    figure, own = matplotlib.pyplot.subplots()
    assert graded.plot(own) is own
    assert sum(bar.get_height() for bar in own.patches) == 3
    matplotlib.pyplot.close(figure)
    before = matplotlib.pyplot.get_fignums()
    for path in (tmp_path / "a.png", str(tmp_path / "b.png")):
        binary.plot(path)
        with open(path, "rb") as file:
            assert file.read(len(PNG)) == PNG
    assert matplotlib.pyplot.get_fignums() == before


def test_without_matplotlib_a_picture_says_what_to_install(llm, monkeypatch):
    result = ember.evaluate(llm, [("a", "A")])
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'result.plot\(\) needs matplotlib: `pip install "ember_jax\[plot\]"'):
        result.plot()


def test_nothing_is_imported_to_know_data_by():
    assert "datasets" not in sys.modules
    assert datasets.columns_of([("a", "b")]) == {"question": ["a"], "gold": ["b"]}


# -- faults that can be known before ---------------------------------------------------------------------------------


class Review(NamedTuple):
    verdict: ember.Text
    stars: Array


def gives_a_tuple(question: ember.Text) -> Review:
    return Review(ember.LLM("sim/small")(question), jnp.zeros(()))


def gives_several(question: ember.Text) -> ember.Text:
    return ember.stack([ember.LLM("sim/small")(question)] * 2)


@pytest.mark.parametrize(("op", "told"), [(gives_a_tuple, "a Review"), (gives_several, "a Text of rank 1")])
def test_a_result_that_no_named_score_takes_is_told_before_anything_is_paid(op, told):
    with ember.session() as run:
        with pytest.raises(TypeError, match=f"{op.__name__} gives {told}, and the score 'exact'"):
            ember.evaluate(op, [("What is 1 + 1?", "2")] * 3, "exact")
        assert run.report().requests == 0
        ember.evaluate(op, [("What is 1 + 1?", "2")], lambda answer, gold: 1.0)


def test_causes_that_differ_in_what_they_quote_are_one():
    def right(answer, gold):
        raise ValueError(f"no number in {answer!r}")

    result = ember.evaluate(ember.LLM("sim/small"), [(f"What is {i} + 1?", "2") for i in range(9)], right)
    (cause,) = result.failures()
    assert result.failures()[cause] == list(range(9)) and cause == result.causes[0]
