"""Running a numeric segment for several lanes at once, with bits that do not depend on who shares the batch.

Design note. `vmap` of a segment gives other last bits than one lane alone, and they change with the batch: a lane's
decision near a threshold would depend on its company. So lanes are looped over *inside* one executable, each computed
exactly as if alone: inputs are stacked into buffers of a few capacities, and a loop with a *dynamic* number of steps
runs the body for the lanes that are there. `lax.map` does the same with a static length; the dynamic one needs fewer
executables, wastes nothing on padding, and is never unrolled, so one lane and a thousand run the same loop body.

The body must also be *compiled* the same way in each of those executables, or its last bits differ between them: XLA
moves what only shared inputs go into out of the loop (there JAX 0.12 has another way to compute a product), and fuses
what is left with the slices and updates around it. So the body is shut off from them, and what it is compiled from does
not tell the capacity, nor who shares what:

- It is the branch of a `cond`. XLA moves nothing across a branch's border and fuses nothing over it; within, there are
  operations on rows only. An `optimization_barrier` would not do: the CPU compiler takes it out before it fuses.
- Small inputs that all lanes share are stacked like any other, so that sharing them makes no other executable.
- Large ones are given once. LLVM, if given the whole loop as one function, may still see and use that an input is not a
  row; so the other branch, never taken, sorts two numbers. XLA cannot have a sort in such a function, and compiles each
  operation of the body to a kernel of its own, that knows nothing of where its inputs come from.

None of this is promised by XLA. `tests/test_bits.py` compares the bits, by night for many kinds of segments.
Measured beside `vmap` and one-by-one in `benchmarks/segments.py`.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from .._jax.jaxprs import evaluate
from .._jax.nan import is_nan_checked, is_refused, nan_is_a_value
from .._jax.values import from_raw, to_raw
from .._jax.whole import InexactError
from .._plan import equal
from .._plan.ir import Segment
from .device import device
from .whole import WholeSegment, whole_segment

# How many rows the buffers of a run have: the smallest of these that is enough. For each that is used one executable is
# compiled, so there are few. They may be far apart, as a row that no lane uses costs memory alone: the loop over lanes
# ends with the last lane.
CAPACITIES = (8, 128, 2048)
# An input that all lanes share is stacked, a copy for each lane, unless it has more bytes than this. The design note
# says why small ones are.
_SMALL = 2048
# How long a run may hold up the event loop, and so all calls in flight. A run that is not known to be quicker is made
# in another thread.
_LOOP_SECONDS = 0.002


def given_once(segment: Segment, shared: Sequence[bool]) -> tuple[bool, ...]:
    """Which inputs `SegmentRunner` is given once for all lanes: of those that all lanes share, the large ones.

    `shared` tells of each input whether all lanes share it.
    """
    pairs = (pair for e in segment.equations for pair in zip(e.inputs, e.eqn.invars, strict=True))
    large = {v: _is_large(var.aval) for v, var in pairs}
    return tuple(s and large.get(v, True) for v, s in zip(segment.inputs, shared, strict=True))


def runner_for(segment: Segment, shared: Sequence[bool], x64: bool) -> "SegmentRunner":
    """The executables of a segment: those of an equal one, if there was any.

    There is a plan for each choice of lane axes, so one for ten lanes and another for eleven. Their segments are equal,
    and are compiled once.
    """
    try:
        return _runner(_Wanted(segment, tuple(shared), x64))
    except TypeError:  # an equation that cannot be compared
        return SegmentRunner(segment, shared, x64)


class _Wanted:
    """What a runner is made of. Two are equal if the executables that they ask for would compute the same."""

    __slots__ = ("_key", "args")

    def __init__(self, segment: Segment, shared: tuple[bool, ...], x64: bool):
        self.args = segment, shared, x64
        self._key = equal.HashedKey(equal.of_segment(segment), shared, x64)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Wanted) and self._key == other._key


@functools.lru_cache(maxsize=1024)
def _runner(wanted: _Wanted) -> "SegmentRunner":
    return SegmentRunner(*wanted.args)


class SegmentRunner:
    """The executables of one segment, for one choice of inputs that all lanes share.

    **Arguments:**

    - `segment`: the equations.
    - `shared`: which inputs are given once and not stacked, as `given_once` says.
    - `x64`: the configuration of the traced program, which is not that of the thread that runs it.
    - `clock`: tells seconds.
    """

    def __init__(
        self, segment: Segment, shared: Sequence[bool], x64: bool, clock: Callable[[], float] = time.perf_counter
    ):
        self._segment = segment
        self._shared = tuple(shared)
        self._clock = clock
        # Of the last run of each capacity and each power of two of lanes: how many they were, and the seconds.
        self._took: dict[int, dict[int, tuple[int, float]]] = {capacity: {} for capacity in CAPACITIES}
        # How often JAX has traced the segment, and so compiled it.
        self._traced = 0
        self._out = segment.avals
        self._x64 = x64
        # Python code may run programs that wait for others; they must not take our own device's places.
        self._device = jax.local_devices(backend="cpu")[0] if segment.calls_python else device()
        self._whole = whole_segment(segment)
        # JAX names profiles and logs after the function.
        self._compiled = jax.jit(self._run, static_argnums=0)

    def is_quick(self, count: int) -> bool:
        """Whether running `count` lanes may be done on the event loop's own thread."""
        if self._whole is not None:
            return self._whole.seconds(count) < _LOOP_SECONDS
        return not self._segment.calls_python and self._expected(count) < _LOOP_SECONDS

    def _expected(self, count: int) -> float:
        """The seconds that a run of `count` lanes may take, by the runs so far; infinite if none is known.

        The last run of about as many lanes tells best, else all others of the capacity are asked. From a run of fewer
        lanes the time is scaled up in proportion, which is too much rather than too little: what is done once for all
        lanes is scaled too. A run of more lanes is an upper bound as it is.
        """
        took = self._took[_capacity(count)]
        alike = took.get(count.bit_length())
        runs = list(took.values()) if alike is None else [alike]
        return min((seconds * max(1.0, count / lanes) for lanes, seconds in runs), default=math.inf)

    def run(self, shared: Sequence[Any], columns: Sequence[Any], count: int) -> list[np.ndarray]:
        """Computes the outputs of some lanes.

        **Arguments:**

        - `shared`: the shared inputs.
        - `columns`: each other input, as an array or list over the lanes.
        - `count`: the number of lanes; at most the largest capacity.

        **Returns:** each output, as an array over the lanes.

        **Raises:** what a lane raises; `InexactError` once, if NumPy cannot be known to give XLA's bits. From then on
        XLA computes them, which has to compile first.
        """
        if self._whole is not None:
            return _checked(self._run_whole(self._whole, shared, columns, count))
        start, traced, capacity = self._clock(), self._traced, _capacity(count)
        arrays = _checked(self._run_compiled(capacity, shared, columns, count))
        if self._traced == traced:  # else the time is mostly that of compiling, which the next run need not
            self._took[capacity][count.bit_length()] = count, self._clock() - start
        return arrays

    def _run_whole(
        self, whole: WholeSegment, shared: Sequence[Any], columns: Sequence[Any], count: int
    ) -> list[np.ndarray]:
        given, lanes = map(np.asarray, shared), (_stack(column, count, count) for column in columns)
        try:
            return whole.evaluate([next(given)[None] if s else next(lanes) for s in self._shared], count)
        except InexactError:
            self._whole = None  # what the program computes is not likely to be exact later
            raise

    def _run_compiled(
        self, capacity: int, shared: Sequence[Any], columns: Sequence[Any], count: int
    ) -> list[np.ndarray]:
        stacked = [_stack(column, count, capacity) for column in columns]
        with jax.enable_x64(self._x64), jax.default_device(self._device):
            outs = self._compiled(capacity, np.uint32(count), list(shared), stacked)
            return [np.asarray(o)[:count] for o in outs]

    def outcomes(
        self, shared: Sequence[Any], columns: Sequence[Any], count: int
    ) -> tuple[list[np.ndarray], dict[int, Exception]]:
        """Like `run`, but tells which lanes failed, and why.

        A run fails as a whole, though it is mostly a single lane whose numbers are at fault. So after a failure each
        lane is run alone.

        **Returns:** the outputs, in which lanes that failed have zeros; the errors of these, by lane.
        """
        # What calls Python is run lane by lane at once: after a failed run of all lanes, the Python functions that it
        # had called already would be called a second time.
        if not self._segment.calls_python:
            with contextlib.suppress(Exception):
                with contextlib.suppress(InexactError):
                    return self.run(shared, columns, count), {}
                return self.run(shared, columns, count), {}
        outputs = [np.zeros((count, *o.shape), o.dtype) for o in self._out]
        errors: dict[int, Exception] = {}
        for i in range(count):
            alone = [column[i : i + 1] for column in columns]
            # A lane whose inputs have NaN already is not checked for it: the segment is not where it came from.
            is_given = is_nan_checked() and any(map(_is_refused, (*shared, *alone, *self._known)))
            try:
                with nan_is_a_value() if is_given else contextlib.nullcontext():
                    results = self.run(shared, alone, 1)
            except Exception as error:
                errors[i] = error
            else:
                for output, result in zip(outputs, results, strict=True):
                    output[i] = result[0]
        return outputs, errors

    @functools.cached_property
    def _known(self) -> list[Any]:
        """The constants and literals of the equations."""
        equations = self._segment.equations
        literals = [v.val for e in equations for v in e.eqn.invars if isinstance(v, jex.Literal)]
        return [*self._segment.constants.values(), *literals]

    def _run(self, capacity: int, count: Any, shared: list[Any], stacked: list[Any]) -> list[Any]:
        self._traced += 1

        def lane(i: Any, outs: list[Any]) -> list[Any]:
            varying = iter(jax.lax.dynamic_index_in_dim(s, i, keepdims=False) for s in stacked)
            common = iter(shared)
            values = [next(common if s else varying) for s in self._shared]

            def never() -> list[Any]:
                some = jax.lax.sort(jnp.stack([i, count]))[0] if any(map(_is_large, values)) else 0
                return [jnp.full(o.shape, some, o.dtype) for o in self._out]

            # `cond` and `never` keep XLA from fusing a lane's body with the loop around it: see the design note.
            results = jax.lax.cond(i < count, lambda: run_segment(self._segment, values), never)
            return [jax.lax.dynamic_update_index_in_dim(o, r, i, 0) for o, r in zip(outs, results, strict=True)]

        empty = [jnp.zeros((capacity, *o.shape), o.dtype) for o in self._out]
        return jax.lax.fori_loop(np.uint32(0), count, lane, empty)


