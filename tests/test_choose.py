"""`LLM.choose`: which option an answer names, how likely each one was, and the call as a JAX program."""

import contextlib
import hashlib
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Float, Int

import ember_jax as ember
from ember_jax._model.choose import chosen, probabilities
from ember_jax._runtime.loop import get_loop
from ember_jax.errors import (
    MalformedResponseError,
    ModelError,
    RefusedRequestError,
    RepeatedSampleWarning,
    SweepError,
    TextError,
)
from ember_jax.providers.base import Message, Request, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault, Sim, SimModel

N = 4000
CITIES = ["Paris", "Rome", "Oslo"]
SIM = Sim({"good": SimModel(accuracy=0.9, latency=0.0), "poor": SimModel(accuracy=0.4, latency=0.0)})
JITS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit, "operator": None}


class Scripted:
    """A model that answers by a function of the request, and what it was asked."""

    def __init__(self, fn):
        self.requests = []
        self.provider = Callable(self)
        self._fn = fn

    def __call__(self, request):
        self.requests.append(request)
        result = self._fn(request)
        if isinstance(result, Exception):
            raise result
        return result


def scripted(fn):
    model = Scripted(fn)
    return model, ember.session(providers={"mine": model.provider, "sim": SIM})


@contextlib.contextmanager
def served(**server):
    """A session with a provider `local`, which talks to a server over HTTP."""
    with ChatServer(**server) as running:
        provider = OpenAI(running.base_url, api_key="")
        try:
            with ember.session(providers={"local": provider, "sim": SIM}):
                yield running
        finally:
            get_loop().submit(provider.close()).result()


@pytest.fixture
def sim():
    with ember.session(providers={"sim": SIM}) as run:
        yield run


def assert_rates(indices, probs):
    """Within four standard errors of each probability."""
    for i, p in enumerate(probs):
        rate = np.mean(np.asarray(indices) == i)
        assert abs(rate - p) <= 4 * math.sqrt(p * (1 - p) / len(indices)), (i, rate, p)


# -- which option an answer names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        " B\n",
        "B.",
        "(b)",
        "(B).",
        "[B]",
        "**B**",
        '"B"',
        "`B`",
        "B)",
        "B. Rome",
        "B: Rome, because it is warm.",
        "(b) because it is warm",
        "**B.** Rome",
        "B - Rome",
        "B\n\nRome is warm, and so A is out.",
        "Rome is warm.\nTherefore:\n**B**",
        "Answer: B",
        "answer: b",
        "Answer: (B)",
        "Answer: **B**",
        "**Answer:** B",
        "Answer: A? No. The answer is B.",
        "The answer is B",
        "The correct answer is (b).",
        "The answer to your question is B, not A.",
        "The correct option is B.",
        "I choose option B because it is warm.",
        "I choose option b",
        r"so \boxed{B}",
        "Rome",
        "rome.",
        '"Rome"',
        "  ROME ",
    ],
)
def test_an_answer_names_the_second_option(answer):
    assert chosen(answer, CITIES) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "...",
        "D",
        "Answer: D",
        "A or B",
        "A. Paris. B. Rome.",
        "A\nB",
        "A careful reading leaves the question open.",
        "I cannot say.",
        "The answer is a matter of taste",
        "The answer is a long story.",
        "The answer is not B",
        "Not Rome",
        "Paris, Rome",
        "option A or option B",
        "The answer is B or C",
        "The answer is A or B",
        "I think both are fine",
        "Berlin",
        "é",
        "42",
    ],
)
def test_an_answer_that_names_no_option_or_several_is_none(answer):
    assert chosen(answer, CITIES) is None


def test_a_letter_goes_before_the_words_of_another_option():
    assert chosen("B", ["B", "A"]) == 1
    assert chosen("D", ["C", "D"]) == 1  # there is no option D, so these are words
    assert chosen("C", ["C", "D"]) == 0


def test_words_must_name_one_option_and_signs_count():
    assert chosen("-1", ["1", "-1"]) == 1
    assert chosen("-2", ["1", "2"]) is None
    assert chosen("the cat", ["The cat.", "the cat!"]) is None
    assert chosen("the cat!", ["The cat.", "the cat!"]) == 1
    assert chosen("same", ["same", "same"]) == 0
    assert chosen("", ["", "x"]) is None


