"""Operations on Text that give Text: `format`, `join`, `normalize`, `where`, `stack`, `concatenate`; and `fold_in`."""

import functools
import operator
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import TextError
from .._jax.internals import is_tracer
from .._regex import regex
from . import grammar, store
from .elementwise import NUMBER, TEXT, TEXTS, Kind, elementwise
from .text import Text, as_text, text


def format(template: str | Text, /, **fields: Any) -> Text:
    """Fills `{name}` fields of a template.

    Only the names that are passed are replaced, wherever they stand; every other brace is left as it is, so JSON and
    LaTeX need no escaping. Numbers take Python's format specifications, as in `{x:.2f}`; without one they are written
    as short as reads back the same, so that 0.1 is `0.1` in float32 too. Template and fields broadcast against each
    other.

    **Arguments:**

    - `template`: a string, or a Text of any shape.
    - `fields`: a string, a Text, a number or an array for each name.

    **Returns:** a Text of the broadcast shape.

    **Raises:** `TextError` if a `str` template lacks a field that was passed, if a field is neither text nor number, or
    if an array of integers does not fit into JAX's 32 bits.
    A Text template may lack one: it is data, and differs from lane to lane.
    """
    if isinstance(template, str):
        _check_fields(template, tuple(fields))
    # Python numbers stay what they are: as arrays they would lose digits beyond JAX's 32 bits.
    numbers = {name: fields.pop(name) for name in sorted(fields) if isinstance(fields[name], _SCALARS)}
    template = _fill_numbers(template, numbers) if numbers else template
    names = tuple(sorted(fields))
    operands = [(as_text(template).digests, TEXT), *(_field(name, fields[name]) for name in names)]
    return Text(elementwise(_format, (names,), operands, TEXT))


def join(separator: str | Text, texts: Text | np.ndarray | Sequence[Any], axis: int = -1) -> Text:
    """Joins strings along an axis, as `str.join` does.

    **Arguments:**

    - `separator`: what stands between them; broadcasts against the result.
    - `texts`: a Text or NumPy array of rank 1 or more, or a sequence of Texts and strings, which are broadcast and
        joined.
    - `axis`: the axis of `texts` that is joined.

    **Returns:** a Text without that axis. An empty axis gives empty strings.
    """
    if isinstance(texts, str):
        raise TextError("ember.join takes several texts: a Text of rank 1 or more, or a list; got one string.")
    if isinstance(texts, np.ndarray):
        texts = text(texts)
    if not isinstance(texts, Text):
        texts = stack(_broadcast_texts(texts), axis=-1) if texts else text([])
        axis = -1
    if not texts.shape:
        raise TextError("ember.join got a Text of rank 0: there is nothing to join. Stack several with `ember.stack`.")
    last = jnp.moveaxis(texts.digests, _leading(axis, texts.ndim), -2)
    return Text(elementwise(_join, (), [(as_text(separator).digests, TEXT), (last, TEXTS)], TEXT))


def normalize(t: Text | str, how: str = "answer") -> Text:
    """Brings answers that mean the same to the same words, so that `==` and votes find them.

    **Arguments:**

    - `t`: a Text of any shape.
    - `how`: `"answer"` (Unicode NFKC, lower case, without punctuation at the ends of words, the articles *a*, *an*
        and *the*, and repeated white space: the normalisation of SQuAD, arXiv 1606.05250, kept to word ends so that
        `3.14` and `x-1` survive), `"case"` (NFKC and lower case), `"space"` (white space collapsed and stripped),
        `"unicode"` (NFKC alone), `"number"` (the last number, as `ember.parse_number` finds it, exact and in one
        spelling: `1,234.50` is `1234.5`, `3/4` is `0.75`, `2/6` is `1/3`; the text as it is where there is none) or
        `"final"` (what a reply that reasons first states last: the line after its last `Answer:`, or else after its
        last `answer is`, without `*` and backticks around it and a full stop after it; the text as it is where
        neither stands).

    **Raises:** `TextError` for another `how`.
    """
    if how not in NORMALIZERS:
        raise TextError(f"ember.normalize knows how={sorted(NORMALIZERS)}; got {how!r}.")
    return Text(elementwise(_normalize, (how,), [(as_text(t).digests, TEXT)], TEXT))


def where(condition: Any, a: Text | str, b: Text | str) -> Text:
    """`jnp.where` for Text: `a` where `condition` holds, else `b`; all three broadcast."""
    a, b = as_text(a), as_text(b)
    return Text(jnp.where(jnp.asarray(condition)[..., None], a.digests, b.digests))


def stack(texts: Sequence[Text | str], axis: int = 0) -> Text:
    """`jnp.stack` for Text: texts of one shape along a new axis."""
    parts = [as_text(t) for t in texts]
    if not parts:
        raise TextError("ember.stack needs at least one Text; `ember.text([])` is an empty one.")
    return Text(jnp.stack([t.digests for t in parts], _leading(axis, parts[0].ndim + 1)))


