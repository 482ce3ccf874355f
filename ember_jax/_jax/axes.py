"""One lane of a batched equation.

Design note. `jax.vmap` of a plain function has batched its equations before a plan sees them. They compute all lanes at
once, on arrays in which some axis is the axis of lanes; what one lane computes can still be read off them. For each
primitive there is a rule. It is given which axis of each operand is the lanes' axis, and it names the lanes' axis of
each result and the smaller equation that one lane runs.

A rule claims one thing: entry k of the results, along their lanes' axis, depends on entry k of the operands along
theirs, and on the operands that have no such axis, as the smaller equation says. The claim holds for any axis, whatever
it stands for. So nothing is guessed from lengths: only axes that were given are followed, and an axis that happens to
be as long as there are lanes is not mistaken for theirs. Where the claim does not hold, or the primitive has no rule,
lanes *cross* (`Crossing`), and the equation stays as it is, for all lanes together.

Axes mostly go forward, from operands to results. They go backward where an equation pairs lanes with an array that no
lane varies and that still has an entry for each lane: a constant which `vmap` has broadcast, or a loop's first carry.
The rule then asks for that operand by lane. If the operand is made inside a jaxpr that an equation holds, the equation
that makes it is asked for one lane of it: a broadcast leaves the lanes' axis out; for any other equation each operand
is tried, until one is found that gives the result by lane when it is itself taken by lane. This ends, since a variable
only ever changes from whole to by lane.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend import core as jex

from .._types import is_key
from .equations import Cond, Scan, While, called, facts, has_effect, name, sibling, unsharded, view
from .jaxprs import Environment, evaluate
from .values import with_shape

Axis = int | None
Axes = Sequence[Axis]
Params = Mapping[str, Any]
_SAME: Params = {}
T = TypeVar("T")


class Crossing(Exception):
    """A batched equation in which lanes meet, or of which it is not known that they do not."""


@dataclass(frozen=True, eq=False)
class OneLane:
    """What one lane computes of a batched equation.

    **Attributes:**

    - `inputs`: for each operand its lanes' axis, along which a lane is given its entry; `None` for an operand that
        every lane is given whole.
    - `outputs`: for each result its lanes' axis; `None` for a result that is the same in every lane.
    - `run`: computes one lane's results from one lane's operands, both without the lanes' axis. Traceable.
    """

    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    run: Callable[..., list[Any]]


def one_lane(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    """Takes a batched equation apart.

    **Arguments:**

    - `eqn`: the equation. It calls no Python.
    - `axes`: the lanes' axis of each operand; `None` for an operand that no lane varies, and for a literal. At least
        one is not `None`.
    - `size`: the number of lanes.

    **Returns:** the equation of one lane. Its `inputs` are `axes`, except where an operand without lanes has to be
    taken by lane all the same (see the design note).

    **Raises:** `Crossing`, if the equation does not keep lanes apart, or is not known to.
    """
    return _one_lane(eqn, axes, (None,) * len(eqn.outvars), size)


def _one_lane(eqn: jex.JaxprEqn, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """`one_lane` for results that are wanted by lane: `wanted` is the axis of each, or `None`. No operand need have
    lanes."""
    try:
        lane = _apart(eqn, axes, wanted, size)
    except (KeyError, AttributeError) as error:
        # A parameter is missing or is another object: this JAX writes the equation in a form that the rules do not
        # know. The equation then stays batched, which is slower and right.
        raise Crossing(f"{name(eqn)} is written in a way that no rule knows ({error})") from error
    _check(eqn, lane, wanted, size)
    return lane


def _apart(eqn: jex.JaxprEqn, axes: Axes, wanted: Axes, size: int) -> OneLane:
    body = called(eqn)
    if body is not None:
        return _walk(body, axes, wanted, size)
    match view(eqn):
        case Cond() as cond:
            return _cond(cond, axes, wanted, size)
        case Scan() as scan:
            return _scan(scan, axes, wanted, size)
        case While() as loop:
            return _while(loop, axes, wanted, size)
        case _ if eqn.primitive.name in _HOLDING:
            return _HOLDING[eqn.primitive.name](eqn, axes, wanted, size)
        case _ if all(a is None for a in axes):
            return _backward(eqn, wanted, size)
        case _:
            return _forward(eqn, axes, size)


def _forward(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    primitive = eqn.primitive.name
    if primitive not in _PAIRED and primitive not in _SEVERAL:
        raise Crossing(f"no rule for {name(eqn)}")
    return _SEVERAL.get(primitive, _paired)(eqn, axes, size)


def _check(eqn: jex.JaxprEqn, lane: OneLane, wanted: Axes, size: int) -> None:
    """Raises `Crossing` if a rule's answer cannot be: a lanes' axis of another length than `size`, a result that lies
    on another axis than it is wanted on, or one variable that is taken both whole and by lane."""
    atoms, axes = (*eqn.invars, *eqn.outvars), (*lane.inputs, *lane.outputs)
    if any(a is not None and _shape(v)[a] != size for v, a in zip(atoms, axes, strict=True)):
        raise _crossing(eqn)
    if not _fits(wanted, lane.outputs):
        raise Crossing(f"{name(eqn)} leaves lanes on another axis than its reader takes them from")
    taken: dict[Any, Axis] = {}
    for atom, axis in zip(eqn.invars, lane.inputs, strict=True):
        if not isinstance(atom, jex.Literal) and taken.setdefault(atom, axis) != axis:
            raise Crossing(f"{name(eqn)} takes one operand in two ways, whole or by lane")


def _crossing(eqn: jex.JaxprEqn) -> Crossing:
    return Crossing(f"{name(eqn)} {facts(eqn).verb} lanes")


# -- the equation without its lanes ----------------------------------------------------------------------------------


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _without(items: Sequence[Any], axis: Axis) -> tuple[Any, ...]:
    """A sequence with one item for each axis, without the item of `axis`; all items for `None`."""
    return tuple(x for k, x in enumerate(items) if k != axis)


def _lowered(dims: Iterable[int], axis: Axis) -> tuple[int, ...]:
    """Some axes of an array, as they are numbered once the array has lost `axis`, which is itself left out."""
    return tuple(int(d) if axis is None else int(d) - (d > axis) for d in dims if d != axis)


def _lane(
    eqn: jex.JaxprEqn, inputs: Axes, outputs: Axes, params: Params = _SAME, units: Axes = (), dropped: Axis = None
) -> OneLane:
    """The lane that runs the same primitive on arrays without the lanes' axis, with some parameters changed.

    **Arguments:**

    - `inputs`, `outputs`: the lanes' axis of each operand and result.
    - `params`: the parameters that differ from the equation's.
    - `units`: for each operand an axis of length one that is squeezed out of it, or `None`.
    - `dropped`: the position of an operand that one lane has no need of, or `None`.
    """
    units = _without(units or (None,) * len(inputs), dropped)
    avals = [with_shape(v.aval, _without(_shape(v), a)) for v, a in zip(eqn.outvars, outputs, strict=True)]

    def run(*xs: Any) -> list[Any]:
        kept = zip(_without(xs, dropped), units, strict=True)
        return _run(eqn, [x if unit is None else lax.squeeze(x, (unit,)) for x, unit in kept], avals, params, dropped)

    return OneLane(tuple(inputs), tuple(outputs), run)


def _kept(eqn: jex.JaxprEqn, inputs: Axes, output: int, params: Params = _SAME) -> OneLane:
    """The lane that runs the equation on arrays whose lanes' axis has length one, for primitives (a convolution) that
    have no form without that axis. The axis is added before and squeezed out after."""
    (result,) = eqn.outvars
    aval = with_shape(result.aval, [1 if k == output else n for k, n in enumerate(_shape(result))])

    def run(*xs: Any) -> list[Any]:
        one = [x if a is None else lax.expand_dims(x, (a,)) for x, a in zip(xs, inputs, strict=True)]
        return [lax.squeeze(out, (output,)) for out in _run(eqn, one, [aval], params)]

    return OneLane(tuple(inputs), (output,), run)


def _run(
    eqn: jex.JaxprEqn, values: Sequence[Any], avals: Sequence[Any], params: Params, dropped: Axis = None
) -> list[Any]:
    """The results, of types `avals`, of an equation on one lane's operands, without the operand that is `dropped`."""
    # Each operand gets a new variable. The old one has the type of all lanes; and if the program reads one variable
    # twice, it may have been squeezed in one place and not in the other.
    atoms = zip(_without(eqn.invars, dropped), values, strict=True)
    invars = [v if isinstance(v, jex.Literal) else jex.Var(jax.typeof(x)) for v, x in atoms]
    # The equation's sharding is dropped: it has an entry for the lanes' axis, which is gone.
    return evaluate(sibling(unsharded(eqn), invars, list(map(jex.Var, avals)), **params), values)


