"""How many tokens a prompt can have, without the vocabulary that a service counts them by.

Design note. A byte-level vocabulary (BPE, and SentencePiece with byte fallback) has no token of less than a byte, so
text has at most as many tokens as bytes of UTF-8. These tokenisers split at white space before they merge, so it has
at least as many as words. The exact count needs the model's own vocabulary, which is a download; these bounds need
nothing and are certain, but for what a service adds of its own: the marks of each message, and the system prompt that
some chat templates begin with, for which there is an allowance.
"""

import json

from .base import Request

# OpenAI counts 3 or 4 tokens for a message's marks; templates of open models up to 10. Their own system prompts, such
# as Llama 3.1's date or that of gpt-oss, have up to 60.
_PER_MESSAGE, _PER_REQUEST = 16, 64


def least(text: str) -> int:
    """The fewest tokens that a text can have."""
    return len(text.split())


def most(text: str) -> int:
    """The most tokens that a text can have."""
    return len(text.encode("utf-8", "surrogatepass"))


def bounds(request: Request) -> tuple[int, int]:
    """The fewest and the most tokens that a request's input can have."""
    words = [message.content for message in request.messages]
    added = _PER_MESSAGE * len(words) + _PER_REQUEST
    if schema := request.parameters.get("response_format"):
        added += most(json.dumps(schema))  # the model reads it
    return sum(map(least, words)), sum(map(most, words)) + added


def output_limit(request: Request) -> int | None:
    """The most tokens that a request allows for its answer, if it says."""
    given = [request.parameters.get(name) for name in ("max_tokens", "max_completion_tokens")]
    numbers = [n for n in given if type(n) is int and n > 0]
    return max(numbers, default=None)  # of two, services differ in which they heed
