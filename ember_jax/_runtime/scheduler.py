"""Policies of order: which calls start now, where more are ready than may start.

Design note. A scheduler stands before the limits of the models: a call that it starts goes to the gate of its model,
where it waits for its turn as the limits want it. So two questions are asked of it, *what starts now* (`next`) and *who
goes first at a gate* (`priority`). One that starts everything at once orders the gates alone; it needs no slots of its
own, and a call that waits at one model's gate keeps no call of another model back. The alternative, to ask for the next
call when a gate opens, would put the user's code under the limits' timers, and would have to tell it what is open.

Nothing here knows what a call is, what a plan is, or what time it is: a policy is told of tasks, and gives them back.
`Turns`, in a file of its own, asks it on behalf of a session's calls.
"""

import abc
import heapq
from dataclasses import dataclass
from typing import NamedTuple


class Path(NamedTuple):
    """Where a call stands in its plan: how many calls come before it one after another at most, and how many after."""

    depth: int = 0
    ahead: int = 0


NOWHERE = Path()


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A call that is to start, as a scheduler sees it; compared by identity.

    `depth` and `ahead` are those of the plan and not of the run: where the run decides they are the longer branch's, a
    `while_loop` is taken to make one turn, and in a `scan` they are those of the first step.

    **Fields:**

    - `model`: what is asked, such as `"openai/gpt-4o"`; `"host"` for an `async def` host function.
    - `lane`, `scope`: who asks, outermost first.
    - `depth`: how many calls come before it, one after another.
    - `ahead`: how many calls come after it, one after another: the longest chain that waits for it.
    - `tokens`: how many it is estimated to use; 0 for a host function.
    - `order`: how many calls of the session had come before it.
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

    A call that is ready is added. Whenever calls were added or have ended, `next` is asked until it gives `None`, and
    starts what it gives. It must not give `None` while nothing that it has started is in flight: nothing else would
    make it be asked again. A call ends when it was answered or has failed; one that is tried again is added again after
    its pause, as the same task. One that is cancelled while it waits stays: when `next` gives it, it ends at once.

    Calls that the journal answers, or that share the request of an equal call, are not asked about, nor are host
    functions that are no `async def`: these may run operators, whose calls would wait for them.

    All methods are called on the event loop's thread and must return at once. One that raises, or gives a task that
    does not wait, fails the calls that wait, with a `SchedulerError`. A scheduler is one session's.

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
        """In what order calls that have started pass a limit of their model: lower first, equal ones as they came."""

    @abc.abstractmethod
    def add(self, task: Task) -> None:
        """A call is ready."""

    @abc.abstractmethod
    def next(self) -> Task | None:
        """The call that starts now, or `None` for none."""

    @abc.abstractmethod
    def ended(self, task: Task) -> None:
        """A call that was started has ended; told once for each time that it was started."""


class Topological(Scheduler):
    """Starts calls when they are ready, those first that most calls came before, so that lanes that have begun end.

    **Arguments:**

    - `slots`: how many calls are started and not ended at most, those among them that wait at a limit of their model;
        `None` for as many as are ready. For the calls of one model, `Limit(in_flight=…)` says it without holding up
        the others. A Python function behind a model that itself runs operators holds a slot while their calls wait for
        one: give more slots than such calls nest.

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
    """Starts those calls first that the longest chains of calls wait for.

    With one model, calls of equal length and a program that joins its calls as a tree does, nothing is faster (T. C.
    Hu, "Parallel sequencing and assembly line problems", 1961). On any program the time taken is, as with every
    scheduler that leaves no slot empty, less than twice the shortest possible (R. L. Graham, 1969).

    **Arguments:**

    - `slots`: as of `Topological`. Without, the order is that in which calls pass the limits of their models.

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
    """Tasks by priority, then as they came, of which so many at most are taken and not freed."""

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
