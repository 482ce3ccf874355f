"""`LLM.structured`: classes as JSON schemas, answers as arrays, and the call as a JAX program."""

import contextlib
import dataclasses
import enum
import json
import math
import time
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Bool, Float, Float16, Int, Integer, Num, Shaped

import ember_jax as ember
from ember_jax._runtime.loop import get_loop
from ember_jax.errors import (
    AnnotationError,
    CutAnswerWarning,
    LooseAnswerWarning,
    MalformedResponseError,
    ProviderError,
    RefusedRequestError,
    RepeatedSampleWarning,
    ServerError,
    SweepError,
    TextError,
)
from ember_jax.providers.base import Message, Request
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.providers.sim import reply
from ember_jax.testing import ChatServer, Fault, Sim, SimModel

N = 4000
SIM = Sim({"good": SimModel(accuracy=0.9, latency=0.0), "poor": SimModel(accuracy=0.4, latency=0.0)})
JITS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit}


class Step(NamedTuple):
    """One step.

    Attributes:
        why (str): the reason,
            in words.
        weight: how much it counts
    """

    why: str
    weight: Float[Array, ""]


class Review(eqx.Module):
    """A film review,
    read closely.

    **Fields:**

    - `stars`, `votes`: whole numbers.
    - `mood`: how it sounds.
    """

    stars: int
    votes: Int[Array, "2"]
    mood: Literal["glad", "angry"]
    level: Literal[1, 2, 3]
    score: float
    sure: bool
    title: ember.Text
    topics: ember.Text["2"]
    grid: Float[Array, "1 2"]
    flags: Bool[Array, "2"]
    step: Step


@dataclasses.dataclass
class Plain:
    answer: float
    ok: bool


class Number(NamedTuple):
    answer: float


SCHEMA = {
    "type": "object",
    "description": "A film review, read closely.",
    "properties": {
        "stars": {"type": "integer", "description": "whole numbers."},
        "votes": {
            "type": "array",
            "items": {"type": "integer"},
            "minItems": 2,
            "maxItems": 2,
            "description": "whole numbers.",
        },
        "mood": {"type": "string", "enum": ["glad", "angry"], "description": "how it sounds."},
        "level": {"type": "integer", "enum": [1, 2, 3]},
        "score": {"type": "number"},
        "sure": {"type": "boolean"},
        "title": {"type": "string"},
        "topics": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
        "grid": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
            "minItems": 1,
            "maxItems": 1,
        },
        "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        "step": {
            "type": "object",
            "description": "One step.",
            "properties": {
                "why": {"type": "string", "description": "the reason, in words."},
                "weight": {"type": "number", "description": "how much it counts"},
            },
            "required": ["why", "weight"],
            "additionalProperties": False,
        },
    },
    "required": ["stars", "votes", "mood", "level", "score", "sure", "title", "topics", "grid", "flags", "step"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "Review", "schema": SCHEMA, "strict": True}}
ANSWER = {
    "stars": 4,
    "votes": [-1, 2],
    "mood": "angry",
    "level": 3,
    "score": 0.1,
    "sure": True,
    "title": 'Ümläute \u2028 "q" {x}',
    "topics": ["", "a\nb"],
    "grid": [[1, 2.5]],
    "flags": [False, True],
    "step": {"why": "so", "weight": -1e-3},
}


class Scripted:
    """A model that answers by a function of the request, and what it was asked."""

    def __init__(self, fn):
        self.requests = []
        self._fn = fn

    def __call__(self, request):
        self.requests.append(request)
        return self._fn(request)


def scripted(fn):
    model = Scripted(fn)
    return model, ember.session(providers={"mine": Callable(model), "sim": SIM})


def answered(answer, schema=Review):
    """What `schema` makes of an answer, JSON or words."""
    words = answer if isinstance(answer, str) else json.dumps(answer)
    _, session = scripted(lambda request: words)
    with session:
        return ember.LLM("mine/m").structured("PROMPT", schema)


@pytest.fixture
def sim():
    with ember.session(providers={"sim": SIM}) as run:
        yield run


def assert_rate(hits, probability):
    hits = np.asarray(hits)
    assert abs(hits.mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / hits.size)


def assert_is_the_answer(review, lanes=()):
    def full(value):
        return np.broadcast_to(np.asarray(value), (*lanes, *np.shape(value)))

    assert isinstance(review, Review) and isinstance(review.step, Step)
    for value, dtype, expected in (
        (review.stars, np.int32, 4),
        (review.votes, np.int32, [-1, 2]),
        (review.level, np.int32, 3),
        (review.score, np.float32, np.float32(0.1)),
        (review.sure, np.bool_, True),
        (review.grid, np.float32, [[1, 2.5]]),
        (review.flags, np.bool_, [False, True]),
        (review.step.weight, np.float32, np.float32(-1e-3)),
    ):
        assert isinstance(value, jax.Array) and value.dtype == dtype
        np.testing.assert_array_equal(value, full(expected))
    for value, expected in (
        (review.mood, "angry"),
        (review.title, ANSWER["title"]),
        (review.topics, ["", "a\nb"]),
        (review.step.why, "so"),
    ):
        np.testing.assert_array_equal(np.asarray(value), full(np.asarray(expected, object)))


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_the_schema_over_http_is_the_one_written_by_hand():
    completion = {"choices": [{"message": {"content": json.dumps(ANSWER)}}]}
    with ChatServer(faults=[Fault(body=json.dumps(completion))]) as server:
        provider = OpenAI(server.base_url, api_key="")
        with ember.session(providers={"local": provider}):
            llm = ember.LLM("local/m", system="Be brief.", temperature=0.5)
            assert_is_the_answer(llm.structured("Read this.", Review))
        get_loop().submit(provider.close()).result()
        (sent,) = server.requests
    assert sent.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Read this."}],
        "temperature": 0.5,
        "response_format": FORMAT,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Terse:
    x: int
    y: Float[Array, "2"]
    derived: int = dataclasses.field(default=0, init=False)


