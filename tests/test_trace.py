"""The timeline of a session: rows as few as can be, a file that follows the trace event format, bars that are the
report's counts."""

import asyncio
import collections
import gzip
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax._runtime import timeline
from ember_jax._runtime.events import Attempt, CallEnded
from ember_jax._runtime.trace import Trace
from ember_jax.errors import AuthenticationError, RateLimitError, ServerError
from ember_jax.providers.base import Message, Provider, Request, Response

matplotlib.use("agg")

PROMPT, ANSWER, KEY = "a private question", "a private answer", "sk-a-private-key"


class Scripted(Provider):
    """Answers in capitals, for half a dollar; what `errors` holds comes first, by prompt."""

    def __init__(self, errors=None):
        self.errors = errors or {}

    def check(self, model):
        pass

    async def complete(self, request):
        prompt = request.messages[-1].content
        await asyncio.sleep(0)  # so that equal calls meet
        if self.errors.get(prompt):
            raise self.errors[prompt].pop(0)
        return Response(ANSWER, 3, 5, 0.5)

    async def close(self):
        pass


# -- packing ---------------------------------------------------------------------------------------------------------

intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)), max_size=40).map(
    lambda pairs: sorted((a, a + length) for a, length in pairs)
)


def most_at_once(pairs):
    """Of intervals without their ends, by trying every time; what is empty is at no time but its own."""
    inside = max((sum(a <= t < b for a, b in pairs) for t in range(60)), default=0)
    return max(inside, int(bool(pairs)))


@given(intervals)
def test_a_group_has_as_many_rows_as_bars_at_once(pairs):
    solid = [(a, b) for a, b in pairs if a < b]
    start, end = np.array(solid, np.int64).reshape(-1, 2).T
    rows = timeline.packed(start, end)
    assert max(rows, default=-1) + 1 == most_at_once(solid)
    assert rows.min(initial=0) == 0
    for row in set(rows.tolist()):
        mine = [p for p, r in zip(solid, rows, strict=True) if r == row]
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(mine))


@given(intervals)
def test_a_level_is_how_many_intervals_hold_a_time(pairs):
    start, end = np.array(pairs, np.int64).reshape(-1, 2).T
    times, numbers = timeline.level(start, end)
    for time, number in zip(times.tolist(), numbers.tolist(), strict=True):
        assert number == sum(a <= time < b for a, b in pairs)


# -- the file --------------------------------------------------------------------------------------------------------

ERRORS = [None, RateLimitError("no", status=429), ServerError("no", status=500), ServerError("no")]
seconds = st.floats(-1, 9)  # the clock of the day may be set back


@st.composite
def calls(draw):
    """A call with requests one after another."""
    began, attempts = 1.7e9 + draw(st.floats(0, 9)), []
    at = began
    for error in draw(st.lists(st.sampled_from(ERRORS), max_size=3)):
        start = at + draw(seconds)
        at = start + draw(seconds)
        attempts.append(Attempt(start, at, error))
    how = draw(st.sampled_from(["answered", "failed"] if attempts else ["replayed", "merged", "failed"]))
    error = ServerError("no") if how == "failed" else None
    response = None if error else Response(ANSWER, 3, 5, draw(st.sampled_from([0.5, float("nan")])))
    request = Request("ours", draw(st.sampled_from("ab")), (Message("user", PROMPT),))
    lane = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    scope = draw(st.sampled_from(["", "Net", "Net/vote", "Other"]))
    return CallEnded(b"", request, lane, scope, how, began, at + draw(seconds), response, error, attempts, 1)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def saved(trace, folder, by, name="trace.json"):
    """The bars of a trace that was saved, after the format's rules were found to hold."""
    path = folder / name
    trace.save(path, by=by)
    words = gzip.decompress(path.read_bytes()).decode() if name.endswith("gz") else path.read_text()
    assert PROMPT not in words and ANSWER not in words and KEY not in words
    events = json.loads(words, parse_constant=refuse)["traceEvents"]
    bars = [e for e in events if e["ph"] == "X"]
    names = [e for e in events if e["ph"] == "M"]
    assert len(bars) + len(names) == len(events)
    assert [e["ts"] for e in bars] == sorted(e["ts"] for e in bars)
    processes = {e["pid"]: e["args"]["name"] for e in names if e["name"] == "process_name"}
    threads = {e["tid"]: e["args"]["name"] for e in names if e["name"] == "thread_name"}
    assert len(threads) == sum(e["name"] == "thread_name" for e in names), "a thread is one of the whole file"
    open_bars = collections.defaultdict(list)
    for bar in bars:
        assert bar["pid"] in processes and bar["tid"] in threads
        assert all(type(bar[k]) is int and bar[k] >= 0 for k in ("ts", "dur", "pid", "tid"))
        assert type(bar["name"]) is str and type(bar["cat"]) is str and type(bar["args"]) is dict
        stack = open_bars[bar["tid"]]
        while stack and stack[-1] <= bar["ts"]:
            stack.pop()
        assert not stack or bar["ts"] + bar["dur"] <= stack[-1], "bars of one row stand in each other or apart"
        stack.append(bar["ts"] + bar["dur"])
    return [bar | {"group": processes[bar["pid"]], "row": threads[bar["tid"]]} for bar in bars]


