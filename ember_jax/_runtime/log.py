"""What is told to Python's `logging`, under the logger `ember_jax`; nothing is shown unless a program asks for it.

The fields of a record are its attributes, so that a formatter can write them as JSON; `event` names the kind of record.
None of them holds a prompt, an answer or a credential. Failures of requests are logged as INFO and not as WARNING: one
that is tried again is handled here, and a call that fails for good raises an exception.

Each function looks at the level before it builds its message, as most programs show none of these.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ProviderError

logger = logging.getLogger("ember_jax")
logger.addHandler(logging.NullHandler())  # without it Python prints warnings to stderr if no handler is set up


def session_opened() -> None:
    """A session begins."""
    if logger.isEnabledFor(logging.INFO):
        _tell(logging.INFO, "session_opened", "session opened")


def session_closed(seconds: float, report: Mapping[str, float | str]) -> None:
    """A session has ended; the fields of its report are the record's."""
    if logger.isEnabledFor(logging.INFO):
        counts = {name: value for name, value in report.items() if value and not isinstance(value, str)}
        told = ", ".join(f"{name} {value:g}" for name, value in counts.items()) or "no calls"
        message = f"session closed after {seconds:.3f} s: {told}"
        _tell(logging.INFO, "session_closed", message, seconds=seconds, **report)


def journal_opened(path: Path) -> None:
    """A journal's file is used from now on."""
    if logger.isEnabledFor(logging.INFO):
        _tell(logging.INFO, "journal_opened", f"journal opened: {path}", path=str(path))


def sweep_began(operator: str, calls: int) -> None:
    """A sweep begins, which makes at least `calls` calls."""
    if logger.isEnabledFor(logging.DEBUG):
        message = f"{operator}: began, {calls:,} calls or more"
        _tell(logging.DEBUG, "sweep_began", message, operator=operator, calls=calls)


def sweep_ended(operator: str, calls: int, seconds: float) -> None:
    """A sweep has ended, by its result or an exception, after `calls` calls and `seconds`."""
    if logger.isEnabledFor(logging.DEBUG):
        message = f"{operator}: ended after {calls:,} calls in {seconds:.3f} s"
        _tell(logging.DEBUG, "sweep_ended", message, operator=operator, calls=calls, seconds=seconds)


def retry(model: str, error: ProviderError, attempt: int, seconds: float, rate: float) -> None:
    """A request has failed and is sent again.

    **Arguments:**

    - `model`: as `provider/model`.
    - `error`: how the request failed.
    - `attempt`: which attempt it was, from 1.
    - `seconds`: how long the call waits before the next one.
    - `rate`: the pace of the model's calls in requests per second; infinite if they are not paced.
    """
    if logger.isEnabledFor(logging.INFO):
        paced = f"; paced at {rate:.3g} requests/s" if error.status == 429 and rate < math.inf else ""
        message = f"{model}: attempt {attempt} failed, {_named(error)}; again in {seconds:.3g} s{paced}"
        fields = {"model": model, "attempt": attempt, **_fields(error), "wait_s": seconds}
        _tell(logging.INFO, "retry", message, **fields, requests_per_s=rate if rate < math.inf else None)


def gave_up(model: str, error: ProviderError, attempt: int) -> None:
    """A request has failed and is not sent again; `attempt` counts from 1."""
    if logger.isEnabledFor(logging.INFO):
        message = f"{model}: attempt {attempt} failed, {_named(error)}; it was the last"
        _tell(logging.INFO, "gave_up", message, model=model, attempt=attempt, **_fields(error))


def other_form(model: str, number: int) -> None:
    """A model has refused a question, and has answered it in another of its forms, which are numbered from 0."""
    if logger.isEnabledFor(logging.INFO):
        message = f"{model}: refuses a form of a question, and is asked in form {number} from now on"
        _tell(logging.INFO, "other_form", message, model=model, form=number)


def one_by_one(model: str) -> None:
    """A model does not take requests for several samples, and is asked for each by itself from now on."""
    if logger.isEnabledFor(logging.INFO):
        message = f"{model}: takes no requests for several samples; asked one by one from now on"
        _tell(logging.INFO, "one_by_one", message, model=model)


def no_decisions(model: str, error: ProviderError) -> None:
    """A model decides no question without words, and is asked by letters from now on."""
    if logger.isEnabledFor(logging.INFO):
        message = f"{model}: decides nothing without words, {_named(error)}; asked by letters from now on"
        _tell(logging.INFO, "no_decisions", message, model=model, **_fields(error))


def held(model: str, by: str, seconds: float, waiting: int) -> None:
    """Calls of a model are held back for some seconds, by something that is named; so many of them wait."""
    if logger.isEnabledFor(logging.INFO):
        message = f"{model}: held for {seconds:,.0f} s by {by}; {waiting:,} waiting"
        _tell(logging.INFO, "held", message, model=model, by=by, wait_s=seconds, waiting=waiting)


def asked_elsewhere(model: str) -> None:
    """Another process that shares the journal is asking what a call of a model asks. Told for the first one."""
    if logger.isEnabledFor(logging.INFO):
        message = f"{model}: another process asks the same with this journal; calls wait for its answers"
        _tell(logging.INFO, "asked_elsewhere", message, model=model)


def not_counted(model: str, error: Exception) -> None:
    """The tokens of a model's prompts cannot be counted, and are estimated from characters; `error` says why."""
    if logger.isEnabledFor(logging.INFO):
        message = f"{model}: tokens are estimated from characters: {error}"
        _tell(logging.INFO, "not_counted", message, model=model, error=type(error).__name__)


def _named(error: ProviderError) -> str:
    return type(error).__name__ + (f" ({error.status})" if error.status else "")


def _fields(error: ProviderError) -> dict[str, Any]:
    return {"error": type(error).__name__, "status": error.status}


def _tell(level: int, event: str, message: str, **fields: Any) -> None:
    logger.log(level, "%s", message, extra={"event": event, **fields}, stacklevel=3)
