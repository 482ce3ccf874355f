"""Writes networks in the compact notation; its grammar stands in `_notation.py`."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from .. import LLM, Operator, Text, errors
from ._chain import Chain
from ._ensemble import Ensemble
from ._members import Member
from ._named import Flow, Reference
from ._notation import BY_CLASS, MODEL, Construct

# The forms of an expression, by where it needs parentheses. An operand needs none anywhere; a pipe (`… | M`) needs them
# where an operand is expected, as after `@`; a program (with `;`) needs them inside any other expression.
_OPERAND, _PIPE, _PROGRAM = range(3)


class _Written(NamedTuple):
    words: str
    form: int = _OPERAND

    def within(self, form: int) -> str:
        """The words, in parentheses if at most `form` may stand at that place."""
        return self.words if self.form <= form else f"({self.words})"


def format(op: Member, /, **components: Member) -> str:
    """Writes a network of constructs and LLMs in the compact notation.

    ```python
    non.format(non.Vote(ember.LLM("sim/small", temperature=0.7), n=5))  # '5E@sim/small(temperature=0.7) | M'
    non.format(non.Vote([my_operator, other]), mine=my_operator, other=other)  # '[$mine, $other] | M'
    ```

    `non.parse` of the result, with the same components, gives an equal operator.

    **Arguments:**

    - `op`: the network.
    - `components`: operators of your own, or any parts of the network, by the name that they are written as, `$name`.

    **Returns:** the notation, one line of `str`.

    **Raises:** `NotationError` for an operator that is no construct and no component, for a setting that is an array of
    texts, as in stacked operators, and while JAX traces.
    """
    if any(map(_is_traced, jax.tree.leaves(op))):
        raise errors.NotationError("a network that JAX traces is not known yet; write it down outside.")
    return _NotationWriter(components).written(op).words


def _is_traced(leaf: Any) -> bool:
    try:
        np.asarray(leaf)
    except jax.errors.TracerArrayConversionError:
        return True
    except TypeError:  # a key, which NumPy does not take
        return False
    return False


class _NotationWriter:
    """Writes operators; it knows the components, and the names of flows that may stand."""

    def __init__(self, components: Mapping[str, Member]):
        self.components = components
        self.names: frozenset[str] = frozenset()  # of flows that stand before

    def written(self, op: Any) -> _Written:
        for name, component in self.components.items():
            if op is component or _equal(op, component):
                return _Written(f"${name}")
        match op:
            case LLM():
                return _Written(_model(op))
            case Reference():
                return self._name(op.name)
            case Flow():
                return self._program(op)
            case Text():
                return _Written(_template(_words(op, "a template")))
            case Chain(steps=steps) if len(steps) > 1:
                return self._chain(steps)
            case Ensemble(n=1, tolerant=False):
                return _Written(self._list(op.members))
        if construct := BY_CLASS.get(type(op)):
            return self._construct(op, construct)
        name = op.__name__ if isinstance(op, Operator) else type(op).__name__
        raise errors.NotationError(
            f"the compact notation has no word for {name}, which is no construct of `ember.non`; give it a name: "
            f"`non.format(op, {name.lower()}=…)` writes it as `${name.lower()}`."
        )

    def _program(self, flow: Flow) -> _Written:
        outer, parts = self.names, []
        for name, op in zip(flow.names, flow.flows, strict=True):
            parts.append(f"{name} = {self.written(op).within(_PIPE)}")
            self.names |= {name}
        parts.append(self.written(flow.result).within(_PIPE))
        self.names = outer
        return _Written("; ".join(parts), _PROGRAM)

    def _name(self, name: str) -> _Written:
        if name not in self.names:
            raise errors.NotationError(f"`{name}` stands for answers in the network that names it; write that network.")
        return _Written(name)

    def _list(self, members: Any) -> str:
        return f"[{', '.join(self.written(member).within(_PIPE) for member in members)}]"

    def _chain(self, steps: tuple[Any, ...]) -> _Written:
        first = self.written(steps[0]).within(_OPERAND if isinstance(steps[0], Chain) else _PIPE)
        rest = [self.written(step).within(_OPERAND) for step in steps[1:]]
        return _Written(" | ".join([first, *rest]), _PIPE)

    def _construct(self, op: Any, construct: Construct) -> _Written:
        given = {name: getattr(op, name) for name in (construct.before, construct.after) if name}
        count = ""
        if construct.count in {field.name for field in dataclasses.fields(op)}:
            count = given[construct.count] = getattr(op, construct.count)
        found = {name: getattr(op, name) for name in construct.settings}
        settings = []
        # Settings that are arrays or Texts are compared last, since their defaults may depend on the other settings
        # (the default prompt of a judge depends on `synthesise`).
        for name in sorted(found, key=lambda name: isinstance(found[name], Text | jax.Array)):
            if not _equal(found[name], getattr(construct.make(given), name)):
                given[name] = found[name]
                settings.append(f"{name}={_value(found[name], name)}")
        words = f"{count}{construct.word}{_in_parentheses(settings)}"
        if construct.after and given[construct.after] is not None:
            words += f"@{self._given(construct, given, construct.after, _OPERAND)}"
        if not construct.before:
            return _Written(words)
        return _Written(f"{self._given(construct, given, construct.before, _PIPE)} | {words}", _PIPE)

    def _given(self, construct: Construct, given: Mapping[str, Any], name: str, form: int) -> str:
        """An argument as it is written: the shortest form from which the constructor makes the value that is there."""
        value = given[name]
        shortest = next(f for f in _forms(value) if f is value or _makes(construct, given, name, f))
        if isinstance(shortest, tuple):
            return self._list(shortest)
        written = self.written(shortest)
        # Without parentheses brackets would be read as a list of members, and not as the one `Ensemble` that it is.
        if written.form == _OPERAND and written.words.startswith("["):
            return f"({written.words})"
        return written.within(form)


def _forms(value: Any) -> Iterator[Any]:
    """The arguments that a constructor may have been given so that it holds `value`, the shortest first."""
    construct = BY_CLASS.get(type(value))
    if construct and not construct.before and construct.after:
        yield from _forms(getattr(value, construct.after))
    if isinstance(value, tuple) and len(value) == 1:
        yield value[0]
    yield value


def _makes(construct: Construct, given: Mapping[str, Any], name: str, argument: Any) -> bool:
    """Whether the constructor, given `argument` instead, makes an operator that holds an equal value."""
    try:
        made = construct.make({**given, name: argument})
    except (TypeError, ValueError):
        return False
    return _equal(getattr(made, name), given[name])


def _equal(one: Any, other: Any) -> bool:
    return bool(eqx.tree_equal(one, other))


# -- values ----------------------------------------------------------------------------------------------------------


def _model(llm: LLM) -> str:
    name = _words(llm.model, "model")
    settings = {} if llm.system is None else {"system": _json(_words(llm.system, "system"))}
    settings |= {key: _setting(_words(value, key)) for key, value in llm.settings.items()}
    if not MODEL.fullmatch(name):
        name, settings = "LLM", {"model": _json(name), **settings}
    written = [f"{key}={value}" for key, value in settings.items()]
    return name + _in_parentheses(written)


def _template(words: str) -> str:
    if "{question}" not in words and "{answer}" not in words:
        raise errors.NotationError(
            f"the step {words!r:.60} of a Chain has no {{question}} and no {{answer}} to be read."
        )
    return _json(words)


def _in_parentheses(settings: list[str]) -> str:
    return f"({', '.join(settings)})" if settings else ""


def _setting(words: str) -> str:
    """A setting of an LLM as it is written. An LLM holds a setting as JSON, or as a string that is no JSON; such a
    string is written in quotes."""
    try:
        json.loads(words)
    except ValueError:
        return _json(words)
    return words


def _words(text: Text, name: str) -> str:
    if text.shape:
        raise errors.NotationError(
            f"{name} is {text.size} texts, so these are several networks; write one, as of "
            "`jax.tree.map(lambda leaf: leaf[0], op)`."
        )
    if (words := text.tolist()) is None:
        raise errors.NotationError(f"{name} is failed text, which has no words.") from text.causes()
    return words


def _value(value: Any, name: str) -> str:
    if isinstance(value, Text):
        return _json(_words(value, name))
    if isinstance(value, jax.Array | np.ndarray):
        value = _numbers(value)
    try:
        return _json(value)
    except TypeError:
        raise errors.NotationError(f"the setting {name} is {value!r:.60}, which is not JSON.") from None


def _numbers(array: Any) -> Any:
    """An array as nested lists, each number as the shortest decimal that reads back as it in its own precision."""
    if array.ndim:
        return [_numbers(row) for row in np.asarray(array)]
    return float(str(array)) if np.issubdtype(array.dtype, np.floating) else array.item()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
