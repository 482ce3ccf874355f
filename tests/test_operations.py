import functools
import string
import unicodedata
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

import ember_jax as ember
from ember_jax.errors import TextError

words = st.text(max_size=12)
few = settings(max_examples=max(25, settings.default.max_examples // 4))
TRANSFORMS = {"eager": lambda f: f, "jit": jax.jit}


def arrays(shape, elements=words):
    return hnp.arrays(object, shape, elements=elements)


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return TRANSFORMS[request.param]


# -- format ----------------------------------------------------------------------------------------------------------

FIELDS = {
    "name": "Ada",
    "brace": "{name} and {{n}}",
    "n": 7,
    "x": 0.1,
    "long_name": 2**70,
    "flag": True,
    "double": 3.141592653589793,
}
literals = st.text(alphabet="ab {}:\\n\"'%\n", max_size=8).filter(lambda s: not any(f"{{{f}" in s for f in FIELDS))
fields = st.sampled_from([*FIELDS]).map(lambda name: (f"{{{name}}}", str(FIELDS[name])))
specified = st.sampled_from(
    [(f"{{x:{s}}}", format(0.1, s)) for s in (".2f", "8.3e", ".0%", ">+9.1f")]
    + [(f"{{n:{s}}}", format(7, s)) for s in ("03d", "x", "", ".1f")]
    + [(f"{{name:{s}}}", format("Ada", s)) for s in (">6", ".1", "")]
)


@given(st.lists(literals.map(lambda s: (s, s)) | fields | specified, max_size=8))
def test_format_fills_the_names_passed_and_nothing_else(parts):
    template, expected = ("".join(side) for side in zip(*parts, strict=True)) if parts else ("", "")
    used = {n: v for n, v in FIELDS.items() if any(p.startswith((f"{{{n}}}", f"{{{n}:")) for p, _ in parts)}
    assert str(ember.format(template, **used)) == expected
    assert str(ember.format(ember.text(template), **used)) == expected


def test_format_leaves_json_and_latex_alone(transform):
    template = r'{"a": {x}, "b": {"c": "{q}"}} \frac{a}{b} {0} {} {x!r} {y.z}'
    filled = transform(lambda q, x: ember.format(template, q=q, x=x))(ember.text("{x}"), jnp.asarray(2))
    assert str(filled) == r'{"a": 2, "b": {"c": "{x}"}} \frac{a}{b} {0} {} {x!r} {y.z}'


@few
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), st.data())
def test_format_broadcasts_as_numpy_does(broadcastable, data):
    a, b, t = (data.draw(arrays(s, st.sampled_from(["", "a", "{b}", "é"]))) for s in broadcastable.input_shapes)
    templates = np.vectorize(lambda w: w + "<{a}|{b}>", otypes=[object])(t) if t.size else t
    filled = ember.format(ember.text(templates), a=ember.text(a), b=ember.text(b))
    one = lambda t, a, b: t.split("<")[0].replace("{b}", b) + f"<{a}|{b}>"
    expected = np.broadcast_arrays(templates, a, b)
    assert filled.shape == expected[0].shape == broadcastable.result_shape
    rows = zip(*(e.ravel().tolist() for e in expected), strict=True)
    assert np.asarray(filled).ravel().tolist() == [one(*row) for row in rows]


def test_format_takes_arrays(transform):
    f = transform(lambda x: ember.format("{x:.1f}", x=x))
    assert f(jnp.asarray([0.25, 1, jnp.nan])).tolist() == ["0.2", "1.0", "nan"]
    assert transform(jax.vmap(lambda i: ember.format("{i:02d}", i=i)))(jnp.arange(3)).tolist() == ["00", "01", "02"]
    assert ember.format("{x}", x=np.asarray([[1, 2]])).tolist() == [["1", "2"]]
    assert ember.format("{x}", x=[True, False]).tolist() == ["True", "False"]
    assert ember.format("{x}", x=["a\0", "b"]).tolist() == ["a\0", "b"]
    assert ember.format("{x}", x=np.asarray(["a", "b"])).tolist() == ["a", "b"]
    assert ember.format("{x}", x=(jnp.asarray(1), jnp.asarray(2))).tolist() == ["1", "2"]
    assert ember.format("{x}", x=np.zeros((0, 2))).shape == (0, 2)


