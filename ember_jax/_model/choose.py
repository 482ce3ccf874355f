"""`LLM.choose`: a model picks one of several options, with the probability of each.

Design note. The options are lettered and the model answers with a letter, so that one token bears the whole decision
and its alternatives, which many services report, are a distribution over the options. Probabilities of whole options
would take a request for each. The letter that was answered decides, never the most likely one: with a key the choice is
a sample of the model, and its probabilities are those that it was drawn from.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._regex import regex
from .._text import store
from .._text.operations import stack
from .._text.text import Text, text
from ..errors import MalformedResponseError, TextError
from ..providers.base import Finish, Request, Response
from .asking import ModelCall, Note, Operands, of_same_sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# The most alternatives that OpenAI, and vLLM unless it is told otherwise, report.
_TOP = 20


class Choice(NamedTuple):
    """Which option a model chose.

    **Fields:**

    - `index`: int32, the option's place in the list.
    - `probs`: `float32[n]`, the probability of each option, among the options; 1 for the chosen one where the service
        does not say. An option that is too unlikely to be reported has 0.
    - `text`: the chosen option's words.
    """

    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # a tuple's method, of no use here
    probs: jax.Array
    text: Text


@dataclasses.dataclass(frozen=True)
class ChoiceCall(ModelCall):
    """One choice; its options are an operand, only their number is static."""

    operands: Operands
    options: int

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        return (
            jax.ShapeDtypeStruct((), np.int32),
            jax.ShapeDtypeStruct((self.options,), np.float32),
            jax.ShapeDtypeStruct((store.DIGEST_WORDS,), np.uint32),
        )

    def __str__(self) -> str:
        return "LLM.choose"

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        *before, prompt = request.messages
        message = prompt.with_words(_lettered(store.get_array(extra[0])))
        parameters, forms = request.parameters, request.forms
        if parameters.get("logprobs", True):  # `LLM(…, logprobs=False)` does without
            parameters = {"logprobs": True, "top_logprobs": _TOP, **parameters}
            forms = (_without_logprobs,)
        return dataclasses.replace(request, messages=(*before, message), parameters=parameters, forms=forms)

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        index = chosen(response.text, store.get_array(extra[0]))
        if index is None:
            is_cut = response.finish == Finish.LENGTH
            more = "it was cut, so give more max_tokens" if is_cut else "if max_tokens is small, give more"
            # without the answer's words, which may be those of the prompt
            raise MalformedResponseError(
                f"{request.provider}/{request.model}: the answer, of {len(response.text)} characters, names none of "
                f"the options A to {LETTERS[self.options - 1]}, or several. {of_same_sample(request)} Ask in the "
                f"system prompt for the letter alone; {more}."
            )
        probs = probabilities(response.alternatives, self.options, index)
        return [np.asarray(index, np.int32), probs, np.array(extra[0][index], np.uint32)]


def _without_logprobs(request: Request) -> Request:
    return request.without("logprobs", "top_logprobs")


def options_text(options: Any) -> Text:
    """The options of a choice as a Text of rank 1.

    **Raises:** `TextError` unless they are 2 to 26 strings.
    """
    if isinstance(options, str):
        raise TextError('the options of a choice are a list, as in `llm.choose(prompt, ["yes", "no"])`; got a string.')
    value = as_one_text(options)
    if value.ndim != 1:
        raise TextError(
            f"the options have shape {list(value.shape)}; a choice takes one list of them. For a list of its own for "
            "each prompt, `jax.vmap(lambda prompt, options: llm.choose(prompt, options))(prompts, options)`."
        )
    if not 2 <= len(value) <= len(LETTERS):
        raise TextError(
            f"a choice is among 2 to {len(LETTERS)} options, one for each letter; got {len(value)}. Of more, choose "
            "in rounds: the best of each group, then among those."
        )
    return value


def as_one_text(options: Any) -> Text:
    """Strings and Texts of rank 0 in a list, or what is a Text already, as one Text.

    **Raises:** `TextError` for a Text of another rank in the list, and for what is none.
    """
    is_mixed = isinstance(options, list | tuple) and any(isinstance(option, Text) for option in options)
    if is_mixed and (shaped := [option for option in options if isinstance(option, Text) and option.shape]):
        raise TextError(f"an option has shape {list(shaped[0].shape)}; each is one string, or a Text of rank 0.")
    return stack(options) if is_mixed else text(options)


def _lettered(options: Sequence[str]) -> str:
    """What is said of the options, behind the prompt. Their further lines are indented, so that none looks like one."""
    lines = [f"{letter}. {option}".replace("\n", "\n   ") for letter, option in zip(LETTERS, options, strict=False)]
    listed = "\n".join(lines)
    return f"{listed}\n\nReply with the letter of one option and nothing else."


# -- which option an answer names ------------------------------------------------------------------------------------

# Around a letter.  Possessive where another repeat follows, so that no answer costs more than linear time.
_OPEN, _CLOSE = r"[\s(\[{\"'*_`]*+", r"[\s)\]}\"'*_`.,:;!]*+"
# The letter alone: `B`, `(b)`, `**B.**`.
_ALONE = regex(rf"{_OPEN}([A-Za-z]){_CLOSE}")
# `Answer: B`, `the answer to this is (B)`, `\boxed{B}`; not `the answer is B or C`.  Here `A`, `I` and small letters
# may be words, and must end their clause.
_END = r"(?=[)\]}\"'*_`.,:;!]|\s*+$)"
_ANSWER = regex(
    rf"(?i:\banswer\b(?:[^\n.:]{{0,60}}?\bis\b)?|\\boxed)\s*+:?+{_OPEN}"
    rf"(?:([B-HJ-Z])\b(?!\s++(?:or|and)\b)|([A-Za-z]){_END})",
    re.MULTILINE,
)
# `option B`, which an answer may say of several.
_OPTION = regex(
    rf"(?i:\b(?:option|choice|letter)\b(?:\s++is\b)?)\s*+:?+{_OPEN}(?:([A-Z])\b|([a-z]){_END})", re.MULTILINE
)
# The letter as a mark before words: `B. Paris`, `(b) Paris`, `B: because …`, `B - Paris`; not `A careful reading`.
_FIRST_MARK = regex(rf"{_OPEN}([A-Za-z])[\"'*_`]*+(?:[)\].:][)\]\"'*_`.:]*+|\s++[-–—])\s")
_MARK = regex(r"(?<![^\s(\[\"'*_`])([A-Z])[)\].:]")


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """The place of the option that an answer names, or `None` where it names none or several.

    A letter counts before words: where an option's words are the letter of another, the letter was asked for.
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    # Before an explanation the letter stands in a line of its own at the start, after reasoning at the end.
    alone = [match[1] for line in lines[:1] + lines[-1:] if (match := _ALONE.fullmatch(line))]
    if (place := _only(alone, options)) is not None:
        return place
    if (place := _named(answer, options)) is not None:
        return place
    if stated := [match[1] or match[2] for match in _ANSWER.finditer(answer)]:
        return _only(stated[-1:], options)
    if stated := [match[1] or match[2] for match in _OPTION.finditer(answer)]:
        return _only(stated, options)
    first = _FIRST_MARK.match(answer)
    return _only([first[1], *(match[1] for match in _MARK.finditer(answer))], options) if first else None


