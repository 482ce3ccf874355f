import copy
import pickle

import equinox as eqx
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

import ember_jax as ember
from ember_jax._jax import internals
from ember_jax.errors import TextError, TracedControlFlowError, UnknownDigestError

words = st.text(max_size=20)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
# Each new shape compiles, so that arrays cost more than strings do.
few = settings(max_examples=max(25, settings.default.max_examples // 4))


def arrays(shape):
    return hnp.arrays(object, shape, elements=words)


def same(text, expected):
    expected = np.asarray(expected, object)
    assert text.shape == expected.shape
    assert np.asarray(text).tolist() == expected.tolist()


# -- in and out ------------------------------------------------------------------------------------------------------


@given(st.text())
def test_a_string_comes_back(string):
    t = ember.text(string)
    assert str(t) == t.tolist() == f"{t}" == string
    assert t.shape == () and t.ndim == 0 and t.size == 1


@few
@given(shapes.flatmap(arrays))
def test_an_array_of_strings_comes_back(array):
    same(ember.text(array), array)
    assert ember.text(array).tolist() == array.tolist()
    if array.size:  # the lists of an empty array do not tell its shape
        same(ember.text(array.tolist()), array)


odd = ["", "\0", "a\0", "\0a\0", "👩\u200d👩\u200d👧", "e\u0301", "\u202e", "\ufeff", " \n", "{x}"]


@pytest.mark.parametrize("string", [*odd, pytest.param("é" * 5_000_000, id="10 MB")])
def test_no_string_is_changed(string):
    assert str(ember.text(string)) == string
    assert ember.text([string, "b"]).tolist() == [string, "b"]
    assert ember.text(np.asarray([string, "b"], object)).tolist() == [string, "b"]


def test_what_text_takes():
    expected = ember.text(["a", "b"])
    for given_ in (("a", "b"), np.asarray(["a", "b"]), pd.Series(["a", "b"]), pd.Index(["a", "b"]), expected):
        same(ember.text(given_), ["a", "b"])
    assert ember.text(expected) is expected
    assert str(ember.text(np.str_("a"))) == "a"
    assert ember.text([]).shape == (0,)
    assert ember.text([[], []]).shape == (2, 0)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (3, "the argument of ember.text is of type int (3), not a string. Convert it with str()."),
        (["a", None], "element [1] of ember.text is of type NoneType (None), not a string. Fill missing values first."),
        (["a", float("nan")], "Fill missing values first"),
        (pd.Series(["a", None]), "element [1]"),
        ([["a"], ["b", 2]], "of unequal length"),
        ([["a"], ["b", "c"]], "of unequal length"),
        (["a", ["b"]], "of unequal length"),
        ([["a"], [b"c"]], "element [1, 0] of ember.text is of type bytes"),
        ({"a": "b"}, "of type dict"),
        (jnp.zeros(3), "ember.text takes strings; got an array of float32[3]"),
        ([ember.text("a")], "put together with ember.stack"),
    ],
)
def test_what_text_refuses(given_, message):
    with pytest.raises(TextError) as error:
        ember.text(given_)
    assert message in str(error.value)


@given(st.text(), st.characters(categories=["Cs"]), st.text())
def test_a_lone_surrogate_is_refused_by_name(before, surrogate, after):
    with pytest.raises(TextError) as error:
        ember.text(before + surrogate + after)
    assert f"character {len(before)} " in str(error.value)
    assert f"U+{ord(surrogate):04X}" in str(error.value)
    assert 'errors="replace"' in str(error.value)


def test_a_subclass_of_str_is_kept_as_plain_words():
    assert type(str(ember.text(np.asarray(["a", "b"]))[0])) is str


# -- as an array -----------------------------------------------------------------------------------------------------


@st.composite
def arrays_with_index(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3))
    index = draw(
        hnp.basic_indices(shape, allow_newaxis=True)
        | hnp.integer_array_indices(shape)
        | hnp.arrays(bool, shape)
        | hnp.arrays(bool, shape[:1])
        | st.lists(st.integers(-shape[0], shape[0] - 1), max_size=3)
    )
    return draw(arrays(shape)), index


