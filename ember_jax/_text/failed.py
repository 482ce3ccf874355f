"""Failed text: digests that stand for no words, but for why there are none.

Design note. Where a program wants to go on after a failure, what would have been text is a digest of a reserved form:
eight bytes of ones, then eight of a digest of the cause. It spreads like NaN: a text operation or a call on it gives it
again, without being made; it equals nothing, itself included, so it gets no vote; and whoever asks for its words is
told the cause. Numbers that fail are NaN, integers the least of their type, and booleans false.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._errors import FailedTextError

# The digest of words begins so with a chance of 2^-64.
PREFIX = b"\xff" * 8
# Causes that are kept; those that are not known any more are told as such.
_MOST = 4096

_causes: OrderedDict[bytes, BaseException] = OrderedDict()


def digest_for(cause: BaseException) -> bytes:
    """The digest of text that failed by some cause, which is kept."""
    said = f"{type(cause).__qualname__}: {cause}".encode("utf-8", "replace")
    digest = PREFIX + hashlib.blake2b(said, digest_size=8).digest()
    _causes[digest] = cause
    _causes.move_to_end(digest)
    while len(_causes) > _MOST:
        _causes.popitem(last=False)
    return digest


def cause_of(digest: bytes) -> BaseException:
    """Why there are no words."""
    return _causes.get(digest) or FailedTextError(
        "this Text failed, and why is not known in this process (any more). Ask where it comes from again."
    )


def among(array: np.ndarray) -> bytes | None:
    """The first failed one of digests `uint32[..., 4]`, or `None`."""
    raw = array.tobytes()
    if PREFIX not in raw:
        return None
    return next((raw[i : i + 16] for i in range(0, len(raw), 16) if raw.startswith(PREFIX, i)), None)


def first(arrays: Sequence[np.ndarray]) -> bytes | None:
    """The first failed digest in any of some arrays, or `None`."""
    if PREFIX not in b"".join([array.tobytes() for array in arrays]):  # so are most, and each call asks
        return None
    return next(filter(None, map(among, arrays)), None)


def result(digest: bytes, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """What stands for a result that depends on failed text: text of a shape, or numbers of a dtype."""
    if dtype is None:
        return np.broadcast_to(np.frombuffer(digest, np.uint32), (*shape, len(digest) // 4))
    return np.full(shape, number(dtype), dtype)


def number(dtype: Any) -> Any:
    """What stands for a number that failed."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return np.iinfo(dtype).min
    return False if dtype.kind == "b" else np.nan
