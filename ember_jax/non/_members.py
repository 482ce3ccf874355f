"""How a construct calls its members, and what each of them is called with.

Design note. Keys are folded from what they are for, never split by position among a number of things: sample `i` of a
member has the same key however many samples there are, so that more samples ask for, and pay for, only the new ones.
Candidates get the construct's own key, what judges them another one that is folded from its role; two constructs over
equal members and one key therefore share the candidates.

What a constructor can know of its arguments it checks, by the construct's and the argument's name: that a member can be
called, and with what it will be called with. What only a call can know, such as the shape of an answer, is told by the
place of the member in its construct, as in `Cascade.stages[1]`.
"""

import inspect
import operator
import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import Key, Text, text

# An operator, an LLM, or any other callable pytree, of `(question)` or `(question, key)`, that returns Text.
Member = Callable[..., Any]
Members = Member | list[Member] | tuple[Member, ...]


def takes_key(member: Member) -> bool:
    """Whether a member has an argument `key` that is not bound to one already; the rule of `ember.evaluate` too.

    **Raises:** `TypeError` for a member that Python does not know the arguments of.
    """
    try:
        parameter = inspect.signature(member).parameters.get("key")
    except ValueError:
        raise TypeError(
            f"{member!r:.60} does not tell its arguments; call it in a function that does, as in `lambda x: f(x)`."
        ) from None
    return parameter is not None and (parameter.default is parameter.empty or parameter.default is None)


def ask(member: Member, *args: Any, key: Key) -> Any:
    """Calls a member, with the key if it takes one."""
    return member(*args, key=key) if takes_key(member) else member(*args)


def answers_of(member: Member, question: Text, key: Key, place: str) -> Text:
    """What a member answers; words that it gives as a `str` are a Text.

    **Raises:** `TypeError` for a member that gives anything else; it names the member's place in its construct.
    """
    answer = ask(member, question, key=key)
    if isinstance(answer, str):
        return text(answer)
    if not isinstance(answer, Text):
        raise TypeError(
            f"{place} answers with Text, and {shown(member)} returned {shown(answer)}. For a number, "
            "`ember.format('{x}', x=number)`."
        )
    return answer


def answer_of(member: Member, question: Text, key: Key, place: str) -> Text:
    """The one answer of a member.

    **Raises:** `TypeError` for a member that gives several, or anything else.
    """
    answer = answers_of(member, question, key, place)
    if answer.shape:
        raise TypeError(
            f"{place} gives one answer, and {shown(member)} returned Text{list(answer.shape)}. What makes one of "
            "several is `non.Vote([…])`, `non.Judge([…], judge)`, …"
        )
    return answer


def number_of(value: Any, place: str, instead: str = "") -> Float[Array, ""]:
    """What a scorer or a critic gives to an answer, as a float.

    **Raises:** `TypeError` for what is no single number; `instead` says what else may be given.
    """
    if not eqx.is_array_like(value) or jnp.shape(value):
        raise TypeError(f"{place} gives one number for an answer, of shape [], and returned {shown(value)}{instead}.")
    return jnp.asarray(value, float)


def whole(count: Any, construct: str, argument: str) -> int:
    """A number of things: an integer of any kind, NumPy's too.

    **Raises:** `ValueError` for what is none, or below 1.
    """
    try:
        found = operator.index(count)
    except TypeError:
        found = 0
    if found < 1 or isinstance(count, bool):  # meant for another argument
        raise ValueError(f"{construct}({argument}={shown(count)}): give a whole number, at least 1.")
    return found


def numbers(values: Any, construct: str, argument: str) -> Float[Array, "..."]:
    """A setting of numbers, as an array.

    **Raises:** `TypeError` for what is none.
    """
    try:
        return jnp.asarray(values, float)
    except (TypeError, ValueError):
        raise TypeError(f"{construct}({argument}={shown(values)}): give numbers.") from None


def flag(value: Any, construct: str, argument: str) -> bool:
    """A setting that is static: one of an array would make another program for each value.

    **Raises:** `TypeError` for anything but a boolean.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{construct}({argument}={shown(value)}): give True or False.")
    return value


def shown(value: Any) -> str:
    """A value in an error: the begin of its `repr`, on one line."""
    words = " ".join(repr(value).split())
    return words if len(words) <= 60 else f"{words[:59]}…"


def given(key: Key | None) -> Key:
    """The key of a construct: without one its samples are the same for ever."""
    return jax.random.key(0) if key is None else key


def for_role(key: Key | None, role: str) -> Key:
    """The key of what a construct has one of, such as its judge."""
    # One word of a hash: the four of a Text's digest would take twice as long to compile, in every construct.
    return jax.random.fold_in(given(key), zlib.crc32(role.encode()))


def for_each(key: Key | None, count: int) -> Key:
    """Keys of rank 1, of things that are numbered."""
    return jax.vmap(jax.random.fold_in, (None, 0))(given(key), jnp.arange(count))


def as_members(members: Members, construct: str, argument: str) -> tuple[Member, ...]:
    """One member or a sequence of them, checked.

    **Raises:** `ValueError` if there is none; else as `as_member`.
    """
    if not isinstance(members, list | tuple):
        return (as_member(members, construct, argument),)
    if not members:
        raise ValueError(f"{construct} has no {argument}; give it an operator, an LLM or a list of them.")
    return tuple(as_member(member, construct, f"{argument}[{i}]") for i, member in enumerate(members))


def as_member(member: Member, construct: str, argument: str, *takes: str) -> Member:
    """A member that can be called with such arguments, `question` where none are given, and with a key if it takes one.

    **Raises:** `TypeError` for what cannot; it names the construct, the argument and the way out.
    """
    takes = takes or ("question",)
    given = f"{construct}({argument}={shown(member)})"
    called = f"({', '.join(takes)}) or ({', '.join(takes)}, key=…)"
    if isinstance(member, str):
        raise TypeError(
            f"{given} is a string. For a model id, `ember.LLM({member!r:.60})`; for the compact notation, `non.parse`."
        )
    if isinstance(member, type):
        raise TypeError(f"{given} is a class; make an operator of it, `{member.__name__}(…)`.")
    if not callable(member):
        raise TypeError(f"{given}: give an operator, an LLM or another function; it is called with {called}.")
    try:
        signature = inspect.signature(member)
    except ValueError as error:
        raise TypeError(f"{given}: {error}; put a function of {called} around it.") from None
    try:
        signature.bind(*takes, **({"key": None} if "key" in signature.parameters else {}))
    except TypeError as error:
        raise TypeError(
            f"{given} takes ({', '.join(signature.parameters)}), and is called with {called}: {error}."
        ) from None
    return member
