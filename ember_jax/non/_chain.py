"""One step after another."""

import itertools

from .. import LLM, Key, Operator, Text, format, text
from ._ensemble import Ensemble
from ._members import Member, answer_of, answers_of, as_member, for_each, shown


class Chain(Operator):
    """Steps one after another, each with the answer of the one before.

    ```python
    op = non.Chain(
        non.Vote(ember.LLM("sim/small"), n=3),
        "Question: {question}\\nDraft: {answer}\\nSay it in one sentence.",
        ember.LLM("sim/large"),
    )
    ```

    **Arguments:**

    - `steps`: operators, LLMs and templates, one by one or as a list. The first operator is asked the question, each
        further one the answer of the step before it. A template is a `str` or a Text: it fills in the `{question}` and
        the `{answer}` so far, and the step after it is asked the result.

    **Raises:** `ValueError` without steps; `TypeError` for a string without `{question}` and `{answer}`, for a step
    that is no operator, for an LLM or `Ensemble` right after an `Ensemble`, whose answers are not one prompt, and, when
    it is called, for a last step that gives several answers.
    """

    steps: tuple[Member | Text, ...]

    def __init__(self, *steps: Member | str | Text | list[Member | str | Text] | tuple[Member | str | Text, ...]):
        lists = (given if isinstance(given, list | tuple) else [given] for given in steps)
        self.steps = tuple(_step(step, i) for i, step in enumerate(step for steps in lists for step in steps))
        if not self.steps:
            raise ValueError("Chain has no steps; give it operators, LLMs and templates.")
        for i, (before, step) in enumerate(itertools.pairwise(self.steps)):
            if isinstance(before, Ensemble) and isinstance(step, LLM | Ensemble):
                raise TypeError(
                    f"Chain(steps[{i + 1}]={shown(step)}) is asked one thing, and steps[{i}] is an Ensemble, which "
                    "gives several; make one of them first, as `non.Vote` does."
                )

    def forward(self, question: Text, key: Key | None = None) -> Text:
        keys = for_each(key, len(self.steps))
        answer = question
        for i, step in enumerate(self.steps):
            if isinstance(step, Text):
                answer = format(step, question=question, answer=answer)
            else:
                asked = answer_of if i == len(self.steps) - 1 else answers_of
                answer = asked(step, answer, keys[i], f"Chain.steps[{i}]")
        return answer


def _step(step: Member | str | Text, i: int) -> Member | Text:
    if not isinstance(step, str):
        return step if isinstance(step, Text) else as_member(step, "Chain", f"steps[{i}]")
    if "{question}" not in step and "{answer}" not in step:
        raise TypeError(
            f"Chain(steps[{i}]={shown(step)}) is a string without {{question}} and {{answer}}, so its words would "
            "take the place of all before. For a model id, `ember.LLM('sim/small')`; if it is meant, `ember.text(…)`."
        )
    return text(step)
