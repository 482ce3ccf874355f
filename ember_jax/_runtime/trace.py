"""When each call of a session was made, as rows of a hundred bytes; saved for Perfetto, drawn by matplotlib.

Design note. Every session records a trace, without being asked to: when a user wants to see one, the calls have been
made. So it has to be cheap. A call takes two microseconds, and 98 bytes if it has one request and one lane axis. Each
word is kept once, rows are packed into byte buffers that only grow, and NumPy reads the buffers as they are. The number
of calls is bounded, and so is the memory.
"""

import gzip
import json
import math
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import plot
from .events import CallEnded
from .timeline import ATTEMPT, CALL, HOWS, KINDS, By, Record, Timeline, timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# These pack the rows of the dtypes `CALL` and `ATTEMPT`; NumPy reads what they write, so both must agree.
_pack_call = struct.Struct("<6d4I2B").pack
_pack_attempt = struct.Struct("<2dIi").pack
# How many calls are kept: a hundred megabytes of them.
_MOST = 1_000_000
_HOW = {how: code for code, how in enumerate(HOWS)}


class Trace:
    """The calls of a session, with when and how each was made. It holds no prompts and no answers.

    **Arguments:**

    - `most`: how many calls are kept, the first ones of the session. The later ones are only counted.
    """

    def __init__(self, most: int = _MOST):
        self._most = most
        self._calls, self._attempts, self._axes = bytearray(), bytearray(), array("q")
        self._count = 0
        self._names = {"": 0}

    def add(self, call: CallEnded) -> None:
        """Notes a call that has ended. Called on the event loop, and never twice at once."""
        self._count += 1
        if self._count > self._most:
            return
        number, request, at = self._number, call.request, call.began
        for began, ended, error in call.attempts:
            # The system's clock may be set back while a call runs. Without the two `max` a bar would end before it
            # begins, or before the one before it.
            began = max(at, began)
            at = max(began, ended)
            told = (0, 0) if error is None else (number(type(error).__name__), error.status or 0)
            self._attempts += _pack_attempt(began, at, *told)
        self._axes.extend(call.lane)
        response, error = call.response, call.error
        used = (0, 0, 0) if response is None else (response.input_tokens, response.output_tokens, response.cost)
        self._calls += _pack_call(
            call.began,
            max(at, call.ended),
            *used,
            call.stands_for,
            number(call.scope),
            number(f"{request.provider}/{request.model}"),
            0 if error is None else number(type(error).__name__),
            len(call.attempts),
            _HOW[call.how],
            len(call.lane),
        )

    def _number(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def __len__(self) -> int:
        return min(self._count, self._most)

    def __repr__(self) -> str:
        left = max(0, self._count - self._most)
        return f"Trace({len(self):,} calls{f', {left:,} more left out' if left else ''})"

    def record(self) -> Record:
        """A copy of what was noted so far; from any thread."""
        # `add` may run meanwhile. It writes a call's row after the call's attempts, lane and names, so the rows are
        # copied first here: all that they refer to is then there. The buffers are copied and not viewed, as a bytearray
        # with a view of it cannot grow, and `add` would fail.
        calls = np.frombuffer(bytes(self._calls), CALL)
        attempts = np.frombuffer(bytes(self._attempts), ATTEMPT)[: int(calls["attempts"].sum())]
        axes, lanes, at = self._axes.tolist(), [], 0
        for many in calls["axes"].tolist():
            lanes.append(tuple(axes[at : at + many]))
            at += many
        return Record(calls, attempts, lanes, list(self._names), max(0, self._count - self._most))

    def save(self, path: str | os.PathLike[str], by: By = "endpoint") -> None:
        """Writes the timeline in Chrome's trace event format, to be opened at ui.perfetto.dev or chrome://tracing.

        **Arguments:**

        - `path`: a file that ends in `.json` or `.json.gz`.
        - `by`: `"endpoint"` for the requests of each model, in as many rows as were in flight at once; `"lane"` for the
            calls of each lane, with their requests and waits inside them.

        Each bar tells operator, lane, model, tokens, cost and how it ended; no prompt, answer or credential.

        **Raises:** `ValueError` for another file ending, or another `by`; `OSError` if the file cannot be written.
        """
        path = Path(path)
        if not path.name.endswith((".json", ".json.gz")):
            raise ValueError(f"trace.save({str(path)!r}): give a file that ends in .json or .json.gz.")
        record = self.record()
        events = _events(record, timeline(record, by), by)
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
            about = {"calls": len(record.calls), "calls_left_out": record.left_out, "zero_unix_s": record.zero}
            file.write(f'{{"displayTimeUnit": "ms", "otherData": {_encode(about)}, "traceEvents": [\n')
            for k, event in enumerate(events):
                file.write(f"{',' if k else ' '}{_encode(event)}\n")
            file.write("]}\n")

    def plot(self, ax: "Axes | None" = None, by: By = "endpoint") -> "Axes":
        """Draws the timeline, and below it how many requests were in flight and how many calls waited.

        **Arguments:**

        - `ax`: matplotlib axes to draw the bars alone in; by default a new figure is made.
        - `by`: as for `save`.

        **Returns:** the axes of the bars; `ax.figure.savefig(…)` saves the picture.

        **Raises:** `ImportError` without matplotlib, `ValueError` for another `by`.
        """
        record = self.record()
        return plot.draw(record, timeline(record, by), ax)


_encode = json.JSONEncoder(allow_nan=False).encode


def _events(record: Record, laid: Timeline, by: By) -> Iterator[dict[str, Any]]:
    """The trace events: the names of the rows, then the bars by their begin, an outer bar before those inside it."""
    bars, rows = laid
    groups = {group: pid for pid, group in enumerate(dict.fromkeys(row.group for row in rows), 1)}
    for group, pid in groups.items():
        yield _named("process_name", pid, 0, name=group)
    for tid, row in enumerate(rows, 1):  # unique in the file: some readers know threads by their number alone
        yield _named("thread_name", groups[row.group], tid, name=row.name)
        yield _named("thread_sort_index", groups[row.group], tid, sort_index=tid)
    first = record.first
    for k in np.lexsort((bars.level, bars.start - bars.end, bars.start)).tolist():
        kind, call, attempt, row = KINDS[bars.kind[k]], int(bars.call[k]), int(bars.attempt[k]), int(bars.row[k])
        event = {"ph": "X", "cat": kind, "ts": int(bars.start[k]), "dur": int(bars.end[k] - bars.start[k])}
        event |= {"pid": groups[rows[row].group], "tid": row + 1}
        if bars.level[k]:
            args = {} if kind == "waiting" else _attempt_args(record, first[call] + attempt - 1, attempt)
            yield event | {"name": _inside(kind, attempt), "args": args}
        else:
            args = _call_args(record, call)
            if attempt:
                args |= _attempt_args(record, first[call] + attempt - 1, attempt)
            yield event | {"name": args["model"] if by == "lane" else args["scope"] or "call", "args": args}


def _named(what: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _inside(kind: str, attempt: int) -> str:
    if kind == "waiting":
        return "waits for its turn" if attempt == 1 else "waits to try again"
    return f"request {attempt}"


def _call_args(record: Record, call: int) -> dict[str, Any]:
    row = record.calls[call]
    args = {
        "scope": record.names[row["scope"]],
        "lane": list(record.lanes[call]),
        "model": record.names[row["model"]],
        "how": HOWS[row["how"]],
        "attempts": int(row["attempts"]),
        "input_tokens": _number(row["input_tokens"]),
        "output_tokens": _number(row["output_tokens"]),
        "cost_usd": _number(row["cost"]),
        "stands_for": int(row["stands_for"]),
        "call": call,
    }
    return args | ({"error": record.names[row["error"]]} if row["error"] else {})


def _attempt_args(record: Record, place: int, attempt: int) -> dict[str, Any]:
    row = record.attempts[place]
    failed = {"error": record.names[row["error"]], "status": int(row["status"]) or None} if row["error"] else {}
    return {"attempt": attempt} | failed


def _number(value: float) -> float | int | None:
    """A number for JSON: an `int` if it is whole; `None` if it is NaN or infinite, which JSON does not have."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(value)