class Üñusual(NamedTuple):
    """Words of it.

    x: not a bullet, but a description
    other: a word that is no field
    """

    x: int = 3


FIELDS = 'Reply with one JSON object that fits this JSON schema, and with nothing else:\n{"type": "object"'
REFUSALS = {"none": [], "schemas": ["json_schema"], "formats": ["json_schema", "json_object"]}


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("refused", REFUSALS)
def test_a_service_that_refuses_a_form_is_asked_in_the_next_and_remembered(tmp_path, status, refused):
    forms = REFUSALS[refused]
    # A server that blames itself is asked twice in each form. The second call begins with the form that was answered.
    requests = 2 + len(forms) * (2 if status == 500 else 1)

    def fault(number):
        form = server.requests[number].body.get("response_format", {"type": None})["type"]
        return Fault(status=status, body=f'{{"error": {{"message": "no {form}"}}}}') if form in forms else None

    with ChatServer(SimModel(accuracy=1.0), faults=fault) as server:
        for sent in (requests, 0):
            provider = OpenAI(server.base_url, api_key="")
            retry = ember.Retry(attempts=2, first=0)
            with ember.session(providers={"local": provider}, retry=retry, journal=tmp_path / "run.db") as run:
                llm = ember.LLM("local/m")
                answers = [llm.structured(prompt, Number) for prompt in ("What is 1 + 2?", "What is 3 + 4?")]
            assert [float(answer.answer) for answer in answers] == [3, 7]
            report = run.report()
            assert (report.requests, report.replayed) == (sent, 0 if sent else 2)
            assert report.output_tokens == (server.output_tokens if sent else 0)
        asked = [request.body for request in server.requests]
    kinds = [body.get("response_format", {"type": None})["type"] for body in asked]
    assert len(kinds) == requests and kinds[-2:] == [["json_schema", "json_object", None][len(forms)]] * 2
    for body, kind in zip(asked, kinds, strict=True):
        assert (FIELDS in body["messages"][-1]["content"]) == (kind != "json_schema")
    for call in ember.Journal(tmp_path / "run.db").calls():
        assert call.parameters["response_format"]["type"] == "json_schema" and FIELDS not in call.messages[-1].content


@pytest.mark.parametrize(
    ("status", "words", "requests"),
    [
        (400, lambda i: f"too long {i}", 3),
        (401, lambda i: f"no {i}", 1),
        (404, lambda i: f"no {i}", 1),
        (500, lambda i: f"weak {i}", 2),
        (503, lambda i: "busy", 2),
    ],
)
def test_what_is_refused_in_every_form_is_told_as_of_the_first(status, words, requests):
    fault = lambda i: Fault(status=status, body=json.dumps({"error": {"message": words(i)}}))
    with ChatServer(faults=fault) as server:
        provider = OpenAI(server.base_url, api_key="")
        retry = ember.Retry(attempts=2, first=0)
        with ember.session(providers={"local": provider}, retry=retry, journal=None) as run:
            first = words(0 if status < 500 else 1)
            with pytest.raises(ProviderError, match=first):
                ember.LLM("local/m").structured("1 + 1", Number)
        assert (len(server.requests), run.report().failed) == (requests, requests)


def test_a_form_that_was_answered_is_not_at_fault_for_what_comes_later():
    faults = [
        None,
        Fault(status=500, body="cut"),
        Fault(status=500, body="cut"),
        Fault(status=400, body="no"),
        None,
        None,
    ]
    with ChatServer(faults=faults) as server:
        provider = OpenAI(server.base_url, api_key="")
        retry = ember.Retry(attempts=2, first=0)
        with ember.session(providers={"local": provider}, retry=retry, journal=None):
            llm = ember.LLM("local/m")
            llm.structured("1 + 1", Number)
            with pytest.raises(ServerError, match="cut"):
                llm.structured("1 + 2", Number)
            llm.structured("1 + 3", Number)
            llm.structured("1 + 4", Number)
        kinds = [request.body["response_format"]["type"] for request in server.requests]
    assert kinds == ["json_schema"] * 4 + ["json_object", "json_schema"]


def test_a_service_may_refuse_one_schema_and_take_another():
    def answers(request):
        if request.parameters.get("response_format", {}).get("json_schema", {}).get("name") == "Plain":
            raise RefusedRequestError("no", status=400)
        return '{"answer": 1, "ok": true}'

    model, session = scripted(answers)
    with session, pytest.warns(LooseAnswerWarning):
        for prompt in ("a", "b"):
            for schema in (Plain, Number):
                ember.LLM("mine/m").structured(prompt, schema)
    kinds = [request.parameters["response_format"]["type"] for request in model.requests]
    assert kinds == ["json_schema", "json_object", "json_schema", "json_object", "json_schema"]


def test_a_service_that_refuses_schemas_may_still_give_log_probabilities():
    def answers(request):
        if "response_format" in request.parameters:
            raise RefusedRequestError("no", status=400)
        return "B" if "logprobs" in request.parameters else '{"answer": 1}'

    model, session = scripted(answers)
    with session:
        llm = ember.LLM("mine/m")
        for prompt in ("a", "b"):
            llm.structured(prompt, Number)
            llm.choose(prompt, ["yes", "no"])
    sent = [sorted(r.parameters) for r in model.requests]
    logprobs = ["logprobs", "top_logprobs"]
    assert sent == [["response_format"], ["response_format"], [], logprobs, [], logprobs]


@pytest.mark.parametrize(
    ("schema", "name", "expected"),
    [
        (
            Terse,
            "Terse",
            {
                "type": "object",
                "properties": {
                    "x": {"type": "integer"},
                    "y": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                },
                "required": ["x", "y"],
                "additionalProperties": False,
            },
        ),
        (
            Üñusual,
            "__usual",
            {
                "type": "object",
                "description": "Words of it.",
                "properties": {"x": {"type": "integer", "description": "not a bullet, but a description"}},
                "required": ["x"],
                "additionalProperties": False,
            },
        ),
    ],
)
def test_schemas_of_other_classes_are_those_written_by_hand(schema, name, expected):
    model, session = scripted(lambda request: '{"x": 1, "y": [1, 2]}' if schema is Terse else '{"x": 1}')
    with session:
        assert int(ember.LLM("mine/m").structured("a", schema).x) == 1
    assert model.requests[0].parameters["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": name, "schema": expected, "strict": True},
    }


