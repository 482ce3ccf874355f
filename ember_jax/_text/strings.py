"""What Python's `str` and `re` do with a string, done with each string of an array: the methods of `Text`.

Design note. Words that are given along (a part to look for, a separator) are operands: a string or a Text, which
broadcasts against the text and may be traced. A pattern and the number of pieces are static, since the one is compiled
and the other is part of a shape.
"""

import abc
import functools
import operator
import re
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32

from ..errors import TextError
from .elementwise import NUMBER, TEXT, Kind, elementwise
from .maybe import Many, Maybe

_BOOLEAN = jax.ShapeDtypeStruct((), np.bool_)
_COUNT = jax.ShapeDtypeStruct((), np.int32)


class Strings(abc.ABC):
    """The methods that a `Text` has in common with Python's `str`, for each of its strings.

    All broadcast, run in every transformation, have no derivative, and count in characters (Unicode code points), as
    Python does. What depends on failed text is failed text, False, or the least integer.
    """

    __slots__ = ("digests",)

    def __init__(self, digests: Any):
        # Not validated: JAX and Equinox rebuild pytrees with tracers, `None`, booleans and tuples as leaves.
        self.digests = digests

    # -- questions -------------------------------------------------------------------------------------------------

    def contains(self, words: Self | str) -> Bool[jax.Array, "*shape"]:
        """Whether `words` stand in each string, as Python's `words in string`.

        **Arguments:**

        - `words`: a string, or a Text that broadcasts against this one.

        **Returns:** booleans of the broadcast shape; False for text that failed.

        **Raises:** `TextError` if `words` is neither.
        """
        return self._asked(operator.contains, words, "contains")

    def startswith(self, words: Self | str) -> Bool[jax.Array, "*shape"]:
        """Whether each string begins with `words`. Takes, returns and raises what `contains` does."""
        return self._asked(str.startswith, words, "startswith")

    def endswith(self, words: Self | str) -> Bool[jax.Array, "*shape"]:
        """Whether each string ends with `words`. Takes, returns and raises what `contains` does."""
        return self._asked(str.endswith, words, "endswith")

    def matches(self, pattern: str | re.Pattern[str]) -> Bool[jax.Array, "*shape"]:
        r"""Whether a regular expression matches somewhere in each string, as `re.search` does.

        **Arguments:**

        - `pattern`: a Python string or `re.compile(pattern, flags)`, compiled once. `\A…\Z` matches whole strings.

        **Returns:** booleans of this Text's shape; False for text that failed.

        **Raises:** `TextError`, a `ValueError`, if `pattern` is a Text, is of another type, or cannot be compiled.
        """
        return elementwise(_matches, (_compiled(pattern, "matches"),), [self._mine()], _BOOLEAN)

    def length(self) -> Int32[jax.Array, "*shape"]:
        """The number of characters of each string.

        **Returns:** int32 of this Text's shape; the least integer for text that failed.
        """
        return elementwise(len, (), [self._mine()], _COUNT)

    # -- other words -----------------------------------------------------------------------------------------------

    def lower(self) -> Self:
        """Each string in lower case, of this Text's shape. (`ember.normalize(t, "case")` is meant for comparing.)"""
        return type(self)(elementwise(str.lower, (), [self._mine()], TEXT))

    def upper(self) -> Self:
        """Each string in upper case, of this Text's shape."""
        return type(self)(elementwise(str.upper, (), [self._mine()], TEXT))

    def strip(self, characters: Self | str | None = None) -> Self:
        """Each string without white space at its ends, or without the given characters.

        **Arguments:**

        - `characters`: `None`, or a string or a Text, each of whose characters is dropped; broadcasts.

        **Returns:** a Text of the broadcast shape.

        **Raises:** `TextError` if `characters` is none of these.
        """
        given = [] if characters is None else [self._words(characters, "characters", "strip")]
        return type(self)(elementwise(str.strip, (), [self._mine(), *given], TEXT))

    def replace(self, old: Self | str, new: Self | str) -> Self:
        """Each string with every `old` replaced by `new`.

        **Arguments:**

        - `old`, `new`: strings, or Texts that broadcast against this one.

        **Returns:** a Text of the broadcast shape.

        **Raises:** `TextError` if one of them is neither.
        """
        given = [self._words(old, "old", "replace"), self._words(new, "new", "replace")]
        return type(self)(elementwise(str.replace, (), [self._mine(), *given], TEXT))

    def slice(self, start: Any = 0, stop: Any = None) -> Self:
        """The characters `start` to `stop` of each string, as Python's `string[start:stop]`.

        **Arguments:**

        - `start`, `stop`: integers, or arrays of them that broadcast and may be traced. Negative ones count from the
            end; a `stop` of `None` is the end.

        **Returns:** a Text of the broadcast shape.

        **Raises:** `TextError` if one of them is no integer.
        """
        given = [integers(0 if start is None else start, "start", "Text.slice"), _END]
        if stop is not None:
            given[1] = integers(stop, "stop", "Text.slice")
        return type(self)(elementwise(cut, (), [self._mine(), *((array, NUMBER) for array in given)], TEXT))

    # -- parts -----------------------------------------------------------------------------------------------------

    def split(self, separator: Self | str | None = None, *, at_most: int) -> Many[Self]:
        """The pieces of each string between separators, as Python's `string.split(separator, at_most - 1)`.

        So nothing is lost: of a string of more pieces the last one is the rest.

        **Arguments:**

        - `separator`: a string, or a Text that broadcasts against this one; `None` splits at runs of white space.
        - `at_most`: the number of places for pieces, a Python int of 1 or more.

        **Returns:** an `ember.Many` of the broadcast shape: `values`, a Text `[*shape, at_most]` with empty words
        behind the last piece, `length` and `mask`.

        **Raises:** `TextError` for another `at_most`, and for a separator that is empty or no words.
        """
        at_most = static_size(at_most, "at_most", "Text.split")
        if isinstance(separator, str) and not separator:
            raise TextError(_EMPTY)
        given = [] if separator is None else [self._words(separator, "separator", "split")]
        operands = [self._mine(), *given]
        length = elementwise(count_of_pieces, (at_most,), operands, _COUNT)
        # Each place is an element of its own, so that one operation gives the words of all.
        each: list[tuple[Any, Kind]] = [(jnp.expand_dims(digests, -2), TEXT) for digests, _ in operands]
        each.insert(0, (np.arange(at_most, dtype=np.int32), NUMBER))
        return Many(type(self)(elementwise(piece, (at_most,), each, TEXT)), length)

    def extract(self, pattern: str | re.Pattern[str], group: int | str = 0) -> Maybe[Self]:
        """What a regular expression first matches in each string, as `re.search(pattern, string)[group]`.

        **Arguments:**

        - `pattern`: as `matches` takes it.
        - `group`: the number or the name of a group of the pattern; 0 is the whole match.

        **Returns:** an `ember.Maybe` of this Text's shape: `value`, a Text, and `is_there`, False where nothing
        matches, where the group takes no part in the match (`value` is then empty words), and where text failed.

        **Raises:** `TextError`, a `ValueError`, for a pattern that `matches` does not take, or that has no such group.
        """
        static = (_compiled(pattern, "extract"), group)
        _check_group(*static)
        is_there = elementwise(_is_found, static, [self._mine()], _BOOLEAN)
        return Maybe(type(self)(elementwise(found, static, [self._mine()], TEXT)), is_there)

    # -- operands --------------------------------------------------------------------------------------------------

    def _asked(self, question: Any, words: Any, method: str) -> jax.Array:
        return elementwise(question, (), [self._mine(), self._words(words, "words", method)], _BOOLEAN)

    def _mine(self) -> tuple[Any, Kind]:
        return self._digests_of(self), TEXT

    def _words(self, value: Any, name: str, method: str) -> tuple[Any, Kind]:
        if not isinstance(value, str | Strings):
            raise TextError(
                f"`{name}` of Text.{method} is of type {type(value).__name__}; it takes a string or a Text. Several "
                'strings become a Text by `ember.text([…])`, numbers by `ember.format("{x}", x=…)`.'
            )
        return self._digests_of(value), TEXT

    @abc.abstractmethod
    def _digests_of(self, value: Any) -> Any:
        """The digests of what is text."""


