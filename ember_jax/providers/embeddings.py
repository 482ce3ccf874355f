"""Vectors of texts, in OpenAI's protocol and as they are read from any. Nothing here does IO.

Design note. Vectors are asked for in base64, which is exact, and a quarter of the bytes of decimals. Servers that
refuse `encoding_format`, or `dimensions`, are asked without both, see `_model/embedder.py`; what they then send is read
as well. Whether the vectors have the length that is wanted is seen where they are used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MalformedResponseError, RefusedRequestError
from . import billed
from .base import Request, Response, Tokens
from .dialect import Failure, HTTPAnswer, HTTPRequest, decoded
from .vectors import packed, unpacked


def built(request: Request, renamed: Mapping[str, str]) -> HTTPRequest | Failure:
    """What to send for the vectors of a request's texts; `renamed` are the service's own names of parameters."""
    if taken := sorted({"model", "input"} & request.parameters.keys()):
        return Failure(RefusedRequestError, f"the parameter {taken[0]!r} is not yours to set.")
    given = {renamed.get(name, name): value for name, value in request.parameters.items()}
    body = {"model": request.model, "input": [message.content for message in request.messages], **given}
    return HTTPRequest("/embeddings", {}, body)


def read(answer: HTTPAnswer, request: Request) -> Response | Failure:
    """What an answer with a status of success says: the vectors in the order of the texts."""
    listed = decoded(answer, _Listed, "a list of embeddings", "does the base URL end with /v1?")
    if isinstance(listed, Failure):
        return listed._replace(tokens=billed.tokens_in(answer))
    tokens = billed.tokens_of(listed.usage)
    # Some servers leave out the places; the vectors are then in the order of the texts.
    places = [i if e.index is None else e.index for i, e in enumerate(listed.data)]
    if sorted(places) != list(range(len(request.messages))):
        return _too_few(len(places), request, tokens)
    by_place = dict(zip(places, listed.data, strict=True))
    sent = [by_place[i].embedding for i in range(len(places))]
    id = answer.headers.get("x-request-id") or listed.id or ""
    return response(answer, request, sent, tokens, listed.model or request.model, id)


def response(
    answer: HTTPAnswer, request: Request, sent: Sequence[Any], tokens: Tokens | None, model: str, id: str
) -> Response | Failure:
    """Vectors, each of which is a list of numbers or base64, as an answer; or why they are none.

    **Arguments:**

    - `answer`, `request`: that they came in, and that it answers.
    - `sent`: the vectors, in the order of the texts.
    - `tokens`: what the service bills, if it says.
    - `model`, `id`: as the service names what answered, and the answer.
    """
    if len(sent) != len(request.messages):
        return _too_few(len(sent), request, tokens)
    try:
        vectors = np.stack([_vector(vector) for vector in sent])
    except (ValueError, TypeError, OverflowError):
        return Failure(MalformedResponseError, "the answer's vectors are no numbers of one length.", (), tokens)
    if not (vectors.size and np.isfinite(vectors).all()):
        return Failure(MalformedResponseError, "the answer has a vector that is empty, or not finite.", (), tokens)
    cost, used = billed.cost(answer, request, tokens, model), tokens or Tokens()
    return Response(packed(vectors), int(used.input), cost=cost, model=model, request_id=id)


def _too_few(vectors: int, request: Request, tokens: Tokens | None) -> Failure:
    said = f"the answer has {vectors} vectors for {len(request.messages)} texts, or not one for each."
    return Failure(MalformedResponseError, said, (), tokens)


def _vector(sent: Any) -> np.ndarray:
    if isinstance(sent, str):
        return unpacked(sent, 1)[0]
    vector = np.array(sent, np.float32)
    if vector.ndim != 1:  # as of a server that sends a vector for each token
        raise ValueError("no vector")
    return vector


@dataclass
class _Embedding:
    # A string in base64, or a list of numbers.
    embedding: Any
    index: int | None = None


@dataclass
class _Listed:
    data: list[_Embedding]
    id: str | None = None
    model: str | None = None
    usage: billed.Usage | None = None
