"""What is tried again, after how long, and that nothing is lost, nor paid for twice beyond what a fault forces."""

import asyncio
import contextlib
import json
import logging
import math
import random
import re
from typing import NamedTuple

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import Retry, errors, testing
from ember_jax._runtime import retry
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault, SimModel, VirtualClock

AT_ONCE = Retry(first=0.0)
LATER = [
    errors.RateLimitError("429", status=429),
    errors.ServerError("503", status=503),
    errors.ConnectionFailedError("reset"),
    errors.MalformedResponseError("half", status=200),
]
NEVER = [
    errors.AuthenticationError("401", status=401),
    errors.RefusedRequestError("400", status=400),
    errors.ProviderError("something"),
]

ember.register("ours", Callable(lambda request: request.messages[-1].content))
OURS, MODEL = ember.LLM("ours/model"), ember.LLM("openai/m")
ask = ember.jit(lambda prompt: OURS(prompt))
ask_server = ember.jit(lambda prompt: MODEL(prompt))


# -- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", LATER)
def test_what_may_pass_is_tried_again(error):
    assert retry.can_pass(error)
    assert retry.wait(Retry(), error, 1, 0.0, 0.5) is not None


@pytest.mark.parametrize("error", NEVER)
def test_what_cannot_pass_is_not(error):
    assert not retry.can_pass(error)
    assert retry.wait(Retry(), error, 1, 0.0, 0.5) is None


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True), st.floats(0.01, 10), st.floats(0, 100))
def test_jitter_is_full_and_its_bound_doubles(attempts, uniform, first, longest):
    policy = Retry(attempts=1000, seconds=math.inf, first=first, longest=longest)
    bound = min(longest, first * 2.0 ** (attempts - 1))
    assert retry.wait(policy, LATER[1], attempts, 0.0, uniform) == uniform * bound


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 500), st.integers(1, 7))
def test_what_the_service_asks_for_is_obeyed_to_the_letter(uniform, seconds, attempts):
    asked = errors.ServerError("503", status=503, retry_after=seconds)
    assert retry.wait(Retry(longest=1.0), asked, attempts, 0.0, uniform) == seconds


def test_attempts_and_seconds_have_a_cap():
    wait = lambda attempts, spent, uniform=0.5: retry.wait(Retry(3, 10.0, 4.0), LATER[1], attempts, spent, uniform)
    assert wait(2, 0.0) == 4.0
    assert wait(3, 0.0) is None
    assert wait(1, 8.0) == 2.0
    assert wait(1, 8.1) is None
    long = errors.RateLimitError("429", status=429, retry_after=10.5)
    assert retry.wait(Retry(3, 10.0), long, 1, 0.0, 0.5) is None


def test_refusals_are_bounded_by_time_and_not_by_their_number():
    wait = lambda attempts, spent, policy: retry.wait(policy, LATER[0], attempts, spent, 0.5)
    assert wait(100, 8.0, Retry(3, 10.0, 4.0, 4.0)) == 2.0
    assert wait(100, 8.1, Retry(3, 10.0, 4.0, 4.0)) is None
    assert wait(1, 0.0, Retry(1)) is None


@pytest.mark.parametrize("error", [*LATER, *NEVER])
@pytest.mark.parametrize("should", [True, False])
def test_what_the_service_says_of_trying_again_counts(error, should):
    said = type(error)("so", status=error.status, should_retry=should)
    assert retry.can_pass(said) is should


@pytest.mark.parametrize(
    "settings",
    [{"attempts": 0}, {"attempts": 1.5}, {"seconds": -1.0}, {"first": math.nan}, {"longest": -0.1}, {"deadline": 0.0}],
)
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=rf"Retry\({next(iter(settings))}="):
        Retry(**settings)


# -- when ------------------------------------------------------------------------------------------------------------


