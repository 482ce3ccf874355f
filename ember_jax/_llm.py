"""`LLM`: a language model as a module whose settings are data."""

import difflib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from . import _callback
from ._errors import ModelError, TextError
from ._host import Caller, HostCall
from ._providers import registry
from ._providers.base import Message, Request
from ._runtime import session as sessions
from ._text import store
from ._text.elementwise import NUMBER, TEXT, elementwise
from ._text.text import Text, text
from ._types import Key, is_key, key_problem

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
    "stop",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
    "verbosity",
)


class Completion(NamedTuple):
    """What a model answered, and what it took.

    **Fields:**

    - `text`: the words.
    - `input_tokens`, `output_tokens`: int32, as the provider counted them.
    - `cost`: float32, US dollars; NaN where no price is known.
    - `logprob`: float32, the sum of the answer's token log-probabilities; NaN where the provider does not say.
    """

    text: Text
    input_tokens: jax.Array
    output_tokens: jax.Array
    cost: jax.Array
    logprob: jax.Array


class LLM(eqx.Module):
    """A language model with its settings.

    Every setting is a Text leaf that holds the value as canonical JSON, 0.7 as "0.7" whether it came as a Python
    float, a float32 or a traced number. So settings may vary under `vmap`, no optimiser step can drift one, and equal
    settings make equal calls.

    **Arguments:**

    - `model`: `provider/model`, such as `"sim/small"` or `"openai/gpt-4o-mini"`; a Text to sweep over models.
    - `system`: the system prompt.
    - `settings`: `temperature`, `max_tokens`, … as the provider names them. `None` leaves one unset.

    **Raises:** `ModelError` for an unknown provider or model, when the id is known here; for a traced one when the lane
    runs. `TypeError` for a setting that is a near miss of a common one.
    """

    model: Text
    system: Text | None
    settings: dict[str, Text]

    def __init__(self, model: str | Text, system: str | Text | None = None, **settings: Any):
        self.model = text(model) if isinstance(model, str) else model
        if not isinstance(self.model, Text):
            raise ModelError(f"LLM takes a model id such as 'sim/small', not {type(model).__name__}.")
        if _callback.all_concrete(self.model):
            for name in set(np.asarray(self.model).ravel().tolist()):
                registry.check(name)
        self.system = None if system is None else text(system) if isinstance(system, str) else system
        for name in settings:
            _check_name(name)
        self.settings = {k: _canonical(k, v) for k, v in sorted(settings.items()) if v is not None}

    def __call__(self, prompt: str | Text, key: Key | None = None) -> Text:
        """Asks the model.

        **Arguments:**

        - `prompt`: the user's message, a Text of rank 0.
        - `key`: a PRNG key, for independent samples: equal calls with equal keys, or without, are one sample. Ignored
            at temperature 0.

        **Returns:** the answer's words; derivative zero. `complete` gives tokens and cost as well.

        **Raises:** `TextError` for a prompt of another rank or type; a `ProviderError` if the call fails.
        """
        return self.complete(prompt, key).text

    def complete(self, prompt: str | Text, key: Key | None = None) -> Completion:
        """Asks the model; like calling it, with the answer's tokens, cost and log-probability."""
        prompt = _prompt(prompt)
        names = tuple(self.settings)
        words = [("model", self.model), ("prompt", prompt)]
        words += [] if self.system is None else [("system", self.system)]
        words += [(name, self.settings[name]) for name in names]
        for name, value in words:
            if value.shape:
                raise TextError(
                    f"the {name} of this LLM has shape {list(value.shape)}: it is several models in one, to be mapped: "
                    "`jax.vmap(lambda llm: llm(prompt))(llms)`."
                )
        operands = [value.digests for _, value in words]
        if key is not None:
            operands.append(_key_data(key))
        call = LLMCall(names, self.system is not None, key is not None)
        digest, *numbers = _callback.invoke(call, _OUT, *operands)
        return Completion(Text(digest), *numbers)

    def replace(self, **settings: Any) -> "LLM":
        """The same model with some of `model`, `system` and the settings changed; `None` unsets one."""
        given = {"model": self.model, "system": self.system, **self.settings, **settings}
        return LLM(**given)

    def __repr__(self) -> str:
        parts = [_shown(self.model)]
        parts += [] if self.system is None else [f"system={_shown(self.system)}"]
        parts += [f"{name}={_shown(value, bare=True)}" for name, value in self.settings.items()]
        return f"LLM({', '.join(parts)})"


