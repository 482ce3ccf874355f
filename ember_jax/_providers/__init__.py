"""Whom calls are made through: `ember.providers`."""

from .base import Message as Message
from .base import Provider as Provider
from .base import Request as Request
from .base import Response as Response
from .callable import Callable as Callable
from .openai import OpenAI as OpenAI
from .sim import Sim as Sim
from .sim import SimModel as SimModel
