import enum
import json
import math
import os
import subprocess
import sys
import zipfile
from unittest import mock

import equinox as eqx
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import ember_jax as ember
from ember_jax._text import store
from ember_jax.errors import TextError, TracedControlFlowError, UnknownDigestError

few = settings(max_examples=max(25, settings.default.max_examples // 4))


class Net(eqx.Module):
    prompt: ember.Text
    layer: eqx.nn.Linear
    key: jax.Array
    name: str = eqx.field(static=True)
    rate: float = 0.1


def net(seed=0, words=("a", "b\0")):
    return Net(ember.text(list(words)), eqx.nn.Linear(2, 3, key=jax.random.key(seed)), jax.random.key(seed), "net")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tree.ember"


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array | np.ndarray | np.generic):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert x is y or x == y or (x != x and y != y)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


TREES = {
    "a module": net,
    "a Text": lambda: ember.text("a"),
    "Texts": lambda: [ember.text([["a", "😀"], ["", "b\0"]]), ember.text([]), ember.text([[], []]), ember.text("a")],
    "blank Texts": lambda: [ember.Text(jnp.zeros((2, 4), jnp.uint32)), ember.text("a")],
    "NumPy digests": lambda: {"t": ember.Text(jnp.asarray(ember.text("a").digests))},
    "keys": lambda: [
        jax.random.key(3),
        jax.random.key(3, impl="rbg"),
        jax.random.split(jax.random.key(0), (2, 3)),
        jax.random.split(jax.random.key(0), 2)[:0],
        jax.random.PRNGKey(5),
    ],
    "JAX arrays": lambda: [
        jnp.asarray(values, dtype)
        for dtype in ("float32", "bfloat16", "float8_e4m3fn", "int4", "uint8", "bool", "complex64")
        for values in (1, [[1, 0]], [])
    ],
    "NumPy arrays": lambda: {
        "float64": np.asarray([0.1, np.nan, -0.0]),
        "big-endian": np.arange(3, dtype=">f8"),
        "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strings": np.asarray(["a", "bc"]),
        "dates": np.asarray(["2024-01-15"], "M8[D]"),
        "scalar": np.float32(2),
        "bool": np.bool_(True),
    },
    "Python's numbers": lambda: [
        True,
        False,
        0,
        -7,
        10**5000,
        0.1,
        -0.0,
        math.inf,
        math.nan,
        1 - 2j,
        Level.HIGH,
    ],
    "other leaves": lambda: {"f": jnp.sum, "s": "words", "none": None, "text of none": ember.Text(None), "n": 1},
    "nothing": dict,
}


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_a_tree_comes_back(make, file):
    tree = make()
    ember.save(file, tree)
    same(ember.load(file, tree), tree)
    ember.save(str(file), tree)  # once more over itself
    same(ember.load(str(file), tree), tree)
    assert os.listdir(file.parent) == [file.name]


@few
@given(
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3).flatmap(
        lambda s: hnp.arrays(object, s, elements=st.text())
    )
)
def test_any_text_comes_back(tmp_path_factory, words):
    file = tmp_path_factory.mktemp("text") / "t"
    t = ember.text(words)
    ember.save(file, {"t": t})
    with mock.patch.object(store, "_words", store.words_within(1 << 20)):  # as if this were another process
        loaded = ember.load(file, {"t": t})["t"]
        assert np.asarray(loaded).tolist() == words.tolist() and loaded.shape == words.shape


