"""`LLM.structured`: classes as JSON schemas, answers as arrays, and the call as a JAX program."""

import contextlib
import dataclasses
import json
import math
from typing import Any, Literal, NamedTuple, Optional

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Bool, Float, Float16, Int, Integer, Num, Shaped

import ember_jax as ember
from ember_jax._errors import (
    AnnotationError,
    MalformedResponseError,
    RefusedRequestError,
    RepeatedSampleWarning,
    SweepError,
    TextError,
)
from ember_jax._providers.base import Message, Request
from ember_jax._providers.callable import Callable
from ember_jax._providers.openai import OpenAI
from ember_jax._providers.sim import reply
from ember_jax._runtime.loop import get_loop
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
        (json.dumps(ANSWER) + " SECRET", "Extra data"),
        (f"```\n{json.dumps(ANSWER)}\n```\n```\n{json.dumps(ANSWER)}\n```", "it is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"stars": ' + "9" * 5000 + "}", "it is not JSON: Exceeds the limit"),
        ("[1]", "the answer is a list of 1, not an object"),
        ("null", "the answer is null, not an object"),
        ('"SECRET"', "the answer is a string, not an object"),
        ({k: v for k, v in ANSWER.items() if k != "mood"}, "the field `mood` is missing"),
        (changed(SECRET=1), "the answer has 1 more fields than the schema"),
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
        (changed(title="\ud800"), "the field `title` holds half of a surrogate pair"),
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
        (changed(step={"why": "", "weight": 1, "SECRET": 2}), "the field `step` has 1 more fields"),
    ],
)
def test_a_wrong_answer_names_the_field_and_quotes_nothing(answer, words):
    with pytest.raises(MalformedResponseError, match=f"mine/m: the answer is no Review: .*{words}") as caught:
        answered(answer)
    assert "SECRET" not in str(caught.value) and "PROMPT" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


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
        (Optional[int], "always there and of one type"),  # noqa: UP045
        (int | None, "always there and of one type"),
        (ember.Text | None, "always there and of one type"),
        (ember.Text["2"] | None, "always there and of one type"),
        (list[str], r"list\[str\].*Text\[\"3\"\]"),
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
        (dict, "a NamedTuple, a dataclass or an eqx.Module class"),
        (int, "class; got"),
        (NotOne, "class; got"),
        ({"type": "object"}, "class; got"),
        (list[int], "class; got"),
        (Number(1.0), "class; got"),
        (None, "class; got"),
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
    with pytest.raises(MalformedResponseError, match="max_tokens"):
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
        (3, "a prompt is a string or a Text; got int"),
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
    assert len(model.requests) == 3


def _ask(prompt: ember.Text) -> Float[Array, ""]:
    return ember.LLM("mine/m").structured(prompt, Number).answer


def test_under_jax_jit_the_error_is_typed_on_leaving_the_session():
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(MalformedResponseError, match="`answer`"))
        _, session = scripted(lambda request: "{}")
        stack.enter_context(session)
        jax.block_until_ready(jax.jit(_ask)(ember.text("a")))
