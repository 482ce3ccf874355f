"""Candidates as a model is shown them."""

import jax.numpy as jnp
import numpy as np

from .. import Text, host, where


def present(candidates: Text) -> Text:
    """Candidates of which those that failed are copies of the first that did not; failed only if all are."""
    there = candidates == candidates
    return where(there, candidates, candidates[jnp.argmax(there)])


def listed(candidates: Text) -> Text:
    """Candidates one below the other, after `[1]`, `[2]`, …; those that failed are left out."""
    return _listed(present(candidates), candidates == candidates)


async def list_candidates(candidates: list[str], there: np.ndarray) -> str:
    shown = (c for c, is_there in zip(candidates, there, strict=True) if is_there)
    # Further lines are marked, so that none looks like another candidate.
    return "\n".join(f"[{i}] " + "\n  | ".join(c.splitlines()) for i, c in enumerate(shown, 1))


_listed = host(list_candidates, out=Text)
