"""Vectors as the words of an answer: base64 of float32, little-endian, as services send them. It is exact."""

import base64
import binascii

import numpy as np


def packed(vectors: np.ndarray) -> str:
    """Vectors `[n, dim]`, or one `[dim]`, as words."""
    return base64.b64encode(np.ascontiguousarray(vectors, "<f4").tobytes()).decode("ascii")


def unpacked(words: str, n: int) -> np.ndarray:
    """The `n` vectors that words stand for, `float32[n, dim]`. Raises `ValueError` for words that are no vectors."""
    try:
        raw = base64.b64decode(words, validate=True)
    except binascii.Error:
        raw = b""
    if not raw or len(raw) % (4 * n):
        raise ValueError(f"these are not {n} vectors of float32 in base64.")
    return np.frombuffer(raw, "<f4").astype(np.float32).reshape(n, -1)


def shown(words: str) -> str:
    """The one vector that words stand for, as it is printed: how long it is; words that are none as they are."""
    try:
        return f"[{unpacked(words, 1).shape[1]:,} floats]"
    except ValueError:
        return words
