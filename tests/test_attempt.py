"""`attempt` and `metered`: failures and use as values, under every transformation, with nothing else changed."""

import asyncio
import collections
import functools
import json
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from constructs import asking
from hypothesis import given, settings
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax._engine.sweep import Sweep
from ember_jax._text import failed
from ember_jax.errors import CancelledError, JournalWriteError, RefusedRequestError, SweepError, UnsupportedError
from ember_jax.providers.base import Provider, Request, Response
from ember_jax.testing import VirtualClock

FLOAT = jax.ShapeDtypeStruct((), np.float32)


class Shouting(Provider):
    """Answers in capitals, for a token a character and a dollar a call; refuses what holds "bad"."""

    def __init__(self):
        self.asked = collections.Counter()
        self.error = lambda prompt: RefusedRequestError(f"refused {prompt}", status=400)

    def check(self, model):
        pass

    async def complete(self, request: Request) -> Response:
        prompt = request.messages[-1].content
        self.asked[prompt] += 1
        await asyncio.sleep(0)
        if "bad" in prompt.lower():
            raise self.error(prompt)
        return Response(prompt.upper(), len(prompt), 1, 1.0)

    async def close(self):
        pass


@pytest.fixture
def provider():
    found = Shouting()
    with ember.session(providers={"mine": found}, journal=None):
        yield found


@pytest.fixture
def llm(provider):
    return ember.LLM("mine/m")


def words(value):
    """A Text's words, `None` where it failed."""
    flat = np.asarray(value.digests).reshape(-1, 4)
    found = [None if failed.among(row) else str(ember.Text(row)) for row in flat]
    return np.array(found, object).reshape(value.shape).tolist()


FORMS = {
    "one": lambda f, xs: [f(x) for x in xs],
    "jax.jit": lambda f, xs: [jax.jit(f)(x) for x in xs],
    "ember.jit": lambda f, xs: [ember.jit(f)(x) for x in xs],
    "vmap": lambda f, xs: jax.vmap(f)(xs),
    "vmap of ember.jit": lambda f, xs: jax.vmap(ember.jit(f))(xs),
    "jit of vmap": lambda f, xs: jax.jit(jax.vmap(f))(xs),
    "ember.jit of vmap": lambda f, xs: ember.jit(jax.vmap(f))(xs),
    "vmap of vmap": lambda f, xs: jax.tree.map(
        lambda leaf: leaf.reshape(4, *leaf.shape[2:]), jax.vmap(jax.vmap(f))(xs.reshape(2, 2))
    ),
    "scan": lambda f, xs: jax.lax.scan(lambda c, x: (c, f(x)), 0, xs)[1],
    "inner vmap": lambda f, xs: ember.jit(lambda xs: jax.vmap(f)(xs))(xs),
}


def stacked(outputs):
    if isinstance(outputs, list):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    return outputs


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_lane_fails_alone_and_the_others_go_on(form, llm, provider):
    def one(word):
        answer, ok = ember.attempt(llm)(word)
        return answer, ok, jax.lax.cond(ok, lambda: answer, lambda: llm(ember.text("instead")))

    answer, ok, used = stacked(FORMS[form](one, ember.text(["a", "bad", "c", "worse than bad"])))
    assert words(answer) == ["A", None, "C", None]
    np.testing.assert_array_equal(ok, [True, False, True, False])
    assert words(used) == ["A", "INSTEAD", "C", "INSTEAD"]
    if form not in ("one", "vmap", "jax.jit", "jit of vmap", "vmap of vmap", "scan"):  # there the `cond` is JAX's own
        assert provider.asked == {"a": 1, "bad": 1, "c": 1, "worse than bad": 1, "instead": provider.asked["instead"]}


