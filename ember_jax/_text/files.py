"""`save` and `load`: a pytree in one file, together with the words of its Texts.

Design note. The file is a zip archive, so that every part has a checksum and other tools can look inside:

    manifest.json     what each leaf is, in the order of the tree
    leaves/<i>        the bytes of leaf i: an array in row-major order, digests for a Text, key data for a key
    words, lengths    the words of all Texts, each once, as UTF-8, one after the other; their lengths in bytes, uint64

A Text's leaf holds digests, and `load` puts all words into the store, where they are found by their digest; so the file
does not say which words belong to which leaf. Nothing is pickled, so opening a file runs no code from it. Equal trees
give equal bytes. As in `equinox.tree_serialise_leaves`, arrays and Python's numbers are saved, and any other leaf (a
function, a string) is taken from `like`.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax.internals import is_tracer
from .._jax.nan import nan_is_a_value
from ..errors import TextError, TracedControlFlowError, UnknownDigestError
from . import store, turns
from .text import Text

_FORMAT = "ember_jax tree"
_VERSION = 1
# How Python's numbers are written and read. Integers are written in base 16: for base 10 Python limits the number of
# digits that it converts (4300 by default), for powers of two it does not. `bool` stands before `int`, of which it is a
# subclass, because `_describe` takes the first type that fits.
_NUMBERS = {
    bool: (repr, lambda written: written == "True"),
    int: (hex, lambda written: int(written, 16)),
    float: (lambda x: repr(float(x)), float),
    complex: (lambda x: repr(complex(x)), complex),
}
_ARRAY_TYPES = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


@dataclasses.dataclass(frozen=True)
class _LeafType:
    """What a leaf is. A file fits `like` if all fields of all leaves agree but `value`, which is what is loaded."""

    path: str
    kind: str  # array, text, key, number or static
    dtype: str = ""
    shape: tuple[int, ...] = ()
    value: str = ""  # a number's; a key's implementation

    def __str__(self) -> str:
        shape = str(list(self.shape)) if self.kind in ("array", "text", "key") else ""
        return f"`{self.path or 'the whole tree'}`, {self.dtype or 'no array or number'}{shape}"


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a pytree to one file, with the words of every Text in it.

    The file is first written under another name in the same folder and then renamed, so at any moment `path` holds
    either the whole old tree or the whole new one.

    A checkpoint of another library (`eqx.tree_serialise_leaves`, Orbax, `np.savez`) has the digests of Texts and no
    words. Save the tree beside it with this function, too; `load` of that file brings the words for both.

    **Arguments:**

    - `path`: the file, replaced if it is there.
    - `tree`: any pytree. JAX and NumPy arrays of plain dtypes, PRNG keys, Texts, and Python's `bool`, `int`, `float`
        and `complex` are saved; any other leaf is not, and comes from `like` again.

    **Raises:** `UnknownDigestError` if a Text's words are not in this process, `TextError` for an array that cannot be
    saved without pickling, `TracedControlFlowError` under a JAX transformation. All name the leaf, and leave `path` as
    it was.
    """
    leaves = _flatten(tree)
    # The real path: to replace a symbolic link would leave the file that it points to as it was.
    target = os.path.realpath(path)
    beside = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        with open(beside, "xb") as file:
            _write(file, leaves)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Reads a pytree that `ember.save` wrote, and puts the words of its Texts into this process.

    **Arguments:**

    - `path`: the file.
    - `like`: a pytree of the same structure, whose arrays have the same shapes and dtypes; their values are not read.
        `eqx.filter_eval_shape(make, …)` gives such a tree without computing it.

    **Returns:** the tree, with NumPy arrays where `like` has them and JAX arrays on the default device elsewhere. A
    leaf that is no array, key, Text or number is taken from `like`.

    **Raises:** `TextError` if `path` is not such a file, is damaged, or holds another structure than `like`; the first
    leaf that differs is named.
    """
    leaves, treedef = jax.tree.flatten(like, is_leaf=_is_text)
    with open(path, "rb") as file, _damage(path), zipfile.ZipFile(file) as archive:
        saved = _read_manifest(path, archive)
        _check_same(path, [leaf for leaf, _ in _flatten(like)], saved)
        known = frozenset(store.put(words) for words in _read_words(archive))
        pairs = zip(saved, leaves, strict=True)
        return treedef.unflatten(_read_leaf(archive, i, *pair, known) for i, pair in enumerate(pairs))


# -- what a leaf is --------------------------------------------------------------------------------------------------


def _is_text(node: Any) -> bool:
    # Equinox puts `None` and booleans in place of a Text's array (as in `eqx.partition`); those have no words, and are
    # saved as the ordinary leaves that they are.
    return isinstance(node, Text) and isinstance(node.digests, _ARRAY_TYPES)


def _flatten(tree: Any) -> list[tuple[_LeafType, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_text)
    return [(_describe(jax.tree_util.keystr(path), leaf), leaf) for path, leaf in leaves]


def _describe(path: str, leaf: Any) -> _LeafType:
    if isinstance(leaf, Text):
        try:
            return _LeafType(path, "text", "Text", leaf.shape)
        except TextError as error:
            raise TextError(f"the leaf `{path}`: {error}") from None
    if isinstance(leaf, _ARRAY_TYPES):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _LeafType(path, "key", str(leaf.dtype), leaf.shape)
        return _LeafType(path, "array", _dtype_name(path, np.dtype(leaf.dtype)), leaf.shape)
    for kind, (write, _) in _NUMBERS.items():
        if isinstance(leaf, kind):
            return _LeafType(path, "number", kind.__name__, value=write(leaf))
    return _LeafType(path, "static")


def _dtype_name(path: str, dtype: np.dtype) -> str:
    # `dtype.str` is tried first because it says the byte order. For dtypes of ml_dtypes, such as bfloat16, it is not a
    # name that NumPy reads back; there `dtype.name` is. A structured dtype is read back from neither.
    for name in (dtype.str, dtype.name):
        with contextlib.suppress(TypeError):
            if np.dtype(name) == dtype and not dtype.hasobject:
                return name
    raise TextError(
        f"the leaf `{path}` is a NumPy array of {dtype}, which cannot be saved without pickling. Save strings as "
        "`ember.text(array)`, and structured arrays as a dictionary of their fields."
    )


def _check_same(path: Any, like: list[_LeafType], saved: list[_LeafType]) -> None:
    # The numbers of leaves are compared after the leaves themselves: an error that names a leaf says more than two
    # counts do.
    for mine, theirs in zip(like, saved, strict=False):
        if (mine.path, mine.kind, mine.dtype, mine.shape) != (theirs.path, theirs.kind, theirs.dtype, theirs.shape):
            raise TextError(
                f"`like` differs from what {os.fspath(path)} holds, first at a leaf that is {mine} in `like` and "
                f"{theirs} in the file. Make `like` as the tree was made that was saved."
            )
    if len(like) != len(saved):
        where, more = ("`like`", like) if len(like) > len(saved) else ("the file", saved)
        raise TextError(
            f"`like` has {len(like)} leaves and {os.fspath(path)} has {len(saved)}: {more[min(len(like), len(saved))]} "
            f"is only in {where}. Make `like` as the tree was made that was saved."
        )


# -- writing ---------------------------------------------------------------------------------------------------------


def _write(file: Any, leaves: list[tuple[_LeafType, Any]]) -> None:
    words: dict[bytes, bytes] = {}
    with zipfile.ZipFile(file, "w") as archive:
        described = []
        for i, (leaf, value) in enumerate(leaves):
            array, leaf = _array(leaf, value)
            if leaf.kind == "text":
                _gather(words, leaf, array)
            if array is not None:
                _add(archive, f"leaves/{i}", array.tobytes())
            described.append(leaf)
        lengths = np.asarray([len(raw) for raw in words.values()], "<u8")
        _add(archive, "lengths", lengths.tobytes())
        _add(archive, "words", b"".join(words.values()), zipfile.ZIP_DEFLATED)
        manifest = {"format": _FORMAT, "version": _VERSION, "leaves": [dataclasses.asdict(leaf) for leaf in described]}
        _add(archive, "manifest.json", json.dumps(manifest).encode(), zipfile.ZIP_DEFLATED)


def _array(leaf: _LeafType, value: Any) -> tuple[Any, _LeafType]:
    """The NumPy array to write, or `None`; with it the leaf's description, completed."""
    held = value.digests if leaf.kind == "text" else value
    if is_tracer(held):
        raise TracedControlFlowError(
            f"the leaf `{leaf.path}` is traced: its value is not known while JAX traces. Call ember.save outside of "
            "jax.jit, jax.vmap and the like, on what they return."
        )
    if isinstance(held, jax.ShapeDtypeStruct):
        raise TextError(f"the leaf `{leaf.path}` is a jax.ShapeDtypeStruct: it has a shape and no values to save.")
    if leaf.kind == "key":
        leaf = dataclasses.replace(leaf, value=str(jax.random.key_impl(value)))
        return np.asarray(jax.random.key_data(value)), leaf
    return (np.asarray(held), leaf) if leaf.kind in ("array", "text") else (None, leaf)


