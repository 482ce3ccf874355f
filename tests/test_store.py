"""Words within a bound of memory: what is spilled comes back, to threads and forked processes, and leaves no file."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import _spilling, errors
from ember_jax._runtime.journal.base import Entry
from ember_jax._runtime.journal.memory import MemoryJournal
from ember_jax._text import store
from ember_jax.providers.base import Response

keys = st.integers(0, 40).map(lambda i: store.digest_of(str(i)))
steps = st.lists(st.tuples(st.sampled_from(["put", "get"]), keys), max_size=200)


def value(key):
    """What a key stands for: a value never changes. Some are empty, some alone larger than a bound."""
    return bytes(key[:1]) * (key[1] % 8 * (100 if key[1] == 7 else 1))


def held(spilling):
    return [*spilling._young.values(), *spilling._old.values()]


@given(steps, st.integers(0, 64))
def test_it_is_a_dict_within_a_bound(steps, most):
    spilling, model = _spilling.Spilling(most, lambda v: len(v) + 1, bytes, bytes), {}
    for what, key in steps:
        if what == "put":
            spilling.put(key, value(key))
            model[key] = value(key)
        else:
            assert spilling.get(key) == model.get(key)
        assert sum(len(v) + 1 for v in held(spilling)) == spilling._bytes <= most
        assert spilling.in_memory() == len(held(spilling))
    assert [spilling.get(key) for key in model] == list(model.values())


def a_file(spilling):
    """How long its file is."""
    return 0 if spilling._file is None else os.fstat(spilling._file._descriptor).st_size


def test_words_are_written_once_however_often_they_come_and_go():
    words = [f"{i:04}" for i in range(500)]
    spilling = store.words_within(10_000)
    for _ in range(4):
        for w in words:
            spilling.put(store.digest_of(w), w)
        assert [spilling.get(store.digest_of(w)) for w in words] == words
    assert spilling.in_memory() <= 50 and a_file(spilling) <= 4 * 500


def test_what_is_used_is_read_back_once_a_generation_at_most():
    reads = []

    def decode(data):
        reads.append(data)
        return data.decode()

    spilling = _spilling.Spilling(100_000, store._size, str.encode, decode)  # a generation is 490 texts
    for i in range(5000):
        spilling.put(store.digest_of(str(i)), str(i))
        assert spilling.get(store.digest_of("0")) == "0"
    assert 1 <= len(reads) <= 5000 // 490


def test_a_key_is_told_from_others_that_hold_its_bytes_anywhere():
    """Records lie side by side: the bytes of a key may be found across two of them."""
    spilling = _spilling.Spilling(0, len, bytes, bytes)
    ours = [bytes(2) + bytes([i] * 14) for i in range(256)]
    ours += [bytes(15 - i) + bytes(range(1, i + 2)) for i in range(13)]
    for i, key in enumerate(ours):
        assert spilling.get(key) is None
        spilling.put(key, b"%d" % i)
    assert [spilling.get(key) for key in ours] == [b"%d" % i for i in range(len(ours))]


def test_threads_find_what_any_of_them_has_put():
    def size(words):
        time.sleep(0)  # lets another thread go on
        return store._size(words)

    spilling, wrong = _spilling.Spilling(20_000, size, str.encode, bytes.decode), []
    start = threading.Barrier(4)

    def work(which):
        start.wait()
        for i in range(1000):
            w = f"words {(i * (which + 1)) % 1000}"  # the same ones, in other orders
            spilling.put(store.digest_of(w), w)
            other = f"words {i * 7 % 1000}"
            if spilling.get(store.digest_of(w)) != w or spilling.get(store.digest_of(other)) not in (other, None):
                wrong.append(w)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert spilling._bytes == sum(map(store._size, held(spilling))) <= 20_000
    assert [spilling.get(store.digest_of(f"words {i}")) for i in range(1000)] == [f"words {i}" for i in range(1000)]


def forked(work):
    """Whether work in a forked process raises nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*")
        pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def test_a_forked_process_has_the_words_of_its_parent_and_a_file_of_its_own():
    spilling = store.words_within(5_000)

    def put(prefix):
        for i in range(200):
            spilling.put(store.digest_of(f"{prefix} {i}"), f"{prefix} {i}")

    def has(*prefixes):
        for prefix in prefixes:
            for i in range(200):
                assert spilling.get(store.digest_of(f"{prefix} {i}")) == f"{prefix} {i}"

    def child():
        has("before")
        put("child")
        assert forked(lambda: (put("grandchild"), has("before", "child", "grandchild")))
        has("before", "child")
        assert spilling.get(store.digest_of("parent 0")) is None

    put("before")
    size = a_file(spilling)
    assert forked(child)
    assert a_file(spilling) == size
    put("parent")
    has("before", "parent")