def concatenate(texts: Sequence[Text | str], axis: int = 0) -> Text:
    """`jnp.concatenate` for Text: texts along an axis they have."""
    parts = [as_text(t) for t in texts]
    if not parts:
        raise TextError("ember.concatenate needs at least one Text; `ember.text([])` is an empty one.")
    if not parts[0].shape:
        raise TextError("ember.concatenate needs Texts of rank 1 or more: `ember.stack` makes an axis, `+` joins words")
    return Text(jnp.concatenate([t.digests for t in parts], _leading(axis, parts[0].ndim)))


def fold_in(key: jax.Array, data: Any) -> jax.Array:
    """Makes a new key from a key and some content, so that the key stays with the content.

    Where `jax.random.split` gives keys by position, a key folded from a question is that question's key: filtering
    rows or inserting a call does not change, and so does not repay, the others.

    **Arguments:**

    - `key`: a typed or legacy key, of rank 0.
    - `data`: a string, a Text of rank 0, or an integer. One of 32 bits gives what `jax.random.fold_in` does, a negative
        one as its two's complement; a longer one counts by all its digits.

    **Returns:** a key of the same kind. The same words give the same key, traced or not.

    **Raises:** `TextError` for several texts; `TypeError` for several integers, and for what is neither.
    """
    if isinstance(data, str):
        data = text(data)
    if not isinstance(data, Text):
        return _fold_in_integer(key, data)
    if data.shape:
        raise TextError(f"ember.fold_in takes one Text, got shape {data.shape}; use jax.vmap(ember.fold_in).")
    for word in range(store.DIGEST_WORDS):
        key = jax.random.fold_in(key, data.digests[word])
    return key


def _fold_in_integer(key: jax.Array, data: Any) -> jax.Array:
    is_integer = isinstance(data, int) or (
        isinstance(data, np.generic | np.ndarray | jax.Array)
        and (data.dtype == bool or jnp.issubdtype(data.dtype, jnp.integer))
    )
    if not is_integer:
        raise TypeError(
            f"ember.fold_in takes a string, a Text or an integer, not {data!r:.80} of type {type(data).__name__}. A "
            'number is told by its words, as in ember.fold_in(key, ember.format("{x}", x=x)).'
        )
    if jnp.shape(data):
        raise TypeError(f"ember.fold_in takes one integer, got shape {jnp.shape(data)}; use jax.vmap(ember.fold_in).")
    if isinstance(data, jax.Array) and data.dtype.itemsize <= 4:
        return jax.random.fold_in(key, data)
    if isinstance(data, jax.Array) and is_tracer(data):  # of 64 bits: how long it is, the program will know
        is_short = (data >= (-(2**31) if data.dtype.kind == "i" else 0)) & (data < 2**32)
        return jnp.where(is_short, jax.random.fold_in(key, data.astype(jnp.uint32)), _fold_in_digits(key, data))
    number = int(data)
    if -(2**31) <= number < 2**32:
        return jax.random.fold_in(key, np.uint32(number % 2**32))
    return _fold_in_digits(key, number)


def _fold_in_digits(key: jax.Array, number: Any) -> jax.Array:
    return fold_in(key, format("the integer {n}", n=number))


# -- on one element --------------------------------------------------------------------------------------------------


def _format(names: tuple[str, ...], template: str, *values: Any) -> str:
    return "".join([p if isinstance(p, str) else _written(p, values[p.place]) for p in _pieces(names, template)])


class _Field(NamedTuple):
    """A place in a template: which value goes there, how it is written, and the field as it stands."""

    place: int
    spec: str
    words: str


@functools.lru_cache(maxsize=1024)  # a sweep has few templates, and many lanes
def _pieces(names: tuple[str, ...], template: str) -> tuple[str | _Field, ...]:
    """A template taken apart."""
    pieces: list[str | _Field] = []
    end = 0
    for match in _pattern(names).finditer(template) if names else ():
        pieces += [template[end : match.start()], _Field(names.index(match[1]), match[2] or "", match[0])]
        end = match.end()
    return (*pieces, template[end:])


def _format_numbers(numbers: tuple[tuple[str, str, Any], ...], template: str) -> str:
    return _format(tuple(name for name, _, _ in numbers), template, *(value for _, _, value in numbers))


def _written(field: _Field, value: Any) -> str:
    if type(value) is str and not field.spec:
        return value
    if isinstance(value, np.generic):
        # Through str, which is short in the number's own precision: float32's 0.1 is 0.10000000149011612 in float64.
        value = float(str(value)) if not field.spec and isinstance(value.item(), float) else value.item()
    try:
        return value.__format__(field.spec)
    except ValueError as error:
        raise TextError(
            f"ember.format cannot write a {type(value).__name__} in the field {field.words!r}: {error}."
        ) from None


def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\{(" + "|".join(map(re.escape, names)) + r")(?::([^{}]*))?\}")  # re caches compiled patterns


def _join(separator: str, parts: list[str]) -> str:
    return separator.join(parts)


def _normalize(how: str, words: str) -> str:
    return NORMALIZERS[how](words)


