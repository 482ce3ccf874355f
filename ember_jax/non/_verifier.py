"""An answer that a verifier accepts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import Key, Operator, Text
from ._ensemble import Ensemble, ensemble
from ._members import Member, Members, for_role
from ._scores import as_scorer, pool, scores


class Verifier(Operator):
    """One of the answers that a verifier accepts, drawn uniformly; if it accepts none, one of all answers.

    ```python
    op = non.Verifier(ember.LLM("sim/small"), ember.LLM("sim/large"), n=3)
    ```

    This is the verifier-based judge of *Networks of Networks*, arXiv 2407.16831: many members propose answers, and a
    verifier tells which are right.

    **Arguments:**

    - `members`, `n`: as of an `Ensemble`, or an `Ensemble`.
    - `verifier`: a scorer, of the question and one answer; it accepts what it scores above 0.5. An LLM accepts what it
        says is correct, as a `Grader(llm, sampled=True)`.

    `choose` makes the same decision for answers and scores that are given.

    **Raises:** what an `Ensemble` raises; `TypeError` for a verifier that cannot be called with a question and an
    answer and, when it is called, for one that does not return one number.
    """

    members: Ensemble
    verifier: Member

    def __init__(self, members: Members, verifier: Member, n: int = 1):
        self.members = ensemble(members, n, "Verifier")
        self.verifier = as_scorer(verifier, "Verifier", "verifier", sampled=True)

    def forward(self, question: Text, key: Key | None = None) -> Text:
        answers = self.members(question, key)
        return self.choose(answers, scores(self.verifier, question, answers, key, "Verifier.verifier"), key)

    def choose(self, answers: Text, scores: Float[Array, "n"], key: Key | None = None) -> Text:
        """One among answers of rank 1, of which those with a score above 0.5 are accepted."""
        logits = jnp.where(pool(answers, scores > 0.5), 0.0, -jnp.inf)
        return answers[jax.random.categorical(for_role(key, "pick"), logits)]
