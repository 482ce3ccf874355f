"""Ensembles and votes: counted calls, every transformation; how often votes are right is in `test_non_select.py`."""

import jax.numpy as jnp
import pytest
from constructs import Fails, check_transforms, llm

from ember_jax import non


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
