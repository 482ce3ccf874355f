"""What calls cost, and that no budget is ever exceeded: by a server's own bill, and in virtual time by closed forms."""

import asyncio
import json
import math
import os
import subprocess
import sys
import textwrap

import genai_prices
import jax
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import Limit, Price, errors
from ember_jax._runtime.budget import Budget, Hold
from ember_jax._runtime.loop import get_loop
from ember_jax.errors import BudgetError, UnknownPriceWarning
from ember_jax.providers import prices, tokens
from ember_jax.providers.base import Message, Request, Response, Tokens
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.providers.sim import SimModel, reply
from ember_jax.testing import ChatServer, Fault, VirtualClock

HANG = 60.0
PRICE = Price(0.1, 0.4)
MODEL = SimModel(verbosity=20)


def virtually(coroutine):
    with VirtualClock():
        return get_loop().submit(coroutine()).result(HANG)


# -- prices ----------------------------------------------------------------------------------------------------------


def test_a_price_is_dollars_for_a_million_tokens():
    assert Price(0.15, 0.60).of(1_000_000, 500_000) == pytest.approx(0.45)
    assert Price(0, 1).of(math.inf, 3) == 3e-6
    assert Price(1, 0).of(3, math.inf) == 3e-6


@pytest.mark.parametrize("given", [-1, math.nan, math.inf, "1"])
def test_what_is_no_price_is_refused(given):
    with pytest.raises(ValueError, match=r"Price\(output=.*million"):
        Price(1, given)


def test_prices_are_those_of_the_table():
    for provider in get_snapshot().providers:
        for model in provider.models[::7]:
            usage = genai_prices.Usage(input_tokens=300_000, output_tokens=567)
            try:
                told = float(genai_prices.calc_price(usage, model.id, provider_id=provider.id).total_price)
            except LookupError:
                told = math.nan
            found = prices.cost(Request(provider.id, model.id, ()), Tokens(300_000, 567))
            assert found == pytest.approx(told, nan_ok=True), (provider.id, model.id)


def test_a_sessions_own_price_goes_before_the_table_and_a_models_before_its_providers():
    def answers(request):
        return Response("yes", input_tokens=1_000_000, output_tokens=1_000_000, cost=99.0)

    own = {"mine": Price(1, 2), "mine/dear": Price(10, 20)}
    with ember.session(providers={"mine": Callable(answers)}, prices=own):
        assert ember.LLM("mine/cheap").complete("a").cost == 3
        assert ember.LLM("mine/dear").complete("a").cost == 30
    with ember.session(providers={"mine": Callable(answers)}):
        assert ember.LLM("mine/cheap").complete("a").cost == 99


def test_tokens_that_nobody_counted_have_no_cost_unless_they_are_free():
    with ember.session(providers={"mine": Callable(lambda _: "yes")}, prices={"mine": PRICE}):
        assert math.isnan(ember.LLM("mine/a").complete("a").cost)
    with ember.session(providers={"mine": Callable(lambda _: "yes")}, prices={"mine": Price(0, 0)}):
        assert ember.LLM("mine/a").complete("a").cost == 0


def test_a_price_of_nobody_and_what_is_no_price_are_refused():
    with pytest.raises(errors.ModelError, match="nobody"):
        ember.session(prices={"nobody/a": PRICE})
    with pytest.raises(TypeError, match=r"prices=\{'sim': …\}\) takes a Price"):
        ember.session(prices={"sim": 0.1})


def test_an_unknown_price_warns_once_for_each_model_and_simulated_models_and_functions_do_not():
    with ChatServer() as server, pytest.warns(UnknownPriceWarning) as caught:
        own = {"local": OpenAI(base_url=server.base_url, api_key=""), "mine": Callable(lambda _: "yes")}
        with ember.session(providers=own, journal=None) as run:
            jax.block_until_ready(jax.vmap(ember.LLM("local/a"))(ember.text(["a", "b", "c"])))
            assert str(ember.LLM("local/b")("a"))
            assert ember.LLM("mine/a")("a") == "yes"
            assert ember.LLM("sim/large")("1 + 1") == "2"
    assert math.isnan(run.report().cost_usd)
    told = sorted(str(warning.message) for warning in caught)
    assert [words.split()[0] for words in told] == ["local/a", "local/b"]
    assert "prices={'local/a': ember.Price(" in told[0]


