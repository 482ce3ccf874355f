"""`LLM`: a language model as a module whose settings are data."""

import difflib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .. import _callback
from .._host import invoke
from .._runtime import session as sessions
from .._text import store
from .._text.elementwise import NUMBER, TEXT, elementwise
from .._text.maybe import Maybe
from .._text.operations import where
from .._text.text import Text, text
from .._types import Key
from ..errors import MalformedResponseError, ModelError, TextError, UnsupportedError
from ..providers import registry
from ..providers.base import Message, Request, Response
from ..providers.questions import DecisionQuestion, fault
from .asking import AskedModel, ModelCall, Note, Operands, operands, prompt_of, setting
from .choose import LETTERS, Choice, ChoiceCall, options_text
from .conversation import Conversation
from .decide import (
    Decidable,
    DecideCall,
    Levels,
    Options,
    Predicate,
    asked,
    kind_of,
    number_of_options,
    of_letters,
    questions_of,
    table,
)
from .schema import schema_of
from .structured import StructuredCall
from .tools import ToolReply, ToolsCall, as_tools, described, reply_of
from .validators import validators_of

_S = TypeVar("_S")

# What a model may be asked.
Prompt: TypeAlias = "str | Text | Conversation | Sequence[Any]"

# Settings that providers share; another name is sent as it is, a near miss of one of these is a typo.
_KNOWN_SETTINGS = (
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "reasoning_effort",
    "repetition_penalty",
    "response_format",
    "seed",
    "service_tier",
    "speed",
    "stop",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
    "verbosity",
)


# Those of them that are one number each.
_NUMBERS = frozenset(
    (
        "frequency_penalty",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
    )
)


class Completion(NamedTuple):
    """What a model answered, and what it took.

    **Fields:**

    - `text`: the words.
    - `input_tokens`, `output_tokens`: int32, as the provider counted them.
    - `cost`: float32, US dollars; NaN where no price is known.
    - `logprob`: float32, the sum of the answer's token log-probabilities; NaN where the provider does not say.
    - `finish`: int32, how it ended, as a value of `ember.Finish`: `answer.finish == ember.Finish.LENGTH` is true of an
        answer that was cut at its `max_tokens`.
    - `cached_tokens`: int32, those of the input that came out of a cache.
    - `reasoning_tokens`: int32, those of the output that are no part of `text`.
    - `reasoning`: the words that the model thought in, empty where the service does not show them.
    """

    text: Text
    input_tokens: jax.Array
    output_tokens: jax.Array
    cost: jax.Array
    logprob: jax.Array
    finish: jax.Array
    cached_tokens: jax.Array
    reasoning_tokens: jax.Array
    reasoning: Text


