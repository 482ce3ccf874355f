"""Claim: faults in a fifth of all requests change no answer, cost what they force and nothing more, and are all told.

Lanes of two stages through a real server on this machine; 20 % of the requests meet one of 29 faults, in turn. A fault
after which the answer can be read forces nothing; each of the others forces one request more. The baseline is the
server's own account: what it was asked, what it refused, and the tokens and dollars of the answers that it sent whole,
whatever it had made of them. Then the same program again from the journal, which asks nothing.

Then rows of a data set, through as many faults, among them answers that say nothing. Each of these fails one row and is
paid for once. The report, the budget and the evaluation have the tokens and the dollars of the server's account.
Argument: the number of calls.
"""

import json
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
# In US dollars for a million tokens, so that a token is a millionth of a dollar, or ten.
PRICE = ember.Price(input=1, output=10)


def choice(**fields: Any) -> Fault:
    """Another choice in the answer; the `message` is merged into the answer's."""

    def edit(completion: dict[str, Any]) -> dict[str, Any]:
        (first,) = completion["choices"]
        message = {**first["message"], **fields.get("message", {})}
        return {**completion, "choices": [{**first, **fields, "message": message}]}

    return Fault(edit=edit)


def words(change: Callable[[str], Any]) -> Fault:
    """The answer's words in another form."""
    return Fault(edit=lambda c: choice(message={"content": change(c["choices"][0]["message"]["content"])}).edit(c))


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "reasoning", "text": "7 *"}, *({"type": "text", "text": letter} for letter in text)]


CUT = {"content": "The ans"}
# What forces another request: a refusal, or an answer of which nobody knows whether it is billed; then an answer that
# is no use, and says what is billed for it.
REFUSED = {
    "429": Fault(status=429),
    "429 that says when": Fault(status=429, headers={"retry-after": "0.02"}),
    "429 that says it twice": Fault(status=429, headers=[("retry-after", "0.02"), ("Retry-After", "0.02")]),
    "500": Fault(status=500),
    "503": Fault(status=503, headers={"retry-after-ms": "20"}),
    "an HTML error page": Fault(status=502, headers=HTML, body="<html><h1>502 Bad Gateway</h1></html>"),
}
LOST = {
    "an HTML page with 200": Fault(headers=HTML, body="<html>Welcome</html>"),
    "a reset": Fault(reset=True),
    "half a body": Fault(truncate=True),
    "a stall": Fault(delay=100 * TIMEOUT),
    "a stall within the body": Fault(drip=100 * TIMEOUT),
    "no JSON": Fault(body='{"choices": [{"message": {"content": "half'),
    "another schema": Fault(body='{"choices": [{"message": {"content": ["a", "list"]}}]}'),
    "no choices": Fault(body='{"choices": []}'),
}
BILLED = {
    "no choices, billed": Fault(edit=lambda c: {**c, "choices": []}),
    "another schema, billed": words(list),
    "half of the JSON, billed": Fault(edit=lambda c: json.dumps({"usage": c["usage"], **c})[:-1]),
    "an error in the choice": choice(message=CUT, finish_reason="error", error={"code": 502, "message": "gone"}),
    "an error beside the choices": Fault(
        edit=lambda c: {**choice(message=CUT, finish_reason=None).edit(c), "error": {"message": "gone"}}
    ),
}
FORCING = REFUSED | LOST | BILLED
# What does not force another request.
READABLE = {
    "a slow drip": Fault(drip=PAUSE),
    "10 MB": Fault(pad=10_000_000),
    "headers twice": Fault(
        headers=[("x-request-id", "one"), ("X-Request-Id", "two"), ("Content-Type", "application/json")] * 2
    ),
    "parts": words(parts),
    "reasoning beside": choice(message={"reasoning_content": "7 *", "refusal": ""}),
    "half a character": choice(message={"reasoning": "7 \ud83d"}),
    "no UTF-8": Fault(edit=lambda c: json.dumps(c).encode().replace(b'"refusal": null', b'"reasoning": "\xff"')),
    "an infinite log-probability": choice(logprobs={"content": [{"token": "7", "logprob": -math.inf}]}),
    "a log-probability of no form": choice(logprobs={"content": [{"token": None, "logprob": "?"}]}),
    "numbers in quotes": Fault(edit=lambda c: {**c, "usage": {k: str(v) for k, v in c["usage"].items()}}),
}
KINDS = {**FORCING, **READABLE}
# Answers that say nothing. They are answers: none is asked for again.
EMPTY = {
    "nothing, cut": choice(message={"content": None}, finish_reason="length"),
    "an empty text, cut": choice(message={"content": ""}, finish_reason="length"),
    "reasoning alone": choice(message={"content": None, "reasoning": "7 *"}, finish_reason="length"),
    "filtered": choice(message={"content": None}, finish_reason="content_filter"),
    "refused": choice(message={"content": None, "refusal": "I cannot."}),
}
LLM = ember.LLM("openai/model", temperature=0.5, max_tokens=64)


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


class Books(NamedTuple):
    """Who has counted what: the report, the evaluation, the budget and the server; and what a second run sent."""

    report: dict[str, float]
    evaluation: dict[str, float]
    budget: dict[str, float]
    server: dict[str, float]
    lost: dict[str, float]
    failed: tuple[int, int]
    again: ember.Report
    met: Counter[str]


