"""Tools: typed Python functions that a model may want called.

Design note. What a model wants called is data, a text for each call, and an operator decides what is done with it: the
functions run as host calls, so the calls of one turn run at once, lanes do not wait for each other, and a loop of model
and tools is an ordinary `while_loop`. A tool that fails says so to the model, which can mend its arguments, and does
not fail the lane.
"""

import asyncio
import dataclasses
import functools
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._function import bound
from .._runtime import session as sessions
from .._text import store, turns
from .._text.elementwise import TEXT, TEXTS, Kind, elementwise
from .._text.maybe import Many
from .._text.operations import where
from .._text.text import Text
from .._types import Key
from ..errors import AnnotationError
from ..providers.base import Request, Response
from .asking import ModelCall, Note, Operands
from .conversation import Conversation, conversation_of

# Seconds after which a tool is given up.
_TIMEOUT = 300.0
# What services take as a tool's name.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclasses.dataclass(frozen=True, eq=False)
class Tool:
    """A Python function that a model may want called; made by `ember.tool`. Calling it calls the function.

    **Attributes:**

    - `name`, `description`: what the model reads of it.
    - `schema`: the JSON schema of its arguments, as JSON.
    - `pure`, `cache`, `timeout`: as they were given.
    """

    function: Callable[..., Any]
    name: str
    description: str
    schema: str
    pure: bool
    cache: str | None
    timeout: float
    arguments: Any = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        return f"Tool({self.name})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    async def answer(self, arguments: str) -> str:
        """What the model is told of a call with arguments in JSON: the result in words, or what went wrong."""
        try:
            given = _converted(arguments, self.arguments)
        except ValueError as error:
            return f"error: {self.name} does not take {arguments:.200}: {error}"
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                if _is_async(self.function):
                    result = await self.function(**given)
                else:
                    result = await sessions.loop().threads.run(functools.partial(self.function, **given))
        except TimeoutError as error:
            late = f"{self.name} took longer than {self.timeout:g} s"
            return f"error: {late if limit.expired() else error or 'TimeoutError'}"
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"
        return _in_words(result)


def tool(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    pure: bool = False,
    cache: str | None = None,
    timeout: float = _TIMEOUT,
) -> Any:
    """Makes a tool of a typed Python function, for `llm.tools` and `ember.Agent`.

    ```python
    @ember.tool
    def weather(city: str, unit: Literal["C", "F"] = "C") -> str:
        "The weather in a city now."
        ...
    ```

    **Arguments:**

    - `function`: a `def`, which runs in a thread, an `async def`, or an operator. Its annotations are the schema of its
        arguments: strings, numbers, booleans, lists, dictionaries, `Literal`, `Enum`, dataclasses, pydantic models,
        any of them or `None`; Text counts as a string. What it returns is told to the model: a string as it is,
        anything else as JSON. What it raises is told to the model too.
    - `name`, `description`: what the model reads; by default the function's name and docstring. Lines of the docstring
        such as ``- `city`: where`` or `city: where` describe an argument.
    - `pure`: whether equal arguments give equal results, so that equal calls of a session are made once. Other tools
        are called each time, also when a program is run again and its answers come from the journal.
    - `cache`: a name with a version, such as `"weather:v1"`, under which the journal keeps the results of a pure tool.
    - `timeout`: seconds after which a call is given up, and the model told.

    **Returns:** a `Tool`; without a function, a decorator that makes one.

    **Raises:** `AnnotationError` for an argument without an annotation, or of a type that has no JSON; `ValueError` for
    a name that services do not take, a `timeout` that is not positive, and a `cache` without `pure=True`.
    """
    if function is None:
        return functools.partial(tool, name=name, description=description, pure=pure, cache=cache, timeout=timeout)
    if not callable(function):
        raise TypeError(f"ember.tool takes a function, not {type(function).__name__}.")
    called = name or getattr(function, "__name__", type(function).__name__)
    if not _NAME.fullmatch(called):
        raise ValueError(
            f"ember.tool: {called!r} is no name of a tool: give name= of up to 64 letters, digits, _ and -."
        )
    if not timeout > 0:
        raise ValueError(f"ember.tool(timeout={timeout!r}): give seconds, more than 0.")
    if cache is not None and not pure:
        raise ValueError("ember.tool: cache= keeps results for later, which takes pure=True.")
    said = inspect.getdoc(function) or ""
    arguments, schema = _arguments(function, called, said)
    return Tool(function, called, said if description is None else description, schema, pure, cache, timeout, arguments)


