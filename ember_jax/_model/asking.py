"""What the calls of a language model have in common: settings and words as operands, one request, one answer.

The settings' values are operands, only their names are static, so a sweep over models, prompts or temperatures is a
`vmap` and one program.
"""

import abc
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np

from .._host import Caller, HostCall
from .._runtime import session as sessions
from .._runtime.journal.base import MOST_ANSWERS
from .._text import failed, store
from .._text.text import Text, text
from .._types import Key, is_key, key_problem
from ..errors import MalformedResponseError, TextError, UnknownDigestError
from ..providers import registry
from ..providers.base import Message, Request, Response, is_drawn
from .conversation import Conversation, messages_of


@dataclass(frozen=True)
class Operands:
    """What is static about a call's operands: model, prompt, system, settings, what else the call takes, and the key.

    `names` are those of the settings, `extra` the ranks of what else it takes; `is_conversation` says whether the
    prompt's words are those of a `Conversation`.
    """

    names: tuple[str, ...]
    has_system: bool
    has_key: bool
    extra: tuple[int, ...] = ()
    is_conversation: bool = False

    @property
    def ranks(self) -> tuple[int, ...]:
        return (1,) * (2 + self.has_system + len(self.names)) + self.extra + (1,) * self.has_key

    def request(self, arrays: Sequence[np.ndarray]) -> tuple[Request, list[np.ndarray]]:
        """The request that one lane's operands make, and what else they hold."""
        first = 2 + self.has_system  # setting
        many = first + len(self.names)
        try:
            words = [store.get(a.tobytes()) for a in arrays[:many]]
        except UnknownDigestError as error:
            named = ("model", "prompt", *["system prompt"] * self.has_system, *self.names)
            lost = next(n for n, a in zip(named, arrays, strict=False) if store.peek(a.tobytes()) is None)
            raise UnknownDigestError(f"the {lost} of this LLM: {error}") from None
        provider, name = registry.split(words[0])
        if self.is_conversation and words[1]:  # without words it is one that is not known, as an estimate is told
            messages = messages_of(words[1])
            if not messages:
                raise TextError("this LLM is asked by a Conversation in which nothing was said.")
        else:
            messages = (Message("user", words[1]),)
        if self.has_system and words[2]:  # a lane without a system prompt has an empty one
            messages = (Message("system", words[2]), *messages)
        parameters = dict(_parameters(self.names, tuple(words[first:])))
        sample = arrays[-1].tobytes().hex() if self.has_key and is_drawn(parameters) else None
        return Request(provider, name, messages, parameters, sample), list(arrays[many : many + len(self.extra)])


def operands(
    model: Text,
    system: Text | None,
    settings: Mapping[str, Text],
    prompt: Text | Conversation,
    key: Key | None,
    extra: Sequence[Text] = (),
) -> tuple[Operands, list[Any]]:
    """A call's operands as arrays, with what is static about them.

    **Raises:** `TextError` for a model or setting that is not of rank 0, `TypeError` for what is no key.
    """
    is_conversation = isinstance(prompt, Conversation)
    words = [("model", model), ("prompt", prompt.turns if is_conversation else prompt)]
    words += [] if system is None else [("system", system)]
    words += settings.items()
    for name, value in words:
        if value.shape:
            raise TextError(
                f"the {name} of this LLM has shape {list(value.shape)}: it is several models in one, to be mapped: "
                "`jax.vmap(lambda llm: llm(prompt))(llms)`."
            )
    arrays = [value.digests for _, value in words] + [value.digests for value in extra]
    if key is not None:
        arrays.append(_key_data(key))
    ranks = tuple(value.ndim + 1 for value in extra)
    return Operands(tuple(settings), system is not None, key is not None, ranks, is_conversation), arrays


class AskedModel(eqx.Module):
    """A model with its settings, which is called to be asked, abstract.

    It is equal to itself alone, as operators are, so that `jax.jit(llm)` works.
    """

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # JAX names what it compiles so
        return type(self).__name__

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


