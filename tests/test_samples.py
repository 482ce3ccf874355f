"""Samples of one question as one request: by a server's own bill and counts, and in virtual time."""

import asyncio
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import Limit, Price, errors, learn, non
from ember_jax._runtime.budget import Budget
from ember_jax._runtime.pricing import Pricing
from ember_jax._runtime.retry import Retry
from ember_jax._runtime.samples import Samples
from ember_jax._runtime.sending import Sender
from ember_jax._runtime.shares import shares
from ember_jax.providers.base import Message, Provider, Request, Response
from ember_jax.providers.compatible import Compatible
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault, SimModel, VirtualClock

KEYS = jax.random.split(jax.random.key(0), 20)
MODEL = SimModel(verbosity=5)
llm = ember.LLM("openai/gpt-4o-mini", temperature=0.7)
long_llm = ember.LLM("openai/gpt-4o-mini", temperature=0.7, max_tokens=8)
ask = ember.jit(jax.vmap(lambda key: llm.complete("What is 3 + 4?", key)))


def serving(server, **how):
    provider = OpenAI(base_url=server.base_url, api_key="")
    return ember.session(providers={"openai": provider}, **{"journal": "memory", **how})


def sizes(server):
    """How many answers each request has asked for."""
    return [request.body.get("n", 1) for request in server.requests]


def check_bill(run, server):
    """All that is counted, over the calls and over the requests, is what the server has billed."""
    report, calls = run.report(), run.calls()
    assert (report.input_tokens, report.output_tokens) == (server.input_tokens, server.output_tokens)
    assert sum(c.input_tokens for c in calls) == server.input_tokens
    assert sum(c.output_tokens for c in calls) == server.output_tokens
    assert sum(c.cost for c in calls) == pytest.approx(report.cost_usd)


@pytest.mark.parametrize("mode", [lambda f: f, jax.jit, ember.jit], ids=["plain", "jit", "ember.jit"])
def test_keys_of_one_prompt_are_one_request(mode):
    with ChatServer(MODEL, fresh=True) as server, serving(server) as run:
        answers = mode(jax.vmap(lambda key: llm("What is 3 + 4?", key)))(KEYS).tolist()
        assert sizes(server) == [20] and run.report().requests == 1 and run.report().calls == 20
        check_bill(run, server)
    assert len(set(answers)) > 1  # they are samples


def test_a_vote_of_16_that_becomes_one_of_20_pays_for_4():
    with ChatServer(MODEL, fresh=True) as server, serving(server) as run:
        question, key = ember.text("What is 3 + 4?"), jax.random.key(1)
        non.Vote(llm, n=16)(question, key)
        assert sizes(server) == [16]
        non.Vote(llm, n=20)(question, key)
        assert sizes(server) == [16, 4]
        non.Vote(llm, n=20)(question, key)
        assert sizes(server) == [16, 4] and run.report().replayed == 36
        check = [c.input_tokens for c in run.calls(failed=False) if c.how == "answered"]
        assert sum(check) == server.input_tokens


def test_votes_of_many_lanes_are_a_request_each_and_the_longest_are_divided():
    questions = ember.text([f"What is {i} + 4?" for i in range(30)])
    with ChatServer(MODEL, fresh=True) as server, serving(server) as run:
        jax.block_until_ready(jax.vmap(non.Vote(llm, n=8))(questions, jax.random.split(jax.random.key(1), 30)))
        assert sizes(server) == [8] * 30
        check_bill(run, server)
    with ChatServer(MODEL, fresh=True) as server, serving(server):
        ask(jax.random.split(jax.random.key(0), 300))
        assert sorted(sizes(server)) == [44, 128, 128]


def test_it_is_on_unless_a_session_says_otherwise():
    with ChatServer(MODEL, fresh=True) as server, serving(server, join_samples=False) as run:
        ask(KEYS)
        assert sizes(server) == [1] * 20
        check_bill(run, server)
    with pytest.raises(TypeError, match="join_samples"):
        ember.session(join_samples=3)


