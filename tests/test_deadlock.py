"""Programs that run segments, compile and call hosts inside XLA's callbacks, from many threads, end and are right.

Each test runs this file as a program of its own, with a hard limit on its time.
"""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._engine import island

_HANG = 120.0
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


async def plus_one(x):
    await asyncio.sleep(0)
    return x + 1


add = ember.host(plus_one, SCALAR)
add_blocking = ember.host(lambda x: x + 1, SCALAR, pure=False)


@ember.operator
def network(x: Float[Array, ""]) -> Float[Array, ""]:
    """Calls with numbers before, between and after them; two branches, of which one blocks."""
    y = add(jnp.sin(x) * 2)
    z = lax.cond(y > 1.0, lambda: add(y * x), lambda: add_blocking(y - x))
    return jnp.tanh(z) + y


def expected(xs):
    xs = np.asarray(xs, np.float32)
    y = np.sin(xs) * 2 + 1
    return np.tanh(np.where(y > 1.0, y * xs, y - xs) + 1) + y


def check(found, xs):
    np.testing.assert_allclose(found, expected(xs), rtol=2e-5, atol=2e-6)


def inputs(seed, lanes):
    return np.random.default_rng(seed).normal(size=lanes).astype(np.float32)


def in_threads(count, work):
    """Runs `work(thread)` in threads that start together; raises the first error."""
    at_once, errors = threading.Barrier(count), []

    def run(thread):
        at_once.wait()
        try:
            work(thread)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def islands(threads=8, each=200):
    mapped = jax.jit(jax.vmap(network))

    def work(thread):
        for i in range(each):
            xs = inputs(thread * each + i, 4)
            check(mapped(xs), xs)

    with ember.session() as run:
        in_threads(threads, work)
    assert run.report().islands == threads * each


def compiling():
    """Every thread brings lanes that no other has had: islands are made, and segments compiled, while others run."""
    before = island.made
    sizes = [1, 2, 3, 5, 8, 9, 129]

    def work(thread):
        for lanes in sizes[thread % 3 :]:
            xs = inputs(lanes, lanes)
            check(jax.vmap(network)(xs), xs)
        fresh = ember.jit(lambda x: add(jnp.cos(x) * thread) + jnp.sqrt(add(x) ** 2 + thread))
        xs = inputs(thread, 9)
        wanted = np.cos(xs) * thread + 1 + np.sqrt((xs + 1) ** 2 + thread)
        np.testing.assert_allclose(jax.vmap(fresh)(xs), wanted, rtol=2e-5)

    in_threads(8, work)
    assert island.made - before >= len(sizes)


