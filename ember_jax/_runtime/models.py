"""`models`: which models a provider has."""

from ..providers.base import Provider
from . import interrupt
from . import session as sessions
from .dropping import hold, let_go
from .loop import forbid_in_loop


def models(provider: str) -> list[str]:
    """The ids of a provider's models, as it lists them now: `ember.models("openai")` has `"openai/gpt-4o-mini"`.

    Whatever the service lists is here, what is no model of text too. Later in this process, an error of a model that
    the service does not know names the nearest of them.

    **Arguments:**

    - `provider`: its name, `sim`, `openai`, `groq`, …; one of the session's own, or a registered one.

    **Raises:** `ModelError` for an unknown provider, and for one that has no list, as a function has not;
    `AuthenticationError`, and any other `ProviderError`, if the service does not answer with a list.
    """
    forbid_in_loop("ember.models")
    found = sessions.current().provider(provider)
    names = interrupt.wait(sessions.loop().work(_held(found)), in_callback=False)
    return sorted(f"{provider}/{name}" for name in names)


async def _held(provider: Provider) -> tuple[str, ...]:
    hold(provider)
    try:
        return await provider.models()
    finally:
        let_go(provider)
