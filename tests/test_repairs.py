"""Repairs of structured answers: what is sent, what is counted and kept, and what a rerun pays for."""

import json
import math
from typing import Literal, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._runtime.journal.base import MOST_ANSWERS
from ember_jax.errors import MalformedResponseError, SweepError
from ember_jax.providers.base import Finish, Message, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault

BAD, WORSE, GOOD = '{"answer": "SECRET"}', "I will not.", '{"answer": 7}'
PRICE = ember.Price(1000.0, 2000.0)


class Number(NamedTuple):
    answer: float


class Mood(NamedTuple):
    mood: Literal["glad", "angry"]
    stars: list[int]


class Scripted:
    """A model that answers by how many turns it is shown, and what it was asked."""

    def __init__(self, *answers):
        self.answers, self.requests = answers, []

    def __call__(self, request):
        self.requests.append(request)
        return self.answers[min(sum(m.role == "assistant" for m in request.messages), len(self.answers) - 1)]

    def session(self, **settings):
        return ember.session(providers={"mine": Callable(self)}, **settings)


class Service:
    """A paid service that gives answers one after another, and its own count of dollars."""

    def __init__(self, *answers):
        self.answers, self.cost = answers, 0.0
        self.server = ChatServer(faults=self._fault)

    def _fault(self, number):
        answer = self.answers[min(number, len(self.answers) - 1)]
        if answer is None:
            return Fault(status=401, body="{}")
        read, written = 10 + number, 5 + number
        self.cost += read * 1e-3 + written * 2e-3
        choice = {"message": {"content": answer}, "finish_reason": "stop"}
        usage = {"prompt_tokens": read, "completion_tokens": written}
        return Fault(body=json.dumps({"choices": [choice], "usage": usage}))

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *error):
        self.server.__exit__(*error)

    def session(self, journal, **settings):
        providers = {"local": OpenAI(self.server.base_url, api_key="")}
        return ember.session(providers=providers, prices={"local": PRICE}, journal=journal, **settings)

    def turns(self):
        """How many messages each request had."""
        return [len(request.body["messages"]) for request in self.server.requests]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.db"


def ask(prompt="a", **how):
    return float(ember.LLM("local/m").structured(prompt, Number, **how).answer)


def fails(**how):
    with pytest.raises(MalformedResponseError) as caught:
        ask(**how)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


# -- what is sent ----------------------------------------------------------------------------------------------------

WRONG = [
    (Number, BAD, GOOD, "the field `answer` is a string, not a number"),
    (Number, WORSE, GOOD, "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
    (Number, '{"answer": 1', GOOD, "it is not JSON: Expecting ',' delimiter: line 1 column 13 (char 12)"),
    (Number, "{}", GOOD, "the field `answer` is missing"),
    (
        Mood,
        '{"mood": "sad", "stars": []}',
        '{"mood": "glad", "stars": [1]}',
        'the field `mood` is none of "glad", "angry"',
    ),
]


@pytest.mark.parametrize(("schema", "bad", "good", "wrong"), WRONG)
def test_the_model_is_shown_its_answer_and_told_what_is_wrong(schema, bad, good, wrong):
    model = Scripted(bad, good)
    with model.session():
        found = ember.LLM("mine/m", system="Be brief.", temperature=0.5).structured("PROMPT", schema)
    with Scripted(good).session():
        expected = ember.LLM("mine/m").structured("PROMPT", schema)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), found, expected)))
    first, repair = model.requests
    told = f"That does not fit: {wrong}. Reply with the whole JSON object again, mended, and nothing else."
    assert repair.messages == (*first.messages, Message("assistant", bad), Message("user", told))
    assert repair.parameters == first.parameters and first.parameters["response_format"]["json_schema"]["strict"]


def test_a_conversation_is_mended_where_it_stands():
    model = Scripted(BAD)
    model.answers = ("unused", BAD, GOOD)
    chat = ember.Conversation([("user", "Hello"), ("assistant", "Hi"), ("user", "How many?")])
    with model.session():
        assert float(ember.LLM("mine/m").structured(chat, Number).answer) == 7
    assert [m.role for m in model.requests[1].messages] == ["user", "assistant", "user", "assistant", "user"]


