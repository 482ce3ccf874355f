"""Debaters that answer, read each other and answer again, and a judge who ends it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import LLM, Key, Operator, Text, format, text, where
from ._ensemble import Ensemble, ensemble
from ._members import Member, ask, for_each, for_role, given
from ._shown import shown
from ._vote import Vote

_PROMPT = """{question}

Several experts have answered:
{candidates}
{yours} Weigh what the others say, and give your answer, the same as before or a better one."""

_JUDGE_PROMPT = """{question}

These answers are proposed:
{candidates}
Reply with the best of them, and nothing else."""


class Debate(Operator):
    """Debaters answer at once; in each further round each sees all last answers and answers again; a judge decides.

    Du et al., 2023, arXiv 2305.14325.

    ```python
    op = non.Debate(ember.LLM("sim/small"), n=3)
    op = non.Debate([ember.LLM("sim/small"), ember.LLM("sim/medium")], judge=ember.LLM("sim/large"), rounds=3)
    ```

    **Arguments:**

    - `debaters`, `n`: as members of an `Ensemble`, or an `Ensemble`; each gives one answer. What fails in a tolerant
        one is not shown, and may answer again.
    - `judge`: an LLM, which is asked `judge_prompt`; any operator or function of `(question, answers)` or
        `(question, answers, key)`; the most common answer where not given, as of a `Vote`.
    - `rounds`: how often each debater answers.
    - `prompt`: what further rounds ask, with the fields `{question}`, `{candidates}` (one line each, `[1] …`) and
        `{yours}`: "Yours is [2].", or "You have not answered yet."
    - `judge_prompt`: with the fields `{question}` and `{candidates}`.

    **Raises:** `ValueError` without debaters and for `rounds` below 1; when it is called, `TypeError` for a debater of
    several answers.
    """

    debaters: Ensemble
    judge: Callable[..., Any] | None
    prompt: Text
    judge_prompt: Text
    rounds: int = eqx.field(static=True)

    def __init__(
        self,
        debaters: Member | list[Member] | tuple[Member, ...],
        judge: Callable[..., Any] | None = None,
        n: int = 1,
        rounds: int = 2,
        prompt: Text | str = _PROMPT,
        judge_prompt: Text | str = _JUDGE_PROMPT,
    ):
        self.debaters = ensemble(debaters, n)
        self.judge = judge
        self.prompt, self.judge_prompt = text(prompt), text(judge_prompt)
        self.rounds = rounds
        if not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"Debate(rounds={rounds!r}): give a whole number of rounds, at least 1.")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        def turn(answers: Text, key: Key) -> tuple[Text, None]:
            there = answers == answers  # failed text equals nothing
            numbered = format("Yours is [{number}].", number=jnp.cumsum(there))
            yours = where(there, numbered, "You have not answered yet.")
            asked = format(self.prompt, question=question, candidates=shown(answers), yours=yours)
            return self.debaters.each(asked, key), None

        answers = self.debaters(question, given(key))
        debaters = len(self.debaters.members) * self.debaters.n
        if len(answers) != debaters:
            raise TypeError(f"Debate has {debaters} debaters and {len(answers)} answers; each debater gives one.")
        keys = for_each(for_role(key, "rounds"), self.rounds - 1)
        answers, _ = jax.lax.scan(turn, answers, keys)
        return self._decided(question, answers, for_role(key, "judge"))

    def _decided(self, question: Text, answers: Text, key: Key) -> Text:
        if self.judge is None:
            return Vote(self.debaters).choose(answers)
        if isinstance(self.judge, LLM):
            return self.judge(format(self.judge_prompt, question=question, candidates=shown(answers)), key)
        return ask(self.judge, question, answers, key=key)