def _gather(words: dict[bytes, bytes], leaf: _LeafType, digests: np.ndarray) -> None:
    try:
        found = turns.closure([digest for digest in store.split(digests) if digest not in words])
    except UnknownDigestError as error:
        raise UnknownDigestError(f"the leaf `{leaf.path}` cannot be saved: {error}") from None
    words.update({digest: said.encode() for digest, said in found.items()})


def _add(archive: zipfile.ZipFile, name: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    info = zipfile.ZipInfo(name)  # its date is 1980 unless one is given: with today's, equal trees would differ
    info.compress_type = compression
    with archive.open(info, "w", force_zip64=True) as member:
        member.write(data)


# -- reading ---------------------------------------------------------------------------------------------------------


# What reading a damaged file raises besides the errors of `zipfile`, `zlib` and `struct` themselves: OSError for a part
# that would lie before the file's beginning, KeyError for a part that is missing, RuntimeError for a part that seems
# encrypted, TypeError for a manifest with other fields than ours.
_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
)


@contextlib.contextmanager
def _damage(path: Any) -> Iterator[None]:
    """Turns every exception of `_READ_ERRORS` into one `TextError` that names the file."""
    try:
        yield
    except TextError:
        raise
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def _damaged(path: Any, error: Exception) -> TextError:
    return TextError(
        f"{os.fspath(path)} was not written by ember.save, or is damaged: {error!s:.200}. (A checkpoint of Equinox's "
        "own is read with eqx.tree_deserialise_leaves, and holds no words.)"
    )