class Failing:
    """A provider's function that takes a second, and fails as it is told at first. Notes when it was called."""

    def __init__(self, *faults, seconds=1.0):
        self.faults, self.seconds = list(faults), seconds
        self.calls = []

    async def __call__(self, request):
        self.calls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        return request.messages[-1].content


@contextlib.contextmanager
def answering(fn, **settings):
    with VirtualClock() as clock, ember.session(providers={"ours": Callable(fn)}, journal=None, **settings) as run:
        yield clock, run


def busy(seconds=None, kind=errors.RateLimitError, status=429):
    return kind("not now", status=status, retry_after=seconds)


@pytest.mark.parametrize("kind", [errors.RateLimitError, errors.ServerError])
def test_a_call_waits_as_long_as_it_is_asked_to(kind):
    fn = Failing(busy(2.0, kind), busy(0.25, kind))
    with answering(fn) as (clock, run):
        assert str(ask(ember.text("a"))) == "a"
        assert clock.now == 5.25
    assert fn.calls == [0.0, 3.0, 4.25]
    report = run.report()
    throttled = 2 if kind is errors.RateLimitError else 0
    assert (report.calls, report.requests, report.retries, report.throttled) == (1, 3, 2, throttled)
    assert report.failed == 2


async def a_while_later(x):
    await asyncio.sleep(60)
    return x


async def a_little_later(x):
    await asyncio.sleep(1.5)
    return x


def test_all_calls_of_the_model_wait_and_those_of_others_do_not():
    fn, later = Failing(busy(2.0)), ember.host(a_little_later, out=ember.Text)

    @ember.jit
    def three(a, b):
        return OURS(a), OURS(later(b)), ember.LLM("ours/other")(later(b))

    with answering(fn) as (clock, _):
        assert [str(said) for said in three(ember.text("a"), ember.text("b"))] == ["a", "b", "b"]
        assert clock.now == 4.0
    # The first is refused after one second, for two; the second would begin meanwhile, and is held; the third is not.
    assert fn.calls == [0.0, 1.5, 3.0, 3.0]


def test_backoff_is_within_its_bounds():
    fn = Failing(*[busy() for _ in range(4)], seconds=0.0)
    with answering(fn, retry=Retry(first=1.0, longest=2.0)) as (_, _run):
        ask(ember.text("a"))
    gaps = [b - a for a, b in zip(fn.calls, fn.calls[1:], strict=False)]
    assert len(gaps) == 4
    for gap, bound in zip(gaps, [1.0, 2.0, 2.0, 2.0], strict=True):
        assert 0 <= gap <= bound
    assert len(set(gaps)) > 1


def test_attempts_end_with_the_last_error():
    fn = Failing(*[busy(1.0, errors.ServerError, 503) for _ in range(9)])
    with answering(fn, retry=Retry(attempts=3)) as (_, run), pytest.raises(errors.ServerError, match="not now"):
        ask(ember.text("a"))
    assert fn.calls == [0.0, 2.0, 4.0]
    assert (run.report().requests, run.report().retries, run.report().failed) == (3, 2, 3)


def test_refusals_do_not_use_attempts_up():
    fn = Failing(*[busy(1.0) for _ in range(9)], busy(1.0, errors.ServerError, 503))
    with answering(fn, retry=Retry(attempts=2)) as (_, run):
        assert str(ask(ember.text("a"))) == "a"
    assert (run.report().requests, run.report().retries, run.report().throttled) == (11, 10, 9)


def test_a_wait_beyond_the_cap_is_not_begun():
    fn = Failing(busy(1.0), busy(1.0), busy(1.0))
    with answering(fn, retry=Retry(seconds=3.5)) as _, pytest.raises(errors.RateLimitError):
        ask(ember.text("a"))
    assert fn.calls == [0.0, 2.0]


