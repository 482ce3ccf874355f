"""The compact notation: what networks are written in.

    program   = { name "=" flow ";" } flow [ ";" ]
    flow      = operand { "," operand } { "|" stage }       without the commas inside of a list
    stage     = construct | operand | template
    operand   = model | "$" name | name | construct | list | "(" program ")"
    construct = [ count ] word [ settings ] [ "@" operand ]
    list      = "[" flow { "," flow } "]"
    model     = provider "/" id [ settings ]
    settings  = "(" [ name "=" json { "," name "=" json } ] ")"
    template  = json string                                 also the first of a flow, before `|`, and after `Chain@`

White space and line breaks are free. A construct's word is its class's name, or its letter where it has one.

- What stands before `|`, one operator or several side by side, is what a construct works over: the members that give
  its candidates, its stages, its layers. What stands after `@` is what it works with: its judge, its scorer; the
  members of an `E`. `5E@sim/small | J@sim/large` is `Judge(Ensemble(LLM("sim/small"), 5), LLM("sim/large"))`.
- After `|`, what works over nothing is the next step of a `Chain`, asked what the step before answered; a string is a
  template, with `{question}` and `{answer}`.
- A count is a number of samples: five answers of one model, three judges (`3J@…`) of the same candidates.
- Several side by side, `[2E@sim/small, $mine]`, are an `Ensemble` of them.
- `$name` is an operator that is passed to `parse`. A name without `$` is a flow before it: what that answered, once,
  wherever it stands and whatever it is asked there.
- Values are JSON, with strings also over several lines. `null` is Python's `None`. `LLM(model="…")` is a model whose id
  has characters that could be taken for something else.

Design note. The parser builds operators as it reads, without a syntax tree in between; so when a constructor raises,
the parser knows the place in the text and points at it. Parser and formatter know constructs only by the table below
and by the parameters of their constructors; each field of a construct has the name of its parameter. The formatter
prints the shortest arguments from which the constructor makes an equal operator. So defaults and conversions are
written down once, in the constructs.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import Operator
from ._best_of_n import BestOfN
from ._cascade import Cascade
from ._chain import Chain
from ._debate import Debate
from ._ensemble import Ensemble
from ._filter_vote import FilterVote
from ._grader import Grader
from ._judge import Judge
from ._knockout import Knockout
from ._mixture import MixtureOfAgents
from ._refine import Refine
from ._router import Router
from ._self_consistency import SelfConsistency
from ._verifier import Verifier
from ._vote import Vote

# A model id that needs no quotes. The part before the first slash has no `@`, or `5E@sim/small` would be read as one
# id.
MODEL = re.compile(r"[\w.:+-]+/[\w./:@+-]+")


@dataclass(frozen=True)
class Construct:
    """How a construct is written in the notation.

    **Fields:**

    - `cls`: its class.
    - `letter`: the letter that stands for the class's name, if it has one.
    - `before`: the constructor's parameter that is written before `|`, or `None`.
    - `after`: the parameter that is written after `@`, or `None`.
    - `count`: the parameter that the number before its word gives. If it is `None`, that number is a number of samples
        of the whole construct.
    """

    cls: type[Operator]
    letter: str | None = None
    before: str | None = None
    after: str | None = None
    count: str | None = None

    @property
    def word(self) -> str:
        """The word that it is written with."""
        return self.letter or self.cls.__name__

    @property
    def settings(self) -> list[str]:
        """The parameters that can be written in parentheses. `n` is none of them: the number of samples of members is
        written with `E` alone."""
        known = ("self", "n", self.before, self.after, self.count)
        return [name for name in inspect.signature(self.cls.__init__).parameters if name not in known]

    @property
    def needs_after(self) -> bool:
        """Whether it must be written with an `@`, since the parameter has no default."""
        parameters = inspect.signature(self.cls.__init__).parameters
        return self.after is not None and parameters[self.after].default is inspect.Parameter.empty

    def make(self, given: Mapping[str, Any]) -> Operator:
        """Calls the constructor with arguments by name; those of a `*parameter` are passed by position."""
        parameters = inspect.signature(self.cls.__init__).parameters
        several = [name for name in given if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL]
        return self.cls(*[given[name] for name in several], **{k: v for k, v in given.items() if k not in several})


CONSTRUCTS = (
    Construct(Ensemble, "E", after="members", count="n"),
    Construct(Vote, "M", before="members"),
    Construct(Judge, "J", before="members", after="judge"),
    Construct(Verifier, "V", before="members", after="verifier"),
    Construct(FilterVote, before="members", after="grader"),
    Construct(BestOfN, before="members", after="scorer"),
    Construct(Knockout, before="members", after="judge"),
    Construct(Grader, after="llm"),
    Construct(Chain, after="steps"),
    Construct(Cascade, before="stages", after="scorer"),
    Construct(Router, before="members", after="rule"),
    Construct(Refine, before="member", after="critic"),
    Construct(Debate, before="debaters", after="judge"),
    Construct(MixtureOfAgents, before="layers", after="aggregator"),
    Construct(SelfConsistency, after="members", count="n"),
)
BY_CLASS = {construct.cls: construct for construct in CONSTRUCTS}
BY_WORD = {word: c for c in CONSTRUCTS for word in (c.cls.__name__, c.letter) if word}
