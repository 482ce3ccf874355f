"""Whether a model decides questions without words: as its service is known to, and as is found out.

Design note. A table says which services have such an endpoint. Whether one's model has what it takes is known when it
is asked, so the first request to a model is sent alone, as a trial, and others wait for how it ends: a service that has
no such endpoint (404, 405), or whose model has no head for it (501), is asked once in a session. From then on the model
is asked by letters (see `_model/choose.py`), which is a question of its own with a place of its own in the journal. A
refusal that may be about one question (400, 422) has this question asked by letters; if the model takes that, and has
decided no question of the kind before, later ones of the kind are asked so at once: a tokeniser may have no token for
what a kind is read off at.

A rerun by a journal of its own asks nothing: an answer by letters that is kept counts while nobody knows better.
"""

import asyncio
import copy
from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import RefusedRequestError
from ..providers.base import Decisions, Provider, Request, Response
from ..providers.questions import DecisionKind, parted, question
from . import log

# The statuses of a refusal that is about the model, and that may be about the question.
_OF_MODEL, _OF_QUESTION = (404, 405, 501), (400, 422)

_Model = tuple[str, str]


class Deciding:
    """What a session knows of the decisions of models. Used on the event loop.

    **Arguments:**

    - `provider`: finds a provider by name.
    """

    def __init__(self, provider: Callable[[str], Provider]):
        self._provider = provider
        # The kinds of questions that models have decided; and how they have refused to decide any, or some kind.
        self._decided: dict[_Model, set[DecisionKind]] = {}
        self._refusals: dict[_Model | tuple[_Model, DecisionKind], RefusedRequestError] = {}
        self._trials: dict[_Model, asyncio.Future[None]] = {}

    def limits(self, request: Request) -> Decisions | None:
        """What the service takes of such questions; `None` if it is to be asked by letters, as far as is known."""
        return None if self._refusal(request) is not None else self._provider(request.provider).decisions(request)

    def most(self, request: Request) -> int:
        """How many questions a request may have."""
        limits = self._provider(request.provider).decisions(request)
        return 1 if limits is None else limits.questions

    def is_known(self, request: Request) -> bool:
        """Whether the model has decided a question of the kind in this session."""
        return _kind(request) in self._decided.get(_model(request), ())

    async def send(self, request: Request, sent: Callable[[], Coroutine[Any, Any, Response]]) -> Response:
        """What `sent` gives, which sends the request; alone, while nobody knows whether the model decides anything.

        **Raises:** what `sent` raises; the refusal of another request, unsent, if this one would be refused so.
        """
        model = _model(request)
        while model not in self._decided:
            if (refusal := self._refusal(request)) is not None:
                raise copy.copy(refusal)
            trial = self._trials.get(model)
            # Of a loop that was closed meanwhile, as after a fork, nothing goes on.
            if trial is None or trial.get_loop() is not asyncio.get_running_loop():
                return await self._try(model, request, sent)
            await asyncio.shield(trial)
        return self._noted(request, await sent())

    async def _try(
        self, model: _Model, request: Request, sent: Callable[[], Coroutine[Any, Any, Response]]
    ) -> Response:
        trial = self._trials[model] = asyncio.get_running_loop().create_future()
        try:
            return self._noted(request, await sent())
        except RefusedRequestError as refusal:
            if refusal.status in _OF_MODEL:
                self._refusals[model] = copy.copy(refusal)
                log.no_decisions("/".join(model), refusal)
            raise
        finally:
            if self._trials.get(model) is trial:
                del self._trials[model]
            trial.set_result(None)

    def _noted(self, request: Request, response: Response) -> Response:
        self._decided.setdefault(_model(request), set()).update(one.kind for one in parted(request)[1])
        return response

    def is_undecided(self, refusal: RefusedRequestError) -> bool:
        """Whether a refusal may be one of deciding, so that the question is asked by letters."""
        return refusal.status in (*_OF_MODEL, *_OF_QUESTION)

    def lettered(self, request: Request, refusal: RefusedRequestError) -> None:
        """A question was answered by letters that the service has refused to decide."""
        if not self.is_known(request):
            self._refusals.setdefault((_model(request), _kind(request)), copy.copy(refusal))

    def _refusal(self, request: Request) -> RefusedRequestError | None:
        model = _model(request)
        return self._refusals.get(model) or self._refusals.get((model, _kind(request)))


def _model(request: Request) -> _Model:
    return request.provider, request.model


def _kind(request: Request) -> DecisionKind:
    """That of the request's last question."""
    return question(request.messages[-1]).kind