def _only(letters: Sequence[str], options: Sequence[str]) -> int | None:
    """The one option that some letters stand for; letters that stand for none are passed over."""
    places = {place for letter in letters if (place := LETTERS.index(letter.upper())) < len(options)}
    return places.pop() if len(places) == 1 else None


def _named(answer: str, options: Sequence[str]) -> int | None:
    """The option whose words an answer is: exactly, or up to case, quotation and stops if only one is."""
    exact = [i for i, option in enumerate(options) if option.strip() == answer.strip()]
    near = [i for i, option in enumerate(options) if _bare(option) == _bare(answer)]
    found = exact[:1] or near
    return found[0] if len(found) == 1 and answer.strip() else None


def _bare(words: str) -> str:
    """Words without case, quotation and final stops; signs stay, since -1 is not 1."""
    return " ".join(words.casefold().split()).strip(" .,:;!?\"'`*_()[]")


# -- how likely each option was --------------------------------------------------------------------------------------


def probabilities(alternatives: Sequence[tuple[str, float]], n: int, index: int) -> np.ndarray:
    """`float32[n]`, from the candidates for the first token: those of letters, renormalised.

    Where the chosen letter is not among them, the first token was not the answer, and they say nothing about it: the
    chosen option has 1.
    """
    known = [(_letter(token, n), logprob) for token, logprob in alternatives if math.isfinite(logprob)]
    found = [(i, logprob) for i, logprob in known if i is not None]
    weights = np.zeros(n)
    if any(i == index for i, _ in found):
        largest = max(logprob for _, logprob in found)
        for i, logprob in found:  # several spellings of a letter are one option
            weights[i] += math.exp(logprob - largest)
    else:
        weights[index] = 1.0
    return (weights / weights.sum()).astype(np.float32)


def _letter(token: str, n: int) -> int | None:
    letter = token.strip().upper()
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS[:n] else None
