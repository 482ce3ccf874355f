"""The compact notation: what it says, where its errors point, and that it can be written back."""

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constructs import Fails, calls, check_transforms, questions, session
from hypothesis import example, given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import non
from ember_jax.non._named import Flow, Reference
from ember_jax.non._notation import BY_CLASS, BY_WORD

NotationError = ember.errors.NotationError
small, medium, large = (ember.LLM(f"sim/{name}") for name in ("small", "medium", "large"))


class Mine(ember.Operator):
    """An operator of one's own."""

    llm: ember.LLM

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        return self.llm(question, key)


@ember.operator
def grade(question: ember.Text, answer: ember.Text) -> jax.Array:
    return jnp.asarray(answer == question, float)


@ember.operator
def first(question: ember.Text) -> jax.Array:
    """A rule, which takes no key."""
    return jnp.zeros((), int)


COMPONENTS = {"mine": Mine(medium), "grade": grade, "first": first}


def parsed(text):
    return non.parse(text, **{name: op for name, op in COMPONENTS.items() if f"${name}" in text})


def several(op, n):
    """So many judges of the same candidates, as `3J@…` makes them."""
    once = eqx.tree_at(lambda op: op.members, op, non.Ensemble(Reference("candidates")))
    return Flow(("candidates",), (op.members,), non.Ensemble(once, n))


