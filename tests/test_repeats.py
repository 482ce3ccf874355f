"""Samples that were meant to be independent and are one: the same warning in every mode, of the user's line."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import ember_jax as ember
from ember_jax import errors
from ember_jax.providers.callable import Callable

REQUESTS = []
KEYS = jax.random.split(jax.random.key(0), 3)
SEVERAL = ember.text(["a", "b", "c"])
SAME = ember.text(["a", "a", "a"])
LLM = ember.LLM("sim/small")


def answer(request):
    REQUESTS.append(request)
    return f"{request.messages[-1].content}/{request.sample}"


@pytest.fixture(autouse=True)
def _session():
    REQUESTS.clear()
    with ember.session(providers={"sim": Callable(answer)}) as run:
        yield run


def votes(question):
    return ember.stack([LLM(question) for _ in range(3)])


class Votes(ember.Operator):
    llm: ember.LLM

    def forward(self, question: ember.Text) -> ember.Text["3"]:
        return ember.stack([self.llm(question), self.llm(question), self.llm(question)])


def line_of(function, words):
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if words in line)


def once(caught, words):
    """The line of the one warning of repeated samples; a line that is warned of again is shown once."""
    (told,) = {(str(w.message), w.filename, w.lineno) for w in caught if w.category is errors.RepeatedSampleWarning}
    assert words in told[0] and "llm(prompt, key)" in told[0] and told[1] == __file__
    return told[2]


# -- one lane that asks the same sample again ------------------------------------------------------------------------

IN_A_LANE = {
    "line by line": lambda f: f(SEVERAL[0]),
    "disable_jit": lambda f: jax.disable_jit()(f)(SEVERAL[0]),
    "jax.jit": lambda f: jax.jit(f)(SEVERAL[0]),
    "jax.vmap": lambda f: jax.vmap(f)(SEVERAL),
    "jit of vmap": lambda f: jax.jit(jax.vmap(f))(SEVERAL),
    "ember.jit": lambda f: ember.jit(f)(SEVERAL[0]),
    "ember.jit of vmap": lambda f: ember.jit(jax.vmap(f))(SEVERAL),
    "vmap of ember.jit": lambda f: jax.vmap(ember.jit(f))(SEVERAL),
    "scan": lambda f: jax.lax.scan(lambda _, q: (0, f(q)), 0, SEVERAL),
    "grad": lambda f: jax.grad(lambda x: x * f(SEVERAL[0]).digests[0, 0].astype(float))(1.0),
}


@pytest.mark.parametrize("mode", IN_A_LANE)
@pytest.mark.parametrize("kind", ["function", "operator"])
def test_equal_samples_of_a_lane_are_warned_of_at_the_line_that_asks(mode, kind):
    # each anew: what was traced before is warned of at the line where it was traced
    f = (lambda q: votes(q)) if kind == "function" else Votes(ember.LLM("sim/small"))
    with pytest.warns(errors.RepeatedSampleWarning) as caught:
        jax.block_until_ready(jax.tree.leaves(IN_A_LANE[mode](f)))
    in_a_row = kind == "function" and mode in ("line by line", "disable_jit", "grad")
    words = "twice in a row" if in_a_row else "more than once in one lane"
    expected = line_of(votes, "range(3)") if kind == "function" else line_of(Votes.forward, "self.llm(question)")
    assert once(caught, words) == expected
    assert len(REQUESTS) == (3 if "vmap" in mode or mode == "scan" else 1)


# -- lanes that ask for one and the same -----------------------------------------------------------------------------


def mapped(wrap):
    return wrap(jax.vmap(lambda q: LLM(q)))(SAME)


EVERYWHERE = {"vmap": lambda f: f, "jit of vmap": jax.jit, "ember.jit of vmap": ember.jit}


@pytest.mark.parametrize("mode", EVERYWHERE)
def test_one_sample_in_all_lanes_is_warned_of_at_the_line_that_asks(mode):
    with pytest.warns(errors.RepeatedSampleWarning) as caught:
        mapped(EVERYWHERE[mode])
    assert once(caught, "one and the same sample in all 3 lanes") == line_of(mapped, "LLM(q)")
    assert len(REQUESTS) == 1


@pytest.mark.parametrize("ask", [lambda q: LLM.complete(q).text, lambda q: LLM.choose(q, ["A", "B"]).text])
def test_every_way_to_ask_is_warned_of(ask):
    with ember.session(providers={"sim": Callable(lambda r: "A")}), pytest.warns(errors.RepeatedSampleWarning):
        jax.vmap(ask)(SAME)


@ember.operator
def fixed(question: ember.Text) -> ember.Text:
    return LLM("always") + question


def test_lanes_of_an_operator_that_collapse_to_one_sample_are_warned_of_once():
    with pytest.warns(errors.RepeatedSampleWarning) as caught:
        jax.vmap(fixed)(SEVERAL)
    assert once(caught, "fixed asks one and the same sample in all 3 lanes") == line_of(fixed.fn, "always")
    assert len(caught) == 1 and len(REQUESTS) == 1


def test_repeats_of_a_loop_are_warned_of():
    @ember.operator
    def loop(question: ember.Text) -> ember.Text["3"]:
        return jax.lax.map(lambda i: LLM(question), jnp.arange(3))

    with pytest.warns(errors.RepeatedSampleWarning, match="loop"):
        ember.jit(loop)(ember.text("q"))


@pytest.mark.parametrize("mode", IN_A_LANE)
def test_the_warning_is_raised_with_its_type_where_warnings_are_errors(mode):
    wants = jax.errors.JaxRuntimeError if mode in ("jax.jit", "jit of vmap", "scan") else errors.RepeatedSampleWarning
    with pytest.raises(wants, match="the same sample"):  # a `jax.jit` of the user's keeps the words alone
        jax.block_until_ready(jax.tree.leaves(IN_A_LANE[mode](lambda q: votes(q))))


# -- what repeats nothing --------------------------------------------------------------------------------------------

QUIET = {
    "other prompts": lambda q, k: (LLM(q), LLM(q + "!")),
    "keys": lambda q, k: (LLM("same", k), LLM("same", jax.random.fold_in(k, 1))),
    "keys in a loop": lambda q, k: [LLM(q, key) for key in jax.random.split(k, 3)],
    "one key": lambda q, k: [LLM(q, k) for _ in range(3)],
    "temperature 0": lambda q, k: [LLM.replace(temperature=0)("same") for _ in range(3)],
    "other settings": lambda q, k: [LLM.replace(temperature=t)(q) for t in (0.5, 0.7)],
    "one branch each": lambda q, k: jax.lax.cond(q == "a", lambda: LLM(q), lambda: LLM(q + "?")),
}
MODES = {
    "line by line": lambda f: f(SEVERAL[0], KEYS[0]),
    "jax.jit": lambda f: jax.jit(f)(SEVERAL[0], KEYS[0]),
    "jax.vmap": lambda f: jax.vmap(f)(SEVERAL, KEYS),
    "vmap of ember.jit": lambda f: jax.vmap(ember.jit(f))(SEVERAL, KEYS),
    "ember.jit": lambda f: ember.jit(f)(SEVERAL[0], KEYS[0]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", QUIET)
def test_what_repeats_nothing_is_not_warned_of(program, mode):
    MODES[mode](QUIET[program])  # warnings are errors


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, ember.jit])
def test_a_second_epoch_of_the_same_questions_is_no_repeat(wrap):
    f = wrap(jax.vmap(lambda q: LLM(q)))
    for _ in range(2):
        f(SEVERAL)
    assert len(REQUESTS) == 3


def test_sessions_do_not_repeat_each_other():
    for _ in range(2):
        with ember.session(providers={"sim": Callable(answer)}):
            LLM("q")
    assert len(REQUESTS) == 2


# -- typed errors ----------------------------------------------------------------------------------------------------


def refuse(request):
    raise ConnectionError("gone")


@pytest.mark.parametrize("f", [LLM, lambda q: LLM.complete(q), ember.host(lambda q: 1 / 0, out=float)])
def test_what_is_mapped_without_an_operator_raises_its_own_error(f):
    retry = ember.Retry(attempts=1)
    with ember.session(providers={"sim": Callable(refuse)}, retry=retry), pytest.raises(errors.SweepError) as raised:
        jax.block_until_ready(jax.tree.leaves(jax.vmap(f)(SEVERAL)))
    assert [failure.lane for failure in raised.value.failures] == [(0,), (1,), (2,)]
