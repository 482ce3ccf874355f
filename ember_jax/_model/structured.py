"""`LLM.structured`: the call whose answer is the fields of a class.

Design note. A service that is given the schema as a parameter lets the model say nothing else, so that is asked for
first. Not every service knows the parameter. One that refuses it is asked for any JSON object, with the schema in the
prompt, and one that refuses this as well by the prompt alone. The answer is read in the same way, and kept as that to
the first form: what is asked is the same.

An answer that does not fit is followed by a question of its own: the same one, then the answer, then what is wrong with
it. So each of the two has a digest, a place in the journal, a price and a record, and nothing else needs to know of
repairs. A rerun replays both. A process that ends between them has kept the first answer, and its rerun pays for the
repair alone. If the repair does not fit either, the call fails, and a later session has what other calls get: it asks
the last question again, the repair, and supersedes its answer. It does not ask the first question anew. Its answer
is paid for, and what is wrong with it is known, so one request is enough, where a new answer might need mending too.
A call that makes no repairs supersedes the first answer, as it has nothing else to go on with.

Each repair is sent under the limits, reserves its worst case of the budget, and shares the request of an equal one in
flight, as any call. A plan counts the calls that its equations make, without repairs; an estimate has none at least,
and at most all of them, each with the longest answer before it. A failure of the request for a repair, as of any
other, fails the call with that error.

A cut answer is not mended. It would be cut again at the same number of tokens, and more of them are to be paid for.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence

import jax
import numpy as np

from ..errors import MalformedResponseError
from ..providers.base import Finish, Form, Message, Request, Response
from .asking import ModelCall, Note, Operands, of_same_sample
from .schema import CUT, Misfit, NoJSON, Record, read, response_format
from .validators import Validators


@dataclasses.dataclass(frozen=True)
class StructuredCall(ModelCall):
    """One call for an answer of a schema, which is static.

    **Attributes:**

    - `repairs`: how often the model is asked to mend an answer that does not fit.
    - `is_repair`: whether it has been asked to.
    - `validators`: those that the user has for an answer that fits.
    """

    operands: Operands
    record: Record
    repairs: int = 1
    is_repair: bool = False
    validators: Validators | None = None

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        return tuple(leaf.aval for leaf in self.record.leaves)

    def __str__(self) -> str:
        return "LLM.structured"

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        parameters = {**request.parameters, "response_format": response_format(self.record)}
        return dataclasses.replace(request, parameters=parameters, forms=self._forms)

    @functools.cached_property
    def _forms(self) -> tuple[Form, ...]:
        return _OtherForm(self.record, any_object=True), _OtherForm(self.record, any_object=False)

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        try:
            arrays, passed_over = read(self.record, response.text, self.validators)
        except Misfit as misfit:
            raise MalformedResponseError(
                f"{request.provider}/{request.model}: the answer is no {self.record.name}: "
                f"{_with_likely_cause(misfit, response)} {self._what_follows(request, response)}"
            ) from None
        if passed_over:
            note(request, passed_over)
        return arrays

    def _what_follows(self, request: Request, response: Response) -> str:
        if self._is_to_mend(request, response):
            return "The model is asked to mend it."
        failed_again = "The model was asked to mend its answer, and failed again. " if self.is_repair else ""
        return failed_again + of_same_sample(request)

    def _is_to_mend(self, request: Request, response: Response) -> bool:
        # Services refuse a turn without words, and two turns of the model one after another.
        is_turn = bool(response.text.strip()) and request.messages[-1].role != "assistant"
        return self.repairs > 0 and response.finish != Finish.LENGTH and is_turn

    def mending(self, request: Request, response: Response) -> "tuple[StructuredCall, Request] | None":
        if not self._is_to_mend(request, response):
            return None
        try:
            read(self.record, response.text, self.validators)
        except Misfit as misfit:
            repair = dataclasses.replace(self, repairs=self.repairs - 1, is_repair=True)
            return repair, repair_of(request, response.text, str(misfit).removesuffix(CUT))
        return None


# How many characters of what is wrong with its answer a model is told: a schema may have very many members to list.
_MOST_TOLD = 500


def longest_wrong(call: StructuredCall) -> str:
    """Words of as many bytes as what is wrong with an answer can have at most. It names fields, and no word of it.

    Validators say what they like.
    """
    is_ascii = call.validators is None and json.dumps(response_format(call.record), ensure_ascii=False).isascii()
    return ("x" if is_ascii else "\U0010ffff") * _MOST_TOLD


def repair_of(request: Request, answer: str, wrong: str) -> Request:
    """The question by which a model mends its answer, of which it is told what is wrong."""
    told = f"That does not fit: {wrong[:_MOST_TOLD]}. Reply with the whole JSON object again, mended, and nothing else."
    return dataclasses.replace(
        request, messages=(*request.messages, Message("assistant", answer), Message("user", told))
    )


def _with_likely_cause(misfit: Misfit, response: Response) -> str:
    """The misfit, and what how the answer ended says of it."""
    if response.finish == Finish.LENGTH:
        told = str(misfit).removesuffix(CUT)
        return f"{told}. It was cut at the most tokens that it was allowed; give it more max_tokens."
    if isinstance(misfit, NoJSON) and response.finish == Finish.STOP:
        return f"{misfit}. If the service ignores JSON schemas without a word, say in the prompt which JSON you want."
    return f"{misfit}."


@dataclasses.dataclass(frozen=True)
class _OtherForm:
    """The form of a question for an answer of a schema that has the schema in the prompt, as a function of the request.

    Equal forms are of equal schemas, as a service may refuse one schema and take another.
    """

    record: Record
    any_object: bool

    def __call__(self, request: Request) -> Request:
        *before, prompt = request.messages
        schema = json.dumps(response_format(self.record)["json_schema"]["schema"], ensure_ascii=False)
        asked = prompt.with_words(f"{_FITTING}\n{schema}")
        bare = request.without("response_format")
        wished = {"response_format": {"type": "json_object"}} if self.any_object else {}
        return dataclasses.replace(bare, messages=(*before, asked), parameters={**bare.parameters, **wished})


_FITTING = "Reply with one JSON object that fits this JSON schema, and with nothing else:"
