"""Ensembles and votes: counted calls, every transformation; how often votes are right is in `test_non_select.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constructs import Fails, calls, check_transforms, llm, questions

import ember_jax as ember
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


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_a_weight_for_each_answer(weights):
    vote = non.Vote([lambda question: "a", lambda question: "b"], weights=weights)
    with pytest.raises(ValueError, match=r"vote over 2 answers has weights of shape \["):
        vote("Q")


@pytest.mark.parametrize(
    "construct",
    [
        lambda member: non.Ensemble([member]),
        lambda member: non.Chain(member, lambda question: question),
        lambda member: non.Cascade([member, member], lambda question, answer: 1.0),
        lambda member: non.Router([member, member], lambda question: 1),
        lambda member: non.Refine(member, lambda question, answer: 1.0),
        lambda member: non.MixtureOfAgents([lambda question: "a"], member),
        lambda member: non.Judge([lambda question: "a"], member, synthesise=True),
    ],
)
@pytest.mark.parametrize("transform", [lambda op: op, ember.jit, jax.jit])
def test_a_member_may_answer_with_a_string_and_what_is_none_is_told(construct, transform):
    question = ember.text("Q")
    assert np.asarray(transform(construct(lambda question: "words"))(question)).reshape(-1).tolist() == ["words"]
    place = r"(Ensemble|Chain|Cascade|Router|Refine|MixtureOfAgents|Judge)"
    for other in (4.0, None):
        with pytest.raises(TypeError, match=rf"{place}.* answers with Text, and <function .* returned {other}"):
            transform(construct(lambda question, other=other: other))(question)


def test_votes_and_weights_are_arithmetic():
    np.testing.assert_array_equal(non.votes(["a", "b", "a"]), [2.0, 1.0, 2.0])
    np.testing.assert_array_equal(non.votes(ember.text(["a", "b", "a"]), jnp.array([1.0, 3.0, 0.5])), [1.5, 3.0, 1.5])
    np.testing.assert_allclose(non.log_odds([0.5, 0.75]), [0.0, np.log(3)], rtol=1e-6)


COUNTED = {
    "SelfConsistency(n=": lambda n: non.SelfConsistency(llm("weak"), n=n),
    "Ensemble(n=": lambda n: non.Ensemble(llm("weak"), n),
    "Vote(n=": lambda n: non.Vote(llm("weak"), n),
    "FilterVote(n=": lambda n: non.FilterVote(llm("weak"), llm("weak"), n),
    "BestOfN(n=": lambda n: non.BestOfN(llm("weak"), llm("weak"), n),
    "Verifier(n=": lambda n: non.Verifier(llm("weak"), llm("weak"), n),
    "Judge(n=": lambda n: non.Judge(llm("weak"), llm("weak"), n),
    "Knockout(n=": lambda n: non.Knockout(llm("weak"), llm("weak"), n),
    "Debate(n=": lambda n: non.Debate(llm("weak"), n=n),
    "Debate(rounds=": lambda n: non.Debate(llm("weak"), rounds=n),
    "Refine(rounds=": lambda n: non.Refine(llm("weak"), llm("weak"), rounds=n),
    "LinearRule(members=": lambda n: non.LinearRule(n),
}


@pytest.mark.parametrize("named", COUNTED)
@pytest.mark.parametrize("form", [jax.jit, ember.jit, lambda f: lambda n: jax.vmap(f)(n.reshape(1))])
def test_a_traced_count_is_told_with_the_two_ways_out(named, form):
    with pytest.raises(ValueError, match=r"is traced, .*non\.Vote\(llm, 5, weights=jnp\.arange\(5\) < n\)") as error:
        form(lambda n: jax.tree.leaves(COUNTED[named](n)))(jnp.int32(3))
    assert str(error.value).startswith(f"{named}…)") and "jax.lax.switch(n - 1, [lambda i=i:" in str(error.value)


def test_both_ways_out_are_the_vote_of_that_many():
    asked, _ = questions(5)
    counts, key = jnp.arange(1, 6), jax.random.key(3)
    fixed = [
        str(calls(ember.jit(non.Vote(llm("even"), n)), q, key)[0]) for q, n in zip(asked, range(1, 6), strict=True)
    ]

    def masked(question, n):
        return non.Vote(llm("even"), 5, weights=jnp.arange(5) < n)(question, key)

    def chosen(question, n):
        votes = [lambda i=i: non.Vote(llm("even"), i)(question, key) for i in range(1, 6)]
        return jax.lax.switch(n - 1, votes)

    for way, requests in ((masked, 25), (chosen, 15)):
        out, made, _ = calls(jax.vmap(ember.jit(way)), asked, counts)
        assert (out.tolist(), made) == (fixed, requests)


def test_a_count_may_be_numpys_and_is_a_python_integer():
    assert type(non.Vote(llm("weak"), n=np.int64(3)).members.n) is int
    for op in (lambda n: non.Ensemble(llm("weak"), n), lambda n: non.Debate(llm("weak"), rounds=n)):
        for n in (0, 2.0, "3"):
            with pytest.raises(ValueError, match="give a whole number, at least 1"):
                op(n)
