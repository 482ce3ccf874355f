"""Questions that are decided without words, and the probabilities that answer them, as the words of messages.

Design note. A question is a message of the role `DECIDE` behind the conversation that it is about. So it is part of the
request's digest and of the journal's row, and several questions about one conversation are one request with several
such messages. Its words are canonical JSON, of what is asked alone: nothing of a service's wire stands in it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .base import DECIDE, Decisions, Message, Request

DecisionKind: TypeAlias = Literal["predicate", "choice", "score"]


@dataclass(frozen=True)
class DecisionQuestion:
    """One question with its options.

    **Fields:**

    - `kind`: whether something holds, which of some options it is, or which of some levels.
    - `instructions`: what is asked.
    - `options`: the options, or the levels from the lowest; of a predicate two, for true and for false.
    - `descriptions`: what each of them means; empty where nothing is said.
    """

    kind: DecisionKind
    instructions: str
    options: tuple[str, ...]
    descriptions: tuple[str, ...]

    @property
    def message(self) -> Message:
        """The question as a message."""
        fields = (self.kind, self.instructions, self.options, self.descriptions)
        return Message(DECIDE, _canonical(fields))

    @property
    def words(self) -> list[str]:
        """All that is said in it. What the options of a predicate are called is not."""
        return [self.instructions, *(() if self.kind == "predicate" else self.options), *self.descriptions]


_canonical = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def question(message: Message) -> DecisionQuestion:
    """The question that a message is."""
    kind, instructions, options, descriptions = json.loads(message.content)
    return DecisionQuestion(kind, instructions, tuple(options), tuple(descriptions))


def parted(request: Request) -> tuple[tuple[Message, ...], list[DecisionQuestion]]:
    """What is said, and the questions that are asked about it."""
    asked = [message for message in request.messages if message.role == DECIDE]
    return request.messages[: len(request.messages) - len(asked)], [question(message) for message in asked]


def fault(kind: DecisionKind, options: int, limits: Decisions) -> str:
    """Why a service does not take a question with so many options, and what to do; empty if it does."""
    match kind:
        case "choice" if options > limits.options:
            most, what, fix = limits.options, "options", "choose in rounds, the best of each group and then among those"
        case "score" if options > limits.levels:
            most, what, fix = limits.levels, "levels", "merge some that are next to each other"
        case _:
            return ""
    return f"a question has {options} {what}, and the service takes at most {most}; {fix}."


def packed(probabilities: Sequence[float]) -> str:
    """Probabilities as words."""
    return json.dumps(list(probabilities))


def unpacked(words: str, n: int) -> np.ndarray:
    """The probabilities `float32[n]` that words stand for; they sum to one.

    **Raises:** `ValueError` for words that are no probabilities of so many options.
    """
    try:
        found = json.loads(words)
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) != n or not all(map(_is_weight, found)) or not sum(found) > 0:
        raise ValueError(f"these are no probabilities of {n} options.")
    return (np.array(found) / sum(found)).astype(np.float32)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)
