"""A session's timeline as a picture: its bars over time, and below them how many requests were in flight."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .timeline import KINDS, Bars, Kind, Record, Timeline, level, requests

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people tell apart too. The kind "call" is not drawn: the bars inside it
# show its whole time.
_COLOURS: dict[Kind, str] = {
    "waiting": "#d9d9d9",
    "answered": "#0072b2",
    "replayed": "#009e73",
    "merged": "#56b4e9",
    "throttled": "#e69f00",
    "failed": "#d55e00",
}
# Up to so many rows each row has its own label. With more only each group has one.
_NAMED = 24
# From so many rows on there is no space between the rows.
_APART = 64
# A bar is drawn at least as long as this share of the whole time. A shorter one could not be seen.
_SHORTEST = 0.002


def draw(record: Record, laid: Timeline, ax: "Axes | None") -> "Axes":
    """Draws a timeline in `ax`, or in the axes of a new figure, and returns the axes of the bars.

    **Raises:** `ImportError` without matplotlib.
    """
    try:  # imported where somebody wants a picture: it is heavy, and optional
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'trace.plot() needs matplotlib: `pip install "ember_jax[plot]"`. trace.save() does without it.'
        ) from error
    unit, name = _unit(record)
    axes = [ax] if ax is not None else _figure(record, laid, unit, plt.subplots)
    _draw_bars(axes[0], laid, unit)
    _name_rows(axes[0], laid)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    axes[-1].xaxis.set_major_formatter(f"{{x:g}} {name}")
    if record.left_out:
        note = f"the first {len(record.calls):,} calls; {record.left_out:,} more left out"
        axes[0].set_title(note, loc="left", fontsize=8)
    return axes[0]


def _figure(record: Record, laid: Timeline, unit: float, subplots: Any) -> "list[Axes]":
    """The axes of a new figure: first those of the bars, still empty; below those of the counts, already drawn."""
    counts = list(_counts(record))
    heights = [2.5 + min(len(laid.rows), 40) / 8, *(0.6 for _ in counts)]
    size = 10, sum(heights) + 0.6
    _, axes = subplots(len(heights), sharex=True, height_ratios=heights, figsize=size, layout="constrained")
    for ax, (label, colour, times, numbers) in zip(axes[1:], counts, strict=True):
        ax.fill_between(times / unit, numbers, step="post", color=colour, linewidth=0)
        ax.set_ylim(0, 1.08 * max(numbers.max(initial=0), 1))
        ax.set_ylabel(label, fontsize=8)
        ax.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    return list(axes)


def _unit(record: Record) -> tuple[float, str]:
    """The unit of the time axis, by the longest time: its length in microseconds, and its name."""
    longest = record.micros(record.calls["ended"]).max(initial=0)
    return next(((u, n) for u, n in [(3.6e9, "h"), (6e7, "min"), (1e6, "s")] if longest > 2 * u), (1e3, "ms"))


def _draw_bars(ax: Any, laid: Timeline, unit: float) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    bars = laid.bars
    span = bars.end.max(initial=0) / unit
    shown: list[Any] = []
    for kind, colour in _COLOURS.items():  # a later kind is drawn above an earlier one, and the later kinds are rarer
        rectangles = _rectangles(bars, bars.kind == KINDS.index(kind), unit, span)
        if len(rectangles):
            # No edges. They would keep a bar visible that is thinner than a pixel, but merge dense rows into one block.
            ax.add_collection(PolyCollection(list(rectangles), facecolors=colour, linewidths=0))
            shown.append(Patch(color=colour, label=f"{kind} ({len(rectangles):,})"))
    ax.set_xlim(0, span or 1)
    ax.set_ylim(max(len(laid.rows), 1) - 0.5, -0.5)
    if shown:
        ax.legend(handles=shown, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(shown), frameon=False, fontsize=8)


def _rectangles(bars: Bars, chosen: np.ndarray, unit: float, span: float) -> np.ndarray:
    """The corners of the chosen bars, as an array of shape bars x 4 x 2."""
    left, row = bars.start[chosen] / unit, bars.row[chosen]
    right = np.maximum(bars.end[chosen] / unit, left + _SHORTEST * span)
    half = 0.42 if bars.row.max(initial=0) < _APART else 0.5
    return np.stack([left, row - half, right, row - half, right, row + half, left, row + half], -1).reshape(-1, 4, 2)


def _counts(record: Record) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """What is counted over time: the requests in flight, and the calls that wait, if there are any.

    Each is its label, its colour, times in microseconds, and the number from each time on.
    """
    sent = requests(record)
    yield "in flight", _COLOURS["answered"], *level(sent.start, sent.end)
    sends = record.calls["attempts"] > 0
    began, last = record.micros(record.calls["began"][sends]), (record.first + record.calls["attempts"])[sends] - 1
    # A call waits from when it is asked for until its last request has ended, except while a request is in flight.
    times, waiting = level(np.concatenate([began, sent.end]), np.concatenate([sent.end[last], sent.start]))
    if waiting.any():
        yield "waiting", _COLOURS["waiting"], times, waiting


def _name_rows(ax: Any, laid: Timeline) -> None:
    """Labels each row if there are few of them, else each group. A line stands between two groups."""
    groups = [(group, len(list(rows))) for group, rows in itertools.groupby(laid.rows, key=lambda row: row.group)]
    ends = np.cumsum([0, *(size for _, size in groups)])
    for end in ends[1:-1]:
        ax.axhline(end - 0.5, color="#999999", linewidth=0.5)
    if len(laid.rows) <= _NAMED:
        labels = [row.name if len(groups) == 1 else f"{row.group}  {row.name}" for row in laid.rows]
        ax.set_yticks(range(len(laid.rows)), labels, fontsize=8)
        if len(groups) == 1:
            ax.set_ylabel(groups[0][0])
    else:
        labels = [f"{group}\n{size:,} rows" for group, size in groups]
        ax.set_yticks((ends[:-1] + ends[1:] - 1) / 2, labels, fontsize=8)
        ax.tick_params(axis="y", length=0)