@given(st.floats(width=32))
def test_format_writes_an_array_of_floats_as_short_as_reads_back(x):
    written = str(ember.format("{x}", x=jnp.asarray(x, jnp.float32)))
    assert np.float32(written) == np.float32(x) or x != x
    assert written == repr(float(np.format_float_scientific(np.float32(x))))


@pytest.mark.parametrize(
    "x", [0.1, 3.141592653589793, 1e300, -0.0, 3_000_000_000, 2**100, True, np.int64(2**40), np.float32(0.1), 1 + 2j]
)
def test_format_writes_pythons_numbers_as_they_are(x, transform):
    assert str(transform(lambda: ember.format("{x}", x=x))()) == str(x)
    assert str(transform(lambda t: ember.format(t, x=x))(ember.text("{x}"))) == str(x)


def test_format_never_mistakes_a_number_for_an_equal_one():
    t = ember.text("{x}")
    for x in (1, True, 1.0, 0, 0.0, -0.0, False):
        assert str(jax.jit(lambda t: ember.format(t, x=x))(t)) == str(x)


def test_format_has_no_reserved_name():
    assert str(ember.format("{template}{self}{names}", template="a", self="b", names="c")) == "abc"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ember.format("hello", x="a"),
            "the template lacks the field {x} that was passed to ember.format: 'hello'",
        ),
        (
            lambda: ember.format("{x}", x=None),
            "the field x of ember.format is of type NoneType; it takes text, numbers",
        ),
        (lambda: ember.format("{x}", x=jax.random.key(0)), "it takes text, numbers and arrays of them"),
        (lambda: ember.format("{x:d}", x="a"), "cannot write a str in the field '{x:d}': Unknown format code 'd'"),
        (lambda: ember.format("{x:d}", x=jnp.ones(())), "cannot write a float in the field '{x:d}'"),
        (lambda: ember.format("{x}", x=np.asarray([2**40])), "holds integers that do not fit into int32"),
        (lambda: ember.format("{x}", x=[2**40]), "[str(n) for n in numbers]"),
    ],
)
def test_what_format_refuses(call, message):
    with pytest.raises(TextError) as error:
        call()
    assert message in str(error.value)


def test_a_text_template_may_lack_a_field():
    templates = ember.text(["{x}", "none"])
    assert ember.format(templates, x="a").tolist() == ["a", "none"]
    assert jax.vmap(lambda t: ember.format(t, x="a"))(templates).tolist() == ["a", "none"]


def test_a_missing_field_is_told_while_tracing():
    with pytest.raises(TextError, match=r"lacks the field \{x\}"):
        jax.jit(lambda x: ember.format("no field", x=x))(ember.text("a"))


def test_format_retraces_for_no_words():
    traces = []

    @jax.jit
    def f(t):
        traces.append(None)
        return ember.format("{t}!", t=t)

    assert [str(f(ember.text(w))) for w in ("a", "b" * 100, "{t}")] == ["a!", "b" * 100 + "!", "{t}!"]
    assert len(traces) == 1


# -- join, where, stack, concatenate ---------------------------------------------------------------------------------


@few
@given(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3).flatmap(arrays), words, st.data())
def test_join_is_strs(array, separator, data):
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    joined = ember.join(separator, ember.text(array), axis=axis)
    last = np.moveaxis(array, axis, -1)
    assert joined.shape == last.shape[:-1]
    assert np.asarray(joined).ravel().tolist() == [
        separator.join(last[index].tolist()) for index in np.ndindex(last.shape[:-1])
    ]


def test_join_takes_sequences(transform):
    t = ember.text(["a", "b"])
    assert transform(lambda t: ember.join(", ", [t, "x", t]))(t).tolist() == ["a, x, a", "b, x, b"]
    assert str(ember.join("-", ["a", "b"])) == str(ember.join("-", np.asarray(["a", "b"]))) == "a-b"
    assert str(ember.join("-", [])) == ""
    assert ember.join(ember.text([",", ";"]), ember.text([["a", "b"], ["c", "d"]])).tolist() == ["a,b", "c;d"]
    assert transform(jax.vmap(lambda row: ember.join("", row)))(ember.text([["a", "b"], ["c", "d"]])).tolist() == [
        "ab",
        "cd",
    ]