@given(st.integers(2, 26), st.data())
def test_every_letter_names_its_option(n, data):
    index = data.draw(st.integers(0, n - 1))
    letter = chr(ord("A") + index)
    options = [f"option number {i}" for i in range(n)]
    for answer in (letter, letter.lower(), f"({letter})", f"Answer: {letter}", f"{letter}. {options[index]}"):
        assert chosen(answer, options) == index
    assert chosen(options[index], options) == index


@pytest.mark.parametrize("piece", ["answer", "answer is ", " ", "(", "option ", "A. ", "answer: (", "\n", "*", "a "])
def test_a_hostile_answer_costs_linear_time(piece):
    """A generous bound: quadratic time would be hours."""
    start = time.monotonic()
    chosen(piece * 200_000 + "?", CITIES)
    assert time.monotonic() - start < 30


@given(st.text(), st.lists(st.text(), min_size=2, max_size=26))
def test_any_answer_names_an_option_or_none(answer, options):
    index = chosen(answer, options)
    assert index is None or 0 <= index < len(options)


# -- probabilities ---------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_letters_renormalised():
    alternatives = (("A", math.log(0.2)), (" B", math.log(0.3)), ("The", math.log(0.4)), ("b", math.log(0.1)))
    np.testing.assert_allclose(probabilities(alternatives, 3, 1), [1 / 3, 2 / 3, 0], rtol=1e-6)


def test_letters_beyond_the_options_do_not_count():
    alternatives = (("A", math.log(0.5)), ("C", math.log(0.4)), ("AB", math.log(0.05)), ("", math.log(0.05)))
    np.testing.assert_array_equal(probabilities(alternatives, 2, 0), [1, 0])


@pytest.mark.parametrize("alternatives", [(), (("The", -0.1), ("An", -3.0)), (("B", -math.inf),), (("B", math.nan),)])
def test_without_letters_the_answer_is_certain(alternatives):
    np.testing.assert_array_equal(probabilities(alternatives, 3, 1), [0, 1, 0])


def test_a_first_token_that_is_not_the_answer_says_nothing_about_it():
    np.testing.assert_array_equal(probabilities((("A", -0.1), ("B", -3.0)), 3, 2), [0, 0, 1])


@given(st.lists(st.floats(-1e6, 0), min_size=1, max_size=20), st.integers(0, 19))
def test_probabilities_sum_to_one_however_small(logprobs, index):
    alternatives = [(chr(ord("A") + i), p) for i, p in enumerate(logprobs)]
    probs = probabilities(alternatives, 20, index)
    assert probs.dtype == np.float32 and probs.shape == (20,)
    np.testing.assert_allclose(probs.sum(dtype=np.float64), 1, rtol=1e-5)
    if index < len(logprobs):
        exact = np.exp(np.subtract(logprobs, np.max(logprobs), dtype=np.float64))
        np.testing.assert_allclose(probs[: len(logprobs)], exact / exact.sum(), rtol=1e-5, atol=1e-30)


# -- the simulated models --------------------------------------------------------------------------------------------


def many(model, prompt, options, n=N, **settings):
    keys = jax.random.split(jax.random.key(0), n)
    llm = ember.LLM(model, **settings)
    return jax.vmap(lambda key: llm.choose(prompt, options, key))(keys)


@pytest.mark.parametrize(
    ("options", "probs"),
    [
        (["11", "12", "13", "14"], [0.2, 0.4, 0.2, 0.2]),
        (["it is 12", "12.0", "13"], [0.2, 0.2, 0.6]),
        (["1", "2", "3"], [1 / 3, 1 / 3, 1 / 3]),
        (["12", "12."], [0.5, 0.5]),
    ],
)
def test_simulated_letters_are_drawn_from_the_probabilities_that_are_told(sim, options, probs):
    choice = many("sim/poor", "What is 3 * 4?", options)
    np.testing.assert_allclose(choice.probs, np.tile(np.asarray(probs, np.float32), (N, 1)), rtol=1e-6)
    assert_rates(choice.index, probs)
    assert set(choice.text.tolist()) == set(options)


def test_simulated_choices_are_right_over_prompts_as_often_as_over_samples(sim):
    prompts = ember.text([f"What is {i} * 3?" for i in range(N)])
    options = ember.text([[str(3 * i), str(3 * i + 1)] for i in range(N)])
    llm = ember.LLM("sim/good")
    choice = jax.vmap(llm.choose)(prompts, options)
    np.testing.assert_allclose(choice.probs[:, 0], 0.9, rtol=1e-6)
    assert_rates(choice.index, [0.9, 0.1])


