"""`LLM.structured`: the call whose answer is the fields of a class."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from .._errors import MalformedResponseError
from .._providers.base import Request, Response
from .asking import ModelCall, Operands, of_same_sample
from .schema import Misfit, Record, read, response_format


@dataclasses.dataclass(frozen=True)
class StructuredCall(ModelCall):
    """One call for an answer of a schema, which is static."""

    operands: Operands
    record: Record

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        return tuple(leaf.aval for leaf in self.record.leaves())

    def __str__(self) -> str:
        return "LLM.structured"

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        parameters = {**request.parameters, "response_format": response_format(self.record)}
        return dataclasses.replace(request, parameters=parameters)

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            return read(self.record, response.text)
        except Misfit as misfit:
            raise MalformedResponseError(
                f"{request.provider}/{request.model}: the answer is no {self.record.name}: {misfit}. "
                f"{of_same_sample(request)}"
            ) from None
