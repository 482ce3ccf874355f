"""How constructs check their arguments, call their members, and give them keys.

Design note. A key is folded from what it is for; keys are never split among a number of things. So sample `i` of a
member has the same key however many samples there are, and with more samples only the new ones are asked for and paid.
Candidates get the construct's own key, and a judge of them a key that is folded from its role. Therefore two constructs
over equal members share their candidates if they have one key.

A constructor checks what can be known of its arguments, such as whether a member can be called with what it will be
called with; its errors name the construct and the argument. What only a call can know, such as the shape of an answer,
is checked then; such an error names the place of the member, as in `Cascade.stages[1]`.
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
    """Whether a member takes a key: it has an argument `key` without a default, or with the default `None`. Any other
    default is a key that was bound already. `ember.evaluate` has the same rule.

    **Raises:** `TypeError` for a member whose arguments Python does not know, as those of some built-in functions.
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
    """What a member answers, of any shape; a `str` is turned into a Text.

    **Raises:** `TypeError` for a member that returns anything else; it names the member's place in its construct.
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
    """The number that a scorer or a critic gave to an answer, as a float of rank 0.

    **Raises:** `TypeError` unless it is one number; `instead` is added to the message and says what else may be given.
    """
    if not eqx.is_array_like(value) or jnp.shape(value):
        raise TypeError(f"{place} gives one number for an answer, of shape [], and returned {shown(value)}{instead}.")
    return jnp.asarray(value, float)


def whole(count: Any, construct: str, argument: str) -> int:
    """A count, which may be an integer of Python or of NumPy, as an `int`.

    **Raises:** `ValueError` if it is no integer, below 1, or traced.
    """
    try:
        found = operator.index(count)
    except jax.errors.TracerIntegerConversionError:
        raise ValueError(
            f"{construct}({argument}=…) is traced, and a count is part of a program's shape, which must be known while "
            "JAX traces. Make the construct for the largest count and mask what is too much, as in `non.Vote(llm, 5, "
            "weights=jnp.arange(5) < n)`, which asks all 5; or, to pay for no more than n, choose one: "
            "`jax.lax.switch(n - 1, [lambda i=i: non.Vote(llm, i)(question, key) for i in range(1, 6)])`."
        ) from None
    except TypeError:
        found = 0
    if found < 1 or isinstance(count, bool):  # a boolean was most likely meant for another argument
        raise ValueError(f"{construct}({argument}={shown(count)}): give a whole number, at least 1.")
    return found


def numbers(values: Any, construct: str, argument: str) -> Float[Array, "..."]:
    """A setting that is a number or several, as an array of floats.

    **Raises:** `TypeError` if it cannot be made one.
    """
    try:
        return jnp.asarray(values, float)
    except (TypeError, ValueError):
        raise TypeError(f"{construct}({argument}={shown(values)}): give numbers.") from None


def flag(value: Any, construct: str, argument: str) -> bool:
    """A static setting. An array is refused, since it would make another program for each value.

    **Raises:** `TypeError` for anything but a boolean.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{construct}({argument}={shown(value)}): give True or False.")
    return value


def shown(value: Any) -> str:
    """A value as an error message shows it: the beginning of its `repr`, on one line."""
    words = " ".join(repr(value).split())
    return words if len(words) <= 60 else f"{words[:59]}…"


def given(key: Key | None) -> Key:
    """The key of a construct. Without one it is a fixed key, so that the samples are the same in each call."""
    return jax.random.key(0) if key is None else key


def for_role(key: Key | None, role: str) -> Key:
    """The key of a member that a construct has one of, such as its judge."""
    # One 32-bit word of a hash is folded in. `ember.fold_in` of the role would fold in the four words of a digest,
    # which takes twice as long to compile, in every construct.
    return jax.random.fold_in(given(key), zlib.crc32(role.encode()))


def for_each(key: Key | None, count: int) -> Key:
    """Keys of rank 1, for members or samples that are numbered; key `i` does not depend on `count`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(given(key), jnp.arange(count))


def as_members(members: Members, construct: str, argument: str) -> tuple[Member, ...]:
    """One member or a sequence of them, checked, as a tuple.

    **Raises:** `ValueError` for an empty sequence; and what `as_member` raises.
    """
    if not isinstance(members, list | tuple):
        return (as_member(members, construct, argument),)
    if not members:
        raise ValueError(f"{construct} has no {argument}; give it an operator, an LLM or a list of them.")
    return tuple(as_member(member, construct, f"{argument}[{i}]") for i, member in enumerate(members))


def as_member(member: Member, construct: str, argument: str, *takes: str) -> Member:
    """A member, checked: it can be called with the arguments `takes` (by default `question`), and with a key if it has
    an argument `key`.

    **Raises:** `TypeError` if it cannot; the message names the construct, the argument and the way out.
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
