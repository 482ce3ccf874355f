"""Equations on whole numbers, truth values and keys, evaluated in NumPy for many lanes at once, without compiling.

Design note. Much of what stands between calls is not arithmetic: a vote compares digests and counts, a key is folded, a
branch is picked. XLA takes 30 to 400 ms to compile each such piece, before the first calls that wait for it are made,
and NumPy computes all of them in microseconds. What it computes has the same bits: whole numbers wrap around alike, a
float that is only moved or compared stays what it is, and Threefry, by which keys are split and folded, is exact by its
definition. Arithmetic on floats is none of this, and is left to XLA. So are keys of other generators, and every
primitive that is not named here.

Each rule makes, of one equation, a function of arrays. All arrays have the axis of lanes in front, of length 1 where
all lanes share a value. Keys are their key data, with one axis more behind.

XLA's CPU backend takes floats below the normal range for zero where it compares them, and so do the rules; that and all
bits are compared with XLA's in `tests/test_whole.py`.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend import core as jex

from .._types import is_key
from . import equations

Arrays: TypeAlias = Sequence[np.ndarray]
Evaluate: TypeAlias = Callable[..., list[np.ndarray]]


def evaluator(eqn: Any) -> Evaluate | None:
    """What evaluates an equation on arrays that have an axis of lanes in front; `None` if only XLA can."""
    rule = RULES.get(eqn.primitive.name)
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    if rule is None or not all(map(_is_plain, avals)) or any(0 in a.shape for a in avals):
        return None
    return rule(eqn)


def work(eqn: Any) -> int:
    """How many numbers an equation makes for each lane; hashing a key counts as many."""
    if eqn.primitive.name.startswith("random_"):
        return _HASH * sum(math.prod(v.aval.shape) for v in eqn.outvars)
    return 1 + sum(math.prod(v.aval.shape) for v in eqn.outvars)


def literal(var: Any) -> np.ndarray:
    """A literal as the rules take it."""
    return np.asarray(var.val, var.aval.dtype)[None]


class Steps:
    """Equations that are evaluated one after another, on values by their names."""

    def __init__(self, steps: Sequence[tuple[Evaluate, Sequence[tuple[Any, np.ndarray | None]], Sequence[Any]]]):
        self._steps = steps

    def run(self, values: dict[Any, np.ndarray]) -> None:
        """Adds what the equations make of the values that are given, and of each other's."""
        for evaluate, inputs, outputs in self._steps:
            made = evaluate(*[values[name] if at is None else at for name, at in inputs])
            values.update(zip(outputs, made, strict=True))


def steps_of(eqns: Iterable[tuple[Any, Sequence[Any], Sequence[Any]]]) -> Steps | None:
    """Equations, each with the names of its inputs (any for a literal) and outputs; `None` if one is only XLA's."""
    steps: list[Any] = []
    for eqn, inputs, outputs in eqns:
        step = evaluator(eqn)
        if step is None:
            return None
        literals = [literal(v) if isinstance(v, jex.Literal) else None for v in eqn.invars]
        steps.append((step, list(zip(inputs, literals, strict=True)), outputs))
    return Steps(steps)


def _is_plain(aval: Any) -> bool:
    if is_key(aval):
        return str(aval.dtype) == "key<fry>"
    return np.dtype(aval.dtype).kind in "biufc" and np.dtype(aval.dtype).name not in ("float16",)


def _kind(var: Any) -> str:
    """Of what kind a variable is: `b`, `i`, `u` or `f` as in NumPy, `c` for complex, `k` for a key."""
    return "k" if is_key(var.aval) else np.dtype(var.aval.dtype).kind


def _is_exact(var: Any) -> bool:
    return _kind(var) in "biu"


def _data(aval: Any) -> tuple[int, ...]:
    """The axes that a value's data have behind its own: those of key data."""
    return (2,) if is_key(aval) else ()


# -- one for each lane and place -------------------------------------------------------------------------------------


def _ranked(array: np.ndarray, rank: int) -> np.ndarray:
    """A scalar of each lane, to go with arrays of a rank."""
    return array.reshape(len(array), *(1,) * rank) if array.ndim == 1 and rank else array


