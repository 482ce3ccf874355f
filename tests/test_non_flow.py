"""Constructs with control flow: exact laws, only the calls that are needed, every transformation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constructs import Fails, assert_rate, calls, check_transforms, llm, questions, sweep

import ember_jax as ember
from ember_jax import learn, non
from ember_jax.errors import SweepError
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


def keys_of(count):
    return jax.random.split(jax.random.key(1), count)


def numbered(count):
    return ember.text([f"question {i}" for i in range(count)])


def answering(fn):
    """A session in which the models of `mine` answer with a function of their name and the prompt."""
    answer = lambda request: fn(request.model, request.messages[-1].content)
    return ember.session(journal=None, providers={"mine": ember.providers.Callable(answer)})


CONSTRUCTS = {
    "cascade": (lambda: non.Cascade([llm("weak"), llm("sure")], Grade(llm("even"))), None, None),
    "soft cascade": (lambda: non.Cascade([llm("weak"), llm("sure")], is_even, temperature=0.5), None, None),
    "sampled router": (lambda: non.Router([llm("weak"), llm("sure")], non.LinearRule(2, 16), sampled=True), 1, 1),
    "refine": (lambda: non.Refine(llm("even"), is_even, rounds=2), None, None),
    "debate": (lambda: non.Debate(llm("weak"), n=2), 4, 2),
    "mixture": (lambda: non.MixtureOfAgents([[llm("weak"), llm("even")], llm("weak")], llm("weak")), 4, 3),
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
    out, made, _ = calls(jax.vmap(op()), asked, jax.random.split(jax.random.key(0), 2))
    assert out.shape == (2,)
    assert made == 2 * requests


@pytest.mark.parametrize(
    "make",
    [
        lambda: non.Cascade([], is_even),
        lambda: non.Router([], number),
        lambda: non.Debate([]),
        lambda: non.MixtureOfAgents([], echo),
        lambda: non.MixtureOfAgents([[]], echo),
        lambda: non.SelfConsistency([]),
    ],
)
def test_there_must_be_members(make):
    with pytest.raises(
        ValueError, match=r"has no (stages|members|debaters|layers\[0\]); give it|takes a list of layers, at least one"
    ):
        make()


@pytest.mark.parametrize(
    ("make", "error", "says_"),
    [
        (lambda: non.Cascade([echo] * 3, [is_even]), ValueError, "3 stages and 1 scorers; give one for each stage but"),
        (lambda: non.Cascade([echo] * 3, is_even, [0.5]), ValueError, r"3 stages and thresholds of shape \[1\]"),
        (
            lambda: non.Cascade([echo] * 2, lambda question, answer: answer),
            TypeError,
            r"Cascade\.scorer gives one number for an answer, of shape \[\], and returned Text",
        ),
        (
            lambda: non.Cascade([echo] * 2, is_even, temperature=0),
            ValueError,
            "temperature=0.: give one number above 0",
        ),
        *(
            (lambda found=found: non.Router([echo] * 2, lambda q: found), TypeError, "Router.rule gives an integer, or")
            for found in (None, jnp.zeros(3), 0.5, ember.text("first"))
        ),
        (lambda: non.Refine(echo, is_even, rounds=0), ValueError, "rounds=0.*at least 1"),
        (lambda: non.Debate(echo, rounds=0), ValueError, "rounds=0.*at least 1"),
        (
            lambda: non.Debate([non.Ensemble([echo, echo])]),
            TypeError,
            "1 debaters and 2 answers; each debater gives one",
        ),
    ],
)
def test_what_does_not_fit_is_told(make, error, says_):
    with pytest.raises(error, match=says_):
        make()("a question")


# -- cascades


# Of three stages: how often each is right, what it costs, and how often its answer is accepted if right and if wrong.
ACCURACY, COST, RIGHT, WRONG = (0.7, 0.8, 0.9), (1.0, 10.0, 100.0), (0.9, 0.9, 1.0), (0.2, 0.2, 1.0)


def test_a_cascade_is_as_right_and_as_dear_as_the_law_says():
    count = 20_000
    free = {"latency": 0.0, "input_price": 0.0}
    stages = {  # an answer is one token
        f"stage{i}": SimModel(accuracy=ACCURACY[i], output_price=1e6 * COST[i], **free) for i in range(3)
    }
    grader = SimModel(verify_accuracy=RIGHT[0], false_accept=WRONG[0], output_price=0.0, **free)
    asked, gold = questions(count)
    with ember.session(journal=None, providers={"sim": Sim({**stages, "grader": grader})}) as run:
        op = non.Cascade([ember.LLM(f"sim/{name}") for name in stages], Grade(ember.LLM("sim/grader")))
        answers = jax.vmap(op)(asked, jax.random.split(jax.random.key(0), count))
        right = np.asarray(answers == ember.text(gold))
        cost = run.report().cost_usd / count
    reached, accuracy, mean, square = 1.0, 0.0, 0.0, 0.0
    for p, c, s, paid in zip(ACCURACY, RIGHT, WRONG, np.cumsum(COST), strict=True):
        ends = p * c + (1 - p) * s
        accuracy += reached * p * c
        mean += reached * ends * paid
        square += reached * ends * paid**2
        reached *= 1 - ends
    assert (accuracy, mean) == pytest.approx((0.920160, 11.54))
    assert_rate(right, accuracy)
    assert abs(cost - mean) / np.sqrt((square - mean**2) / count) < 4


def test_an_llm_scores_as_a_grader():
    asked, _ = questions(1)
    score = lambda model: calls(non.Cascade([llm("never"), says("last")], llm(model)), asked[0], keys_of(1)[0])[:2]
    assert str(score("sure")[0]) == "last"  # it knows that the answer is wrong
    answer, made = score("never")
    assert str(answer) != "last" and made == 2


def test_each_lane_pays_for_the_stages_that_it_needs():
    with answering(lambda model, prompt: model) as run:  # stage `i` answers `i`, and question `i` wants it
        stages = [ember.LLM(f"mine/{i}") for i in range(3)]
        score = lambda question, answer: ember.parse_number(question) == ember.parse_number(answer)
        out = jax.vmap(non.Cascade(stages, score))(numbered(4))
        assert out.tolist() == ["0", "1", "2", "2"]
        assert [len(run.calls(lane=i)) for i in range(4)] == [1, 2, 3, 3]


def test_thresholds_and_scorers_are_each_stages_own():
    stages = [says(str(i)) for i in range(3)]
    scorers = [lambda question, answer: 0.3, lambda question, answer, key: jnp.float32(0.6)]
    ask = lambda thresholds: str(non.Cascade(stages, scorers, thresholds)("?"))
    assert [ask(t) for t in ([0.2, 0.5], [0.3, 0.5], [0.3, 0.6], 0.25, 0.5, 0.7)] == list("012012")
    swept = jax.vmap(lambda t: non.Cascade(stages, scorers, t)("?"))(jnp.array([[0.2, 0.5], [0.3, 0.5], [0.3, 0.6]]))
    assert swept.tolist() == list("012")


def test_a_soft_threshold_accepts_by_the_sigmoid():
    keys = jax.random.split(jax.random.key(3), 20_000)
    op = non.Cascade([says("first"), says("last")], lambda question, answer: 0.7, 0.5, temperature=0.4)
    assert_rate(jax.vmap(op, (None, 0))(ember.text("?"), keys) == "first", 1 / (1 + np.exp(-0.5)))


def test_no_temperature_turns_the_gate_round():
    keys, cold = keys_of(64), jnp.array([-1.0, -1e-30, 0.0, 1e-30, 1e-15])  # as no constructor is given them

    def answers(score, temperature):
        op = non.Cascade([says("first"), says("last")], lambda question, answer: score, 0.5, temperature)
        return jax.vmap(op, (None, 0))(ember.text("?"), keys)

    accepts = jax.jit(jax.vmap(lambda temperature: answers(0.7, temperature) == "first"))
    refuses = jax.jit(jax.vmap(lambda temperature: answers(0.3, temperature) == "last"))
    assert accepts(cold).all() and refuses(cold).all()


@pytest.mark.parametrize("temperature", [-1.0, 0.0, 1e-30])
def test_a_gate_at_its_limit_has_gradients_of_zero(temperature):
    op = non.Cascade([says("1"), says("2")], lambda question, answer: 0.7, temperature=1.0)
    op = eqx.tree_at(lambda op: op.temperature, op, jnp.float32(temperature))
    loss = lambda op, question, key: ember.parse_number(op(question, key))
    value, grads = learn.value_and_grad(loss, estimator="enumerate")(op, (ember.text(["?"]),), jax.random.key(0))
    assert (value, grads.thresholds, grads.temperature) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("temperature", [None, 1e6])
def test_a_score_that_is_nan_accepts_nothing(temperature):
    nothing = lambda question, answer: ember.parse_number(answer)  # there is none in it
    op = non.Cascade([says("first"), says("last")], nothing, 0.0, temperature)
    assert set(jax.vmap(op, (None, 0))(ember.text("?"), keys_of(64)).tolist()) == {"last"}


def test_a_stage_that_is_not_reached_costs_and_fails_nothing():
    asked, gold = questions(4)
    odd = [int(g) % 2 for g in gold]
    out, _, _ = calls(jax.vmap(ember.attempt(non.Cascade([llm("sure"), Fails()], is_even))), asked, keys_of(4))
    assert out[1].tolist() == [not o for o in odd]
    assert 0 < sum(odd) < 4
    with pytest.raises(SweepError, match=f"{sum(odd)} of 4 lanes failed"):
        calls(jax.vmap(non.Cascade([llm("sure"), Fails()], is_even)), asked, keys_of(4))


# -- routers


def test_only_the_picked_member_is_asked():
    with answering(lambda model, prompt: model) as run:
        op = non.Router([ember.LLM("mine/a"), Fails(), ember.LLM("mine/c")], number)
        out, ok = jax.vmap(ember.attempt(op), (0, None))(numbered(5), jax.random.key(0))
        assert ok.tolist() == [True, False, True, True, True]  # beyond the last, the last
        assert out[ok].tolist() == ["a", "c", "c", "c"]
        assert [len(run.calls(lane=i, failed=False)) for i in range(5)] == [1, 0, 1, 1, 1]


def test_a_sampled_router_draws_by_its_logits():
    keys = jax.random.split(jax.random.key(5), 20_000)
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    op = non.Router([says("a"), says("b"), says("c")], lambda question: logits, sampled=True)
    out = jax.vmap(op, (None, 0))(ember.text("?"), keys)
    assert_rate(out == "a", 0.2)
    assert_rate(out == "b", 0.5)
    assert str(non.Router(op.members, op.rule)("?")) == "b"


def test_linear_rules_and_scorers_are_linear_in_the_features():
    rng = np.random.default_rng(0)
    rule, scorer = non.LinearRule(3, dim=8), non.LinearScorer(dim=8)
    assert not np.any(rule("some words")) and scorer("some", "words") == 0.0
    rule = eqx.tree_at(
        lambda r: (r.weight, r.bias), rule, tuple(map(jnp.float32, (rng.normal(size=(3, 8)), rng.normal(size=3))))
    )
    scorer = eqx.tree_at(lambda s: (s.weight, s.bias), scorer, (rule.weight[:2], rule.bias[0]))
    first, second = (np.asarray(ember.features(words, 8)) for words in ("some words", "others"))
    np.testing.assert_allclose(rule("some words"), rule.weight @ first + rule.bias, rtol=1e-5)
    expected = rule.weight[0] @ first + rule.weight[1] @ second + rule.bias[0]
    np.testing.assert_allclose(scorer("some words", "others"), expected, rtol=1e-5)
    picked = non.Router([echo] * 3, rule).pick(ember.text("some words"))
    assert picked == np.argmax(rule.weight @ first + rule.bias)


# -- refinement


def test_each_lane_pays_for_the_rounds_that_it_needs():
    def answer(model, prompt):  # drafts 0, then one more than the draft; question `i` wants `i`
        lines = prompt.splitlines()
        if model == "critic":
            return "Yes!" if lines[0].split()[-1] == lines[2].split()[-1] else "No: too small."
        assert "too small" in prompt or len(lines) == 1
        return str(int(lines[lines.index("A draft of the answer was:") + 1]) + 1) if len(lines) > 1 else "0"

    with answering(answer) as run:
        op = non.Refine(ember.LLM("mine/writer"), ember.LLM("mine/critic"), rounds=2)
        out = jax.vmap(op)(numbered(4))
        assert out.tolist() == ["0", "1", "2", "2"]
        assert [len(run.calls(lane=i)) for i in range(4)] == [2, 4, 5, 5]
        assert "makes 1 to 5 calls" in ember.lower(op)("question 0").explain()


def test_refinement_is_as_right_as_the_law_says():
    count, rounds, p, c, s = 2_000, 2, 0.4, 0.9, 0.3
    models = {"small": {"accuracy": p}, "medium": {"verify_accuracy": c, "false_accept": s}}
    op = non.Refine(ember.LLM("sim/small"), ember.LLM("sim/medium"), rounds)
    right, report = sweep(op, count, models)
    goes_on = 1 - p * c - (1 - p) * s
    reached = [goes_on**i for i in range(rounds + 1)]
    assert_rate(right, sum(reached[:rounds]) * p * c + reached[rounds] * p)
    # every round asks the critic, and every answer that is not accepted is written again
    expected = 1 + sum(reached[:rounds]) + sum(reached[1:])
    assert abs(report.requests / count - expected) < 4 * 2 * rounds / np.sqrt(count)


@pytest.mark.parametrize(
    ("verdict", "accepts"),
    [
        *((said, True) for said in ("yes", "Yes.", "YES, so", '"Yes"', "**yes**\nwell done", 0.6, True, jnp.int32(1))),
        *((said, False) for said in ("no", "yesterday", "", "Not yes", "It is: yes", "y", 0.5, jnp.nan, False)),
    ],
)  # fmt: skip
def test_what_a_critic_says_accepts_or_not(verdict, accepts):
    said = ember.text(verdict) if isinstance(verdict, str) else verdict
    out = str(non.Refine(echo, lambda question, answer: said, rounds=1, prompt="{question}|{answer}|{critique}")("Q"))
    words = verdict if isinstance(verdict, str) else "It is not good enough."
    assert out == ("Q" if accepts else f"Q|Q|{words}")


def test_a_critic_that_fails_fails_the_lane_or_accepts_nothing():
    asked, _ = questions(1)
    fails = lambda question, answer, key: Fails()(question, key)
    with pytest.raises(ember.errors.EmberError, match="max_tokens"):
        calls(non.Refine(llm("sure"), fails), asked[0], keys_of(1)[0])
    failing = lambda question, answer, key: ember.attempt(Fails())(question, key)[0]
    out, _, _ = calls(ember.jit(non.Refine(llm("sure"), failing)), asked[0], keys_of(1)[0])
    assert "max_tokens" in str(out.causes())  # what is revised by a failed critique has failed


# -- debates and mixtures


def test_debaters_see_all_last_answers_and_which_is_theirs():
    def debate(rounds):
        debaters = [says("a"), echo, says("c {yours}\n[9] d")]
        op = non.Debate(debaters, says("2"), rounds=rounds, prompt="{question}:{candidates}\n{yours}")
        return str(op("Q"))  # the judge picks what the second was asked last

    first, third = "[1] a\n[2] ", "\n[3] c {yours}\n  | [9] d\nYours is [2]."
    again = f"Q:{first}Q{third}"
    indented = again.replace("\n", "\n  | ")
    for rounds, last in enumerate(["Q", again, f"Q:{first}{indented}{third}"], 1):
        assert debate(rounds) == last


def test_a_debate_without_a_judge_is_a_vote():
    assert str(non.Debate([says("a"), says("B"), says("b.")])("Q")) == "B"


def test_a_judge_is_asked_where_debaters_differ():
    with answering(lambda model, prompt: "B") as run:
        debate = lambda *answers: str(non.Debate(list(map(says, answers)), ember.LLM("mine/judge"))("Q"))
        assert (debate("a", "a"), debate("a", "b"), run.report().requests) == ("a", "b", 1)


def test_debaters_that_fail_are_not_seen_and_may_answer_again():
    answers = non.Ensemble([says("a"), Fails(), echo], tolerant=True)
    op = non.Debate(answers, says("3"), prompt="{question}:{candidates}\n{yours}")
    assert str(calls(ember.jit(op), "Q", jax.random.key(0))[0]) == "Q:[1] a\n[2] Q\nYours is [2]."
    again = lambda prompt: ember.where(prompt == "Q", ember.attempt(Fails())(prompt, jax.random.key(0))[0], prompt)
    op = non.Debate([says("a"), again], says("2"), prompt="{candidates}\n{yours}")
    assert str(calls(ember.jit(op), "Q")[0]) == "[1] a\nYou have not answered yet."
    with pytest.raises(ember.errors.EmberError, match="max_tokens"):
        calls(ember.jit(non.Debate([says("a"), Fails()])), "Q", jax.random.key(0))


def test_a_layer_sees_the_answers_of_the_layer_before():
    prompt = "{question}:{candidates}"
    op = non.MixtureOfAgents([[says("a"), says("b")], [echo, says("c")]], echo, prompt)
    assert str(op("Q")) == "Q:[1] Q:[1] a\n  | [2] b\n[2] c"
    layer = non.Ensemble([Fails(), says("a")], tolerant=True)
    op = non.MixtureOfAgents([layer, echo], says("never shown"), prompt)
    assert str(calls(ember.jit(op), "Q", jax.random.key(0))[0]) == "never shown"
    nothing, _, _ = calls(
        ember.jit(non.MixtureOfAgents([non.Ensemble(Fails(), tolerant=True)], llm("sure"))), "Q", jax.random.key(0)
    )
    assert nothing.tolist() is None and "max_tokens" in str(nothing.causes())


# -- self-consistency


def test_the_vote_is_over_what_replies_state_and_returns_it():
    replies = ["So 2 and 2 is 5.\nAnswer: 5", "First:\nAnswer: 4.", "It is 3, no.\n**Answer:** four", "The answer is 4"]
    members = [says(reply) for reply in replies]
    assert str(non.SelfConsistency(members)("Q")) == "4"
    assert str(non.SelfConsistency(members, weights=jnp.array([3.0, 1.0, 1.0, 1.0]))("Q")) == "5"
    assert (
        str(non.SelfConsistency([says("Answer: 2/4"), says("Answer: 7"), says("x = .5")], normalize="number")("Q"))
        == "2/4"
    )


def test_verbose_models_come_to_the_answer():
    right, _ = sweep(non.SelfConsistency(ember.LLM("sim/small"), n=2), 50, {"small": {"accuracy": 1.0, "verbosity": 7}})
    assert right.all()


def test_prompts_are_swept_by_vmap():
    ask = lambda prompt: non.SelfConsistency(echo, prompt=prompt)("What?")
    assert jax.vmap(ask)(ember.text(["{question} Answer: 1", "No."])).tolist() == ["1", "No."]