def test_a_service_that_refuses_schemas_has_the_schema_in_its_last_turn():
    with ChatServer(faults=_without_schemas) as server:
        with ember.session(providers={"local": OpenAI(server.base_url, api_key="")}):
            assert ask() == 7
        refused, first, repair = (request.body for request in server.requests)
    assert refused["response_format"]["type"] == "json_schema"
    assert first["response_format"] == repair["response_format"] == {"type": "json_object"}
    assert repair["messages"][-1]["content"].startswith("That does not fit: the field `answer` is a string")
    assert '"additionalProperties": false' in repair["messages"][-1]["content"]


def _without_schemas(number):
    if number == 0:
        return Fault(status=400, body='{"error": {"message": "no response_format"}}')
    return Fault(body=json.dumps({"choices": [{"message": {"content": (BAD, GOOD)[number - 1]}}]}))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False), st.text())
def test_a_mended_answer_has_the_value_of_a_good_one(value, noise):
    bad = json.dumps({"answer": noise})
    model = Scripted(bad, json.dumps({"answer": value}))
    with model.session(journal=None) as run:
        assert float(ember.LLM("mine/m").structured("a", Number).answer) == value
    assert (run.report().calls, run.report().repairs) == (2, 1)


@pytest.mark.parametrize(("repairs", "requests"), [(0, 1), (False, 1), (1, 2), (2, 3)])
def test_a_model_that_does_not_mend_it_fails_and_is_said_to_have_been_asked(repairs, requests):
    model = Scripted(BAD)
    with model.session() as run, pytest.raises(MalformedResponseError, match="`answer` is a string") as caught:
        ember.LLM("mine/m").structured("a", Number, repairs=repairs)
    assert len(model.requests) == run.report().calls == requests and run.report().repairs == requests - 1
    assert ("was asked to mend its answer, and failed again" in str(caught.value)) == (requests > 1)
    assert caught.value.__context__ is None or "SECRET" not in str(caught.value.__context__)


@pytest.mark.parametrize("repairs", [-1, 0.5, None])
def test_a_number_of_repairs_that_is_none_is_refused(repairs):
    with pytest.raises(ValueError, match="repairs"):
        ember.LLM("sim/small").structured("a", Number, repairs=repairs)


CUT = Response('{"answer": 1', finish=Finish.LENGTH)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("a", CUT), ("a", Response(" \n ")), (ember.Conversation([("user", "a"), ("assistant", "{")]), Response("x"))],
)
@pytest.mark.filterwarnings("ignore::ember_jax.errors.CutAnswerWarning")
def test_what_was_cut_or_cannot_be_shown_as_a_turn_is_not_mended(prompt, answer):
    model = Scripted(answer)
    with model.session() as run, pytest.raises(MalformedResponseError):
        ember.LLM("mine/m").structured(prompt, Number)
    assert len(model.requests) == 1 and run.report().repairs == 0


# -- what is counted -------------------------------------------------------------------------------------------------


def _asking(prompt: ember.Text) -> Float[Array, ""]:
    return ember.LLM("local/m", max_tokens=50).structured(prompt, Number).answer


def test_a_repair_is_a_call_of_its_own(path):
    op = ember.operator(_asking)
    with Service(BAD, GOOD) as service, service.session(path) as run:
        (answer, used) = ember.metered(op)(ember.text("a"))
        report = run.report()
        first, repair = run.calls()
        assert float(answer) == 7
        assert (report.calls, report.repairs, report.requests, report.failed) == (2, 1, 2, 0)
        assert report.cost_usd == run.budget.spent == pytest.approx(service.cost)
        assert int(used.calls) == 2 and float(used.cost) == pytest.approx(service.cost)
        assert (first.how, first.answer) == ("failed", BAD) and first.error.endswith("The model is asked to mend it.")
        assert (repair.how, repair.answer, repair.scope) == ("answered", GOOD, f"{first.scope}/repair")
        assert [c.digest for c in run.calls(op="repair")] == [repair.digest]
        assert "\nrepairs" in str(report)
    assert [call.digest for call in ember.Journal(path).calls(failed=True)] == [first.digest]


