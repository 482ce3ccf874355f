"""Claim: a host call with a numeric segment before it costs tens of microseconds, the same at any number of lanes.

Zero-latency host calls in a chain of three with an 8 x 8 product between them. Prints microseconds per call, the ratio
of per-lane times to the smallest sweep's, and the peak memory. The baseline is the same chain in hand-written asyncio.
Arguments: numbers of lanes.
"""

import asyncio
import resource
import statistics
import sys
import time

import hardware
import jax
import jax.numpy as jnp
import numpy as np

import ember_jax as ember

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


def main() -> None:
    hardware.show()
    sweep = jax.jit(jax.vmap(chain))
    first = None
    for lanes in map(int, sys.argv[1:] or ("1000", "10000", "100000")):
        xs = np.random.default_rng(lanes).normal(size=(lanes, WIDTH)).astype(np.float32)
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


if __name__ == "__main__":
    main()
