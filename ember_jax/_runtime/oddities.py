"""What is odd about an answer, told once of each model: that it was cut, or that another model has given it."""

import warnings
from collections.abc import Sequence

from .._errors import CutAnswerWarning, LooseAnswerWarning, NoAnswerError, OtherModelWarning
from .._providers.base import Finish, Request, Response


class Oddities:
    """The warnings of a session about answers."""

    def __init__(self) -> None:
        self._told: set[tuple[type[Warning], str]] = set()

    def cut(self, request: Request, response: Response) -> None:
        """Tells that an answer ended before all was said."""
        limit = response.finish == Finish.LENGTH
        why = "at the most tokens that it was allowed" if limit else "by the service's content filter"
        what = "Give LLM(…, max_tokens=…) more. " if limit else ""
        self._tell(
            CutAnswerWarning,
            request,
            f"has cut an answer, {why}. {what}`run.report().cut` counts such answers, and `Completion.finish` marks "
            "them.",
        )

    def other_model(self, request: Request, response: Response) -> None:
        """Tells that another model has answered, where its name is no longer form of the one that was asked for."""
        asked, answered = request.model, response.model
        if not answered or asked == answered:
            return
        short, long = sorted((_bare(asked), _bare(answered)), key=len)
        if not long.startswith(short):
            self._tell(
                OtherModelWarning, request, f"was answered by another model, which calls itself {answered!r:.80}."
            )

    def loose(self, request: Request, passed_over: Sequence[str]) -> None:
        """Tells that a structured answer has more in it than was asked for."""
        self._tell(LooseAnswerWarning, request, f"answers loosely; passed over: {', '.join(passed_over)}.")

    def _tell(self, kind: type[Warning], request: Request, words: str) -> None:
        model = f"{request.provider}/{request.model}"
        if (kind, model) in self._told:
            return
        self._told.add((kind, model))
        try:
            warnings.warn(f"{model} {words}", kind, stacklevel=1)
        except kind as told:  # warnings are errors, which must not reach the event loop: the answer was paid for
            warnings.showwarning(told, kind, __file__, 0)


def _bare(model: str) -> str:
    """A model's name without the path before it, in small letters."""
    return model.rsplit("/", 1)[-1].casefold()


def no_answer(request: Request, response: Response) -> NoAnswerError:
    """The error for an answer with which nothing can be gone on."""
    finish = Finish(response.finish)
    if finish == Finish.REFUSAL or (finish == Finish.CONTENT_FILTER and not response.text):
        words = f"the model declined: {response.text or 'its content filter stopped the answer.'}"
    else:
        spent = f" after {response.output_tokens:,} tokens" if response.output_tokens else ""
        advice = " Give it more max_tokens." if finish == Finish.LENGTH else ""
        words = f"the answer has no text{spent} (it ended by {finish.name}).{advice}"
    return NoAnswerError(f"{request.provider}/{request.model}: {words}", finish=finish)
