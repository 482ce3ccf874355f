"""`lower`: the plan of a function, to be read before anything is paid."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import jax
import numpy as np

from .._callback import all_concrete
from .._jax.refuse import refuse
from .._model.asking import ModelCall
from .._plan import ir
from .._plan.counts import count
from .._plan.operators import Program
from .._plan.passes import arrange
from .._plan.recording import Recording
from .._runtime import failures
from .._runtime import session as sessions
from .._runtime.events import CallEnded
from .._runtime.garbage import calm
from .._runtime.limits import Limit
from .._tell.alike import first_of
from .._tell.estimate import Estimate, answer, estimate
from .._tell.expect import Pilot
from .._tell.explain import explain
from .._tell.known import Known, known, operands
from .._tell.mermaid import mermaid
from .._tell.show import show
from .._text import store
from .._types import is_key
from ..errors import Keeping, PilotError, SweepError, UnknownDigestError, UnsupportedError, can_be_caught
from .boundary import Boundary, boundary_for, no_mesh, split
from .operator import Operator, boundary_of

P = ParamSpec("P")

# So many models are named where a call asks one of several.
_NAMED = 4


class Plan:
    """What a function does outside XLA: its calls, and what each waits for. Made by `ember.lower`; `str` shows it."""

    def __init__(self, program: Program, inputs: Sequence[Any], run: Callable[..., Any], given: tuple[Any, Any]):
        self._name = program.name
        self._plan = arrange(program.plan)
        self._given = [known(x) if all_concrete(x) and not is_key(x) else None for x in inputs]
        self._operands = operands(self._plan, self._given)
        self._models = _models(self._operands)
        self._run = run
        self._args, self._kwargs = given
        self._is_concrete = all(map(all_concrete, inputs))

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function, with arguments as it was lowered for or any others."""
        return self._run(*args, **kwargs)

    def __str__(self) -> str:
        return show(self._plan, f"plan of {self._name}", self._models)

    def __repr__(self) -> str:
        return f"<Plan of {self._name}: {count(self._plan)}>"

    def explain(self) -> str:
        """The plan in words: how many calls, what runs at once, what waits for what and why, where lanes meet.

        Counts are exact where control flow is static, and bounds where branches and loops decide. Models are those of
        the arguments that it was lowered for; no other words are shown. Which calls wait for a first one that begins
        with the same system prompt is by the session in force.
        """
        return explain(self._plan, self._name, self._models, first_of(self._plan, self._operands, sessions.current()))

    def estimate(self, limits: Mapping[str, Limit] | None = None, latency: float = 0.0, pilot: int = 0) -> Estimate:
        """What the plan asks for, costs and takes, on the arguments that it was lowered for: bounds, and expectations.

        ```python
        plan = ember.lower(jax.vmap(op))(questions)
        print(plan.estimate(latency=2.0))  # nothing is paid
        print(plan.estimate(pilot=20))  # runs 20 of the lanes
        ```

        What is expected is found from answers that are there: with a pilot from its own, else from those to earlier
        calls of the same operators to the same models, as this session and its journal know them. So it is as good as
        those are like what is planned. It is `None` where no answer is known to a call that is certain to be made.

        Prompts whose words are known are counted by them, others by the `max_tokens` of the answers they are made of.
        What a loop repeats has no most.

        **Arguments:**

        - `limits`: as those of a session; by default those of the session in force, whose prices are used.
        - `latency`: the seconds that each call takes at least; without it only the limits take time.
        - `pilot`: how many lanes are run, to see what they use. They are drawn at random, and each time the same ones.
            Their calls are made in the session in force: paid, kept by its journal, and so not paid again when the plan
            is run.

        **Raises:** what a lane of the pilot raises, if none of its lanes ends well; `UnsupportedError` for a pilot of a
        plan with sweeps of several sizes; `ValueError` for a pilot of what is no number of lanes, or a latency that is
        no time; `TypeError` for what is no `Limit`, `ModelError` for a limit of a provider that is not there.
        """
        session = sessions.current()
        found = self._piloted(pilot, session) if pilot else None
        return estimate(self._plan, self._given, session, limits, latency, self._name, found)

    def _piloted(self, count: int, session: sessions.Session) -> Pilot:
        """Runs so many of the outermost lanes."""
        if not isinstance(count, int) or count < 0 or not self._is_concrete:
            raise ValueError(
                f"estimate(pilot={count!r}): give how many lanes to run, and lower the function with values: "
                "ember.lower(fn)(*args)."
            )
        widths = _widths(self._plan) or {1}
        if len(widths) > 1:
            sizes = " and ".join(map(str, sorted(widths)))
            raise UnsupportedError(
                f"estimate(pilot={count}): this plan has sweeps of {sizes} lanes. Give a plan of one of them, as a "
                "pilot draws from lanes of one kind."
            )
        (lanes,) = widths
        taken = sorted(np.random.default_rng(lanes).permutation(lanes)[:count].tolist())
        ended: dict[bytes, CallEnded] = {}

        def watch(call: CallEnded) -> None:
            ended.setdefault(call.digest, call)

        with sessions.piloting(session, frozenset(taken), watch):
            try:
                jax.block_until_ready(self._run(*self._args, **self._kwargs))
            except Exception as error:
                is_answered = any(call.response for call in ended.values())
                _check(failures.typed(error) or error, is_answered, len(taken), session.keeping)
        answers = [
            answer(session, call.request, call.response, call.scope, call.lane)
            for call in ended.values()
            if call.response is not None
        ]
        return Pilot(lanes, taken, answers)

    def to_mermaid(self) -> str:
        """The plan as a Mermaid flowchart."""
        return mermaid(self._plan, self._models)


