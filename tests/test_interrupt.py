"""Ctrl-C reaches the user's frame from every mode of a call, and leaves nothing running.

Each test runs this file as a program of its own, which signals itself once all its calls are in flight.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import testing
from ember_jax._errors import EmberError
from ember_jax._providers.callable import Callable
from ember_jax._providers.openai import OpenAI
from ember_jax._runtime.loop import get_loop

# Against hangs only. What was measured is printed.
_SECONDS = 5.0
_HANG = 120.0


class Gate:
    """Lets calls through when open; closed, it sends SIGINT once `expected` calls wait at it."""

    def __init__(self):
        self.open, self.expected, self.waiting, self.sent = True, 0, 0, 0.0
        self.lock = threading.Lock()

    def close(self, expected):
        self.open, self.expected, self.waiting = False, expected, 0

    def arrive(self):
        with self.lock:
            self.waiting += 1
            if self.waiting == self.expected:
                self.sent = time.perf_counter()
                os.kill(os.getpid(), signal.SIGINT)


gate = Gate()
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


async def pending(x):
    if not gate.open:
        gate.arrive()
        await asyncio.Event().wait()
    return x


def blocking(x):
    if not gate.open:
        gate.arrive()
        time.sleep(30)
    return x


async def answer(request):
    await pending(0.0)
    return request.messages[-1].content


stall = ember.host(pending, SCALAR)
block = ember.host(blocking, SCALAR)


@ember.operator
def two(x: Float[Array, ""]) -> Float[Array, ""]:
    return stall(x) * x + stall(x + 100.0)


@ember.operator
def blocked(x: Float[Array, ""]) -> Float[Array, ""]:
    return block(x) * x + block(x + 200.0)


@ember.operator
def chain(x: Float[Array, ""]) -> Float[Array, ""]:
    return jax.lax.cond(x > 0.0, lambda: two(x), lambda: stall(x))


def mean_and_gradient(x):
    return jax.value_and_grad(lambda x: jax.vmap(two)(x).mean())(x)


XS = np.arange(1.0, 5.0, dtype=np.float32)
WORDS = ["a", "b", "c", "d"]


def on_one_device():
    """Name -> (function of no arguments, calls in flight at once)."""
    ember.register("stalled", Callable(answer))
    ember.register("http", OpenAI("http://127.0.0.1:1"))
    ember.register("slow", testing.Sim())
    llm = ember.LLM("stalled/any")
    http = ember.LLM("http/any")
    sim = ember.LLM("slow/small")
    prompts = ember.text(WORDS)

    async def every_request_sent(x):
        if not gate.open:
            while run.report().requests < before + len(WORDS):
                await asyncio.sleep(0)
            gate.arrive()
        return x

    run, before = None, 0
    sent = ember.host(every_request_sent, SCALAR, pure=False)

    @ember.operator
    def simulated(prompt: ember.Text) -> tuple[ember.Text, Float[Array, ""]]:
        return sim(prompt), sent(jnp.float32(0))

    def slow():
        nonlocal run, before
        models = {"small": testing.SimModel(latency=0.0 if gate.open else 30.0)}
        with ember.session(providers={"slow": testing.Sim(models)}) as run:
            return jax.vmap(simulated)(prompts)

    def over_http():
        def arrived(number):
            if gate.open:
                return None
            gate.arrive()
            return testing.Fault(delay=30.0)

        with testing.ChatServer(faults=arrived) as server:
            provider = OpenAI(server.base_url, api_key="none")
            with ember.session(providers={"http": provider}):
                return jax.jit(jax.vmap(lambda p: http(p)))(prompts)

    jitted, jitted_vmap = jax.jit(two), jax.jit(jax.vmap(two))
    ember_jitted, ember_vmap = ember.jit(two), ember.jit(jax.vmap(two))
    gradient = jax.jit(mean_and_gradient)
    return {
        "eager": (lambda: two(1.0), 1),
        "eager vmap": (lambda: jax.vmap(two)(XS), 8),
        "jax.jit": (lambda: jitted(1.0), 2),
        "jax.jit of vmap": (lambda: jitted_vmap(XS), 8),
        "ember.jit": (lambda: ember_jitted(1.0), 2),
        "ember.jit of vmap": (lambda: ember_vmap(XS), 8),
        "value_and_grad under jax.jit": (lambda: gradient(XS), 8),
        "nested": (lambda: jax.jit(jax.vmap(chain))(XS), 8),
        "scan": (lambda: jax.lax.scan(lambda c, x: (c + two(x), c), jnp.float32(0), XS), 2),
        "a host call alone": (lambda: stall(jnp.float32(1)), 1),
        "a host call under jax.jit": (lambda: jax.jit(stall)(jnp.float32(1)), 1),
        "a bare jax.vmap(llm)": (lambda: jax.vmap(llm)(prompts), 4),
        "ember.jit of a bare jax.vmap(llm)": (lambda: ember.jit(jax.vmap(llm))(prompts), 4),
        "sim": (slow, 1),
        "blocking functions": (lambda: jax.jit(jax.vmap(blocked))(XS), 8),
        "HTTP": (over_http, 4),
    }


def on_four_devices():
    """The same, where XLA runs callbacks on threads of its own."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jax.device_put(XS, NamedSharding(mesh, PartitionSpec("d")))
    split = {"mesh": mesh, "in_specs": PartitionSpec("d"), "out_specs": PartitionSpec("d")}
    shard = jax.jit(jax.shard_map(jax.vmap(two), **split))
    jitted_vmap, gradient, ember_vmap = jax.jit(jax.vmap(two)), jax.jit(mean_and_gradient), ember.jit(jax.vmap(two))
    return {
        "shard_map": (lambda: jax.block_until_ready(shard(xs)), 8),
        "shard_map, the result unread": (lambda: shard(xs), 8),
        "sharded input": (lambda: jax.vmap(two)(xs), 8),
        "sharded input under jax.jit": (lambda: jax.block_until_ready(jitted_vmap(xs)), 8),
        "sharded input under ember.jit": (lambda: ember_vmap(xs), 8),
        "sharded input, value_and_grad": (lambda: jax.block_until_ready(gradient(xs)), 8),
        "whole input": (lambda: jax.block_until_ready(jitted_vmap(XS)), 8),
    }


