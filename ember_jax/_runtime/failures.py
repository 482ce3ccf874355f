"""From JAX's error back to the one that caused it.

An exception that leaves a callback reaches the user as `JaxRuntimeError`: its text is kept, its type is lost. The last
few that were raised into JAX are kept here, so that the typed one can be raised where a frame of ours is outermost.
"""

import collections
import logging
import threading

from .._jax.internals import CALLBACK_LOG, is_callback_error

_lock = threading.Lock()
_raised: collections.deque[BaseException] = collections.deque(maxlen=16)


def raised(error: BaseException) -> BaseException:
    """Notes an error that is about to be raised into JAX; returns it."""
    with _lock:
        _raised.append(error)
        CALLBACK_LOG.addFilter(_is_news)
    return error


def _is_news(record: logging.LogRecord) -> bool:
    """Whether JAX's log of a callback's error says what the user is not told anyway, by the error."""
    error = record.exc_info[1] if record.exc_info else None
    return not any(error is known for known in list(_raised))


def typed(error: BaseException) -> BaseException | None:
    """The error that one of JAX's stands for, or `None`."""
    if not is_callback_error(error):
        return None
    message = str(error)
    with _lock:
        for known in reversed(_raised):
            if type(known).__name__ in message and str(known) in message:
                return known
    return None