@settings(max_examples=15)
@given(st.data())
def test_random_chains_fail_where_their_calls_do(data):
    """The oracle is Python: an exception that is caught."""
    steps = data.draw(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=4))
    inputs = data.draw(
        st.lists(st.lists(st.sampled_from(["x", "bad"]), min_size=4, max_size=4), min_size=1, max_size=3)
    )
    inputs = [[f"{word}{i}" for word in row] for i, row in enumerate(inputs)]  # no two lanes ask the same
    provider = Shouting()
    with ember.session(providers={"mine": provider}, journal=None):
        llm = ember.LLM("mine/m")

        def ask(n, which, total, given):
            return llm(given[which] + f"-{n}-" + total) + "."

        def program(given):
            total, oks = ember.text("-"), []
            for n, (which, is_attempt) in enumerate(steps):
                step = functools.partial(ask, n, which)
                if is_attempt:
                    found, ok = ember.attempt(step)(total, given)
                    total = ember.where(ok, found, total)
                    oks.append(ok)
                else:
                    total = step(total, given)
            return total, jnp.array(oks, bool)

        def oracle(given):
            total, oks = "-", []
            for n, (which, is_attempt) in enumerate(steps):
                prompt = given[which] + f"-{n}-" + total
                bad = "bad" in prompt.lower()
                if bad and not is_attempt:
                    return None
                if is_attempt:
                    oks.append(not bad)
                total = total if bad else prompt.upper() + "."
            return total, oks

        wanted = [oracle(row) for row in inputs]
        sweep = lambda: jax.vmap(ember.jit(program))(ember.text(inputs))
        if None in wanted:
            with pytest.raises((SweepError, RefusedRequestError)) as caught:
                jax.block_until_ready(sweep())
            if isinstance(caught.value, SweepError):
                assert [f.lane for f in caught.value.failures] == [(i,) for i, w in enumerate(wanted) if w is None]
        else:
            totals, oks = sweep()
            assert totals.tolist() == [total for total, _ in wanted]
            assert np.asarray(oks).tolist() == [found for _, found in wanted]


def test_what_fails_stands_in_no_sweep_error_and_the_calls_after_it_are_not_made(llm, provider):
    def chain(word):
        return llm(llm(llm(word) + "bad") + "never")

    out, ok = jax.vmap(ember.attempt(chain))(ember.text(["a", "b"]))
    assert words(out) == [None, None]
    assert not ok.any()
    assert provider.asked == {"a": 1, "b": 1, "Abad": 1, "Bbad": 1}


def test_attempts_in_attempts(llm):
    def inner(word):
        found, ok = ember.attempt(llm)(word + "bad")
        return ember.where(ok, found, ember.text("caught inside")), ok

    out, ok = ember.jit(ember.attempt(inner))(ember.text("x"))
    assert (str(out[0]), bool(out[1]), bool(ok)) == ("caught inside", False, True)
    both = ember.attempt(lambda word: (inner(word), llm(word + "bad too")))
    ((text, inner_ok), other), ok = ember.jit(both)(ember.text("x"))
    assert words(text) is None
    assert words(other) is None
    assert (bool(inner_ok), bool(ok)) == (False, False)


def test_lanes_inside_an_attempt_fail_it_and_those_around_it_do_not(llm):
    def some(prompts):
        return jax.vmap(llm)(prompts)

    out, ok = jax.vmap(ember.attempt(some))(ember.text([["a", "b"], ["c", "bad"]]))
    assert words(out) == [["A", "B"], [None, None]]
    np.testing.assert_array_equal(ok, [True, False])
    assert [list(map(str, row)) for row in out.causes()] == [["None", "None"], ["refused bad", "refused bad"]]


def test_several_lanes_that_failed_are_one_cause(llm):
    _, ok = ember.attempt(lambda prompts: jax.vmap(llm)(prompts))(ember.text(["bad 1", "bad 2"]))
    assert not ok


def test_host_functions_fail_too_and_so_do_text_operations():
    def halve(word):
        return float(word) / 2

    host = ember.host(halve, out=FLOAT)
    out, ok = jax.vmap(ember.attempt(lambda w: host(w) * 2.0))(ember.text(["3", "three"]))
    np.testing.assert_array_equal(out, [3.0, np.nan])
    np.testing.assert_array_equal(ok, [True, False])


def test_numbers_of_a_failure_are_nan_integers_the_least_and_booleans_false(llm):
    def made(word):
        answer = llm.complete(word)
        return answer, answer.input_tokens > 0, jnp.uint8(3), jnp.int8(answer.input_tokens), jnp.ones((2,)), "static"

    out, ok = ember.attempt(made)(ember.text("bad"))
    answer, positive, small, byte, ones, static = out
    assert not ok
    assert words(answer.text) is None
    least = np.iinfo(np.int32).min
    assert (answer.input_tokens, answer.output_tokens) == (least, least)
    assert np.isnan(answer.cost)
    assert (bool(positive), int(small), int(byte), static) == (False, 0, -128, "static")
    np.testing.assert_array_equal(ones, [np.nan, np.nan])


