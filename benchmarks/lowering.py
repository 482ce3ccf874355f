"""Claim: a plan of 2,000 calls is lowered in under 5 s, one of 20,000 in under 60 s: the time for each call stays.

Lowering is everything that a first call does besides XLA's compilation: tracing, recording, every pass, the island and
its arrangement (which is done when it first runs), the replay, and JAX's own lowering to MLIR. The baseline is the same
program of plain `pure_callback`s, traced by `jax.make_jaxpr` and lowered by `jax.jit(...).lower(...)`. Both are under
`vmap`, where plans have lanes.
Arguments: numbers of calls; the ratio of times per call is that of the last to the first.
"""

import collections
import functools
import gc
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import report

import ember_jax as ember
from ember_jax._engine import island
from ember_jax._operator import boundary
from ember_jax._plan import passes

WIDTH = 20  # of a layer
TARGETS = {2_000: 5.0, 20_000: 60.0}
WORDS = jax.ShapeDtypeStruct((4,), jnp.uint32)
NUMBERS = jax.ShapeDtypeStruct((8,), jnp.float32)


async def same(value: Any) -> Any:
    return value


def first(*values: np.ndarray) -> np.ndarray:
    return values[0]


def plain(out: jax.ShapeDtypeStruct, *values: Any) -> jax.Array:
    return jax.pure_callback(first, out, *values, vmap_method="broadcast_all")


# What the programs are made of: calls and text operations, ours and as plain callbacks.
OURS = SimpleNamespace(
    ask=ember.host(same, out=ember.Text),
    measure=ember.host(same, out=NUMBERS),
    mark=lambda words, i: words + str(i),
    join=lambda parts: ember.join(" ", parts),
)
PLAIN = SimpleNamespace(
    ask=functools.partial(plain, WORDS),
    measure=functools.partial(plain, NUMBERS),
    mark=lambda words, i: plain(WORDS, words, np.full(4, i, np.uint32)),
    join=lambda parts: plain(WORDS, *parts),
)


def chain(of: Any, calls: int, words: Any) -> Any:
    for _ in range(calls):
        words = of.ask(words)
    return words


def ensemble(of: Any, calls: int, words: Any) -> Any:
    return of.join([of.ask(of.mark(words, i)) for i in range(calls)])


def layers(of: Any, calls: int, words: Any) -> Any:
    for _ in range(calls // WIDTH):
        words = of.join([of.ask(of.mark(words, i)) for i in range(WIDTH)])
    return words


def sums(of: Any, calls: int, x: jax.Array) -> jax.Array:
    for _ in range(calls // WIDTH):
        x = sum((of.measure(x + i) for i in range(WIDTH)), jnp.zeros_like(x))
    return x


def segments(of: Any, calls: int, x: jax.Array) -> jax.Array:
    for _ in range(calls):
        x = of.measure(jnp.tanh(x) * 2 + 1)
    return x


def running(of: Any, calls: int, x: jax.Array) -> jax.Array:
    """Each call reads the sum of all before it in its half: no two wait for the same."""
    total, out = jnp.zeros_like(x), jnp.zeros_like(x)
    for i in range(calls // 2):
        total = total + of.measure(x + i)
        out = out + of.measure(total * 2)
    return out


TEXT, ARRAYS = (chain, ensemble, layers), (sums, segments, running)


class Stages:
    """Seconds of each stage, without those of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self._open = ["replay and MLIR"]
        self._since = 0.0

    def watch(self, owner: Any, name: str, label: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function, updated=())
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self._open.append(label)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self._open.pop()

        setattr(owner, name, watched)

    def turn(self) -> None:
        """Counts the time since the last turn for the innermost stage."""
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def during(self, work: Callable[[], object]) -> None:
        """Does some work, from no seconds on."""
        self.seconds.clear()
        self._since = time.perf_counter()
        work()
        self.turn()


def watch_all() -> Stages:
    stages = Stages()
    stages.watch(boundary.Boundary, "trace", "trace")
    stages.watch(boundary.Boundary, "program", "record")
    stages.watch(boundary, "Recording", "record")
    stages.watch(boundary, "lower", "lower")
    stages.watch(island.Island, "as_it_runs", "island")
    for name, value in list(vars(passes).items()):
        if getattr(value, "__module__", "") == f"{passes.__name__}.{name}":
            stages.watch(passes, name, name)
    return stages


def islands() -> list[island.Island]:
    """The islands made from now on."""
    made: list[island.Island] = []
    initialise = island.Island.__init__

    def watched(self: island.Island, *args: Any) -> None:
        made.append(self)
        initialise(self, *args)

    island.Island.__init__ = watched
    return made


def lower_and_arrange(ours: Any, given: Any, made: list[island.Island]) -> None:
    ours.lower(given)
    made[-1].as_it_runs()  # the one with the lanes, which alone would run
    made.clear()


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    hardware.show()
    counts = list(map(int, sys.argv[1:])) or list(TARGETS)
    stages, made = watch_all(), islands()
    words, arrays = ember.text(["a", "b", "c", "d"]), jnp.ones((4, 8))
    for program in (*TEXT, *ARRAYS):
        per_call: list[float] = []
        is_text = program in TEXT
        for calls in (20, *counts):  # the first fills JAX's caches
            given = words if is_text else arrays
            ours = jax.jit(jax.vmap(ember.jit(functools.partial(program, OURS, calls))))
            mine = seconds(lambda: stages.during(lambda: lower_and_arrange(ours, given, made)))
            if calls == 20 and calls not in counts:
                continue
            baseline = jax.vmap(functools.partial(program, PLAIN, calls))
            array = given.digests if isinstance(given, ember.Text) else given
            theirs = seconds(lambda: jax.make_jaxpr(baseline)(array)) + seconds(lambda: jax.jit(baseline).lower(array))
            per_call.append(mine / calls)
            target = TARGETS.get(calls)
            print(
                f"{program.__name__:<9} {calls:>7,} calls: {mine:6.2f} s, {mine / calls * 1e6:6.0f} us per call; "
                f"plain callbacks {theirs:6.2f} s, ratio {mine / theirs:5.2f}"
            )
            print(
                "  " + ", ".join(f"{name} {spent:.2f}" for name, spent in stages.seconds.most_common() if spent > 0.01)
            )
            aim = f"under {target:g} s" if target else ""
            report.row(f"{program.__name__}, {calls:,} calls; plain callbacks", mine, theirs, target=aim)
        growth = per_call[-1] / per_call[0]
        print(f"  {counts[-1]:,} calls to {counts[0]:,}: {growth:.2f} times as long for each call", flush=True)
        report.row(
            f"{program.__name__}, a call of {counts[-1]:,} to one of {counts[0]:,}",
            per_call[-1] * 1e6,
            per_call[0] * 1e6,
            unit="us",
            target="ratio 1",
        )


if __name__ == "__main__":
    main()
