"""Sessions against `transformers serve`, with a tiny model of random weights.

What the model says is nonsense, and by default always the same. The server runs in an environment of its own.
`.ci/transformers` makes that, and names its Python in `EMBER_JAX_TRANSFORMERS`.
"""

import contextlib
import json
import os
import subprocess
import urllib.request
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from servers.started import started

import ember_jax as ember
from ember_jax import errors
from ember_jax.providers import Compatible, OpenAI

PYTHON = os.environ.get("EMBER_JAX_TRANSFORMERS", "")
FOLDER = Path(__file__).parent
# The seconds that the server may take to come up, most of which it imports, to answer, and to end.
PATIENCE = 180.0

pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="EMBER_JAX_TRANSFORMERS names no Python with tests/servers/transformers.txt; `.ci/transformers` makes one",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model's name, which is its folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run([PYTHON, FOLDER / "random_model.py", folder], check=True, timeout=PATIENCE)
    return str(folder)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    log = tmp_path_factory.mktemp("serve") / "log"
    with started("transformers serve", [PYTHON, FOLDER / "serve.py"], log, PATIENCE) as address:
        yield address


@pytest.fixture
def run(address):
    provider = OpenAI(f"{address}/v1", api_key="", timeout=PATIENCE)
    with ember.session(providers={"openai": provider}, journal=None) as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.CutAnswerWarning)
        yield run


@pytest.fixture
def llm(model, run):
    return ember.LLM(f"openai/{model}", max_tokens=4)


def raw(address, model, prompt, **parameters):
    """What the server itself says, without this package."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **parameters}
    return posted(address, "/v1/chat/completions", body)


def posted(address, path, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def test_an_answer_and_its_tokens_are_what_the_server_says(llm, run, address, model):
    answer = llm.complete("hello")
    told = raw(address, model, "hello")
    assert str(answer.text) == told["choices"][0]["message"]["content"] != ""
    usage = told["usage"]
    assert (int(answer.input_tokens), int(answer.output_tokens)) == (usage["prompt_tokens"], usage["completion_tokens"])
    report = run.report()
    assert (report.requests, report.input_tokens, report.output_tokens) == (
        1,
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def said(address, model, prompt):
    return raw(address, model, prompt)["choices"][0]["message"]["content"]


def test_lanes_are_answered_as_they_are_alone(llm, run, address, model):
    prompts = [f"hello {i}" for i in range(8)]
    answers = jax.vmap(llm)(ember.text(prompts)).tolist()
    assert run.report().requests == 8 and run.report().failed == 0
    assert answers == [said(address, model, prompt) for prompt in prompts]


def test_a_stream_is_the_answer_in_pieces(llm, run, address, model):
    # Half a character at the end it leaves out of a stream, and else shows as what stands for it.
    assert "".join(llm.stream("hello")) == said(address, model, "hello").rstrip("\ufffd")
    assert run.report().output_tokens == raw(address, model, "hello")["usage"]["completion_tokens"]


def test_n_is_ignored_and_samples_are_then_asked_for_one_by_one(llm, run):
    """One request for three samples has one answer; no sample is made up of another's."""
    keys = jax.random.split(jax.random.key(0), 3)
    answers = jax.vmap(llm, in_axes=(None, 0))(ember.text("hello"), keys).tolist()
    assert len(set(answers)) == 1  # as it does not sample
    assert run.report().requests == 3 and run.report().failed == 0


def test_a_choice_that_comes_in_words_alone_is_read_as_words(llm):
    """It has no log-probabilities, and the model names no option."""
    with pytest.raises(errors.ProviderError, match="names none of the options A to B"):
        llm.choose("Which?", ["yes", "no"])


class Number(NamedTuple):
    answer: int


def test_a_schema_that_is_ignored_is_found_out(llm):
    with pytest.raises(errors.MalformedResponseError, match="not JSON"):
        llm.structured("1 + 1", Number)


def test_a_setting_that_it_does_not_know_is_refused_by_name(llm):
    with pytest.raises(errors.RefusedRequestError, match="top_k") as caught:
        llm.replace(top_k=3)("hello")
    assert caught.value.status == 422


def test_an_unknown_model_is_the_servers_error(address):
    provider, once = OpenAI(f"{address}/v1", api_key="", timeout=PATIENCE), ember.Retry(attempts=1, seconds=0.0)
    with (
        ember.session(providers={"openai": provider}, journal=None, retry=once) as run,
        pytest.raises(errors.ServerError) as caught,
    ):
        ember.LLM("openai/nobody/nothing", max_tokens=4)("hello")
    assert caught.value.status == 500 and run.report().requests == 1


# -- decisions -------------------------------------------------------------------------------------------------------

STATE = "Water is a liquid."
TOPIC = ember.Options("What is it about?", {"water": "wet", "fire": None, "air": None})
WARM = ember.Levels("How warm is it?", ["cold", "warm", "hot"])


@pytest.fixture
def deciding(address):
    provider = Compatible("transformers", address, timeout=PATIENCE)
    with (
        ember.session(providers={"transformers": provider}, journal="memory") as run,
        warnings.catch_warnings(action="ignore", category=errors.UnknownPriceWarning),
    ):
        yield run


def decider(model):
    return ember.LLM(f"transformers/{model}", temperature=0, max_tokens=4)


def test_choices_and_levels_have_the_servers_own_probabilities(address, model, deciding):
    found = decider(model).decide(STATE, {"topic": TOPIC, "warm": WARM})
    criteria = {"water": "wet", "fire": None, "air": None}
    questions = {
        "a": {"type": "choice", "instructions": "What is it about?", "criteria": criteria},
        "b": {"type": "score", "instructions": "How warm is it?", "criteria": ["cold", "warm", "hot"]},
    }
    told = posted(address, "/v1/systemone", {"model": model, "state": STATE, "questions": questions})
    topic, warm = told["answers"]["a"], told["answers"]["b"]
    np.testing.assert_allclose(found["topic"].probs, list(topic["probabilities"].values()), atol=1e-5)
    np.testing.assert_allclose(found["warm"].probs, list(warm["probabilities"].values()), atol=1e-5)
    assert str(found["topic"].text) == topic["choice"]
    assert np.isclose(found["warm"].level, warm["score"], atol=1e-4)
    assert deciding.report().requests == 1 and deciding.report().input_tokens == told["usage"]["input_tokens"]


def test_lanes_share_requests_and_an_estimate_bounds_what_is_billed(address, model, deciding):
    states = ember.text([f"{STATE} {i % 3}" for i in range(12)])
    ask = jax.vmap(ember.jit(lambda state: decider(model).decide(state, {"topic": TOPIC, "warm": WARM}, orders=2)))
    bounds = ember.lower(ask)(states).estimate()
    found = ask(states)
    assert deciding.report().requests == 3 and deciding.report().decided == 48
    assert bounds.input_tokens.least <= deciding.report().input_tokens <= bounds.input_tokens.most
    assert found["topic"].value.probs.shape == (12, 3) and (found["topic"].bias >= 0).all()


def test_what_cannot_be_read_off_is_refused_and_asked_by_letters(address, model, deciding):
    """The tokeniser has no token for `No`."""
    with contextlib.suppress(ember.errors.ProviderError):  # the model's own letters are nonsense
        decider(model).decide(STATE, "Is it wet?")
    (call,) = deciding.calls()
    assert "distinct single tokens" in call.tried[0].error and [m.role for m in call.messages] == ["user"]
    assert not call.tried[-1].error and deciding.report().requests == 2
