"""Whom calls are made through: `ember.providers`."""

from .base import Message as Message
from .base import Provider as Provider
from .base import Request as Request
from .base import Response as Response
from .callable import Callable as Callable
from .openai import OpenAI as OpenAI
from .sim import Sim as Sim
from .sim import SimModel as SimModel

# The provider names that a model id may begin with when nothing was registered. The table stands here and not in the
# registry: to add a vendor, one writes the vendor's own file and its lines in this one, and edits nothing else.
_BUILT_IN: dict[str, type[Provider]] = {"sim": Sim, "openai": OpenAI}
