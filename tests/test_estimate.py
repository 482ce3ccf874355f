"""What a plan comes to before it runs: by hand, and as bounds that runs on simulated models keep to."""

import asyncio
import math
from types import SimpleNamespace
from typing import NamedTuple

import genai_prices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import Limit, Price
from ember_jax._runtime import sending
from ember_jax._runtime.journal.memory import MemoryJournal
from ember_jax._tell.estimate import Amounts, Expected, Likely
from ember_jax._tell.expect import Latency, Observation, Pilot, of_calls, of_pilot, seconds
from ember_jax._text import lengths
from ember_jax._text.elementwise import NUMBER, TEXT, ElementwiseOp
from ember_jax._text.operations import _format
from ember_jax.providers.base import Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.providers.sim import SimModel
from ember_jax.testing import ChatServer, VirtualClock

# What is allowed for what a service adds to a prompt of one message: 16 tokens for it and 64 for the request.
ADDED = 80
SMALL = ember.LLM("sim/small", max_tokens=30)  # $0.15 and $0.60 for a million tokens
LARGE = ember.LLM("sim/large", max_tokens=7)  # $15 and $60


def estimate(fn, *args, **how):
    return ember.lower(fn)(*args).estimate(**how)


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_one_call_of_known_words():
    found = estimate(SMALL, ember.text("What is 2 + 3?"))  # 5 words, 14 bytes
    assert found.calls == (1, 1)
    assert found.input_tokens == (5, 14 + ADDED)
    assert found.output_tokens == (1, 30)
    assert found.cost_usd == pytest.approx(((5 * 0.15 + 0.60) / 1e6, (94 * 0.15 + 30 * 0.60) / 1e6))
    assert found.seconds == 0
    assert dict(found.models) == {"sim/small": Amounts(*[getattr(found, n) for n in FIELDS])}


FIELDS = ("calls", "input_tokens", "output_tokens", "cost_usd")


def test_a_sweep_is_the_sum_of_its_prompts():
    words = [f"{'word ' * i}é" for i in range(50)]
    found = estimate(jax.vmap(SMALL), ember.text(words))
    assert found.calls == (50, 50)
    assert found.input_tokens == (sum(range(1, 51)), sum(5 * i + 2 + ADDED for i in range(50)))
    assert found.output_tokens == (50, 1500)


def test_a_system_prompt_and_a_template_are_counted():
    llm = SMALL.replace(system="Be brief.")

    def ask(question):
        return llm(ember.format("Q: {q}\nA:", q=question))

    found = estimate(ask, ember.text("why?"))
    assert found.input_tokens == (2 + 3, 9 + 10 + ADDED + 16)


def test_a_system_prompt_that_is_empty_is_no_message_and_one_that_is_not_known_may_be_one():
    found = estimate(SMALL.replace(system=""), ember.text("why?"))
    assert found.input_tokens == (1, 4 + ADDED)

    def chain(question):
        return LARGE.replace(system=SMALL(question))(question)

    found = estimate(chain, ember.text("why?"))
    assert found.models["sim/large"].input_tokens == (1, 4 + 30 + ADDED + 16)


def test_an_unset_bound_is_none():
    def ask(question, is_there):
        return ember.LLM("sim/small", max_tokens=ember.Maybe(5, is_there))(question)

    assert estimate(ask, ember.text("x"), jnp.array(True)).output_tokens == (1, 4096)  # not known to be there
    bounded, free = (ember.LLM("sim/small", max_tokens=ember.Maybe(5, is_there)) for is_there in (True, False))
    assert estimate(bounded, ember.text("x")).output_tokens == (1, 5)
    assert estimate(free, ember.text("x")).output_tokens == (1, 4096)


def test_an_earlier_answer_counts_by_its_own_bound():
    def chain(question):
        return LARGE(ember.format("Check {a}!", a=SMALL(question)))

    found = estimate(chain, ember.text("x"))
    assert found.models["sim/large"].input_tokens == (2, 7 + 30 + ADDED)  # "Check " and "!", and up to 30 tokens
    assert found.calls == (2, 2)


def test_joined_and_added_answers():
    def both(a, b):
        return LARGE(ember.join(" ", [SMALL(a), SMALL(b)]) + " end")

    found = estimate(both, ember.text("x"), ember.text("y"))
    assert found.models["sim/large"].input_tokens == (1, 30 + 1 + 30 + 4 + ADDED)