# -- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "\n {} \n",
        "```json\n{}\n```",
        "```\n{}\n```",
        "```JSON  \n{}\n```\n",
        "Here it is:\n\n```json\n{}\n```\nI hope that helps.",
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_answer_may_stand_in_one_fence(form, indent):
    assert_is_the_answer(answered(form.replace("{}", json.dumps(ANSWER, indent=indent))))


def test_fields_may_come_in_any_order_and_fences_inside_words_are_words():
    words = "```json\n{}\n```"
    answer = {**dict(reversed(ANSWER.items())), "title": words}
    assert str(answered(answer).title) == words
    assert str(answered(f"```json\n{json.dumps(answer)}\n```").title) == words


def changed(**fields):
    return {**ANSWER, **fields}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "it is not JSON: Expecting value"),
        ("SECRET", "it is not JSON"),
        (json.dumps(ANSWER)[:-9], r"it is not JSON: .*max_tokens"),
        (json.dumps(ANSWER)[:-9] + " SECRET", "it is not JSON"),
        (f"{json.dumps(ANSWER)} SECRET {json.dumps(changed(stars=5))}", "it is not JSON: 2 objects in it fit"),
        (f"<think>SECRET {json.dumps(ANSWER)}", "ends within the model's thoughts .*max_tokens"),
        (f"SECRET {json.dumps(changed(stars='4'))}", "the field `stars` is a string, not an integer"),
        (f'{{"SECRET": {json.dumps(ANSWER)}, "cut', "it is not JSON: .*max_tokens"),
        (f'{{"SECRET": {json.dumps(ANSWER)}, oops}}', "it is not JSON"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("SECRET " + '{"a":' * 100_000, "nested too deeply"),
        (f"```\n{json.dumps(ANSWER)}\n```\n```\n{json.dumps(ANSWER)}\n```", "it is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"stars": ' + "9" * 5000 + "}", "it is not JSON: Exceeds the limit"),
        ("[1]", "the answer is a list of 1, not an object"),
        ("null", "the answer is null, not an object"),
        ('"SECRET"', "the answer is a string, not an object"),
        ({k: v for k, v in ANSWER.items() if k != "mood"}, "the field `mood` is missing"),
        ('{"stars": 1, "stars": 2}', "a field stands in it twice"),
        (changed(stars="4"), "the field `stars` is a string, not an integer"),
        (changed(stars=4.5), "the field `stars` is a number, not an integer"),
        (changed(stars=True), "the field `stars` is true or false, not an integer"),
        (changed(stars=None), "the field `stars` is null, not an integer"),
        (changed(stars=2**31), "the field `stars` is beyond the numbers of int32"),
        (changed(stars=-(2**31) - 1), "the field `stars` is beyond"),
        (changed(score="SECRET"), "the field `score` is a string, not a number"),
        (changed(score=False), "the field `score` is true or false, not a number"),
        (changed(score=1e39), "the field `score` is beyond the numbers of float32"),
        (changed(score=10**400), "the field `score` is beyond"),
        (json.dumps(changed(score=0)).replace('"score": 0', '"score": 1e999'), "the field `score` is beyond"),
        (json.dumps(changed(score=math.nan)), "NaN is no JSON number"),
        (json.dumps(changed(score=-math.inf)), "-Infinity is no JSON number"),
        (changed(sure=1), "the field `sure` is a number, not true or false"),
        (changed(sure="yes"), "the field `sure` is a string"),
        (changed(mood="SECRET"), 'the field `mood` is none of "glad", "angry"'),
        (changed(mood=1), "the field `mood` is a number, not a string"),
        (changed(level=4), "the field `level` is none of 1, 2, 3"),
        (changed(level="1"), "the field `level` is a string, not an integer"),
        (changed(title=["SECRET"]), "the field `title` is a list of 1, not a string"),
        (changed(topics=["a"]), "the field `topics` is a list of 1, not a list of 2"),
        (changed(topics="ab"), "the field `topics` is a string, not a list of 2"),
        (changed(topics=["a", 2]), r"the field `topics\[1\]` is a number, not a string"),
        (changed(votes=[1, 2, 3]), "the field `votes` is a list of 3, not a list of 2"),
        (changed(votes=[1, None]), r"the field `votes\[1\]` is null"),
        (changed(grid=[1, 2]), "the field `grid` is a list of 2, not a list of 1"),
        (changed(grid=[[1, [2]]]), r"the field `grid\[0\]\[1\]` is a list of 1, not a number"),
        (changed(step=[]), "the field `step` is a list of 0, not an object"),
        (changed(step={"why": "SECRET"}), "the field `step.weight` is missing"),
        (changed(step={"why": 1, "weight": 2}), "the field `step.why` is a number, not a string"),
    ],
)
def test_a_wrong_answer_names_the_field_and_quotes_nothing(answer, words):
    with pytest.raises(MalformedResponseError, match=f"mine/m: the answer is no Review: .*{words}") as caught:
        answered(answer)
    assert "SECRET" not in str(caught.value) and "PROMPT" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("answer", "passed_over"),
    [
        ("<think>\nPerhaps {}? No.\n</think>\n\n{}", "words around its JSON"),
        ("I thought. </think>{}", "words around its JSON"),
        ("<THINKING>{}</THINKING>\n```json\n{}\n```", "words around its JSON"),
        ("<think>```\n{}\n```</think>{}", "words around its JSON"),
        ("Let me see {what I can do}: {}", "words around its JSON"),
        ('Of {"stars": 1} and {"like": "it"}:\n{}\nI hope that helps {you}.', "words around its JSON"),
        ('It fits {"type": "object"}, see: {} {"', "words around its JSON"),
        ("\ufeff{}", "words around its JSON"),
    ],
)
def test_an_answer_may_stand_among_other_words(answer, passed_over):
    *_, last = answer.rpartition("{}")
    words = answer[: -len(last) - 2].replace("{}", json.dumps(changed(stars=9))) + json.dumps(ANSWER) + last
    with pytest.warns(LooseAnswerWarning, match=f"^mine/m answers loosely; passed over: {passed_over}.$"):
        assert_is_the_answer(answered(words))


