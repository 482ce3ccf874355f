"""How many tokens a request can have.

Design note. The bounds are those of its texts, see `_text/lengths.py`, and an allowance for what a service adds of its
own: the marks of each message, and the system prompt that some chat templates begin with.
"""

import json

from .._text.lengths import span
from .base import Request

# OpenAI counts 3 or 4 tokens for a message's marks; templates of open models up to 10. Their own system prompts, such
# as Llama 3.1's date or that of gpt-oss, have up to 60.
_PER_MESSAGE, _PER_REQUEST = 16, 64


def bounds(request: Request) -> tuple[int, int]:
    """The fewest and the most tokens that a request's input can have."""
    words = [span(message.content) for message in request.messages]
    added = _PER_MESSAGE * len(words) + _PER_REQUEST
    if schema := request.parameters.get("response_format"):
        added += len(json.dumps(schema))  # the model reads it
    return sum(w.least for w in words), int(sum(w.most for w in words)) + added


def output_limit(request: Request) -> int | None:
    """The most tokens that a request allows for its answer, if it says."""
    given = [request.parameters.get(name) for name in ("max_tokens", "max_completion_tokens")]
    numbers = [n for n in given if type(n) is int and n > 0]
    return max(numbers, default=None)  # of two, services differ in which they heed
