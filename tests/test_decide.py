"""`LLM.decide`: probabilities of given options, by the endpoints that give them and by letters where there is none."""

import contextlib
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from replies import Replies, Reply

import ember_jax as ember
from ember_jax import errors, non
from ember_jax._runtime import session as sessions
from ember_jax.providers import Compatible, Gemini, OpenAI, decisions
from ember_jax.providers.base import Message, Request, Response
from ember_jax.providers.questions import DecisionQuestion, packed, parted, question, unpacked
from ember_jax.testing import ChatServer, Fault, SimModel

# Whoever has decisions: the provider's name and class, and a model.
SERVICES = {
    "openai": (lambda url: OpenAI(url, api_key="k"), "openai/gpt-6-luna"),
    "gemini": (lambda url: Gemini(url, api_key="k"), "gemini/decider"),
    "vllm": (lambda url: Compatible("vllm", url), "vllm/decider"),
}
GOOD = SimModel(accuracy=0.9, latency=0.0)
QUICK = ember.Retry(first=0.0)
RIGHT = "Is the proposed answer correct?"
STATE = "What is 2 + 3?\n\nProposed answer: 5"
TEN = {f"q{i}": ember.Options(f"Which number, {i}?", ["5", "6", str(10 + i)]) for i in range(10)}


@contextlib.contextmanager
def served(server, service="vllm", **given):
    """A session whose service is a server on this machine."""
    make, model = SERVICES[service]
    provider = make(getattr(server, "base_url", "") or f"{server.url}/v1")
    name = model.partition("/")[0]
    try:
        with ember.session(providers={name: provider}, **{"journal": "memory", "retry": QUICK, **given}) as run:
            yield ember.LLM(model), run
    finally:
        sessions.loop().submit(provider.close()).result(30)


def deciding(**given):
    return ChatServer(GOOD, decides=True, **given)


def paths(server):
    """The endpoints that were asked, by what their bodies have."""
    kinds = {"questions": "decisions", "messages": "letters", "contents": "letters"}
    return [kinds[next(name for name in kinds if name in request.body)] for request in server.requests]


# -- three wires -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_gives_probabilities(service):
    questions = {
        "right": ember.Predicate(RIGHT, true="it is", false="it is not"),
        "which": ember.Options("Which number?", {"it is 6": None, "it is 5": "five"}),
        "much": ember.Levels("How sure?", ["not at all", "a bit", "very"]),
    }
    with deciding() as server, served(server, service) as (llm, run):
        found = llm.decide(STATE, questions)
    assert list(found) == ["right", "which", "much"]
    assert found["right"].dtype == jnp.float32 and found["right"].shape == ()
    assert math.isclose(found["right"], 0.9, rel_tol=1e-6)
    assert found["which"].index == 1 and str(found["which"].text) == "it is 5"
    assert np.allclose(found["which"].probs, [0.1, 0.9])
    assert np.allclose(found["much"].probs, 1 / 3) and np.isclose(found["much"].level, 1.0)
    assert len(server.requests) == 1 and paths(server) == ["decisions"]
    assert run.report().decided == run.report().calls == 3
    assert run.report().input_tokens == server.input_tokens == sum(call.input_tokens for call in run.calls())


def body(service, state, *questions, **parameters):
    provider = SERVICES[service][0]("http://localhost/v1")
    name, _, model = SERVICES[service][1].partition("/")
    state = state if isinstance(state, tuple) else (Message("user", state),)
    request = Request(name, model, (*state, *(q.message for q in questions)), parameters)
    return provider.build(request)


ASKED = (
    DecisionQuestion("predicate", "Is it wet?", ("yes", "no"), ("water", "")),
    DecisionQuestion("choice", "Which?", ("a", "b"), ("", "the other")),
    DecisionQuestion("choice", "Which?", ("a", "a\nb"), ("", "more")),
    DecisionQuestion("score", "How much?", ("low", "high"), ("", "very")),
)


