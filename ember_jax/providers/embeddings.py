"""Vectors of texts in OpenAI's protocol. Nothing here does IO.

Design note. Vectors are asked for in base64, which is exact, and a quarter of the bytes of decimals. Servers that
refuse `encoding_format`, or `dimensions`, are asked without both, see `_model/embedder.py`; what they then send is read
as well. Whether the vectors have the length that is wanted is seen where they are used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MalformedResponseError, RefusedRequestError
from . import prices
from .base import Request, Response, Tokens
from .dialect import Failure, HTTPAnswer, HTTPRequest, count, decoded, dollars, usage_in
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
        return listed._replace(tokens=_tokens(usage_in(answer.body, _Usage)))
    tokens, n = _tokens(listed.usage), len(request.messages)
    # Some servers leave out the places; the vectors are then in the order of the texts.
    places = [i if e.index is None else e.index for i, e in enumerate(listed.data)]
    if sorted(places) != list(range(n)):
        said = f"the answer has {len(places)} vectors for {n} texts, or not one for each."
        return Failure(MalformedResponseError, said, (), tokens)
    by_place = dict(zip(places, listed.data, strict=True))
    try:
        vectors = np.stack([_vector(by_place[i].embedding) for i in range(n)])
    except (ValueError, TypeError, OverflowError):
        return Failure(MalformedResponseError, "the answer's vectors are no numbers of one length.", (), tokens)
    if not (vectors.size and np.isfinite(vectors).all()):
        return Failure(MalformedResponseError, "the answer has a vector that is empty, or not finite.", (), tokens)
    model, used = listed.model or request.model, tokens or Tokens()
    known = prices.cost(request, tokens, model) if tokens else dollars(None)
    cost = known if known == known else dollars(answer.headers.get("x-litellm-response-cost"))  # NaN if not known
    id = answer.headers.get("x-request-id") or listed.id or ""
    return Response(packed(vectors), int(used.input), cost=cost, model=model, request_id=id)


def _vector(sent: Any) -> np.ndarray:
    if isinstance(sent, str):
        return unpacked(sent, 1)[0]
    vector = np.array(sent, np.float32)
    if vector.ndim != 1:  # as of a server that sends a vector for each token
        raise ValueError("no vector")
    return vector


def _tokens(usage: "_Usage | None") -> Tokens | None:
    said = None if usage is None else usage.total_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    return None if said is None else Tokens(count(said))


@dataclass
class _Embedding:
    # A string in base64, or a list of numbers.
    embedding: Any
    index: int | None = None


@dataclass
class _Usage:
    prompt_tokens: int | None = None
    total_tokens: int | None = None


@dataclass
class _Listed:
    data: list[_Embedding]
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
