"""Operations on Text that give Text: `format`, `join`, `normalize`, `where`, `stack`, `concatenate`; and `fold_in`."""

import functools
import operator
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._jax.internals import is_tracer
from .._regex import regex
from ..errors import TextError
from . import grammar, store
from .elementwise import NUMBER, TEXT, TEXTS, Kind, elementwise
from .text import Text, as_text, text


def format(template: str | Text, /, **fields: Any) -> Text:
    """Fills `{name}` fields of a template.

    Only the names that are passed are replaced, wherever they stand; every other brace is left as it is, so JSON and
    LaTeX need no escaping. A number takes Python's format specifications, as in `{x:.2f}`. Without one it is written
    with the fewest digits that read back as the same number of its dtype, so float32's 0.1 is `0.1` too. The template
    and the fields broadcast against each other.

    **Arguments:**

    - `template`: a string, or a Text of any shape.
    - `fields`: a string, a Text, a number or an array for each name.

    **Returns:** a Text of the broadcast shape.

    **Raises:** `TextError` if a `str` template lacks a field that was passed, if a field is neither text nor number, or
    if an array of integers does not fit into JAX's 32 bits. A Text template may lack a field: it is data, which may
    differ from lane to lane.
    """
    if isinstance(template, str):
        _check_fields(template, tuple(fields))
    # Python's and NumPy's scalars are written here and do not become arrays, where they would lose digits to JAX's 32
    # bits.
    numbers = {name: fields.pop(name) for name in sorted(fields) if isinstance(fields[name], _SCALARS)}
    template = _fill_numbers(template, numbers) if numbers else template
    names = tuple(sorted(fields))
    operands = [(as_text(template).digests, TEXT), *(_field(name, fields[name]) for name in names)]
    return Text(elementwise(_format, (names,), operands, TEXT))


def join(separator: str | Text, texts: Text | np.ndarray | jax.Array | Iterable[Any], axis: int = -1) -> Text:
    """Joins strings along an axis, as `str.join` does.

    **Arguments:**

    - `separator`: what stands between them; broadcasts against the result.
    - `texts`: a Text or an array of rank 1 or more, or a sequence of Texts, strings, numbers and arrays, which are
        broadcast and joined. Numbers are written as `ember.format` does.
    - `axis`: the axis of `texts` that is joined.

    **Returns:** a Text without that axis. An empty axis gives empty strings.

    **Raises:** `TextError` for one string or number, for a Text of rank 0, for what is neither text nor number, and for
    an axis that `texts` does not have.
    """
    if isinstance(texts, str):
        raise TextError("ember.join takes several texts: a Text of rank 1 or more, or a list; got one string.")
    if isinstance(texts, np.ndarray | jax.Array):
        texts = _in_words(texts)
    if not isinstance(texts, Text):
        if not isinstance(texts, Iterable):
            raise TextError(f"ember.join takes several texts: a Text of rank 1 or more, or a list; got {texts!r:.80}.")
        parts = _broadcast_texts([_in_words(t) for t in texts])
        texts, axis = stack(parts, axis=-1) if parts else text([]), -1
    if not texts.shape:
        raise TextError("ember.join got a Text of rank 0: there is nothing to join. Stack several with `ember.stack`.")
    last = jnp.moveaxis(texts.digests, _leading(axis, texts.ndim), -2)
    return Text(elementwise(_join, (), [(as_text(separator).digests, TEXT), (last, TEXTS)], TEXT))


