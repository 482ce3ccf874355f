"""Claim: faults in a fifth of all requests change no answer, and cost what they force and nothing more.

Lanes of two stages through a real server on this machine; 20 % of the requests meet one of 17 faults, in turn. A fault
after which the answer can be read forces nothing; each of the others forces one request more. The baseline is the
server's own account: what it was asked, what it refused, and the tokens of the answers that it sent whole. Then the
same program again from the journal, which asks nothing. Argument: the number of calls.
"""

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import hardware
import jax
import report

import ember_jax as ember
from ember_jax import testing
from ember_jax.testing import Fault

SHARE, IN_FLIGHT = 0.2, 200
# A pause that ends an attempt, and one that does not; both in seconds.
TIMEOUT, PAUSE = 3.0, 0.005
HTML = {"content-type": "text/html"}
# What forces another request; then what does not.
FORCING = {
    "429": Fault(status=429),
    "429 that says when": Fault(status=429, headers={"retry-after": "0.02"}),
    "429 that says it twice": Fault(status=429, headers=[("retry-after", "0.02"), ("Retry-After", "0.02")]),
    "500": Fault(status=500),
    "503": Fault(status=503, headers={"retry-after-ms": "20"}),
    "an HTML error page": Fault(status=502, headers=HTML, body="<html><h1>502 Bad Gateway</h1></html>"),
    "an HTML page with 200": Fault(headers=HTML, body="<html>Welcome</html>"),
    "a reset": Fault(reset=True),
    "half a body": Fault(truncate=True),
    "a stall": Fault(delay=100 * TIMEOUT),
    "a stall within the body": Fault(drip=100 * TIMEOUT),
    "no JSON": Fault(body='{"choices": [{"message": {"content": "half'),
    "another schema": Fault(body='{"choices": [{"message": {"content": ["a", "list"]}}]}'),
    "no choices": Fault(body='{"choices": []}'),
}
READABLE = {
    "a slow drip": Fault(drip=PAUSE),
    "10 MB": Fault(pad=10_000_000),
    "headers twice": Fault(
        headers=[("x-request-id", "one"), ("X-Request-Id", "two"), ("Content-Type", "application/json")] * 2
    ),
}
KINDS = {**FORCING, **READABLE}
LLM = ember.LLM("openai/model", temperature=0.5)


class Unpaced(ember.providers.OpenAI):
    """A server that is not held to be near its limits: here refusals come however slowly it is asked."""

    is_local = True


class Outcome(NamedTuple):
    """What was answered, our account of it, the server's, and what the same program did when it ran again."""

    answers: list[str]
    ours: dict[str, float]
    servers: dict[str, float]
    again: ember.Report
    again_answers: list[str]
    met: Counter[str]


@ember.operator
def chain(number: ember.Text) -> ember.Text:
    product = LLM(ember.format("What is {n} * 7?", n=number))
    return LLM(ember.format("What is {n} + 1?", n=product))


def strikes(requests: int) -> list[str]:
    """Which fault each request meets; "" is none."""
    draws, names = random.Random(0), list(KINDS)
    struck = [draws.random() < SHARE for _ in range(requests)]
    return [names[sum(struck[:i]) % len(names)] if hit else "" for i, hit in enumerate(struck)]


def sweep(calls: int, journal: Path) -> Outcome:
    """Makes so many calls, an even number, under faults; then again, from the journal."""
    plan = strikes(2 * calls)
    faults = [KINDS.get(name) for name in plan]
    numbers = ember.text([str(i) for i in range(calls // 2)])
    with testing.ChatServer(testing.SimModel(accuracy=1.0), faults=faults) as server:
        settings = {
            "journal": journal,
            "providers": {"openai": Unpaced(server.base_url, api_key="", timeout=TIMEOUT)},
            "limits": {"openai": ember.Limit(in_flight=IN_FLIGHT)},
            "retry": ember.Retry(20, first=0.01),
        }
        with ember.session(**settings) as run:
            answers = jax.vmap(chain)(numbers).tolist()
        with ember.session(**settings) as rerun:
            again = jax.vmap(chain)(numbers).tolist()
    done, sent = run.report(), plan[: len(server.requests)]
    met = Counter(name for name in sent if name)
    forced = sum(count for name, count in met.items() if name in FORCING)
    ours = {name: getattr(done, name) for name in ("requests", "retries", "failed", "throttled")}
    servers = {
        "requests": len(server.requests),
        "retries": forced,
        "failed": len(server.requests) - len(server.answered),
        "throttled": sum(count for name, count in met.items() if name.startswith("429")),
        "input_tokens": server.input_tokens,
        "output_tokens": server.output_tokens,
    }
    ours |= {name: getattr(done, name) for name in ("input_tokens", "output_tokens")}
    return Outcome(answers, ours, servers, rerun.report(), again, met)


def main() -> None:
    hardware.show()
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as folder:
        outcome = sweep(calls, Path(folder) / "journal.db")
    print(f"{calls:,} calls met {outcome.met.total():,} faults:")
    for name, count in outcome.met.items():
        print(f"  {name:<24} {count:>6,}  {'another request' if name in FORCING else 'an answer'}")
    print(f"{'':<14} {'ours':>10} {'the server':>10}")
    for name, ours in outcome.ours.items():
        print(f"{name:<14} {ours:>10,} {outcome.servers[name]:>10,}")
        report.row(f"{calls:,} calls under faults: {name}; the server's count", ours, outcome.servers[name], "", "1")
    assert outcome.answers == outcome.again_answers == [str(7 * i + 1) for i in range(calls // 2)]
    assert outcome.ours == outcome.servers and outcome.ours["requests"] == calls + outcome.ours["retries"]
    assert (outcome.again.requests, outcome.again.replayed) == (0, calls)
    print(f"every answer is right; run again, {outcome.again.replayed:,} calls were replayed and none was sent")


if __name__ == "__main__":
    main()
