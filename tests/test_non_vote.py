"""Ensembles and votes: exact accuracies, counted calls, every transformation."""

import math

import jax.numpy as jnp
import pytest
from constructs import Fails, assert_rate, check_transforms, llm, sweep

import ember_jax as ember
from ember_jax import non

QUERIES = 20_000


def majority(p, k):
    """P(right) of a majority of k binary answers, an even split counted as half."""
    binomial = [math.comb(k, c) * p**c * (1 - p) ** (k - c) for c in range(k + 1)]
    return sum(b * (1.0 if 2 * c > k else 0.5 if 2 * c == k else 0.0) for c, b in enumerate(binomial))


@pytest.mark.parametrize(
    ("op", "requests", "seconds"),
    [
        (lambda: non.Ensemble(llm("weak"), n=4), 4, 1),
        (lambda: non.Ensemble([llm("weak"), llm("sure"), non.Ensemble(llm("even"), n=2)]), 4, 1),
        (lambda: non.Ensemble([non.Vote(llm("weak"), n=3), llm("sure")]), 4, 1),
        (lambda: non.Ensemble([llm("weak"), Fails()], tolerant=True), 2, 1),
        (lambda: non.Vote(llm("weak"), n=3), 3, 1),
        (lambda: non.Vote(llm("weak")), 1, 1),
        (lambda: non.Vote([llm("weak"), llm("sure")], weights=jnp.array([0.3, 1.5])), 2, 1),
    ],
)
def test_transforms(op, requests, seconds):
    check_transforms(op(), requests, seconds)


@pytest.mark.parametrize(("p", "k"), [(0.8, 3), (0.8, 4), (0.35, 5), (0.35, 6)])
def test_a_vote_is_right_as_often_as_the_binomial_says(p, k):
    right, report = sweep(
        non.Vote(ember.LLM("sim/small"), n=k), QUERIES, {"small": {"accuracy": p, "wrong_answers": 1}}
    )
    assert report.requests == QUERIES * k
    assert_rate(right, majority(p, k))