@few
@given(arrays_with_index())
def test_indexing_is_numpys(case):
    array, index = case
    # NumPy makes floats of an empty list
    numpys = np.asarray(index, int) if isinstance(index, list) else index
    same(ember.text(array)[index], array[numpys])


@few
@given(shapes.flatmap(arrays), st.randoms())
def test_reshape_is_numpys(array, random):
    shape = list(array.shape)
    random.shuffle(shape)
    same(ember.text(array).reshape(*shape), array.reshape(shape))
    same(ember.text(array).reshape(tuple(shape)), array.reshape(shape))
    if array.size:
        same(ember.text(array).reshape(-1), array.reshape(-1))
        same(ember.text(array).reshape(1, -1, 1), array.reshape(1, -1, 1))


broadcastable = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3)
few_words = st.sampled_from(["", "a", "A", "b", "a\0", "é", "e\u0301"])


@few
@given(broadcastable.flatmap(lambda b: st.tuples(*(hnp.arrays(object, s, elements=few_words) for s in b.input_shapes))))
def test_equality_and_addition_are_numpys(pair):
    a, b = pair
    s, t = ember.text(a), ember.text(b)
    np.testing.assert_array_equal(s == t, np.asarray(a == b))
    np.testing.assert_array_equal(s != t, np.asarray(a != b))
    same(s + t, np.asarray(a + b, object))


def test_equality_with_strings_lists_and_arrays():
    t = ember.text(["a", "b"])
    for other in (["a", "x"], ("a", "x"), np.asarray(["a", "x"]), np.asarray(["a", "x"], object)):
        assert (t == other).tolist() == (other == t).tolist() == [True, False]
        assert (t != other).tolist() == [False, True]
    assert (t == "b").tolist() == (t == "b").tolist() == [False, True]
    assert (t == None) is False  # noqa: E711  # another type altogether
    assert (t != 3) is True


def test_addition_of_strings():
    t = ember.text(["a", "b"])
    assert ("<" + t + ">").tolist() == ["<a>", "<b>"]
    with pytest.raises(TypeError):
        t + 3


def test_sequence_protocol():
    t = ember.text([["a", "b"], ["c", "d"], ["e", "f"]])
    assert len(t) == 3
    assert [row.tolist() for row in t] == t.tolist()
    assert "el" in ember.text("hello") and "x" not in ember.text("hello")
    assert f"{ember.text('ab'):>4}" == "  ab"
    with pytest.raises(TypeError, match="no len"):
        len(ember.text("a"))
    with pytest.raises(TypeError, match="no len"):
        iter(ember.text("a"))
    with pytest.raises(TypeError, match="looks for an element"):
        "a" in t  # noqa: B015
    with pytest.raises(IndexError, match="rank 0"):
        ember.text("a")[0]
    with pytest.raises(TypeError, match="compare it"):
        bool(ember.text("a"))
    with pytest.raises(TypeError, match="unhashable"):
        hash(t)


@pytest.mark.parametrize("index", [3, -4, (0, 2), (slice(None), -3), (..., 5), (None, 3), np.int64(3)])
def test_an_index_out_of_range_raises_as_numpys_does(index):
    array = np.asarray([["a", "b"], ["c", "d"], ["e", "f"]], object)
    with pytest.raises(IndexError) as expected:
        array[index]
    with pytest.raises(IndexError) as error:
        ember.text(array)[index]
    assert str(error.value) == str(expected.value)


def test_reshape_to_another_size_names_the_shape_of_the_strings():
    with pytest.raises(ValueError, match=r"size 3 into shape \(2,2\)"):
        ember.text(["a", "b", "c"]).reshape(2, 2)