def _scripted(prompt: ember.Text) -> Float[Array, ""]:
    return ember.LLM("mine/m").structured(prompt, Number).answer


def test_equal_calls_share_a_repair():
    op = ember.operator(_scripted)
    model = Scripted(BAD, GOOD)
    with model.session() as run:
        np.testing.assert_array_equal(jax.vmap(op)(ember.text(["a", "a", "b"])), [7, 7, 7])
    report = run.report()
    assert (len(model.requests), report.requests, report.calls, report.repairs) == (4, 4, 6, 3)
    assert report.merged + report.replayed == 2


def test_a_failed_repair_fails_its_lane_alone_and_an_attempt_goes_on():
    class Some(Scripted):
        def __call__(self, request):
            answer = super().__call__(request)
            return BAD if request.messages[0].content == "bad" else answer

    op = ember.operator(_scripted)
    words = ember.text(["a", "bad", "c"])
    model = Some(BAD, GOOD)
    with model.session():
        with pytest.raises(SweepError, match="1 of 3 lanes failed") as caught:
            jax.vmap(op)(words)
        assert caught.value.failures[0].lane == (1,)
        assert "failed again" in str(caught.value)
        out, _ = jax.vmap(ember.attempt(op))(words)
        np.testing.assert_array_equal(np.isnan(out), [False, True, False])
    assert len(model.requests) == 6


def test_the_estimate_bounds_a_run_with_repairs(path):
    op = ember.operator(_asking)
    with Service(BAD, GOOD) as service, service.session(path) as run:
        found = ember.lower(op)(ember.text("a")).estimate()
        op(ember.text("a"))
        report = run.report()
    assert found.calls == (1, 2) and found.output_tokens == (1, 100)
    for name, bounds in (
        ("calls", found.calls),
        ("input_tokens", found.input_tokens),
        ("output_tokens", found.output_tokens),
        ("cost_usd", found.cost_usd),
    ):
        assert bounds.least <= getattr(report, name) <= bounds.most < math.inf
    # The first question, which the repair repeats, with an answer and what is said of it.
    first, repair = (sum(len(m["content"]) for m in r.body["messages"]) for r in service.server.requests)
    assert found.input_tokens.most >= first + repair


class OneOfMany(NamedTuple):
    größe: Literal[tuple(f"member {i}" for i in range(400))]  # type: ignore[valid-type]


@pytest.mark.parametrize("bad", ['{"größe": "SECRET"}', "{}", "1" * 5000, '{"größe": NaN}', "[" * 100_000])
@pytest.mark.parametrize("schema", [Number, OneOfMany, Mood])
def test_what_is_said_of_an_answer_is_within_the_estimate(schema, bad):
    model = Scripted(bad)
    ask = lambda q, n: jax.tree.leaves(ember.LLM("mine/m", max_tokens=1).structured(q, schema, repairs=n))[0]
    with model.session(journal=None):
        with pytest.raises(MalformedResponseError):
            ask("a", 1)
        none, one = (ember.lower(lambda q, n=n: ask(q, n))(ember.text("a")).estimate() for n in (0, 1))
    first, repair = ([len(m.content.encode()) for m in request.messages] for request in model.requests)
    assert repair[:2] == [*first, len(bad.encode())] and repair[2] < 2200
    # A token of the answer and at most so many bytes of what is said.
    assert one.input_tokens.most >= 2 * none.input_tokens.most + 1 + repair[2]


def test_a_pilot_expects_the_repairs_that_it_met(path):
    class Halves(Scripted):
        def __call__(self, request):
            answer = super().__call__(request)
            return answer if request.messages[0].content.startswith("odd") else GOOD

    op = ember.operator(_scripted)
    model = Halves(BAD, GOOD)
    with model.session() as run:
        plan = ember.lower(jax.vmap(op))(ember.text([f"odd {i}" for i in range(6)]))
        bounds = plan.estimate(pilot=3)
        assert run.report().repairs == 3 and bounds.expected is not None
        assert bounds.expected.calls == (12, 12, 12)
        even = ember.lower(jax.vmap(op))(ember.text([f"even {i}" for i in range(6)])).estimate(pilot=3)
        assert even.expected is not None and even.expected.calls == (6, 6, 6)
        assert bounds.calls == even.calls == (6, 12)


