"""What tests of programs that call LLMs need: simulated models, and a server that speaks the real protocol."""

from .._providers.sim import Sim as Sim
from .._providers.sim import SimModel as SimModel
from ._server import ChatServer as ChatServer
from ._server import Fault as Fault
