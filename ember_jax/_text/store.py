"""The content-addressed store: where the words lie once, while arrays carry their digests.

Design note. A digest is BLAKE2b (RFC 7693) with 128 bits of output over the UTF-8 bytes, so it means the same on
every machine. With n texts the chance of any collision is about n²/2^129: below 1e-20 for a billion texts. That
is why equality of digests may stand for equality of words, and why a collision is not searched for.

Some digests are reserved and never the digest of words: all zeros, which fills the unused parts of arrays (an
unselected branch, `jnp.zeros`), and those of failed text (see `failed`).

Words lie in memory up to 256 MiB, or as many bytes as the environment variable `EMBER_JAX_TEXT_BYTES` says; what is
used least goes to a temporary file and comes back when it is asked for. Not to the journal, where most words lie as
well: it may be closed, moved or damaged while a program still holds their digests.
"""

import functools
import hashlib
import os

import numpy as np

from .._errors import TextError, UnknownDigestError
from .._spilling import Spilling
from . import failed

DIGEST_WORDS = 4
DIGEST_BYTES = 16
_BLANK = bytes(DIGEST_BYTES)

VARIABLE, _MOST_BYTES = "EMBER_JAX_TEXT_BYTES", 256 << 20
# What a text takes besides its characters: 64 bytes for the string, 64 for the digest, and its share of dictionaries
# that are two thirds full on average.
_OVERHEAD = 200


def _size(words: str) -> int:
    # Not `sys.getsizeof`, which grows when somebody asks for the UTF-8 bytes of what is not ASCII.
    return _OVERHEAD + len(words) * (1 if words.isascii() else 4)


def _most_bytes() -> int:
    given = os.environ.get(VARIABLE, "")
    if given and not given.isdecimal():
        raise ValueError(f"the environment variable {VARIABLE} is {given!r}. Give bytes, as in {_MOST_BYTES}.")
    return int(given) if given else _MOST_BYTES


def words_within(most_bytes: int) -> Spilling[str]:
    """Words by digest, of which so many bytes lie in memory."""
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


# Of a call's words each is told by its digest some four times: by a Text, by what is noted of the call, and by the
# samples of a prompt. It is made once, of words that are short enough to be kept.
_SHORT = 256
_digest_of_short = functools.lru_cache(maxsize=4096)(_digest_of)


def put(words: str) -> bytes:
    """Keeps some words and returns their digest."""
    # A subclass of str (numpy.str_) would keep its whole array alive.
    words = words if type(words) is str else str(words)
    digest = digest_of(words)
    _words.put(digest, words)
    return digest


def get(digest: bytes) -> str:
    """The words of a digest.

    **Raises:** `UnknownDigestError` if this process never saw them; for failed text, its cause.
    """
    words = _words.get(digest)
    if words is not None:
        return words
    if digest.startswith(failed.PREFIX):
        raise failed.cause_of(digest).with_traceback(None)
    raise UnknownDigestError(_unknown(digest))


def peek(digest: bytes) -> str | None:
    """The words of a digest, or `None` if they are not here; for a repr, which must not raise."""
    return _words.get(digest)


def in_memory() -> int:
    """How many texts lie in memory."""
    return _words.in_memory()


def put_one(words: str) -> np.ndarray:
    """The digest `uint32[4]` of some words, which are kept."""
    return np.frombuffer(put(words), np.uint32)


def put_array(words: np.ndarray) -> np.ndarray:
    """Digests `uint32[*shape, 4]` of an object array of strings."""
    digests = b"".join([put(w) for w in words.ravel().tolist()])
    return np.frombuffer(digests, np.uint32).reshape(*words.shape, DIGEST_WORDS)


def get_array(digests: np.ndarray) -> list[str]:
    """The words of digests `uint32[*shape, 4]`, flattened in row-major order."""
    raw = np.ascontiguousarray(digests, np.uint32).tobytes()
    return [get(raw[i : i + DIGEST_BYTES]) for i in range(0, len(raw), DIGEST_BYTES)]


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
        "  2. the Text was loaded from a plain checkpoint, which holds digests only. `ember.save` and `ember.load` "
        "keep the words with them.\n"
        "  3. it was made in another process. Send the words along, or make the Text again here with `ember.text`."
    )
