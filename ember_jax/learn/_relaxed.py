"""Relaxed choices: in place of a draw a point of the simplex, at or near a corner, which has a derivative.

They suit a choice among numbers, which can be mixed. A call is made or is not made, so a decision about calls has to be
a `learn.sample`. Gradients of relaxed choices are biased, and often have a low variance.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key


def straight_through(logits: Float[Array, "*b n"], key: Key) -> Float[Array, "*b n"]:
    """Draws one of n, as a one-hot vector, whose derivative is that of the softmax.

    ??? cite

        Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013, arXiv 1308.3432.

    **Arguments:**

    - `logits`: unnormalised log-probabilities, over the last axis.
    - `key`: a PRNG key.

    **Returns:** an array of the shape and dtype of `logits`: exactly 1.0 at the index that was drawn, 0.0 elsewhere.
    """
    return _hard(jax.random.categorical(key, logits), logits)


@jax.custom_jvp
def _hard(index: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.nn.one_hot(index, logits.shape[-1], dtype=logits.dtype)


@_hard.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return _hard(*primals), jax.jvp(jax.nn.softmax, primals[1:], tangents[1:])[1]


def gumbel_softmax(logits: Float[Array, "*b n"], key: Key, temperature: float = 1.0) -> Float[Array, "*b n"]:
    """Draws a point of the simplex, nearer to a corner the lower the temperature: the concrete distribution.

    ??? cite

        Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", 2016, arXiv 1611.01144; Maddison, Mnih
        and Teh, "The Concrete Distribution", 2016, arXiv 1611.00712.

    **Arguments:**

    - `logits`: unnormalised log-probabilities, over the last axis.
    - `key`: a PRNG key. The largest entry is where `learn.sample` of the same key draws, at any temperature.
    - `temperature`: above 0, may be traced.

    **Returns:** an array of the shape of `logits`, whose entries are positive and add up to 1 over the last axis.
    """
    noisy = logits + jax.random.gumbel(key, jnp.shape(logits), jnp.result_type(logits))
    return jax.nn.softmax(noisy / jnp.asarray(temperature, noisy.dtype))