def test_what_is_too_much_is_passed_over_and_said_once_of_each_model():
    step = {"why": "so", "weight": -1e-3, "note": 2}
    odd = changed(more=[1], other=2, step=step)
    _, session = scripted(lambda request: json.dumps(odd))
    with session, pytest.warns(LooseAnswerWarning) as told:
        for prompt in ("a", "b"):
            assert_is_the_answer(ember.LLM("mine/m").structured(prompt, Review))
        ember.LLM("mine/n").structured("a", Review)
    more = "passed over: 1 more field than the schema has, 2 more fields than the schema has."
    assert [str(w.message) for w in told] == [f"mine/{m} answers loosely; {more}" for m in "mn"]


def test_half_of_a_surrogate_pair_is_read_as_what_stands_for_it():
    with pytest.warns(LooseAnswerWarning, match="half of a surrogate pair"):
        review = answered(changed(title="a\ud800b \ud83d\ude00", topics=["\udc00", "c"]))
    assert str(review.title) == "a\ufffdb \U0001f600" and review.topics.tolist() == ["\ufffd", "c"]


def test_reading_takes_a_bounded_time():
    began = time.process_time()
    for words in (
        "{" * 200_000,
        '{"a": 1} ' * 50_000,
        '{"' * 100_000,
        '{"a": {' * 100,
        "{'a': 1}" * 50_000,
        '{"a" ' * 50_000,
    ):
        with pytest.raises(MalformedResponseError):
            answered(words)
    assert time.process_time() - began < 10


def test_numbers_at_the_bounds_fit():
    largest = float(np.finfo(np.float32).max)
    review = answered(changed(stars=2**31 - 1, votes=[-(2**31), 4.0], score=largest, grid=[[-largest, 10**30]]))
    assert int(review.stars) == 2**31 - 1 and review.votes.tolist() == [-(2**31), 4]
    np.testing.assert_array_equal(review.score, np.float32(largest))
    np.testing.assert_array_equal(review.grid, np.array([[-largest, 1e30]], np.float32))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)  # XLA may flush those
words = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.integers(-(2**31), 2**31 - 1), finite, st.booleans(), words, st.lists(finite, min_size=2, max_size=2))
def test_any_values_come_back_as_they_were_sent(stars, score, sure, title, row):
    fields = changed(stars=stars, score=score, sure=sure, title=title, topics=[title, "x"], grid=[row])
    review = answered(fields)
    assert int(review.stars) == stars and float(review.score) == score and bool(review.sure) == sure
    assert str(review.title) == title and review.topics.tolist() == [title, "x"]
    np.testing.assert_array_equal(review.grid, np.array([row], np.float32))


# -- which classes ---------------------------------------------------------------------------------------------------


class Odd(enum.Enum):
    ONE = 1
    TWO = "2"


class Empty(enum.Enum):
    pass


class Itself(NamedTuple):
    again: "Itself"


class Nothing(eqx.Module):
    pass


class Unresolved(NamedTuple):
    x: "NoSuchName"


class Static(eqx.Module):
    x: int
    how: str = eqx.field(static=True)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | str, "one type, or of one and None"),
        (int | str | None, "one type, or of one and None"),
        (list, r"list.*Text\[\"3\"\].*list\[str\].*at_most"),
        (list[bytes], "list"),
        (list[int | str], "list"),
        (Annotated[int, ember.at_most(3)], "at_most"),
        (Odd, "Odd"),
        (Empty, "Empty"),
        (dict, "dict"),
        (tuple[int, int], "Int\\[Array"),
        (Any, "Any"),
        (bytes, "bytes"),
        (complex, "complex"),
        (jax.Array, "Array"),
        (np.ndarray, "ndarray"),
        (ember.Text["n"], "with its sizes as numbers"),
        (ember.Text["0"], "with its sizes as numbers"),
        (Float[Array, "n 2"], "with its sizes as numbers"),
        (Float[Array, "..."], "with its sizes as numbers"),
        (Float16[Array, "2"], r'Float16\[Array, "2"\]'),
        (Shaped[Array, "2"], r'Shaped\[Array, "2"\]'),
        (Literal["a", 1], "Literal"),
        (Literal[True, False], "Literal"),
        (Literal[None], "Literal"),
    ],
)
def test_fields_that_no_answer_can_be_are_refused_by_name(sim, hint, words):
    schema = dataclasses.make_dataclass("Schema", [("fine", int), ("odd", hint)])
    with pytest.raises(AnnotationError, match=f"the field `odd` of Schema is annotated .*{words}"):
        ember.LLM("sim/good").structured("1 + 1", schema)
    assert sim.report().calls == 0


class NotOne:
    x: int


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (dict, "a NamedTuple, a dataclass, an eqx.Module class or a pydantic model"),
        (int, "pydantic model; got"),
        (NotOne, "pydantic model; got"),
        ({"type": "object"}, "pydantic model; got"),
        (list[int], "pydantic model; got"),
        (Number(1.0), "pydantic model; got"),
        (None, "pydantic model; got"),
        (ember.Maybe, "pydantic model; got"),
        (Nothing, "Nothing has no fields"),
        (Itself, "Itself holds itself"),
        (Unresolved, "NoSuchName.*cannot be found"),
        (Static, "`how` of Static is static"),
    ],
)
def test_what_is_no_schema_is_told(sim, schema, words):
    with pytest.raises(AnnotationError, match=words):
        ember.LLM("sim/good").structured("1 + 1", schema)
    assert sim.report().calls == 0


