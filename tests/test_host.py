"""Python functions as calls: what goes in, what comes out, how often they run, and what happens when they fail."""

import asyncio
import functools
import itertools
import sys
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

import ember_jax as ember
from ember_jax import errors
from ember_jax._runtime.journal.memory import MemoryJournal

FLOAT = jax.ShapeDtypeStruct((), jnp.float32)
INT = jax.ShapeDtypeStruct((), jnp.int32)
FORMS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit}
A, AB = ember.text("a"), ember.text(["a", "b"])


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


@pytest.fixture(autouse=True)
def _session():
    with ember.session() as run:
        yield run


class Counted:
    """A function that notes its arguments; each new instance is another function."""

    def __init__(self, fn):
        self.fn, self.seen = fn, []

    def __call__(self, *args, **kwargs):
        self.seen.append(args)
        return self.fn(*args, **kwargs)


# -- values in and out -----------------------------------------------------------------------------------------------


def plain(x):
    return x


async def asynchronous(x):
    await asyncio.sleep(0)
    return x


class AsyncCallable:
    async def __call__(self, x):
        return x


IDENTITIES = {
    "def": plain,
    "async def": asynchronous,
    "lambda": lambda x: x,
    "partial of def": functools.partial(lambda y, x: x, None),
    "partial of async def": functools.partial(asynchronous),
    "an object with an async __call__": AsyncCallable(),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_functions_of_every_kind_run_and_map(kind, form):
    f = form(ember.host(IDENTITIES[kind], out=ember.Text))
    assert str(f(A)) == "a"
    assert jax.vmap(f)(AB).tolist() == ["a", "b"]


def test_one_lane_gets_python_values(form):
    seen = []

    def look(one, many, grid, number, vector, flag, key, legacy, *, static, nothing):
        seen.append((one, many, grid, number, vector, flag, key, legacy, static, nothing))
        return 0

    f = ember.host(look, out=INT)
    key, legacy = jax.random.key(7), jax.random.PRNGKey(7)
    jax.block_until_ready(
        form(lambda *args: f(*args, static="how", nothing=None))(
            A, AB, AB.reshape(1, 2), jnp.float32(1.5), jnp.arange(2), jnp.array(True), key, legacy
        )
    )
    ((one, many, grid, number, vector, flag, key_data, legacy_data, static, nothing),) = seen
    assert (one, many, grid, static, nothing) == ("a", ["a", "b"], [["a", "b"]], "how", None)
    assert type(one) is str and isinstance(number, np.float32) and isinstance(flag, np.bool_)
    assert number == 1.5 and flag and isinstance(vector, np.ndarray)
    np.testing.assert_array_equal(vector, [0, 1])
    np.testing.assert_array_equal(key_data, jax.random.key_data(key))
    np.testing.assert_array_equal(legacy_data, key_data)


class Graded(NamedTuple):
    words: ember.Text
    scores: jax.Array


def test_pytrees_go_in_and_come_out(form):
    def grade(rows):
        words = rows["words"]
        return Graded(words[::-1], {"n": len(words), "twice": (rows["weights"][0] * 2, [rows["weights"][1]])})

    out = Graded(ember.Text["2"], {"n": INT, "twice": (FLOAT, [jax.ShapeDtypeStruct((3,), jnp.int32)])})
    f = form(ember.host(grade, out=out))
    rows = {"words": AB, "weights": [jnp.float32(0.5), jnp.arange(3)]}
    got = f(rows)
    assert isinstance(got, Graded) and got.words.tolist() == ["b", "a"]
    assert got.scores["n"] == 2 and got.scores["twice"][0] == 1
    np.testing.assert_array_equal(got.scores["twice"][1][0], [0, 1, 2])
    mapped = jax.vmap(f)(jax.tree.map(lambda a: jnp.stack([a, a]), rows))
    assert mapped.words.tolist() == [["b", "a"]] * 2
    np.testing.assert_array_equal(mapped.scores["n"], [2, 2])


@pytest.mark.parametrize("static", ["x", None, ("a", 1), frozenset({1}), len, {"unhashable": {1, 2}}])
def test_static_arguments_arrive_as_they_are(static):
    got = []
    f = ember.host(lambda word, s: got.append(s) or word, out=ember.Text)
    for form in (lambda f: f, jax.jit, ember.jit):
        with ember.session():
            assert str(form(lambda w: f(w, static))(A)) == "a"
    assert got == [static] * 3


def test_strings_given_to_a_host_function_are_text():
    seen = Counted(lambda a, b="": a + b)
    f = ember.host(seen, out=ember.Text)
    assert str(jax.jit(lambda: f("x", b="y"))()) == "xy"
    assert seen.seen == [("x",)]


def test_a_function_without_array_arguments_runs_in_every_lane_that_maps_it_not():
    f = ember.host(lambda: "constant", out=ember.Text)
    assert str(f()) == str(jax.jit(f)()) == "constant"
    assert jax.vmap(lambda w: f() + w)(AB).tolist() == ["constanta", "constantb"]


def test_words_of_any_kind_survive(form):
    words = ["", "\0", "a\0", "{x}", "🦜 é", "\r\n", "x" * 2**20]
    f = ember.host(lambda word: word, out=ember.Text)
    assert [str(form(f)(ember.text(w))) for w in words] == words
    assert jax.vmap(form(f))(ember.text(words)).tolist() == words


def test_derivatives_are_zero_and_do_not_ask_again():
    double = Counted(lambda x: 2 * x)
    f = ember.host(double, out=FLOAT)
    for g in (f, jax.jit(f), ember.jit(f)):
        value, slope = jax.value_and_grad(lambda x, g=g: g(x) * x)(3.0)
        assert (value, slope) == (18, 6)
    value, slope = jax.jvp(f, (3.0,), (1.0,))
    assert (value, slope) == (6, 0)
    assert len(double.seen) <= 2  # once line by line, once for every program of the session


# -- results that do not match ---------------------------------------------------------------------------------------

WRONG = {
    "another shape": (FLOAT, np.zeros(2, np.float32), r"an array float32\[2\], but its out= says float32\[\]"),
    "another rank": (jax.ShapeDtypeStruct((2,), jnp.float32), 1.0, r"1\.0 of type float, but .* says float32\[2\]"),
    "a float for an int": (INT, 1.0, r"1\.0 of type float, but its out= says int32\[\]"),
    "an int for a bool": (jax.ShapeDtypeStruct((), bool), 1, r"1 of type int, but its out= says bool\[\]"),
    "a str for a number": (FLOAT, "1.5", r"'1\.5' of type str, but its out= says float32\[\]"),
    "None for a number": (FLOAT, None, r"None of type NoneType, but its out= says float32\[\]"),
    "None for a Text": (ember.Text, None, r"None of type NoneType, but its out= says Text\[\]"),
    "a number for a Text": (ember.Text, 3, r"3 of type int, but its out= says Text\[\]"),
    "bytes for a Text": (ember.Text, b"x", r"b'x' of type bytes, but its out= says Text\[\]"),
    "a list for one Text": (ember.Text, ["a"], r"a list of 1: \['a'\], but its out= says Text\[\]"),
    "one str for a list": (ember.Text["2"], "ab", r"'ab' of type str, but its out= says Text\[2\]"),
    "too many words": (ember.Text["2"], ["a"] * 3, r"a list of 3: .*, but its out= says Text\[2\]"),
    "a hole in a list": (ember.Text["2"], ["a", None], r"what is no Text: .*element \[1\]"),
    "ragged words": (ember.Text["2 2"], [["a", "b"], ["c"]], r"what is no Text: .*unequal length"),
    "ragged numbers": (
        jax.ShapeDtypeStruct((2, 2), jnp.float32),
        [[1.0], [1.0, 2.0]],
        r"a list of 2: .*float32\[2, 2\]",
    ),
    "a lone surrogate": (ember.Text, "\ud800", r"what is no Text: "),
    "one leaf for two": (
        (FLOAT, FLOAT),
        1.0,
        r"1\.0 of type float, but its out= says \('float32\[\]', 'float32\[\]'\)",
    ),
    "two leaves for one": (FLOAT, (1.0, 2.0), r"a tuple of 2: .*float32\[\]"),
    "other names": ({"a": FLOAT}, {"b": 1.0}, r"\{'b': 1\.0\} of type dict, but its out= says \{'a'"),
    "complex for a float": (FLOAT, 1j, r"1j of type complex, but its out= says float32\[\]"),
    "an object": (FLOAT, object(), r".* of type object, but its out= says float32\[\]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_result_is_told_with_what_came_and_what_was_declared(wrong):
    out, value, message = WRONG[wrong]

    def grader(word):
        return value

    f = ember.host(grader, out=out)
    with pytest.raises(errors.HostResultError, match=f"the host function grader returned {message}"):
        f(A)
    with pytest.raises(errors.HostResultError, match=f"the host function grader returned {message}"):
        ember.jit(f)(A)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=f"HostResultError.*grader returned {message}"):
        jax.jit(f)(A)


RIGHT = {
    "an int for a float": (FLOAT, 3, 3.0),
    "a bool for an int": (INT, True, 1),
    "a double for a float": (FLOAT, np.float64(0.5), 0.5),
    "a long for an int": (INT, np.int64(3), 3),
    "a list for a vector": (jax.ShapeDtypeStruct((2,), jnp.float32), [1, 2.5], [1.0, 2.5]),
    "a JAX array": (jax.ShapeDtypeStruct((2,), jnp.float32), jnp.array([1.0, 2.0]), [1.0, 2.0]),
    "a NumPy array of strings": (ember.Text["2"], np.array(["a", "b"]), ["a", "b"]),
    "a tuple of strings": (ember.Text["2"], ("a", "b"), ["a", "b"]),
    "a NumPy string": (ember.Text, np.str_("a"), "a"),
    "a Text": (ember.Text, ember.text("a"), "a"),
    "no words": (ember.Text["0"], [], []),
    "NaN": (FLOAT, float("nan"), float("nan")),
    "half precision": (jax.ShapeDtypeStruct((), jnp.bfloat16), 0.5, 0.5),
}


@pytest.mark.parametrize("right", RIGHT)
def test_results_are_cast_where_nothing_is_lost(right, form):
    out, value, expected = RIGHT[right]
    got = form(ember.host(lambda word: value, out=out))(A)
    if isinstance(got, jax.Array):
        assert got.dtype == out.dtype and got.shape == out.shape
    np.testing.assert_equal(got.tolist(), expected)


@pytest.mark.parametrize(
    ("out", "spec", "value"),
    [
        (bool, jax.ShapeDtypeStruct((), bool), True),
        (int, jax.ShapeDtypeStruct((), int), -7),
        (float, jax.ShapeDtypeStruct((), float), 0.5),
        (complex, jax.ShapeDtypeStruct((), complex), 1 - 2j),
        (str, ember.Text, "words"),
    ],
)
def test_types_of_python_are_arrays_of_rank_0(out, spec, value, form):
    got, same = (form(ember.host(lambda word: value, out=declared))(A) for declared in (out, spec))
    assert got.tolist() == same.tolist() == value
    assert jax.tree.map(jax.typeof, got).digests == jax.typeof(same.digests) if out is str else got.dtype == same.dtype
    both = ember.host(lambda word: {"a": value, "b": [value]}, out={"a": out, "b": [out]})
    mapped = jax.vmap(form(both))(AB)
    assert mapped["a"].tolist() == mapped["b"][0].tolist() == [value, value]


def test_what_is_no_value_of_the_type_is_refused_as_for_an_array():
    for out, wrong in ((bool, 1), (int, 1.5), (float, "x"), (str, 3)):
        with pytest.raises(errors.HostResultError, match="but its out= says"):
            ember.host(lambda word: wrong, out=out)(A)


@pytest.mark.parametrize("big", [2**31, -(2**31) - 1])
def test_an_integer_that_does_not_fit_is_no_other_integer(big):
    with pytest.raises(errors.HostResultError, match=r"out= says int32\[\]"):
        ember.host(lambda word: big, out=INT)(A)


@pytest.mark.parametrize("out", [dict, object, "Text", jnp.zeros(2), ember.Text["n"], np.float32, (ember.Text, 3)])
def test_a_declaration_that_says_nothing_of_the_shape_is_refused_at_once(out):
    with pytest.raises(TypeError, match=r"ember\.host: out="):
        ember.host(plain, out=out)


# -- how often it runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pure, runs", [(True, 1), (False, 3)])
def test_equal_calls_of_one_program_are_one_run_of_a_pure_function_only(pure, runs, form):
    fn = Counted(str.upper)
    f = ember.host(fn, out=ember.Text, pure=pure)
    out = form(lambda w: (f(w), f(w), f(w)))(A)
    jax.block_until_ready(out)
    assert list(map(str, out)) == ["A"] * 3
    assert len(fn.seen) == (3 if form is FORMS["eager"] else runs)  # line by line, every line runs


@pytest.mark.parametrize("pure, runs", [(True, 2), (False, 4)])
def test_equal_lanes_are_one_run_of_a_pure_function_only(pure, runs):
    fn = Counted(str.upper)
    f = ember.host(fn, out=ember.Text, pure=pure)
    words = ember.text(["a", "b", "a", "a"])
    assert jax.vmap(ember.jit(f))(words).tolist() == ["A", "B", "A", "A"]
    assert len(fn.seen) == runs


@pytest.mark.parametrize("pure, runs", [(True, 1), (False, 3)])
def test_a_program_that_runs_again_runs_a_pure_function_once_in_a_session(pure, runs):
    fn = Counted(str.upper)
    for compiled in (jax.jit, ember.jit):
        fn.seen.clear()
        f = compiled(ember.host(fn, out=ember.Text, pure=pure))
        for _ in range(3):
            assert str(f(A)) == "A"
        assert len(fn.seen) == runs
        with ember.session():  # another session knows nothing of it
            assert str(f(A)) == "A"
        assert len(fn.seen) == runs + 1


@pytest.mark.parametrize("pure, runs", [(True, 0), (False, 1)])
@pytest.mark.parametrize("compiled", [jax.jit, ember.jit])
def test_an_unused_call_is_dropped_if_it_is_pure(pure, runs, compiled):
    fn = Counted(str.upper)
    f = ember.host(fn, out=ember.Text, pure=pure)

    def program(word):
        f(word)
        return word

    compiled(program)(A)
    jax.effects_barrier()
    assert len(fn.seen) == runs
    jax.vmap(compiled(program))(AB)
    jax.effects_barrier()
    assert len(fn.seen) == (runs and 3)


def test_an_impure_call_runs_in_the_branch_that_is_taken_and_once_a_turn():
    fn, other = Counted(lambda n: 0), Counted(lambda n: 0)
    tell, never = (ember.host(g, out=INT, pure=False) for g in (fn, other))

    @ember.operator
    def op(n: Int[Array, ""]) -> Int[Array, ""]:
        def turn(i, total):
            return total + jax.lax.cond(i < 99, lambda: tell(i), lambda: never(i)) + 1

        return jax.lax.fori_loop(0, n, turn, jnp.int32(0))

    assert ember.jit(op)(jnp.int32(3)) == 3
    assert [int(n) for (n,) in fn.seen] == [0, 1, 2] and other.seen == []
    assert jax.vmap(op)(jnp.array([2, 0, 1])).tolist() == [2, 0, 1]
    assert len(fn.seen) == 6 and other.seen == []


def test_an_impure_counter_counts_each_call():
    ticks = itertools.count()
    tick = ember.host(lambda: next(ticks), out=INT, pure=False)
    assert [int(tick()), int(jax.jit(tick)()), int(ember.jit(tick)())] == [0, 1, 2]
    assert sorted(jax.vmap(lambda w: ember.jit(lambda w: (tick(), w))(w)[0])(AB).tolist()) in ([3, 4], [3, 3])


def test_two_functions_and_two_static_arguments_are_not_merged():
    f, g = (ember.host(lambda w, n, s=s: f"{w}{n}{s}", out=ember.Text) for s in "fg")
    got = ember.jit(lambda w: (f(w, "1"), g(w, "1"), f(w, "2"), f(w, None), f(w, True), f(w, ("1",))))(A)
    assert list(map(str, got)) == ["a1f", "a1g", "a2f", "aNonef", "aTruef", "a('1',)f"]


def test_a_gradient_and_a_checkpoint_do_not_run_it_again():
    fn = Counted(lambda x: np.float32(2))
    f = ember.host(fn, out=FLOAT)

    def loss(x):
        return jax.checkpoint(lambda x: jnp.sin(f(x) * x))(x)

    expected = 2 * np.cos(np.float32(2))
    for g in (jax.jit(jax.grad(loss)), jax.grad(ember.jit(loss)), ember.jit(jax.grad(loss))):
        with ember.session():
            fn.seen.clear()
            np.testing.assert_allclose(g(1.0), expected, rtol=1e-6)
            assert len(fn.seen) == 1


# -- kept under a name -----------------------------------------------------------------------------------------------


def test_a_cached_function_is_replayed_from_the_journal_in_other_sessions(form):
    journal, fn = MemoryJournal(), Counted(lambda word: (word + "é\0", [1.5, 2.0], True))
    out = (ember.Text, jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((), bool))
    results = []
    for _ in range(2):  # a fresh function each time, as in another process
        f = ember.host(Counted(fn), out=out, cache="search:v1")
        with ember.session(journal=journal):
            results.append(form(lambda w: f(w))(A))
    assert fn.seen == [("a",)]
    for words, numbers, flag in results:
        assert str(words) == "aé\0" and numbers.tolist() == [1.5, 2.0] and flag


def test_a_cache_knows_names_versions_and_arguments():
    journal, fn = MemoryJournal(), Counted(str.upper)
    with ember.session(journal=journal):
        for cache in ("search:v1", "search:v2", "fetch:v1", "search:v1"):
            f = ember.host(fn, out=ember.Text, cache=cache)
            assert jax.vmap(ember.jit(f))(AB).tolist() == ["A", "B"]
    assert len(fn.seen) == 6 and len(journal) == 6


def test_a_cache_knows_static_arguments_and_keywords():
    fn = Counted(lambda word, n, **named: f"{word}{n}{named}")
    f = ember.host(fn, out=ember.Text, cache="static:v1")
    got = ember.jit(
        lambda w: (f(w, "1"), f(w, None), f(w, ("x",)), f(w, None, k=None), f(w, b"1"), f(w, b"2"), f(w, 1), f(w, n=2))
    )(A)
    expected = ["a1{}", "aNone{}", "a('x',){}", "aNone{'k': None}", "ab'1'{}", "ab'2'{}", "a1{}", "a2{}"]
    assert list(map(str, got)) == expected
    keywords = ember.host(lambda **named: str(sorted(named)), out=ember.Text, cache="keywords:v1")
    assert [str(keywords(a="1", b="2")), str(keywords(a="1", c="2"))] == ["['a', 'b']", "['a', 'c']"]


def test_a_cache_refuses_arguments_that_mean_nothing_in_another_process():
    f = ember.host(lambda word, how: word, out=ember.Text, cache="how:v1")
    with pytest.raises(TypeError, match=r"Close over it, and name it in cache="):
        f(A, object())


def test_a_failure_is_not_kept():
    outcomes = iter([RuntimeError("once"), "then"])

    def flaky(word):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    f = ember.jit(ember.host(flaky, out=ember.Text, cache="flaky:v1"))
    with pytest.raises(RuntimeError, match="once"):
        f(A)
    assert [str(f(A)), str(f(A))] == ["then", "then"]


def test_a_cache_of_an_impure_function_is_refused():
    with pytest.raises(ValueError, match=r"cache=.*pure=False"):
        ember.host(plain, out=ember.Text, pure=False, cache="x:v1")


# -- failures --------------------------------------------------------------------------------------------------------


class Strange(Exception):
    pass


RAISED = [
    Strange("is told"),
    ValueError("is told"),
    KeyError("is told"),
    StopIteration("is told"),
    AssertionError("is told"),
    TimeoutError("is told"),
]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_exceptions_arrive_with_their_type_and_under_jax_jit_with_their_text(error, is_async):
    def raises(word):
        raise error

    async def raises_later(word):
        raise error

    f = ember.host(raises_later if is_async else raises, out=ember.Text)
    # Python itself allows no StopIteration to leave a coroutine.
    kind = RuntimeError if isinstance(error, StopIteration) else type(error)
    for form in (f, ember.jit(f), ember.jit(f)):
        for _ in range(2):
            with pytest.raises(kind, match=r"is told|StopIteration"):
                form(A)
    compiled = jax.jit(f)
    for _ in range(2):
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=r"is told|StopIteration"):
            compiled(A)


@pytest.mark.parametrize("leave", [lambda: sys.exit(3), lambda: (_ for _ in ()).throw(KeyboardInterrupt)])
@pytest.mark.parametrize("is_async", [False, True])
def test_leaving_python_in_a_host_function_ends_neither_loop_nor_process(leave, is_async):
    def leaves(word):
        leave()

    async def leaves_later(word):
        leave()

    bad = ember.host(leaves_later if is_async else leaves, out=ember.Text)
    good = ember.host(plain if not is_async else asynchronous, out=ember.Text)
    for form in (bad, ember.jit(bad)):
        with pytest.raises(errors.HostResultError, match=r"leaves.* raised (SystemExit|KeyboardInterrupt)"):
            form(A)
    assert str(good(A)) == str(ember.jit(good)(A)) == "a"


def test_many_blocking_functions_run_at_once():
    barrier = threading.Barrier(8)
    meet = ember.host(lambda i: barrier.wait(30) * 0 + i, out=INT)
    assert jax.vmap(ember.jit(meet))(jnp.arange(8)).tolist() == list(range(8))


def test_async_functions_of_all_lanes_run_on_one_loop_at_once():
    waiting, everybody = [], asyncio.Event()

    async def meet(i):
        waiting.append(asyncio.get_running_loop())
        if len(waiting) == 8:
            everybody.set()
        await asyncio.wait_for(everybody.wait(), 30)
        return i

    assert jax.vmap(ember.jit(ember.host(meet, out=INT)))(jnp.arange(8)).tolist() == list(range(8))
    assert len(set(map(id, waiting))) == 1


# -- operators inside host functions ---------------------------------------------------------------------------------


@ember.operator
def inner(word: ember.Text) -> tuple[ember.Text, Float[Array, ""]]:
    said = shout(word)
    return jax.lax.cond(said == "A", lambda: said + "!", lambda: shout(said + "b")), jnp.float32(1) * 2


shout = ember.host(str.upper, out=ember.Text)
INNER = {"eager": inner, "jax.jit": jax.jit(inner), "ember.jit": ember.jit(inner)}


@pytest.mark.parametrize("how", INNER)
def test_an_operator_may_be_called_in_a_def_host_function(how, form):
    f = form(ember.host(lambda word: str(INNER[how](ember.text(word))[0]), out=ember.Text))
    assert str(f(A)) == "A!"
    assert jax.vmap(f)(AB).tolist() == ["A!", "BB"]


@pytest.mark.parametrize("how", [*INNER, "host", "llm"])
def test_an_operator_in_an_async_def_host_function_is_a_clear_error_and_no_deadlock(how):
    ask = {**INNER, "host": shout, "llm": ember.LLM("sim/small")}[how]
    ask(A)  # what is compiled already is an error too

    async def calls(word):
        return str(ask(ember.text(word)))

    f = ember.host(calls, out=ember.Text)
    for form in (f, ember.jit(f)):
        # What `jax.jit` compiled raises JAX's errors, which quote ours.
        with pytest.raises((errors.UnsupportedError, ValueError), match=r"(?s)async def.*plain `def`"):
            form(A)


def test_a_host_function_used_as_a_plain_function_keeps_its_name_and_documentation():
    def search(query: str) -> str:
        """Finds pages."""
        return query

    assert (ember.host(search, out=ember.Text).__name__, ember.host(search, out=ember.Text).__doc__) == (
        "search",
        "Finds pages.",
    )


def test_calls_from_many_threads_do_not_disturb_each_other():
    f = ember.jit(ember.host(lambda x: x + 1, out=INT))
    f(jnp.int32(0))
    got = {}

    def work(i):
        got[i] = int(f(jnp.int32(i)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {i: i + 1 for i in range(8)}