def test_each_is_kept_under_the_digest_that_it_has_alone(tmp_path):
    with ChatServer(MODEL, fresh=True) as server:
        with serving(server, journal=tmp_path / "run.db"):
            said = ask(KEYS)
        for joins in (True, False):
            with serving(server, journal=tmp_path / "run.db", join_samples=joins) as run:
                again = ask(KEYS)
                assert run.report().requests == 0 and run.report().replayed == 20
            assert jnp.array_equal(again.text.digests, said.text.digests)
            assert jnp.array_equal(again.input_tokens, said.input_tokens)


def test_answers_go_to_keys_in_the_order_of_the_keys():
    def answers(keys):
        with ChatServer(MODEL) as server, serving(server):  # the i-th answer to a request is always the same
            return dict(zip(map(str, jax.random.key_data(keys).tolist()), ask(keys).text.tolist(), strict=True))

    assert answers(KEYS) == answers(KEYS[::-1])


# -- services that take it otherwise ---------------------------------------------------------------------------------


def test_a_server_that_gives_one_answer_is_asked_for_the_rest_one_by_one():
    with ChatServer(MODEL, fresh=True, most_samples=1) as server, serving(server) as run:
        ask(KEYS)
        assert sizes(server) == [20] + [1] * 19
        check_bill(run, server)
        ask(jax.random.split(jax.random.key(7), 3))  # and from then on
        assert sizes(server)[20:] == [1] * 3


def test_a_server_that_gives_fewer_is_asked_for_the_rest_together():
    with ChatServer(MODEL, fresh=True, most_samples=8) as server, serving(server) as run:
        ask(KEYS)
        assert sizes(server) == [20, 12, 4] and run.report().failed == 0
        check_bill(run, server)


def test_a_server_that_refuses_it_is_asked_one_by_one():
    with ChatServer(MODEL, fresh=True, most_samples=None) as server, serving(server) as run:
        ask(KEYS)
        assert sizes(server) == [20] + [1] * 20 and run.report().failed == 1
        check_bill(run, server)
        ask(jax.random.split(jax.random.key(7), 3))
        assert sizes(server)[21:] == [1] * 3


def test_a_refusal_of_the_question_itself_is_raised_and_says_nothing_of_samples():
    faults = lambda i: Fault(status=400) if "bad" in str(server.requests[i].body) else None
    both = ember.jit(jax.vmap(lambda prompt, key: llm(prompt, key), (None, 0)))
    with ChatServer(MODEL, fresh=True, faults=faults) as server, serving(server):
        with pytest.raises(errors.SweepError, match="fault was asked for"):
            both(ember.text("a bad question"), KEYS)
        sent = len(server.requests)
        both(ember.text("a good question"), KEYS)
        assert sizes(server)[sent:] == [20]


def test_a_server_that_fails_at_it_is_asked_one_by_one():
    faults = lambda i: Fault(status=500) if server.requests[i].body.get("n", 1) > 1 else None
    with ChatServer(MODEL, fresh=True, faults=faults) as server, serving(server, retry=Retry(first=0.0)):
        ask(KEYS)
        assert sizes(server) == [20, 20] + [1] * 20


def test_where_each_sample_has_a_seed_or_the_service_is_known_to_give_one_they_are_sent_alone():
    seeded = ember.jit(jax.vmap(lambda key: llm.replace(seed=3)("What?", key)))
    with ChatServer(MODEL) as server, serving(server):
        seeded(KEYS[:3])
        assert sizes(server) == [1, 1, 1] and len({r.body["seed"] for r in server.requests}) == 3
    request = Request("groq", "m", (Message("user", "a"),), {}, "00")
    assert Compatible("groq").most_samples(request) == 1 < Compatible("vllm").most_samples(request)
    assert OpenAI().most_samples(Request("openai", "o3-pro", (), {}, "00")) == 1  # Responses have no `n`


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_what_fails_the_whole_request_is_tried_again_as_one():
    busy, bad = Fault(status=429, headers={"retry-after": "0"}), Fault(body="half an ans")
    with ChatServer(MODEL, fresh=True, faults=[busy, bad]) as server, serving(server, retry=Retry(first=0.0)) as run:
        ask(KEYS)
        assert sizes(server) == [20] * 3
        report = run.report()
        assert (report.requests, report.retries, report.throttled, report.failed, report.lost) == (3, 2, 1, 2, 1)
        assert all(len(call.tried) == 3 for call in run.calls())
        check_bill(run, server)