@pytest.mark.parametrize("enclose", [ember.attempt, ember.metered])
def test_the_answer_in_place_of_the_function_is_told(enclose):
    with pytest.raises(TypeError, match=f"ember.{enclose.__name__} takes a function or an operator, not 3"):
        enclose(3)


def test_what_makes_no_call_does_not_fail():
    out, ok = jax.vmap(ember.attempt(lambda x: x + 1))(jnp.arange(3))
    np.testing.assert_array_equal(out, [1, 2, 3])
    assert ok.all()


def test_gradients_are_those_of_the_function_where_it_did_not_fail(llm):
    weigh = lambda word: jnp.asarray(jnp.sum(ember.features(word, 4)))

    def loss(w, word):
        def numbers(w, word):
            return w**2 * weigh(llm(word))

        out, ok = ember.attempt(numbers)(w, word)
        return jnp.where(ok, out, 0.0)

    prompts = ember.text(["abc", "bad", "abcdef"])
    values, grads = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(3.0, prompts)
    scale = np.array([float(weigh(ember.text(w.upper()))) for w in ["abc", "abcdef"]])
    np.testing.assert_allclose(values, [9 * scale[0], 0, 9 * scale[1]], rtol=1e-6)
    np.testing.assert_allclose(grads, [6 * scale[0], 0, 6 * scale[1]], rtol=1e-6)


def test_lanes_do_not_wait_for_each_other():
    async def wait(seconds):
        await asyncio.sleep(float(seconds))
        if seconds > 4:
            raise ValueError("too long")
        return seconds

    wait = ember.host(wait, out=FLOAT, pure=False)

    @ember.jit
    def two(a, b):
        first, ok = ember.attempt(wait)(a)
        return jax.lax.cond(ok, lambda: wait(b + 0 * first), lambda: first), ok

    with VirtualClock() as clock, ember.session():
        out, ok = jax.block_until_ready(
            jax.vmap(lambda a, b: ember.attempt(two)(a, b)[0])(jnp.array([1.0, 5.0, 3.0]), jnp.array([4.0, 0.0, 1.0]))
        )
    np.testing.assert_array_equal(ok, [True, False, True])
    np.testing.assert_array_equal(out, [4.0, np.nan, 1.0])
    assert clock.now == 5.0


class Stages:
    """A host function that takes 2 s, or fails after 1 s where its argument is negative; notes when it began."""

    def __init__(self):
        self.began = []

    async def __call__(self, x):
        loop = asyncio.get_running_loop()
        self.began.append((float(x), loop.time()))
        await asyncio.sleep(1 if x < 0 else 2)
        if x < 0:
            raise ValueError("negative")
        return x + 1


@pytest.fixture
def stages():
    return Stages()


NESTED = {
    "lanes": lambda chain: jax.vmap(chain),
    "lanes in lanes": lambda chain: lambda xs: jax.vmap(jax.vmap(chain))(jnp.stack([xs, xs + 100])),
    "attempts in its lanes": lambda chain: jax.vmap(
        ember.jit(lambda x: jax.lax.cond(x < 0, chain, lambda x: ember.attempt(chain)(x)[0], x))
    ),
    "a loop in its lanes": lambda chain: jax.vmap(lambda x: jax.lax.fori_loop(0, 2, lambda _, x: chain(x), x)),
    "a metered part": lambda chain: lambda xs: ember.metered(jax.vmap(chain))(xs)[0],
}


@pytest.mark.parametrize("form", [ember.jit, lambda f: jax.jit(ember.jit(f))], ids=["ember.jit", "jax.jit"])
@pytest.mark.parametrize("name", NESTED)
def test_when_one_of_its_lanes_has_failed_an_attempt_begins_no_further_call(name, form, stages):
    call = ember.host(stages, FLOAT)
    chain = lambda x: call(call(call(x)))
    with VirtualClock() as clock, ember.session():
        _, ok = form(ember.attempt(NESTED[name](chain)))(jnp.array([10.0, 20.0, -1.0, 30.0]))
        assert not ok
    several = 2 if name == "lanes in lanes" else 1
    assert len(stages.began) == 4 * several
    assert {began for _, began in stages.began} == {0}
    assert clock.now == 2  # those in flight have ended


