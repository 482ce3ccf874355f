"""Sessions against LiteLLM's proxy, which speaks three vendors' protocols, and stands before a server of these tests.

So what is asked here goes through a dialect of ours, through what LiteLLM makes of it, and arrives at a server that
counts. The proxy runs in an environment of its own. `.ci/litellm` makes that, and names its Python in
`EMBER_JAX_LITELLM`.
"""

import json
import os
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from servers.started import started

import ember_jax as ember
from ember_jax import errors
from ember_jax.providers import Anthropic, Gemini, OpenAI
from ember_jax.testing import ChatServer, Fault, SimModel

PYTHON = os.environ.get("EMBER_JAX_LITELLM", "")
KEY = "sk-of-these-tests"
# The seconds that the proxy may take to come up, most of which it imports, to answer, and to end.
PATIENCE = 120.0

pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="EMBER_JAX_LITELLM names no Python with tests/servers/litellm.txt; `.ci/litellm` makes one",
)


def chat(address, key=KEY):
    return OpenAI(f"{address}/v1", api_key=key, timeout=PATIENCE)


def responses(address, key=KEY):
    return OpenAI(f"{address}/v1", api_key=key, timeout=PATIENCE, api="responses")


def messages(address, key=KEY):
    return Anthropic(address, api_key=key, timeout=PATIENCE)


def generate(address, key=KEY):
    return Gemini(f"{address}/v1beta", api_key=key, timeout=PATIENCE)


# Each protocol, and the variable of the environment that has its key.
PROTOCOLS = {
    chat: "OPENAI_API_KEY",
    responses: "OPENAI_API_KEY",
    messages: "ANTHROPIC_API_KEY",
    generate: "GOOGLE_API_KEY",
}


