"""Every exception that ember_jax raises, drawn here once.

    EmberError
    ├── TextError (ValueError)            a value that cannot be a Text, a template that lacks a field
    │   ├── UnknownDigestError            a digest whose words are not in this process
    │   └── FailedTextError               failed text whose cause is not in this process
    ├── AnnotationError (TypeError)       an operator's missing annotation, or a value that breaks one
    ├── TracedControlFlowError (TypeError)  Python `if`, `while`, `for`, `str()` on a traced value
    ├── UnsupportedError (ValueError)     a JAX feature that has no meaning inside an operator
    ├── GradientError (ValueError)        a derivative that would silently be wrong
    ├── HostResultError (TypeError)       a host function returned something other than its `out=`
    ├── ValidatorError (RuntimeError)     a validator of a schema failed by itself, and refused no answer
    ├── ModelError (ValueError)           a model id that no provider knows
    ├── NotationError (ValueError)        a network's notation that cannot be read, or a network that it cannot say
    ├── ProviderError                     what a provider answered instead of a completion
    │   ├── AuthenticationError           no API key, or a wrong one
    │   ├── RefusedRequestError           the request itself is at fault (4xx)
    │   │   └── NoAnswerError             a whole answer, paid for, that has no text or is a refusal
    │   ├── RateLimitError                too many requests (429)
    │   ├── ServerError                   the provider's fault (408, 409, 5xx)
    │   ├── ConnectionFailedError         nothing, or half of an answer, came back
    │   └── MalformedResponseError        an answer that is not what the protocol says
    ├── BudgetError                       a call would cost more than is left of `budget_usd`; it is not sent
    ├── PilotError                        a lane that is not one of those that a pilot runs
    ├── JournalError                      the journal, where answers are kept, cannot be used
    │   ├── JournalFileError              its file is damaged, another program's, or a newer version's
    │   └── JournalWriteError             an answer cannot be kept: a full disk, a folder that is read-only
    ├── SchedulerError                    a session's scheduler has raised, or broken what it promises
    ├── InternalError                     a fault of ember_jax itself, not of the program that it ran
    ├── SweepError                        some lanes of a sweep failed; the others are kept
    ├── ForeignError                      in what was unpickled: a cause that could not be pickled
    └── CancelledError                    the sweep was stopped, by Ctrl-C or at interpreter exit

    RepeatedSampleWarning (UserWarning)   equal keyless calls that were answered by one sample
    SameAnswerWarning (UserWarning)       several keys that were answered by the same words, each paid for
    UnknownPriceWarning (UserWarning)     a call that costs nobody knows what
    UnboundedAnswerWarning (UserWarning)  an answer that a budget can bound by the model's own limit only
    CutAnswerWarning (UserWarning)        an answer that ended before all was said
    OtherModelWarning (UserWarning)       an answer of another model than the one that was asked
    LooseAnswerWarning (UserWarning)      a structured answer that has more in it than was asked for
    UntestedVersionWarning (UserWarning)  a JAX that is newer than any that this version is tested with

No message holds a credential, and none but `SweepError`'s causes and `NotationError`'s line quote a prompt.
"""

import pickle
import re
from collections.abc import Sequence
from typing import Any, Literal


class EmberError(Exception):
    """The base of every error that ember_jax raises."""

    # An error is unpickled from its message and attributes, without a call of `__init__`. Python's default would call
    # `__init__` with the message. If that takes other arguments, the error can be pickled but not unpickled, and a pool
    # of processes then waits for ever.
    def __reduce__(self) -> tuple[Any, ...]:
        movable = lambda held: portable(held) if isinstance(held, BaseException) else held
        return _made, (type(self), self.args), {name: movable(held) for name, held in vars(self).items()} or None


def _made(cls: type[EmberError], args: tuple[Any, ...]) -> EmberError:
    return cls.__new__(cls, *args)


class TextError(EmberError, ValueError):
    """A value that cannot be a Text, or a text operation that cannot be done."""


