"""Claim: a quota is used whole and draws no refusal, where it is known; and hardly any where it has to be found out.

Prompts go through a real server on this machine, which takes 0.5 s for each. The first three rows are of a server that
allows 20 requests per second with a burst of 20, and refuses others with `Retry-After: 2`: the limit is given; it is
told by the server's headers; nothing is known. The others are of quotas in other forms:

- a quota of 1,000 a day, of which 989 are left: told as what comes back in a day;
- a quota stated per minute, of which a second's worth is held at once;
- a window in which five are accepted, and no word of it. LiteLLM's proxy has such windows of a minute. Here it is one
  of ten seconds, and begins with the first request: the test on the virtual clock has the minute;
- 8 requests per second of which nothing is known, and `Limit(in_flight=200)`.

The baseline is the ideal: what is held at once, and the rest as it comes back, then 0.5 s.
"""

import abc
import math
import threading
import time
from collections.abc import Mapping

import hardware
import jax
import report

import ember_jax as ember
from ember_jax import testing

SECONDS, DAY = 0.5, 86_400.0
LLM = ember.LLM("openai/model")
ask = ember.jit(lambda prompt: LLM(prompt))


class Rule(abc.ABC):
    """The faults of a server that accepts some requests: which is refused, and what headers say."""

    def __init__(self) -> None:
        self.refused = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> testing.Fault | None:
        with self._lock:
            if self.take(time.monotonic()):
                return testing.Fault(headers=self.headers())
            self.refused += 1
            return testing.Fault(status=429, headers={**self.asks(), **self.headers()})

    @abc.abstractmethod
    def take(self, now: float) -> bool:
        """Whether a request is accepted."""

    @abc.abstractmethod
    def ideal(self, prompts: int) -> float:
        """The seconds in which so many are accepted at best."""

    def asks(self) -> Mapping[str, str]:
        return {}

    def headers(self) -> Mapping[str, str]:
        return {}


class Bucket(Rule):
    """A token bucket; `limit` is what its headers name, and `None` if it sends none."""

    def __init__(self, rate: float, burst: float, limit: float | None = None, left: float | None = None):
        super().__init__()
        self.rate, self.burst, self.limit = rate, burst, limit
        self.first = self._level = burst if left is None else left
        self._at = time.monotonic()

    def take(self, now: float) -> bool:
        self._level, self._at = min(self.burst, self._level + self.rate * (now - self._at)), now
        is_accepted = self._level >= 1
        self._level -= is_accepted
        return is_accepted

    def ideal(self, prompts: int) -> float:
        return max(prompts - self.first, 0) / self.rate

    def asks(self) -> Mapping[str, str]:
        return {"retry-after": "2"}

    def headers(self) -> Mapping[str, str]:
        if self.limit is None:
            return {}
        return {
            "x-ratelimit-limit-requests": f"{self.limit:.0f}",
            "x-ratelimit-remaining-requests": f"{int(self._level)}",
            "x-ratelimit-reset-requests": f"{1000 * (self.burst - self._level) / self.rate:.0f}ms",
        }


class Window(Rule):
    """So many in each period, and no word of it."""

    def __init__(self, limit: int, period: float):
        super().__init__()
        self.limit, self.period = limit, period
        self._ends, self._used = -math.inf, 0

    def take(self, now: float) -> bool:
        if now >= self._ends:
            self._ends, self._used = now + self.period if self._ends < 0 else self._ends + self.period, 0
        self._used += 1
        return self._used <= self.limit

    def ideal(self, prompts: int) -> float:
        return (math.ceil(prompts / self.limit) - 1) * self.period


def sweep(rule: Rule, prompts: int, limits: Mapping[str, ember.Limit]) -> float:
    """Asks all prompts at once; the seconds."""
    with testing.ChatServer(testing.SimModel(accuracy=1.0), latency=SECONDS, faults=rule) as server:
        provider = ember.providers.OpenAI(server.base_url, api_key="")
        with ember.session(providers={"openai": provider}, limits=limits, journal=None, prices=PRICES) as run:
            texts = ember.text([f"What is {i} + 1?" for i in range(prompts)])
            start = time.perf_counter()
            answers = jax.vmap(ask)(texts).tolist()
            seconds = time.perf_counter() - start
        right = sum(answer == str(i + 1) for i, answer in enumerate(answers))
        assert right == prompts, f"{right} of {prompts} answers are right"
        assert run.report().throttled == rule.refused
        assert run.report().requests == len(server.requests) == prompts + rule.refused
    return seconds


PRICES = {"openai": ember.Price(input=0, output=0)}


def main() -> None:
    hardware.show()
    # Imports and compiles.
    with (
        testing.ChatServer() as server,
        ember.session(
            providers={"openai": ember.providers.OpenAI(server.base_url, api_key="")}, journal=None, prices=PRICES
        ),
    ):
        for lanes in (400, 230, 30):
            jax.vmap(ask)(ember.text([str(i) for i in range(lanes)])).tolist()
    given, in_flight = {"openai": ember.Limit(rpm=1200)}, {"openai": ember.Limit(in_flight=200)}
    for name, make, prompts, limits, target in (
        ("limit given", lambda: Bucket(20, 20), 400, given, "<= 20.5 s, no 429"),
        ("told by headers", lambda: Bucket(20, 20, 20), 400, {}, "<= 20.5 s, no 429"),
        ("nothing known", lambda: Bucket(20, 20), 400, {}, "<= 23 s, <= 10 429s"),
        ("a day's", lambda: Bucket(1000 / DAY, 1000, 1000, 989), 400, {}, "<= 5 s, no 429"),
        ("a second held", lambda: Bucket(20, 20, 1200), 400, {}, "<= 20.5 s, no 429"),
        ("window, silent", lambda: Window(5, 10.0), 30, {}, "<= 100 s, <= 20 429s"),
        ("in flight given", lambda: Bucket(8, 8), 230, in_flight, "<= 31 s, <= 10 429s"),
    ):
        rule = make()
        seconds, ideal = sweep(rule, prompts, limits), rule.ideal(prompts) + SECONDS
        told = f"ideal {ideal:.2f} s, ratio {seconds / ideal:.3f}; {rule.refused} refused (429)"
        print(f"{name:<16} {seconds:6.2f} s, {told}", flush=True)
        report.row(f"{prompts} prompts, {name}, {rule.refused} x 429; ideal", seconds, ideal, target=target)


if __name__ == "__main__":
    main()