def test_a_fork_waits_for_what_another_thread_changes():
    """The child would find the lock held for ever."""
    inside, on = threading.Event(), threading.Event()

    def encode(words):
        inside.set()
        on.wait(10)
        return words.encode()

    spilling = _spilling.Spilling(0, len, encode, bytes.decode)
    thread = threading.Thread(target=spilling.put, args=(store.digest_of("a"), "a"))
    thread.start()
    inside.wait(10)
    timer = threading.Timer(0.05, on.set)
    timer.start()
    assert forked(lambda: (spilling.put(store.digest_of("b"), "b"), spilling.get(store.digest_of("a"))))
    assert on.is_set()
    thread.join()
    timer.join()


def run(code, folder, **variables):
    """What a program prints, with a folder for temporary files."""
    environment = {**os.environ, "TMPDIR": str(folder), **variables}
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout, done.stderr, done.returncode


SPILLS = """
    import os, signal, stat
    from ember_jax._text import store
    digests = [store.put(f"words {i}") for i in range(1000)]
    found = os.fstat(store._words._file._descriptor)
    assert store.in_memory() < 50 and store.get(digests[0]) == "words 0"
    print(oct(stat.S_IMODE(found.st_mode)), found.st_nlink, found.st_size > 5000, len(os.listdir(os.environ["TMPDIR"])))
"""


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_file_is_the_owners_and_gone_with_the_process_however_it_ends(tmp_path, end):
    out, _, code = run(
        SPILLS + f"    __import__('sys').stdout.flush(); {end}\n", tmp_path, EMBER_JAX_TEXT_BYTES="10000"
    )
    assert out == "0o600 0 True 0\n"
    assert code == (0 if end == "pass" else -signal.SIGKILL)
    assert not os.listdir(tmp_path)


def test_no_file_is_made_while_words_fit_in_memory():
    spilling = store.words_within(10_000)
    for i in range(40):
        spilling.put(store.digest_of(str(i)), str(i))
    assert spilling.get(store.digest_of("other")) is None
    assert spilling.in_memory() == 40 and spilling._file is None


def test_the_bound_is_the_environments(monkeypatch):
    for words, most in (("", 128 << 20), ("0", 0), ("1000", 1000)):
        monkeypatch.setenv("EMBER_JAX_TEXT_BYTES", words)
        assert store._most_bytes() == most
    for words in ("256 MiB", "-1", "1e9"):
        monkeypatch.setenv("EMBER_JAX_TEXT_BYTES", words)
        with pytest.raises(ValueError, match=f"EMBER_JAX_TEXT_BYTES is {words!r}. Give bytes"):
            store._most_bytes()


def test_what_cannot_be_written_stays_in_memory(monkeypatch):
    spilling = store.words_within(10_000)
    words = [f"words {i}" for i in range(1000)]

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(RuntimeWarning, match=r"No space left.*stay in memory.*TMPDIR") as caught:
        for w in words:
            spilling.put(store.digest_of(w), w)
    assert len(caught) <= 6  # each time there is twice as much
    assert spilling.in_memory() == 1000
    monkeypatch.undo()
    for w in (more := [f"more words {i}" for i in range(2000)]):
        spilling.put(store.digest_of(w), w)
    assert spilling.in_memory() < 2500
    assert [spilling.get(store.digest_of(w)) for w in words + more] == words + more


def test_a_file_that_another_process_has_cut_short():
    spilling = store.words_within(0)
    spilling.put(store.digest_of("words"), "words")
    os.ftruncate(spilling._file._descriptor, 2)
    with pytest.raises(OSError, match="damaged"):
        spilling.get(store.digest_of("words"))