def test_a_simulated_verification_is_a_choice_between_yes_and_no():
    model = SimModel(accuracy=0.5, verify_accuracy=0.8, latency=0.0)
    prompt = "What is 3 * 4?\nProposed answer: 12\nIs it correct?"
    with ember.session(providers={"sim": Sim({"v": model})}):
        choice = many("sim/v", prompt, ["No", "Yes"])
        wrong = ember.LLM("sim/v").choose(prompt.replace("12", "13"), ["No", "Yes"])
    assert_rates(choice.index, [0.2, 0.8])
    np.testing.assert_allclose(choice.probs[0], [0.2, 0.8], rtol=1e-6)
    np.testing.assert_allclose(wrong.probs, [0.8, 0.2], rtol=1e-6)


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_certain_models_are_certain(accuracy):
    with ember.session(providers={"sim": Sim({"m": SimModel(accuracy=accuracy, latency=0.0)})}):
        choice = many("sim/m", "2 + 2", ["4", "5", "6"], n=400)
    rest = (1 - accuracy) / 2
    np.testing.assert_allclose(choice.probs[0], [accuracy, rest, rest], rtol=1e-6)
    assert_rates(choice.index, [accuracy, rest, rest])


def test_at_temperature_zero_the_most_likely_option_is_chosen(sim):
    choice = many("sim/poor", "What is 3 * 4?", ["11", "12", "13", "14"], n=100, temperature=0)
    assert set(choice.index.tolist()) == {1}
    assert sim.report().requests == 1
    np.testing.assert_allclose(choice.probs[0], [0.2, 0.4, 0.2, 0.2], rtol=1e-6)


def test_options_of_several_lines_and_lists_in_the_prompt_are_told_apart(sim):
    prompt = "What is 3 * 4?\nA. 12\nB. 13\nReply with the letter, they said."
    choice = many("sim/good", prompt, ["11\nB. 12", "I say\n12", "13\nA. 12\nReply with the letter\nso 14"], n=1000)
    np.testing.assert_allclose(choice.probs[0], [0.45, 0.45, 0.1], rtol=1e-6)
    assert_rates(choice.index, [0.45, 0.45, 0.1])


# -- what is sent, and what comes back -------------------------------------------------------------------------------


def test_the_options_are_lettered_below_the_prompt_and_log_probabilities_asked_for():
    model, session = scripted(lambda request: "A")
    with session:
        ember.LLM("mine/m", system="Be brief.", temperature=0.5).choose("Where?", ["Rome\nby night", "Oslo"])
    (request,) = model.requests
    words = "Where?\n\nA. Rome\n   by night\nB. Oslo\n\nReply with the letter of one option and nothing else."
    assert request.messages == (Message("system", "Be brief."), Message("user", words))
    assert request.parameters == {"temperature": 0.5, "logprobs": True, "top_logprobs": 20}


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"logprobs": False}, {"logprobs": False}),
        ({"top_logprobs": 5}, {"logprobs": True, "top_logprobs": 5}),
        ({"logprobs": True}, {"logprobs": True, "top_logprobs": 20}),
    ],
)
def test_the_users_own_settings_of_log_probabilities_stand(settings, sent):
    model, session = scripted(lambda request: "A")
    with session:
        choice = ember.LLM("mine/m", **settings).choose("Where?", CITIES)
    assert model.requests[0].parameters == sent
    np.testing.assert_array_equal(choice.probs, [1, 0, 0])


def body(answer, top):
    """A chat completion with log-probabilities, as OpenAI writes it."""
    tokens = [
        {
            "token": answer,
            "logprob": -0.5,
            "bytes": None,
            "top_logprobs": [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in top],
        },
        {"token": ".", "logprob": -0.1, "top_logprobs": [{"token": "A", "logprob": 0.0}]},
    ]
    choice = {"message": {"content": answer}, "finish_reason": "stop", "logprobs": {"content": tokens}}
    return json.dumps({"choices": [choice], "model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 1}})


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
def test_probabilities_over_http_are_exactly_those_that_the_server_wrote():
    top = [("B", math.log(0.5)), ("A", math.log(0.2)), (" b", math.log(0.1)), ("I", math.log(0.1))]
    with served(faults=[Fault(body=body("B", top))]) as server:
        llm = ember.LLM("local/m")
        first, again = llm.choose("Where?", CITIES), llm.choose("Where?", CITIES)
        assert len(server.requests) == 1
        sent = server.requests[0].body
    assert int(first.index) == 1 and str(first.text) == "Rome"
    np.testing.assert_allclose(first.probs, [0.25, 0.75, 0], rtol=1e-6)
    np.testing.assert_array_equal(first.probs, again.probs)  # the journal keeps every bit
    assert sent["logprobs"] is True and sent["top_logprobs"] == 20


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}, {"content": [{"logprob": -1.0}]}])
def test_a_server_that_says_no_probabilities_gives_certainty(logprobs):
    answer = {"choices": [{"message": {"content": "C"}, "logprobs": logprobs}]}
    with served(faults=[Fault(body=json.dumps(answer))]):
        choice = ember.LLM("local/m").choose("Where?", CITIES)
    assert int(choice.index) == 2
    np.testing.assert_array_equal(choice.probs, [0, 0, 1])