def static_size(value: Any, name: str, function: str) -> int:
    """A number that is part of a shape, checked.

    **Raises:** `TextError`, which names the argument and the function, if it is no Python int of 1 or more.
    """
    try:
        size = operator.index(value)
    except TypeError:  # a float, or a tracer
        size = 0
    if size < 1 or isinstance(value, bool):
        raise TextError(
            f"`{name}` of {function} is part of a shape, so it must be a Python int of 1 or more that is known "
            f"while JAX traces; got {value!r:.80}."
        )
    return size


_LIMITS = np.iinfo(np.int32)
_END = np.asarray(_LIMITS.max, np.int32)  # no string is longer


def integers(value: Any, name: str, function: str) -> Any:
    """Places in a string, or counts, as an array of integers. Those beyond int32 lie beyond all strings, and become its
    limits.

    **Raises:** `TextError`, which names the argument and the function, if they are no integers.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return np.asarray(min(max(value, _LIMITS.min), _LIMITS.max), np.int32)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iu":
        # In float64, which keeps these integers and the order of all others, whatever the dtype can hold.
        return np.clip(np.asarray(value, np.float64), _LIMITS.min, _LIMITS.max).astype(np.int32)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    raise TextError(
        f"`{name}` of {function} takes an integer or an array of integers, traced or not; got {value!r:.80}. "
        "Convert it with int() or `.astype(int)`."
    )


def _compiled(pattern: Any, method: str) -> re.Pattern[str]:
    given = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if isinstance(pattern, Strings):
        raise TextError(
            f"`pattern` of Text.{method} is a Text, which is data. A pattern is compiled once, so it is a Python "
            "string that is known while JAX traces; for words that vary there is `text.contains(words)`."
        )
    if not isinstance(given, str):
        raise TextError(
            f"`pattern` of Text.{method} takes a regular expression as a Python string, or re.compile of one; got "
            f"{pattern!r:.80}."
        )
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise TextError(
            f"`pattern` of Text.{method} is no regular expression ({error}): {given!r:.200}. Plain words are written "
            "into one with re.escape(words)."
        ) from None


def _check_group(pattern: re.Pattern[str], group: Any) -> None:
    has = range(pattern.groups + 1) if isinstance(group, int) and not isinstance(group, bool) else pattern.groupindex
    if not isinstance(group, int | str) or group not in has:
        names = "".join(f", {name!r}" for name in pattern.groupindex)
        raise TextError(
            f"`group` of Text.extract is {group!r:.80}, and the pattern {pattern.pattern!r:.200} has the groups 0 to "
            f"{pattern.groups}{names}. Give one of them; `(…)` and `(?P<name>…)` make a group."
        )


# -- on one element --------------------------------------------------------------------------------------------------


def _matches(pattern: re.Pattern[str], words: str) -> bool:
    return pattern.search(words) is not None


def found(pattern: re.Pattern[str], group: int | str, words: str) -> str:
    """What a group matches, or empty words."""
    match = pattern.search(words)
    return (match and match[group]) or ""


def _is_found(pattern: re.Pattern[str], group: int | str, words: str) -> bool:
    match = pattern.search(words)
    return match is not None and match[group] is not None


def cut(words: str, start: Any, stop: Any) -> str:
    """Some characters of a string."""
    return words[int(start) : int(stop)]


_EMPTY = (
    "`separator` of Text.split is empty, so there is nothing to split at. `None` splits at white space; the characters "
    "of a string are `text.slice(i, i + 1)`."
)


# The places of one string are asked for one after another. More than the last string is not kept, as it may be long.
@functools.lru_cache(maxsize=1)
def _pieces(at_most: int, words: str, separator: str | None = None) -> list[str]:
    if separator == "":
        raise TextError(_EMPTY)
    return words.split(separator, at_most - 1)


def count_of_pieces(at_most: int, words: str, *separator: str) -> int:
    """How many pieces a string has."""
    return len(_pieces(at_most, words, *separator))


def piece(at_most: int, place: Any, words: str, *separator: str) -> str:
    """One piece of a string; empty words behind the last."""
    pieces = _pieces(at_most, words, *separator)
    return pieces[place] if place < len(pieces) else ""
