"""What `Text` has in common with `str`: as Python does it, in every transformation, in plans, and of failed text."""

import re

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings

import ember_jax as ember
from ember_jax._jax.whole import steps_of
from ember_jax._plan.lower import lower
from ember_jax._plan.passes import arrange, simplify
from ember_jax._text import failed, lengths
from ember_jax.errors import TextError

few = settings(max_examples=max(25, settings.default.max_examples // 4))
LEAST = np.iinfo(np.int32).min
AT_MOST = 3
PATTERN = r"a(?P<next>.)|(b)"
# Of few characters, so that they are found in each other: one outside the BMP, one that two capitals stand for, NUL.
words = st.text(alphabet="ab ß😀\0é,", max_size=6)
bounds = st.integers(-8, 8)


def pieces(string, separator):
    found = string.split(separator, AT_MOST - 1)
    return (*found, *[""] * (AT_MOST - len(found)))


def matched(group):
    def of(string):
        match = re.search(PATTERN, string)
        return (match and match[group]) or ""

    return of


# name -> what it takes of Texts (and of numbers, behind them), the same of Python's, and a number of Texts
METHODS = {
    "contains": (lambda t, u: t.contains(u), lambda s, u: u in s, 2),
    "startswith": (lambda t, u: t.startswith(u), str.startswith, 2),
    "endswith": (lambda t, u: t.endswith(u), str.endswith, 2),
    "matches": (lambda t: t.matches(PATTERN), lambda s: bool(re.search(PATTERN, s)), 1),
    "length": (lambda t: t.length(), len, 1),
    "lower": (lambda t: t.lower(), str.lower, 1),
    "upper": (lambda t: t.upper(), str.upper, 1),
    "strip": (lambda t: t.strip(), str.strip, 1),
    "strip characters": (lambda t, u: t.strip(u), str.strip, 2),
    "replace": (lambda t, u, v: t.replace(u, v), str.replace, 3),
    "split": (lambda t: t.split(at_most=AT_MOST).values, lambda s: pieces(s, None), 1),
    "split at": (lambda t, u: t.split(u + ",", at_most=AT_MOST).values, lambda s, u: pieces(s, u + ","), 2),
    "pieces": (lambda t: t.split(",", at_most=AT_MOST).length, lambda s: len(s.split(",", AT_MOST - 1)), 1),
    "extract": (lambda t: t.extract(PATTERN, "next").value, matched("next"), 1),
    "extract all": (lambda t: t.extract(re.compile(PATTERN)).value, matched(0), 1),
    "is there": (lambda t: t.extract(PATTERN, 2).is_there, lambda s: matched(2)(s) != "", 1),
}
WITH_NUMBERS = {
    "slice": (lambda t, i, j: t.slice(i, j), lambda s, i, j: s[i:j]),
    "truncate": (
        lambda t, i, j: ember.truncate(t, i),
        lambda s, i, j: s.encode()[: max(i, 0)].decode(errors="ignore"),
    ),
}


def listed(value):
    return value.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_pythons(name):
    method, oracle, count = METHODS[name]
    jitted, mapped = jax.jit(method), jax.jit(jax.vmap(method))
    partly = jax.vmap(method, in_axes=(0, *[None] * (count - 1)))

    @few
    @given(st.lists(st.tuples(*[words] * count), min_size=2, max_size=2))
    @example([("",) * count, ("😀",) * count])
    def check(rows):
        expected = [oracle(*row) for row in rows]
        expected = [[*e] if isinstance(e, tuple) else e for e in expected]
        columns = [ember.text(list(column)) for column in zip(*rows, strict=True)]
        for run in (method, jitted, jax.vmap(method), mapped):
            assert listed(run(*columns)) == expected
        first = [c[0] for c in columns[1:]]
        whole = [oracle(row[0], *rows[0][1:]) for row in rows]
        assert listed(partly(columns[0], *first)) == [[*e] if isinstance(e, tuple) else e for e in whole]
        assert listed(method(columns[0], *first)) == listed(partly(columns[0], *first))
        if name not in ("split at",):  # whose separator is put together here
            assert listed(method(columns[0], *rows[0][1:])) == listed(partly(columns[0], *first))

    check()


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_numbers_may_be_traced(name):
    method, oracle = WITH_NUMBERS[name]
    jitted, mapped = jax.jit(method), jax.jit(jax.vmap(method, in_axes=(0, 0, None)))

    @few
    @given(words, bounds, bounds)
    def check(string, i, j):
        expected = oracle(string, i, j)
        t = ember.text(string)
        assert str(method(t, i, j)) == str(jitted(t, i, j)) == str(method(t, np.int8(i), jnp.int32(j))) == expected
        assert mapped(ember.stack([t, t]), jnp.array([i, j]), j).tolist() == [expected, oracle(string, j, j)]
        assert method(t, jnp.array([i, j]), jnp.array([j, j])).tolist() == [expected, oracle(string, j, j)]

    check()


def test_slices_have_pythons_ends():
    t = ember.text("a😀cd")
    assert [str(s) for s in (t.slice(), t.slice(1), t.slice(None, -1), t.slice(-2, None))] == [
        "a😀cd",
        "😀cd",
        "a😀c",
        "cd",
    ]
    assert str(t.slice(-(2**70), 2**70)) == str(t.slice(np.uint8(0), np.uint64(2**63))) == "a😀cd"


@few
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=2, max_side=2), st.data())
def test_words_broadcast_as_numpys_arrays_do(broadcastable, data):
    arrays = [data.draw(hnp.arrays(object, s, elements=words)) for s in broadcastable.input_shapes]
    texts = [ember.text(a) for a in arrays]
    replaced, found = texts[0].replace(*texts[1:]), texts[0].contains(texts[1])
    assert replaced.shape == broadcastable.result_shape
    expected = (
        np.vectorize(str.replace, otypes=[object])(*arrays) if replaced.size else np.zeros(replaced.shape, object)
    )
    assert np.asarray(replaced).tolist() == expected.tolist()
    assert found.shape == np.broadcast_shapes(*broadcastable.input_shapes[:2])
    assert texts[0].split(texts[1] + "|", at_most=2).values.shape == (*found.shape, 2)


