"""Programs whose shape depends on answers, in every form JAX runs them in, against the same program in plain Python."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, UInt32

import ember_jax as ember
from ember_jax import errors
from ember_jax.providers import callable as callables

CALLS: list[tuple[Any, ...]] = []


def logged(fn):
    """A tool in plain Python that notes what it was called with."""

    @functools.wraps(fn)
    def run(*args):
        CALLS.append((fn.__name__, *args))
        return fn(*args)

    return run


def rows(f):
    """Calls `f` on one row after another, as a Python loop would."""

    def run(*args):
        n = len(jax.tree.leaves(args)[0])
        outs = [f(*jax.tree.map(lambda a: a[i], args)) for i in range(n)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

    return run


FORMS: dict[str, Callable[[Any], Any]] = {
    "eager": rows,
    "jax.jit": lambda f: rows(jax.jit(f)),
    "ember.jit": lambda f: rows(ember.jit(f)),
    "vmap": jax.vmap,
    "jax.jit of vmap": lambda f: jax.jit(jax.vmap(f)),
    "ember.jit of vmap": lambda f: ember.jit(jax.vmap(f)),
    "vmap of jax.jit": lambda f: jax.vmap(jax.jit(f)),
}


# -- tools, in Python and as JAX sees them ---------------------------------------------------------------------------


@logged
def classify(question):
    return "sum" if "+" in question else "name"


@logged
def add(question):
    return str(sum(map(int, question.split("+"))))


@logged
def greet(question):
    return f"hello {question}"


@logged
def advance(word):
    return "stop" if len(word) >= 4 else word + word[0]


@logged
def respond(history):
    return f"turn {len(history.splitlines())}"


@logged
async def slow(question):
    return question[::-1]


def model(request):
    """The provider's answers: who was asked, what, and with which sample."""
    said = request.messages[-1].content
    CALLS.append(("model", request.model, said, request.sample))
    return f"<{said} {(request.sample or 'none')[-4:]}>"


def tool(fn):
    return ember.host(fn, out=ember.Text)


h_classify, h_add, h_greet, h_advance, h_respond = map(tool, (classify, add, greet, advance, respond))


async def _slow(question):
    return await slow(question)


h_slow = tool(_slow)


@pytest.fixture(autouse=True)
def _session():
    CALLS.clear()
    with ember.session(providers={"sim": callables.Callable(model)}) as run:
        yield run


def bits(key):
    return np.asarray(jax.random.key_data(key)).tobytes().hex()


# -- programs --------------------------------------------------------------------------------------------------------


@ember.operator
def branch(question: ember.Text) -> ember.Text:
    return jax.lax.cond(h_classify(question) == "sum", lambda: h_add(question), lambda: h_greet(question))


def plain_branch(question):
    return add(question) if classify(question) == "sum" else greet(question)


@ember.operator
def switch(question: ember.Text, index: Int[Array, ""]) -> ember.Text:
    return jax.lax.switch(index, [h_add, h_greet, lambda q: q], question)


def plain_switch(question, index):
    return [add, greet, lambda q: q][index](question)


@ember.operator
def until_stop(word: ember.Text) -> tuple[ember.Text, Int[Array, ""]]:
    def turn(carry):
        latest, said, turns = carry
        return h_advance(latest), said + latest + ",", turns + 1

    _, said, turns = jax.lax.while_loop(lambda c: c[0] != "stop", turn, (word, ember.text(""), jnp.int32(0)))
    return said, turns


def plain_until_stop(word):
    said, turns = "", 0
    while word != "stop":
        said, word, turns = said + word + ",", advance(word), turns + 1
    return said, turns


@ember.operator
def conversation(question: ember.Text) -> ember.Text:
    def turn(history, number):
        history = ember.format("{h}\n{i}: {r}", h=history, i=number, r=h_respond(history))
        return history, history

    final, _ = jax.lax.scan(turn, question, jnp.arange(3))
    return final


def plain_conversation(history):
    for i in range(3):
        history = f"{history}\n{i}: {respond(history)}"
    return history


