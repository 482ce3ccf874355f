"""Sessions against llama.cpp's own server, with a tiny model of random weights.

What the model says is nonsense. How the server says it, what it counts and what it refuses are the real thing. The
server runs in an environment of its own. `.ci/llamacpp` makes that, and names its Python in `EMBER_JAX_LLAMACPP`.
"""

import contextlib
import json
import math
import os
import subprocess
import urllib.request
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from servers.started import started

import ember_jax as ember
from ember_jax import errors

PYTHON = os.environ.get("EMBER_JAX_LLAMACPP", "")
FOLDER = Path(__file__).parent
KEY = "sk-of-these-tests"
# The seconds that the server may take to come up, to answer, and to end.
PATIENCE = 60.0

pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="EMBER_JAX_LLAMACPP names no Python with tests/servers/llamacpp.txt; `.ci/llamacpp` makes one",
)


class Served:
    """The server at an address."""

    def __init__(self, address):
        self.base_url = f"{address}/v1"
        self._address = address

    def session(self, journal=None, key=KEY):
        provider = ember.providers.OpenAI(self.base_url, api_key=key, timeout=PATIENCE)
        return ember.session(providers={"openai": provider}, journal=journal)

    def fetch(self, path, body=None):
        """What the server itself says, without this package."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, data, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def token(self, words):
        (token,) = json.loads(self.fetch("/tokenize", {"content": words, "parse_special": True}))["tokens"]
        return token

    def books(self):
        """How many tokens of prompts and of answers the server has seen so far, by its own count."""
        lines = (line.split() for line in self.fetch("/metrics").splitlines() if not line.startswith("#"))
        counts = {name.removeprefix("llamacpp:"): float(value) for name, value in lines}
        read, written = ("prompt_tokens_total", "prompt_tokens_cached_total"), ("tokens_predicted_total",)
        return sum(counts[name] for name in read), sum(counts[name] for name in written)


@contextlib.contextmanager
def serving(model, mode, log):
    command = [PYTHON, FOLDER / "llamacpp.py", model, KEY, mode]
    with started(f"llama.cpp's server ({mode})", command, log, PATIENCE) as address:
        yield Served(address)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([PYTHON, FOLDER / "model.py", path], check=True, timeout=PATIENCE)
    return path


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    with serving(model, "plain", tmp_path_factory.mktemp("plain") / "log") as served:
        yield served


@pytest.fixture(scope="module")
def think(model, tmp_path_factory):
    """The same, but the model thinks before it answers."""
    with serving(model, "think", tmp_path_factory.mktemp("think") / "log") as served:
        yield served


def test_a_server_that_does_not_come_up_is_told_of(tmp_path):
    with (
        pytest.raises(pytest.fail.Exception, match=r"(?s)\(plain\) did not come up.*no\.gguf.*No such file"),
        serving(tmp_path / "no.gguf", "plain", tmp_path / "log"),
    ):
        pass


# The likeliest answer of the model is a letter; so hot it says anything.
ANYTHING = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
GREEDY = ember.LLM("openai/tiny", temperature=0, max_tokens=8)
HOT = ember.LLM("openai/tiny", max_tokens=8, **ANYTHING)


@contextlib.contextmanager
def may_be_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.CutAnswerWarning)
        yield


def assert_counted(served, before, run):
    read, written = served.books()
    report = run.report()
    assert (report.input_tokens, report.output_tokens) == (read - before[0], written - before[1])


# -- calls -----------------------------------------------------------------------------------------------------------


def test_one_call(plain):
    before = plain.books()
    with plain.session() as run:
        answer = GREEDY.complete("hello")
        (call,) = run.calls()
    assert str(answer.text) in ("A", "B") and str(answer.reasoning) == ""
    assert int(answer.finish) == ember.Finish.STOP and int(answer.output_tokens) == 2  # the letter and the end
    assert (call.how, call.answer, call.error) == ("answered", str(answer.text), "")
    assert run.report().requests == 1
    assert_counted(plain, before, run)


@pytest.mark.parametrize("form", [jax.vmap, lambda f: jax.jit(jax.vmap(f))], ids=["vmap", "jit of vmap"])
def test_a_sweep_has_the_servers_own_books(form, plain):
    before = plain.books()
    with may_be_cut(), plain.session() as run:
        told = form(HOT.complete)(ember.text([f"hello {i}" for i in range(50)]))
    report = run.report()
    assert (report.calls, report.requests, report.failed, report.retries) == (50, 50, 0, 0)
    assert_counted(plain, before, run)
    assert int(told.input_tokens.sum()) == report.input_tokens
    assert int(told.output_tokens.sum()) == report.output_tokens
    assert len(set(told.text.tolist())) > 10
    is_cut = told.finish == ember.Finish.LENGTH
    assert bool(jnp.all(told.finish[~is_cut] == ember.Finish.STOP)) and report.cut == int(is_cut.sum())
    assert bool(jnp.all(told.output_tokens[is_cut] == 8)) and int(told.output_tokens.max()) == 8


def test_keys_are_samples(plain, tmp_path):
    keys = jax.random.split(jax.random.key(0), 16)
    with may_be_cut(), plain.session(tmp_path / "journal.db") as run:
        first = jax.vmap(HOT, in_axes=(None, 0))(ember.text("hello"), keys).tolist()
        # One that asks for all of them is refused, as the server has two slots; it is then asked one by one.
        assert (run.report().requests, run.report().failed) == (17, 1)
        again = jax.vmap(HOT, in_axes=(None, 0))(ember.text("hello"), keys[::-1]).tolist()
    assert again == first[::-1] and len(set(first)) > 1
    assert (run.report().requests, run.report().replayed) == (17, 16)


def test_two_samples_are_one_request(plain):
    keys = jax.random.split(jax.random.key(1), 2)
    with may_be_cut(), plain.session() as run:
        before = plain.books()
        jax.vmap(HOT, in_axes=(None, 0))(ember.text("hello"), keys)
        read, _ = np.subtract(plain.books(), before).tolist()
    assert (run.report().calls, run.report().requests, run.report().failed) == (2, 1, 0)
    assert run.report().input_tokens <= read  # the prompt is billed once, and the server may read it for each slot


def test_an_answer_that_is_cut_is_told_as_cut(plain):
    with plain.session() as run, pytest.warns(errors.CutAnswerWarning, match="openai/tiny has cut an answer"):
        answer = GREEDY.replace(max_tokens=1).complete("hello")
    assert int(answer.finish) == ember.Finish.LENGTH and int(answer.output_tokens) == run.report().cut == 1


def test_the_log_probability_is_that_of_the_answers_tokens(plain):
    with plain.session() as run:
        told = GREEDY.replace(logprobs=True).complete("hello")
        (call,) = run.calls()
    letter, end = raw(plain, call)["logprobs"]["content"]
    assert (letter["token"], end["token"]) == (str(told.text), "")  # the end is listed, and no part of the answer
    assert float(told.logprob) == pytest.approx(letter["logprob"], abs=1e-3)


def test_structured_answers_fit(plain):
    class Review(NamedTuple):
        stars: Literal[1, 2, 3, 4, 5]
        mood: Literal["glad", "angry"]
        is_sure: bool

    before = plain.books()
    with plain.session() as run:
        prompts = ember.text([f"How was it? {i}" for i in range(8)])
        reviews = jax.vmap(lambda prompt: GREEDY.replace(max_tokens=200).structured(prompt, Review))(prompts)
    assert set(reviews.stars.tolist()) <= {1, 2, 3, 4, 5} and set(reviews.mood.tolist()) <= {"glad", "angry"}
    assert reviews.is_sure.dtype == bool and reviews.stars.shape == reviews.mood.shape == (8,)
    assert run.report().requests == 8 and {"response_format"} <= run.calls()[0].parameters.keys()
    assert_counted(plain, before, run)


# -- choices ---------------------------------------------------------------------------------------------------------


def raw(served, call):
    """The server's answer to what a call has asked, as it is."""
    messages = [{"role": message.role, "content": message.content} for message in call.messages]
    body = {"model": "tiny", "messages": messages, **call.parameters}
    return json.loads(served.fetch("/v1/chat/completions", body))["choices"][0]


