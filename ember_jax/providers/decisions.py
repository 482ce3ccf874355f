"""Questions that are decided without words, as three protocols ask them. Nothing here does IO.

Design note. OpenAI's `/decisions`, Google's `/decisions` and the `/systemone` of open servers differ in names alone:
all take a state, some questions about it, and give a probability for each option. Those probabilities are read, and
never what is called `confidence`, which is another number at each of them. An option is sent by its own words where
these can be a name, else by its number and with its words as the description: names must differ, and some services
refuse white space at their ends. A state of one message is sent as a string, and of several in the form that the
service has for it.

Sources: openai 3.57.0, google-genai 3.6.1, transformers 5.24.0, vLLM 0.32.0, SGLang 0.5.23, llama.cpp.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import MalformedResponseError, RefusedRequestError
from . import prices
from .base import Decisions, Finish, Message, Request, Response, Tokens
from .dialect import Failure, HTTPAnswer, HTTPRequest, SampledAnswers, count, decoded, usage_in
from .questions import DecisionQuestion, fault, packed, parted
from .responses import items

# What is stated; of Google's questions no number is, and the least that another one takes is taken.
OPENAI, GOOGLE = Decisions(400, 255, 255), Decisions(64, 255, 255)
# `transformers serve` and llama.cpp have a letter for each option; vLLM and SGLang ten digits for levels.
SYSTEMONE, VLLM, SGLANG = Decisions(64, 26, 26), Decisions(64, 26, 10), Decisions(64, 255, 10)

# Settings of how words are drawn, which mean nothing where none are.
_OF_WORDS = frozenset(
    (
        "frequency_penalty",
        "include_thoughts",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "min_p",
        "presence_penalty",
        "reasoning_effort",
        "repetition_penalty",
        "seed",
        "stop",
        "temperature",
        "thinking_config",
        "top_k",
        "top_logprobs",
        "top_p",
        "verbosity",
    )
)


class Wire(NamedTuple):
    """How a protocol asks, and how it answers.

    **Fields:**

    - `path`: below the base URL.
    - `state`, `said`: the field of what is said, and what stands in it.
    - `media`: which kinds of parts it takes, besides text.
    - `asked`: one question.
    - `is_list`: whether questions are a list, in whose order answers come; else they are named.
    """

    path: str
    state: str
    said: Callable[[Sequence[Message]], Any]
    media: frozenset[str]
    asked: Callable[[DecisionQuestion], dict[str, Any]]
    is_list: bool = False


def takes(wire: Wire, request: Request) -> bool:
    """Whether all that is said can be sent."""
    return all(part.kind in ("text", *wire.media) for message in parted(request)[0] for part in message.parts)


def built(wire: Wire, limits: Decisions, request: Request) -> HTTPRequest | Failure:
    """What to send for a request's questions."""
    state, questions = parted(request)
    if faults := [why for one in questions if (why := fault(one.kind, len(one.options), limits))]:
        return Failure(RefusedRequestError, faults[0])
    if taken := sorted({"model", "questions", wire.state} & request.parameters.keys()):
        return Failure(RefusedRequestError, f"the parameter {taken[0]!r} is not yours to set.")
    given = {name: value for name, value in request.parameters.items() if name not in _OF_WORDS}
    asked = [wire.asked(question) for question in questions]
    named: Any = asked if wire.is_list else {f"q{i}": one for i, one in enumerate(asked)}
    return HTTPRequest(
        wire.path, {}, {"model": request.model, wire.state: wire.said(state), "questions": named, **given}
    )