MEANINGS = [
    ("sim/small", lambda: small),
    ('sim/small(system="Be brief.", temperature=0.7)', lambda: small.replace(system="Be brief.", temperature=0.7)),
    ("5E@sim/small", lambda: non.Ensemble(small, 5)),
    ("2E(tolerant=true)@[sim/small, $mine]", lambda: non.Ensemble([small, COMPONENTS["mine"]], 2, tolerant=True)),
    ("[sim/small, 2E@sim/large]", lambda: non.Ensemble([small, non.Ensemble(large, 2)])),
    ("3E@([sim/small, sim/large])", lambda: non.Ensemble(non.Ensemble([small, large]), 3)),
    ("5E@sim/small | M", lambda: non.Vote(small, 5)),
    ("sim/small | M", lambda: non.Vote(small)),
    ("[3E@sim/small] | M", lambda: non.Vote(non.Ensemble([non.Ensemble(small, 3)]))),
    (
        "[sim/small, sim/large] | M(normalize=null, weights=[0.1, 2.5])",
        lambda: non.Vote([small, large], normalize=None, weights=jnp.array([0.1, 2.5])),
    ),
    ("5E@sim/small | J@sim/large", lambda: non.Judge(small, large, 5)),
    ("5E@sim/small | J(synthesise=true)@sim/large", lambda: non.Judge(small, large, 5, synthesise=True)),
    (
        'sim/small | J(prompt="Which?\\n{question}")@sim/large',
        lambda: non.Judge(small, large, prompt="Which?\n{question}"),
    ),
    (
        "5E@sim/small | V@sim/medium | V@sim/large | M",
        lambda: non.Vote(non.Verifier(non.Verifier(small, medium, 5), large)),
    ),
    (
        "[2E@sim/small, 3E@sim/medium, $mine] | J@sim/large",
        lambda: non.Judge([non.Ensemble(small, 2), non.Ensemble(medium, 3), COMPONENTS["mine"]], large),
    ),
    ("5E@sim/small | J@(sim/medium | $mine)", lambda: non.Judge(small, non.Chain(medium, COMPONENTS["mine"]), 5)),
    ("5E@sim/small | FilterVote(normalize=null)@$grade", lambda: non.FilterVote(small, grade, 5, normalize=None)),
    ("5E@sim/small | BestOfN@sim/large", lambda: non.BestOfN(small, large, 5)),
    (
        "5E@sim/small | BestOfN@Grader(sampled=true)@sim/large",
        lambda: non.BestOfN(small, non.Grader(large, sampled=True), 5),
    ),
    ("5E@sim/small | Knockout@sim/large", lambda: non.Knockout(small, large, 5)),
    (
        "[sim/small, sim/medium, 3E@sim/large | M] | Cascade(thresholds=[0.5, 0.75], temperature=0.1)@$grade",
        lambda: non.Cascade([small, medium, non.Vote(large, 3)], grade, [0.5, 0.75], 0.1),
    ),
    (
        "[sim/small, sim/medium, sim/large] | Cascade@[$grade, Grader@sim/large]",
        lambda: non.Cascade([small, medium, large], [grade, non.Grader(large)]),
    ),
    ("[sim/small, sim/large] | Router(sampled=true)@$first", lambda: non.Router([small, large], first, sampled=True)),
    ("sim/small | Refine(rounds=2)@sim/large", lambda: non.Refine(small, large, rounds=2)),
    ("([sim/small, sim/large]) | Refine@$grade", lambda: non.Refine(non.Ensemble([small, large]), grade)),
    ("[sim/small, sim/large] | Debate", lambda: non.Debate([small, large])),
    ("3E@sim/small | Debate(rounds=4)@sim/large", lambda: non.Debate(small, large, 3, rounds=4)),
    (
        "[[sim/small, sim/medium], 2E@sim/small] | MixtureOfAgents@sim/large",
        lambda: non.MixtureOfAgents([[small, medium], non.Ensemble(small, 2)], large),
    ),
    ('SelfConsistency(normalize="number")@5E@sim/small', lambda: non.SelfConsistency(small, 5, normalize="number")),
    ("5E@sim/small | M | $mine | sim/large", lambda: non.Chain(non.Vote(small, 5), COMPONENTS["mine"], large)),
    ("sim/small | (sim/medium | sim/large)", lambda: non.Chain(small, non.Chain(medium, large))),
    ("(sim/small | sim/medium) | sim/large", lambda: non.Chain(non.Chain(small, medium), large)),
    ("sim/small | (2E@sim/medium | M)", lambda: non.Chain(small, non.Vote(medium, 2))),
    ("sim/small | sim/medium | M", lambda: non.Vote(non.Chain(small, medium))),
    (
        '"In French: {question}" | sim/small | "{answer}!" | sim/large',
        lambda: non.Chain("In French: {question}", small, "{answer}!", large),
    ),
    ("Chain@sim/small", lambda: non.Chain(small)),
    ('Chain@"{question}?"', lambda: non.Chain("{question}?")),
    (
        "a = 5E@sim/small; b = a | V@sim/medium; [b, a] | J@sim/large",
        lambda: Flow(
            ("a", "b"),
            (non.Ensemble(small, 5), non.Verifier(Reference("a"), medium)),
            non.Judge([Reference("b"), Reference("a")], large),
        ),
    ),
    (
        "3E@(a = sim/small; [a, (a = a | M; a)])",
        lambda: non.Ensemble(
            Flow(
                ("a",),
                (small,),
                non.Ensemble([Reference("a"), Flow(("a",), (non.Vote(Reference("a")),), Reference("a"))]),
            ),
            3,
        ),
    ),
]