def test_the_estimate_without_repairs_is_that_of_one_request():
    call = lambda repairs: lambda q: ember.LLM("sim/small", max_tokens=9).structured(q, Number, repairs=repairs).answer
    none, two = (ember.lower(call(n))(ember.text("a")).estimate() for n in (0, 2))
    assert (none.calls, two.calls) == ((1, 1), (1, 3))
    assert (none.output_tokens, two.output_tokens) == ((1, 9), (1, 27))
    assert two.input_tokens.most > 3 * none.input_tokens.most + 9 + 18


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_a_rerun_replays_both_and_pays_nothing(path):
    with Service(BAD, GOOD) as service:
        for sent in (2, 0, 0):
            with service.session(path) as run:
                assert ask() == 7
                report = run.report()
            assert (report.requests, report.replayed, report.repairs) == (sent, 2 - sent, 1)
            assert sent or report.cost_usd == 0
    assert [call.answer for call in ember.Journal(path).calls()] == [BAD, GOOD]


def test_a_run_that_ended_between_the_two_pays_for_the_second_alone(path):
    with Service(BAD, None, GOOD) as service:
        with service.session(path), pytest.raises(ember.errors.AuthenticationError):
            ask()
        with service.session(path) as run:
            assert ask() == 7
        assert (run.report().requests, run.report().replayed) == (1, 1)
        assert service.turns() == [1, 3, 3]


def test_a_later_session_asks_for_another_repair_within_a_bound(path):
    with Service(BAD, *[WORSE] * MOST_ANSWERS, GOOD) as service:
        for sent in (2, 1, 1, 0):
            with service.session(path) as run:
                assert "failed again" in fails()
                fails()
            assert run.report().requests == sent
        assert service.turns() == [1] + [3] * MOST_ANSWERS
        with service.session(path) as run:
            fails()
            assert run.forget(run.calls(op="repair")) == MOST_ANSWERS
            assert ask() == 7
        assert service.turns() == [1] + [3] * (MOST_ANSWERS + 1)


def test_a_call_without_repairs_asks_anew_what_one_with_repairs_went_on_from(path):
    with Service(BAD, WORSE, GOOD) as service:
        with service.session(path):
            fails()
        with service.session(path):
            assert ask(repairs=0) == 7
        with service.session(path) as run:
            assert ask() == 7
        assert run.report().requests == run.report().repairs == 0
        assert service.turns() == [1, 3, 1]


def test_a_call_with_repairs_goes_on_from_what_one_without_has_left(path):
    with Service(BAD, GOOD) as service:
        with service.session(path):
            fails(repairs=0)
        with service.session(path) as run:
            assert ask() == 7
        assert run.report().requests == 1 and service.turns() == [1, 3]


@pytest.mark.filterwarnings("ignore::ember_jax.errors.CutAnswerWarning")
def test_a_cut_answer_is_superseded_by_a_later_session(path):
    model = Scripted(CUT)
    with model.session(journal=path), pytest.raises(MalformedResponseError):
        ember.LLM("mine/m").structured("a", Number)
    model.answers = (GOOD,)
    with model.session(journal=path):
        assert float(ember.LLM("mine/m").structured("a", Number).answer) == 7
    assert len(model.requests) == 2


def test_the_budget_holds_for_the_repair_too(path):
    op = ember.operator(_asking)
    with Service(BAD, GOOD) as service:
        # Enough for the most that the question may cost, and then too little for its repair.
        with service.session(path, budget_usd=0.5) as run, pytest.raises(ember.errors.BudgetError):
            op(ember.text("a"))
        assert service.turns() == [1] and run.report().cost_usd == pytest.approx(service.cost)