def expected(token):
    """The probabilities of A and B, among the two, by what the server lists for a token."""
    listed = {candidate["token"]: math.exp(candidate["logprob"]) for candidate in token["top_logprobs"]}
    both = np.array([listed["A"], listed["B"]])
    return both / both.sum()


def test_a_choice_has_the_probabilities_that_the_server_lists(plain):
    with plain.session() as run:
        for i in range(4):
            choice = GREEDY.choose(f"Is {i} even?", ["yes", "no"])
            answer = raw(plain, run.calls()[i])
            assert answer["message"]["content"] == "AB"[int(choice.index)]
            assert str(choice.text) == ["yes", "no"][int(choice.index)]
            np.testing.assert_allclose(choice.probs, expected(answer["logprobs"]["content"][0]), atol=1e-3)
            assert float(choice.probs.sum()) == pytest.approx(1.0) and float(choice.probs.min()) > 0.01


def test_a_model_that_decides_nothing_is_asked_by_letters(plain):
    provider = ember.providers.Compatible("llamacpp", plain.base_url, api_key=KEY, timeout=PATIENCE)
    llm = ember.LLM("llamacpp/tiny", temperature=0, max_tokens=8)
    with ember.session(providers={"llamacpp": provider}, journal=None) as run:
        found = llm.decide("Two.", {str(i): ember.Options(f"Is {i} even?", ["yes", "no"]) for i in range(4)})
        for i in range(4):
            choice = llm.choose(f"Two.\n\nIs {i} even?", ["yes", "no"])
            assert found[str(i)].index == choice.index
            np.testing.assert_allclose(found[str(i)].probs, choice.probs, atol=1e-3)
    (refused,) = {tried.error for call in run.calls() for tried in call.tried if tried.error}
    assert "501" in refused and run.report().decided == 0 and run.report().requests == 9  # one of all four questions


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_told_without_the_key(plain):
    wrong = "sk-another-one-0123456789"
    with plain.session(key=wrong) as run, pytest.raises(errors.AuthenticationError) as caught:
        GREEDY("hello")
    assert caught.value.status == 401 and "Invalid API Key. Check OPENAI_API_KEY" in str(caught.value)
    assert "another-one" not in str(caught.value) and run.report().requests == 1