_OUT = (
    jax.ShapeDtypeStruct((store.DIGEST_WORDS,), np.uint32),
    jax.ShapeDtypeStruct((), np.int32),
    jax.ShapeDtypeStruct((), np.int32),
    jax.ShapeDtypeStruct((), np.float32),
    jax.ShapeDtypeStruct((), np.float32),
)


@dataclass(frozen=True)
class LLMCall(HostCall):
    """One call of an LLM, as the callback that JAX sees; the settings' values are operands, only names are static."""

    names: tuple[str, ...]
    has_system: bool
    has_key: bool

    pure = True

    @property
    def ranks(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1,) * (2 + self.has_system + len(self.names) + self.has_key)

    def __str__(self) -> str:
        return "LLM"

    async def run(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        request = self._request(arrays)
        if request.sample is None and _draws(request.parameters):
            caller.unkeyed(request.digest())
        response = await session.ask(request)
        digest = np.frombuffer(store.put(response.text), np.uint32)
        return [
            digest,
            np.asarray(response.input_tokens, np.int32),
            np.asarray(response.output_tokens, np.int32),
            np.asarray(response.cost, np.float32),
            np.asarray(response.logprob, np.float32),
        ]

    def _request(self, arrays: Sequence[np.ndarray]) -> Request:
        key = np.ascontiguousarray(arrays[-1]).tobytes().hex() if self.has_key else None
        words = [store.get(np.ascontiguousarray(a).tobytes()) for a in (arrays[:-1] if self.has_key else arrays)]
        model, prompt, *rest = words
        provider, name = registry.split(model)
        system = [Message("system", rest.pop(0))] if self.has_system else []
        parameters = {n: _parsed(value) for n, value in zip(self.names, rest, strict=True)}
        return Request(
            provider=provider,
            model=name,
            messages=(*system, Message("user", prompt)),
            parameters=parameters,
            sample=key if _draws(parameters) else None,
        )


def _draws(parameters: dict[str, Any] | Any) -> bool:
    """Whether two calls may differ: at temperature 0 there is nothing to draw, and a key means nothing."""
    return parameters.get("temperature") != 0


def _prompt(prompt: Any) -> Text:
    if not isinstance(prompt, Text | str):
        raise TextError(f"a prompt is a string or a Text; got {type(prompt).__name__}.")
    value = text(prompt) if isinstance(prompt, str) else prompt
    if value.shape:
        raise TextError(
            f"the prompt has shape {list(value.shape)}; an LLM takes one. Ask them all with `jax.vmap(llm)(prompts)`."
        )
    return value


def _key_data(key: Any) -> Any:
    problem = key_problem(key)
    if problem:
        raise TypeError(f"the key of an LLM call is {problem}.")
    return jax.random.key_data(key) if is_key(key) else key


# -- settings --------------------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if name in _KNOWN_SETTINGS:
        return
    close = difflib.get_close_matches(name, _KNOWN_SETTINGS, n=1, cutoff=0.8)
    if close:
        raise TypeError(f"LLM got the setting {name!r}. Did you mean {close[0]!r}?")


def _canonical(name: str, value: Any) -> Text:
    """A setting as Text: JSON, except that a string that is no JSON stands for itself."""
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
    if float(value).is_integer():
        return str(int(value))
    return str(value)


def _is_json(words: str) -> bool:
    return _parsed(words) is not words


@functools.lru_cache(maxsize=4096)  # a sweep has few distinct settings
def _parsed(words: str) -> Any:
    """A setting's value: what the JSON says, or the string itself."""
    try:
        return json.loads(words)
    except ValueError:
        return words


def _shown(value: Text, bare: bool = False) -> str:
    words = repr(value)
    inner = words[len("Text(") : -1] if words.startswith("Text(") else words
    return inner.strip("'") if bare and inner.startswith("'") else inner
