"""What models have answered to operators before, as a session and the files of its journals know."""

import contextlib
from collections.abc import Iterator

from ..errors import JournalError
from .journal.columns import CallRecord
from .journal.sqlite import Journal
from .session import Session


def answers(session: Session, model: str, scope: str, most: int) -> Iterator[CallRecord]:
    """What a model has answered to calls of the operators of a scope.

    They are the last of them, among the last `most` that stand in the innermost of the operators.
    """
    operators = _operators(scope)
    op = operators[-1] if operators else None
    found = [session.calls(op=op, failed=False)]
    for journal in session.journals:
        if isinstance(journal, Journal):
            with contextlib.suppress(JournalError):  # there is no file yet
                found.append(journal.calls(model=model, op=op))
    for calls in found:
        yield from (call for call in calls[-most:] if call.model == model and _operators(call.scope) == operators)


def _operators(scope: str) -> list[str]:
    """The operators of a scope, each once where a function and a plan of it have one name, and without transformations.

    A plan of `jax.vmap(op)` has another scope than a call of it.
    """
    names = [name for name in scope.split("/") if name and not name.endswith(")")]
    return [name for i, name in enumerate(names) if name not in names[i - 1 : i]]
