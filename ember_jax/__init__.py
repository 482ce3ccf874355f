"""Networks of LLM calls as JAX programs: the plan runs the calls; XLA runs the numbers.

    import ember_jax as ember

    llm = ember.LLM("sim/small")                # simulated; "openai/…", "anthropic/…" are asked in the same way
    op = ember.non.Vote(llm, n=5)               # an operator: a pytree that calls models
    answers = jax.vmap(op)(questions, keys)     # all calls at once, as far as their data allow

Its names, by what they are for; `help(ember.LLM)` tells of one:

- models: `LLM`, `Completion`, `Choice`, `Finish`, `Embedder`, `Reranker`, `models`, `register`, `providers`
- words: `Text`, `text`, `format`, `join`, `stack`, `concatenate`, `where`, `table`, `normalize`, `parse_number`,
  `features`, `tokens`, `truncate`, `save`, `load`
- conversations: `Conversation`, `image`, `file`, `audio`
- answers in fields: `Maybe`, `Many`, `at_most` (see `LLM.structured`)
- decisions: `Predicate`, `Options`, `Levels`, `Rating`, `Averaged` (see `LLM.decide`)
- tools: `tool`, `Tool`, `ToolReply`, `MCP`, `Agent`
- operators: `Operator`, `operator`, `jit`, `host`, `attempt`, `metered`, `Usage`, `Key`, `fold_in`; ready-made ones
  in `non`
- before anything is paid: `lower`, `Plan`, `Estimate`
- a run: `session`, `Report`, `Journal`, `Limit`, `Retry`, `Price`, `stream`; `Scheduler`, `Task`, `Topological`,
  `CriticalPath`
- what comes of it: `evaluate`, `Result`, `scores`, `learn`
- `errors`, and `testing` for tests of one's own programs
"""

from typing import TYPE_CHECKING

from . import errors as errors
from . import providers as providers
from ._function import host as host
from ._later import later as _later
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
from ._model.reranker import Reranker as Reranker
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
    from . import scores as scores
    from . import testing as testing
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
    "scores": "scores",
    "evaluate": "_evaluate.evaluate",
    "Result": "_evaluate.result",
    "Plan": "_operator.lower",
    "lower": "_operator.lower",
    "stream": "_operator.stream",
    "Estimate": "_tell.estimate",
}

__all__ = [
    "LLM",
    "MCP",
    "Agent",
    "Averaged",
    "Choice",
    "Completion",
    "Conversation",
    "CriticalPath",
    "Embedder",
    "Estimate",
    "Finish",
    "Journal",
    "Key",
    "Levels",
    "Limit",
    "Many",
    "Maybe",
    "Operator",
    "Options",
    "Plan",
    "Predicate",
    "Price",
    "Rating",
    "Report",
    "Reranker",
    "Result",
    "Retry",
    "Scheduler",
    "Task",
    "Text",
    "Tool",
    "ToolReply",
    "Topological",
    "Usage",
    "__version__",
    "at_most",
    "attempt",
    "audio",
    "concatenate",
    "errors",
    "evaluate",
    "features",
    "file",
    "fold_in",
    "format",
    "host",
    "image",
    "jit",
    "join",
    "learn",
    "load",
    "lower",
    "metered",
    "models",
    "non",
    "normalize",
    "operator",
    "parse_number",
    "providers",
    "register",
    "save",
    "scores",
    "session",
    "stack",
    "stream",
    "table",
    "testing",
    "text",
    "tokens",
    "tool",
    "truncate",
    "where",
]

if not TYPE_CHECKING:  # a checker is to know each name, and that there is no other
    __getattr__, __dir__ = _later(__name__, _LATER, __all__)