class Chain(ember.Operator):
    """Three calls, each of a fresh sample of what the last one said."""

    llm: ember.LLM

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        for step in jax.random.split(key, 3):
            question = self.llm(question, step)
        return question


def plain_chain(question, key):
    for step in jax.random.split(key, 3):
        CALLS.append(("model", "small", question, bits(step)))
        question = f"<{question} {bits(step)[-4:]}>"
    return question


class Branching(ember.Operator):
    """Operators in a list and in a dict, one of them in a branch, called by functions in functions."""

    chains: list[Chain]
    by_name: dict[str, ember.Operator]
    weight: Float[Array, ""]

    def forward(self, question: ember.Text, key: ember.Key) -> tuple[ember.Text, Float[Array, ""]]:
        def inner(q):
            def innermost():
                return self.by_name["branch"](q)

            return innermost()

        first = inner(question)
        said = jax.lax.cond(first == "3", lambda: self.chains[0](first, key), lambda: ember.jit(greeted)(first))
        return said, self.weight * ember.parse_number("1 " + first)


def greeted(words):
    return h_greet(words + "!")


def plain_nested(question, key):
    first = plain_branch(question)
    number = float(first) if first.isdigit() else 1.0
    return plain_chain(first, key) if first == "3" else greet(first + "!"), 2 * number


@ember.operator
def reversed_twice(question: ember.Text) -> ember.Text:
    return h_slow(h_slow(question) + "!")


def run_slow(question):
    CALLS.append(("slow", question))
    return question[::-1]


def plain_reversed_twice(question):
    return run_slow(run_slow(question) + "!")


class Templated(ember.Operator):
    template: ember.Text

    def forward(self, question: ember.Text) -> ember.Text:
        TRACES.append(1)
        return h_greet(ember.format(self.template, q=question))


TRACES: list[int] = []
KEYS = jax.random.split(jax.random.key(0), 4)


@dataclass(frozen=True)
class Case:
    """An operator, the same program in Python, and two batches of rows for it."""

    operator: Any
    plain: Any
    batches: tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


CHAIN = Chain(ember.LLM("sim/small", temperature=1))
CASES = {
    "a branch on an answer": Case(
        branch, plain_branch, ([("1+2",), ("Ada",), ("3+4",)], [("Bob",), ("4+4",), ("Cyd",)])
    ),
    "a branch on an index": Case(
        switch, plain_switch, ([("1+2", 0), ("Ada", 1), ("x", 2)], [("y", 2), ("9+1", 0), ("8+1", 0)])
    ),
    "a loop until stop": Case(
        until_stop, plain_until_stop, ([("a",), ("bbb",), ("stop",)], [("stop",), ("cc",), ("ddddd",)])
    ),
    "a history that grows": Case(
        conversation, plain_conversation, ([("one",), ("two",), ("three",)], [("four",), ("five\nlines",), ("",)])
    ),
    "a chain of fresh samples": Case(
        CHAIN, plain_chain, ([("a", KEYS[0]), ("b", KEYS[1])], [("b", KEYS[2]), ("a", KEYS[3])])
    ),
    "nested functions and operators": Case(
        Branching([CHAIN], {"branch": branch}, jnp.float32(2)),
        plain_nested,
        ([("1+2", KEYS[0]), ("Ada", KEYS[1])], [("Bob", KEYS[0]), ("2+5", KEYS[1])]),
    ),
    "an async tool": Case(reversed_twice, plain_reversed_twice, ([("ab",), ("cd",)], [("ef",), ("",)])),
}


def batched(batch):
    """The columns of a batch of rows, as arrays."""
    columns = list(zip(*batch, strict=True))
    return [
        ember.text(list(c)) if isinstance(c[0], str) else jnp.asarray(c) if isinstance(c[0], int) else jnp.stack(c)
        for c in columns
    ]


