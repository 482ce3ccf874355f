"""What one thread clears while another uses it: each test makes the two meet at the worst moment."""

import asyncio
import collections
import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import errors
from ember_jax._runtime import memo as memos
from ember_jax._runtime import session as sessions
from ember_jax._runtime.call_log import Log
from ember_jax._runtime.events import CallEnded
from ember_jax._runtime.journal import memory
from ember_jax._runtime.journal.base import Entry
from ember_jax._runtime.journal.memory import MemoryJournal
from ember_jax._runtime.journal.reader import Reader
from ember_jax._runtime.loop import Work
from ember_jax._runtime.memo import Memo
from ember_jax.providers.base import Message, Request, Response

SECONDS = 20.0  # after which a test has failed; none waits for it


def on_loop(coroutine):
    return sessions.loop().submit(coroutine).result(SECONDS)


def entry(prompt):
    request = Request("local", "small", (Message("user", prompt),))
    return request.digest(), Entry(request, Response(prompt.upper(), cost=0.25, logprob=-0.5))


class Meeting:
    """Runs a function in another thread, until it has ended or waits for a lock that is held here."""

    def __init__(self, function):
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._met = threading.Event()
        self._is_over = False

    def _run(self):
        self._function()
        self._met.set()

    def __call__(self):
        if not self._is_over:
            self._is_over = True
            self._thread.start()
            assert self._met.wait(SECONDS)

    def lock(self, lock):
        """A lock that tells when it is waited for."""
        meeting = self

        class Told:
            def __enter__(self):
                if not lock.acquire(blocking=False):
                    meeting._met.set()
                    lock.acquire()

            def __exit__(self, *_):
                lock.release()

        return Told()

    def end(self):
        """Waits for the other thread."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive() and self._is_over


class Key(bytes):
    """A key that does something when it is looked up the n-th time."""

    def __new__(cls, times, then):
        key = super().__new__(cls, b"key")
        key._times, key._then = times, then
        return key

    def __hash__(self):
        self._times -= 1
        if not self._times:
            self._then()
        return 7


# -- the journal -----------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path):
    made = ember.Journal(tmp_path / "run.db")
    yield made
    made.close()


def test_a_journal_may_be_closed_while_it_is_asked_whether_it_can_keep_an_answer(journal):
    digest, kept = entry("a")
    on_loop(journal.put(digest, kept))
    meeting = Meeting(journal.close)
    writer = journal._handles.open.writer

    class Closing:
        held, close = (), staticmethod(writer.close)

        @property
        def has_failed(self):
            meeting()
            return True

    journal._handles.open = journal._handles.open._replace(writer=Closing())
    assert on_loop(journal.ready(digest)) == kept.response
    meeting.end()


def test_a_journal_may_be_closed_while_it_is_read(journal):
    digest, kept = entry("a")
    on_loop(journal.put(digest, kept))
    meeting = Meeting(journal.close)
    journal._handles._lock = meeting.lock(journal._handles._lock)
    row = Reader.row

    def reads(self, digest):
        meeting()
        return row(self, digest)

    async def get():
        return journal.get(digest), journal._handles.get_now(digest)

    with mock.patch.object(Reader, "row", reads):
        assert on_loop(get()) == (kept.response, kept.response)
    meeting.end()


def test_an_answer_that_is_handed_over_while_its_journal_is_closed_is_kept(journal):
    on_loop(journal.put(*entry("a")))
    meeting = Meeting(journal.close)
    writer = journal._handles.open.writer
    writer._lock = meeting.lock(writer._lock)
    waiting, put = writer._waiting, writer._waiting.put

    class Queue:
        get, empty = waiting.get, waiting.empty

        def put(self, puts):
            if puts is not None and threading.current_thread() is not meeting._thread:
                meeting()
            put(puts)

    writer._waiting = Queue()
    digest, kept = entry("b")
    assert on_loop(journal.put(digest, kept)) == kept.response
    meeting.end()
    assert journal.stats().calls == 2


def test_answers_in_memory_are_counted_while_others_are_forgotten(monkeypatch):
    journal = MemoryJournal()
    on_loop(journal.put(*entry("a")))
    meeting = Meeting(lambda: journal.drop([entry("a")[0]]))
    monkeypatch.setattr(memory, "lock", meeting.lock(memory.lock))
    keep = journal._answers.put

    def puts(*args):
        meeting()
        keep(*args)

    journal._answers.put = puts
    on_loop(journal.put(*entry("b")))
    meeting.end()
    assert len(journal) == 1
    assert [journal.get(entry(word)[0]) is None for word in "ab"] == [True, False]


# -- results in memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("use", ["get", "put"])
def test_results_may_be_forgotten_while_one_is_used(use, times, monkeypatch):
    memo = Memo(2000)
    meeting = Meeting(memo.clear)
    monkeypatch.setattr(memos, "lock", meeting.lock(memos.lock))
    key = Key(times + (use == "get") * 2, meeting)
    memo.put(b"other", b"1")
    memo.put(key, b"2")
    if use == "get":
        assert memo.get(key) in (b"2", None)
    meeting()
    meeting.end()
    for number in range(40):  # each is larger than what is left of the bound at some time
        memo.put(bytes([number]), bytes(44))
    assert memo._bytes == sum(memos._size(*row) for row in memo._rows.items()) <= 2000


def test_what_was_begun_before_a_session_forgot_is_not_remembered():
    calls = []

    async def slow(x):
        calls.append(float(x))
        if len(calls) == 1:
            session.forget(())
        return x

    slow = ember.host(slow, jax.ShapeDtypeStruct((), jnp.float32))
    ask = ember.jit(lambda x: slow(x))
    with ember.session() as session:
        for _ in range(3):
            np.testing.assert_array_equal(ask(jnp.float32(1)), 1)
    assert calls == [1, 1]


# -- the rest --------------------------------------------------------------------------------------------------------


def test_a_call_that_ends_while_others_are_looked_at_is_not_taken_for_a_forgotten_one():
    log = Log(3)
    digest, kept = entry("a")
    ended = CallEnded(digest, kept.request, (), "", "answered", 0.0, 1.0, kept.response, None, [], 1)
    notes = []

    class Rows(collections.deque):
        def append(self, row):
            super().append(row)
            notes.append(log.calls()._note)

    log._rows = Rows(maxlen=3)
    for _ in range(5):
        log.note(ended)
    assert notes[:3] == ["", "", ""]
    assert "2 earlier calls" in log.calls()._note


def test_work_that_is_stopped_as_it_begins_ends_as_it_would_have():
    loop, meetings = sessions.loop(), []

    class Late(Work):
        """Is waited for at the moment at which it has been seen not to be cancelled."""

        is_cancelled = False

        @property
        def _cancelled(self):
            if meetings and not meetings[0]._is_over:
                meetings[0]()
                return False
            return self.is_cancelled

        @_cancelled.setter
        def _cancelled(self, value):
            self.is_cancelled = value

    async def work():
        await asyncio.sleep(0)
        return "done"

    late = Late(work(), loop)
    meetings.append(Meeting(lambda: late.wait_for_end(0.0)))
    assert late.result() == "done"
    meetings[0].end()


def test_the_loop_is_told_once_what_to_close(monkeypatch):
    running = sessions.loop()
    meeting = Meeting(sessions.loop)

    class Closers(list):
        def __contains__(self, closer):
            found = super().__contains__(closer)
            if threading.current_thread() is not meeting._thread:
                meeting()
            return found

    monkeypatch.setattr(running, "closers", Closers())
    monkeypatch.setattr(sessions, "_lock", meeting.lock(sessions._lock))
    sessions.loop()
    meeting.end()
    assert len(running.closers) == len(set(running.closers)) > 0


def test_a_session_may_be_looked_at_and_forget_while_calls_are_made():
    told = ember.providers.Callable(lambda request: request.messages[-1].content)
    stop, faults = threading.Event(), []

    def look(run):
        while not stop.is_set():
            try:
                run.forget(run.calls()), run.report(), run.trace.record(), run.statistics(), str(run.budget)
            except errors.EmberError as error:
                faults.append(error)
                return

    llm = ember.LLM("sim/small")
    with ember.session(providers={"sim": told}) as run:
        thread = threading.Thread(target=look, args=(run,))
        thread.start()
        prompts = ember.text([f"p{i}" for i in range(300)])
        assert jax.vmap(ember.jit(lambda p: llm(llm(p) + "!")))(prompts).tolist() == [f"p{i}!" for i in range(300)]
        stop.set()
        thread.join(SECONDS)
    assert not faults
