"""Providers by name. The name is the part of a model id before the first `/`."""

import asyncio
import difflib
import functools
import threading
from collections.abc import Mapping

from ..errors import ModelError
from . import _built_in, _built_in_names
from .base import Provider
from .sim import Sim

_lock = threading.Lock()
_providers: dict[str, Provider] = {}


def register(name: str, provider: Provider) -> Provider | None:
    """Lets model ids that begin with `name/` be answered by `provider`, from the next call on.

    **Returns:** the provider that the name stood for, if no name stands for it any more.

    **Raises:** `ModelError` for a name that cannot stand in a model id; `TypeError` for what is not a `Provider`.
    """
    if not name or "/" in name or name != name.strip():
        raise ModelError(f"{name!r} cannot name a provider: give a word without '/', such as 'local'.")
    if not isinstance(provider, Provider):
        raise TypeError(
            f"register({name!r}, …) takes a Provider, not {type(provider).__name__}; "
            f"wrap a function: register({name!r}, ember.providers.Callable(fn))."
        )
    with _lock:
        before, _providers[name] = _providers.get(name), provider
        return None if any(before is known for known in _providers.values()) else before


# How alike two names must be for one to be a slip of the other: `smi` is like `sim`, and `gemini` is not like `mine`.
_ALIKE = 0.65


def get(name: str, instead: Mapping[str, Provider] | None = None) -> Provider:
    """The provider of that name; of those in `instead`, if it is among them.

    **Raises:** `ModelError` if there is none. It lists those that there are, and says how to add one.
    """
    if instead and name in instead:
        return instead[name]
    with _lock:
        if name in _providers:
            return _providers[name]
        # Made when first asked for, so that a provider nobody uses costs nothing.
        if (made := _built_in(name)) is not None:
            return _providers.setdefault(name, made)
        known = sorted({*_providers, *_built_in_names(), *(instead or ())})
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=_ALIKE)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ModelError(
        f"There is no provider {name!r}; there are {', '.join(known)}.{hint} Others with an endpoint like "
        "OpenAI's, which most have, are added under a name of yours: "
        f'`ember.register({name!r}, ember.providers.OpenAI(base_url="https://…/v1", api_key=…))`; a Python function by '
        "`ember.providers.Callable(fn)`."
    )


@functools.lru_cache(maxsize=4096)  # every call splits its model id, and a sweep has few models
def split(model_id: str) -> tuple[str, str]:
    """`provider/model` as its two halves; a model's own name may hold more slashes. Raises `ModelError`."""
    provider, slash, model = model_id.partition("/")
    if not slash or not provider or not model or model_id != model_id.strip():
        raise ModelError(
            f"{model_id!r} is not a model id: write 'provider/model', such as 'sim/small' or 'openai/gpt-4o-mini'."
            + _guess(model_id.strip())
        )
    return provider, model


def _guess(name: str) -> str:
    """A hint, if a name without a provider is that of a built-in simulated model; else empty."""
    if "/" in name:
        return ""
    try:
        Sim().check(name)
    except ModelError:
        return ""
    return f" Did you mean 'sim/{name}'?"


def check(model_id: str, instead: Mapping[str, Provider] | None = None) -> None:
    """Raises `ModelError` if a model id is malformed, or names a provider or model known not to exist.

    `instead` are providers by name, such as a session's own, that are used in place of the registered ones.
    """
    provider, model = split(model_id)
    get(provider, instead).check(model)


async def close_all() -> None:
    """Closes every provider that is registered or was used. They stay registered and may be used again.

    All are closed, even where one fails; the first failure is then raised.
    """
    with _lock:
        providers = list(_providers.values())
    results = await asyncio.gather(*(p.close() for p in providers), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
