"""`sim`: models that live in this process, cost nothing, and are wrong as often as they are told to be.

A simulated answer is a pure function of the model's name, the messages, the parameters and the sample: the same on
every machine and in every order of calls. A request with a JSON schema is answered by filling it in, see
`sim_schema.py`; the schema is a parameter, or ends the last user message below a line `Reply with one JSON object …`.
With tools it calls those that are named, see `sim_tools.py`. Asked for vectors, it gives those of `sim_vectors.py`.
Otherwise what is said depends on the form of the last user message; the first of these that fits is
taken:

1. *Choice.* The last line that begins with `Reply with the letter` stands after lines `A. …`, `B. …`: the options. The
   reply is a letter. Where some options are right and some wrong, by their last number, the right ones share the
   probability `accuracy` and the wrong ones the rest; otherwise all are equally likely. At temperature 0 it is a most
   likely one. With `logprobs` and `top_logprobs` the letters' probabilities are the first token's alternatives.
2. *Verification.* Some line is `Answer: …` (up to three words may stand before `answer`, as in `Proposed answer:
   391`; something must stand after the colon), and some line has the word `correct` and, later, a `?`. The reply is
   `yes` or `no`, right with probability `verify_accuracy`. The last such answer line counts, by its last number.
3. *Judging.* Some lines are `[1] …`, `[2] …`: the candidates, one line each. The reply is the text of one of them;
   where some are right and some wrong, by their last number, a right one with probability `judge_accuracy`.
4. *Arithmetic.* Some line has an expression of integers and decimals with `+ - * / × ÷` and parentheses, and at least
   one operator, such as `What is 17 * 23 + 4?`. The first such line counts. The reply is its value, to six decimals,
   with probability `accuracy`, else a number close by. Powers, `%` and names are not arithmetic here.
5. *Anything else.* A short sentence.

In forms 1 to 3 the truth is the first expression outside the option, answer and candidate lines; where there is none,
the reply is drawn uniformly. In a choice between `yes` and `no` a verification is right with `verify_accuracy`. With
`verbosity=v` an arithmetic reply is `v` filler words without digits, then `The answer is X.`. One token is one word
between white space.
"""

import asyncio
import difflib
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from .._regex import regex
from ..errors import ModelError, RefusedRequestError
from . import sim_tools, sim_vectors
from .base import Finish, Part, Provider, Request, Response, Tokens, digest, is_drawn
from .prices import Price
from .sim_schema import fill
from .vectors import packed

# How long vectors are where a request does not say.
_DIM = 256