def test_a_branch_is_either_and_what_is_certain_is_counted():
    def pick(question, flag):
        return jax.lax.cond(flag, lambda: LARGE(question), lambda: SMALL(question))

    found = estimate(pick, ember.text("x"), jnp.asarray(True))
    assert found.calls == (1, 1)
    assert found.output_tokens == (1, 30)
    assert found.models["sim/small"].calls == found.models["sim/large"].calls == (0, 1)
    assert found.cost_usd == pytest.approx(((0.15 + 0.6) / 1e6, (81 * 15 + 7 * 60) / 1e6))


def test_a_scan_is_unrolled_and_its_conversation_grows():
    def chat(question):
        def step(said, _):
            return said + " " + SMALL(said), None

        return jax.lax.scan(step, question, None, length=3)[0]

    found = estimate(chat, ember.text("x"))
    assert found.calls == (3, 3)
    assert found.input_tokens == (3, 1 + (1 + 31) + (1 + 62) + 3 * ADDED)


def test_scanned_and_reversed_words_are_those_of_their_step():
    def each(questions):
        def step(last, question):
            return SMALL(ember.format("{q}", q=question)), last

        return jax.lax.scan(step, ember.text(""), questions, reverse=True)

    assert estimate(each, ember.text(["a", "b b", "c c c"])).input_tokens == (6, 9 + 3 * ADDED)


def test_what_a_loop_repeats_has_no_most():
    def until(question):
        return jax.lax.while_loop(lambda c: c != LARGE(c), lambda c: SMALL(c), question)

    found = estimate(until, ember.text("x"))
    assert found.calls == (1, math.inf)
    assert found.models["sim/large"].calls == (1, math.inf)
    assert found.models["sim/small"].calls == (0, math.inf)
    assert "1 or more" in str(found)


def test_models_and_settings_that_are_chosen_by_a_number():
    stacked = jax.tree.map(lambda *x: jnp.stack(x), LARGE, SMALL)

    def routed(question, i):
        return jax.tree.map(lambda x: x[i], stacked)(question)

    found = estimate(routed, ember.text("x"), jnp.asarray(0))
    assert found.models.keys() == {"sim/small", "sim/large"}
    assert (found.calls, found.output_tokens) == ((1, 1), (1, 30))


def test_a_sweep_over_models():
    names = ember.text(["sim/small", "sim/large", "sim/small"])
    found = estimate(jax.vmap(lambda name: ember.LLM(name, max_tokens=5)("hi")), names)
    assert {name: amounts.calls for name, amounts in found.models.items()} == {"sim/small": (2, 2), "sim/large": (1, 1)}


def test_calls_that_are_known_to_be_equal_are_in_the_least_once():
    found = estimate(jax.vmap(SMALL), ember.text(["a", "b", "a", "a"]))
    assert found.calls == (4, 4)
    assert found.output_tokens == (2, 120) and found.input_tokens[0] == 2
    keys = jax.random.split(jax.random.key(0), 3)
    assert estimate(jax.vmap(lambda key: SMALL("a", key)), keys).output_tokens == (3, 90)
    cold = SMALL.replace(temperature=0.0)  # where a key means nothing
    assert estimate(jax.vmap(lambda key: cold("a", key)), keys).output_tokens == (1, 90)


def test_a_choice_lists_its_options_and_answers_one_of_them():
    def choose(question):
        return LARGE(SMALL.choose(question, ["yes indeed it is", "no"]).text)

    found = estimate(choose, ember.text("x"))
    assert found.models["sim/large"].input_tokens == (1, 16 + ADDED)
    listed = "x\n\nA. yes indeed it is\nB. no\n\nReply with the letter of one option and nothing else."
    assert found.models["sim/small"].input_tokens == (len(listed.split()), len(listed) + ADDED)


def test_a_schema_is_part_of_the_input():
    class Review(NamedTuple):
        """A review."""

        stars: int

    plain = estimate(SMALL, ember.text("x")).input_tokens
    formed = estimate(lambda q: SMALL.structured(q, Review).stars, ember.text("x")).input_tokens
    assert formed[0] == plain[0] and formed[1] > plain[1] + 50


