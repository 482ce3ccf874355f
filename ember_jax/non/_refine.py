"""An answer that is revised until its critic is content.

Design note. The loop is a `lax.scan` over the rounds whose step is a `lax.cond`. A `lax.while_loop` was rejected. With
either, a lane whose answer is accepted asks for nothing more. But the plan knows the bound of a scan before anything is
paid, and a scan has derivatives, so decisions that are drawn inside the member or the critic can be learned.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .. import LLM, Key, Operator, Text, format, normalize, text, tokens
from ._members import Member, answer_of, as_member, ask, for_each, for_role, given, number_of, whole
from ._prompts import template

_CRITIC_PROMPT = """{question}

Proposed answer: {answer}

Is the proposed answer correct? Reply "yes" and nothing else if it is; otherwise say what is wrong with it."""

_PROMPT = """{question}

A draft of the answer was:
{answer}

A critic said of it:
{critique}

Write the answer again without these faults, and nothing else."""


class Refine(Operator):
    """Drafts an answer, and revises it until a critic accepts it or the rounds are used up.

    After Self-Refine (Madaan et al., 2023, arXiv 2303.17651). Once an answer is accepted, no further call is made. An
    answer that was revised in the last round is returned without being judged.

    ```python
    op = non.Refine(ember.LLM("sim/small"), ember.LLM("sim/large"), rounds=3)
    op = non.Refine(ember.LLM("sim/small"), critic=run_the_tests)  # of (question, answer): a number, or words
    ```

    **Arguments:**

    - `member`: the operator or LLM that drafts and revises.
    - `critic`: an LLM, which is asked `critic_prompt`; or any operator or function of `(question, answer)` or
        `(question, answer, key)`. Words accept if the first of them is "yes", in any case and with any punctuation; a
        number accepts above one half. Failed text and NaN do not.
    - `rounds`: how often the critic is asked at most.
    - `prompt`: what revises, with the fields `{question}`, `{answer}` and `{critique}`: the critic's words, or
        "It is not good enough." for a number.
    - `critic_prompt`: what an LLM is asked as the critic, with the fields `{question}` and `{answer}`.

    **Raises:** `ValueError` for `rounds` below 1; `TypeError` for a critic that cannot be called with a question and an
    answer and, when it is called, for one that gives neither words nor one number.
    """

    member: Member
    critic: Member
    prompt: Text
    critic_prompt: Text
    rounds: int = eqx.field(static=True)

    def __init__(
        self,
        member: Member,
        critic: Member,
        rounds: int = 3,
        prompt: Text | str = _PROMPT,
        critic_prompt: Text | str = _CRITIC_PROMPT,
    ):
        self.member = as_member(member, "Refine", "member")
        takes = ["prompt"] if isinstance(critic, LLM) else ["question", "answer"]
        self.critic = as_member(critic, "Refine", "critic", *takes)
        self.prompt = template(prompt, "Refine", "prompt", ["question", "answer", "critique"])
        self.critic_prompt = template(critic_prompt, "Refine", "critic_prompt", ["question", "answer"])
        self.rounds = whole(rounds, "Refine", "rounds")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        def turn(state: tuple[jax.Array, Text], key: Key) -> tuple[tuple[jax.Array, Text], None]:
            done, answer = state
            return jax.lax.cond(done, lambda: state, lambda: self._turn(question, answer, key)), None

        state = jnp.zeros((), bool), answer_of(self.member, question, given(key), "Refine.member")
        (_, answer), _ = jax.lax.scan(turn, state, for_each(for_role(key, "rounds"), self.rounds))
        return answer

    def _turn(self, question: Text, answer: Text, key: Key) -> tuple[Bool[Array, ""], Text]:
        """Whether an answer is accepted, and the answer to go on with: the same if it is, else a revised one."""
        accepted, critique = self._judged(question, answer, for_role(key, "critic"))

        def revised() -> Text:
            prompt = format(self.prompt, question=question, answer=answer, critique=critique)
            return answer_of(self.member, prompt, key, "Refine.member")

        return accepted, jax.lax.cond(accepted, lambda: answer, revised)

    def _judged(self, question: Text, answer: Text, key: Key) -> tuple[Bool[Array, ""], Text]:
        if isinstance(self.critic, LLM):
            found = self.critic(format(self.critic_prompt, question=question, answer=answer), key)
        else:
            found = ask(self.critic, question, answer, key=key)
        found = text(found) if isinstance(found, str) else found
        if isinstance(found, Text) and not found.shape:
            return _says_yes(found), found
        return number_of(found, "Refine.critic", "; or it gives words") > 0.5, text("It is not good enough.")


def _says_yes(words: Text) -> Bool[Array, ""]:
    """Whether the first word is "yes"; false for failed text."""
    # Compared as bytes, in the program: "yes", and then a space or the end (-1).
    first = tokens(normalize(words), len("yes") + 1)
    return jnp.all(first[:3] == jnp.array(list(b"yes"))) & ((first[3] == ord(" ")) | (first[3] < 0))
