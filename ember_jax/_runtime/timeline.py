"""Which bar stands where: a session's calls as rows of bars, by endpoint or by lane.

Design note. Bars of one group (the requests to one model, or the calls of one lane) are taken in the order in which
they begin, and each is put into the lowest row that is free. This is the greedy colouring of an interval graph, and it
is optimal: a group has as many rows as it has bars at once. So the rows of a model are its requests in flight. Times
are whole microseconds from here on: as floats, two bars of which one begins when the other ends might overlap by a
rounding error, and take a row too many.
"""

import heapq
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from .events import How

By = Literal["endpoint", "lane"]
# What a bar shows: `call` is a call as a whole; `waiting` is a wait, for the call's turn or before another attempt;
# `answered`, `throttled` and `failed` are one request, by how it ended; `replayed` and `merged` (and `failed`, too) are
# a call that sent no request.
Kind = Literal["call", "waiting", "answered", "throttled", "failed", "replayed", "merged"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HOWS: tuple[How, ...] = get_args(How)

# One call, and one request, as rows of arrays; `Record` says what stands in them.
CALL = np.dtype(
    [
        *((name, "<f8") for name in ("began", "ended", "input_tokens", "output_tokens", "cost", "stands_for")),
        *((name, "<u4") for name in ("scope", "model", "error", "attempts")),
        *((name, "u1") for name in ("how", "axes")),
    ]
)
ATTEMPT = np.dtype([("began", "<f8"), ("ended", "<f8"), ("error", "<u4"), ("status", "<i4")])
_CODE = {kind: np.uint8(code) for code, kind in enumerate(KINDS)}
_OF_HOW = np.array([_CODE[how] for how in HOWS], np.uint8)


class Record(NamedTuple):
    """Calls that have ended, and the requests that were sent for them.

    **Fields:**

    - `calls`: an array of dtype `CALL`, one row for each call. Times are in seconds since 1970. `scope`, `model` and
        `error` are indices into `names`; `how` is one into `HOWS`; `attempts` counts the call's requests, and `axes`
        the axes of its lane.
    - `attempts`: an array of dtype `ATTEMPT`, one row for each request: first those of the first call, then those of
        the second, and so on. `error` is an index into `names`, 0 for none; `status` is the HTTP status, 0 for none.
    - `lanes`: the lane of each call.
    - `names`: words; the first one is empty.
    - `left_out`: how many more calls there were.
    """

    calls: np.ndarray
    attempts: np.ndarray
    lanes: list[tuple[int, ...]]
    names: list[str]
    left_out: int = 0

    @property
    def zero(self) -> float:
        """The time of the first call, in seconds since 1970."""
        return float(self.calls["began"].min(initial=np.inf)) if len(self.calls) else 0.0

    @property
    def first(self) -> np.ndarray:
        """For each call the index in `attempts` of its first request."""
        return np.cumsum(self.calls["attempts"]) - self.calls["attempts"]

    def micros(self, seconds: np.ndarray) -> np.ndarray:
        """Times as whole microseconds since the first call."""
        return np.rint((seconds - self.zero) * 1e6).astype(np.int64)


class Bars(NamedTuple):
    """Bars, as arrays of equal length.

    **Fields:**

    - `start`, `end`: in microseconds since the first call.
    - `row`: the index of its row.
    - `kind`: an index into `KINDS`.
    - `call`: the index of the call that it shows.
    - `attempt`: which of the call's requests it shows, from 1; 0 if it shows no request.
    - `level`: 0, or 1 for a bar that stands inside another bar.
    """

    start: np.ndarray
    end: np.ndarray
    row: np.ndarray
    kind: np.ndarray
    call: np.ndarray
    attempt: np.ndarray
    level: np.ndarray


class Row(NamedTuple):
    """One row: the group that it belongs to, which is a model or an operator, and its own name."""

    group: str
    name: str


class Timeline(NamedTuple):
    """Bars and their rows."""

    bars: Bars
    rows: list[Row]


def timeline(record: Record, by: By) -> Timeline:
    """The bars of a record: one row for each request in flight at once of a model, or for each lane.

    **Raises:** `ValueError` if `by` is neither.
    """
    if by not in get_args(By):
        raise ValueError(f"by={by!r}: give 'endpoint' for a row per request in flight, or 'lane' for a row per lane.")
    return _by_endpoint(record) if by == "endpoint" else _by_lane(record)


def requests(record: Record) -> Bars:
    """A bar for each request that was sent; all are in row 0 yet."""
    of = np.repeat(np.arange(len(record.calls)), record.calls["attempts"])
    number = np.arange(len(of)) - record.first[of] + 1
    kind = np.where(record.attempts["status"] == 429, _CODE["throttled"], _CODE["failed"])
    kind = np.where(record.attempts["error"] == 0, _CODE["answered"], kind)
    start, end = record.micros(record.attempts["began"]), record.micros(record.attempts["ended"])
    return Bars(start, end, np.zeros_like(of), kind, of, number, np.zeros_like(of))


def level(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of some intervals overlap, as a step function: the times of its steps, ascending, and its values there.

    An interval does not contain its end.
    """
    times, place = np.unique(np.concatenate([start, end]), return_inverse=True)
    change = np.zeros(len(times), np.int64)
    np.add.at(change, place[: len(start)], 1)
    np.add.at(change, place[len(start) :], -1)
    return times, np.cumsum(change)


def packed(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """For intervals in the order in which they begin, the row of each: the lowest one that is free."""
    busy: list[tuple[int, int]] = []  # a heap of the rows in use, each as (when it becomes free, row)
    free: list[int] = []  # a heap
    rows: list[int] = []
    for begins, ends in zip(start.tolist(), end.tolist(), strict=True):
        while busy and busy[0][0] <= begins:
            heapq.heappush(free, heapq.heappop(busy)[1])
        rows.append(heapq.heappop(free) if free else len(busy))
        heapq.heappush(busy, (ends, rows[-1]))
    return np.array(rows, np.int64)


def _by_endpoint(record: Record) -> Timeline:
    """A bar for each request, and a point for each call that sent none."""
    bars = _joined([_without_request(record), requests(record)])
    models = record.calls["model"].astype(np.int64)[bars.call]
    # Two groups for each model: the even one for calls without a request, which so stand above the requests.
    bars, places = _placed(bars, 2 * models + (bars.attempt > 0))
    rows = [
        Row(record.names[group // 2], f"request {row + 1}" if group % 2 else "without a request")
        for group, row in places
    ]
    return Timeline(bars, rows)


def _by_lane(record: Record) -> Timeline:
    """A bar for each call, and inside it one for each request and each wait before one."""
    start, end = record.micros(record.calls["began"]), record.micros(record.calls["ended"])
    roots = [record.names[scope].partition("/")[0] for scope in record.calls["scope"]]
    lanes = list(zip(roots, record.lanes, strict=True))
    sorted_lanes = sorted(set(lanes))
    number = {lane: k for k, lane in enumerate(sorted_lanes)}
    count = np.arange(len(record.calls))
    zeros = np.zeros_like(count)
    kind = np.where(record.calls["attempts"] > 0, _CODE["call"], _OF_HOW[record.calls["how"]])
    calls = Bars(start, end, zeros, kind, count, zeros, zeros)
    calls, places = _placed(calls, np.array([number[lane] for lane in lanes], np.int64))
    inside = requests(record)
    # A wait ends where a request begins. It begins with the call, or where the request before ended.
    before = np.where(inside.attempt == 1, start[inside.call], np.roll(inside.end, 1))
    waits = inside._replace(start=before, end=inside.start, kind=np.full_like(inside.kind, _CODE["waiting"]))
    waits = Bars(*(column[waits.end > waits.start] for column in waits))
    nested = _joined([waits, inside])
    nested = nested._replace(row=calls.row[nested.call], level=np.ones_like(nested.level))
    rows = []
    for group, row in places:
        root, lane = sorted_lanes[group]
        again = f" ({row + 1})" if row else ""  # a lane that makes several calls at once has several rows
        rows.append(Row(root, f"lane {', '.join(map(str, lane)) or '0'}{again}"))
    return Timeline(_joined([calls, nested]), rows)


def _without_request(record: Record) -> Bars:
    """A bar of no length, at the call's end, for each call that sent no request."""
    (of,) = np.nonzero(record.calls["attempts"] == 0)
    at, zeros = record.micros(record.calls["ended"][of]), np.zeros_like(of)
    return Bars(at, at, zeros, _OF_HOW[record.calls["how"][of]], of, zeros, zeros)


def _placed(bars: Bars, groups: np.ndarray) -> tuple[Bars, list[tuple[int, int]]]:
    """Puts bars into rows by their groups. Returns them, and for each row its group and its number in the group."""
    order = np.lexsort((bars.start, groups))
    row = np.zeros(len(order), np.int64)
    places: list[tuple[int, int]] = []
    for part in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(part):
            mine = packed(bars.start[part], bars.end[part])
            row[part] = len(places) + mine
            places += [(int(groups[part[0]]), k) for k in range(int(mine.max()) + 1)]
    return bars._replace(row=row), places


def _joined(parts: Sequence[Bars]) -> Bars:
    return Bars(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
