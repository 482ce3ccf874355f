"""Calls that can only fail as another has are not sent; what may be about one call alone is. Requests are counted."""

import json

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import errors
from ember_jax._runtime.verdict import is_final
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault

LANES = 50
PRICES = {"served": ember.Price(1.0, 1.0)}


def refusal(status, code):
    return Fault(status=status, body=json.dumps({"error": {"message": "It is refused.", "code": code}}))


FOR_GOOD = {
    "wrong key": (refusal(401, "invalid_api_key"), errors.AuthenticationError),
    "a proxy's wrong key": (refusal(400, "no_db_connection"), errors.AuthenticationError),
    "unknown model": (refusal(404, "model_not_found"), errors.RefusedRequestError),
    "no credit": (refusal(429, "insufficient_quota"), errors.RefusedRequestError),
}
OF_ONE = [refusal(status, "anything") for status in (400, 402, 403, 413, 422)]


class Serving:
    """A server, a session with it as `served`, and what becomes of sweeps."""

    def __init__(self, faults, in_flight=4, **settings):
        self.server = ChatServer(faults=faults)
        self.in_flight, self.settings, self.swept = in_flight, settings, 0

    def __enter__(self):
        self.server.__enter__()
        limits = {"served": ember.Limit(in_flight=self.in_flight)}
        settings = {"limits": limits, "journal": None, "prices": PRICES, **self.settings}
        self.session = ember.session(providers={"served": OpenAI(self.server.base_url, api_key="k")}, **settings)
        self.run = self.session.__enter__()
        return self

    def __exit__(self, *error):
        self.session.__exit__(*error)
        self.server.__exit__(*error)

    def sweep(self, lanes=LANES, **settings):
        """How many requests new questions take, and the failures of their lanes."""
        self.swept += 1
        before, llm = len(self.server.requests), ember.LLM("served/m", **settings)
        questions = ember.text([f"sweep {self.swept}, question {i}" for i in range(lanes)])
        failures = ()
        try:
            jax.block_until_ready(ember.jit(jax.vmap(llm))(questions))
        except errors.SweepError as error:
            failures = error.failures
        requests = len(self.server.requests) - before
        assert self.run.report().requests == len(self.server.requests)
        return requests, failures

    def question(self, number):
        return self.server.requests[number].body["messages"][-1]["content"]


@pytest.mark.parametrize("kind", FOR_GOOD)
def test_the_rest_of_a_sweep_fails_with_the_same_cause_unsent_and_a_rerun_asks_once(kind):
    fault, error = FOR_GOOD[kind]
    with Serving(lambda number: fault) as serving:
        for sent in (4, 1, 1):
            requests, failures = serving.sweep()
            assert (requests, len(failures)) == (sent, LANES)
            assert {(type(f.cause), f.cause.status, str(f.cause)) for f in failures} == {
                (error, fault.status, str(failures[0].cause))
            }
        calls = serving.run.calls(failed=True)
        assert len(calls) == 3 * LANES and sum(call.attempts for call in calls) == 6
        assert serving.run.report().failed == 6


@pytest.mark.parametrize("fault", OF_ONE, ids=lambda fault: str(fault.status))
def test_what_may_be_about_one_prompt_is_found_out_for_each(fault):
    with Serving(lambda number: fault) as serving:
        assert [(n, len(failures)) for n, failures in (serving.sweep(), serving.sweep())] == [(LANES, LANES)] * 2


@pytest.mark.parametrize("fault", OF_ONE, ids=lambda fault: str(fault.status))
def test_only_the_lane_fails_whose_prompt_is_refused(fault):
    with Serving(lambda number: fault if serving.question(number).endswith(" 7") else None) as serving:
        requests, failures = serving.sweep()
        assert requests == LANES and [f.lane for f in failures] == [(7,)]


@pytest.mark.parametrize("slots", [4, None])
def test_calls_that_wait_for_a_scheduler_or_a_quota_fail_at_once_too(slots):
    limits = {} if slots else {"served": ember.Limit(rpm=60)}
    scheduler = ember.Topological(slots) if slots else None
    with Serving(lambda number: FOR_GOOD["wrong key"][0], limits=limits, scheduler=scheduler) as serving:
        requests, failures = serving.sweep(400)  # with that quota they would take six minutes
        assert requests <= 4 and len(failures) == 400


