"""Claim: ten independent calls of 0.1 s take the time of one, under every transformation, from the first new data on.

Baselines in the same run: one call alone, and the same ten as plain `jax.pure_callback`s. Paired runs, medians.
"""

import asyncio
import statistics
import time
from collections.abc import Callable

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import report

import ember_jax as ember

CALLS, SECONDS, RUNS = 10, 0.1, 5


async def answer(prompt: str) -> str:
    await asyncio.sleep(SECONDS)
    return prompt.upper()


async def number(x: np.ndarray) -> np.ndarray:
    await asyncio.sleep(SECONDS)
    return x


ask = ember.host(answer, out=ember.Text)
measure = ember.host(number, out=jax.ShapeDtypeStruct((), jnp.float32))


def blocking(x: jax.Array) -> np.ndarray:
    time.sleep(SECONDS)
    return np.asarray(x)


@ember.operator
def one(question: ember.Text) -> ember.Text:
    return ask(question + "0")


@ember.operator
def ten(question: ember.Text) -> ember.Text:
    return ember.join(" ", [ask(question + str(i)) for i in range(CALLS)])


def plain(x: jax.Array) -> jax.Array:
    out = jax.ShapeDtypeStruct((), jnp.float32)
    return sum(jax.pure_callback(blocking, out, x + i, vmap_method="sequential") for i in range(CALLS))


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def main() -> None:
    hardware.show()
    jitted, embered, plain_jitted = jax.jit(ten), ember.jit(ten), jax.jit(plain)
    lanes = lambda run: ember.text([f"{run} lane {i} " for i in range(CALLS)])
    single = jax.jit(one)
    cases = {
        "one call alone": lambda run: single(ember.text(f"{run} one ")),
        f"{CALLS} in one operator, jax.jit": lambda run: jitted(ember.text(f"{run} jit ")),
        f"{CALLS} in one operator, ember.jit": lambda run: embered(ember.text(f"{run} ember ")),
        f"{CALLS} lanes, jax.vmap": lambda run: jax.vmap(one)(lanes(run)),
        f"{CALLS} lanes of {CALLS}, jax.vmap": lambda run: jax.vmap(ten)(lanes(run)),
        f"{CALLS} plain pure_callbacks, jax.jit": lambda run: plain_jitted(jnp.float32(100 * run)),
    }
    for case in cases.values():
        case(-1)  # other data: what follows is the first call with new words
    times = {name: [] for name in cases}
    for run in range(RUNS):
        for name, case in cases.items():
            times[name].append(seconds(lambda: case(run)))
    alone = statistics.median(times["one call alone"])
    for name, measured in times.items():
        first, median = measured[0], statistics.median(measured)
        print(f"{name:<36} first {first:6.3f} s   median {median:6.3f} s   ratio {median / alone:5.2f}")
        report.row(f"{name}; one call alone", median, alone, target="" if "plain" in name else "ratio < 1.25")


if __name__ == "__main__":
    main()