def _unicode(words: str) -> str:
    return unicodedata.normalize("NFKC", words)


def _space(words: str) -> str:
    return " ".join(words.split())


def _case(words: str) -> str:
    return _unicode(words).casefold()


def _number(words: str) -> str:
    number = grammar.last_number(words)
    return words if number is None else grammar.written(number)


def _final(words: str) -> str:
    for stated in _STATED:
        if found := [line for part in stated.split(words)[1:] if (line := part.strip(_MARKS))]:
            words = found[-1].partition("\n")[0].strip(_MARKS).removesuffix(".").strip(_MARKS)
    return words


# `**Final answer**: 42`, and what is taken away around what it states; the colon goes before `the answer is 42`.
_STATED = tuple(regex(pattern, re.IGNORECASE) for pattern in (r"\banswer[*`\s]*+:", r"\banswer\s++is\b:?"))
_MARKS = "*` \t\r\n"


def _answer(words: str) -> str:
    bare = [word.strip(string.punctuation) or word for word in _case(words).split()]
    return " ".join(word for word in bare if word not in ("a", "an", "the"))


NORMALIZERS = {
    "answer": _answer,
    "case": _case,
    "final": _final,
    "number": _number,
    "space": _space,
    "unicode": _unicode,
}


def parts(function: Any, static: tuple[Any, ...], elements: Sequence[Any]) -> list[Any] | None:
    """What an operation's result is put together of, in order: strings, and elements as they stand.

    A field of a template comes with its format specification. `None` for what does anything else with them.
    """
    if function is operator.add:
        return list(elements)
    if function is _join:
        separator, items = elements
        return [part for item in items for part in (separator, item)][1:]
    if function is _format and isinstance(elements[0], str):
        template, *values = elements
        return [p if isinstance(p, str) else (values[p.place], p.spec) for p in _pieces(*static, template)]
    return None


# -- operands --------------------------------------------------------------------------------------------------------


def _check_fields(template: str, names: tuple[str, ...]) -> None:
    found = {match[1] for match in _pattern(names).finditer(template)} if names else set()
    if missing := [name for name in names if name not in found]:
        raise TextError(
            f"the template lacks the field {{{missing[0]}}} that was passed to ember.format: {template!r:.200}. "
            "Write it into the template, or do not pass it."
        )


def _fill_numbers(template: str | Text, numbers: dict[str, Any]) -> str | Text:
    """Fills in Python's numbers first: written out, a number holds no brace that could pass for another field."""
    # The repr, because operations compare by value, and 1, 1.0 and True are equal.
    static = tuple((name, repr(value), value) for name, value in numbers.items())
    if isinstance(template, str):  # now, so that another number is another word and not another operation
        return _format_numbers(static, template)
    return Text(elementwise(_format_numbers, (static,), [(template.digests, TEXT)], TEXT))


_SCALARS = (int, float, complex, np.number, np.bool_)


def _field(name: str, value: Any) -> tuple[Any, Kind]:
    value = _of_list(value) if isinstance(value, list | tuple) else value
    if isinstance(value, np.ndarray):
        value = text(value) if value.dtype.kind in "OUT" else jnp.asarray(_fitting(name, value))
    if isinstance(value, Text | str):
        return as_text(value).digests, TEXT
    if not isinstance(value, jax.Array) or not (
        jnp.issubdtype(value.dtype, jnp.number) or jnp.issubdtype(value.dtype, jnp.bool_)
    ):
        raise TextError(
            f"the field {name} of ember.format is of type {type(value).__name__}; it takes text, numbers and arrays "
            "of them."
        )
    return value, NUMBER


def _of_list(value: Any) -> Text | np.ndarray | jax.Array:
    leaves = jax.tree.leaves(value)
    if leaves and isinstance(leaves[0], str):
        return text(value)  # not through NumPy, whose fixed-width strings drop trailing NULs
    return jnp.asarray(value) if any(isinstance(leaf, jax.Array) for leaf in leaves) else np.asarray(value)


def _fitting(name: str, array: Any) -> Any:
    """Refuses integers that JAX would wrap around silently: they would be other numbers in the prompt."""
    if array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
        if array.min() < limits.min or array.max() > limits.max:
            raise TextError(
                f"the field {name} of ember.format holds integers that do not fit into {limits.dtype}, JAX's own. Pass "
                "them as text, as in [str(n) for n in numbers], or set jax.config.update('jax_enable_x64', True)."
            )
    return array


def _leading(axis: int, rank: int) -> int:
    """An axis of the strings as an axis of their digests, whose last one is not theirs."""
    if not -rank <= axis < rank:
        raise TextError(f"axis {axis} is out of range for a Text of rank {rank}.")
    return axis % rank


def _broadcast_texts(texts: Sequence[Any]) -> list[Text]:
    parts = [as_text(t) for t in texts]
    shape = np.broadcast_shapes(*(t.shape for t in parts))
    return [Text(jnp.broadcast_to(t.digests, (*shape, store.DIGEST_WORDS))) for t in parts]
