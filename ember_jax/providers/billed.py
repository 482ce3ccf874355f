"""What a service says that it bills for numbers: for vectors and for scores. Nothing here does IO."""

import math
from dataclasses import dataclass

from . import prices
from .base import Request, Tokens
from .dialect import HTTPAnswer, count, dollars, field_of, lenient


@dataclass
class Usage:
    """The counts of OpenAI's protocol."""

    prompt_tokens: float | None = None
    total_tokens: float | None = None


@dataclass
class Units:
    """What Cohere counts. A search unit is one query with up to 100 documents."""

    input_tokens: float | None = None
    search_units: float | None = None


@dataclass
class Meta:
    """What Cohere says of an answer."""

    billed_units: Units | None = None
    tokens: Units | None = None


def tokens_of(usage: Usage | None, meta: Meta | None = None) -> Tokens | None:
    """What is billed, `None` if the service does not say."""
    said = []
    if usage is not None:
        said += [usage.prompt_tokens, usage.total_tokens]
    if meta is not None:
        said += [units.input_tokens for units in (meta.billed_units, meta.tokens) if units is not None]
    known = [number for number in said if number is not None and math.isfinite(number)]
    return Tokens(count(int(known[0]))) if known else None


def tokens_in(answer: HTTPAnswer) -> Tokens | None:
    """What is billed for a body that is no answer, `None` if it does not say."""
    usage, meta = (field_of(answer.body, name) for name in ("usage", "meta"))
    try:
        read = lenient(usage, Usage) if isinstance(usage, dict) else None
        return tokens_of(read, lenient(meta, Meta) if isinstance(meta, dict) else None)
    except ValueError:
        return None


def cost(answer: HTTPAnswer, request: Request, tokens: Tokens | None, model: str) -> float:
    """By the price table; where it knows none, what a gateway says; else NaN."""
    known = prices.cost(request, tokens, model) if tokens else math.nan
    return dollars(answer.headers.get("x-litellm-response-cost")) if math.isnan(known) else known