# Takes note of what was passed over to read an answer.
Note: TypeAlias = Callable[[Request, Sequence[str]], None]


class ModelCall(HostCall):
    """One call that asks a model, as the callback that JAX sees. Subclasses are frozen dataclasses.

    **Attributes:**

    - `operands`: what is static about its operands.
    """

    operands: Operands

    pure = True
    asks_model = True

    @property
    def draws_shared(self) -> bool:  # type: ignore[override]
        return not self.operands.has_key

    @property
    @abc.abstractmethod
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        """The types of the results of one call."""

    @property
    def ranks(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.operands.ranks

    @abc.abstractmethod
    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        """The request that is sent, from that of the prompt alone and from what else the call takes."""

    @abc.abstractmethod
    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        """The results that an answer stands for. Raises `MalformedResponseError` if it stands for none."""

    def mending(self, request: Request, response: Response) -> "tuple[ModelCall, Request] | None":
        """The call, and its request, that have the model mend an answer which stands for nothing; `None` for none."""
        return None

    def instead(self) -> "ModelCall | None":
        """The call that asks the same where a service does not decide without words; `None` for any other call."""
        return None

    async def run(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        sessions.admit(session, caller.lane)
        digest = failed.first(arrays[:-1] if self.operands.has_key else arrays)
        if digest is not None:  # the call is not made; of its results only text is of unsigned integers
            caller.tally.known -= caller.stands_for
            are_text = [aval.dtype == np.uint32 for aval in self.out]
            return [
                failed.result(digest, a.shape[:-1]) if is_text else failed.result(digest, a.shape, a.dtype)
                for a, is_text in zip(self.out, are_text, strict=True)
            ]
        bare, extra = self.operands.request(arrays)
        call, request, other = self, self.asks(bare, extra), self.instead()
        if other is not None and session.deciding.limits(request) is None:
            call, request, other = other, other.asks(bare, extra), None
        draws = call.draws_shared and not request.decides
        if draws and request.sample is None and is_drawn(request.parameters):
            caller.unkeyed(request.digest())
        note = session.oddities.loose
        round_ = _Round(call, request, extra, note)
        instead = None
        if other is not None and (way := otherwise(other, bare, extra)) is not None:
            instead = way, _Round(other, way, extra, note).read
        scope = caller.scope
        while True:
            # Counted where the session counts it, so that bar and report agree.
            caller.tally.begun += caller.stands_for
            try:
                return await session.ask(
                    round_.request,
                    caller.lane,
                    scope,
                    caller.stands_for,
                    caller.path,
                    caller.used,
                    round_.read,
                    caller.words,
                    round_.mends,
                    instead,
                )
            except MalformedResponseError:
                following = round_.following()
                if following is None:
                    raise
            finally:
                caller.tally.ended += caller.stands_for
            round_ = following
            scope = f"{caller.scope}/{REPAIR}" if caller.scope else REPAIR
            session.count("repairs", caller.stands_for)


def otherwise(call: ModelCall, bare: Request, extra: Sequence[np.ndarray]) -> Request | None:
    """What a call asks instead of another; `None` if it cannot, as there are more options than letters."""
    try:
        return call.asks(bare, extra)
    except TextError:
        return None


# The last part of the scope of a call that has a model mend an answer.
REPAIR = "repair"


@dataclass(slots=True)
class _Round:
    """One question of a call, and the answer to it that stood for nothing, if there was one."""

    call: ModelCall
    request: Request
    extra: Sequence[np.ndarray]
    note: Note
    unread: Response | None = None

    def read(self, response: Response) -> list[np.ndarray]:
        try:
            return self.call.read(self.request, response, self.extra, self.note)
        except MalformedResponseError:
            self.unread = response
            raise

    def mends(self, response: Response) -> bool:
        """Whether the model is asked to mend an answer that stands for nothing."""
        return self.call.mending(self.request, response) is not None

    def following(self) -> "_Round | None":
        """The round in which the model mends its answer; `None` if there is none."""
        repair = None if self.unread is None else self.call.mending(self.request, self.unread)
        return None if repair is None else _Round(*repair, self.extra, self.note)


def prompt_of(prompt: Any, method: str = "") -> Text | Conversation:
    """A prompt as a Text or a conversation of rank 0; `method` is that of an LLM which takes it, for the error.

    **Raises:** `TextError` for anything else.
    """
    if isinstance(prompt, list | tuple):
        if any(isinstance(turn, str | Text) for turn in prompt):
            raise TextError(
                f"a prompt is one string, Text or Conversation; got {type(prompt).__name__} of them. Ask them all with "
                '`jax.vmap(llm)(ember.text(prompts))`; a conversation is a list of turns, as in [("user", "Hello")].'
            )
        prompt = Conversation(prompt)
    if not isinstance(prompt, Text | str | Conversation):
        raise TextError(f"a prompt is a string, a Text or a Conversation; got {type(prompt).__name__}.")
    value = text(prompt) if isinstance(prompt, str) else prompt
    if value.shape:
        mapped = f"jax.vmap(lambda prompt: llm.{method})(prompts)" if method else "jax.vmap(llm)(prompts)"
        raise TextError(f"the prompt has shape {list(value.shape)}; an LLM takes one. Ask them all with `{mapped}`.")
    return value


@functools.lru_cache(maxsize=4096)  # a sweep has few distinct settings
def setting(words: str) -> Any:
    """A setting's value: what the JSON says, or the string itself."""
    try:
        return json.loads(words)
    except ValueError:
        return words


def one_text(value: Any, caller: str, mapped: str, noun: str = "text") -> Text:
    """A text of rank 0, given as a Text or a string.

    **Arguments:**

    - `value`: what was given.
    - `caller`: who takes it, as an error says it, such as `"an Embedder"`.
    - `mapped`: the code that asks of several.
    - `noun`: what it is.

    **Raises:** `TextError` for anything else.
    """
    if not isinstance(value, Text | str):
        raise TextError(f"{caller} takes a string or a Text; got {type(value).__name__}.")
    value = text(value) if isinstance(value, str) else value
    if value.shape:
        raise TextError(f"the {noun} has shape {list(value.shape)}; {caller} takes one. Ask them all with `{mapped}`.")
    return value


# Settings whose values are words, or lists of words: a number in them, as in `stop=ember.text("1")`, is words too.
_OF_WORDS = frozenset(
    ("prompt_cache_key", "reasoning_effort", "safety_identifier", "service_tier", "speed", "stop", "user", "verbosity")
)


def parameter(name: str, words: str) -> Any:
    """The value of a setting as it is sent; `None` for one that is unset in this lane."""
    value = setting(words)
    return words if name in _OF_WORDS and isinstance(value, int | float) else value


@functools.lru_cache(maxsize=4096)
def _parameters(names: tuple[str, ...], words: tuple[str, ...]) -> Mapping[str, Any]:
    """The settings of a call by name, without those that are unset. It is to be copied: a sweep has few of them."""
    given = zip(names, map(parameter, names, words), strict=True)
    return {name: value for name, value in given if value is not None}


def of_same_sample(request: Request) -> str:
    """What becomes of an answer that is of no use: within its session it is like any other."""
    anew = ", and another key asks anew" if is_drawn(request.parameters) else ""
    return f"Equal calls of this session fail alike{anew}; a rerun asks again, for {MOST_ANSWERS} answers in all."


def _key_data(key: Any) -> Any:
    problem = key_problem(key)
    if problem:
        raise TypeError(f"the key of an LLM call is {problem}.")
    return jax.random.key_data(key) if is_key(key) else key