@pytest.mark.parametrize(("text", "op"), MEANINGS, ids=[text for text, _ in MEANINGS])
def test_what_is_written_is_read_and_written_back(text, op):
    assert eqx.tree_equal(parsed(text), op())
    assert non.format(op(), **COMPONENTS) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (["5E@sim/small", "1J@sim/large"], "5E@sim/small | J@sim/large"),
        (("sim/small",), "sim/small"),
        ("5Ensemble@sim/small|1Vote", "5E@sim/small | M"),
        ("sim/small(), 2 E @ sim/large\n | M;", "[sim/small, 2E@sim/large] | M"),
        ("1E@sim/small", "[sim/small]"),
        ("[sim/small, [sim/medium, sim/large]]", "[sim/small, [sim/medium, sim/large]]"),
        ("[[sim/small]] | M", "[[sim/small]] | M"),
        ("5SelfConsistency@sim/small", "SelfConsistency@5E@sim/small"),
        ("5E@sim/small | 3J@sim/large", "candidates = 5E@sim/small; 3E@(candidates | J@sim/large)"),
        ("a = 2E@sim/small; a | 3J@sim/large | M", "a = 2E@sim/small; 3E@(a | J@sim/large) | M"),
        ('sim/small(system="a\nb")', 'sim/small(system="a\\nb")'),
        ('sim/small(temperature=7e-1, stop=["\\u00e9"], top_p=null)', 'sim/small(stop=["\\u00e9"], temperature=0.7)'),
        ('LLM(temperature=0, model="sim/small")', "sim/small(temperature=0)"),
    ],
)
def test_there_are_other_ways_to_write_the_same(text, canonical):
    op = non.parse(text)
    assert non.format(op) == canonical
    assert eqx.tree_equal(op, non.parse(canonical))


def test_three_judges_judge_the_same_candidates():
    op = non.parse("5E@sim/small | 3J@sim/large")
    assert eqx.tree_equal(op, several(non.Judge(small, large, 5), 3))


def test_every_construct_has_a_word():
    public = {op for op in vars(non).values() if isinstance(op, type) and issubclass(op, ember.Operator)}
    assert public - {non.Agent} == BY_CLASS.keys()  # tools are functions, which have no words
    assert {word for word in BY_WORD if len(word) == 1} == set("EJMV")


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ("‸", "expected a model"),
        ("5E@sim/small |‸  ", "expected a model"),
        ("5E@‸sim/smal | M", "Did you mean 'small'"),
        ("5E@‸smi/small | M", "Did you mean 'sim'"),
        ("5E@‸gpt-4o | M", "`gpt-4o` is no model"),
        ("‸3:E:gpt-4o:0.7", "write `3E@openai/gpt-4o(temperature=0.7)`"),
        ("sim/small(‸temprature=1)", "Did you mean 'temperature'"),
        ("sim/small(‸model=1)", "stands before the parentheses"),
        ("‸LLM(temperature=1)", "needs its model"),
        ("LLM(‸model=5)", "LLM takes a model id"),
        ("sim/small(temperature=‸True)", "expected a value"),
        ("sim/small(temperature=‸)", "expected a value"),
        ("sim/small(stop=[1, ‸)", "not JSON"),
        ("sim/small(temperature=1, ‸temperature=2)", "given twice"),
        ("sim/small(temperature‸", "expected `=`"),
        ("sim/small(temperature=1‸", "expected `,` or `)`"),
        ("sim/small(‸=1)", "expected a setting"),
        ("sim/small(seed=‸" + "9" * 5000 + ")", "cannot be read"),
        ("sim/small(seed=‸" + "[" * 5000 + ")", "nested more than 100 deep"),
        ("‸0E@sim/small", "at least 1"),
        ("‸5E@$first", "Ensemble(n=5): FunctionOperator(fn=<function first>) takes no key"),
        ("‸5E@$grade", "missing a required argument: 'answer'"),
        ("5E‸", "expected `@` and the members"),
        ("5E@sim/small | J‸", "expected `@` and the judge"),
        ("5E@sim/small | ‸3M", "`3E@(…)`"),
        ("[sim/small, sim/large] | ‸3Cascade@$grade", "`3E@(…)`"),
        ("5E@sim/small | ‸Vot", "Did you mean `Vote`"),
        ("5E@sim/small | ‸m", "Did you mean `M`?"),
        ("‸5e@sim/small | M", "Did you mean `E`?"),
        ("5E@sim/small | ‸3j@sim/large", "Did you mean `J`?"),
        ("‸selfconsistency@sim/small", "Did you mean `SelfConsistency`?"),
        ('5E@sim/small | ‸M(normalize="typo")', "Vote(normalize='typo')"),
        ("5E@sim/small | M(‸normalise=null)", "Did you mean `normalize`"),
        ("5E@sim/small | V(‸prompt=1)@sim/large", "it takes none"),
        ("5E@sim/small | ‸Refine(rounds=0)@sim/large", "at least 1"),
        ("‸J@sim/large", "needs its members before `|`"),
        ("drafts = 2E@sim/small; ‸draft | M", "Did you mean `drafts`"),
        ("‸a = 2E@sim/small; sim/large", "nothing uses `a`"),
        ("a = sim/small; ‸a = a | M; a", "named already"),
        ("‸M = sim/small; M", "is a construct"),
        ("a = sim/small | M\n‸b = a | M", "expected `|`, or `;`"),
        ("a = sim/small;‸", "expected a model"),
        ("a = sim/small; [a, a] | ‸a", "has answered"),
        ("5E@sim/small | M‸, sim/large", "in brackets"),
        ("5E@sim/small ‸M", "expected `|`, `;` or the end"),
        ("5E@sim/small | ‸5E@sim/large", "several answers"),
        ("[sim/small, sim/large] | ‸sim/large", "several answers"),
        ("2E@sim/small | ‸[sim/small, sim/large]", "several answers"),
        ("[sim/small | M, sim/large‸", "expected `|`, `,` or `]`"),
        ("(sim/small‸", "expected `|`, `;` or `)`"),
        ("[‸]", "expected a model"),
        ("‸$nobody | M", "parse(…, nobody=…)"),
        ("[$mine, ‸$min]", "Did you mean `mine`"),
        ("$‸ | M", "name of a component"),
        ('‸"{question}" | M', "step of a chain"),
        ('5E@sim/small | J@‸"{question}"', "expected a model"),
        ('sim/small | ‸"no field" | sim/large', "field"),
        ("[" * 100 + "‸[sim/small", "nested more than 100 deep"),
    ],
)
def test_an_error_points_at_the_character(marked, message):
    text, position = marked.replace("‸", ""), marked.index("‸")
    with pytest.raises(NotationError) as raised:
        parsed(text)
    assert message in str(raised.value)
    assert raised.value.position == position
    *_, line, caret = str(raised.value).splitlines()
    assert line[caret.index("^") :][:1] in (text[position : position + 1], "…" * (position == len(text)), "")


