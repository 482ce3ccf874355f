"""How a call is answered: by the journal, an equal call in flight, or its provider, whose answer is then kept."""

import dataclasses
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeAlias

from ..errors import MalformedResponseError, RefusedRequestError, ServerError, ValidatorError
from ..providers.base import BatchLimits, Form, Provider, Request, Response
from . import log
from .batches import Batches
from .deciding import Deciding
from .events import Attempt, Ending
from .feed import SpokenWords
from .flight import SingleFlight
from .journal.base import AbstractJournal, Claimed, Entry, Superseded, superseding
from .oddities import no_answer
from .samples import Samples
from .scheduler import Task
from .sending import OnTurn, Sender

# The statuses of a refusal that may be about a parameter that the service does not know. `None` is that of a provider
# that is not HTTP, and of a server error that is taken for a refusal, see `Tries.disguised`.
_AT_FAULT = (None, 400, 422)
# The status of a server that cannot parse its model's answer. Other malformed answers have that of success, or none.
_UNREADABLE = 500


# Makes of an answer what it stands for.
Read: TypeAlias = Callable[[Response], Any]


# Whether the caller goes on from an answer that stands for nothing, by having the model mend it.
Mends: TypeAlias = Callable[[Response], bool]


def never(response: Response) -> bool:
    """Goes on from no answer that stands for nothing."""
    return False


def itself(response: Response) -> Response:
    """Reads an answer as it is."""
    return response


@dataclasses.dataclass(slots=True)
class Asking:
    """A call on its way.

    **Attributes:**

    - `digest`: of what is asked.
    - `journal`, `endpoint`: where its answer is kept, and the provider's address that it is kept under.
    - `is_paid`: whether asking costs something, so that no two processes should ask the same.
    - `lane`, `scope`: who asks, outermost first.
    - `attempts`: the requests that were sent for it so far.
    - `task`: what a scheduler sees of it; `None` without a scheduler.
    - `words`: are given the answer's words as they come; `None` where nobody waits for them.
    - `read`: gives what an answer stands for, or raises `MalformedResponseError`.
    - `mends`: whether the caller goes on from an answer that stands for nothing, so that it is not superseded.
    - `supersedes`: an earlier answer that is of no use, and that it is asked again for.
    - `found`: the answer that was there when its turn came to be sent; `None` if there was none.
    """

    digest: bytes
    journal: AbstractJournal
    endpoint: str
    is_paid: bool
    lane: tuple[int, ...]
    scope: str
    attempts: list[Attempt]
    task: Task | None
    read: Read
    words: SpokenWords | None = None
    mends: Mends = never
    supersedes: Superseded | None = None
    found: Response | None = None
    _has_claim: bool = False
    _last: tuple[Response, Any, MalformedResponseError | ValidatorError | None] | None = None

    @property
    def may_be_known(self) -> bool:
        """Whether the journal may have the answer, or be unable to keep one, when the `turn` to be sent comes."""
        return self.journal.keeping == "file" or (self.is_paid and self.journal.keeping == "session")

    async def turn(self) -> Response | None:
        """Is awaited when a request has its turn to be sent. Returns the answer if there is one by now.

        **Raises:** `Claimed` if another process is asking; `JournalError` if an answer could not be kept, so that it
        would be paid for and lost.
        """
        if self._has_claim or not self.is_paid:
            known = await self.journal.ready(self.digest)
            if known is not None and self.supersedes is not None and self.fault(known) is not None:
                known = None
        else:
            known = await self.journal.claim(self.digest, self.supersedes and self.supersedes.response)
            self._has_claim = known is None
        self.found = known
        return known

    def release(self) -> None:
        """Leaves the question to others, if it was claimed and has no answer."""
        if self._has_claim:
            self._has_claim = False
            self.journal.release(self.digest)

    async def keep(self, request: Request, response: Response) -> Response:
        """Keeps the answer, which ends the claim. Returns the one that is kept."""
        if self.journal.keeping != "nothing":
            response = await self.journal.put(self.digest, self.entry(request, response))
        self._has_claim = False
        return response

    def entry(self, request: Request, response: Response) -> Entry:
        """What the journal keeps of the call."""
        return Entry(
            request,
            response,
            self.endpoint,
            self.attempts[0].began,
            self.attempts[-1].ended,
            len(self.attempts),
            self.lane,
            self.scope,
            self.supersedes,
        )

    def fault(self, response: Response) -> MalformedResponseError | None:
        """Why an answer stands for nothing, or `None`; also if it is not the answer's fault that it cannot be read."""
        error = self.reading(response)[2]
        return error if isinstance(error, MalformedResponseError) else None

    def reading(self, response: Response) -> tuple[Response, Any, MalformedResponseError | ValidatorError | None]:
        """An answer with what it stands for, or with why it stands for nothing. It is read once."""
        if self._last is None or self._last[0] is not response:
            try:
                self._last = response, self.read(response), None
            except (MalformedResponseError, ValidatorError) as error:
                self._last = response, None, error
        return self._last


