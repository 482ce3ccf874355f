"""The journal: what was answered is kept, whatever happens to the process, and is not paid for twice."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import _cli, errors, testing
from ember_jax._runtime import session as sessions
from ember_jax._runtime.journal import columns, file, place, stats, tables
from ember_jax._runtime.journal.base import Entry
from ember_jax._runtime.journal.memory import MemoryJournal, NoJournal
from ember_jax._text.store import digest_of
from ember_jax.providers.base import Finish, Message, Request, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI

_HANG = 60.0
NEWER = columns.VERSION + 1
PACKAGE = Path(ember.__file__).parent
JOURNALS = {
    "memory": lambda folder: MemoryJournal(),
    "none": lambda folder: NoJournal(),
    "sqlite": lambda folder: ember.Journal(folder / "journal.db"),
}


def on_loop(coroutine):
    return sessions.loop().submit(coroutine).result(_HANG)


async def gathered(*coroutines):
    return await asyncio.gather(*coroutines, return_exceptions=True)


def entry(prompt, answer=None, **fields):
    request = Request("local", "small", (Message("user", prompt),))
    fields = {"cost": 0.25, "logprob": -0.5, **fields}  # by default they are NaN, which equals nothing
    return request.digest(), Entry(request, Response(prompt.upper() if answer is None else answer, **fields))


def put_all(journal, entries):
    return on_loop(gathered(*(journal.put(*e) for e in entries)))


def rows(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        return dict(connection.execute("select digest, answer from calls"))


@pytest.fixture(params=JOURNALS)
def journal(request, tmp_path):
    made = JOURNALS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def kept(path):
    """A journal in a file."""
    made = ember.Journal(path)
    yield made
    made.close()


# -- the contract of every journal -----------------------------------------------------------------------------------


def test_what_was_put_is_answered(journal):
    digest, one = entry("one")
    assert on_loop(journal.ready(digest)) is None and journal.get(digest) is None
    assert on_loop(journal.put(digest, one)) == one.response
    assert journal.get(digest) == (None if isinstance(journal, NoJournal) else one.response)
    assert on_loop(journal.ready(digest)) is None


def test_the_first_answer_stays_and_is_what_a_second_one_is_told(journal):
    (digest, one), (_, two) = entry("one"), entry("one", "two")
    first, second = put_all(journal, [(digest, one), (digest, two)])
    expected = two.response if isinstance(journal, NoJournal) else one.response
    assert (first, second) == (one.response, expected)


def test_many_are_put_at_once(journal):
    entries = [entry(f"prompt {i}") for i in range(3000)]
    assert put_all(journal, entries) == [e.response for _, e in entries]
    if not isinstance(journal, NoJournal):
        assert [journal.get(d) for d, _ in entries] == [e.response for _, e in entries]


def test_a_closed_journal_may_be_used_again(journal):
    digest, one = entry("one")
    on_loop(journal.put(digest, one))
    journal.close()
    journal.close()
    assert journal.get(digest) == (None if isinstance(journal, NoJournal) else one.response)


def test_an_unknown_price_stays_unknown(journal):
    digest, one = entry("one", cost=math.nan, logprob=math.nan)
    on_loop(journal.put(digest, one))
    if found := journal.get(digest):
        assert math.isnan(found.cost) and math.isnan(found.logprob)


numbers = st.floats(allow_nan=False, allow_subnormal=False)  # SQLite takes one for 0 where XLA has set the processor to
counts = st.integers(0, 2**63 - 1)
responses = st.builds(
    Response,
    st.text(),
    counts,
    counts,
    numbers,
    numbers,
    st.text(),
    st.text(),
    st.lists(st.tuples(st.text(), numbers)).map(tuple),
    st.sampled_from(Finish),
    st.text(),
    counts,
    counts,
    counts,
    st.text(),
    st.text(),
    quota=st.none(),  # it is of the moment, and not kept
    answers=st.just(()),  # each is kept by itself
)


@given(st.lists(st.tuples(st.integers(0, 5), responses)))
def test_journals_are_dictionaries_that_keep_the_first_value(puts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        kept, model = [MemoryJournal(), ember.Journal(path)], {}
        for i, response in puts:
            digest, request = bytes([i]) * 32, Request("p", "m", (Message("user", str(i)),))
            model.setdefault(digest, response)
            for journal in kept:
                assert on_loop(journal.put(digest, Entry(request, response))) == model[digest]
        for journal in kept:
            journal.close()
            for i in range(7):
                assert journal.get(bytes([i]) * 32) == model.get(bytes([i]) * 32)
            journal.close()
        assert rows(path) == {digest: response.text for digest, response in model.items()}


@given(st.text(st.characters(codec=None, categories=["Cs", "Ll"]), min_size=1), st.integers())
def test_what_a_provider_may_say_spoils_nobody_elses_row(words, number):
    with tempfile.TemporaryDirectory() as folder:
        kept = ember.Journal(Path(folder) / "journal.db")
        wordy = entry("odd text", words)
        odd = entry("odd", "fine", input_tokens=number, model=words, request_id=words)
        outcomes = put_all(kept, [entry("a"), odd, wordy, entry("b")])
        kept.close()
        assert (outcomes[0].text, outcomes[1].text, outcomes[3].text) == ("A", "fine", "B")
        assert outcomes[2] == wordy[1].response or isinstance(outcomes[2], errors.TextError)


# -- sessions --------------------------------------------------------------------------------------------------------


LLM = ember.LLM("openai/small", temperature=0.5)
ask = ember.jit(lambda prompt: LLM(prompt))
PROMPTS = ember.text([f"What is {i} + {i}?" for i in range(20)])


@pytest.fixture(scope="module")
def server():
    with testing.ChatServer() as running:
        yield running


def sweep(server, prompts=PROMPTS, key="", **settings):
    with ember.session(providers={"openai": OpenAI(base_url=server.base_url, api_key=key)}, **settings) as run:
        answers = jax.vmap(ask)(prompts).tolist()
    return answers, run.report()


def test_the_second_run_asks_nothing(server, path):
    first, report = sweep(server, journal=path)
    assert (report.requests, report.replayed) == (20, 0)
    own = ember.Journal(path)
    for again in (path, str(path), own):
        second, report = sweep(server, journal=again)
        assert second == first
        assert (report.calls, report.requests, report.replayed, report.cost_usd) == (20, 0, 20, 0)
    own.close()
    longer = ember.text([*PROMPTS.tolist(), "What is 7 + 8?"])
    assert sweep(server, longer, journal=path)[1].requests == 1
    assert sweep(server, journal=None)[1].requests == 20


def test_answers_are_those_of_one_endpoint(server, path):
    sweep(server, journal=path)
    with testing.ChatServer() as other:
        assert sweep(other, journal=path)[1].requests == 20


def test_samples_are_kept_by_their_keys(server, path):
    keys = jax.random.split(jax.random.key(0), 4)
    for requests in (1, 0):  # one request, which asks for four
        with ember.session(providers={"openai": OpenAI(base_url=server.base_url, api_key="")}, journal=path) as run:
            jax.vmap(ember.jit(lambda key: LLM("one", key)))(keys)
        assert run.report().requests == requests
    assert ember.Journal(path).stats().calls == 4


def test_a_row_says_what_was_asked_and_answered_by_whom_when_and_for_how_much(path, capsys):
    again = testing.Fault(status=500, headers={"retry-after": "0"})
    llm = ember.LLM("openai/gpt-4o-mini", system="Be short.", temperature=0.5)
    before = time.time()
    with testing.ChatServer(faults=[again]) as server:
        with ember.session(providers={"openai": OpenAI(base_url=server.base_url, api_key="k")}, journal=path):
            answer = llm.complete("What is 2 + 3?")
            cost, tokens = float(answer.cost), (int(answer.input_tokens), int(answer.output_tokens))
        after = time.time()
        _cli.main(["journal", "export", "--path", str(path)])
        (line,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert line["endpoint"] == server.base_url
    assert line["model"] == "openai/gpt-4o-mini" and line["answered_by"] == "gpt-4o-mini"
    assert line["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is 2 + 3?"},
    ]
    assert line["parameters"] == {"temperature": 0.5} and line["sample"] is None
    assert line["answer"] == str(answer.text) and line["request_id"] == "req-1"
    assert np.float32(line["cost_usd"]) == np.float32(cost) and cost > 0
    assert (line["input_tokens"], line["output_tokens"]) == tokens
    assert line["attempts"] == 2 and before <= line["began"] <= line["ended"] <= after


def test_a_function_of_python_is_kept_under_its_cache(path):
    made = []
    fn = ember.host(lambda word: made.append(word) or word + "é\0", out=ember.Text, cache="echo:v1")
    for _ in range(2):
        with ember.session(journal=path):
            assert str(ember.jit(fn)(ember.text("a"))) == "aé\0"
    assert made == ["a"] and [m.split("/")[0] for m in ember.Journal(path).stats().models] == ["host"]


def test_words_lie_in_the_file_once(path):
    long = "All of it. " * 1000
    llm = ember.LLM("openai/m", system=long)
    with ember.session(providers={"openai": Callable(lambda request: "yes")}, journal=path):
        jax.vmap(ember.jit(lambda prompt: llm(prompt)))(PROMPTS)
    raw = path.read_bytes()
    assert raw.count(b"All of it. " * 50) < 30 and ember.Journal(path).stats().texts == 21


def test_virtual_time_stands_still_while_an_answer_is_committed(path):
    async def answer(request):
        await asyncio.sleep(1)
        return "yes"

    async def wait(word, seconds):
        await asyncio.sleep(seconds)
        return asyncio.get_running_loop().time()

    when = ember.host(wait, jax.ShapeDtypeStruct((), np.float32))
    with testing.VirtualClock(), ember.session(providers={"openai": Callable(answer)}, journal=path):
        times = ember.jit(lambda prompt: (when(LLM(prompt), 0.0), when(prompt, 1000.0)))(ember.text("one"))
        assert tuple(map(float, times)) == (1, 1000)
    assert ember.Journal(path).stats().calls == 1


# -- the user's own journal ------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Where the user's own journal is."""
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "data" / "own.db"))
    return tmp_path / "data" / "own.db"