def read(outputs):
    """Outputs as a list of rows of Python values."""
    columns = [x.tolist() for x in (outputs if isinstance(outputs, tuple) else (outputs,))]
    lanes = list(zip(*columns, strict=True))
    return lanes if isinstance(outputs, tuple) else [lane[0] for lane in lanes]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_answers_and_calls_are_those_of_plain_python(form, case):
    case = CASES[case]
    run = FORMS[form](case.operator)
    for batch in case.batches:
        CALLS.clear()
        expected = [case.plain(*row) for row in batch]
        calls = Counter(CALLS)
        CALLS.clear()
        assert read(run(*batched(batch))) == expected
        assert Counter(CALLS) == calls


@pytest.mark.parametrize("form", FORMS)
def test_a_branch_follows_an_answer_that_changes_for_the_same_question(form):
    replies = iter(["yes", "no", "no", "yes"])
    ask = ember.host(lambda question: next(replies), out=ember.Text, pure=False)
    never = tool(logged(lambda question: "taken"))

    @ember.operator
    def op(question: ember.Text) -> ember.Text:
        return jax.lax.cond(ask(question) == "yes", lambda: never(question), lambda: ember.text("left"))

    run, same = FORMS[form](op), ember.text(["?"])
    assert [run(same).tolist()[0] for _ in range(4)] == ["taken", "left", "left", "taken"]


def apply(operator, question):
    return operator(question)


def each(f):
    return lambda operator, questions: rows(lambda q: f(operator, q))(questions)


# The operator is an argument here: under `jax.jit` one that is closed over is a constant of the program.
across = jax.vmap(apply, in_axes=(None, 0))
APPLIED = {
    "eager": each(apply),
    "jax.jit": each(jax.jit(apply)),
    "ember.jit": each(ember.jit(apply)),
    "vmap": across,
    "jax.jit of vmap": jax.jit(across),
    "ember.jit of vmap": ember.jit(across),
    "vmap of jax.jit": jax.vmap(jax.jit(apply), in_axes=(None, 0)),
}


@pytest.mark.parametrize("form", APPLIED)
def test_a_changed_template_makes_new_calls_and_no_new_trace(form):
    run, questions = APPLIED[form], ember.text(["a", "b"])
    op = Templated(ember.text("<{q}>"))
    assert run(op, questions).tolist() == ["hello <a>", "hello <b>"]
    TRACES.clear()
    CALLS.clear()
    changed = eqx.tree_at(lambda o: o.template, op, ember.text("[{q}]"))
    assert run(changed, questions).tolist() == ["hello [a]", "hello [b]"]
    assert Counter(CALLS) == Counter([("greet", "[a]"), ("greet", "[b]")])
    assert len(TRACES) == (2 if form == "eager" else 0)  # line by line, forward is Python


# -- lanes in lanes --------------------------------------------------------------------------------------------------

GRID = [["1+2", "Ada", "3+4"], ["Bob", "5+6", "Cyd"]]
JITS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit}


@ember.operator
def over_rows(questions: ember.Text["n"]) -> ember.Text["n"]:
    return jax.vmap(branch)(questions)


@ember.operator
def over_rows_inside(questions: ember.Text["n"], suffix: ember.Text) -> ember.Text:
    """A `vmap` of a plain function that makes calls on both sides of the lanes."""
    suffix = h_greet(suffix)
    said = jax.vmap(lambda q: h_greet(q + suffix))(questions)
    return h_greet(ember.join(" ", said))


@pytest.mark.parametrize("jit", JITS)
@pytest.mark.parametrize(
    "nested", [jax.vmap(jax.vmap(branch)), jax.vmap(over_rows), jax.vmap(lambda q: jax.vmap(branch)(q)), over_rows]
)
def test_lanes_in_lanes_take_their_own_branches(jit, nested):
    grid = GRID[0] if nested is over_rows else GRID
    expected = jax.tree.map(plain_branch, grid)
    calls = Counter(CALLS)
    CALLS.clear()
    assert JITS[jit](nested)(ember.text(grid)).tolist() == expected
    assert Counter(CALLS) == calls


@pytest.mark.parametrize("jit", JITS)
def test_a_mapped_function_may_map_between_calls(jit):
    def plain(questions, suffix):
        suffix = greet(suffix)
        return greet(" ".join([greet(q + suffix) for q in questions]))

    expected = [plain(q, s) for q, s in zip(GRID, "xy", strict=True)]
    calls = Counter(CALLS)
    CALLS.clear()
    assert JITS[jit](jax.vmap(over_rows_inside))(ember.text(GRID), ember.text(["x", "y"])).tolist() == expected
    assert Counter(CALLS) == calls


