"""What a user finds by a name: in an editor, in a notebook, in `help`, and after a slip."""

import functools
import importlib
import pydoc
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import ember_jax as ember

PUBLIC = ("", "errors", "learn", "learn.scaling", "non", "providers", "scores", "testing")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_module_shows_its_own_names_alone(name):
    module = importlib.import_module(f"ember_jax.{name}".rstrip("."))
    shown = {n for n in dir(module) if not n.startswith("_")}
    for found in shown:
        value = getattr(module, found)
        home = getattr(value, "__module__", getattr(value, "__name__", "ember_jax"))
        assert str(home).startswith(("ember_jax", "typing")) or found in ("Key", "Member"), (
            f"{name}.{found} is of {home}"
        )
    listed = getattr(module, "__all__", None)
    assert listed is None or set(listed) - {"__version__"} == shown


def test_help_is_a_page_that_names_everything():
    page = ember.__doc__
    assert page is not None and len(page.splitlines()) < 40
    assert [name for name in ember.__all__ if f"`{name}`" not in page] == ["__version__"]
    assert pydoc.render_doc(ember, renderer=pydoc.plaintext).index("words: `Text`") < 2500


def test_everything_is_imported_by_a_star():
    found: dict[str, object] = {}
    exec("from ember_jax import *", found)
    assert found.keys() >= set(ember.__all__)
    assert found["scores"] is ember.scores


def test_modules_are_imported_by_their_names():
    program = "import ember_jax.scores, ember_jax.errors, ember_jax.learn.scaling; from ember_jax.scores import exact"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("program", "near"),
    [
        ("ember.non.Voet", "Vote"),
        ("ember.Journl", "Journal"),
        ("ember.evaluat", "evaluate"),
        ("ember.providers.Anthropc", "Anthropic"),
        ("ember.scores.exactt", "exact"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(program, near):
    command = [sys.executable, "-c", f"import ember_jax as ember; {program}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and f"Did you mean '{near}'?" in done.stderr


def test_a_session_shows_what_is_for_its_user():
    with ember.session(journal=None) as run:
        shown = [name for name in dir(run) if not name.startswith("_")]
    assert shown == ["budget", "calls", "forget", "limits", "report", "statistics", "trace"]
    assert all(hasattr(run, name) for name in shown)


# -- what `jit` gives has JAX's methods -------------------------------------------------------------------------------

LLM = ember.LLM("sim/small")
QUESTIONS = ember.text(["What is 1 + 1?", "What is 2 + 2?"])


def both(question, n=2):
    return {"answer": LLM(question), "numbers": jnp.ones(3), "n": n}


@pytest.mark.parametrize("is_mapped", [False, True])
def test_jitted_functions_have_the_methods_of_jax(is_mapped):
    fn = ember.jit(jax.vmap(both) if is_mapped else both)
    asked = QUESTIONS if is_mapped else QUESTIONS[0]
    with ember.session(journal=None) as run:
        assert str(fn.lower(asked)) == str(ember.lower(jax.vmap(both) if is_mapped else both)(asked))
        shapes = fn.eval_shape(asked)
        assert str(shapes["answer"]) == f"Text(ShapeDtypeStruct(shape={asked.digests.shape}, dtype=uint32))"
        assert shapes["numbers"].shape == (*asked.shape, 3)
        assert "pure_callback" in str(fn.trace(asked).jaxpr)
        assert run.report().requests == 0
        assert fn(asked)["answer"].shape == asked.shape


def test_what_wraps_a_jitted_function_keeps_its_own_methods():
    fn = ember.jit(lambda x: jnp.sin(x))
    assert type(jax.jit(fn).lower(jnp.ones(2))) is jax.stages.Lowered
    assert not hasattr(functools.wraps(fn)(lambda x: fn(x)), "lower")
    assert fn.__name__ == "<lambda>" and repr(fn) == "<ember.jit of <lambda>>"


def test_what_cannot_be_called_is_told_where_it_is_given():
    with pytest.raises(TypeError, match=r"ember\.jit takes a function or an operator, not 3; call what it returns"):
        ember.jit(3)


def test_a_cleared_cache_is_traced_again():
    traced = []

    @ember.jit
    def fn(question):
        traced.append(question)
        return LLM(question)

    for clears in (False, False, True):
        if clears:
            fn.clear_cache()
        fn(QUESTIONS[0])
    once = len(traced)
    fn.clear_cache()
    fn(QUESTIONS[0])
    fn(QUESTIONS[0])
    assert len(traced) == once + once // 2


def test_a_jitted_function_may_be_a_method():
    class Asks:
        @ember.jit
        def twice(self, question):
            return LLM(question) + "!"

    assert str(Asks().twice(QUESTIONS[0])) == "2!"
