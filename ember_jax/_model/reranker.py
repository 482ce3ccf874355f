"""`Reranker`: a model that scores documents for a query, as a module whose settings are data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._host import invoke
from .._text import store
from .._text.operations import stack
from .._text.text import Text, text
from ..errors import MalformedResponseError, TextError
from ..providers.base import DOCUMENT, RANK, Message, Request, Response
from ..providers.vectors import unpacked
from .asking import AskedModel, ModelCall, Note, Operands, one_text, operands
from .llm import asked_by, shown_as


class Reranker(AskedModel):
    """A model that scores documents for a query.

    ```python
    reranker = ember.Reranker("cohere/rerank-v3.5")
    _, places = jax.lax.top_k(index @ embedder(question), 100)
    scores = reranker(question, documents[places])  # float32[100]
    best = documents[places[jnp.argmax(scores)]]
    ```

    A query and all of its documents are one request, which the journal keeps as one answer. The protocol is Cohere's;
    that of vLLM, Jina, Together, llama.cpp and SGLang is alike (`POST …/rerank` below the base URL). `sim/small` scores
    by the words that two texts share, and a cross-encoder on this machine is an `ember.providers.Encoder(scores=…)`.

    Scores are in the order of the documents. Those of one query can be compared; what they mean is the model's own
    matter: Cohere's are from 0 to 1, those of a cross-encoder may be any number.

    **Arguments:**

    - `model`: `provider/model`; a Text to sweep over models.
    - `settings`: further parameters as the service names them, such as `max_tokens_per_doc`. As those of an `LLM` they
        are leaves.

    **Raises:** `ModelError` for an unknown provider or model; `TypeError` for a `system` prompt and `top_n`.
    """

    model: Text
    settings: dict[str, Text]

    def __init__(self, model: str | Text, **settings: Any):
        if "top_n" in settings:
            raise TypeError(
                "Reranker(top_n=…): each document gets a score; take the best by `jax.lax.top_k(scores, n)`."
            )
        self.model, self.settings = asked_by("Reranker", model, settings)

    def __call__(self, query: str | Text, documents: str | Text | Sequence[str | Text]) -> jax.Array:
        """The scores of some documents, or that of one.

        **Arguments:**

        - `query`: a Text of rank 0, or a string.
        - `documents`: a Text of rank 1, or a list of strings. Or one document, a Text of rank 0 or a string: so a
            Reranker is the scorer of a `non.BestOfN(llm, reranker)`, with a request for each answer.

        **Returns:** `float32[documents]`, or `float32[]` of one document; derivative zero. No documents have no scores,
        and nothing is asked.

        **Raises:** `TextError` for texts of another rank or type; a `ProviderError` if the call fails, which is a
        `MalformedResponseError` if the answer has not one finite score for each document.
        """
        asked = one_text(query, "a Reranker", "jax.vmap(reranker, (0, None))(queries, documents)", "query")
        among = _documents(documents)
        if among.shape == (0,):
            return jnp.zeros(0, jnp.float32)
        static, arrays = operands(self.model, None, self.settings, asked, None, [among])
        call = RankCall(static, among.shape)
        return invoke(call, call.out, *arrays)[0]

    def __repr__(self) -> str:
        return shown_as("Reranker", self.model, self.settings)


def _documents(value: Any) -> Text:
    """Documents as a Text of rank 1, or one of rank 0."""
    if isinstance(value, list | tuple):
        if not value:
            return text(np.zeros(0, "U1"))
        value = stack(value) if any(isinstance(document, Text) for document in value) else text(value)
    if not isinstance(value, Text | str):
        raise TextError(f"a Reranker takes documents as a Text or a list of strings; got {type(value).__name__}.")
    value = text(value) if isinstance(value, str) else value
    if value.ndim > 1:
        raise TextError(
            f"the documents have shape {list(value.shape)}; a Reranker takes one list of them. For a list of its own "
            "for each query, `jax.vmap(reranker)(queries, documents)`."
        )
    return value


@dataclasses.dataclass(frozen=True)
class RankCall(ModelCall):
    """One call for the scores of documents; they are an operand, only their shape is static."""

    operands: Operands
    shape: tuple[int, ...]

    @property
    def draws_shared(self) -> bool:  # type: ignore[override]
        return False  # nothing is drawn

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        return (jax.ShapeDtypeStruct(self.shape, np.float32),)

    def __str__(self) -> str:
        return "Reranker"

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        documents = store.get_array(extra[0].reshape(-1, store.DIGEST_WORDS))
        query = Message(RANK, request.messages[-1].content)
        messages = (query, *(Message(DOCUMENT, document) for document in documents))
        return dataclasses.replace(request, messages=messages)

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        asked, n = f"{request.provider}/{request.model}", len(request.messages) - 1
        try:
            scores = unpacked(response.text, 1)[0]
        except ValueError:
            raise MalformedResponseError(
                f"{asked}: the answer is no list of scores. A function of one's own that scores is an "
                "ember.providers.Encoder(scores=…)."
            ) from None
        if len(scores) != n:
            raise MalformedResponseError(f"{asked}: the answer has {len(scores)} scores for {n} documents.")
        if not np.isfinite(scores).all():
            place = int(np.argmin(np.isfinite(scores)))
            raise MalformedResponseError(f"{asked}: the score of document {place} is no finite number.")
        return [scores.reshape(self.shape)]
