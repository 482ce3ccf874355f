"""Scores of candidates, and who is chosen among for them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import LLM, Key, Text
from ._grader import Grader
from ._members import Member, as_tuple, ask, for_each, for_role


def as_scorer(scorer: Member, construct: str, sampled: bool) -> Member:
    """A scorer as it is; an LLM as a `Grader`, which says what the model said if `sampled`."""
    return Grader(scorer, sampled=sampled) if isinstance(scorer, LLM) else as_tuple((scorer,), construct)[0]


def scores(scorer: Member, question: Text, candidates: Text, key: Key | None) -> Float[Array, "n"]:
    """What a scorer gives to each candidate, all at once; a single one has nobody to win against and is not scored.

    Every construct asks with the same keys: those over equal members, scorers and keys share the scores.

    **Raises:** `TypeError` for a scorer that returns no number.
    """
    if len(candidates) == 1:
        return jnp.zeros(1)
    keys = for_each(for_role(key, "scorer"), len(candidates))
    return jax.vmap(lambda candidate, key: score(scorer, question, candidate, key))(candidates, keys)


def score(scorer: Member, question: Text, answer: Text, key: Key) -> Float[Array, ""]:
    """What a scorer gives to one answer.

    **Raises:** `TypeError` for a scorer that returns no number.
    """
    value = ask(scorer, question, answer, key=key)
    if isinstance(value, Text) or jnp.shape(value):
        raise TypeError(
            f"a scorer returns one float for an answer, and {scorer!r:.60} returned {value!r:.60}. To let a model "
            "score, `non.Grader(llm)`."
        )
    return jnp.asarray(value, jnp.result_type(float))


def pool(candidates: Text, accepted: Bool[Array, "n"] | bool = True) -> Bool[Array, "n"]:
    """Who is chosen among: the accepted, or all if none is; never what failed, unless all failed."""
    present = candidates == candidates
    accepted = present & accepted
    return jnp.where(jnp.any(accepted), accepted, present)