def test_a_prompt_that_is_too_long_is_told_with_the_numbers(plain):
    prompts = ember.text(["short", " ".join(["hello"] * 1000), "short too"])
    with plain.session() as run, pytest.raises(errors.SweepError, match="1 of 3 lanes failed") as caught:
        ember.jit(jax.vmap(lambda prompt: GREEDY(prompt)))(prompts)
    (failure,) = caught.value.failures
    assert failure.lane == (1,) and type(failure.cause) is errors.RefusedRequestError and failure.cause.status == 400
    # `exceed_context_size_error`, with the tokens of the prompt and of the context.
    assert "request (2007 tokens) exceeds the available context size (512 tokens)" in str(failure.cause)
    assert (run.report().requests, run.report().failed) == (3, 1)


def test_another_model_than_the_one_that_was_asked_is_told_of(plain):
    with plain.session(), pytest.warns(errors.OtherModelWarning, match="by another model, which calls itself 'tiny'"):
        assert str(GREEDY.replace(model="openai/huge")("hello")) in ("A", "B")


# -- again -----------------------------------------------------------------------------------------------------------


def test_what_was_answered_is_not_asked_for_again(plain, tmp_path):
    def program():
        answers = jax.vmap(HOT)(ember.text([f"hello {i}" for i in range(10)])).tolist()
        return answers, int(GREEDY.choose("Which?", ["yes", "no"]).index)

    with may_be_cut(), plain.session(tmp_path / "journal.db") as run:
        first = program()
    assert run.report().requests == 11
    before = plain.books()
    with may_be_cut(), plain.session(tmp_path / "journal.db") as run:
        assert program() == first
    assert (run.report().requests, run.report().replayed) == (0, 11)
    assert plain.books() == before


# -- models that think -----------------------------------------------------------------------------------------------


def test_reasoning_is_kept_apart(think):
    before = think.books()
    with think.session() as run:
        told = jax.vmap(GREEDY.complete)(ember.text([f"hello {i}" for i in range(8)]))
    assert set(told.text.tolist()) <= {"A", "B"} and set(told.reasoning.tolist()) <= {" A", " B"}
    assert told.output_tokens.tolist() == [4] * 8  # a thought, its end, a letter, the end
    assert_counted(think, before, run)


