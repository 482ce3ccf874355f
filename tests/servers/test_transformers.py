"""Decisions of `transformers serve`, with a tiny model of random weights.

What the model decides is nonsense. How the server says it, what it bills and what it refuses are the real thing. The
server runs in an environment of its own: `EMBER_JAX_TRANSFORMERS` names a Python with `transformers[serving]` and
`torch`.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest

import ember_jax as ember

PYTHON = os.environ.get("EMBER_JAX_TRANSFORMERS", "")
FOLDER = Path(__file__).parent
# The seconds that the server may take to come up, and to answer.
PATIENCE = 180.0

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="EMBER_JAX_TRANSFORMERS names no Python with transformers[serving] and torch"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The server's address, and the model's name there, which is its folder."""
    folder = tmp_path_factory.mktemp("model")
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([PYTHON, FOLDER / "model_hf.py", folder], check=True, timeout=PATIENCE, env=quiet)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(PYTHON).parent / "transformers", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, env=quiet)
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield address, str(folder)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def run(served):
    provider = ember.providers.Compatible("transformers", served[0], timeout=PATIENCE)
    with ember.session(providers={"transformers": provider}, journal="memory") as session:
        yield session


def raw(address, body):
    """What the server itself says."""
    sent = urllib.request.Request(
        f"{address}/v1/systemone", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=PATIENCE) as answer:
        return json.load(answer)


STATE = "Water is a liquid."
TOPIC = ember.Options("What is it about?", {"water": "wet", "fire": None, "air": None})
WARM = ember.Levels("How warm is it?", ["cold", "warm", "hot"])


def llm(served):
    return ember.LLM(f"transformers/{served[1]}", temperature=0, max_tokens=4)


@pytest.mark.filterwarnings("ignore::ember_jax.errors.UnknownPriceWarning")
def test_choices_and_levels_have_the_servers_own_probabilities(served, run):
    found = llm(served).decide(STATE, {"topic": TOPIC, "warm": WARM})
    criteria = {"water": "wet", "fire": None, "air": None}
    questions = {
        "a": {"type": "choice", "instructions": "What is it about?", "criteria": criteria},
        "b": {"type": "score", "instructions": "How warm is it?", "criteria": ["cold", "warm", "hot"]},
    }
    told = raw(served[0], {"model": served[1], "state": STATE, "questions": questions})
    topic, warm = told["answers"]["a"], told["answers"]["b"]
    np.testing.assert_allclose(found["topic"].probs, list(topic["probabilities"].values()), atol=1e-5)
    np.testing.assert_allclose(found["warm"].probs, list(warm["probabilities"].values()), atol=1e-5)
    assert str(found["topic"].text) == topic["choice"]
    assert np.isclose(found["warm"].level, warm["score"], atol=1e-4)
    assert run.report().requests == 1 and run.report().input_tokens == told["usage"]["input_tokens"]


@pytest.mark.filterwarnings("ignore::ember_jax.errors.UnknownPriceWarning")
def test_lanes_share_requests_and_an_estimate_bounds_what_is_billed(served, run):
    states = ember.text([f"{STATE} {i % 3}" for i in range(12)])
    ask = jax.vmap(ember.jit(lambda state: llm(served).decide(state, {"topic": TOPIC, "warm": WARM}, orders=2)))
    bounds = ember.lower(ask)(states).estimate()
    found = ask(states)
    assert run.report().requests == 3 and run.report().decided == 48
    assert bounds.input_tokens.least <= run.report().input_tokens <= bounds.input_tokens.most
    assert found["topic"].value.probs.shape == (12, 3) and (found["topic"].bias >= 0).all()


@pytest.mark.filterwarnings("ignore::ember_jax.errors.UnknownPriceWarning")
def test_what_cannot_be_read_off_is_refused_and_asked_by_letters(served, run):
    """The tokeniser has no token for `No`."""
    with contextlib.suppress(ember.errors.ProviderError):  # the model's own letters are nonsense
        llm(served).decide(STATE, "Is it wet?")
    (call,) = run.calls()
    assert "distinct single tokens" in call.tried[0].error and [m.role for m in call.messages] == ["user"]
    assert not call.tried[-1].error and run.report().requests == 2
