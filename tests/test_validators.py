"""Validators of pydantic models: what they refuse is mended, what they make is read, and their own faults are told."""

import dataclasses
import enum
import json
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax.errors import AnnotationError, MalformedResponseError, ValidatorError
from ember_jax.providers.callable import Callable

pydantic = pytest.importorskip("pydantic")


class Inner(pydantic.BaseModel):
    word: str = pydantic.Field(pattern="^[a-z]+$", alias="theWord")


class Answer(pydantic.BaseModel):
    number: Annotated[int, pydantic.Field(gt=0)]
    mood: Literal["glad", "sad"]
    inner: Inner
    parts: list[int]

    @pydantic.field_validator("number")
    @classmethod
    def is_even(cls, number):
        if number % 2:
            raise ValueError("it must be even")
        return number

    @pydantic.model_validator(mode="after")
    def adds_up(self):
        if sum(self.parts) != self.number:
            raise AssertionError("the parts must add up to the number")
        return self


GOOD = {"number": 4, "mood": "glad", "inner": {"word": "yes"}, "parts": [1, 3]}


@pytest.fixture
def model(tmp_path):
    """A model that says what is in `says` in turn, and keeps what it was asked."""

    class Model:
        def __init__(self):
            self.says, self.asked = [], []

        def __call__(self, request):
            self.asked.append([message.content for message in request.messages])
            said = self.says.pop(0)
            return said if isinstance(said, str) else json.dumps(said)

        def running(self):
            provider = Callable(self, cache="v1")
            return ember.session(journal=tmp_path / "run.db", providers={"mine": provider})

    return Model()


def ask(schema, question="What?", **how):
    return ember.jit(lambda: ember.LLM("mine/m").structured(question, schema, **how))()