def as_tools(tools: Any) -> tuple[Tool, ...]:
    """A list of tools, functions and operators as tools. Raises `ValueError` for two of one name."""
    made = tuple(one if isinstance(one, Tool) else tool(one) for one in ([tools] if callable(tools) else tools))
    names = [one.name for one in made]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"two tools are called {twice.pop()!r}; give one another name: `ember.tool(function, name=…)`."
        )
    return made


class ToolReply(eqx.Module):
    """What a model answered that has tools.

    **Attributes:**

    - `text`: its words; mostly empty if it wants tools called.
    - `calls`: what it wants called, an `ember.Many` of Texts: JSON with `name` and `arguments`, of
        which the latter are JSON in a string.
    - `input_tokens`, `output_tokens`, `cost`, `finish`: as in a `Completion`.
    """

    text: Text
    calls: Many[Text]
    input_tokens: jax.Array
    output_tokens: jax.Array
    cost: jax.Array
    finish: jax.Array
    turn: Text

    def results(self, tools: Any) -> Text:
        """Calls the tools, all at once, and gives their results in words: a Text of as many as there may be calls.

        **Arguments:**

        - `tools`: those that the model was given.
        """
        return called(as_tools(tools), self.calls.values)

    def added_to(self, chat: Conversation, results: Text) -> Conversation:
        """The conversation in which this was said, and in which the results of its calls were given back."""
        operands: list[tuple[Any, Kind]] = [
            (chat.turns.digests, TEXT),
            (self.turn.digests, TEXT),
            (results.digests, TEXTS),
        ]
        return conversation_of(Text(elementwise(turns.answered, (), operands, TEXT)))


def called(tools: tuple[Tool, ...], calls: Text) -> Text:
    """Calls tools, as `Text[n]` says; an empty text calls none, and its result is empty."""
    groups: dict[tuple[bool, str | None], list[Tool]] = {}
    for one in tools:
        groups.setdefault((one.pure, one.cache), []).append(one)
    known = tuple(one.name for one in tools)
    results: Text | None = None
    for (pure, cache), group in groups.items():
        found = jax.vmap(_host(tuple(group), known, pure, cache))(calls)
        results = found if results is None else where(found == "", results, found)
    assert results is not None
    return results


# Kept, so that a program that is traced again makes the same calls.
@functools.lru_cache(maxsize=256)
def _host(tools: tuple[Tool, ...], known: tuple[str, ...], pure: bool, cache: str | None) -> Callable[[Text], Text]:
    """Calls those of some tools that a text names; other calls have empty results."""
    by_name = {one.name: one for one in tools}
    # One of the groups of tools tells of names that are in none.
    tells = tools[0].name == known[0]

    async def run(call: str) -> str:
        if not call:
            return ""
        wanted = json.loads(call)
        name = wanted["name"]
        if name in by_name:
            return await by_name[name].answer(wanted["arguments"])
        return f"error: there is no tool {name!r}; there are {', '.join(known)}." if tells and name not in known else ""

    run.__name__ = run.__qualname__ = tools[0].name if len(tools) == 1 else "tools"  # as plans and errors show it
    return bound(run, Text, pure, cache, has_turns=False)  # a tool may run operators