def read(wire: Wire, answer: HTTPAnswer, request: Request) -> Response | SampledAnswers | Failure:
    """What an answer with a status of success says: the probabilities of each question's options, in their order."""
    reply = decoded(answer, _Decided, "one of decisions", "is the base URL right?")
    if isinstance(reply, Failure):
        return reply._replace(tokens=_tokens(usage_in(answer.body, _Usage)))
    questions, tokens = parted(request)[1], _tokens(reply.usage)
    whole = _whole(answer, request, reply, tokens)
    if reply.prompt_feedback is not None and reply.prompt_feedback.block_reason:
        return whole._replace(finish=Finish.CONTENT_FILTER)
    answers = reply.answers if isinstance(reply.answers, list) else _ordered(reply.answers, len(questions))
    if answers is None or len(answers) != len(questions):
        return Failure(MalformedResponseError, "the answer has not one decision for each question.", (), tokens)
    each: list[Response] = []
    for question, one in zip(questions, answers, strict=True):
        if one.get("type") == "refusal":
            each.append(whole._replace(text="it declines this question.", finish=Finish.REFUSAL))
            continue
        found = _probabilities(question, one)
        if found is None:
            return Failure(MalformedResponseError, "an answer has no probabilities of its options.", (), tokens)
        each.append(whole._replace(text=packed(found)))
    return each[0] if len(each) == 1 else SampledAnswers(whole, tuple(each))


# -- what is asked ---------------------------------------------------------------------------------------------------

# The longest option that is a name, in characters.
_LONGEST = 64


def names(question: DecisionQuestion) -> list[str]:
    """A name for each option: its words, or else its number."""
    options = question.options
    are_names = len({*options}) == len(options) and all(map(_is_name, options))
    return list(options) if are_names else [str(i + 1) for i in range(len(options))]


def _is_name(words: str) -> bool:
    return 0 < len(words) <= _LONGEST and words == words.strip() and words.isprintable()


def _described(question: DecisionQuestion) -> list[tuple[str, str]]:
    """The options' names with what is said of each."""
    named = names(question)
    if list(question.options) == named:
        return list(zip(named, question.descriptions, strict=True))
    return list(zip(named, map(_line, question.options, question.descriptions), strict=True))


def _line(option: str, description: str) -> str:
    return f"{option}: {description}" if description else option


def _plain(state: Sequence[Message]) -> str | None:
    """The words of a state that is one text and no more; else `None`."""
    return state[0].content if len(state) == 1 and state[0].role == "user" and not state[0].parts else None


def _openai_said(state: Sequence[Message]) -> Any:
    plain = _plain(state)
    return [item for message in state for item in items(message)] if plain is None else plain


def _openai_asked(question: DecisionQuestion) -> dict[str, Any]:
    match question.kind:
        case "predicate":
            meanings = [f"{n}: {d}" for n, d in zip(("True if", "False if"), question.descriptions, strict=True) if d]
            return {"type": "predicate", "instructions": "\n".join([question.instructions, *meanings])}
        case "choice":
            choices = [{"value": n, **({"description": d} if d else {})} for n, d in _described(question)]
            return {"type": "choice", "instructions": question.instructions, "choices": choices}
        case "score":
            levels = [
                {"label": label, **({"description": d} if d else {})}
                for label, d in zip(question.options, question.descriptions, strict=True)
            ]
            return {"type": "score", "instructions": question.instructions, "levels": levels}


def _google_said(state: Sequence[Message]) -> Any:
    plain = _plain(state)
    return [block for message in state for block in _blocks(message)] if plain is None else plain


def _blocks(message: Message) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in message.parts:
        if part.kind == "text":
            blocks.append({"type": "text", "text": part.value})
        elif part.value.startswith("data:"):
            kind, _, data = part.value.removeprefix("data:").partition(";base64,")
            blocks.append({"type": "image", "data": data, "mime_type": kind})
        else:
            blocks.append({"type": "image", "uri": part.value})
    return blocks or [{"type": "text", "text": f"{message.role}: {message.content}"}]


