"""`Embedder`: a model that gives vectors of texts, as a module whose settings are data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._host import invoke
from .._text.text import Text
from ..errors import MalformedResponseError
from ..providers.base import EMBED, Message, Request, Response
from ..providers.vectors import unpacked
from .asking import AskedModel, ModelCall, Note, Operands, one_text, operands
from .llm import asked_by, shown_as


class Embedder(AskedModel):
    """A model that gives vectors of texts.

    ```python
    embedder = ember.Embedder("openai/text-embedding-3-small", dim=512)
    index = jax.vmap(embedder)(documents)  # float32[documents, 512]
    scores = index @ embedder("Where is the market?")
    ```

    It takes one text; lanes that are ready at once share a request, of as many texts as the service takes: mostly 96
    texts and 300,000 bytes. Each text has a place of its own in the journal, so a larger sweep pays only for what is
    new. A batch counts as one request, for limits and in the report. A text that is longer than the model reads, as far
    as the price table knows, is not sent. Services differ in whether they take an empty one.

    **Arguments:**

    - `model`: `provider/model`; a Text to sweep over models.
    - `dim`: how long the vectors are. It is sent as `dimensions`, or what the service calls it, and must be the model's
        own length where a service cannot shorten them.
    - `settings`: further parameters as the service names them, such as `encoding_format="float"` for a server that
        cannot send base64, `task_type` for Gemini, `input_type` for Cohere. As those of an `LLM` they are leaves.

    **Raises:** `ModelError` for an unknown provider or model; `ValueError` for a `dim` that is not a whole number of at
    least 1; `TypeError` for a `system` prompt and `dimensions`.
    """

    model: Text
    settings: dict[str, Text]
    dim: int = eqx.field(static=True)

    def __init__(self, model: str | Text, dim: int, **settings: Any):
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"Embedder(dim={dim!r}): give the length of the vectors, a whole number of at least 1.")
        if "dimensions" in settings:
            raise TypeError("Embedder(dimensions=…): the length of the vectors is `dim`.")
        self.model, self.settings = asked_by("Embedder", model, settings)
        self.dim = dim

    def __call__(self, text: str | Text) -> jax.Array:
        """The vector of a text.

        **Arguments:**

        - `text`: a Text of rank 0, or a string.

        **Returns:** `float32[dim]`, as the service gives it, which mostly is of length 1; derivative zero.

        **Raises:** `TextError` for a text of another rank or type; a `ProviderError` if the call fails, which is a
        `MalformedResponseError` if the vector has another length or a number that is not finite.
        """
        one = one_text(text, "an Embedder", "jax.vmap(embedder)(texts)")
        static, arrays = operands(self.model, None, self.settings, one, None)
        call = EmbedCall(static, self.dim)
        return invoke(call, call.out, *arrays)[0]

    def __repr__(self) -> str:
        return shown_as("Embedder", self.model, self.settings, f"dim={self.dim}")


@dataclasses.dataclass(frozen=True)
class EmbedCall(ModelCall):
    """One call for the vector of a text."""

    operands: Operands
    dim: int

    @property
    def draws_shared(self) -> bool:  # type: ignore[override]
        return False  # nothing is drawn

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        return (jax.ShapeDtypeStruct((self.dim,), np.float32),)

    def __str__(self) -> str:
        return "Embedder"

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        parameters = {"dimensions": self.dim, "encoding_format": "base64", **request.parameters}
        messages = (Message(EMBED, request.messages[-1].content),)
        return dataclasses.replace(request, messages=messages, parameters=parameters, forms=(_plain,))

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        asked = f"{request.provider}/{request.model}"
        try:
            vector = unpacked(response.text, 1)[0]
        except ValueError:
            raise MalformedResponseError(f"{asked}: the answer is no vector.") from None
        if len(vector) != self.dim:
            raise MalformedResponseError(
                f"{asked}: the model gives vectors of length {len(vector)}, not {self.dim}; the service does not "
                f"shorten them. Write Embedder({asked!r}, dim={len(vector)})."
            )
        if not np.isfinite(vector).all():
            raise MalformedResponseError(f"{asked}: the vector has a number that is not finite.")
        return [vector]


def _plain(request: Request) -> Request:
    """The form of the question that every server takes."""
    return request.without("dimensions", "encoding_format")