def test_lanes_that_an_attempt_has_given_up_make_room_for_others(stages, monkeypatch):
    monkeypatch.setattr(Sweep.__init__, "__defaults__", (3, None))  # the window
    call = ember.host(stages, FLOAT, pure=False)
    tries = ember.attempt(jax.vmap(lambda x: call(call(x))))
    xs = jnp.array([[1.0, -1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, -1, 14, 15, 16], [17, 18, 19, 20, 21, -1]])
    with VirtualClock(), ember.session():
        out, ok = jax.vmap(ember.jit(tries))(xs)
    assert np.asarray(ok).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(out[1], xs[1] + 2)


def test_where_nothing_attempts_the_other_lanes_go_on(stages):
    call = ember.host(stages, FLOAT, pure=False)
    with VirtualClock(), ember.session(), pytest.raises(SweepError, match=r"1 of 4 lanes failed.*(?s:.*)lane \[2\]"):
        ember.jit(ember.metered(jax.vmap(lambda x: call(call(x)))))(jnp.array([10.0, 20.0, -1.0, 30.0]))
    assert sorted(x for x, _ in stages.began) == [-1, 10, 11, 20, 21, 30, 31]


@pytest.mark.parametrize("error", [CancelledError("stop"), JournalWriteError("full")])
def test_what_stops_everything_is_not_caught(error, llm, provider):
    provider.error = lambda prompt: error
    with pytest.raises(type(error)):
        jax.block_until_ready(ember.attempt(llm)(ember.text("bad")))


def test_python_that_cannot_be_traced_is_an_error_and_no_failure(llm):
    with pytest.raises(ember.errors.TracedControlFlowError):
        ember.attempt(lambda word: llm(str(word)))(ember.text("x"))
    with pytest.raises((UnsupportedError, NameError)):
        ember.attempt(lambda word: jax.lax.psum(jnp.float32(len(llm(word).shape)), "no such axis"))(ember.text("x"))


def test_a_second_call_traces_nothing_also_with_another_operator_of_its_kind(provider):
    Asks, traced = asking()
    for temperature in (0.1, 0.2, 0.3):
        out, ok = ember.attempt(Asks(ember.LLM("mine/m", temperature=temperature)))(ember.text(f"x{temperature}"))
        assert (str(out), bool(ok)) == (f"X{temperature}", True)
    once = len(traced)
    ember.attempt(Asks(ember.LLM("mine/m", temperature=0.4)))(ember.text("again"))
    assert len(traced) == once


def test_arrays_of_operators_are_mapped(provider):
    make = lambda model: ember.LLM(model)
    llms = jax.tree.map(lambda *leaves: jnp.stack(leaves), make("mine/a"), make("mine/b"))
    out, ok = eqx.filter_vmap(lambda llm, word: ember.attempt(llm)(word))(llms, ember.text(["x", "bad"]))
    assert words(out) == ["X", None]
    np.testing.assert_array_equal(ok, [True, False])


# -- failed text -----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(llm):
    out, ok = ember.attempt(llm)(ember.text("bad"))
    assert not ok
    return out


def test_it_has_no_words_and_a_cause(broken):
    assert broken.tolist() is None
    assert np.asarray(broken)[()] is None
    assert isinstance(broken.causes(), RefusedRequestError)
    assert str(broken) == f"{broken}" == "None (failed: RefusedRequestError: refused bad)"
    assert repr(broken) == "Text(<failed: RefusedRequestError: refused bad>)"
    with pytest.raises(ember.errors.TextError, match="got NoneType"):  # it is no prompt: nobody pays for "None"
        ember.LLM("mine/m")(broken.tolist())


def test_words_are_in_no_failed_text(broken):
    for part in ("None", "refused", ""):
        assert part not in broken


@pytest.fixture
def mixed(llm):
    prompts = ember.text([["a", "bad"], ["worse than bad", "b"], ["bad", "bad"]])
    out, _ = jax.vmap(jax.vmap(ember.attempt(llm)))(prompts)
    return out


