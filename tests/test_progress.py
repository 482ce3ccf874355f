"""The bar: what it says is what is known, it shows where somebody looks, and it leaves the screen to others."""

import asyncio
import os
import pty
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import pytest

import ember_jax as ember
from ember_jax._engine import island
from ember_jax._runtime import progress
from ember_jax._runtime import session as sessions
from ember_jax.errors import AuthenticationError
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault, VirtualClock

_HANG = 60.0


class Drawn:
    """What is drawn, in place of tqdm: the totals, what was done, the words."""

    made: "list[Drawn]"

    def __init__(self, total):
        self.total, self.n, self.words, self.is_closed = total, 0, "", False
        self.bar_format, self.formats, self.leave = "", [], True
        self.seen = threading.Event()
        self.made.append(self)

    def set_postfix_str(self, words, refresh):
        self.words = words

    def refresh(self):
        assert self.n <= self.total
        self.formats.append(self.bar_format)
        self.seen.set()

    def close(self):
        self.is_closed = True


@pytest.fixture
def drawn(monkeypatch):
    """Bars that are drawn at once, and often."""
    made = []
    monkeypatch.setattr(Drawn, "made", made, raising=False)
    monkeypatch.setattr(progress, "_tqdm", Drawn)
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(progress, "PERIOD", 0.001)
    return made


def until_drawn(drawn, refused=None):
    """A provider that answers when a bar is on the screen, but for one prompt, which it refuses."""

    async def answer(request):
        async with asyncio.timeout(_HANG):
            while not any(bar.seen.is_set() for bar in list(drawn)):
                await asyncio.sleep(0.001)
        if request.messages[-1].content == refused:
            raise AuthenticationError("no")
        return request.messages[-1].content.upper()

    return Callable(answer)


def on_loop(coroutine):
    return sessions.loop().submit(coroutine).result(_HANG)


ember.register("barred", Callable(lambda request: "x"))  # a model must be known; sessions put their own in its place
llm = ember.LLM("barred/m")
words = ember.text([f"word {i}" for i in range(6)])


# -- what is known ---------------------------------------------------------------------------------------------------


def branches(word, flag):
    """One call, and two or none by a flag that is known from the start."""
    return jax.lax.cond(flag, lambda: llm(word + "a") + llm(word + "b"), lambda: word) + llm(word)


def turns(word, flag):
    """One call, and as many turns as the flag says, 0 or 3, of one call each."""

    def turn(carry):
        left, text = carry
        return left - 1, llm(ember.format("{left} {text}", left=left, text=text))

    return jax.lax.while_loop(lambda carry: carry[0] > 0, turn, (jnp.where(flag, 3, 0), llm(word)))[1]


def steps(word, flag):
    """Four steps of one call, and two lanes of a call within."""
    body = lambda text, i: (llm(ember.format("{text} {i}", text=text, i=i)), None)
    text, _ = jax.lax.scan(body, word, jnp.arange(4))
    return text + jax.vmap(lambda i: llm(ember.format("{text} {i}!", text=text, i=i)))(jnp.arange(2))[0]


@pytest.mark.parametrize(
    ("program", "least", "made"), [(branches, 6, 6 + 2 * 3), (turns, 6, 6 + 3 * 3), (steps, 36, 36)]
)
def test_the_total_is_the_least_at_first_and_exact_in_the_end(program, least, made, monkeypatch):
    tallies = []

    class Watched(progress.Tally):
        __slots__ = ("firsts",)

        def __init__(self, known=0):
            super().__init__(known)
            self.firsts = known
            tallies.append(self)

    monkeypatch.setattr(island, "Tally", Watched)
    with ember.session(providers={"barred": Callable(lambda request: "x")}) as run:
        flags = jnp.arange(6) % 2 == 0
        jax.block_until_ready(jax.vmap(ember.jit(program))(words, flags))
    (tally,) = tallies
    assert tally.firsts == least
    assert tally.known == tally.begun == tally.ended == made == run.report().calls


def test_a_call_that_fails_ends_and_one_that_is_never_made_does_not(drawn):
    provider = until_drawn(drawn, refused="word 2")
    with pytest.raises(ember.errors.SweepError), ember.session(providers={"barred": provider}, progress=True):
        jax.block_until_ready(jax.vmap(ember.jit(lambda word: llm(llm(word))))(words))
    (bar,) = drawn
    assert (bar.total, bar.n, bar.is_closed) == (12, 11, True)
    assert bar.words.endswith(" left, cost unknown, 1 failed")


