"""No output holds an API key: whatever goes well or wrong, everything that can be seen of it is searched for the key.

A new kind of output is one more row of `OUTPUTS`.
"""

import base64
import io
import json
import logging
import pickle
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import pytest

import ember_jax as ember
from ember_jax import _cli, errors
from ember_jax.testing import ChatServer, Fault, SimModel

# By how it is given: one that looks like OpenAI's, and one that looks like nothing.
KEYS = {"environment": "sk-proj-Zq7vT2mXw9LdK4hRy8BnC3pf", "argument": "Zq7vT2mXw9/LdK4hRy8+BnC3pf.54"}
LLM = ember.LLM("openai/gpt-4o-mini", temperature=0.7)


@ember.operator
def chain(prompt: ember.Text) -> ember.Text:
    return LLM(LLM(prompt) + "?")


WAYS = {
    "eagerly": lambda prompts: str(LLM(prompts[0])),
    "jax.jit": jax.jit(jax.vmap(chain)),
    "ember.jit": ember.jit(jax.vmap(chain)),
}


def faults(key):
    """What a service does, echoing the key wherever it can."""
    said = f"Incorrect API key provided: {key}."
    error = json.dumps({"error": {"message": said, "code": "invalid_api_key", "param": key}})
    statuses = [Fault(status=status, body=error) for status in (307, 400, 401, 403, 404, 408, 422, 429, 500, 503)]
    refusal = {"choices": [{"message": {"content": None, "refusal": said}}]}
    return [
        *statuses,
        *(Fault(status=status, body=f"<p>Authorization: Bearer {key}</p>") for status in (401, 502)),
        Fault(status=401, body=error.replace("v", "\\u0076")),  # JSON's escapes hide it from the eye
        Fault(status=429, headers={"retry-after": key, "x-request-id": key}),
        Fault(status=307, headers={"location": f"http://host/?key={key}"}),
        Fault(headers={"content-type": f"text/{key}"}, body="<html>"),
        Fault(body=error),
        Fault(body=json.dumps(refusal)),
        Fault(body=json.dumps({"choices": [{"message": {"content": [key]}}]})),
        Fault(body=f'{{"choices": [{key}'),
        Fault(body=json.dumps({"choices": [], "error": key})),
        Fault(headers={"content-encoding": "gzip"}, body=key),
        Fault(reset=True),
        Fault(truncate=True),
        Fault(delay=60.0),
        Fault(drip=60.0),
    ]


@dataclass
class World:
    """What there is to be looked at after everything was tried."""

    folder: Path
    provider: ember.providers.OpenAI
    plan: ember.Plan
    log: io.StringIO
    run: Any = None
    errors: list[BaseException] = field(default_factory=list)
    warned: list[Any] = field(default_factory=list)
    sessions: list[Any] = field(default_factory=list)


def chained(error):
    """An error, its causes, and those of its lanes."""
    while error is not None:
        yield error
        for failure in getattr(error, "failures", ()):
            yield from chained(failure.cause)
        error = error.__cause__ or error.__context__


def pickled(values):
    for value in values:
        try:
            yield pickle.dumps(value)
        except Exception as error:  # what is not pickled must say so without the key
            yield "".join(traceback.format_exception(error))


def command_line(world):
    journal = ("--path", str(world.folder / "journal.db"))
    _cli.main(["journal", "export", *journal, "--out", str(world.folder / "export.jsonl")])
    lines = (world.folder / "export.jsonl").read_text()
    for action in (("stats",), ("list", "--prompts"), ("show", json.loads(lines.splitlines()[0])["digest"])):
        _cli.main(["journal", action[0], *journal, *action[1:]])  # prints, and what is printed is looked at
    return [lines]


