"""A Python function as a provider."""

import asyncio
import inspect
from collections import abc
from typing import Any

from .base import Provider, Request, Response
from .given import response_of, unknown


class Callable(Provider):
    """Answers with `fn(request)`: a `str`, a whole `Response`, or what another package's call of a model returns.

    ```python
    from ember_jax.providers import Callable, chat

    Callable(lambda r: client.chat.completions.create(model=r.model, messages=chat(r), **r.parameters))  # openai
    Callable(lambda r: litellm.acompletion(model=r.model, messages=chat(r), **r.parameters))
    Callable(lambda r: model.ainvoke(chat(r)))  # a chat model of LangChain
    Callable(lambda r: lm(messages=chat(r)))  # a dspy.LM
    Callable(lambda r: pipe(chat(r)))  # a pipeline of transformers
    ```

    Tokens, how the answer ended and calls of tools are taken from it where it tells them.

    An `async def` runs on the event loop and must not block it. A plain function runs in a thread of the loop's
    default pool, which has `min(32, CPUs + 4)` of them: no more than that many run at once, and it must be safe to
    call from several threads. What `fn` raises goes through unchanged; raise a `ProviderError` such as
    `RateLimitError` or `ServerError` for what is worth another try.

    **Arguments:**

    - `fn`: the function.
    - `cache`: a name with a version, such as `"search:v1"`, under which the user's own journal keeps the answers. Give
        a changed function another name. Without a name the answers are kept in the journal that the session names, or
        else only as long as the session: nobody could tell when the function was changed.

    **Raises:** `TypeError` if `fn` cannot be called.

    **Example:**

        def shout(request):
            return request.messages[-1].content.upper()

        register("mine", Callable(shout))  # then the model id is "mine/anything"
    """

    is_local = True

    def __init__(self, fn: abc.Callable[[Request], Any], cache: str | None = None):
        if not callable(fn):
            raise TypeError(f"Callable() takes a function of one Request, not {fn!r}.")
        self._fn = fn
        self._cache = cache
        # `iscoroutinefunction` is false for an object with an `async def __call__`, so its class is asked too.
        self._is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)

    def __repr__(self) -> str:
        return f"Callable({getattr(self._fn, '__qualname__', self._fn)})"

    @property
    def endpoint(self) -> str | None:
        """The name that answers are kept under; `None` without one."""
        return self._cache

    def check(self, model: str) -> None:
        """Every model is known: the function sees its name as `request.model`."""

    async def complete(self, request: Request) -> Response:
        result = self._fn(request) if self._is_async else await asyncio.to_thread(self._fn, request)
        # A plain function may still return an awaitable, as a lambda around an `async def` does.
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, str):
            return Response(text=result, model=request.model)
        if isinstance(result, Response):
            return result
        response = response_of(result, request)
        if response is None:
            raise unknown(result, request, self)
        return response

    async def close(self) -> None:
        """There is nothing to free."""
