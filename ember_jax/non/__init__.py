"""Networks of networks: constructs of LLM calls.

Each construct is an ordinary operator that is written with the package's public names alone. Its members may be LLMs,
operators, and other constructs.
"""

from typing import TYPE_CHECKING

from .._later import later as _later
from ._agent import Agent as Agent
from ._agent import AgentRun as AgentRun
from ._best_of_n import BestOfN as BestOfN
from ._cascade import Cascade as Cascade
from ._chain import Chain as Chain
from ._debate import Debate as Debate
from ._ensemble import Ensemble as Ensemble
from ._filter_vote import FilterVote as FilterVote
from ._format import format as format
from ._grader import Grader as Grader
from ._judge import Judge as Judge
from ._knockout import Knockout as Knockout
from ._linear import LinearRule as LinearRule
from ._linear import LinearScorer as LinearScorer
from ._members import Member as Member
from ._mixture import MixtureOfAgents as MixtureOfAgents
from ._parse import parse as parse
from ._refine import Refine as Refine
from ._router import Router as Router
from ._self_consistency import SelfConsistency as SelfConsistency
from ._verifier import Verifier as Verifier
from ._vote import Vote as Vote
from ._vote import log_odds as log_odds
from ._vote import votes as votes

__all__ = [
    "Agent",
    "AgentRun",
    "BestOfN",
    "Cascade",
    "Chain",
    "Debate",
    "Ensemble",
    "FilterVote",
    "Grader",
    "Judge",
    "Knockout",
    "LinearRule",
    "LinearScorer",
    "Member",
    "MixtureOfAgents",
    "Refine",
    "Router",
    "SelfConsistency",
    "Verifier",
    "Vote",
    "format",
    "log_odds",
    "parse",
    "votes",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = _later(__name__, {}, __all__)
