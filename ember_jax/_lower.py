"""`lower`: the plan of a function, to be read before anything is paid."""

from collections.abc import Callable
from typing import Any

from ._jit import boundary_for
from ._operator import Operator, boundary_of
from ._plan.explain import count, explain
from ._plan.island import Program
from ._plan.mermaid import mermaid
from ._plan.passes import arrange
from ._plan.show import show


class Plan:
    """What a function does outside XLA: its calls, and what each waits for. Made by `ember.lower`; `str` shows it."""

    def __init__(self, program: Program, run: Callable[..., Any]):
        self._name = program.name
        self._plan = arrange(program.plan)
        self._run = run

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function, with arguments as it was lowered for or any others."""
        return self._run(*args, **kwargs)

    def __str__(self) -> str:
        return show(self._plan, f"plan of {self._name}")

    def __repr__(self) -> str:
        return f"<Plan of {self._name}: {count(self._plan)}>"

    def explain(self) -> str:
        """The plan in words: how many calls, what runs at once, what waits for what and why, where lanes meet.

        Counts are exact where control flow is static, and bounds where branches and loops decide.
        """
        return explain(self._plan, self._name)

    def to_mermaid(self) -> str:
        """The plan as a Mermaid flowchart."""
        return mermaid(self._plan)


def lower(fn: Callable[..., Any]) -> Callable[..., Plan]:
    """The plan of a function or operator.

    ```python
    print(ember.lower(op)(question, key))
    ```

    **Returns:** a function of the same arguments that makes no call and gives the `Plan`.
    """

    def lowered(*args: Any, **kwargs: Any) -> Plan:
        if isinstance(fn, Operator):
            boundary = boundary_of(fn)
            bound, named = boundary.specification.bind(args, kwargs)
            return Plan(boundary.lower(fn, *bound, **named), fn)
        boundary = boundary_for(fn)
        return Plan(boundary.lower(*args, **kwargs), boundary)

    return lowered