@dataclass(frozen=True)
class SimModel:
    """How good, fast and dear one simulated model is.

    **Fields:**

    - `accuracy`: the probability that an arithmetic answer is right; or a pure function that gives it for a prompt (the
        last user message), so that some questions are harder than others.
    - `latency`: the median time to an answer, in seconds.
    - `sigma`: the standard deviation of the latency's logarithm; 0 is the same latency for every request.
    - `input_price`, `output_price`: US dollars for a million tokens.
    - `verbosity`: the number of filler words before an arithmetic answer.
    - `judge_accuracy`: the probability that a right candidate is chosen; `accuracy` if `None`.
    - `verify_accuracy`: the probability that an answer is judged rightly, as correct or wrong; `accuracy` if `None`.
    - `false_accept`: the probability that a wrong answer is said to be correct; `1 - verify_accuracy` if `None`.
    - `wrong_answers`: how many different wrong answers a question has, all equally likely; 1 makes it binary.
    - `max_output`: the most tokens of an answer, where the request allows more.

    **Raises:** `ValueError` for a probability outside [0, 1], a negative or infinite number, and a `verbosity`,
    `wrong_answers` or `max_output` that is not whole.
    """

    accuracy: float | Callable[[str], float] = 0.8
    latency: float = 0.05
    sigma: float = 0.0
    input_price: float = 0.15
    output_price: float = 0.60
    verbosity: int = 0
    judge_accuracy: float | None = None
    verify_accuracy: float | None = None
    false_accept: float | None = None
    wrong_answers: int = 20
    max_output: int = 4096

    def __post_init__(self):
        for name in ("accuracy", "judge_accuracy", "verify_accuracy", "false_accept"):
            value = getattr(self, name)
            if value is not None and not callable(value) and not 0 <= value <= 1:
                raise ValueError(f"SimModel({name}={value!r}): a probability is between 0 and 1, such as {name}=0.8.")
        for name in ("latency", "sigma", "input_price", "output_price", "verbosity"):
            value = getattr(self, name)
            if not (0 <= value < math.inf):
                raise ValueError(f"SimModel({name}={value!r}): give a finite number that is at least 0.")
        if not isinstance(self.verbosity, int):
            raise ValueError(f"SimModel(verbosity={self.verbosity!r}): give a whole number of words.")
        for name in ("wrong_answers", "max_output"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"SimModel({name}={value!r}): give a whole number, at least 1.")

    @functools.cached_property
    def price(self) -> Price:
        """The model's price."""
        return Price(self.input_price, self.output_price)

    def at(self, prompt: str) -> "_Skill":
        """How good the model is at a prompt. Raises `ValueError` if `accuracy` returns what is no probability."""
        if not callable(self.accuracy):
            return self._skill
        accuracy = self.accuracy(prompt)
        if not 0 <= accuracy <= 1:
            raise ValueError(f"SimModel: its accuracy gives {accuracy!r} for a prompt; a probability is in [0, 1].")
        return self._skill_of(accuracy)

    @functools.cached_property
    def _skill(self) -> "_Skill":
        assert not callable(self.accuracy)
        return self._skill_of(self.accuracy)

    def _skill_of(self, accuracy: float) -> "_Skill":
        otherwise = lambda value, default: default if value is None else value
        verify = otherwise(self.verify_accuracy, accuracy)
        return _Skill(
            accuracy=accuracy,
            judge=otherwise(self.judge_accuracy, accuracy),
            accept=verify,
            reject=1 - otherwise(self.false_accept, 1 - verify),
            wrong=self.wrong_answers,
            verbosity=self.verbosity,
        )


class _Skill(NamedTuple):
    """How good a model is at one prompt.

    **Fields:**

    - `accuracy`, `judge`: the probabilities that an arithmetic answer, and a choice among candidates, is right.
    - `accept`, `reject`: the probabilities that a right answer is verified as right, and a wrong one as wrong.
    - `wrong`: how many different wrong answers there are.
    - `verbosity`: the number of filler words before an answer.
    """

    accuracy: float
    judge: float
    accept: float
    reject: float
    wrong: int
    verbosity: int


# Three models that differ as real ones do: the dear model costs a hundred times as much as the cheap one, and is seldom
# wrong. The latencies are a tenth of real ones, so that a demonstration of some hundred questions takes seconds.
_BUILT_IN = {
    "small": SimModel(accuracy=0.70, latency=0.02, sigma=0.3, input_price=0.15, output_price=0.60),
    "medium": SimModel(accuracy=0.85, latency=0.05, sigma=0.3, input_price=1.50, output_price=6.00),
    "large": SimModel(accuracy=0.97, latency=0.10, sigma=0.3, input_price=15.0, output_price=60.0),
}


