"""What constructs are given, and what they are told: an error names the construct, the argument and the way out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import non

small = ember.LLM("sim/small")


def echo(question):
    return question


def keyed(question, key):
    return question


def grade(question, answer):
    return 1.0


def several(question):
    return ember.text(["a", "b"])


# Every argument that is a member, what it is called with, and a construct of which it is that.
PLACES = {
    "Ensemble(members": ("question", non.Ensemble),
    "Vote(members": ("question", non.Vote),
    "SelfConsistency(members": ("question", non.SelfConsistency),
    "FilterVote(members": ("question", lambda m: non.FilterVote(m, small)),
    "FilterVote(grader": ("question, answer", lambda m: non.FilterVote(small, m)),
    "BestOfN(members": ("question", lambda m: non.BestOfN(m, small)),
    "BestOfN(scorer": ("question, answer", lambda m: non.BestOfN(small, m)),
    "Verifier(members": ("question", lambda m: non.Verifier(m, small)),
    "Verifier(verifier": ("question, answer", lambda m: non.Verifier(small, m)),
    "Judge(members": ("question", lambda m: non.Judge(m, small)),
    "Judge(judge": ("prompt", lambda m: non.Judge(small, m)),
    "Knockout(members": ("question", lambda m: non.Knockout(m, small)),
    "Knockout(judge": ("prompt", lambda m: non.Knockout(small, m)),
    "Cascade(stages": ("question", lambda m: non.Cascade(m, small)),
    "Cascade(scorer": ("question, answer", lambda m: non.Cascade([small, small], m)),
    "Cascade(scorer[0]": ("question, answer", lambda m: non.Cascade([small, small], [m])),
    "Router(members": ("question", lambda m: non.Router(m, echo)),
    "Router(rule": ("question", lambda m: non.Router(small, m)),
    "Refine(member": ("question", lambda m: non.Refine(m, small)),
    "Refine(critic": ("question, answer", lambda m: non.Refine(small, m)),
    "Debate(debaters": ("question", non.Debate),
    "Debate(judge": ("prompt", lambda m: non.Debate(small, m)),
    "MixtureOfAgents(layers[0]": ("question", lambda m: non.MixtureOfAgents([m], small)),
    "MixtureOfAgents(aggregator": ("prompt", lambda m: non.MixtureOfAgents([small], m)),
    "Chain(steps[0]": ("question", non.Chain),
}


def raised(make, *args):
    with pytest.raises((TypeError, ValueError)) as error:
        make(*args)
    return str(error.value)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_operator_is_told_with_the_argument_and_the_fix(place):
    called, make = PLACES[place]
    if not place.startswith("Chain"):  # where a string is a template
        assert raised(make, "sim/a").startswith(f"{place}='sim/a') is a string. For a model id, `ember.LLM('sim/a')`")
    a_class = f"{place}=<class 'ember_jax._model.llm.LLM'>) is a class; make an operator of"
    assert raised(make, ember.LLM).startswith(a_class)
    if not place.startswith("Debate(judge"):  # which may be left out
        assert raised(make, None).startswith(f"{place}=None): give an operator, an LLM or another function")
    unlike = {"question": grade, "prompt": grade, "question, answer": echo}[called]
    message = raised(make, unlike)
    assert message.startswith(f"{place}=<function {unlike.__name__}")
    assert f"and is called with ({called}) or ({called}, key=…): " in message and "argument" in message
    make(grade if called == "question, answer" else echo)  # and this is what it takes


def test_a_member_among_several_is_named_by_its_place():
    assert raised(non.Vote, [echo, 3]).startswith("Vote(members[1]=3): give")
    assert raised(non.Cascade, [echo, grade], grade).startswith("Cascade(stages[1]=<function grade")
    assert raised(non.MixtureOfAgents, [[echo], [echo, "sim/a"]], echo).startswith(
        "MixtureOfAgents(layers[1][1]='sim/a')"
    )
    assert raised(non.Chain, echo, [echo, 3]).startswith("Chain(steps[2]=3): give")
    assert raised(non.Vote, max).startswith("Vote(members=<built-in function max>): no signature found")
    assert "missing a required argument: 'rng'" in raised(non.Vote, lambda question, rng: question)


SETTINGS = [
    (lambda: non.Vote(small, n=0), r"^Vote\(n=0\): give a whole number, at least 1"),
    (lambda: non.Vote(small, True), r"^Vote\(n=True\): give a whole number"),
    (lambda: non.Chain(non.Ensemble(small), small), r"^Chain\(steps\[1\]=.*steps\[0\] is an Ensemble.*non\.Vote"),
    (lambda: non.votes(ember.text("a")), r"rank 1, not of shape \[\]"),
    (lambda: non.Debate(small, n=0), r"^Debate\(n=0\): give a whole number"),
    (lambda: non.Judge(echo, small, 3), r"^Judge\(n=3\): <function echo.* takes no key"),
    (lambda: non.Knockout(non.Ensemble(small, 2), small, 3), r"^Knockout\(n=3\): its ensemble has 2 samples of each"),
    (lambda: non.LinearRule(0), r"^LinearRule\(members=0\): give a whole number"),
    (lambda: non.LinearScorer(dim=2.5), r"^LinearScorer\(dim=2.5\): give a whole number"),
    (lambda: non.Vote(small, normalize="typo"), r"^Vote\(normalize='typo'\).*'answer', 'case'.* Or None"),
    (lambda: non.SelfConsistency(small, normalize=["number"]), r"^SelfConsistency\(normalize=\['number'\]\)"),
    (lambda: non.FilterVote(small, small, normalize=str.lower), r"^FilterVote\(normalize=<method 'lower'"),
    (lambda: non.Vote(small, weights="heavy"), r"^Vote\(weights='heavy'\): give numbers"),
    (lambda: non.FilterVote(small, small, weights=1.0), r"^FilterVote\(weights=…\) has shape \[\]; give one number"),
    (lambda: non.SelfConsistency(small, weights=[[1.0]]), r"^SelfConsistency\(weights=…\) has shape \[1, 1\]"),
    (lambda: non.Cascade([echo, echo], grade, "high"), r"^Cascade\(thresholds='high'\): give numbers"),
    (lambda: non.Cascade([echo, echo], grade, temperature=-0.1), r"^Cascade\(temperature=-0.1\): give one number"),
    (lambda: non.Cascade([echo, echo], grade, temperature=jnp.float32(0)), r"^Cascade\(temperature=.*above 0"),
    (lambda: non.Cascade([echo, echo], grade, temperature=np.ones(2)), r"^Cascade\(temperature=.*give one number"),
    (lambda: non.Ensemble(small, tolerant=1), r"^Ensemble\(tolerant=1\): give True or False"),
    (lambda: non.Judge(small, small, synthesise="yes"), r"^Judge\(synthesise='yes'\): give True or False"),
    (lambda: non.Router(small, echo, sampled=jnp.array(True)), r"^Router\(sampled=.*give True or False"),
    (lambda: non.Grader(small, sampled=0.5), r"^Grader\(sampled=0.5\): give True or False"),
    (lambda: non.Router([small, small], small), r"^Router\(rule=LLM\(…\)\).*llm\.decide\("),
    (lambda: non.Grader("sim/a"), r"^Grader\(llm='sim/a'\): give an LLM, such as `ember\.LLM\("),
    (lambda: non.Refine(small, small, prompt=5), r"^Refine\(prompt=5\): give a string or a Text with \{question\}"),
    (lambda: non.Refine(small, small, critic_prompt="Good?"), r"^Refine\(critic_prompt='Good\?'\) names none of its"),
    (lambda: non.Debate(small, judge_prompt="{question}"), r"^Debate\(judge_prompt=…\) is for a judge.*give `judge=`"),
    (lambda: non.Debate(small, small, judge_prompt="Best?"), r"^Debate\(judge_prompt='Best\?'\) names none of its"),
    (lambda: non.Judge(small, small, prompt="{question} {candidates}"), r"^Judge\(prompt=…\) has the field \{cand"),
    (lambda: non.Knockout(small, small, prompt="{candidates}"), r"^Knockout\(prompt=…\) has the field \{candidates\}"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), SETTINGS)
def test_a_setting_that_cannot_be_is_told_when_it_is_given(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()


CALLED = [
    (lambda: non.Cascade([several, echo], grade), r"Cascade\.stages\[0\] gives one answer.*Text\[2\].*non\.Vote"),
    (lambda: non.Router([echo, several], lambda question: 1), r"Router\.members\[1\] gives one answer.*Text\[2\]"),
    (lambda: non.Refine(several, grade), r"Refine\.member gives one answer"),
    (lambda: non.Chain(several, several), r"Chain\.steps\[1\] gives one answer"),
    (lambda: non.Judge(echo, several, synthesise=True), r"Judge\.judge gives one answer"),
    (lambda: non.MixtureOfAgents([echo], several), r"MixtureOfAgents\.aggregator gives one answer"),
    (lambda: non.Cascade([echo] * 2, [lambda q, a: jnp.ones(1)]), r"Cascade\.scorer\[0\] gives one number.*shape \[\]"),
    (lambda: non.Verifier([echo] * 2, lambda q, a: None), r"Verifier\.verifier gives one number.* returned None;"),
    (lambda: non.FilterVote([echo] * 2, lambda q, a: "yes"), r"FilterVote\.grader gives one number.*non\.Grader"),
    (lambda: non.Refine(echo, lambda q, a: jnp.ones(1)), r"Refine\.critic gives one number.*; or it gives words"),
    (lambda: non.Refine(echo, lambda q, a: ember.text(["yes"])), r"Refine\.critic gives one number.*Text"),
    (lambda: non.Refine(echo, lambda q, a: None), r"Refine\.critic gives one number.* returned None; or it gives"),
    (lambda: non.Router([echo] * 2, lambda q: 1, sampled=True), r"Router\.rule gives float logits of shape \[2\] to"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), CALLED)
def test_what_only_a_call_can_know_is_told_by_its_place(make, says):
    with pytest.raises(TypeError, match=says):
        make()("Q")


def test_a_critics_words_may_be_a_string():
    assert str(non.Refine(echo, lambda question, answer: "Yes!")("Q")) == "Q"


def test_constructing_leaves_nothing_in_a_traced_program():
    made = jax.make_jaxpr(lambda weight: non.Vote([echo], normalize="case", weights=weight[None]).weights)(1.0)
    assert "callback" not in str(made)
