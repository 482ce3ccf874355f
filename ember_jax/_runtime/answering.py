"""How a call is answered: by the journal, an equal call in flight, or its provider, whose answer is then kept."""

from typing import NamedTuple

from .._errors import RefusedRequestError
from .._providers.base import Request, Response
from .events import Attempt, Ending
from .flight import SingleFlight
from .journal.base import AbstractJournal, Entry
from .scheduler import Task
from .sending import Sender

# The statuses of a refusal that may be about a parameter that the service does not know. `None` is that of a provider
# that is not HTTP.
_AT_FAULT = (None, 400, 422)


class Asking(NamedTuple):
    """A call on its way.

    **Fields:**

    - `digest`: of what is asked.
    - `journal`, `endpoint`: where its answer is kept, and the provider's address that it is kept under.
    - `lane`, `scope`: who asks, outermost first.
    - `attempts`: the requests that were sent for it so far.
    - `task`: what a scheduler sees of it; `None` without a scheduler.
    """

    digest: bytes
    journal: AbstractJournal
    endpoint: str
    lane: tuple[int, ...]
    scope: str
    attempts: list[Attempt]
    task: Task | None

    def entry(self, request: Request, response: Response) -> Entry:
        """What the journal keeps of the call."""
        began, ended = self.attempts[0].began, self.attempts[-1].ended
        return Entry(request, response, self.endpoint, began, ended, len(self.attempts), self.lane, self.scope)


class Answering:
    """Answers the calls of a session. Used on the event loop.

    **Arguments:**

    - `sender`: sends requests to providers.
    - `counts`: those of the session's report, which it adds to.
    """

    def __init__(self, sender: Sender, counts: dict[str, float]):
        self._sender = sender
        self._counts = counts
        self._flights = SingleFlight()
        # The models, each by provider and name, that refuse optional parameters.
        self._declining: set[tuple[str, str]] = set()

    async def answer(self, request: Request, asked: Asking) -> tuple[Response, Ending]:
        """The answer from the journal, from an equal call in flight, or from the provider; and which it was."""
        response, how = asked.journal.get(asked.digest), "replayed"
        if response is None:
            response, shared = await self._flights.do(asked.digest, self._send, request, asked)
            how = "merged" if shared else "answered" if asked.attempts else "replayed"
        if how != "answered":
            self._counts[how] += 1
        return response, how

    async def _send(self, request: Request, asked: Asking) -> Response:
        """Asks the provider, counts what the answer used, and returns when the journal has kept it."""
        # Asking before the request is sent: an answer that cannot be kept would be paid for and lost.
        known = await asked.journal.ready(asked.digest)
        if known is not None:
            return known
        response = await self._complete(request, asked)
        return await asked.journal.put(asked.digest, asked.entry(request, response))

    async def _complete(self, request: Request, asked: Asking) -> Response:
        """Sends a request; and once more without its optional parameters, if these may be why it was refused."""
        model = request.provider, request.model
        if model in self._declining:
            request = request.without_optional()
        try:
            return await self._sender.send(request, asked.attempts, asked.task)
        except RefusedRequestError as error:
            if not request.optional or error.status not in _AT_FAULT:
                raise
        response = await self._complete(request.without_optional(), asked)
        # Without them the request was answered, so they were why. This model's later calls leave them out at once. (Had
        # this call failed too, something else would be at fault, and nothing would be known of them.)
        self._declining.add(model)
        return response