def test_the_users_own_journal_keeps_what_services_answer(server, own):
    assert [sweep(server)[1].requests for _ in range(2)] == [20, 0]
    assert ember.Journal(own).stats().models == {"openai/small": 20}


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
def test_simulated_models_and_functions_are_kept_by_the_session_alone(own):
    for _ in range(2):
        with ember.session(providers={"openai": Callable(lambda request: "yes")}) as run:
            for _ in range(2):
                jax.vmap(ask)(PROMPTS)
                str(ember.LLM("sim/small")("What is 1 + 1?"))
        assert (run.report().requests, run.report().replayed) == (21, 21)
    assert not own.exists()


def test_a_function_is_kept_when_it_is_told_and_a_named_journal_keeps_all(own, path):
    for cache, journal, again in (("yes:v1", {}, 0), ("yes:v2", {}, 0), (None, {"journal": path}, 0), (None, {}, 20)):
        for requests in (20, again):
            with ember.session(providers={"openai": Callable(lambda request: "yes", cache)}, **journal) as run:
                jax.vmap(ask)(PROMPTS)
            assert run.report().requests == requests
    assert (ember.Journal(own).stats().calls, ember.Journal(path).stats().calls) == (40, 20)


@pytest.mark.parametrize(("value", "replayed"), [("off", 0), ("memory", 20)])
def test_the_environment_turns_the_journal_off(server, monkeypatch, value, replayed):
    monkeypatch.setenv(place.VARIABLE, value)
    with ember.session(providers={"openai": OpenAI(base_url=server.base_url, api_key="")}) as run:
        for _ in range(2):
            jax.vmap(ask)(PROMPTS)
    assert run.report().replayed == replayed


