"""The winner of a tournament of answers."""

import jax

from .. import Key, Operator, Text, concatenate, fold_in
from ._ensemble import Ensemble, ensemble
from ._judge import as_judge, pick, pick_prompt
from ._members import Member, Members, for_each, for_role


class Knockout(Operator):
    """The winner of a tournament: in each round a judge picks the better answer of every pair.

    ```python
    op = non.Knockout(ember.LLM("sim/small"), ember.LLM("sim/large"), n=8)
    ```

    The pairs of a round are judged at once: n answers take log2(n) rounds, rounded up, and at most n - 1 requests.

    **Arguments:**

    - `members`, `n`: as of an `Ensemble`, or an `Ensemble`; any number of answers. If a round has an odd number, the
        last answer goes on to the next round without being judged.
    - `judge`, `prompt`: as of a `Judge` that picks; it is not asked about two equal answers.

    **Raises:** what a `Judge` does.
    """

    members: Ensemble
    judge: Member
    prompt: Text

    def __init__(self, members: Members, judge: Member, n: int = 1, prompt: str | Text | None = None):
        self.members = ensemble(members, n, "Knockout")
        self.judge = as_judge(judge, "Knockout")
        self.prompt = pick_prompt(self.judge, prompt, "Knockout", "prompt")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        candidates = self.members(question, key)
        round_ = 0
        while len(candidates) > 1:
            candidates = self._round(question, candidates, fold_in(for_role(key, "judge"), round_))
            round_ += 1
        return candidates[0]

    def _round(self, question: Text, candidates: Text, key: Key) -> Text:
        pairs = len(candidates) // 2
        better = lambda pair, key: pick(self.judge, self.prompt, question, pair, key)
        winners = jax.vmap(better)(candidates[: 2 * pairs].reshape(pairs, 2), for_each(key, pairs))
        # The answer that was left over comes first in the next round, so that it is not left over again.
        return concatenate([candidates[2 * pairs :], winners])