@pytest.mark.parametrize("most", [0, 4000])
def test_ctrl_c_loses_nothing(most):
    """An interrupt while a batch is chosen, written and dropped."""
    words = [f"words {i}" for i in range(100)]
    left = 0

    def step():
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    def size(w):
        step()
        return store._size(w)

    def encode(w):
        step()
        return w.encode()

    for at in range(1, 200):
        left = at
        spilling = _spilling.Spilling(most, size, encode, bytes.decode)
        interrupted = 0
        for w in words:
            try:
                spilling.put(store.digest_of(w), w)
            except KeyboardInterrupt:
                interrupted += 1
        assert interrupted == 1
        assert [spilling.get(store.digest_of(w)) for w in words] == words


def test_texts_work_when_their_words_are_in_the_file(monkeypatch):
    monkeypatch.setattr(store, "_words", store.words_within(0))
    words = ["", "a\0", "😀" * 1000, "é"]
    texts = ember.text(words)
    assert store.in_memory() == 0
    assert texts.tolist() == words
    assert "😀" in repr(texts)
    assert (texts + "!").tolist() == [w + "!" for w in words]
    assert ember.normalize(texts, "case")[3].tolist() == "é"
    with pytest.raises(errors.UnknownDigestError, match="not in this process"):
        str(ember.Text(jnp.arange(4, dtype=jnp.uint32)))
    assert "unknown" in repr(ember.Text(np.arange(4, dtype=np.uint32)))


# -- what grows with the number of calls ------------------------------------------------------------------------------


def test_a_journal_in_memory_keeps_all_answers_within_its_bound():
    journal = MemoryJournal(most_bytes=10_000)
    answers = [
        Response(f"é {i}", i, 2 * i, i / 3, -i / 7, "m", f"r{i}", (("a", -0.1), ("b", -i / 11))) for i in range(200)
    ]

    async def go():
        for i, answer in enumerate(answers):
            digest = store.digest_of(f"question {i}") * 2
            assert journal.get(digest) is None
            assert await journal.put(digest, Entry(None, answer)) is answer
        again = [
            await journal.put(store.digest_of(f"question {i}") * 2, Entry(None, Response("x"))) for i in range(200)
        ]
        assert again == answers == [journal.get(store.digest_of(f"question {i}") * 2) for i in range(200)]

    asyncio.run(go())
    assert len(journal) == 200
    assert journal._answers.in_memory() <= 20


SWEEP = """
    import gc
    import jax, jax.numpy as jnp
    import ember_jax as ember
    from ember_jax._engine import lane, sweep
    from ember_jax._engine.steps import lanes
    from ember_jax.providers.sim import Sim, SimModel
    from ember_jax._text import store

    class Op(ember.Operator):
        llm: ember.LLM
        def forward(self, i: jax.Array) -> ember.Text:
            return self.llm(ember.format("What is {i} + 1?", i=i))

    most, ended = {}, lanes._lane_ended

    def counted(machine, lane, outputs):
        ended(machine, lane, outputs)
        counts = {
            "words": store.in_memory(),
            "answers": run._passing._answers.in_memory(),
            "flights": len(run._answering._flights._flights),
            "repeats": len(machine.repeats._by_lane),
            "steps": len(machine.tasks._journeys),
        }
        most.update({k: max(v, most.get(k, 0)) for k, v in counts.items()})

    lanes._lane_ended = counted
    sweep.Sweep.__init__.__defaults__ = (64, None)  # the window
    with ember.session(providers={"sim": Sim({"now": SimModel(1.0, 0)})}) as run:
        run._passing._answers._most = 20_000
        op = jax.vmap(Op(ember.LLM("sim/now")))
        answers = op(jnp.arange(600))
        assert answers.tolist() == [str(i + 1) for i in range(600)]
        again = op(jnp.arange(600))
        assert run.report().requests == 600 and run.report().replayed == 600
        assert again.tolist() == answers.tolist()
    gc.collect()
    alive = sum(isinstance(o, (lane.Lane, lane.Frame)) for o in gc.get_objects())
    print(most["words"], most["answers"], most["flights"], most["repeats"], most["steps"], alive)
"""


def test_a_sweep_keeps_no_more_than_a_window_of_anything(tmp_path):
    out, error, code = run(SWEEP, tmp_path, EMBER_JAX_TEXT_BYTES="20000", EMBER_JAX_JOURNAL="memory")
    assert not code, error
    words, answers, *of_lanes, alive = map(int, out.split())
    assert words <= 20_000 // 200 and answers <= 20_000 // 550
    assert max(of_lanes) <= 64
    assert alive == 0