def test_what_a_python_function_says_is_unknown():
    search = ember.host(lambda words: words * 2, ember.Text)
    found = estimate(lambda q: SMALL(ember.format("{found} {q}", found=search(q), q=q)), ember.text("x"))
    assert found.calls == (1, 1)  # of models
    assert found.input_tokens == (1, math.inf)
    assert math.isinf(found.cost_usd.most)


def test_a_number_is_written_no_longer_than_the_longest_of_its_type():
    found = estimate(lambda x: SMALL(ember.format("{x:.2f}", x=x)), jnp.float32(0.5))
    assert found.input_tokens == (0, len(f"{-float(np.finfo(np.float32).max):.2f}") + ADDED)


@pytest.mark.parametrize("spec", ["", ".3f", "e", "08.1f"])
@given(value=st.floats(width=32))
def test_the_bound_of_a_written_number_holds(spec, value):
    op = ElementwiseOp(_format, (("x",),), (TEXT, NUMBER), TEXT)
    bound = lengths.result(op, [f"{{x:{spec}}}" if spec else "{x}", np.dtype(np.float32)])
    written = _format(("x",), f"{{x:{spec}}}" if spec else "{x}", np.float32(value))
    assert len(written.split()) >= bound.least and len(written) <= bound.most


def test_without_a_bound_and_without_a_price_the_most_is_unknown():
    own = {"mine": Callable(lambda _: "yes")}
    with ember.session(providers=own):
        found = estimate(ember.LLM("mine/a"), ember.text("x"))
        assert (found.output_tokens, found.cost_usd) == ((1, math.inf), (0, math.inf))
        assert str(found).count("or more") == 2
    with ember.session(providers=own, prices={"mine": Price(1, 0)}):
        assert estimate(ember.LLM("mine/a"), ember.text("x")).cost_usd == pytest.approx((1e-6, 81e-6))


def test_the_models_own_window_and_price_are_known():
    own = {"openai": OpenAI(base_url="http://localhost:1/v1", api_key="")}
    with ember.session(providers=own):
        found = estimate(ember.LLM("openai/gpt-4o-mini"), ember.text("x"))
    assert found.output_tokens == (1, 128_000)
    assert found.cost_usd.most == pytest.approx((81 * 0.15 + 128_000 * 0.60) / 1e6)


def test_no_call_comes_to_nothing():
    found = estimate(lambda q: q + "!", ember.text("x"))
    assert (found.calls, found.cost_usd, found.seconds, dict(found.models)) == ((0, 0), (0, 0), 0, {})


def test_it_is_shown_as_a_table():
    def pick(question, flag):
        return jax.lax.cond(flag, lambda: LARGE(question), lambda: SMALL(question))

    shown = str(estimate(jax.vmap(ember.jit(pick)), ember.text(["x", "y"]), jnp.array([True, False]), latency=2.0))
    assert shown.splitlines() == [
        "            calls  input tokens  output tokens              US dollars",
        "sim/small  0 to 2      0 to 162        0 to 60  $0.000000 to $0.000060",
        "sim/large  0 to 2      0 to 162        0 to 14  $0.000000 to $0.003270",
        "all             2      2 to 162        2 to 60  $0.000002 to $0.003270",
        "at least 2 s",
    ]


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit", [Limit(rpm=600), Limit(rpm=60), Limit(in_flight=7), Limit(rpm=600, in_flight=5), Limit(tpm=6000)], ids=str
)
def test_a_run_takes_no_less_time_and_where_requests_are_limited_exactly_so_long(limit):
    async def answer(request):
        await asyncio.sleep(0.25)
        return Response("yes", input_tokens=len(request.messages[0].content.split()) + 4, output_tokens=3)

    questions = ember.text([f"What about {i} and {i}?" for i in range(90)])
    with ember.session(providers={"mine": Callable(answer)}, limits={"mine": limit}, prices={"mine": Price(1, 1)}):
        llm = ember.LLM("mine/a", max_tokens=3)
        told = estimate(jax.vmap(llm), questions, latency=0.25).seconds
        with VirtualClock() as clock:
            jax.block_until_ready(jax.vmap(llm)(questions))
            taken = clock.now
    assert taken >= told - 1e-6
    if limit.tpm is None:
        assert taken == pytest.approx(told, abs=1e-5)


