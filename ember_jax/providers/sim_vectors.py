"""The vectors and scores of simulated models.

Each word has a direction of its own, and a text that of the sum of its words.

So texts are as near as the words that they share. A direction is a hash of the word, so that it is the same on every
machine, and the sums are of whole numbers, so that no order of adding changes a bit.
"""

import collections
import functools
import hashlib
import math
import re

import numpy as np

from .._regex import regex

_WORD = regex(r"\w+", re.UNICODE)


def vector(text: str, dim: int) -> np.ndarray:
    """The vector of a text, `float32[dim]` of length 1."""
    counts = collections.Counter(_WORD.findall(text.casefold())) or {"": 1}
    total = np.sum([times * _direction(word, dim) for word, times in counts.items()], axis=0)
    total = total if total.any() else _direction("", dim)
    return (total / math.sqrt(int(total @ total))).astype(np.float32)


def likeness(query: str, document: str) -> float:
    """The score of a document from 0 to 1: of the words that two texts have, those that they share.

    It is the cosine of the two sets, |A ∩ B| / √(|A| |B|), and 0 for a text without words.
    """
    asked, said = (set(_WORD.findall(text.casefold())) for text in (query, document))
    return len(asked & said) / math.sqrt(len(asked) * len(said)) if asked and said else 0.0


@functools.lru_cache(maxsize=65_536)
def _direction(word: str, dim: int) -> np.ndarray:
    """A vector of ones and minus ones, as `int64[dim]`."""
    bits = hashlib.shake_256(word.encode("utf-8", "surrogatepass")).digest(-(-dim // 8))
    return 2 * np.unpackbits(np.frombuffer(bits, np.uint8), count=dim).astype(np.int64) - 1
