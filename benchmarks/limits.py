"""Claim: a quota is used whole and draws no refusal, where it is known; and hardly any where it has to be found out.

400 prompts through a real server on this machine that allows 20 requests per second with a burst of 20, takes 0.5 s for
each, and refuses others with `Retry-After: 2`. The baseline is the ideal: 20 at once, then one every 50 ms, then 0.5 s.
Three columns: the limit is given; it is told by the server's headers; nothing is known.
"""

import threading
import time
from collections.abc import Mapping

import hardware
import jax
import report

import ember_jax as ember
from ember_jax import testing

PROMPTS, RATE, BURST, SECONDS, RETRY_AFTER = 400, 20.0, 20.0, 0.5, 2.0
IDEAL = (PROMPTS - BURST) / RATE + SECONDS
LLM = ember.LLM("openai/model")
ask = ember.jit(lambda prompt: LLM(prompt))


class Bucket:
    """A token bucket as the faults of a server: which request is refused, and what headers say."""

    def __init__(self, tells: bool):
        self.tells = tells
        self.refused = 0
        self._level, self._at = BURST, time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, number: int) -> testing.Fault | None:
        with self._lock:
            now = time.monotonic()
            self._level, self._at = min(BURST, self._level + RATE * (now - self._at)), now
            if self._level >= 1:
                self._level -= 1
                return testing.Fault(headers=self._headers())
            self.refused += 1
            return testing.Fault(status=429, headers={"retry-after": f"{RETRY_AFTER:g}", **self._headers()})

    def _headers(self) -> Mapping[str, str]:
        if not self.tells:
            return {}
        return {
            "x-ratelimit-limit-requests": f"{BURST:.0f}",
            "x-ratelimit-remaining-requests": f"{int(self._level)}",
            "x-ratelimit-reset-requests": f"{1000 * (BURST - self._level) / RATE:.0f}ms",
        }


def sweep(tells: bool, limits: Mapping[str, ember.Limit]) -> tuple[float, int]:
    """Asks all prompts at once: the seconds, and how many requests were refused."""
    bucket = Bucket(tells)
    with testing.ChatServer(testing.SimModel(accuracy=1.0), latency=SECONDS, faults=bucket) as server:
        provider = ember.providers.OpenAI(server.base_url, api_key="")
        with ember.session(providers={"openai": provider}, limits=limits, journal=None, prices=PRICES) as run:
            prompts = ember.text([f"What is {i} + 1?" for i in range(PROMPTS)])
            start = time.perf_counter()
            answers = jax.vmap(ask)(prompts).tolist()
            seconds = time.perf_counter() - start
        right = sum(answer == str(i + 1) for i, answer in enumerate(answers))
        assert right == PROMPTS, f"{right} of {PROMPTS} answers are right"
        assert run.report().throttled == bucket.refused
        assert run.report().requests == len(server.requests) == PROMPTS + bucket.refused
    return seconds, bucket.refused


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
        jax.vmap(ask)(ember.text([str(i) for i in range(PROMPTS)])).tolist()
    cases = {
        "limit given": (False, {"openai": ember.Limit(rpm=60 * RATE)}, "<= 20.5 s, no 429"),
        "told by headers": (True, {}, "<= 20.5 s, no 429"),
        "nothing known": (False, {}, "<= 23 s, <= 10 429s"),
    }
    for name, (tells, limits, target) in cases.items():
        seconds, refused = sweep(tells, limits)
        print(f"{name:<16} {seconds:6.2f} s, ideal {IDEAL:.2f} s, ratio {seconds / IDEAL:.3f}; {refused} refused (429)")
        report.row(f"400 prompts, {name}, {refused} x 429; ideal", seconds, IDEAL, target=target)


if __name__ == "__main__":
    main()