def _read_manifest(path: Any, archive: zipfile.ZipFile) -> list[_LeafType]:
    manifest = json.loads(archive.read("manifest.json"))
    if (manifest["format"], manifest["version"]) != (_FORMAT, _VERSION):
        raise TextError(
            f"{os.fspath(path)} holds {manifest['format']!r} in version {manifest['version']}; this ember_jax reads "
            f"{_FORMAT!r} in version {_VERSION}. Upgrade ember_jax, or save the tree again."
        )
    return [_LeafType(**leaf | {"shape": tuple(leaf["shape"])}) for leaf in manifest["leaves"]]


def _read_words(archive: zipfile.ZipFile) -> list[str]:
    lengths = np.frombuffer(archive.read("lengths"), "<u8")
    ends = np.cumsum(lengths, dtype=np.int64)
    raw = archive.read("words")
    return [raw[end - length : end].decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _read_leaf(archive: zipfile.ZipFile, i: int, saved: _LeafType, like: Any, known: frozenset[bytes]) -> Any:
    if saved.kind == "static":
        return like
    if saved.kind == "number":
        read = next(read for kind, (_, read) in _NUMBERS.items() if kind.__name__ == saved.dtype)
        return type(like)(read(saved.value))
    raw = archive.read(f"leaves/{i}")
    if saved.kind == "key":
        data = jax.eval_shape(jax.random.key_data, like)
        array = jnp.asarray(np.frombuffer(raw, data.dtype).reshape(data.shape))
        return jax.random.wrap_key_data(array, impl=saved.value)
    if saved.kind == "text":
        digests = np.frombuffer(raw, np.uint32).reshape(*saved.shape, store.DIGEST_WORDS)
        if not all(digest in known or store.is_reserved(digest) for digest in store.split(digests)):
            raise TextError(f"the file is damaged: it lacks words of the leaf `{saved.path}`.")
        return Text(jnp.asarray(digests))
    array = np.frombuffer(raw, np.dtype(saved.dtype)).reshape(saved.shape)
    if isinstance(like, np.generic):
        return array[()]
    # A NumPy array is copied, since `np.frombuffer` on bytes gives one that cannot be written to. A saved NaN is a
    # value of the tree, so JAX's check for NaN is off while the array is made.
    with nan_is_a_value():
        return array.copy() if isinstance(like, np.ndarray) else jnp.asarray(array)