def edited(change):
    """Changes the choices of the first request."""

    def edit(completion):
        change(completion["choices"])
        return completion

    return [Fault(edit=edit)]


def test_one_choice_that_is_of_no_use_is_asked_for_again_by_itself():
    def spoil(choices):
        choices[3]["message"] = {"role": "assistant", "content": 7}

    with ChatServer(MODEL, fresh=True, faults=edited(spoil)) as server, serving(server) as run:
        metered = ember.jit(ember.metered(jax.vmap(lambda key: llm("What is 3 + 4?", key))))
        _, usage = metered(KEYS)
        assert sizes(server) == [20, 1] and sorted(len(c.tried) for c in run.calls()) == [1] * 19 + [2]
        report = run.report()
        assert (report.input_tokens, report.output_tokens) == (server.input_tokens, server.output_tokens)
        # What was billed for the choice of no use is its call's.
        assert (int(usage.input_tokens), int(usage.output_tokens)) == (server.input_tokens, server.output_tokens)
        assert float(usage.cost) == pytest.approx(report.cost_usd)


def test_choices_that_are_cut_filtered_or_empty_are_so_for_their_own_calls():
    def change(choices):
        choices[0]["finish_reason"] = "length"
        choices[1].update(finish_reason="content_filter", message={"role": "assistant", "content": ""})
        choices[2]["message"] = {"role": "assistant", "content": None, "refusal": "No."}

    attempted = ember.jit(jax.vmap(lambda key: ember.attempt(lambda: llm.complete("What is 3 + 4?", key))()))
    with ChatServer(MODEL, fresh=True, faults=edited(change)) as server, serving(server) as run:
        with pytest.warns(errors.CutAnswerWarning):
            answer, ok = attempted(KEYS)
        assert sizes(server) == [20] and int(ok.sum()) == 18
        assert sorted(answer.finish[ok].tolist()) == [1] * 17 + [2] and run.report().cut == 2
        check_bill(run, server)


def test_choices_out_of_order_go_where_their_indices_say():
    def texts(faults=None):
        with ChatServer(MODEL, faults=faults) as server, serving(server):
            return ask(KEYS).text.tolist()

    assert texts(edited(list.reverse)) == texts()


def test_each_choice_has_its_own_log_probability():
    def change(choices):
        for choice in choices:
            choice["logprobs"]["content"] = [{"token": choice["message"]["content"], "logprob": -choice["index"]}]

    told = ember.jit(jax.vmap(lambda key: llm.replace(logprobs=True).complete("What is 3 + 4?", key)))
    with ChatServer(MODEL, fresh=True, faults=edited(change)) as server, serving(server):
        assert sorted(told(KEYS).logprob.tolist()) == [float(-i) for i in reversed(range(20))]
        assert sizes(server) == [20]


def test_a_sample_that_fails_leaves_the_others_kept_and_the_rerun_asks_for_it_alone(tmp_path):
    def spoil(choices):
        choices[3]["message"] = {"role": "assistant", "content": 7}

    faults = [*edited(spoil), Fault(status=400)]
    with ChatServer(MODEL, fresh=True, faults=faults) as server:
        with serving(server, journal=tmp_path / "run.db"), pytest.raises(errors.SweepError, match="1 of 20"):
            ask(KEYS)
        with serving(server, journal=tmp_path / "run.db") as run:
            ask(KEYS)
            assert sizes(server) == [20, 1, 1] and run.report().replayed == 19


# -- budget, limits, schedulers --------------------------------------------------------------------------------------


def test_a_budget_reserves_the_prompt_once_and_halves_what_does_not_fit():
    each = ember.jit(jax.vmap(lambda key: long_llm("What is 3 + 4?", key)))
    prices = {"openai": Price(0, 1e6)}  # a dollar for each token of an answer, of which there may be 8, and is 1

    def answered(dollars):
        with ChatServer(fresh=True) as server, serving(server, prices=prices, budget_usd=dollars) as run:
            try:
                each(KEYS)
            except errors.SweepError:
                assert dollars < 27
            assert run.budget.spent == server.output_tokens <= dollars
            assert len(run.calls(failed=False)) == sum(sizes(server)) == server.output_tokens
            return sizes(server)

    assert answered(160) == [20]
    assert answered(159) == [10, 10]
    assert sum(answered(27)) == 20
    # Of 20 dollars 12 can be spent and leave enough to ask.
    assert sum(answered(20)) == 13