def test_an_error_shows_the_line_with_a_caret_below_the_character():
    with pytest.raises(NotationError) as raised:
        non.parse(["3E@sim/small", "Vot"])
    assert str(raised.value) == (
        "`Vot` is no model (`provider/model`), no construct, and no flow named before. Did you mean `Vote`?\n"
        "  | Vot\n"
        "    ^"
    )
    with pytest.raises(ValueError, match=r"^sim/smal: ") as raised:
        non.parse(f"[{'sim/small, ' * 20}sim/smal{', sim/small' * 20}]")
    shown = f"{'sim/small, ' * 20}sim/smal{', sim/small' * 20}]"[150:250]
    assert str(raised.value).splitlines()[1:] == [f"  …{shown}…", "  " + " " * 71 + "^"]


@pytest.mark.parametrize("text", [5, None, ["5E@sim/small", 1], [["5E@sim/small"], "M"], {"type": "E"}])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="a string or a list of strings"):
        non.parse(text)


def test_components_are_operators_and_are_used():
    with pytest.raises(TypeError, match=r"draft=non\.parse"):
        non.parse("$draft | M", draft="5E@sim/small")
    with pytest.raises(TypeError, match=r"`\$other` does not stand in the text"):
        non.parse("$draft | M", draft=small, other=large)
    assert non.parse("$draft", draft=COMPONENTS["mine"]) is COMPONENTS["mine"]