def test_over_http_a_simulated_model_chooses_as_it_does_in_the_process():
    with served(model=SimModel(accuracy=0.4)):
        there, here = (ember.LLM(m).choose("3 * 4", ["11", "12", "13"]) for m in ("local/poor", "sim/poor"))
    np.testing.assert_array_equal(there.probs, here.probs)
    np.testing.assert_array_equal(there.index, here.index)


# -- services that refuse log-probabilities --------------------------------------------------------------------------


def picky(request):
    if "logprobs" in request.parameters or "top_logprobs" in request.parameters:
        return RefusedRequestError("no log-probabilities here", status=400)
    return "B"


def test_a_service_that_refuses_log_probabilities_is_asked_without_them_and_remembered():
    model, session = scripted(picky)
    with session as run:
        llm = ember.LLM("mine/m", temperature=0.5)
        choice = llm.choose("Where?", CITIES)
        assert run.report().requests == 2 and run.report().failed == 1 and run.report().calls == 1
        llm.choose("When?", CITIES)
        assert run.report().requests == 3
        llm.choose("Where?", CITIES)
        assert run.report().requests == 3 and run.report().replayed == 1
    assert int(choice.index) == 1
    np.testing.assert_array_equal(choice.probs, [0, 1, 0])
    assert [r.parameters for r in model.requests[1:]] == [{"temperature": 0.5}] * 2


def test_what_is_refused_for_another_reason_is_told_as_it_is():
    model, session = scripted(lambda request: RefusedRequestError("too long", status=400))
    with session:
        for _ in range(2):
            with pytest.raises(RefusedRequestError, match="too long"):
                ember.LLM("mine/m").choose("Where?", CITIES)
    assert ["logprobs" in r.parameters for r in model.requests] == [True, False] * 2


def test_a_model_that_declines_is_not_asked_again():
    model, session = scripted(lambda request: RefusedRequestError("I must not say", status=200))
    with session, pytest.raises(RefusedRequestError):
        ember.LLM("mine/m").choose("Where?", CITIES)
    assert len(model.requests) == 1


def test_other_calls_are_refused_as_before():
    model, session = scripted(picky)
    with session, pytest.raises(RefusedRequestError):
        ember.LLM("mine/m", logprobs=True)("Where?")
    assert len(model.requests) == 1


# -- a session's own providers ---------------------------------------------------------------------------------------


def test_a_models_name_is_checked_against_the_providers_of_the_session(sim):
    with pytest.raises(ModelError, match="Did you mean 'good'"):
        ember.LLM("sim/goood")
    with pytest.raises(ModelError, match="There is no provider 'mine'"):
        ember.LLM("mine/m")
    _, session = scripted(lambda request: "A")
    with session:
        ember.LLM("mine/m")


# -- requests and responses ------------------------------------------------------------------------------------------


def test_the_digest_of_a_request_is_that_of_its_canonical_json():
    request = Request("p", "m", (Message("user", "é"),), {"temperature": 0.5}, "ab", (lambda request: request,))
    canonical = b'["p","m",[["user","\\u00e9"]],{"temperature":0.5},"ab"]'
    assert request.digest() == hashlib.blake2b(canonical, digest_size=32).digest()


# -- as a JAX program ------------------------------------------------------------------------------------------------


def oracle(request):
    """Chooses the option that is as long as the prompt's first line says, with probabilities by length."""
    lines = request.messages[-1].content.split("\n")
    wanted = int(lines[0])
    options = {li[0]: li[3:] for li in lines if li[1:3] == ". "}
    letter = next(k for k, o in options.items() if len(o) == wanted)
    total = sum(map(len, options.values()))
    return Response(letter, alternatives=tuple((k, math.log(len(o) / total)) for k, o in options.items()))


