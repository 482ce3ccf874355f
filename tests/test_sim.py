import asyncio
import math
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember_jax.errors import ModelError, RefusedRequestError
from ember_jax.providers.base import Message, Request
from ember_jax.providers.sim import CannotCompute, Sim, SimModel, delay, first_value, reply, shown

N = 4000


def request(prompt, *, model="m", sample=None, system=None, **parameters):
    turns = ([] if system is None else [Message("system", system)]) + [Message("user", prompt)]
    return Request("sim", model, tuple(turns), parameters, sample)


def say(sim_model, prompt, **kwargs):
    return reply(sim_model, request(prompt, **kwargs)).text


def assert_rate(hits, probability):
    """Within four standard errors: for a right rate, one machine-independent draw in 16 000 would fail."""
    assert abs(sum(hits) / len(hits) - probability) <= 4 * math.sqrt(probability * (1 - probability) / len(hits))


# Rates


@pytest.mark.parametrize("accuracy", [0.0, 0.35, 1.0])
def test_answers_are_right_as_often_as_told(accuracy):
    model = SimModel(accuracy=accuracy)
    assert_rate([say(model, f"What is {i} * 7 - 3?") == str(i * 7 - 3) for i in range(N)], accuracy)


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("offset", [0, 1])
def test_verification_is_right_as_often_as_told(accuracy, offset):
    model = SimModel(accuracy=0.5, verify_accuracy=accuracy)
    prompt = "Question: what is {0} + 9?\nProposed answer: The answer is {1}.\nIs it correct? Reply yes or no."
    replies = [say(model, prompt.format(i, i + 9 + offset)) for i in range(N)]
    assert set(replies) <= {"yes", "no"}
    assert_rate([r == ("no" if offset else "yes") for r in replies], accuracy)


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_judging_is_right_as_often_as_told(accuracy):
    model = SimModel(accuracy=0.5, judge_accuracy=accuracy)
    prompt = "Which answers best?\nWhat is {0} + 9?\n[1] {1}\n[2] so it is {2}\n[3] {3}."
    replies = [say(model, prompt.format(i, i + 8, i + 9, i + 10)) for i in range(N)]
    assert_rate([r == f"so it is {i + 9}" for i, r in enumerate(replies)], accuracy)
    wrong = [r for i, r in enumerate(replies) if r != f"so it is {i + 9}"]
    if wrong:
        assert_rate([r.endswith(".") for r in wrong], 0.5)


@pytest.mark.parametrize("accepts", [0.0, 0.3, 1.0])
def test_wrong_answers_are_accepted_as_often_as_told(accepts):
    model = SimModel(verify_accuracy=0.9, false_accept=accepts)
    prompt = "What is {0} + 9?\nProposed answer: {1}\nIs it correct? Reply yes or no."
    assert_rate([say(model, prompt.format(i, i + 8)) == "yes" for i in range(N)], accepts)
    assert_rate([say(model, prompt.format(i, i + 9)) == "yes" for i in range(N)], 0.9)


def test_some_questions_are_harder_than_others():
    model = SimModel(accuracy=lambda prompt: 0.9 if "+" in prompt else 0.3)
    assert_rate([say(model, f"What is {i} + 3?") == str(i + 3) for i in range(N)], 0.9)
    assert_rate([say(model, f"What is {i} * 7?") == str(i * 7) for i in range(N)], 0.3)
    with pytest.raises(ValueError, match="accuracy"):
        say(SimModel(accuracy=lambda prompt: 1.5), "1 + 1")


@pytest.mark.parametrize("count", [1, 3, 20])
def test_wrong_answers_are_as_many_as_told_and_equally_likely(count):
    found = [int(say(SimModel(accuracy=0.0, wrong_answers=count), f"{i} + 3")) - i - 3 for i in range(N)]
    assert len(set(found)) == count and 0 not in found
    for value in set(found):
        assert_rate([f == value for f in found], 1 / count)


@pytest.mark.parametrize("settings", [{"wrong_answers": 0}, {"wrong_answers": 1.5}, {"false_accept": 1.1}])
def test_a_model_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SimModel(**settings)


def test_the_other_accuracies_default_to_accuracy():
    sure = SimModel(accuracy=1.0)
    assert say(sure, "2 + 2\nAnswer: 4\nCorrect?") == "yes"
    assert say(sure, "2 + 2\n[1] 5\n[2] 4") == "4"


def test_without_a_right_candidate_the_choice_is_uniform():
    model = SimModel(accuracy=1.0)
    for prompt in ("What is {0} + 9?\n[1] a\n[2] b\n[3] c", "Which is best, {0}?\n[1] a\n[2] b\n[3] c"):
        replies = [say(model, prompt.format(i)) for i in range(N)]
        for candidate in "abc":
            assert_rate([r == candidate for r in replies], 1 / 3)


