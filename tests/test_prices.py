"""What answers have cost, and what calls may cost at most: by a server's own bill, which the table's own sum makes."""

import datetime
import json
import math

import genai_prices
import jax
import pytest
from genai_prices.data_snapshot import get_snapshot

import ember_jax as ember
from ember_jax import Price
from ember_jax.errors import BudgetError, CutAnswerWarning, UnboundedAnswerWarning, UnknownPriceWarning
from ember_jax.providers import prices
from ember_jax.providers.base import Message, Request, Tokens
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault


class Bill:
    """A server whose answers have the tokens and the tier that are given, and that bills them by the table's own sum.

    `context` is what the table is asked by, and `at` when.
    """

    def __init__(self, tier=None, provider="openai", context=None, at=None, **usage):
        self.usage = {"input_tokens": 1000, "output_tokens": 500, **usage}
        self.tier, self.provider, self.context, self.at = tier, provider, context, at
        self.server = ChatServer(faults=lambda _: Fault(body=self.body()))

    def body(self):
        usage = self.usage
        read = {
            "cached_tokens": usage.get("cache_read_tokens", 0),
            "cache_write_tokens": usage.get("cache_write_tokens", 0),
        }
        written = {"reasoning_tokens": usage.get("output_reasoning_tokens", 0)}
        answer = {
            "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": usage["input_tokens"],
                "completion_tokens": usage["output_tokens"],
                "prompt_tokens_details": read,
                "completion_tokens_details": written,
            },
        }
        return json.dumps(answer if self.tier is None else {**answer, "service_tier": self.tier})

    def dollars(self):
        """The bill of all requests so far."""
        return sum(
            float(
                genai_prices.calc_price(
                    genai_prices.Usage(**self.usage),
                    recorded.body["model"],
                    provider_id=self.provider,
                    price_context=self.context,
                    genai_request_timestamp=self.at,
                ).total_price
            )
            for recorded in self.server.requests
        )

    def session(self, **how):
        own = {self.provider: OpenAI(base_url=self.server.base_url, api_key="")}
        return ember.session(providers=own, journal=None, **how)

    def ask(self, model, prices=None, **settings):
        """The cost of one call."""
        with self.session(prices=prices):
            return float(ember.LLM(f"{self.provider}/{model}", **settings).complete("a").cost)


# -- settled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5", "gpt-5.6", "gpt-6-luna", "gpt-6.1-sol"])
@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"cache_read_tokens": 900},
        {"cache_write_tokens": 400},
        {"cache_read_tokens": 500, "cache_write_tokens": 400, "output_reasoning_tokens": 300},
        {"input_tokens": 272_000, "cache_read_tokens": 200_000},
        {"input_tokens": 272_001, "cache_read_tokens": 200_000, "cache_write_tokens": 10_000},
    ],
    ids=str,
)
def test_an_answer_costs_what_the_server_bills(model, usage):
    bill = Bill(**usage)
    with bill.server, bill.session() as run:
        told = ember.LLM(f"openai/{model}").complete("a")
        assert float(told.cost) == pytest.approx(bill.dollars(), rel=1e-6)
        assert run.report().cost_usd == pytest.approx(bill.dollars())
        assert int(told.cached_tokens) == usage.get("cache_read_tokens", 0)


def test_cached_input_is_not_priced_as_any_other():
    plain, cached = Bill(), Bill(cache_read_tokens=1000)
    costs = []
    for bill in (plain, cached):
        with bill.server:
            costs.append(bill.ask("gpt-5"))
    assert costs == pytest.approx([(1000 * 1.25 + 5000) / 1e6, (1000 * 0.125 + 5000) / 1e6], rel=1e-6)


@pytest.mark.parametrize("tier", ["priority", "fast", "flex", "default", "batch"])
def test_an_answer_is_priced_by_the_tier_that_it_names(tier):
    context = {"processing": "batch"} if tier == "batch" else {"service_tier": tier}
    bill = Bill(tier=tier, context=context)
    with bill.server:
        cost = bill.ask("gpt-5")
        assert cost == pytest.approx(bill.dollars(), rel=1e-6)
    factor = {"priority": 2, "fast": 2, "default": 1}.get(tier, 0.5)
    assert cost == pytest.approx(factor * (1000 * 1.25 + 5000) / 1e6, rel=1e-6)


def test_the_tier_that_answers_counts_and_not_the_one_that_was_asked_for():
    bill = Bill(tier="default")
    with bill.server:
        assert bill.ask("gpt-5", service_tier="priority") == pytest.approx(bill.dollars(), rel=1e-6)


@pytest.mark.parametrize(("asked", "factor"), [("priority", 2), ("flex", 1), ("auto", 1)])
def test_where_the_service_does_not_say_its_tier_the_dearer_one_counts(asked, factor):
    bill = Bill()
    with bill.server:
        cost = bill.ask("gpt-5", service_tier=asked)
        assert cost == pytest.approx(factor * bill.dollars(), rel=1e-6)


