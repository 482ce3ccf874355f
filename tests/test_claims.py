"""Several processes, one journal: a question that one of them is asking is not paid for by another."""

import asyncio
import contextlib
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import jax
import pytest

import ember_jax as ember
from ember_jax import errors, testing
from ember_jax._runtime import session as sessions
from ember_jax._runtime.journal import claims
from ember_jax._runtime.journal.base import Claimed, Entry
from ember_jax.providers.base import Message, Request, Response
from ember_jax.providers.openai import OpenAI

_HANG = 60.0
LLM = ember.LLM("openai/m")
ask = jax.vmap(ember.jit(LLM))


def on_loop(coroutine):
    return sessions.loop().submit(coroutine).result(_HANG)


def settings(server, **more):
    return {"providers": {"openai": OpenAI(server.base_url, api_key="")}, "retry": ember.Retry(first=0.0), **more}


def digest(server, prompt):
    return Request("openai", "m", (Message("user", prompt),)).digest(server.base_url)


def table(path, name):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"select * from {name}").fetchall()


def owner(path, *digests, host="another", pid=1, seconds=10.0):
    """Claims by an owner that is said to live for some seconds more."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        row = connection.execute(
            "insert into owners (host, pid, until) values (?, ?, ?)", (host, pid, time.time() + seconds)
        )
        connection.executemany("insert into claims values (?, ?)", [(d, row.lastrowid) for d in digests])


def eventually(is_so):
    until = time.monotonic() + _HANG
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def child(script, *args, **kwargs):
    head = """
        import sys, zlib, jax, ember_jax as ember
        from ember_jax.providers.openai import OpenAI
        url, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
        ask = jax.vmap(ember.jit(ember.LLM("openai/m")))
        prompts = ember.text([f"shared {i}" for i in range(count)])
        session = ember.session(journal=path, providers={"openai": OpenAI(url, api_key="")}, progress=False)
    """
    code = textwrap.dedent(head) + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], text=True, **kwargs)


@pytest.fixture
def path(tmp_path):
    ember.Journal(tmp_path / "journal.db").check()
    return tmp_path / "journal.db"


@pytest.fixture
def server():
    with testing.ChatServer() as server:
        yield server


# -- processes -------------------------------------------------------------------------------------------------------


def test_two_processes_that_ask_the_same_pay_once(path):
    script = """
        print("ready", flush=True)
        sys.stdin.readline()
        with session as run:
            answers = ask(prompts).tolist()
        report = run.report()
        print(report.requests, report.replayed, zlib.crc32(repr(answers).encode()), flush=True)
    """
    with testing.ChatServer(latency=0.3) as server:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        both = [child(script, server.base_url, path, 40, **pipes) for _ in range(2)]
        for each in both:
            assert each.stdout.readline() == "ready\n"
        for each in both:
            each.stdin.write("go\n")
            each.stdin.flush()
        told = [tuple(map(int, each.communicate(timeout=_HANG)[0].split())) for each in both]
        assert [each.returncode for each in both] == [0, 0]
        assert len(server.requests) == 40
    assert sum(requests for requests, _, _ in told) == 40 and sum(replayed for _, replayed, _ in told) == 40
    assert told[0][2] == told[1][2]  # the same answers
    assert (table(path, "claims"), table(path, "owners")) == ([], [])


def test_what_a_killed_process_was_asking_is_asked_at_once_by_the_next_one(path):
    script = "\nwith session: ask(prompts)"
    with testing.ChatServer(faults=[testing.Fault(delay=_HANG)] * 5) as server:
        killed = child(script, server.base_url, path, 5)
        eventually(lambda: len(server.requests) == 5)
        assert len(table(path, "claims")) == 5 and len(table(path, "owners")) == 1
        killed.send_signal(signal.SIGKILL)
        killed.wait(_HANG)
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("update owners set until = ?", (time.time() + claims.LEASE,))  # it has just said so
        began = time.time()
        with ember.session(journal=path, **settings(server)) as run:
            ask(ember.text([f"shared {i}" for i in range(5)]))
        assert len(server.requests) == 10 and run.report().requests == 5
        assert time.time() < began + claims.LEASE  # it would else have waited so long
    assert (table(path, "claims"), table(path, "owners")) == ([], [])


# -- the life of a claim ---------------------------------------------------------------------------------------------


def test_a_claim_lasts_until_its_answer_or_its_release(path):
    mine, other = ember.Journal(path), ember.Journal(path)
    request = Request("openai", "m", (Message("user", "q"),))
    key, answer = request.digest(), Response("a", cost=0.0, logprob=0.0)

    async def life():
        assert await mine.claim(key, None) is None
        for _ in range(2):
            with pytest.raises(Claimed):
                await other.claim(key, None)
        mine.release(key)
        await other.freed(key)
        assert await other.claim(key, None) is None
        with pytest.raises(Claimed):
            await mine.claim(key, None)
        waiting = asyncio.ensure_future(mine.freed(key))
        await asyncio.sleep(0)
        assert not waiting.done()
        await other.put(key, Entry(request, answer))
        await waiting
        assert await mine.claim(key, None) == answer  # and nothing is claimed
        assert await mine.claim(key, answer) is None  # the answer is of no use: it may be asked again
        mine.release(key)

    on_loop(life())
    mine.close()
    assert table(path, "claims") == []
    other.close()
    assert table(path, "owners") == []


def test_a_claim_that_is_cancelled_on_its_way_is_nobodys(path):
    journal, key = ember.Journal(path), Request("openai", "m", (Message("user", "q"),)).digest()

    async def cancelled():
        for rounds in range(4):  # before it is handed over, while it is on its way, and after it was committed
            claim = asyncio.ensure_future(journal.claim(key, None))
            for _ in range(rounds):
                await asyncio.sleep(0)
            claim.cancel()
            await asyncio.wait([claim])
        while True:
            try:
                return await journal.claim(key, None)
            except Claimed:
                await journal.freed(key)

    assert on_loop(cancelled()) is None
    journal.close()


OWNERS = {
    "this process": (platform.node(), os.getpid(), 10.0, True),
    "one that has ended": (platform.node(), None, 10.0, False),
    "one that has not vouched for itself of late": (platform.node(), os.getpid(), -0.01, False),
    "another host's": ("another", 1, 10.0, True),
    "another host's, not of late": ("another", 1, -0.01, False),
    "one whose clock was ahead": ("another", 1, 3600.0, False),
}


@pytest.mark.parametrize("whose", OWNERS)
def test_a_claim_is_as_good_as_its_owner(path, whose):
    host, pid, seconds, is_good = OWNERS[whose]
    if pid is None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        pid = ended.pid
    key = Request("openai", "m", (Message("user", "q"),)).digest()
    owner(path, key, host=host, pid=pid, seconds=seconds)
    journal = ember.Journal(path)
    if is_good:
        with pytest.raises(Claimed):
            on_loop(journal.claim(key, None))
        journal.close()
        assert len(table(path, "claims")) == len(table(path, "owners")) == 1
    else:
        assert on_loop(journal.claim(key, None)) is None
        journal.close()
        assert (table(path, "claims"), table(path, "owners")) == ([], [])


def test_an_owner_vouches_for_itself_while_it_asks(path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    journal = ember.Journal(path)
    key = Request("openai", "m", (Message("user", "q"),)).digest()
    assert on_loop(journal.claim(key, None)) is None
    until = lambda: table(path, "owners")[0][-1]
    first = until()
    eventually(lambda: until() > first)
    second = until()
    eventually(lambda: until() > second)
    journal.close()


# -- calls -----------------------------------------------------------------------------------------------------------


def test_a_call_waits_for_the_answer_that_another_process_gets(path, server):
    prompts = [f"q {i}" for i in range(20)]
    keys = [digest(server, prompt) for prompt in prompts]
    owner(path, *keys[:10])
    other = ember.Journal(path)

    async def answer():
        for prompt, key in zip(prompts[:10], keys[:10], strict=True):
            await other.put(key, Entry(Request("openai", "m", (Message("user", prompt),)), Response("theirs")))

    with ember.session(journal=path, **settings(server)) as run, contextlib.closing(other):
        asked = sessions.loop().submit(asyncio.to_thread(lambda: ask(ember.text(prompts)).tolist()))
        eventually(lambda: len(server.requests) == 10)  # those that are free
        assert not asked.done()
        on_loop(answer())
        answers = asked.result(_HANG)
    report = run.report()
    assert answers[:10] == ["theirs"] * 10 and "theirs" not in answers[10:]
    assert (report.requests, report.replayed, len(server.requests)) == (10, 10, 10)


def test_a_dead_owner_of_another_host_delays_a_call_until_its_lease_is_over(path, server):
    keys = [digest(server, f"q {i}") for i in range(5)]
    owner(path, *keys, seconds=1.0)
    ((*_, until),) = table(path, "owners")
    with ember.session(journal=path, **settings(server)) as run:
        ask(ember.text([f"q {i}" for i in range(5)]))
    assert run.report().requests == len(server.requests) == 5
    assert all(call.began >= until for call in ember.Journal(path).calls())
    assert table(path, "claims") == []


def test_a_call_that_fails_leaves_its_question_to_others(path):
    with testing.ChatServer(faults=[testing.Fault(status=400)] * 3) as server:
        session = ember.session(journal=path, **settings(server))
        with session:
            with pytest.raises(errors.SweepError):
                ask(ember.text(["a", "b", "c"]))
            assert str(LLM("d"))
            eventually(lambda: not table(path, "claims"))
            assert len(table(path, "owners")) == 1
    assert table(path, "owners") == []


def test_what_costs_nothing_claims_nothing(path):
    with ember.session(journal=path):
        jax.vmap(ember.LLM("sim/small"))(ember.text(["a", "b"]))
        assert (table(path, "claims"), table(path, "owners")) == ([], [])


@pytest.mark.parametrize("limit", [None, 5])
def test_a_full_disk_stops_calls_that_wait_for_their_turn(path, limit):
    limits = {} if limit is None else {"openai": ember.Limit(in_flight=limit)}
    kept = ember.Journal(path)
    prompts = [f"prompt number {i}" for i in range(400)]
    with testing.ChatServer(latency=0.02) as server, ember.session(journal=kept, limits=limits, **settings(server)):
        kept._handles.opened().writer._connection.execute("pragma max_page_count = 1").fetchone()  # as many as it has
        with pytest.raises(errors.SweepError, match="the disk is full"):
            ask(ember.text(prompts))
        sent = len(server.requests)
        assert sent < 100 and len(table(path, "calls")) < sent
        kept._handles.opened().writer._connection.execute("pragma max_page_count = 1000000").fetchone()
        ask(ember.text(prompts))
        assert len(server.requests) == 400  # what was answered then is kept now, and nothing is paid for twice
    kept.close()
