"""The plan as data: what calls what, in values and nodes.

Design note. A `Plan` is what a jaxpr becomes when calls are its purpose and numbers are in between. Values are
small integers, so that a lane is a list; every node is one kind of thing that can be waited for. Lowering makes a node
of each equation, `passes/` rewrite plans to plans, and the lane engine runs what comes out. Nodes come in an order in
which they could run.

A kind of node that holds plans says once how it runs them, in `held`. What only goes through plans (counts, and
`walk.py`: paths, chains, what is known and what it comes to) asks for that, and need not name the kind. (The
alternative, a `match` over all kinds in each of these, named a kind in a dozen files.)
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jax.extend import core as jex

from .._host import HostCall
from .._jax.equations import Host, Print
from .._jax.source import SourceLine
from .._text.elementwise import ElementwiseOp

# What a step does with the plans that it holds: all are run, one is chosen, or they are run in turn, again and again.
Manner = Literal["all", "one", "in turn"]


@dataclass(frozen=True, eq=False)
class Node:
    """One step. `inputs` and `outputs` are values; `scope` is the operator it stands in, outermost first.

    It starts without the inputs at the positions `late`. `holds` names the fields in which a kind of step has plans of
    its own: one, or a tuple of them. `runs` says how these are run, `is_whole` that they are a program of their own,
    which was simplified when it was made, and `title` what such a step is called.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: str
    late: frozenset[int] = field(default=frozenset(), kw_only=True)
    holds: ClassVar[tuple[str, ...]] = ()
    runs: ClassVar[Manner] = "all"
    is_whole: ClassVar[bool] = False
    title: ClassVar[str] = ""

    @property
    def held(self) -> "Sequence[Held]":
        """The plans that it holds, each with how it is run; the last one's outputs are the step's own first ones."""
        return ()

    @property
    def extras(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The types of the outputs that it adds to those of its plans."""
        return ()

    @property
    def plans(self) -> "tuple[Plan, ...]":
        """The plans that it holds, in the order of its fields."""
        found: list[Plan] = []
        for name in self.holds:
            held = getattr(self, name)
            found += held if isinstance(held, tuple) else (held,)
        return tuple(found)

    def with_plans(self, change: "Callable[[Plan], Plan]") -> "Node":
        """The step with each plan that it holds changed."""
        if not self.holds:
            return self
        held = {name: getattr(self, name) for name in self.holds}
        changed = {n: tuple(map(change, h)) if isinstance(h, tuple) else change(h) for n, h in held.items()}
        return dataclasses.replace(self, **changed)

    def narrowed(self, kept: Sequence[bool]) -> dict[str, Any]:
        """Its own fields, other than plans, that change where only some inputs are left."""
        return {}


@dataclass(frozen=True, eq=False)
class Words(Node):
    """A text operation, run inline on the lane's strings, or on those of a batch."""

    function: ElementwiseOp
    batched: bool = False


@dataclass(frozen=True, eq=False)
class Call(Node):
    """A host call, or a batch of them that is made at once: `batch` is its shape.

    `asked` says how many equal calls of the program it stands for, `lanes` for how many lanes it is made, `meets` why
    the calls of a batch wait for each other, `warns` whether equal ones without a key are warned of, and
    `line` where it stands in the user's program.
    """

    function: HostCall
    batch: tuple[int, ...]
    asked: int = 1
    lanes: int = 1
    meets: tuple[str, ...] = ()
    warns: bool = True
    line: SourceLine | None = None


@dataclass(frozen=True, eq=False)
class Foreign(Node):
    """An equation that calls Python and is not ours: somebody's `pure_callback`, a `jax.debug.print`. In a thread."""

    seen: Host | Print


@dataclass(frozen=True, eq=False)
class Equation:
    """One numeric equation of a segment, on values; `None` stands for a literal."""

    eqn: jex.JaxprEqn
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Segment(Node):
    """Numeric equations that run as one XLA executable, for several lanes at once. Lowering makes one of each equation.

    `avals` are the types of its outputs; `constants` values that are known; `calls_python` says that an equation calls
    Python in a way that only XLA can run.
    """

    equations: tuple[Equation, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    constants: Mapping[int, Any]
    calls_python: bool = False


@dataclass(frozen=True, eq=False)
class Held:
    """A plan that a step holds, how often it is run, and what each run is given.

    `role` is what it is there. `inputs` says which of the step's inputs the plan's are; what `first` makes of those
    comes after them. There are as many runs as `sizes` says, along some axes; where the plans decide, `least` or more.
    `parts` are the plan's inputs of which a run is given its part, each with whether it has each axis; `carried` those
    that a run gives to the next, as its first outputs, each with whether it only hands them on.
    """

    plan: "Plan"
    role: str
    inputs: Sequence[int]
    sizes: tuple[int, ...] = ()
    least: int | None = None
    parts: Mapping[int, Sequence[bool]] = field(default_factory=dict)
    carried: Mapping[int, bool] = field(default_factory=dict)
    reverse: bool = False
    first: Segment | None = None

    @property
    def times(self) -> tuple[int, float]:
        """How often it is run, at least and at most."""
        runs = math.prod(self.sizes)
        return (runs, runs) if self.least is None else (self.least, math.inf)


def _handed_on(body: "Plan", at: int, carry: int) -> dict[int, bool]:
    """What a body carries, its inputs from a position on: each with whether it only hands it on."""
    return {at + k: body.outputs[k] == at + k for k in range(carry)}


@dataclass(frozen=True, eq=False)
class Branch(Node):
    """A `cond` or `switch`: the first input is the index, the others go to the branch."""

    holds = ("branches",)
    title = "a branch"
    runs = "one"
    branches: "tuple[Plan, ...]"

    @property
    def held(self) -> Sequence[Held]:
        given = range(1, len(self.inputs))
        return [Held(branch, f"branch {i}", given) for i, branch in enumerate(self.branches)]


@dataclass(frozen=True, eq=False)
class While(Node):
    """A `while_loop`; inputs are the condition's constants, the body's, and the first carry."""

    holds = ("condition", "body")
    title = "a while loop"
    runs = "in turn"
    condition: "Plan"
    body: "Plan"
    condition_constants: int
    body_constants: int

    @property
    def held(self) -> Sequence[Held]:
        first, every = self.condition_constants, range(len(self.inputs))
        carry = every[first + self.body_constants :]
        carried = _handed_on(self.body, self.body_constants, len(carry))
        tested = dict(enumerate(carried.values(), first))
        return (
            Held(self.condition, "while", (*every[:first], *carry), least=1, carried=tested),
            Held(self.body, "do", every[first:], least=0, carried=carried),
        )

    def narrowed(self, kept: Sequence[bool]) -> dict[str, Any]:
        first, last = self.condition_constants, self.condition_constants + self.body_constants
        return {"condition_constants": sum(kept[:first]), "body_constants": sum(kept[first:last])}


@dataclass(frozen=True, eq=False)
class Scan(Node):
    """A `scan` that carries something; inputs are constants, the first carry, and what is scanned over."""

    holds = ("body",)
    title = "a scan"
    runs = "in turn"
    body: "Plan"
    constants: int
    carry: int
    length: int
    reverse: bool

    @property
    def held(self) -> Sequence[Held]:
        every, carried = range(len(self.inputs)), _handed_on(self.body, self.constants, self.carry)
        parts = dict.fromkeys(every[self.constants + self.carry :], (True,))
        return (Held(self.body, "each step", every, (self.length,), None, parts, carried, self.reverse),)

    def narrowed(self, kept: Sequence[bool]) -> dict[str, Any]:
        return {"constants": sum(kept[: self.constants])}


@dataclass(frozen=True, eq=False)
class Lanes(Node):
    """A plan under `vmap`, or `lax.map`: each lane runs the body at its own pace.

    `sizes` are the lengths of the lane axes, outermost first; `mapped[i][k]` says whether input i has axis k. `first`
    is computed for many lanes at once, before they start, from inputs alone; its outputs are the body's last inputs.
    `meets` says why the lanes wait for each other after it.
    """

    holds = ("body",)
    title = "another vmap"
    body: "Plan"
    sizes: tuple[int, ...]
    mapped: tuple[tuple[bool, ...], ...]
    first: Segment | None = None
    meets: tuple[str, ...] = ()

    @property
    def held(self) -> Sequence[Held]:
        parts = {i: mine for i, mine in enumerate(self.mapped) if any(mine)}
        return (Held(self.body, "each lane", range(len(self.inputs)), self.sizes, parts=parts, first=self.first),)

    def narrowed(self, kept: Sequence[bool]) -> dict[str, Any]:
        return {"mapped": tuple(itertools.compress(self.mapped, kept))}


@dataclass(frozen=True, eq=False)
class Enclosed(Node):
    """A plan that may fail alone (`attempt`), or whose use is counted (`metered`).

    Its outputs are the body's, and after them what `EXTRAS` says: the digest of why it failed, all zeros if it did not,
    with zeros for the body's; or calls, input tokens, output tokens, US dollars and cut answers.
    """

    holds = ("body",)
    title = "an attempt or a meter"
    is_whole = True
    body: "Plan"
    how: "How"

    @property
    def held(self) -> Sequence[Held]:
        return (Held(self.body, "of", range(len(self.inputs))),)

    @property
    def extras(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return EXTRAS[self.how]


How = Literal["attempt", "metered"]
_COUNT, _DOLLARS = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.float32)
EXTRAS: dict[How, tuple[jax.ShapeDtypeStruct, ...]] = {
    "attempt": (jax.ShapeDtypeStruct((4,), np.uint32),),
    "metered": (_COUNT, _COUNT, _COUNT, _DOLLARS, _COUNT),
}


@dataclass(frozen=True, eq=False)
class Give(Node):
    """Gives an output of a lane, or a carry of a `scan`'s step, before that has ended: others wait for it alone."""

    position: int


@dataclass(frozen=True, eq=False)
class Take(Node):
    """Waits, in a lane or a branch that has started without it, for an input of the lanes or of the `cond`."""

    position: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Nodes over values; the first `inputs` values are given, `constants` are known, `outputs` are wanted.

    `types` are those of all values, as the host sees them.
    """

    inputs: int
    types: tuple[jax.ShapeDtypeStruct, ...]
    constants: Mapping[int, np.ndarray]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    # Derived: how many values there are, the types of the outputs; how many nodes each node waits for before it starts,
    # which wait for it, and which wait for none; which have started without a value that a node makes.
    size: int = field(init=False)
    avals: tuple[jax.ShapeDtypeStruct, ...] = field(init=False)
    waits: tuple[int, ...] = field(init=False)
    followers: tuple[tuple[int, ...], ...] = field(init=False)
    first: tuple[int, ...] = field(init=False)
    takers: Mapping[int, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        maker = {value: i for i, node in enumerate(self.nodes) for value in node.outputs}
        takers: dict[int, list[int]] = {}
        sources: list[set[int]] = []
        for i, node in enumerate(self.nodes):
            sources.append({maker[v] for k, v in enumerate(node.inputs) if v in maker and k not in node.late})
            for k in node.late:
                if node.inputs[k] in maker:
                    takers.setdefault(maker[node.inputs[k]], []).append(i)
        object.__setattr__(self, "takers", {i: tuple(dict.fromkeys(t)) for i, t in takers.items()})
        followers: list[list[int]] = [[] for _ in self.nodes]
        for i, waited in enumerate(sources):
            for source in waited:
                followers[source].append(i)
        object.__setattr__(self, "size", len(self.types))
        object.__setattr__(self, "avals", tuple(self.types[v] for v in self.outputs))
        object.__setattr__(self, "waits", tuple(map(len, sources)))
        object.__setattr__(self, "followers", tuple(map(tuple, followers)))
        # Reversed, so that a stack of ready nodes gives them in program order.
        object.__setattr__(self, "first", tuple(i for i in reversed(range(len(sources))) if not sources[i]))

    @property
    def gives(self) -> tuple[int, ...]:
        """The positions of what it gives before it has ended."""
        return tuple(node.position for node in self.nodes if isinstance(node, Give))
