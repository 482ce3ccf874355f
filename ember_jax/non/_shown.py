"""How answers are shown to those who judge them or go on from them."""

import jax.numpy as jnp

from .. import Text, format, join, normalize, where


def shown(answers: Text) -> Text:
    """Answers of rank 1 as numbered lines, `[1] …`; failed text is left out, and gives failed text where it is all."""
    there = answers == answers  # failed text equals nothing
    lines = format("[{number}] {answer}\n", number=jnp.cumsum(there), answer=normalize(answers, "space"))
    return where(jnp.any(there), join("", where(there, lines, "")), answers[0])