def _named(true: str, false: str, blank: str | None) -> Callable[[DecisionQuestion], dict[str, Any]]:
    """How questions are asked by those who call a predicate a `noul`; an option without description has `blank`."""

    def asked(question: DecisionQuestion) -> dict[str, Any]:
        match question.kind:
            case "predicate":
                meanings = {n: d for n, d in zip((true, false), question.descriptions, strict=True) if d}
                criteria = {"criteria": meanings} if meanings else {}
                return {"type": "noul", "instructions": question.instructions, **criteria}
            case "choice":
                options = {n: d or blank for n, d in _described(question)}
                return {"type": "choice", "instructions": question.instructions, "criteria": options}
            case "score":
                levels = list(map(_line, question.options, question.descriptions))
                return {"type": "score", "instructions": question.instructions, "criteria": levels}

    return asked


def _systemone_said(state: Sequence[Message]) -> Any:
    plain = _plain(state)
    return [{"role": m.role, "content": m.content} for m in state] if plain is None else plain


OF_OPENAI = Wire(
    "/decisions",
    "input",
    _openai_said,
    frozenset(("image", "tool_call", "tool_result")),
    _openai_asked,
    is_list=True,
)
OF_GOOGLE = Wire(
    "/decisions", "input", _google_said, frozenset(("image",)), _named("true_description", "false_description", "")
)
OF_SYSTEMONE = Wire("/systemone", "state", _systemone_said, frozenset(), _named("true", "false", None))


# -- what is answered ------------------------------------------------------------------------------------------------


@dataclass
class _Details:
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


@dataclass
class _Usage:
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    # As Google names them.
    total_input_tokens: int | None = None
    total_output_tokens: int | None = None
    total_cached_tokens: int | None = None


@dataclass
class _Blocked:
    block_reason: str | None = None


@dataclass
class _Decided:
    # A list, or an object by the questions' names; each answer is read by itself.
    answers: list[dict[str, Any]] | dict[str, dict[str, Any]] | None = None
    model: str | None = None
    usage: _Usage | None = None
    prompt_feedback: _Blocked | None = None


def _ordered(answers: Mapping[str, dict[str, Any]] | None, n: int) -> list[dict[str, Any]] | None:
    found = [(answers or {}).get(f"q{i}") for i in range(n)]
    return [one for one in found if one is not None]


def _probabilities(question: DecisionQuestion, answer: Mapping[str, Any]) -> list[float] | None:
    """The probabilities that an answer gives, in the order of the options; `None` if it does not give them."""
    if question.kind == "predicate":
        found = answer.get("probability", answer.get("noul"))
        return [found, 1 - found] if _is_probability(found) else None
    named = names(question) if question.kind == "choice" else list(range(len(question.options)))
    told = _by_name(answer.get("probabilities"))
    ordered: list[Any] = [told.get(str(name)) for name in named]
    return [float(p) for p in ordered] if all(map(_is_probability, ordered)) and sum(ordered) > 0 else None


def _by_name(told: Any) -> dict[str, Any]:
    """Probabilities by the names of options, or the places of levels."""
    if isinstance(told, dict):
        return told
    listed = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    return {str(one.get("value")): one.get("probability") for one in listed}


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _whole(answer: HTTPAnswer, request: Request, reply: _Decided, tokens: Tokens | None) -> Response:
    model, used = reply.model or request.model, tokens or Tokens()
    return Response(
        "",
        int(used.input),
        int(used.output),
        # What is read off is no output that has a price: litellm 1.110.2 has none for it.
        cost=math.nan if tokens is None else prices.cost(request, tokens._replace(output=0), model),
        model=model,
        request_id=answer.headers.get("x-request-id", ""),
        cached_tokens=int(used.cached),
        cache_write_tokens=int(used.cache_write),
    )


def _tokens(usage: _Usage | None) -> Tokens | None:
    if usage is None or (usage.input_tokens is None and usage.total_input_tokens is None):
        return None
    details = usage.input_tokens_details
    return Tokens(
        count(usage.total_input_tokens if usage.input_tokens is None else usage.input_tokens),
        count(usage.total_output_tokens if usage.output_tokens is None else usage.output_tokens),
        count(usage.total_cached_tokens if details is None else details.cached_tokens),
        0 if details is None else count(details.cache_write_tokens),
    )
