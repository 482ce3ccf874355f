"""Scores of candidates, and who is chosen among for them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import LLM, Key, Text
from ._grader import Grader
from ._members import Member, as_member, ask, for_each, for_role, number_of


def as_scorer(scorer: Member, construct: str, argument: str, sampled: bool = False) -> Member:
    """A scorer as it is; an LLM as a `Grader`, which says what the model said if `sampled`."""
    if isinstance(scorer, LLM):
        return Grader(scorer, sampled=sampled)
    return as_member(scorer, construct, argument, "question", "answer")


def scores(scorer: Member, question: Text, candidates: Text, key: Key | None, place: str) -> Float[Array, "n"]:
    """What a scorer gives to each candidate, all at once; a single one has nobody to win against and is not scored.

    Every construct asks with the same keys: those over equal members, scorers and keys share the scores.

    **Raises:** `TypeError`, by the scorer's place in its construct, for one that returns no number.
    """
    if len(candidates) == 1:
        return jnp.zeros(1)
    keys = for_each(for_role(key, "scorer"), len(candidates))
    return jax.vmap(lambda candidate, key: score(scorer, question, candidate, key, place))(candidates, keys)


def score(scorer: Member, question: Text, answer: Text, key: Key, place: str) -> Float[Array, ""]:
    """What a scorer gives to one answer.

    **Raises:** as `scores`.
    """
    return number_of(ask(scorer, question, answer, key=key), place, "; a model scores as `non.Grader(llm)`")


def pool(candidates: Text, accepted: Bool[Array, "n"] | bool = True) -> Bool[Array, "n"]:
    """Who is chosen among: the accepted, or all if none is; never what failed, unless all failed."""
    present = candidates == candidates
    accepted = present & accepted
    return jnp.where(jnp.any(accepted), accepted, present)