def test_repr():
    assert repr(ember.text("a")) == "Text('a')"
    assert repr(ember.text(["a", "b"])) == "Text[2]('a', 'b')"
    assert repr(ember.text([["a"] * 3] * 2)) == "Text[2,3]('a', 'a', 'a', 'a', … 2 more)"
    assert repr(ember.text([])) == "Text[0]()"
    assert len(repr(ember.text("x" * 1000))) < 80
    assert repr(ember.Text(jnp.ones(4, jnp.uint32))) == "Text(<unknown words>)"
    assert repr(ember.Text(None)) == "Text(None)"
    assert repr(jax.eval_shape(lambda: ember.text(["a"]))).startswith("Text(ShapeDtypeStruct")
    shown = []
    jax.jit(lambda t: shown.append(repr(t)))(ember.text(["a", "b"]))
    assert shown == ["Text[2](traced)"]


def test_copies_and_pickles():
    t = ember.text(["a", "b"])
    for other in (copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        same(other, ["a", "b"])


def test_annotation_with_a_shape():
    assert repr(ember.Text["n m"]) == 'Text["n m"]'
    assert type(None) in (ember.Text["n"] | None).__args__
    with pytest.raises(TypeError, match=r"make a Text with `ember\.text`"):
        ember.Text["n"]()
    with pytest.raises(TypeError, match="shape as a string"):
        ember.Text[3]


# -- inside JAX ------------------------------------------------------------------------------------------------------


class Prompt(eqx.Module):
    text: ember.Text
    weight: jax.Array


def prompt():
    return Prompt(ember.text(["a", "b"]), jnp.ones(2))


def test_text_is_a_pytree_of_one_array():
    t = ember.text(["a", "b"])
    (leaf,) = jax.tree.leaves(t)
    assert leaf.shape == (2, 4) and leaf.dtype == jnp.uint32
    assert jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(prompt())[0][0]) == ".text.digests"
    same(jax.tree.map(lambda x: x[::-1], t), ["b", "a"])
    same(jax.tree.map(lambda *xs: jnp.stack(xs), t, t), [["a", "b"], ["a", "b"]])


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, eqx.filter_jit])
def test_vmap(transform):
    t = ember.text([["a", "b"], ["c", "d"]])
    same(transform(jax.vmap(lambda row: row[::-1] + "!"))(t), [["b!", "a!"], ["d!", "c!"]])
    same(transform(jax.vmap(jax.vmap(lambda s: s + s)))(t), [["aa", "bb"], ["cc", "dd"]])
    same(transform(jax.vmap(lambda x, y: x + y, in_axes=(0, None)))(t[0], t[1][0]), ["ac", "bc"])
    same(transform(jax.vmap(lambda row: row, in_axes=1))(t), [["a", "c"], ["b", "d"]])
    same(transform(jax.vmap(lambda s: s + "!"))(ember.text([])), [])
    assert transform(jax.vmap(lambda row: row == "b"))(t).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_scan_carries_and_stacks_text(transform):
    def run(t):
        return jax.lax.scan(lambda carry, x: (carry + x, carry), ember.text(""), t)

    last, steps = transform(run)(ember.text(["a", "b", "c"]))
    assert str(last) == "abc"
    same(steps, ["", "a", "ab"])


def test_control_flow():
    t = ember.text(["yes", "no"])

    @jax.jit
    def chosen(x):
        return jax.lax.cond(x == "yes", lambda: x + "!", lambda: ember.text("never"))

    assert [str(chosen(x)) for x in t] == ["yes!", "never"]
    same(jax.vmap(chosen)(t), ["yes!", "never"])
    grown = jax.jit(lambda: jax.lax.while_loop(lambda s: s != "aaaa", lambda s: s + "a", ember.text("")))()
    assert str(grown) == "aaaa"
    looped = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda i, s: s + "b", ember.text("a")))(3)
    assert str(looped) == "abbb"
    same(jax.jit(lambda i: t[i])(jnp.asarray([1, 0])), ["no", "yes"])
    assert str(jax.jit(lambda i: t[i])(1)) == "no"


