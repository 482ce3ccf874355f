"""Faults in a fifth of all requests change no answer, lose no call and pay for none twice."""

import importlib
import warnings
from pathlib import Path

import pytest

import ember_jax as ember
from ember_jax import errors, testing
from ember_jax.errors import CutAnswerWarning

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_fault_in_a_fifth_of_requests_costs_what_it_forces_and_nothing_more(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    chaos = importlib.import_module("chaos")
    calls = 500
    outcome = chaos.sweep(calls, tmp_path / "journal.db")
    assert outcome.answers == outcome.again_answers == [str(7 * i + 1) for i in range(calls // 2)]
    assert outcome.ours == outcome.servers
    assert outcome.ours["requests"] == calls + sum(outcome.met[name] for name in chaos.FORCING)
    assert (outcome.again.requests, outcome.again.replayed) == (0, calls)
    assert ember.Journal(tmp_path / "journal.db").stats().calls == calls
    assert set(outcome.met) == set(chaos.KINDS)
    assert outcome.ours["lost"] > 0


def test_the_books_are_the_servers_to_the_token(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    chaos = importlib.import_module("chaos")
    rows = 500
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CutAnswerWarning)
        books = chaos.books(rows, tmp_path / "journal.db")
    assert books.report == books.server
    assert books.evaluation == {**books.server, "millionths": pytest.approx(books.server["millionths"], rel=1e-6)}
    assert books.budget["millionths"] == books.server["millionths"]
    assert books.lost["report"] == pytest.approx(books.lost["budget"]) and books.lost["report"] > 0
    assert books.failed[0] == books.failed[1] > 0
    assert (books.again.requests, books.again.replayed, books.again.cost_usd) == (0, rows, 0)
    assert set(books.met) == set(chaos.KINDS | chaos.EMPTY)


def test_a_drip_that_takes_too_long_is_stopped_by_the_deadline():
    drip = testing.Fault(drip=5.0)  # no pause is as long as the timeout
    with testing.ChatServer(faults=lambda number: drip) as server:
        provider = ember.providers.OpenAI(server.base_url, api_key="", timeout=60)
        settings = {"providers": {"openai": provider}, "retry": ember.Retry(deadline=0.2), "journal": None}
        with ember.session(**settings) as run, pytest.raises(errors.ConnectionFailedError, match="a call's deadline"):
            ember.LLM("openai/model")(ember.text("hello"))
    assert run.report().requests == 1 and not server.answered