def test_verification_without_a_question_is_a_coin():
    replies = [say(SimModel(), f"Answer: {i}\nIs it correct?") for i in range(N)]
    assert_rate([r == "yes" for r in replies], 0.5)


# What an answer depends on


def test_answers_are_the_same_on_every_machine():
    sim = Sim()
    texts = [sim.answer(request(f"What is {i} * 17?", model="small", sample=str(i))).text for i in range(8)]
    assert texts == ["0", "17", "34", "51", "64", "85", "102", "119"]
    assert sim.answer(request("Hello", model="small")) == sim.answer(request("Hello", model="small"))


def test_samples_are_independent():
    model = SimModel(accuracy=0.5)
    first = [say(model, f"What is {i} + 1?", sample="00") == str(i + 1) for i in range(N)]
    second = [say(model, f"What is {i} + 1?", sample="01") == str(i + 1) for i in range(N)]
    assert_rate([a == b for a, b in zip(first, second, strict=True)], 0.5)


def test_many_samples_of_one_prompt_are_right_as_often_as_told():
    model = SimModel(accuracy=0.8)
    assert_rate([say(model, "What is 6 * 7?", sample=f"{i:x}") == "42" for i in range(N)], 0.8)


def test_temperature_zero_ignores_the_sample():
    model = SimModel(accuracy=0.5)
    for i in range(50):
        texts = {say(model, f"{i} + 1", sample=s, temperature=0) for s in (None, "a", "b", "c")}
        assert len(texts) == 1


def test_the_answer_depends_on_all_that_matters():
    model = SimModel()
    variants = [
        {},
        {"sample": "1"},
        {"model": "n"},
        {"system": "Be brief."},
        {"temperature": 0.5},
        {"seed": 1},
    ]
    sentences = {tuple(say(model, f"Tell me {i}", **variant) for i in range(5)) for variant in variants}
    assert len(sentences) == len(variants)


def test_the_answer_does_not_depend_on_how_much_of_it_is_returned():
    model = SimModel(accuracy=0.5, verbosity=5)
    for i in range(20):
        whole = reply(model, request(f"What is {i} + 1?", logprobs=True)).text
        cut = reply(model, request(f"What is {i} + 1?", max_tokens=3))
        assert cut.text == " ".join(whole.split()[:3])
        assert cut.output_tokens == 3
        assert reply(model, request(f"What is {i} + 1?", max_completion_tokens=99)).text == whole


@pytest.mark.parametrize("limit", [0, -1, "3", 2.5])
def test_a_max_tokens_that_is_no_count_is_refused(limit):
    with pytest.raises(RefusedRequestError, match="at least 1"):
        reply(SimModel(), request("hello", max_tokens=limit))


def test_only_the_last_user_message_is_asked():
    turns = (Message("user", "1 + 1"), Message("assistant", "2"), Message("user", "2 + 3"))
    assert reply(SimModel(accuracy=1), Request("sim", "m", turns)).text == "5"
    assert reply(SimModel(accuracy=1), Request("sim", "m", ())).text


# What an answer is


def test_wrong_answers_are_near_and_never_right():
    model = SimModel(accuracy=0.0)
    for i in range(-200, 200):
        answer = int(say(model, f"{i} + 0"))
        assert 1 <= abs(answer - i) <= 10
        assert say(model, f"({i}) / 7") != shown(Fraction(i, 7))


def test_verbosity():
    model = SimModel(accuracy=1.0, verbosity=7)
    response = reply(model, request("What is 17 * 23?"))
    filler, answer = response.text.split(" The answer is ")
    assert len(filler.split()) == 7 and not re.search(r"\d", filler)
    assert answer == "391."
    assert response.output_tokens == 11
    assert reply(SimModel(accuracy=1.0), request("What is 17 * 23?")).text == "391"


def test_verbose_answers_can_be_judged_and_verified():
    sure, loose = SimModel(accuracy=1.0), SimModel(accuracy=0.0, verbosity=3)
    right = say(SimModel(accuracy=1.0, verbosity=3), "17 * 23")
    wrong = say(loose, "17 * 23")
    assert say(sure, f"17 * 23\n[1] {wrong}\n[2] {right}") == right
    assert say(sure, f"17 * 23\nAnswer: {right}\nIs this correct?") == "yes"
    assert say(sure, f"17 * 23\nAnswer: {wrong}\nIs this correct?") == "no"