@pytest.mark.parametrize("faults", [[], [busy(8.0)], [errors.ServerError("down", status=503, retry_after=2.5)] * 9])
def test_a_deadline_ends_a_call_whatever_it_waits_for(faults):
    fn = Failing(*faults, seconds=7.0 if not faults else 1.0)
    with answering(fn, retry=Retry(deadline=5.0)) as (clock, _):
        with pytest.raises(errors.ConnectionFailedError, match=r"ours/model: no answer within 5 s.*deadline"):
            ask(ember.text("a"))
        assert clock.now == 5.0


def test_a_deadline_counts_from_when_a_call_begins_and_frees_what_it_held():
    fn = Failing(seconds=3.0)
    limits = {"ours": ember.Limit(in_flight=1)}
    with answering(fn, retry=Retry(deadline=3.5), limits=limits) as (clock, run):
        jax.vmap(ask)(ember.text(["a", "b", "c", "d"])).tolist()
        assert clock.now == 12.0
        fn.seconds = 4.0
        with pytest.raises(errors.SweepError, match="2 of 2"):
            jax.vmap(ask)(ember.text(["e", "f"]))
        stats = run.statistics()["ours/model"]
    assert (stats.in_flight, stats.waiting) == (0, 0)


# -- behind a gate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "named"), [(Retry(), r"Retry\(seconds=600\)"), (Retry(deadline=3.0), r"Retry\(deadline=3\)")]
)
@pytest.mark.parametrize("kind", [errors.RateLimitError, errors.ServerError])
def test_a_wait_that_is_longer_than_the_policy_allows_ends_all_calls_at_once(policy, named, kind):
    fn = Failing(busy(3600.0, kind, 429 if kind is errors.RateLimitError else 503), seconds=1.0)
    limits = {"ours": ember.Limit(in_flight=10)}
    words = ember.text([f"w{i}" for i in range(40)])
    with answering(fn, retry=policy, limits=limits) as (clock, run):
        with pytest.raises(errors.SweepError) as caught:
            jax.block_until_ready(jax.vmap(ask)(words))
        # Those that were sent with the one that was refused are answered, and none waits.
        assert clock.now <= 3.0
        failed = [failure.cause for failure in caught.value.failures]
        assert len(failed) == 31 and run.report().requests == 10
        behind = [cause for cause in failed if "not sent" in str(cause)]
        assert len(behind) == 30 and {type(cause) for cause in behind} == {errors.RateLimitError}
        for cause in behind:
            assert re.search(
                rf"not sent, as it would wait for 3,600 s, .* {named}.*the service, which asked", str(cause)
            )
        assert run.statistics()["ours/model"].waiting == 0


def test_who_comes_when_little_of_the_wait_is_left_waits():
    fn = Failing(busy(100.0), seconds=1.0)
    later = ember.host(a_while_later, out=ember.Text)
    limits = {"ours": ember.Limit(in_flight=1)}
    two = ember.jit(lambda a, b: (ember.attempt(OURS)(a), OURS(later(b))))
    with answering(fn, retry=Retry(seconds=50.0), limits=limits) as (clock, _):
        two(ember.text("a"), ember.text("b"))
        assert clock.now == 102.0
    assert fn.calls == [0.0, 101.0]


def test_what_holds_calls_for_long_is_told(caplog):
    caplog.set_level(logging.INFO, "ember_jax")
    fn = Failing(busy(90.0), seconds=1.0)
    limits = {"ours": ember.Limit(in_flight=1)}
    seen = []

    async def look(x):
        await asyncio.sleep(31.0)
        seen.append((run.statistics()["ours/model"], run.held()))
        return x

    watch = ember.host(look, out=ember.Text)
    with answering(fn, limits=limits) as (_, run):
        jax.block_until_ready(ember.jit(lambda a, b, c: (OURS(a), OURS(b), watch(c)))(*ember.text(["a", "b", "c"])))
        after = run.statistics()["ours/model"]
    (stats, words), by = seen[0], "the service, which asked to wait (429)"
    assert (stats.held_s, stats.held_by, stats.waiting) == (60.0, by, 2)
    assert words == [f"ours/model waits 60 s for {by}"]
    assert (after.held_s, after.held_by) == (0.0, "")
    (record,) = [record for record in caplog.records if getattr(record, "event", None) == "held"]
    assert (record.model, record.by, record.wait_s, record.waiting) == ("ours/model", by, 90.0, 1)
    assert run.report().held_s == 90.0 and re.search(r"^held +90 s$", str(run.report()), re.M)