def test_join_writes_numbers_as_format_does(transform):
    numbers = jnp.array([[0.1, 2.0, -3.5], [1e-8, 7.0, 0.0]])
    assert transform(lambda x: ember.join(", ", x))(numbers).tolist() == ["0.1, 2.0, -3.5", "1e-08, 7.0, 0.0"]
    assert str(ember.join(",", jnp.arange(3))) == str(ember.join(",", np.arange(3))) == "0,1,2"
    assert str(jax.jit(lambda x: ember.join(",", x))(jnp.arange(3))) == "0,1,2"
    assert ember.join(",", jnp.arange(6).reshape(2, 3), axis=0).tolist() == ["0,3", "1,4", "2,5"]
    assert str(ember.join("-", [1, 2**40, 0.5, True, np.float32(0.1), jnp.int32(4), "x", ember.text("y")])) == (
        "1-1099511627776-0.5-True-0.1-4-x-y"
    )
    assert ember.join(" ", [ember.text(["a", "b"]), jnp.arange(2)]).tolist() == ["a 0", "b 1"]
    assert str(ember.join(",", jnp.zeros(0))) == ""
    assert str(ember.join(",", (w for w in ("a", "b")))) == str(ember.join(",", pd.Series(["a", "b"]))) == "a,b"


def test_what_join_refuses():
    for one in (3, None, 0.5):
        with pytest.raises(TextError, match=r"ember\.join takes several texts: .* or a list; got"):
            ember.join(",", one)
    with pytest.raises(TextError, match="of type NoneType"):
        ember.join(",", ["a", None])
    with pytest.raises(TextError, match="rank 0: there is nothing to join"):
        ember.join(",", jnp.float32(1))
    with pytest.raises(TextError, match="got one string"):
        ember.join(",", "abc")
    with pytest.raises(TextError, match="rank 0: there is nothing to join"):
        ember.join(",", ember.text("abc"))
    with pytest.raises(TextError, match="axis 1 is out of range for a Text of rank 1"):
        ember.join(",", ember.text(["a"]), axis=1)


@few
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=2, max_side=3), st.data())
def test_where_is_numpys(broadcastable, data):
    a, b = (data.draw(arrays(s)) for s in broadcastable.input_shapes[:2])
    condition = data.draw(hnp.arrays(bool, broadcastable.input_shapes[2]))
    chosen = ember.where(condition, ember.text(a), ember.text(b))
    assert np.asarray(chosen).tolist() == np.where(condition, a, b).tolist()
    assert chosen.shape == broadcastable.result_shape


def test_where_takes_strings(transform):
    assert transform(lambda c: ember.where(c, "yes", "no"))(jnp.asarray([True, False])).tolist() == ["yes", "no"]


@few
@given(
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3).flatmap(lambda s: st.tuples(arrays(s), arrays(s))),
    st.data(),
)
def test_stack_and_concatenate_are_numpys(pair, data):
    rank = pair[0].ndim
    texts = [ember.text(a) for a in pair]
    axis = data.draw(st.integers(-rank - 1, rank))
    stacked, expected = ember.stack(texts, axis), np.stack(pair, axis)
    assert stacked.shape == expected.shape and np.asarray(stacked).tolist() == expected.tolist()
    axis = data.draw(st.integers(-rank, rank - 1))
    together, expected = ember.concatenate(texts, axis), np.concatenate(pair, axis)
    assert together.shape == expected.shape and np.asarray(together).tolist() == expected.tolist()


def test_what_stack_and_concatenate_refuse():
    for function in (ember.stack, ember.concatenate):
        with pytest.raises(TextError, match="at least one Text"):
            function([])
    with pytest.raises(TextError, match=r"`ember\.stack` makes an axis, `\+` joins words"):
        ember.concatenate(["a", "b"])
    with pytest.raises(TextError, match="axis 2 is out of range"):
        ember.stack(["a", "b"], axis=2)
    assert ember.stack(["a", "b"]).tolist() == ["a", "b"]


