"""The answer with the highest score."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import Key, Operator, Text
from ._ensemble import Ensemble, ensemble
from ._members import Member, Members
from ._scores import as_scorer, pool, scores


class BestOfN(Operator):
    """The answer that a scorer likes best; the first among equals.

    ```python
    op = non.BestOfN(ember.LLM("sim/small"), ember.LLM("sim/large"), n=5)
    op = non.BestOfN([cheap, dear], my_reward)  # an operator of (question, answer) that returns a float
    ```

    **Arguments:**

    - `members`, `n`: as of an `Ensemble`, or an `Ensemble`.
    - `scorer`: an operator of `(question, answer)` or `(question, answer, key)` that returns a float. An LLM scores
        with the probability that it says *correct*, as a `Grader(llm)`.

    An answer whose score is NaN wins only if no answer has a score. Failed text wins only if all answers failed.
    `choose` makes the same decision for answers and scores that are given.

    **Raises:** what an `Ensemble` raises; `TypeError` for a scorer that cannot be called with a question and an answer
    and, when it is called, for one that does not return one number.
    """

    members: Ensemble
    scorer: Member

    def __init__(self, members: Members, scorer: Member, n: int = 1):
        self.members = ensemble(members, n, "BestOfN")
        self.scorer = as_scorer(scorer, "BestOfN", "scorer")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        answers = self.members(question, key)
        return self.choose(answers, scores(self.scorer, question, answers, key, "BestOfN.scorer"))

    def choose(self, answers: Text, scores: Float[Array, "n"]) -> Text:
        """The winner among answers of rank 1 that have such scores."""
        among = pool(answers, ~jnp.isnan(scores))
        # `argmax` of the scores would not do: -inf stands for answers that are out, and an answer that is in may have
        # it as its score too.
        known = jnp.where(among & ~jnp.isnan(scores), scores, -jnp.inf)
        return answers[jnp.argmax(among & (known == jnp.max(known)))]
