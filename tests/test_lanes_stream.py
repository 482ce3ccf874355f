"""`ember.stream`: the lanes of `jax.vmap` as they finish, failures at the end, and an end that cancels the rest."""

import collections
import gc
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax._engine.sweep import Sweep
from ember_jax._operator import stream as streams
from ember_jax.errors import RefusedRequestError, SweepError, UnsupportedError
from ember_jax.providers.callable import Callable
from ember_jax.testing import ChatServer, SimModel, VirtualClock


class Model:
    """Answers in capitals; a prompt that a gate is for waits until that is open, and what holds "bad" is refused."""

    def __init__(self):
        self.asked = collections.Counter()
        self.gates = {}

    def __call__(self, request):
        prompt = request.messages[-1].content
        self.asked[prompt] += 1
        if prompt in self.gates:
            assert self.gates[prompt].wait(60)
        if "bad" in prompt:
            raise RefusedRequestError("refused", status=400)
        return prompt.upper()


@pytest.fixture
def model(tmp_path):
    answers = Model()
    with ember.session(journal=tmp_path / "journal.db", providers={"mine": Callable(answers, cache="v1")}):
        yield answers


@pytest.fixture
def llm(model):
    return ember.LLM("mine/m")


class Weighing(ember.Operator):
    llm: ember.LLM
    weights: jax.Array

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        number = (ember.features(question, 4) * self.weights).sum() + jax.random.uniform(key)
        return self.llm(ember.format("{q} {n}", q=question, n=number))


def test_it_makes_the_calls_of_vmap_and_gives_the_same_answers_each_once(llm, model):
    op = Weighing(llm, jnp.arange(4.0))
    questions, keys = ember.text([f"q{i}" for i in range(40)]), jax.random.split(jax.random.key(0), 40)
    pairs = list(ember.stream(op)(questions, keys))
    assert sorted(index for index, _ in pairs) == list(range(40))
    answers = jax.vmap(op)(questions, keys).tolist()
    assert {index: str(answer) for index, answer in pairs} == dict(enumerate(answers))
    assert set(model.asked.values()) == {1} and model.asked.total() == 40


def test_any_pytree_and_keyword_comes_as_a_lane_gives_it(llm, model):
    fn = lambda question, *, number: {"words": llm(question), "numbers": (number * 2, question == "a")}
    numbers = jnp.arange(6, dtype=jnp.int32).reshape(3, 2)
    for index, found in ember.stream(fn)(ember.text(["a", "b", "c"]), number=numbers):
        assert str(found["words"]) == "ABC"[index] and bool(found["numbers"][1]) == (index == 0)
        np.testing.assert_array_equal(found["numbers"][0], numbers[index] * 2)


def test_a_lane_is_given_while_another_is_still_asked(llm, model):
    model.gates["slow"] = threading.Event()
    pairs = ember.stream(llm)(ember.text(["slow", "fast"]))
    assert not model.asked  # the first call is made when the first pair is asked for
    index, answer = next(pairs)
    assert (index, str(answer)) == (1, "FAST")
    model.gates["slow"].set()
    assert [(index, str(answer)) for index, answer in pairs] == [(0, "SLOW")]


def test_they_come_in_the_order_in_which_they_finish():
    models = {f"m{i}": SimModel(latency=float(seconds)) for i, seconds in enumerate((3, 1, 2))}
    with VirtualClock(), ember.session(providers={"sim": ember.providers.Sim(models)}):
        ask = lambda model: ember.LLM(model)("hello")
        pairs = ember.stream(ask)(ember.text(["sim/m0", "sim/m1", "sim/m2"]))
        assert [index for index, _ in pairs] == [1, 2, 0]


def test_failures_are_raised_at_the_end_together_or_come_as_values(llm, model):
    questions, got = ember.text(["a", "bad 1", "b", "bad 2"]), {}
    with pytest.raises(SweepError, match="2 of 4 lanes") as caught:
        for index, answer in ember.stream(llm)(questions):
            got[index] = str(answer)
    assert got == {0: "A", 2: "B"}
    assert [failure.lane for failure in caught.value.failures] == [(1,), (3,)]
    assert all(isinstance(failure.cause, RefusedRequestError) for failure in caught.value.failures)
    assert model.asked == {"a": 1, "b": 1, "bad 1": 1, "bad 2": 1}
    with pytest.raises(RefusedRequestError):
        list(ember.stream(llm)(ember.text(["bad 3"])))
    found = dict(ember.stream(ember.attempt(llm))(questions))
    assert {index: bool(ok) for index, (_, ok) in found.items()} == {0: True, 1: False, 2: True, 3: False}
    assert "refused" in str(found[1][0].causes())


