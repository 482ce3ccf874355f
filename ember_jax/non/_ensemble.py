"""Several answers to one question."""

import equinox as eqx
import jax

from .. import Key, Operator, Text, attempt, concatenate
from ._members import Member, Members, answers_of, as_members, flag, for_each, shown, takes_key, whole


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

    Called with a question and a key it returns all answers, `Text["n"]`, those of one member next to each other.
    Without a key it uses one fixed key, so the answers are the same in each call. Sample `i` has the same key for every
    `n`, so with a larger `n` only the new samples are paid for.

    **Raises:** `ValueError` without members, for `n` below 1, and for several samples of a member that takes no key;
    `TypeError` for a member that cannot be called with a question and, when it is called, for one that does not return
    Text or a `str`.
    """

    members: tuple[Member, ...]
    n: int = eqx.field(static=True)
    tolerant: bool = eqx.field(static=True)

    def __init__(self, members: Members, n: int = 1, tolerant: bool = False):
        self.members, self.n = _sampled(members, n, "Ensemble", "members")
        self.tolerant = flag(tolerant, "Ensemble", "tolerant")

    def forward(self, question: Text, key: Key | None = None) -> Text["n"]:
        keys = for_each(key, len(self.members))
        return concatenate([self._samples(member, question, keys[i]) for i, member in enumerate(self.members)])

    def each(self, questions: Text, key: Key | None = None) -> Text:
        """The answers to questions of which every sample has its own: `Text["n"]`, in the order of the answers. Every
        member must give one answer."""
        keys = for_each(key, len(self.members))
        asked = questions.reshape(len(self.members), self.n)
        return concatenate([self._samples(member, asked[i], keys[i]) for i, member in enumerate(self.members)])

    def _samples(self, member: Member, question: Text, key: Key) -> Text:
        """A member's answers to one question, or to one for each sample."""

        def sample(question: Text, key: Key) -> Text:
            return attempt(_answers)(member, question, key)[0] if self.tolerant else _answers(member, question, key)

        keys = for_each(key, self.n)
        # One sample is asked without a `vmap`, so a member that cannot be mapped can still be asked once.
        if self.n == 1:
            return sample(question.reshape(()), keys[0]).reshape(-1)
        return jax.vmap(sample, in_axes=(0 if question.shape else None, 0))(question, keys).reshape(-1)


def _answers(member: Member, question: Text, key: Key) -> Text:
    return answers_of(member, question, key, "a member of Ensemble")


def ensemble(members: Members, n: int, construct: str, argument: str = "members") -> Ensemble:
    """The members of another construct as an `Ensemble`; one that is an `Ensemble` is returned as it is.

    **Raises:** what an `Ensemble` raises, with the names of the construct and of its argument in the message.
    """
    if not isinstance(members, Ensemble):
        # Checked here, where the construct's name is known; `Ensemble` checks them again, under its own.
        return Ensemble(*_sampled(members, n, construct, argument))
    if n != 1:
        raise ValueError(f"{construct}(n={n}): its ensemble has {members.n} samples of each member; leave out n.")
    return members


def _sampled(members: Members, n: int, construct: str, argument: str) -> tuple[tuple[Member, ...], int]:
    """Members and the number of samples of each, checked."""
    found, count = as_members(members, construct, argument), whole(n, construct, "n")
    if count > 1 and (same := [member for member in found if not takes_key(member)]):
        raise ValueError(
            f"{construct}(n={count}): {shown(same[0])} takes no key, so all its samples are one. Give its `forward` a "
            "`key: ember.Key` and pass it on to its calls."
        )
    return found, count