def test_what_openai_is_sent():
    url, _, sent = body("openai", "Water.", *ASKED, temperature=0.5, safety_identifier="me")
    assert url == "http://localhost/v1/decisions"
    assert sent == {
        "model": "gpt-6-luna",
        "input": "Water.",
        "safety_identifier": "me",
        "questions": [
            {"type": "predicate", "instructions": "Is it wet?\nTrue if: water"},
            {
                "type": "choice",
                "instructions": "Which?",
                "choices": [{"value": "a"}, {"value": "b", "description": "the other"}],
            },
            {
                "type": "choice",
                "instructions": "Which?",
                "choices": [{"value": "1", "description": "a"}, {"value": "2", "description": "a\nb: more"}],
            },
            {
                "type": "score",
                "instructions": "How much?",
                "levels": [{"label": "low"}, {"label": "high", "description": "very"}],
            },
        ],
    }


@pytest.mark.parametrize(
    ("service", "path", "state"), [("gemini", "decisions", "input"), ("vllm", "systemone", "state")]
)
def test_what_the_others_are_sent(service, path, state):
    url, _, sent = body(service, "Water.", *ASKED, max_tokens=5)
    assert url == f"http://localhost/v1/{path}"
    blank, true = ("", "true_description") if service == "gemini" else (None, "true")
    assert sent == {
        "model": "decider",
        state: "Water.",
        "questions": {
            "q0": {"type": "noul", "instructions": "Is it wet?", "criteria": {true: "water"}},
            "q1": {"type": "choice", "instructions": "Which?", "criteria": {"a": blank, "b": "the other"}},
            "q2": {"type": "choice", "instructions": "Which?", "criteria": {"1": "a", "2": "a\nb: more"}},
            "q3": {"type": "score", "instructions": "How much?", "criteria": ["low", "high: very"]},
        },
    }


def test_a_conversation_is_sent_in_the_form_of_the_service():
    turns = (Message("system", "Be fair."), Message("user", "Hi"), Message("assistant", "Ho"))
    sent = {service: body(service, turns, ASKED[0])[2] for service in SERVICES}
    assert sent["vllm"]["state"] == [{"role": m.role, "content": m.content} for m in turns]
    said = [{"type": "text", "text": f"{m.role}: {m.content}"} for m in turns]
    assert sent["gemini"]["input"] == said
    assert sent["openai"]["input"] == [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": "Hi"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Ho"}]},
    ]


def test_an_image_goes_along_where_it_can():
    seen = Message.of("user", (ember.providers.base.Part("image", "data:image/png;base64,AAAA"),))
    request = Request("p", "gpt-6-luna", (seen, ASKED[0].message))
    assert decisions.takes(decisions.OF_OPENAI, request) and decisions.takes(decisions.OF_GOOGLE, request)
    assert not decisions.takes(decisions.OF_SYSTEMONE, request)
    assert body("gemini", (seen,), ASKED[0])[2]["input"] == [
        {"type": "image", "data": "AAAA", "mime_type": "image/png"}
    ]
    with pytest.raises(errors.RefusedRequestError, match="decides nothing"):
        body("vllm", (seen,), ASKED[0])


def reply(probability=0.25, **more):
    return {"answers": [{"type": "predicate", "probability": probability}], "model": "gpt-6-luna", **more}


