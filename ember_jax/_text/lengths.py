"""How many tokens a text can have, without the vocabulary that a service counts them by; also one not yet known.

Design note. A byte-level vocabulary (BPE, and SentencePiece with byte fallback) has no token of less than a byte, so
text has at most as many tokens as bytes of UTF-8. These tokenisers split at white space before they merge, so it has
at least as many as words. The exact count needs the model's own vocabulary, which is a download; these bounds need
nothing. What a model will answer is known by the most tokens that it may have, and is taken to be no more tokens where
it stands in another prompt.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._errors import TextError
from . import operations
from .elementwise import ElementwiseOp


class Span(NamedTuple):
    """Bounds on the tokens of a text."""

    least: int
    most: float


UNKNOWN = Span(0, np.inf)


def span(text: str | Span) -> Span:
    """The bounds of a text, or of one that is known by its bounds."""
    if isinstance(text, Span):
        return text
    return Span(len(text.split()), len(text.encode("utf-8", "surrogatepass")))


def result(op: ElementwiseOp, elements: Sequence[Any]) -> str | Span:
    """What a text operation makes of one element of each operand.

    **Arguments:**

    - `elements`: strings or spans, lists of them, and for numbers, which are not known, their dtypes.
    """
    flat = [x for e in elements for x in (e if isinstance(e, list) else [e])]
    if all(isinstance(x, str) for x in flat):
        try:
            return op.function(*op.static, *elements)
        except TextError:
            return UNKNOWN
    parts = operations.parts(op.function, op.static, elements)
    if parts is None:
        return UNKNOWN
    parts = [_written(*p) if isinstance(p, tuple) and not isinstance(p, Span) else p for p in parts]
    known = "".join(p for p in parts if isinstance(p, str))  # the others may be empty
    spans = list(map(span, parts))
    return Span(max([len(known.split()), *(s.least for s in spans)]), sum(s.most for s in spans))


def _written(value: Any, spec: str) -> str | Span:
    """A field of a template."""
    if isinstance(value, np.dtype):
        return _number(value, spec)
    if isinstance(value, str):
        return format(value, spec)
    return UNKNOWN if spec else value


def _number(dtype: np.dtype, spec: str) -> Span:
    # The extremes by size and by digits: no other number of the dtype is written longer.
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
