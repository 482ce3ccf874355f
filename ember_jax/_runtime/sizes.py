"""How many tokens calls will use: counted where a vocabulary is at hand, and corrected by what calls have used.

Design note. tiktoken counts by a model's own vocabulary where it knows the model, and by `o200k_base` for any other.
The count is then multiplied by a ratio that is learned for each model, from what the service says its calls have used:
the marks of a chat template, or another tokenizer, change the count by a factor that hardly varies.

A vocabulary is a file that tiktoken downloads at first use. So it is loaded in a thread, and only for models whose
tokens are limited. Until it is there, and for ever where it cannot be had, characters are counted, four to a token, and
corrected by a ratio in the same way.

A text is counted once, however many samples are asked of it. Only its first 32,768 characters are counted, and the
rest is taken to be like them, so that no count holds up the event loop for more than some milliseconds.
"""

import concurrent.futures
import functools
import threading
from typing import Any

from .._text.numbers import encoding_of, vocabulary
from ..providers.base import Request, Response
from . import log

# The vocabulary for a model that tiktoken does not know.
_ANY_MODEL = "o200k_base"
# How many characters of a text are counted at most.
_COUNTED = 32_768
# How many texts' counts are kept; with more all are dropped.
_MOST_KNOWN = 16_384
# The weight that the past keeps when a call tells what it has used. So about the last twenty calls count.
_KEEP = 0.95


class _Ratio:
    """How many tokens one unit (a character, or a counted token) is, by the last calls.

    **Arguments:**

    - `units`: how many units a token is taken to be before any call has told.
    """

    def __init__(self, units: float):
        self._units, self._tokens = units, 1.0

    def of(self, units: float) -> float:
        return units * self._tokens / self._units

    def learn(self, units: float, tokens: float) -> None:
        self._units = _KEEP * self._units + units
        self._tokens = _KEEP * self._tokens + tokens


class Sizes:
    """The sizes of one model's calls. Until a first call is answered, an answer is taken to have 256 tokens."""

    def __init__(self, model: str):
        self._model = model
        self._by_characters, self._by_count = _Ratio(4.0), _Ratio(1.0)
        self._outputs = 256.0
        self._is_known = False
        self._known: dict[int, int] = {}  # tokens of a text's counted beginning, by the text's hash

    def estimate(self, request: Request, count: bool = False) -> float:
        """The tokens that a call will use, prompt and answer together.

        `count` asks for a count by vocabulary, where it matters because tokens are limited. Else characters do.
        """
        limits = (request.parameters.get(name) for name in ("max_tokens", "max_completion_tokens"))
        outputs = min([self._outputs, *(limit for limit in limits if isinstance(limit, int))])
        if request.embeds or request.decides:  # nothing is written
            outputs = 0.0
        counted = self._count(request) if count else None
        inputs = self._by_characters.of(_characters(request)) if counted is None else self._by_count.of(counted)
        return inputs + request.answers * outputs

    def learn(self, request: Request, response: Response, count: bool = False) -> None:
        """Learns from what a call has used, if the service says it; `count` as for `estimate`."""
        if not response.input_tokens:
            return
        self._by_characters.learn(_characters(request), response.input_tokens)
        counted = self._count(request) if count else None
        if counted is not None:
            self._by_count.learn(counted, response.input_tokens)
        keep = _KEEP if self._is_known else 0.0
        self._outputs = keep * self._outputs + (1 - keep) * response.output_tokens / request.answers
        self._is_known = True

    def _count(self, request: Request) -> float | None:
        loading = _loading(self._model)
        if not loading.done() or (encoding := loading.result()) is None:
            return None
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        return sum(self._tokens(encoding, message.content) for message in request.messages)

    def _tokens(self, encoding: Any, words: str) -> float:
        key, counted = hash(words), words[:_COUNTED]
        if key not in self._known:
            self._known[key] = len(encoding.encode_to_numpy(counted, disallowed_special=()))
        return self._known[key] * len(words) / max(1, len(counted))


def _characters(request: Request) -> int:
    return sum(len(message.content) for message in request.messages)


@functools.cache
def _loading(model: str) -> "concurrent.futures.Future[Any]":
    """The future of a model's vocabulary, whose result is `None` if it cannot be had. Loading starts at first use."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    threading.Thread(target=_load, args=(model, future), name="ember-vocabulary", daemon=True).start()
    return future


def _load(model: str, future: "concurrent.futures.Future[Any]") -> None:
    found = None
    try:
        found = vocabulary(encoding_of(model.rpartition("/")[2]) or _ANY_MODEL)
    except Exception as error:
        # Any exception: this is a thread, so it would reach nobody, and no call has to fail for it. tiktoken's download
        # has many ways to fail, and characters will do.
        log.not_counted(model, error)
    future.set_result(found)