@pytest.mark.parametrize(("journal", "replayed"), [("off", 0), (None, 0), ("memory", 20)])
def test_a_session_takes_the_words_of_the_environment(server, tmp_path, monkeypatch, journal, replayed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "own.db"))
    with ember.session(providers={"openai": OpenAI(server.base_url, api_key="")}, journal=journal) as run:
        for _ in range(2):
            jax.vmap(ask)(PROMPTS)
    assert run.report().replayed == replayed and not list(tmp_path.iterdir())


def test_a_file_may_have_the_name_of_such_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("./memory", tmp_path / "off", Path("memory")):
        with ember.session(journal=name):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"memory", "off"}


def test_it_lies_in_the_users_data_folder_and_needs_no_session_and_no_orderly_end(server, tmp_path):
    script = f"""
        import os, ember_jax as ember
        print(os.path.exists({str(tmp_path / "ember_jax")!r}))
        ember.register("openai", ember.providers.OpenAI(base_url={server.base_url!r}, api_key=""))
        print(ember.LLM("openai/gpt-4o-mini")("What is 1 + 2?"))
    """
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), place.VARIABLE: ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=_HANG,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.splitlines()[0] == "False"
    (folder,) = tmp_path.iterdir()
    assert [f.name for f in folder.iterdir()] == ["journal.db"]  # its log was put into it at the end
    assert list(rows(folder / "journal.db").values()) == done.stdout.splitlines()[1:]


def test_the_file_is_its_owners_alone(tmp_path):
    kept = ember.Journal(tmp_path / "a" / "b" / "journal.db")
    put_all(kept, [entry("one")])
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in kept.path.parent.iterdir()}
    assert modes == dict.fromkeys(("journal.db", "journal.db-wal", "journal.db-shm"), 0o600)
    assert stat.S_IMODE(kept.path.parent.stat().st_mode) == 0o700
    kept.close()


def test_no_credential_is_in_the_file(path, monkeypatch):
    key = "sk-marked-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with testing.ChatServer(api_key=key) as server:
        sweep(server, key=key, journal=path)
        sweep(server, key=None, journal=path, prompts=ember.text(["one"]))
        with pytest.raises(errors.SweepError):
            sweep(server, key=key + "-wrong", journal=path, prompts=ember.text(["two", "three"]))
        kept = ember.Journal(path)
        kept.get(bytes(32))  # its log lies beside it
        assert not [f.name for f in path.parent.iterdir() if b"marked" in f.read_bytes()]
        kept.close()


# -- whatever happens to the process ---------------------------------------------------------------------------------

