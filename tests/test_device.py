"""The CPU device that segments run on: nobody else's, and only theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib import xla_client

import ember_jax as ember
from ember_jax._engine import device as devices

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
HOST = ember.host(lambda x: x + 1, SCALAR)


@pytest.fixture
def fresh():
    """The device is made anew, before and after."""
    devices._device.cache_clear()
    yield
    devices._device.cache_clear()


def run():
    """An operator with segments around a call, over lanes, that closes over arrays of the program's own device."""
    committed = jax.device_put(jnp.arange(3.0), jax.devices()[0])
    op = ember.jit(lambda x: jnp.sum(jnp.sin(HOST(x * committed[2])) + committed))
    xs = np.linspace(0, 1, 5, dtype=np.float32)
    out = jax.vmap(op)(xs)
    np.testing.assert_allclose(out, 3 * np.sin(2 * xs + 1) + 3, rtol=1e-5)
    assert out.devices() == {jax.devices()[0]}


def test_it_is_none_of_jaxs_and_the_same_for_ever():
    assert devices.device() not in jax.devices() and devices.device() is devices.device()
    assert devices.device().platform == "cpu"
    run()


@pytest.mark.parametrize("missing", [True, False])
def test_where_none_can_be_made_it_is_jaxs_first(fresh, missing, monkeypatch):
    if missing:
        monkeypatch.delattr(xla_client, "make_cpu_client")
    else:
        monkeypatch.setattr(xla_client, "make_cpu_client", lambda: None)
    assert devices.device() is jax.local_devices(backend="cpu")[0]
    run()
