"""Scores of documents for a query. Nothing here does IO.

Design note. The protocol is Cohere's, which others have taken over: Jina, Together, vLLM, llama.cpp, SGLang, Infinity,
LiteLLM. Results come with the best first, so each says which document it is of. Servers differ in what they call a
score, in whether the results stand in an object, and in how they give back the documents, which are not read. `top_n`
is never sent: a document without a score would have to be given one.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import MalformedResponseError, RefusedRequestError
from . import billed
from .base import Request, Response, Tokens
from .dialect import Failure, HTTPAnswer, HTTPRequest, decoded
from .vectors import packed


def built(request: Request, path: str) -> HTTPRequest | Failure:
    """What to send for the scores of a request's documents, to a path below the base URL."""
    if taken := sorted({"model", "query", "documents", "top_n"} & request.parameters.keys()):
        return Failure(RefusedRequestError, f"the parameter {taken[0]!r} is not yours to set.")
    query, *documents = [message.content for message in request.messages]
    body = {"model": request.model, "query": query, "documents": documents, **request.parameters}
    return HTTPRequest(path, {}, body)


def read(answer: HTTPAnswer, request: Request) -> Response | Failure:
    """What an answer with a status of success says: the scores in the order of the documents."""
    if answer.body.lstrip().startswith(b"["):  # SGLang has no object around it
        answer = answer._replace(body=b'{"results":%b}' % answer.body)
    ranked = decoded(answer, _Ranked, "a list of scores", "is the base URL right?")
    if isinstance(ranked, Failure):
        return ranked._replace(tokens=billed.tokens_in(answer))
    tokens, n = billed.tokens_of(ranked.usage, ranked.meta), len(request.messages) - 1
    if sorted(result.index for result in ranked.results) != list(range(n)):
        said = f"the answer has {len(ranked.results)} scores for {n} documents, or not one for each."
        return Failure(MalformedResponseError, said, (), tokens)
    scores = np.full(n, math.nan, np.float32)
    for result in ranked.results:
        score = result.score if result.relevance_score is None else result.relevance_score
        scores[result.index] = math.nan if score is None else score
    if not np.isfinite(scores).all():
        place = int(np.argmin(np.isfinite(scores)))
        said = f"the answer's score of document {place} is no finite number."
        return Failure(MalformedResponseError, said, (), tokens)
    model, used = ranked.model or request.model, tokens or Tokens()
    cost = billed.cost(answer, request, tokens, model)
    id = answer.headers.get("x-request-id") or ranked.id or ""
    return Response(packed(scores), int(used.input), cost=cost, model=model, request_id=id)


@dataclass
class _Relevance:
    index: int
    relevance_score: float | None = None
    score: float | None = None


@dataclass
class _Ranked:
    results: list[_Relevance]
    id: str | None = None
    model: str | None = None
    usage: billed.Usage | None = None
    meta: billed.Meta | None = None