def large(threads=1):
    """100 MB in, shared by all lanes, and mapped over them."""
    shared = np.arange(25_000_000, dtype=np.float32) % 7
    read = jax.jit(jax.vmap(ember.jit(lambda x, data: add(x + data.max()) * data[3]), (0, None)))
    split = jax.jit(jax.vmap(ember.jit(lambda x, row: add(x + row.max()) * row[3])))
    rows = shared.reshape(10, -1)

    def work(thread):
        xs = inputs(thread, 10)
        np.testing.assert_allclose(read(xs, shared), (xs + 6 + 1) * 3, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(split(xs, rows), (xs + 6 + 1) * rows[:, 3], rtol=1e-4, atol=1e-4)

    in_threads(threads, work)


def large_in_threads():
    large(threads=4)


def nested():
    """Operators in operators, under a `vmap` inside and outside, with the outer program's own numbers around them."""

    @ember.operator
    def row(xs: Float[Array, "n"]) -> Float[Array, ""]:
        return jax.vmap(network)(xs).sum() + add(xs[0])

    mapped = jax.jit(jax.vmap(row))

    def work(thread):
        for i in range(10):
            xs = inputs(thread * 10 + i, (5, 3))
            wanted = expected(xs).sum(1) + xs[:, 0] + 1
            np.testing.assert_allclose(mapped(xs), wanted, rtol=1e-4, atol=1e-5)

    in_threads(8, work)


def operators_in_host_functions(threads=1, each=5):
    """A host function runs a compiled operator of its own while the outer program waits in its callback."""
    inner = jax.jit(jax.vmap(network))

    def on_host(xs):
        return np.asarray(inner(xs))

    outer = jax.jit(jax.vmap(ember.jit(ember.host(on_host, jax.ShapeDtypeStruct((3,), jnp.float32)))))

    def work(thread):
        for i in range(each):
            xs = inputs(thread * each + i, (4, 3))
            check(outer(xs), xs)

    in_threads(threads, work)


def operators_in_host_functions_of_threads():
    operators_in_host_functions(threads=8)


def a_full_queue():
    """Forty programs wait for an operator whose last segment has not begun; JAX lets 32 be in flight on a device."""
    dispatched = threading.Event()
    hold = ember.host(lambda x: (dispatched.wait(), x)[1], SCALAR, pure=False)
    plain = lambda x: jax.pure_callback(lambda y: np.asarray(y) * 3, SCALAR, x)
    gated = jax.jit(ember.jit(lambda x: plain(jnp.tanh(hold(jnp.sin(x)))))).lower(jnp.float32(0)).compile()
    slow = jax.jit(lambda m: (m @ m @ m).mean()).lower(jnp.ones((1000, 1000))).compile()
    # an input that is not there yet, so that the program is dispatched and not run in this thread
    found = gated(slow(jnp.full((1000, 1000), 1e-3)))
    wanted = np.tanh(np.sin(1e-3)) * 3
    for i in range(40):
        if i == 28:
            dispatched.set()
        found, wanted = found + 1, wanted + 1
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def shards():
    """On four devices every device runs an island of its own."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split = {"mesh": mesh, "in_specs": jax.sharding.PartitionSpec("d"), "out_specs": jax.sharding.PartitionSpec("d")}
    mapped = jax.jit(jax.shard_map(jax.vmap(network), **split))
    for i in range(20):
        xs = inputs(i, 8)
        check(mapped(xs), xs)


PROGRAMS = {
    f.__name__: f
    for f in (
        islands,
        compiling,
        large,
        large_in_threads,
        nested,
        operators_in_host_functions,
        operators_in_host_functions_of_threads,
        a_full_queue,
        shards,
    )
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
    sys.exit()


# -- the tests -------------------------------------------------------------------------------------------------------

_DEVICES = "--xla_force_host_platform_device_count={}"


def ends(name, cpus, devices=1):
    if shutil.which("taskset") is None:
        pytest.skip("taskset is missing")
    if len(os.sched_getaffinity(0)) < cpus:
        pytest.skip(f"there are no {cpus} cores")
    allowed = ",".join(map(str, itertools.islice(sorted(os.sched_getaffinity(0)), cpus)))
    command = ["taskset", "-c", allowed, sys.executable, "-W", "error", "-X", "faulthandler", __file__, name]
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES.format(devices)}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        _, err = process.communicate(timeout=_HANG)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        pytest.fail(f"{name} hangs on {cpus} cores with {devices} devices\n{err[-3000:]}")
    assert process.returncode == 0, err[-3000:]


def nightly(*values):
    """A parameter, or several, of the runs by night."""
    return pytest.param(*values, marks=pytest.mark.nightly)


@pytest.mark.parametrize("cpus", [2, nightly(1)])
def test_two_hundred_islands_of_each_of_eight_threads_end(cpus):
    ends("islands", cpus)


def test_islands_of_many_threads_end_on_four_devices():
    ends("islands", cpus=2, devices=4)


@pytest.mark.parametrize(("cpus", "devices"), [(2, 4), nightly(1, 1)])
def test_compiling_in_islands_while_others_run_ends(cpus, devices):
    ends("compiling", cpus, devices)


@pytest.mark.parametrize("cpus", [1, nightly(2)])
def test_a_sweep_with_a_hundred_megabytes_of_input_ends(cpus):
    ends("large", cpus)


@pytest.mark.parametrize(("cpus", "devices"), [(2, 4), nightly(1, 1)])
def test_nested_operators_end(cpus, devices):
    ends("nested", cpus, devices)


@pytest.mark.parametrize("devices", [1, nightly(4)])
def test_an_operator_compiled_in_a_host_function_ends(devices):
    ends("operators_in_host_functions", cpus=1, devices=devices)


def test_an_operator_that_many_programs_wait_for_ends():
    ends("a_full_queue", cpus=2)


def test_operators_compiled_in_host_functions_of_many_threads_end():
    ends("operators_in_host_functions_of_threads", cpus=2)


def test_islands_of_four_devices_end_on_one_core():
    ends("shards", cpus=1, devices=4)