def normalize(t: Text | str, how: str = "answer") -> Text:
    """Brings answers that mean the same to the same words, so that `==` and votes find them.

    **Arguments:**

    - `t`: a Text of any shape.
    - `how`: one of
        `"answer"`: Unicode NFKC, lower case, without punctuation at the ends of words, the articles *a*, *an* and
        *the*, and repeated white space. This is the normalisation of SQuAD (arXiv 1606.05250), but that one drops
        punctuation everywhere, and here `3.14` and `x-1` survive;
        `"case"`: NFKC and lower case;
        `"space"`: white space collapsed and stripped;
        `"unicode"`: NFKC alone;
        `"number"`: the last number, as `ember.parse_number` finds it, exact and in one spelling: `1,234.50` is
        `1234.5`, `3/4` is `0.75`, `2/6` is `1/3`. A text without a number stays as it is;
        `"final"`: what a reply that reasons first states last, which is the line after its last `Answer:`, or if there
        is none after its last `answer is`. Asterisks and backticks around it and a full stop after it are dropped. A
        text with neither stays as it is.

    **Returns:** a Text of the shape of `t`.

    **Raises:** `TextError` for another `how`.
    """
    if how not in NORMALIZERS:
        raise TextError(f"ember.normalize knows how={sorted(NORMALIZERS)}; got {how!r}.")
    return Text(elementwise(_normalize, (how,), [(as_text(t).digests, TEXT)], TEXT))


def where(condition: Any, a: Any, b: Any) -> Any:
    """`jnp.where` for Text: `a` where the boolean `condition` holds, else `b`. The three broadcast together.

    `a` and `b` are Texts or strings; or trees of one structure, such as two conversations, each leaf of which is chosen
    so.
    """
    if isinstance(a, eqx.Module) and isinstance(b, eqx.Module):
        return jax.tree.map(functools.partial(_either, condition), a, b, is_leaf=lambda x: isinstance(x, Text))
    a, b = as_text(a), as_text(b)
    return Text(jnp.where(jnp.asarray(condition)[..., None], a.digests, b.digests))


def _either(condition: Any, a: Any, b: Any) -> Any:
    return where(condition, a, b) if isinstance(a, Text) else jnp.where(condition, a, b)


def stack(texts: Sequence[Text | str], axis: int = 0) -> Text:
    """`jnp.stack` for Text: joins texts of one shape along a new axis.

    **Raises:** `TextError` if `texts` is empty, or for an axis that the result does not have.
    """
    parts = [as_text(t) for t in texts]
    if not parts:
        raise TextError("ember.stack needs at least one Text; `ember.text([])` is an empty one.")
    return Text(jnp.stack([t.digests for t in parts], _leading(axis, parts[0].ndim + 1)))


def concatenate(texts: Sequence[Text | str], axis: int = 0) -> Text:
    """`jnp.concatenate` for Text: joins texts along an axis that they have.

    **Raises:** `TextError` if `texts` is empty, if they have rank 0, or for an axis that they do not have.
    """
    parts = [as_text(t) for t in texts]
    if not parts:
        raise TextError("ember.concatenate needs at least one Text; `ember.text([])` is an empty one.")
    if not parts[0].shape:
        raise TextError("ember.concatenate needs Texts of rank 1 or more: `ember.stack` makes an axis, `+` joins words")
    return Text(jnp.concatenate([t.digests for t in parts], _leading(axis, parts[0].ndim)))