def test_a_failed_lane_leaves_by_every_door(mixed, capsys):
    found = [["A", None], [None, "B"], [None, None]]
    assert mixed.tolist() == np.asarray(mixed).tolist() == found
    assert [[t.tolist() for t in row] for row in mixed] == found
    assert [[None if c is None else str(c) for c in row] for row in mixed.causes()] == [
        [None, "refused bad"],
        ["refused worse than bad", None],
        ["refused bad", "refused bad"],
    ]
    print(mixed)  # noqa: T201
    for row in mixed[:2]:
        print(*row, sep=", ")  # noqa: T201
    assert capsys.readouterr().out.splitlines() == [
        f"{found} (failed: [0, 1], [2, 0], [2, 1]: RefusedRequestError: refused bad; "
        "[1, 0]: RefusedRequestError: refused worse than bad)",
        "A, None (failed: RefusedRequestError: refused bad)",
        "None (failed: RefusedRequestError: refused worse than bad), B",
    ]
    assert repr(mixed).startswith("Text[3,2]('A', <failed: RefusedRequestError: refused bad>, <failed: ")
    series = pd.Series(mixed[1], index=["x", "y"])
    assert series.isna().tolist() == [True, False] and series["y"] == "B"
    frame = pd.DataFrame({"answer": mixed[0], "n": [1, 2]})
    assert frame["answer"].isna().tolist() == [False, True] and frame["answer"][0] == "A"
    assert json.loads(json.dumps(mixed.tolist())) == found


def test_many_causes_are_told_in_short_and_kept_in_full(provider, llm):
    provider.error = lambda prompt: RefusedRequestError(f"{prompt}\n{'x' * 300}")
    out, _ = jax.vmap(ember.attempt(llm))(ember.text([*["bad"] * 6, *[f"bad {i}" for i in range(5)]]))
    told = str(out)
    assert "(failed: [0], [1], [2], [3] and 2 more: RefusedRequestError: bad xxx" in told
    assert told.endswith("; 3 more causes)") and "\n" not in told and len(told) < 900
    assert out.causes()[10].args == (f"bad 4\n{'x' * 300}",)


def test_debug_print_shows_it_too(llm, capsys):
    @ember.jit
    def shows(word):
        out, _ = ember.attempt(llm)(word)
        jax.debug.print("{} and {x}", out, x=out)
        return out

    jax.block_until_ready(shows(ember.text("bad")))
    assert capsys.readouterr().out == "{0} and {0}\n".format("None (failed: RefusedRequestError: refused bad)")


def test_a_table_has_none_and_the_cause_beside_it(mixed, llm):
    table = ember.table({"answer": mixed, "ok": mixed == mixed}, model=["x", "y", "z"], row=2)
    assert list(table) == ["model", "row", "answer", "ok", "cause"]
    assert table["answer"] == ["A", None, None, "B", None, None]
    bad, worse = "RefusedRequestError: refused bad", "RefusedRequestError: refused worse than bad"
    assert table["cause"] == [None, bad, worse, None, bad, bad]
    frame = pd.DataFrame(table)
    assert frame["answer"].isna().tolist() == frame["cause"].notna().tolist()
    assert frame["ok"].tolist() == frame["cause"].isna().tolist()
    with pytest.raises(RefusedRequestError, match=r"^refused bad$"):
        ember.table(mixed, errors="raise", model=3, row=2)
    fine = jax.vmap(ember.attempt(llm))(ember.text(["a", "b"]))[0]
    assert list(ember.table(fine, q=2)) == list(ember.table(fine, errors="raise", q=2)) == ["q", "value"]
    nested = ember.table({"cause": mixed}, model=3)
    assert nested["cause"] == mixed.tolist() and nested["cause_of_failure"] == [bad, worse, bad]
    assert ember.table(mixed[2, 0])["cause"] == [bad]
    with pytest.raises(ember.errors.TextError, match=r'errors=\[1, 2\] of ember\.table is neither "none" nor "raise"'):
        ember.table(fine, errors=[1, 2])


def test_numbers_of_a_failed_lane_are_no_numbers_in_a_table(llm):
    def all_of_it(word):
        answer = llm.complete(word)
        return {"answer": answer, "pair": jnp.stack([answer.input_tokens] * 2), "minus": -(2**31) + 0 * answer.finish}

    table = ember.table(jax.vmap(ember.attempt(all_of_it))(ember.text(["abc", "bad"]))[0], q=2)
    assert table["answer.input_tokens"] == [3, None] and table["pair"] == [[3, 3], [None, None]]
    assert table["minus"] == [-(2**31), None]  # the other lane has this number
    np.testing.assert_array_equal(table["answer.cost"], [1.0, np.nan])
    assert pd.DataFrame(table)["answer.input_tokens"].mean() == 3
    assert table["cause"] == [None, "RefusedRequestError: refused bad"]