def test_a_tier_without_a_price_is_unknown_and_told_with_its_name():
    bill = Bill(tier="priority")  # which the table has no price of for this model
    with bill.server, pytest.warns(UnknownPriceWarning, match=r"gpt-5-nano has no known price at.*tier 'priority'"):
        assert math.isnan(bill.ask("gpt-5-nano"))
    with bill.server:
        pass


def test_a_speed_that_is_asked_for_has_its_own_price():
    bill = Bill(provider="anthropic", context={"speed": "fast"})
    with bill.server:
        cost = bill.ask("claude-opus-5-5", speed="fast")
        assert cost == pytest.approx(bill.dollars(), rel=1e-6) == pytest.approx((8000 + 20_000) / 1e6, rel=1e-6)


def test_reasoning_that_is_counted_beside_the_completion_is_billed():
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1015}
    body = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": usage}
    with ChatServer(faults=[Fault(body=json.dumps(body))]) as server:
        own = {"x-ai": OpenAI(base_url=server.base_url, api_key="")}
        with ember.session(providers=own, prices={"x-ai": Price(1, 2)}, journal=None) as run:
            ember.LLM("x-ai/grok-4.3")("a")
    assert run.report().output_tokens == 1005
    assert run.report().cost_usd == pytest.approx((10 + 2 * 1005) / 1e6)


def test_a_price_of_ones_own_has_cached_input_and_cache_writes():
    bill = Bill(cache_read_tokens=600, cache_write_tokens=300)
    price = Price(1, 2, cached=0.1, cache_write=1.25)
    with bill.server:
        assert bill.ask("mine", prices={"openai": price}) == pytest.approx((100 + 60 + 375 + 1000) / 1e6, rel=1e-6)
        assert bill.ask("mine", prices={"openai": Price(1, 2)}) == pytest.approx(2e-3, rel=1e-6)
    assert price.of(1000, 500, 600, 300) == pytest.approx((100 + 60 + 375 + 1000) / 1e6)
    assert price.most(1000, 500) == pytest.approx((1250 + 1000) / 1e6)
    assert price.of(10, 0, cached=math.inf) == pytest.approx(1e-6)
    with pytest.raises(ValueError, match=r"Price\(cached=-1\)"):
        Price(1, 1, cached=-1)


def test_all_sums_are_the_tables_own_and_none_is_above_its_bound():
    contexts = {"": {}, "priority": {"service_tier": "priority"}, "batch": {"processing": "batch"}}
    count = 0
    for provider in get_snapshot().providers:
        for i, model in enumerate(provider.models[:: 1 if provider.id == "openai" else 11]):
            read = (1000, 300_000)[i % 2]
            tokens = Tokens(read, 700, 500, 200, 300)
            names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
            usage = genai_prices.Usage(**dict(zip(names, tokens, strict=False)), output_reasoning_tokens=300)
            for tier, context in contexts.items():
                try:
                    calculated = genai_prices.calc_price(
                        usage, model.id, provider_id=provider.id, price_context=context
                    )
                except (LookupError, ValueError):  # no such model; or prices that ask for more than these tokens
                    continue
                told = float(calculated.total_price)
                found = prices.cost(Request(provider.id, model.id, ()), tokens, tier=tier)
                if tier and math.isnan(found):
                    continue  # the table has given the standard price, in silence
                assert found == pytest.approx(told), (provider.id, model.id, tier)
                asked = Request(provider.id, model.id, (), {"service_tier": tier} if tier else {})
                assert found <= prices.most_cost(asked, Tokens(read, 700)) * (1 + 1e-9), (provider.id, model.id, tier)
                count += 1
    assert count > 250


# -- by the hour -----------------------------------------------------------------------------------------------------


def seconds_at(hour, minute=0):
    return datetime.datetime(2026, 11, 30, hour, minute, tzinfo=datetime.UTC).timestamp()


def test_a_price_that_changes_by_the_hour_is_reserved_at_its_dearest_and_settled_by_the_clock(monkeypatch):
    clock = [seconds_at(5, 59)]  # a minute before it doubles
    monkeypatch.setattr(prices.time, "time", lambda: clock[0])
    request = Request("deepseek", "deepseek-v4-pro", (), {})
    tokens = Tokens(1000, 500)
    cheap, dear = (1000 * 0.66 + 500 * 1.98) / 1e6, (1000 * 1.32 + 500 * 3.96) / 1e6
    assert prices.cost(request, tokens) == pytest.approx(cheap)
    assert prices.most_cost(request, tokens) == pytest.approx(dear)
    clock[0] = seconds_at(6, 0)
    assert prices.cost(request, tokens) == pytest.approx(dear)
    clock[0] = seconds_at(10, 0)
    assert prices.cost(request, tokens) == pytest.approx(cheap)
    assert prices.most_cost(request, tokens) == pytest.approx(dear)


