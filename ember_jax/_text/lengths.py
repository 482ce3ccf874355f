"""Bounds on how many tokens a text has, for texts that are known and for answers that are not yet known.

Design note. A byte-level vocabulary (BPE, and SentencePiece with byte fallback) has no token of less than a byte, so a
text has at most as many tokens as bytes of UTF-8. These tokenisers split at white space before they merge, so a text
has at least as many tokens as words. The exact count needs the vocabulary that the service counts by, which is a
download; these bounds need nothing.

An answer that is not yet known is bounded by the most tokens that its model may give. Where an answer stands in another
prompt, the bound assumes that it has no more tokens there than it had as an answer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import TextError
from . import numbers, operations, store, strings, turns
from .elementwise import ElementwiseOp


class Span(NamedTuple):
    """The least and the most tokens that a text may have. `most` is infinite if no bound is known."""

    least: int
    most: float


UNKNOWN = Span(0, np.inf)


def span(text: str | Span) -> Span:
    """The bounds of a text. A `Span`, which stands for a text that is not known, is returned as it is."""
    if isinstance(text, Span):
        return text
    # A lone surrogate is counted as the three bytes that it would take, where plain UTF-8 raises.
    return Span(len(text.split()), len(text.encode("utf-8", "surrogatepass")))


def result(op: ElementwiseOp, elements: Sequence[Any]) -> str | Span:
    """What a text operation gives on one element of each operand, of which some are not known.

    **Arguments:**

    - `op`: the operation.
    - `elements`: for text a string, or its `Span` if the words are not known; for a list of texts a list of those; for
        a number, which is never known here, its dtype.

    **Returns:** the words if all elements are known, else their bounds; `UNKNOWN` if the operation raises on the words,
    or is one whose result is neither put together of its operands (see `operations.parts`) nor cut out of a known one.
    """
    flat = [x for e in elements for x in (e if isinstance(e, list) else [e])]
    if all(isinstance(x, str) for x in flat):
        try:
            return op.function(*op.static, *elements)
        except TextError:
            return UNKNOWN
    if op.function in (turns.said, turns.answered):  # of a conversation, what was said in it counts
        spans = list(map(_said, flat))
        return Span(sum(s.least for s in spans), sum(s.most for s in spans))
    if op.function in _CUTS and isinstance(whole := flat[_CUTS[op.function]], str):
        return Span(0, span(whole).most)
    parts = operations.parts(op.function, op.static, elements)
    if parts is None:
        return UNKNOWN
    parts = [_written(*p) if isinstance(p, tuple) and not isinstance(p, Span) else p for p in parts]
    # The least: tokens of separate parts may merge where the parts meet, so the parts' least counts are not added. It
    # is the larger of the words of all known parts together (the unknown parts may be empty) and of each part alone.
    known = "".join(p for p in parts if isinstance(p, str))
    spans = list(map(span, parts))
    return Span(max([len(known.split()), *(s.least for s in spans)]), sum(s.most for s in spans))


def _said(words: str | Span) -> Span:
    if isinstance(words, Span) or not (named := turns.named_in(words)):
        return span(words)
    spans = [span(store.get(digest)) for digest in named]
    return Span(sum(s.least for s in spans), sum(s.most for s in spans))


# What gives a part of one of its operands, and of which. A part of a known text has no more bytes than that text. Of an
# answer that is not known nothing is said: cut inside a token, it may have more tokens than it had.
_CUTS: dict[Any, int] = {strings.cut: 0, strings.piece: 1, numbers.truncated: 0, str.strip: 0}


def _written(value: Any, spec: str) -> str | Span:
    """A field of a template, written out: the words if the value is a string, else bounds.

    An unknown text that is written with a format specification is `UNKNOWN`, since the specification may pad it.
    """
    if isinstance(value, np.dtype):
        return _number(value, spec)
    if isinstance(value, str):
        return format(value, spec)
    return UNKNOWN if spec else value


def _number(dtype: np.dtype, spec: str) -> Span:
    """Bounds on the tokens of a number of which only the dtype is known: the characters of the longest one.

    The numbers tried are the extremes: the longest boolean word, the least and the greatest integer, and for floats the
    greatest size, the smallest size with all 17 digits, and NaN. No other number of the dtype is written longer.
    """
    extremes: list[Any]
    match dtype.kind:
        case "b":
            extremes = [False]
        case "i" | "u":
            extremes = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
        case "f":
            extremes = [-float(np.finfo(dtype).max), -float(np.finfo(dtype).tiny) * 1.2345678901234567, float("nan")]
        case _:
            return UNKNOWN
    try:
        return Span(0, max(len(format(x, spec)) for x in extremes))
    except ValueError:
        return UNKNOWN