# -- one rule for all that is counted --------------------------------------------------------------------------------

loud = ember.host(str.upper, out=ember.Text)


def mixed(word, flag):
    """Equal calls, Python functions, a decision, a call that is the same for all lanes, one that may fail alone."""
    twice = llm(word) + llm(word)
    shared = llm("for all")
    tried, _ = ember.attempt(llm)(loud(word))
    after = llm(ember.where(flag, tried, word))
    return jax.lax.cond(flag, lambda: llm(loud(twice + shared)), lambda: twice) + after


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
@pytest.mark.parametrize("journal", ["memory", "off"])
def test_bar_report_statistics_and_calls_count_alike(journal, drawn):
    """Of one and the same calls, some of them merged, replayed, tried again, or failed."""

    def fault(number):
        asked = server.requests[number].body["messages"][-1]["content"]
        if asked == "WORD 3":
            return Fault(status=400)
        return Fault(status=500, delay=0.01) if number % 10 == 1 else Fault(delay=0.01)

    with ChatServer(faults=fault) as server:
        provider, retry = OpenAI(server.base_url, api_key=""), ember.Retry(first=0.001)
        settings = {"journal": journal, "retry": retry, "prices": {"barred": ember.Price(1.0, 1.0)}}
        with ember.session(providers={"barred": provider}, progress=True, **settings) as run:
            for again in range(2):
                before = run.report().calls
                jax.block_until_ready(jax.vmap(ember.jit(mixed))(words, jnp.arange(6) % 2 == 0))
                report = run.report()
                assert drawn[again].n == drawn[again].total == report.calls - before > 0
                assert report.calls == sum(call.stands_for for call in run.calls())
                assert report.requests == len(server.requests)
                assert report.requests == sum(model.admitted for model in run.statistics().values())
                assert report.requests == sum(call.attempts for call in run.calls())
            assert report.merged and report.retries and report.failed and bool(report.replayed) == (journal == "memory")


def test_python_functions_are_no_calls(drawn):
    with ember.session(providers={"barred": until_drawn(drawn)}, progress=True) as run:
        jax.block_until_ready(jax.vmap(ember.jit(lambda word: loud(llm(loud(word)))))(words))
        assert [(bar.total, bar.n) for bar in drawn] == [(6, 6)] and run.report().calls == 6
        jax.block_until_ready(jax.vmap(ember.jit(loud))(words))
    assert sum(bar.total > 0 for bar in drawn) == 1


# -- before the first call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [jax.vmap, lambda op: ember.jit(jax.vmap(op))])
def test_while_a_program_is_traced_the_bar_says_so_and_the_same_bar_shows_its_calls(how, drawn):
    """The program waits, while it is traced, for what the bar says of that."""
    told = []

    def traced(word):
        end = time.monotonic() + _HANG
        while not told or "compiling" not in told[-1]:
            told.extend(bar.bar_format for bar in drawn if bar.seen.is_set())
            assert time.monotonic() < end
            time.sleep(0.001)
        return llm(word)

    with ember.session(providers={"barred": until_drawn(drawn)}, progress=True):
        op = how(ember.jit(traced))
        jax.block_until_ready(op(words))
        assert [(bar.total, bar.n, bar.is_closed, bar.leave) for bar in drawn] == [(6, 6, True, True)]
        assert drawn[0].bar_format == progress._FORMAT
        told.clear()
        drawn[0].seen.clear()
        told.append("compiling, if it were traced again")
        jax.block_until_ready(op(words + "!"))
    assert all("compiling" not in words for words in drawn[1].formats)


def test_a_bar_of_what_was_only_traced_leaves_no_line(drawn):
    def traced(word):
        end = time.monotonic() + _HANG
        while not any(bar.seen.is_set() for bar in list(drawn)):
            assert time.monotonic() < end
            time.sleep(0.001)
        return llm(word)

    with ember.session(providers={"barred": Callable(lambda request: "x")}, progress=True):
        jax.make_jaxpr(ember.jit(traced))(words[0])
    assert [(bar.n, bar.is_closed, bar.leave) for bar in drawn] == [(0, True, False)]


