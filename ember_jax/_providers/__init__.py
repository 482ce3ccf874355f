"""Whom calls are made through: `ember.providers`."""

from .base import Message as Message
from .base import Provider as Provider
from .base import Request as Request
from .base import Response as Response
from .callable import Callable as Callable
from .openai import OpenAI as OpenAI
from .sim import Sim as Sim
from .sim import SimModel as SimModel

# What model ids may begin with when nothing was registered.  It stands here and not in the registry, so that a vendor
# is its own file and its lines in this one.
_BUILT_IN: dict[str, type[Provider]] = {"sim": Sim, "openai": OpenAI}
