"""How good an answer is, by a model."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import LLM, Key, Operator, Options, Predicate, Text, format
from ._members import flag, shown
from ._prompts import template

_PROMPT = "{question}\n\nProposed answer: {answer}\n\nIs the proposed answer correct?"


class Grader(Operator):
    """The probability that an answer is correct, as a model sees it: a scorer.

    ```python
    grader = non.Grader(ember.LLM("sim/large"))
    grader("What is 17 * 23?", "391")  # close to 1
    non.BestOfN(ember.LLM("sim/small"), grader, n=5)
    ```

    Whatever takes a scorer takes any operator of `(question, answer)`, or `(question, answer, key)`, that returns a
    float.

    **Arguments:**

    - `llm`: whom to ask. It decides, or chooses between *yes* and *no*, see `ember.LLM.decide`.
    - `prompt`: a template with the fields `{question}` and `{answer}`.
    - `sampled`: whether to return what the model said, 1 for *yes* and 0 for *no*, instead of the probability that it
        says *yes*. Of a model that decides without words it is what is more likely.

    **Returns:** when it is called, a float of rank 0.

    **Raises:** `TypeError` for an `llm` that is none and a `sampled` that is no boolean; `ValueError` for a prompt
    without its fields.
    """

    llm: LLM
    prompt: Text
    sampled: bool = eqx.field(static=True)

    def __init__(self, llm: LLM, prompt: str | Text = _PROMPT, sampled: bool = False):
        if not isinstance(llm, LLM):
            raise TypeError(
                f"Grader(llm={shown(llm)}): give an LLM, such as `ember.LLM('sim/small')`, which chooses between yes "
                "and no. Any operator of (question, answer) that returns a float is a scorer as it stands."
            )
        self.llm = llm
        self.prompt = template(prompt, "Grader", "prompt", ["question", "answer"])
        self.sampled = flag(sampled, "Grader", "sampled")

    def forward(self, question: Text, answer: Text, key: Key | None = None) -> Float[Array, ""]:
        asked = format(self.prompt, question=question, answer=answer)
        if not self.sampled:
            return self.llm.decide(question, Predicate(asked), key, whole=True)
        verdict = self.llm.decide(question, Options(asked, ["yes", "no"]), key, whole=True)
        return (verdict.index == 0).astype(jnp.float32)
