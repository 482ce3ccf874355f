"""Values that leave their process, and what another one finds in them: as a program, it reads pickles of a folder."""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import errors, non
from ember_jax._runtime.journal.calls import Calls

QUESTION = "What is 17 * 3 + 4?"


class Weighted(ember.Operator):
    """An operator with words, numbers, another operator and a static field."""

    prompts: dict[str, ember.Text]
    llm: ember.LLM
    weights: jax.Array
    name: str = eqx.field(static=True)

    def forward(self, question: ember.Text, scale: Float[Array, ""] = 1.0) -> tuple[ember.Text["2"], Float[Array, "2"]]:
        asked = ember.stack([self.prompts["first"] + question, self.prompts["second"] + question])
        return jax.vmap(self.llm)(asked), self.weights * scale


@ember.operator
def shout(question: ember.Text) -> ember.Text:
    """A function that is an operator."""
    return question + "!"


@ember.operator
def scaled(question: ember.Text, scale: Float[Array, ""] = 2.0) -> tuple[ember.Text, jax.Array]:
    """A function of arrays that is an operator."""
    return question, scale * jnp.ones(2)


class Review(eqx.Module):
    """A structured answer."""

    mood: str
    topics: list[str]
    stars: int | None


class Both(NamedTuple):
    """A pair in a NamedTuple."""

    text: ember.Text
    number: jax.Array


def llm(name="small", **settings):
    """A simulated model with a system message and settings, words that are said nowhere else."""
    return ember.LLM(f"sim/{name}", system=f"You are {name}.", **settings)


def failed_text(words="never"):
    """Text of two lanes of which one failed."""

    def check(word):
        if word == words:
            raise errors.RefusedRequestError(f"no {word}", status=400)
        return word

    lanes = ember.attempt(ember.host(check, ember.Text))
    return jax.vmap(lanes)(ember.text(["always", words]))[0]


def _small():
    return llm(temperature=0.7, stop=["END", "1"])


def _grader():
    return non.Grader(llm("large"))


def _calls():
    with ember.session(journal=None) as run:
        _small()(QUESTION)
        return run.calls()


# One value of every kind that leaves a process, by name. Their words are made when they are, in the process that does.
MADE = {
    "a Text": lambda: ember.text("one string, é😀\0"),
    "Texts": lambda: ember.text([["a", "b"], ["", "a"]]),
    "no Text": lambda: ember.text([]),
    "a blank Text": lambda: ember.Text(jnp.zeros((2, 4), jnp.uint32)),
    "a failed Text": failed_text,
    "a Text on the host": lambda: jax.device_get(ember.text(["on the", "host"])),
    "a Text without its array": lambda: eqx.filter(ember.text("x"), eqx.is_inexact_array),
    "a tree": lambda: {"t": [ember.text("in a tree")], "n": (1, "str", None), "w": np.arange(3)},
    "an LLM": _small,
    "LLMs": lambda: jax.tree.map(lambda *leaves: jnp.stack(leaves), llm("small"), llm("large")),
    "an operator": lambda: Weighted(
        {"first": ember.text("First: "), "second": ember.text("Second: ")}, _small(), jnp.arange(2.0), "op"
    ),
    "a function as operator": lambda: shout,
    "a function of arrays": lambda: scaled,
    "Ensemble": lambda: non.Ensemble([_small(), llm("large")], n=2),
    "Vote": lambda: non.Vote(_small(), n=3, normalize="number"),
    "SelfConsistency": lambda: non.SelfConsistency(_small(), n=3, weights=jnp.array([1.0, 2.0, 1.0])),
    "FilterVote": lambda: non.FilterVote(_small(), llm("large"), n=2),
    "BestOfN": lambda: non.BestOfN(_small(), _grader(), n=2),
    "Verifier": lambda: non.Verifier(_small(), llm("large"), n=2),
    "Judge": lambda: non.Judge(_small(), llm("large"), n=2),
    "Knockout": lambda: non.Knockout(_small(), llm("large"), n=2),
    "Cascade": lambda: non.Cascade([_small(), llm("large")], _grader(), thresholds=0.8),
    "Router": lambda: non.Router([_small(), llm("large")], non.LinearRule(2, dim=16)),
    "Refine": lambda: non.Refine(_small(), llm("large"), rounds=2),
    "Debate": lambda: non.Debate([_small(), llm("large")], rounds=2),
    "MixtureOfAgents": lambda: non.MixtureOfAgents([[_small(), llm("large")]], aggregator=llm("large")),
    "Chain": lambda: non.Chain(_small(), llm("large")),
    "what was parsed": lambda: non.parse('3E@sim/small(temperature=0.5, system="Be brief.") | J@sim/large'),
    "a Completion": lambda: _small().complete(QUESTION),
    "a Choice": lambda: _small().choose(QUESTION, ["fifty", "55"]),
    "a structured answer": lambda: _small().structured(QUESTION, Review),
    "an output with its Usage": lambda: ember.metered(lambda q: Both(llm()(q), jnp.ones(3)))(ember.text(QUESTION)),
    "a Result": lambda: ember.evaluate(_small(), [(f"What is {i} + 3?", str(i + 3)) for i in range(4)], "number"),
    "Calls": _calls,
    "an error": lambda: errors.RateLimitError("too fast", status=429, retry_after=2.0),
    "a SweepError": lambda: errors.SweepError(
        [errors.LaneFailure((1,), "op", errors.ServerError("down", status=500))], 4
    ),
    "an annotation": lambda: ember.Text["n 3"],
}


def values():
    """The values, by name."""
    with ember.session(journal=None):
        return {name: make() for name, make in MADE.items()}


def facts(value):
    """What a value says, as JSON: words, numbers, causes, what it answers."""
    if isinstance(value, BaseException):
        return [type(value).__name__, str(value), repr(vars(value).get("status"))]
    if isinstance(value, ember.Result):
        return [str(value), value.answers, repr(value.data), value.scores.tolist()]
    if isinstance(value, Calls):
        return [[call.messages[-1].content, call.answer, call.model, call.parameters] for call in value]
    is_text = lambda x: isinstance(x, ember.Text) and isinstance(x.digests, jax.Array | np.ndarray)
    found = {
        jax.tree_util.keystr(path): _leaf(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(value, is_leaf=is_text)[0]
    }
    said = [] if isinstance(value, ember.LLM) and value.model.shape else [_answer(value)]
    return [type(value).__name__, found, *said]


def _leaf(leaf):
    if not isinstance(leaf, ember.Text):
        return [type(leaf).__name__, repr(leaf.tolist() if hasattr(leaf, "tolist") else leaf)]
    if not np.any(np.asarray(leaf.digests)) and leaf.shape:
        return "blank"
    return [leaf.tolist(), str(leaf.causes()), type(leaf.digests).__name__]


def _answer(value):
    if not isinstance(value, ember.Operator | ember.LLM):
        return repr(value) if isinstance(value, type(ember.Text["n"])) else None
    with ember.session(journal=None):
        return [_leaf(leaf) for leaf in jax.tree.leaves(ember.jit(value)(ember.text(QUESTION)), is_leaf=_is_text)]


def _is_text(value):
    return isinstance(value, ember.Text)


def echo(value):
    """A value and what is found in it: what a pool of processes runs."""
    return value, facts(value)


def said_here(text):
    """A Text whose words are made in the process that runs this."""
    return ember.format("{t}, said by {who}", t=text, who=os.getpid())


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).glob("*.pickle")):
        try:
            told = facts(pickle.loads(file.read_bytes()))
        except Exception as error:  # is told, and the other files are read
            told = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps([file.stem, told]) + "\n")
