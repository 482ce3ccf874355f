"""Constructs with control flow: exact laws, only the calls that are needed, every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constructs import MODELS, Fails, assert_rate, calls, check_transforms, llm, questions, session

import ember_jax as ember
from ember_jax import non
from ember_jax._errors import SweepError
from ember_jax.testing import Sim, SimModel

GRADE = "{question}\nAnswer: {answer}\nIs that correct?"


class Grade(ember.Operator):
    """A scorer: 1 where a model says yes."""

    llm: ember.LLM

    def forward(self, question: ember.Text, answer: ember.Text, key: ember.Key) -> jax.Array:
        said = self.llm(ember.format(GRADE, question=question, answer=answer), key)
        return jnp.where(said == "yes", 1.0, 0.0)


@ember.operator
def is_even(question: ember.Text, answer: ember.Text) -> jax.Array:
    return 1.0 - ember.parse_number(answer) % 2


def says(words):
    """A member that answers the same, and asks nobody."""
    return lambda prompt: ember.text(words)


def echo(prompt):
    """A member that answers what it is asked."""
    return prompt


def number(question):
    """A rule: the number in the question."""
    return ember.parse_number(question).astype(jnp.int32)


def numbered(count):
    return ember.text([f"question {i}" for i in range(count)])


def answering(fn):
    """A session in which the models of `mine` answer with a function of their name and the prompt."""
    answer = lambda request: fn(request.model, request.messages[-1].content)
    return ember.session(journal=None, providers={"mine": ember.providers.Callable(answer)})


CONSTRUCTS = {
    "cascade": (lambda: non.Cascade([llm("weak"), llm("sure")], Grade(llm("never"))), None, None),
    "cascade that goes on": (lambda: non.Cascade([llm("weak"), llm("even"), llm("sure")], is_even, [2.0, 2.0]), 3, 3),
    "soft cascade": (lambda: non.Cascade([llm("weak"), llm("sure"), Fails()], [is_even, lambda q, a: 9.0], temperature=0.5), None, None),
    "router": (lambda: non.Router([non.Vote(llm("weak"), 2), Fails()], lambda question: 0), 2, 1),
    "sampled router": (lambda: non.Router([llm("weak"), llm("sure")], non.LinearRule(2, 16), sampled=True), 1, 1),
    "refine, never accepted": (lambda: non.Refine(llm("sure"), llm("never"), rounds=2), 5, 5),
    "refine by a number": (lambda: non.Refine(llm("even"), is_even, rounds=2), None, None),
    "debate": (lambda: non.Debate(llm("weak"), llm("weak"), n=2), 5, 3),
    "mixture": (lambda: non.MixtureOfAgents([[llm("weak"), llm("even")], non.Ensemble(llm("weak"), 3)], llm("weak")), 6, 3),
    "self-consistency": (lambda: non.SelfConsistency(llm("weak"), n=3), 3, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_transforms(name):
    make, requests, seconds = CONSTRUCTS[name]
    check_transforms(make(), requests, seconds)


@pytest.mark.parametrize(
    ("op", "requests"),
    [
        (lambda: non.Cascade(llm("weak"), is_even), 1),
        (lambda: non.Cascade([llm("sure"), Fails()], Grade(llm("sure"))), 2),
        (lambda: non.Router(llm("weak"), lambda question: jnp.zeros(1)), 1),
        (lambda: non.Refine(llm("sure"), llm("sure")), 2),
        (lambda: non.Debate(llm("weak"), rounds=1), 1),
        (lambda: non.Debate([llm("weak"), llm("sure")], n=2, rounds=3), 12),
        (lambda: non.MixtureOfAgents([llm("weak")], llm("sure")), 2),
        (lambda: non.SelfConsistency(llm("weak")), 1),
    ],
)
def test_single_members_and_short_ways(op, requests):
    asked, _ = questions(2)
    out, made, took = calls(jax.vmap(op()), asked, jax.random.split(jax.random.key(0), 2))
    assert out.shape == (2,)
    assert made == 2 * requests


@pytest.mark.parametrize(
    "make",
    [
        lambda: non.Cascade([], is_even),
        lambda: non.Router([], number),
        lambda: non.Refine([], echo),
        lambda: non.Refine(echo, []),
        lambda: non.Debate([]),
        lambda: non.MixtureOfAgents([], echo),
        lambda: non.MixtureOfAgents([[]], echo),
        lambda: non.MixtureOfAgents([[echo]], []),
        lambda: non.SelfConsistency([]),
    ],
)
def test_there_must_be_members(make):
    with pytest.raises(ValueError, match="has no members; give it|takes a list of layers, at least one"):
        make()


@pytest.mark.parametrize(
    ("make", "error", "says_"),
    [
        (lambda: non.Cascade([echo] * 3, [is_even]), ValueError, "3 stages and 1 scorers; give one for each stage but"),
        (lambda: non.Cascade([echo] * 3, is_even, [0.5]), ValueError, r"3 stages and thresholds of shape \[1\]"),
        (lambda: non.Cascade([echo] * 2, lambda question, answer: answer), TypeError, "a scorer returns one number for an answer, not Text"),
        (lambda: non.Router([echo] * 2, lambda q: jnp.zeros(3)), TypeError, r"or float logits of shape \[2\], not"),
        (lambda: non.Router([echo] * 2, lambda q: 0.5), TypeError, "Router of 2 members returns an integer"),
        (lambda: non.Router([echo] * 2, echo), TypeError, "Router of 2 members returns an integer"),
        (lambda: non.Refine(echo, is_even, rounds=0), ValueError, "rounds=0.*at least 1"),
        (lambda: non.Debate(echo, rounds=0), ValueError, "rounds=0.*at least 1"),
        (lambda: non.Debate([non.Ensemble([echo, echo])]), TypeError, "1 debaters and 2 answers; each debater gives one"),
    ],
)
def test_what_does_not_fit_is_told(make, error, says_):
    with pytest.raises(error, match=says_):
        make()("a question")
