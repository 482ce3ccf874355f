"""From text to numbers: the number that is written in a text, its token ids (and text cut by them), and a vector of
features.
"""

import functools
import unicodedata
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from .._regex import regex
from ..errors import TextError
from . import grammar
from .elementwise import NUMBER, TEXT, elementwise
from .strings import integers, static_size
from .text import Text, as_text

BYTES = "bytes"
PADDING = -1


def parse_number(t: Text | str) -> Float32[jax.Array, "*shape"]:
    r"""The last number in each text.

    Reads integers, decimals, signs, exponents (`1e-3`, `6.02 × 10^{23}`), thousands separators (`1,234,567.5`),
    fractions (`3/4`, `1 1/2`, `½`, `\frac{3}{4}`), full-width and other scripts' digits; a full stop, a unit or a
    percent sign after the number is ignored (`12.5%` is 12.5). A LaTeX `\boxed{…}` with a number in it goes before
    what follows it. The whole grammar, with what was decided about ranges, dates and lists, heads `grammar.py`.

    **Arguments:**

    - `t`: a Text of any shape.

    **Returns:** `float32[*t.shape]`: what Python's `float` makes of the number, rounded to float32 (infinite from 2^128
    on); NaN where there is no number. Compare answers with `ember.normalize(t, "number")`, which does not round.
    """
    return elementwise(_parse_number, (), [(as_text(t).digests, TEXT)], jax.ShapeDtypeStruct((), np.float32))


def tokens(t: Text | str, length: int, encoding: str = BYTES) -> Int32[jax.Array, "*shape {length}"]:
    """Each text as token ids, at a fixed length.

    **Arguments:**

    - `t`: a Text of any shape.
    - `length`: how many ids to give, a Python int of 1 or more: longer texts are cut, shorter ones are padded with
        -1 at the end.
    - `encoding`: `"bytes"` (the UTF-8 bytes, 0 to 255; built in), or the name of a tiktoken encoding (`"o200k_base"`)
        or of a model that has one (`"gpt-4o"`). Vocabularies are downloaded once, at first use, by tiktoken. Special
        tokens written in a text (`<|endoftext|>`) are ordinary text.

    **Returns:** `int32[*t.shape, length]`.

    **Raises:** `TextError` for another `length`, for an unknown encoding, and where its vocabulary cannot be loaded.
    """
    length = static_size(length, "length", "ember.tokens")
    if encoding != BYTES:
        # Loaded now although it is needed only when the program runs: an error then points at the user's own line.
        vocabulary(encoding)
    result = jax.ShapeDtypeStruct((length,), np.int32)
    return elementwise(_tokens, (length, encoding), [(as_text(t).digests, TEXT)], result)


def truncate(t: Text | str, tokens: Any, encoding: str = BYTES) -> Text:
    """The beginning of each text that has at most so many tokens.

    **Arguments:**

    - `t`: a Text of any shape.
    - `tokens`: how many tokens to keep: an integer, or an array of integers that broadcasts and may be traced. What is
        below 0 counts as 0.
    - `encoding`: as `ember.tokens` takes it.

    **Returns:** a Text of the broadcast shape. No character is cut apart: a last one that is not whole is dropped.

    **Raises:** `TextError` if `tokens` is no integer, for an unknown encoding, and where its vocabulary cannot be
    loaded.
    """
    if encoding != BYTES:
        vocabulary(encoding)
    most = integers(tokens, "tokens", "ember.truncate")
    return Text(elementwise(truncated, (encoding,), [(as_text(t).digests, TEXT), (most, NUMBER)], TEXT))


def features(t: Text | str, dim: int) -> Float32[jax.Array, "*shape {dim}"]:
    """Each text as a vector of unit length, from its words and their parts: hashed counts, nothing learned.

    Counts words (runs of letters and digits; every other character but white space is a word of its own) and the
    trigrams of characters inside each word with its ends marked, after Unicode NFKC and without case. A hash gives each
    word and each trigram a place in the vector and a sign, so that collisions cancel in the mean and inner products are
    kept without bias (Weinberger et al. 2009, arXiv 0902.2206).

    **Arguments:**

    - `t`: a Text of any shape.
    - `dim`: the length of the vector, a Python int of 1 or more. From 256 on collisions are few for a sentence.

    **Returns:** `float32[*t.shape, dim]`, the same on every machine; zeros for a text without words.

    **Raises:** `TextError` for another `dim`.
    """
    dim = static_size(dim, "dim", "ember.features")
    result = jax.ShapeDtypeStruct((dim,), np.float32)
    return elementwise(_features, (dim,), [(as_text(t).digests, TEXT)], result)


# -- numbers ---------------------------------------------------------------------------------------------------------


def _parse_number(words: str) -> np.float32:
    number = grammar.last_number(words)
    with np.errstate(over="ignore"):
        return np.float32(np.nan if number is None else float(number))


# -- tokens ----------------------------------------------------------------------------------------------------------