# Imports what the journal needs, and not JAX, which takes seconds. So two packages are there without what they import.
_LIGHT = f"""
import asyncio, os, sys, types
for name, path in ("ember_jax", {str(PACKAGE)!r}), ("ember_jax.providers", {str(PACKAGE / "providers")!r}):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [path]
from ember_jax.errors import *
from ember_jax.providers.base import Finish, Message, Request, Response
from ember_jax._runtime.journal.base import Entry
from ember_jax._runtime.journal.sqlite import Journal
assert "jax" not in sys.modules

def entry(prompt, answer):
    request = Request("local", "small", (Message("user", prompt),))
    return request.digest(), Entry(request, Response(answer, cost=0.25, logprob=-0.5))
"""


def child(script, *arguments, light=True, **settings):
    code = (_LIGHT if light else "") + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **settings)


def test_several_processes_share_a_file(kept):
    script = """
        async def main():
            journal, me = Journal(sys.argv[1]), sys.argv[2]
            for i in range(0, 300, 10):
                mine = [entry(f"prompt {j}", f"{me} {j}") for j in range(i, i + 10)] + [entry(f"{me} {i}", me)]
                told = await asyncio.gather(*(journal.put(*e) for e in mine))
                assert told == [journal.get(digest) for digest, _ in mine]
            journal.close()
        asyncio.run(main())
    """
    running = [child(script, kept.path, me) for me in "abc"]
    digest, _ = entry("prompt 290")
    while kept.get(digest) is None:  # also what others write is seen, at once
        assert any(r.poll() is None for r in running) or kept.get(digest)
        time.sleep(0.01)
    assert [r.wait(_HANG) for r in running] == [0, 0, 0]
    assert len(rows(kept.path)) == 300 + 3 * 30
    assert all(kept.get(entry(f"{me} {i}")[0]).text == me for me in "abc" for i in range(0, 300, 10))


def torn(path, log_index, draws):
    """Cuts a log as a power cut may: of what was written since the last sync any part is lost, or is not what it was.

    The index beside a log says how many pages have been, or are being, copied into the file: those were synced before.
    """
    synced = struct.unpack_from("=I", log_index.read_bytes(), 128)[0]
    log = Path(f"{path}-wal")
    size = log.stat().st_size
    least = min(size, 32 + synced * (24 + 4096))  # a header, and frames of a header and a page
    with open(log, "r+b") as file:
        file.truncate(int(draws.integers(least, size + 1)))
        if draws.random() < 0.5:
            file.truncate(size)  # the length was known to the disk, and what lies there was not
        if draws.random() < 0.5 and least < size:
            file.seek(int(draws.integers(least, size)))
            file.write(draws.bytes(5000))


def whole(path):
    """The answers in a file, by the digests of what was asked, which must be those of the rows."""
    ember.Journal(path).check()
    query = "select id, digest, provider, model, parameters, sample, endpoint, answer, answer_digest from calls"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("pragma foreign_key_check").fetchall() == []
        texts = {
            key: (digest, words) for key, digest, words in connection.execute("select id, digest, words from texts")
        }
        messages = collections.defaultdict(list)
        for call, role, text in connection.execute("select call, role, text from messages order by call, position"):
            messages[call].append(Message(role, texts[text][1]))
        found = {}
        for key, digest, provider, model, parameters, sample, endpoint, answer, said in connection.execute(query):
            asked = Request(provider, model, tuple(messages.pop(key)), json.loads(parameters), sample)
            assert asked.digest(endpoint) == digest
            assert digest_of(answer) == said
            found[digest] = answer
    assert not messages and all(digest_of(words) == digest for digest, words in texts.values())
    return found


def test_copies_of_the_file_at_random_moments_are_whole_also_after_a_power_cut(path, tmp_path):
    script = """
        from ember_jax._runtime.journal import file
        file._LOG_PAGES = 50  # the log is often copied into the file, and begun anew

        def entry(i, j):
            messages = Message("system", f"Be {j}."), Message("user", f"{i} {j}")
            request = Request("local", "small", messages, {"temperature": 0.5}, f"{i:016x}")
            return request.digest("http://here"), Entry(request, Response("é" * (i % 3000)), "http://here")

        async def main():
            journal = Journal(sys.argv[1])
            for i in range(100_000):
                await asyncio.gather(*(journal.put(*entry(i, j)) for j in range(3)))
                os.write(1, b".")
        asyncio.run(main())
    """
    running = child(script, path, stdout=subprocess.PIPE, bufsize=0)
    try:
        acknowledged, draws, copies = 0, np.random.default_rng(0), []
        for i in range(15):
            acknowledged += len(running.stdout.read(int(draws.integers(1, 60))))
            running.send_signal(signal.SIGSTOP)
            os.waitpid(running.pid, os.WUNTRACED)
            folder = tmp_path / f"copy {i}"
            folder.mkdir()
            for suffix in ("", "-wal", "-shm"):
                shutil.copy(f"{path}{suffix}", folder)
            running.send_signal(signal.SIGCONT)
            copy, is_torn = folder / path.name, i % 3 == 2
            index = Path(f"{copy}-shm").rename(folder / "index") if i % 3 else None
            if is_torn:
                torn(copy, index, draws)
            copies.append((copy, 0 if is_torn else acknowledged))
    finally:
        running.kill()
        running.communicate()
    everything = whole(path)
    assert len(everything) >= 3 * acknowledged
    for copy, least in copies:
        found = whole(copy)
        assert len(found) >= 3 * least and found.items() <= everything.items()