def test_general_array_annotations_take_the_dtypes_in_which_answers_come(sim):
    schema = dataclasses.make_dataclass("Schema", [("a", Num[Array, "1"]), ("b", Integer[Array, ""])])
    value = jax.vmap(lambda q: ember.LLM("sim/good").structured(q, schema))(ember.text(["3 + 4"]))
    assert value.a.dtype == jnp.float32 and value.b.dtype == jnp.int32


def test_a_dataclass_becomes_a_pytree_and_a_registered_one_stays_as_it_is(sim):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Mine:
        answer: float

    for schema in (Plain, Mine):
        value = jax.jit(jax.vmap(lambda q: ember.LLM("sim/good").structured(q, schema)))(ember.text(["3 + 4", "1 + 1"]))
        assert type(value) is schema and value.answer.shape == (2,)
        assert jax.tree.structure(value) == jax.tree.structure(schema(*jax.tree.leaves(value)))


def test_a_response_format_of_ones_own_is_told(sim):
    llm = ember.LLM("sim/good", response_format={"type": "text"})
    with pytest.raises(TypeError, match=r"llm\.replace\(response_format=None\)"):
        llm.structured("1 + 1", Number)
    assert llm.replace(response_format=None).structured("1 + 1", Number).answer.shape == ()


# -- what may be absent, and lists of any length ---------------------------------------------------------------------


class Mood(enum.StrEnum):
    GLAD = "glad"
    ANGRY = "angry"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 7


class Author(eqx.Module):
    """Who wrote it."""

    name: str
    age: int | None


class Film(eqx.Module):
    """A film.

    - `rating`: out of ten, if one is given.
    - `topics`: what it is about.
    """

    title: str
    rating: float | None
    topics: Annotated[list[str], ember.at_most(3)]
    years: list[int]
    authors: Annotated[list[Author], ember.at_most(2)]
    lead: Author | None
    mood: Mood
    level: Level | None
    sequel: Literal["yes", "no", None]
    sizes: Annotated[list[Float[Array, "2"]], ember.at_most(2)] | None
    grid: Annotated[list[Annotated[list[int | None], ember.at_most(2)]], ember.at_most(2)]


AUTHOR = {
    "type": "object",
    "description": "Who wrote it.",
    "properties": {"name": {"type": "string"}, "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
NULL = {"type": "null"}
FILM = {
    "type": "object",
    "description": "A film.",
    "properties": {
        "title": {"type": "string"},
        "rating": {"anyOf": [{"type": "number"}, NULL], "description": "out of ten, if one is given."},
        "topics": {"type": "array", "items": {"type": "string"}, "maxItems": 3, "description": "what it is about."},
        "years": {"type": "array", "items": {"type": "integer"}, "maxItems": 16},
        "authors": {"type": "array", "items": AUTHOR, "maxItems": 2},
        "lead": {"anyOf": [AUTHOR, NULL]},
        "mood": {"type": "string", "enum": ["glad", "angry"]},
        "level": {"anyOf": [{"type": "integer", "enum": [1, 7]}, NULL]},
        "sequel": {"anyOf": [{"type": "string", "enum": ["yes", "no"]}, NULL]},
        "sizes": {"anyOf": [{"type": "array", "items": PAIR, "maxItems": 2}, NULL]},
        "grid": {
            "type": "array",
            "items": {"type": "array", "items": {"anyOf": [{"type": "integer"}, NULL]}, "maxItems": 2},
            "maxItems": 2,
        },
    },
    "required": [
        "title",
        "rating",
        "topics",
        "years",
        "authors",
        "lead",
        "mood",
        "level",
        "sequel",
        "sizes",
        "grid",
    ],
    "additionalProperties": False,
}
FULL = {
    "title": "M",
    "rating": 8.5,
    "topics": ["crime", "fear"],
    "years": [1931],
    "authors": [{"name": "Fritz", "age": 40}, {"name": "Thea", "age": None}],
    "lead": {"name": "Peter", "age": 27},
    "mood": "angry",
    "level": 7,
    "sequel": "no",
    "sizes": [[1, 2]],
    "grid": [[1, None], [2]],
}
BARE = {
    "title": "",
    "rating": None,
    "topics": [],
    "years": [],
    "authors": [],
    "lead": None,
    "mood": "glad",
    "level": None,
    "sequel": None,
    "sizes": None,
    "grid": [],
}


def plain(film):
    """A film's fields as plain values."""
    return {
        name: value.tolist() if hasattr(value, "tolist") else jax.tree.map(np.ndarray.tolist, value)
        for name, value in vars(film).items()
    }


def as_json(value):
    """Plain values as JSON has them."""
    if isinstance(value, eqx.Module | dict):
        fields = value if isinstance(value, dict) else vars(value)
        return {name: as_json(inner) for name, inner in fields.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list) else value


def test_absent_fields_and_lists_are_asked_for_as_strict_schemas_have_them():
    model, session = scripted(lambda request: json.dumps(FULL))
    with session:
        ember.LLM("mine/m").structured("a", Film)
    form = model.requests[0].parameters["response_format"]["json_schema"]
    assert form == {"name": "Film", "schema": FILM, "strict": True}


def assert_is_strict(schema):
    """What OpenAI demands of a schema, wherever it stands."""
    if "anyOf" in schema:
        return [assert_is_strict(inner) for inner in schema["anyOf"]]
    if schema["type"] == "object":
        assert schema["additionalProperties"] is False and schema["required"] == [*schema["properties"]]
        return [assert_is_strict(inner) for inner in schema["properties"].values()]
    return assert_is_strict(schema["items"]) if schema["type"] == "array" else None


@pytest.mark.parametrize("answer", [FULL, BARE])
def test_absent_fields_and_lists_come_back_as_they_were_sent(answer):
    assert_is_strict(FILM)
    film = answered(answer, Film)
    assert as_json(plain(film)) == answer


def test_what_is_absent_has_a_mask_and_a_place_of_its_type():
    film = answered(FULL, Film)
    assert (film.rating.value.dtype, film.rating.is_there.dtype) == (jnp.float32, jnp.bool_)
    assert film.topics.length.dtype == jnp.int32 and film.topics.values.shape == (3,)
    assert film.topics.mask.tolist() == [True, True, False] and film.topics.values.tolist() == ["crime", "fear", ""]
    assert film.years.values.shape == (16,) and film.years.values.tolist() == [1931] + [0] * 15
    assert isinstance(film.lead.value, Author) and int(film.lead.value.age.value) == 27
    assert film.authors.values.name.tolist() == ["Fritz", "Thea"] and film.authors.values.age.value.tolist() == [40, 0]
    assert film.authors.tolist() == [Author("Fritz", 40), Author("Thea", None)]
    assert film.grid.values.length.tolist() == [2, 1] and film.grid.values.mask.tolist() == [[True] * 2, [True, False]]
    assert film.sizes.value.values.shape == (2, 2)
    bare = answered(BARE, Film)
    assert not bare.rating.is_there and float(bare.rating.value) == 0 and str(bare.lead.value.name) == ""
    assert Mood(answered(FULL, Film).mood.tolist()) is Mood.ANGRY


def test_an_optional_field_may_be_left_out_by_a_service_that_allows_it():
    film = answered({name: value for name, value in BARE.items() if value is not None}, Film)
    assert as_json(plain(film)) == BARE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"topics": ["a", "b", "c", "d"]}, "the field `topics` is a list of 4, not a list of at most 3"),
        ({"topics": None}, "the field `topics` is null, not a list of at most 3"),
        ({"topics": ["a", None]}, r"the field `topics\[1\]` is null"),
        ({"rating": "SECRET"}, "the field `rating` is a string, not a number"),
        ({"lead": {"name": 1, "age": 1}}, "the field `lead.name` is a number"),
        ({"lead": {"age": 1}}, "the field `lead.name` is missing"),
        ({"authors": [{"name": "a", "age": 1}, {"name": "b", "age": "SECRET"}]}, r"the field `authors\[1\].age`"),
        ({"mood": "SECRET"}, 'the field `mood` is none of "glad", "angry"'),
        ({"level": 2}, "the field `level` is none of 1, 7"),
        ({"sizes": [[1]]}, r"the field `sizes\[0\]` is a list of 1, not a list of 2"),
        ({"grid": [[1, "SECRET"]]}, r"the field `grid\[0\]\[1\]` is a string"),
    ],
)
def test_a_wrong_element_is_named(fields, words):
    with pytest.raises(MalformedResponseError, match=words) as caught:
        answered({**FULL, **fields}, Film)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("form", [*JITS, "operator"])
