"""`ember.jit(jax.vmap(f))` gives what `jax.vmap(f)` gives, and lanes their own branches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax._jax.internals import mapped

asked = []


async def echo(x):
    asked.append(float(x))
    return x


call = ember.host(echo, out=jax.ShapeDtypeStruct((), jnp.float32), pure=False)
XS = jnp.arange(-3.0, 3.0)


def branch(x, y):
    return jax.lax.cond(x > 0, lambda: call(x) * y, lambda: y)


def numbers(x, y):
    return {"sum": x + y, "product": x * y}


MAPPED = {
    "one axis": (lambda f: jax.vmap(f), (XS, XS)),
    "one argument": (lambda f: jax.vmap(f, (0, None)), (XS, jnp.float32(2))),
    "other axes": (lambda f: jax.vmap(jax.vmap(f, (0, None)), (1, None), 1), (XS.reshape(2, 3), jnp.float32(2))),
    "nested": (lambda f: jax.vmap(jax.vmap(f)), (XS.reshape(2, 3), XS.reshape(2, 3))),
    "a name": (lambda f: jax.vmap(f, axis_name="lane"), (XS, XS)),
    "a size": (lambda f: jax.vmap(f, axis_size=6), (XS, XS)),
    "a partial inside": (lambda f: jax.vmap(functools.partial(f, y=jnp.float32(3))), (XS,)),
}


@pytest.mark.parametrize("name", MAPPED)
def test_values_are_those_of_vmap(name):
    how, args = MAPPED[name]
    assert mapped(how(numbers)) is not None
    found, wanted = ember.jit(how(numbers))(*args), how(numbers)(*args)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("name", MAPPED)
def test_lanes_make_only_the_calls_of_their_branches(name):
    how, args = MAPPED[name]
    asked.clear()
    jax.block_until_ready(ember.jit(how(branch))(*args))
    assert sorted(asked) == [1.0, 2.0]


@pytest.mark.parametrize(
    "fn", [numbers, jax.jit(numbers), jax.jit(jax.vmap(numbers)), lambda x: jax.vmap(numbers)(x, x), abs, jnp.sin]
)
def test_what_is_no_vmap_is_left_alone(fn):
    assert mapped(fn) is None


def test_gradients_go_through():
    loss = lambda x: ember.jit(jax.vmap(branch))(x, x).sum()
    np.testing.assert_allclose(jax.grad(loss)(XS), jnp.where(XS > 0, XS, 1.0))