def test_a_bill_is_read_and_what_is_read_off_costs_nothing():
    details = {"input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 1}}
    usage = {"input_tokens": 1_000_000, "output_tokens": 7, **details}
    with Replies(Reply(reply(usage=usage))) as server, served(server, "openai") as (llm, run):
        assert llm.decide("Rain.", "Is it wet?") == 0.25
    call = run.calls()[0]
    assert (call.input_tokens, call.output_tokens, call.cached_tokens, call.cache_write_tokens) == (10**6, 7, 5, 1)
    request = Request("openai", "gpt-6-luna", ())
    assert call.cost == ember.providers.prices.cost(request, ember.providers.base.Tokens(10**6, 0, 5, 1))
    assert [m.role for m in call.messages] == ["user", "decide"] and json.loads(call.answer) == [0.25, 0.75]


@pytest.mark.filterwarnings("ignore::ember_jax.errors.CutAnswerWarning")
def test_refusals_and_blocked_prompts_are_the_typed_outcomes():
    answers = [{"type": "refusal"}, {"type": "predicate", "probability": 1.0}]
    told = {"answers": answers, "usage": {"input_tokens": 9}}
    with (
        Replies(Reply(told)) as server,
        served(server, "openai") as (llm, _),
        pytest.raises(errors.SweepError) as raised,
    ):
        jax.vmap(lambda q: llm.decide("Rain.", q))(ember.text(["Is it safe?", "Is it wet?"]))
    (failure,) = raised.value.failures
    assert failure.lane == (0,) and isinstance(failure.cause, errors.NoAnswerError)
    assert failure.cause.finish == ember.Finish.REFUSAL and len(server.asked) == 1
    blocked = {"prompt_feedback": {"block_reason": "SAFETY"}, "usage": {"total_input_tokens": 3}}
    with Replies(Reply(blocked)) as server, served(server, "gemini") as (llm, _):
        with pytest.raises(errors.NoAnswerError) as raised:
            llm.decide("Bad.", "Is it bad?")
        assert raised.value.finish == ember.Finish.CONTENT_FILTER
    # Of several it may be about one, so each is asked by itself, once.
    one = {"answers": {"q0": {"type": "noul", "noul": 0.5}}}
    with Replies(Reply(blocked), Reply(one), Reply(blocked)) as server, served(server, "gemini") as (llm, _):
        with pytest.raises(errors.SweepError, match="1 of 2"):
            llm.decide("Bad.", {"a": "Is it bad?", "b": "Is it good?"})
        assert [len(a.body["questions"]) for a in server.asked] == [2, 1, 1]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"answers": []},
        {"answers": [{"type": "predicate", "probability": "much"}]},
        {"answers": [{"type": "predicate", "probability": 1.5}]},
        {"answers": [{"type": "choice", "confidence": 1.0}]},
    ],
)
def test_an_answer_without_probabilities_is_malformed(answer):
    replies, once = Replies(Reply(answer)), ember.Retry(attempts=1)
    malformed = errors.MalformedResponseError
    with replies as server, served(server, "openai", retry=once) as (llm, _), pytest.raises(malformed):
        llm.decide("Rain.", "Is it wet?")
    assert len(server.asked) == 1


def test_confidence_is_not_read():
    told = {"type": "choice", "choice": "a", "confidence": 0.2, "probabilities": {"a": 0.6, "b": 0.4}}
    with Replies(Reply({"answers": {"q0": told}})) as server, served(server) as (llm, _):
        assert np.allclose(llm.decide("x", ember.Options("Which?", ["a", "b"])).probs, [0.6, 0.4])


def test_a_question_is_the_same_as_a_message():
    for asked in ASKED:
        assert question(asked.message) == asked
    request = Request("p", "m", (Message("user", "x"), *(q.message for q in ASKED)))
    assert request.decides and parted(request) == ((Message("user", "x"),), list(ASKED))
    assert np.allclose(unpacked(packed([1, 3]), 2), [0.25, 0.75])
    for words in ("", "[]", "[1]", "[0, 0]", '["a", 1]', "[NaN, 1]", "[-1, 2]", "[true, 1]", "{}"):
        with pytest.raises(ValueError):
            unpacked(words, 2)


# -- one request for one state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("form", [lambda f: f, jax.jit, ember.jit], ids=["eager", "jax.jit", "ember.jit"])
def test_ten_questions_about_a_state_are_one_request(form, service):
    with deciding() as server, served(server, service) as (llm, run):
        found = form(lambda state: llm.decide(state, TEN))(ember.text(STATE))
        assert len(server.requests) == 1 == run.report().requests and run.report().calls == 10
        again = form(lambda state: llm.decide(state, TEN))(ember.text(STATE))
        assert len(server.requests) == 1
    for name in TEN:
        assert math.isclose(found[name].probs[0], 0.9, rel_tol=1e-6)
        assert np.array_equal(found[name].probs, again[name].probs)


