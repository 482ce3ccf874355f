"""How many tokens a request can have.

Design note. The bounds of a request are the sums of the bounds of its texts, see `_text/lengths.py`. To the upper bound
an allowance is added for what a service adds: the marks of each message, and the system prompt that some chat templates
begin with.
"""

import json

from .._text.lengths import span
from .base import Provider, Request

# The allowance in tokens, rounded up. OpenAI counts 3 or 4 tokens for a message's marks, and templates of open models
# have up to 10. The system prompts of such templates, as the date of Llama 3.1 or that of gpt-oss, have up to 60.
PER_MESSAGE, _PER_REQUEST = 16, 64


def bounds(request: Request) -> tuple[int, int]:
    """The fewest and the most tokens that a request's input can have."""
    words = [span(message.content) for message in request.messages]
    added = PER_MESSAGE * len(words) + _PER_REQUEST
    if schema := request.parameters.get("response_format"):
        added += len(json.dumps(schema))  # the model reads the schema too; a token of ASCII has a character at least
    return sum(w.least for w in words), int(sum(w.most for w in words)) + added


def output_limit(request: Request) -> int | None:
    """The most tokens that a request allows for its answer; `None` if it does not say."""
    given = [request.parameters.get(name) for name in ("max_tokens", "max_completion_tokens")]
    numbers = [n for n in given if type(n) is int and n > 0]
    # A request may give both parameters, and services differ in which one they heed. The larger bounds the answer of
    # any service.
    return max(numbers, default=None)


def most_output(request: Request, provider: Provider) -> float:
    """The most tokens that an answer can have: as the request says, else as the provider knows; else infinite."""
    limit = output_limit(request)
    return provider.most_output(request) if limit is None else limit
