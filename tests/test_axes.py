"""One lane of a batched equation computes what the unbatched function does, and lanes that meet are noticed.

The oracle is `jax.vmap`: a function is batched, its batched equations are taken apart one by one, and one lane at a
time is computed from what is left. Lanes are as many as every other axis is long, so that one is easily taken for
another.
"""

import functools
import re

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core as jex

from ember_jax._jax.axes import Crossing, one_lane

N = 4
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # each program runs once
KEY = jax.random.key(7)
W = jax.random.normal(KEY, (N, N))
C = jnp.arange(1.0, N + 1)


def apart(closed, axes, size):
    """`axes` of the results of a batched jaxpr, and a function of a lane's number and operands: its results."""
    jaxpr = closed.jaxpr
    label = dict(zip(jaxpr.invars, axes, strict=True)) | dict.fromkeys(jaxpr.constvars)
    read = lambda v: None if isinstance(v, jex.Literal) else label[v]
    steps = []
    for eqn in jaxpr.eqns:
        before = [read(v) for v in eqn.invars]
        lane = one_lane(eqn, before, size) if any(a is not None for a in before) else None
        steps.append((eqn, before, lane))
        label |= dict(zip(eqn.outvars, lane.outputs if lane else [None] * len(eqn.outvars), strict=True))

    def run(k, *xs):
        value = dict(zip((*jaxpr.invars, *jaxpr.constvars), (*xs, *closed.consts), strict=True))
        get = lambda v: v.val if isinstance(v, jex.Literal) else value[v]
        for eqn, before, lane in steps:
            operands = [get(v) for v in eqn.invars]
            if lane is None:
                free = list(dict.fromkeys(v for v in eqn.invars if not isinstance(v, jex.Literal)))
                whole = jaxpr.replace(constvars=[], invars=free, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
                outs = jax.core.eval_jaxpr(whole, (), *map(get, free))
            else:
                for i, (was, now) in enumerate(zip(before, lane.inputs, strict=True)):
                    assert was is None or was == now
                    if was is None and now is not None:
                        operands[i] = lax.dynamic_index_in_dim(operands[i], k, now, keepdims=False)
                outs = lane.run(*operands)
                assert len(outs) == len(lane.outputs)
            value.update(zip(eqn.outvars, outs, strict=True))
        return [get(v) for v in jaxpr.outvars]

    return [read(v) for v in jaxpr.outvars], run


def raw(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def close(found, wanted):
    found, wanted = raw(found), raw(wanted)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if np.issubdtype(wanted.dtype, np.inexact):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    else:
        np.testing.assert_array_equal(found, wanted)


def check(f, args, in_axes, out_axes=0):
    """Takes `vmap(f)` apart, and compares each lane with the batch and its types with those of `f`."""
    batched = jax.vmap(f, in_axes, out_axes)
    flat, axes = [], []
    for x, a in zip(args, in_axes, strict=True):
        flat.append(x)
        axes.append(None if a is None else a % x.ndim)
    size = next(x.shape[a] for x, a in zip(flat, axes, strict=True) if a is not None)
    closed = jax.make_jaxpr(batched)(*args)
    found, run = apart(closed, axes, size)
    take = lambda k: [
        x if a is None else lax.dynamic_index_in_dim(x, k, a, keepdims=False) for x, a in zip(flat, axes, strict=True)
    ]
    both = jax.jit(
        lambda: (
            lax.map(lambda k: run(k, *take(k)), jnp.arange(size)),
            jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *args),
        ),
        compiler_options=QUICK,
    )
    every, wanted = both()
    alone = jax.tree.leaves(jax.eval_shape(f, *take(0)))
    for lanes, whole, axis, one in zip(every, wanted, found, alone, strict=True):
        if axis is None:
            close(lanes, jnp.broadcast_to(whole, lanes.shape))
        else:
            assert axis == out_axes % whole.ndim
            assert (lanes.shape[1:], lanes.dtype) == (one.shape, one.dtype)
            close(lanes, jnp.moveaxis(whole, axis, 0))


def value(kind, size, seed):
    """An operand for each lane, or a whole one where `kind` is a capital."""
    draw = np.random.default_rng(seed)
    shape = (size,) if kind.islower() else ()
    numbers = lambda *more: jnp.asarray(draw.normal(size=(*shape, *more)).astype(np.float32))
    integers = lambda low, high, *more: jnp.asarray(draw.integers(low, high, (*shape, *more), np.int32))
    match kind.lower():
        case "x":
            return numbers()
        case "v":
            return numbers(N)
        case "m":
            return numbers(N, N)
        case "p":  # positive definite
            half = np.asarray(numbers(N, N))
            return jnp.asarray(half @ half.mT + np.eye(N, dtype=np.float32))
        case "n":  # an index
            return integers(0, N)
        case "i":
            return integers(-9, 9, N)
        case "d":  # digests
            return jnp.asarray(np.asarray(integers(0, 2, 3, 4)).astype(np.uint32))
        case "k":
            return jax.random.split(KEY, shape)


def operands(kinds, size):
    """Operands, and which axis of each is the lanes."""
    args = [value(kind, size, seed) for seed, kind in enumerate(kinds)]
    return args, tuple(0 if kind.islower() else None for kind in kinds)


def gru(xs):
    cell = eqx.nn.GRUCell(N, N, key=KEY)
    return lax.scan(lambda c, x: (cell(x, c), c.sum()), jnp.zeros(N), xs)


def attention(x):
    return eqx.nn.MultiheadAttention(2, N, key=KEY)(x, x, x)


def newton(x):
    return lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] * 0.5 + jnp.abs(x), c[1] + jnp.abs(x) + 1), (x, x))