class Many(Provider):
    """Takes a second for a request, and says what it was asked for."""

    def __init__(self):
        self.asked, self.cancelled = [], 0

    def check(self, model):
        pass

    def most_samples(self, request):
        return 128

    async def complete(self, request):
        self.asked.append(request.answers)
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        words = request.messages[-1].content
        if request.answers == 1:
            return Response(words, 3, 1, 4e-6)
        each = tuple(Response(f"{words} {i}") for i in range(request.answers))
        return Response("", 3, request.answers, 3e-6 + request.answers * 1e-6, answers=each)

    async def close(self):
        pass


@pytest.mark.parametrize(
    "how",
    [{}, {"limits": {"many": Limit(in_flight=1)}}, {"scheduler": ember.Topological(1)}, {"retry": Retry(deadline=50)}],
    ids=["nothing", "in_flight", "scheduler", "deadline"],
)
def test_gathering_takes_no_time_and_a_request_takes_one_place(how):
    many = Many()
    questions, keys = ember.text([f"Question {i}" for i in range(5)]), jax.random.split(jax.random.key(1), 5)
    with VirtualClock() as clock, ember.session(providers={"many": many}, journal="memory", **how) as run:
        vote = jax.vmap(non.Vote(ember.LLM("many/m", temperature=1.0), n=16))
        jax.block_until_ready(vote(questions, keys))
        one_at_a_time = "limits" in how or "scheduler" in how
        assert clock.now == (5.0 if one_at_a_time else 1.0)
        assert many.asked == [16] * 5 and run.statistics()["many/m"].admitted == 5
        assert run.report().cost_usd == pytest.approx(sum(c.cost for c in run.calls()))


def test_a_quota_of_requests_counts_one():
    many = Many()
    questions, keys = ember.text([f"Question {i}" for i in range(3)]), jax.random.split(jax.random.key(1), 3)
    limits = {"many": Limit(rpm=60)}
    with VirtualClock() as clock, ember.session(providers={"many": many}, journal="memory", limits=limits):
        each = jax.vmap(non.Vote(ember.LLM("many/m", temperature=1.0), n=16))
        jax.block_until_ready(each(questions, keys))
        assert 2.9 < clock.now < 3.2  # a request a second; 48 of them would take 48 seconds


def test_gradients_are_the_same():
    class Cheap(ember.Operator):
        model: ember.LLM
        bias: jax.Array

        def forward(self, question: ember.Text, key: ember.Key) -> jax.Array:
            votes = jax.vmap(lambda k: ember.features(self.model(question, k), 4))(jax.random.split(key, 4))
            return jnp.tanh(self.bias * votes.mean())

    def found(joins):
        loss = lambda op, question, key: op(question, key)
        with ember.session(providers={"mine": Plain()}, journal="memory", join_samples=joins) as run:
            op = Cheap(ember.LLM("mine/m"), jnp.float32(0.5))
            value, grads = learn.value_and_grad(loss, samples=2)(op, (ember.text(["a", "b"]),), jax.random.key(3))
            return float(value), float(grads.bias), run.report().requests

    (value, gradient, few), (same, too, more) = found(True), found(False)
    assert (value, gradient) == (same, too) and few < more


class Plain(Many):
    """Answers alike, whatever the key."""

    async def complete(self, request):
        answer = Response(request.messages[-1].content * 2, 3, 1, 1e-6)
        return answer._replace(answers=(answer,) * request.answers) if request.answers > 1 else answer


# -- calls that leave ------------------------------------------------------------------------------------------------


def sent(scenario):
    """Runs a scenario with the sends of three samples, in virtual time."""
    provider = Many()
    pricing = Pricing({}, lambda name: provider, Budget(math.inf))
    sender = Sender(lambda name: provider, lambda name, amount=1: None, {}, Retry(), pricing)
    samples = Samples(sender, lambda name: provider, pricing, True)
    attempts = [[], [], []]
    requests = [Request("many", "m", (Message("user", "a"),), {}, f"0{i}") for i in range(3)]
    with VirtualClock():
        from ember_jax._runtime.loop import get_loop

        async def run():
            send = lambda i, turn=None: asyncio.ensure_future(samples.send(requests[i], attempts[i], turn))
            return await scenario(send)

        return get_loop().submit(run()).result(60), provider, attempts


