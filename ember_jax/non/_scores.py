"""Scores of candidates, and which candidates may be chosen."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import LLM, Key, Text
from ._grader import Grader
from ._members import Member, as_member, ask, for_each, for_role, number_of


def as_scorer(scorer: Member, construct: str, argument: str, sampled: bool = False) -> Member:
    """A scorer, checked; an LLM becomes a `Grader`, with `sampled` as given."""
    if isinstance(scorer, LLM):
        return Grader(scorer, sampled=sampled)
    return as_member(scorer, construct, argument, "question", "answer")


def scores(scorer: Member, question: Text, candidates: Text, key: Key | None, place: str) -> Float[Array, "n"]:
    """The scores of candidates `Text["n"]`, all asked for at once. A single candidate wins anyway, so it is not scored.

    Every construct gives its scorer the same keys, so constructs over equal members, scorers and keys share the scores.

    **Raises:** `TypeError` for a scorer that does not return one number; it names the scorer's place in its construct.
    """
    if len(candidates) == 1:
        return jnp.zeros(1)
    keys = for_each(for_role(key, "scorer"), len(candidates))
    return jax.vmap(lambda candidate, key: score(scorer, question, candidate, key, place))(candidates, keys)


def score(scorer: Member, question: Text, answer: Text, key: Key, place: str) -> Float[Array, ""]:
    """The score of one answer.

    **Raises:** what `scores` raises.
    """
    return number_of(ask(scorer, question, answer, key=key), place, "; a model scores as `non.Grader(llm)`")


def pool(candidates: Text, accepted: Bool[Array, "n"] | bool = True) -> Bool[Array, "n"]:
    """Which candidates may be chosen: those that are accepted, or all if none is accepted; but none
    that failed. If all failed, all are false."""
    present = candidates == candidates  # false for failed text, which equals nothing
    accepted = present & accepted
    return jnp.where(jnp.any(accepted), accepted, present)
