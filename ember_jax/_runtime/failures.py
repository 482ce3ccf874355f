"""From JAX's error back to the one that caused it.

An exception that leaves a callback reaches the user as `JaxRuntimeError`: its text is kept, and its type is lost. So
the last few exceptions that were raised into JAX are kept here. Where one of our own frames is outermost, it looks for
the typed exception by the text, and raises that one.
"""

import collections
import logging
import threading

from .._jax.internals import CALLBACK_LOG, is_callback_error

_lock = threading.Lock()
# The last exceptions only: each holds its traceback, and with it the frames' values.
_raised: collections.deque[BaseException] = collections.deque(maxlen=16)


def raised(error: BaseException) -> BaseException:
    """Notes an error that is about to be raised into JAX; returns it."""
    with _lock:
        _raised.append(error)
        CALLBACK_LOG.addFilter(_is_news)  # a filter that is there already is not added again
    return error


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of JAX's log is to be shown: not if it logs an error that is one of ours.

    JAX logs each exception of a callback before it raises its own. The user sees ours by the exception.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not any(error is known for known in list(_raised))


def typed(error: BaseException) -> BaseException | None:
    """The exception that one of JAX's stands for, or `None` if it stands for none that is kept."""
    if not is_callback_error(error):
        return None
    message = str(error)
    with _lock:
        for known in reversed(_raised):  # the newest of those with an equal text
            if type(known).__name__ in message and str(known) in message:
                return known
    return None