@pytest.mark.parametrize("when", [0.0, 0.5])
def test_a_call_that_is_cancelled_does_not_cancel_the_others(when):
    async def scenario(send):
        tasks = [send(i) for i in range(3)]
        await asyncio.sleep(when)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    (first, second, third), provider, attempts = sent(scenario)
    assert isinstance(second, asyncio.CancelledError)
    assert [first.text, third.text] == (["a 0", "a 2"] if when else ["a 0", "a 1"])
    assert provider.asked == [3 if when else 2] and [len(a) for a in attempts] == [1, 0, 1]


def test_a_request_that_nobody_waits_for_is_cancelled():
    async def scenario(send):
        tasks = [send(i) for i in range(3)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    _, provider, _ = sent(scenario)
    assert provider.asked == [3] and provider.cancelled == 1


def test_what_is_known_or_not_to_be_sent_at_its_turn_is_left_out():
    known = Response("known")

    async def knows():
        return known

    async def refuses():
        raise errors.JournalError("full")

    async def sends():
        return None

    async def scenario(send):
        return await asyncio.gather(send(0, knows), send(1, sends), send(2, sends), return_exceptions=True)

    (first, *rest), provider, _ = sent(scenario)
    assert first is known and provider.asked == [2] and [r.text for r in rest] == ["a 0", "a 1"]

    async def other(send):
        return await asyncio.gather(send(0, refuses), send(1, knows), send(2, sends), return_exceptions=True)

    (first, second, third), provider, _ = sent(other)
    assert isinstance(first, errors.JournalError) and second is known
    assert third.text == "a" and provider.asked == [1]


# -- bills and estimates ---------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.lists(st.integers(1, 1000), min_size=1, max_size=128))
def test_tokens_are_shared_out_whole(count, weights):
    parts = shares(count, weights)
    assert sum(parts) == count and min(parts) >= 0
    assert all(abs(p - count * w / sum(weights)) < 1 for p, w in zip(parts, weights, strict=True))


def test_tokens_of_a_prompt_are_shared_evenly_the_first_taking_the_rest():
    assert shares(10, [1, 1, 1, 1]) == [3, 2, 3, 2]
    assert shares(3, [1] * 5) == [1, 1, 0, 1, 0]


@pytest.mark.parametrize("joins", [True, False])
def test_an_estimates_bounds_hold(joins):
    @ember.operator
    def vote(question: ember.Text, key: ember.Key) -> ember.Text["16"]:
        return jax.vmap(lambda k: long_llm(question, k))(jax.random.split(key, 16))

    question, key = ember.text("What is the sum of three and four?"), jax.random.key(1)
    with ChatServer(MODEL, fresh=True) as server, serving(server, join_samples=joins) as run:
        told = ember.lower(vote)(question, key).estimate()
        jax.block_until_ready(vote(question, key).digests)
        report = run.report()
        for bounds, amount in [
            (told.input_tokens, report.input_tokens),
            (told.output_tokens, report.output_tokens),
            (told.cost_usd, report.cost_usd),
        ]:
            assert bounds.least <= amount <= bounds.most
        # A prompt of eight words has eight tokens here; it is known, so it is counted once, or for each call.
        assert told.input_tokens.least == server.input_tokens == (8 if joins else 128)


def test_an_estimate_of_prompts_that_are_not_known_holds_if_they_turn_out_to_be_one():
    @ember.operator
    def op(question: ember.Text, key: ember.Key) -> ember.Text["16"]:
        keys = jax.random.split(key, 16)
        return jax.vmap(lambda k: long_llm(ember.format("Check this at once: {d}", d=llm(question)), k))(keys)

    question, key = ember.text("What?"), jax.random.key(1)
    with ChatServer(MODEL, fresh=True) as server, serving(server, limits={"openai": Limit(rpm=600)}) as run:
        told = ember.lower(op)(question, key).estimate()
        jax.block_until_ready(op(question, key).digests)
        assert sizes(server) == [1, 16]
        assert told.input_tokens.least <= run.report().input_tokens <= told.input_tokens.most
        assert told.cost_usd.least <= run.report().cost_usd
        assert told.seconds <= 0.2  # two requests, of 600 a minute