def test_what_cannot_be_written_is_told():
    with pytest.raises(NotationError, match=r"no word for Mine.*non\.format\(op, mine=…\)"):
        non.format(non.Vote([small, Mine(large)]), mine=Mine(medium))
    with pytest.raises(NotationError, match=r"no word for grade,"):
        non.format(non.BestOfN(small, grade, 3))
    with pytest.raises(NotationError, match=r"model is 2 texts.*leaf\[0\]"):
        non.format(jax.vmap(lambda t: small.replace(temperature=t))(jnp.array([0.1, 0.2])))
    with pytest.raises(NotationError, match="outside"):
        jax.jit(lambda op: non.format(op))(non.Vote(small))
    with pytest.raises(NotationError, match=r"'Go on\.' of a Chain has no"):
        non.format(non.Chain(small, ember.text("Go on."), large))
    with pytest.raises(NotationError, match="in the network that names it"):
        non.format(non.Vote(Reference("a")))


# -- round trips -----------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c"])
settings = st.fixed_dictionaries(
    {},
    optional={
        "system": st.text(max_size=5),
        "temperature": st.floats(0, 2) | st.floats(0, 2, width=32).map(np.float32),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=2),
        "seed": st.integers(),
    },
)
models = st.builds(lambda name, kw: ember.LLM(f"sim/{name}", **kw), st.sampled_from(["small", "large"]), settings)
leaves = models | st.sampled_from(list(COMPONENTS.values())[:1])
scorers = st.just(grade) | st.builds(non.Grader, models, sampled=st.booleans())
weights = st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=3).map(jnp.array)
counts = st.integers(1, 3)


def lists(ops):
    return st.lists(ops, min_size=1, max_size=3)


def constructs_over(ops):
    """Constructs with such operators as members."""
    members = ops | lists(ops) | st.builds(non.Ensemble, lists(ops), counts, st.booleans())
    normalizers = st.sampled_from([None, "answer", "number"])
    named = st.builds(lambda name, flow, op: Flow((name,), (flow,), non.Vote([op, Reference(name)])), names, ops, ops)
    one = ops.filter(lambda op: not isinstance(op, non.Ensemble))  # what comes after asks one thing
    chained = lists(one | st.just("{question} {answer}")).map(lambda steps: non.Chain(steps))
    return st.one_of(
        st.builds(non.Ensemble, lists(ops), counts, st.booleans()),
        st.builds(non.Vote, members, normalize=normalizers, weights=st.none() | weights),
        st.builds(non.Judge, members, ops, synthesise=st.booleans(), prompt=st.none() | st.just('{question} "\n')),
        st.builds(non.Verifier, members, scorers | models),
        st.builds(non.FilterVote, members, scorers | models, normalize=normalizers),
        st.builds(non.BestOfN, members, scorers | models),
        st.builds(non.Knockout, members, ops),
        st.builds(non.Cascade, lists(ops), scorers, thresholds=st.floats(0, 1), temperature=st.none() | st.just(0.1)),
        st.builds(non.Router, lists(ops), st.just(first), st.booleans()),
        st.builds(non.Refine, ops, models | scorers, rounds=counts),
        st.builds(non.Debate, members, st.none() | ops, rounds=counts),
        st.builds(non.MixtureOfAgents, lists(members), ops),
        st.builds(non.SelfConsistency, members, normalize=normalizers, weights=st.none() | weights),
        chained,
        named,
    )