def test_structured_answers_of_a_failed_lane_are_none(provider, llm):
    class Found(NamedTuple):
        many: list[str]
        maybe: int | None

    async def complete(request):
        if "bad" in request.messages[-1].content:
            raise RefusedRequestError("refused")
        return Response('{"many": ["x"], "maybe": null}', 1, 1, 1.0)

    provider.complete = complete
    out, _ = jax.vmap(ember.attempt(lambda word: llm.structured(word, Found)))(ember.text(["a", "bad"]))
    assert (out.many.tolist(), out.maybe.tolist()) == ([["x"], None], [None, None])


def test_it_equals_nothing(broken):
    assert not (broken == broken).any()
    assert broken != broken
    assert not (broken == ember.text("bad")).any()
    assert not jax.jit(lambda t: t == t)(broken)


def test_it_spreads_through_text_operations(broken):
    both = ember.stack([broken, ember.text("fine")])
    for made in (
        both + "!",
        "!" + both,
        ember.format("{x} and {n}", x=both, n=3),
        ember.normalize(both, "case"),
        ember.jit(lambda t: t + "?")(both),
        jax.vmap(ember.jit(lambda t: ember.format("{t}", t=t)))(both),
    ):
        found = words(made)
        assert found[0] is None
        assert isinstance(found[1], str)
    assert words(ember.join(", ", both)) is None
    np.testing.assert_array_equal(ember.parse_number(both), [np.nan, np.nan])
    assert np.isnan(ember.features(both, 8)[0]).all()
    assert not np.isnan(ember.features(both, 8)[1]).any()
    tokens = ember.tokens(both, 4)
    assert (jax.tree.leaves(tokens)[0][0] < 0).all()


def test_no_call_is_made_on_it(broken, llm, provider):
    before = provider.asked.copy()
    called = []
    host = ember.host(lambda word: called.append(word) or 1.0, out=FLOAT)
    labels = ember.host(lambda word: [word, word], out=ember.Text["2"])
    for run in (lambda f: f(broken), lambda f: ember.jit(f)(broken)):
        assert words(run(lambda t: llm(t + " again"))) is None
        assert words(run(lambda t: ember.LLM("mine/m", system=t)("fine"))) is None
        choice = run(lambda t: llm.choose(t, ["yes", "no"]))
        assert words(choice.text) is None
        assert int(choice.index) == np.iinfo(np.int32).min
        assert np.isnan(choice.probs).all()
        assert np.isnan(run(host))
        assert words(run(labels)) == [None, None]
    assert provider.asked == before
    assert called == []


def test_it_can_be_saved_and_its_cause_is_told_while_it_is_known(broken, tmp_path, monkeypatch):
    both = ember.stack([broken, ember.text("fine")])
    ember.save(tmp_path / "t", both)
    loaded = ember.load(tmp_path / "t", both)
    assert words(loaded) == [None, "fine"]
    assert isinstance(loaded[0].causes(), RefusedRequestError)
    monkeypatch.setattr(failed, "_causes", type(failed._causes)())  # as in another process
    assert loaded.tolist() == [None, "fine"]
    assert isinstance(loaded[0].causes(), ember.errors.FailedTextError)
    assert "not known in this process" in str(loaded)


def test_causes_are_kept_within_a_bound(monkeypatch):
    monkeypatch.setattr(failed, "_causes", type(failed._causes)())
    monkeypatch.setattr(failed, "_MOST", 3)
    digests = [failed.digest_for(ValueError(str(i))) for i in range(5)]
    assert [str(failed.cause_of(d)) for d in digests[2:]] == ["2", "3", "4"]
    assert isinstance(failed.cause_of(digests[0]), ember.errors.FailedTextError)
    assert failed.digest_for(ValueError("1")) == digests[1]  # the same cause, the same digest


# -- use -------------------------------------------------------------------------------------------------------------


def used(usage):
    return [np.asarray(leaf).tolist() for leaf in usage]


