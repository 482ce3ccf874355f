"""Claim: `kill -9` loses no answer that a lane has seen, and the rerun asks only for what was not kept.

A sweep of lanes of two stages, through a real server in another process than its client, is killed at random moments
and begun again, with one journal file, until it completes. The client notes, by one `os.write` each, what its provider
has read and what its lanes have seen. What was asked and not kept at a kill is asked again and nothing else; that was
in flight, or read in the moment before its commit. Arguments: the numbers of calls and of kills.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hardware
import report

import ember_jax as ember
from ember_jax import testing
from ember_jax._runtime.journal.writer import Writer

_HANG = 120.0


class Run(NamedTuple):
    """What was asked in one run, what had come back at its end, and what was kept: prompts, or (prompt, answer)."""

    asked: list[str]
    read: set[str]
    seen: set[tuple[str, str]]
    kept: dict[str, str]


class Outcome(NamedTuple):
    """The runs, all but the last one killed, and the lanes' answers in the end."""

    runs: list[Run]
    answers: list[str]


# -- the client, which is killed -------------------------------------------------------------------------------------


def client(url: str, journal: str, notes: str, name: str, calls: int, held: int) -> None:
    """Runs the sweep and notes what happens; says the lanes' answers at the end.

    The commit that would make it more answers than `held` never comes, unless that is less than 0.
    """
    import jax

    put, kept = Writer._put, 0

    def holding(self, rows):
        nonlocal kept
        kept += len(rows)
        if kept > held:
            note("held")
            time.sleep(2 * _HANG)
        return put(self, rows)

    if held >= 0:
        Writer._put = holding
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(*words: str) -> None:
        os.write(file, (json.dumps(words) + "\n").encode())

    class Noting(ember.providers.OpenAI):
        async def complete(self, request):
            (await self._http._own_client())._session.headers["x-run"] = name
            response = await super().complete(request)
            note("read", request.messages[-1].content)
            return response

    async def see(prompt: str, answer: str) -> str:
        note("seen", prompt, answer)
        return answer

    seen = ember.host(see, out=ember.Text, pure=False)
    llm = ember.LLM("openai/model", temperature=0.5)

    def stage(template: str, number: ember.Text) -> ember.Text:
        prompt = ember.format(template, n=number)
        return seen(prompt, llm(prompt))

    def lane(number: ember.Text) -> ember.Text:
        return stage("What is {n} + 1?", stage("What is {n} * 7?", number))

    with ember.session(journal=journal, providers={"openai": Noting(url, api_key="")}):
        answers = jax.vmap(ember.jit(lane))(ember.text([str(i) for i in range(calls // 2)])).tolist()
    note("answers", *answers)


# -- the kills -------------------------------------------------------------------------------------------------------


def sweep(calls: int, kills: int, folder: Path, seed: int = 0, before_commit: bool = False) -> Outcome:
    """Runs a sweep of so many calls, an even number, until it has been killed so often and then completed.

    A kill comes after a random number of requests; `before_commit` after a random number of answers that were kept, at
    the moment when more were read and their commit is about to begin.
    """
    journal, runs, answers = folder / "journal.db", [], []
    # After how many requests, or kept answers, in all it is killed: fewer than it must make.
    moments: Sequence[int | None] = [*sorted(random.Random(seed).sample(range(calls * 9 // 10), kills)), None]
    with testing.ChatServer(testing.SimModel(accuracy=1.0), latency=0.01) as server:
        for i, moment in enumerate(moments):
            notes = folder / f"notes {i}"
            held = -1 if moment is None or not before_commit else max(moment - len(_kept(journal)), 0)
            command = [sys.executable, __file__, "--client", server.base_url, journal, notes, i, calls, held]
            process = subprocess.Popen(list(map(str, command)))
            if moment is not None:
                while not (_noted(notes, "held") if before_commit else len(server.requests) > moment):
                    assert process.poll() is None, "the client ended before it was killed"
                    time.sleep(0.0005)
                process.send_signal(signal.SIGKILL)
            code = process.wait(_HANG)
            assert code == (0 if moment is None else -signal.SIGKILL)
            read = {prompt for (prompt,) in _noted(notes, "read")}
            seen = {(prompt, answer) for prompt, answer in _noted(notes, "seen")}
            answers = next(iter(_noted(notes, "answers")), [])
            runs.append(Run([], read, seen, _kept(journal)))
        for request in server.requests:  # what a killed client had sent may be read by the server later
            runs[int(request.headers["x-run"])].asked.append(request.body["messages"][-1]["content"])
    return Outcome(runs, answers)


def _noted(notes: Path, kind: str) -> list[list[str]]:
    """What a client has noted of a kind."""
    lines = notes.read_text().rpartition("\n")[0].splitlines() if notes.exists() else []  # without one begun
    return [words for key, *words in map(json.loads, lines) if key == kind]


def _kept(journal: Path) -> dict[str, str]:
    """The answers in a journal's file, by their prompts."""
    query = """select words, answer from calls join messages on call = calls.id join texts on texts.id = text"""
    if not journal.exists():
        return {}
    with contextlib.closing(sqlite3.connect(journal)) as connection:
        tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
        return dict(connection.execute(query)) if tables else {}


def check(outcome: Outcome, calls: int) -> int:
    """Raises `AssertionError` where something was lost or asked for nothing; returns the requests made twice."""
    right = {f"What is {i} * 7?": str(7 * i) for i in range(calls // 2)}
    right |= {f"What is {7 * i} + 1?": str(7 * i + 1) for i in range(calls // 2)}
    known: dict[str, str] = {}
    for run in outcome.runs:
        assert len(run.asked) == len(set(run.asked)), "a run asks nothing twice"
        assert not known.keys() & set(run.asked), "what was kept is not asked again"
        assert known.items() <= run.kept.items() <= right.items(), "what was kept stays, and is right"
        assert run.seen <= set(run.kept.items()), "what a lane has seen was kept"
        known = run.kept
    assert known == right and outcome.answers == [str(7 * i + 1) for i in range(calls // 2)]
    again = sum(len(set(run.asked) - run.kept.keys()) for run in outcome.runs)
    assert sum(len(run.asked) for run in outcome.runs) == calls + again, "only what was not kept is asked again"
    return again


def main() -> None:
    hardware.show()
    calls, kills = map(int, sys.argv[1:] or ("2000", "10"))
    with tempfile.TemporaryDirectory() as folder:
        outcome = sweep(calls, kills, Path(folder))
    print("run    asked   kept in all   asked and not kept: in flight, read before its commit")
    for i, run in enumerate(outcome.runs):
        open_, lost = set(run.asked) - run.kept.keys() - run.read, run.read - run.kept.keys()
        print(f"{i:>3} {len(run.asked):>8,} {len(run.kept):>13,} {len(open_):>30,} {len(lost):>26,}")
    again = check(outcome, calls)
    print(f"{calls:,} calls took {calls + again:,} requests; {again:,} were not kept when one of {kills} kills came")
    report.row(f"requests of {calls:,} calls with {kills} kills; not kept and so asked again", calls + again, calls, "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(*sys.argv[2:6], int(sys.argv[6]), int(sys.argv[7]))
    else:
        main()
