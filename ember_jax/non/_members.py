"""How a construct calls its members, and what each of them is called with.

Design note. Keys are folded from what they are for, never split by position among a number of things: sample `i` of a
member has the same key however many samples there are, so that more samples ask for, and pay for, only the new ones.
Candidates get the construct's own key, what judges them another one that is folded from its role; two constructs over
equal members and one key therefore share the candidates.
"""

import inspect
import operator
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import Key, Text, text

# An operator, an LLM, or any other callable pytree, of `(question)` or `(question, key)`, that returns Text.
Member = Callable[..., Any]


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


def answer_of(member: Member, question: Text, key: Key) -> Text:
    """What a member answers; words that it gives as a `str` are a Text.

    **Raises:** `TypeError` for a member that gives anything else.
    """
    answer = ask(member, question, key=key)
    if isinstance(answer, str):
        return text(answer)
    if not isinstance(answer, Text):
        raise TypeError(
            f"a member answers with Text, and {member!r:.60} returned {answer!r:.60}. For a number, "
            "`ember.format('{x}', x=number)`."
        )
    return answer


def whole(count: Any, construct: str, argument: str) -> int:
    """A number of things: an integer of any kind, NumPy's too.

    **Raises:** `ValueError` for what is none, or below 1.
    """
    try:
        found = operator.index(count)
    except TypeError:
        found = 0
    if found < 1:
        raise ValueError(f"{construct}({argument}={count!r}): give a whole number, at least 1.")
    return found


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


def as_tuple(members: Member | list[Member] | tuple[Member, ...], construct: str) -> tuple[Member, ...]:
    """One member or a sequence of them, checked.

    **Raises:** `ValueError` if there is none; `TypeError` for one that cannot be called.
    """
    found: tuple[Any, ...] = tuple(members) if isinstance(members, list | tuple) else (members,)
    if not found:
        raise ValueError(f"{construct} has no members; give it an operator, an LLM or a list of them.")
    for member in found:
        if not callable(member):
            raise TypeError(
                f"{construct} takes operators and LLMs as members, not {member!r:.60}; for a model id, "
                "`ember.LLM('sim/small')`."
            )
    return found
