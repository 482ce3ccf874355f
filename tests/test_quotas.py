"""The forms in which services tell their quotas, or do not: each a simulated service on the virtual clock.

A service is a rule by which it accepts requests, and the headers that it sends. Its headers are read as those of a real
answer are. For each form the table says which share of what the service would have accepted has to be used until the
last call began, and which share of requests may be refused at most; where that is less than 95 %, or more than 1 %, it
says why.
"""

import asyncio
import datetime
import json
import math
from dataclasses import dataclass

import pytest

from ember_jax import Limit, Price
from ember_jax._runtime.budget import Budget
from ember_jax._runtime.loop import get_loop
from ember_jax._runtime.pricing import Pricing
from ember_jax._runtime.retry import Retry
from ember_jax._runtime.sending import Sender
from ember_jax.errors import RateLimitError
from ember_jax.providers.base import Message, Provider, Request
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import VirtualClock

HANG = 300.0
# When the virtual clock begins, in seconds since 1970; 17 seconds after a minute began.
EPOCH = 1_800_000_017.0
# The seconds that a request takes to the service, and an answer back.
AWAY = 0.03
BODY = json.dumps(
    {
        "model": "m",
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5},
    }
).encode()


def clock():
    return asyncio.get_running_loop().time()


# -- rules -----------------------------------------------------------------------------------------------------------


@dataclass
class Bucket:
    """A token bucket."""

    rate: float
    size: float
    level: float | None = None
    at: float = 0.0
    full: float = 0.0

    def __post_init__(self):
        self.level = self.size if self.level is None else self.level
        self.full = self.level

    def take(self, now):
        self.level, self.at = min(self.size, self.level + self.rate * (now - self.at)), now
        if self.level < 1 - 1e-9:
            return False
        self.level -= 1
        return True

    @property
    def left(self):
        return max(math.floor(self.level + 1e-9), 0)

    @property
    def reset(self):
        return (self.size - self.level) / self.rate

    @property
    def wait(self):
        return max(1 - self.level, 0) / self.rate

    def offered(self, until):
        """The most that it could have accepted."""
        return self.full + self.rate * until


