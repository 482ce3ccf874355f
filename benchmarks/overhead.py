"""Claim: what a host call costs beside the coroutine itself, the same at any number of lanes, and what it keeps.

Chains of three zero-latency calls under `jax.vmap`, each with other words. Four of them: a pure `async def` from text
to text, which is what most programs call; the same as a `def`, which runs in the thread pool; and, as the least that a
call can cost, an impure one on arrays, alone and with an 8 x 8 product before it. The baselines are the same chains by
hand: coroutines on asyncio, and functions on a thread pool. Figures are microseconds of the process's CPU for a call;
then the time for a call at each number of lanes, as a multiple of that of the smallest sweep; and what the process grew
by in fresh processes: for each of 90,000 text calls that one session made, and when session and arrays are gone.
Arguments: numbers of lanes.
"""

import asyncio
import concurrent.futures
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import report

import ember_jax as ember

STAGES, WIDTH, RUNS = 3, 8, 3
POOL = 32  # threads of the pool by hand
WEIGHT = np.eye(WIDTH, dtype=np.float32)[::-1].copy()
NUMBERS = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)


async def mark(words: str) -> str:
    return words + "."


def mark_now(words: str) -> str:
    return words + "."


async def echo(x: np.ndarray) -> np.ndarray:
    return x


def chain(call: Callable[[Any], Any], before: Callable[[Any], Any] = lambda x: x) -> Any:
    def chained(x: Any) -> Any:
        for _ in range(STAGES):
            x = call(before(x))
        return x

    return ember.jit(chained)


def words(lanes: int, run: int) -> list[str]:
    return [f"run {run}, lane {i}" for i in range(lanes)]


def numbers(lanes: int, run: int) -> np.ndarray:
    return np.random.default_rng(run).normal(size=(lanes, WIDTH)).astype(np.float32)


async def on_a_loop(xs: Any, call: Any, before: Callable[[Any], Any] = lambda x: x) -> list[Any]:
    async def lane(x: Any) -> Any:
        for _ in range(STAGES):
            x = await call(before(x))
        return x

    return await asyncio.gather(*map(lane, xs))


def in_threads(xs: Any) -> list[Any]:
    async def run() -> list[Any]:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(POOL) as pool:
            return await on_a_loop(xs, lambda x: loop.run_in_executor(pool, mark_now, x))

    return asyncio.run(run())


product = jnp.asarray(WEIGHT)
# The name, ours, its inputs, and by hand.
KINDS: dict[str, tuple[Any, Callable[[int, int], Any], Callable[[Any], Any]]] = {
    "async text": (chain(ember.host(mark, out=ember.Text)), words, lambda xs: asyncio.run(on_a_loop(xs, mark))),
    "text in threads": (chain(ember.host(mark_now, out=ember.Text)), words, in_threads),
    "impure array": (
        chain(ember.host(echo, out=NUMBERS, pure=False)),
        numbers,
        lambda xs: asyncio.run(on_a_loop(xs, echo)),
    ),
    "impure array after a product": (
        chain(ember.host(echo, out=NUMBERS, pure=False), lambda x: product @ x),
        numbers,
        lambda xs: asyncio.run(on_a_loop(xs, echo, lambda x: WEIGHT @ x)),
    ),
}


def seconds(work: Callable[[], Any]) -> float:
    """Of CPU, of all threads of this process."""
    gc.collect()
    start = time.process_time()
    jax.block_until_ready(jax.tree.leaves(work()))
    return time.process_time() - start


def a_call(kind: str, lanes: int) -> tuple[float, float]:
    """Microseconds of CPU for a call: ours and by hand."""
    ours, inputs, by_hand = KINDS[kind]
    sweep = jax.jit(jax.vmap(ours))
    with ember.session(journal=None):
        sweep(given(inputs(lanes, 0)))  # compiles
    found, hand = [], []
    for run in range(1, RUNS + 1):
        xs = inputs(lanes, run)
        with ember.session(journal=None):
            arrays = given(xs)
            found.append(seconds(lambda: sweep(arrays)))
        hand.append(seconds(lambda: by_hand(xs)))
    return tuple(statistics.median(side) / lanes / STAGES * 1e6 for side in (found, hand))  # type: ignore[return-value]


def given(xs: Any) -> Any:
    return jnp.asarray(xs) if isinstance(xs, np.ndarray) else ember.text(xs)


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth() -> None:
    """Prints how many bytes a text call adds, and how many are left of it when session and arrays are gone."""
    sweep, lanes = jax.jit(jax.vmap(KINDS["async text"][0])), 30_000
    with ember.session(journal=None):
        sweep(given(words(lanes, 0)))
    gc.collect()
    before = resident()
    with ember.session(journal=None):
        kept = sweep(given(words(lanes, 1)))
        jax.block_until_ready(kept.digests)
        grown = resident() - before
    del kept
    gc.collect()
    left = resident() - before
    print(grown / lanes / STAGES, left / lanes / STAGES)


def main() -> None:
    if sys.argv[1:] == ["--growth"]:
        growth()
        return
    hardware.show()
    counts = list(map(int, sys.argv[1:] or ("1000", "10000", "100000")))
    for kind in KINDS:
        first = 0.0
        for lanes in counts if kind != "text in threads" else counts[:2]:
            ours, hand = a_call(kind, lanes)
            first = first or ours
            print(
                f"{kind + ',':<29} {lanes:>7,} lanes: {ours:6.1f} us of CPU for a call, {ours / first:4.2f} x the "
                f"smallest sweep's; by hand {hand:5.1f} us",
                flush=True,
            )
            report.row(f"{kind}, {lanes:,} lanes; by hand", ours, hand, "us")
            if lanes != counts[0]:
                report.row(f"{kind}, {lanes:,} lanes; {counts[0]:,} lanes", ours, first, "us")
    if os.path.exists("/proc/self/statm"):
        command = [sys.executable, __file__, "--growth"]
        grown, left = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        print(f"90,000 text calls in a fresh process: {grown:,.0f} bytes a call; {left:,.0f} left when all is dropped")
        report.row("memory for a text call", grown, None, "bytes")
        report.row("memory left of a text call", left, None, "bytes")


if __name__ == "__main__":
    main()