def test_pieces_are_many_and_what_is_extracted_may_be_absent():
    many = ember.text(["a,b,c", "a", ""]).split(",", at_most=2)
    assert many.tolist() == [["a", "b,c"], ["a"], [""]]
    assert many.mask.tolist() == [[True, True], [True, False], [True, False]]
    assert ember.text(" a  b ").split(at_most=5).tolist() == ["a", "b"]
    assert ember.text(" ").split(at_most=1).tolist() == []
    assert ember.text(["x=1", "y=", "z"]).extract(r"(\w)=(\d)?", 2).tolist() == ["1", None, None]
    assert ember.text("").extract("^$").tolist() == ""
    empty = ember.text([]).split(",", at_most=2)
    assert empty.values.shape == (0, 2) and empty.length.shape == (0,)


def test_in_loops_and_derivatives():
    t = ember.text("a,b,c,d")
    halve = lambda s: s.slice(0, s.length() // 2)
    last = jax.jit(lambda t: jax.lax.while_loop(lambda s: s.contains(","), halve, t))(t)
    assert str(last) == "a"
    carried, seen = jax.jit(
        lambda t: jax.lax.scan(lambda s, i: (s.at[i].set(s[i].upper()), s.length()), t, jnp.arange(2))
    )(ember.text(["ß", "b", "c"]))
    assert carried.tolist() == ["SS", "B", "c"] and seen.tolist() == [[1, 1, 1], [2, 1, 1]]
    loss = lambda x: x * ember.format("{x:.1f}", x=x).startswith("2").astype(jnp.float32)
    assert jax.grad(loss)(2.0) == jax.jit(jax.grad(loss))(2.0) == 1.0


def test_of_failed_text():
    lost = failed.digest_for(ValueError("gone"))
    broken = ember.Text(jnp.stack([jnp.asarray(np.frombuffer(lost, np.uint32)), ember.text("a b").digests]))

    def run(t):
        made = (t.lower(), t.strip(), t.replace("a", "c"), t.slice(1), ember.truncate(t, 1), t.extract("a").value)
        asked = (t.contains("a"), t.startswith("a"), t.endswith("b"), t.matches("a"), t.extract("a").is_there)
        return made, asked, t.length(), t.split(" ", at_most=2), ember.text("a").contains(t)

    for f in (run, jax.jit(run), jax.vmap(run)):
        made, asked, length, split, inside = f(broken)
        assert [m.tolist()[0] for m in made] == [None] * len(made)
        assert [str(m.causes()[0]) for m in made] == ["gone"] * len(made)
        assert [m.tolist()[1] for m in made] == ["a b", "a b", "c b", " b", "a", "a"]
        assert [a.tolist() for a in asked] == [[False, True]] * len(asked)
        assert length.tolist() == [LEAST, 3] and split.tolist() == [None, ["a", "b"]]
        assert inside.tolist() == [False, False]


# -- places ----------------------------------------------------------------------------------------------------------

INDICES = {
    "integer": 1,
    "negative": -1,
    "slice": slice(1, None),
    "list": [0, 2],
    "tuple": (1, 0),
    "ellipsis": (..., 1),
    "array and slice": (np.array([0, 2]), slice(None)),
    "mask": np.array([[True, False], [False, False], [True, True]]),
    "mask of rows": np.array([True, False, True]),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_setting_is_numpys(index):
    array = np.array([["a", "b"], ["c", "d"], ["e", "f"]], object)
    t, expected = ember.text(array), array.copy()
    expected[index] = "😀"
    assert t.at[index].set("😀").tolist() == jax.jit(lambda t: t.at[index].set("😀"))(t).tolist() == expected.tolist()
    new = np.vectorize(lambda w: w + "!", otypes=[object])(array[index])
    expected[index] = new
    assert t.at[index].set(ember.text(new)).tolist() == expected.tolist()
    assert t.tolist() == array.tolist()


def test_setting_at_traced_places():
    t = ember.text([["a", "b"], ["c", "d"]])
    put = jax.jit(lambda t, i, w: t.at[i].set(w))
    assert (
        put(t, 1, ember.text("x")).tolist() == put(t, -1, ember.text(["x", "x"])).tolist() == [["a", "b"], ["x", "x"]]
    )
    assert put(t, 5, ember.text("x")).tolist() == put(t, -3, ember.text("x")).tolist() == t.tolist()
    assert put(t, t == "d", ember.text("x")).tolist() == [["a", "b"], ["c", "x"]]
    assert put(t, jnp.array([1, 0]), t).tolist() == [["c", "d"], ["a", "b"]]
    rows = jax.vmap(lambda row, i: row.at[i].set("x"))(t, jnp.array([0, 1]))
    assert rows.tolist() == [["x", "b"], ["c", "x"]]
    assert t.ravel().tolist() == ["a", "b", "c", "d"] and ember.text("a").ravel().tolist() == ["a"]


# -- tokens of a vocabulary ------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """A vocabulary of the bytes, "cd", and "ab" with the first byte of "é", which without it is two tokens."""
    tiktoken.list_encoding_names()
    ranks = {bytes([i]): i for i in range(256)} | {b"b\xc3": 256, b"ab\xc3": 257, b"cd": 258}
    made = {"name": "tiny", "pat_str": r"\S+|\s", "mergeable_ranks": ranks, "special_tokens": {"<|end|>": 300}}
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "tiny", lambda: made)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    return tiktoken.get_encoding("tiny")


def test_truncation_keeps_at_most_the_tokens(tiny):
    @few
    @given(st.text(alphabet="abcd é😀<|end>", max_size=12), st.integers(-1, 8))
    def check(string, most):
        begun = str(ember.truncate(string, most, "tiny"))
        ids = tiny.encode(string, disallowed_special=())
        assert string.startswith(begun)
        assert len(tiny.encode(begun, disallowed_special=())) <= max(most, 0)
        assert begun == string or len(ids) > most
        # As long as it may be: the next character would make it more tokens, or more than were there.
        longest = tiny.decode_bytes(ids[: max(most, 0)]).decode(errors="ignore")
        fits = [
            n for n in range(len(longest) + 1) if len(tiny.encode(longest[:n], disallowed_special=())) <= max(most, 0)
        ]
        assert begun == longest[: fits[-1]]

    check()
    assert [str(ember.truncate("abé", n, "tiny")) for n in (0, 1, 2)] == ["", "a", "abé"]
    assert str(jax.jit(lambda t, n: ember.truncate(t, n, "tiny"))(ember.text("cdcd cb"), 3)) == "cdcd "


# -- in plans --------------------------------------------------------------------------------------------------------

T = ember.text("a, b")
S = ember.text(["a", "b"])
say = ember.host(lambda words: words + ".", out=ember.Text)


def nodes(fn, *args):
    return arrange(simplify(lower(jax.make_jaxpr(fn)(*args)))).nodes


def needs_no_compiling(node):
    equations = getattr(node, "equations", ())
    return steps_of((e.eqn, e.inputs, e.outputs) for e in equations) is not None


@pytest.mark.parametrize("name", [*METHODS, *WITH_NUMBERS])
def test_in_a_plan_they_are_text_operations(name):
    """Nothing but the calls that the program itself makes waits, and XLA compiles nothing."""
    if name in METHODS:
        method, _, count = METHODS[name]
        program = lambda t: method(say(t), *[t] * (count - 1))
    else:
        program = lambda t: WITH_NUMBERS[name][0](say(t), 1, 2)
    found = nodes(program, T)
    kinds = [type(node).__name__ for node in found]
    assert kinds.count("Call") == 1 and kinds.count("Words") >= 1 and {*kinds} <= {"Call", "Words", "Segment"}
    assert all(map(needs_no_compiling, found))
    assert listed(ember.jit(program)(T)) == listed(program(T))


def test_in_a_plan_a_place_is_set_without_compiling():
    found = nodes(lambda t, i: t.at[i].set(say(t[0])), S, 1)
    assert any(hasattr(node, "equations") for node in found) and all(map(needs_no_compiling, found))
    assert ember.jit(lambda t, i: t.at[i].set(say(t[0])))(S, 1).tolist() == ["a", "a."]


def test_a_plan_reads_well():
    llm = ember.LLM("sim/small")

    def program(t):
        answer = llm(t)
        lines = answer.strip().split("\n", at_most=2).values
        return llm(lines[0].lower() + lines[1]), answer.contains("yes")

    plan = ember.lower(program)(T)
    assert plan.explain() == (
        "program makes 2 calls. The longest chain is 2 calls, one after another: 1 → 2.\nFirst:\n  1. ask sim/small\n"
        "After step 1, to write the text:\n  2. ask sim/small"
    )


@pytest.mark.parametrize(
    ("cut", "before", "behind"),
    [
        pytest.param(lambda t, i: t.slice(i), [], [np.dtype(np.int32)] * 2, id="slice"),
        pytest.param(lambda t, i: ember.truncate(t, i), [], [np.dtype(np.int32)], id="truncate"),
        pytest.param(lambda t, i: t.split(at_most=2).values, [np.dtype(np.int32)], [], id="split"),
        pytest.param(lambda t, i: t.strip(t), [], [lengths.Span(0, 3)], id="strip"),
    ],
)
def test_bounds_of_what_is_cut(cut, before, behind):
    """A part of words that are known is no longer than they are; of an answer's tokens nothing is said."""
    (op,) = [node.function for node in nodes(cut, T, 1) if type(node).__name__ == "Words"]
    assert lengths.result(op, [*before, "two words", *behind]) == lengths.Span(0, 9)
    assert lengths.result(op, [*before, lengths.Span(1, 5), *behind]) == lengths.UNKNOWN


def test_under_jit_with_calls_lanes_and_constructs():
    @ember.jit
    def judged(questions):
        def one(q):
            answer = say(q).replace("?", "!")
            return jax.lax.cond(answer.endswith("!."), lambda: say(answer.upper()), lambda: answer)

        return jax.vmap(one)(questions)

    assert judged(ember.text(["hi?", "no", "😀?"])).tolist() == ["HI!..", "no.", "😀!.."]

    @ember.operator
    def first(q: ember.Text) -> ember.Text:
        return say(q).split(at_most=2).values[0]

    @ember.operator
    def last(q: ember.Text) -> ember.Text:
        return say(q.slice(0, 2)).upper()

    assert jax.vmap(ember.non.Chain(first, last))(ember.text(["hello you", "😀"])).tolist() == ["HE.", "😀.."]


# -- what they refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: S.contains(3), r"`words` of Text\.contains is of type int.*ember\.format"),
        (
            lambda: S.startswith(("a", "b")),
            r"`words` of Text\.startswith is of type tuple; it takes a string or a Text",
        ),
        (lambda: S.replace("a", None), r"`new` of Text\.replace is of type NoneType"),
        (lambda: S.strip(["a"]), r"`characters` of Text\.strip is of type list"),
        (lambda: S.matches("("), r"`pattern` of Text\.matches is no regular expression \(missing \).*re\.escape"),
        (lambda: S.matches(S), r"`pattern` of Text\.matches is a Text, which is data.*text\.contains"),
        (lambda: jax.jit(lambda t: t.extract(t))(S), r"`pattern` of Text\.extract is a Text"),
        (lambda: S.matches(re.compile(b"a")), r"takes a regular expression as a Python string"),
        (lambda: S.matches(3), r"takes a regular expression as a Python string.*got 3"),
        (lambda: S.extract("(?P<x>a)", "y"), r"`group` of Text\.extract is 'y'.*groups 0 to 1, 'x'"),
        (lambda: S.extract("a", 1), r"`group` of Text\.extract is 1.*groups 0 to 0\."),
        (lambda: S.extract("a", jnp.array(0)), r"`group` of Text\.extract is"),
        (lambda: S.split("", at_most=2), r"`separator` of Text\.split is empty"),
        (lambda: S.split(ember.text(""), at_most=2), r"`separator` of Text\.split is empty"),
        (lambda: S.split(",", at_most=0), r"`at_most` of Text\.split is part of a shape"),
        (lambda: jax.jit(lambda n: S.split(",", at_most=n))(2), r"`at_most` .* known while JAX traces"),
        (lambda: S.slice(1.5), r"`start` of Text\.slice takes an integer.*got 1\.5"),
        (lambda: S.slice(0, True), r"`stop` of Text\.slice takes an integer"),
        (lambda: jax.jit(lambda x: S.slice(0, x))(2.0), r"`stop` of Text\.slice takes an integer"),
        (lambda: ember.truncate(S, "3"), r"`tokens` of ember\.truncate takes an integer"),
        (lambda: ember.truncate(S, 3, "llama"), r"knows no encoding 'llama'"),
        (lambda: S.at[0].set(3), r"`words` of Text\.at\[…\]\.set is of type int \(3\); it takes a string or a Text"),
        (lambda: S.at[0].set(S), r"has shape \(2,\), which does not broadcast to \(\)"),
        (lambda: S.at[[0, 1]].set(ember.text(["a"] * 3)), r"has shape \(3,\), which does not broadcast to \(2,\)"),
    ],
)
def test_what_they_refuse(call, message):
    with pytest.raises(TextError, match=f"(?s){message}"):
        call()


def test_places_out_of_range_raise_as_indices_do():
    for index in (2, -3, (0, 0)):
        with pytest.raises(IndexError):
            S.at[index].set("x")