def test_words_reach_another_process(file):
    long = "é" * 5_000_000
    ember.save(file, [ember.text(["a\0", "😀", ""]), ember.text(long), ember.text("a\0")])
    code = f"""
import ember_jax as ember, jax, jax.numpy as jnp
like = [ember.Text(jnp.zeros((3, 4), jnp.uint32)), ember.Text(jnp.zeros(4, jnp.uint32)), ember.text("x")]
a, b, c = ember.load({str(file)!r}, like)
assert a.tolist() == ["a\\0", "😀", ""] and str(b) == "é" * 5_000_000 and str(c) == "a\\0"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert file.stat().st_size < 100_000  # words are compressed


def test_like_gives_structure_and_types_only(file):
    ember.save(file, net(0))
    same(ember.load(file, net(1, ("x", "y"))), net(0))
    loaded = ember.load(file, eqx.filter_eval_shape(net, 1))
    same(eqx.filter(loaded, eqx.is_array), eqx.filter(net(0), eqx.is_array))
    loaded = ember.load(file, net(1)).prompt
    assert isinstance(loaded.digests, jax.Array) and loaded.tolist() == ["a", "b\0"]


def test_what_is_no_array_comes_from_like(file):
    ember.save(file, {"f": jnp.sum, "s": "saved", "x": jnp.ones(2)})
    loaded = ember.load(file, {"f": jnp.max, "s": "like", "x": jnp.zeros(2)})
    assert loaded["f"] is jnp.max and loaded["s"] == "like" and loaded["x"].tolist() == [1, 1]


def test_numpy_arrays_stay_numpy_and_can_be_written_to(file):
    ember.save(file, {"a": jnp.arange(3), "b": np.arange(3)})
    loaded = ember.load(file, {"a": np.zeros(3, np.int32), "b": np.zeros(3, int)})
    loaded["a"][0] = loaded["b"][0] = 7
    assert loaded["a"].tolist() == loaded["b"].tolist() == [7, 1, 2]


def test_equal_trees_give_equal_bytes(file):
    ember.save(file, net())
    first = file.read_bytes()
    ember.save(file, net())
    assert file.read_bytes() == first


def test_each_word_is_stored_once_and_only_those_of_the_tree(file):
    ember.text("elsewhere")
    ember.save(file, [ember.text(["a", "bb", "a"]), ember.text("bb"), ember.text("ü")])
    with zipfile.ZipFile(file) as archive:
        assert archive.read("words").decode() == "abbü"
        manifest = json.loads(archive.read("manifest.json"))
    assert [leaf["kind"] for leaf in manifest["leaves"]] == ["text"] * 3


# -- what is refused -------------------------------------------------------------------------------------------------

LIKE = {"a": jnp.zeros(2), "k": jax.random.key(0), "t": ember.text(["a", "b"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": jnp.zeros(3)}, "first at a leaf that is `['a']`, <f4[3] in `like` and `['a']`, <f4[2] in the file"),
        ({"a": jnp.zeros(2, jnp.int32)}, "`['a']`, <i4[2] in `like` and `['a']`, <f4[2] in the file"),
        ({"a": 0.0}, "`['a']`, float in `like` and `['a']`, <f4[2] in the file"),
        ({"a": "words"}, "`['a']`, no array or number in `like`"),
        ({"k": jax.random.key(0, impl="rbg")}, "`['k']`, key<rbg>[] in `like` and `['k']`, key<fry>[] in the file"),
        ({"k": jnp.zeros(2, jnp.uint32)}, "`['k']`, <u4[2] in `like`"),
        ({"t": ember.text("a")}, "`['t']`, Text[] in `like` and `['t']`, Text[2] in the file"),
        ({"t": jnp.zeros((2, 4), jnp.uint32)}, "`['t']`, <u4[2, 4] in `like` and `['t']`, Text[2] in the file"),
        ({"t": None}, "`like` has 2 leaves and "),
        ({"t": None}, " has 3: `['t']`, Text[2] is only in the file"),
        ({"z": 1}, " has 3: `['z']`, int is only in `like`"),
        ({"b": 1}, "that is `['b']`, int in `like` and `['k']`, key<fry>[] in the file"),
    ],
)
def test_another_structure_is_told_by_its_first_leaf(change, message, file):
    ember.save(file, LIKE)
    with pytest.raises(TextError) as error:
        ember.load(file, LIKE | change)
    assert message in str(error.value) and "Make `like` as the tree was made" in str(error.value)


@pytest.mark.parametrize(
    ("leaf", "kind", "message"),
    [
        (
            ember.Text(jnp.full((2, 4), 7, jnp.uint32)),
            UnknownDigestError,
            "the leaf `['x'][1]` cannot be saved: the words of",
        ),
        (
            ember.Text(jnp.zeros((4, 3), jnp.uint32)),
            TextError,
            "the leaf `['x'][1]`: a Text's array must end in an axis of 4",
        ),
        (
            np.asarray(["a", None]),
            TextError,
            "`['x'][1]` is a NumPy array of object, which cannot be saved without pickling",
        ),
        (np.zeros(2, [("f", "f4")]), TextError, "structured arrays as a dictionary"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), TextError, "`['x'][1]` is a jax.ShapeDtypeStruct"),
    ],
)
def test_what_save_refuses_is_named_and_leaves_the_old_file(leaf, kind, message, file):
    ember.save(file, [1])
    with pytest.raises(kind) as error:
        ember.save(file, {"x": [jnp.ones(2), leaf]})
    assert message in str(error.value)
    assert ember.load(file, [0]) == [1]
    assert os.listdir(file.parent) == [file.name]


def test_saving_a_traced_tree_is_refused(file):
    with pytest.raises(TracedControlFlowError, match=r"`\['t'\]` is traced.*outside of jax\.jit"):
        jax.jit(lambda t: ember.save(file, {"t": t}))(ember.text("a"))
    assert not file.exists()


def test_a_file_of_another_kind_is_told(file, tmp_path):
    for raw in (b"", b"words", b"PK\x05\x06" + bytes(18)):
        file.write_bytes(raw)
        with pytest.raises(TextError, match=r"was not written by ember\.save, or is damaged"):
            ember.load(file, LIKE)
    eqx.tree_serialise_leaves(file, LIKE["a"])
    with pytest.raises(TextError, match=r"read with eqx\.tree_deserialise_leaves"):
        ember.load(file, LIKE["a"])
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    with pytest.raises(TextError, match="damaged"):
        ember.load(tmp_path / "arrays.npz", LIKE)
    with pytest.raises(FileNotFoundError):
        ember.load(tmp_path / "missing", LIKE)


def rewrite(file, name, data):
    with zipfile.ZipFile(file) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    parts[name] = data(parts[name])
    with zipfile.ZipFile(file, "w") as archive:
        for part, raw in parts.items():
            archive.writestr(part, raw)


def test_a_newer_format_is_told(file):
    ember.save(file, LIKE)
    rewrite(file, "manifest.json", lambda raw: raw.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(TextError, match=r"in version 2; this ember_jax reads 'ember_jax tree' in version 1\. Upgrade"):
        ember.load(file, LIKE)


def test_missing_words_are_told_by_their_leaf(file):
    ember.save(file, LIKE)
    rewrite(file, "words", lambda raw: b"xy")
    with pytest.raises(TextError, match=r"lacks words of the leaf `\['t'\]`"):
        ember.load(file, LIKE)
    rewrite(file, "words", lambda raw: b"\xff\xff")
    with pytest.raises(TextError, match="damaged"):
        ember.load(file, LIKE)


@given(st.data())
def test_a_damaged_file_gives_the_tree_or_an_error_of_ours(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("damage") / "t"
    ember.save(file, LIKE)
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(raw)
    try:
        loaded = ember.load(file, LIKE)
    except TextError:
        return
    same(loaded, LIKE)  # what was damaged did not matter


def test_an_interrupted_save_leaves_the_old_file(file, monkeypatch):
    ember.save(file, [1])

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ember.save(file, [2])
    assert ember.load(file, [0]) == [1]
    assert os.listdir(file.parent) == [file.name]


def test_a_link_is_followed(file, tmp_path):
    ember.save(file, [1])
    (tmp_path / "link").symlink_to(file)
    ember.save(tmp_path / "link", [2])
    assert ember.load(file, [0]) == [2] and (tmp_path / "link").is_symlink()
