"""`LLM.structured`: the call whose answer is the fields of a class.

Design note. A service that is given the schema as a parameter lets the model say nothing else, so that is asked for
first. Not every service knows the parameter. One that refuses it is asked for any JSON object, with the schema in the
prompt, and one that refuses this as well by the prompt alone. The answer is read in the same way, and kept as that to
the first form: what is asked is the same.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence

import jax
import numpy as np

from ..errors import MalformedResponseError
from ..providers.base import Finish, Form, Request, Response
from .asking import ModelCall, Note, Operands, of_same_sample
from .schema import CUT, Misfit, NoJSON, Record, read, response_format


@dataclasses.dataclass(frozen=True)
class StructuredCall(ModelCall):
    """One call for an answer of a schema, which is static."""

    operands: Operands
    record: Record

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
            arrays, passed_over = read(self.record, response.text)
        except Misfit as misfit:
            raise MalformedResponseError(
                f"{request.provider}/{request.model}: the answer is no {self.record.name}: "
                f"{_with_likely_cause(misfit, response)} {of_same_sample(request)}"
            ) from None
        if passed_over:
            note(request, passed_over)
        return arrays


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
