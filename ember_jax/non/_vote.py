"""The most common answer."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import Key, Operator, Text
from .. import normalize as normalized
from ._ensemble import Ensemble, ensemble
from ._members import Member, given
from ._scores import pool


def votes(answers: Text, weights: Float[Array, "n"] | None = None) -> Float[Array, "n"]:
    """What each answer has: the sum of the weights of all that are equal to it.

    **Arguments:**

    - `answers`: of rank 1. Failed text has nothing.
    - `weights`: `float[n]`, one for each answer; 1 where not given. Differentiable.

    **Raises:** `ValueError` for another number of weights.
    """
    equal = answers.reshape(-1, 1) == answers.reshape(1, -1)
    return jnp.sum(jnp.where(equal, _each(weights, len(answers)), 0.0), axis=1)


def _each(weights: Float[Array, "n"] | None, count: int) -> Float[Array, "n"]:
    weights = jnp.ones(count) if weights is None else jnp.asarray(weights)
    if weights.shape != (count,):  # one weight would broadcast, and several fail without a word of votes
        raise ValueError(
            f"a vote over {count} answers has weights of shape {list(weights.shape)}; give one for each answer."
        )
    return weights


def log_odds(accuracy: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The weights that make a vote of independent members with such accuracies most often right: log(p / (1 - p)).

    For binary answers; Nitzan and Paroush, 1982.
    """
    return jnp.log(accuracy) - jnp.log1p(-jnp.asarray(accuracy))


def winner(
    answers: Text, weights: Float[Array, "n"] | None, normalize: str | None, accepted: Bool[Array, "n"] | bool = True
) -> Text:
    """The answer with the most votes of those that are accepted, of all if none is; the first given among equals."""
    among = pool(answers, accepted)
    compared = answers if normalize is None else normalized(answers, normalize)
    counted = votes(compared, jnp.where(among, _each(weights, len(answers)), 0.0))
    # What is not among them has no votes, which is more than answers may have whose weights are negative.
    return answers[jnp.argmax(jnp.where(among, counted, -jnp.inf))]


class Vote(Operator):
    """The answer that most members give; the first given among equals.

    ```python
    op = non.Vote(ember.LLM("sim/small"), n=5)
    op = non.Vote([cheap, other, dear], weights=non.log_odds(jnp.array([0.6, 0.65, 0.8])))
    ```

    **Arguments:**

    - `members`, `n`: as of an `Ensemble`, or an `Ensemble`.
    - `normalize`: how answers are brought to one form before they are compared, see `ember.normalize`; `None` for not
        at all.
    - `weights`: `float[n]`, of each answer; equal where not given. Another number of them is a `ValueError` when the
        vote is called.

    The answer is returned as it was given. `choose` decides the same for answers that are there already.
    """

    members: Ensemble
    weights: Float[Array, "n"] | None
    normalize: str | None = eqx.field(static=True)

    def __init__(
        self,
        members: Member | list[Member] | tuple[Member, ...],
        n: int = 1,
        normalize: str | None = "answer",
        weights: Float[Array, "n"] | None = None,
    ):
        self.members = ensemble(members, n)
        self.normalize = normalize
        self.weights = None if weights is None else jnp.asarray(weights)

    def forward(self, question: Text, key: Key | None = None) -> Text:
        return self.choose(self.members(question, given(key)))

    def choose(self, answers: Text) -> Text:
        """The winner among answers of rank 1."""
        return winner(answers, self.weights, self.normalize)
