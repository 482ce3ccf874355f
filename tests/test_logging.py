"""What is logged: kinds and fields, nothing private, and nothing at all unless it is asked for."""

import logging

import jax
import pytest

import ember_jax as ember
from ember_jax import testing
from ember_jax.errors import AuthenticationError, RateLimitError, ServerError
from ember_jax.providers.base import Provider, Response

PROMPT, ANSWER, KEY = "a private question", "a private answer", "sk-a-private-key"


class Scripted(Provider):
    """Raises what it holds, then answers."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def check(self, model):
        pass

    async def complete(self, request):
        if self.errors:
            raise self.errors.pop(0)
        return Response(ANSWER, 3, 5, 0.5)

    async def close(self):
        pass


ember.register("logged", Scripted())  # a model must be known; sessions put their own in its place
llm = ember.LLM("logged/m")


def fields(record):
    """What a record says beyond what every record does."""
    usual = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}
    return {name: value for name, value in vars(record).items() if name not in usual}


def events(caplog, *kinds):
    return [fields(record) for record in caplog.records if getattr(record, "event", None) in kinds]


def run(*errors, **settings):
    with ember.session(providers={"logged": Scripted(*errors)}, **settings) as run:
        jax.block_until_ready(jax.vmap(ember.jit(llm))(ember.text([PROMPT])))
    return run.report()


def test_a_session_and_its_sweeps_tell_when_they_begin_and_end(caplog):
    caplog.set_level(logging.DEBUG, "ember_jax")
    report = run()
    records = [record for record in caplog.records if record.name == "ember_jax"]
    assert [(r.event, r.levelname) for r in records] == [
        ("session_opened", "INFO"),
        ("sweep_began", "DEBUG"),
        ("sweep_ended", "DEBUG"),
        ("session_closed", "INFO"),
    ]
    _, began, ended, closed = map(fields, records)
    assert (began["operator"], began["calls"]) == ("LLM", 1)
    assert (ended["operator"], ended["calls"]) == ("LLM", 1) and ended["seconds"] >= 0
    assert {name: closed[name] for name in vars(report)} == vars(report)
    assert "calls 1" in records[-1].getMessage() and "cost_usd 0.5" in records[-1].getMessage()


def test_each_retry_tells_the_model_the_attempt_the_status_and_the_wait(caplog):
    caplog.set_level(logging.INFO, "ember_jax")
    errors = [RateLimitError(KEY, status=429, retry_after=3.0), ServerError(KEY, status=503, retry_after=0.25)]
    with testing.VirtualClock():
        run(*errors)
    retries = events(caplog, "retry")
    assert [(r["model"], r["attempt"], r["error"], r["status"], r["wait_s"]) for r in retries] == [
        ("logged/m", 1, "RateLimitError", 429, 3.0),
        ("logged/m", 2, "ServerError", 503, 0.25),
    ]
    assert all(r["requests_per_s"] is None or r["requests_per_s"] > 0 for r in retries)
    assert "attempt 1 failed, RateLimitError (429); again in 3 s" in caplog.text


def test_what_is_not_tried_again_tells_so(caplog):
    caplog.set_level(logging.INFO, "ember_jax")
    with pytest.raises(AuthenticationError):
        run(AuthenticationError(KEY, status=401))
    (gave_up,) = events(caplog, "gave_up")
    assert gave_up == {
        "event": "gave_up",
        "model": "logged/m",
        "attempt": 1,
        "error": "AuthenticationError",
        "status": 401,
    }
    assert not events(caplog, "retry")


def test_a_journal_tells_its_file_once(caplog, tmp_path):
    caplog.set_level(logging.INFO, "ember_jax")
    run(journal=tmp_path / "run.db")
    assert [e["path"] for e in events(caplog, "journal_opened")] == [str(tmp_path / "run.db")]


def test_nothing_private_is_told(caplog):
    caplog.set_level(logging.DEBUG, "ember_jax")
    with pytest.raises(AuthenticationError), testing.VirtualClock():
        run(RateLimitError(KEY, status=429), ServerError(KEY), AuthenticationError(KEY))
    ours = [record for record in caplog.records if record.name == "ember_jax"]
    assert len(ours) == 7
    told = repr([(record.getMessage(), fields(record)) for record in ours])
    assert not any(private in told for private in (PROMPT, ANSWER, KEY))


def test_nothing_is_made_unless_it_is_asked_for(monkeypatch):
    made = []
    make = logging.getLogRecordFactory()

    def record(name, *args, **kwargs):
        made.append(name)
        return make(name, *args, **kwargs)

    monkeypatch.setattr(logging, "_logRecordFactory", record)
    with testing.VirtualClock():
        run(RateLimitError(KEY, status=429), ServerError(KEY))
    assert "ember_jax" not in made
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("ember_jax").handlers)