def _common(eqn: jex.JaxprEqn, axes: Axes) -> int:
    """The one lanes' axis of all operands that have lanes.

    **Raises:** `Crossing` if operands have their lanes on different axes: entries of different lanes would meet.
    """
    lanes = {a for a in axes if a is not None}
    if len(lanes) != 1:
        raise Crossing(f"{name(eqn)} pairs lanes with other lanes")
    return lanes.pop()


def _paired(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    """The lane of an equation that pairs its operands entry by entry along the lanes' axis.

    A scalar operand is given to every lane whole. So is an operand whose axis there has length one, which is broadcast;
    that axis is squeezed out. Any other operand is taken by lane, also if no lane varies it.
    """
    axis, shapes = _common(eqn, axes), [_shape(v) for v in eqn.invars]
    found = _PAIRED[eqn.primitive.name](eqn, axis, size)
    if found is None or any(shape and len(shape) <= axis for shape in shapes):
        raise _crossing(eqn)
    params, output = found
    units = [axis if shape and shape[axis] == 1 and a is None else None for shape, a in zip(shapes, axes, strict=True)]
    inputs = [axis if shape and unit is None else None for shape, unit in zip(shapes, units, strict=True)]
    return _lane(eqn, inputs, (output,) * len(eqn.outvars), params, units)


# -- rules of equations that pair lanes: how parameters change, and where the results have the lanes -----------------

# A rule is given the equation, the lanes' axis of its operands and the number of lanes. It returns the parameters that
# change and the lanes' axis of the results; `None` says that lanes cross.
Found = tuple[Params, int] | None


def _elementwise(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    return _SAME, axis


def _batch(rank: int, eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    """The rule of primitives that work on the last `rank` axes, and for which all axes before these are a batch."""
    return None if axis >= len(_shape(eqn.invars[0])) - rank else (_SAME, axis)


def _fft(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    return _batch(len(eqn.params["fft_lengths"]), eqn, axis, size)


def _bitcast(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    # If the result is of a wider dtype, the last axis of the operand holds the bytes of one number and is gone.
    return None if axis == len(_shape(eqn.outvars[0])) else (_SAME, axis)


def _along(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    """The rule of primitives that work along one axis. All axes stay where they are, but `unstack` removes that one."""
    key = "axis" if "axis" in eqn.params else "dimension"
    along = eqn.params[key]
    output = axis - (eqn.primitive.name == "unstack" and along < axis)
    return None if axis == along else ({key: along - (along > axis)}, output)


def _stack(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    new = eqn.params["axis"]
    output = axis + (new <= axis)
    return {"axis": new - (new > output)}, output


def _over(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    """The rule of primitives that work over several axes and remove them; `rev`, which reverses, keeps them."""
    key = "axes" if "axes" in eqn.params else "dimensions"
    dims = eqn.params[key]
    removed = 0 if eqn.primitive.name == "rev" else sum(d < axis for d in dims)
    return None if axis in dims else ({key: _lowered(dims, axis)}, axis - removed)


# Parameters that have an entry for each axis, with the entry that leaves an axis alone. For `limit_indices` that entry
# is the length of the axis; the -1 here is replaced by it.
_IDLE = {"start_indices": 0, "limit_indices": -1, "strides": 1, "padding_config": (0, 0, 0), "reps": 1}
_IDLE |= {"window_dimensions": 1, "window_strides": 1, "padding": (0, 0), "base_dilation": 1, "window_dilation": 1}


def _axiswise(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    """The rule of primitives that treat each axis by its own entry of their parameters: nothing may be done along the
    lanes' axis."""
    given = {k: eqn.params[k] for k in _IDLE if eqn.params.get(k) is not None}
    idle = {**_IDLE, "limit_indices": size}
    if any(entries[axis] != idle[k] for k, entries in given.items()):
        return None
    return {k: _without(entries, axis) for k, entries in given.items()}, axis


@functools.cache
def _threefry() -> Any:
    """The dtype of threefry keys, found on first use."""
    return jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype


def _random(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    """The rule of primitives that work on keys, for threefry keys only.

    Other implementations draw other numbers for a batch of keys than for each key alone; a lane would then change what
    the user's program draws.
    """
    avals: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    kinds = {aval.dtype for aval in avals if is_key(aval)}
    if kinds != {_threefry()}:
        raise Crossing(f"{name(eqn)} may draw other numbers for a batch of {kinds.pop()} than for each alone")
    # `random_gamma` with one key divides the key among all that is drawn, so an entry depends on how many there are.
    divided = eqn.primitive.name == "random_gamma" and not _shape(eqn.invars[0])
    inside = axis >= len(_shape(eqn.outvars[0]))  # the axis is inside the data of one key
    return None if divided or inside else (_SAME, axis)


def _transpose(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    permutation = eqn.params["permutation"]
    return {"permutation": _lowered(permutation, axis)}, permutation.index(axis)


def _broadcast(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    dims, shape = eqn.params["broadcast_dimensions"], eqn.params["shape"]
    output = int(dims[axis])
    return {"shape": _without(shape, output), "broadcast_dimensions": _lowered(dims, output)}, output


def _reshape(eqn: jex.JaxprEqn, axis: int, size: int) -> Found:
    dimensions, new = eqn.params["dimensions"], eqn.params["new_sizes"]
    order = dimensions or range(len(_shape(eqn.invars[0])))  # `dimensions` transposes the operand before it is reshaped
    output = _survivor([_shape(eqn.invars[0])[d] for d in order], new, order.index(axis))
    if output is None:
        return None
    return {"new_sizes": _without(new, output), "dimensions": dimensions and _lowered(order, axis)}, output


def _survivor(old: Sequence[int], new: Sequence[int], axis: int) -> Axis:
    """The axis of the new shape that `axis` of the old one has become in a reshape; `None` if it is an axis no more.

    An axis of the new shape is the same if it has the same length and as many numbers lie behind each of its entries
    (the product of the axes after it). Several axes can fit if some have length one or zero. Then the axis with the
    same axes before it is taken, and if there is no such axis, none is: the lanes cross.
    """
    if tuple(new[: axis + 1]) == tuple(old[: axis + 1]):
        return axis
    behind = math.prod(old[axis + 1 :])
    found = [k for k, n in enumerate(new) if n == old[axis] and math.prod(new[k + 1 :]) == behind]
    return found[0] if len(found) == 1 and math.prod(old) else None


# -- rules of equations that have lanes in one of several ways: the axes of operands and result ----------------------
#
# A *way* lists the lanes' axis of each operand and, last, of the result. Each rule lists the ways that its primitive
# allows; the equation has lanes in one of them or they cross.


def _fits(axes: Axes, way: Axes) -> bool:
    """Whether the axes that are known are those of a way; `None` is not known, and fits any."""
    return all(a is None or a == w for a, w in zip(axes, way, strict=True))


def _way(eqn: jex.JaxprEqn, axes: Axes, ways: Iterable[tuple[Axis, ...]]) -> tuple[Axis, ...]:
    """The only way that has the operands' lanes where they are.

    **Raises:** `Crossing` if none fits, or several do, since it is then not known which is meant.
    """
    fitting = [way for way in ways if _fits(axes, way[:-1])]
    if len(fitting) != 1:
        raise _crossing(eqn)
    return fitting[0]


def _others(atom: Any, *dims: int) -> list[int]:
    """The axes of a variable other than `dims`, in order."""
    return [d for d in range(len(_shape(atom))) if d not in dims]


def _dot(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left, right = _others(eqn.invars[0], *lc, *lb), _others(eqn.invars[1], *rc, *rb)
    ways: list[tuple[Axis, ...]] = [(*pair, k) for k, pair in enumerate(zip(lb, rb, strict=True))]
    ways += [(d, None, len(lb) + k) for k, d in enumerate(left)]
    ways += [(None, d, len(lb) + len(left) + k) for k, d in enumerate(right)]
    l, r, out = _way(eqn, axes, ways)  # noqa: E741
    numbers = ((_lowered(lc, l), _lowered(rc, r)), (_lowered(lb, l), _lowered(rb, r)))
    return _lane(eqn, (l, r), (out,), {"dimension_numbers": numbers})


def _gather(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    n = eqn.params["dimension_numbers"]
    batch = _others(eqn.outvars[0], *n.offset_dims)
    window = _others(eqn.invars[0], *n.collapsed_slice_dims, *n.operand_batching_dims)
    pairs = zip(n.operand_batching_dims, n.start_indices_batching_dims, strict=True)
    ways: list[tuple[Axis, ...]] = [(o, i, batch[i]) for o, i in pairs]
    ways += [(o, None, d) for o, d in zip(window, n.offset_dims, strict=True) if o not in n.start_index_map]
    ways += [(None, i, d) for i, d in enumerate(batch) if i not in n.start_indices_batching_dims]
    operand, indices, out = _way(eqn, axes, ways)
    numbers = n._replace(
        offset_dims=_lowered(n.offset_dims, out),
        collapsed_slice_dims=_lowered(n.collapsed_slice_dims, operand),
        start_index_map=_lowered(n.start_index_map, operand),
        operand_batching_dims=_lowered(n.operand_batching_dims, operand),
        start_indices_batching_dims=_lowered(n.start_indices_batching_dims, indices),
    )
    sizes = _without(eqn.params["slice_sizes"], operand)
    return _lane(eqn, (operand, indices), (out,), {"dimension_numbers": numbers, "slice_sizes": sizes})


def _scatter(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    n = eqn.params["dimension_numbers"]
    batch = _others(eqn.invars[2], *n.update_window_dims)
    window = _others(eqn.invars[0], *n.inserted_window_dims, *n.operand_batching_dims)
    pairs = zip(n.operand_batching_dims, n.scatter_indices_batching_dims, strict=True)
    moved = n.scatter_dims_to_operand_dims
    ways: list[tuple[Axis, ...]] = [(o, i, batch[i], o) for o, i in pairs]
    ways += [(o, None, u, o) for o, u in zip(window, n.update_window_dims, strict=True) if o not in moved]
    operand, indices, updates, out = _way(eqn, axes, ways)
    numbers = n._replace(
        update_window_dims=_lowered(n.update_window_dims, updates),
        inserted_window_dims=_lowered(n.inserted_window_dims, operand),
        scatter_dims_to_operand_dims=_lowered(moved, operand),
        operand_batching_dims=_lowered(n.operand_batching_dims, operand),
        scatter_indices_batching_dims=_lowered(n.scatter_indices_batching_dims, indices),
    )
    return _lane(eqn, (operand, indices, updates), (out,), {"dimension_numbers": numbers})


def _dynamic(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    """A dynamic slice or update. The start along each axis is an operand of its own, behind the array (or, for an
    update, behind the array and the update)."""
    arrays = 1 if "slice_sizes" in eqn.params else 2
    axis, extent = _common(eqn, axes), _shape(eqn.outvars[0] if arrays == 1 else eqn.invars[1])
    sizes = {"slice_sizes": _without(extent, axis)} if arrays == 1 else _SAME
    inputs = [axis if k < arrays else None for k in range(len(axes))]
    # The slice is as long as the lanes' axis (`_check` makes sure), and JAX clamps a start so that the slice fits. So
    # the start along that axis is 0 whatever its operand says, and a lane has no need of the operand.
    return _lane(eqn, inputs, (axis,), sizes, dropped=arrays + axis)


def _triangular(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    """The lanes are a batch; or, where many right-hand sides share one matrix, they are the columns of these."""
    rank = len(_shape(eqn.invars[1]))
    column = rank - 1 if eqn.params["left_side"] else rank - 2
    if tuple(axes) == (None, column):
        return _kept(eqn, axes, column)
    return _paired(eqn, axes, size)


def _convolution(eqn: jex.JaxprEqn, axes: Axes, size: int) -> OneLane:
    """The lanes are the batch of inputs; or the output features, where only the kernels differ; or the feature groups,
    where each lane has an input and a kernel of its own."""
    n, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    (batch, feature, *_), (kernel, *_), (out_batch, out_feature, *_) = n.lhs_spec, n.rhs_spec, n.out_spec
    ways: list[tuple[Axis, ...]] = [(batch, None, out_batch)]
    if axes[0] is None and groups == 1:
        ways.append((None, kernel, out_feature))
    elif groups == size:
        ways.append((feature, kernel, out_feature))
    lhs, rhs, out = _way(eqn, axes, ways if eqn.params["batch_group_count"] == 1 else ())
    assert out is not None
    return _kept(eqn, (lhs, rhs), out, {"feature_group_count": 1 if lhs == feature else groups})


# -- equations that hold jaxprs, and walking these -------------------------------------------------------------------


def _walk(closed: jex.ClosedJaxpr, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """One lane of a jaxpr.

    **Arguments:**

    - `closed`: the jaxpr.
    - `axes`: the lanes' axis of each input, or `None`.
    - `wanted`: the lanes' axis of each result that is wanted by lane, or `None`.
    - `size`: the number of lanes.

    The equations are gone through from the first to the last, again and again, until no operand changes from whole to
    by lane any more.
    """
    jaxpr = closed.jaxpr
    lanes: dict[Any, int] = {}  # the variables that are taken by lane

    def take(atoms: Sequence[Any], by: Axes) -> None:
        for atom, axis in zip(atoms, by, strict=True):
            if axis is not None and not isinstance(atom, jex.Literal):
                lanes.setdefault(atom, axis)

    def read(atoms: Sequence[Any]) -> tuple[Axis, ...]:
        return tuple(None if isinstance(atom, jex.Literal) else lanes.get(atom) for atom in atoms)

    take((*jaxpr.invars, *jaxpr.outvars), (*axes, *wanted))
    steps: list[OneLane] = []
    again = True
    while again:
        again, steps = False, []
        for eqn in jaxpr.eqns:
            before = read(eqn.invars)
            steps.append(_step(eqn, before, read(eqn.outvars), size))
            take((*eqn.invars, *eqn.outvars), (*steps[-1].inputs, *steps[-1].outputs))
            # An operand that this equation wants by lane was whole for the equations before it: they are looked at
            # anew.
            again |= steps[-1].inputs != before
    if any(v in lanes for v in jaxpr.constvars):
        raise Crossing("a constant has an entry for each lane")
    if not _fits(wanted, read(jaxpr.outvars)):
        raise Crossing("lanes lie on another axis than they are taken from")

    def run(*xs: Any) -> list[Any]:
        values = Environment(closed, xs)
        for eqn, step in zip(jaxpr.eqns, steps, strict=True):
            values.write(eqn.outvars, step.run(*values.read(eqn.invars)))
        return values.read(jaxpr.outvars)

    return OneLane(read(jaxpr.invars), read(jaxpr.outvars), run)


def _step(eqn: jex.JaxprEqn, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """One lane of an equation in a jaxpr. An equation that has nothing to do with lanes is run whole by each."""
    if any(a is not None for a in (*axes, *wanted)):
        return _one_lane(eqn, axes, wanted, size)
    if has_effect(eqn):  # each lane would repeat the effect, which the program has once
        raise Crossing(f"{name(eqn)} has an effect")
    return OneLane(tuple(axes), tuple(wanted), lambda *xs: evaluate(eqn, xs))


def _backward(eqn: jex.JaxprEqn, wanted: Axes, size: int) -> OneLane:
    """One lane of an equation whose results are wanted by lane, and whose operands have no known lanes' axis.

    A broadcast along the lanes' axis is left out. Otherwise each axis of `size` entries of each operand is tried as the
    lanes' axis; the first for which the rule has the results where they are wanted is taken.
    """
    free = _spread(eqn, wanted)
    if free is not None:
        return free
    for k, atom in enumerate(eqn.invars):
        for axis, length in enumerate(_shape(atom)):
            if length == size:
                try:
                    lane = _forward(eqn, [axis if i == k else None for i in range(len(eqn.invars))], size)
                except Crossing:
                    continue
                if _fits(wanted, lane.outputs):
                    return lane
    raise Crossing(f"{name(eqn)} makes an entry for each lane that is not the lane's alone")


def _spread(eqn: jex.JaxprEqn, wanted: Axes) -> OneLane | None:
    """One lane of a `broadcast_in_dim` or `iota` that repeats the same along the lanes' axis: it does not repeat it.
    `None` for any other equation, and for an `iota` that counts along that axis."""
    axis = wanted[0]
    if axis is None or eqn.primitive.name not in ("broadcast_in_dim", "iota"):
        return None
    shape = _without(eqn.params["shape"], axis)
    if eqn.primitive.name == "iota":
        dim = eqn.params["dimension"]
        return None if dim == axis else _lane(eqn, (), wanted, {"shape": shape, "dimension": dim - (dim > axis)})
    dims = [int(d) for d in eqn.params["broadcast_dimensions"]]
    unit = dims.index(axis) if axis in dims else None
    if unit is not None and _shape(eqn.invars[0])[unit] != 1:
        return None
    return _lane(eqn, (None,), wanted, {"shape": shape, "broadcast_dimensions": _lowered(dims, axis)}, (unit,))


def _merged(*sides: Axes) -> list[Axis]:
    """The lanes' axes of some values, of which each of `sides` knows some.

    **Raises:** `Crossing` if two sides have one value's lanes on different axes.
    """
    merged: list[Axis] = []
    for axes in zip(*sides, strict=True):
        found = {a for a in axes if a is not None}
        if len(found) > 1:
            raise Crossing("control flow has the lanes of one value on different axes")
        merged.append(found.pop() if found else None)
    return merged


def _settled(axes: list[Axis], turn: Callable[[list[Axis]], tuple[list[Axis], T]]) -> tuple[list[Axis], T]:
    """Repeats `turn` until the axes that it returns are those that it was given; returns these, and what it found.

    `turn` only turns `None` into axes, so it ends after as many turns as there are values, at most.
    """
    while True:
        new, found = turn(axes)
        if new == axes:
            return axes, found
        axes = new


def _traced(lane: OneLane, closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """The jaxpr of one lane of a jaxpr."""
    avals = [
        jax.ShapeDtypeStruct(_without(aval.shape, a), aval.dtype, weak_type=aval.weak_type)
        for aval, a in zip(closed.in_avals, lane.inputs, strict=True)
    ]
    return jax.make_jaxpr(lane.run)(*avals)


def _controlled(inputs: Axes, outputs: Axes, one: Callable[[], jex.JaxprEqn]) -> OneLane:
    """The lane of an equation that holds jaxprs. `one`, which traces these for one lane, is called when it runs."""
    return OneLane(tuple(inputs), tuple(outputs), lambda *xs: _lane(one(), inputs, outputs).run(*xs))


def _separate(eqn: jex.JaxprEqn, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """The rule of primitives that return their operands. These have nothing to do with each other, so each may have its
    lanes on an axis of its own."""
    if any(device is not None for device in eqn.params.get("devices", ())):
        raise Crossing(f"no rule for {name(eqn)} to a device")
    both = _merged(axes, wanted)
    return _lane(eqn, both, both)


def _cond(cond: Cond, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """One lane of a `cond` whose index is the same in all lanes; where it differs, `vmap` has made a `select_n`."""
    branches, count = cond.branches, len(axes) - 1

    def turn(both: list[Axis]) -> tuple[list[Axis], list[OneLane]]:
        lanes = [_walk(branch, both[:count], both[count:], size) for branch in branches]
        return _merged(*([*lane.inputs, *lane.outputs] for lane in lanes)), lanes

    both, lanes = _settled([*axes[1:], *wanted], turn)
    one = lambda: cond.holding([_traced(w, b) for w, b in zip(lanes, branches, strict=True)])
    return _controlled((None, *both[:count]), both[count:], one)


def _scan(scan: Scan, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """One lane of a `scan`. What is scanned over, and what steps stack, has the scan's own axis first; so inside a step
    the lanes' axis of these is one less."""
    consts, carries, first, count = scan.constants, scan.carry, scan.xs, len(axes)
    if 0 in (*axes[first:], *wanted[carries:]):
        raise _crossing(scan.eqn)
    inner = lambda axes: [None if a is None else a - 1 for a in axes]
    outer = lambda axes: [None if a is None else a + 1 for a in axes]

    def turn(both: list[Axis]) -> tuple[list[Axis], OneLane]:
        lane = _walk(scan.body, both[:count], both[count:], size)
        carry = _merged(lane.inputs[consts:first], lane.outputs[:carries])
        return [*lane.inputs[:consts], *carry, *lane.inputs[first:], *carry, *lane.outputs[carries:]], lane

    start = [*axes[:first], *inner(axes[first:]), *wanted[:carries], *inner(wanted[carries:])]
    both, lane = _settled(start, turn)
    inputs = [*both[:first], *outer(both[first:count])]
    outputs = [*lane.outputs[:carries], *outer(lane.outputs[carries:])]
    return _controlled(inputs, outputs, lambda: scan.holding(_traced(lane, scan.body)))


def _while(loop: While, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """One lane of a `while_loop`: one that all lanes leave at once, or one that each lane leaves by its own condition.

    The second kind is what `vmap` makes of a condition that differs from lane to lane. Its condition is an array, whose
    axes are the first axes of all that is carried. The loop goes on while any entry of it holds, and leaves the entries
    that are done as they are. There the lanes' axis of a carry is one of the condition's axes, so the condition
    has to be wanted by lane too.
    """
    test, body, tests, start = loop.condition, loop.body, loop.condition_constants, loop.constants
    rank = len(test.out_avals[0].shape)

    def turn(now: list[Axis]) -> tuple[list[Axis], tuple[OneLane, OneLane]]:
        carry = now[start:]
        own = {a for a in carry if a is not None and a < rank}
        if len(own) > 1:
            raise _crossing(loop.eqn)
        tested = _walk(test, [*now[:tests], *carry], [*own] or [None], size)
        stepped = _walk(body, now[tests:], carry, size)
        # If lanes leave the loop one by one, all that it carries differs from lane to lane.
        each = [tested.outputs[0]] * len(carry)
        carry = _merged(tested.inputs[tests:], stepped.inputs[start - tests :], stepped.outputs, each)
        return [*tested.inputs[:tests], *stepped.inputs[: start - tests], *carry], (tested, stepped)

    now, (tested, stepped) = _settled([*axes[:start], *_merged(axes[start:], wanted)], turn)
    return _controlled(now, now[start:], lambda: loop.holding(_traced(tested, test), _traced(stepped, body)))


def _solve(eqn: jex.JaxprEqn, axes: Axes, wanted: Axes, size: int) -> OneLane:
    """One lane of `custom_linear_solve`. Only the solver is run; the other jaxprs serve derivatives alone."""
    lengths, solver = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
    start = lengths.matvec + lengths.vecmat
    used = [*range(start, start + lengths.solve), *range(sum(lengths), len(axes))]
    lane = _walk(solver, [axes[i] for i in used], wanted, size)
    inputs = list(axes)
    for i, axis in zip(used, lane.inputs, strict=True):
        inputs[i] = axis
    return OneLane(tuple(inputs), lane.outputs, lambda *xs: lane.run(*(xs[i] for i in used)))


_HOLDING: dict[str, Callable[[jex.JaxprEqn, Axes, Axes, int], OneLane]] = {
    "device_put": _separate,
    "optimization_barrier": _separate,
    "custom_linear_solve": _solve,
}

_FAMILIES: tuple[tuple[Callable[[jex.JaxprEqn, int, int], Found], str], ...] = (
    (
        _elementwise,
        "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz "
        "complex conj convert_element_type copy cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 "
        "floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p log2 "
        "logistic lt lt_to max min mul mulhi name ne neg nextafter not one_minus_square or polygamma polynomial "
        "population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n "
        "shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan "
        "tanh threefry2x32 xor zeta",
    ),
    (_along, "concatenate cumlogsumexp cummax cummin cumprod cumsum sort split top_k unstack"),
    (_over, "argmax argmin reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor"),
    (_over, "rev squeeze"),
    (_axiswise, "pad reduce_window_max reduce_window_min reduce_window_sum slice tile"),
    (
        _random,
        "random_bits random_clone random_fold_in random_gamma random_seed random_split random_unwrap random_wrap",
    ),
    (functools.partial(_batch, 1), "lu_pivots_to_permutation tridiagonal_solve"),
    (functools.partial(_batch, 2), "cholesky eig eigh hessenberg householder_product lu ormqr qr schur svd"),
    (functools.partial(_batch, 2), "symmetric_product triangular_solve tridiagonal"),
    (_bitcast, "bitcast_convert_type"),
    (_broadcast, "broadcast_in_dim"),
    (_fft, "fft"),
    (_reshape, "reshape"),
    (_stack, "stack"),
    (_transpose, "transpose"),
)
_PAIRED = {name: rule for rule, names in _FAMILIES for name in names.split()}

_SEVERAL: dict[str, Callable[[jex.JaxprEqn, Axes, int], OneLane]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _dynamic,
    "dynamic_update_slice": _dynamic,
    "gather": _gather,
    "triangular_solve": _triangular,
    **dict.fromkeys(["scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"], _scatter),
}
