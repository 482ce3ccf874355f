"""The smallest numeric decisions that learn: linear in the features of the words."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import Text, features
from ._members import whole


class LinearRule(eqx.Module):
    """A router's rule that learns: logits that are linear in `ember.features` of the question.

    **Arguments:**

    - `members`: how many members there are to choose from.
    - `dim`: the number of features.

    Weights begin at zero, where every member is as likely as any other. They need not be random, as a linear rule has
    no symmetry to break.
    """

    weight: Float[Array, "members dim"]
    bias: Float[Array, "members"]

    def __init__(self, members: int, dim: int = 256):
        self.bias = jnp.zeros(whole(members, "LinearRule", "members"))
        self.weight = jnp.zeros((len(self.bias), whole(dim, "LinearRule", "dim")))

    def __call__(self, question: Text) -> Float[Array, "members"]:
        return self.weight @ features(question, self.weight.shape[1]) + self.bias


class LinearScorer(eqx.Module):
    """A cascade's scorer that learns: linear in `ember.features` of the question and of the answer.

    **Arguments:**

    - `dim`: the number of features of each.

    Weights begin at zero. The result is a log-odds: with thresholds at 0 and a `temperature` of 1, a cascade accepts
    with the probability whose log-odds it is.
    """

    weight: Float[Array, "2 dim"]
    bias: Float[Array, ""]

    def __init__(self, dim: int = 256):
        self.weight = jnp.zeros((2, whole(dim, "LinearScorer", "dim")))
        self.bias = jnp.zeros(())

    def __call__(self, question: Text, answer: Text) -> Float[Array, ""]:
        dim = self.weight.shape[1]
        return self.weight[0] @ features(question, dim) + self.weight[1] @ features(answer, dim) + self.bias
