"""A Python function that makes vectors, as a provider."""

import asyncio
from collections import abc
from typing import Any

import numpy as np

from ..errors import MalformedResponseError, RefusedRequestError
from .base import Provider, Request, Response
from .vectors import packed


class Encoder(Provider):
    """Answers an `Embedder` with `fn(texts)`: of a list of strings, their vectors as an array `[texts, dim]`.

    ```python
    model = sentence_transformers.SentenceTransformer("all-MiniLM-L6-v2")
    ember.register("local", ember.providers.Encoder(model.encode, cache="all-MiniLM-L6-v2"))
    embedder = ember.Embedder("local/minilm", dim=384)
    ```

    **Arguments:**

    - `fn`: the function. It runs in a thread, and must be safe to call from several. What it raises goes through
        unchanged.
    - `cache`: as for `Callable`.

    **Raises:** `TypeError` if `fn` cannot be called.
    """

    is_local = True

    def __init__(self, fn: abc.Callable[[list[str]], Any], cache: str | None = None):
        if not callable(fn):
            raise TypeError(f"Encoder() takes a function of a list of strings, not {fn!r}.")
        self._fn = fn
        self._cache = cache

    def __repr__(self) -> str:
        return f"Encoder({getattr(self._fn, '__qualname__', self._fn)})"

    @property
    def endpoint(self) -> str | None:
        """The name that vectors are kept under; `None` without one."""
        return self._cache

    def check(self, model: str) -> None:
        """Every name is known: the function has one model."""

    async def complete(self, request: Request) -> Response:
        asked = f"{request.provider}/{request.model}"
        if not request.embeds:
            raise RefusedRequestError(f"{asked}: {self!r} gives vectors and no words; ask it by an ember.Embedder.")
        texts = [message.content for message in request.messages]
        vectors = np.asarray(await asyncio.to_thread(self._fn, texts), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.size:
            raise MalformedResponseError(
                f"{asked}: {self!r} returned an array of shape {list(vectors.shape)} for {len(texts)} texts; return "
                "one vector for each, as [texts, dim]."
            )
        return Response(packed(vectors), model=request.model)

    async def close(self) -> None:
        """There is nothing to free."""