class Sim(Provider):
    """The provider of simulated models.

    **Arguments:**

    - `models`: models by name, added to the built-in `small`, `medium` and `large`; an equal name replaces one.
    """

    is_local = True

    def __init__(self, models: Mapping[str, SimModel] | None = None):
        self._models = {**_BUILT_IN, **(models or {})}

    def __repr__(self) -> str:
        return f"Sim({', '.join(self._models)})"

    @property
    def endpoint(self) -> None:
        """`None`: the answers cost nothing to make again, and may change with a release of this library."""

    def check(self, model: str) -> None:
        if model not in self._models:
            close = difflib.get_close_matches(model, self._models, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ModelError(f"There is no simulated model {model!r}; there are {', '.join(self._models)}.{hint}")

    async def models(self) -> tuple[str, ...]:
        return tuple(self._models)

    def answer(self, request: Request) -> Response:
        """The answer, without the model's latency.

        **Raises:** `ModelError` for an unknown model; `RefusedRequestError` as `reply`.
        """
        self.check(request.model)
        return reply(self._models[request.model], request)

    def cost(self, request: Request, tokens: Tokens) -> float:
        self.check(request.model)
        return self._models[request.model].price.of(tokens.input, tokens.output)

    def most_output(self, request: Request) -> float:
        self.check(request.model)
        return self._models[request.model].max_output

    async def complete(self, request: Request) -> Response:
        response = self.answer(request)
        seconds = delay(self._models[request.model], request)
        if seconds > 0:
            await asyncio.sleep(seconds)
        return response

    async def stream(self, request: Request, told: Callable[[str], object]) -> Response:
        response = self.answer(request)
        words = words_of(response.text)
        seconds = delay(self._models[request.model], request) / max(len(words), 1)
        for word in words:
            if seconds > 0:
                await asyncio.sleep(seconds)
            told(word)
        return response

    async def close(self) -> None:
        """There is nothing to free."""


def words_of(text: str) -> list[str]:
    """The pieces that a text comes in: its words, each with the space around it that makes them the text."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


def delay(model: SimModel, request: Request) -> float:
    """The seconds that `model` takes for `request`: lognormal around the median."""
    if not (model.latency and model.sigma):
        return model.latency
    draws = _Draws(request)
    # Box and Muller's method: one standard normal number from two uniform ones. The logarithm needs a number above 0,
    # and `uniform` is from [0, 1), so it is subtracted from 1.
    radius = math.sqrt(-2 * math.log(1 - draws.uniform("radius")))
    return model.latency * math.exp(model.sigma * radius * math.cos(2 * math.pi * draws.uniform("angle")))


def reply(model: SimModel, request: Request) -> Response:
    """The answer of `model`, whatever name the request gives it: a pure function, without delay.

    **Raises:** `RefusedRequestError` for a `max_tokens` that is not a whole number of at least 1, and for a JSON schema
    that it cannot fill in.
    """
    if request.embeds:
        return _vectors(model, request)
    if request.ranks:
        return _scores(model, request)
    prompt = next((m.content for m in reversed(request.messages) if m.role == "user"), "")
    skill, draws = model.at(prompt), _Draws(request)
    if (tools := request.parameters.get("tools")) and request.parameters.get("tool_choice") != "none":
        made_up = lambda schema, place: fill(schema, _Filling(skill, prompt, draws), place)
        if calls := sim_tools.next_calls(tools, request.messages, made_up):
            return _calling(model, request, calls)
    result = sim_tools.last_result(request.messages) if request.messages[-1:] and request.messages[-1].parts else None
    said = _said(skill, prompt, request.parameters, draws) if result is None else _Said(f"The answer is {result}.", 0.0)
    text = said.text
    words, finish = text.split(), Finish.STOP
    limit = request.parameters.get("max_completion_tokens", request.parameters.get("max_tokens"))
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise RefusedRequestError(f"{request.model}: max_tokens is {limit!r}; give a whole number, at least 1.")
    most = min(limit or model.max_output, model.max_output)
    if len(words) > most:
        words, finish = words[:most], Finish.LENGTH
        text = " ".join(words)
    tokens = sum(len(m.content.split()) for m in request.messages), len(words)
    return Response(
        text=text,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost=model.price.of(*tokens),
        logprob=said.logprob,
        model=request.model,
        alternatives=said.alternatives[: _reported(request.parameters)],
        finish=finish,
    )


def _vectors(model: SimModel, request: Request) -> Response:
    """The answer to a request for vectors."""
    dim = request.parameters.get("dimensions", _DIM)
    if not isinstance(dim, int) or dim < 1:
        raise RefusedRequestError(f"{request.model}: dimensions is {dim!r}; give a whole number, at least 1.")
    texts = [m.content for m in request.messages]
    tokens = sum(len(text.split()) for text in texts)
    vectors = np.stack([sim_vectors.vector(text, dim) for text in texts])
    return Response(packed(vectors), tokens, cost=model.price.of(tokens, 0), logprob=0.0, model=request.model)


def _scores(model: SimModel, request: Request) -> Response:
    """The answer to a request for scores. The model reads the query before each document."""
    query, *documents = [m.content for m in request.messages]
    tokens = sum(len(query.split()) + len(document.split()) for document in documents)
    scores = np.array([sim_vectors.likeness(query, document) for document in documents], np.float32)
    return Response(packed(scores), tokens, cost=model.price.of(tokens, 0), logprob=0.0, model=request.model)


def _calling(model: SimModel, request: Request, calls: tuple[Part, ...]) -> Response:
    """The answer that wants tools called."""
    tokens = (
        sum(len(m.content.split()) for m in request.messages),
        sum(1 + len(call.value.split()) for call in calls),
    )
    return Response(
        text="",
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost=model.price.of(*tokens),
        logprob=0.0,
        model=request.model,
        finish=Finish.TOOL_CALLS,
        tool_calls=calls,
    )


def _reported(parameters: Mapping[str, Any]) -> int:
    """How many alternatives of a token are asked for."""
    top = parameters.get("top_logprobs")
    return top if parameters.get("logprobs") is True and isinstance(top, int) and top > 0 else 0


# These parameters change how much of the answer is returned, and not which answer it is. So they must not change what
# is drawn.
_IMMATERIAL = frozenset({"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"})


class _Draws:
    """The random numbers of one request. Each is a hash of the request and of the purpose of the number.

    So a reply depends on nothing but its request. A generator with a state would make it depend on the order in which
    numbers are drawn.
    """

    def __init__(self, request: Request):
        material = request.parameters
        if not _IMMATERIAL.isdisjoint(material):
            material = {k: v for k, v in material.items() if k not in _IMMATERIAL}
        sample = request.sample if is_drawn(material) else None
        # The provider's name is left out: the same model under another name must answer the same.
        self._seed = digest("", request.model, request.messages, material, sample)

    def uniform(self, purpose: str) -> float:
        """Uniform in [0, 1), by 53 bits, all that a double holds; independent of any other purpose's."""
        digest = hashlib.blake2b(purpose.encode(), key=self._seed, digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53

    def below(self, n: int, purpose: str) -> int:
        """Uniform in 0, …, n - 1."""
        return int(self.uniform(purpose) * n)

    def succeeds(self, probability: float) -> tuple[bool, float]:
        """Whether the model is right this time, and the log-probability of that, which is always finite."""
        # An outcome of probability 0 is never drawn, because a uniform number is below 1 and at least 0.
        right = self.uniform("right") < probability
        return right, math.log(probability if right else 1 - probability)


class _Said(NamedTuple):
    """A whole reply, its log-probability, and the alternatives to its first token, likeliest first, if it has some."""

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()


def _said(skill: _Skill, prompt: str, parameters: Mapping[str, Any], draws: _Draws) -> _Said:
    match parameters.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return _fill_in(skill, schema, prompt, draws)
    question, line, schema = prompt.rpartition(_FILL_IN)
    if line and (form := _parsed(schema)) is not None:
        return _fill_in(skill, form, question, draws)
    match _read(prompt):
        case _MultipleChoice() as choice:
            return _choose(skill, choice, not is_drawn(parameters), draws)
        case _Verification(is_right):
            return _verify(skill, is_right, draws)
        case _Candidates() as candidates:
            return _judge(skill, candidates, draws)
        case _Number(right):
            return _solve(skill, right, draws)
        case _NoValue(reason):
            return _Said(f"I cannot compute that: {reason}.", 0.0)
        case None:
            return _talk(draws)


_FILL_IN = "\nReply with one JSON object that fits this JSON schema, and with nothing else:\n"


def _parsed(words: str) -> Any:
    try:
        return json.loads(words)
    except (ValueError, RecursionError):
        return None


class _MultipleChoice(NamedTuple):
    """A choice: how many options there are, which are right, and the name of the skill that sees which."""

    options: int
    right: tuple[int, ...]
    skill: str


class _Verification(NamedTuple):
    """A verification: whether the proposed answer is right; `None` if there is no question to compare it with."""

    is_right: bool | None


class _Candidates(NamedTuple):
    """The candidates that a judge chooses from, the right ones and the wrong ones."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]


class _Number(NamedTuple):
    """Arithmetic: the right answer, as digits."""

    right: str


class _NoValue(NamedTuple):
    """Why an expression has no value."""

    reason: str


# The samples of a prompt are mostly drawn one after another, so only the first one reads the prompt. Few prompts are
# kept, as a prompt may be long.
@functools.lru_cache(maxsize=256)
def _read(prompt: str) -> _MultipleChoice | _Verification | _Candidates | _Number | _NoValue | None:
    """What a prompt asks for, whoever is asked; `None` for anything else."""
    choice = _options(prompt)
    if choice is not None:
        return _right_options(*choice)
    lines = prompt.splitlines()
    verification = _verification(lines)
    if verification is not None:
        return _Verification(_is_right(*verification))
    candidates = [m[1].rstrip() for m in map(_CANDIDATE.fullmatch, lines) if m]
    if candidates:
        truth = _truth([li for li in lines if not _CANDIDATE.fullmatch(li)])
        is_right = [truth is not None and _claims(c, truth) for c in candidates]
        pool = lambda wanted: tuple(c for c, is_one in zip(candidates, is_right, strict=True) if is_one == wanted)
        return _Candidates(pool(True), pool(False))
    try:
        truth = first_value(lines)
    except CannotCompute as reason:
        return _NoValue(str(reason))
    return None if truth is None else _Number(shown(truth))


def _truth(lines: Sequence[str]) -> Fraction | None:
    try:
        return first_value(lines)
    except CannotCompute:
        return None


# -- choices

_REPLY = "Reply with the letter"


def _options(prompt: str) -> tuple[list[str], list[str]] | None:
    """The options of a choice and the lines before them, or `None` where the prompt has no such form."""
    lines = prompt.split("\n")
    ends = [i for i, line in enumerate(lines) if line.startswith(_REPLY)]
    starts = [i for i, line in enumerate(lines[: ends[-1]]) if line.startswith("A. ")] if ends else []
    if not starts:
        return None
    options: list[str] = []
    for line in lines[starts[-1] : ends[-1]]:
        if line.startswith(f"{chr(ord('A') + len(options))}. "):
            options.append(line[3:])
        else:
            options[-1] += f"\n{line}"
    return options, "\n".join(lines[: starts[-1]]).splitlines()


def _choose(skill: _Skill, choice: _MultipleChoice, is_greedy: bool, draws: _Draws) -> _Said:
    accuracy, right = getattr(skill, choice.skill), choice.right
    wrong = [i for i in range(choice.options) if i not in right]
    if not right or not wrong:
        probability = dict.fromkeys(range(choice.options), 1 / choice.options)
    else:
        share = accuracy / len(right), (1 - accuracy) / len(wrong)
        probability = {i: share[i in wrong] for i in range(choice.options)}
    if is_greedy:
        pool = [i for i, p in probability.items() if p == max(probability.values())]
    elif not right or not wrong:
        pool = list(probability)
    else:
        pool = right if draws.succeeds(accuracy)[0] else wrong
    chosen = pool[draws.below(len(pool), "option")]
    ranked = sorted(probability, key=lambda i: -probability[i])
    likely = tuple((_letter(i), math.log(probability[i])) for i in ranked if probability[i] > 0)
    return _Said(_letter(chosen), math.log(probability[chosen]), likely)


def _right_options(options: Sequence[str], question: Sequence[str]) -> _MultipleChoice:
    verification = _verification(question)
    if verification is not None:
        is_right = _is_right(*verification)
        words = None if is_right is None else "yes" if is_right else "no"
        right = tuple(i for i, o in enumerate(options) if o.strip().lower() == words)
        return _MultipleChoice(len(options), right, _verifying(is_right))
    truth = _truth(question)
    right = tuple(i for i, o in enumerate(options) if truth is not None and _claims(o, truth))
    return _MultipleChoice(len(options), right, "accuracy")


def _letter(index: int) -> str:
    return chr(ord("A") + index)


# -- verification and judging

_PROPOSED = regex(r"[ \t]*(?:\w+[ \t]+){0,3}answer[ \t]*:[ \t]*(\S.*)", re.IGNORECASE)
_CANDIDATE = regex(r"[ \t]*\[[0-9]+\][ \t]*(.*)")
_CORRECT = regex(r"\bcorrect\b", re.IGNORECASE)


def _verification(lines: Sequence[str]) -> tuple[str, list[str]] | None:
    """The answer that is to be verified and the other lines, or `None` where that is not asked."""
    proposed = [m for m in map(_PROPOSED.fullmatch, lines) if m]
    if not proposed or not any((m := _CORRECT.search(line)) and "?" in line[m.end() :] for line in lines):
        return None
    return proposed[-1][1], [li for li in lines if not _PROPOSED.fullmatch(li)]


def _is_right(proposed: str, question: Sequence[str]) -> bool | None:
    """Whether a proposed answer is right; `None` if there is no question."""
    try:
        truth = first_value(question)
    except CannotCompute:  # the question has no value, so no number answers it
        return False
    return None if truth is None else _claims(proposed, truth)


def _verifying(is_right: bool | None) -> str:
    """The name of the skill that says what an answer is: `accept` for a right one, `reject` for a wrong one."""
    return "accept" if is_right else "reject"


def _verify(skill: _Skill, is_right: bool | None, draws: _Draws) -> _Said:
    if is_right is None:
        return _Said(("yes", "no")[draws.below(2, "guess")], -math.log(2))
    succeeds, logprob = draws.succeeds(getattr(skill, _verifying(is_right)))
    return _Said("yes" if is_right == succeeds else "no", logprob)


def _judge(skill: _Skill, candidates: _Candidates, draws: _Draws) -> _Said:
    if not candidates.right or not candidates.wrong:
        pool = candidates.right or candidates.wrong
        return _Said(pool[draws.below(len(pool), "candidate")], -math.log(len(pool)))
    succeeds, logprob = draws.succeeds(skill.judge)
    pool = candidates.right if succeeds else candidates.wrong
    return _Said(pool[draws.below(len(pool), "candidate")], logprob)


# -- schemas


class _Filling:
    """What one reply fills into a JSON schema, and the log-probability of each thing that it drew.

    The question is answered once: all numbers of a reply are right, or all are wrong; so are all booleans where the
    prompt asks for verification. The rest is drawn place by place.
    """

    def __init__(self, skill: _Skill, prompt: str, draws: _Draws):
        self._skill, self._draws = skill, draws
        self._logprobs: dict[str, float] = {}
        lines = prompt.splitlines()
        verification = _verification(lines)
        self._truth = _truth(lines if verification is None else verification[1])
        self._is_right = None if verification is None else _is_right(*verification)

    @property
    def logprob(self) -> float:
        return math.fsum(self._logprobs.values())

    def number(self, is_whole: bool, path: str) -> float:
        if self._truth is None:
            return self.member(range(100), path)
        truth = Fraction(round(self._truth)) if is_whole else self._truth
        right, self._logprobs["number"] = self._draws.succeeds(self._skill.accuracy)
        number = shown(truth)
        value = Fraction(number if right else _near(number, self._skill.wrong, self._draws))
        return int(value) if value.denominator == 1 else float(value)

    def flag(self, path: str) -> bool:
        if self._is_right is None:
            return self.member((True, False), path)
        succeeds, self._logprobs["flag"] = self._draws.succeeds(getattr(self._skill, _verifying(self._is_right)))
        return self._is_right == succeeds

    def words(self, path: str) -> str:
        return f"{self.member(_SUBJECTS, f'{path} subject')} {self.member(_PREDICATES, f'{path} predicate')}."

    def member(self, members: Sequence[Any], path: str) -> Any:
        self._logprobs[path] = -math.log(len(members))
        return members[self._draws.below(len(members), path)]


def _fill_in(skill: _Skill, schema: Any, prompt: str, draws: _Draws) -> _Said:
    filling = _Filling(skill, prompt, draws)
    return _Said(json.dumps(fill(schema, filling), ensure_ascii=False), filling.logprob)


# -- numbers and sentences


def _talk(draws: _Draws) -> _Said:
    subject, predicate = draws.below(len(_SUBJECTS), "subject"), draws.below(len(_PREDICATES), "predicate")
    return _Said(f"{_SUBJECTS[subject]} {_PREDICATES[predicate]}.", -math.log(len(_SUBJECTS) * len(_PREDICATES)))


def _solve(skill: _Skill, right: str, draws: _Draws) -> _Said:
    succeeds, logprob = draws.succeeds(skill.accuracy)
    number = right if succeeds else _near(right, skill.wrong, draws)
    if not skill.verbosity:
        return _Said(number, logprob)
    filler = [_FILLER[draws.below(len(_FILLER), f"filler {i}")] for i in range(skill.verbosity)]
    return _Said(" ".join([*filler, f"The answer is {number}."]), logprob)


_FILLER = ("we", "first", "take", "the", "parts", "apart", "then", "combine", "them", "and", "check", "again")
_SUBJECTS = (
    "The short answer",
    "A careful reading",
    "The usual view",
    "One reason",
    "The simplest account",
    "A second look",
    "The evidence so far",
    "Common sense",
)
_PREDICATES = (
    "points the same way",
    "depends on the details",
    "is less clear than it seems",
    "favours the first option",
    "favours the second option",
    "rests on one assumption",
    "holds in most cases",
    "leaves the question open",
)


class CannotCompute(Exception):
    """The question is an expression without a value, or with too large a one. It is never raised out of `reply`."""


# The bounds of arithmetic: digits of a number, depth of parentheses, and numerators and denominators. They are far
# beyond what a question asks, and small enough that a hostile prompt costs nothing.
_MAX_DIGITS = 30
_MAX_DEPTH = 50
_LARGEST = 10 ** (2 * _MAX_DIGITS)

_NUMBER = regex(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?!\w|[.,][0-9])")
_SIGNED = regex(r"(?<![\w.,])-?" + _NUMBER.pattern)
_LOOK_ALIKES = str.maketrans("×÷−", "*/-")
_BULLET = regex(r"\s*(?:[-*•]|[0-9]+[.)])\s+")
_SPACE = regex(r"\s*")
_DIGIT = regex(r"[0-9]")
_RUN = regex(r"[0-9.,()+\-*/^%\s]+")
# What may follow an expression: the end of its run, or the end of its sentence.
_END = regex(r"[\s).,]*\Z|[.,]\s")


def first_value(lines: Sequence[str]) -> Fraction | None:
    """The exact value of the first expression in `lines`, or `None`. Raises `CannotCompute`."""
    for line in lines:
        text = line if line.isascii() else line.translate(_LOOK_ALIKES)
        bullet = _BULLET.match(text)
        text = text[bullet.end() :] if bullet else text
        for run in _RUN.finditer(text):
            if _DIGIT.search(text, *run.span()) is None:  # most runs are just a space between words
                continue
            for start in _starts(text, run):
                expression = _Expression(text, start)
                value = expression.parse()
                if value is not None and expression.operators and _END.match(text[expression.at : run.end()]):
                    if expression.fault:
                        raise CannotCompute(expression.fault)
                    return value
    return None


def _starts(text: str, run: re.Match[str]) -> Iterator[int]:
    """Where in a run of arithmetic characters an expression may begin.

    It does not begin inside a number or a word, nor after an operator or an opening parenthesis. In `2 ** 3 + 4` and
    `f(3 + 4)` the part `3 + 4` is not what is asked.
    """
    before = " "
    for at in range(run.start(), run.end()):
        adjacent = text[at - 1] if at else " "
        inside = adjacent.isalnum() or adjacent in "_.,"
        if text[at] in "(-0123456789" and before not in "+-*/^%(" and not inside:
            yield at
        before = before if text[at].isspace() else text[at]


class _Expression:
    """Reads one expression by recursive descent, with exact fractions.

    **Attributes:**

    - `at`: where the reading has come to.
    - `operators`: how many operators it has read.
    - `fault`: why the value cannot be computed, such as a division by zero; else empty. Reading goes on after a fault,
        as only at the end it is known whether this is an expression at all.
    """

    def __init__(self, text: str, at: int):
        self.text, self.at, self.operators, self.fault = text, at, 0, ""
        self._depth = 0

    def parse(self) -> Fraction | None:
        """The value of the longest expression from here, or `None` where what stands here is not one."""
        total = self._term()
        while total is not None and (operator := self._operator("+-")):
            other = self._term()
            if other is None:
                return None
            total = self._bounded(total + other if operator == "+" else total - other)
        return total

    def _term(self) -> Fraction | None:
        product = self._factor()
        while product is not None and (operator := self._operator("*/")):
            other = self._factor()
            if other is None:
                return None
            if operator == "/" and not other:
                self.fault = self.fault or "it divides by zero"
                other = Fraction(1)
            product = self._bounded(product * other if operator == "*" else product / other)
        return product

    def _factor(self) -> Fraction | None:
        first = self._skip()
        if first == "-" and not self.text[self.at + 1 : self.at + 2].isspace():
            self.at += 1
            # No second sign is read: `--` is no operator here, and a long row of signs would recurse without a bound.
            value = None if self.text.startswith("-", self.at) else self._factor()
            return None if value is None else -value
        if first == "(":
            return self._parenthesised()
        number = _NUMBER.match(self.text, self.at)
        if number is None:
            return None
        self.at = number.end()
        if len(number[0]) > _MAX_DIGITS:
            return self._bounded(Fraction(_LARGEST + 1))
        digits = number[0].replace(",", "")
        # `Fraction` takes an `int` four times as fast as a string.
        return Fraction(digits if "." in digits else int(digits))

    def _parenthesised(self) -> Fraction | None:
        if self._depth == _MAX_DEPTH:
            return None
        self._depth += 1
        self.at += 1
        value = self.parse()
        self._depth -= 1
        if value is None or self._skip() != ")":
            return None
        self.at += 1
        return value

    def _operator(self, among: str) -> str:
        mark = self.at
        operator = self._skip()
        if not operator or operator not in among:
            self.at = mark
            return ""
        self.at += 1
        self.operators += 1
        return operator

    def _bounded(self, value: Fraction) -> Fraction:
        if abs(value.numerator) <= _LARGEST and value.denominator <= _LARGEST:
            return value
        self.fault = self.fault or "its numbers are too large"
        return Fraction(1)

    def _skip(self) -> str:
        """Moves `at` to the next character that is no white space, and returns it; empty at the end."""
        if space := _SPACE.match(self.text, self.at):
            self.at = space.end()
        return self.text[self.at : self.at + 1]


def shown(value: Fraction) -> str:
    """The value as digits, rounded to six decimals."""
    return _millionths(value.numerator * 10**6 if value.denominator == 1 else round(value * 10**6))


def _millionths(scaled: int) -> str:
    digits = f"{abs(scaled):07d}"
    decimals = digits[-6:].rstrip("0")
    return ("-" if scaled < 0 else "") + digits[:-6] + (f".{decimals}" if decimals else "")


def _claims(text: str, truth: Fraction) -> bool:
    """Whether the last number of a text is the truth, to six decimals."""
    numbers = _SIGNED.findall(text.translate(_LOOK_ALIKES))
    # A number that is longer than any answer can be is wrong. It is not even read: Python refuses to read a number of
    # many thousand digits.
    if not numbers or len(numbers[-1]) > 4 * _MAX_DIGITS:
        return False
    return shown(Fraction(numbers[-1].replace(",", ""))) == shown(truth)


def _near(right: str, count: int, draws: _Draws) -> str:
    """One of `count` wrong numbers: the right one plus 1, minus 1, plus 2, … in its last decimal place."""
    chosen = draws.below(count, "wrong")
    whole, _, decimals = right.partition(".")
    near = int(whole + decimals) + (-1 if chosen % 2 else 1) * (1 + chosen // 2)
    return _millionths(near * 10 ** (6 - len(decimals)))