class UnknownDigestError(TextError):
    """A digest whose words are not in this process's store."""


class FailedTextError(TextError):
    """Text that failed, and whose cause is not in this process."""


class AnnotationError(EmberError, TypeError):
    """An operator lacks an annotation, or was given a value that breaks one."""


class TracedControlFlowError(EmberError, TypeError):
    """Python control flow, or `str()`, on a value that is known only when the plan runs."""


class UnsupportedError(EmberError, ValueError):
    """A JAX feature that has no meaning inside an operator."""


class GradientError(EmberError, ValueError):
    """A derivative was asked for that would silently be wrong."""


class ToolError(EmberError, RuntimeError):
    """Tools cannot be had, as those of a server that does not start."""


class HostResultError(EmberError, TypeError):
    """A host function returned something that does not match its `out=`."""


class ValidatorError(EmberError, RuntimeError):
    """A validator of a pydantic model failed by itself, or made what its schema cannot hold; the answer is kept."""


class ModelError(EmberError, ValueError):
    """A model id that names no known provider or model."""


class NotationError(EmberError, ValueError):
    """A network's notation cannot be read, or a network cannot be written in it.

    **Attributes:**

    - `position`: the index of the character at fault; `None` for a network that cannot be written.
    """

    def __init__(self, message: str, text: str = "", position: int | None = None):
        super().__init__(message if position is None else f"{message}\n{_pointed(text, position)}")
        self.position = position


def _pointed(text: str, position: int) -> str:
    """The line that a character is in, or the part of it near the character, and a caret below the character."""
    begin = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    left, right = max(begin, position - 70), min(end, position + 30)
    before, after = "…" * (left > begin), "…" * (right < end)
    line = "".join(c if c.isprintable() else " " for c in text[left:right])
    return f"  {before}{line}{after}\n  {' ' * (len(before) + position - left)}^"


class ProviderError(EmberError):
    """What a provider answered instead of a completion.

    **Attributes:**

    - `status`: the HTTP status, or `None` when there was no HTTP answer.
    - `retry_after`: seconds the provider asks to wait, or `None`.
    - `quota`: what the provider said of its limits (a `Quota`), or `None`.
    - `was_sent`: whether the request may have reached the provider, if there was no HTTP answer.
    - `tokens`: what the provider says that it bills all the same (`Tokens`), or `None`.
    - `should_retry`: whether the provider says that the request should be sent again, or `None`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        quota: object = None,
        was_sent: bool = True,
        tokens: object = None,
        should_retry: bool | None = None,
    ):
        super().__init__(message)
        self.should_retry = should_retry
        self.tokens = tokens
        self.status = status
        self.retry_after = retry_after
        self.quota = quota
        self.was_sent = was_sent


class AuthenticationError(ProviderError):
    """There is no API key, or the provider does not accept it."""


class RefusedRequestError(ProviderError):
    """The provider refused the request itself; sending it again cannot help."""


class NoAnswerError(RefusedRequestError):
    """The provider gave a whole answer, which is paid for, and there is nothing in it to go on with.

    It is kept in the journal, so that a rerun gets it again for nothing.

    **Attributes:**

    - `finish`: how it ended, a `Finish`.
    """

    finish: int = 0


class RateLimitError(ProviderError):
    """The provider is asked too often."""


class ServerError(ProviderError):
    """The provider failed; the same request may succeed later."""


class ConnectionFailedError(ProviderError):
    """No answer, or only half of one, came back."""


class MalformedResponseError(ProviderError):
    """The provider's answer is not what its protocol says."""


class BudgetError(EmberError):
    """A call might cost more than is left of a session's budget, and was not sent.

    **Attributes:** in US dollars

    - `cap`: the session's `budget_usd`.
    - `spent`: what was paid, and the most that answers which were lost may have cost.
    - `reserved`: the most that calls in flight may cost.
    - `worst`: the most that this call may cost; infinite if nothing bounds its answer.
    """

    def __init__(self, message: str, *, cap: float, spent: float, reserved: float, worst: float):
        super().__init__(message)
        self.cap, self.spent, self.reserved, self.worst = cap, spent, reserved, worst


