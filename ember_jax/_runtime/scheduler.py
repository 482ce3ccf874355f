"""Policies of order: which calls start now, where more are ready than may start.

Design note. A scheduler stands before the limits of the models. A call that it starts goes to the gate of its model,
and waits there for its turn as the limits demand. So a scheduler is asked two questions: *what starts now* (`next`),
and *who goes first at a gate* (`priority`). A scheduler that starts every call at once decides the order at the gates
alone. It needs no slots of its own, and a call that waits at one model's gate keeps no call of another model back.

The alternative, to ask a scheduler for the next call whenever a gate opens, was rejected. The limits' timers would run
the user's code, and the scheduler would have to be told which gates are open.

Nothing here knows what a call is, what a plan is, or what time it is: a scheduler is told of tasks, and gives them
back. `Turns`, in a file of its own, asks it on behalf of a session's calls.
"""

import abc
import heapq
from dataclasses import dataclass
from typing import NamedTuple


class Path(NamedTuple):
    """Where a call stands in its plan, by the longest chains of calls that depend on each other.

    **Fields:**

    - `depth`: how many calls the longest chain before it has.
    - `ahead`: how many calls the longest chain after it has.
    """

    depth: int = 0
    ahead: int = 0


# The path of a call that is in no plan.
NOWHERE = Path()


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A call that is to start, as a scheduler sees it; compared by identity.

    `depth` and `ahead` are known from the plan, before it runs. Where only the run decides, a branch counts with its
    longer side, a `while_loop` counts as one turn, and in a `scan` both are those of the first step.

    **Fields:**

    - `model`: the model that is asked, such as `"openai/gpt-4o"`; `"host"` for an `async def` host function.
    - `lane`, `scope`: the lane and the operators that ask, outermost first.
    - `depth`: the length of the longest chain of calls that come before it.
    - `ahead`: the length of the longest chain of calls that wait for it.
    - `tokens`: how many tokens it is estimated to use; 0 for a host function.
    - `order`: how many calls of the session came before it.
    """

    model: str
    lane: tuple[int, ...]
    scope: str
    depth: int
    ahead: int
    tokens: float
    order: int


class Scheduler(abc.ABC):
    """Decides which calls of a session start now, and in what order they pass the limits of their models.

    A call that is ready is told to `add`. Whenever calls were added or have ended, `next` is called until it returns
    `None`, and each call that it returns is started. `next` must not return `None` while calls wait and none that it
    has started is in flight: nothing would then make it be called again.

    A call ends when it was answered or has failed, and `ended` is told. A call that is tried again is added again after
    its pause, as the same task. A call that is cancelled while it waits is not taken out: when `next` returns it, it
    ends at once.

    A scheduler is not asked about calls that the journal answers, calls that share the request of an equal call, and
    host functions that are no `async def`. The last may run operators, whose calls would wait for their slot.

    All methods are called on the event loop's thread and must return at once. If a method raises, or `next` returns a
    task that does not wait, all calls that wait fail with a `SchedulerError`. Each session needs a scheduler of its
    own.

    **Example:** at most three calls of each model at once, the shortest first.

    ```python
    import collections
    import heapq

    class ShortestFirst(ember.Scheduler):
        def __init__(self):
            self.waiting = collections.defaultdict(list)  # by model
            self.started = collections.Counter()

        def priority(self, task):
            return task.tokens

        def add(self, task):
            heapq.heappush(self.waiting[task.model], (task.tokens, task.order, task))

        def next(self):
            for model, tasks in self.waiting.items():
                if tasks and self.started[model] < 3:
                    self.started[model] += 1
                    return heapq.heappop(tasks)[-1]
            return None

        def ended(self, task):
            self.started[task.model] -= 1

    with ember.session(scheduler=ShortestFirst()) as run:
        ...
    ```
    """

    @abc.abstractmethod
    def priority(self, task: Task) -> float:
        """The priority of a started call at the limits of its model: lower goes first, equal ones as they came."""

    @abc.abstractmethod
    def add(self, task: Task) -> None:
        """A call is ready."""

    @abc.abstractmethod
    def next(self) -> Task | None:
        """The call that starts now, which is then no longer the scheduler's; or `None` if none starts now."""

    @abc.abstractmethod
    def ended(self, task: Task) -> None:
        """A call that was started has ended; told once for each time that it was started."""


class Topological(Scheduler):
    """Starts calls when they are ready. Of several, the one with the most calls before it (`depth`) goes first.

    So lanes that have begun end before others begin.

    **Arguments:**

    - `slots`: how many calls may be started and not ended, those that wait at a limit of their model included; `None`
        for as many as are ready. To bound the calls of one model without holding up other models' calls, use
        `Limit(in_flight=…)`. A Python function behind a model may itself run operators. It then holds a slot while
        their calls wait for one, so give more slots than such calls nest.

    **Raises:** `ValueError` for slots that are no positive whole number.
    """

    def __init__(self, slots: int | None = None):
        self._queue = _Queue(slots, "Topological")

    def priority(self, task: Task) -> float:
        return -task.depth

    def add(self, task: Task) -> None:
        self._queue.put(-task.depth, task)

    def next(self) -> Task | None:
        return self._queue.take()

    def ended(self, task: Task) -> None:
        self._queue.free()


class CriticalPath(Scheduler):
    """Starts those calls first that the longest chains of calls wait for (`ahead`).

    If there is one model, all calls take equally long, and the program joins its calls as a tree does, no order is
    faster (T. C. Hu, "Parallel sequencing and assembly line problems", 1961). For any program the time taken is less
    than twice the shortest possible, as with every scheduler that leaves no slot empty (R. L. Graham, 1969).

    **Arguments:**

    - `slots`: as of `Topological`. Without slots, this scheduler only decides in which order calls pass the limits of
        their models.

    **Raises:** `ValueError` for slots that are no positive whole number.
    """

    def __init__(self, slots: int | None = None):
        self._queue = _Queue(slots, "CriticalPath")

    def priority(self, task: Task) -> float:
        return -task.ahead

    def add(self, task: Task) -> None:
        self._queue.put(-task.ahead, task)

    def next(self) -> Task | None:
        return self._queue.take()

    def ended(self, task: Task) -> None:
        self._queue.free()


class _Queue:
    """Tasks by priority, lowest first, equal ones as they came. At most `slots` of them are taken and not freed."""

    def __init__(self, slots: int | None, name: str):
        if slots is not None and not (isinstance(slots, int) and slots >= 1):
            raise ValueError(f"{name}(slots={slots!r}): give a whole number of calls, at least 1, or None for any.")
        self._slots = slots
        self._taken = 0
        self._heap: list[tuple[float, int, Task]] = []

    def put(self, priority: float, task: Task) -> None:
        heapq.heappush(self._heap, (priority, task.order, task))

    def take(self) -> Task | None:
        if not self._heap or self._taken == self._slots:
            return None
        self._taken += 1
        return heapq.heappop(self._heap)[-1]

    def free(self) -> None:
        self._taken -= 1
