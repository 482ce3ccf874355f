"""What is odd about an answer, told once of each model: that it was cut, or that another model has given it."""

import functools
from collections.abc import Sequence

from .._regex import regex
from ..errors import CutAnswerWarning, LooseAnswerWarning, NoAnswerError, OtherModelWarning, SameAnswerWarning
from ..providers.base import Finish, Request, Response
from .warned import Warned


class Oddities:
    """The warnings of a session about answers."""

    def __init__(self) -> None:
        self._warned = Warned()
        # Of questions that were asked with keys, by their hashes: that of the answer, and the keys that got it. `None`
        # where answers differ.
        self._samples: dict[int, tuple[int, set[str]] | None] = {}

    def look_at(self, request: Request, response: Response) -> None:
        """Warns of what is odd about an answer. Raises `NoAnswerError` if there is nothing in it to go on with."""
        if response.model != request.model:
            self._other_model(request, response)
        if request.sample is not None and len(response.text) >= _LONG:
            self._sample(request, request.sample, response.text)
        if response.finish == Finish.STOP:  # nearly always
            return
        if response.is_cut:
            self._cut(request, response)
        if not response.is_answer:
            raise no_answer(request, response)

    def _cut(self, request: Request, response: Response) -> None:
        """Tells that an answer ended before all was said."""
        limit = response.finish == Finish.LENGTH
        why = "at the most tokens that it was allowed" if limit else "by the service's content filter"
        what = "Give LLM(…, max_tokens=…) more. " if limit else ""
        self._warned.tell(
            request,
            CutAnswerWarning,
            f"has cut an answer, {why}. {what}`run.report().cut` counts such answers, and `Completion.finish` marks "
            "them.",
        )

    def _sample(self, request: Request, sample: str, text: str) -> None:
        """Tells that samples of one question are the same long text."""
        question, answer = hash((request.provider, request.model, request.messages)), hash(text)
        if question not in self._samples and len(self._samples) == _MOST:
            return
        before = self._samples.get(question, (answer, set()))
        if before is None or before[0] != answer:
            self._samples[question] = None
            return
        before[1].add(sample)
        self._samples[question] = before
        if len(before[1]) >= _SAME:
            words = (
                f"gives {_SAME} keys the same long answer to one question, each of them paid for: it seems to draw no "
                "samples. Ask it without keys, or look at the temperature that it takes."
            )
            self._warned.tell(request, SameAnswerWarning, words)

    def _other_model(self, request: Request, response: Response) -> None:
        """Tells that another model has answered than the one that was asked for, or than another version of it."""
        asked, answered = request.model, response.model
        if answered and _bare(asked) != _bare(answered):
            words = f"was answered by another model, which calls itself {answered!r:.80}."
            self._warned.tell(request, OtherModelWarning, words)

    def loose(self, request: Request, passed_over: Sequence[str]) -> None:
        """Tells that a structured answer has more in it than was asked for."""
        self._warned.tell(request, LooseAnswerWarning, f"answers loosely; passed over: {', '.join(passed_over)}.")


# A short answer may well be the same for many keys. A long one, of so many characters, for so many keys, is not. The
# questions of which this is remembered are so many at most.
_LONG, _SAME, _MOST = 80, 4, 100_000

# How many characters of a refusal an error quotes.
_QUOTED = 300


@functools.lru_cache(maxsize=64)
def _bare(model: str) -> str:
    """A model's name in small letters, without the path before it and the version behind it."""
    return _VERSION.sub("", model.rsplit("/", 1)[-1].casefold())


# Dates, as in `gpt-4o-2024-08-06`, `command-r-08-2024` and `gpt-4-0613`, and the names of versions. One or two digits
# are no date: `claude-sonnet-4` and `claude-sonnet-4-5` are two models.
_VERSION = regex(
    r"(?:[-_:@](?:\d{4}-\d{2}-\d{2}|\d{2}-\d{4}|\d{3,8}|latest|preview|beta|exp|experimental|free)|\.gguf)+\Z"
)


def no_answer(request: Request, response: Response) -> NoAnswerError:
    """The error for an answer with which nothing can be gone on."""
    finish = Finish(response.finish)
    if finish == Finish.REFUSAL or (finish == Finish.CONTENT_FILTER and not response.text):
        said = " ".join(response.text.split())  # on one line
        words = f"the model declined: {said[:_QUOTED] or 'its content filter stopped the answer.'}"
    else:
        spent = f" after {response.output_tokens:,} tokens" if response.output_tokens else ""
        advice = " Give it more max_tokens." if finish == Finish.LENGTH else ""
        words = f"the answer has no text{spent} (finish: {finish.name.lower()}).{advice}"
    error = NoAnswerError(f"{request.provider}/{request.model}: {words}")
    error.finish = finish
    return error