def test_tokens_and_cost():
    model = SimModel(accuracy=1.0, input_price=2.0, output_price=30.0, verbosity=6)
    response = reply(model, request("What is 2 + 2?", system="Think first."))
    assert (response.input_tokens, response.output_tokens) == (7, 10)
    assert response.cost == pytest.approx((7 * 2 + 10 * 30) / 1e6)
    assert response.model == "m"


def test_logprobs():
    for i in range(50):
        response = reply(SimModel(accuracy=0.9), request(f"{i} + 1"))
        assert response.logprob == pytest.approx(math.log(0.9 if response.text == str(i + 1) else 0.1))
    for accuracy in (0.0, 1.0):
        for prompt in ("1 + 1", "1 + 1\nAnswer: 2\ncorrect?", "1 + 1\n[1] 2\n[2] 3", "hello", "1 / 0", "[1] a\n[2] b"):
            assert math.isfinite(reply(SimModel(accuracy=accuracy), request(prompt)).logprob)


def test_better_models_are_right_wherever_worse_ones_are():
    # A model's accuracy is no part of its draws, so two models differ only as much as their accuracies do.
    worse = {i for i in range(500) if say(SimModel(accuracy=0.4), f"{i} + 1") == str(i + 1)}
    better = {i for i in range(500) if say(SimModel(accuracy=0.6), f"{i} + 1") == str(i + 1)}
    assert worse < better


# Forms of prompts


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is 17 * 23 + 4?", "395"),
        ("Compute 2 × (3 − 5) ÷ 4.", "-1"),
        ("12 / 7", "1.714286"),
        ("0.1 + 0.2", "0.3"),
        ("1,250 + 2.50 =", "1252.5"),
        ("- 3 + 4", "7"),
        ("1) 3 + 4", "7"),
        ("-3 + 4", "1"),
        ("3 - -4", "7"),
        ("((((1 + 2))))", "3"),
        ("Think.\nQ3: 5 + 5, please.\nThen 6 + 6.", "10"),
        ("Is 5 + 5 = 11", "10"),
        ("My number is " + "1" * 40 + ". What is 2 + 3?", "5"),
        ("1 / 3 * 3", "1"),
        ("1 - 1", "0"),
    ],
)
def test_arithmetic_prompts(prompt, answer):
    assert say(SimModel(accuracy=1.0), prompt) == answer


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello",
        "",
        "I have 17 apples and 4 pears.",
        "2 ** 3 + 4",
        "4 + 2 ** 3",
        "4 + 2^3",
        "f(2 + 3)",
        "sqrt(16) + 3",
        "50% + 3",
        "3 + x",
        "3 * 4x",
        "gpt-4",
        "version 1.2.3",
        "(" * 100_000,
        "-(" * 10_000,
        "1+" * 10_000,
        "1 " * 10_000,
        "__import__('os')",
    ],
)
def test_other_prompts_get_a_sentence(prompt):
    assert re.fullmatch(r"[A-Z][a-z ]+\.", say(SimModel(accuracy=1.0), prompt))


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("1 / 0", "divides by zero"),
        ("1 / (2 - 2) + 3", "divides by zero"),
        ("9" * 31 + " + 1", "too large"),
        ("9" * 100_000 + " + 1", "too large"),
        (" * ".join(["9" * 29] * 3), "too large"),
        (" + ".join(f"1 / {10**25 + i}" for i in range(1, 5)), "too large"),
    ],
)
def test_what_cannot_be_computed(prompt, why):
    assert why in say(SimModel(accuracy=1.0), prompt)
    assert say(SimModel(accuracy=1.0), f"{prompt}\nAnswer: 5\nIs it correct?") == "no"
    assert say(SimModel(accuracy=1.0), f"{prompt}\n[1] 5") == "5"


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("2 + 2\nAnswer: 4\nIs it correct?", "yes"),
        ("2 + 2\n  candidate ANSWER : four, that is 4\nIS THIS CORRECT (yes/no)?", "yes"),
        ("Answer: 4. Is it correct?\n2 + 2", "yes"),
        ("2 + 2\nAnswer: 4.0\ncorrect?", "yes"),
        ("1 / 3\nAnswer: 0.333333\ncorrect?", "yes"),
        ("1000 + 1\nAnswer: 1,001\ncorrect?", "yes"),
        ("2 - 4\nAnswer: −2\ncorrect?", "yes"),
        ("2 + 2\nAnswer: four\ncorrect?", "no"),
        ("2 + 2\nAnswer: " + "4" * 10_000 + "\ncorrect?", "no"),
        ("2 + 2\nAnswer: 4\nAnswer: 5\ncorrect?", "no"),
    ],
)
def test_verification_prompts(prompt, answer):
    assert say(SimModel(accuracy=1.0), prompt) == answer