def test_equinox():
    p = prompt()
    changed = eqx.tree_at(lambda p: p.text, p, ember.text(["c", "d", "e"]))
    same(changed.text, ["c", "d", "e"])
    arrays_, static = eqx.partition(p, eqx.is_array)
    same(eqx.combine(arrays_, static).text, ["a", "b"])
    assert eqx.tree_equal(p, prompt())
    assert not eqx.tree_equal(p, eqx.tree_at(lambda p: p.text, p, ember.text(["a", "c"])))
    assert eqx.filter(p, eqx.is_inexact_array).text.digests is None
    grads = eqx.filter_grad(lambda p: jnp.sum(p.weight, where=p.text == "a"))(p)
    assert grads.weight.tolist() == [1.0, 0.0] and grads.text.digests is None
    same(eqx.filter_jit(lambda p: p.text + "!")(p), ["a!", "b!"])
    same(eqx.filter_vmap(lambda p: p.text + "!")(p), ["a!", "b!"])


def test_equinox_checkpoints(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "p.eqx", prompt())
    like = eqx.tree_at(lambda p: p.text, prompt(), ember.text(["x", "y"]))
    same(eqx.tree_deserialise_leaves(tmp_path / "p.eqx", like).text, ["a", "b"])


def test_words_do_not_retrace():
    traces = []

    @jax.jit
    def f(t):
        traces.append(t.shape)
        return t + "!"

    for string in ("a", "b" * 1000, "", "é"):
        assert str(f(ember.text(string))) == string + "!"
    f(ember.text(["a"]))
    assert traces == [(), (1,)]


def test_words_made_while_tracing_are_constants():
    @jax.jit
    def f():
        t = ember.text(["a", "b"])
        assert t.tolist() == ["a", "b"]  # known, although something is traced
        return t

    same(f(), ["a", "b"])


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [str, lambda t: f"{t}", bool, lambda t: t.tolist(), np.asarray, lambda t: "a" in t])
def test_traced_words_are_refused_with_the_way_out(use):
    with pytest.raises(TracedControlFlowError) as error:
        jax.jit(lambda t: use(t))(ember.text("a"))
    assert 'ember.format("… {x} …", x=text)' in str(error.value)
    assert "ember.host" in str(error.value)


def test_digests_taken_apart_are_told():
    t = ember.text(["a", "b", "c", "d"])
    with pytest.raises(UnknownDigestError) as error:
        str(jax.vmap(lambda column: column, in_axes=-1)(t))
    causes = str(error.value)
    assert causes.index("in_axes=-1") < causes.index("ember.save") < causes.index("another process")
    with pytest.raises(TextError, match=r"must end in an axis of 4.*Map, move and reduce leading axes only"):
        _ = ember.Text(jnp.zeros((4, 3), jnp.uint32)).shape
    with pytest.raises(TextError, match="holds None in place of digests"):
        _ = ember.Text(None).shape


def test_blank_digests_are_told():
    with pytest.raises(UnknownDigestError, match=r'this Text is blank.*start from `ember.text\(""\)`'):
        str(ember.Text(jnp.zeros(4, jnp.uint32)))
    assert (ember.Text(jnp.zeros(4, jnp.uint32)) == "").item() is False


@pytest.mark.parametrize("size", [4, 1000, 100_000])
def test_an_array_of_jax_has_memory_of_its_own(size):
    for _ in range(10):  # whether JAX takes NumPy's memory over depends on where it lies
        array = np.zeros(size, np.uint32)
        made = internals.device_array(array)
        array[:] = 7
        assert not np.asarray(made).any()


def test_a_part_of_a_text_does_not_change_with_the_array_that_it_was_made_of():
    digests = np.array(ember.text(["a", "b", "c"]).digests)
    part = ember.Text(digests)[1:]
    digests[:] = np.asarray(ember.text("z").digests)
    assert part.tolist() == ["b", "c"]
