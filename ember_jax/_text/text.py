"""`Text`: an array of strings that JAX carries as fixed-size digests.

Design note. Text is a pytree with one leaf, `uint32[*shape, 4]`: a 128-bit digest for each string. The words lie in the
process's store. Two alternatives were rejected: bytes padded to a length, where every new length retraces and every
lane pays for the longest text; and static strings, where every new prompt recompiles. With digests text has a constant
size, equality is integer comparison inside XLA, and `vmap`, `scan` carries and `lax.cond` work because the leaf is an
ordinary array.
"""

import copy
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from .._jax.internals import device_array, is_tracer
from ..errors import TextError, TracedControlFlowError, UnknownDigestError, told
from . import failed, portable, store
from .elementwise import TEXT, elementwise
from .strings import Strings

_TRACED_WORDS = (
    "the words of a traced Text are not known while JAX traces: only its digest flows through the program. "
    'Build text with `ember.format("… {x} …", x=text)` or `+`, not with an f-string or `str()`; compare with '
    '`text == "yes"`; take a Python function to the words with `ember.host`; print them while the program runs with '
    '`jax.debug.print("{}", text)`.'
)


class TextAnnotation:
    """`Text["n"]`: a Text annotated with a shape, in jaxtyping's language for dimensions."""

    def __init__(self, dimensions: str):
        self.dimensions = dimensions
        self.leaf = UInt32[jax.Array, f"{dimensions} {store.DIGEST_WORDS}"]

    def __repr__(self) -> str:
        return f'Text["{self.dimensions}"]'

    # `Text["n"] | None` and `Text | Text["n"]` must be valid annotations.
    def __or__(self, other: Any) -> Any:
        # `typing.Union` accepts any object that can be called, which is why this class defines `__call__`.
        from typing import Union

        return Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        from typing import Union

        return Union[other, self]  # noqa: UP007

    def __call__(self) -> None:
        raise TypeError(f"{self!r} is an annotation; make a Text with `ember.text`.")

    def __reduce__(self) -> tuple[Any, ...]:  # jaxtyping's class in `leaf` cannot be pickled
        return TextAnnotation, (self.dimensions,)