def test_absent_fields_and_lists_are_arrays_in_every_form_and_lane(form):
    def score(prompt: ember.Text) -> Float[Array, ""]:
        film = ember.LLM("mine/m").structured(prompt, Film)
        years = jnp.sum(jnp.where(film.years.mask, film.years.values, 0)).astype(jnp.float32)
        return jnp.where(film.rating.is_there, film.rating.value, -1) + years

    def ask(prompt):
        return ember.LLM("mine/m").structured(prompt, Film)

    _, session = scripted(lambda request: json.dumps(FULL if request.messages[0].content == "full" else BARE))
    prompts = ember.text([["full", "bare"], ["bare", "full"], ["full", "full"]])
    with session:
        jit = JITS.get(form, lambda f: f)
        films = jax.vmap(jax.vmap(jit(ask)))(prompts)
        scores = jax.vmap(jax.vmap(ember.operator(score) if form == "operator" else jit(score)))(prompts)
    np.testing.assert_array_equal(scores, [[1939.5, -1], [-1, 1939.5], [1939.5] * 2])
    assert films.rating.tolist() == [[8.5, None], [None, 8.5], [8.5, 8.5]]
    assert films.topics.tolist() == [[["crime", "fear"], []], [[], ["crime", "fear"]], [["crime", "fear"]] * 2]
    assert films.topics.mask.shape == (3, 2, 3)
    assert films.lead.tolist()[0] == [Author("Peter", 27), None]


def test_lists_and_absent_fields_may_be_annotated_as_what_they_come_as():
    class Typed(NamedTuple):
        age: ember.Maybe[int]
        names: Annotated[ember.Many[str], ember.at_most(2)]
        more: tuple[int, ...]

    typed = answered({"age": None, "names": ["a"], "more": [1, 2]}, Typed)
    assert (typed.age.tolist(), typed.names.tolist(), typed.more.tolist()) == (None, ["a"], [1, 2])
    assert typed.names.values.shape == (2,)


@pytest.mark.parametrize("most", [0, -1, 1.5, "3"])
def test_a_bound_is_a_whole_number(most):
    with pytest.raises(ValueError, match=rf"at_most\({most!r}\)"):
        ember.at_most(most)


def test_no_lanes_are_empty_lists():
    empty = ember.Maybe(jnp.zeros(0), jnp.zeros(0, bool))
    assert empty.tolist() == [] and ember.Many(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)).tolist() == []