def carried(q):
    """A carry that starts whole and is by lane at the end; another that never is."""
    return lax.scan(lambda c, x: ((c[0] + x, c[1] + 1, c[2] * 2.0), c[0]), (0.0, 0, C), q)


def late(q):
    """Carries that become by lane one after another."""
    return lax.fori_loop(0, 3, lambda i, c: (c[1], c[2], q.sum()), (0.0, 1.0, 2.0))


conv = functools.partial(lax.conv_general_dilated, window_strides=(1,), padding="SAME")
vector = lambda x: x.reshape(1, 1, N)

# name: what one lane computes, and its operands by kind
PROGRAMS = {
    # elementwise
    "arithmetic": (lambda q: -q * 2 + q / 3 - jnp.exp(q) ** 2 + jnp.maximum(q, 0.1), "v"),
    "weak types": (lambda x: (x * 2, -1.5 + x, x**3), "x"),
    "unary": (
        lambda q: (jnp.sin(q), jnp.tanh(q), jnp.sign(q), jnp.floor(q), lax.rsqrt(jnp.abs(q)), jnp.isfinite(q)),
        "v",
    ),
    "activations": (lambda q: (jax.nn.relu(q), jax.nn.gelu(q), jax.nn.silu(q), jax.nn.softplus(q)), "v"),
    "scalar and whole vector": (lambda x, c: x * c, "xV"),
    "vector and whole vector": (lambda q, c: (q - c, c - q), "vV"),
    "where a constant array": (lambda q: jnp.where(q > 0, q, C), "v"),
    "where with a scalar": (lambda x, q, c: (jnp.where(x > 0, q, c), jnp.where(x > 0, c, q)), "xvV"),
    "where all else is whole": (lambda x, c: jnp.where(x > 0, c, c * 2), "xV"),
    "clamp": (lambda x, q: (jnp.clip(q, -x, x), lax.clamp(-1.0, q, 1.0), lax.clamp(x, q, x + 1)), "xv"),
    "integers": (lambda i: (i % 3, i // 2, i << 1, ~i, i ^ 5, lax.population_count(i), i.astype(float)), "i"),
    "bitcast": (lambda q: lax.bitcast_convert_type(q, jnp.uint32), "v"),
    "bitcast to bytes": (lambda i: lax.bitcast_convert_type(lax.bitcast_convert_type(i, jnp.uint8), jnp.int32), "i"),
    "reduce_precision": (lambda q: lax.reduce_precision(q, 5, 3), "v"),
    "optimization_barrier": (lambda x, c, q: lax.optimization_barrier((x, c, q)), "xVv"),
    "stop_gradient and copy": (lambda q: jnp.copy(lax.stop_gradient(q)), "v"),
    "complex": (lambda q: jnp.abs(lax.complex(q, q[::-1])), "v"),
    # shapes
    "broadcast_to": (lambda q: (jnp.broadcast_to(q, (2, N)), jnp.broadcast_to(q[:, None], (N, N))), "v"),
    "reshape": (lambda m: (m.reshape(2, 2, N), m.reshape(-1), m.reshape(N, 1, N)), "m"),
    "ravel and back": (lambda m: m.T.ravel().reshape(2, 8).T, "m"),
    "squeeze, expand": (lambda q: (q[:, None, None].squeeze(1), q[None, :, None].squeeze((0, 2))), "v"),
    "transpose": (lambda m: (m.T, jnp.swapaxes(m[None], 0, 2)), "m"),
    "flip": (lambda m: (m[::-1], jnp.flip(m, 1), jnp.rot90(m)), "m"),
    "pad": (lambda q: (jnp.pad(q, (1, 2)), jnp.pad(q, 1, constant_values=2.0)), "v"),
    "pad with a lane's value": (lambda q, x: (lax.pad(q, x, [(1, 0, 1)]), lax.pad(C, x, [(0, -1, 0)])), "vx"),
    "concatenate with a constant": (lambda q: jnp.concatenate([q, jnp.ones(2), q]), "v"),
    "concatenate matrices": (lambda m, c: (jnp.concatenate([m, c], 0), jnp.concatenate([c, m], 1)), "mM"),
    "stack": (lambda q, c: (jnp.stack([q, c]), jnp.stack([q, c], 1), jnp.stack([q, q], 1)), "vV"),
    "tile and repeat": (lambda q: (jnp.tile(q, 3), jnp.repeat(q, 2), jnp.tile(q, (2, 2))), "v"),
    "slice": (lambda q: (q[1:3], q[::2], q[0], q[-1], q[3:0:-1]), "v"),
    "split": (lambda m: (*jnp.split(m, 2), *jnp.split(m, [1], axis=1)), "m"),
    "unstack": (lambda m: (*jnp.unstack(m), *jnp.unstack(m, axis=1)), "m"),
    "roll": (lambda q, n: (jnp.roll(q, 1), jnp.roll(q, n)), "vn"),
    "triangles": (lambda m: (jnp.tril(m), jnp.diag(m), jnp.diag(m[0]), jnp.trace(m)), "m"),
    # reductions, along an axis
    "reductions": (
        lambda m: (m.sum(), m.sum(0), m.mean(1), m.max(0), m.min(), m.prod(1), (m > 0).any(0), (m > 0).all()),
        "m",
    ),
    "argmax": (lambda m: (m.argmax(), m.argmax(0), m.argmin(1)), "m"),
    "a monoid of one's own": (lambda q: lax.reduce(q, 0.0, lambda x, y: x + 2 * y - y, (0,)), "v"),
    "cumulative": (lambda m: (m.cumsum(0), m.cumsum(1), m.cumprod(0), lax.cummax(m), lax.cumlogsumexp(m, 1)), "m"),
    "sort": (lambda m: (jnp.sort(m, 0), jnp.sort(m, 1), jnp.argsort(m), jnp.sort(m[0], descending=True)), "m"),
    "sort with a constant": (lambda q: lax.sort((q, C, q * 2), num_keys=1), "v"),
    "sort a constant by lanes": (lambda i: lax.sort((i, C), num_keys=2, is_stable=False), "i"),
    "top_k": (lambda m: (*lax.top_k(m, 2), *lax.top_k(m[0], 3)), "m"),
    "softmax": (lambda q: jax.nn.softmax(q) * jax.nn.logsumexp(q) + jax.nn.log_softmax(q), "v"),
    "statistics": (lambda m: (m.std(), m.var(0), jnp.median(m, 1), jnp.quantile(m, 0.3), jnp.percentile(m[0], C)), "m"),
    "pooling": (lambda m: (eqx.nn.MaxPool1d(2)(m), eqx.nn.AvgPool1d(2)(m)), "m"),
    # indices
    "a row by argmax": (lambda q: W[jnp.argmax(q)], "v"),
    "rows by argsort": (lambda q: (q[jnp.argsort(q)[:3]], W[jnp.argsort(q)[:3]]), "v"),
    "one's own entry": (lambda q, n: (q[n], C[n], W[n, n]), "vn"),
    "another's entry": (lambda q, n: (q[n], W[n], q[jnp.array([2, 0])]), "vN"),
    "a matrix by index": (
        lambda m, n: (m[n], m[:, n], m[n, n], m[jnp.array([0, 2])[:, None], jnp.array([1, 3])[None]]),
        "mn",
    ),
    "take along": (lambda m: jnp.take_along_axis(m, jnp.argsort(m, 1), 1), "m"),
    "take with a fill": (lambda q, n: jnp.take(q, n + jnp.arange(3), mode="fill", fill_value=-1.0), "vn"),
    "dynamic slices": (lambda q, n: (lax.dynamic_slice(q, (n,), (2,)), lax.dynamic_slice(C, (n,), (2,))), "vn"),
    "dynamic slices elsewhere": (lambda m, n: lax.dynamic_slice(m, (n, 0), (2, 3)), "mN"),
    "dynamic update": (lambda q, x, n: lax.dynamic_update_slice(q, x[None], (n,)), "vxn"),
    "dynamic update of a whole": (lambda x, n, c: lax.dynamic_update_slice(c, x[None], (n,)), "xNV"),
    "at set": (lambda q, n: (q.at[n].set(0.0), q.at[1].set(2.0), q.at[n].add(q[0]), C.at[n].set(5.0)), "vn"),
    "at a whole": (lambda q: (C.at[1:3].set(q[:2]), C.at[0].add(q[0])), "v"),
    "at rows": (lambda m, n, c: (m.at[n].set(c), m.at[:, n].mul(c), m.at[n, n].max(0.5), m.at[1].min(c)), "mnV"),
    "histogram": (lambda i: jnp.bincount(jnp.abs(i), length=5), "i"),
    "one_hot": (lambda q: jnp.einsum("i,ij,j->", q, W, jax.nn.one_hot(jnp.argmax(q), N)), "v"),
    "votes": (lambda d: jnp.sum(jnp.all(d[:, None] == d[None], -1), 1), "d"),
    "interp": (lambda x, q: (jnp.interp(x, C, q), jnp.interp(x, C, C)), "xv"),
    "searchsorted": (lambda q: (jnp.searchsorted(jnp.sort(q), 0.1), jnp.searchsorted(C, q)), "v"),
    # products
    "dots": (lambda q, m: (q @ q, m @ q, q @ m, m @ m, jnp.outer(q, q)), "vm"),
    "dots with wholes": (lambda q, c, m: (c @ q, q @ c, c @ m, m @ c, q @ C), "vMm"),
    "einsum": (lambda m: (jnp.einsum("ij,ij->i", m, m), jnp.einsum("ij,jk,kl->il", m, W, m), jnp.einsum("ii", m)), "m"),
    "batched dots": (lambda m, c: jnp.einsum("bi,bij->bj", m, c[None] * m[:, :, None]), "mM"),
    "polynomial": (lambda x, q: (jnp.polyval(q, x), jnp.polyval(C, x), jnp.vander(q)), "xv"),
    "convolve": (lambda q: (jnp.convolve(q, jnp.ones(3)), jnp.convolve(jnp.ones(3), q)), "v"),
    "convolve with itself": (lambda q: jnp.convolve(q, q), "v"),
    "convolutions": (lambda q: conv(vector(q), vector(C)), "v"),
    "kernels": (lambda q: conv(vector(C), vector(q)), "v"),
    "a kernel each": (lambda q: conv(vector(q), vector(q * 2)), "v"),
    "fft": (lambda q: jnp.abs(jnp.fft.fft(q)) + jnp.fft.irfft(jnp.fft.rfft(q)), "v"),
    # networks
    "MLP": (lambda q: eqx.nn.MLP(N, 3, 5, 1, key=KEY)(q), "v"),
    "LayerNorm": (lambda q: eqx.nn.LayerNorm(N)(q), "v"),
    "attention": (attention, "m"),
    "GRU": (gru, "m"),
    "Conv1d": (lambda m: eqx.nn.Conv1d(N, 2, 3, key=KEY)(m), "m"),
    "Embedding": (lambda n: eqx.nn.Embedding(N, 3, key=KEY)(n), "n"),
    # control flow
    "scan": (carried, "v"),
    "scan in reverse": (lambda q: lax.scan(lambda c, x: (c * 0.5 + x, c), q[0], q, reverse=True), "v"),
    "scan with a whole": (lambda x: lax.scan(lambda c, w: (c * x + w, (w, c)), 0.0, C), "x"),
    "scan of matrices": (lambda m: lax.scan(lambda c, r: (c + r, jnp.where(c > 0, c, 0.0)), C, m), "m"),
    "map": (lambda m: lax.map(lambda r: r.sum() * r, m), "m"),
    "carries that follow": (late, "v"),
    "while all go on": (lambda q: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * q), (0, C)), "v"),
    "while each goes on": (newton, "x"),
    "fori to a lane's number": (lambda q, n: lax.fori_loop(0, n, lambda i, c: c * 1.1 + i, q), "vn"),
    "while with a counter": (
        lambda x: lax.while_loop(lambda c: c[0] * 0.5 < jnp.abs(x), lambda c: (c[0] + 1, c[1]), (0.0, C)),
        "x",
    ),
    "cond of a lane": (lambda q: lax.cond(q[0] > 0, lambda: q.sum(), lambda: 0.0), "v"),
    "cond of none": (lambda q, n: lax.cond(n > 1, lambda: (q, C), lambda: (C, q * 2)), "vN"),
    "switch": (lambda q: lax.switch(jnp.argmax(q) % 3, [lambda: q.sum(), lambda: q.max(), lambda: 0.0]), "v"),
    "switch of none": (lambda q, n: lax.switch(n % 3, [lambda x: x, lambda x: x * 2, lambda x: C], q), "vN"),
    "jit": (lambda q, c: jax.jit(lambda a, b: (a + b, b * 2, jnp.where(a > 0, b * 2, 1.0)))(q, c), "vV"),
    "checkpoint": (jax.checkpoint(lambda q: jnp.sin(q) * C), "v"),
    "grad": (jax.grad(lambda q: (jnp.sin(W @ q) ** 2).sum() + jax.nn.relu(q).sum()), "v"),
    "jacobian": (jax.jacfwd(lambda q: jnp.tanh(q) * q[0]), "v"),
    "hessian": (jax.hessian(lambda q: jax.nn.logsumexp(q)), "v"),
    # linear algebra
    "norm": (lambda m: (jnp.linalg.norm(m), jnp.linalg.norm(m, axis=0), jnp.linalg.norm(m[0], 1)), "m"),
    "solve": (lambda p, q: jnp.linalg.solve(p, q), "pv"),
    "solve with one matrix": (lambda q: jnp.linalg.solve(W, q), "v"),
    "solve for one side": (lambda p: jnp.linalg.solve(p, C), "p"),
    "inverse": (lambda p: (jnp.linalg.inv(p), jnp.linalg.det(p), *jnp.linalg.slogdet(p)), "p"),
    "cholesky": (
        lambda p, q: (jnp.linalg.cholesky(p), jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(p), True), q)),
        "pv",
    ),
    "triangular": (lambda p, q: jax.scipy.linalg.solve_triangular(p, q, lower=True), "pv"),
    "triangular with one": (lambda q: jax.scipy.linalg.solve_triangular(W + 3 * jnp.eye(N), q, trans=1), "v"),
    "qr": (lambda p: jnp.linalg.qr(p), "p"),
    "svd": (lambda p: (jnp.linalg.svd(p, compute_uv=False), jnp.linalg.pinv(p), jnp.linalg.cond(p)), "p"),
    "eigh": (lambda p: (jnp.linalg.eigvalsh(p), jnp.abs(jnp.linalg.eigh(p)[1])), "p"),
    "lu": (lambda p: jax.scipy.linalg.lu(p), "p"),
    "lstsq": (lambda p, q: jnp.linalg.lstsq(p, q)[0], "pv"),
    # keys
    "draws": (lambda k: (jax.random.normal(k, (2, N)), jax.random.bits(k)), "k"),
    "draws from seeds": (lambda n: jax.random.normal(jax.random.key(n), (N,)), "n"),
    "draws from old keys": (lambda n: jax.random.uniform(jax.random.split(jax.random.PRNGKey(n))[1], (N,)), "n"),
    "split keys": (lambda k: [jax.random.normal(x) for x in jax.random.split(k, 3)], "k"),
    "fold_in": (lambda k, n: (jax.random.fold_in(k, n), jax.random.fold_in(KEY, n), jax.random.fold_in(k, 3)), "kn"),
    "categorical": (
        lambda k, q: (jax.random.categorical(k, q), jax.random.gumbel(k, (N,)), jax.random.bernoulli(k)),
        "kv",
    ),
    "permutation": (
        lambda k, q: (jax.random.permutation(k, N), jax.random.permutation(k, q), jax.random.choice(k, C)),
        "kv",
    ),
    "key data": (lambda k: jax.random.normal(jax.random.wrap_key_data(jax.random.key_data(k) + jnp.uint32(1))), "k"),
    "keys are moved": (
        lambda k, n: jax.random.uniform(jnp.stack([jax.random.split(k, N), jax.random.split(KEY, N)])[1, n]),
        "kn",
    ),
    "keys in a scan": (
        lambda k: lax.scan(lambda c, _: (jax.random.split(c)[0], jax.random.normal(c)), k, length=3),
        "k",
    ),
    # vmap in vmap
    "vmap inside": (lambda q: jax.vmap(lambda a: a * q)(q), "v"),
    "vmap of rows": (lambda m: jax.vmap(lambda r: (r @ r, jnp.sort(r), r[jnp.argmax(r)], r * C))(m), "m"),
    "vmap of columns": (lambda m: jax.vmap(lambda r: r.at[jnp.argmin(r)].set(0.0), 1, 1)(m), "m"),
    "vmap of vmap": (lambda m: jax.vmap(jax.vmap(lambda a, b: jnp.where(a > b, a, 0.0), (0, None)), (1, 0))(m, m), "m"),
    "vmap of while": (
        lambda q, x: jax.vmap(lambda a: lax.while_loop(lambda c: c < 3, lambda c: c + jnp.abs(a * x) + 1, a))(q),
        "vx",
    ),
    "vmap of while and a whole": (
        lambda q, c: jax.vmap(lambda a, b: lax.fori_loop(0, b, lambda i, s: s + a, a * 0))(q, c),
        "vI",
    ),
    "vmap of a draw": (lambda k: jax.vmap(lambda s: jax.random.normal(s, (N,)))(jax.random.split(k, N)), "k"),
    "vmap of solve": (lambda m: jax.vmap(lambda r: jnp.linalg.solve(jnp.diag(r) + jnp.eye(N) * 9, r))(m), "m"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_lanes_are_those_of_vmap(name):
    f, kinds = PROGRAMS[name]
    check(f, *operands(kinds, N))


def types(f, args, axes, size):
    """The types of one lane, taken apart, and those of `f`."""
    closed = jax.make_jaxpr(jax.vmap(f, axes))(*args)
    _, run = apart(closed, axes, size)
    one = [x if a is None else jnp.take(x, 0, a) for x, a in zip(args, axes, strict=True)]
    found, wanted = jax.eval_shape(run, 0, *one), jax.tree.leaves(jax.eval_shape(f, *one))
    return [[(t.shape, t.dtype) for t in side] for side in (found, wanted)]


# JAX solves for all lanes at once by making them columns, and with one lane there is no telling which column it is.
AMBIGUOUS = {"solve with one matrix", "triangular with one"}


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in AMBIGUOUS])
def test_one_lane_alone(name):
    f, kinds = PROGRAMS[name]
    found, wanted = types(f, *operands(kinds, 1), 1)
    assert all(shape in (one, (1, *one)) and d == e for (shape, d), (one, e) in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", sorted(AMBIGUOUS))
def test_one_lane_that_could_be_any_column_crosses(name):
    f, kinds = PROGRAMS[name]
    with pytest.raises(Crossing):
        types(f, *operands(kinds, 1), 1)


AXES = {
    "elementwise": (lambda q, m: q[:, None] * m - m, "vm", (1, 2), -1),
    "products": (lambda m, q: (m @ q, q @ m), "mv", (1, -1), 1),
    "indices": (lambda m, i: m[jnp.abs(i) % N].at[i[0] % N].set(0.0), "mi", (2, 1), 2),
    "sorts": (lambda m: (jnp.sort(m, 0), m.cumsum(1), m.sum(0).reshape(2, 2)), "m", (1,), -1),
    "scan": (lambda m: lax.scan(lambda c, r: (c + r, c * r), C, m)[1], "m", (-1,), -1),
}


@pytest.mark.parametrize("name", AXES)
def test_lanes_on_any_axis(name):
    f, kinds, axes, out_axis = AXES[name]
    args = [jnp.moveaxis(x, 0, a) for x, a in zip(operands(kinds, N)[0], axes, strict=True)]
    check(f, args, axes, out_axis)


UNARY = "acos acosh asin asinh atan atanh cbrt ceil cosh digamma erfc exp2 expm1 round sinh tan bessel_i0e bessel_i1e"
MORE = {
    "unary": (lambda q: tuple(getattr(lax, name)(q) for name in UNARY.split()), "v"),
    "binary": (
        lambda q, c: (lax.atan2(q, c), lax.nextafter(q, c), lax.igamma(c, c + q * q), lax.zeta(c * c + 2, q * q + 1)),
        "vV",
    ),
    "bits": (lambda i: (lax.clz(i), i >> 1, jnp.bitwise_xor.reduce(i), lax.cummin(i)), "i"),
    "parts": (lambda q: (lax.real(lax.conj(lax.complex(q, q))), lax.imag(lax.complex(q, q))), "v"),
    "threefry": (lambda i: jax.extend.random.threefry_2x32(i[:2].astype("uint32"), i.astype("uint32")), "i"),
    "named": (lambda q: checkpoint_name(q, "q"), "v"),
    "gamma": (lambda k, x: jax.random.gamma(k, jnp.abs(x) + 1), "kx"),
    "matrix functions": (lambda p: (jnp.linalg.matrix_power(p, 3), jax.scipy.linalg.expm(p * 0.1)), "p"),
    "conjugate gradients": (lambda q: jax.scipy.sparse.linalg.cg(W @ W.T + jnp.eye(N), q)[0], "v"),
    "random numbers": (lambda k: (jax.random.beta(k, 1.0, 2.0), jax.random.poisson(k, 2.0), jax.random.t(k, 3.0)), "k"),
    "special": (
        lambda q: (lax.lgamma(jnp.abs(q)), lax.erf(q), jax.scipy.special.betainc(1.0, 2.0, jax.nn.sigmoid(q))),
        "v",
    ),
    "cloned": (lambda k: jax.random.clone(k), "k"),
    "windows": (
        lambda m: (eqx.nn.MaxPool1d(2)(-m), lax.reduce_window(m, jnp.inf, lax.min, (2, 1), (1, 1), "SAME")),
        "m",
    ),
    "scatter_sub": (lambda q, n: q.at[n].subtract(1.0), "vn"),
    "decompositions": (lambda p: (lax.linalg.hessenberg(p), lax.linalg.tridiagonal(p), lax.linalg.schur(p)), "p"),
    "eig": (lambda p: lax.linalg.eig(p), "p"),
    "householder": (lambda p: lax.linalg.householder_product(p, p[0]), "p"),
    "symmetric": (lambda p: lax.linalg.symmetric_product(p, p), "p"),
    "pivots": (lambda p: lax.linalg.lu_pivots_to_permutation(lax.linalg.lu(p)[1], N), "p"),
    "tridiagonal": (lambda p: lax.linalg.tridiagonal_solve(p[0], p[1], p[2], p), "p"),
}


@pytest.mark.parametrize("name", MORE)
def test_rules_of_one_pattern_give_one_lanes_types(name):
    f, kinds = MORE[name]
    found, wanted = types(f, *operands(kinds, N), N)
    assert found == wanted


EXACTLY = {
    "arithmetic": (lambda q: jnp.exp(q) * q + 1.0, "v"),
    "reductions": (lambda m: (m.sum(0), m.max(), m.argmin(1)), "m"),
    "shapes": (lambda m: m.T.reshape(2, 8)[:, None, 1:].squeeze(1), "m"),
    "sorts": (lambda m: (lax.sort((m, m), num_keys=2), lax.top_k(m, 2), lax.cumsum(m)), "m"),
    "products": (lambda m: lax.dot_general(m, m, (((0,), (1,)), ((), ()))), "m"),
    "pads": (lambda m: lax.rev(lax.pad(m, 0.0, ((1, 1, 0), (0, 0, 2))), (1,)), "m"),
    "draws": (lambda k: jax.random.key_data(k), "k"),
}


@pytest.mark.parametrize("name", EXACTLY)
def test_one_lane_is_the_equation_before_vmap(name):
    f, kinds = EXACTLY[name]
    args, axes = operands(kinds, N)
    _, run = apart(jax.make_jaxpr(jax.vmap(f))(*args), axes, N)
    one = [x[0] for x in args]
    plain = lambda jaxpr: re.sub(r"np\.int64\((\d+)\)|\s+", r"\1", str(jaxpr))  # JAX itself writes axes either way
    assert plain(jax.make_jaxpr(lambda *xs: run(0, *xs))(*one)) == plain(jax.make_jaxpr(f)(*one))


# -- equations on arrays with lanes in front that no `vmap` made ------------------------------------------------------

BATCH = jax.random.normal(KEY, (N, N))
BY_HAND = {
    "reductions": (lambda x: x.sum(1), lambda r: r.sum()),
    "softmax": (lambda x: jax.nn.softmax(x, 1), jax.nn.softmax),
    "centred": (lambda x: x - x.mean(1, keepdims=True), lambda r: r - r.mean()),
    "product": (lambda x: x @ W, lambda r: r @ W),
    "column": (lambda x: x[:, 1], lambda r: r[1]),
    "reshape": (lambda x: x.reshape(N, 2, 2).reshape(N, N, 1), lambda r: r[:, None]),
    "dynamic slice": (lambda x: lax.dynamic_slice(x, (3, 1), (N, 2)), lambda r: r[1:3]),
    "dynamic update": (lambda x: lax.dynamic_update_slice(x, x[:, :2], (0, 1)), lambda r: r.at[1:3].set(r[:2])),
    "scan over features": (lambda x: lax.scan(lambda c, y: (c + y, None), jnp.zeros(N), x.T)[0], lambda r: r.sum()),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_batched_by_hand(name):
    g, f = BY_HAND[name]
    (axis,), run = apart(jax.make_jaxpr(g)(BATCH), [0], N)
    for k, wanted in enumerate(jax.vmap(f)(BATCH)):
        close(run(k, BATCH[k])[0], wanted)
    assert axis == 0


def equation(f, *args):
    (eqn,) = jax.make_jaxpr(f)(*args).eqns
    return eqn


def test_a_whole_operand_with_an_entry_for_each_lane_is_taken_by_lane():
    for f in (jnp.add, lambda x, c: jnp.where(x > 0, 1.0, jnp.sin(c)), lambda x, c: jnp.concatenate([x, c], 1)):
        eqns = jax.make_jaxpr(jax.jit(lambda x, c: jax.jit(f)(x, c)))(BATCH, BATCH).eqns
        assert one_lane(eqns[0], [0, None], N).inputs == (0, 0)


def test_a_whole_operand_without_one_stays_whole():
    assert one_lane(equation(lax.dot, BATCH, W), [0, None], N).inputs == (0, None)
    assert one_lane(equation(lax.mul, BATCH, W[:1]), [0, None], N).inputs == (0, None)


def test_lanes_on_a_later_axis_are_not_taken_for_the_first():
    lane = one_lane(equation(lax.mul, BATCH, W), [1, None], N)
    assert (lane.inputs, lane.outputs) == ((1, 1), (1,))
    close(lane.run(BATCH[:, 2], W[:, 2])[0], BATCH[:, 2] * W[:, 2])


def test_what_no_lane_varies_in_a_call_is_said_to_be_the_same():
    lane = one_lane(equation(jax.jit(lambda x, c: (x * 2, c * 2)), BATCH, W), [0, None], N)
    assert (lane.inputs, lane.outputs) == ((0, None), (0, None))


@jax.jit
def both_ways(x, c):
    return x + c, c.sum(0)


roll = lambda x: jnp.roll(x, 1, 0)
RBG = jax.random.split(jax.random.key(0, impl="rbg"), N)
CROSSINGS = {
    "sum": (lambda x: x.sum(0), "reduce_sum adds up lanes"),
    "mean": (lambda x: x - x.mean(0, keepdims=True), "reduce_sum adds up lanes"),
    "max": (lambda x: x.max(), "reduce_max works across lanes"),
    "argmax": (lambda x: x.argmax(0), "argmax works across lanes"),
    "sort": (lambda x: jnp.sort(x, 0), "sort sorts lanes"),
    "cumsum": (lambda x: jnp.cumsum(x, 0), "cumsum works across lanes"),
    "top_k": (lambda x: lax.top_k(x, 2, axis=0), "top_k works across lanes"),
    "flip": (lambda x: x[::-1], "rev works across lanes"),
    "roll": (roll, "works across lanes"),
    "slice": (lambda x: x[1:], "slice works across lanes"),
    "step": (lambda x: x[::2], "slice works across lanes"),
    "gather": (lambda x: x[jnp.array([1, 0, 2, 3])], "gather works across lanes"),
    "gather own": (lambda x: x[jnp.argmax(x, 1)], "gather works across lanes"),
    "scatter": (lambda x: jnp.zeros((N, N)).at[jnp.argmax(x, 1)].set(x), "scatter works across lanes"),
    "scatter one": (lambda x: x.at[0].set(1.0), "scatter works across lanes"),
    "reshape": (lambda x: x.reshape(-1), "reshape merges lanes"),
    "reshape to blocks": (lambda x: x.reshape(2, 2, N), "reshape merges lanes"),
    "concatenate": (lambda x: jnp.concatenate([x, x]), "concatenate joins lanes"),
    "split": (lambda x: jnp.split(x, 2), "split works across lanes"),
    "pad": (lambda x: jnp.pad(x, ((1, 0), (0, 0))), "pad works across lanes"),
    "contract": (lambda x: W @ x, "dot_general works across lanes"),
    "gram": (lambda x: x @ x.T, "dot_general works across lanes"),
    "all pairs": (lambda x: x[:, None] - x[None], "sub pairs lanes with other lanes"),
    "transposed": (lambda x: x + x.T, "add pairs lanes with other lanes"),
    "scan": (lambda x: lax.scan(lambda c, r: (c + r, c), C, x), "scan works across lanes"),
    "a sum in a scan": (
        lambda x: lax.scan(lambda c, _: (c - c.sum(0, keepdims=True), None), x, length=2),
        "reduce_sum adds up lanes",
    ),
    "a common condition": (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), "reduce_sum adds up"),
    "determinant": (lambda x: jnp.linalg.det(x), "works across lanes"),
    "fft": (lambda x: jnp.fft.fft(x, axis=-1) + jnp.fft.fft(x, axis=0), "transpose|pairs|works across"),
    "whole and by lane": (lambda x: both_ways(x, W), "reduce_sum adds up lanes"),
    "an entry that is no broadcast": (
        jax.jit(lambda x: x[:, 0] * jnp.arange(4.0)),
        "iota makes an entry for each lane",
    ),
    "a print": (jax.jit(lambda x: (jax.debug.print("hi"), x)[1]), "debug_(print|callback) has an effect"),
    "a print of lanes": (lambda x: (jax.debug.print("{}", x), x)[1], "no rule for debug_"),
    "no rule": (lambda x: lax.approx_max_k(x, 2), "no rule for approx_top_k"),
}


@pytest.mark.parametrize("name", CROSSINGS)
def test_lanes_that_meet_are_noticed(name):
    g, words = CROSSINGS[name]
    with pytest.raises(Crossing, match=words):
        apart(jax.make_jaxpr(g)(BATCH), [0], N)


@pytest.mark.parametrize("draw", [jax.random.normal, jax.random.split, lambda k: jax.random.fold_in(k, 1)])
def test_keys_that_draw_otherwise_in_a_batch_cross(draw):
    with pytest.raises(Crossing, match="may draw other numbers for a batch of key<rbg> than for each alone"):
        apart(jax.make_jaxpr(jax.vmap(draw))(RBG), [0], N)


# -- random programs ---------------------------------------------------------------------------------------------------

UNARIES = (
    lambda m: m.T,
    lambda m: m * 2 - 1,
    lambda m: jnp.where(m > 0, m, 0.5),
    lambda m: m.at[jnp.argmax(m[0])].set(C),
    lambda m: m[jnp.argsort(m[:, 0])],
    lambda m: jnp.sort(m, 0),
    lambda m: m.reshape(2, 8)[:, ::-1].reshape(N, N),
    lambda m: jnp.roll(m, 1, 1) - m.max(0)[None],
    lambda m: lax.scan(lambda c, r: (jnp.minimum(c, r), c), C, m)[1],
    lambda m: jax.vmap(lambda r: r - r[jnp.argmin(r)], 1, 1)(m),
    lambda m: jnp.concatenate([m[1:], jnp.ones((1, N))]),
)
BINARIES = (
    lambda a, b: a + b,
    lambda a, b: jnp.where(a > b, a, b.T),
    lambda a, b: jnp.stack([a, b])[1, :, ::-1],
    lambda a, b: jnp.take_along_axis(a, jnp.argsort(b, 1), 1),
    lambda a, b: lax.cond(a[0, 0] > b[0, 0], lambda: a, lambda: b),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(UNARIES), st.sampled_from(BINARIES), st.integers(0, 2), st.integers(0, 2)),
    min_size=1,
    max_size=3,
)


@hypothesis.settings(max_examples=15)
@hypothesis.given(STEPS, st.sampled_from([(0, None), (1, 2), (2, 0), (None, 1)]))
def test_random_programs(steps, axes):
    def f(*values):
        values = [*values, W]
        for unary, binary, i, j in steps:
            values[i] = binary(unary(values[j]), values[i])
        return values[:2]

    args = [value("M" if a is None else "m", N, k) for k, a in enumerate(axes)]
    args = [x if a is None else jnp.moveaxis(x, 0, a) for x, a in zip(args, axes, strict=True)]
    check(f, args, axes)
