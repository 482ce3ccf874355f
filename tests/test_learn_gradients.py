"""Gradients of expected losses: closed forms in plain JAX, by enumeration exactly and by score within four errors."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import learn

Vector = Float[Array, "3"]
Number = Float[Array, ""]
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
KEY = jax.random.key(0)
XS = jnp.array([0.7, -1.3])

made = []


def _price(member, x):
    made.append((int(member), round(float(x), 4)))
    return float(price_of(int(member), float(x)))


def price_of(member, x):
    """What a member says of a number."""
    return (member + 1) * 0.5 + x * (member - 1)


price = ember.host(_price, out=SCALAR)


@pytest.fixture(autouse=True)
def _():
    made.clear()
    with ember.session(journal=None):
        yield


# -- programs, and every way they may go in plain JAX: its probability and its result --------------------------------


def known(member, x):
    return jax.lax.stop_gradient(price_of(member, x))


class Router(ember.Operator):
    """Picks one of three; only the picked one is called."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        chosen = learn.sample(self.w * x, key)
        return jax.lax.switch(chosen, [lambda i=i: price(i, x) * self.w[i] for i in range(3)])


def of_router(w, x):
    return [(p, known(i, x) * w[i]) for i, p in enumerate(jax.nn.softmax(w * x))]


class Gate(ember.Operator):
    """Stops, or goes on to draw again, in one branch only, with the same key."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        draft = price(0, x)
        go_on = learn.sample(jnp.stack([self.w[0], draft * self.w[1]]), jax.random.fold_in(key, 1))
        more = lambda: price(learn.sample(self.w, key), x) + self.w[2]
        less = lambda: draft * (1 + learn.sample(self.w[:2], key))
        return jax.lax.cond(go_on == 1, more, less)


def of_gate(w, x):
    draft = known(0, x)
    less, more = jax.nn.softmax(jnp.stack([w[0], draft * w[1]]))
    return [
        *((more * p, known(i, x) + w[2]) for i, p in enumerate(jax.nn.softmax(w))),
        *((less * p, draft * (1 + i)) for i, p in enumerate(jax.nn.softmax(w[:2]))),
    ]


class Walk(ember.Operator):
    """Draws at each of three steps, depending on where the last one led."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        def step(at, key):
            moved = learn.sample(jnp.stack([self.w[0] * at, self.w[1]]), key)
            at = jax.lax.cond(moved == 1, lambda: price(2, at) * 0.5, lambda: at + self.w[2])
            return at, at * at

        last, squares = jax.lax.scan(step, x, jax.random.split(key, 3))
        return last + 0.1 * squares.sum()


def of_walk(w, x):
    ways = []
    for moves in itertools.product([0, 1], repeat=3):
        weight, at, squares = 1.0, x, 0.0
        for moved in moves:
            weight = weight * jax.nn.softmax(jnp.stack([w[0] * at, w[1]]))[moved]
            at = known(2, at) * 0.5 if moved else at + w[2]
            squares = squares + at * at
        ways.append((weight, at + 0.1 * squares))
    return ways


class Nested(ember.Operator):
    """Draws, and asks an operator that draws, under `jax.jit` and `jax.checkpoint`."""

    router: Router

    def forward(self, x: Number, key: ember.Key) -> Number:
        first, second, third = jax.random.split(key, 3)
        flip = learn.sample(self.router.w[:2], first)
        one = jax.jit(self.router)(x, second)
        again = jax.checkpoint(lambda x, key: self.router(x, key))
        return jax.lax.cond(flip == 0, lambda: one + again(x + 1, third), lambda: one * one)


def of_nested(w, x):
    flip, first, second = jax.nn.softmax(w[:2]), of_router(w, x), of_router(w, x + 1)
    return [
        *((flip[0] * p * q, a + b) for p, a in first for q, b in second),
        *((flip[1] * p, a * a) for p, a in first),
    ]


def _risky(member, x):
    if member == 1 or x < -1:
        raise ValueError("no answer")
    return _price(member, x)


risky = ember.host(_risky, out=SCALAR)


class Risky(ember.Operator):
    """Fails where the drawn member does, and before any draw for some numbers."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        draft = risky(0, x)
        chosen = learn.sample(self.w * draft, key)
        return risky(chosen, x + 1.5) * self.w[2]


class Attempted(ember.Operator):
    risky: Risky

    def forward(self, x: Number, key: ember.Key) -> Number:
        out, ok = ember.attempt(self.risky)(x, key)
        return jnp.where(ok, out, 3.0)


def of_attempted(w, x):
    if x < -1:
        return [(1.0, 3.0)]
    chosen = jax.nn.softmax(w * known(0, x))
    return [(p, known(i, x + 1.5) * w[2] if i != 1 else 3.0) for i, p in enumerate(chosen)]


class Several(ember.Operator):
    """Lanes that each pick their own way."""

    gate: Gate

    def forward(self, x: Number, key: ember.Key) -> Number:
        return jax.vmap(self.gate)(jnp.stack([x, x + 1]), jax.random.split(key)).sum()


class SeveralInline(Several):
    def forward(self, x: Number, key: ember.Key) -> Number:
        return jax.vmap(self.gate.forward)(jnp.stack([x, x + 1]), jax.random.split(key)).sum()


def of_several(w, x):
    return [(p * q, a + b) for (p, a), (q, b) in itertools.product(of_gate(w, x), of_gate(w, x + 1))]


W = jnp.array([0.3, -0.4, 0.6])
PROGRAMS = {
    "gate": (Gate, of_gate),
    "walk": (Walk, of_walk),
    "nested": (lambda w: Nested(Router(w)), of_nested),
    "attempted": (lambda w: Attempted(Risky(w)), of_attempted),
    "several": (lambda w: Several(Gate(w)), of_several),
    "several inline": (lambda w: SeveralInline(Gate(w)), of_several),
}


def loss(op, x, key):
    return (op(x, key) - 1.0) ** 2


def expected(ways, w, xs=XS):
    """The expected loss by hand."""
    return jnp.mean(jnp.stack([sum(p * (y - 1.0) ** 2 for p, y in ways(w, x)) for x in xs]))


def flat(grads):
    """The gradient by `W`, of which every array of an operator is made."""
    return sum(jax.tree.leaves(grads))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if "several" not in name])
def test_enumeration_is_exact(name):
    make, ways = PROGRAMS[name]
    value, grads = jax.jit(learn.value_and_grad(loss, estimator="enumerate"))(make(W), (XS,), KEY)
    wanted, slope = jax.value_and_grad(lambda w: expected(ways, w))(W)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(flat(grads), slope, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", PROGRAMS)
def test_scores_are_unbiased(name):
    make, ways = PROGRAMS[name]
    step = learn.value_and_grad(loss, samples=4)
    values, grads = jax.jit(jax.vmap(lambda key: step(make(W), (XS,), key)))(jax.random.split(KEY, 300))
    found = np.concatenate([values[:, None], flat(grads)], axis=1)
    value, slope = jax.value_and_grad(lambda w: expected(ways, w))(W)
    error = found.std(0) / np.sqrt(len(found))
    z = (found.mean(0) - np.array([value, *slope])) / error
    assert np.all(np.abs(z) < 4), z
    assert np.all(error[1:] < 0.2 * np.linalg.norm(slope))  # which a gradient of zero would fail
