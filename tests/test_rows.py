"""`evaluate(to=…)`: each row stands in the file once, also after a kill and a resume; other rows are refused."""

import collections
import csv
import fcntl
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Float

import ember_jax as ember
from ember_jax._evaluate import rows as files
from ember_jax.providers.base import Response
from ember_jax.providers.callable import Callable
from ember_jax.testing import ChatServer, SimModel


class Shouting:
    """Answers in capitals, and refuses what holds "bad"."""

    def __init__(self):
        self.asked = collections.Counter()

    def __call__(self, request):
        prompt = request.messages[-1].content
        self.asked[prompt] += 1
        if "bad" in prompt:
            raise ember.errors.RefusedRequestError("refused", status=400)
        return Response(prompt.upper(), 3, 2, 0.125)


@pytest.fixture
def model(tmp_path):
    answers = Shouting()
    with ember.session(journal=tmp_path / "journal.db", providers={"mine": Callable(answers, cache="v1")}):
        yield answers


@pytest.fixture
def llm(model):
    return ember.LLM("mine/m")


DATA = {"question": ["a", "bad", "c\n\"'; ,é\r\n"], "level": [1, 2, 3], "gold": ["A", "BAD", "c"]}
SUFFIXES = ["jsonl", "csv"]


def read(path):
    """What a file holds, by the rows' indices; strings alone, so that all formats say the same."""
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            found = list(csv.DictReader(file))
    else:
        is_table = path.suffix == ".parquet"
        rows = files._parquet_rows(path) if is_table else map(json.loads, path.read_text().splitlines())
        found = [{n: files._cell(v) for n, v in row.items()} for row in rows]
    assert len({row["index"] for row in found}) == len(found)
    return {int(row["index"]): row for row in found}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_has_its_data_its_answer_its_score_and_why_it_failed(llm, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    result = ember.evaluate(llm, DATA, "exact", to=path)
    found = read(path)
    for i, answer in enumerate(["A", None, DATA["question"][2].upper()]):
        row = found[i]
        assert list(row) == ["index", "question", "level", "gold", "answer", "score", "failed", "failure", "run"]
        assert (row["question"], row["level"], row["gold"]) == (DATA["question"][i], str(i + 1), DATA["gold"][i])
        assert row["answer"] == (answer or "")
        assert row["score"] == ("" if math.isnan(result.scores[i]) else str(result.scores[i]))
        assert (row["failed"], row["failure"]) == ("true" if i == 1 else "false", result.causes[i])
    assert "refused" in result.causes[1] and len(found) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_kept_those_that_failed_are_asked_and_written_again_and_data_may_grow(llm, model, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    ember.evaluate(llm, DATA, "exact", to=path)
    before = read(path)
    more = {name: [*column, column[0]] for name, column in DATA.items()}
    more["question"][3] = "d"
    ember.evaluate(llm, more, "exact", to=path)
    after = read(path)
    assert {i: after[i] for i in before} == before and after.keys() == {0, 1, 2, 3} and after[3]["answer"] == "D"
    assert model.asked == {"a": 1, "bad": 2, DATA["question"][2]: 1, "d": 1}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wherever_a_file_was_torn_it_is_completed_and_what_is_whole_is_kept_as_it_stands(llm, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    data = {name: [column[0], column[2]] for name, column in DATA.items()}
    ember.evaluate(llm, data, "exact", to=path)
    whole, found = path.read_bytes(), read(path)
    head = len(files._TableFile([*found[0]]).head) if suffix == "csv" else 0
    rows = files._TableFile([*found[0]]) if suffix == "csv" else files._Lines()
    first = len(rows.rows(whole, path)[0].raw) + head
    for end in range(len(whole)):
        torn = whole[:end]
        kept = rows.rows(torn, path)
        assert len(kept) == (end >= first), end
        assert whole.startswith(rows.head + b"".join(row.raw for row in kept))
    for end in (0, 5, first - 1, first, first + 1, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:end])
        ember.evaluate(llm, data, "exact", to=path)
        assert read(path) == found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_of_another_program_are_refused_before_anything_is_asked(llm, model, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    data = [("a", "A"), ("b", "B")]
    weigh = lambda weight: lambda question: llm(ember.format("{x} {y}", x=question, y=weight))
    ember.evaluate(weigh(jnp.float32(2.5)), data, "exact", to=path)
    written, asked = path.read_bytes(), model.asked.copy()
    key = jax.random.key(0)
    for op, rows, score, kwargs, why in [
        (weigh(jnp.float32(3.5)), data, "exact", {}, "another operator"),
        (weigh("x"), data, "exact", {}, "another operator"),
        (llm, data, "exact", {}, "another operator"),
        (weigh(jnp.float32(2.5)), data, "normalized", {}, "another operator, key or score"),
        (weigh(jnp.float32(2.5)), data, "exact", {"key": key}, "another operator, key or score"),
        (weigh(jnp.float32(2.5)), [("a", "A"), ("b", "C")], "exact", {}, "other data"),
        (weigh(jnp.float32(2.5)), data[::-1], "exact", {}, "other data"),
        (weigh(jnp.float32(2.5)), data[:1], "exact", {}, "other data"),
    ]:
        with pytest.raises(ValueError, match=f"has rows of {why}.*Nothing was asked"):
            ember.evaluate(op, rows, score, to=path, **kwargs)
    assert path.read_bytes() == written and model.asked == asked
    ember.evaluate(weigh(jnp.float32(2.5)), data, "exact", to=path)
    assert path.read_bytes() == written and model.asked == asked


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("words", ["hello", "hello\n", '{"index": 1}\n', "index,question\n1,2\n", "[]\n", "\n"])
def test_a_file_of_something_else_is_left_as_it_is(llm, model, tmp_path, name, words):
    path = tmp_path / name
    path.write_text(words)
    with pytest.raises(ValueError, match=r"holds something else than rows of `evaluate`\. Nothing was asked"):
        ember.evaluate(llm, [("a", "A")], to=path)
    assert path.read_text() == words and not model.asked


def test_other_files_are_refused_before_anything_is_asked(llm, model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ends with \.jsonl, \.csv or \.parquet"):
        ember.evaluate(llm, [("a", "A")], to=tmp_path / "out.txt")
    with pytest.raises(FileNotFoundError):
        ember.evaluate(llm, [("a", "A")], to=tmp_path / "none" / "out.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        ember.evaluate(llm, [("a", "A")], to=tmp_path / "out.parquet")
    path = tmp_path / "out.jsonl"
    with open(path, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another evaluation is writing"):
            ember.evaluate(llm, [("a", "A")], to=path)
    assert not model.asked


def test_rows_are_in_the_file_while_others_are_still_asked(tmp_path):
    path, is_written = tmp_path / "out.jsonl", threading.Event()

    def answer(request):  # the second question is answered when the first one's row is in the file
        if request.messages[-1].content == "second":
            while not (path.exists() and path.read_text().endswith("\n")):
                assert not is_written.wait(0.001)
        return "x"

    with ember.session(journal=None, providers={"mine": Callable(answer)}):
        result = ember.evaluate(ember.LLM("mine/m"), [("second", "x"), ("first", "x")], to=path)
    assert result.accuracy == 1.0
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [1, 0]


class Review(NamedTuple):
    stars: jax.Array
    mood: ember.Text


def test_answers_in_fields_and_scores_of_operators_are_written_and_a_functions_are_left_empty(llm, tmp_path):
    path = tmp_path / "out.jsonl"

    def op(question):
        answer = llm(question)
        return Review(jnp.float32(jnp.nan), answer)

    ember.evaluate(op, [("a", "A")], lambda answer, gold: answer.mood == gold, to=path)
    (row,) = map(json.loads, path.read_text().splitlines())
    assert row["answer"] == {"stars": None, "mood": "A"} and row["score"] is None and not row["failed"]

    @ember.operator
    def judge(answer: ember.Text, gold: ember.Text) -> Float[jax.Array, ""]:
        return jnp.where(llm(answer) == gold, 0.5, 0.25)

    path = tmp_path / "judged.jsonl"
    result = ember.evaluate(llm, [("a", "A"), ("b", "A")], judge, to=path)
    assert result.scores.tolist() == [0.5, 0.25]
    assert {i: row["score"] for i, row in read(path).items()} == {0: "0.5", 1: "0.25"}


def test_what_cannot_be_written_is_told_at_the_end_and_the_file_has_whole_rows(llm, model, tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    write = os.write
    half = lambda file, raw: write(file, raw[: len(raw) // 2])

    def full(file, raw):
        if not raw.startswith(b'{"index'):
            raise OSError(28, "No space left on device")
        return half(file, raw)

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        ember.evaluate(llm, [("a", "A")], to=path)
    assert path.read_bytes() == b"" and model.asked == {"a": 1}
    monkeypatch.undo()
    ember.evaluate(llm, [("a", "A")], to=path)
    assert read(path)[0]["answer"] == "A" and model.asked == {"a": 1}


def test_parquet_is_complete_at_the_end_and_is_taken_up_again(llm, model, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    for _ in range(2):
        ember.evaluate(llm, DATA, "exact", to=path)
        rows = sorted(parquet.read_table(path).to_pylist(), key=lambda row: row["index"])
        assert [row["answer"] for row in rows] == ["A", None, DATA["question"][2].upper()]
        assert [row["score"] for row in rows] == [1.0, None, 0.0] and [row["level"] for row in rows] == [1, 2, 3]
        assert sorted(os.listdir(tmp_path))[-1] == "out.parquet"
    assert model.asked["a"] == 1
    with pytest.raises(ValueError, match="another operator"):
        ember.evaluate(llm, DATA, "normalized", to=path)
    assert len(parquet.read_table(path)) == 3


# -- kills -----------------------------------------------------------------------------------------------------------

_CLIENT = """
import sys
import ember_jax as ember
url, journal, to, rows = sys.argv[1:]
llm = ember.LLM("openai/model", temperature=0.5)
op = lambda question: llm(ember.format("What is {x} + 1?", x=llm(question)))
data = [(f"What is {i} * 7?", str(7 * i + 1)) for i in range(int(rows))]
with ember.session(journal=journal, providers={"openai": ember.providers.OpenAI(url, api_key="")}):
    ember.evaluate(op, data, "number", to=to)
"""


@pytest.mark.parametrize("suffix", [*SUFFIXES, "parquet"])
def test_kills_leave_each_row_once_and_what_stood_there_whole_stays(tmp_path, suffix):
    if is_parquet := suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows, kills = 150, 3
    path, moments = tmp_path / f"out.{suffix}", sorted(random.Random(suffix).sample(range(20, 130), kills))
    grows = path.with_name(f"{path.name}.part") if is_parquet else path
    before: dict[int, dict[str, str]] = {}
    with ChatServer(SimModel(accuracy=1.0), latency=0.01) as server:
        command = [sys.executable, "-c", _CLIENT, server.base_url, tmp_path / "journal.db", path, rows]
        for moment in (*moments, None):
            process = subprocess.Popen(list(map(str, command)))
            if moment is not None:
                _wait(process, lambda moment=moment: grows.exists() and grows.read_bytes().count(b"\n") >= moment)
                process.send_signal(signal.SIGKILL)
            assert process.wait(120) == (0 if moment is None else -signal.SIGKILL)
            is_over = moment is None
            assert not is_parquet or (path.exists(), grows.exists()) == (is_over, not is_over)
            found = read(path) if is_parquet and is_over else _whole(grows)
            assert before.items() <= found.items()
            before = found
        asked = collections.Counter(request.body["messages"][-1]["content"] for request in server.requests)
    assert before.keys() == set(range(rows))
    assert all(row["answer"] == str(7 * i + 1) and row["score"] == "1.0" for i, row in before.items())
    assert len(asked) == 2 * rows and sum(asked.values()) <= 2 * rows + kills * rows


def _whole(path: Path) -> dict[int, dict[str, str]]:
    """The whole rows of a file that may be torn."""
    raw = path.read_bytes()
    path = path.with_name(f"whole{'.csv' if path.suffix == '.csv' else '.jsonl'}")
    path.write_bytes(raw[: raw.rfind(b"\n") + 1])
    return read(path)


def _wait(process: subprocess.Popen[bytes], is_so) -> None:
    while not is_so():
        assert process.poll() is None, "the client ended before it was killed"
        time.sleep(0.0005)