@pytest.mark.parametrize("how", ["close", "collect"])
def test_to_close_it_cancels_what_was_not_begun_and_a_rerun_pays_for_the_rest(tmp_path, how):
    questions = ember.text([f"What is {i} * 7?" for i in range(50)])
    with ChatServer(SimModel(accuracy=1.0)) as server:
        provider = ember.providers.OpenAI(server.base_url, api_key="")
        limits = {"openai": ember.Limit(in_flight=2)}
        journal = tmp_path / "journal.db"
        with ember.session(journal=journal, providers={"openai": provider}, limits=limits) as run:
            llm = ember.LLM("openai/m")
            pairs = ember.stream(llm)(questions)
            taken = [next(pairs) for _ in range(3)]
            if how == "close":
                pairs.close()
            else:
                del pairs
                gc.collect()
            begun = run.report().requests
            assert 3 <= begun < 50 and len(taken) == 3
            assert str(llm("something else")) and run.report().requests == begun + 1
            found = dict(ember.stream(llm)(questions))
            assert {i: str(a) for i, a in found.items()} == {i: str(7 * i) for i in range(50)}
            asked = collections.Counter(request.body["messages"][-1]["content"] for request in server.requests)
            twice = [prompt for prompt, times in asked.items() if times > 1]
            assert len(asked) == 51 and len(twice) <= 2  # those in flight when it was closed


def test_lanes_wait_for_one_who_takes_none_who_may_make_calls_of_his_own(llm, model, monkeypatch):
    monkeypatch.setattr(streams, "_AHEAD", 8)
    monkeypatch.setattr(Sweep.__init__, "__defaults__", (16, None))
    count = 200
    pairs = ember.stream(llm)(ember.text([f"q{i}" for i in range(count)]))
    index, _ = next(pairs)
    seen = {index}
    for turn in range(20):  # calls of one's own go through, those of lanes that wait included
        assert str(llm(f"mine {turn}")) == f"MINE {turn}" and str(llm(f"q{index}")) == f"Q{index}"
    assert sum(prompt.startswith("q") for prompt in model.asked) <= 1 + 8 + 2 * 16
    for index, answer in pairs:
        assert str(answer) == f"Q{index}"
        seen.add(index)
    assert seen == set(range(count)) and set(model.asked.values()) == {1}


def test_it_runs_now_and_maps_all_arguments(llm, model):
    with pytest.raises(UnsupportedError, match=r"use `jax.vmap`"):
        jax.jit(lambda x: ember.stream(llm)(x) and x)(ember.text(["a"]))
    with pytest.raises(ValueError, match="first axis of all arguments"):
        ember.stream(lambda a, b: llm(a))(ember.text(["a", "b"]), jnp.zeros(3))
    with pytest.raises(ValueError, match="first axis of all arguments"):
        ember.stream(llm)(ember.text("a"))
    assert not model.asked


@pytest.mark.parametrize("kind", ["typed", "legacy", "numpy"])
def test_without_a_lane_it_gives_nothing_and_still_says_what_is_wrong_with_the_function(llm, model, kind):
    keys = jax.random.split(jax.random.key(0), 2) if kind == "typed" else jax.random.split(jax.random.PRNGKey(0), 2)
    keys, none = np.asarray(keys) if kind == "numpy" else keys, ember.text(["a", "b"])[:0]
    op = Weighing(llm, jnp.ones(4))
    assert jax.vmap(op)(none, keys[:0]).tolist() == list(ember.stream(op)(none, keys[:0])) == []
    of_pairs = ember.text([["a", "b"]])
    assert len(list(ember.stream(jax.vmap(llm))(of_pairs))) == 1 and sum(model.asked.values()) == 2
    assert list(ember.stream(jax.vmap(llm))(of_pairs[:0])) == []
    assert list(ember.stream(lambda q, x: (llm(q), x))(none, np.ones((0, 3)))) == []
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        ember.stream(llm)(of_pairs[:0])
    assert sum(model.asked.values()) == 2


_INTERRUPTED = """
import os, signal, threading
import ember_jax as ember

gate = threading.Event()

def answer(request):
    if "0" in request.messages[-1].content:
        return "x"
    os.kill(os.getpid(), signal.SIGINT)
    gate.wait(60)
    return "y"

with ember.session(journal=None, providers={"mine": ember.providers.Callable(answer)}) as run:
    try:
        for index, _ in ember.stream(ember.LLM("mine/m"))(ember.text(["0", "1"])):
            print(index)
    except KeyboardInterrupt:
        gate.set()
        print("stopped", [call.how for call in run.calls(failed=True)])
    print(str(ember.LLM("mine/m")("00")))
"""


def test_ctrl_c_stops_it_and_calls_can_be_made_afterwards():
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-3:] == ["stopped ['failed']", "x", ""]