def _tokens(length: int, encoding: str, words: str) -> np.ndarray:
    out = np.full(length, PADDING, np.int32)
    if encoding == BYTES:
        # Cut before it is encoded, which spares the rest of a long text: a character has at least one byte, so the
        # first `length` characters hold the first `length` bytes.
        ids = np.frombuffer(words[:length].encode(), np.uint8)[:length]
    else:
        ids = vocabulary(encoding).encode_to_numpy(words, disallowed_special=())[:length]
    out[: len(ids)] = ids
    return out


def truncated(encoding: str, words: str, most: Any) -> str:
    """The longest beginning of some words that has at most so many tokens."""
    most = max(int(most), 0)
    if encoding == BYTES:
        return words[:most].encode()[:most].decode(errors="ignore")
    known = vocabulary(encoding)
    ids = known.encode(words, disallowed_special=())
    if len(ids) <= most:
        return words
    begun = known.decode_bytes(ids[:most]).decode(errors="ignore")
    # What ends elsewhere may be taken apart elsewhere, and so into more tokens.
    while len(known.encode(begun, disallowed_special=())) > most:
        begun = begun[:-1]
    return begun


def encoding_of(name: str) -> str | None:
    """The tiktoken encoding that is called `name`, or that the OpenAI model `name` uses; `None` if there is none."""
    import tiktoken  # imported here because the import takes 60 ms, and few programs need it

    try:
        return name if name in tiktoken.list_encoding_names() else tiktoken.encoding_name_for_model(name)
    except KeyError:
        return None


@functools.cache
def vocabulary(name: str) -> Any:
    """The `tiktoken.Encoding` of an encoding's name, or of an OpenAI model's; downloaded if it is not on this machine.

    **Raises:** `TextError` if tiktoken knows no such name, or if the vocabulary can be neither read nor downloaded.
    """
    import tiktoken

    encoding = encoding_of(name)
    if encoding is None:
        raise TextError(
            f"ember.tokens knows no encoding {name!r}. It takes {BYTES!r}, an encoding of tiktoken "
            f"({', '.join(tiktoken.list_encoding_names())}) or the name of an OpenAI model without its provider, "
            'as in "gpt-4o".'
        )
    try:
        return tiktoken.get_encoding(encoding)
    # What tiktoken lets through: OSError from the network or the disk, ValueError for a damaged vocabulary.
    except (OSError, ValueError) as error:
        raise TextError(
            f"the vocabulary of {encoding} is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {error!s:.200}). Without a network use ember.tokens(…, encoding={BYTES!r}), or "
            "set TIKTOKEN_CACHE_DIR to a folder into which tiktoken has loaded it before."
        ) from error


# -- features --------------------------------------------------------------------------------------------------------

_WORD = regex(r"\w+|[^\w\s]")
# A word or a trigram is hashed as a polynomial in its character codes, modulo 2^64, at the multiplier of Knuth's MMIX
# generator. The result then goes through the finaliser of SplitMix64 (Steele, Lea and Flood 2014), so that every bit of
# the hash depends on every character.
_BASE = np.uint64(6364136223846793005)
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _features(dim: int, words: str) -> np.ndarray:
    hashes = _hashes(unicodedata.normalize("NFKC", words).casefold())
    # The upper half of a hash, read as a fraction of 2^32, chooses the place; the lowest bit chooses the sign. The hash
    # modulo `dim` was not taken for the place, since for most `dim` it favours low places.
    places = ((hashes >> np.uint64(32)) * np.uint64(dim)) >> np.uint64(32)
    signs = 1.0 - 2.0 * (hashes & np.uint64(1))
    counts = np.bincount(places.astype(np.intp), signs, minlength=dim)
    # Counts are whole numbers, so their norm is 0 or at least 1. The maximum therefore changes the zero vector alone,
    # which stays zero instead of becoming NaN.
    return (counts / max(np.linalg.norm(counts), 1.0)).astype(np.float32)


def _hashes(words: str) -> np.ndarray:
    """One hash `uint64[n]` for each trigram and each word, computed for all of them at once."""
    found = _WORD.findall(words)
    if not found:
        return np.zeros(0, np.uint64)
    codes = np.frombuffer(f" {' '.join(found)} ".encode("utf-32-le"), "<u4").astype(np.uint64)
    trigrams = (codes[:-2] * _BASE + codes[1:-1]) * _BASE + codes[2:]
    # The words stand in one string with a space on each side. A trigram with a space in the middle would join two
    # words; one with a space at an end is the mark of a word's beginning or end.
    trigrams = trigrams[codes[1:-1] != ord(" ")]
    # A word's polynomial: each character times a power of the base, whose exponent is the character's place counted
    # from the space before the word. `reduceat` adds up the terms of each word. So the hash does not depend on where in
    # the text the word stands.
    codes = codes[:-1]
    starts = np.flatnonzero(codes == ord(" "))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    powers = np.multiply.accumulate(np.full(place.max() + 1, _BASE, np.uint64))
    of_words = np.add.reduceat(codes * powers[place], starts)
    return _mix(np.concatenate([trigrams, of_words]))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, on an array `uint64[n]`."""
    x = x + _MIX[0]
    x = (x ^ (x >> np.uint64(30))) * _MIX[1]
    x = (x ^ (x >> np.uint64(27))) * _MIX[2]
    return x ^ (x >> np.uint64(31))