def test_a_budget_holds_where_the_price_doubles_between_reserving_and_settling(monkeypatch):
    clock = [seconds_at(5, 59)]
    monkeypatch.setattr(prices.time, "time", lambda: clock[0])
    bill = Bill(provider="deepseek", input_tokens=1, at=datetime.datetime.fromtimestamp(seconds_at(6), datetime.UTC))

    def body(_):
        clock[0] = seconds_at(6)
        return Fault(body=bill.body())

    bill.server = ChatServer(faults=body)
    worst = prices.most_cost(Request("deepseek", "deepseek-v4-pro", ()), Tokens(81, 500))
    with bill.server, bill.session(budget_usd=worst) as run:
        ember.LLM("deepseek/deepseek-v4-pro", max_tokens=500)("a")
        assert run.budget.spent == pytest.approx(bill.dollars()) and run.budget.spent <= worst


# -- what is reserved ------------------------------------------------------------------------------------------------


def worst_of(model, output, **parameters):
    """What a call is to reserve for the prompt "a", whose input has 81 tokens at most."""
    request = Request("openai", model, (Message("user", "a"),), parameters)
    return prices.most_cost(request, Tokens(81, output))


def test_a_budget_reserves_by_the_tier_that_is_asked_for():
    # each call costs 0.0225: 81 and 1000 tokens at twice the standard price
    bill = Bill(tier="priority", context={"service_tier": "priority"}, input_tokens=81, output_tokens=1000)
    llm = ember.LLM("openai/gpt-5", max_tokens=1000, service_tier="priority")
    with bill.server, pytest.raises(ember.errors.SweepError) as caught, bill.session(budget_usd=0.0225) as run:
        jax.block_until_ready(jax.vmap(llm)(ember.text(["a", "b"])))
    assert len(bill.server.requests) == 1 and len(caught.value.failures) == 1
    assert run.budget.spent == pytest.approx(bill.dollars()) and run.budget.spent <= 0.0225


def test_a_tier_that_answers_without_being_asked_for_is_reserved_from_then_on():
    bill = Bill(tier="priority", context={"service_tier": "priority"}, input_tokens=1, output_tokens=1)
    worst = worst_of("gpt-5", 100)
    with bill.server, bill.session(budget_usd=1.5 * worst) as run:
        llm = ember.LLM("openai/gpt-5", max_tokens=100)
        llm("a")
        with pytest.raises(BudgetError, match="alone may cost") as caught:
            llm("b")
    assert caught.value.worst == pytest.approx(2 * worst)
    assert run.budget.spent == pytest.approx(bill.dollars())


def test_the_bound_of_auto_is_the_dearest_tier_and_that_of_flex_the_standard_one():
    assert worst_of("gpt-5", 100, service_tier="auto") == pytest.approx(2 * worst_of("gpt-5", 100))
    assert worst_of("gpt-5", 100, service_tier="flex") == worst_of("gpt-5", 100)
    assert worst_of("gpt-5", 100, service_tier="default") == worst_of("gpt-5", 100)


def test_a_cache_write_may_be_dearer_than_plain_input_and_is_reserved():
    plain = (81 * 0.1 + 100 * 0.5) / 1e6
    assert worst_of("gpt-6-luna", 100) == pytest.approx(plain + 81 * 0.025 / 1e6)


def test_a_long_prompt_reserves_by_its_step():
    request = Request("openai", "gpt-6-luna", ())
    below, above = (prices.most_cost(request, Tokens(n, 0)) for n in (272_000, 272_001))
    assert (below, above) == pytest.approx((272_000 * 0.125 / 1e6, 272_001 * 0.25 / 1e6))


def test_a_tier_without_a_price_is_said_not_to_be_covered():
    bill = Bill(tier="priority")
    with (
        bill.server,
        pytest.warns(UnknownPriceWarning, match=r"tier 'priority': budget_usd does not cover.*no bound"),
        bill.session(budget_usd=1) as run,
    ):
        ember.LLM("openai/gpt-5-nano", max_tokens=9, service_tier="priority")("a")
    assert run.budget.spent == pytest.approx(worst_of("gpt-5-nano", 9))  # the dearest tier that is known


def test_a_budget_bounds_an_answer_by_the_models_own_limit_and_says_so_once():
    bill = Bill()
    llm = ember.LLM("openai/gpt-4o-mini")
    with bill.server, pytest.warns(UnboundedAnswerWarning) as caught, bill.session(budget_usd=1) as run:
        jax.block_until_ready(jax.vmap(llm)(ember.text([f"a{i}" for i in range(40)])))
    assert len(bill.server.requests) == 40
    assert run.budget.spent == pytest.approx(bill.dollars()) and run.budget.reserved == 0
    assert len(caught) == 1 and "128,000 tokens" in str(caught[0].message) and "$0.07681" in str(caught[0].message)


def test_a_simulated_model_has_a_limit_of_its_own():
    long = ember.providers.SimModel(accuracy=1.0, verbosity=100, max_output=50)
    with ember.session(providers={"sim": ember.providers.Sim({"long": long})}, budget_usd=1) as run:
        with pytest.warns(UnboundedAnswerWarning, match="50 tokens"), pytest.warns(CutAnswerWarning):
            answer = ember.LLM("sim/long").complete("What is 1 + 1?")
        assert int(answer.output_tokens) == 50 and int(answer.finish) == ember.Finish.LENGTH
    assert run.report().cut == 1
