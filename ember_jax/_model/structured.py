"""`LLM.structured`: the call whose answer is the fields of a class.

Design note. A service that is given the schema as a parameter lets the model say nothing else, so that is asked for
first. Not every service knows the parameter. One that refuses it is asked for any JSON object, with the schema in the
prompt, and one that refuses this as well by the prompt alone. The answer is read in the same way, and kept as that to
the first form: what is asked is the same.
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
import numpy as np

from .._errors import MalformedResponseError
from .._providers.base import Request, Response
from .asking import ModelCall, Note, Operands, of_same_sample
from .schema import Misfit, Record, read, response_format


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
        return dataclasses.replace(request, parameters=parameters, forms=(_as_any_object, _by_the_prompt))

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        try:
            arrays, passed_over = read(self.record, response.text)
        except Misfit as misfit:
            raise MalformedResponseError(
                f"{request.provider}/{request.model}: the answer is no {self.record.name}: {misfit}. "
                f"{of_same_sample(request)}"
            ) from None
        if passed_over:
            note(request, passed_over)
        return arrays


def _as_any_object(request: Request) -> Request:
    parameters = {**request.parameters, "response_format": {"type": "json_object"}}
    return dataclasses.replace(_by_the_prompt(request), parameters=parameters)


def _by_the_prompt(request: Request) -> Request:
    *before, prompt = request.messages
    schema = json.dumps(request.parameters["response_format"]["json_schema"]["schema"], ensure_ascii=False)
    words = (
        f"{prompt.content}\n\nReply with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"
    )
    return dataclasses.replace(request.without("response_format"), messages=(*before, prompt._replace(content=words)))