def test_a_hundred_lanes_with_five_states_are_five_requests():
    states = ember.text([f"What is {i % 5} + 3?" for i in range(100)])
    select = ember.Options("Which?", ["5", "6"])
    with deciding() as server, served(server) as (llm, run):
        found = jax.vmap(lambda s: llm.decide(s, {"which": select, "odd": "Is it odd?"}))(states)
        assert len(server.requests) == 5 and run.report().requests == 5
    assert sorted(len(r.body["questions"]) for r in server.requests) == [2] * 5
    assert found["which"].probs.shape == (100, 2) and found["odd"].shape == (100,)
    assert found["which"].index.tolist() == [0 if i % 5 == 2 else int(found["which"].index[i]) for i in range(100)]
    assert run.report().merged == 190 and run.report().calls == 200


def test_a_rerun_asks_nothing_and_a_superset_what_is_new(tmp_path):
    journal = tmp_path / "run.db"
    half = dict(itertools.islice(TEN.items(), 5))
    with deciding() as server:
        with served(server, journal=journal) as (llm, _):
            first = llm.decide(STATE, half)
        with served(server, journal=journal) as (llm, run):
            again = llm.decide(STATE, half)
            assert run.report().replayed == 5 and len(server.requests) == 1
            llm.decide(STATE, TEN)
        assert [len(r.body["questions"]) for r in server.requests] == [5, 5]
        asked = {q["instructions"] for q in server.requests[1].body["questions"].values()}
    assert asked == {f"Which number, {i}?" for i in range(5, 10)}
    assert all(np.array_equal(first[name].probs, again[name].probs) for name in half)


def test_a_request_has_as_many_questions_as_the_service_takes():
    many = {str(i): f"Is it {i}?" for i in range(70)}
    with deciding() as server, served(server) as (llm, _):
        llm.decide(STATE, many)
    assert sorted(len(r.body["questions"]) for r in server.requests) == [6, 64]


def test_merging_is_switched_off_as_for_samples():
    with deciding() as server, served(server, join_samples=False) as (llm, _):
        llm.decide(STATE, TEN)
    assert len(server.requests) == 10


def test_equal_questions_share_an_answer_whatever_their_keys():
    keys = jax.random.split(jax.random.key(0), 8)
    with deciding() as server, served(server) as (llm, run):
        found = jax.vmap(lambda k: llm.decide(STATE, RIGHT, k))(keys)
    assert np.allclose(found, 0.9) and len(server.requests) == 1
    assert len(server.requests[0].body["questions"]) == 1 and run.report().merged == 7