def test_a_forked_process_opens_the_file_anew(path):
    script = """
        def put(prompt):
            return asyncio.run(journal.put(*entry(prompt, "yes")))
        journal = Journal(sys.argv[1])
        put("parent")
        if os.fork() == 0:
            put("child")
            assert journal.get(entry("parent", "")[0])
            journal.close()
            os._exit(0)
        assert os.wait()[1] == 0
        put("parent again")
        assert journal.get(entry("child", "")[0])
        journal.close()
    """
    assert child(script, path).wait(_HANG) == 0
    assert len(rows(path)) == 3


# -- what cannot be used ---------------------------------------------------------------------------------------------


def database(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def filled(path, count=200):
    kept = ember.Journal(path)
    entries = [entry(f"prompt {i}", "é" * i) for i in range(count)]
    put_all(kept, entries)
    kept.close()
    return entries


def cut(path, size):
    filled(path)
    os.truncate(path, size if size > 0 else path.stat().st_size + size)


BROKEN = {
    "text": (lambda path: path.write_text("prompt,answer\n" * 1000), "not a SQLite file"),
    "a few bytes": (lambda path: path.write_bytes(b"SQLite"), "not a SQLite file"),
    "another program's": (lambda path: database(path, "create table calls (id)"), "another program's"),
    "another program's, empty": (lambda path: database(path, "pragma application_id = 7"), "another program's"),
    "newer": (
        lambda path: filled(path) and database(path, f"pragma user_version = {NEWER}"),
        f"version {NEWER}.*Upgrade",
    ),
    "older": (lambda path: filled(path) and database(path, "pragma user_version = 1"), "version 1.*that wrote it"),
    "cut to a header": (lambda path: cut(path, 100), "damaged"),
    "cut to some pages": (lambda path: cut(path, 3 * 4096), "damaged"),
    "cut within a page": (lambda path: cut(path, -1), "damaged"),
    "cut in the middle": (lambda path: cut(path, -50_000), "damaged"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_is_no_journal_is_left_as_it_is(path, how):
    breaks, message = BROKEN[how]
    breaks(path)
    before = path.read_bytes()
    for use in (
        lambda: ember.session(journal=path),
        lambda: ember.session(journal=str(path)),
        lambda: ember.Journal(path).stats(),
        lambda: ember.Journal(path).get(bytes(32)),
        lambda: on_loop(ember.Journal(path).put(*entry("one"))),
    ):
        with pytest.raises(errors.JournalFileError, match=message) as raised:
            use()
        assert str(path) in str(raised.value)
    assert path.read_bytes() == before


def test_a_log_without_its_file_is_not_dropped(path):
    kept = ember.Journal(path)
    put_all(kept, [entry("one")])
    log = Path(f"{path}-wal").read_bytes()
    copy = path.parent / "copy.db"
    copy.touch()
    Path(f"{copy}-wal").write_bytes(log)
    kept.close()
    with pytest.raises(errors.JournalFileError, match="lost the file"):
        ember.session(journal=copy)
    assert Path(f"{copy}-wal").read_bytes() == log


def test_a_changed_answer_is_an_error_and_not_an_answer(path):
    (digest, _), *_ = filled(path)
    database(path, "update calls set answer = 'changed'")
    kept = ember.Journal(path)
    with pytest.raises(errors.JournalFileError, match="are not those it had"):
        kept.get(digest)
    kept.close()


def test_damage_that_is_met_while_it_is_used_stops_the_sweep(path):
    filled(path)
    kept = ember.Journal(path)
    kept.get(bytes(32))
    with open(path, "r+b") as file:
        file.write(os.urandom(path.stat().st_size))
    with pytest.raises(errors.JournalFileError, match=r"damaged|not a SQLite"):
        for i in range(200):
            kept.get(entry(f"prompt {i}")[0])
    kept.close()


def test_an_empty_file_becomes_a_journal(path):
    path.touch(0o600)
    filled(path)
    assert len(rows(path)) == 200


@pytest.mark.parametrize("name", ["file/journal.db", "folder"])
def test_a_path_that_cannot_be_a_file_is_an_error(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.JournalWriteError, match=r"cannot be used.*EMBER_JAX_JOURNAL"):
        ember.session(journal=tmp_path / name)


def test_a_folder_that_is_read_only_is_an_error():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        script = """
            if os.getuid() == 0:
                os.setuid(65534)  # nobody; root may write everywhere
            try:
                Journal(sys.argv[1]).check()
            except JournalWriteError as error:
                print(error)
        """
        out, _ = child(script, Path(folder) / "journal.db", stdout=subprocess.PIPE).communicate(timeout=_HANG)
        assert "cannot be used: Permission denied" in out


def test_a_missing_journal_has_no_stats(path):
    with pytest.raises(errors.JournalFileError, match="there is no journal"):
        ember.Journal(path).stats()
    assert not path.exists()


def test_a_file_that_another_process_holds_is_an_error_in_the_end(path, monkeypatch):
    filled(path)
    monkeypatch.setattr(file, "_PATIENCE", 0.05)
    kept = ember.Journal(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(errors.JournalWriteError, match="another process has held"):
            on_loop(kept.put(*entry("one")))
        other.execute("rollback")
    digest, two = entry("two")
    on_loop(kept.put(digest, two))
    assert kept.get(entry("one")[0]).text == "ONE"  # it was held, and went first
    kept.close()


def test_a_file_that_is_deleted_while_it_is_used_is_an_error(kept):
    put_all(kept, [entry("one")])
    kept.path.unlink()
    with pytest.raises(errors.JournalWriteError, match="moved or deleted"):
        on_loop(kept.put(*entry("two")))


# -- a full disk -----------------------------------------------------------------------------------------------------


def pages(kept, most):
    """Lets the file grow to so many pages; 1 is as many as it has."""
    kept._handles.opened().writer._connection.execute(f"pragma max_page_count = {most}").fetchone()


def test_a_full_disk_stops_the_sweep_keeps_what_was_answered_and_goes_on_when_there_is_room(kept):
    asked = []

    def answer(request):
        asked.append(request.messages[-1].content)
        return asked[-1] * 100

    prompts = [f"prompt number {i}" for i in range(100)]
    with ember.session(journal=kept, providers={"openai": Callable(answer)}) as run:
        jax.vmap(ask)(ember.text(prompts[:20]))
        pages(kept, 1)
        with pytest.raises(errors.SweepError, match="the disk is full") as raised:
            jax.vmap(ember.jit(lambda p: LLM(LLM(p))))(ember.text(prompts[20:]))
        assert {type(f.cause) for f in raised.value.failures} == {errors.JournalWriteError}
        with pytest.raises(errors.JournalWriteError, match="No further call is made"):
            ask(ember.text("another"))
        assert "another" not in asked and len(asked) == len(set(asked))
        assert jax.vmap(ask)(ember.text(prompts[:20])).tolist() == [p * 100 for p in prompts[:20]]  # replays go on
        paid = len(asked)
        pages(kept, 1 << 20)
        jax.vmap(ask)(ember.text(prompts))  # what could not be kept then is kept now, and not asked again
        assert set(asked) >= set(prompts) and len(asked) == len(set(asked)) and paid <= len(asked)
    assert run.report().requests == len(asked)
    assert len(rows(kept.path)) == len(asked)


def test_a_full_disk_loses_no_answer_that_was_committed(path):
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        async def main():
            journal = Journal(sys.argv[1])
            for i in range(100_000):
                await journal.put(*entry(str(i), "x" * 1000))
                os.write(1, b".")
        try:
            asyncio.run(main())
        except JournalWriteError as error:
            sys.exit(str(error))
    """
    running = child(script, path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = running.communicate(timeout=_HANG)
    assert running.returncode == 1 and str(path) in err
    assert len(rows(path)) == len(out) > 10


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(path, capsys):
    kept = ember.Journal(path)
    for i, (model, age) in enumerate(itertools.product(("small", "large"), (0, 10, 100))):
        request = Request("local", model, (Message("system", "Be short."), Message("user", f"prompt\n{i}")))
        ended = time.time() - age * 86400
        response = Response(f"answer {i}", 10, 2, 0.5 if i else math.nan, request_id=f"req-{i}")
        on_loop(kept.put(request.digest(), Entry(request, response, "http://here/v1", ended - 1, ended, 1)))
    kept.close()

    def run(action, *arguments):
        _cli.main(["journal", action, "--path", str(path), *arguments])
        return capsys.readouterr().out

    return run


def test_stats_count_what_is_kept(command, path):
    out, stats = command("stats"), ember.Journal(path).stats()
    assert (stats.calls, stats.input_tokens, stats.output_tokens, stats.cost_usd, stats.unpriced) == (6, 60, 12, 2.5, 1)
    assert stats.models == {"local/large": 3, "local/small": 3} and stats.texts == 1 + 6
    assert stats.newest - stats.oldest == pytest.approx(100 * 86400, abs=10)
    assert stats.bytes == path.stat().st_size
    for shown in (str(path), "$2.500000", "local/large", columns.moment(stats.oldest)):
        assert shown in out


def test_list_shows_calls_by_model_date_and_words_and_prompts_only_if_asked(command):
    lines = command("list").splitlines()
    assert len(lines) == 6 and not any("prompt" in line or "answer" in line for line in lines)
    assert len(command("list", "--model", "local/small").splitlines()) == 3
    yesterday = time.strftime("%Y-%m-%d", time.localtime(time.time() - 86400))
    assert len(command("list", "--since", yesterday).splitlines()) == 2
    assert len(command("list", "--contains", "answer 3").splitlines()) == 1
    assert "user: prompt 3" in command("list", "--contains", "prompt\n3", "--prompts")
    assert command("list", "--contains", "nowhere") == ""


def test_show_tells_one_call_in_full(command):
    digest = command("list", "--contains", "answer 4").split()[0]
    out = command("show", digest)
    for shown in ("-- system\nBe short.", "-- user\nprompt\n4", "-- answer\nanswer 4", "req-4", "http://here/v1"):
        assert shown in out
    for wrong, message in (("0" * 64, "no call"), ("", "not the beginning")):
        with pytest.raises(SystemExit, match=message if wrong else "2"):
            command("show", wrong)


def test_export_writes_lines_of_json_to_a_private_file_that_is_new(command, tmp_path):
    out = command("export", "--model", "local/large")
    assert [json.loads(line)["answer"] for line in out.splitlines()] == ["answer 3", "answer 4", "answer 5"]
    file = tmp_path / "out.jsonl"
    command("export", "--model", "local/large", "--out", str(file))
    assert file.read_text() == out and stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(SystemExit, match="exists"):
        command("export", "--out", str(file))


def test_prune_says_what_it_would_delete_and_deletes_when_told(command, path):
    with pytest.raises(SystemExit, match="say which"):
        command("prune")
    for arguments, left, texts in (
        (("--older-than", "30d"), 4, 5),
        (("--model", "local/large", "--older-than", "24h"), 3, 4),
        (("--model", "local/small"), 1, 2),
    ):
        before = len(rows(path))
        assert f"{before - left} calls would be deleted" in command("prune", *arguments)
        assert len(rows(path)) == before
        assert f"{before - left} calls were deleted" in command("prune", *arguments, "--yes")
        assert (len(rows(path)), ember.Journal(path).stats().texts) == (left, texts)


def test_commands_refuse_what_is_no_journal(tmp_path):
    with pytest.raises(SystemExit, match="there is no journal"):
        _cli.main(["journal", "stats", "--path", str(tmp_path / "none.db")])
    (tmp_path / "text").write_text("text" * 1000)
    for action in ("stats", "list", "export"):
        with pytest.raises(SystemExit, match="not a SQLite file"):
            _cli.main(["journal", action, "--path", str(tmp_path / "text")])
    assert dataclasses.is_dataclass(stats.Stats)


# -- files of an earlier version -------------------------------------------------------------------------------------

VERSION_2 = """
create table texts (id integer primary key, digest blob not null unique, words text not null);
create table calls (id integer primary key, digest blob not null unique, provider text not null, endpoint text not null,
    model text not null, parameters text not null, sample text, answer text not null, answer_digest blob not null,
    answered_by text not null, request_id text not null, input_tokens integer not null, output_tokens integer not null,
    cost real, logprob real, alternatives text not null, began real not null, ended real not null,
    attempts integer not null, lane text not null, scope text not null);
create table messages (call integer not null references calls, position integer not null, role text not null,
    text integer not null references texts, primary key (call, position)) without rowid;
pragma application_id = 0x656d6272;
pragma user_version = 2;
pragma journal_mode = wal;
"""


def request_2(i):
    return Request("openai", "m", (Message("system", "Be brief."), Message("user", f"prompt {i}")), {"top_p": 0.5})


def answer_2(i):
    return "" if i % 100 == 7 else f"answer {i}, é"


def version_2(path, count):
    """A file as version 2 has written it, with so many calls."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(VERSION_2)
        connection.execute("begin")
        system = "Be brief."
        connection.execute("insert into texts values (1, ?, ?)", (digest_of(system), system))
        for i in range(count):
            request, answer = request_2(i), answer_2(i)
            words = request.messages[1].content
            cost = None if i % 3 == 0 else i / 1000
            alternatives = '[["a", -0.5]]' if i % 2 else ""
            row = (i + 1, request.digest("http://host/v1"), "openai", "http://host/v1", "m", '{"top_p": 0.5}', None)
            row += (answer, digest_of(answer), "m-1", f"req-{i}", i, 2 * i, cost, -0.25, alternatives, 1.0, 2.0, 1)
            connection.execute(f"insert into calls values ({', '.join('?' * 21)})", (*row, f"{i},", "Op"))
            connection.execute("insert into texts values (?, ?, ?)", (i + 2, digest_of(words), words))
            connection.execute(
                "insert into messages values (?, 0, 'system', 1), (?, 1, 'user', ?)", (i + 1, i + 1, i + 2)
            )
        connection.execute("commit")


def content(path):
    """The version of a file, and the rows of its tables, of the calls what version 2 has of them."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        found = [connection.execute(f"select * from {name} order by 1, 2").fetchall() for name in ("texts", "messages")]
        calls = connection.execute("select * from calls order by id").fetchall()
        return connection.execute("pragma user_version").fetchone()[0], *found, [row[:21] for row in calls]


def test_a_file_of_version_2_becomes_one_of_this_version_in_place(path):
    count = 10_000
    version_2(path, count)
    version, *before = content(path)
    identity = path.stat().st_ino
    with ember.session(journal=path):
        pass
    now, *after = content(path)
    assert (version, now) == (2, columns.VERSION) and after == before and len(after[2]) == count
    assert path.stat().st_ino == identity
    kept = ember.Journal(path)
    assert (kept.stats().calls, len(kept.calls())) == (count, count)
    for i in range(count):
        found = kept.get(request_2(i).digest("http://host/v1"))
        assert (found.text, found.model, found.request_id) == (answer_2(i), "m-1", f"req-{i}")
        assert (found.input_tokens, found.output_tokens, found.logprob) == (i, 2 * i, -0.25)
        assert math.isnan(found.cost) if i % 3 == 0 else found.cost == i / 1000
        assert found.alternatives == ((("a", -0.5),) if i % 2 else ())
        # How it ended is not known; but an empty text was replayed as an answer, and still is.
        assert found.finish == (Finish.OTHER if found.text else Finish.STOP) and found.is_answer
        assert found.tokens == (i, 2 * i, 0, 0, 0, 0)
    kept.close()
    (call,) = ember.Journal(path).calls(contains=f"prompt {count - 1}")
    assert (call.messages, call.lane, call.scope) == (request_2(count - 1).messages, (count - 1,), "Op")
    assert (call.reasoning, call.service_tier, call.fingerprint, call.row()["finish"]) == ("", "", "", "other")


def test_an_answer_of_version_2_is_replayed_and_new_ones_join_it(path):
    version_2(path, 10)
    with testing.ChatServer(faults=[testing.Fault(status=500)]) as server:
        endpoint = server.base_url
        database(path, f"update calls set endpoint = '{endpoint}'")
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            moved = [(request_2(i).digest(endpoint), i + 1) for i in range(10)]
            connection.executemany("update calls set digest = ? where id = ?", moved)
        llm = ember.LLM("openai/m", system="Be brief.", top_p=0.5)
        database(path, "update calls set answered_by = 'm'")
        settings = {"providers": {"openai": OpenAI(endpoint, api_key="")}, "retry": ember.Retry(first=0.0)}
        with ember.session(journal=path, **settings) as run:
            assert [str(llm(f"prompt {i}")) for i in range(10)] == [answer_2(i) for i in range(10)]
            assert (run.report().requests, run.report().replayed) == (0, 10)
            llm("another prompt")
        assert len(server.requests) == 2
    finishes = [call.finish for call in ember.Journal(path).calls()]
    assert finishes == [Finish.STOP if i == 7 else Finish.OTHER for i in range(10)] + [Finish.STOP]


STATEMENTS = tables.migration(2)


@pytest.mark.parametrize("at", range(len(STATEMENTS) + 1))
def test_a_migration_that_fails_is_undone_and_then_done_by_the_next_opening(path, monkeypatch, at):
    version_2(path, 50)
    before = content(path)
    with monkeypatch.context() as patched:
        patched.setattr(file, "migration", lambda version: [*STATEMENTS[:at], "no statement"])
        with pytest.raises(errors.JournalFileError):
            ember.Journal(path).check()
    assert content(path) == before
    ember.Journal(path).check()
    assert content(path) == (columns.VERSION, *before[1:])


@pytest.mark.parametrize("at", [0, 1, len(STATEMENTS) // 2, len(STATEMENTS)])
def test_a_migration_that_is_killed_is_done_by_the_next_opening(path, at):
    version_2(path, 2000)
    before = content(path)
    script = """
        import signal
        from ember_jax._runtime.journal import file, tables

        def dying(version):
            yield from tables.migration(version)[:int(sys.argv[2])]
            os.kill(os.getpid(), signal.SIGKILL)

        file.migration = dying
        Journal(sys.argv[1]).check()
    """
    assert child(script, path, at).wait(_HANG) == -signal.SIGKILL
    assert content(path) == before
    assert ember.Journal(path).stats().calls == 2000
    assert content(path) == (columns.VERSION, *before[1:])


def test_processes_that_open_an_old_file_at_once_migrate_it_once(path):
    version_2(path, 5000)
    before = content(path)
    script = """
        kept = Journal(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        print(kept.stats().calls, kept.get(bytes(32)), len(kept.calls()))
    """
    running = [child(script, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for each in running:
        assert each.stdout.readline() == "ready\n"
    for each in running:
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in running:
        out, _ = each.communicate(timeout=_HANG)
        assert (out, each.returncode) == ("5000 None 5000\n", 0)
    assert content(path) == (columns.VERSION, *before[1:])


def test_a_damaged_file_of_version_2_is_left_as_it_is(path):
    version_2(path, 500)
    os.truncate(path, path.stat().st_size - 1)
    before = path.read_bytes()
    with pytest.raises(errors.JournalFileError, match="within a page"):
        ember.Journal(path).check()
    assert path.read_bytes() == before