class Answering:
    """Answers the calls of a session. Used on the event loop.

    **Arguments:**

    - `sender`: sends requests to providers.
    - `samples`: sends those that are samples of one question, and cost something.
    - `deciding`: knows which models decide without words.
    - `counts`: those of the session's report, which it adds to.
    - `provider`: finds a provider by name.
    """

    def __init__(
        self,
        sender: Sender,
        samples: Samples,
        deciding: Deciding,
        counts: dict[str, float],
        provider: Callable[[str], Provider],
    ):
        self._sender = sender
        self._samples = samples
        self._deciding = deciding
        self._counts = counts
        self._flights = SingleFlight()
        self._batches = Batches(self._send_batch, self._most_together)
        self._provider = provider
        # The form in which a model has answered a kind of question; it has refused those before.
        self._forms: dict[tuple[str, str, tuple[Form, ...]], int] = {}
        # Digests of what was answered in this session with what is of no use.
        self._faulty: set[bytes] = set()
        self._has_met_others = False

    async def answer(self, request: Request, asked: Asking) -> tuple[Response, Ending]:
        """The answer from the journal, from an equal call in flight, or from the provider; and which it was."""
        response, how = asked.journal.get(asked.digest), "replayed"
        if response is None or self._is_to_supersede(response, asked):
            response, shared = await self._flights.do(asked.digest, self._send, request, asked)
            how = "merged" if shared else "answered" if asked.attempts else "replayed"
        if how != "answered":
            self._counts[how] += 1
        return response, how

    def value(self, response: Response, asked: Asking) -> Any:
        """What an answer stands for. Raises why it stands for nothing, and remembers that it does so by its fault."""
        _, value, fault = asked.reading(response)
        if fault is not None:
            if isinstance(fault, MalformedResponseError):
                self._faulty.add(asked.digest)
            raise fault
        return value

    def forget(self, digests: Iterable[bytes]) -> None:
        """Forgets that answers were of no use."""
        self._faulty.difference_update(digests)

    def _is_to_supersede(self, response: Response, asked: Asking) -> bool:
        """Whether the journal's answer is of no use to the call, comes from another session, and another may follow."""
        if not response.is_answer or (fault := asked.fault(response)) is None or asked.digest in self._faulty:
            return False
        if asked.mends(response):
            return False
        asked.supersedes = superseding(asked.journal, asked.digest, response._replace(fault=str(fault)))
        return asked.supersedes is not None

    async def _send(self, request: Request, asked: Asking) -> Response:
        """Asks the provider, counts what the answer used, and returns when the journal has kept it."""
        turn = asked.turn if asked.may_be_known else None
        try:
            while True:
                try:
                    if request.embeds or (request.decides and self._samples.is_on):
                        response = await self._with_others(request, asked, turn)
                    elif asked.words is not None:
                        response = await self._sender.send(request, asked.attempts, turn, asked.task, asked.words)
                    else:
                        joins = asked.is_paid and request.sample is not None
                        way = self._samples if joins else self._sender
                        response = await self._sent(request, way, asked.attempts, turn, asked.task)
                    break
                except Claimed:
                    if not self._has_met_others:
                        self._has_met_others = True
                        log.asked_elsewhere(f"{request.provider}/{request.model}")
                    await asked.journal.freed(asked.digest)
            if response is asked.found:
                return response
            fault = asked.fault(response) if response.is_answer else no_answer(request, response)
            if fault is not None:
                response = response._replace(fault=str(fault))
            return await asked.keep(request, response)
        finally:
            asked.release()

    async def _with_others(self, request: Request, asked: Asking, turn: OnTurn | None) -> Response:
        """Sends a request for a vector, or a question to decide, in a batch with others."""
        batch, joins = self._batches.batch(request), False
        try:
            # The journal is asked before the text joins, and not when the batch has its turn: a claim may be another's.
            if turn is not None and (known := await turn()) is not None:
                return known
            joins = True
        finally:
            if not joins:
                batch.leave()
        return await batch.join(request, asked.attempts, asked.task)

    def _most_together(self, request: Request) -> BatchLimits:
        if request.decides:
            return BatchLimits(texts=self._deciding.most(request))
        return self._provider(request.provider).batch_limits(request)

    def _send_batch(
        self, request: Request, attempts: list[Attempt], task: Task | None
    ) -> Coroutine[Any, Any, Response]:
        return self._sent(request, self._sender, attempts, None, task)

    def _sent(
        self,
        request: Request,
        way: Sender | Samples,
        attempts: list[Attempt],
        turn: OnTurn | None,
        task: Task | None,
    ) -> Coroutine[Any, Any, Response]:
        """Sends a request, whether it has several forms or one."""
        if request.decides:
            return self._deciding.send(request, lambda: way.send(request, attempts, turn, task))
        if request.forms:
            return self._in_a_form(request, way, attempts, turn, task)
        return way.send(request, attempts, turn, task)

    async def _in_a_form(
        self,
        request: Request,
        way: Sender | Samples,
        attempts: list[Attempt],
        turn: OnTurn | None,
        task: Task | None,
    ) -> Response:
        """Sends a request that has several forms; and again in its next one, if the form may be why it has failed.

        **Raises:** why the first form has failed, if all have.
        """
        kind = request.provider, request.model, request.forms
        number = self._forms.get(kind, 0)
        refusal: RefusedRequestError | MalformedResponseError | None = None
        while refusal is None or number <= len(request.forms):
            try:
                response = await way.send(request.in_form(number), attempts, turn, task)
            except (RefusedRequestError, MalformedResponseError) as error:
                last = attempts[-1].error if attempts else None
                # Another error was taken for a refusal. But this form was answered before.
                if isinstance(last, ServerError | MalformedResponseError) and number == self._forms.get(kind):
                    raise last from None
                if not _may_be_of_form(error):
                    raise
                refusal = refusal or error
                number += 1
            else:
                # The model's later questions of the kind begin with this form. They still do so with the first one, if
                # that was ever answered: what was refused this time was then something else.
                if self._forms.get(kind) not in (0, number):
                    self._forms[kind] = number
                    if number:
                        log.other_form(f"{request.provider}/{request.model}", number)
                return response
        raise refusal


def _may_be_of_form(error: RefusedRequestError | MalformedResponseError) -> bool:
    """Whether the form of a question may be why all attempts have failed."""
    if isinstance(error, MalformedResponseError):
        return error.status == _UNREADABLE
    return error.status in _AT_FAULT
