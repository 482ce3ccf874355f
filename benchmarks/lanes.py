"""Claim: lanes of a three-stage chain run at the speed of hand-written asyncio, without a line of it.

Every stage formats a prompt, waits a lognormal latency (median 50 ms, sigma 0.8: the slowest of 10,000 takes about a
second), multiplies by a 32 x 32 matrix and takes a threshold that decides the next prompt. The baseline has one
coroutine per lane, the same latencies, prompts and numbers. Plain `jax.jit` with `pure_callback`, whose stages wait for
their slowest lane, stands beside it. Paired runs, medians. Arguments: numbers of lanes.
"""

import asyncio
import statistics
import sys
import time

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import report

import ember_jax as ember

STAGES, WIDTH, MEDIAN, SIGMA, RUNS = 3, 32, 0.05, 0.8, 3
WEIGHT = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
TEMPLATE = "stage {stage}: {question} ({mood})"


def vector(prompt: str) -> np.ndarray:
    """What a model answers, as numbers: something that depends on the prompt."""
    return np.full(WIDTH, (sum(prompt.encode()) % 7) - 3, np.float32)


async def ask(prompt: str, seconds: np.ndarray) -> np.ndarray:
    await asyncio.sleep(float(seconds))
    return vector(prompt)


call = ember.host(ask, out=jax.ShapeDtypeStruct((WIDTH,), jnp.float32))
weight, calm, keen = jnp.asarray(WEIGHT), ember.text("calm"), ember.text("keen")


def chain(question: ember.Text, seconds: jax.Array) -> jax.Array:
    mood, score = calm, jnp.float32(0)
    for stage in range(STAGES):
        prompt = ember.format(TEMPLATE, stage=str(stage), question=question, mood=mood)
        hidden = weight @ call(prompt, seconds[stage])
        score = score + hidden[0]
        mood = ember.where(hidden[0] > 0, keen, calm)
    return score


class Chain(ember.Operator):
    """The chain as an operator."""

    def forward(self, question: ember.Text, seconds: jax.Array) -> jax.Array:
        return chain(question, seconds)


async def by_hand(questions: list[str], seconds: np.ndarray) -> list[float]:
    async def lane(question: str, latencies: np.ndarray) -> float:
        mood, score = "calm", 0.0
        for stage in range(STAGES):
            prompt = TEMPLATE.format(stage=stage, question=question, mood=mood)
            hidden = WEIGHT @ await ask(prompt, latencies[stage])
            score += float(hidden[0])
            mood = "keen" if hidden[0] > 0 else "calm"
        return score

    return await asyncio.gather(*map(lane, questions, seconds))


def blocking(hidden: jax.Array, seconds: jax.Array) -> np.ndarray:
    """One batched stage of plain JAX: it waits for its slowest lane."""
    time.sleep(float(np.max(seconds)))
    return np.sign(np.asarray(hidden))


def plain(x: jax.Array, seconds: jax.Array) -> jax.Array:
    for stage in range(STAGES):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        x = weight @ jax.pure_callback(blocking, out, x, seconds[stage], vmap_method="broadcast_all")
    return x[0]


def main() -> None:
    hardware.show()
    modes = {
        "jax.vmap(op)": jax.vmap(Chain()),
        "jax.jit(jax.vmap(op))": jax.jit(jax.vmap(Chain())),
        "ember.jit(jax.vmap(f))": ember.jit(jax.vmap(chain)),
        "jax.vmap(ember.jit(f))": jax.vmap(ember.jit(chain)),
    }
    barrier = jax.jit(jax.vmap(plain))
    for lanes in map(int, sys.argv[1:] or ("1000", "10000")):
        times: dict[str, list[float]] = {}
        for run in range(-1, RUNS):  # the first warms up, with other words and latencies
            draw = np.random.default_rng(run + 1)
            seconds = draw.lognormal(np.log(MEDIAN), SIGMA, (lanes, STAGES)).astype(np.float32)
            words = [f"question {run}.{i}" for i in range(lanes)]
            questions, latencies = ember.text(words), jnp.asarray(seconds)
            start = time.perf_counter()
            want = asyncio.run(by_hand(words, seconds))
            times.setdefault("by hand", []).append(time.perf_counter() - start)
            for name, mode in modes.items():
                with ember.session():
                    start = time.perf_counter()
                    got = np.asarray(mode(questions, latencies))
                    times.setdefault(name, []).append(time.perf_counter() - start)
                np.testing.assert_allclose(got, want, rtol=1e-4)
            start = time.perf_counter()
            jax.block_until_ready(barrier(jnp.ones((lanes, WIDTH)), latencies))
            times.setdefault("plain jax.jit, pure_callback", []).append(time.perf_counter() - start)
        slowest = float(np.max(seconds.sum(axis=1)))
        print(f"{lanes:,} lanes; the last run's slowest lane sleeps {slowest:.3f} s")
        base = statistics.median(times["by hand"][1:])
        for name, measured in times.items():
            median = statistics.median(measured[1:])
            print(f"  {name:<30} {median:7.3f} s   ratio {median / base:5.2f}")
            if name in modes:
                report.row(f"{name}, {lanes:,} lanes; asyncio by hand", median, base)


if __name__ == "__main__":
    main()
