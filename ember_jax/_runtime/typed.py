"""The outermost of our frames, in which JAX's error becomes the one that it stands for."""

import contextlib
from collections.abc import Iterator

from .._jax.internals import CALLBACK_ERRORS
from ..errors import CancelledError, EmberError, InternalError
from . import failures, interrupt


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Raises, in place of JAX's error, the one that it stands for."""
    try:
        yield
    except CALLBACK_ERRORS as error:
        known = failures.typed(error)
        if isinstance(known, CancelledError):
            interrupt.settle()
        if known is None:
            raise
        # JAX's frames and ours say nothing that the message does not; a host function's own frames do
        cause = known.cause if isinstance(known, InternalError) else None
        raise (known.with_traceback(None) if isinstance(known, EmberError) else known) from cause
