"""How many tokens a request can have.

Design note. The bounds of a request are the sums of the bounds of its texts, see `_text/lengths.py`. To the upper bound
an allowance is added for what a service adds: the marks of each message, and the system prompt that some chat templates
begin with.
"""

import dataclasses
import json

from .._text.lengths import span
from ..errors import RefusedRequestError
from .base import Message, Provider, Request
from .questions import parted

# The allowance in tokens, rounded up. OpenAI counts 3 or 4 tokens for a message's marks, and templates of open models
# have up to 10. The system prompts of such templates, as the date of Llama 3.1 or that of gpt-oss, have up to 60.
PER_MESSAGE, _PER_REQUEST = 16, 64
# The allowance for the words around a question that is decided, which `transformers serve` writes some 60 of.
_PER_QUESTION = 128
# The allowance for an image, a file or audio, besides a token for each character of what is sent. Services count an
# image by its tiles, some hundred tokens each; no service is known that counts more than this for one.
_PER_MEDIUM = 20_000


def bounds(request: Request) -> tuple[int, int]:
    """The fewest and the most tokens that a request's input can have.

    Of several questions about one conversation some services bill the conversation once, and some for each of them.
    """
    if request.decides:
        state, questions = parted(request)
        least, most = bounds(dataclasses.replace(request, messages=state, parameters={}))
        if len(state) > 1:  # it may be written as JSON
            most += sum(len(json.dumps(message.content)) for message in state)
        asked = [span(words) for question in questions for words in question.words]
        beside = sum(_PER_QUESTION + len(question.options) * PER_MESSAGE for question in questions)
        return least + sum(w.least for w in asked), len(questions) * most + beside + int(sum(w.most for w in asked))
    words = [span(message.content) for message in request.messages]
    added = PER_MESSAGE * len(words) + _PER_REQUEST + sum(map(_beside, request.messages))
    for name in ("response_format", "tools"):
        if schema := request.parameters.get(name):
            added += len(json.dumps(schema))  # the model reads schemas too; a token of ASCII has a character at least
    most = sum(w.most for w in words)
    if request.ranks:  # the model reads the query before each document
        most += max(len(words) - 2, 0) * (words[0].most + PER_MESSAGE)
    return sum(w.least for w in words), int(most) + added


def overflow(request: Request, window: float) -> RefusedRequestError | None:
    """Why a request is not sent that has more tokens than its model can read for certain; `None` if it may fit.

    `window` is the most tokens that the model reads at once: of a conversation the whole, of texts whose vectors are
    asked for each by itself, and the query with each document.
    """
    # A token has a character at least, so mostly nothing is counted.
    if sum(len(message.content) for message in request.messages) <= window:
        return None
    counts = [span(message.content).least for message in request.messages]
    if request.embeds:
        noun, least = "text", max(counts)
    elif request.ranks:
        noun, least = "query with the longest document", counts[0] + max(counts[1:], default=0)
    else:
        noun, least = "prompt", sum(counts)
    if least <= window:
        return None
    return RefusedRequestError(
        f"{request.provider}/{request.model}: not sent, as the {noun} has {least:,} tokens or more, and the model "
        f"reads {window:,.0f}. Shorten it, as by `ember.truncate(text, tokens)` or `text.slice(start, stop)`, or ask "
        "another model."
    )


def _beside(message: Message) -> int:
    """The most tokens of what is no text in a message."""
    called = [part for part in message.parts if part.kind == "tool_call"]
    held = [part for part in message.parts if part.kind in ("image", "file", "audio")]
    return sum(int(span(c.value + c.name + c.id).most) for c in called) + sum(_PER_MEDIUM + len(h.value) for h in held)


def output_limit(request: Request) -> int | None:
    """The most tokens that a request allows for its answer; `None` if it does not say.

    Numbers have none; of a decision a service may count the place that it is read off at.
    """
    if request.embeds or request.ranks:
        return 0
    if request.decides:
        return len(parted(request)[1])
    given = [request.parameters.get(name) for name in ("max_tokens", "max_completion_tokens")]
    numbers = [n for n in given if type(n) is int and n > 0]
    # A request may give both parameters, and services differ in which one they heed. The larger bounds the answer of
    # any service.
    return max(numbers, default=None)


def most_output(request: Request, provider: Provider) -> float:
    """The most tokens that an answer can have: as the request says, else as the provider knows; else infinite."""
    limit = output_limit(request)
    return provider.most_output(request) if limit is None else limit