@given(ended=st.lists(calls(), max_size=12))
@pytest.mark.parametrize("by", ["endpoint", "lane"])
def test_a_file_follows_the_trace_event_format(ended, by, tmp_path_factory):
    trace = Trace()
    for call in ended:
        trace.add(call)
    bars = saved(trace, tmp_path_factory.getbasetemp(), by)
    requests = [b for b in bars if "attempt" in b["args"]]
    assert len(requests) == sum(len(call.attempts) for call in ended)
    if by == "lane":
        whole = [b for b in bars if "call" in b["args"]]
        assert len(whole) == len(ended)
        lanes = collections.Counter((b["group"], tuple(b["args"]["lane"])) for b in whole)
        assert lanes == collections.Counter((c.scope.partition("/")[0], c.lane) for c in ended)
    else:
        assert len(bars) == sum(max(1, len(call.attempts)) for call in ended)
        for model in "ab":
            mine = [(b["ts"], b["ts"] + b["dur"]) for b in requests if b["group"] == f"ours/{model}" and b["dur"]]
            rows = {b["row"] for b in requests if b["group"] == f"ours/{model}" and b["dur"]}
            changes = sorted([(a, 1) for a, _ in mine] + [(b, -1) for _, b in mine])
            assert len(rows) == max(np.cumsum([c for _, c in changes]), default=0)


def test_a_lane_shows_its_call_with_its_waits_and_requests(tmp_path):
    trace = Trace()
    request = Request("ours", "a", (Message("user", PROMPT),))
    attempts = [Attempt(1001.0, 1001.5, RateLimitError("no", status=429)), Attempt(1004.0, 1006.0)]
    answer = Response(ANSWER, 3, 5, 0.5)
    trace.add(CallEnded(b"", request, (2, 7), "Net/vote", "answered", 1000.0, 1006.25, answer, None, attempts, 3))
    call, *inside = saved(trace, tmp_path, "lane")
    assert (call["group"], call["row"], call["name"]) == ("Net", "lane 2, 7", "ours/a")
    assert (call["ts"], call["dur"]) == (0, 6_250_000)
    assert call["args"] == {
        "scope": "Net/vote",
        "lane": [2, 7],
        "model": "ours/a",
        "how": "answered",
        "attempts": 2,
        "input_tokens": 3,
        "output_tokens": 5,
        "cost_usd": 0.5,
        "stands_for": 3,
        "call": 0,
    }
    assert [(b["name"], b["cat"], b["ts"], b["dur"], b["args"]) for b in inside] == [
        ("waits for its turn", "waiting", 0, 1_000_000, {}),
        ("request 1", "throttled", 1_000_000, 500_000, {"attempt": 1, "error": "RateLimitError", "status": 429}),
        ("waits to try again", "waiting", 1_500_000, 2_500_000, {}),
        ("request 2", "answered", 4_000_000, 2_000_000, {"attempt": 2}),
    ]


def test_calls_of_a_lane_that_overlap_stand_in_rows_of_their_own(tmp_path):
    trace = Trace()
    for began in (0.0, 1.0, 2.0):  # each takes two seconds: two at once
        request = Request("ours", "a", ())
        trace.add(CallEnded(b"", request, (4,), "Net", "merged", began, began + 2, Response("x"), None, [], 1))
    assert [b["row"] for b in saved(trace, tmp_path, "lane")] == ["lane 4", "lane 4 (2)", "lane 4"]


# -- a session's -----------------------------------------------------------------------------------------------------


def swept():
    """A session with calls of every kind."""
    errors = {
        "weak": [ServerError(KEY), RateLimitError(KEY, status=429)],
        "bad": [AuthenticationError(KEY, status=401)],
    }
    with ember.session(providers={"ours": Scripted(errors)}, retry=ember.Retry(first=0, longest=0)) as run:
        llm = ember.LLM("ours/m", system=PROMPT)
        ask, key = ember.jit(lambda word, key: llm(word, key)), jax.random.key(0)
        thrice = ember.jit(lambda word: [llm(word, key) for _ in range(3)])
        jax.block_until_ready(jax.vmap(ask)(ember.text(["x", "x", "weak"]), jnp.stack([key] * 3)))
        jax.block_until_ready((ask(ember.text("x"), key), thrice(ember.text("three"))))
        with pytest.raises(AuthenticationError):
            ask(ember.text("bad"), key)
    return run


