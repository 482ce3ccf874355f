"""Debaters that answer, read each other and answer again, and a judge who ends it."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import Key, Operator, Text, format, where
from ._ensemble import Ensemble, ensemble
from ._judge import as_judge, pick, pick_prompt
from ._listing import listed
from ._members import Member, Members, for_each, for_role, whole
from ._prompts import template
from ._vote import winner

_PROMPT = """{question}

Several experts have answered, each after their number:

{candidates}

{yours} Weigh what the others say, and give your answer, the same as before or a better one."""


class Debate(Operator):
    """Debaters answer at once; in each further round each sees all last answers and answers again; a judge decides.

    Du et al., 2023, arXiv 2305.14325.

    ```python
    op = non.Debate(ember.LLM("sim/small"), n=3)
    op = non.Debate([ember.LLM("sim/small"), ember.LLM("sim/medium")], judge=ember.LLM("sim/large"), rounds=3)
    ```

    **Arguments:**

    - `debaters`, `n`: as members of an `Ensemble`, or an `Ensemble`; each gives one answer. In a tolerant ensemble a
        debater that fails is not shown to the others, and is asked again in the next round.
    - `judge`, `judge_prompt`: the judge who picks one of the last answers, and the judge's prompt, as `judge` and
        `prompt` of a `Judge`. Without a judge the most common answer is taken, as by a `Vote`.
    - `rounds`: how often each debater answers.
    - `prompt`: what further rounds ask, with the fields `{question}`, `{candidates}` (numbered, `[1] …`) and
        `{yours}`: "Yours is [2].", or "You have not answered yet."

    **Raises:** what an `Ensemble` does; `ValueError` for `rounds` below 1 and for a `judge_prompt` without a judge;
    `TypeError`, when it is called, for a debater of several answers.
    """

    debaters: Ensemble
    judge: Member | None
    prompt: Text
    judge_prompt: Text | None
    rounds: int = eqx.field(static=True)

    def __init__(
        self,
        debaters: Members,
        judge: Member | None = None,
        n: int = 1,
        rounds: int = 2,
        prompt: Text | str = _PROMPT,
        judge_prompt: Text | str | None = None,
    ):
        self.debaters = ensemble(debaters, n, "Debate", "debaters")
        self.prompt = template(prompt, "Debate", "prompt", ["question", "candidates", "yours"])
        if judge is None and judge_prompt is not None:
            raise ValueError("Debate(judge_prompt=…) is for a judge, and there is none; give `judge=` too, or neither.")
        self.judge = None if judge is None else as_judge(judge, "Debate")
        self.judge_prompt = None if judge is None else pick_prompt(judge, judge_prompt, "Debate", "judge_prompt")
        self.rounds = whole(rounds, "Debate", "rounds")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        def turn(answers: Text, key: Key) -> tuple[Text, None]:
            there = answers == answers  # false for failed text, which equals nothing
            # `listed` leaves failed answers out and numbers the others from 1, so the number is a running count.
            numbered = format("Yours is [{number}].", number=jnp.cumsum(there))
            yours = where(there, numbered, "You have not answered yet.")
            asked = format(self.prompt, question=question, candidates=listed(answers), yours=yours)
            return self.debaters.each(asked, key), None

        answers = self.debaters(question, key)
        debaters = len(self.debaters.members) * self.debaters.n
        if len(answers) != debaters:
            raise TypeError(f"Debate has {debaters} debaters and {len(answers)} answers; each debater gives one.")
        keys = for_each(for_role(key, "rounds"), self.rounds - 1)
        answers, _ = jax.lax.scan(turn, answers, keys)
        if self.judge is None or self.judge_prompt is None:
            return winner(answers, None, "answer")
        return pick(self.judge, self.judge_prompt, question, answers, for_role(key, "judge"))