@ember.operator
def choosing(prompt: ember.Text, options: ember.Text["n"]) -> tuple[Int[Array, ""], Float[Array, "n"], ember.Text]:
    return tuple(ember.LLM("mine/m").choose(prompt, options))


@pytest.mark.parametrize("form", JITS)
def test_choices_are_the_same_in_every_form_and_lane(form):
    fn = choosing if form == "operator" else JITS[form](lambda p, o: tuple(ember.LLM("mine/m").choose(p, o)))
    rows = [["a", "bb", "ccc"], ["dddd", "e", "ff"]]
    _, session = scripted(oracle)
    with session:
        one = fn(ember.text("2"), ember.text(rows[0]))
        lanes = jax.vmap(fn)(ember.text(["2", "4"]), ember.text(rows))
        shared = jax.vmap(fn, in_axes=(0, None))(ember.text(["3", "1", "2"]), ember.text(rows[0]))
        nested = jax.vmap(jax.vmap(fn, in_axes=(0, None)), in_axes=(None, 0))(ember.text(["1", "2"]), ember.text(rows))
    assert int(one[0]) == 1 and str(one[2]) == "bb"
    np.testing.assert_allclose(one[1], np.array([1, 2, 3], np.float32) / 6, rtol=1e-6)
    assert lanes[0].tolist() == [1, 0] and lanes[2].tolist() == ["bb", "dddd"]
    np.testing.assert_allclose(
        lanes[1], np.array([[1 / 6, 2 / 6, 3 / 6], [4 / 7, 1 / 7, 2 / 7]], np.float32), rtol=1e-6
    )
    assert shared[0].tolist() == [2, 0, 1]
    assert nested[2].tolist() == [["a", "bb"], ["e", "ff"]]
    assert one[0].dtype == jnp.int32 and one[1].dtype == jnp.float32


def test_models_and_settings_may_vary_over_lanes():
    model, session = scripted(lambda request: "ABC"[len(request.model) - 1] + "." * request.parameters["max_tokens"])

    def ask(name, limit):
        return ember.LLM(name, max_tokens=limit, system=name).choose("Where?", CITIES).text

    with session:
        names = ember.text(["mine/c", "mine/aa", "mine/bbb"])
        answers = jax.jit(jax.vmap(jax.vmap(ask, in_axes=(None, 0)), in_axes=(0, None)))(names, jnp.arange(1, 3))
    assert answers.tolist() == [[city] * 2 for city in CITIES]
    assert len(model.requests) == 6


def test_options_may_be_texts_and_strings_mixed():
    _, session = scripted(lambda request: "B")
    with session:
        assert str(ember.LLM("mine/m").choose("Where?", ["x", ember.text("y")]).text) == "y"
        assert str(ember.LLM("mine/m").choose("Where?", ("x", "y", "z")).text) == "y"
        mixed = jax.vmap(lambda t: ember.LLM("mine/m").choose("Where?", ["x", t]).text)(ember.text(["y", "z"]))
    assert mixed.tolist() == ["y", "z"]


def test_new_words_neither_trace_nor_compile_again(sim):
    traces = []

    @jax.jit
    def program(llm, prompt, options):
        traces.append(1)
        return llm.choose(prompt, options)

    for model, prompt, options in (("good", "1 + 1", ["2", "3"]), ("poor", "2 + 2", ["4", "five"])):
        program(ember.LLM(f"sim/{model}"), ember.text(prompt), ember.text(options))
    assert len(traces) == 1 and program._cache_size() == 1
    program(ember.LLM("sim/good"), ember.text("1 + 1"), ember.text(["1", "2", "3"]))
    assert len(traces) == 2


def test_choices_branch_inside_an_operator_and_only_the_needed_calls_are_made(sim):
    @ember.operator
    def op(question: ember.Text, key: ember.Key) -> ember.Text:
        choice = ember.LLM("sim/good").choose(question, ["2", "3"], key)
        return jax.lax.switch(choice.index, [lambda: ember.LLM("sim/good")("4 + 4"), lambda: choice.text])

    keys = jax.random.split(jax.random.key(1), 16)
    answers = jax.jit(jax.vmap(op, in_axes=(None, 0)))(ember.text("1 + 1"), keys)
    index = jax.vmap(lambda key: ember.LLM("sim/good").choose("1 + 1", ["2", "3"], key).index)(keys)
    said = str(ember.LLM("sim/good")("4 + 4"))
    assert answers.tolist() == [said if i == 0 else "3" for i in index.tolist()]
    assert sim.report().requests == 16 + 1


