"""Failed text: digests that stand for a failure instead of words.

Design note. A program inside `ember.attempt` goes on after a failure. The text that could not be had is then a digest
of a reserved form: eight bytes 0xff, then an eight-byte digest of the cause. Failed text spreads as NaN does:

- A text operation or a call whose operand has failed does not run; its result is that same digest.
- Failed text equals nothing, itself included, so it gets no vote.
- Whoever looks at it gets `None` in place of words, and the cause beside it: `tolist`, NumPy, `print`, `ember.table`.
  To raise there was rejected: one failed lane would hide the words of all others.
- What needs its words, as the store that is asked for them, gets the cause as an exception.

In place of numbers that failed stand NaN for floating-point numbers, the least value of the type for integers, and
False for booleans.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import FailedTextError

# The digest of ordinary words begins with these bytes with a probability of 2^-64.
PREFIX = b"\xff" * 8
# How many causes are kept. The oldest are dropped, so that a sweep with many failures does not fill the memory. Text
# whose cause was dropped is still failed text; `cause_of` then says that the cause is not known any more.
_MOST = 4096

_causes: OrderedDict[bytes, BaseException] = OrderedDict()


def digest_for(cause: BaseException) -> bytes:
    """The 16-byte digest of text that failed for a cause. The cause is kept, so that `cause_of` can give it.

    Causes of one type with one message have one digest, so the last of them is the one that is told.
    """
    said = f"{type(cause).__qualname__}: {cause}".encode("utf-8", "replace")
    digest = PREFIX + hashlib.blake2b(said, digest_size=8).digest()
    keep(digest, cause)
    return digest


def keep(digest: bytes, cause: BaseException) -> None:
    """Keeps the cause that a failed digest stands for."""
    _causes[digest] = cause
    _causes.move_to_end(digest)
    while len(_causes) > _MOST:
        _causes.popitem(last=False)


def cause_of(digest: bytes) -> BaseException:
    """The exception that a failed digest stands for; a `FailedTextError` that says so if it is not known any more."""
    return _causes.get(digest) or FailedTextError(
        "this Text failed, and why is not known in this process (any more). Ask where it comes from again."
    )


def known_cause_of(digest: bytes) -> BaseException | None:
    """The exception that a failed digest stands for, or `None` if it is not known in this process."""
    return _causes.get(digest)


def among(array: np.ndarray) -> bytes | None:
    """The first failed digest of an array `uint32[..., 4]`, in row-major order; `None` if there is none."""
    return _among(array.tobytes())


def _among(raw: bytes) -> bytes | None:
    # One search in C over all bytes, since nearly all arrays have no failed text. The prefix may also lie across two
    # digests, so what is found is looked at digest by digest.
    if PREFIX not in raw:
        return None
    return next((raw[i : i + 16] for i in range(0, len(raw), 16) if raw.startswith(PREFIX, i)), None)


def first(arrays: Sequence[np.ndarray]) -> bytes | None:
    """The first failed digest in any of some arrays, or `None`."""
    return first_in([array.tobytes() for array in arrays])


def first_in(raws: Sequence[bytes]) -> bytes | None:
    """The first failed digest in the bytes of some arrays, or `None`."""
    # Every call and text operation asks this, and the answer is nearly always `None`: so the bytes of all arrays are
    # searched at once, and only if the prefix is there each array alone.
    if PREFIX not in b"".join(raws):
        return None
    return next(filter(None, map(_among, raws)), None)


def result(digest: bytes, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """An array that stands for a result which depends on failed text.

    **Arguments:**

    - `digest`: the failed digest, 16 bytes.
    - `shape`: the shape of the result (of the strings, for text).
    - `dtype`: the dtype of numbers; `None` for text.

    **Returns:** `uint32[*shape, 4]`, every string of which is that digest, or `dtype[*shape]` as `number` says.
    """
    if dtype is None:
        return np.broadcast_to(np.frombuffer(digest, np.uint32), (*shape, len(digest) // 4))
    return np.full(shape, number(dtype), dtype)


def number(dtype: Any) -> Any:
    """The value that stands for a number that failed: the least integer, False, or else NaN."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return np.iinfo(dtype).min
    return False if dtype.kind == "b" else np.nan