def test_the_options_may_be_mapped():
    options = ember.text([["5", "6"], ["7", "5"], ["8", "9"]])
    with deciding() as server, served(server) as (llm, _):
        found = jax.vmap(lambda o: llm.decide(STATE, ember.Options("Which?", o)))(options)
    assert len(server.requests) == 1
    assert np.allclose(found.probs, [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    assert found.text[:2].tolist() == ["5", "5"]


def test_models_may_be_mapped_and_each_is_asked_in_its_way():
    with deciding() as server, served(server) as (_, run):
        models = ember.text(["vllm/decider", "sim/large"])
        found = jax.vmap(lambda m: ember.LLM(m).decide(STATE, RIGHT))(models)
    assert np.allclose(found, [0.9, 0.97]) and run.report().decided == 1


# -- by letters ------------------------------------------------------------------------------------------------------


def test_a_model_without_decisions_is_asked_exactly_as_it_chooses():
    options = ["5", "6", "7"]
    with ember.session(journal="memory") as run:
        llm = ember.LLM("sim/large")
        key = jax.random.key(1)
        chosen = llm.choose(f"{STATE}\n\nWhich?", options, key)
        decided = llm.decide(STATE, ember.Options("Which?", options), key)
        whole = llm.decide(STATE, ember.Options(f"{STATE}\n\nWhich?", options), key, whole=True)
    assert run.report().requests == 1 and run.report().decided == 0
    assert len({call.digest for call in run.calls()}) == 1
    for other in (decided, whole):
        assert other.index == chosen.index and np.array_equal(other.probs, chosen.probs)
        assert str(other.text) == str(chosen.text)


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("service", ["openai", "vllm"])
def test_a_service_that_decides_nothing_is_found_out_once(status, service, caplog):
    faults = lambda number: Fault(status=status) if paths(server)[number] == "decisions" else None
    states = ember.text([f"Number {i}\n\n{STATE}" for i in range(5)])
    caplog.set_level("INFO", "ember_jax")
    with deciding(faults=faults) as server, served(server, service) as (llm, run):
        found = jax.vmap(lambda s: llm.decide(s, RIGHT))(states)
        more = llm.decide(STATE, {"a": RIGHT, "b": ember.Options("Which?", ["5", "6"])})
    assert np.allclose(found, 0.9) and np.isclose(more["a"], 0.9) and more["b"].index == 0
    assert paths(server) == ["decisions"] + ["letters"] * 7
    report = run.report()
    assert (report.calls, report.requests, report.failed, report.decided) == (7, 8, 1, 0)
    assert sum(record.event == "no_decisions" for record in caplog.records if hasattr(record, "event")) == 1
    tried = [call for call in run.calls() if len(call.tried) > 1]
    assert tried and all(str(status) in call.tried[0].error and not call.tried[1].error for call in tried)


def test_a_gemini_that_decides_nothing_generates_a_letter():
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 1, "totalTokenCount": 4}
    candidate = {"content": {"parts": [{"text": "B"}], "role": "model"}, "finishReason": "STOP"}
    none = Reply({"error": {"code": 404, "message": "no such model", "status": "NOT_FOUND"}}, 404)
    replies = Replies(none, Reply({"candidates": [candidate], "usageMetadata": usage}))
    with replies as server, served(server, "gemini", prices={"gemini": ember.Price(1, 1)}) as (llm, run):
        found = llm.decide("Rain.", ember.Options("Which?", ["dry", "wet"]))
    assert [asked.path for asked in server.asked] == ["/v1/decisions", "/v1/models/decider:generateContent"]
    assert found.probs.tolist() == [0, 1] and str(found.text) == "wet" and run.report().calls == 1


def test_a_budget_reserves_what_a_request_may_bill_at_most():
    """Each question may bill the state again: ten are halved until the budget can reserve for them."""
    state, price = " ".join(["word"] * 1000), {"vllm": ember.Price(1, 0)}
    with deciding() as server, served(server, prices=price, budget_usd=0.028) as (llm, run):
        llm.decide(state, TEN)
        # The first five leave too little to reserve for as many again.
        assert [len(r.body["questions"]) for r in server.requests] == [5, 2, 3] and run.report().calls == 10
    assert run.report().cost_usd == pytest.approx(server.input_tokens / 1e6) and run.report().cost_usd < 0.028
    with deciding() as server, served(server, prices=price, budget_usd=0.001) as (llm, _):
        with pytest.raises(errors.SweepError, match="BudgetError"):
            llm.decide(state, TEN)
        assert not server.requests


def test_what_was_answered_by_letters_is_replayed(tmp_path):
    journal = tmp_path / "run.db"
    with ChatServer(GOOD) as server:
        with served(server, journal=journal) as (llm, _):
            first = llm.decide(STATE, TEN)
        sent = len(server.requests)
        assert sent == 11
        with served(server, journal=journal) as (llm, run):
            again = llm.decide(STATE, TEN)
        assert len(server.requests) == sent and run.report().replayed == 10
    assert all(np.array_equal(first[name].probs, again[name].probs) for name in TEN)


def test_a_kind_that_a_model_cannot_decide_is_asked_by_letters():
    def faults(number):
        asked = server.requests[number].body.get("questions", {})
        return Fault(status=400) if any(q["type"] == "noul" for q in asked.values()) else None

    both = {"right": RIGHT, "which": ember.Options("Which?", ["5", "6"])}
    with deciding(faults=faults) as server, served(server) as (llm, run):
        found = llm.decide(STATE, both)
        assert np.isclose(found["right"], 0.9) and found["which"].index == 0 and run.report().decided == 1
        before = len(server.requests)
        llm.decide(STATE + "!", both)
        assert paths(server)[before:].count("decisions") == 1 and len(server.requests) == before + 2


def test_the_error_is_that_of_the_letters_where_they_are_refused_too():
    refusing, refused = ChatServer(GOOD, faults=lambda _: Fault(status=400)), errors.RefusedRequestError
    with refusing as server, served(server) as (llm, _), pytest.raises(refused, match="400"):
        llm.decide(STATE, RIGHT)
    assert {*paths(server)} == {"decisions", "letters"}


def test_a_failure_that_can_pass_is_tried_again():
    with deciding(faults=[Fault(status=503)]) as server, served(server) as (llm, run):
        assert np.isclose(llm.decide(STATE, RIGHT), 0.9)
    assert paths(server) == ["decisions"] * 2 and run.report().retries == 1


# -- orders ----------------------------------------------------------------------------------------------------------


def test_orders_are_averaged_by_option_and_their_bias_is_told():
    # By place: whoever stands first has 0.7, then 0.2 and 0.1.
    def by_place(server):
        def answer(asked):
            options = list(asked["criteria"])
            return {"type": "choice", "probabilities": dict(zip(options, (0.7, 0.2, 0.1), strict=True))}

        return lambda body: {"answers": {n: answer(q) for n, q in body["questions"].items()}}

    edit = lambda answer: by_place(server)(server.requests[-1].body)
    with deciding(faults=lambda _: Fault(edit=edit)) as server, served(server) as (llm, _):
        select = ember.Options("Which?", ["x", "y", "z"])
        two, three, nine = (llm.decide("s", select, orders=n) for n in (2, 3, 9))
    assert np.allclose(two.value.probs, [(0.7 + 0.1) / 2, (0.2 + 0.7) / 2, (0.1 + 0.2) / 2])
    assert np.isclose(two.bias, 0.6) and two.value.index == 1 and str(two.value.text) == "y"
    assert np.allclose(three.value.probs, 1 / 3) and np.isclose(three.bias, 0.6)
    assert np.array_equal(nine.value.probs, three.value.probs)
    sent = [[*q["criteria"]] for r in server.requests for q in r.body["questions"].values()]
    assert sent == [["x", "y", "z"], ["y", "z", "x"], ["z", "x", "y"]]  # an order that is known is not paid for again


def test_levels_are_asked_forwards_and_backwards_and_predicates_have_no_order():
    with deciding() as server, served(server) as (llm, _):
        levels = ember.Levels("How much is it?", ["5", "6", "7"])
        found = llm.decide(STATE, {"level": levels, "right": RIGHT}, orders=5)
    asked = [q["criteria"] for q in server.requests[0].body["questions"].values() if q["type"] == "score"]
    assert len(server.requests) == 1 and asked == [["5", "6", "7"], ["7", "6", "5"]]
    assert len(server.requests[0].body["questions"]) == 3
    assert np.allclose(found["level"].value.probs, [0.9, 0.05, 0.05]) and np.isclose(found["level"].value.level, 0.15)
    assert found["level"].bias < 1e-6 and np.isclose(found["right"].value, 0.9) and found["right"].bias == 0


def test_a_key_draws_the_orders():
    select = ember.Options("Which?", list("abcdef"))
    with deciding() as server, served(server) as (llm, _):
        jax.jit(lambda k: llm.decide("s", select, k, orders=3))(jax.random.key(0))
    first, *others = [[*q["criteria"]] for q in server.requests[0].body["questions"].values()]
    assert first == list("abcdef") and len(others) == 2
    assert all(sorted(order) == first for order in others) and first not in others


# -- as a program ----------------------------------------------------------------------------------------------------


def test_it_is_a_part_of_operators_and_plans():
    @ember.operator
    def sure(state: ember.Text) -> Float[Array, ""]:
        found = ember.LLM("vllm/decider").decide(state, {"right": RIGHT, "which": ember.Options("Which?", ["5", "6"])})
        return found["right"] * found["which"].probs[0]

    states = ember.text([f"Number {i}\n\n{STATE}" for i in range(20)])
    with deciding() as server, served(server) as (_, run):
        plan = ember.lower(jax.vmap(sure))(states)
        assert "of vllm/decider to decide" in plan.explain() and "40 calls" in plan.explain()
        bounds = plan.estimate()
        assert bounds.calls == (40, 40)
        assert np.allclose(jax.vmap(sure)(states), 0.81)
        assert bounds.input_tokens.least <= run.report().input_tokens <= bounds.input_tokens.most
        assert np.array_equal(jax.jit(jax.vmap(sure))(states), jax.vmap(sure)(states))
        assert len(server.requests) == 20
    assert run.report().calls >= 40 and run.report().decided == run.report().calls


def test_probabilities_are_constants_of_a_derivative():
    with deciding() as server, served(server) as (llm, _):
        loss = lambda w, state: w * llm.decide(state, RIGHT)
        value, gradient = jax.vmap(jax.value_and_grad(loss), (None, 0))(2.0, ember.text([STATE, STATE + "!"]))
    assert np.allclose(value, 1.8) and np.allclose(gradient, 0.9) and len(server.requests) == 2


def test_an_estimate_never_understates_what_questions_bill():
    """Each of them may bill the state again; the least is that of a state which is billed once."""
    state = " ".join(["word"] * 1000)
    with served(ChatServerStub(), prices={"vllm": ember.Price(1, 0)}) as (llm, _):
        bounds = ember.lower(ember.jit(lambda s: llm.decide(s, TEN)))(ember.text(state)).estimate()
    assert bounds.input_tokens.least < 2_000 and bounds.input_tokens.most > 10_000
    assert bounds.cost_usd.most >= 10_000 / 1e6 and bounds.calls == (10, 10)


class ChatServerStub:
    base_url = "http://localhost:1/v1"


def test_a_failed_option_fails_the_question():
    def answer(request):
        raise errors.RefusedRequestError("mine/bad: no.")

    with ember.session(providers={"mine": ember.providers.Callable(answer)}, journal=None):
        bad, ok = ember.attempt(ember.LLM("mine/bad"))(ember.text("q"))
        good = ember.LLM("sim/small").decide("s", ember.Options("Which?", [ember.text("a"), bad]), orders=2)
        assert not ok and jnp.isnan(good.value.probs).all() and good.value.text.tolist() is None


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "make", "says"),
    [
        (ValueError, lambda llm: llm.decide("s", {}), "there are no questions"),
        (TypeError, lambda llm: llm.decide("s", 3), r"ember\.Options\(instructions, options\)"),
        (TypeError, lambda llm: llm.decide("s", {"a": ["x", "y"]}), r"questions\['a'\] is list"),
        (ValueError, lambda llm: llm.decide("s", "q?", orders=0), "orders=0"),
        (ValueError, lambda llm: llm.decide("s", "q?", orders=True), "orders=True"),
        (errors.TextError, lambda _: ember.Options("q?", ["a"]), "2 to 255; got 1"),
        (errors.TextError, lambda _: ember.Options("q?", list(map(str, range(256)))), "2 to 255; got 256"),
        (errors.TextError, lambda _: ember.Options("q?", "ab"), "takes a list"),
        (errors.TextError, lambda _: ember.Levels("q?", [["a", "b"]]), r"shape \[1, 2\]"),
        (errors.TextError, lambda _: ember.Predicate(" "), "say what is asked"),
        (errors.TextError, lambda _: ember.Predicate(3), "takes a string or a Text, not int"),
        (errors.TextError, lambda _: ember.Predicate(ember.text(["a", "b"])), r"jax\.vmap"),
        (errors.TextError, lambda llm: llm.decide(["s"], "q?"), "a prompt is one string"),
        (errors.TextError, lambda llm: llm.decide("s", ember.Options("q?", list(map(str, range(27))))), "at most 26"),
        (errors.TextError, lambda llm: llm.decide("s", ember.Levels("q?", list(map(str, range(11))))), "at most 10"),
        (
            errors.TextError,
            lambda _: ember.LLM("anthropic/claude").decide("s", ember.Options("q?", list(map(str, range(27))))),
            "anthropic/claude does not decide without words, and is asked by letters about at most 26",
        ),
        (TypeError, lambda llm: llm.decide(ember.Conversation([("user", "x")]), "q?", whole=True), "takes a text"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_sent(kind, make, says):
    with deciding() as server, served(server) as (llm, _), pytest.raises(kind, match=says):
        make(llm)
    assert not server.requests


def test_openai_takes_255_options_and_a_traced_model_is_told_when_it_runs():
    many = ember.Options("Which?", list(map(str, range(100))))
    listed = [{"value": str(i), "probability": 0.01} for i in range(100)]
    told = {"answers": [{"type": "choice", "probabilities": listed}], "usage": {"input_tokens": 9}}
    with Replies(Reply(told)) as server, served(server, "openai") as (llm, _):
        assert llm.decide("s", many).probs.shape == (100,)
    with deciding() as server, served(server) as _, pytest.raises(errors.SweepError, match="at most 26"):
        jax.vmap(lambda m: ember.LLM(m).decide("s", many))(ember.text(["vllm/decider"]))
    assert not server.requests


# -- constructs ------------------------------------------------------------------------------------------------------


def test_constructs_decide_where_that_is_had():
    question = ember.text("What is 2 + 3?")
    answers = ember.text(["5", "6", "7", "5"])
    members = non.Ensemble([lambda q, a=a: a for a in answers])
    with deciding() as server, served(server) as (llm, run):
        grader = non.Grader(llm)
        scores = jax.vmap(lambda a: grader(question, a))(answers)
        assert np.allclose(scores, [0.9, 0.1, 0.1, 0.9]) and len(server.requests) == 1
        assert str(non.Judge(members, llm)(question, jax.random.key(0))) == "5"
        assert str(non.Verifier(members, llm)(question, jax.random.key(0))) == "5"
        assert str(non.FilterVote(members, llm)(question, jax.random.key(0))) == "5"
        assert str(non.Knockout(members, llm)(question, jax.random.key(0))) == "5"
        assert {*paths(server)} == {"decisions"} and run.report().decided == run.report().calls
    states = [r.body["state"] for r in server.requests]
    assert {*states} == {"What is 2 + 3?"}
    asked = server.requests[0].body["questions"]["q0"]
    assert asked["instructions"] == "Proposed answer: 5\n\nIs the proposed answer correct?" and asked["type"] == "noul"


def test_constructs_ask_as_before_where_it_is_not():
    question, answers = ember.text("What is 2 + 3?"), ember.text(["5", "6"])
    key, llm = jax.random.key(3), ember.LLM("sim/large")
    with ember.session(journal="memory") as run:
        graded = non.Grader(llm)(question, answers[0], key), non.Grader(llm, sampled=True)(question, answers[0], key)
        chosen = llm.choose(f"{question}\n\nProposed answer: 5\n\nIs the proposed answer correct?", ["yes", "no"], key)
        assert run.report().requests == 1
        custom = non.Grader(llm, prompt="Right or not: {answer} to {question}")(question, answers[0], key)
        other = llm.choose("Right or not: 5 to What is 2 + 3?", ["yes", "no"], key)
        assert run.report().requests == 2
    assert graded[0] == chosen.probs[0] and float(graded[1]) == (int(chosen.index) == 0) and custom == other.probs[0]


def test_a_response_of_a_provider_of_ones_own_is_read():
    class Mine(ember.providers.Provider):
        is_local = True
        endpoint = None

        def check(self, model):
            pass

        def decisions(self, request):
            return ember.providers.base.Decisions(2, 5, 5)

        async def complete(self, request):
            each = tuple(Response(packed([3, 1])) for _ in parted(request)[1])
            return each[0] if len(each) == 1 else Response("", answers=each)

        async def close(self):
            pass

    with ember.session(providers={"mine": Mine()}) as run:
        found = ember.LLM("mine/x").decide("s", {str(i): f"Is it {i}?" for i in range(3)})
    assert found == {"0": 0.75, "1": 0.75, "2": 0.75} and run.report().requests == 2


def test_several_states_are_told_how_they_are_asked():
    with pytest.raises(errors.TextError, match=r"jax\.vmap\(lambda prompt: llm\.decide\(prompt, questions\)\)"):
        ember.LLM("sim/small").decide(ember.text(["a", "b"]), "Is it?")
