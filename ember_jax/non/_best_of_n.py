"""The answer with the highest score."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import Key, Operator, Text
from ._ensemble import Ensemble, ensemble
from ._members import Member, Members
from ._scoring import as_scorer, pool, scores


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

    An answer whose score is NaN wins only if no other has a score, one that failed only if all failed. `choose`
    decides the same for answers and scores that are there already.

    **Raises:** what an `Ensemble` does; `TypeError` for a scorer of something else than a question and an answer and,
    when it is called, for one that gives no number.
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
        # Not the place of the maximum itself: a score may be as low as what stands for those that are out.
        known = jnp.where(among & ~jnp.isnan(scores), scores, -jnp.inf)
        return answers[jnp.argmax(among & (known == jnp.max(known)))]
