"""Networks of networks: constructs of LLM calls.

Each is an ordinary operator, written with the public names alone, of any members: LLMs, operators, other constructs.
"""

from ._ensemble import Ensemble as Ensemble
from ._members import Member as Member
from ._vote import Vote as Vote
from ._vote import log_odds as log_odds
from ._vote import votes as votes