def strikes(requests: int, kinds: list[str]) -> list[str]:
    """Which fault each request meets; "" is none."""
    draws = random.Random(0)
    struck = [draws.random() < SHARE for _ in range(requests)]
    return [kinds[sum(struck[:i]) % len(kinds)] if hit else "" for i, hit in enumerate(struck)]


def settings_for(server: testing.ChatServer, journal: Path) -> dict[str, Any]:
    return {
        "journal": journal,
        "providers": {"openai": Unpaced(server.base_url, api_key="", timeout=TIMEOUT)},
        "limits": {"openai": ember.Limit(in_flight=IN_FLIGHT)},
        "retry": ember.Retry(20, first=0.01),
        "prices": {"openai": PRICE},
        "budget_usd": 1e6,
    }


def billed(server: testing.ChatServer) -> dict[str, float]:
    """What the server bills, in tokens and in millionths of a dollar."""
    millionths = PRICE.input * server.input_tokens + PRICE.output * server.output_tokens
    return {"input_tokens": server.input_tokens, "output_tokens": server.output_tokens, "millionths": millionths}


def told(report: ember.Report) -> dict[str, float]:
    """What the report says was billed."""
    millionths = round(1e6 * report.cost_usd, 3)
    return {"input_tokens": report.input_tokens, "output_tokens": report.output_tokens, "millionths": millionths}


def sweep(calls: int, journal: Path) -> Outcome:
    """Makes so many calls, an even number, under faults; then again, from the journal."""
    plan = strikes(2 * calls, list(KINDS))
    faults = [KINDS.get(name) for name in plan]
    numbers = ember.text([str(i) for i in range(calls // 2)])
    with testing.ChatServer(testing.SimModel(accuracy=1.0), faults=faults) as server:
        settings = settings_for(server, journal)
        with ember.session(**settings) as run:
            answers = jax.vmap(chain)(numbers).tolist()
        with ember.session(**settings) as rerun:
            again = jax.vmap(chain)(numbers).tolist()
    done, sent = run.report(), plan[: len(server.requests)]
    met = Counter(name for name in sent if name)
    forced = count(met, FORCING)
    ours = {name: getattr(done, name) for name in ("requests", "retries", "failed", "throttled", "lost")}
    servers = {
        "requests": len(server.requests),
        "retries": forced,
        "failed": forced,
        "throttled": sum(count for name, count in met.items() if name.startswith("429")),
        "lost": count(met, LOST),
    }
    return Outcome(answers, ours | told(done), servers | billed(server), rerun.report(), again, met)


def count(met: Counter[str], kinds: dict[str, Fault]) -> int:
    return sum(number for name, number in met.items() if name in kinds)


def books(rows: int, journal: Path) -> Books:
    """Evaluates a model on so many rows under faults; then again, from the journal."""
    kinds = KINDS | EMPTY
    plan = strikes(2 * rows, list(kinds))
    data = [(f"What is {i} * 7?", str(7 * i)) for i in range(rows)]
    with testing.ChatServer(testing.SimModel(accuracy=1.0), faults=[kinds.get(name) for name in plan]) as server:
        settings = settings_for(server, journal)
        with ember.session(**settings) as run:
            found = ember.evaluate(LLM, data)
        with ember.session(**settings) as rerun:
            again = ember.evaluate(LLM, data)
    met = Counter(name for name in plan[: len(server.requests)] if name)
    report, funds = run.report(), run.budget
    assert found.accuracy == again.accuracy == 1.0, "what fails is not wrong"
    assert found.failed == again.failed and report.cut == found.cut.sum() == again.cut.sum()
    tokens = {"input_tokens": found.input_tokens.sum(), "output_tokens": found.output_tokens.sum()}
    return Books(
        report=told(report),
        evaluation=tokens | {"millionths": round(1e6 * found.cost, 1)},
        budget={"millionths": round(1e6 * (funds.spent - funds.lost), 3)},
        server=billed(server),
        lost={"report": report.lost_usd, "budget": funds.lost},
        failed=(found.failed, count(met, EMPTY)),
        again=rerun.report(),
        met=met,
    )


def main() -> None:
    hardware.show()
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as folder:
        outcome = sweep(calls, Path(folder) / "journal.db")
        told_by = books(calls, Path(folder) / "books.db")
    print(f"{calls:,} calls met {outcome.met.total():,} faults:")
    for name, number in outcome.met.items():
        print(f"  {name:<28} {number:>6,}  {'another request' if name in FORCING else 'an answer'}")
    print(f"{'':<14} {'ours':>10} {'the server':>10}")
    for name, ours in outcome.ours.items():
        print(f"{name:<14} {ours:>10,} {outcome.servers[name]:>10,}")
        report.row(f"{calls:,} calls under faults: {name}; the server's count", ours, outcome.servers[name], "", "1")
    assert outcome.answers == outcome.again_answers == [str(7 * i + 1) for i in range(calls // 2)]
    assert outcome.ours == outcome.servers and outcome.ours["requests"] == calls + outcome.ours["retries"]
    assert (outcome.again.requests, outcome.again.replayed) == (0, calls)
    print(f"every answer is right; run again, {outcome.again.replayed:,} calls were replayed and none was sent")
    print(f"{calls:,} rows met {told_by.met.total():,} faults; {told_by.failed[0]:,} answers said nothing")
    for who, found in told_by._asdict().items():
        if who in ("report", "evaluation", "budget", "server"):
            print(f"  {who:<12} {found}")
    assert told_by.report == told_by.server and told_by.failed[0] == told_by.failed[1]
    assert told_by.again.requests == 0


if __name__ == "__main__":
    main()
