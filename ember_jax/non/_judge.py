"""The answer that a judge picks, or writes out of all of them.

Design note. An LLM picks by `LLM.decide`, so its answer is always one of the candidates: the most likely one, or by one
letter. Any other judge
is an operator of a prompt that shows the candidates numbered; it replies with the number of a candidate or with its
words. A judge is asked only if candidates differ. If they are equal, or all but one failed, there is nothing to decide.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import LLM, Key, Operator, Options, Text, format, host, jit, parse_number
from .. import normalize as normalized
from ._ensemble import Ensemble, ensemble
from ._listing import listed, present
from ._members import Member, Members, answer_of, as_member, ask, flag, for_role
from ._prompts import template

_PICK = "{question}\n\nWhich of these answers is best?"
_LISTED = "{question}\n\nCandidate answers, each after its number:\n\n{candidates}\n\n"
_PICK_NUMBER = _LISTED + "Which of them is best? Reply with its number and nothing else."
_SYNTHESISE = _LISTED + "Some of them may be wrong. Write the best answer to the question, using what is right in them."

# The most candidates that any LLM can tell apart, as each has a letter.
_MOST = 26


class Judge(Operator):
    """The answer that a judge, who sees the question and all answers, finds best.

    ```python
    op = non.Judge(ember.LLM("sim/small"), ember.LLM("sim/large"), n=5)
    op = non.Judge([cheap, other], ember.LLM("sim/large"), synthesise=True)
    ```

    **Arguments:**

    - `members`, `n`: as of an `Ensemble`, or an `Ensemble`.
    - `judge`: an LLM, which chooses among at most 26 answers, see `ember.LLM.decide`; or any operator of a prompt,
        which replies with the number of an answer or with its words.
    - `prompt`: a template. For an LLM that picks it has the field `{question}`, and the answers follow it as options.
        For another judge, and for any judge that synthesises, it has the fields `{question}` and `{candidates}`.
    - `synthesise`: whether the judge writes a new answer from those of the members, instead of picking one.

    A judge that picks is not asked if all answers are the same.

    **Raises:** what an `Ensemble` raises; `TypeError` for a judge that cannot be called with a prompt; `ValueError` for
    a prompt without its fields; while it is traced, for more answers than an LLM can choose among; and while it runs,
    for a judge whose reply names no candidate.
    """

    members: Ensemble
    judge: Member
    prompt: Text
    synthesise: bool = eqx.field(static=True)

    def __init__(
        self,
        members: Members,
        judge: Member,
        n: int = 1,
        prompt: str | Text | None = None,
        synthesise: bool = False,
    ):
        self.members = ensemble(members, n, "Judge")
        self.judge = as_judge(judge, "Judge")
        self.synthesise = flag(synthesise, "Judge", "synthesise")
        if synthesise:
            asked = _SYNTHESISE if prompt is None else prompt
            self.prompt = template(asked, "Judge", "prompt", ["question", "candidates"])
        else:
            self.prompt = pick_prompt(self.judge, prompt, "Judge", "prompt")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        candidates = self.members(question, key)
        role = for_role(key, "judge")
        if self.synthesise:
            asked = format(self.prompt, question=question, candidates=listed(candidates))
            return answer_of(self.judge, asked, role, "Judge.judge")
        return pick(self.judge, self.prompt, question, candidates, role)


def as_judge(judge: Member, construct: str) -> Member:
    """A judge, checked: an LLM, or an operator of a prompt."""
    return as_member(judge, construct, "judge", "prompt")


def pick_prompt(judge: Member, prompt: str | Text | None, construct: str, argument: str) -> Text:
    """The prompt with which a judge picks; the default one if none is given.

    **Raises:** what `template` raises; `ValueError` if the prompt has the field `{candidates}` and the judge is an LLM,
    which is shown the candidates as options.
    """
    if not isinstance(judge, LLM):
        asked = _PICK_NUMBER if prompt is None else prompt
        return template(asked, construct, argument, ["question", "candidates"])
    if isinstance(prompt, str) and "{candidates}" in prompt:
        raise ValueError(
            f"{construct}({argument}=…) has the field {{candidates}}, but a judge that is an LLM finds the answers as "
            "options below its prompt; leave the field out."
        )
    return template(_PICK if prompt is None else prompt, construct, argument, ["question"])


# Under `jit` it is an operator, so in a `vmap` over groups of candidates each group has its own branch, and the judge
# is asked only for the groups that differ.
@jit
def pick(judge: Member, prompt: Text, question: Text, candidates: Text, key: Key) -> Text:
    """The candidate that a judge picks; the judge is asked only if candidates differ."""
    if len(candidates) == 1:
        return candidates[0]
    shown = present(candidates)
    chosen = lambda: _chosen(judge, prompt, question, shown, key)
    return jax.lax.cond(jnp.all(shown == shown[:1]), lambda: shown[0], chosen)


def _chosen(judge: Member, prompt: Text, question: Text, shown: Text, key: Key) -> Text:
    if not isinstance(judge, LLM):
        reply = ask(judge, format(prompt, question=question, candidates=listed(shown)), key=key)
        return _named(parse_number(reply), normalized(reply), normalized(shown), shown)
    if len(shown) > _MOST:
        raise ValueError(
            f"an LLM chooses among at most {_MOST} answers, one letter for each, and here are {len(shown)}. Let them "
            "compete in pairs, `non.Knockout(members, judge, n=…)`, or judge judges' choices: "
            "`non.Judge([non.Judge(a, judge, n=20), non.Judge(b, judge, n=20)], judge)`."
        )
    return judge.decide(question, Options(format(prompt, question=question), shown), key, whole=True).text


async def candidate_named(number: np.ndarray, reply: str, compared: list[str], candidates: list[str]) -> str:
    # A number is looked for before words: the prompt asked for a number, and the words of one candidate may be the
    # number of another.
    if number in range(1, len(candidates) + 1):
        return candidates[int(number) - 1]
    if reply in compared:
        return candidates[compared.index(reply)]
    raise ValueError(  # the message leaves out the reply's words, since they may repeat those of the prompt
        f"the judge's reply, of {len(reply)} characters, is neither a number from 1 to {len(candidates)} nor the words "
        "of a candidate. Ask in its prompt for the number alone."
    )


_named = host(candidate_named, out=Text)