@dataclasses.dataclass(frozen=True)
class Described:
    """What a model is told of a tool; compared by value, so that equal tools make equal calls."""

    name: str
    description: str
    schema: str

    def parameter(self) -> dict[str, Any]:
        """As the request has it, in the form of chat completions."""
        function = {"name": self.name, "description": self.description, "parameters": json.loads(self.schema)}
        return {"type": "function", "function": function}


@dataclasses.dataclass(frozen=True)
class ToolsCall(ModelCall):
    """One call for an answer, or for up to `most` calls of tools."""

    operands: Operands
    tools: tuple[Described, ...]
    most: int

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        words = jax.ShapeDtypeStruct((store.DIGEST_WORDS,), np.uint32)
        calls = jax.ShapeDtypeStruct((self.most, store.DIGEST_WORDS), np.uint32)
        numbers = (np.int32, np.int32, np.int32, np.float32, np.int32)
        return words, words, calls, *(jax.ShapeDtypeStruct((), dtype) for dtype in numbers)

    def __str__(self) -> str:
        return "LLM.tools"

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        parameters = {**request.parameters, "tools": [one.parameter() for one in self.tools]}
        return dataclasses.replace(request, parameters=parameters)

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        wanted = [part for part in response.tool_calls if part.kind == "tool_call"][: self.most]
        thoughts = [part for part in response.tool_calls if part.kind != "tool_call"]
        said = (turns.Part("text", response.text),) if response.text or not wanted else ()
        turn = turns.written([turns.Turn("assistant", (*thoughts, *said, *wanted))])
        # Without the ids, which differ each time that a model wants the same.
        calls = [json.dumps({"name": c.name, "arguments": c.value}) for c in wanted]
        listed = np.array([store.put_one(words) for words in calls + [""] * (self.most - len(calls))])
        counts = (len(calls), response.input_tokens, response.output_tokens)
        return [
            store.put_one(response.text),
            store.put_one(turn),
            listed,
            *np.array(counts, np.int32),
            np.float32(response.cost),
            np.int32(response.finish),
        ]  # pyright: ignore[reportReturnType]  # NumPy's scalars stand for arrays of rank 0


def reply_of(values: Sequence[Any]) -> ToolReply:
    """The results of a `ToolsCall`."""
    text, turn, calls, length, read, written, cost, finish = values
    return ToolReply(Text(text), Many(Text(calls), length), read, written, cost, finish, Text(turn))


# -- functions as tools ----------------------------------------------------------------------------------------------


def _arguments(function: Any, name: str, said: str) -> tuple[Any, str]:
    """The arguments of a function as a msgspec class, and their JSON schema."""
    import msgspec  # imported when the first tool is made, as `import ember_jax` is to load little

    target: Any = function if inspect.isroutine(function) else type(function).__call__
    hints = typing.get_type_hints(target, include_extras=True)
    forward = getattr(function, "forward", None)
    if forward is not None:  # an operator, with types of its own
        target = forward
        hints = typing.get_type_hints(getattr(target, "__func__", target), include_extras=True)
    fields: list[Any] = []
    checkers: dict[str, Any] = {}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.name == "self" and target is not function and parameter.annotation is parameter.empty:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise AnnotationError(f"the tool {name} takes {parameter}, which has no name that a model could give.")
        if parameter.name not in hints:
            raise AnnotationError(f"the tool {name}: annotate its argument, as in `{parameter.name}: str`.")
        kind = hints[parameter.name]
        if kind is Key or kind == Key | None:
            continue
        kind = str if kind is Text else kind
        default = () if parameter.default is parameter.empty else (parameter.default,)
        if (checker := _checker(kind)) is not None:
            checkers[parameter.name], kind = checker, Any
        fields.append((parameter.name, kind, *default))
    try:
        made = msgspec.defstruct(
            name.replace("-", "_"),
            fields,
            namespace={"checkers": checkers},
            kw_only=True,
            forbid_unknown_fields=True,
        )
        (root,), others = msgspec.json.schema_components([made], schema_hook=_schema_of)
    except (TypeError, ValueError) as error:
        raise AnnotationError(f"the tool {name} has arguments that a model cannot give as JSON: {error}") from None
    schema = dict(others.pop(root["$ref"].rpartition("/")[2]))
    schema.pop("title", None)
    for field, checker in checkers.items():
        schema["properties"][field] = checker.json_schema(ref_template="#/$defs/{model}")
    described = _descriptions(said, [field[0] for field in fields])
    for field, words in described.items():
        schema["properties"][field] = {**schema["properties"][field], "description": words}
    inner = {**others, **_hoisted(schema)}
    return made, json.dumps({**schema, "$defs": inner} if inner else schema)


