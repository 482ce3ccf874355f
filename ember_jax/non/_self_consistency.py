"""A vote over the answers that different lines of thought come to."""

from jaxtyping import Array, Float

from .. import Key, Operator, Text, format, text
from .. import normalize as normalized
from ._members import Member, given
from ._vote import Vote

_PROMPT = """{question}

Think step by step. Then end with one line that begins with `Answer:` and holds the final answer alone."""


class SelfConsistency(Operator):
    """The final answer that most chains of thought come to; the first given among equals.

    Wang et al., 2022, arXiv 2203.11171.

    ```python
    op = non.SelfConsistency(ember.LLM("openai/gpt-4o-mini", temperature=0.7), n=10, normalize="number")
    ```

    **Arguments:**

    - `members`, `n`, `normalize`, `weights`: as of a `Vote`, here over what the replies state as their answers.
    - `prompt`: what members are asked, with the field `{question}`.

    Returns the answer without the reasoning, as `ember.normalize(reply, "final")` finds it, such as what stands after
    `Answer:`.
    """

    vote: Vote
    prompt: Text

    def __init__(
        self,
        members: Member | list[Member] | tuple[Member, ...],
        n: int = 1,
        normalize: str | None = "answer",
        weights: Float[Array, "n"] | None = None,
        prompt: Text | str = _PROMPT,
    ):
        self.vote = Vote(members, n, normalize, weights)
        self.prompt = text(prompt)

    def forward(self, question: Text, key: Key | None = None) -> Text:
        replies = self.vote.members(format(self.prompt, question=question), given(key))
        return self.vote.choose(normalized(replies, "final"))