# -- normalize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "given_", "expected"),
    [
        ("answer", " The  Quick, brown FOX. ", "quick brown fox"),
        ("answer", "a 3.14 x-1 (b)", "3.14 x-1 b"),
        ("answer", "ＡＢＣ ﬁn", "abc fin"),
        ("answer", "...", "..."),
        ("answer", "", ""),
        ("answer", "Straße", "strasse"),
        ("case", " The Ａ ", " the a "),
        ("space", "\t a\u2003b \n", "a b"),
        ("unicode", "ﬁ①½", "fi11⁄2"),
        ("number", "It is 1,234.50 €.", "1234.5"),
        ("number", "3/4", "0.75"),
        ("number", "2/6", "1/3"),
        ("number", "-1 1/3", "-4/3"),
        ("number", "1e3", "1000"),
        ("number", "1e-3 ", "0.001"),
        ("number", "1e100", "1e100"),
        ("number", "-2.50e-120", "-2.5e-120"),
        ("number", "-0.00", "0"),
        ("number", "no number ", "no number "),
        ("final", "17 times 3 is 51.\nAnswer: 51", "51"),
        ("final", "So the answer is 51.", "51"),
        ("final", "Answer: 5? No.\n\n**Final Answer:** `x = 7`.\nThat is it.", "x = 7"),
        ("final", "**Answer**:\n\n**3.5.**\n", "3.5"),
        ("final", "The answer is 3.\nAnswer: the answer is: 4", "4"),
        ("final", "Answer: 4, so the answer is 4", "4"),
        ("final", "Answer: B\nAnswer:\n", "B"),
        ("final", "an answerless reply. ", "an answerless reply. "),
    ],
)
def test_normalize(how, given_, expected):
    assert str(ember.normalize(given_, how)) == expected


@given(words, st.sampled_from(["answer", "case", "final", "number", "space", "unicode"]))
def test_normalizing_twice_changes_nothing(string_, how):
    # casefold can undo NFKC for rare letters (U+1E9E and the like), in which NFKC casefold is defined to iterate
    once = str(ember.normalize(string_, how))
    if how in ("answer", "case") and unicodedata.normalize("NFKC", once).casefold() != once:
        return
    assert str(ember.normalize(once, how)) == once


@given(st.lists(st.sampled_from(["answer", "Answer:", "is", " ", "\n", "*", "`", ".", ":", "x", "_"])).map("".join))
def test_a_final_answer_is_its_own(string_):
    once = str(ember.normalize(string_, "final"))
    assert once in string_
    assert str(ember.normalize(once, "final")) == once


@given(st.fractions(max_denominator=10**6))
def test_equal_numbers_are_normalized_to_equal_words(value):
    p, q = value.numerator, value.denominator
    spellings = {f"{p}/{q}", f"x = {p * 10}/{q * 10}.", rf"\frac{{{p}}}{{{q}}}"}
    written = {str(ember.normalize(s, "number")) for s in spellings}
    assert len(written) == 1
    assert Fraction(written.pop()) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4), st.sampled_from(["", ",", "_", "'", "\u2009"]))
def test_separators_and_zeros_change_no_number(value, separator):
    spelled = f"{value:,.6f}".replace(",", separator)
    assert Fraction(str(ember.normalize(spelled, "number"))) == Fraction(value)


def test_normalize_finds_equal_answers(transform):
    answers = ember.text(["The answer: Paris!", "paris", " PARIS.", "London"])
    same = transform(lambda t: ember.normalize(t) == ember.normalize("Paris"))(answers)
    assert same.tolist() == [False, True, True, False]
    with pytest.raises(
        TextError, match=r"knows how=\['answer', 'case', 'final', 'number', 'space', 'unicode'\]; got 'loud'"
    ):
        ember.normalize("a", "loud")


def test_answers_keep_what_is_inside_words():
    for c in string.punctuation:
        assert str(ember.normalize(f"x{c}y")) == f"x{c}y"
        assert str(ember.normalize(f"{c}x{c}")) == "x"


# -- fold_in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_fold_in_makes_a_key_of_the_words(make):
    key = make(0)
    data = lambda k: (jax.random.key_data(k) if jnp.issubdtype(k.dtype, jax.dtypes.prng_key) else k).tolist()
    folded = ember.fold_in(key, "a")
    assert folded.dtype == key.dtype and folded.shape == key.shape
    assert (
        data(folded) == data(ember.fold_in(key, ember.text("a"))) == data(jax.jit(ember.fold_in)(key, ember.text("a")))
    )
    many = jax.vmap(ember.fold_in, in_axes=(None, 0))(key, ember.text(["b", "a"]))
    assert data(many[1]) == data(folded)
    assert len({str(data(k)) for k in (key, folded, many[0], ember.fold_in(key, ""), ember.fold_in(key, 7))}) == 5
    assert data(ember.fold_in(key, 7)) == data(jax.random.fold_in(key, 7))


