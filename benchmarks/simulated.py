"""Claim: a simulated call takes a few times what its answer alone does, so that a law of votes is measured in seconds.

`jax.vmap` of a `non.Vote` of five samples over sums, of a simulated model that answers at once, through a session with
all that it does for a call: digest, single flight, budget, report, call log, trace. The baseline is a plain Python loop
over the same requests, which asks the model's own function for each answer and counts the votes. Times are of CPU, as
all of it is on one thread at a time. Prints calls per second and the ratio; medians of paired runs, of which the first
compares the answers. Argument: the number of questions.
"""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import hardware
import jax
import numpy as np
import report

import ember_jax as ember
from ember_jax import non, providers

SAMPLES, RUNS = 5, 5
MODEL = providers.SimModel(accuracy=0.7, latency=0.0)
vote = non.Vote(ember.LLM("sim/small"), n=SAMPLES)


def in_a_loop(requests: list[providers.Request]) -> list[str]:
    """The votes of five requests after another."""
    said = [providers.sim.reply(MODEL, request).text for request in requests]
    return [Counter(said[i : i + SAMPLES]).most_common(1)[0][0] for i in range(0, len(said), SAMPLES)]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Of CPU, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def paired(asked: ember.Text, keys: jax.Array) -> tuple[float, float]:
    """Seconds of a sweep in a session of its own, and of the loop."""
    with ember.session(journal=None, providers={"sim": providers.Sim({"small": MODEL})}) as run:
        ours, answers = seconds(lambda: jax.block_until_ready(jax.vmap(vote)(asked, keys)))
    calls = sorted(run.calls(), key=lambda call: call.lane)
    requests = [providers.Request("sim", "small", call.messages, call.parameters, call.sample) for call in calls]
    loop, expected = seconds(lambda: in_a_loop(requests))
    assert answers.tolist() == expected
    return ours, loop


def main() -> None:
    hardware.show()
    questions = int((sys.argv[1:] or ("5000",))[0])
    numbers = np.random.default_rng(0).integers(100, 10**6, (questions, 2)).tolist()
    asked = ember.text([f"What is {a} + {b}?" for a, b in numbers])
    keys = jax.random.split(jax.random.key(0), questions)
    paired(asked, keys)  # compiles
    times = [paired(asked, keys) for _ in range(RUNS)]
    calls = questions * SAMPLES
    ours, loop = (calls / statistics.median(each) for each in zip(*times, strict=True))
    print(
        f"{calls:,} calls in {questions:,} votes: {ours:,.0f} calls per second of CPU ({1e6 / ours:.1f} us each); "
        f"a loop {loop:,.0f} ({1e6 / loop:.1f} us), {loop / ours:.1f} x as many"
    )
    report.row(f"simulated calls in votes, {calls:,} calls; a loop", ours, loop, "/s", "20,000 /s")


if __name__ == "__main__":
    main()