def fold_in(key: jax.Array, data: Any) -> jax.Array:
    """Makes a new key from a key and some content, so that the key stays with the content.

    `jax.random.split` gives keys by position; a key that is folded from a question is that question's own. If rows are
    then filtered or a call is inserted, the other calls keep their keys, so they are not paid again.

    **Arguments:**

    - `key`: a typed or legacy key, of rank 0.
    - `data`: a string, a Text of rank 0, or an integer. An integer of 32 bits gives what `jax.random.fold_in` does,
        with a negative one taken as its two's complement. A longer integer is folded in by all its digits, as words.

    **Returns:** a key of the same kind. The same words give the same key, traced or not.

    **Raises:** `TextError` for a Text of rank 1 or more; `TypeError` for an array of integers of rank 1 or more, and
    for anything that is neither text nor integer, as a float.
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
    if isinstance(data, jax.Array) and is_tracer(data):
        # A traced integer of 64 bits, whose size is known only when the program runs. Both keys are computed and one is
        # chosen, so that it gives the same key as when it is not traced.
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


@functools.lru_cache(maxsize=1024)  # a sweep fills few templates, each in many lanes
def _pieces(names: tuple[str, ...], template: str) -> tuple[str | _Field, ...]:
    """A template taken apart into the words between its fields, and its fields."""
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
        # A float goes through its `str`, which is the shortest in its own precision. `item()` would give float32's 0.1
        # as 0.10000000149011612. With a format specification `item()` is right, as the digits are then chosen by it.
        value = float(str(value)) if not field.spec and isinstance(value.item(), float) else value.item()
    try:
        return value.__format__(field.spec)
    except ValueError as error:
        raise TextError(
            f"ember.format cannot write a {type(value).__name__} in the field {field.words!r}: {error}."
        ) from None


def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    # Not compiled once by `regex`, since it depends on the names; `re` keeps a cache of what it has compiled.
    return re.compile(r"\{(" + "|".join(map(re.escape, names)) + r")(?::([^{}]*))?\}")


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
    # `Answer:` is looked for first. What it leaves is then searched for `answer is`, as in "Answer: the answer is 42".
    for stated in _STATED:
        if found := [line for part in stated.split(words)[1:] if (line := part.strip(_MARKS))]:
            words = found[-1].partition("\n")[0].strip(_MARKS).removesuffix(".").strip(_MARKS)
    return words


# What announces the answer, as in `**Final answer**: 42` and in `the answer is 42`, in the order in which `_final`
# looks for them; and the characters that are dropped around the answer.
_STATED = tuple(regex(pattern, re.IGNORECASE) for pattern in (r"\banswer[*`\s]*+:", r"\banswer\s++is\b:?"))
_MARKS = "*` \t\r\n"


def _answer(words: str) -> str:
    # A word of punctuation alone stays, so that an answer such as "?" or "+" does not become empty.
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
    """The parts that an operation puts together to its result, in order; for bounds on the result's length.

    **Arguments:**

    - `function`, `static`: those of the text operation.
    - `elements`: one element of each operand; it may be anything that stands for one.

    **Returns:** a list of strings, of elements as they were given, and of pairs (element, format specification) for the
    fields of a template. `None` if the operation is no concatenation of its operands.
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
    """Fills in Python's and NumPy's scalars, before all other fields.

    The order is safe: a number that is written out holds no brace, so it cannot make a field that was not there. Words
    could, so they are not filled in first.
    """
    # The repr is part of what the operation is compared by, since 1, 1.0 and True are equal and written differently.
    static = tuple((name, repr(value), value) for name, value in numbers.items())
    # A `str` template is filled right away. Then another number makes another word, which is data; as part of the
    # operation it would make another operation, which is traced and compiled again.
    if isinstance(template, str):
        return _format_numbers(static, template)
    return Text(elementwise(_format_numbers, (static,), [(template.digests, TEXT)], TEXT))


_SCALARS = (int, float, complex, np.number, np.bool_)


def _field(name: str, value: Any) -> tuple[Any, Kind]:
    """One field's array, and what an element of it is."""
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
    """The array, checked: JAX would wrap integers around silently, and other numbers would stand in the prompt.

    **Raises:** `TextError` if an integer does not fit into JAX's own dtype.
    """
    if array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
        if array.min() < limits.min or array.max() > limits.max:
            raise TextError(
                f"the field {name} of ember.format holds integers that do not fit into {limits.dtype}, JAX's own. Pass "
                "them as text, as in [str(n) for n in numbers], or set jax.config.update('jax_enable_x64', True)."
            )
    return array


def _leading(axis: int, rank: int) -> int:
    """An axis of the strings as an axis of their digests: counted from the front, as the digests have one axis more."""
    if not -rank <= axis < rank:
        raise TextError(f"axis {axis} is out of range for a Text of rank {rank}.")
    return axis % rank


def _in_words(value: Any) -> Text:
    """Text as it is, and numbers as `format` writes them."""
    is_number = isinstance(value, bool | int | float | complex | np.generic | np.ndarray | jax.Array) and not (
        isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "OUT"
    )
    return format("{x}", x=value) if is_number else as_text(value)


def _broadcast_texts(parts: Sequence[Text]) -> list[Text]:
    shape = np.broadcast_shapes(*(t.shape for t in parts))
    return [Text(jnp.broadcast_to(t.digests, (*shape, store.DIGEST_WORDS))) for t in parts]
