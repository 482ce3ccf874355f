"""Writes candidates out as a list for a model to read."""

import jax.numpy as jnp
import numpy as np

from .. import Text, host, where


def present(candidates: Text) -> Text:
    """The candidates, each failed one replaced by the first that did not fail. If all failed, all stay failed."""
    there = candidates == candidates  # false for failed text, which equals nothing
    return where(there, candidates, candidates[jnp.argmax(there)])


def listed(candidates: Text) -> Text:
    """The candidates in one Text, one below the other, after `[1]`, `[2]`, …; those that failed are left out."""
    return _listed(present(candidates), candidates == candidates)


async def list_candidates(candidates: list[str], there: np.ndarray) -> str:
    shown = (c for c, is_there in zip(candidates, there, strict=True) if is_there)
    # Every line of a candidate but its first is marked with a bar, so that none looks like the start of another one.
    return "\n".join(f"[{i}] " + "\n  | ".join(c.splitlines()) for i, c in enumerate(shown, 1))


_listed = host(list_candidates, out=Text)