SHORT = [0, 7, 2**31, 2**32 - 1]
LONG = [2**32, 2**33 + 7, 2**62, -(2**31) - 1]


def folded_bits(key, number):
    return tuple(jax.random.key_data(ember.fold_in(key, number)).tolist())


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)], ids=["typed", "legacy"])
def test_an_integer_gives_one_key_however_it_comes(key):
    bits = functools.partial(folded_bits, key)
    for number in SHORT:
        known = tuple(jax.random.key_data(jax.random.fold_in(key, number)).tolist())
        assert bits(number) == bits(np.int64(number)) == bits(np.uint32(number)) == bits(jnp.uint32(number)) == known
    for number in (-1, -(2**31)):
        forms = [number, np.int64(number), np.int32(number), np.asarray(number, np.int32), jnp.int32(number)]
        assert len({bits(form) for form in forms}) == 1
        assert bits(number) == folded_bits(key, number % 2**32)
    for number in LONG:
        assert bits(number) == bits(np.int64(number)) == bits(np.asarray(number))
    assert len({bits(number) for number in (*SHORT, *LONG, 2**64, 2**96 + 7, -(2**63) - 1, str(2**32))}) == 12
    assert bits(True) == bits(np.True_) == bits(jnp.asarray(True)) == bits(1)


def test_traced_integers_of_64_bits_give_the_keys_of_known_ones():
    key = jax.random.key(0)
    with jax.enable_x64(True):
        traced = jax.jit(lambda n: jax.random.key_data(ember.fold_in(key, n)))
        for number in (*SHORT, *LONG, -1):
            assert tuple(traced(np.int64(number)).tolist()) == folded_bits(key, number)
            assert folded_bits(key, jnp.asarray(number, jnp.int64)) == folded_bits(key, number)
        assert tuple(traced(np.uint64(2**63)).tolist()) == folded_bits(key, 2**63)


@pytest.mark.parametrize("given", [1.5, 1.0, np.float32(2.0), jnp.float32(1.5), None, 1j, b"a", jax.random.key(1)])
def test_fold_in_refuses_what_is_neither_text_nor_integer(given, transform):
    folding = lambda x: ember.fold_in(jax.random.key(0), x)
    is_traceable = isinstance(given, float | complex | np.generic | jax.Array)
    with pytest.raises(TypeError, match=r"takes a string, a Text or an integer(?s:.*)ember.format"):
        transform(folding)(given) if is_traceable else folding(given)


def test_fold_in_takes_one_integer(transform):
    with pytest.raises(TypeError, match=r"one integer, got shape \(2,\); use jax.vmap\(ember.fold_in\)"):
        transform(lambda n: ember.fold_in(jax.random.key(0), n))(np.arange(2))


def test_fold_in_takes_one_text():
    with pytest.raises(TextError, match=r"got shape \(2,\); use jax.vmap\(ember.fold_in\)"):
        ember.fold_in(jax.random.key(0), ember.text(["a", "b"]))


# -- all of them, in every context -----------------------------------------------------------------------------------

OPERATIONS = {
    "add": lambda t: t + "!" + t,
    "format": lambda t: ember.format("<{t}>{n}", t=t, n=3),
    "join": lambda t: ember.join("-", [t, t]),
    "normalize": ember.normalize,
    "where": lambda t: ember.where(t == "b", t, "not b"),
    "stack": lambda t: ember.join("", ember.stack([t, "x"])),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_are_the_same_in_every_context(operation):
    t = ember.text([["A", "b"], ["", "c!"]])
    expected = [[str(operation(x)) for x in row] for row in t]
    nested = jax.vmap(jax.vmap(operation))
    assert nested(t).tolist() == jax.jit(nested)(t).tolist() == expected
    scanned = jax.jit(lambda t: jax.lax.scan(lambda c, x: (c, jax.vmap(operation)(x)), None, t)[1])(t)
    mapped = jax.lax.map(jax.vmap(operation), t)
    assert scanned.tolist() == mapped.tolist() == expected


def test_words_have_no_derivative():
    loss = lambda x: x * (ember.format("{x:.1f}", x=x) == "2.0").astype(jnp.float32)
    assert jax.grad(loss)(2.0) == jax.jit(jax.grad(loss))(2.0) == 1.0
