"""Networks of LLM calls as JAX programs.

The plan runs the calls; XLA runs the numbers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import errors as errors
from . import providers as providers
from ._function import host as host
from ._model.choose import Choice as Choice
from ._model.conversation import Conversation as Conversation
from ._model.conversation import audio as audio
from ._model.conversation import file as file
from ._model.conversation import image as image
from ._model.decide import Averaged as Averaged
from ._model.decide import Levels as Levels
from ._model.decide import Options as Options
from ._model.decide import Predicate as Predicate
from ._model.decide import Rating as Rating
from ._model.embedder import Embedder as Embedder
from ._model.llm import LLM as LLM
from ._model.llm import Completion as Completion
from ._model.mcp import MCP as MCP
from ._model.tools import Tool as Tool
from ._model.tools import ToolReply as ToolReply
from ._model.tools import tool as tool
from ._operator.enclosing import Usage as Usage
from ._operator.enclosing import attempt as attempt
from ._operator.enclosing import metered as metered
from ._operator.jit import jit as jit
from ._operator.operator import Operator as Operator
from ._operator.operator import operator as operator
from ._runtime.dropping import register as register
from ._runtime.journal.sqlite import Journal as Journal
from ._runtime.limits import Limit as Limit
from ._runtime.models import models as models
from ._runtime.retry import Retry as Retry
from ._runtime.scheduler import CriticalPath as CriticalPath
from ._runtime.scheduler import Scheduler as Scheduler
from ._runtime.scheduler import Task as Task
from ._runtime.scheduler import Topological as Topological
from ._runtime.session import Report as Report
from ._runtime.session import session as session
from ._text.files import load as load
from ._text.files import save as save
from ._text.maybe import Many as Many
from ._text.maybe import Maybe as Maybe
from ._text.maybe import at_most as at_most
from ._text.numbers import features as features
from ._text.numbers import parse_number as parse_number
from ._text.numbers import tokens as tokens
from ._text.numbers import truncate as truncate
from ._text.operations import concatenate as concatenate
from ._text.operations import fold_in as fold_in
from ._text.operations import format as format
from ._text.operations import join as join
from ._text.operations import normalize as normalize
from ._text.operations import stack as stack
from ._text.operations import where as where
from ._text.table import table as table
from ._text.text import Text as Text
from ._text.text import text as text
from ._types import Key as Key
from .providers.base import Finish as Finish
from .providers.prices import Price as Price

__version__ = "0.1.0"  # the package's own metadata are made from it

# isort: split
from . import non as non  # written with the names above
from .non import Agent as Agent

if TYPE_CHECKING:
    from . import learn as learn
    from . import testing as testing
    from ._evaluate import scores as scores
    from ._evaluate.evaluate import evaluate as evaluate
    from ._evaluate.result import Result as Result
    from ._operator.lower import Plan as Plan
    from ._operator.lower import lower as lower
    from ._operator.stream import stream as stream
    from ._tell.estimate import Estimate as Estimate

# What a program that only makes calls does not need, with the modules that it is in (or that it is). It is imported
# when it is first asked for, as that takes a quarter of the time that the rest does.
_LATER = {
    "learn": "learn",
    "testing": "testing",
    "scores": "_evaluate.scores",
    "evaluate": "_evaluate.evaluate",
    "Result": "_evaluate.result",
    "Plan": "_operator.lower",
    "lower": "_operator.lower",
    "stream": "_operator.stream",
    "Estimate": "_tell.estimate",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LATER[name]}")
    found = globals()[name] = getattr(module, name, module)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER} - {"importlib", "TYPE_CHECKING", "Any"})
