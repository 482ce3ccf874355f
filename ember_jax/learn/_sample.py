"""A discrete decision that gradients can be taken of.

Design note. A draw has no derivative, but its log-probability has one. Both are results of one `jax.jit`, which is
recognised by its name. So `learn.value_and_grad` finds every draw of a program, with its log-probability beside it, in
the jaxpr that JAX derives of the program: through branches, loops and nested operators, and without anything that the
program would have to pass along. If nobody takes a gradient, the second result is unused, and JAX drops it.
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

    It draws what `jax.random.categorical` draws, but `learn.value_and_grad` recognises it.

    **Arguments:**

    - `logits`: `float[n]`, unnormalised log-probabilities; `-inf` for what is never drawn.
    - `key`: a PRNG key; equal keys draw the same.

    **Returns:** int32 from 0 to n - 1. Its derivative is zero.

    Logits of which one is NaN, or of which all are `-inf`, are no distribution. Concrete ones raise. Traced ones cannot
    be looked at: the index that is drawn then means nothing and its log-probability is NaN (as it is if a logit is
    `+inf`), and so are the value and the gradient that `learn.value_and_grad` finds.

    **Raises:** `TypeError` for logits of another rank or of integers, and for a `key` that is none; `ValueError` for
    concrete logits that are no distribution.
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 1 or not logits.shape[0] or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"learn.sample takes float logits of rank 1, one for each decision, not {logits.dtype}"
            f"{list(logits.shape)}. For several draws, `jax.vmap(learn.sample)(logits, keys)`."
        )
    # `not … > -inf` rather than `… == -inf`: the maximum is NaN if any logit is, and NaN is not above -inf either.
    if not is_tracer(logits) and not np.max(np.asarray(logits)) > -np.inf:
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