def test_no_gradient_flows_through_probabilities(sim):
    weights = jnp.array([1.0, 2.0])

    def score(weights, temperature):
        choice = ember.LLM("sim/good").replace(temperature=temperature).choose("1 + 1", ["2", "3"])
        return jnp.sum(weights * choice.probs)

    for program in (score, jax.jit(score), ember.jit(score)):
        by_weight, by_temperature = jax.grad(program, argnums=(0, 1))(weights, 0.5)
        np.testing.assert_allclose(by_weight, [0.9, 0.1], rtol=1e-6)
        assert by_temperature == 0


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_a_sample_and_equal_keys_are_one(sim):
    llm = ember.LLM("sim/poor")
    keys = jax.random.split(jax.random.key(3), 64)
    first = jax.vmap(lambda key: llm.choose("1 + 1", ["2", "3"], key).index)(keys)
    again = jax.vmap(lambda key: llm.choose("1 + 1", ["2", "3"], key).index)(keys)
    assert first.tolist() == again.tolist() and len(set(first.tolist())) == 2
    assert sim.report().requests == 64
    legacy = jax.random.key_data(keys[0])
    assert int(llm.choose("1 + 1", ["2", "3"], legacy).index) == int(first[0])
    assert sim.report().requests == 64


def test_a_wrong_key_is_told(sim):
    with pytest.raises(TypeError, match="the key of an LLM call"):
        ember.LLM("sim/good").choose("1 + 1", ["2", "3"], 5)


def test_the_same_choice_without_a_key_is_warned_of(sim):
    @ember.operator
    def twice(question: ember.Text) -> Int[Array, ""]:
        ask = lambda: ember.LLM("sim/good").choose(ember.format("{q}", q=question), ["2", "3"]).index
        return ask() + jax.lax.optimization_barrier(ask())

    with pytest.warns(RepeatedSampleWarning, match="more than once"):
        ember.jit(twice)(ember.text("1 + 1"))


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        (ember.text(["a", "b"]), CITIES, r"the prompt has shape \[2\].*jax\.vmap\(lambda prompt: llm\.choose"),
        (3, CITIES, "a prompt is a string, a Text or a Conversation; got int"),
        ("a", "yes", r"are a list, as in .*got a string"),
        ("a", ember.text("yes"), r"shape \[\]"),
        ("a", ember.text([["a", "b"]]), r"shape \[1, 2\].*lambda prompt, options"),
        ("a", ["only"], "2 to 26 options.*got 1"),
        ("a", [], "got 0"),
        ("a", [str(i) for i in range(27)], "got 27"),
        ("a", [1, 2], r"element \[0\].*not a string"),
        ("a", ["x", ember.text(["y", "z"])], r"an option has shape \[2\]"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_asked(sim, prompt, options, words):
    with pytest.raises(TextError, match=words):
        ember.LLM("sim/good").choose(prompt, options)
    assert sim.report().calls == 0


def test_a_stacked_llm_is_to_be_mapped(sim):
    llms = ember.LLM(ember.text(["sim/good", "sim/poor"]))
    with pytest.raises(TextError, match=r"several models in one.*jax\.vmap"):
        llms.choose("1 + 1", CITIES)
    assert jax.vmap(lambda llm: llm.choose("1 + 1", ["2", "3"]))(llms).probs.shape == (2, 2)


def test_an_answer_without_an_option_fails_its_lane_alone_and_quotes_nothing():
    def answers(request):
        return "SECRET is what I was asked" if "SECRET" in request.messages[-1].content else "C"

    model, session = scripted(answers)
    with session:
        llm = ember.LLM("mine/m")
        with pytest.raises(MalformedResponseError, match=r"mine/m: .*26 characters.*options A to C") as caught:
            llm.choose("SECRET", CITIES)
        assert "SECRET" not in str(caught.value)
        with pytest.raises(SweepError) as caught:
            jax.vmap(choosing, in_axes=(0, None))(ember.text(["one", "SECRET"]), ember.text(CITIES))
        (failure,) = caught.value.failures
        assert failure.lane == (1,) and type(failure.cause) is MalformedResponseError
        assert "SECRET" not in str(caught.value)
    assert len(model.requests) == 2


def test_a_cut_answer_is_told_with_its_likely_cause():
    _, session = scripted(lambda request: "The answer")
    with session, pytest.raises(MalformedResponseError, match="max_tokens"):
        ember.jit(lambda p: ember.LLM("mine/m", max_tokens=2).choose(p, CITIES).index)(ember.text("Where?"))
