"""NaN that is a value (an unknown price, a number that is not there) passes JAX's checks; a computed one does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember

FLOAT = jax.ShapeDtypeStruct((), jnp.float32)


@pytest.fixture(autouse=True)
def _checked():
    free = ember.providers.Callable(lambda request: "no number")
    with jax.debug_nans(True), jax.debug_infs(True), ember.session(providers={"sim": free}, journal=None):
        yield


LLM = ember.LLM("sim/small")
broken = ember.host(lambda q: 1 / 0, FLOAT)
endless = ember.host(lambda q: float("inf"), FLOAT)
VALUES = {
    "words": lambda q: LLM(q),
    "cost": lambda q: LLM.complete(q).cost,
    "logprob": lambda q: LLM.complete(q).logprob,
    "no number": lambda q: ember.parse_number(q),
    "no number in an answer": lambda q: ember.parse_number(LLM(q)),
    "usage": lambda q: ember.metered(LLM)(q)[1].cost,
    "failed number": lambda q: ember.attempt(broken)(q)[0],
    "a sum of costs": ember.jit(lambda q: LLM.complete(q).cost + LLM.complete(q + "!").cost),
    "infinity": lambda q: endless(q),
}
FORMS = {
    "eager": lambda f, qs: [np.asarray(f(q)) for q in qs],
    "ember.jit": lambda f, qs: [np.asarray(ember.jit(f)(q)) for q in qs],
    "vmap": lambda f, qs: jax.vmap(f)(qs),
    "vmap of ember.jit": lambda f, qs: jax.vmap(ember.jit(f))(qs),
    "ember.jit of vmap": lambda f, qs: ember.jit(jax.vmap(f))(qs),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VALUES)
def test_nan_from_the_host_is_a_value(name, form):
    found = FORMS[form](VALUES[name], ember.text(["a", "b"]))
    if name == "words":
        assert [str(answer) for answer in found] == ["no number"] * 2
    else:
        expected = np.inf if name == "infinity" else np.nan
        np.testing.assert_array_equal(np.asarray(found), [expected] * 2)


def test_jax_is_told_again_what_it_was(tmp_path):
    LLM(ember.text("q"))
    assert jax.config.jax_debug_nans and jax.config.jax_debug_infs
    with pytest.raises(FloatingPointError):
        jnp.log(-1.0)


@pytest.mark.parametrize("log", [lambda x: jnp.log(x), lambda x: 1 / x - jnp.inf])
def test_what_is_computed_is_checked_beside_a_call(log):
    fn = ember.jit(lambda q, x: (LLM.complete(q), log(x)))
    with pytest.raises(FloatingPointError, match="computed from numbers"):
        fn(ember.text("q"), jnp.float32(-1))
    with pytest.raises(FloatingPointError, match="computed from numbers"):
        ember.jit(log)(jnp.float32(-1))


def test_what_is_saved_is_loaded(tmp_path):
    cost = LLM.complete(ember.text("q")).cost
    ember.save(tmp_path / "cost", {"cost": cost})
    assert np.isnan(ember.load(tmp_path / "cost", {"cost": cost})["cost"])


def test_the_users_own_functions_are_checked_after_an_operator_as_before():
    """In plain JAX a thread that has been in `jax.debug_nans(False)` checks compiled functions no more."""
    log = jax.jit(jnp.log)
    call = ember.host(lambda x: np.float32(np.nan), out=jax.ShapeDtypeStruct((), jnp.float32))
    try:
        jax.config.update("jax_debug_nans", True)
        log(1.0), log(1.0)  # compiled, and on the fast path
        ember.jit(call)(1.0)
        jax.vmap(ember.jit(call))(jnp.ones(2))
        with pytest.raises(FloatingPointError):
            log(-1.0)
    finally:
        jax.config.update("jax_debug_nans", False)