@pytest.mark.parametrize("jit", JITS)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 0)])
def test_mapped_and_unmapped_arguments_mix(jit, axes):
    @ember.operator
    def pair(a: ember.Text, b: ember.Text) -> ember.Text:
        return h_greet(a + b)

    inner = {(0, None): jax.vmap(pair, in_axes=(0, None)), (None, 0): jax.vmap(pair, in_axes=(None, 0))}
    if axes in inner:
        a = ember.text(["a", "c"]) if axes[0] == 0 else ember.text("a")
        b = ember.text(["x", "y"]) if axes[1] == 0 else ember.text("x")
        expected = ["hello ax", "hello cx"] if axes[0] == 0 else ["hello ax", "hello ay"]
        assert JITS[jit](inner[axes])(a, b).tolist() == expected
    else:
        outer = jax.vmap(jax.vmap(pair, in_axes=(0, None)), in_axes=(1, 0))
        said = JITS[jit](outer)(ember.text([["a", "b"], ["c", "d"]]), ember.text(["x", "y"]))
        assert said.tolist() == [["hello ax", "hello cx"], ["hello by", "hello dy"]]


@pytest.mark.parametrize("form", ["vmap", "jax.jit of vmap", "ember.jit of vmap", "vmap of jax.jit"])
def test_an_empty_batch_makes_no_calls_and_gives_an_empty_result(form):
    keys = jax.random.split(jax.random.key(0), 0)
    assert FORMS[form](CHAIN)(ember.text([]), keys).shape == (0,)
    said, turns = FORMS[form](until_stop)(ember.text([]))
    assert (said.shape, turns.shape, turns.dtype) == ((0,), (0,), jnp.int32)
    assert jax.vmap(FORMS[form](branch))(ember.text([[], []])).shape == (2, 0)
    assert CALLS == []


# -- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_equal_prompts_are_as_many_samples_as_they_have_keys(form, _session):
    run, keys = FORMS[form](CHAIN), KEYS[jnp.array([0, 1, 0])]
    said = run(ember.text(["q", "q", "q"]), keys).tolist()
    assert said == [plain_chain("q", key) for key in keys]
    assert said[0] == said[2] != said[1]
    assert _session.report().requests == 6


@pytest.mark.parametrize("form", FORMS)
def test_results_of_unequal_length_are_named_as_such(form):
    letters = ember.host(lambda word: list(word), out=ember.Text["2"])

    @ember.operator
    def op(word: ember.Text) -> ember.Text["2"]:
        return letters(word)

    run = FORMS[form](op)
    assert run(ember.text(["ab", "cd"])).tolist() == [["a", "b"], ["c", "d"]]
    # A program that has run before fails with ValueError under `jax.jit`: that is what JAX's fast path raises.
    expected = {
        "eager": errors.HostResultError,
        "ember.jit": errors.HostResultError,
        "vmap": errors.SweepError,
        "ember.jit of vmap": errors.SweepError,
    }.get(form, (jax.errors.JaxRuntimeError, ValueError))
    with pytest.raises(expected) as raised:
        run(ember.text(["ab", "abc"]))
    assert "returned a list of 3: ['a', 'b', 'c'], but its out= says Text[2]" in str(raised.value)
    assert run(ember.text(["ef", "gh"])).tolist() == [["e", "f"], ["g", "h"]]


def test_lists_of_unequal_length_are_no_text():
    with pytest.raises(errors.TextError, match="unequal length"):
        branch(ember.text([["a"], ["b", "c"]]))


def test_integer_words_stay_what_they_are_under_vmap():
    @ember.operator
    def digests(words: ember.Text) -> UInt32[Array, "4"]:
        return words.digests

    expected = np.stack([np.asarray(ember.text(w).digests) for w in ("a", "b")])
    np.testing.assert_array_equal(jax.vmap(digests)(ember.text(["a", "b"])), expected)