@dataclass
class Window:
    """So many requests in each period, which begin at round times."""

    limit: float
    period: float = 60.0
    counts_refused: bool = False
    number: int = -1
    used: int = 0
    now: float = 0.0

    def take(self, now):
        self.now, number = now, int((EPOCH + now) // self.period)
        if number != self.number:
            self.number, self.used = number, 0
        is_free = self.used < self.limit
        self.used += is_free or self.counts_refused
        return is_free

    @property
    def left(self):
        return max(self.limit - self.used, 0)

    @property
    def reset(self):
        return (self.number + 1) * self.period - EPOCH - self.now

    @property
    def wait(self):
        return self.reset

    def offered(self, until):
        return self.limit * (int((EPOCH + until) // self.period) - int(EPOCH // self.period) + 1)


@dataclass
class Anything:
    """Refuses nothing."""

    left, reset, wait = math.inf, 0.0, 0.0

    def take(self, now):
        return True

    def offered(self, until):
        return 0.0


@dataclass
class Both:
    """Two rules, of which the headers tell the second."""

    hidden: object
    told: object

    def take(self, now):
        return self.hidden.take(now) and self.told.take(now)

    left = property(lambda self: self.told.left)
    reset = property(lambda self: self.told.reset)
    wait = property(lambda self: max(self.hidden.wait, self.told.wait))

    def offered(self, until):
        return min(self.hidden.offered(until), self.told.offered(until))


# -- what is said ----------------------------------------------------------------------------------------------------


def go(seconds):
    """A duration as Go writes it."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"


def rfc(seconds):
    when = datetime.datetime.fromtimestamp(math.ceil(EPOCH + clock() + seconds), datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def openai(limit):
    return lambda rule: {
        "x-ratelimit-limit-requests": f"{limit}",
        "x-ratelimit-remaining-requests": f"{rule.left}",
        "x-ratelimit-reset-requests": go(rule.reset),
        "x-ratelimit-limit-tokens": "30000000",
        "x-ratelimit-remaining-tokens": "29999000",
        "x-ratelimit-reset-tokens": "2ms",
    }


def anthropic(limit):
    return lambda rule: {
        "anthropic-ratelimit-requests-limit": f"{limit}",
        "anthropic-ratelimit-requests-remaining": f"{rule.left}",
        "anthropic-ratelimit-requests-reset": rfc(rule.reset),
    }


def named(limit=None, reset=None, form="x-ratelimit-{}-requests"):
    """Headers by a form of their names; `reset` writes the seconds."""

    def headers(rule):
        said = {form.format("remaining"): f"{rule.left}"}
        if limit is not None:
            said[form.format("limit")] = f"{limit}"
        if reset is not None:
            said[form.format("reset")] = reset(rule.reset)
        return said

    return headers


def nothing(rule):
    return {}


def constant(rule):
    return {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "99",
        "x-ratelimit-reset-requests": "1m0s",
    }


def seconds(rule):
    return {"retry-after": f"{math.ceil(rule.wait)}"}


def passed_on(rule):
    return {"llm_provider-retry-after": f"{math.ceil(rule.wait)}"}


# -- the services ----------------------------------------------------------------------------------------------------


class Service(Provider):
    """Answers by a rule.

    **Arguments:**

    - `says`: the headers of its answers by the rule, those of refusals among them.
    - `asks`: the further headers of a refusal.
    """

    def __init__(self, rule, says, asks, latency=0.5):
        self.rule, self.says, self.asks, self.latency = rule, says, asks, latency
        self.accepted, self.refused = [], 0
        self._reader = OpenAI("http://service/v1", api_key="")

    def check(self, model):
        pass

    async def complete(self, request):
        await asyncio.sleep(AWAY)
        now = clock()
        is_accepted = self.rule.take(now)
        headers = {**self.says(self.rule), "date": self._date()}
        if is_accepted:
            self.accepted.append(now)
            await asyncio.sleep(self.latency)
        else:
            self.refused += 1
            headers |= self.asks(self.rule)
        await asyncio.sleep(AWAY)
        return self._reader.read(200 if is_accepted else 429, headers, BODY if is_accepted else b"{}", request)

    def _date(self):
        when = datetime.datetime.fromtimestamp(EPOCH + clock(), datetime.UTC)
        return when.strftime("%a, %d %b %Y %H:%M:%S GMT")

    async def close(self):
        pass


def sweep(service, calls, limit=None, policy=None):
    """Sends so many calls at once; returns the errors."""

    async def scenario():
        pricing = Pricing({"p": Price(0, 0)}, lambda name: service, Budget(math.inf))
        limits = {} if limit is None else {"p": limit}
        sender = Sender(lambda name: service, lambda name, amount=1: None, limits, policy or Retry(), pricing)
        asked = (sender.send(Request("p", "m", (Message("user", f"{i}"),)), []) for i in range(calls))
        done = await asyncio.gather(*asked, return_exceptions=True)
        return [answer for answer in done if isinstance(answer, BaseException)]

    with VirtualClock():
        return get_loop().submit(scenario()).result(HANG)


@dataclass
class Form:
    """A row of the table: a service, how many calls, what has to come of them, and why if that is not all."""

    rule: object
    says: object
    asks: object
    calls: int
    used: float = 0.95
    refused: float = 0.01
    why: str = ""
    limit: Limit | None = None
    latency: float = 0.5


DAY = 86_400.0
FIRST = "nothing is known at first, so the first ten calls, or a doubling of them, go too far"
FEW = f"{FIRST}, of a quota of five; and a quota is spread over the minute, where the ideal takes it at once"
FORMS = {
    "OpenAI": lambda: Form(Bucket(1, 60), openai(60), seconds, 1300),
    "OpenAI, a limit per day": lambda: Form(Bucket(1000 / DAY, 1000, 989), openai(1000), seconds, 985),
    "Azure": lambda: Form(Bucket(10, 10), named(), seconds, 1300),
    "Anthropic": lambda: Form(Bucket(50 / 60, 50), anthropic(50), seconds, 1200),
    "Groq": lambda: Form(
        Both(Bucket(0.5, 30), Bucket(1000 / DAY, 1000, 989)),
        openai(1000),
        seconds,
        700,
        refused=0.02,
        why="besides the quota of a day, which is told, there is one of a minute, which is found out",
    ),
    "Mistral": lambda: Form(Window(120), named(120, form="x-ratelimit-{}-req-minute"), seconds, 1500),
    "Together": lambda: Form(Bucket(20, 20), named(1200, lambda s: f"{s:.3f}", "x-ratelimit-{}"), seconds, 1200),
    "a second's worth, resets in whole seconds": lambda: Form(
        Bucket(20, 20), named(1200, lambda s: f"{math.ceil(s)}"), seconds, 1200
    ),
    "OpenRouter": lambda: Form(
        Window(20), named(20, lambda s: f"{1000 * (EPOCH + clock() + s):.0f}", "x-ratelimit-{}"), seconds, 600
    ),
    "Cohere": lambda: Form(
        Window(100), named(100, lambda s: f"{EPOCH + clock() + s:.0f}", "x-ratelimit-{}"), nothing, 1000
    ),
    "a gateway, by the draft of the IETF": lambda: Form(
        Window(300), named(300, lambda s: f"{math.ceil(s)}", "ratelimit-{}"), nothing, 3000
    ),
    "LiteLLM's proxy": lambda: Form(Window(5, counts_refused=True), named(5), nothing, 30, 0.85, 0.17, FEW),
    "LiteLLM's proxy before a vendor": lambda: Form(Window(30), nothing, passed_on, 300, 0.9, 0.05, FIRST),
    "a minute, and not a word": lambda: Form(Window(5), nothing, nothing, 30, 0.85, 0.32, FEW),
    "a large minute, and not a word": lambda: Form(Window(300), nothing, nothing, 3000, 0.9, 0.025, FIRST),
    "Bedrock": lambda: Form(Bucket(8, 8), nothing, nothing, 800, 0.95, 0.015, FIRST),
    "vLLM": lambda: Form(Anything(), nothing, nothing, 2000),
    "DeepSeek": lambda: Form(Anything(), nothing, nothing, 2000, latency=20.0),
    "Fireworks": lambda: Form(Bucket(10, 60), named(600), nothing, 2000),
    "Cerebras": lambda: Form(
        Bucket(900 / DAY, 900), named(900, lambda s: f"{s:.3f}", "x-ratelimit-{}-requests-day"), seconds, 880
    ),
    "constant headers": lambda: Form(Bucket(20, 20), constant, seconds, 1200),
    "in flight alone is given": lambda: Form(
        Bucket(8, 8), nothing, nothing, 400, 0.95, 0.025, FIRST, limit=Limit(in_flight=200)
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_quota_of_any_form_is_used_and_hardly_overrun(name):
    form = FORMS[name]()
    assert form.why or (form.used, form.refused) == (0.95, 0.01)
    service = Service(form.rule, form.says, form.asks, form.latency)
    assert sweep(service, form.calls, form.limit) == []
    assert len(service.accepted) == form.calls
    assert service.refused <= form.refused * (form.calls + service.refused)
    assert form.calls >= form.used * form.rule.offered(max(service.accepted))


def test_where_nothing_is_refused_a_thousand_are_in_flight():
    form = FORMS["vLLM"]()
    service = Service(form.rule, form.says, form.asks)
    sweep(service, 20_000)
    late = [at for at in service.accepted if at > max(service.accepted) - 5]
    assert len(late) > 0.9 * 1000 / (service.latency + 2 * AWAY) * 5


# -- what else is said -----------------------------------------------------------------------------------------------


def test_headers_of_another_model_hold_nothing_back():
    """They say that nothing is left, for an hour, and all calls are answered."""
    says = {f"x-ratelimit-{k}-requests": v for k, v in (("limit", "60"), ("remaining", "0"), ("reset", "1h"))}
    service = Service(Anything(), lambda rule: says, nothing)
    assert sweep(service, 400) == []
    assert max(service.accepted) < 60


def test_headers_that_begin_to_make_sense_are_believed_again():
    rule = Bucket(20, 20)

    def says(rule):
        return constant(rule) if clock() < 20 else openai(20)(rule)

    service = Service(rule, says, seconds)
    assert sweep(service, 2000) == []
    assert service.refused <= 10
    late = [at for at in service.accepted if at > 25]
    assert len(late) >= 0.97 * 20 * (max(late) - 25)


def test_a_day_that_is_spent_fails_calls_at_once_and_says_so():
    rule = Window(50, DAY)
    service = Service(rule, named(50, lambda s: f"{s:.1f}"), nothing)
    errors = sweep(service, 60)
    assert len(service.accepted) == 50 and service.refused == 0
    assert len(errors) == 10 and {type(error) for error in errors} == {RateLimitError}
    assert "the service's quota of requests, which is spent" in str(errors[0])
    assert max(service.accepted) < 10


def test_a_quota_that_is_spent_for_longer_than_the_service_asks_to_wait_fails_calls_that_are_less_patient():
    """aimock 1.43.0 asks to wait for a second with each 429, and says that tokens come back in six minutes."""
    says = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    times = []

    class Refusing(Anything):
        def take(self, now):
            times.append(now)
            return False

        wait = 1.0

    service = Service(Refusing(), lambda rule: says, seconds)
    [error] = sweep(service, 1, policy=Retry(seconds=8))
    assert isinstance(error, RateLimitError) and "longer than Retry(seconds=8)" in str(error)
    assert "the service's quota of tokens, which is spent" in str(error)
    assert len(times) == service.refused == 2 and error.retry_after > 350