class JournalError(EmberError):
    """The journal, where answers are kept, cannot be used."""


class JournalFileError(JournalError):
    """A file is no journal that this version can read; it is left as it is."""


class JournalWriteError(JournalError):
    """An answer cannot be kept; no further call is paid for."""


class SchedulerError(EmberError):
    """A session's scheduler has raised, or broken what it promises; the calls that waited for it were not made."""


class InternalError(EmberError):
    """ember_jax itself is at fault, not the program that it ran.

    **Attributes:**

    - `cause`: the exception that was not expected, or `None`.
    """

    def __init__(self, message: str, cause: BaseException | None = None):
        super().__init__(message)
        self.cause = cause


def told(error: BaseException) -> str:
    """An error in words: of what type it is, and its message."""
    return f"{type(error).__name__}: {error}"


class LaneFailure:
    """One failed lane: its index (outermost `vmap` first), its operator scope, and why."""

    def __init__(self, lane: tuple[int, ...], scope: str, cause: BaseException):
        self.lane = lane
        self.scope = scope
        self.cause = cause

    @property
    def why(self) -> str:
        """The cause, in words."""
        return told(self.cause)

    def told(self, more: int = 0) -> str:
        """The failure, and how many other lanes failed for the same reason."""
        where = f"lane {list(self.lane)}" if self.lane else "the only lane"
        others = f" and {more:,} more" if more else ""
        return f"{where}{others}, {self.scope or 'top level'}: {self.why}"

    def __str__(self) -> str:
        return self.told()

    def __reduce__(self) -> tuple[Any, ...]:
        return LaneFailure, (self.lane, self.scope, portable(self.cause))

    def __deepcopy__(self, memo: dict[int, Any]) -> "LaneFailure":
        return self  # it is never changed, so it can be shared; and some causes cannot be copied


_QUOTED = r"""(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|"(?:[^"\\]|\\.)*\""""


def unquoted(why: str) -> str:
    """A cause in words without the values that it quotes, by which equal causes are told as one."""
    return re.sub(_QUOTED, "…", why)


class ForeignError(EmberError):
    """Stands in another process for an exception that cannot be pickled: its message names that one, and its words."""


def portable(cause: BaseException) -> BaseException:
    """The exception itself if it can be pickled and unpickled, else a `ForeignError` for it.

    Only trying shows which: an exception may be pickled without an error and fail when it is unpickled.
    """
    try:
        pickle.loads(pickle.dumps(cause))
    except Exception:  # a `__reduce__` or `__init__` of somebody's may raise anything
        return ForeignError(told(cause))
    return cause


# For how long answers are kept: in a file, as long as their session, or not at all.
Keeping = Literal["file", "session", "nothing"]
_KEPT: dict[Keeping, str] = {
    "file": "what they were answered is kept in the journal",
    "session": "what they were answered is kept as long as this session",
    "nothing": "what they were answered is kept nowhere, as the session has no journal",
}
_RESUME: dict[Keeping, str] = {
    "file": "To resume, run the same program again, here or in another session with the same journal: only what failed "
    "is asked again. (Simulated models' answers outlive a session only in a journal that you name.)",
    "session": "To resume, run the same program again in this session: only what failed is asked again. Another "
    "session asks everything again; `ember.session(journal=…)` with the name of a file keeps answers for it.",
    "nothing": "If the same program is run again, everything is asked again. `ember.session(journal=…)` with the name "
    "of a file keeps what is answered.",
}