@pytest.mark.parametrize("form", FORMS)
def test_use_is_counted_by_lane(form, llm):
    def two(word):
        return llm(llm(word) + "?")

    out, usage = stacked(FORMS[form](ember.metered(two), ember.text(["a", "bb", "ccc", "dddd"])))
    assert out.tolist() == ["A?", "BB?", "CCC?", "DDDD?"]
    assert used(usage) == [[2] * 4, [3, 5, 7, 9], [2] * 4, [2.0] * 4, [0] * 4]
    assert [u.dtype for u in usage] == [jnp.int32, jnp.int32, jnp.int32, jnp.float32, jnp.int32]


def test_only_what_is_done_is_counted(llm):
    def up_to(word, times):
        first = jax.lax.cond(times > 1, lambda: llm(word + "+"), lambda: word)
        return jax.lax.fori_loop(0, times, lambda i, w: llm(ember.format("{w}{i}", w=w, i=i)), first)

    _, usage = jax.vmap(ember.metered(up_to), in_axes=(None, 0))(ember.text("x"), jnp.array([0, 1, 3]))
    assert used(usage)[0] == [0, 1, 4]


def test_use_inside_use_counts_for_both(llm):
    def outer(word):
        inner, usage = ember.metered(llm)(word)
        return llm(inner + "!"), usage

    (_, inside), usage = ember.jit(ember.metered(outer))(ember.text("ab"))
    assert used(inside) == [1, 2, 1, 1.0, 0]
    assert used(usage) == [2, 5, 2, 2.0, 0]


def test_an_answer_of_the_journal_counts_as_it_did(provider):
    with ember.session(providers={"mine": provider}) as run:
        ask = ember.metered(ember.LLM("mine/m"))
        first, second = ask(ember.text("ab")), ask(ember.text("ab"))
        assert used(first[1]) == used(second[1]) == [1, 2, 1, 1.0, 0]
        assert (run.report().requests, run.report().replayed) == (1, 1)


def test_equal_calls_count_once_and_failed_ones_not(llm):
    key = jax.random.key(0)
    twice = ember.metered(lambda word: (llm(word, key), llm(word, key)))
    assert used(ember.jit(twice)(ember.text("a"))[1]) == [1, 1, 1, 1.0, 0]
    _, usage = ember.metered(ember.attempt(lambda word: llm(llm(word) + "bad")))(ember.text("a"))
    assert used(usage) == [1, 1, 1, 1.0, 0]


def test_an_unknown_price_is_nan(provider):
    async def complete(request):
        return Response("yes", 1, 1)

    provider.complete = complete
    provider.is_local = True  # whose prices nobody warns of
    _, usage = ember.metered(ember.LLM("mine/m"))(ember.text("a"))
    assert np.isnan(usage.cost)
    assert int(usage.calls) == 1


def test_answers_that_nobody_reads_are_paid_if_their_use_is_asked_for(llm, provider):
    usage = ember.jit(lambda word: ember.metered(llm)(word)[1])(ember.text("a"))
    assert used(usage) == [1, 1, 1, 1.0, 0]
    assert provider.asked == {"a": 1}


def test_cost_has_no_gradient(llm):
    def loss(w, word):
        out, usage = ember.metered(lambda w, word: w * jnp.sum(ember.features(llm(word), 4)))(w, word)
        return out + usage.cost * w

    value, grad = jax.value_and_grad(loss)(2.0, ember.text("abc"))
    scale = float(jnp.sum(ember.features(ember.text("ABC"), 4)))
    np.testing.assert_allclose(grad, scale + 1.0, rtol=1e-6)
    np.testing.assert_allclose(value, 2 * scale + 2, rtol=1e-6)


def test_plans_tell_what_is_enclosed(llm):
    def program(word):
        first, ok = ember.attempt(lambda w: llm(llm(w)))(word)
        second, usage = ember.metered(llm)(word + "?")
        return first, ok, second, usage

    plan = ember.lower(program)(ember.text("x"))
    assert repr(plan) == "<Plan of program: 3 calls>"
    assert "attempt, 2 calls" in plan.explain()
    assert "as it may fail until it has ended" in plan.explain()
    assert "as all of it is counted" in plan.explain()
    assert "The longest chain is 2 calls" in plan.explain()
    assert "mine/m" in plan.to_mermaid()
    assert str(plan).count("ask mine/m") == 3
