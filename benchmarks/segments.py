"""Claim: a lane's numbers cost microseconds, and have the bits of that lane alone, whoever shares its batch.

One numeric segment, a 32 x 32 product and a small MLP, for some lanes: as the engine runs it, from rows to rows (a loop
over the lanes inside one executable), beside one batch by `vmap`, `lax.map`, and one jitted call for each lane. Each is
given a column of NumPy rows, as lanes hold them, and gives one back. Medians; microseconds for each lane.
Arguments: numbers of lanes, up to 2,048.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import report

from ember_jax._engine.segments import SegmentRunner
from ember_jax._plan.lower import lower
from ember_jax._plan.passes import arrange, simplify

WIDTH, RUNS = 32, 7
MATRICES = np.random.default_rng(0).normal(size=(3, WIDTH, WIDTH)).astype(np.float32) / np.sqrt(WIDTH)

Rows = Sequence[np.ndarray]


def product(x: jax.Array) -> jax.Array:
    return MATRICES[0] @ x


def mlp(x: jax.Array) -> jax.Array:
    for matrix in MATRICES:
        x = jnp.tanh(matrix @ x)
    return jax.nn.softmax(x)


def engine(segment: Callable[[jax.Array], jax.Array]) -> Callable[[Rows], np.ndarray]:
    """The segment as `SegmentRunner` runs it."""
    plan = arrange(simplify(lower(jax.make_jaxpr(segment)(jnp.zeros(WIDTH)))))
    (node,) = plan.nodes
    runner = SegmentRunner(node, [False], x64=False)  # pyright: ignore[reportArgumentType]  # one segment, one node
    return lambda rows: runner.run([], [rows], len(rows))[0]


def ways(segment: Callable[[jax.Array], jax.Array]) -> dict[str, Callable[[Rows], np.ndarray]]:
    together, mapped, alone = jax.jit(jax.vmap(segment)), jax.jit(lambda xs: jax.lax.map(segment, xs)), jax.jit(segment)
    return {
        "engine": engine(segment),
        "vmap": lambda rows: np.asarray(together(np.stack(rows))),
        "lax.map": lambda rows: np.asarray(mapped(np.stack(rows))),
        "one by one": lambda rows: np.stack([np.asarray(alone(row)) for row in rows]),
    }


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def same_bits(a: np.ndarray, b: np.ndarray) -> int:
    """Of how many lanes all bits are equal."""
    return int(np.sum(np.all(a.view(np.uint32) == b.view(np.uint32), axis=1)))


def main() -> None:
    hardware.show()
    for segment in (product, mlp):
        run = ways(segment)
        for lanes in map(int, sys.argv[1:] or ("1", "8", "256", "2048")):
            rows = list(np.random.default_rng(lanes).normal(size=(lanes, WIDTH)).astype(np.float32))
            # "alone" is the same way of running, given this lane only
            alone = {name: np.concatenate([way([row]) for row in rows]) for name, way in run.items()}
            results = {name: way(rows) for name, way in run.items()}
            taken = {name: [] for name in run}
            for _ in range(RUNS):
                for name, way in run.items():
                    taken[name].append(seconds(lambda: way(rows)))
            each = {name: statistics.median(times) / lanes * 1e6 for name, times in taken.items()}
            print(f"{segment.__name__}, {lanes:,} lanes")
            for name, result in results.items():
                kept = same_bits(result, alone[name])
                print(f"  {name:<10} {each[name]:8.2f} us per lane   {kept:5,} of {lanes:,} with the bits of one alone")
            report.row(f"{segment.__name__}, {lanes:,} lanes; one by one", each["engine"], each["one by one"], "us")


if __name__ == "__main__":
    main()