def test_before_the_first_call_of_a_sweep_the_bar_says_that_there_is_none(drawn):
    def waits(word):
        end = time.monotonic() + _HANG
        while not any(progress._NO_CALL in bar.formats for bar in list(drawn)):
            assert time.monotonic() < end
            time.sleep(0.001)
        return word

    first = ember.host(waits, out=ember.Text)
    with ember.session(providers={"barred": until_drawn(drawn)}, progress=True):
        jax.block_until_ready(jax.vmap(ember.jit(lambda word: llm(first(word))))(words))
    assert [(bar.total, bar.n, bar.formats[-1]) for bar in drawn] == [(6, 6, progress._FORMAT)]


# -- where it is shown -----------------------------------------------------------------------------------------------


class Terminal:
    def isatty(self):
        return True


def swept(drawn, **settings):
    with ember.session(providers={"barred": until_drawn(drawn)}, **settings):
        return jax.block_until_ready(jax.vmap(ember.jit(llm))(words))


def test_a_bar_is_drawn_on_a_terminal_and_closed_when_the_sweep_ends(drawn, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    swept(drawn)
    (bar,) = drawn
    assert (bar.total, bar.n, bar.is_closed) == (6, 6, True)
    assert bar.words.endswith("/s, cost unknown")


def test_each_sweep_has_a_bar_of_its_own_and_its_own_counts(drawn):
    with ember.session(providers={"barred": until_drawn(drawn)}, progress=True):
        jax.block_until_ready(jax.vmap(ember.jit(llm))(words))
        assert drawn[0].is_closed
        drawn[0].seen.clear()
        jax.block_until_ready(jax.vmap(ember.jit(lambda w: llm(w + "!")))(words[:4]))
    assert [(bar.total, bar.n, bar.is_closed) for bar in drawn] == [(6, 6, True), (4, 4, True)]


def test_the_processs_own_session_shows_a_bar_too(drawn, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    ember.register("progressing", until_drawn(drawn))
    jax.block_until_ready(jax.vmap(ember.jit(ember.LLM("progressing/m")))(words))
    assert [(bar.total, bar.n, bar.is_closed) for bar in drawn] == [(6, 6, True)]


def test_a_batch_outside_of_operators_shows_a_bar(drawn):
    with ember.session(providers={"barred": until_drawn(drawn)}, progress=True):
        jax.block_until_ready(jax.vmap(llm)(words))
    assert [(bar.total, bar.n, bar.is_closed) for bar in drawn] == [(6, 6, True)]


def quiet(settings, drawn):
    with ember.session(providers={"barred": Callable(lambda request: "x")}, **settings):
        jax.block_until_ready(jax.vmap(ember.jit(llm))(words))
    assert not drawn and progress._bar is None


def test_no_bar_is_drawn_where_nobody_looks_or_wants_it(drawn, monkeypatch):
    quiet({}, drawn)
    monkeypatch.setattr(sys, "stderr", None)
    quiet({}, drawn)
    monkeypatch.setattr(sys, "stderr", Terminal())
    quiet({"progress": False}, drawn)


def test_no_bar_is_drawn_of_what_ends_sooner_than_its_delay(drawn, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 1e6)
    quiet({"progress": True}, drawn)


def test_virtual_time_has_no_bar(drawn):
    async def answer(request):
        await asyncio.sleep(7)
        return "x"

    with VirtualClock() as clock, ember.session(providers={"barred": Callable(answer)}, progress=True):
        jax.block_until_ready(jax.vmap(ember.jit(llm))(words))
        assert clock.now == 7
    assert not drawn


# -- several, and ends -----------------------------------------------------------------------------------------------


class Counted:
    """In place of a session: what it has counted."""

    def __init__(self, **counts):
        names = ("cost_usd", "waiting", "retries", "throttled", "failed", "replayed", "merged")
        self.counts = {**dict.fromkeys(names, 0), **counts}
        self.holds = []

    def counted(self):
        return dict(self.counts)

    def held(self):
        return self.holds


def test_sweeps_that_overlap_share_one_bar_with_what_was_counted_since(drawn):
    first, second = Counted(cost_usd=9.0, failed=9), Counted()
    inner, outer = progress.Tally(10), progress.Tally(20)

    async def overlapping():
        with progress.shown(outer, first):
            outer.begun, outer.ended = 8, 3
            with progress.shown(inner, second):
                inner.begun = inner.ended = 10
                first.counts.update(cost_usd=9.5, waiting=2, retries=1)
                first.holds = ["openai/m waits 59 s for the service, which asked to wait (429)"]
                second.counts.update(cost_usd=0.25, throttled=4)
            while not (drawn and drawn[0].n == 13):
                await asyncio.sleep(0.001)
            assert not drawn[0].is_closed
            outer.begun, outer.ended = 20, 20
            first.counts["waiting"] = 0
            first.holds = []

    words_seen = []
    refresh = Drawn.refresh
    try:
        Drawn.refresh = lambda self: (words_seen.append((self.n, self.words[self.words.index("$") :])), refresh(self))
        on_loop(overlapping())
    finally:
        Drawn.refresh = refresh
    (bar,) = drawn
    assert (bar.total, bar.n, bar.is_closed) == (30, 30, True)
    held = "openai/m waits 59 s for the service, which asked to wait (429)"
    assert (13, f"$0.7500, 3 in flight, 2 waiting, 1 retries, 4 throttled, {held}") in words_seen
    assert bar.words.endswith("/s, $0.7500, 1 retries, 4 throttled")


@pytest.mark.parametrize(
    ("calls", "seconds", "left", "words"),
    [
        (0, 10.0, 5, "0/s"),
        (20, 10.0, 0, "2/s"),
        (20, 10.0, 150, "2/s, 01:15 left"),
        (1, 100.0, 40, "0.01/s, 1:06:40 left"),
    ],
)
def test_the_time_left_is_that_of_what_is_left_at_the_rate(calls, seconds, left, words):
    assert progress._pace(calls, seconds, left) == words


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_a_sweep_that_does_not_end_well_closes_its_bar(drawn, error):
    async def failing():
        with progress.shown(progress.Tally(5), Counted()):
            while not (drawn and drawn[0].seen.is_set()):
                await asyncio.sleep(0.001)
            raise error

    with pytest.raises(BaseException) as caught:
        on_loop(failing())
    assert caught.type.__name__ == error.__name__
    assert [(bar.total, bar.n, bar.is_closed) for bar in drawn] == [(5, 0, True)]
    assert progress._bar is None


def test_a_terminal_that_is_gone_harms_no_call(drawn, monkeypatch):
    def gone(self):
        self.seen.set()
        raise BrokenPipeError

    monkeypatch.setattr(Drawn, "refresh", gone)
    assert swept(drawn, progress=True)[1] == "WORD 1"


CHILD = """
import asyncio, sys
import jax
import ember_jax as ember
from ember_jax.providers.openai import OpenAI
from ember_jax._runtime import progress

progress._CLOSE_SECONDS = 60  # a machine that is slow closes the bar too

async def answer(request):
    await asyncio.sleep(2 * progress.DELAY)
    return "x"

with ember.session(providers={"ours": ember.providers.Callable(answer)}):
    jax.vmap(ember.LLM("ours/m"))(ember.text([str(i) for i in range(1234)]))
    print("the next line", file=sys.stderr)
"""


def test_a_terminal_shows_the_bar_and_then_the_next_line():
    ours, theirs = pty.openpty()
    # a width, which a new terminal has not
    script = "import fcntl, struct, termios\nfcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack('4H', 30, 120, 0, 0))\n"
    command = [sys.executable, "-c", script + textwrap.dedent(CHILD)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
    os.close(ours)
    assert child.returncode == 0, shown.decode()
    *_, bar, line, rest = shown.decode().split("\n")
    assert (line.strip("\r"), rest) == ("the next line", "")
    last = bar.strip("\r").split("\r")[-1]
    assert last.startswith("100%|") and "1,234/1,234 calls [" in last and "cost unknown" in last


def test_a_terminal_is_told_of_the_compilation_first_and_of_no_call_that_is_none():
    made = progress._tqdm(0)
    try:
        assert made.bar_format == progress._COMPILING
        shown = made.format_meter(**made.format_dict)
        assert "0/0" not in shown and "compiling" in shown
    finally:
        made.leave = False
        made.close()
