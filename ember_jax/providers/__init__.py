"""Whom calls are made through: `ember.providers`."""

import importlib
import sys
from typing import TYPE_CHECKING

from .._later import later as _later
from .base import Message as Message
from .base import Provider as Provider
from .base import Request as Request
from .base import Response as Response
from .chat import chat as chat
from .sim import Sim as Sim
from .sim import SimModel as SimModel

if TYPE_CHECKING:
    from .anthropic import Anthropic as Anthropic
    from .bedrock import Bedrock as Bedrock
    from .callable import Callable as Callable
    from .cohere import Cohere as Cohere
    from .compatible import Compatible as Compatible
    from .encoder import Encoder as Encoder
    from .gemini import Gemini as Gemini
    from .openai import OpenAI as OpenAI
    from .vertex import Vertex as Vertex

# Classes of providers, with the files they are in. They are imported when they are first asked for.
_VENDORS = {
    "Anthropic": "anthropic",
    "Bedrock": "bedrock",
    "Callable": "callable",
    "Cohere": "cohere",
    "Compatible": "compatible",
    "Encoder": "encoder",
    "Gemini": "gemini",
    "OpenAI": "openai",
    "Vertex": "vertex",
}

__all__ = [
    "Anthropic",
    "Bedrock",
    "Callable",
    "Cohere",
    "Compatible",
    "Encoder",
    "Gemini",
    "Message",
    "OpenAI",
    "Provider",
    "Request",
    "Response",
    "Sim",
    "SimModel",
    "Vertex",
    "chat",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = _later(__name__, _VENDORS, __all__)

# The provider names that a model id may begin with when nothing was registered, with the names of their classes. The
# table stands here and not in the registry: to add a vendor, one writes the vendor's own file and its lines in this
# one, and edits nothing else. The names of services that imitate OpenAI are in the table of `compatible.py`.
_BUILT_IN = {
    "sim": "Sim",
    "anthropic": "Anthropic",
    "bedrock": "Bedrock",
    "cohere": "Cohere",
    "gemini": "Gemini",
    "openai": "OpenAI",
    "vertex": "Vertex",
}


def _built_in_names() -> set[str]:
    """The provider names that a model id may begin with when nothing was registered."""
    # The table is imported when a name is looked for that nothing else has.
    return {*_BUILT_IN, *importlib.import_module(f"{__name__}.compatible").SERVICES}


def _built_in(name: str) -> Provider | None:
    """Makes the provider that a name stands for when nothing was registered under it; `None` if it stands for none."""
    module = sys.modules[__name__]
    if name in _BUILT_IN:
        return getattr(module, _BUILT_IN[name])()
    return module.Compatible(name) if name in _built_in_names() else None
