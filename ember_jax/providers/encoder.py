"""Python functions that make vectors and scores, as a provider."""

import asyncio
from collections import abc
from typing import Any

import numpy as np

from ..errors import MalformedResponseError, RefusedRequestError
from .base import Provider, Request, Response
from .vectors import packed


class Encoder(Provider):
    """Answers an `Embedder` with `fn(texts)`: of a list of strings, their vectors as an array `[texts, dim]`.

    And a `Reranker` with `scores(pairs)`: of a list of pairs of a query and a document, their scores as an array
    `[pairs]`.

    ```python
    model = sentence_transformers.SentenceTransformer("all-MiniLM-L6-v2")
    ember.register("local", ember.providers.Encoder(model.encode, cache="all-MiniLM-L6-v2"))
    embedder = ember.Embedder("local/minilm", dim=384)

    model = sentence_transformers.CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")
    ember.register("cross", ember.providers.Encoder(scores=model.predict, cache="ms-marco-MiniLM-L6-v2"))
    reranker = ember.Reranker("cross/minilm")
    ```

    **Arguments:**

    - `fn`, `scores`: the functions, of which one may be left out. They run in a thread, and must be safe to call from
        several. What they raise goes through unchanged.
    - `cache`: as for `Callable`.

    **Raises:** `TypeError` if neither is given, or what is given cannot be called.
    """

    is_local = True

    def __init__(
        self,
        fn: abc.Callable[[list[str]], Any] | None = None,
        cache: str | None = None,
        scores: abc.Callable[[list[tuple[str, str]]], Any] | None = None,
    ):
        given = [function for function in (fn, scores) if function is not None]
        if not given or not all(map(callable, given)):
            raise TypeError(
                f"Encoder() takes a function of a list of strings, not {fn if scores is None else scores!r}."
            )
        self._fn = fn
        self._scores = scores
        self._cache = cache

    def __repr__(self) -> str:
        functions = {"": self._fn, "scores=": self._scores}
        shown = [f"{name}{getattr(f, '__qualname__', f)}" for name, f in functions.items() if f is not None]
        return f"Encoder({', '.join(shown)})"

    @property
    def endpoint(self) -> str | None:
        """The name that vectors and scores are kept under; `None` without one."""
        return self._cache

    def check(self, model: str) -> None:
        """Every name is known: the function has one model."""

    async def complete(self, request: Request) -> Response:
        texts = [message.content for message in request.messages]
        if request.embeds and self._fn is not None:
            return await self._answer(request, self._fn, texts, 2, "text", "[texts, dim]")
        if request.ranks and self._scores is not None:
            pairs = [(texts[0], document) for document in texts[1:]]
            return await self._answer(request, self._scores, pairs, 1, "pair", "[pairs]")
        asked = f"{request.provider}/{request.model}"
        if request.asks_words:
            raise RefusedRequestError(f"{asked}: {self!r} gives vectors and no words; ask it by an ember.Embedder.")
        what, how = ("vectors", "Encoder(encode)") if request.embeds else ("scores", "Encoder(scores=predict)")
        raise RefusedRequestError(f"{asked}: {self!r} gives no {what}; {how} does.")

    async def _answer(
        self, request: Request, fn: abc.Callable[[Any], Any], items: list[Any], rank: int, noun: str, shape: str
    ) -> Response:
        """What a function makes of some items, an array of a rank with a part for each of them."""
        found = np.asarray(await asyncio.to_thread(fn, items), np.float32)
        if found.ndim != rank or len(found) != len(items) or not found.size:
            raise MalformedResponseError(
                f"{request.provider}/{request.model}: {self!r} returned an array of shape {list(found.shape)} for "
                f"{len(items)} {noun}s; return one {'vector' if rank > 1 else 'number'} for each, as {shape}."
            )
        return Response(packed(found), model=request.model)

    async def close(self) -> None:
        """There is nothing to free."""