def run_segment(segment: Segment, raw: Sequence[Any]) -> list[Any]:
    """Evaluates a segment's equations once. Traceable; keys go in and come out as key data."""
    values: dict[int, Any] = {v: jnp.asarray(c) for v, c in segment.constants.items()}
    values.update(zip(segment.inputs, raw, strict=True))
    for equation in segment.equations:
        # The same value may be read as a key by one equation and as key data by another: each says which by its types.
        pairs = zip(equation.inputs, equation.eqn.invars, strict=True)
        args = [None if v is None else from_raw(values[v], var.aval) for v, var in pairs]
        outs = map(to_raw, evaluate(equation.eqn, args))
        values.update(zip(equation.outputs, outs, strict=True))
    return [values[v] for v in segment.outputs]


def _checked(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Results as they are. Raises `FloatingPointError` for NaN where JAX is told to look: here it may not any more."""
    if is_nan_checked() and any(map(_is_refused, arrays)):
        raise FloatingPointError("a computation gives NaN or infinity, and jax_debug_nans or jax_debug_infs is set")
    return arrays


def _is_refused(value: Any) -> bool:
    array = np.asarray(value)
    return jnp.issubdtype(array.dtype, jnp.inexact) and is_refused(array)


def _is_large(aval: Any) -> bool:
    return aval.size * aval.dtype.itemsize > _SMALL


def _capacity(count: int) -> int:
    return next(c for c in CAPACITIES if c >= count)


def _stack(column: Any, count: int, capacity: int) -> np.ndarray:
    if isinstance(column, np.ndarray) and count == capacity:
        return column
    first = column[0]
    buffer = np.zeros((capacity, *first.shape), first.dtype)
    if isinstance(column, np.ndarray):
        buffer[:count] = column
    else:
        np.stack(column, out=buffer[:count])
    return buffer
