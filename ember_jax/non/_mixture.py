"""Layers of proposers that read each other, and an aggregator."""

from typing import Any

from .. import Key, Operator, Text, format
from ._ensemble import Ensemble, ensemble
from ._listing import listed
from ._members import Member, answer_of, as_member, for_each, for_role, shown
from ._prompts import template

_PROMPT = """{question}

Others have answered, each after its number:

{candidates}

Some of them may be wrong. Give one answer, better than each of these, using what is right in them."""


class MixtureOfAgents(Operator):
    """Each layer sees the answers of the layer before it; an aggregator makes one answer of those of the last layer.

    Wang et al., 2024, arXiv 2406.04692.

    ```python
    small, other = ember.LLM("sim/small"), ember.LLM("sim/medium")
    op = non.MixtureOfAgents([[small, other], [small, other]], aggregator=ember.LLM("sim/large"))
    ```

    **Arguments:**

    - `layers`: at least one. Each is an operator or LLM, a list of them, or an `Ensemble`. An `Ensemble` may have
        several samples of each member; from a tolerant one, answers that failed are not shown to the next layer.
    - `aggregator`: an operator or LLM.
    - `prompt`: what the aggregator and every layer but the first are asked, with the fields `{question}` and
        `{candidates}` (numbered, `[1] …`).

    **Raises:** `ValueError` without layers; what an `Ensemble` raises, for each layer; `TypeError` for an aggregator
    that cannot be called with a prompt and, when it is called, for one that gives several answers.
    """

    layers: tuple[Ensemble, ...]
    aggregator: Member
    prompt: Text

    def __init__(self, layers: list[Any] | tuple[Any, ...], aggregator: Member, prompt: Text | str = _PROMPT):
        if not isinstance(layers, list | tuple) or not layers:
            raise ValueError(
                f"MixtureOfAgents takes a list of layers, at least one, not {shown(layers)}: such as "
                "`[[first, second], [first, second]]`."
            )
        named = [(layer, f"layers[{i}]") for i, layer in enumerate(layers)]
        self.layers = tuple(ensemble(layer, 1, "MixtureOfAgents", name) for layer, name in named)
        self.aggregator = as_member(aggregator, "MixtureOfAgents", "aggregator", "prompt")
        self.prompt = template(prompt, "MixtureOfAgents", "prompt", ["question", "candidates"])

    def forward(self, question: Text, key: Key | None = None) -> Text:
        keys = for_each(for_role(key, "layers"), len(self.layers))
        answers = self.layers[0](question, key)
        for i, layer in enumerate(self.layers[1:]):
            answers = layer(self._asked(question, answers), keys[i])
        asked = self._asked(question, answers)
        return answer_of(self.aggregator, asked, for_role(key, "aggregator"), "MixtureOfAgents.aggregator")

    def _asked(self, question: Text, answers: Text) -> Text:
        return format(self.prompt, question=question, candidates=listed(answers))
