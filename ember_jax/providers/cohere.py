"""Cohere: vectors and scores in its own protocol, and chat in OpenAI's. Nothing here does IO.

The wire of the first two is that of cohere 7.3.1, which `tests/sdk/cohere.json` has in full. Chat goes to the endpoint
that Cohere has for OpenAI's clients; its page "Using Cohere models via the OpenAI SDK" lists the parameters it takes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import RefusedRequestError
from . import billed, embeddings, prices, quota, rerank
from .base import Request, Response
from .dialect import Dialect, Failure, HTTPAnswer, HTTPRequest, Listing, Meaning, SampledAnswers, Service, decoded
from .http import TIMEOUT, HTTPProvider, Vendor
from .openai import ChatCompletions, Deviations

if TYPE_CHECKING:
    import httpx
    import httpx2

SERVICE = Service("Cohere", "https://api.cohere.com", ("CO_API_URL",), ("CO_API_KEY", "COHERE_API_KEY"))


class Cohere(Vendor):
    """Cohere, or a server that speaks its protocol.

    **Arguments:**

    - `base_url`: the server's URL, without a version. By default the environment's `CO_API_URL`, else Cohere itself.
    - `api_key`: by default the environment's `CO_API_KEY`, else `COHERE_API_KEY`, whatever the `base_url`; `""` sends
        none.
    - `client`, `timeout`: as for `OpenAI`.

    An `Embedder` sends `input_type="search_document"` unless it is given another: the service demands one, and most
    texts are what is searched in. Give the questions an embedder of their own, with `input_type="search_query"`;
    others are `classification` and `clustering`. A text that is too long is cut, unless `truncate="NONE"` has it
    refused. A `Reranker` likewise reads the beginning of a document, of `max_tokens_per_doc` tokens. It is billed by
    search units, for which the price table has no price. Chat has no `n`, `logit_bias`, `top_logprobs` and streams.

    The environment is read at each call. Prices are looked up by the provider name that it is registered under.

    **Raises:** `ValueError` for a `base_url` that is no whole URL; `TypeError` for another `client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None" = None,
        timeout: float = TIMEOUT,
    ):
        self._http = HTTPProvider(CohereVersions(SERVICE), base_url, api_key, client, timeout)


_CHAT = ChatCompletions(SERVICE, Deviations(renamed=(("max_completion_tokens", "max_tokens"),), most_samples=1))


@dataclass(frozen=True)
class CohereVersions(Dialect):
    """The dialect of Cohere: `/v2` for vectors and scores, and `/compatibility/v1` for chat."""

    service: Service
    listing: ClassVar[Listing] = Listing(
        "/v1/models?page_size=1000", {}, "models", "name", "", ("next_page_token", "page_token")
    )
    embeds: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    quota_headers: ClassVar[tuple[str, ...]] = quota.FAMILIES

    def authorization(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def build(self, request: Request) -> HTTPRequest | Failure:
        if request.embeds:
            return _embed(request)
        if request.ranks:
            return rerank.built(request, "/v2/rerank")
        built = _CHAT.build(request)
        return built if isinstance(built, Failure) else built._replace(path=f"/compatibility/v1{built.path}")

    def read(self, answer: HTTPAnswer, request: Request) -> Response | SampledAnswers | Failure:
        if request.embeds:
            return _embedded(answer, request)
        if request.ranks:
            return rerank.read(answer, request)
        return _CHAT.read(answer, request)

    def most_output(self, request: Request) -> float:
        return prices.context_window(request.provider, request.model)

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        return _CHAT.meaning(answer)


_TAKEN = frozenset(("embedding_types", "images", "inputs", "model", "texts"))


def _embed(request: Request) -> HTTPRequest | Failure:
    """What to send for the vectors of a request's texts."""
    if taken := sorted(_TAKEN & request.parameters.keys()):
        return Failure(RefusedRequestError, f"the parameter {taken[0]!r} is not yours to set.")
    # Decimals are as exact as base64, for they were float32.
    given: dict[str, Any] = {k: v for k, v in request.parameters.items() if k != "encoding_format"}
    if (dim := given.pop("dimensions", None)) is not None:
        given["output_dimension"] = dim
    texts = [message.content for message in request.messages]
    named = {"model": request.model, "input_type": "search_document", "embedding_types": ["float"]}
    return HTTPRequest("/v2/embed", {}, {"texts": texts, **named, **given})


def _embedded(answer: HTTPAnswer, request: Request) -> Response | Failure:
    """What an answer with a status of success says: the vectors in the order of the texts."""
    said = decoded(answer, _ByType, "an answer of /v2/embed", "is the base URL right?")
    if isinstance(said, Failure):
        return said._replace(tokens=billed.tokens_in(answer))
    tokens = billed.tokens_of(None, said.meta)
    return embeddings.response(answer, request, said.embeddings.float, tokens, request.model, said.id or "")


@dataclass
class _Decimals:
    float: list[Any]


@dataclass
class _ByType:
    embeddings: _Decimals
    id: str | None = None
    meta: billed.Meta | None = None