# What can be seen, by name: strings and bytes, of a World.  What is printed is looked at besides.
OUTPUTS = {
    "errors": lambda w: [f"{e} {e!r} {vars(e)}" for error in w.errors for e in chained(error)],
    "tracebacks": lambda w: ["".join(traceback.format_exception(e)) for e in w.errors],
    "pickles": lambda w: pickled([w.provider, LLM, w.plan, w.run.report(), *w.errors]),
    "reprs": lambda w: [f"{x!r} {x}" for x in (w.provider, LLM, chain, w.plan, w.run, *w.sessions)],
    "variables": lambda w: [repr(vars(w.run))],
    "reports": lambda w: [f"{w.run.report()!r} {w.run.report()} {w.run.statistics()}"],
    "plans": lambda w: [w.plan.explain(), w.plan.to_mermaid()],
    "logs": lambda w: [w.log.getvalue()],
    "warnings": lambda w: [f"{x} {x.message!r}" for x in w.warned],
    "files": lambda w: [path.read_bytes() for path in w.folder.rglob("*") if path.is_file()],
    "command line": command_line,
}


def ways(attempts, i):
    """All, or one in turn where the service is asked twice, as it is paced then."""
    return WAYS if attempts == 1 else dict([list(WAYS.items())[i % len(WAYS)]])


def try_everything(world, server, settings):
    """Runs programs that succeed, that are tried again, and that fail, and keeps what can be seen."""
    prompts = ember.text([f"What is {i} + 1?" for i in range(2)])
    with ember.session(**settings) as world.run:
        for way in WAYS.values():
            jax.block_until_ready(way(prompts))
        jax.block_until_ready(WAYS["ember.jit"](ember.text(["equal", "equal"])))  # which warns
        assert world.run.report().retries >= 1
    for attempts in (1, 2):
        world.sessions.append(ember.session(**settings, retry=ember.Retry(attempts, first=0.0, seconds=0.5)))
        with world.sessions[-1]:
            for i, fault in enumerate(faults(server.key)[attempts - 1 :: 2]):
                server.fault = fault
                for name, way in ways(attempts, i).items():
                    words = f"{attempts} {name} {i}"
                    with pytest.raises(Exception) as raised:
                        jax.block_until_ready(way(ember.text([words, words + " and more"])))
                    world.errors.append(raised.value)
    server.fault = faults(server.key)[0]
    with pytest.raises(errors.EmberError) as raised, ember.session(**settings):  # which finds the typed error
        jax.block_until_ready(WAYS["jax.jit"](ember.text(["a", "b"])))
    world.errors.append(raised.value)


class Server(ChatServer):
    """A server whose every request meets the same fault, which changes; the first one meets a fault that passes."""

    def __init__(self, key):
        super().__init__(SimModel(), api_key=key, faults=lambda number: self.fault if number else Fault(status=503))
        self.key, self.fault = key, None


def needles(key):
    """A key, its halves, and what base64 makes of it, wherever in the encoded words it begins."""
    yield from (key, key[: len(key) // 2], key[len(key) // 2 :])
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + key.encode()).decode()
        yield whole[4 if before else 0 : len(whole) - 4]


@pytest.mark.parametrize(("how", "key"), KEYS.items(), ids=KEYS)
def test_no_output_holds_the_key(how, key, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    loggers = [logging.getLogger(name) for name in (None, "ember_jax", "httpx", "aiohttp", "asyncio")]
    levels = [logger.level for logger in loggers]
    loggers[0].addHandler(handler)
    try:
        with Server(key) as server, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for logger in loggers:
                logger.setLevel(logging.DEBUG)
            if how == "environment":
                monkeypatch.setenv("OPENAI_API_KEY", key)
            given = None if how == "environment" else key
            provider = ember.providers.OpenAI(server.base_url, api_key=given, timeout=0.2)
            world = World(tmp_path, provider, ember.lower(chain)(ember.text("hello")), log, warned=warned)
            settings = {"providers": {"openai": provider}, "journal": tmp_path / "journal.db"}
            try_everything(world, server, settings)
        answered = ember.Journal(tmp_path / "journal.db").stats().calls
        found = {name: list(look(world)) for name, look in OUTPUTS.items()}
    finally:
        loggers[0].removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    found["printed"] = list(capfd.readouterr())
    half = len(faults(key)) // 2
    assert answered >= 5 and len(world.errors) == len(WAYS) * half + half + 1
    assert any("401" in str(error) for error in world.errors) and "503" in log.getvalue()
    for name, outputs in found.items():
        assert any(outputs), name  # there is something to look at
        for output in outputs:
            words = output if isinstance(output, bytes) else output.encode()
            assert not [needle for needle in needles(key) if needle.encode() in words], name