def test_calls_that_wait_for_one_another_take_their_latencies():
    def chain(question):
        return LARGE(SMALL(SMALL(question)))

    assert estimate(chain, ember.text("x"), latency=2.0).seconds == 6.0


def test_a_providers_limit_is_shared_by_its_models():
    def both(question):
        return SMALL(question), LARGE(question)

    questions = ember.text([str(i) for i in range(60)])
    minute = Limit(rpm=60)
    shared = estimate(jax.vmap(both), questions, limits={"sim": minute}).seconds
    own = estimate(jax.vmap(both), questions, limits={"sim": minute, "sim/large": minute}).seconds
    assert (shared, own) == pytest.approx((119.0, 59.0))


# -- what a run then reports -----------------------------------------------------------------------------------------


def vote(question, n):
    """Several samples of one question, and a judge that reads them."""
    keys = jax.random.split(jax.random.key(0), 3)
    drafts = jax.vmap(lambda key: SMALL(ember.format("{q} ({n})", q=question, n=n), key))(keys)
    return LARGE(question + "\n" + ember.join("\n", drafts))


def cascade(question, n):
    """A branch that an answer decides."""
    draft = SMALL(question)
    wanted = ember.parse_number(draft) > 20
    return jax.lax.cond(wanted, lambda: LARGE(ember.format("{q} Not {d}?", q=question, d=draft)), lambda: draft)


def refined(question, n):
    """A conversation."""

    def step(said, i):
        return ember.format("{said} ({i}) {more}", said=said, i=i, more=SMALL(said)), None

    return jax.lax.scan(step, question, jnp.arange(3) + n)[0]


def chosen(question, n):
    """A choice, and what follows from it."""
    choice = SMALL.choose(question, ["yes", "no, not at all"])
    told = ember.format("{q} It is {c}: {p:.3f}", q=question, c=choice.text, p=choice.probs[0])
    return ember.LLM("sim/medium", max_tokens=4)(told)


@pytest.mark.parametrize("mapped", [lambda f: jax.vmap(ember.jit(f)), lambda f: jax.vmap(f)], ids=["lanes", "batch"])
@pytest.mark.parametrize("program", [vote, cascade, refined, chosen])
@settings(max_examples=5)
@given(numbers=st.lists(st.integers(-500, 500), min_size=1, max_size=6, unique=True))
def test_what_a_run_reports_lies_within_the_bounds(program, mapped, numbers):
    questions = ember.text([f"What is {i} + 11? {'So? ' * (i % 5)}" for i in numbers])
    fn = mapped(program)
    args = questions, jnp.asarray(numbers)
    bounds = estimate(fn, *args)
    with ember.session(journal=None) as run:
        jax.block_until_ready(ember.jit(fn)(*args))
    report = run.report()
    for name in FIELDS:
        least, most = getattr(bounds, name)
        assert least - 1e-12 <= getattr(report, name) <= most + 1e-12, name
    assert math.isfinite(bounds.cost_usd.most)


def test_what_is_no_limit_and_no_latency_is_refused():
    plan = ember.lower(SMALL)(ember.text("x"))
    with pytest.raises(TypeError, match="takes a Limit"):
        plan.estimate(limits={"sim": 5})
    with pytest.raises(ember.errors.ModelError, match="nobody"):
        plan.estimate(limits={"nobody": Limit(rpm=5)})
    with pytest.raises(ValueError, match="latency"):
        plan.estimate(latency=-1.0)


def test_what_may_fail_and_what_is_counted_is_estimated_like_any_other():
    def careful(question):
        (draft, ok), used = ember.metered(ember.attempt(SMALL))(question)
        return jax.lax.cond(ok, lambda: draft, lambda: LARGE(question)), LARGE(draft), used.cost

    found = estimate(careful, ember.text("x"))
    assert found.models["sim/small"].calls == (1, 1)
    assert found.models["sim/large"].calls == (1, 2)
    assert found.models["sim/large"].input_tokens == (0, 30 + 1 + 2 * ADDED)


# -- what is expected ------------------------------------------------------------------------------------------------