def test_an_unknown_price_loses_no_answer_where_warnings_are_errors(tmp_path):
    script = """
        import ember_jax as ember
        from ember_jax.testing import ChatServer
        with ChatServer() as server:
            own = {"local": ember.providers.OpenAI(base_url=server.base_url, api_key="")}
            with ember.session(providers=own, journal="kept.db") as run:
                print(ember.LLM("local/a")("What is 1 + 2?"))
            print(run.report().failed, len(server.requests))
        print(sum(ember.Journal("kept.db").stats().models.values()))
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=HANG,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
            },
        )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 4 and done.stdout.splitlines()[1:] == ["0 1", "1"]
    assert done.stderr.count("has no known price") == 1


# -- the bounds of a request -----------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_no_tokeniser_that_splits_at_spaces_and_bytes_leaves_the_bounds(texts):
    request = Request("p", "m", tuple(Message("user", t) for t in texts))
    least, most = tokens.bounds(request)
    by_words = sum(len(t.split()) for t in texts)
    by_bytes = sum(len(t.encode()) for t in texts)
    assert least == by_words <= by_bytes < most


def test_a_schema_is_input_too_and_of_two_limits_the_larger_counts():
    plain = Request("p", "m", (Message("user", "hi"),), {"max_tokens": 5, "max_completion_tokens": 9})
    schema = {"type": "json_schema", "json_schema": {"name": "n" * 500}}
    formed = Request("p", "m", (Message("user", "hi"),), {"response_format": schema})
    assert tokens.bounds(formed)[1] >= tokens.bounds(plain)[1] + 500
    assert tokens.output_limit(plain) == 9
    assert tokens.output_limit(formed) is None


# -- the budget alone, in virtual time -------------------------------------------------------------------------------


def test_calls_wait_for_what_others_have_reserved_and_are_served_in_order():
    served = []

    async def call(budget, name, worst, cost, seconds):
        hold = Hold(budget, worst)
        await hold.reserve()
        served.append((name, asyncio.get_running_loop().time()))
        await asyncio.sleep(seconds)
        hold.settle(cost)

    async def scenario():
        budget = Budget(10)
        # b does not fit beside a, and c, which would, does not overtake it
        await asyncio.gather(
            call(budget, "a", 6, 1, 2),
            call(budget, "b", 5, 4, 4),
            call(budget, "c", 4, 3, 1),
            call(budget, "d", 2, 1, 1),
        )
        return budget.funds()

    funds = virtually(scenario)
    # at 2 a is settled: 1 spent, b and c fit (1 + 5 + 4 = 10); at 3 c is: 4 spent and 5 reserved; d waits for b, at 6
    assert served == [("a", 0), ("b", 2), ("c", 2), ("d", 6)]
    assert (funds.spent, funds.reserved, funds.left) == (9, 0, 1)


def test_the_budget_is_spent_only_when_nothing_is_reserved_and_then_for_all():
    async def scenario():
        budget = Budget(10)
        first = Hold(budget, 6)
        await first.reserve()
        waiting = [asyncio.ensure_future(Hold(budget, worst).reserve()) for worst in (5, 1)]
        await asyncio.sleep(1)
        assert not any(w.done() for w in waiting)
        first.settle(6)
        failed = await asyncio.gather(*waiting, Hold(budget, 1).reserve(), return_exceptions=True)
        await Hold(budget, 0).reserve()  # what is free still goes
        return failed, budget.funds()

    failed, funds = virtually(scenario)
    assert [type(error) for error in failed] == [BudgetError] * 3
    assert [(e.cap, e.spent, e.reserved, e.worst) for e in failed] == [(10, 6, 0, 5), (10, 6, 0, 1), (10, 6, 0, 1)]
    assert len({str(error) for error in failed}) == 1
    for said in ("$6.000000 spent", "$0.000000 reserved", "left of $10.000000", "may cost $5.000000", "budget_usd"):
        assert said in str(failed[0])
    assert (funds.spent, funds.reserved) == (6, 0)


def test_who_is_cancelled_gives_back_and_lets_the_next_one_in():
    async def scenario():
        budget = Budget(10)
        first, last = Hold(budget, 6), Hold(budget, 4)
        await first.reserve()
        large = asyncio.ensure_future(Hold(budget, 9).reserve())
        small = asyncio.ensure_future(last.reserve())
        await asyncio.sleep(1)
        large.cancel()
        await small
        assert budget.funds().reserved == 10
        last.give_back()
        # served and cancelled in the same turn of the loop: it has not heard of it
        served = asyncio.ensure_future(Hold(budget, 9).reserve())
        await asyncio.sleep(1)
        first.give_back()
        served.cancel()
        await asyncio.gather(served, return_exceptions=True)
        assert served.cancelled()
        return budget.funds()

    funds = virtually(scenario)
    assert (funds.spent, funds.reserved, funds.left) == (0, 0, 10)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans(), st.integers(0, 3)), max_size=40))
def test_spent_and_reserved_never_exceed_the_cap_and_nothing_is_left_reserved(calls):
    async def call(budget, worst, part, is_lost, seconds):
        hold = Hold(budget, worst / 3)
        try:
            await hold.reserve()
            assert budget.funds().left >= 0
            await asyncio.sleep(seconds)
            hold.lose() if is_lost else hold.settle(worst / 3 * part / 9)
            return worst / 3 * (1 if is_lost else part / 9)
        except BudgetError:
            return 0.0

    async def scenario():
        budget = Budget(20)
        costs = await asyncio.gather(*(call(budget, *c) for c in calls))
        return budget.funds(), sum(costs)

    funds, paid = virtually(scenario)
    assert funds.reserved == 0
    assert funds.spent == pytest.approx(paid, abs=1e-10)
    assert funds.spent <= 20


def test_a_call_dearer_than_the_whole_budget_fails_alone():
    async def scenario():
        budget = Budget(1)
        with pytest.raises(BudgetError, match=r"alone may cost \$2.*max_tokens"):
            await Hold(budget, 2).reserve()
        await Hold(budget, 1).reserve()

    virtually(scenario)


@pytest.mark.parametrize("given", [-1, math.nan, "1"])
def test_what_is_no_budget_is_refused(given):
    with pytest.raises(ValueError, match="budget_usd="):
        ember.session(budget_usd=given)


# -- against a server that keeps its own bill ------------------------------------------------------------------------

PROMPTS = [f"What is {i} * 17 + 3? " + "Please! " * (i * 7 % 60) for i in range(420)]


def bill(server, faults=lambda number: None):
    """The dollars of what a server has answered, whole or in part, by its own count."""
    total = 0.0
    for number, recorded in enumerate(server.requests):
        fault = faults(number) or Fault()
        if fault.status == 200 and not fault.reset:
            messages = tuple(Message(m["role"], m["content"]) for m in recorded.body["messages"])
            limit = {"max_tokens": recorded.body["max_tokens"]}
            answer = reply(MODEL, Request("sim", recorded.body["model"], messages, limit))
            total += PRICE.of(answer.input_tokens, answer.output_tokens)
    return total


def swept(server, budget, journal, **more):
    """The session of a sweep over all prompts at a concurrency of 200, its answers if all came, and its error."""
    own = {"local": OpenAI(base_url=server.base_url, api_key="")}
    limit = {"local": Limit(in_flight=200)}
    session = ember.session(
        providers=own, prices={"local": PRICE}, limits=limit, budget_usd=budget, journal=journal, **more
    )
    answers = error = None
    try:
        with session as run:
            answers = jax.vmap(ember.LLM("local/m", max_tokens=40))(ember.text(PROMPTS)).tolist()
    except errors.SweepError as caught:
        error = caught
    return run, answers, error


def test_half_a_budget_at_concurrency_200_and_a_second_run_that_pays_for_the_rest(tmp_path):
    with ChatServer(MODEL, latency=0.05) as server:
        run, whole, error = swept(server, None, None)
        assert error is None
    cost = bill(server)
    assert run.report().cost_usd == pytest.approx(cost)

    with ChatServer(MODEL, latency=0.05) as server:
        run, _, error = swept(server, cost / 2, tmp_path / "kept.db")
        sent, paid = len(server.requests), bill(server)
        assert paid <= cost / 2
        assert run.budget.spent == pytest.approx(paid) and run.budget.reserved == 0
        assert run.budget.left < PRICE.of(2000, 40)  # one call did not fit
        assert server.in_flight_max > 20
        assert 0 < sent < len(PROMPTS) and len(error.failures) == len(PROMPTS) - sent
        assert all(isinstance(f.cause, BudgetError) for f in error.failures)
        assert len(str(error)) < 800 and f"and {len(error.failures) - 1} more" in str(error)
        assert "the budget is spent" in str(error) and "budget_usd" in str(error)

        run, answers, error = swept(server, cost - paid + PRICE.of(2000, 40), tmp_path / "kept.db")
        assert error is None and answers == whole
        assert (run.report().replayed, run.report().requests) == (sent, len(PROMPTS) - sent)
        assert run.budget.spent == pytest.approx(cost - paid)
        assert bill(server) == pytest.approx(cost)


def test_under_faults_the_bill_never_exceeds_the_budget(tmp_path):
    def faults(number):
        if number % 100 == 3:
            return Fault(status=429, headers={"retry-after": "0"})
        return {1: Fault(status=500), 2: Fault(truncate=True)}.get(number % 4)  # the second kind is billed

    with ChatServer(MODEL, latency=0.0) as server:
        swept(server, None, None)
    cost = bill(server)

    retry = ember.Retry(attempts=20, first=0.001, longest=0.01)
    with ChatServer(MODEL, latency=0.002, faults=faults) as server:
        run, _, error = swept(server, cost / 2, tmp_path / "kept.db", retry=retry)
        paid = bill(server, faults)
    assert error is not None and {type(f.cause) for f in error.failures} == {BudgetError}
    assert paid <= cost / 2 + 1e-12
    funds, report = run.budget, run.report()
    assert paid <= funds.spent <= cost / 2 + 1e-12
    assert funds.spent == pytest.approx(report.cost_usd + funds.lost) and funds.lost > 0 and funds.reserved == 0
    # all that it answered is kept
    assert sum(ember.Journal(tmp_path / "kept.db").stats().models.values()) == len(PROMPTS) - len(error.failures)


def test_what_is_never_sent_is_not_lost():
    with ChatServer() as server:
        url = server.base_url  # nobody listens there any more
    own = {"local": OpenAI(base_url=url, api_key="")}
    retry = ember.Retry(attempts=3, first=0.0)
    with ember.session(providers=own, prices={"local": PRICE}, budget_usd=1, retry=retry, journal=None) as run:
        with pytest.raises(errors.ConnectionFailedError):
            ember.LLM("local/a", max_tokens=9)("a")
        assert (run.budget.spent, run.budget.lost, run.budget.reserved) == (0, 0, 0)
        assert run.report().requests == 3


def test_a_connection_that_is_reset_may_have_been_billed_each_time():
    with ChatServer(faults=[Fault(reset=True), Fault(body="half an ans"), None]) as server:
        own = {"local": OpenAI(base_url=server.base_url, api_key="")}
        retry = ember.Retry(first=0.0)
        with ember.session(providers=own, prices={"local": PRICE}, budget_usd=1, retry=retry, journal=None) as run:
            ember.LLM("local/a", max_tokens=9)("a")
    request = Request("local", "a", (Message("user", "a"),))
    worst = PRICE.of(tokens.bounds(request)[1], 9)
    assert run.budget.lost == pytest.approx(2 * worst)
    assert run.budget.spent == pytest.approx(2 * worst + run.report().cost_usd)


# -- what can and cannot be capped -----------------------------------------------------------------------------------


def counted(answers="yes", **response):
    """A provider that counts its calls."""
    seen = []

    def answer(request):
        seen.append(request)
        return Response(answers, input_tokens=1, output_tokens=1, **response)

    return {"mine": Callable(answer)}, seen


def test_an_answer_without_a_bound_is_refused_before_it_is_sent_unless_it_is_free():
    own, seen = counted()
    with ember.session(providers=own, prices={"mine/dear": PRICE, "mine/free": Price(3, 0)}, budget_usd=1):
        with pytest.raises(BudgetError, match=r"mine/dear: nothing bounds.*max_tokens=") as caught:
            ember.LLM("mine/dear")("a")
        assert math.isinf(caught.value.worst) and not seen
        ember.LLM("mine/free")("a")
        ember.LLM("mine/dear", max_tokens=5)("a")
    assert len(seen) == 2


def test_the_models_own_window_bounds_an_answer():
    with ChatServer() as server:
        own = {"openai": OpenAI(base_url=server.base_url, api_key="")}
        with ember.session(providers=own, budget_usd=0.05, journal=None) as run:
            with pytest.raises(BudgetError, match=r"alone may cost \$0.0768"):  # 128,000 tokens of 0.6 dollars
                ember.LLM("openai/gpt-4o-mini")("a")
            ember.LLM("openai/gpt-4o-mini", max_tokens=100)("a")
    assert run.report().requests == len(server.requests) == 1


def test_an_unknown_price_is_told_not_to_be_covered_and_goes():
    own, seen = counted()
    with (
        ember.session(providers=own, budget_usd=1),
        pytest.warns(UnknownPriceWarning, match="budget_usd does not cover"),
    ):
        ember.LLM("mine/a")("a")
    assert len(seen) == 1


@pytest.mark.parametrize("model", ["mine/unknown", "mine/priced", "mine/free", "sim/small"])
def test_a_budget_of_nothing_replays_and_sends_nothing(model, tmp_path):
    own, seen = counted()
    known = {"mine/priced": PRICE, "mine/free": Price(0, 0)}
    with ember.session(providers=own, prices=known, journal=tmp_path / "kept.db"):
        said = str(ember.LLM(model, max_tokens=5)("1 + 1"))
    before = len(seen)
    with ember.session(providers=own, prices=known, journal=tmp_path / "kept.db", budget_usd=0) as run:
        assert ember.LLM(model, max_tokens=5)("1 + 1") == said
        with pytest.raises(BudgetError, match="budget_usd=0 allows no call"):
            ember.LLM(model)("2 + 2")
    assert len(seen) == before and (run.report().replayed, run.report().requests) == (1, 0)


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
def test_equal_calls_in_flight_reserve_once():
    own, seen = counted()
    worst = PRICE.of(tokens.bounds(Request("mine", "a", (Message("user", "a"),)))[1], 5)
    with ember.session(providers=own, prices={"mine": PRICE}, budget_usd=worst, journal=None) as run:
        jax.block_until_ready(jax.vmap(ember.LLM("mine/a", max_tokens=5))(ember.text(["a"] * 8)))
    assert len(seen) == 1 and run.budget.spent == pytest.approx(PRICE.of(1, 1))


def test_who_waits_for_budget_holds_no_slot():
    async def answer(request):
        await asyncio.sleep(1 if request.model == "dear" else 8)
        return Response("yes", input_tokens=0, output_tokens=5 if request.model == "dear" else 1)

    # one slot, one dear call in flight: the second waits for its money and lets the free one have the slot first
    own = {"mine": Callable(answer)}
    known = {"mine/dear": Price(0, 1e6), "mine/free": Price(0, 0)}

    @ember.jit
    def program(a, b, c):
        dear, free = ember.LLM("mine/dear", max_tokens=5), ember.LLM("mine/free")
        return dear(a), dear(b), free(c)

    with VirtualClock() as clock:
        limits = {"mine": Limit(in_flight=1)}
        with ember.session(providers=own, prices=known, limits=limits, budget_usd=9, journal=None) as run:
            with pytest.raises(errors.EmberError):
                jax.block_until_ready(program(ember.text("a"), ember.text("b"), ember.text("c")))
            assert run.report().requests == 2  # dear once, free once; the second dear one never fitted
            assert clock.now == 9
        assert run.budget.spent == 5


def test_what_was_in_flight_when_it_was_cancelled_counts_as_spent_and_what_was_not_is_given_back():
    async def answer(request):
        await asyncio.sleep(100)
        return Response("yes")

    own = {"mine": Callable(answer)}
    worst = PRICE.of(tokens.bounds(Request("mine", "a", (Message("user", "a"),)))[1], 5)
    limits = {"mine": Limit(in_flight=1)}
    with ember.session(providers=own, prices={"mine": PRICE}, limits=limits, budget_usd=1, journal=None) as run:

        async def scenario():
            request = [Request("mine", "a", (Message("user", w),), {"max_tokens": 5}) for w in "ab"]
            calls = [asyncio.ensure_future(run.ask(r)) for r in request]
            await asyncio.sleep(1)
            assert run.budget.reserved == pytest.approx(2 * worst)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            return run.budget

        funds = virtually(scenario)
    assert funds.reserved == 0
    assert funds.spent == funds.lost == pytest.approx(worst)


def test_a_budget_is_told_in_words():
    with ember.session(prices={"sim": Price(1, 1)}, budget_usd=1) as run:
        ember.LLM("sim/small", max_tokens=1)("1 + 1")
    assert str(run.budget) == "$0.000004 spent, $0.000000 reserved, $0.999996 left of $1.000000"
    with ember.session() as run:
        pass
    assert str(run.budget) == "$0.000000 spent, $0.000000 reserved"


def test_the_most_of_an_estimate_suffices_however_many_are_in_flight():
    own, seen = counted()
    questions = ember.text(PROMPTS[:100])
    llm_of = lambda: ember.LLM("mine/a", max_tokens=5)
    with ember.session(providers=own, prices={"mine": PRICE}):
        most = ember.lower(jax.vmap(llm_of()))(questions).estimate().cost_usd.most
    with ember.session(providers=own, prices={"mine": PRICE}, budget_usd=most, journal=None) as run:
        jax.block_until_ready(jax.vmap(llm_of())(questions))
    assert len(seen) == 100 and run.budget.spent == pytest.approx(100 * PRICE.of(1, 1))


def test_a_service_that_does_not_count_is_told_apart_from_one_without_a_price():
    body = json.dumps({"choices": [{"message": {"content": "yes"}}]})
    with ChatServer(faults=[Fault(body=body)]) as server:
        own = {"local": OpenAI(base_url=server.base_url, api_key="")}
        session = ember.session(providers=own, prices={"local": PRICE}, budget_usd=1, journal=None)
        with pytest.warns(UnknownPriceWarning, match="does not say how many tokens"), session as run:
            ember.LLM("local/a", max_tokens=9)("a")
    request = Request("local", "a", (Message("user", "a"),))
    assert math.isnan(run.report().cost_usd)
    assert run.budget.spent == pytest.approx(PRICE.of(tokens.bounds(request)[1], 9))  # its worst case


def test_a_spent_budget_is_not_caught_as_a_failure_of_the_program():
    own, seen = counted()
    with ember.session(providers=own, prices={"mine": PRICE}, budget_usd=0):
        with pytest.raises(BudgetError):
            ember.attempt(ember.LLM("mine/a", max_tokens=5))("a")
        with pytest.raises(errors.SweepError, match="budget_usd=0"):
            jax.block_until_ready(jax.vmap(ember.attempt(ember.LLM("mine/a", max_tokens=5)))(ember.text(["a", "b"])))
    assert not seen


@pytest.mark.parametrize("wrap", [lambda f: jax.vmap(ember.jit(f)), lambda f: ember.jit(jax.vmap(f))])
def test_an_error_counts_lanes_as_the_user_sees_them_and_not_the_samples_inside(wrap):
    """Of 40 questions with three samples and a judge each, some calls are paid. What fails are questions."""
    own, seen = counted("3")

    def answered(question, key):
        llm, judge = ember.LLM("mine/a", max_tokens=1), ember.LLM("mine/b", max_tokens=1)
        drafts = jax.vmap(lambda k: llm(question, k))(jax.random.split(key, 3))
        return judge(ember.format("{q} {d}", q=question, d=ember.join(" ", drafts)))

    questions = ember.text([f"{i:02}?" for i in range(40)])
    keys = jax.random.split(jax.random.key(0), 40)
    one = PRICE.of(tokens.bounds(Request("mine", "a", (Message("user", "00?"),)))[1], 1)
    with (
        pytest.raises(errors.SweepError, match=r"^(\d+) of 40 lanes failed") as caught,
        ember.session(providers=own, prices={"mine": PRICE}, budget_usd=6.5 * one, journal=None) as run,
    ):
        jax.block_until_ready(wrap(answered)(questions, keys))
    error = caught.value
    assert error.lanes == 40 and len(error.failures) == len({f.lane[0] for f in error.failures})
    assert 0 < len(error.failures) <= 40 < len(seen)
    # what is left at the end is less than the call that did not fit could have cost
    assert run.budget.reserved == 0 and run.budget.left < 1.1 * one


def test_lanes_inside_of_lanes_are_lanes_where_nothing_else_is_done():
    own, _ = counted()
    grid = ember.text([["a", "b", "c"], ["d", "e", "f"]])
    with pytest.raises(errors.SweepError) as caught, ember.session(providers=own, budget_usd=0):
        llm = ember.LLM("mine/a", max_tokens=1)
        jax.block_until_ready(jax.vmap(jax.vmap(ember.jit(lambda q: llm(llm(q)))))(grid))
    assert (caught.value.lanes, len(caught.value.failures)) == (6, 6)