def _checker(kind: Any) -> Any:
    """What pydantic reads an argument with whose annotation has constraints or validators of its; `None` for none."""
    pydantic: Any = sys.modules.get("pydantic")  # no dependency: who writes such an annotation has imported it
    beside = {type(one).__module__.partition(".")[0] for one in getattr(kind, "__metadata__", ())}
    return (
        None if pydantic is None or beside.isdisjoint({"pydantic", "annotated_types"}) else pydantic.TypeAdapter(kind)
    )


def _schema_of(kind: Any) -> dict[str, Any]:
    make = getattr(kind, "model_json_schema", None)  # pydantic's
    if make is None:
        raise TypeError(f"{getattr(kind, '__name__', kind)} has no JSON schema")
    return make(ref_template="#/$defs/{model}")


def _hoisted(schema: dict[str, Any]) -> dict[str, Any]:
    """Takes the definitions out of inner schemas, whose references are to the root."""
    found: dict[str, Any] = {}
    for inner in schema.get("properties", {}).values():
        found |= inner.pop("$defs", {}) if isinstance(inner, dict) else {}
    return found


def _descriptions(said: str, names: Sequence[str]) -> dict[str, str]:
    """What a docstring says of arguments, in lines that begin with their names."""
    found: dict[str, str] = {}
    for line in said.splitlines():
        match = re.match(r"\s*(?:[-*]\s+)?[`*]{0,2}(\w+)[`*]{0,2}\s*(?:\([^)]*\))?\s*:\s+(.+)", line)
        if match and match[1] in names:
            found.setdefault(match[1], match[2].strip())
    return found


def _converted(arguments: str, made: Any) -> dict[str, Any]:
    """The arguments of a call by name. Raises `ValueError` for what does not fit."""
    import msgspec

    try:
        tree = json.loads(arguments or "{}")
    except ValueError:
        raise ValueError("that is no JSON") from None
    if made is None:  # whoever offers the tool checks them
        if not isinstance(tree, dict):
            raise ValueError("that is no JSON object")
        return tree
    value = msgspec.convert(tree, made, strict=False, dec_hook=_decoded)
    found = {name: getattr(value, name) for name in made.__struct_fields__}
    for name, checker in made.checkers.items():
        if name in tree:
            try:
                found[name] = checker.validate_python(found[name])
            except ValueError as error:  # pydantic's is one
                raise ValueError(f"{error} - at `$.{name}`") from None
    return found


def _decoded(kind: Any, value: Any) -> Any:
    return kind.model_validate(value)


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _in_words(result: Any) -> str:
    import msgspec

    if isinstance(result, str | Text):
        return str(result)
    if isinstance(result, jax.Array | np.ndarray | np.generic):
        result = np.asarray(result).tolist()
    hook = lambda value: value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)
    try:
        return msgspec.json.encode(result, enc_hook=hook).decode()
    except (TypeError, ValueError):
        return str(result)


def described(tools: Sequence[Tool]) -> tuple[Described, ...]:
    """What a model is told of tools."""
    return tuple(Described(one.name, one.description, one.schema) for one in tools)