class LLM(AskedModel):
    """A language model with its settings.

    Every setting is a Text leaf that holds the value as canonical JSON, 0.7 as "0.7" whether it came as a Python
    float, a float32 or a traced number. So settings may vary under `vmap`, no optimiser step can drift one, and equal
    settings make equal calls.

    **Arguments:**

    - `model`: `provider/model`, such as `"sim/small"` or `"openai/gpt-4o-mini"`; a Text to sweep over models.
    - `system`: the system prompt. An empty one is none.
    - `settings`: `temperature`, `max_tokens`, … as the provider names them. `None` leaves one unset. What is JSON in a
        Text is read as it (`ember.text('["a", "b"]')` are two stops), except that a number is words where words are
        meant, as in `stop=ember.text("1")`.

    Where a setting or the system prompt is an `ember.Maybe(value, is_there)`, the lanes in which it is not there leave
    it unset: `jax.vmap(lambda t: llm.replace(temperature=t)(prompt))(ember.Maybe(temperatures, are_there))`.

    **Raises:** `ModelError` for an unknown provider or model, when the id is known here; for a traced one when the lane
    runs. `TypeError` for a setting that is a near miss of a common one, or no number where that is one.
    """

    model: Text
    system: Text | None
    settings: dict[str, Text]

    def __init__(self, model: str | Text, system: str | Text | Maybe[str] | None = None, **settings: Any):
        self.model = text(model) if isinstance(model, str) else model
        if not isinstance(self.model, Text):
            raise ModelError(f"LLM takes a model id such as 'sim/small', not {type(model).__name__}.")
        if _callback.all_concrete(self.model):
            for name in {*np.asarray(self.model).ravel().tolist()} - {None}:  # that of failed text fails its call
                sessions.current().check(name)
        self.system = None if system is None else _or_else(system, "", _system)
        for name in settings:
            _check_name(name)
        given = {k: v for k, v in sorted(settings.items()) if v is not None}
        self.settings = {k: _or_else(v, "null", functools.partial(_canonical, k)) for k, v in given.items()}

    def __call__(self, prompt: "Prompt", key: Key | None = None) -> Text:
        """Asks the model.

        **Arguments:**

        - `prompt`: the user's message, a Text of rank 0; or a `Conversation`, or the list of turns that makes one.
        - `key`: a PRNG key, for independent samples: equal calls with equal keys, or without, are one sample. Ignored
            at temperature 0.

        **Returns:** the answer's words; derivative zero. `complete` gives tokens and cost as well.

        **Raises:** `TextError` for a prompt of another rank or type; a `ProviderError` if the call fails.
        """
        return self.complete(prompt, key).text

    def complete(self, prompt: "Prompt", key: Key | None = None) -> Completion:
        """Asks the model; like calling it, with the answer's tokens, cost and log-probability."""
        static, arrays = self._operands(prompt_of(prompt), key)
        call = LLMCall(static)
        words, *numbers, reasoning = invoke(call, call.out, *arrays)
        named = dict(zip(Completion._fields[1:-1], numbers, strict=True))
        return Completion(text=Text(words), **named, reasoning=Text(reasoning))

    def stream(self, prompt: "Prompt", key: Key | None = None) -> Iterator[str]:
        """Asks the model, and gives the words of its answer as they come.

        ```python
        for piece in llm.stream(prompt):
            print(piece, end="", flush=True)
        ```

        It is the same call as `llm(prompt, key)`, which afterwards has the same answer, and is counted, paid and kept
        like it when the stream has ended. An answer that is known, and one of a service that does not stream, comes as
        one piece. The model is asked when the first piece is.

        **Arguments:** those of a call of the LLM, with words that are known: for one call, line by line.

        **Returns:** an iterator of the answer's pieces. To close it before its end cancels the call: the answer is lost
        and possibly billed, as `report().lost` says.

        **Raises:** `UnsupportedError` under a transformation of JAX, or in an operator; what calling the LLM does, some
        of it when pieces were given already. A request is not sent again after its first piece.
        """
        static, arrays = self._operands(prompt_of(prompt, "stream(prompt)"), key)
        if not _callback.is_now(arrays):
            raise UnsupportedError(
                "llm.stream(prompt) gives words while they come, to Python that runs line by line. Under a "
                "transformation of JAX, and in an operator, call the LLM: `llm(prompt)`."
            )
        return _pieces(LLMCall(static), arrays)

    def choose(self, prompt: "Prompt", options: Sequence[str | Text] | Text, key: Key | None = None) -> Choice:
        """Lets the model pick one of several options.

        The options are listed below the prompt as `A. …`, `B. …`, and the model is asked for a letter. The
        log-probabilities of the answer's first token are asked for, and done without where a service refuses them.

        ```python
        choice = llm.choose("Is this review positive? " + review, ["yes", "no"])
        choice.probs[0]
        ```

        **Arguments:**

        - `prompt`: the user's message, a Text of rank 0; or a `Conversation`, or the list of turns that makes one.
        - `options`: 2 to 26 strings, or a Text of rank 1.
        - `key`: as when the LLM is called: the choice is a sample of the model.

        **Returns:** the option that was answered, with the probability of each; derivative zero.

        **Raises:** `TextError` for a prompt or options of another rank or type; a `ProviderError` if the call fails,
        which is a `MalformedResponseError` if the answer names no option.
        """
        prompt = prompt_of(prompt, "choose(prompt, options)")
        listed = options_text(options)
        static, arrays = self._operands(prompt, key, listed)
        call = ChoiceCall(static, len(listed))
        index, probs, digest = invoke(call, call.out, *arrays)
        return Choice(index, probs, Text(digest))

    def decide(
        self,
        state: "Prompt",
        questions: Decidable | Mapping[str, Decidable],
        key: Key | None = None,
        *,
        orders: int = 1,
        whole: bool = False,
    ) -> Any:
        """Gives the probabilities of given answers to questions about a state, without a token of output.

        ```python
        found = llm.decide(
            review,
            {
                "angry": "Is the customer angry?",
                "topic": ember.Options("What is it about?", ["price", "quality", "delivery"]),
                "urgent": ember.Levels("How urgent is it?", ["can wait", "this week", "today"]),
            },
        )
        found["angry"], found["topic"].probs, found["urgent"].level
        ```

        Questions about equal states that are ready at once, whichever lanes ask them, share a request. Each has a place
        of its own in the journal, so that later ones pay for what is new alone.

        OpenAI's `gpt-6-luna`, Google's models that can, and models served by vLLM, SGLang, llama.cpp and `transformers
        serve` decide so. Any other model is asked by letters, as by `choose`, a request for each question; also one
        whose service turns out to have no such endpoint (404, 501), which is found out once. `run.report().decided`
        counts the calls that were decided, `explain()` says which ones may be, and `run.calls()` shows what was asked.

        **Arguments:**

        - `state`: what is asked about, a Text of rank 0; or a `Conversation`, or the list of turns that makes one.
        - `questions`: one, or a dict of them. A string is an `ember.Predicate`.
        - `key`: draws the orders, if there are several, and the answers of models that are asked by letters. Decisions
            do not depend on it otherwise.
        - `orders`: in how many orders the options are asked, of which the probabilities are averaged. They are turned
            (the second one comes first), as often as there are options, or drawn by the key; levels are asked forwards
            and backwards. Each order is a question of its own, for which some services bill the state again.
        - `whole`: whether the instructions are whole prompts, which say the state themselves. Models that are asked by
            letters are sent them alone; of others, the state at their begin is left out of them.

        **Returns:** for a dict a dict by the same names. Of a predicate its probability, float32; of an `ember.Options`
        an `ember.Choice`, whose option is the most likely one, or the one that was answered by letters; of an
        `ember.Levels` an `ember.Rating`. With `orders` above 1 each of them is the `value` of an `ember.Averaged`,
        whose `bias` is the largest difference that the order made. Derivative zero.

        **Raises:** `TypeError` and `ValueError` for what is no question, no number of orders, and for no questions;
        `TextError` for more options than the service takes, and a prompt of another rank or type; a `ProviderError` if
        a call fails.
        """
        named = questions_of(questions)
        if not isinstance(orders, int) or isinstance(orders, bool) or orders < 1:
            raise ValueError(f"llm.decide(orders={orders!r}): give a whole number, at least 1.")
        prompt = prompt_of(state, "decide(prompt, questions)")
        if whole and isinstance(prompt, Conversation):
            raise TypeError("llm.decide(whole=True) takes a text as its state, which the instructions say again.")
        for question in named.values():
            self._check_options(question)
        each = [asked(question, orders, key) for question in named.values()]
        rows = table(each)
        static, arrays = self._operands(prompt, key, rows[0])
        call, place = DecideCall(static, (rows.shape[1] - 2) // 2, whole), len(arrays) - 1 - (key is not None)
        ask = lambda row: invoke(call, call.out, *arrays[:place], row, *arrays[place + 1 :])
        if len(rows) == 1:  # no lane of its own
            index, probs, words = (out[None] for out in ask(rows.digests[0]))
        else:
            index, probs, words = jax.vmap(ask)(rows.digests)
        ends = np.cumsum([len(one.orders) for one in each])
        results = [
            one.result(
                index[end - len(one.orders) : end],
                probs[end - len(one.orders) : end],
                Text(words)[end - len(one.orders) : end],
            )
            for one, end in zip(each, ends.tolist(), strict=True)
        ]
        return dict(zip(named, results, strict=True)) if isinstance(questions, Mapping) else results[0]

    def _check_options(self, question: Predicate | Options | Levels) -> None:
        """Raises `TextError` for more options than the service takes, where the model is known."""
        if not _callback.all_concrete(self.model):
            return
        kind, options = kind_of(question), number_of_options(question)
        session = sessions.current()
        for name in {*np.asarray(self.model).ravel().tolist()} - {None}:
            provider, model = registry.split(name)
            request = Request(provider, model, (Message("user", ""), DecisionQuestion(kind, "", (), ()).message))
            limits = session.deciding.limits(request)
            if limits is not None and (why := fault(kind, options, limits)):
                raise TextError(f"{name}: {why}")
            if limits is None and options > len(LETTERS):
                raise TextError(of_letters(name, options))

    def structured(self, prompt: "Prompt", schema: type[_S], key: Key | None = None, *, repairs: int = 1) -> _S:
        """Asks the model for an answer in fields.

        ```python
        class Review(eqx.Module):
            stars: int
            mood: Literal["glad", "angry", "neither"]
            topics: ember.Text["3"]

        review = llm.structured(question, Review)
        ```

        **Arguments:**

        - `prompt`: the user's message, a Text of rank 0; or a `Conversation`, or the list of turns that makes one.
        - `schema`: a NamedTuple, dataclass, `eqx.Module` class or pydantic model, which is sent as a JSON schema; its
            docstring and the lines ``- `field`: …`` in it are descriptions that the model reads. A class that JAX does
            not know is registered with it. Each field is one of

            - `Text`, `str`, and a `Literal` or an `Enum` of strings: a Text;
            - `float`, `int`, `bool`, and a `Literal` or an `Enum` of whole numbers: a float32, int32 or boolean array
                of rank 0;
            - `Text["3"]`, `Float[Array, "3"]`, `Int[Array, "2 2"]`, `Bool[Array, "3"]`: lists of fixed lengths;
            - another such class;
            - `list[str]` and lists of any of these: an `ember.Many(values, length)` of up to 16 elements, or as many as
                `Annotated[list[str], ember.at_most(5)]` says. Its `mask` says which values are there, its `tolist()`
                gives them as plain Python;
            - `int | None` and any of these or `None`: an `ember.Maybe(value, is_there)`, whose `tolist()` is plain
                Python too.

            `ember.Many[str]` and `ember.Maybe[int]` are the same as annotations, and tell type checkers what comes.
        - `key`: as when the LLM is called.
        - `repairs`: how often the model is asked to mend an answer that does not fit, or that a validator or constraint
            of a pydantic `schema` refuses. It is shown its answer, told which field is wrong and why, and asked for the
            whole again. Each repair is a call of its own, counted and kept, whose scope ends in `repair`. An answer
            that was cut is not mended.

        A service that refuses JSON schemas is asked for a JSON object, with the schema in the prompt, and one that
        refuses this too by the prompt alone. Words around the JSON and fields beside those of the schema are passed
        over, with one `LooseAnswerWarning`.

        **Returns:** an instance of `schema`; derivative zero. If that is a pydantic model, it is of what its validators
        have made of the answer; those of models within another kind of class are not run.

        **Raises:** `AnnotationError` for a field of another type; `TextError` for a prompt of another rank or type; a
        `ProviderError` if the call fails, which is a `MalformedResponseError` naming the field if the answer does not
        fit, and the mended one does not either; `ValidatorError` if a validator itself fails, after which the answer is
        kept; `ValueError` for a number of repairs that is none.
        """
        prompt = prompt_of(prompt, f"structured(prompt, {getattr(schema, '__name__', 'Schema')})")
        if not isinstance(repairs, int) or repairs < 0:
            raise ValueError(f"llm.structured(repairs={repairs!r}): give a whole number, 0 for none.")
        record, make = schema_of(schema)
        if "response_format" in self.settings:
            raise TypeError(
                "a structured answer has a response_format of its own, and this LLM sets one; take it out with "
                "`llm.replace(response_format=None)`."
            )
        static, arrays = self._operands(prompt, key)
        call = StructuredCall(static, record, repairs, validators=validators_of(schema, record))
        return make(iter(invoke(call, call.out, *arrays)))

    def tools(self, prompt: "Prompt", tools: Any, key: Key | None = None, *, most: int = 8) -> ToolReply:
        """Asks the model, which may want tools called.

        ```python
        reply = llm.tools(chat, [search, calculate])
        chat = reply.added_to(chat, reply.results([search, calculate]))
        ```

        `ember.Agent` does this until the model has its answer.

        **Arguments:**

        - `prompt`: as when the LLM is called.
        - `tools`: functions, operators, and what `ember.tool` makes of them. The setting `tool_choice` says whether and
            which the model must call.
        - `key`: as when the LLM is called.
        - `most`: how many calls of one answer are taken at most.

        **Returns:** the words, and the calls that are wanted; derivative zero.

        **Raises:** what calling the LLM does; `AnnotationError` and `ValueError` for what is no tool, see `ember.tool`.
        """
        given = as_tools(tools)
        if not given:
            raise ValueError("llm.tools(prompt, tools): there are no tools. Without any, call the LLM itself.")
        if most < 1:
            raise ValueError(f"llm.tools(most={most!r}): give a whole number, at least 1.")
        if "tools" in self.settings:
            raise TypeError("this LLM has a setting tools; take it out with `llm.replace(tools=None)`.")
        prompt = prompt_of(prompt, "tools(prompt, tools)")
        static, arrays = self._operands(prompt, key)
        call = ToolsCall(static, described(given), most)
        return reply_of(invoke(call, call.out, *arrays))

    def _operands(self, prompt: Text | Conversation, key: Key | None, *extra: Text) -> tuple[Operands, list[Any]]:
        return operands(self.model, self.system, self.settings, prompt, key, extra)

    def replace(self, **settings: Any) -> "LLM":
        """The same model with some of `model`, `system` and the settings changed; `None` unsets one."""
        given = {"model": self.model, "system": self.system, **self.settings, **settings}
        return LLM(**given)

    def __repr__(self) -> str:
        parts = [_shown(self.model)]
        parts += [] if self.system is None else [f"system={_shown(self.system)}"]
        parts += [f"{name}={_shown(value, bare=True)}" for name, value in self.settings.items()]
        return f"LLM({', '.join(parts)})"


def _pieces(call: "LLMCall", arrays: Sequence[Any]) -> Iterator[str]:
    results, said = yield from call.streamed(arrays)
    words = store.get(results[0].tobytes())
    if len(words) > len(said):  # all of it, if the answer was there already or came as a whole
        yield words[len(said) :]


_NO_WORDS = store.put("")


@dataclass(frozen=True)
class LLMCall(ModelCall):
    """One call for an answer in words."""

    operands: Operands

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        numbers = (np.int32, np.int32, np.float32, np.float32, np.int32, np.int32, np.int32)
        words = jax.ShapeDtypeStruct((store.DIGEST_WORDS,), np.uint32)
        return words, *(jax.ShapeDtypeStruct((), dtype) for dtype in numbers), words

    def __str__(self) -> str:
        return "LLM"

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        return request

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        r = response
        if r.tool_calls and not r.text:
            raise MalformedResponseError(
                f"{request.provider}/{request.model}: the model wants {r.tool_calls[-1].name!r} called, no more. "
                "Ask `llm.tools(prompt, tools)`, which gives the calls, or let an `ember.Agent` make them."
            )
        # Two arrays are made and taken apart, as to make one for each number would take longer.
        counts = (r.input_tokens, r.output_tokens, r.finish, r.cached_tokens, r.reasoning_tokens)
        read, written, finish, cached, reasoning = np.array(counts, np.int32)
        cost, logprob = np.array((r.cost, r.logprob), np.float32)
        words = np.frombuffer(store.put(r.text), np.uint32)
        thoughts = np.frombuffer(store.put(r.reasoning) if r.reasoning else _NO_WORDS, np.uint32)
        return [words, read, written, cost, logprob, finish, cached, reasoning, thoughts]


# -- settings --------------------------------------------------------------------------------------------------------


def asked_by(caller: str, model: str | Text, settings: Mapping[str, Any]) -> tuple[Text, dict[str, Text]]:
    """A model and settings as those of an LLM are kept, for a class that asks it for numbers.

    **Raises:** what an `LLM` raises; `TypeError` for a system prompt, which such a model has not.
    """
    if "system" in settings:
        raise TypeError(f"{caller}(system=…): a model that is asked for numbers has no system prompt.")
    llm = LLM(model, **settings)
    return llm.model, llm.settings


def shown_as(caller: str, model: Text, settings: Mapping[str, Text], *more: str) -> str:
    """How such a class is printed, with more arguments at the end."""
    shown = repr(LLM(model, **settings)).removeprefix("LLM(").removesuffix(")")
    return f"{caller}({', '.join([shown, *more])})"


def _check_name(name: str) -> None:
    if name in _KNOWN_SETTINGS:
        return
    close = difflib.get_close_matches(name, _KNOWN_SETTINGS, n=1, cutoff=0.8)
    if close:
        raise TypeError(f"LLM got the setting {name!r}. Did you mean {close[0]!r}?")


def _or_else(value: Any, otherwise: str, as_words: Callable[[Any], Text]) -> Text:
    """A value as words; if it is a `Maybe`, other words for it where it is not there."""
    if not isinstance(value, Maybe):
        return as_words(value)
    if isinstance(value.is_there, bool):
        return as_words(value.value) if value.is_there else text(otherwise)
    found = value.value
    if isinstance(found, jax.Array | np.ndarray):  # what stands in the place of a number that is not there is no matter
        found = jnp.where(value.is_there, found, jnp.zeros_like(found))
    return where(value.is_there, as_words(found), otherwise)


def _system(value: Any) -> Text:
    return value if isinstance(value, Text) else text(value)


def _canonical(name: str, value: Any) -> Text:
    """A setting as Text: JSON, except that a string that is no JSON stands for itself.

    **Raises:** `TypeError` for what is no JSON, and for what is no number where one is meant.
    """
    if name in _NUMBERS and isinstance(value, str | list | tuple | dict | bool):
        several = (
            f" To try several, map: `jax.vmap(lambda x: llm.replace({name}=x)(prompt))(jnp.array({list(value)}))`."
            if isinstance(value, list | tuple)
            else ""
        )
        raise TypeError(f"the setting {name} of an LLM is {value!r:.60}, which is not a number.{several}")
    match value:
        case Text():
            return value
        case str():
            return text(json.dumps(value) if _is_json(value) else value)
        case jax.Array() | np.ndarray() | np.generic():
            return Text(elementwise(_number, (), [(jnp.asarray(value), NUMBER)], TEXT))
        case bool():
            return text(json.dumps(value))
        case int() | float():
            return text(_number(value))
        case _:
            try:
                return text(json.dumps(value, sort_keys=True))
            except TypeError:
                raise TypeError(f"the setting {name} of an LLM is {value!r:.60}, which is not JSON.") from None


def _number(value: Any) -> str:
    """The shortest decimal that is this number in its own precision; whole numbers without a point."""
    if isinstance(value, bool | np.bool_):
        return json.dumps(bool(value))
    if not math.isfinite(value):
        raise TextError(
            f"a setting of an LLM is {value}, which is no number that can be sent. To leave it unset in some lanes, "
            "give `ember.Maybe(value, is_there)`."
        )
    if float(value).is_integer():
        return str(int(value))
    return str(value)


def _is_json(words: str) -> bool:
    return setting(words) != words  # not by identity: an equal string may have been read before


def _shown(value: Text, bare: bool = False) -> str:
    words = repr(value)
    inner = words[len("Text(") : -1] if words.startswith("Text(") else words
    return inner.strip("'") if bare and inner.startswith("'") else inner
