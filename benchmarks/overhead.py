"""Claim: a host call with a numeric segment before it costs tens of microseconds, the same at any number of lanes.

Zero-latency host calls in a chain of three with an 8 x 8 product between them. Prints microseconds per call, the ratio
of per-lane times to the smallest sweep's, and the peak memory. The baseline is the same chain in hand-written asyncio.
Memory is measured again in fresh processes without the baseline, and told apart: what one lane needs, with JAX and the
program; what a window of lanes in flight adds; what every further lane adds. Arguments: numbers of lanes.
"""

import asyncio
import resource
import statistics
import subprocess
import sys
import time

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import report

import ember_jax as ember
from ember_jax._engine.window import WINDOW

STAGES, WIDTH, RUNS = 3, 8, 3
WEIGHT = np.eye(WIDTH, dtype=np.float32)[::-1].copy()
weight = jnp.asarray(WEIGHT)


async def echo(x: np.ndarray) -> np.ndarray:
    return x


# not pure: every call is made, whatever was asked before
call = ember.host(echo, out=jax.ShapeDtypeStruct((WIDTH,), jnp.float32), pure=False)


@ember.jit
def chain(x: jax.Array) -> jax.Array:
    for _ in range(STAGES):
        x = call(weight @ x)
    return x


async def by_hand(xs: np.ndarray) -> list[np.ndarray]:
    async def lane(x: np.ndarray) -> np.ndarray:
        for _ in range(STAGES):
            x = await echo(WEIGHT @ x)
        return x

    return await asyncio.gather(*map(lane, xs))


def seconds(fn) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def inputs(lanes: int) -> np.ndarray:
    return np.random.default_rng(lanes).normal(size=(lanes, WIDTH)).astype(np.float32)


def peak_bytes(lanes: int) -> int:
    """Peak memory of a fresh process that makes one sweep."""
    done = subprocess.run([sys.executable, __file__, "--peak", str(lanes)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def memory(lanes: int) -> None:
    """Says what the peak memory of a sweep consists of."""
    alone, peak = peak_bytes(1), peak_bytes(lanes)
    window = min(lanes, WINDOW)
    flying = (peak if window == lanes else peak_bytes(window)) - alone
    further = (peak - alone - flying) / max(1, lanes - window)
    print(
        f"{lanes:,} lanes in a fresh process: peak {peak / 1e6:,.0f} MB = {alone / 1e6:,.0f} MB for one lane "
        f"+ {flying / 1e6:,.0f} MB for {window:,} lanes in flight ({flying / window:,.0f} bytes each)"
        f" + {(peak - alone - flying) / 1e6:,.0f} MB for {lanes - window:,} further lanes ({further:,.0f} bytes each, "
        f"of which inputs and outputs are {2 * 4 * WIDTH})"
    )
    report.row(f"peak memory, {lanes:,} lanes; one lane", peak / 1e6, alone / 1e6, "MB")


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        jax.block_until_ready(jax.jit(jax.vmap(chain))(inputs(int(sys.argv[2]))))
        print(hardware.peak_bytes())
        return
    hardware.show()
    sweep = jax.jit(jax.vmap(chain))
    first = None
    counts = list(map(int, sys.argv[1:] or ("1000", "10000", "100000")))
    for lanes in counts:
        xs = inputs(lanes)
        sweep(xs)  # compiles
        ours = statistics.median(seconds(lambda: sweep(xs)) for _ in range(RUNS))
        hand = statistics.median(seconds(lambda: asyncio.run(by_hand(xs))) for _ in range(RUNS))
        per_call = ours / lanes / STAGES * 1e6
        first = first or per_call
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{lanes:>7,} lanes: {per_call:5.1f} us per call, {per_call / first:4.2f} x the smallest sweep's; "
            f"by hand {hand / lanes / STAGES * 1e6:5.1f} us; peak memory so far {peak:,.0f} MB"
        )
        report.row(f"a call, {lanes:,} lanes; asyncio by hand", per_call, hand / lanes / STAGES * 1e6, "us")
    memory(counts[-1])


if __name__ == "__main__":
    main()