def test_pydantic_models_are_schemas():
    pydantic = pytest.importorskip("pydantic")

    class Place(pydantic.BaseModel):
        city: str = pydantic.Field(description="its name", max_length=40)
        people: int | None = None

    class Trip(pydantic.BaseModel):
        """A trip."""

        places: list[Place] = pydantic.Field(max_length=2)
        days: Annotated[list[int], pydantic.Field(max_length=3)]
        first: Place

    answer = {
        "places": [{"city": "Rome", "people": 3}],
        "days": [1, 2],
        "first": {"city": "Bonn", "people": None},
    }
    model, session = scripted(lambda request: json.dumps(answer))
    with session:
        trips = jax.jit(jax.vmap(lambda p: ember.LLM("mine/m").structured(p, Trip)))(ember.text(["a", "b"]))
    schema = model.requests[0].parameters["response_format"]["json_schema"]["schema"]
    assert_is_strict(schema)
    assert schema["description"] == "A trip." and schema["properties"]["places"]["maxItems"] == 2
    assert schema["properties"]["days"]["maxItems"] == 3
    assert schema["properties"]["first"]["properties"]["city"] == {"type": "string", "description": "its name"}
    assert type(trips) is Trip and trips.first.city.tolist() == ["Bonn", "Bonn"]
    assert trips.first.people.tolist() == [None, None] and trips.days.tolist() == [[1, 2], [1, 2]]
    assert [[place.model_dump() for place in lane] for lane in trips.places.tolist()] == [answer["places"]] * 2


def test_simulated_models_fill_in_lists_and_what_may_be_absent(sim):
    films = many("sim/good", "What is 3 + 4?", Film, n=400)
    lengths = films.topics.length
    for length in range(4):
        assert_rate(lengths == length, 0.25)
    assert_rate(films.rating.is_there, 0.5)
    assert_rate(films.rating.value[films.rating.is_there] == 7, 0.9)
    assert set(films.mood.tolist()) == {"glad", "angry"}
    assert {len(words) for words in films.topics.tolist()} == {0, 1, 2, 3}


# -- the simulated models --------------------------------------------------------------------------------------------


def many(model, prompt, schema, n=N, **settings):
    keys = jax.random.split(jax.random.key(0), n)
    return jax.vmap(lambda key: ember.LLM(model, **settings).structured(prompt, schema, key))(keys)


class Guess(NamedTuple):
    whole: int
    real: Float[Array, "2"]
    mood: Literal["a", "b", "c", "d"]
    level: Literal[1, 2]
    ok: bool
    words: str


def test_simulated_numbers_are_right_as_often_as_told_and_the_rest_is_drawn(sim):
    guess = many("sim/poor", "What is 7 / 2 + 3?", Guess)
    right = np.asarray(guess.real[:, 0] == 6.5)
    assert_rate(right, 0.4)
    np.testing.assert_array_equal(np.asarray(guess.whole) == 6, right)  # 6.5, to a whole number
    np.testing.assert_array_equal(guess.real[:, 0], guess.real[:, 1])
    wrong = np.abs(np.asarray(guess.real[:, 0])[~right] - 6.5)
    assert wrong.min() > 0.05 and wrong.max() < 1.05
    moods = np.asarray(guess.mood)
    for member in "abcd":
        assert_rate(moods == member, 0.25)
    assert_rate(guess.level == 1, 0.5)
    assert_rate(guess.ok, 0.5)
    assert all(w.endswith(".") and " " in w for w in set(guess.words.tolist()))


@pytest.mark.parametrize(("proposed", "rate"), [(12, 0.8), (13, 0.2)])
def test_simulated_booleans_verify_where_the_prompt_asks(proposed, rate):
    prompt = f"What is 3 * 4?\nProposed answer: {proposed}\nIs it correct?"
    with ember.session(providers={"sim": Sim({"v": SimModel(accuracy=0.0, verify_accuracy=0.8, latency=0.0)})}):
        guess = many("sim/v", prompt, Plain)
    assert_rate(guess.ok, rate)
    assert not np.any(np.asarray(guess.answer) == 12)


def test_without_arithmetic_simulated_numbers_are_drawn(sim):
    guess = many("sim/good", "How are you?", Guess, n=200)
    assert len(set(guess.whole.tolist())) > 50 and guess.whole.min() >= 0 and guess.whole.max() < 100
    assert many("sim/good", "What is 1 / 0?", Number, n=1).answer.shape == (1,)


def test_a_simulated_answer_is_one_sample_for_ever(sim):
    llm = ember.LLM("sim/poor", temperature=0)
    first = llm.structured("1 + 1", Guess)
    keyed = jax.vmap(lambda key: llm.structured("1 + 1", Guess, key))(jax.random.split(jax.random.key(0), 8))
    assert sim.report().requests == 1
    for one, all_ in zip(jax.tree.leaves(first), jax.tree.leaves(keyed), strict=True):
        np.testing.assert_array_equal(all_, np.broadcast_to(one, all_.shape))


