"""What services say of the tokens of an answer: which are those of its text, and how likely they were."""

import bisect
import itertools
import math
from dataclasses import dataclass


@dataclass
class Candidate:
    """One of the tokens that might have stood in a place."""

    token: str
    # Null where the service's JSON has no way to write an infinity: llama.cpp's has none.
    logprob: float | None = None


@dataclass
class Token:
    """A token as a service lists it. The names are those of chat completions."""

    logprob: float | None = None
    token: str = ""
    # The token's own bytes in UTF-8, of which the token's words may show half a character.
    bytes: list[int] | None = None
    top_logprobs: list[Candidate] | None = None


def of_text(tokens: list[Token], text: str, *, has_reasoning: bool) -> list[Token]:
    """Those of the listed tokens that make up the text; none if that cannot be told.

    vLLM and llama.cpp list the tokens of the reasoning too, the mark that ends it, and that which ends the answer. So
    the last place counts where the text is spelt from the begin of a token on. If there is none, and no reasoning, all
    tokens are the text's: some services spell them without white space.
    """
    pieces = [_spelling(token) for token in tokens]
    whole, ends = b"".join(pieces), list(itertools.accumulate(map(len, pieces)))
    begin, end = _last_place(text.strip().encode("utf-8", "replace"), whole, [0, *ends])
    if begin == end:
        return [] if has_reasoning else tokens
    # Parsers of reasoning remove white space around the text. What is left of it is the text's too.
    before, after = text[: len(text) - len(text.lstrip())].encode(), text[len(text.rstrip()) :].encode()
    begin -= len(before) if whole.endswith(before, 0, begin) else 0
    end += len(after) if whole.startswith(after, end) else 0
    return tokens[bisect.bisect_right(ends, begin) : bisect.bisect_left(ends, end) + 1]


def _last_place(sought: bytes, whole: bytes, starts: list[int]) -> tuple[int, int]:
    """Where bytes are last found at a start, up to white space before them; (0, 0) if nowhere."""
    begin = whole.rfind(sought) if sought else -1
    while begin >= 0:
        start = starts[bisect.bisect_right(starts, begin) - 1]
        if not whole[start:begin].strip():
            return begin, begin + len(sought)
        begin = whole.rfind(sought, 0, begin + len(sought) - 1)
    return 0, 0


def _spelling(token: Token) -> bytes:
    return token.token.encode("utf-8", "replace") if token.bytes is None else bytes(b & 255 for b in token.bytes)


def summed(tokens: list[Token]) -> float:
    """NaN if one is not known; the sum of an infinite one is infinite."""
    return sum(math.nan if token.logprob is None else token.logprob for token in tokens)


def alternatives(tokens: list[Token]) -> tuple[tuple[str, float], ...]:
    """The candidates for the first token that is more than white space. One without a number is as good as none."""
    first = next((token for token in tokens if _spelling(token).strip()), Token())
    return tuple((c.token, c.logprob) for c in first.top_logprobs or () if c.logprob is not None)
