"""A vote over the final answers of several chains of thought."""

import equinox as eqx
from jaxtyping import Array, Float

from .. import Key, Operator, Text, format
from .. import normalize as normalized
from ._ensemble import Ensemble, ensemble
from ._members import Members
from ._prompts import template
from ._vote import normalizer, weights_of, winner

_PROMPT = """{question}

Think step by step. Then end with one line that begins with `Answer:` and holds the final answer alone."""


class SelfConsistency(Operator):
    """The final answer that most chains of thought come to; the first given among equals.

    Wang et al., 2022, arXiv 2203.11171.

    ```python
    op = non.SelfConsistency(ember.LLM("openai/gpt-4o-mini", temperature=0.7), n=10, normalize="number")
    ```

    **Arguments:**

    - `members`, `n`, `normalize`, `weights`: as of a `Vote`, here over the final answers that the replies state.
    - `prompt`: what the members are asked, with the field `{question}`.

    It returns the answer without the reasoning, such as the words after `Answer:`, as `ember.normalize(reply, "final")`
    finds it.

    **Raises:** what a `Vote` raises; `ValueError` for a prompt without its field.
    """

    members: Ensemble
    weights: Float[Array, "n"] | None
    prompt: Text
    normalize: str | None = eqx.field(static=True)

    def __init__(
        self,
        members: Members,
        n: int = 1,
        normalize: str | None = "answer",
        weights: Float[Array, "n"] | None = None,
        prompt: Text | str = _PROMPT,
    ):
        self.members = ensemble(members, n, "SelfConsistency")
        self.normalize, self.weights = normalizer(normalize, "SelfConsistency"), weights_of(weights, "SelfConsistency")
        self.prompt = template(prompt, "SelfConsistency", "prompt", ["question"])

    def forward(self, question: Text, key: Key | None = None) -> Text:
        replies = self.members(format(self.prompt, question=question), key)
        return winner(normalized(replies, "final"), self.weights, self.normalize)