WRONG = {
    "gt": ({"number": -4, "parts": [-4]}, "the field `number` is refused: Input should be greater than 0"),
    "pattern": (
        {"inner": {"word": "No!"}},
        "the field `inner.word` is refused: String should match pattern '^[a-z]+$'",
    ),
    "field": ({"number": 3, "parts": [3]}, "the field `number` is refused: it must be even"),
    "model": ({"parts": [1]}, "the answer is refused: the parts must add up to the number"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused_is_mended_by_the_validators_own_words(model, what):
    change, words = WRONG[what]
    model.says = [{**GOOD, **change}, GOOD]
    with model.running() as run:
        found = ask(Answer)
        assert type(found) is Answer and int(found.number) == 4 and str(found.inner.word) == "yes"
        assert found.parts.tolist() == [1, 3]
        report = run.report()
        assert (report.calls, report.requests, report.repairs) == (2, 2, 1) and len(run.calls(op="repair")) == 1
    assert len(model.asked) == 2 and model.asked[1][-1].startswith(f"That does not fit: {words}")
    with model.running() as run:  # both answers are kept
        ask(Answer)
        assert run.report().requests == 0


def test_two_refusals_fail_with_the_typed_error_and_no_repair_with_the_first(model):
    model.says = [{**GOOD, "number": 3}] * 3
    with model.running():
        with pytest.raises(MalformedResponseError, match=r"`number` is refused: it must be even.*and failed again"):
            ask(Answer)
        assert len(model.asked) == 2
        with pytest.raises(MalformedResponseError, match="it must be even"):
            ask(Answer, "Other?", repairs=0)
        assert len(model.asked) == 3


def test_several_faults_are_told_together(model):
    model.says = [{**GOOD, "number": 3, "inner": {"word": "A"}}, GOOD]
    with model.running():
        ask(Answer)
    assert "`number` is refused: it must be even; the field `inner.word` is refused" in model.asked[1][-1]


class Tidied(pydantic.BaseModel):
    name: Annotated[str, pydantic.AfterValidator(str.strip), pydantic.AfterValidator(str.title)]
    score: Annotated[float, pydantic.BeforeValidator(lambda score: min(score, 1.0))]
    note: Annotated[str, pydantic.Field(max_length=3)] | None = None
    tags: list[Annotated[str, pydantic.AfterValidator(str.upper)]]


def test_what_validators_make_of_an_answer_is_what_is_returned(model):
    model.says = [{"name": "  ada ", "score": 7.5, "note": None, "tags": ["a", "b"]}]
    with model.running():
        found = ask(Tidied)
    assert str(found.name) == "Ada" and float(found.score) == 1.0 and found.note.tolist() is None
    assert found.tags.tolist() == ["A", "B"] and len(model.asked) == 1


def test_enums_tuples_and_dataclasses_within_a_model_are_read_back(model):
    class Size(enum.Enum):
        SMALL = "small"

    class Point(NamedTuple):
        x: int
        y: float

    @dataclasses.dataclass
    class Line:
        name: str

    class Shape(pydantic.BaseModel, strict=True):
        size: Size
        point: Point
        line: Line
        count: Annotated[int, pydantic.AfterValidator(lambda n: n + 1)]

    model.says = [{"size": "small", "point": {"x": 3.0, "y": 1}, "line": {"name": "half \ud83d"}, "count": 1.0}]
    with model.running():
        found = ask(Shape)
    assert (str(found.size), int(found.point.x), float(found.point.y)) == ("small", 3, 1.0)
    assert str(found.line.name) == "half \ufffd" and int(found.count) == 2


def test_lanes_and_words_around_the_json(model):
    model.says = ["<think>Hm.</think> " + json.dumps(GOOD), {**GOOD, "number": 5, "more": 1}, GOOD]
    with model.running(), pytest.warns(ember.errors.LooseAnswerWarning):
        one = ask(Answer)
        found = jax.vmap(lambda q: ember.LLM("mine/m").structured(q, Answer))(ember.text(["a"]))
    assert int(one.number) == 4 and found.number.tolist() == [4] and len(model.asked) == 3


class Broken(pydantic.BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def fails(cls, name):
        return name.upper_case()


class Mended(pydantic.BaseModel):
    name: Annotated[str, pydantic.AfterValidator(str.upper)]


class Changing(pydantic.BaseModel):
    name: Annotated[int, pydantic.AfterValidator(lambda name: "words")]


def test_a_fault_of_the_validators_own_is_told_as_such_and_the_answer_is_kept(model):
    Mended.__name__ = "Broken"
    model.says = [{"name": "ada"}]
    with model.running() as run:
        with pytest.raises(
            ValidatorError, match=r"validator of Broken failed.*AttributeError.*no attribute 'upper_case'"
        ):
            ask(Broken)
        assert run.report().repairs == 0
    for schema in (Broken, Mended):
        with model.running() as run:  # nothing is asked again, with the same validator or a better one
            if schema is Broken:
                with pytest.raises(ValidatorError):
                    ask(Broken)
            else:
                assert str(ask(Mended).name) == "ADA"
            assert run.report().requests == 0
    assert len(model.asked) == 1


def test_what_the_schema_cannot_hold_is_the_validators_fault(model):
    model.says = [{"name": 1}]
    with model.running(), pytest.raises(ValidatorError, match="what its schema cannot hold: the field `name` is a str"):
        ask(Changing)
    assert len(model.asked) == 1


def test_a_type_that_pydantic_cannot_read_is_told_when_it_is_traced():
    class Arrays(pydantic.BaseModel, arbitrary_types_allowed=True):
        numbers: Float[Array, "3"]
        count: int = pydantic.Field(gt=0)

    with pytest.raises(AnnotationError, match="`numbers` of Arrays is an array or Text"):
        ember.LLM("sim/small").structured("What?", Arrays)


def test_a_model_without_validators_is_no_part_of_the_program(model):
    def plain():
        class Plain(pydantic.BaseModel):
            number: int

        return Plain

    model.says = [{"number": 3}]
    with model.running():
        assert ember.lower(lambda: ember.LLM("mine/m").structured("a", plain()))() is not None
        assert jnp.array_equal(ask(plain()).number, 3)
    from ember_jax._model.schema import schema_of
    from ember_jax._model.validators import validators_of

    assert validators_of(plain(), schema_of(plain()).record) is None
    assert validators_of(Answer, schema_of(Answer).record) == validators_of(Answer, schema_of(Answer).record)


def test_an_estimate_has_room_for_what_validators_say():
    llm = ember.LLM("openai/gpt-4o-mini", max_tokens=10)
    most = lambda schema: ember.lower(lambda: llm.structured("a", schema))().estimate().input_tokens.most

    class Free(pydantic.BaseModel):
        number: int

    Checked = pydantic.create_model("Free", number=(Annotated[int, pydantic.Field(gt=0)], ...))
    assert most(Checked) == most(Free) + 3 * 500  # bytes: a character of any script has four