def test_a_choice_reads_the_tokens_of_the_answer_alone(think):
    with think.session() as run:
        for i in range(4):
            choice = GREEDY.choose(f"Is {i} even?", ["yes", "no"])
            tokens = raw(think, run.calls()[i])["logprobs"]["content"]
            # The thought is listed too, and is the letter of an option in another spelling.
            thought, close, letter = (token["token"] for token in tokens[:3])
            assert thought in (" A", " B") and close == "</think>" and letter == "AB"[int(choice.index)]
            np.testing.assert_allclose(choice.probs, expected(tokens[2]), atol=1e-3)


def test_thoughts_alone_are_no_answer(think):
    words = r"no text after 1 tokens \(finish: length\).*max_tokens"
    told = pytest.warns(errors.CutAnswerWarning)
    with think.session() as run, told, pytest.raises(errors.NoAnswerError, match=words) as caught:
        GREEDY.replace(max_tokens=1)("hello")
    assert caught.value.finish == ember.Finish.LENGTH and run.report().output_tokens == 1


def test_a_model_that_ends_within_its_thoughts_has_not_answered(think):
    """The server says `"content": ""` and that the model has said all."""
    bias = {str(think.token("</think>")): -100.0, str(think.token("<|im_end|>")): 4.0}
    with think.session() as run:
        with pytest.raises(errors.NoAnswerError, match="no text after 2 tokens"):
            GREEDY.replace(logit_bias=bias)("hello")
        (call,) = run.calls()
    answer = raw(think, call)
    assert (answer["finish_reason"], answer["message"]["content"]) == ("stop", "")
    assert answer["message"]["reasoning_content"] in (" A", " B")


# -- other protocols, conversations and tools ------------------------------------------------------------------------


def responses(served):
    return ember.providers.OpenAI(served.base_url, api_key=KEY, timeout=PATIENCE, api="responses")


def messages(served):
    return ember.providers.Anthropic(served.base_url.removesuffix("/v1"), api_key=KEY, timeout=PATIENCE)


def chat(served):
    return ember.providers.OpenAI(served.base_url, api_key=KEY, timeout=PATIENCE)


@pytest.mark.parametrize("make", [chat, responses, messages])
def test_each_protocol_tells_what_the_server_counts(plain, make):
    said = [("system", "Be short."), ("user", "Hello"), ("assistant", "Hi"), ("user", "And now?")]
    with ember.session(providers={"mine": make(plain)}, journal=None), warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.CutAnswerWarning)
        before = plain.books()
        answer = ember.LLM("mine/tiny", max_tokens=8).complete(said)
        read, written = np.subtract(plain.books(), before).tolist()
    assert int(answer.input_tokens) == read
    assert 0 < int(answer.output_tokens) <= 8 and abs(written - int(answer.output_tokens)) <= 1
    assert str(answer.text)


@pytest.mark.parametrize("make", [chat, responses, messages])
def test_calls_of_tools_and_their_results_are_taken(plain, make):
    @ember.tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    wanted = ember.LLM("sim/small").tools("add(1, 2) and add(3, 4)", [add])
    said = wanted.added_to(ember.Conversation([("user", "Add.")]), wanted.results([add]))
    with ember.session(providers={"mine": make(plain)}, journal=None) as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.CutAnswerWarning)
        reply = ember.LLM("mine/tiny", max_tokens=8).tools(said, [add])
    assert run.report().requests == 1  # none was refused
    assert int(reply.input_tokens) > 0
    assert str(reply.text) or int(reply.calls.length)


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_their_texts(model, tmp_path):
    with serving(model, "vectors", tmp_path / "log") as served:
        texts = [f"one {i % 10} two {i}" for i in range(100)]
        said = json.loads(served.fetch("/v1/embeddings", {"input": texts[:3], "encoding_format": "float"}))["data"]
        vectors = np.array([one["embedding"] for one in said], np.float32)
        embedder = ember.Embedder("openai/tiny", dim=vectors.shape[1])
        with served.session(), warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.UnknownPriceWarning)
            found = jax.vmap(embedder)(ember.text(texts))
            np.testing.assert_allclose(found[:3], vectors, atol=1e-6)
            with pytest.raises(errors.SweepError, match="The text has no words") as caught:
                jax.vmap(embedder)(ember.text(["one", "", "two"]))
            assert [failure.lane for failure in caught.value.failures] == [(1,)]
            with pytest.raises(errors.MalformedResponseError, match=f"not 7.*dim={vectors.shape[1]}"):
                ember.Embedder("openai/tiny", dim=7)("one")