def judged(question, key):
    """Three samples, a judge, and a second look where it is not sure."""
    small = ember.LLM("mine/small", max_tokens=400, temperature=1.0)
    drafts = jax.vmap(lambda k: small(question, k))(jax.random.split(key, 3))
    verdict = ember.LLM("mine/large", max_tokens=400)(ember.format("{q}\n{d}", q=question, d=ember.join("\n", drafts)))
    again = ember.parse_number(verdict) > 300
    return jax.lax.cond(again, lambda: small(ember.format("{q} Really?", q=verdict)), lambda: verdict)


def lengthy(seed, seconds=0.0):
    """A provider whose answers have lengths, and latencies, that its seed draws; and the sessions' prices of it."""

    async def answer(request):
        rng = np.random.default_rng([seed, *request.digest()])
        ask = np.random.default_rng([seed, *request.messages[0].content.partition("?")[0].encode()])
        if seconds:
            await asyncio.sleep(seconds * rng.lognormal(0, 0.4))
        words = int(min(400, 1 + 60 * rng.lognormal(0, 0.5) * ask.lognormal(0, 0.4)))
        read = len(request.messages[0].content.split())
        return Response(str(rng.integers(1000)), input_tokens=read, output_tokens=words)

    prices = {"mine/small": Price(0.15, 0.6), "mine/large": Price(15, 60)}
    return {"providers": {"mine": Callable(answer)}, "prices": prices}


def sweep(seed, count=90):
    questions = ember.text([f"{seed}: what is {i} + 11{' or so' * (i % 7)}?" for i in range(count)])
    return questions, jax.random.split(jax.random.key(seed), count)


QUANTITIES = ("input_tokens", "output_tokens", "cost_usd")


def test_the_interval_of_a_pilot_holds_what_the_whole_run_uses_and_the_pilot_is_not_paid_again():
    fn, held = jax.vmap(ember.jit(judged)), []
    for seed in range(8):
        with ember.session(journal=MemoryJournal(), **lengthy(seed)) as run:
            args = sweep(seed)
            plan = ember.lower(fn)(*args)
            found = plan.estimate(pilot=20)
            paid = run.report()
            assert 80 <= paid.requests <= 100 and paid.failed == 0
            assert plan.estimate(pilot=20) == found and run.report().requests == paid.requests
            plan.run(*args)
            whole = run.report()
            assert whole.replayed >= paid.requests * 2
            assert whole.requests == whole.calls - whole.replayed - whole.merged
        expected = found.expected
        assert expected.source == "of 20 of 90 lanes" and expected.answers == paid.requests
        for name in QUANTITIES:
            likely, bounds = getattr(expected, name), getattr(found, name)
            assert bounds.least <= likely.low <= likely.mean <= likely.high <= bounds.most
            held.append(likely.low <= getattr(whole, name) <= likely.high)
        likely = expected.calls
        held.append(likely.low <= whole.requests <= likely.high)
        assert likely.high - likely.low < 40
    assert np.mean(held) > 0.8  # of 32, that are alike in fours


def test_the_interval_of_earlier_answers_holds_what_others_like_them_use(tmp_path):
    fn, held = jax.vmap(ember.jit(judged)), []
    for seed in range(6):
        path = tmp_path / f"{seed}.db"
        with ember.session(journal=path, **lengthy(seed)):
            assert ember.lower(fn)(*sweep(seed)).estimate().expected is None  # nothing is known
            jax.block_until_ready(fn(*sweep(100 + seed, 25)))
        with ember.session(journal=path, **lengthy(seed)) as run:  # which has seen none of them
            found = ember.lower(fn)(*sweep(seed)).estimate().expected
            assert found is not None and found.source == "of earlier calls"
            assert run.report().requests == 0
            jax.block_until_ready(fn(*sweep(seed)))
        held += [
            getattr(found, name).low <= getattr(run.report(), name) <= getattr(found, name).high for name in QUANTITIES
        ]
        assert found.calls.low <= found.calls.mean <= found.calls.high
    assert np.mean(held) > 0.75  # of 18, that are alike in threes


