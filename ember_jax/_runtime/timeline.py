"""Which bar stands where: a session's calls as rows of bars, by endpoint or by lane.

Design note. Bars of one group (the requests to one model, the calls of one lane) are packed first fit in order of their
begin, each into the lowest row that is free. That is the greedy colouring of an interval graph, and optimal: a group
has as many rows as it has bars at once, so the rows of a model are its requests in flight. Times are whole microseconds
from here on, so that no rounding can make neighbours overlap.
"""

import heapq
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from .events import Ending

By = Literal["endpoint", "lane"]
# What a bar shows: a call as a whole, a wait (for its turn, or to try again), one request by how it ended, or a call
# that sent none.
BarKind = Literal["call", "waiting", "answered", "throttled", "failed", "replayed", "merged"]
KINDS: tuple[BarKind, ...] = get_args(BarKind)
HOWS: tuple[Ending, ...] = get_args(Ending)

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


class TraceRecord(NamedTuple):
    """Calls that have ended, and the requests that were sent for them.

    **Fields:**

    - `calls`: an array of `CALL`; times in seconds since 1970; scope, model and error are places in `names`.
    - `attempts`: an array of `ATTEMPT`, those of the first call first.
    - `lanes`: of each call.
    - `names`: the words; the first one is empty.
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
        """Where each call's requests begin."""
        return np.cumsum(self.calls["attempts"]) - self.calls["attempts"]

    def micros(self, seconds: np.ndarray) -> np.ndarray:
        """Times as whole microseconds since the first call."""
        return np.rint((seconds - self.zero) * 1e6).astype(np.int64)


class Bars(NamedTuple):
    """Bars, as arrays of equal length.

    **Fields:**

    - `start`, `end`: in microseconds since the first call.
    - `row`: where it stands.
    - `kind`: a place in `KINDS`.
    - `call`: the call that it is of, and `attempt` which of its requests, from 1; 0 for what is none.
    - `level`: 0, or 1 for what stands inside another bar.
    """

    start: np.ndarray
    end: np.ndarray
    row: np.ndarray
    kind: np.ndarray
    call: np.ndarray
    attempt: np.ndarray
    level: np.ndarray


class BarRow(NamedTuple):
    """One row: the model or the operator that it belongs to, and its own name."""

    group: str
    name: str


class Timeline(NamedTuple):
    """Bars and their rows."""

    bars: Bars
    rows: list[BarRow]


def timeline(record: TraceRecord, by: By) -> Timeline:
    """The bars of a record: one row for each request in flight at once of a model, or for each lane.

    **Raises:** `ValueError` if `by` is neither.
    """
    if by not in get_args(By):
        raise ValueError(f"by={by!r}: give 'endpoint' for a row per request in flight, or 'lane' for a row per lane.")
    return _by_endpoint(record) if by == "endpoint" else _by_lane(record)


def requests(record: TraceRecord) -> Bars:
    """The requests that were sent, in no rows yet."""
    of = np.repeat(np.arange(len(record.calls)), record.calls["attempts"])
    number = np.arange(len(of)) - record.first[of] + 1
    kind = np.where(record.attempts["status"] == 429, _CODE["throttled"], _CODE["failed"])
    kind = np.where(record.attempts["error"] == 0, _CODE["answered"], kind)
    start, end = record.micros(record.attempts["began"]), record.micros(record.attempts["ended"])
    return Bars(start, end, np.zeros_like(of), kind, of, number, np.zeros_like(of))


def level(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many intervals hold each time at which that changes: the times, ascending, and the number from then on."""
    times, place = np.unique(np.concatenate([start, end]), return_inverse=True)
    change = np.zeros(len(times), np.int64)
    np.add.at(change, place[: len(start)], 1)
    np.add.at(change, place[len(start) :], -1)
    return times, np.cumsum(change)


def packed(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """For intervals in the order of their begin, the lowest row that is free."""
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    rows: list[int] = []
    for begins, ends in zip(start.tolist(), end.tolist(), strict=True):
        while busy and busy[0][0] <= begins:
            heapq.heappush(free, heapq.heappop(busy)[1])
        rows.append(heapq.heappop(free) if free else len(busy))
        heapq.heappush(busy, (ends, rows[-1]))
    return np.array(rows, np.int64)


def _by_endpoint(record: TraceRecord) -> Timeline:
    """A bar for each request, and a point for each call that sent none."""
    bars = _joined([_without_request(record), requests(record)])
    models = record.calls["model"].astype(np.int64)[bars.call]
    bars, places = _placed(bars, 2 * models + (bars.attempt > 0))  # points first
    rows = [
        BarRow(record.names[group // 2], f"request {row + 1}" if group % 2 else "without a request")
        for group, row in places
    ]
    return Timeline(bars, rows)


def _by_lane(record: TraceRecord) -> Timeline:
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
    before = np.where(inside.attempt == 1, start[inside.call], np.roll(inside.end, 1))
    waits = inside._replace(start=before, end=inside.start, kind=np.full_like(inside.kind, _CODE["waiting"]))
    waits = Bars(*(column[waits.end > waits.start] for column in waits))
    nested = _joined([waits, inside])
    nested = nested._replace(row=calls.row[nested.call], level=np.ones_like(nested.level))
    rows = []
    for group, row in places:
        root, lane = sorted_lanes[group]
        again = f" ({row + 1})" if row else ""
        rows.append(BarRow(root, f"lane {', '.join(map(str, lane)) or '0'}{again}"))
    return Timeline(_joined([calls, nested]), rows)


def _without_request(record: TraceRecord) -> Bars:
    """A point in time, its end, for each call that sent no request."""
    (of,) = np.nonzero(record.calls["attempts"] == 0)
    at, zeros = record.micros(record.calls["ended"][of]), np.zeros_like(of)
    return Bars(at, at, zeros, _OF_HOW[record.calls["how"][of]], of, zeros, zeros)


def _placed(bars: Bars, groups: np.ndarray) -> tuple[Bars, list[tuple[int, int]]]:
    """Bars in the rows of their groups; of each row the group, and which of the group's rows it is."""
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