def test_a_limit_that_is_given_is_told_of_as_well():
    fn = Failing(seconds=0.0)
    with answering(fn, limits={"ours": ember.Limit(rpm=2)}) as (_, run):
        jax.vmap(ask)(ember.text(["a", "b", "c"])).tolist()
    assert run.report().held_s == 60.0


# -- refusals in disguise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "words", "sent"),
    [
        ({"response_format": {"type": "json_object"}}, ["no such form", "no such form", ""], 2),
        ({"response_format": {"type": "json_object"}}, ["no such form", "slot 3 is busy", ""], 3),
        ({"response_format": {"type": "json_object"}}, ["a", "b", "b", ""], 3),
        ({"temperature": 0.5, "max_tokens": 5}, ["no such form", "no such form", ""], 3),
    ],
)
def test_a_server_error_that_is_said_twice_to_the_same_request_is_a_refusal(parameters, words, sent):
    faults = [Fault(status=500, body=json.dumps({"error": {"message": w}})) if w else None for w in words]
    with serving(faults) as (server, _):
        model = ember.LLM("openai/m", **parameters)
        is_refused = sent < len(words)
        with pytest.raises(errors.RefusedRequestError, match="twice") if is_refused else contextlib.nullcontext():
            str(model(ember.text("hello")))
    assert len(server.requests) == sent


def test_what_a_server_refuses_with_500_is_asked_without():
    def refusing(number):
        asked = server.requests[number].body
        return Fault(status=500, body='{"error": {"message": "logprobs?"}}') if "logprobs" in asked else None

    with serving(refusing) as (server, _):
        for word in ("one", "two"):
            MODEL.choose(ember.text(word), ["yes", "no"])
    assert ["logprobs" in request.body for request in server.requests] == [True, True, False, False]


# llama.cpp's server (xllamacpp 2026.10.11549), of an answer that it could not parse under a JSON schema.
UNREADABLE = Fault(
    status=500,
    body='{"error":{"code":500,"message":"The model produced output that does not match the expected peg-native '
    'format","type":"server_error"}}',
)


class Review(NamedTuple):
    stars: int


def asked_of(server):
    """What each request asked of the service: with a schema, with JSON alone, or by the prompt."""
    return [(request.body.get("response_format") or {}).get("type") for request in server.requests]


def test_an_answer_that_the_server_could_not_read_is_no_refusal_of_the_schema():
    faults = [UNREADABLE] * 3 + [None] + [UNREADABLE] * 2
    with serving(faults) as (server, run):
        for word in ("one", "two"):
            MODEL.structured(ember.text(word), Review)
    assert asked_of(server) == ["json_schema"] * 7
    assert (run.report().retries, run.report().failed, run.report().lost) == (5, 5, 0)


def test_where_no_attempt_is_read_under_a_schema_the_question_is_asked_without():
    def unreadable(number):
        return UNREADABLE if "response_format" in server.requests[number].body else None

    with serving(unreadable) as (server, _):
        for word in ("one", "two"):
            MODEL.structured(ember.text(word), Review)
    assert asked_of(server) == ["json_schema"] * 8 + ["json_object"] * 8 + [None, None]


def test_what_the_server_cannot_read_at_temperature_0_it_is_asked_for_twice():
    with serving([UNREADABLE] * 4) as (server, _):
        MODEL.replace(temperature=0).structured(ember.text("one"), Review)
    assert asked_of(server) == ["json_schema"] * 2 + ["json_object"] * 2 + [None]


