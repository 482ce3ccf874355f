"""Claim: operators in one `jax.jit` run at once, and the launch that lets them costs each 0.2 ms.

Five operators of one call of 0.1 s each in one `jax.jit`. Baselines in the same run: `ember.jit` around the same five,
and five plain `jax.pure_callback`s. Then one operator whose call takes no time, alone and in 64 lanes: with its launch,
and as it is without one. Paired runs, medians.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from unittest import mock

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import report
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import _callback

OPERATORS, SECONDS, RUNS, QUICK_RUNS, LANES = 5, 0.1, 5, 1000, 64
NUMBER = jax.ShapeDtypeStruct((), jnp.float32)


async def slow(x: np.ndarray) -> np.ndarray:
    await asyncio.sleep(SECONDS)
    return x


async def echo(x: np.ndarray) -> np.ndarray:
    return x


def blocking(x: jax.Array) -> np.ndarray:
    time.sleep(SECONDS)
    return np.asarray(x)


measure = ember.host(slow, out=NUMBER)
quick = ember.host(echo, out=NUMBER)


@ember.operator
def one(x: Float[Array, ""]) -> Float[Array, ""]:
    return measure(x)


def five(x: jax.Array) -> list[jax.Array]:
    return [one(x + i) for i in range(OPERATORS)]


def five_keys(x: jax.Array, key: jax.Array) -> list[jax.Array]:
    """Each operator's key is split off the last one's, so that it stands deeper in the program."""
    answers = []
    for _ in range(OPERATORS):
        key, mine = jax.random.split(key)
        answers.append(one(x + jax.random.uniform(mine)))
    return answers


def plain(x: jax.Array) -> list[jax.Array]:
    return [jax.pure_callback(blocking, NUMBER, x + i, vmap_method="sequential") for i in range(OPERATORS)]


def quick_operator() -> Callable[..., jax.Array]:
    """An operator of its own, so that nothing is traced or compiled of another's."""

    @ember.operator
    def alone(x: Float[Array, ""]) -> Float[Array, ""]:
        return quick(x)

    return lambda x: jax.vmap(alone)(x) if x.ndim else alone(x)


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def medians(cases: dict[str, Callable[[int], object]], runs: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in range(runs):
        for name, case in cases.items():
            times[name].append(seconds(lambda: case(run)))
    return {name: statistics.median(measured) for name, measured in times.items()}


def overlap() -> None:
    single, jitted, keyed, embered, callbacks = map(jax.jit, (one, five, five_keys, ember.jit(five), plain))
    key = jax.random.key(0)
    cases = {
        "one operator": lambda run: single(jnp.float32(100 * run + 50)),
        f"{OPERATORS} operators, jax.jit": lambda run: jitted(jnp.float32(100 * run)),
        f"{OPERATORS} with a chain of keys, jax.jit": lambda run: keyed(jnp.float32(100 * run + 20), key),
        f"{OPERATORS} operators, ember.jit": lambda run: embered(jnp.float32(100 * run + 30)),
        f"{OPERATORS} plain pure_callbacks, jax.jit": lambda run: callbacks(jnp.float32(100 * run)),
    }
    for case in cases.values():
        case(-1)
    measured = medians(cases, RUNS)
    alone = measured["one operator"]
    for name, took in measured.items():
        print(f"{name:<40} {took:6.3f} s   ratio {took / alone:5.2f}")
        report.row(f"{name}; one operator", took, alone, target="" if "plain" in name else "ratio < 1.25")


def cost() -> None:
    launched = jax.jit(quick_operator())
    unlaunched = jax.jit(quick_operator())
    for what, x in (("one operator", jnp.float32(1)), (f"{LANES} lanes", jnp.arange(float(LANES)))):
        with mock.patch.object(_callback, "is_eager", lambda: True):  # traced as where no program is around
            unlaunched(x)
        launched(x)
        both = {"with": lambda _, x=x: launched(x), "without": lambda _, x=x: unlaunched(x)}
        took = medians(both, QUICK_RUNS)
        extra = (took["with"] - took["without"]) * 1e6
        print(
            f"{what}, zero latency: {took['with'] * 1e6:6.0f} us, without a launch {took['without'] * 1e6:6.0f} us, "
            f"so a launch costs {extra:4.0f} us"
        )
        report.row(f"{what}, launched; not launched", took["with"] * 1e6, took["without"] * 1e6, "us")


if __name__ == "__main__":
    hardware.show()
    overlap()
    cost()
