"""The content-addressed store: it holds the words of each text once, while arrays carry digests of them.

Design note. A digest is BLAKE2b (RFC 7693) with 128 bits of output over the UTF-8 bytes, so it means the same on
every machine. With n texts the chance of any collision is about n²/2^129: below 1e-20 for a billion texts. That
is why equality of digests may stand for equality of words, and why nothing here looks for a collision.

Some digests are reserved and never the digest of words: all zeros, which fills the unused parts of arrays (an
unselected branch, `jnp.zeros`), and those of failed text (see `failed`).

Words lie in memory up to 128 MiB, or as many bytes as the environment variable `EMBER_JAX_TEXT_BYTES` says. Beyond that
the words that were used least recently go to a temporary file, and come back when they are asked for. The journal holds
most words as well, but the store does not rely on it: a journal may be closed, moved or damaged while a program still
holds digests of the words.
"""

import functools
import hashlib
import os

import numpy as np

from .._spilling import Spilling
from ..errors import TextError, UnknownDigestError
from . import failed

DIGEST_WORDS = 4
DIGEST_BYTES = 16
_BLANK = bytes(DIGEST_BYTES)

VARIABLE, _MOST_BYTES = "EMBER_JAX_TEXT_BYTES", 128 << 20
# The bytes that a text takes besides its characters, roughly: 64 for the string object, 64 for the digest, and its
# share of dictionaries that are two thirds full on average.
_OVERHEAD = 200


def _size(words: str) -> int:
    # An upper estimate: CPython stores non-ASCII text in 1, 2 or 4 bytes a character. `sys.getsizeof` would be exact
    # but is not constant: it grows once somebody asks for the UTF-8 bytes of a non-ASCII string, which the string then
    # keeps.
    return _OVERHEAD + len(words) * (1 if words.isascii() else 4)


def _most_bytes() -> int:
    given = os.environ.get(VARIABLE, "")
    if given and not given.isdecimal():
        raise ValueError(f"the environment variable {VARIABLE} is {given!r}. Give bytes, as in {_MOST_BYTES}.")
    return int(given) if given else _MOST_BYTES


def words_within(most_bytes: int) -> Spilling[str]:
    """A new map from digests to words, which keeps at most `most_bytes` bytes in memory and the rest in a file."""
    return Spilling(most_bytes, _size, str.encode, bytes.decode)


_words = words_within(_most_bytes())


def digest_of(words: str) -> bytes:
    """The 16-byte digest of some words.

    **Raises:** `TextError` if they hold a lone surrogate, which no UTF-8 text can.
    """
    return _digest_of_short(words) if len(words) < _SHORT else _digest_of(words)


def _digest_of(words: str) -> bytes:
    try:
        raw = words.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"character {error.start} of a text of {len(words)} characters is the lone surrogate "
            f"U+{ord(words[error.start]):04X}, which is not valid Unicode text. It often comes from "
            'reading bytes with errors="surrogateescape"; decode them with errors="replace", or drop it by '
            'words.encode("utf-8", "ignore").decode().'
        ) from None
    return hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()


# The digest of the same words is asked for some four times in the course of a call: for a Text, for what is noted of
# the call, and for the samples of a prompt. Of words shorter than this many characters the digest is cached. The cache
# holds on to its words, so longer words, which would take memory beside the bound above, are hashed each time.
_SHORT = 256
_digest_of_short = functools.lru_cache(maxsize=4096)(_digest_of)


def put(words: str) -> bytes:
    """Puts words into the store and returns their digest, 16 bytes.

    **Raises:** `TextError` if the words hold a lone surrogate.
    """
    # A plain copy is kept in place of a subclass of str: `numpy.str_` would keep its whole array alive.
    words = words if type(words) is str else str(words)
    digest = digest_of(words)
    _words.put(digest, words)
    return digest


def get(digest: bytes) -> str:
    """The words of a digest.

    **Raises:** `UnknownDigestError` if the words were never put into this process's store; for failed text, the
    exception that it failed with.
    """
    words = _words.get(digest)
    if words is not None:
        return words
    if digest.startswith(failed.PREFIX):
        # One exception is raised for every text that failed by it. Its old traceback would grow with each raise.
        raise failed.cause_of(digest).with_traceback(None)
    raise UnknownDigestError(_unknown(digest))


def peek(digest: bytes) -> str | None:
    """The words of a digest, or `None` if the store does not hold them. It serves a repr, which must not raise."""
    return _words.get(digest)


def in_memory() -> int:
    """How many texts lie in memory."""
    return _words.in_memory()


def is_reserved(digest: bytes) -> bool:
    """Whether a digest stands for no words: it is blank, or that of failed text."""
    return digest == _BLANK or digest.startswith(failed.PREFIX)


def split(digests: np.ndarray) -> list[bytes]:
    """The digests of an array `uint32[*shape, 4]`, in row-major order."""
    raw = np.ascontiguousarray(digests, np.uint32).tobytes()
    return [raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)]


def put_one(words: str) -> np.ndarray:
    """Puts words into the store; returns their digest as `uint32[4]`."""
    return np.frombuffer(put(words), np.uint32)


def put_array(words: np.ndarray) -> np.ndarray:
    """Puts an object array of strings into the store; returns their digests, `uint32[*shape, 4]`."""
    digests = b"".join([put(w) for w in words.ravel().tolist()])
    return np.frombuffer(digests, np.uint32).reshape(*words.shape, DIGEST_WORDS)


def get_array(digests: np.ndarray) -> list[str]:
    """The words of digests `uint32[*shape, 4]`, as a flat list in row-major order. Raises what `get` does."""
    return [get(digest) for digest in split(digests)]


# What happens to digests where a tree is taken for one of numbers, and what to do instead.
ARITHMETIC = (
    "arithmetic was done on all leaves of a tree, also on the digests of its Texts: a mean of trees, "
    "optax.apply_updates, optax.incremental_update, a cast. Do it on the numbers alone: `numbers, rest = "
    "eqx.partition(tree, eqx.is_inexact_array)`, then `eqx.combine(numbers, rest)`; an optimiser begins with "
    "`optim.init(eqx.filter(tree, eqx.is_inexact_array))`."
)


def _unknown(digest: bytes) -> str:
    if digest == _BLANK:
        return (
            "this Text is blank: its digest is all zeros, which stands for no words. It comes from an array made of "
            "zeros in place of a Text (`jnp.zeros_like`, padding, an out-of-range index); start from "
            '`ember.text("")` instead.'
        )
    return (
        f"the words of digest {digest.hex()} are not in this process. Likely causes, the first first:\n"
        "  1. an axis other than a leading one was mapped or moved: the last axis of a Text's array holds the "
        "digest's four words, so `in_axes=-1`, `out_axes=-1` or a transpose takes digests apart. Use leading axes.\n"
        f"  2. {ARITHMETIC}\n"
        "  3. the Text was loaded from a checkpoint of arrays (eqx.tree_serialise_leaves, Orbax, np.savez), which "
        "holds digests only. `ember.save` and `ember.load` keep the words with them, and so does pickle. A checkpoint "
        "that is already written can be used once `ember.text` was given the same words in this process.\n"
        "  4. its array alone was sent from another process. Send the Text: it is pickled with its words."
    )
