"""`Cascade`: the cheap answer where it is good enough.

Design note. A gate that draws relaxes the hard gate; its `temperature` says how far it is from hard. Thresholds and
scorers can be learned, and the temperature is held fixed. The alternative was rejected for this reason: the expected
loss is linear in the probability of accepting, so the best gate is a hard one, and a temperature that is learned goes
to 0. In plain units it went past 0, where the gate is reversed, within sixty steps of Adam at each rate that was tried.
As a logarithm it may become so small, before the scorer has learned, that every gradient vanishes. To learn how steep a
gate is, give the scorer a scale that is learned: `scale * score`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

import ember_jax  # whose `learn` is imported when it is first asked for

from .. import Key, Operator, Text
from ._members import Member, Members, answer_of, as_members, for_each, for_role, numbers, shown
from ._scoring import as_scorer, score

# Lower temperatures are raised to this one, at which the gate is hard. It is not 0, so that a margin divided by it or
# by its square, as in a derivative, stays finite.
_COLDEST = 1e-15


class Cascade(Operator):
    """Stages from cheap to dear: the first answer that scores above its stage's threshold, else the last stage's.

    FrugalGPT (Chen, Zaharia and Zou, 2023, arXiv 2305.05176). A stage is called only where none before it was accepted.

    ```python
    op = non.Cascade([ember.LLM("sim/small"), ember.LLM("sim/large")], ember.LLM("sim/medium"), thresholds=0.8)
    ```

    **Arguments:**

    - `stages`: operators or LLMs, at least one.
    - `scorer`: an operator of `(question, answer)` or `(question, answer, key)` that returns a float, such as the
        probability that the answer is right; or a list of them, one for each stage but the last, whose answer is not
        scored. An LLM scores as a `Grader(llm)`; a module with weights, such as a `LinearScorer`, learns. NaN, as the
        score of failed text, is below every threshold.
    - `thresholds`: `float[n - 1]` for n stages, or one number for all.
    - `temperature`: if given, an answer is accepted with probability `sigmoid((score - threshold) / temperature)`,
        drawn by `ember.learn.sample`, so that thresholds and scorers can be learned. The gradient of the temperature
        itself is zero: it can be swept, or lowered from step to step, and an optimiser leaves it as it is. `None` is
        the limit of 0: a hard threshold, whose gradient is zero. A traced temperature of 0 or less acts as that limit.

    **Raises:** `ValueError` without stages, if the number of scorers or thresholds does not fit the number of stages,
    and for a concrete temperature that is not above 0; `TypeError` for a scorer that cannot be called with a question
    and an answer and, when it is called, for a scorer that does not return one number and for a stage with several
    answers.
    """

    stages: tuple[Member, ...]
    scorer: Member | tuple[Member, ...]
    thresholds: Float[Array, "n-1"]
    temperature: Float[Array, ""] | None

    def __init__(
        self,
        stages: Members,
        scorer: Members,
        thresholds: Float[Array, "n-1"] | Sequence[float] | float = 0.5,
        temperature: Float[Array, ""] | float | None = None,
    ):
        self.stages = as_members(stages, "Cascade", "stages")
        gates = len(self.stages) - 1
        if isinstance(scorer, list | tuple):
            self.scorer = tuple(as_scorer(s, "Cascade", f"scorer[{i}]") for i, s in enumerate(scorer))
            if len(scorer) != gates:
                raise ValueError(
                    f"Cascade has {gates + 1} stages and {len(scorer)} scorers; give one for each stage but the last, "
                    "or one for all."
                )
        else:
            self.scorer = as_scorer(scorer, "Cascade", "scorer")
        given = numbers(thresholds, "Cascade", "thresholds")
        if given.shape not in ((), (gates,)):
            raise ValueError(
                f"Cascade has {gates + 1} stages and thresholds of shape {list(given.shape)}; give one for each stage "
                "but the last, or one number for all."
            )
        self.thresholds = jnp.broadcast_to(given, (gates,))
        self.temperature = None if temperature is None else numbers(temperature, "Cascade", "temperature")
        if self.temperature is not None and (self.temperature.shape or _is_cold(temperature)):
            raise ValueError(
                f"Cascade(temperature={shown(temperature)}): give one number above 0, or None for hard thresholds."
            )

    def forward(self, question: Text, key: Key | None = None) -> Text:
        return self._answer(0, question, for_each(key, len(self.stages)))

    def _answer(self, stage: int, question: Text, keys: Key) -> Text:
        """The answer of a stage if it is accepted, else that of the first later stage whose answer is accepted."""
        answer = answer_of(self.stages[stage], question, keys[stage], f"Cascade.stages[{stage}]")
        if stage + 1 == len(self.stages):
            return answer
        accepted = self._accepts(stage, question, answer, keys[stage])
        return jax.lax.cond(accepted, lambda: answer, lambda: self._answer(stage + 1, question, keys))

    def _accepts(self, stage: int, question: Text, answer: Text, key: Key) -> Bool[Array, ""]:
        if isinstance(self.scorer, tuple):
            scorer, place = self.scorer[stage], f"Cascade.scorer[{stage}]"
        else:
            scorer, place = self.scorer, "Cascade.scorer"
        value = score(scorer, question, answer, for_role(key, "scorer"), place)
        if self.temperature is None:
            return value > self.thresholds[stage]
        # A NaN score is replaced before the margin is computed, and the margin once more after. With the second `where`
        # alone the value would be right, but the gradient through the margin would be NaN.
        unknown = jnp.isnan(value)
        temperature = jnp.maximum(jax.lax.stop_gradient(self.temperature), _COLDEST)
        margin = (jnp.where(unknown, 0.0, value) - self.thresholds[stage]) / temperature
        logits = jnp.stack([jnp.where(unknown, -jnp.inf, margin), jnp.zeros_like(margin)])
        return ember_jax.learn.sample(logits, for_role(key, "gate")) == 0


def _is_cold(temperature: Any) -> bool:
    """Whether a temperature is concrete and not above 0; a traced one cannot be checked."""
    try:
        return not float(temperature) > 0
    except jax.errors.ConcretizationTypeError:  # it is traced
        return False