@pytest.mark.parametrize("by", ["endpoint", "lane"])
def test_the_bars_are_the_reports_counts(by, tmp_path):
    run = swept()
    report, bars = run.report(), saved(run.trace, tmp_path, by)
    kinds = collections.Counter(b["cat"] for b in bars if "attempt" in b["args"])
    assert sum(kinds.values()) == report.requests
    assert kinds["throttled"] == report.throttled == 1
    assert kinds["failed"] + kinds["throttled"] == report.failed
    made = {b["args"]["call"]: b["args"] for b in bars if "call" in b["args"]}.values()
    assert sum(args["stands_for"] for args in made) == report.calls == 8
    hows = collections.Counter(args["how"] for args in made)
    assert (hows["replayed"], hows["failed"]) == (report.replayed, 1)
    assert hows["merged"] + sum(args["stands_for"] - 1 for args in made) == report.merged
    answered = [args for args in made if args["how"] == "answered"]
    assert sum(args["cost_usd"] for args in answered) == report.cost_usd
    assert report.cost_usd + report.saved_usd == 0.5 * (report.calls - 1), "what all calls but the failed one are worth"
    assert sum(args["output_tokens"] for args in answered) == report.output_tokens
    assert sum(args["attempts"] - 1 for args in answered) == report.retries


def test_a_trace_is_compressed_where_the_name_says_so(tmp_path):
    run = swept()
    assert saved(run.trace, tmp_path, "lane", "trace.json.gz") == saved(run.trace, tmp_path, "lane")


def test_a_trace_may_be_saved_while_calls_run(tmp_path):
    with ember.session(providers={"ours": Scripted()}) as run:
        save = ember.host(lambda word: run.trace.save(tmp_path / f"{word}.json") or word, ember.Text, pure=False)
        ask = ember.jit(lambda word: save(ember.LLM("ours/m")(word)) + word)
        jax.block_until_ready(jax.vmap(ask)(ember.text([str(i) for i in range(50)])))
    assert len(run.trace) == 50
    assert json.loads((tmp_path / f"{ANSWER}.json").read_text())["otherData"]["calls"] <= 50


def test_what_is_no_name_and_no_order_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.json or \.json\.gz"):
        Trace().save(tmp_path / "trace.txt")
    with pytest.raises(ValueError, match=r"by='model'.*'endpoint'.*'lane'"):
        Trace().save(tmp_path / "trace.json", by="model")


def test_a_trace_is_bounded_and_says_what_it_left_out(tmp_path):
    trace = Trace(most=2)
    for number in range(5):
        request = Request("ours", str(number), ())
        trace.add(CallEnded(b"", request, (number,), "Net", "replayed", 1.0, 1.0, Response("x"), None, [], 1))
    assert (len(trace), repr(trace)) == (2, "Trace(2 calls, 3 more left out)")
    trace.save(tmp_path / "trace.json")
    about = json.loads((tmp_path / "trace.json").read_text())["otherData"]
    assert (about["calls"], about["calls_left_out"]) == (2, 3)


def test_a_call_takes_less_than_a_hundred_bytes():
    trace = Trace()
    request, answer = Request("ours", "a", ()), Response("x", 1, 2, 0.5)
    for lane in range(1000):
        attempt = [Attempt(1.0, 2.0)]
        trace.add(CallEnded(b"", request, (lane,), "Net", "answered", 1.0, 2.0, answer, None, attempt, 1))
    record = trace.record()
    assert record.calls.nbytes + record.attempts.nbytes + 8 * len(record.lanes) <= 100 * 1000
    assert record.lanes == [(lane,) for lane in range(1000)]
    assert record.names == ["", "Net", "ours/a"]


# -- the picture -----------------------------------------------------------------------------------------------------


def drawn(ax):
    """How many bars were drawn."""
    return sum(len(c.get_paths()) for c in ax.collections)


def test_a_picture_has_the_bars_and_what_was_in_flight_below():
    run = swept()
    for by in ("endpoint", "lane"):
        laid = timeline.timeline(run.trace.record(), by)
        ax = run.trace.plot(by=by)
        assert drawn(ax) == np.sum(laid.bars.kind != timeline.KINDS.index("call"))
        assert ax.figure.axes[1].get_ylabel() == "in flight"
        ax.figure.canvas.draw()
        matplotlib.pyplot.close(ax.figure)


def test_a_picture_is_drawn_in_axes_that_are_given_and_of_nothing():
    figure, (left, right) = matplotlib.pyplot.subplots(1, 2)
    assert swept().trace.plot(ax=left) is left
    assert Trace().plot(ax=right) is right
    assert drawn(left) > 0 == drawn(right)
    figure.canvas.draw()
    matplotlib.pyplot.close(figure)


def test_without_matplotlib_a_picture_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "ember_jax\[plot\]"'):
        Trace().plot()
