"""Types that stand in annotations."""

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    Key: TypeAlias = jax.Array
else:

    class Key:
        """Annotation for a PRNG key of rank 0: `jax.random.key(0)`, or a legacy `jax.random.PRNGKey(0)`."""


# How many 32-bit words the legacy keys of JAX's implementations have: threefry 2, rbg and unsafe_rbg 4.
LEGACY_KEY_WORDS = (2, 4)


def is_key(value: Any) -> bool:
    """Whether an array, or its type, holds typed PRNG keys."""
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def key_problem(value: Any) -> str | None:
    """What keeps a value from being one PRNG key, or `None`.

    A typed key has rank 0, a legacy one is `uint32[2]` or `uint32[4]`. A key of another shape is often half of one,
    from mapping the wrong axis.
    """
    if not isinstance(value, jax.Array):
        return f"{value!r:.40} of type {type(value).__name__}, not a PRNG key; make one with jax.random.key(0)"
    shape = value.shape
    if is_key(value):
        return f"an array of keys of shape {list(shape)}, not one key; use jax.vmap, or index it" if shape else None
    if value.dtype == "uint32" and len(shape) == 1 and shape[0] in LEGACY_KEY_WORDS:
        return None
    if value.dtype == "uint32" and not shape:
        return "a single word of a legacy key: the wrong axis was mapped. Map the leading axis of uint32[n, 2]"
    return f"{value.dtype}{list(shape)}, not a PRNG key: a key is a typed key of rank 0 or a legacy uint32[2]" + (
        "; use jax.vmap over several" if value.dtype == "uint32" else ""
    )