def _elementwise(function: Callable[..., Any], kinds: str, eqn: Any) -> Evaluate | None:
    """A NumPy function of operands of some kinds, all of one shape or scalars."""
    if any(_kind(v) not in kinds for v in (*eqn.invars, *eqn.outvars)):
        return None
    rank, dtype = len(eqn.outvars[0].aval.shape), np.dtype(eqn.outvars[0].aval.dtype)

    def evaluate(*arrays: np.ndarray) -> list[np.ndarray]:
        return [function(*[_ranked(a, rank) for a in arrays]).astype(dtype, copy=False)]

    return evaluate


def _compared(function: Callable[..., Any], eqn: Any) -> Evaluate | None:
    """A comparison; of floats too, with what is below the normal range as zero."""
    if any(_kind(v) not in "biuf" for v in eqn.invars) or any(_is_unusual(v) for v in eqn.invars):
        return None
    rank = len(eqn.outvars[0].aval.shape)

    def evaluate(*arrays: np.ndarray) -> list[np.ndarray]:
        return [function(*[_normal(_ranked(a, rank)) for a in arrays])]

    return evaluate


def _is_unusual(var: Any) -> bool:
    return _kind(var) == "f" and np.dtype(var.aval.dtype) not in (np.float32, np.float64)


def _normal(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    return np.where(np.abs(array) < np.finfo(array.dtype).tiny, array.dtype.type(0), array)


def _select(eqn: Any) -> Evaluate | None:
    which, rank, data = eqn.invars[0], len(eqn.outvars[0].aval.shape), len(_data(eqn.outvars[0].aval))
    if not _is_exact(which):
        return None

    def evaluate(chosen: np.ndarray, *cases: np.ndarray) -> list[np.ndarray]:
        chosen = _ranked(chosen, rank)
        chosen = chosen.reshape(*chosen.shape, *(1,) * data)
        found = cases[0]
        for i, case in enumerate(cases[1:], 1):
            found = np.where(chosen == i if len(cases) > 2 else chosen, case, found)
        return [found]

    return evaluate


def _convert(eqn: Any) -> Evaluate | None:
    dtype = np.dtype(eqn.outvars[0].aval.dtype)
    is_same = eqn.invars[0].aval.dtype == dtype
    is_widened = _is_exact(eqn.invars[0]) and (_is_exact(eqn.outvars[0]) or dtype in (np.float32, np.float64))
    if not is_same and not is_widened:
        return None
    return lambda array: [array.astype(dtype, copy=False)]


def _clamped(eqn: Any) -> Evaluate | None:
    if not all(map(_is_exact, eqn.invars)):
        return None
    rank = len(eqn.outvars[0].aval.shape)
    return lambda least, array, most: [np.minimum(np.maximum(array, _ranked(least, rank)), _ranked(most, rank))]


def _same(eqn: Any) -> Evaluate:
    return lambda *arrays: list(arrays)


# -- shapes ----------------------------------------------------------------------------------------------------------


def _reshaped(eqn: Any) -> Evaluate | None:
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        return None
    shape = (*eqn.outvars[0].aval.shape, *_data(eqn.outvars[0].aval))
    return lambda array: [array.reshape(len(array), *shape)]


def _broadcast(eqn: Any) -> Evaluate | None:
    if len(eqn.invars) > 1:  # sizes that are values
        return None
    aval, data = eqn.outvars[0].aval, _data(eqn.outvars[0].aval)
    ones = [1] * len(aval.shape)
    for axis, size in zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True):
        ones[axis] = size
    return lambda array: [np.broadcast_to(array.reshape(len(array), *ones, *data), (len(array), *aval.shape, *data))]


def _sliced(eqn: Any) -> Evaluate:
    starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    at = (slice(None), *map(slice, starts, ends, strides))
    return lambda array: [array[at]]


