"""What tests of programs that call LLMs need: simulated models, a server of the real protocol, virtual time."""

from ..providers.sim import Sim as Sim
from ..providers.sim import SimModel as SimModel
from ._clock import VirtualClock as VirtualClock
from ._server import ChatServer as ChatServer
from ._server import Fault as Fault