def test_the_time_that_is_expected_holds_under_limits(monkeypatch):
    monkeypatch.setattr(sending, "time", SimpleNamespace(time=lambda: asyncio.get_running_loop().time()))
    held, fn = [], jax.vmap(ember.jit(judged))
    for seed, limit in enumerate((Limit(), Limit(in_flight=8), Limit(rpm=600), Limit(tpm=60_000))):
        how = {"limits": {"mine": limit}, **lengthy(seed, 2.0)}
        with VirtualClock() as clock, ember.session(journal=MemoryJournal(), **how):
            plan = ember.lower(fn)(*sweep(seed, 60))
            plan.estimate(pilot=15)
            before = clock.now
            found = plan.estimate(pilot=15).expected.seconds  # replayed, and its times are remembered
            assert clock.now == before
        with VirtualClock() as clock, ember.session(journal=None, **how):
            jax.block_until_ready(fn(*sweep(seed, 60)))
            held.append((limit, found, clock.now))
    assert all(found.low <= taken <= found.high < 3 * found.low for _, found, taken in held), held


@pytest.mark.parametrize("answers", [2, 3, 30])
@pytest.mark.parametrize("depth", [1, 4])
def test_a_few_answers_that_took_unlike_times_tell_their_mean_and_no_longer_than_clients_wait(answers, depth):
    each = Latency(mean=0.5, variance=0.42, answers=answers)  # of two or three, drawn variances may be any
    mean, low, high = seconds(each, depth, 1.0, 0.0, lambda latency, factor: 0.0)
    assert low <= mean <= high < depth * 600.001
    assert mean == pytest.approx(depth * 0.5, rel=0.15)  # that of a lognormal number is the one that it is given
    assert low < depth * 0.5 < high
    slow = Latency(mean=3000.0, variance=1e8, answers=answers)  # of clients that were told to wait longer
    assert 3000 < seconds(slow, depth, 1.0, 0.0, lambda latency, factor: 0.0)[2] < depth * 30_000.1


def test_an_operator_that_is_asked_once_is_known_whole_by_its_pilot():
    with ember.session(journal=MemoryJournal(), **lengthy(0)) as run:
        question, key = ember.text("what is 1 + 1?"), jax.random.key(0)
        found = ember.lower(ember.jit(lambda q, k: ember.LLM("mine/small", max_tokens=400)(q, k)))(question, key)
        expected = found.estimate(pilot=20).expected
    assert expected.output_tokens == (run.report().output_tokens,) * 3
    assert expected.cost_usd.mean == pytest.approx(run.report().cost_usd)


def test_a_pilot_that_ends_badly_says_why_and_one_without_lanes_of_one_kind_is_refused():
    def answer(request):
        raise ember.errors.RefusedRequestError("not today")

    with ember.session(providers={"mine": Callable(answer)}, journal=None) as run:
        plan = ember.lower(jax.vmap(ember.jit(judged)))(*sweep(0))
        with pytest.raises(ember.errors.SweepError, match=r"5 of 5 lanes failed.*(?s:.*)and 4 more.*not today"):
            plan.estimate(pilot=5)
        assert run.report().calls == 15
        for wrong in (-1, 2.5):
            with pytest.raises(ValueError, match=f"pilot={wrong}.*how many lanes"):
                plan.estimate(pilot=wrong)

        def two(short, long):
            llm = ember.LLM("mine/small", max_tokens=4)
            return jax.vmap(llm)(short), jax.vmap(llm)(long)

        plan = ember.lower(two)(ember.text(["a", "b"]), ember.text(["a", "b", "c"]))
        with pytest.raises(ember.errors.UnsupportedError, match="sweeps of 2 and 3 lanes"):
            plan.estimate(pilot=1)


def test_lanes_outside_of_a_pilot_call_nothing_of_the_users():
    seen = []
    search = ember.host(lambda words: seen.append(words) or words, ember.Text, pure=False)
    with ember.session(journal=MemoryJournal(), **lengthy(0)) as run:
        fn = ember.jit(lambda q: ember.LLM("mine/small", max_tokens=400)(search(q)))
        ember.lower(jax.vmap(fn))(sweep(0)[0]).estimate(pilot=7)
    assert len(seen) == run.report().requests == 7