def once(call):
    call()


def in_a_loop_that_swallows_errors(call):
    for _ in range(3):
        try:
            call()
        except Exception:
            pass


def interrupted(use, call, expected):
    """What one Ctrl-C does: whether it arrived, after how long, what is left, whether the next call works."""
    gate.close(expected)
    try:
        use(call)
        outcome = "returned"
        for _ in range(1000):  # what nobody waits for lands between bytecodes of the user's
            time.sleep(0.001)
    except KeyboardInterrupt:
        outcome = "KeyboardInterrupt"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"[:300]
    seconds = time.perf_counter() - gate.sent
    gate.open = True
    left = unfinished()
    second = None
    try:
        jax.block_until_ready(call())
        after = "works"
        time.sleep(0.002)  # a second KeyboardInterrupt would come here
    except BaseException as error:
        after = f"{type(error).__name__}: {error}"[:300]
    return {"outcome": outcome, "seconds": seconds, "left": left, "after": after, "second": second}


def unfinished():
    """The tasks that are still on the loop after a while."""
    loop = get_loop()

    async def names():
        return [str(t) for t in asyncio.all_tasks() if t is not asyncio.current_task()]

    end = time.perf_counter() + _SECONDS
    while (found := loop.submit(names()).result(_SECONDS)) and time.perf_counter() < end:
        time.sleep(0.01)
    return found


def main(which):
    modes = on_one_device() if which == "one" else on_four_devices()
    for name, (call, expected) in modes.items():
        for use in (once, in_a_loop_that_swallows_errors):
            with ember.session():
                result = interrupted(use, call, expected)
            sys.stdout.write(json.dumps([name, use.__name__, result]) + "\n")
            sys.stdout.flush()

if __name__ == "__main__":
    main(sys.argv[1])