class SweepError(EmberError):
    """Some lanes failed; every other lane finished, and its answers are kept if there is a journal.

    **Attributes:**

    - `failures`: one `LaneFailure` for each failed lane, in lane order. Lanes inside of a lane, such as several samples
        of one question, are not counted by themselves: the lane failed, by the first of them.
    - `lanes`: the number of lanes that were run.
    """

    _SHOWN = 3

    def __init__(self, failures: Sequence[LaneFailure], lanes: int, keeping: Keeping = "file"):
        self.failures = tuple(failures)
        self.lanes = lanes
        told: dict[str, list[LaneFailure]] = {}
        # A spent budget is told first, as it is why the sweep did not go on, and its message says how to.
        for failure in sorted(self.failures, key=lambda f: not isinstance(f.cause, BudgetError)):
            told.setdefault(unquoted(failure.why), []).append(failure)
        groups = list(told.values())[: self._SHOWN]
        shown = "".join(f"\n  - {group[0].told(len(group) - 1)}" for group in groups)
        more = len(self.failures) - sum(map(len, groups))
        rest = f"\n  - … and {more:,} more (`error.failures` has them all)" if more else ""
        resume = (
            f"\n{_RESUME[keeping]}\n"
            "`except ember.errors.SweepError` catches this around `ember.jit(jax.vmap(f))`, or around `with "
            "ember.session():`. Where JAX's own `vmap` or `jit` is outermost, JAX raises it as an error of its own."
        )
        is_broke = any(isinstance(f.cause, BudgetError) for f in self.failures)
        super().__init__(
            f"{len(self.failures)} of {lanes} lanes failed; the other {lanes - len(self.failures)} finished, "
            f"and {_KEPT[keeping]}:{shown}{rest}{'' if is_broke else resume}"
        )


class CancelledError(EmberError):
    """The sweep was stopped before it finished."""


class PilotError(EmberError):
    """A lane is not one of those that a pilot runs. `Plan.estimate` raises it inside, and catches it."""


def can_be_caught(error: BaseException) -> bool:
    """Whether `ember.attempt` turns an error into a value. It does not for errors that stop all calls."""
    stops = CancelledError | JournalError | SchedulerError | BudgetError | PilotError | InternalError
    return isinstance(error, Exception) and not isinstance(error, stops)


class RepeatedSampleWarning(UserWarning):
    """Several equal calls without a key were answered by one sample."""


class SameAnswerWarning(UserWarning):
    """Calls with different keys got one long answer, word for word, so the service seems to draw no samples."""


class UnknownPriceWarning(UserWarning):
    """A model has no known price, so what its calls cost is not counted."""


class UnboundedAnswerWarning(UserWarning):
    """A budget reserves for each answer of a model the longest one that the model can give. Told once of each model."""


class CutAnswerWarning(UserWarning):
    """An answer of a model ended before all was said. Told once of each model."""


class OtherModelWarning(UserWarning):
    """Another model answered than the one that was asked. Told once of each model."""


class LooseAnswerWarning(UserWarning):
    """A structured answer has more in it than was asked for, which was passed over; told once of each model."""


class UntestedVersionWarning(UserWarning):
    """The JAX that is installed is newer than any that ember_jax is tested with."""


__all__ = [
    "AnnotationError",
    "AuthenticationError",
    "BudgetError",
    "CancelledError",
    "ConnectionFailedError",
    "CutAnswerWarning",
    "EmberError",
    "FailedTextError",
    "ForeignError",
    "GradientError",
    "HostResultError",
    "InternalError",
    "JournalError",
    "JournalFileError",
    "JournalWriteError",
    "LaneFailure",
    "LooseAnswerWarning",
    "MalformedResponseError",
    "ModelError",
    "NoAnswerError",
    "NotationError",
    "OtherModelWarning",
    "PilotError",
    "ProviderError",
    "RateLimitError",
    "RefusedRequestError",
    "RepeatedSampleWarning",
    "SameAnswerWarning",
    "SchedulerError",
    "ServerError",
    "SweepError",
    "TextError",
    "ToolError",
    "TracedControlFlowError",
    "UnboundedAnswerWarning",
    "UnknownDigestError",
    "UnknownPriceWarning",
    "UnsupportedError",
    "UntestedVersionWarning",
]


def __dir__() -> list[str]:
    return __all__