# -- what is mended --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOR_GOOD)
def test_when_it_is_mended_a_rerun_sends_each_call_once_and_later_ones_at_once(kind):
    fault = FOR_GOOD[kind][0]
    with Serving(lambda number: fault) as serving:
        assert serving.sweep()[0] == 4
        fault = None
        assert serving.sweep() == (LANES, ())
        fault = Fault(delay=0.05)  # as answers that come at once are never in flight together
        assert serving.sweep() == (LANES, ())
        assert serving.server.in_flight_max == 4


def test_a_trial_that_tells_nothing_is_followed_by_another():
    def fault(number):
        if number < 4:
            return FOR_GOOD["wrong key"][0]
        return OF_ONE[0] if number < 7 else None

    with Serving(fault) as serving:
        serving.sweep()
        requests, failures = serving.sweep()
        assert (requests, len(failures)) == (LANES, 3)


def test_a_provider_that_is_registered_anew_is_not_tried_first():
    with ChatServer(faults=lambda number: FOR_GOOD["wrong key"][0]) as wrong, ChatServer(together=10) as right:
        ember.register("served", OpenAI(wrong.base_url, api_key=""))
        with ember.session(journal=None, prices=PRICES) as run:
            sweep = ember.jit(jax.vmap(ember.LLM("served/m")))
            with pytest.raises(errors.SweepError):
                sweep(ember.text([str(i) for i in range(LANES)]))
            ember.register("served", OpenAI(right.base_url, api_key=""))
            sweep(ember.text([str(i) for i in range(LANES)]))  # a first one alone would never be answered
        assert len(right.requests) == LANES and run.report().requests == LANES + len(wrong.requests) <= LANES + 10


# -- what does not hold for all --------------------------------------------------------------------------------------


def test_another_model_is_another_matter():
    def fault(number):
        return FOR_GOOD["unknown model"][0] if serving.server.requests[number].body["model"] == "gone" else None

    with Serving(fault) as serving:
        models = ember.text(["served/gone", "served/there"] * 10)
        questions = ember.text([str(i) for i in range(20)])
        with pytest.raises(errors.SweepError) as caught:
            ember.jit(jax.vmap(lambda model, question: ember.LLM(model)(question)))(models, questions)
        assert [f.lane[0] for f in caught.value.failures] == list(range(0, 20, 2))
        asked = [request.body["model"] for request in serving.server.requests]
        assert asked.count("there") == 10 and asked.count("gone") <= 4


def test_a_404_about_a_parameter_holds_for_calls_with_the_same_ones():
    def fault(number):
        asks = "reasoning_effort" in serving.server.requests[number].body
        return FOR_GOOD["unknown model"][0] if asks else None

    with Serving(fault) as serving:
        assert serving.sweep(reasoning_effort="high")[0] == 4
        assert serving.sweep() == (LANES, ())
        # As the model has answered, it takes some more.
        requests, failures = serving.sweep(reasoning_effort="low")
        assert requests <= 8 + 3 and len(failures) == LANES


def test_one_refusal_of_a_model_that_answers_is_that_of_one_call_and_many_in_a_row_are_of_all():
    broken = {60, 75, 80}
    with Serving(lambda number: FOR_GOOD["wrong key"][0] if number in broken else None) as serving:
        assert serving.sweep() == (LANES, ())
        requests, failures = serving.sweep()
        assert (requests, len(failures)) == (LANES, 3)
        broken.update(range(110, 1000))
        requests, failures = serving.sweep(200)
        assert 18 <= requests <= 18 + 3 and len(failures) == 190
        assert serving.sweep()[0] == 1


def test_a_python_function_may_refuse_one_call_as_it_likes():
    asked = []

    def answer(request):
        asked.append(request)
        raise errors.AuthenticationError("no", status=401)

    questions = ember.text([str(i) for i in range(LANES)])
    with ember.session(providers={"served": Callable(answer)}, journal=None), pytest.raises(errors.SweepError):
        ember.jit(jax.vmap(ember.LLM("served/m")))(questions)
    assert len(asked) == LANES


@given(
    st.sampled_from(
        [errors.AuthenticationError, errors.RefusedRequestError, errors.RateLimitError, errors.ServerError]
    ),
    st.sampled_from([None, 400, 401, 402, 403, 404, 422, 429, 500]),
    st.sampled_from([None, True, False]),
)
def test_what_is_final(kind, status, should_retry):
    is_so = (kind, status) in {
        (errors.AuthenticationError, 401),
        (errors.AuthenticationError, 400),
        (errors.RefusedRequestError, 404),
        (errors.RefusedRequestError, 429),
    }
    assert is_final(kind("no", status=status, should_retry=should_retry)) == (is_so and not should_retry)