@pytest.mark.parametrize(
    "schema", [None, {}, {"type": "null"}, {"type": ["string", "null"]}, {"anyOf": []}, {"type": "array"}, {"enum": []}]
)
def test_other_schemas_are_refused_by_simulated_models(schema):
    outer = {"type": "object", "properties": {"x": {"type": "array", "minItems": 2, "items": schema}}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": outer}}
    with pytest.raises(RefusedRequestError, match=r"at \.x\[0\]"):
        reply(SimModel(), Request("sim", "m", (Message("user", "1 + 1"),), {"response_format": form}))


def test_a_simulated_answer_is_cut_as_any_and_then_malformed(sim):
    with pytest.warns(CutAnswerWarning), pytest.raises(MalformedResponseError, match="max_tokens"):
        ember.LLM("sim/good", max_tokens=3).structured("1 + 1", Guess)


def test_other_response_formats_do_not_matter_to_simulated_models(sim):
    assert str(ember.LLM("sim/good", response_format={"type": "text"})("5 + 5"))


# -- as a JAX program ------------------------------------------------------------------------------------------------


@ember.operator
def reading(prompt: ember.Text) -> Review:
    return ember.LLM("mine/m").structured(prompt, Review)


@pytest.mark.parametrize("form", [*JITS, "operator"])
def test_answers_are_the_same_in_every_form_and_lane(form):
    ask = lambda prompt: ember.LLM("mine/m").structured(prompt, Review)
    fn = reading if form == "operator" else JITS[form](ask)
    model, session = scripted(lambda request: json.dumps(ANSWER))
    with session:
        assert_is_the_answer(fn(ember.text("a")))
        assert_is_the_answer(jax.vmap(fn)(ember.text(["a", "b"])), (2,))
        assert_is_the_answer(jax.vmap(jax.vmap(fn))(ember.text([["a", "b"], ["c", "d"]])), (2, 2))
    assert sorted(r.messages[0].content for r in model.requests) == ["a", "b", "c", "d"]


def test_models_settings_and_prompts_may_vary_over_lanes():
    def answers(request):
        return json.dumps({"answer": len(request.model) + request.parameters["temperature"]})

    _, session = scripted(answers)

    def ask(llm, prompt):
        return llm.structured(prompt, Number).answer

    with session:
        llms = jax.vmap(lambda name, t: ember.LLM(name, temperature=t))(
            ember.text(["mine/a", "mine/bb"]), jnp.array([0.25, 0.5])
        )
        values = jax.jit(jax.vmap(jax.vmap(ask, in_axes=(None, 0)), in_axes=(0, None)))(llms, ember.text(["x", "y"]))
    np.testing.assert_array_equal(values, [[1.25, 1.25], [2.5, 2.5]])


def test_new_words_neither_trace_nor_compile_again(sim):
    traces = []

    @jax.jit
    def program(llm, prompt):
        traces.append(1)
        return llm.structured(prompt, Guess)

    for model, prompt in (("good", "1 + 1"), ("poor", "2 + 2")):
        program(ember.LLM(f"sim/{model}"), ember.text(prompt))
    assert len(traces) == 1 and program._cache_size() == 1


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
def test_a_class_defined_anew_makes_equal_calls(sim):
    def define():
        class Local(NamedTuple):
            """Words."""

            answer: float

        return Local

    for _ in range(2):
        value = ember.LLM("sim/good").structured("1 + 1", define())
        assert type(value).__name__ == "Local"
    assert sim.report().requests == 1


def test_fields_branch_inside_an_operator(sim):
    @ember.operator
    def op(question: ember.Text, key: ember.Key) -> ember.Text:
        guess = ember.LLM("sim/poor").structured(question, Guess, key)
        return jax.lax.cond(guess.ok, lambda: ember.LLM("sim/good")("4 + 4"), lambda: guess.mood)

    keys = jax.random.split(jax.random.key(1), 16)
    answers = jax.jit(jax.vmap(op, in_axes=(None, 0)))(ember.text("1 + 1"), keys)
    guesses = jax.vmap(lambda key: ember.LLM("sim/poor").structured("1 + 1", Guess, key))(keys)
    said = str(ember.LLM("sim/good")("4 + 4"))
    moods = zip(guesses.ok.tolist(), guesses.mood.tolist(), strict=True)
    assert answers.tolist() == [said if ok else mood for ok, mood in moods]
    assert 0 < sum(guesses.ok.tolist()) < 16
    assert sim.report().requests == 16 + 1


def test_no_gradient_flows_through_an_answer():
    _, session = scripted(lambda request: '{"answer": 3}')

    def score(weight, temperature):
        return weight * ember.LLM("mine/m").replace(temperature=temperature).structured("x", Number).answer

    with session:
        for program in (score, jax.jit(score), ember.jit(score)):
            by_weight, by_temperature = jax.grad(program, argnums=(0, 1))(2.0, 0.5)
            assert by_weight == 3 and by_temperature == 0


# -- keys and errors -------------------------------------------------------------------------------------------------


def test_a_key_is_a_sample_and_equal_keys_are_one(sim):
    first = many("sim/poor", "1 + 1", Number, n=64)
    again = many("sim/poor", "1 + 1", Number, n=64)
    np.testing.assert_array_equal(first.answer, again.answer)
    assert len(set(first.answer.tolist())) > 2 and sim.report().requests == 64
    with pytest.raises(TypeError, match="the key of an LLM call"):
        ember.LLM("sim/good").structured("1 + 1", Number, 5)


def test_one_sample_for_all_lanes_is_warned_of(sim):
    @ember.operator
    def op(x: Float[Array, ""]) -> Float[Array, ""]:
        prompt = ember.format("What is 1 + 1?{x}", x=ember.where(x > 9, "!", ""))
        return x + ember.LLM("sim/good").structured(prompt, Number).answer

    with pytest.warns(RepeatedSampleWarning, match="in all 3 lanes"):
        jax.vmap(op)(jnp.arange(3.0))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (ember.text(["a", "b"]), r"the prompt has shape \[2\].*lambda prompt: llm\.structured\(prompt, Number\)"),
        (3, "a prompt is a string, a Text or a Conversation; got int"),
    ],
)
def test_wrong_prompts_are_told_before_anything_is_asked(sim, prompt, words):
    with pytest.raises(TextError, match=words):
        ember.LLM("sim/good").structured(prompt, Number)
    assert sim.report().calls == 0


def test_a_wrong_answer_fails_its_lane_alone_and_is_kept():
    def answers(request):
        return '{"answer": "SECRET"}' if request.messages[0].content == "bad" else '{"answer": 1}'

    model, session = scripted(answers)
    op = ember.operator(_ask)
    with session:
        for _ in range(2):
            with pytest.raises(SweepError, match="1 of 3 lanes failed") as caught:
                jax.vmap(op)(ember.text(["a", "bad", "c"]))
            (failure,) = caught.value.failures
            assert failure.lane == (1,) and type(failure.cause) is MalformedResponseError
            assert "`answer`" in str(caught.value) and "SECRET" not in str(caught.value)
    assert len(model.requests) == 4  # one of them to mend the answer


def _ask(prompt: ember.Text) -> Float[Array, ""]:
    return ember.LLM("mine/m").structured(prompt, Number).answer


def test_under_jax_jit_the_error_is_typed_on_leaving_the_session():
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(MalformedResponseError, match="`answer`"))
        _, session = scripted(lambda request: "{}")
        stack.enter_context(session)
        jax.block_until_ready(jax.jit(_ask)(ember.text("a")))
