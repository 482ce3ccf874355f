"""The most common answer."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import Key, Operator, Text, errors, text
from .. import normalize as normalized
from ._ensemble import Ensemble, ensemble
from ._members import Members, numbers, shown
from ._scores import pool


def votes(answers: Text, weights: Float[Array, "n"] | None = None) -> Float[Array, "n"]:
    """The votes for each answer: the sum of the weights of all answers that are equal to it, `float[n]`.

    **Arguments:**

    - `answers`: a Text of rank 1, or a list of strings. Failed text has no votes.
    - `weights`: `float[n]`, one for each answer; by default 1. The votes are differentiable in them.

    **Raises:** `ValueError` for answers of another rank and for another number of weights.
    """
    answers = text(answers)
    if answers.ndim != 1:
        raise ValueError(f"non.votes counts the answers of a Text of rank 1, not of shape {list(answers.shape)}.")
    equal = answers.reshape(-1, 1) == answers.reshape(1, -1)
    return jnp.sum(jnp.where(equal, _each(weights, len(answers)), 0.0), axis=1)


def _each(weights: Float[Array, "n"] | None, count: int) -> Float[Array, "n"]:
    weights = jnp.ones(count) if weights is None else jnp.asarray(weights)
    # One weight would broadcast without a word, and a wrong number of them would raise JAX's error, which knows no
    # votes.
    if weights.shape != (count,):
        raise ValueError(
            f"a vote over {count} answers has weights of shape {list(weights.shape)}; give one for each answer."
        )
    return weights


def log_odds(accuracy: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The weights that make a vote of independent members most often right: log(p / (1 - p)) for a member of accuracy
    p.

    They are the best weights for binary answers (Nitzan and Paroush, 1982).
    """
    accuracy = jnp.asarray(accuracy, float)
    return jnp.log(accuracy) - jnp.log1p(-accuracy)


def winner(
    answers: Text, weights: Float[Array, "n"] | None, normalize: str | None, accepted: Bool[Array, "n"] | bool = True
) -> Text:
    """The accepted answer with the most votes, or the answer with the most if none is accepted; the first among equals.
    Only answers that may win vote."""
    among = pool(answers, accepted)
    compared = answers if normalize is None else normalized(answers, normalize)
    counted = votes(compared, jnp.where(among, _each(weights, len(answers)), 0.0))
    # -inf for the answers that are out. They have no votes, but 0 is more than an answer with negative weights may
    # have.
    return answers[jnp.argmax(jnp.where(among, counted, -jnp.inf))]


def normalizer(how: str | None, construct: str) -> str | None:
    """The `normalize` of a construct, checked.

    **Raises:** `TextError` for a normalisation that `ember.normalize` does not know.
    """
    if how is not None:
        try:
            _normalizes(how)
        except (errors.TextError, TypeError) as error:
            raise errors.TextError(f"{construct}(normalize={shown(how)}): {error} Or None.") from None
    return how


@functools.cache
def _normalizes(how: str) -> None:
    # `eval_shape` runs the check and nothing else. A plain call would become part of the program if the construct is
    # made while JAX traces.
    jax.eval_shape(lambda: normalized("", how))


def weights_of(weights: Any, construct: str) -> Float[Array, "n"] | None:
    """The `weights` of a construct, checked. How many there must be is known only when the construct is called.

    **Raises:** `TypeError` for weights that are no numbers, `ValueError` for another rank than 1.
    """
    found = None if weights is None else numbers(weights, construct, "weights")
    if found is not None and found.ndim != 1:
        raise ValueError(f"{construct}(weights=…) has shape {list(found.shape)}; give one number for each answer.")
    return found


class Vote(Operator):
    """The answer that most members give; the first given among equals.

    ```python
    op = non.Vote(ember.LLM("sim/small"), n=5)
    op = non.Vote([cheap, other, dear], weights=non.log_odds(jnp.array([0.6, 0.65, 0.8])))
    ```

    **Arguments:**

    - `members`, `n`: as of an `Ensemble`, or an `Ensemble`.
    - `normalize`: how answers are brought to one form before they are compared, see `ember.normalize`; `None` compares
        them as they are.
    - `weights`: `float[n]`, one for each answer; by default all are equal.

    The answer is returned as the member gave it, not normalised. `choose` makes the same decision for answers that are
    given.

    **Raises:** what an `Ensemble` raises; `TextError` for an unknown normalisation; `ValueError` for weights of another
    rank than 1 and, when it is called, if there are not as many weights as answers.
    """

    members: Ensemble
    weights: Float[Array, "n"] | None
    normalize: str | None = eqx.field(static=True)

    def __init__(
        self, members: Members, n: int = 1, normalize: str | None = "answer", weights: Float[Array, "n"] | None = None
    ):
        self.members = ensemble(members, n, "Vote")
        self.normalize, self.weights = normalizer(normalize, "Vote"), weights_of(weights, "Vote")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        return self.choose(self.members(question, key))

    def choose(self, answers: Text) -> Text:
        """The winner among answers of rank 1."""
        return winner(answers, self.weights, self.normalize)
