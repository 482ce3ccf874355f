"""What a session tells its watchers: each call that was asked for, once, with who asked and how it went."""

import asyncio

import jax
import jax.numpy as jnp
import pytest

import ember_jax as ember
from ember_jax.errors import AuthenticationError, ServerError
from ember_jax.providers.base import Provider, Request, Response


class Scripted(Provider):
    """Answers in capitals; what `errors` holds comes first, by prompt."""

    def __init__(self, errors=None):
        self.errors = errors or {}

    def check(self, model):
        pass

    async def complete(self, request: Request) -> Response:
        prompt = request.messages[-1].content
        await asyncio.sleep(0)  # so that equal calls meet
        if self.errors.get(prompt):
            raise self.errors[prompt].pop(0)
        return Response(prompt.upper(), 1, 2, 0.5)

    async def close(self):
        pass


@ember.operator
def inner(word: ember.Text) -> ember.Text:
    return ember.LLM("mine/m")(word + "!")


@ember.operator
def outer(word: ember.Text) -> ember.Text:
    return inner(word) + ember.LLM("mine/m")(word)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"limits": ember.Limit(rpm=5)}, r"limits=….*\{\"openai\": Limit\(…\)\}, not Limit"),
        ({"prices": 3}, r"prices=….*\{\"openai\": Price\(…\)\}, not int"),
        ({"retry": 3}, r"takes an ember.Retry, as in Retry\(attempts=3\), not 3"),
        ({"progress": "yes"}, "takes True, False, or None"),
    ],
)
def test_a_setting_of_the_wrong_type_is_told_before_anything_is_sent(settings, told):
    with pytest.raises(TypeError, match=told):
        ember.session(**settings)


def test_each_call_is_told_with_its_lane_its_operators_and_its_answer():
    seen = []
    with ember.session(providers={"mine": Scripted()}, journal=None) as run:
        run.watchers.append(seen.append)
        jax.block_until_ready(jax.vmap(outer)(ember.text(["a", "b"])))
    found = {(e.lane, e.scope, e.request.messages[-1].content, e.how, e.response.text) for e in seen}
    assert found == {
        ((i,), scope, w + mark, "answered", (w + mark).upper())
        for i, w in enumerate("ab")
        for scope, mark in [("outer/inner", "!"), ("outer", "")]
    }
    assert len(seen) == 4
    for event in seen:
        (attempt,) = event.attempts
        assert event.began <= attempt.began <= attempt.ended <= event.ended
        assert (event.error, attempt.error, event.stands_for) == (None, None, 1)


def test_replays_merges_and_failures_are_told_as_such():
    provider = Scripted({"bad": [AuthenticationError("no")], "weak": [ServerError("a"), ServerError("b")]})
    seen = []
    with ember.session(providers={"mine": provider}, retry=ember.Retry(first=0, longest=0)) as run:
        run.watchers.append(seen.append)
        llm = ember.LLM("mine/m")
        ask, key = ember.jit(lambda word, key: llm(word, key)), jax.random.key(0)
        jax.block_until_ready(jax.vmap(ask)(ember.text(["x", "x"]), jnp.stack([key, key])))
        for word in ("x", "weak"):
            ask(ember.text(word), key)
        with pytest.raises(AuthenticationError):
            ask(ember.text("bad"), key)
        report = run.report()
    assert sorted(e.how for e in seen) == ["answered", "answered", "failed", "merged", "replayed"]
    assert [len(e.attempts) for e in seen if e.how in ("merged", "replayed")] == [0, 0]
    (weak,) = (e for e in seen if e.request.messages[-1].content == "weak")
    assert [type(a.error) for a in weak.attempts] == [ServerError, ServerError, type(None)]
    (failed,) = (e for e in seen if e.how == "failed")
    assert isinstance(failed.error, AuthenticationError)
    assert failed.response is None
    assert failed.attempts[0].error is failed.error
    assert report.requests == sum(len(e.attempts) for e in seen)
    assert report.calls == sum(e.stands_for for e in seen)


def test_a_call_that_a_plan_has_made_one_of_several_says_how_many():
    seen = []
    with ember.session(providers={"mine": Scripted()}, journal=None) as run:
        run.watchers.append(seen.append)
        llm = ember.LLM("mine/m")
        three = ember.jit(lambda word: [llm(word, jax.random.key(0)) for _ in range(3)])
        jax.block_until_ready(three(ember.text("x")))
    assert [e.stands_for for e in seen] == [3]
