"""The most common of the answers that a grader accepts."""

import equinox as eqx
from jaxtyping import Array, Float

from .. import Key, Operator, Text
from ._ensemble import Ensemble, ensemble
from ._members import Member, Members
from ._scores import as_scorer, scores
from ._vote import normalizer, weights_of, winner


class FilterVote(Operator):
    """A vote over the answers that a grader accepts; over all of them if it accepts none.

    ```python
    op = non.FilterVote(ember.LLM("sim/small"), ember.LLM("sim/large"), n=5)
    ```

    Filter-Vote of *Are More LLM Calls All You Need?*, arXiv 2403.02419. A grader that is no better than its members
    makes the vote worse.

    **Arguments:**

    - `members`, `n`: as of an `Ensemble`, or an `Ensemble`.
    - `grader`: a scorer; it accepts what it scores above 0.5. An LLM accepts what it says is correct, as a
        `Grader(llm, sampled=True)`.
    - `normalize`, `weights`: as of a `Vote`.

    The answer is returned as the member gave it, not normalised. `choose` makes the same decision for answers and
    scores that are given.

    **Raises:** what a `Vote` raises; `TypeError` for a grader that cannot be called with a question and an answer and,
    when it is called, for one that does not return one number.
    """

    members: Ensemble
    grader: Member
    weights: Float[Array, "n"] | None
    normalize: str | None = eqx.field(static=True)

    def __init__(
        self,
        members: Members,
        grader: Member,
        n: int = 1,
        normalize: str | None = "answer",
        weights: Float[Array, "n"] | None = None,
    ):
        self.members = ensemble(members, n, "FilterVote")
        self.grader = as_scorer(grader, "FilterVote", "grader", sampled=True)
        self.normalize, self.weights = normalizer(normalize, "FilterVote"), weights_of(weights, "FilterVote")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        answers = self.members(question, key)
        return self.choose(answers, scores(self.grader, question, answers, key, "FilterVote.grader"))

    def choose(self, answers: Text, scores: Float[Array, "n"]) -> Text:
        """The winner among answers of rank 1, of which those with a score above 0.5 are accepted."""
        return winner(answers, self.weights, self.normalize, scores > 0.5)
