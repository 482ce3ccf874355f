"""A discrete decision that gradients can be taken of.

Design note. A draw has no derivative; its log-probability has. Both are results of one `jax.jit` that is known by its
name, so a program that draws stays what it was, and whoever differentiates finds, in the jaxpr that JAX derives of any
program, every draw with its log-probability beside it: through branches, loops and nested operators, without anything
being passed along. Where nobody looks for it the second result is unused and costs nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._jax.internals import is_tracer
from .._types import Key, key_problem

# Names the equation of a draw: operands `(logits, key)`, results `(index, log-probability)`.
NAME = "ember_sample"


def sample(logits: Float[Array, "n"], key: Key) -> Int[Array, ""]:
    """Draws a decision: which member, how many samples, stop or go on.

    ```python
    up = learn.sample(self.gate(ember.features(question, 64)), key)
    answer = jax.lax.cond(up == 1, lambda: self.strong(question), lambda: draft)
    ```

    It is `jax.random.categorical`, and `learn.value_and_grad` knows of it.

    **Arguments:**

    - `logits`: `float[n]`, unnormalised log-probabilities; `-inf` for what is never drawn.
    - `key`: a PRNG key; equal keys draw the same.

    **Returns:** int32 from 0 to n - 1. Its derivative is zero.

    Logits of which one is NaN, or all are `-inf`, are no distribution. Where they are known they raise. Inside a
    program the draw says nothing and its log-probability is NaN, as it is beside an infinite logit, and so are the
    value and the gradient that `learn.value_and_grad` finds.

    **Raises:** `TypeError` for logits of another rank or of integers, and for what is no key; `ValueError` for those
    of no distribution, while they are no tracers.
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 1 or not logits.shape[0] or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"learn.sample takes float logits of rank 1, one for each decision, not {logits.dtype}"
            f"{list(logits.shape)}. For several draws, `jax.vmap(learn.sample)(logits, keys)`."
        )
    if not is_tracer(logits) and not np.max(np.asarray(logits)) > -np.inf:  # nor is NaN
        raise ValueError(
            f"learn.sample takes logits that something can be drawn from, not {np.asarray(logits)!s:.80}: none may be "
            "NaN, and one at least is above -inf."
        )
    if problem := key_problem(key):
        raise TypeError(f"learn.sample: `key` is {problem}.")
    return _draw(logits, key)[0]


def _draw(logits: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
    index = jax.random.categorical(key, logits).astype(jnp.int32)
    return index, jax.nn.log_softmax(logits)[index]


_draw.__name__ = _draw.__qualname__ = NAME
_draw = jax.jit(_draw)
