"""A lane's numbers have the same bits in every executable of its segment: of any capacity, and whoever shares what.

By day a few segments of the kinds whose bits have once differed, by night many kinds.
"""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ember_jax as ember
from ember_jax._engine import segments
from ember_jax._engine.segments import CAPACITIES, SegmentRunner, given_once
from ember_jax._plan import ir
from ember_jax._plan.lower import lower
from ember_jax._plan.passes import arrange, simplify

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
COMPANIES = (1, 2, 8, 9, 128, 130, 300) if NIGHTLY else (9, 130)
ALONE = 300 if NIGHTLY else 20  # how many lanes are computed alone


@pytest.fixture(autouse=True)
def _optimised():
    """The programs are compiled as users' are, unlike in other tests: bits depend on it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def layer_norm(x):
    return (x - x.mean()) * lax.rsqrt(x.var() + 1e-5)


def attention(q, k, v):
    return jax.nn.softmax(q @ k.T * 0.3) @ v


def products(x, y, z):
    return x * y + z, x * y - z * x, (x * y).sum() + z


def chain(x, y):
    return jnp.tanh(jnp.exp(jnp.sin(x) * y) + jnp.log1p(jnp.abs(x)) * lax.rsqrt(jnp.abs(y) + 1))


def scan(x, m):
    return lax.scan(lambda c, t: ((h := jnp.tanh(c @ m + t)), h.sum()), x[0], x)


def loop(x):
    return lax.while_loop(
        lambda s: (s[0] < 5) | ((s[0] < 6) & (s[1][0] > 0)), lambda s: (s[0] + 1, jnp.sin(s[1]) * s[1].sum()), (0, x)
    )


def drawn(draw):
    return lambda key, x: draw(jax.random.wrap_key_data(key), x)


def of(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


F16, BF16, F64, INT, KEY = np.float16, jnp.bfloat16, np.float64, of(4, dtype=np.int32), of(2, dtype=np.uint32)
# name: (the segment, its inputs)
BY_DAY = {
    "product": (lambda m, x: m @ x, [of(8, 8), of(8)]),
    "layer norm of a product": (lambda m, x: layer_norm(m @ x), [of(32, 32), of(32)]),
    "several products": (products, [of(19)] * 3),
    "several large products": (products, [of(900)] * 3),
    "product, large": (lambda m: layer_norm(m @ m[0]), [of(32, 32)]),
    "float16": (layer_norm, [of(32, dtype=F16)]),
    "exp": (jnp.exp, [of(3)]),
    "integers": (lambda x, y: (x / 7 + y, x // 3), [INT, of(4)]),
    "large and small": (lambda x, y: (x.sum() * y, jnp.tanh(x)[:3] + y, (x * x).mean() - y * y), [of(600), of(3)]),
    "slice": (lambda x, i: lax.dynamic_slice(jnp.tanh(x), (i[0] % 10,), (5,)).sum(), [of(20), INT]),
}
ELEMENTWISE = {
    "sin": jnp.sin,
    "log": lambda x: jnp.log(jnp.abs(x)),
    "tanh": jnp.tanh,
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x)),
    "erf": lax.erf,
    "power": lambda x: jnp.abs(x) ** 1.7,
    "gelu": jax.nn.gelu,
    "lgamma": lax.lgamma,
    "root": lambda x: lax.fori_loop(0, 7, lambda i, y: 0.5 * (y + (jnp.abs(x) + 1) / y), jnp.ones_like(x)),
}
REDUCTIONS = {"sum": jnp.sum, "variance": jnp.var, "layer norm": layer_norm, "softmax": jax.nn.softmax}
BY_NIGHT = {
    **{f"{k} of {n}": (f, [of(n)]) for k, f in REDUCTIONS.items() for n in (3, 8, 31, 32, 33, 257, 1000)},
    **{f"{k} of {n}": (f, [of(*n)]) for k, f in ELEMENTWISE.items() for n in ((), (3,), (17,), (64,))},
    **{f"product of {n}": (lambda m, x: m @ x, [of(n, n), of(n)]) for n in (16, 32, 64, 128)},
    **{f"network of {n}": (lambda m, x: jax.nn.softmax(layer_norm(m @ x)), [of(n, n), of(n)]) for n in (8, 64)},
    **{f"product of two {n}": (lambda a, b: jnp.tanh(a @ b), [of(n, n), of(n, n)]) for n in (8, 64)},
    **{f"layer norm, {d.__name__}": (layer_norm, [of(32, dtype=d)]) for d in (BF16, F64)},
    **{
        f"network, {d.__name__}": (lambda m, x: jnp.tanh(m @ x), [of(9, 9, dtype=d), of(9, dtype=d)])
        for d in (F16, BF16, F64)
    },
    **{f"sum of exp, {d.__name__}": (lambda x: jnp.exp(x).sum(), [of(50, dtype=d)]) for d in (F16, BF16, F64)},
    "two dtypes": (lambda x, y: (x.astype(np.float32) * y).sum().astype(F16) * x, [of(20, dtype=F16), of(20)]),
    "f64 and f32": (lambda x, y: (x.astype(np.float32) * y).sum().astype(F64) * x, [of(20, dtype=F64), of(20)]),
    "complex": (lambda x, y: jnp.abs(jnp.exp(lax.complex(x, y))), [of(10)] * 2),
    "dot": (lambda x, y: x @ y, [of(50)] * 2),
    "outer": (lambda x, m: jnp.outer(x, jnp.cos(x)) @ m @ x, [of(32), of(32, 32)]),
    "attention": (attention, [of(6, 8)] * 3),
    "large attention": (attention, [of(30, 32)] * 3),
    "einsum": (lambda a, b, c: jnp.einsum("ij,jk,kl->il", a, b, c), [of(5, 6), of(6, 7), of(7, 4)]),
    "batched": (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [of(3, 5, 6), of(3, 6, 7)]),
    "convolution": (
        lambda x, k: lax.conv_general_dilated(x[None, None], k[None, None], (1, 1), "SAME"),
        [of(12, 12), of(3, 3)],
    ),
    "cumulative": (lambda x: (jnp.cumsum(x), lax.cumlogsumexp(x)), [of(50)]),
    "sort": (lambda x: (jnp.sort(x), jnp.argsort(x), lax.top_k(jnp.exp(x), 5)), [of(20)]),
    "chain": (chain, [of(17)] * 2),
    "sum of a chain": (lambda x, y: chain(x, y).sum(), [of(17)] * 2),
    "scalars": (lambda x, y, z: (x * y + z, jnp.exp(x) - y, jnp.sqrt(jnp.abs(x * y)) / z), [of()] * 3),
    "integer sums": (lambda x: (x * 3 // 7, x.sum(), x ^ (x >> 3)), [INT]),
    "scan": (scan, [of(5, 16), of(16, 16)]),
    "while": (loop, [of(16)]),
    "cond": (lambda x: lax.cond(x.sum() > 0, jax.nn.softmax, lambda x: layer_norm(jnp.exp(x)), x), [of(16)]),
    "gather": (lambda x, i: jnp.exp(x)[i % 20], [of(20), INT]),
    "scatter": (lambda x, i: jnp.zeros(8).at[i % 8].add(x), [of(4), INT]),
    "table": (lambda t, i: jnp.exp(t)[i % 2000].sum(), [of(2000), INT]),
    "rows of a table": (lambda t, i: layer_norm(t[i % 200].sum(0)), [of(200, 16), INT]),
    "several outputs": (lambda x, m: (x.sum(), m @ x, m.sum(0) * x.var(), m), [of(16), of(16, 16)]),
    "what is shared": (lambda x, m: layer_norm((m / m.sum(0, keepdims=True)) @ layer_norm(x)), [of(16), of(16, 16)]),
    "what is shared, large": (
        lambda x, m: layer_norm((m / m.sum(0, keepdims=True)) @ layer_norm(x)),
        [of(40), of(40, 40)],
    ),
    "cosine": (lambda x, m: (m @ x) / (jnp.linalg.norm(x) * jnp.linalg.norm(m, axis=1)), [of(48), of(10, 48)]),
    "cholesky": (lambda m: jnp.linalg.cholesky(m @ m.T + 4 * jnp.eye(6)), [of(6, 6)]),
    "solve": (lambda m, x: jnp.linalg.solve(m, x), [of(6, 6), of(6)]),
    "fft": (lambda x: jnp.abs(jnp.fft.rfft(x)), [of(32)]),
    "gradient": (jax.grad(lambda x, m: jax.nn.softmax(jnp.tanh(m @ x))[0]), [of(16), of(16, 16)]),
    "normal": (drawn(lambda key, x: jax.random.normal(key, (32,)) * x), [KEY, of(32)]),
    "categorical": (drawn(jax.random.categorical), [KEY, of(32)]),
    "gamma": (drawn(lambda key, x: jax.random.gamma(key, jnp.abs(x) + 0.5)), [KEY, of(4)]),
    "large matrices": (lambda a, b: jax.nn.softmax(jnp.tanh(a @ b) + a, axis=0), [of(64, 64)] * 2),
    "sums of a matrix": (lambda a: (a.sum(0), a.sum(1), a.mean(), a.max(), (a * a).sum()), [of(64, 64)]),
}
SEGMENTS = BY_DAY | BY_NIGHT


class Bits:
    """The bits of a segment's outputs, as lanes are given them."""

    def __init__(self, program, inputs):
        self.x64 = any(i.dtype == F64 for i in inputs)
        with jax.enable_x64(self.x64):
            nodes = arrange(simplify(lower(jax.make_jaxpr(program)(*inputs)))).nodes
        (self.segment,) = nodes
        assert isinstance(self.segment, ir.Segment)
        self.runners = {}

    def __call__(self, args, shared, lanes):
        once = given_once(self.segment, shared)
        if once not in self.runners:
            self.runners[once] = SegmentRunner(self.segment, once, self.x64)
        args = [args[v] for v in self.segment.inputs]
        common = [a[0] for a, o in zip(args, once, strict=True) if o]
        outs = self.runners[once].run(common, [a[lanes] for a, o in zip(args, once, strict=True) if not o], len(lanes))
        return np.concatenate([np.ascontiguousarray(o).reshape(len(lanes), -1).view(np.uint8) for o in outs], axis=1)