def _widths(plan: ir.Plan) -> set[int]:
    """How many lanes the sweeps of a plan have, the outermost ones."""
    found: set[int] = set()
    for node in plan.nodes:
        match node:
            case ir.Lanes():
                found.add(node.sizes[0])
            case ir.Call():
                found |= set(node.batch[:1])
            case _:
                found = found.union(*map(_widths, node.plans))
    return found


def _check(error: BaseException, is_answered: bool, lanes: int, keeping: Keeping) -> None:
    """Raises what has ended a pilot of so many lanes: an error that stops all calls, or any where nothing is answered.

    The lanes that are not in the pilot have failed too, and are not told.
    """
    if not isinstance(error, SweepError):
        if not isinstance(error, PilotError):
            raise error
        return
    failed = [failure for failure in error.failures if not isinstance(failure.cause, PilotError)]
    if failed and not (is_answered and all(can_be_caught(failure.cause) for failure in failed)):
        raise SweepError(failed, lanes, keeping)


def lower(fn: Callable[P, Any]) -> Callable[P, Plan]:
    """The plan of a function or operator.

    ```python
    print(ember.lower(op)(question, key).explain())
    ```

    **Returns:** a function of the same arguments that makes no call and gives the `Plan`.
    """

    def lowered(*args: P.args, **kwargs: P.kwargs) -> Plan:
        with calm():  # all that is allocated here is kept
            if isinstance(fn, Operator):
                through = boundary_of(fn)
                bound, named = through.specification.bind(args, kwargs)
                return Plan(*program_of(through.boundary, (fn, *bound), named), fn, (bound, named))
            boundary = boundary_for(fn)
            return Plan(*program_of(boundary, args, kwargs), boundary, (args, kwargs))

    return lowered


def program_of(boundary: Boundary, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, list[Any]]:
    """The recorded half of a function for such arguments, and what they are as its plan's inputs."""
    signature, arrays = split((args, kwargs))
    with no_mesh():
        avals = [jax.typeof(a) for a in arrays]
        closed, _, constants = boundary.trace(signature, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals])
    refuse(closed.jaxpr)
    recording = Recording(closed, [True] * len(closed.jaxpr.outvars))
    return boundary.program(recording), [*constants, *arrays]


def _models(given: Mapping[ir.Call, Sequence[Known | None]]) -> dict[ir.Call, str]:
    """The model that each LLM call asks, in words."""
    return {call: _asked(call.function, k[0]) for call, k in given.items() if isinstance(call.function, ModelCall)}


# What a model is asked for, where it is no text, by the call.
_FOR = {
    "LLM.choose": " to choose",
    "LLM.structured": " for fields",
    "LLM.decide": " to decide",
    "Embedder": " for a vector",
    "Reranker": " for scores",
}


def _asked(call: ModelCall, model: Known | None) -> str:
    how = _FOR.get(str(call), "")
    if model is None:
        return f"an LLM{how}"
    names = list(map(_model, model.rows()))
    if len(names) == 1:
        return names[0] + how
    listed = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{'one of ' if model.chosen else ''}{len(names)} models ({listed}){how}"


def _model(digest: bytes) -> str:
    """A model's id. What is none, so that nobody could ask it, may be words that are not to be shown."""
    try:
        words = store.get(digest)
    except UnknownDigestError:
        return "an unknown model"
    return words if "/" in words and words.split() == [words] else "an unknown model"