# What goes wrong behind the proxy, by what is asked.
SHORT = {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}
FAULTS = {
    "busy": Fault(status=429, headers={"retry-after": "3"}),
    "broken": Fault(status=500),
    "short": Fault(status=400, body=json.dumps({"error": SHORT})),
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """The proxy's address, and the server behind it."""

    def fault(number):
        return FAULTS.get(behind.requests[number].body.get("messages", [{}])[-1].get("content"))

    with ChatServer(SimModel(accuracy=1.0), faults=fault) as behind:
        command = [PYTHON, Path(__file__).parent / "proxy.py", KEY, behind.base_url]
        with started("LiteLLM's proxy", command, tmp_path_factory.mktemp("proxy") / "log", PATIENCE) as address:
            yield address, behind


@pytest.fixture
def address(proxy):
    return proxy[0]


@pytest.fixture
def behind(proxy):
    return proxy[1]


class Books:
    """What the server behind the proxy has counted since."""

    def __init__(self, behind):
        self._behind = behind
        self._before = (len(behind.requests), behind.input_tokens, behind.output_tokens)

    @property
    def counts(self):
        """Requests, tokens of prompts, tokens of answers."""
        now = (len(self._behind.requests), self._behind.input_tokens, self._behind.output_tokens)
        return tuple(b - a for a, b in zip(self._before, now, strict=True))

    @property
    def bodies(self):
        return [request.body for request in self._behind.requests[self._before[0] :]]


def session(provider, journal=None, **given):
    return ember.session(providers={"openai": provider}, journal=journal, **given)


# The name is that of any service here; the protocol is the provider's.
LLM = ember.LLM("openai/behind", max_tokens=50)


def report_of(run):
    report = run.report()
    return report.requests, report.input_tokens, report.output_tokens


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_and_its_tokens_are_those_of_the_server_behind(protocol, address, behind):
    books = Books(behind)
    llm = (
        LLM.replace(system="Be brief.", temperature=0.5)
        if protocol is not messages
        else LLM.replace(system="Be brief.")
    )
    with session(protocol(address)) as run:
        answer = llm.complete("What is 2 + 3?")
    assert (str(answer.text), int(answer.finish)) == ("5", ember.Finish.STOP)
    assert report_of(run) == books.counts == (1, int(answer.input_tokens), int(answer.output_tokens))
    (body,) = books.bodies
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 3?"},
    ]
    assert body["max_tokens"] == 50 and body.get("temperature") == (None if protocol is messages else 0.5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fifty_lanes_are_fifty_answers(protocol, address, behind, tmp_path):
    books = Books(behind)
    questions = ember.text([f"What is {i} + 3?" for i in range(50)])
    with session(protocol(address), tmp_path / "journal.db") as run:
        answers = jax.vmap(LLM)(questions).tolist()
    assert answers == [str(i + 3) for i in range(50)]
    assert report_of(run) == books.counts and run.report().requests == 50 and run.report().failed == 0
    # And again, for nothing.
    with session(protocol(address), tmp_path / "journal.db") as run:
        assert jax.vmap(LLM)(questions).tolist() == answers
    assert (run.report().requests, run.report().replayed, books.counts[0]) == (0, 50, 50)


def test_keys_are_samples_of_one_request(address, behind):
    books = Books(behind)
    keys = jax.random.split(jax.random.key(0), 3)
    with session(chat(address)) as run:
        answers = jax.vmap(LLM, in_axes=(None, 0))(ember.text("What is 2 + 3?"), keys).tolist()
    assert answers == ["5"] * 3 and report_of(run) == books.counts
    assert [body["n"] for body in books.bodies] == [3]


@pytest.mark.parametrize("protocol", [messages, generate])
def test_keys_are_samples_of_a_request_each(protocol, address, behind):
    """Anthropic's protocol has one answer to a request, and Google's is asked as if it had."""
    books = Books(behind)
    keys = jax.random.split(jax.random.key(0), 3)
    with session(protocol(address)) as run:
        assert jax.vmap(LLM, in_axes=(None, 0))(ember.text("What is 2 + 3?"), keys).tolist() == ["5"] * 3
    assert report_of(run) == books.counts and books.counts[0] == 3


def test_a_stream_is_the_answer_in_pieces_and_counted(address, behind):
    books = Books(behind)
    with session(chat(address)) as run:
        pieces = list(LLM.stream("What is 2 + 3?"))
    assert "".join(pieces) == "5" and report_of(run) == books.counts
    assert books.bodies[0]["stream"] is True


def test_fields_and_vectors_pass_through(address, behind):
    books = Books(behind)
    with session(chat(address)):
        vectors = jax.vmap(ember.Embedder("openai/vectors", dim=3))(ember.text(["a market", "a town"]))
    with ember.session(providers={"openai": chat(behind.base_url.removesuffix("/v1"))}, journal=None):
        direct = jax.vmap(ember.Embedder("openai/good", dim=3))(ember.text(["a market", "a town"]))
    np.testing.assert_array_equal(vectors, direct)
    assert [body["input"] for body in books.bodies] == [["a market", "a town"]] * 2


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_wrong_key_is_told_with_the_variable_and_without_the_key(protocol, address, behind):
    books = Books(behind)
    with (
        session(protocol(address, "sk-another-0123456789")) as run,
        pytest.raises(errors.AuthenticationError) as caught,
    ):
        LLM("hello")
    assert PROTOCOLS[protocol] in str(caught.value) and "another" not in str(caught.value)
    assert run.report().requests == 1 and books.counts[0] == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_unknown_model_is_told(protocol, address, behind):
    books = Books(behind)
    words = "Invalid model name passed in model=nothing"
    with session(protocol(address)) as run, pytest.raises(errors.RefusedRequestError, match=words) as caught:
        LLM.replace(model="openai/nothing")("hello")
    assert caught.value.status == 400 and run.report().requests == 1 and books.counts[0] == 0


FAILURES = {
    "busy": (errors.RateLimitError, 429),
    "broken": (errors.ServerError, 500),
    "short": (errors.RefusedRequestError, 400),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("words", FAILURES)
def test_what_fails_behind_it_is_told_as_what_it_is(protocol, words, address, behind):
    books, (kind, status) = Books(behind), FAILURES[words]
    once = ember.Retry(attempts=1, seconds=0.0)
    with session(protocol(address), retry=once), pytest.raises(errors.ProviderError) as caught:
        LLM(words)
    assert type(caught.value) is kind and caught.value.status == status
    assert books.counts == (1, 0, 0)


def test_a_limit_of_the_proxys_own_is_kept(address, behind):
    """Five a minute by the clock. What is refused says nothing of when to try again; all are answered."""
    books = Books(behind)
    with session(chat(address)) as run:
        answers = jax.vmap(LLM.replace(model="openai/limited"))(ember.text([f"What is {i} + 3?" for i in range(7)]))
    assert answers.tolist() == [str(i + 3) for i in range(7)]
    assert books.counts[0] == 7 and run.report().failed >= 1  # refused once, at least


def test_the_proxy_lists_its_models(address):
    request = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        listed = [model["id"] for model in json.loads(answer.read())["data"]]
    assert listed == ["behind", "vectors", "limited"]