def values(aval, lanes):
    random = np.random.default_rng(0)
    if np.issubdtype(aval.dtype, np.integer):
        return random.integers(0, 1000, (lanes, *aval.shape)).astype(aval.dtype)
    return random.normal(size=(lanes, *aval.shape)).astype(aval.dtype)


def check(name):
    program, inputs = SEGMENTS[name]
    bits = Bits(program, inputs)
    most = max(COMPANIES)
    args = [values(i, most) for i in inputs]
    for shared in itertools.product((False, True), repeat=len(inputs)):
        if not NIGHTLY and 1 < sum(shared) < len(inputs):
            continue
        given = [np.broadcast_to(a[:1], a.shape) if s else a for a, s in zip(args, shared, strict=True)]
        # alone, and with everything of its own
        alone = [bits(given, [False] * len(inputs), [i]) for i in (range(ALONE) if not all(shared) else [0])]
        for company in COMPANIES:
            together = bits(given, shared, list(range(company)))
            n = min(company, len(alone))
            np.testing.assert_array_equal(together[:n], np.concatenate(alone[:n]), f"{shared}, {company} lanes")


@pytest.mark.parametrize("name", BY_DAY)
def test_bits_are_those_of_a_lane_alone(name):
    check(name)


@pytest.mark.parametrize("name", ["several products", "slice"])
def test_bits_of_small_inputs_given_once_as_large_ones_are(name, monkeypatch):
    monkeypatch.setattr(segments, "_SMALL", 0)
    check(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", BY_NIGHT)
def test_bits_are_those_of_a_lane_alone_for_many_kinds_of_segments(name):
    check(name)


@pytest.mark.nightly
def test_bits_of_a_full_buffer():
    bits = Bits(chain, [of(17)] * 2)
    args = [values(of(17), CAPACITIES[-1])] * 2
    together = bits(args, [False, False], list(range(CAPACITIES[-1])))
    for lane in range(0, CAPACITIES[-1], 50):
        np.testing.assert_array_equal(bits(args, [False, False], [lane])[0], together[lane])


@pytest.mark.parametrize("size", [8, 40])
@pytest.mark.parametrize("axes", list(itertools.product((0, None), repeat=2)))
def test_bits_that_the_host_sees_do_not_depend_on_what_is_shared(axes, size):
    seen = ember.host(lambda x: x.view(np.uint32), out=jax.ShapeDtypeStruct((size,), jnp.uint32))
    run = ember.jit(lambda m, x: seen(layer_norm(m @ seen(jnp.tanh(m @ x)).astype(jnp.float32))))
    m, x = values(of(size, size), 1)[0], values(of(size), 1)[0]
    with ember.session():
        alone = run(m, x)
    spread = [x if a is None else np.broadcast_to(x, (9, *x.shape)) for x, a in zip((m, x), axes, strict=True)]
    with ember.session():
        together = jax.vmap(run, axes, axis_size=9)(*spread)
    np.testing.assert_array_equal(together, np.broadcast_to(alone, (9, size)))