def test_where_no_attempt_is_read_the_error_says_so():
    with serving([UNREADABLE] * 99) as (server, _), pytest.raises(errors.MalformedResponseError) as caught:
        MODEL.structured(ember.text("one"), Review)
    assert asked_of(server) == ["json_schema"] * 8 + ["json_object"] * 8 + [None] * 8
    assert "does not match the expected peg-native format. The server could not read its own" in str(caught.value)
    with serving([None] + [UNREADABLE] * 99) as (server, _):
        MODEL.structured(ember.text("one"), Review)
        with pytest.raises(errors.MalformedResponseError, match="could not read its own model's answer"):
            MODEL.structured(ember.text("two"), Review)
    assert asked_of(server) == ["json_schema"] * 9


def test_who_waits_to_try_again_holds_no_slot():
    fn = Failing(errors.ServerError("down", status=503), seconds=1.0)
    limits = {"ours": ember.Limit(in_flight=1)}
    with answering(fn, limits=limits, retry=Retry(first=1000.0, longest=1000.0, seconds=2000.0)):
        jax.vmap(ask)(ember.text(["a", "b", "c", "d"])).tolist()
    assert fn.calls[:4] == [0.0, 1.0, 2.0, 3.0]
    assert len(fn.calls) == 5


def test_what_is_not_a_providers_error_is_not_tried_again():
    fn = Failing(ValueError("my mistake"))
    with answering(fn), pytest.raises(ValueError, match="my mistake"):
        ask(ember.text("a"))
    assert len(fn.calls) == 1


def test_equal_calls_share_their_retries():
    fn = Failing(busy(1.0))
    with answering(fn) as (_, run), pytest.warns(match="one and the same sample"):
        words = ember.Text(jax.numpy.broadcast_to(ember.text("a").digests, (64, 4)))
        assert jax.vmap(ask)(words).tolist() == ["a"] * 64
    assert (run.report().calls, run.report().requests, run.report().merged) == (64, 2, 63)


# -- real servers ----------------------------------------------------------------------------------------------------

HALF = json.dumps({"choices": [{"message": {"content": "half"}}]})[:-9]
PASSING = {
    "429": Fault(status=429),
    "429 that says when": Fault(status=429, headers={"retry-after-ms": "20"}),
    "408": Fault(status=408),
    "500": Fault(status=500),
    "502": Fault(status=502, body="<html>Bad Gateway</html>"),
    "503": Fault(status=503, headers={"retry-after": "0.02"}),
    "529": Fault(status=529),
    "reset": Fault(reset=True),
    "truncated": Fault(truncate=True),
    "malformed": Fault(body=HALF),
    "no json": Fault(body=b"\xff\x00"),
    "no choices": Fault(body='{"choices": []}'),
}
LASTING = {
    "400": (Fault(status=400), errors.RefusedRequestError),
    # LiteLLM's proxy 1.108.7 without a database, of a key that it does not know.
    "no database": (
        Fault(
            status=400,
            body='{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}',
        ),
        errors.AuthenticationError,
    ),
    "401": (Fault(status=401), errors.AuthenticationError),
    "403": (Fault(status=403), errors.AuthenticationError),
    "404": (Fault(status=404), errors.RefusedRequestError),
    "422": (Fault(status=422), errors.RefusedRequestError),
    "redirect": (Fault(status=307, headers={"location": "/"}), errors.RefusedRequestError),
    "no credit": (
        Fault(status=429, body='{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'),
        errors.RefusedRequestError,
    ),
    "declined": (Fault(body='{"choices": [{"message": {"refusal": "no"}}]}'), errors.NoAnswerError),
}