def _concatenated(eqn: Any) -> Evaluate:
    axis = eqn.params["dimension"] + 1

    def evaluate(*arrays: np.ndarray) -> list[np.ndarray]:
        lanes = max(map(len, arrays))
        return [np.concatenate([np.broadcast_to(a, (lanes, *a.shape[1:])) for a in arrays], axis)]

    return evaluate


def _transposed(eqn: Any) -> Evaluate:
    rank = len(eqn.params["permutation"])
    axes = (0, *(p + 1 for p in eqn.params["permutation"]), *((rank + 1,) if _data(eqn.outvars[0].aval) else ()))
    return lambda array: [array.transpose(axes)]


def _reversed(eqn: Any) -> Evaluate:
    axes = tuple(d + 1 for d in eqn.params["dimensions"])
    return lambda array: [np.flip(array, axes)]


def _counted(eqn: Any) -> Evaluate | None:
    if eqn.invars or not _is_exact(eqn.outvars[0]):
        return None
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    line = np.arange(shape[axis]).astype(eqn.params["dtype"])
    whole = np.broadcast_to(line.reshape([-1 if d == axis else 1 for d in range(len(shape))]), shape)[None]
    return lambda: [whole]


def _window(operand: Any, starts: Arrays, sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Indices, lanes in front, of windows that begin somewhere in each lane, moved to lie within it as XLA does."""
    rank = len(sizes)
    lanes = max(len(operand), *map(len, starts)) if starts else len(operand)
    places = [np.arange(lanes) if len(operand) > 1 else np.zeros(lanes, np.intp)]
    index = [places[0].reshape(lanes, *(1,) * rank)]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        first = np.clip(start.astype(np.int64), 0, operand.shape[axis + 1] - size).reshape(-1, *(1,) * rank)
        index.append(first + np.arange(size).reshape([-1 if d == axis else 1 for d in range(rank)]))
    return tuple(index)


def _dynamic_slice(eqn: Any) -> Evaluate | None:
    sizes = eqn.params["slice_sizes"]
    if not all(map(_is_exact, eqn.invars[1:])):
        return None
    return lambda array, *starts: [array[_window(array, starts, sizes)]]


def _dynamic_update(eqn: Any) -> Evaluate | None:
    if not all(map(_is_exact, eqn.invars[2:])):
        return None
    sizes = eqn.invars[1].aval.shape

    def evaluate(array: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> list[np.ndarray]:
        lanes = max(map(len, (array, update, *starts)))
        new = np.array(np.broadcast_to(array, (lanes, *array.shape[1:])))
        new[_window(new, starts, sizes)] = update
        return [new]

    return evaluate


# -- along axes ------------------------------------------------------------------------------------------------------


def _reduced(function: Callable[..., Any], kinds: str, eqn: Any) -> Evaluate | None:
    if _kind(eqn.invars[0]) not in kinds:
        return None
    axes, dtype = tuple(a + 1 for a in eqn.params["axes"]), np.dtype(eqn.outvars[0].aval.dtype)
    return lambda array: [function(array, axis=axes).astype(dtype, copy=False)]


def _added(function: Callable[..., Any], eqn: Any) -> Evaluate | None:
    """A sum or a product, in the operand's own type."""
    if function is np.sum and _kind(eqn.invars[0]) == "f" and not _is_unusual(eqn.invars[0]):
        return _sum_of_floats(eqn)
    if _kind(eqn.invars[0]) not in "iu":
        return None
    axes, dtype = tuple(a + 1 for a in eqn.params["axes"]), np.dtype(eqn.outvars[0].aval.dtype)
    return lambda array: [function(array, axis=axes, dtype=dtype)]


class InexactError(Exception):
    """The result depends on the order of additions, which is XLA's."""


def _sum_of_floats(eqn: Any) -> Evaluate:
    """A sum of floats that are whole numbers, such as votes: of these every order gives the same.

    When it is evaluated it raises `InexactError` for others.
    """
    axes, dtype = tuple(a + 1 for a in eqn.params["axes"]), np.dtype(eqn.outvars[0].aval.dtype)
    most = 2.0 ** np.finfo(dtype).nmant

    def evaluate(array: np.ndarray) -> list[np.ndarray]:
        if not (array == np.rint(array)).all() or np.abs(array).sum(axis=axes, dtype=np.float64).max(initial=0) > most:
            raise InexactError
        return [array.sum(axis=axes, dtype=dtype) + dtype.type(0)]  # XLA begins with 0, so no sum is -0

    return evaluate


def _extreme(function: Callable[..., Any], eqn: Any) -> Evaluate | None:
    """Where the first largest or least stands; a NaN is before all, in NumPy as in XLA."""
    if _kind(eqn.invars[0]) not in "biuf" or _is_unusual(eqn.invars[0]) or len(eqn.params["axes"]) != 1:
        return None
    axis, dtype = eqn.params["axes"][0] + 1, np.dtype(eqn.params["index_dtype"])
    return lambda array: [function(_normal(array), axis=axis).astype(dtype)]


def _cumulative(function: Callable[..., Any], eqn: Any) -> Evaluate | None:
    if _kind(eqn.invars[0]) not in "iu":
        return None
    axis, dtype = eqn.params["axis"] + 1, np.dtype(eqn.outvars[0].aval.dtype)
    if eqn.params["reverse"]:
        return lambda array: [np.flip(function(np.flip(array, axis), axis=axis), axis).astype(dtype, copy=False)]
    return lambda array: [function(array, axis=axis).astype(dtype, copy=False)]


def _sum_along(array: np.ndarray, axis: int) -> np.ndarray:
    return np.cumsum(array, axis=axis, dtype=array.dtype)


def _sorted(eqn: Any) -> Evaluate | None:
    if len(eqn.invars) > 1 or not _is_exact(eqn.invars[0]):
        return None
    axis = eqn.params["dimension"] + 1
    return lambda array: [np.sort(array, axis=axis, kind="stable")]


# -- keys ------------------------------------------------------------------------------------------------------------

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
# Of fewer values than this each is computed as a Python integer: NumPy's calls would take longer than that.
_FEW = 16
_HASH = 100
_ALL_BITS = 0xFFFFFFFF


def threefry(key0: Any, key1: Any, count0: Any, count1: Any) -> tuple[Any, Any]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), of `uint32` arrays or of Python integers below 2^32."""
    keys = key0, key1, key0 ^ key1 ^ 0x1BD11BDA
    x, y = (count0 + keys[0]) & _ALL_BITS, (count1 + keys[1]) & _ALL_BITS
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = (x + y) & _ALL_BITS
            y = x ^ ((y << rotation) & _ALL_BITS | y >> (32 - rotation))
        x = (x + keys[(group + 1) % 3]) & _ALL_BITS
        y = (y + keys[(group + 2) % 3] + group + 1) & _ALL_BITS
    return x, y


def _hashed(keys: np.ndarray, count0: np.ndarray, count1: np.ndarray) -> np.ndarray:
    """New keys, `uint32[*shape, 2]`, of keys `uint32[*shape, 2]` and two counts that broadcast with them."""
    arrays = np.broadcast_arrays(keys[..., 0], keys[..., 1], count0, count1)
    if arrays[0].size <= _FEW:
        found = map(threefry, *(a.ravel().tolist() for a in arrays))
        return np.array(list(found), np.uint32).reshape(*arrays[0].shape, 2)
    return np.stack(threefry(*arrays), axis=-1)


def _folded(eqn: Any) -> Evaluate | None:
    keys, words = eqn.invars
    if words.aval.dtype != np.uint32:
        return None
    shape = np.broadcast_shapes(keys.aval.shape, words.aval.shape)
    if len(shape) not in (len(keys.aval.shape), len(words.aval.shape)):
        return None
    ones = lambda aval: (1,) * (len(shape) - len(aval.shape)) + tuple(aval.shape)
    of_keys, of_words = ones(keys.aval), ones(words.aval)

    def evaluate(data: np.ndarray, number: np.ndarray) -> list[np.ndarray]:
        number = number.reshape(len(number), *of_words)
        return [_hashed(data.reshape(len(data), *of_keys, 2), np.zeros_like(number), number)]

    return evaluate


def _split(eqn: Any) -> Evaluate | None:
    shape = eqn.params["shape"]
    counts = np.arange(int(np.prod(shape)), dtype=np.uint64).reshape(shape)
    high, low = (counts >> 32).astype(np.uint32)[None], (counts & _ALL_BITS).astype(np.uint32)[None]
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]  # flags have no types
        return None
    if eqn.invars[0].aval.shape:
        return None
    return lambda data: [_hashed(data.reshape(len(data), *(1,) * len(shape), 2), high, low)]


# -- calls -----------------------------------------------------------------------------------------------------------


def _called(eqn: Any) -> Evaluate | None:
    body = equations.called(eqn)
    if body is None or len(body.jaxpr.invars) != len(eqn.invars):
        return None
    names = lambda atoms: [None if isinstance(a, jex.Literal) else a for a in atoms]
    steps = steps_of((e, names(e.invars), e.outvars) for e in body.jaxpr.eqns)
    if steps is None:
        return None
    known = dict(zip(body.jaxpr.constvars, (np.asarray(c)[None] for c in body.consts), strict=True))
    results = [(v, literal(v) if isinstance(v, jex.Literal) else None) for v in body.jaxpr.outvars]

    def evaluate(*arrays: np.ndarray) -> list[np.ndarray]:
        values: dict[Any, np.ndarray] = {**known, **dict(zip(body.jaxpr.invars, arrays, strict=True))}
        steps.run(values)
        return [values[v] if at is None else at for v, at in results]

    return evaluate


def _of(rule: Callable[..., Evaluate | None], *of: Any) -> Callable[[Any], Evaluate | None]:
    return functools.partial(rule, *of)


RULES: Mapping[str, Callable[[Any], Evaluate | None]] = {
    "add": _of(_elementwise, np.add, "iu"),
    "sub": _of(_elementwise, np.subtract, "iu"),
    "mul": _of(_elementwise, np.multiply, "iu"),
    "neg": _of(_elementwise, np.negative, "iu"),
    "abs": _of(_elementwise, np.abs, "iu"),
    "sign": _of(_elementwise, np.sign, "iu"),
    "max": _of(_elementwise, np.maximum, "biu"),
    "min": _of(_elementwise, np.minimum, "biu"),
    "and": _of(_elementwise, np.bitwise_and, "biu"),
    "or": _of(_elementwise, np.bitwise_or, "biu"),
    "xor": _of(_elementwise, np.bitwise_xor, "biu"),
    "not": _of(_elementwise, np.invert, "biu"),
    "eq": _of(_compared, operator.eq),
    "ne": _of(_compared, operator.ne),
    "lt": _of(_compared, operator.lt),
    "le": _of(_compared, operator.le),
    "gt": _of(_compared, operator.gt),
    "ge": _of(_compared, operator.ge),
    "select_n": _select,
    "clamp": _clamped,
    "convert_element_type": _convert,
    "copy": _same,
    "optimization_barrier": _same,
    "random_wrap": _same,
    "random_unwrap": _same,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "broadcast_in_dim": _broadcast,
    "slice": _sliced,
    "concatenate": _concatenated,
    "transpose": _transposed,
    "rev": _reversed,
    "iota": _counted,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "reduce_and": _of(_reduced, np.all, "b"),
    "reduce_or": _of(_reduced, np.any, "b"),
    "reduce_max": _of(_reduced, np.max, "biu"),
    "reduce_min": _of(_reduced, np.min, "biu"),
    "reduce_sum": _of(_added, np.sum),
    "reduce_prod": _of(_added, np.prod),
    "argmax": _of(_extreme, np.argmax),
    "argmin": _of(_extreme, np.argmin),
    "cumsum": _of(_cumulative, _sum_along),
    "cummax": _of(_cumulative, np.maximum.accumulate),
    "cummin": _of(_cumulative, np.minimum.accumulate),
    "sort": _sorted,
    "random_fold_in": _folded,
    "random_split": _split,
    "jit": _called,
    "pjit": _called,
    "closed_call": _called,
    "custom_jvp_call": _called,
    "custom_vjp_call": _called,
}
