"""Several answers to one question."""

import equinox as eqx
import jax

from .. import Key, Operator, Text, attempt, concatenate
from ._members import Member, answer_of, as_tuple, for_each, takes_key, whole


class Ensemble(Operator):
    """Asks its members the same question, all at once.

    ```python
    drafts = non.Ensemble(ember.LLM("sim/small"), n=5)(question, key)
    drafts = non.Ensemble([ember.LLM("sim/small"), ember.LLM("sim/large"), my_operator])(question, key)
    ```

    **Arguments:**

    - `members`: an operator or an LLM, or a list of them, also different ones; each returns Text, of rank 0 or with
        several answers, as another ensemble does.
    - `n`: how many samples of each.
    - `tolerant`: whether the answer of a member that fails is *failed text* (see `ember.attempt`), which votes count
        for nothing and judges do not see, instead of failing the ensemble.

    Called with a question and a key it returns all answers, those of one member side by side. Without a key they are
    the same for ever. Sample `i` has the same key for every `n`: more samples pay only for the new ones.

    **Raises:** `ValueError` without members, for `n` below 1, and for several samples of a member that takes no key;
    `TypeError` for a member that cannot be called, or that returns no Text.
    """

    members: tuple[Member, ...]
    n: int = eqx.field(static=True)
    tolerant: bool = eqx.field(static=True)

    def __init__(self, members: Member | list[Member] | tuple[Member, ...], n: int = 1, tolerant: bool = False):
        self.members = as_tuple(members, type(self).__name__)
        self.n = whole(n, type(self).__name__, "n")
        self.tolerant = tolerant
        if n > 1 and (same := [m for m in self.members if not takes_key(m)]):
            raise ValueError(
                f"{type(self).__name__}(n={n}): {same[0]!r:.60} takes no key, so all its samples are one. Give its "
                "`forward` a `key: ember.Key` and pass it on to its calls."
            )

    def forward(self, question: Text, key: Key | None = None) -> Text["n"]:
        keys = for_each(key, len(self.members))
        return concatenate([self._samples(member, question, keys[i]) for i, member in enumerate(self.members)])

    def each(self, questions: Text, key: Key | None = None) -> Text:
        """The answers where every sample has a question of its own, in the same order; of members that give one."""
        keys = for_each(key, len(self.members))
        asked = questions.reshape(len(self.members), self.n)
        return concatenate([self._samples(member, asked[i], keys[i]) for i, member in enumerate(self.members)])

    def _samples(self, member: Member, question: Text, key: Key) -> Text:
        """A member's answers to one question, or to one for each sample."""

        def sample(question: Text, key: Key) -> Text:
            asked = attempt(answer_of) if self.tolerant else answer_of
            answer = asked(member, question, key=key)
            return answer[0] if self.tolerant else answer

        keys = for_each(key, self.n)
        if self.n == 1:  # not as a lane: a member that is written line by line may stay so
            return sample(question.reshape(()), keys[0]).reshape(-1)
        return jax.vmap(sample, in_axes=(0 if question.shape else None, 0))(question, keys).reshape(-1)


def ensemble(members: Member | list[Member] | tuple[Member, ...], n: int = 1) -> Ensemble:
    """What other constructs take as members: an ensemble as it is, anything else as one."""
    if isinstance(members, Ensemble):
        if n != 1:
            raise ValueError(f"the ensemble has {members.n} samples of each member already; leave out n={n}.")
        return members
    return Ensemble(members, n)