@contextlib.contextmanager
def serving(faults, **settings):
    """A server with faults, and a session that asks it."""
    settings = {"retry": AT_ONCE, **settings}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ChatServer(SimModel(accuracy=1.0), faults=faults))
        provider = OpenAI(server.base_url, api_key="")
        run = stack.enter_context(ember.session(providers={"openai": provider}, journal=None, **settings))
        yield server, run


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_may_pass_is_tried_again_until_it_does(name):
    fault = PASSING[name]
    with serving([fault, fault]) as (server, run):
        assert str(MODEL(ember.text("What is 17 * 23?"))) == "391"
        assert str(MODEL(ember.text("What is 2 + 2?"))) == "4"
    assert len(server.requests) == 4
    report = run.report()
    assert (report.calls, report.requests, report.retries, report.failed) == (2, 4, 2, 2)
    assert report.throttled == (2 if fault.status == 429 else 0)


@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_lasts_fails_at_once(name):
    fault, kind = LASTING[name]
    with serving([fault]) as (server, run), pytest.raises(kind):
        MODEL(ember.text("What is 17 * 23?"))
    assert len(server.requests) == 1
    report = run.report()
    # What the model declined is an answer, which is paid for and kept.
    assert (report.requests, report.retries, report.failed) == (1, 0, int(name != "declined"))


def test_a_gateway_that_does_not_know_the_key_is_understood():
    fault, _ = LASTING["no database"]
    with serving([fault]), pytest.raises(errors.AuthenticationError) as caught:
        MODEL(ember.text("hello"))
    assert str(caught.value) == (
        "openai/m: HTTP 400: No connected db. LiteLLM does not know the key. Check OPENAI_API_KEY, or "
        "the argument api_key of OpenAI(api_key=…)."
    )


def test_a_server_that_does_not_say_why_it_fails_has_a_log():
    """`transformers serve` 5.24.0 does so for a model that it does not have, LiteLLM's proxy 1.108.7 without a key."""
    fault = Fault(status=500, headers={"content-type": "text/plain"}, body="Internal Server Error")
    with serving([fault] * 9) as (server, _), pytest.raises(errors.ServerError) as caught:
        MODEL(ember.text("hello"))
    assert len(server.requests) == 8
    assert str(caught.value) == "openai/m: HTTP 500: Internal Server Error. The server does not say why; its log may."


def test_a_wrong_key_fails_at_once():
    with ChatServer(api_key="right") as server:
        provider = OpenAI(server.base_url, api_key="wrong")
        with ember.session(providers={"openai": provider}, journal=None), pytest.raises(errors.AuthenticationError):
            MODEL(ember.text("hello"))
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_tried_as_often_as_told():
    with ChatServer() as server:
        url = server.base_url
    settings = {"providers": {"openai": OpenAI(url, api_key="")}, "journal": None}
    with ember.session(**settings, retry=Retry(3, first=0.0)) as run, pytest.raises(errors.ConnectionFailedError):
        MODEL(ember.text("hello"))
    assert (run.report().requests, run.report().retries, run.report().failed) == (3, 2, 3)


QUESTIONS = [f"What is {i} * 7?" for i in range(60)]


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_in_a_fifth_of_calls_changes_no_answer_and_loses_no_call(name):
    fault, draws = PASSING[name], random.Random(0)
    strikes = [draws.random() < 0.2 for _ in range(1000)]
    with serving(lambda number: fault if strikes[number] else None) as (server, run):
        answers = jax.vmap(ask_server)(ember.text(QUESTIONS)).tolist()
    assert answers == [str(7 * i) for i in range(60)]
    sent = len(server.requests)
    struck = sum(strikes[:sent])
    report = run.report()
    assert sent == 60 + struck, "each call is answered once, and sent again for each fault alone"
    assert (report.calls, report.requests, report.retries, report.failed) == (60, sent, struck, struck)
    assert report.throttled == (struck if fault.status == 429 else 0)


def test_slow_answers_are_waited_for():
    slow = testing.Fault(delay=0.05)
    with serving(lambda number: slow if number % 5 == 0 else None) as (server, run):
        answers = jax.vmap(ask_server)(ember.text(QUESTIONS[:20])).tolist()
    assert answers == [str(7 * i) for i in range(20)]
    assert (len(server.requests), run.report().retries) == (20, 0)