@pytest.mark.parametrize(
    "prompt", ["2 + 2\nAnswer: 5", "2 + 2\nAnswer:\nIs it correct?", "2 + 2\nAnswer: 5\nIs it incorrect?"]
)
def test_prompts_that_do_not_ask_for_verification(prompt):
    assert say(SimModel(accuracy=1.0), prompt) == "4"


def test_a_judge_answers_with_the_candidates_own_words():
    assert say(SimModel(accuracy=1.0), "2 + 2?\n [1] 5 \n[2]  it is  4, I think ") == "it is  4, I think"
    assert say(SimModel(accuracy=1.0), "2 + 2?\n[1]\n[2] 4") == "4"
    assert say(SimModel(accuracy=0.0), "2 + 2?\n[1]\n[2] 4") == ""


# Expressions, against Python's own parser and fractions

numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.decimals(0, 1000, places=3, allow_nan=False).map(str),
)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", " + ", "-", " - ", " * ", "*", "/", " / "]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-({})".format),
    ),
    max_leaves=8,
)


def exact(expression):
    """The value by Python's parser, or `None` for a division by zero."""
    wrapped = re.sub(r"[0-9.]+", lambda m: f"Fraction('{m[0]}')", expression)
    try:
        return eval(wrapped, {"__builtins__": {}, "Fraction": Fraction})
    except ZeroDivisionError:
        return None


@settings(max_examples=300, deadline=None)
@given(expressions.filter(lambda e: re.search(r"[^-(][-+*/]", e) and "--" not in e))
def test_expressions_have_their_exact_value(expression):
    for line in (expression, f"What is {expression}?", f"Please compute {expression}."):
        try:
            assert first_value([line]) == exact(expression)
        except CannotCompute as reason:
            assert exact(expression) is None or "too large" in str(reason)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789.,+-*/()^% ax=?[]\n", max_size=60))
def test_no_prompt_breaks_a_model(prompt):
    response = reply(SimModel(accuracy=0.5), request(prompt))
    assert math.isfinite(response.logprob)


@given(st.fractions(-(10**9), 10**9))
def test_shown_numbers_are_right_to_six_decimals(value):
    assert abs(Fraction(shown(value)) - value) <= Fraction(1, 2 * 10**6)


# Time


def test_latency_is_lognormal_around_its_median():
    model = SimModel(latency=0.2, sigma=0.5)
    logs = [math.log(delay(model, request(f"{i}")) / 0.2) / 0.5 for i in range(N)]
    assert_rate([x < 0 for x in logs], 0.5)
    assert abs(sum(x * x for x in logs) / N - 1) <= 4 * math.sqrt(2 / N)
    assert delay(model, request("x")) == delay(model, request("x"))
    assert delay(SimModel(latency=0.2), request("x")) == 0.2


def test_completing_takes_the_latency(monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr("ember_jax.providers.sim.asyncio.sleep", sleep)
    sim = Sim({"slow": SimModel(latency=3.0), "instant": SimModel(latency=0.0)})
    slow = asyncio.run(sim.complete(request("2 + 2", model="slow")))
    asyncio.run(sim.complete(request("2 + 2", model="instant")))
    assert waited == [3.0]
    assert slow == sim.answer(request("2 + 2", model="slow"))


# Models


def test_the_built_in_models_are_a_ladder():
    sim = Sim()
    costs = [sim.answer(request("2 + 2", model=name)).cost for name in ("small", "medium", "large")]
    assert costs == sorted(costs)
    assert costs[2] / costs[0] == pytest.approx(100)


def test_models_are_added_and_replaced():
    sim = Sim({"mine": SimModel(accuracy=1.0), "small": SimModel(accuracy=1.0)})
    for name in ("mine", "small"):
        assert all(sim.answer(request(f"{i} + 1", model=name)).text == str(i + 1) for i in range(100))
    sim.check("large")


def test_unknown_models_are_named_with_what_there_is():
    with pytest.raises(ModelError, match=r"'smal'; there are small, medium, large\. Did you mean 'small'\?"):
        Sim().check("smal")
    with pytest.raises(ModelError):
        Sim().answer(request("hello", model="gpt-4o"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 1.1),
        ("accuracy", float("nan")),
        ("judge_accuracy", -0.1),
        ("verify_accuracy", 2),
        ("latency", -1),
        ("latency", float("inf")),
        ("sigma", float("nan")),
        ("input_price", -1),
        ("output_price", -1),
        ("verbosity", -1),
        ("verbosity", 1.5),
    ],
)
def test_impossible_models_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"SimModel\({name}={value!r}\)"):
        SimModel(**{name: value})
