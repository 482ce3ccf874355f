"""Layers of proposers that read each other, and an aggregator."""

from typing import Any

from .. import Key, Operator, Text, format
from ._ensemble import Ensemble, ensemble
from ._listing import listed
from ._members import Member, answer_of, as_tuple, for_each, for_role, given
from ._prompts import template

_PROMPT = """{question}

Others have answered, each after its number:

{candidates}

Some of them may be wrong. Give one answer, better than each of these, using what is right in them."""


class MixtureOfAgents(Operator):
    """Each layer answers with the answers of the layer before in view; an aggregator makes one answer of the last's.

    Wang et al., 2024, arXiv 2406.04692.

    ```python
    small, other = ember.LLM("sim/small"), ember.LLM("sim/medium")
    op = non.MixtureOfAgents([[small, other], [small, other]], aggregator=ember.LLM("sim/large"))
    ```

    **Arguments:**

    - `layers`: at least one. Each is an operator or LLM, a list of them, or an `Ensemble`: of several samples, or a
        tolerant one, whose answers that fail are not shown.
    - `aggregator`: an operator or LLM.
    - `prompt`: what every layer but the first and the aggregator are asked, with the fields `{question}` and
        `{candidates}` (numbered, `[1] …`).

    **Raises:** `ValueError` without layers, and for a layer without members.
    """

    layers: tuple[Ensemble, ...]
    aggregator: Member
    prompt: Text

    def __init__(self, layers: list[Any] | tuple[Any, ...], aggregator: Member, prompt: Text | str = _PROMPT):
        if not isinstance(layers, list | tuple) or not layers:
            raise ValueError(
                f"MixtureOfAgents takes a list of layers, at least one, not {layers!r:.60}: such as "
                "`[[first, second], [first, second]]`."
            )
        self.layers = tuple(map(ensemble, layers))
        self.aggregator = as_tuple((aggregator,), "MixtureOfAgents")[0]
        self.prompt = template(prompt, "MixtureOfAgents", "prompt", ["question", "candidates"])

    def forward(self, question: Text, key: Key | None = None) -> Text:
        keys = for_each(for_role(key, "layers"), len(self.layers))
        answers = self.layers[0](question, given(key))
        for i, layer in enumerate(self.layers[1:]):
            answers = layer(self._asked(question, answers), keys[i])
        return answer_of(self.aggregator, self._asked(question, answers), for_role(key, "aggregator"))

    def _asked(self, question: Text, answers: Text) -> Text:
        return format(self.prompt, question=question, candidates=listed(answers))