class Text(Strings):
    """An array of strings, of any shape; made by `ember.text`.

    Indexing, `reshape`, `vmap`, `scan` and `lax.cond` treat it as an array of that shape (the digest's own axis, the
    last one of the leaf, is hidden). `==` compares words and gives a boolean array. `str(t)` and `t.tolist()` give
    the words back. Methods as Python's `str` has them ask and change words: `contains`, `startswith`, `endswith`,
    `matches`, `length`, `lower`, `upper`, `strip`, `replace`, `slice`, `split`, `extract`.

    The words of text that failed (see `ember.attempt`) are `None`, and `causes()` says why; `print` shows both. A Text
    that is traced has no words yet: `jax.debug.print("{}", t)` prints them when the program runs. Texts, and what holds
    them, are copied and pickled with their words. A library that saves the arrays of a tree saves digests alone:
    `ember.save` keeps the words with them.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # a hash needs `==` to give one boolean, and here it gives an array
    # Makes NumPy leave `np_array == text` to `Text.__eq__`; otherwise NumPy would compare element by element.
    __array_priority__ = 100

    def __class_getitem__(cls, dimensions: str) -> Any:
        if not isinstance(dimensions, str):
            raise TypeError(f'Text takes its shape as a string, as in Text["n"]; got {dimensions!r}.')
        return TextAnnotation(dimensions)

    # -- shape ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array of strings."""
        shape = getattr(self.digests, "shape", None)
        if shape is None:
            raise TextError(f"this Text holds {self.digests!r} in place of digests, so it has no shape.")
        if self.digests.dtype != np.uint32:
            raise TextError(
                f"this Text holds an array of {self.digests.dtype} in place of digests. Most likely {store.ARITHMETIC}"
            )
        if shape[-1:] != (store.DIGEST_WORDS,):
            raise TextError(
                f"a Text's array must end in an axis of {store.DIGEST_WORDS}, the words of a digest; this one has "
                f"shape {tuple(shape)}. Map, move and reduce leading axes only (`in_axes=-1` takes digests apart)."
            )
        return tuple(shape[:-1])

    @property
    def ndim(self) -> int:
        """The number of axes of the array of strings."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of strings."""
        return int(np.prod(self.shape, dtype=int))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a Text of rank 0 is one string and has no len(); `len(str(t))` counts its characters.")
        return self.shape[0]

    def reshape(self, *shape: Any) -> "Text":
        """The same strings in another shape."""
        # NumPy works out the target shape, -1 included. `jnp.reshape` could not: with the digest's own axis beside it
        # -1 is ambiguous for size 0, and its errors would name an axis that the user does not know of.
        target = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        target = np.broadcast_to(np.False_, self.shape).reshape(tuple(target)).shape
        return Text(jnp.reshape(self.digests, (*target, store.DIGEST_WORDS)))

    def ravel(self) -> "Text":
        """The same strings along one axis, in row-major order."""
        return self.reshape(-1)

    @property
    def at(self) -> "Places":
        """`t.at[index].set(words)`: a new Text with other words at some places, as JAX's arrays have it."""
        return Places(self)

    def __getitem__(self, index: Any) -> "Text":
        shape = self.shape
        if not shape:
            raise IndexError("a Text of rank 0 is one string and cannot be indexed; `str(t)[i]` is a character.")
        if isinstance(index, list):
            index = np.asarray(index, None if index else int)
        _check_bounds(index, shape)
        if type(index) in (int, slice) and _is_here(self.digests):
            return Text(device_array(np.asarray(self.digests)[index]))  # JAX would compile a program for each shape
        if not isinstance(index, tuple) and index is not Ellipsis and getattr(index, "dtype", None) != np.bool_:
            return Text(jnp.asarray(self.digests)[index])
        # Tuples, `...` and boolean masks could also reach the digest's own axis. So the index is applied to an array of
        # positions, which has the shape of the strings, and the digests are taken at the positions that come out.
        positions = jnp.arange(self.size).reshape(shape)[index]
        return Text(jnp.reshape(self.digests, (-1, store.DIGEST_WORDS))[positions])

    def __iter__(self) -> Iterator["Text"]:
        return (self[i] for i in range(len(self)))

    # -- words ---------------------------------------------------------------------------------------------------

    def _known(self) -> np.ndarray:
        """The digests as a NumPy array, checked."""
        if is_tracer(self.digests):
            raise TracedControlFlowError(_TRACED_WORDS)
        _ = self.shape  # raises if the array is not one of digests
        return np.asarray(self.digests)

    def tolist(self) -> Any:
        """The words, as a `str` or nested lists of them; `None` for text that failed."""
        return np.asarray(self).tolist()

    def causes(self) -> Any:
        """Why text failed: an exception for each string, in nested lists as those of `tolist`; `None` where there are
        words."""
        found = [failed.cause_of(d) if d.startswith(failed.PREFIX) else None for d in store.split(self._known())]
        return _shaped(found, self.shape).tolist()

    def __str__(self) -> str:
        if isinstance(self.digests, jax.ShapeDtypeStruct):  # of `eval_shape`
            return repr(self)
        words = self.tolist()
        digests = self._known()
        if failed.among(digests) is None:
            return words if isinstance(words, str) else str(words)
        return f"{words} (failed: {_told_causes(digests)})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        digests = self._known()
        if failed.among(digests) is None:
            found: list[str | None] = [*store.get_array(digests)]
        else:
            found = [None if d.startswith(failed.PREFIX) else store.get(d) for d in store.split(digests)]
        words = _shaped(found, self.shape)
        return words if dtype is None else words.astype(dtype)

    def __repr__(self) -> str:
        if not isinstance(self.digests, jax.Array | np.ndarray):
            return f"Text({self.digests!r})"
        dims = ",".join(map(str, self.digests.shape[:-1]))
        if is_tracer(self.digests):
            return f"Text[{dims}](traced)"
        if self.digests.dtype != np.uint32:
            return f"Text(array of {self.digests.dtype}, which are no digests)"
        if self.digests.shape[-1:] != (store.DIGEST_WORDS,):
            return f"Text(array of shape {self.digests.shape})"
        return f"Text[{dims}]({_excerpt(np.asarray(self.digests))})" if dims else f"Text({_excerpt(self.digests)})"

    def __bool__(self) -> bool:
        if is_tracer(self.digests):
            raise TracedControlFlowError(_TRACED_WORDS)
        raise TypeError('the truth of a Text is not defined; compare it, as in `text == ""`, or use `str(text)`.')

    def __contains__(self, part: Any) -> bool:
        if self.shape:
            raise TypeError("`in` on an array of Text is not defined; `(texts == words).any()` looks for an element.")
        words = self.tolist()
        return words is not None and str(part) in words

    def _digests_of(self, value: Any) -> Any:
        return as_text(value).digests

    # -- copies, here and in other processes -----------------------------------------------------------------------

    # Copied without the way through `pickle`, which would refuse a Text that is traced.
    def __copy__(self) -> "Text":
        return Text(self.digests)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Text":
        return Text(copy.deepcopy(self.digests, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        if is_tracer(self.digests):
            raise TracedControlFlowError(
                "a traced Text cannot be pickled: its words are not known while JAX traces. Pickle what the "
                "transformed function returns."
            )
        if not isinstance(self.digests, jax.Array | np.ndarray) or self.digests.dtype != np.uint32:
            return Text, (self.digests,)  # what Equinox, or arithmetic, has put in place of digests
        _ = self.shape
        digests = np.asarray(self.digests)
        try:
            contents = portable.contents_of(digests)
        except UnknownDigestError as error:
            raise UnknownDigestError(f"a Text cannot be pickled: {error}") from None
        return _unpickled, (digests, isinstance(self.digests, jax.Array), contents)

    # -- operators -----------------------------------------------------------------------------------------------

    def __eq__(self, other: Any) -> Any:
        other = _as_operand(other)
        if other is None:
            return NotImplemented
        _ = self.shape, other.shape  # raises if either array is not one of digests
        mine, others = _broadcast(self, other)
        # Failed text equals nothing. It is enough to look at one side: if the digests are equal, both have failed.
        return jnp.all(jnp.equal(mine, others), axis=-1) & ~_failed(mine)

    def __ne__(self, other: Any) -> Any:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else jnp.logical_not(equal)

    def __add__(self, other: Any) -> "Text":
        return _concatenate(self, other)

    def __radd__(self, other: Any) -> "Text":
        return _concatenate(other, self)


class Places:
    """`t.at`; an index gives the `Place` in whose stead other words can be set."""

    def __init__(self, whole: Text):
        self._whole = whole

    def __getitem__(self, index: Any) -> "Place":
        return Place(self._whole, index)


class Place:
    """`t.at[index]`."""

    def __init__(self, whole: Text, index: Any):
        self._whole = whole
        self._index = index

    def set(self, words: Text | str) -> Text:
        """The Text with `words` in place of the strings at the index, of the same shape.

        **Arguments:**

        - `words`: a string, or a Text that broadcasts to the shape of `t[index]`.

        **Returns:** a new Text. An index that is an array and lies out of range sets nothing, as in JAX.

        **Raises:** `IndexError` for a Python integer out of range; `TextError` if `words` is neither.
        """
        if not isinstance(words, str | Text):
            raise TextError(
                f"`words` of Text.at[…].set is {_describe(words)}; it takes a string or a Text. Make one with "
                "`ember.text`."
            )
        whole, new = self._whole, as_text(words).digests
        index = np.asarray(self._index, None if self._index else int) if isinstance(self._index, list) else self._index
        digests = jnp.asarray(whole.digests)
        if not new.shape[:-1] and getattr(index, "dtype", None) == np.bool_ and index.shape == whole.shape:
            return Text(jnp.where(index[..., None], new, digests))  # the mask may be traced
        replaced = jax.eval_shape(lambda: whole[index]).digests.shape
        if not _broadcasts(new.shape, replaced):
            raise TextError(
                f"`words` of Text.at[…].set has shape {new.shape[:-1]}, which does not broadcast to {replaced[:-1]}, "
                "the shape of what they replace."
            )
        if is_tracer(index) and not index.shape and jnp.issubdtype(index.dtype, jnp.integer):
            # A choice at each place, which a plan makes without XLA; a scatter it would have to compile.
            size = whole.shape[0]
            at = jnp.where(index < 0, index + size, index) == np.arange(size, dtype=index.dtype)
            at = jnp.expand_dims(at, tuple(range(1, digests.ndim)))
            return Text(jnp.where(at, jnp.broadcast_to(new, digests.shape), digests))
        # The slice at the end is the digest's own axis, which no index of strings may reach.
        index = index if isinstance(index, tuple) else (index,)
        rest = () if any(part is Ellipsis for part in index) else (Ellipsis,)
        return Text(digests.at[(*index, *rest, slice(None))].set(new))


jax.tree_util.register_pytree_with_keys(
    Text,
    lambda t: (((jax.tree_util.GetAttrKey("digests"), t.digests),), None),
    lambda _, leaves: Text(*leaves),
    lambda t: ((t.digests,), None),
)


def _unpickled(digests: np.ndarray, is_jax: bool, contents: portable.Contents) -> Text:
    portable.restore(digests, contents)
    with jax.ensure_compile_time_eval():
        return Text(device_array(digests) if is_jax else digests)


def text(words: Any) -> Text:
    """Makes a `Text` of a string, or of nested lists, a NumPy array or a pandas Series of strings.

    The words of all Texts lie in memory up to 128 MiB, or as many bytes as the environment variable
    `EMBER_JAX_TEXT_BYTES` says, and beyond that in a temporary file.

    **Arguments:**

    - `words`: what to hold. A `Text` is returned as it is.

    **Returns:** a `Text` whose shape is that of `words`: `()` for a string, `(n,)` for a list of n.

    **Raises:** `TextError` for anything that is not a string (the message names the element), for lists of unequal
    length, and for lone surrogates.
    """
    if isinstance(words, Text):
        return words
    digests = digests_of(words)
    # Evaluated at once even while JAX traces: the words are known now, so the digests become a constant of the program
    # and not a tracer, and `str` of the Text works.
    with jax.ensure_compile_time_eval():
        return Text(device_array(digests))


def digests_of(words: Any) -> np.ndarray:
    """What `text` makes of what is no Text yet, as a NumPy array: `uint32[*shape, 4]`."""
    if type(words) is str:  # of which a sweep makes one for each call
        return store.put_one(words)
    array = np.asarray(words, object) if isinstance(words, str) else _object_array(words)
    for index, element in np.ndenumerate(array):
        if not isinstance(element, str):
            where = f"element {list(index)}" if index else "the argument"
            raise TextError(
                f"{where} of ember.text is {_describe(element)}, not a string."
                + (" Lists of unequal length do not make an array." if isinstance(element, list | tuple) else "")
                + _remedy(element)
            )
    return store.put_array(array)


def as_text(value: Any) -> Text:
    """`value` as a Text, made by `text` if it is not one. Every text operation does this to its operands.

    **Raises:** `TextError` for a Text whose array is not one of digests, and what `text` raises.
    """
    if not isinstance(value, Text):
        return text(value)
    _ = value.shape
    return value


def _shaped(flat: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    # The dtype is object and not `<U`, since NumPy's fixed-width strings drop trailing NULs.
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape)


def _object_array(words: Any) -> np.ndarray:
    if isinstance(words, jax.Array):
        raise TextError(f"ember.text takes strings; got {_describe(words)}.")
    if isinstance(words, list | tuple):
        shape = _shape(words)
        array = np.empty(int(np.prod(shape, dtype=int)), object)
        array[:] = list(_flatten(words, len(shape)))
        return array.reshape(shape)
    return np.asarray(words, object)


def _shape(words: Any) -> tuple[int, ...]:
    """The shape of nested lists of strings.

    **Raises:** `TextError` if lists side by side have unequal shapes.
    """
    if not isinstance(words, list | tuple):
        return ()
    inner = {_shape(w) for w in words}
    if len(inner) <= 1:
        return (len(words), *(inner.pop() if inner else ()))
    raise TextError(
        "ember.text got lists of unequal length, which do not make an array: "
        f"shapes {sorted(inner, key=str)} stand side by side. Pad them, or make one Text for each."
    )


def _flatten(words: Any, depth: int) -> Iterator[Any]:
    if depth == 0:
        yield words
    else:
        for inner in words:
            yield from _flatten(inner, depth - 1)


def _describe(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of {value.dtype}{list(value.shape)}"
    return f"of type {type(value).__name__} ({value!r:.40})"


def _remedy(element: Any) -> str:
    if isinstance(element, Text):
        return " Texts are put together with ember.stack."
    if element is None or (isinstance(element, float) and element != element):
        return " Fill missing values first."
    return " Convert it with str()."


def _is_here(digests: Any) -> bool:
    """Whether an array is in the host's memory, and no device was chosen for it."""
    if isinstance(digests, jax.Array) and not is_tracer(digests):
        return not digests.committed and next(iter(digests.devices())).platform == "cpu"
    return isinstance(digests, np.ndarray)


def _check_bounds(index: Any, shape: tuple[int, ...]) -> None:
    """Refuses integers out of range with NumPy's own error; JAX would clamp them, and so give another string."""
    parts = index if isinstance(index, tuple) else (index,)
    # An index array is left to JAX's rules, which clamp. To check it would wait for a device, and is impossible while
    # it is traced.
    if all(isinstance(part, int | np.integer | slice) or part is None or part is Ellipsis for part in parts):
        np.broadcast_to(np.False_, shape)[tuple(slice(None) if isinstance(part, slice) else part for part in parts)]


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _as_operand(value: Any) -> Text | None:
    if isinstance(value, str | list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OUT"):
        return text(value)
    return value if isinstance(value, Text) else None


def _broadcast(a: Text, b: Text) -> tuple[Any, Any]:
    shape = np.broadcast_shapes(a.shape, b.shape)
    full = (*shape, store.DIGEST_WORDS)
    return jnp.broadcast_to(a.digests, full), jnp.broadcast_to(b.digests, full)


def _failed(digests: Any) -> Any:
    """Whether each digest of `uint32[*shape, 4]` stands for failed text: booleans of that shape."""
    return jnp.all(digests[..., : len(failed.PREFIX) // 4] == np.uint32(0xFFFFFFFF), axis=-1)


def _concatenate(a: Any, b: Any) -> Any:
    if not isinstance(a, Text | str) or not isinstance(b, Text | str):
        return NotImplemented
    digests = [as_text(side).digests for side in (a, b)]
    return Text(elementwise(operator.add, (), [(side, TEXT) for side in digests], TEXT))


_SHOWN_CHARACTERS = 60
_SHOWN_STRINGS = 4
# Of why strings failed, `str` tells so many causes, each in so many characters; `causes()` gives all of them.
_SHOWN_CAUSES, _CAUSE_CHARACTERS = 3, 200


def _told_causes(digests: np.ndarray) -> str:
    """Why strings of an array failed: each cause once, with the indices that failed by it."""
    indices: dict[bytes, list[str]] = {}
    for at, digest in zip(np.ndindex(digests.shape[:-1]), store.split(digests), strict=True):
        if digest.startswith(failed.PREFIX):
            indices.setdefault(digest, []).append(f"[{', '.join(map(str, at))}]" if at else "")
    shown = [
        _listed(where) + _one_line(told(failed.cause_of(digest)), _CAUSE_CHARACTERS)
        for digest, where in [*indices.items()][:_SHOWN_CAUSES]
    ]
    more = len(indices) - len(shown)
    return "; ".join(shown + [f"{more:,} more causes"] * bool(more))


def _listed(indices: list[str]) -> str:
    if indices == [""]:
        return ""
    more = len(indices) - _SHOWN_STRINGS
    return ", ".join(indices[:_SHOWN_STRINGS]) + (f" and {more:,} more" if more > 0 else "") + ": "


def _excerpt(digests: Any) -> str:
    """The words for a repr: the first few strings, each shortened. Failed text and unknown digests show as such."""
    flat = np.asarray(digests).reshape(-1, store.DIGEST_WORDS)
    shown = [_shown(row.tobytes()) for row in flat[:_SHOWN_STRINGS]]
    more = [f"… {len(flat) - _SHOWN_STRINGS} more"] if len(flat) > _SHOWN_STRINGS else []
    return ", ".join(shown + more)


def _shown(digest: bytes) -> str:
    if digest.startswith(failed.PREFIX):
        return f"<failed: {_one_line(told(failed.cause_of(digest)), _SHOWN_CHARACTERS)}>"
    words = store.peek(digest)
    if words is None:
        return "<unknown words>"
    return repr(_shortened(words, _SHOWN_CHARACTERS))


def _one_line(words: str, most: int) -> str:
    return _shortened(" ".join(words.split()), most)


def _shortened(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