@hypothesis.settings(max_examples=max(40, hypothesis.settings.default.max_examples // 4))
@given(st.recursive(leaves, constructs_over, max_leaves=6))
def test_an_operator_survives_being_written_and_read(op):
    text = non.format(op, **COMPONENTS)
    again = parsed(text)
    assert eqx.tree_equal(again, op, typematch=True)
    assert non.format(again, **COMPONENTS) == text


WORDS = [
    *(
        "sim/small",
        "sim/larg",
        "$mine",
        "a",
        "b",
        "E",
        "J",
        "M",
        "V",
        "Vote",
        "Chain",
        "Cascade",
        "LLM",
        "5E@sim/small",
    ),
    *("temperature", "normalize", "null", "true", '"{question}"', "| M", "a = ", '[](),;|=:/@"{}$.0123456789 \n\\\0é'),
    *'[](),;|=:/@"{}$.0123456789 \n\\\0é',
]


@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join) | st.text(max_size=30))
@example('sim/small(a="\ud800"')
def test_any_text_is_read_or_refused_with_a_place(text):
    try:
        op = non.parse(text)
    except NotationError as error:
        assert 0 <= error.position <= len(text)
    else:
        assert eqx.tree_equal(non.parse(non.format(op)), op)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@example('"\\\n{question} ] ) ; | $x \u2028')
def test_any_words_can_be_a_prompt(words):
    op = small.replace(system=words, stop=words)
    assert eqx.tree_equal(non.parse(non.format(op)), op)


@pytest.mark.parametrize("name", ["a b", "a(b)|M", 'a"b', "é", "ft:gpt-4o:org::x@2", "$a"])
def test_any_id_can_be_a_model(name):
    with ember.session(journal=None, providers={"my own": ember.providers.Callable(str)}):
        op = non.Vote(ember.LLM(f"my own/{name}", temperature=1), 3)
        assert eqx.tree_equal(non.parse(non.format(op)), op)


# -- named flows -----------------------------------------------------------------------------------------------------


def with_models(text, **components):
    with session():
        return non.parse(text, **components)


@pytest.mark.parametrize(
    ("text", "requests", "seconds"),
    [
        ("d = 2E@sim/weak; [d | M, d]", 2, 1),
        ("d = sim/weak; e = d | sim/sure; [d, e, e]", 2, 2),
    ],
)
def test_transforms(text, requests, seconds):
    check_transforms(with_models(text), requests, seconds)


def test_a_name_stands_for_the_same_answers_wherever_it_stands():
    asked, key = questions(1)[0][0], jax.random.key(3)

    def answers(text):
        out, requests, _ = calls(with_models(text), asked, key)
        return out.tolist(), requests

    (*once, again), requests = answers("d = 3E@sim/never; [d, d, d | M]")
    assert once[:3] == once[3:] and again in once and requests == 3
    anew, requests = answers("d = 3E@sim/never; [d, 3E@sim/never]")
    assert anew[:3] != anew[3:] and requests == 6
    inner, requests = answers("a = 2E@sim/never; b = (a = [a, sim/never]; [a, a]); [a, b]")
    assert inner[2:5] == inner[5:] and inner[2:4] == inner[:2] and inner[4] not in inner[:2] and requests == 3


def test_several_judges_pay_for_the_candidates_once():
    asked, key = questions(1)[0][0], jax.random.key(0)
    ran = lambda text: calls(jax.jit(with_models(text)), asked, key)
    answers, requests, seconds = ran("4E@sim/never | 3J@sim/even")
    assert (len(answers.tolist()), requests, seconds) == (3, 4 + 3, 2)
    assert ran("3E@(4E@sim/never | J@sim/even)")[1:] == (3 * 5, 2)


def test_a_name_that_is_not_used_up_is_not_asked_again_and_a_failure_is_told():
    with pytest.raises(ember.errors.RefusedRequestError):
        calls(with_models("d = $fails; [d, d, sim/sure] | M", fails=Fails()), "What is 2 + 2?", jax.random.key(0))
    op = with_models("d = 1E(tolerant=true)@$fails; [d, d, sim/sure] | M", fails=Fails())
    assert str(calls(op, "What is 2 + 2?", jax.random.key(0))[0]) == "4"


def test_a_reference_outside_its_network_says_so():
    with pytest.raises(ValueError, match="call that network"):
        Reference("drafts")("What is 1 + 1?")