def test_a_pilot_over_http_is_paid_once_by_the_servers_own_count(tmp_path):
    model = SimModel(verbosity=20)
    with ChatServer(model) as server:
        own = {"local": OpenAI(base_url=server.base_url, api_key="")}
        with ember.session(providers=own, prices={"local": Price(1, 2)}, journal=tmp_path / "kept.db") as run:
            llm = ember.LLM("local/m", max_tokens=60)
            fn = jax.vmap(ember.jit(lambda q: llm(ember.format("{q} Sure?", q=llm(q)))))
            plan = ember.lower(fn)(sweep(0, 40)[0])
            expected = plan.estimate(pilot=10).expected
            assert len(server.requests) == expected.answers == 20
            jax.block_until_ready(plan.run(sweep(0, 40)[0]))
        bill = server.input_tokens + 2 * server.output_tokens
        assert len(server.requests) == 80 == expected.calls.mean
        assert run.report().cost_usd == pytest.approx(bill / 1e6)
    assert expected.cost_usd.low <= bill / 1e6 <= expected.cost_usd.high < 1.5 * expected.cost_usd.mean


def test_a_budget_ends_a_pilot():
    with ember.session(journal=None, budget_usd=1e-9, **lengthy(0)):
        plan = ember.lower(jax.vmap(ember.jit(judged)))(*sweep(0))
        with pytest.raises((ember.errors.BudgetError, ember.errors.SweepError), match="more than all of budget_usd"):
            plan.estimate(pilot=3)


def test_the_table_of_prices_is_named():
    own = {"openai": OpenAI(base_url="http://localhost:1/v1", api_key="")}
    with ember.session(providers=own):
        shown = str(estimate(ember.LLM("openai/gpt-4o-mini"), ember.text("x")))
    assert shown.splitlines()[-1] == f"prices: genai_prices {genai_prices.__version__}"
    with ember.session(providers=own, prices={"openai": Price(1, 1)}):
        assert estimate(ember.LLM("openai/gpt-4o-mini"), ember.text("x")).prices == ""


def test_what_is_expected_is_shown():
    likely = Likely(100.0, 80.0, 120.4)
    shown = str(
        Expected(likely, likely, likely, Likely(0.5, 0.25, 1.0), Likely(30.0, 20.0, 150.0), 7, "of earlier calls")
    )
    assert shown == (
        "expected, by 7 answers of earlier calls: 100 (80 to 120) calls, 100 (80 to 120) input tokens, 100 (80 to 120) "
        "output tokens, $0.500000 ($0.250000 to $1.000000), 30 s (20 s to 2.5 min)"
    )
    unknown = Likely(math.nan, math.nan, math.nan)
    assert str(Expected(likely, likely, likely, unknown, unknown, 7, "x")).endswith("output tokens, an unknown cost")


@pytest.mark.parametrize(("known", "lanes"), [(10, 120), (20, 40)])
def test_intervals_hold_for_lanes_that_differ_and_branch(known, lanes):
    """Lanes of three calls that are alike, and in half of them a fourth: heavy tails, by closed form and simulation."""
    rng, trials, pilot, earlier = np.random.default_rng(0), 600, 0, 0

    def held(sums, total):
        low, high = sums.interval()
        return (low <= total * (1 + 1e-12)) & (total * (1 - 1e-12) <= high)

    def lane(i):
        alike = rng.lognormal(0, 0.5)
        calls = [("a", alike * rng.lognormal(3, 0.6)) for _ in range(3)]
        calls += [("b", alike * rng.lognormal(4, 0.4))] if rng.uniform() < 0.5 else []
        return [Observation(("op", model), i, (1, 10, words, words * 1e-5), 1.0) for model, words in calls]

    for _ in range(trials):
        made = [lane(i) for i in range(lanes)]
        total = np.array([answer.amounts for calls in made for answer in calls]).sum(0)
        taken = rng.permutation(lanes)[:known].tolist()
        sums = of_pilot(Pilot(lanes, taken, [answer for i in taken for answer in made[i]]))
        pilot += held(sums, total)
        before = {("op", "a"): [], ("op", "b"): []}
        for answer in (answer for i in range(known) for answer in lane(i)):
            before[answer.group].append(answer)
        sums = of_calls(before, {("op", "a"): (3 * lanes, 3 * lanes), ("op", "b"): (0, lanes)})
        earlier += held(sums, total)
    for share in (pilot / trials, earlier / trials):  # to 0.018, two standard errors
        assert np.all(share >= (0.9 if known == 10 else 0.91)) and np.all(share <= 0.98)
