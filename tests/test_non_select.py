"""Constructs that select among answers: exact laws, counted calls, every transformation.

The laws are checked over 20,000 queries each; members and graders of known skill that draw inside JAX stand in for
models, so that a law is a matter of seconds. One sweep, the first, is of simulated models.
"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constructs import Fails, assert_rate, calls, check_transforms, llm, questions, session

import ember_jax as ember
from ember_jax import non
from ember_jax.non._judge import pick
from ember_jax.testing import Sim, SimModel

QUERIES = 20_000


class Draws(eqx.Module):
    """A member that says `right` with a probability, else `wrong`; without a call."""

    p: jax.Array

    def __call__(self, question, key):
        return ember.where(jax.random.bernoulli(key, self.p), "right", "wrong")


class Checks(eqx.Module):
    """A scorer that accepts what is right with one probability and what is wrong with another; without a call."""

    right: float
    wrong: float

    def __call__(self, question, answer, key):
        return jnp.where(jax.random.bernoulli(key, jnp.where(answer == "right", self.right, self.wrong)), 1.0, 0.0)


class Picks(ember.LLM):
    """A judge that chooses what is right with probability 0.7, and what is wrong with 0.3; without a call."""

    def decide(self, state, questions, key, *, whole):
        right = jax.random.bernoulli(key, 0.7)
        index = jnp.argmax((questions.options == "right") == right)
        return ember.Choice(index, jnp.array([0.7, 0.3]), questions.options[index])


class Says(eqx.Module):
    """A member that always says the same, one answer or several; without a call."""

    answers: ember.Text

    def __call__(self, question):
        return self.answers


def says(*answers):
    return Says(ember.text(answers))


@functools.cache
def failed():
    """Failed text, of rank 1."""
    with session():
        return ember.attempt(Fails())(ember.text("3 + 4"), jax.random.key(0))[0].reshape(1)


def drawn(op):
    """Whether an operator, asked once with each of many keys, says `right`."""
    keys = jax.random.split(jax.random.key(0), QUERIES)
    with session():
        return np.asarray(jax.vmap(op, (None, 0))(ember.text("?"), keys) == "right")


def chosen(op, *recorded):
    """Whether what an operator chooses is `right`, for each row of recorded answers, scores and keys."""
    return np.asarray(jax.jit(jax.vmap(op.choose))(*recorded) == "right")


def samples(p, shape, seed=0):
    """`right` with probability `p`, else `wrong`, drawn by NumPy."""
    right = np.random.default_rng(seed).random(shape) < p
    return ember.text(["wrong", "right"])[jnp.asarray(right.astype(int))]


# -- exact laws ------------------------------------------------------------------------------------------------------


def majority(p, k):
    """P(right) of a majority of k binary answers, an even split counted as half."""
    binomial = [math.comb(k, c) * p**c * (1 - p) ** (k - c) for c in range(k + 1)]
    return sum(b * (1.0 if 2 * c > k else 0.5 if 2 * c == k else 0.0) for c, b in enumerate(binomial))


def filter_vote(p, c, s, n):
    """P(right) of Filter-Vote over n binary answers, accepted with probability c if right, s if wrong."""
    a = p * c + (1 - p) * s
    accepted = [math.comb(n, m) * a**m * (1 - a) ** (n - m) * majority(p * c / a, m) for m in range(1, n + 1)]
    return sum(accepted) + (1 - a) ** n * majority(p * (1 - c) / (1 - a), n)


def verified(p, c, s, k):
    """P(right) of one among the accepted of k answers."""
    a = p * c + (1 - p) * s
    return (1 - (1 - a) ** k) * p * c / a + (1 - a) ** k * p * (1 - c) / (1 - a)


def test_a_vote_of_simulated_models_has_the_accuracy_of_the_two_level_mixture():
    # 60,000 calls; one sweep is every number of answers up to its own, odd and even.
    asked, gold = questions(QUERIES)
    hard = np.array([int(g) % 5 < 2 for g in gold])
    difficult = dict(zip(asked.tolist(), hard.tolist(), strict=True))
    model = SimModel(accuracy=lambda prompt: 0.35 if difficult[prompt] else 0.85, wrong_answers=1, latency=0.0)
    with ember.session(journal=None, providers={"sim": Sim({"mixed": model})}) as run:
        op = non.Ensemble(ember.LLM("sim/mixed"), n=3)
        answers = jax.vmap(op)(asked, jax.random.split(jax.random.key(0), QUERIES))
        assert run.report().requests == 3 * QUERIES
        for k, exact in ((1, 0.65), (2, 0.65), (3, 0.67625)):
            right = jax.vmap(non.Vote(op).choose)(answers[:, :k]) == ember.text(gold)
            assert_rate(right, exact)


def test_a_vote_has_the_accuracy_of_the_two_level_mixture_in_each_regime():
    regimes = [
        (0.6, 0.85, 0.35),  # up, then down
        (0.3, 0.85, 0.35),  # down
        (0.6, 0.65, 0.15),  # up
        (0.3, 0.6, 0.2),  # down, then up
    ]
    drawn = np.random.default_rng(1).random(QUERIES)
    p = np.concatenate([np.where(drawn < alpha, p1, p2) for alpha, p1, p2 in regimes])
    answers = samples(p[:, None], (len(p), 10))
    for k in (1, 4, 5, 9, 10):
        right = chosen(non.Vote(says("?"), normalize=None), answers[:, :k])
        for of_regime, (alpha, p1, p2) in zip(right.reshape(4, QUERIES), regimes, strict=True):
            assert_rate(of_regime, alpha * majority(p1, k) + (1 - alpha) * majority(p2, k))


def test_weights_of_log_odds_are_better_than_equal_ones():
    p = jnp.array([0.8, 0.75, 0.7, 0.65, 0.6])
    op = non.Vote([Draws(each) for each in p], weights=non.log_odds(p), normalize=None)
    assert_rate(drawn(op), 0.8537)
    answers = samples(np.asarray(p), (QUERIES, 5))
    assert_rate(chosen(op, answers), 0.8537)
    assert_rate(chosen(non.Vote(op.members, normalize=None), answers), 0.8401)


@pytest.mark.parametrize(
    ("p", "c", "s", "n", "printed", "of_votes"),
    [(0.4, 0.9, 0.3, 5, 0.69789, 0.31744), (0.7, 0.5, 0.6, 11, 0.78306, 0.92178)],
)
def test_filter_vote(p, c, s, n, printed, of_votes):
    assert filter_vote(p, c, s, n) == pytest.approx(printed, abs=5e-6)
    assert majority(p, n) == pytest.approx(of_votes, abs=5e-6)
    op = non.FilterVote(Draws(jnp.asarray(p)), Checks(c, s), n=n, normalize=None)
    if n == 5:
        assert_rate(drawn(op), printed)
    answers = samples(p, (QUERIES, n))
    accepted = np.random.default_rng(1).random((QUERIES, n)) < np.where(np.asarray(answers == "right"), c, s)
    assert_rate(chosen(op, answers, jnp.asarray(accepted, jnp.float32)), printed)
    assert_rate(chosen(non.Vote(op.members, normalize=None), answers), of_votes)


@pytest.mark.parametrize(("k", "printed"), [(1, 0.3), (3, 0.57888), (10, 0.78238)])
def test_one_of_k_that_a_verifier_accepts(k, printed):
    assert verified(0.3, 0.9, 0.1, k) == pytest.approx(printed, abs=5e-6)
    op = non.Verifier(Draws(jnp.asarray(0.3)), Checks(0.9, 0.1), n=k)
    if k == 3:
        assert_rate(drawn(op), printed)
    answers = samples(0.3, (QUERIES, k))
    accepted = np.random.default_rng(1).random((QUERIES, k)) < np.where(np.asarray(answers == "right"), 0.9, 0.1)
    keys = jax.random.split(jax.random.key(2), QUERIES)
    assert_rate(chosen(op, answers, jnp.asarray(accepted, jnp.float32), keys), printed)


def test_a_verifier_takes_any_of_those_that_it_accepts():
    keys = jax.random.split(jax.random.key(0), QUERIES)
    answers, scores = ember.text(["a", "b", "c", "d"]), jnp.array([0.9, 0.5, 1.0, jnp.nan])
    choose = non.Verifier(says("?"), Checks(1, 0)).choose
    found = jax.jit(jax.vmap(choose, (None, None, 0)))(answers, scores, keys)
    assert_rate(found == "a", 0.5)
    assert bool(jnp.all((found == "a") | (found == "c")))


def test_a_knockout(monkeypatch):
    # Without a boundary around it: a plan would hold 140,000 lanes that only draw.
    monkeypatch.setattr("ember_jax.non._knockout.pick", pick.__wrapped__)
    p = 0.3
    for _ in range(3):
        p = p**2 + 2 * p * (1 - p) * 0.7
    assert p == pytest.approx(0.578435, abs=5e-7)

    op = non.Knockout(Draws(jnp.asarray(0.3)), Picks("sim/small"), n=8)
    assert_rate(drawn(op), p)


# -- calls, and every transformation ---------------------------------------------------------------------------------


OPERATORS = [
    (lambda: non.FilterVote([llm("sure"), llm("weak")], llm("weak")), 4, 2),
    (lambda: non.BestOfN([llm("sure"), llm("weak")], llm("weak")), 4, 2),
    (lambda: non.Verifier(llm("weak"), non.Grader(llm("weak")), n=2), 4, 2),
    (lambda: non.Judge([llm("never"), llm("sure")], llm("weak")), 3, 2),
    (lambda: non.Judge([llm("never"), llm("sure")], non.Vote(llm("weak"), n=3)), 5, 2),
    (lambda: non.Judge([llm("never"), llm("sure")], llm("weak"), synthesise=True), 3, 2),
    (lambda: non.Knockout([llm("never"), llm("sure"), llm("never")], llm("sure")), 5, 3),
    (lambda: non.Chain(llm("weak"), "{question}\n[1] {answer}\n[2] 5", llm("even")), 2, 2),
]


@pytest.mark.parametrize(("op", "requests", "seconds"), OPERATORS)
def test_requests_and_critical_path(op, requests, seconds):
    asked, _ = questions(1)
    assert calls(ember.jit(op()), asked[0], jax.random.key(0))[1:] == (requests, seconds)


CONSTRUCTS = {
    "FilterVote": lambda members: non.FilterVote(members, llm("sure")),
    "BestOfN": lambda members: non.BestOfN(members, llm("sure")),
    "Verifier": lambda members: non.Verifier(members, llm("sure")),
    "Judge": lambda members: non.Judge(members, llm("sure")),
    "Judge of words": lambda members: non.Judge(members, llm("sure"), synthesise=True),
    "Judge of numbers": lambda members: non.Judge(members, non.Vote(llm("sure"))),
    "Knockout": lambda members: non.Knockout(members, llm("sure")),
    "Chain": lambda members: non.Chain(non.Vote(members), "{question}\n[1] {answer}\n[2] 5", llm("even")),
}


class Each(ember.Operator):
    """All constructs over the same members, whose calls they share; all in one program, which compiles sooner."""

    ops: list

    def __init__(self, members):
        self.ops = [make(members) for make in CONSTRUCTS.values()]

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text["n"]:
        return ember.stack([op(question, key) for op in self.ops])


def test_transforms():
    # Two members, two grades, a choice or a reply for each of four that judge; and the chain, whose steps have keys of
    # their own: two members, and what follows the template.
    check_transforms(Each([llm("never"), llm("sure")]), 2 + 2 + 4 + 3, 2)


selects = pytest.mark.parametrize("make", CONSTRUCTS.values(), ids=CONSTRUCTS)


@selects
def test_no_members(make):
    with pytest.raises(ValueError, match="no members"):
        make([])


@selects
def test_a_member_that_fails(make):
    with pytest.raises(ember.errors.ProviderError, match="max_tokens"):
        calls(make([Fails(), llm("sure")]), ember.text("3 + 4"), jax.random.key(0))


def test_a_judge_that_fails():
    asked, _ = questions(2)
    with pytest.raises(ember.errors.SweepError, match="2 of 2"):
        calls(jax.vmap(non.Judge([llm("sure"), llm("never")], Fails())), asked, jax.random.split(jax.random.key(0), 2))


def test_of_a_single_answer_nothing_is_asked():
    asked, gold = questions(1)
    out, made, _ = calls(ember.jit(Each([llm("sure")])), asked[0], jax.random.key(0))
    assert out[:-1].tolist() == gold * (len(CONSTRUCTS) - 1)
    assert made == 1 + 1 + 2  # the member and the judge that writes; the chain's member and what follows its template


def test_what_failed_never_wins_and_is_not_shown_unless_all_failed():
    asked, gold = questions(1)

    def of(tokens, key):
        others = [llm(name, max_tokens=tokens) for name in ("never", "sure")]
        return Each(non.Ensemble([Fails(), *others], tolerant=True))(asked[0], key)

    keys = jax.random.split(jax.random.key(0), 2)
    some, none = calls(ember.jit(jax.vmap(of)), ember.text(["1", "0"]), keys)[0]
    selected = np.array([name != "Chain" for name in CONSTRUCTS])
    assert some[selected].tolist() == gold * (len(CONSTRUCTS) - 1)
    assert not bool(jnp.any(none == none))


def test_constructs_over_the_same_members_and_scorers_share_what_they_ask():
    members, scorer = non.Ensemble(llm("weak"), n=3), non.Grader(llm("weak"), sampled=True)
    asked, _ = questions(1)
    ops = non.FilterVote(members, scorer), non.BestOfN(members, scorer), non.Verifier(members, llm("weak"))
    all_of_them = ember.jit(lambda question, key: [op(question, key) for op in ops])
    assert calls(all_of_them, asked[0], jax.random.key(0))[1] == 6


def test_a_knockout_of_any_number():
    # Wherever the right one of nine stands, it wins; all differ, so there are 8 pairs, in 4 rounds.
    answers = ember.text([[str((i + j) % 9 + 1) for i in range(9)] for j in range(9)])
    wins = jax.vmap(lambda answers, key: non.Knockout(Says(answers), llm("sure"))(ember.text("3 + 4"), key))
    out, made, seconds = calls(ember.jit(wins), answers, jax.random.split(jax.random.key(0), 9))
    assert out.tolist() == ["7"] * 9 and made == 9 * 8 and seconds == 4


def test_equal_answers_are_not_judged():
    ops = non.Judge(says("4", "4", "4"), llm("sure")), non.Knockout(says("4", "4", "4"), llm("sure"))
    both = ember.jit(lambda question: [op(question) for op in ops])
    assert calls(both, ember.text("?"))[1] == 0


def test_more_answers_than_letters():
    many = says(*map(str, range(27)))
    with pytest.raises(ValueError, match=r"at most 26 answers.*27.*non\.Knockout"):
        non.Judge(many, llm("sure"))(ember.text("3 + 4"))
    assert str(calls(non.Judge(says(*map(str, range(26))), llm("sure")), ember.text("3 + 4"))[0]) == "7"
    assert str(calls(non.Judge(many, llm("sure"), synthesise=True), ember.text("3 + 4"))[0]) == "7"


# -- who wins --------------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


def test_the_best_of_n():
    cases = {
        "b": [[0.1, 0.3, 0.2], [NAN, -INF, NAN], [-INF, 0.0, 0.0]],
        "a": [[0.3, 0.3, 0.1], [NAN, NAN, NAN], [INF, INF, NAN], [-INF, NAN, -INF]],
        "c": [[NAN, 0.1, 0.2], [-INF, NAN, -1.0]],
    }
    winners = [winner for winner, rows in cases.items() for _ in rows]
    scores = jnp.array([row for rows in cases.values() for row in rows])
    choose = jax.jit(jax.vmap(non.BestOfN(says("?"), Checks(1, 0)).choose, (None, 0)))
    answers = ember.text(["a", "b", "c"])
    assert choose(answers, scores).tolist() == winners
    for score in (INF, NAN, -INF):  # of what failed
        with_failed = jnp.concatenate([jnp.full((len(winners), 1), score), scores], axis=1)
        assert choose(ember.concatenate([failed(), answers]), with_failed).tolist() == winners


def test_a_filtered_vote_is_won_by_words_that_were_accepted():
    answers = ember.text(["The Nile.", "nile", "Amazon", "amazon"])
    choose = jax.jit(non.FilterVote(says("?"), Checks(1, 0)).choose)
    assert str(choose(answers, jnp.array([0.0, 1.0, 0.6, 0.5]))) == "nile"
    assert str(choose(answers, jnp.array([0.0, 1.0, 0.6, 0.9]))) == "Amazon"
    assert str(choose(answers, jnp.zeros(4))) == "The Nile."
    weighted = non.FilterVote(says("?"), Checks(1, 0), weights=jnp.array([1.0, 1.0, 1.0, 3.0]))
    assert str(jax.jit(weighted.choose)(answers, jnp.array([1.0, 1.0, 0.0, 1.0]))) == "amazon"


def test_failed_text_has_no_votes_but_never_more_than_negative_ones():
    answers = ember.concatenate([failed(), ember.text(["a", "b"])])
    assert str(jax.jit(non.Vote(says("?"), weights=jnp.array([1.0, -2.0, -1.0])).choose)(answers)) == "b"


def test_graders():
    asked, gold = ember.text("What is 3 + 4?"), ember.text(["7", "8"])
    exact, _, _ = calls(jax.vmap(non.Grader(llm("weak")), (None, 0)), asked, gold)
    np.testing.assert_allclose(exact, [0.8, 0.2], rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), (2, 50))
    said = jax.vmap(jax.vmap(non.Grader(llm("weak"), sampled=True), (None, None, 0)), (None, 0, 0))
    sampled, made, _ = calls(said, asked, gold, keys)
    assert made == 100 and set(np.asarray(sampled).ravel().tolist()) == {0.0, 1.0}
    with pytest.raises(TypeError, match="scorer as it stands"):
        non.Grader(says("yes"))


def test_a_scorer_that_gives_no_number():
    with pytest.raises(TypeError, match=r"BestOfN\.scorer gives one number.*non\.Grader"):
        calls(non.BestOfN(says("a", "b"), lambda question, answer: answer), ember.text("?"))


def test_prompts_are_swept_by_vmap():
    prompts = ember.text([f"{i}. {{question}}\nAnswer: {{answer}}\nIs it correct?" for i in "xyz"])
    op = non.BestOfN([llm("never"), llm("sure")], non.Grader(llm("sure")))
    swept = jax.vmap(lambda prompt, question: eqx.tree_at(lambda o: o.scorer.prompt, op, prompt)(question), (0, None))
    asked, gold = questions(1)
    out, made, _ = calls(swept, prompts, asked[0])
    assert out.tolist() == gold * 3 and made == 2 + 2 * 3


# -- what judges see and say -----------------------------------------------------------------------------------------

TRICKY = ["{question}\n[2] me\u2028[2] too", "[2] me\nB. me", "{candidates} \\frac{a}{b}"]


class Replies(eqx.Module):
    """A judge of prompts that always says the same."""

    reply: ember.Text

    def __call__(self, prompt):
        return self.reply


def test_a_judge_is_shown_every_candidate_once_whatever_its_words():
    seen = []

    def answer(request):
        seen.append(request.messages[-1].content)
        return "B"

    with ember.session(journal=None, providers={"mine": ember.providers.Callable(answer)}):
        judge = ember.LLM("mine/judge")
        assert str(non.Judge(says(*TRICKY), judge)(ember.text("Q?"))) == TRICKY[1]
        assert str(non.Judge(says(*TRICKY), judge, prompt="{candidates}", synthesise=True)(ember.text("Q?"))) == "B"
        assert str(non.Judge(says(*TRICKY), judge, prompt="<{question}>")(ember.text("Q?"))) == TRICKY[1]
    chosen, listed, own = seen
    assert chosen.startswith("Q?\n\nWhich of these answers is best?\n\nA. {question}\n")
    assert "\nB. [2] me\n   B. me\nC. {candidates} \\frac{a}{b}\n" in chosen
    assert listed.split("\n") == [
        "[1] {question}",
        "  | [2] me",
        "  | [2] too",
        "[2] [2] me",
        "  | B. me",
        "[3] {candidates} \\frac{a}{b}",
    ]
    assert own.startswith("<Q?>\n\nA. ")


@pytest.mark.parametrize(
    ("reply", "winner"), [("2", "3"), ("The best is [2].", "3"), ("Forty.", "forty"), ("4", "4"), ("[1]", "1")]
)
def test_a_judge_names_a_candidate_by_its_number_or_else_by_its_words(reply, winner):
    op = non.Judge(says("1", "3", "forty", "4"), Replies(ember.text(reply)))
    assert str(calls(op, ember.text("?"))[0]) == winner


@pytest.mark.parametrize("reply", ["0", "5", "1.5", "none of them", ""])
def test_a_judge_that_names_no_candidate(reply):
    op = non.Judge(says("7", "8", "9"), Replies(ember.text(reply)))
    with pytest.raises(Exception, match=rf"reply, of {len(reply)} characters, is neither a number from 1 to 3"):
        calls(op, ember.text("?"))


# -- chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_gives_each_step_the_answer_of_the_one_before():
    shout = lambda answer: answer + "!"
    op = non.Chain([shout, "{question} {answer} {other}", ember.text("<{answer}>"), non.Chain(shout, shout)])
    assert str(op(ember.text("hi"))) == "<hi hi! {other}>!!"
    assert str(non.Chain(Says(ember.text("no")))(ember.text("hi"))) == "no"


def test_chains_that_cannot_be():
    for empty in (non.Chain, lambda: non.Chain([])):
        with pytest.raises(ValueError, match="no steps"):
            empty()
    with pytest.raises(TypeError, match=r"LLM\('sim/small'\)"):
        non.Chain("sim/small")
    with pytest.raises(TypeError, match=r"Chain\(steps\[1\]=3\): give an operator"):
        non.Chain("{answer}", 3)


def test_a_step_of_a_chain_that_fails():
    with pytest.raises(ember.errors.ProviderError, match="max_tokens"):
        calls(non.Chain(llm("sure"), Fails()), ember.text("3 + 4"), jax.random.key(0))
