"""`kill -9` at random moments of a sweep over HTTP: what a lane has seen was kept, what was kept is not asked again."""

import importlib
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_kills_lose_no_answer_that_a_lane_has_seen_and_the_rerun_asks_only_for_the_rest(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    kill = importlib.import_module("kill")
    outcome = kill.sweep(300, 2, tmp_path, before_commit=True)
    kill.check(outcome, 300)
    killed = outcome.runs[:-1]
    assert len(killed) == 2 and any(run.seen for run in killed)
    assert all(run.read - run.kept.keys() for run in killed)  # they came where answers were read and not committed
