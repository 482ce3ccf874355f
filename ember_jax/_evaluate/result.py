"""What an evaluation found."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _intervals
from ..errors import unquoted
from . import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# How many causes of failures `str` tells one by one.
_TOLD = 3


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The answers of an operator to the rows of a data set, and how good they are.

    `str` is a small table, `repr` one line of it, `to_pandas` all of it.

    **Fields:** with one entry for each row

    - `data`: the columns of the data set, by name; `gold` names the one with the right answers.
    - `answers`: a `str` for Text; `None` where the operator failed.
    - `scores`: `float64[rows]`; NaN where the operator or its score failed.
    - `causes`: why the row failed, in words; empty where nothing failed.
    - `seconds`: `float64[rows]`, from when the row's first call was asked for to its last answer, waits for limits
        included. NaN for a row without calls, and for a row with an answer that was in the journal before, which took
        no time.
    - `calls`, `input_tokens`, `output_tokens`, `costs`: what the operator's calls have used, also in rows that failed.
        Costs are US dollars as they were when the calls were paid, NaN where the cost of a call is unknown.
    - `score_costs`: US dollars of the score's calls, if the score is an operator; else 0.
    - `cut`: how many answers of the operator's calls ended before all was said, by `max_tokens` or a filter. One that
        has words is scored like any other; one without any fails its row.
    """

    data: Mapping[str, Sequence[Any]]
    gold: str
    answers: Sequence[Any]
    scores: np.ndarray
    causes: Sequence[str]
    seconds: np.ndarray
    calls: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    costs: np.ndarray
    score_costs: np.ndarray
    cut: np.ndarray

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def ok(self) -> np.ndarray:
        """`bool[rows]`: which rows have a score."""
        return ~np.isnan(self.scores)

    @property
    def failed(self) -> int:
        """How many rows have no score."""
        return int(np.sum(~self.ok))

    @property
    def accuracy(self) -> float:
        """The mean score of the rows that have one; NaN if none has."""
        return float(np.mean(self.scores[self.ok])) if self.ok.any() else math.nan

    @property
    def cost(self) -> float:
        """US dollars of the operator's calls, all rows together."""
        return float(np.sum(self.costs))

    @property
    def score_cost(self) -> float:
        """US dollars of the score's calls, all rows together."""
        return float(np.sum(self.score_costs))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """A confidence interval of `accuracy`, as if the rows were drawn from all that could be asked.

        Scores between 0 and 1 have Wilson's interval, exactly if every score is 0 or 1, and else with as many rows as
        would spread rights and wrongs as far. Other scores have that of Student's t, corrected for skewness. Rows are
        taken to be independent, which several samples of one question are not.

        **Returns:** the interval's two ends; NaN if no row has a score, and for a single row that is not 0 or 1.

        **Raises:** `ValueError` for a level that is not between 0 and 1.
        """
        _intervals.check_level(level)
        return _intervals.of_mean(self.scores[self.ok], level)

    @property
    def _is_binary(self) -> bool:
        return _intervals.kind_of(self.scores[self.ok]) == "proportion"

    def failures(self) -> dict[str, list[int]]:
        """The indices of the rows that failed, by their cause, the most common cause first.

        Causes that differ in a value that they quote are one, told in the words of the first.
        """
        rows: dict[str, list[int]] = {}
        for i in np.flatnonzero(~self.ok).tolist():
            rows.setdefault(unquoted(self.causes[i]), []).append(i)
        return {self.causes[each[0]]: each for each in sorted(rows.values(), key=lambda each: -len(each))}

    # -- how it is shown ---------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"<Result: {self._told_accuracy()}, {len(self):,} rows{failed}, {dollars(self.cost)}>"

    def __str__(self) -> str:
        rows = self._told()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {words}" for name, words in rows)

    def _told_accuracy(self) -> str:
        low, high = self.interval()
        return f"accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}]"

    def _told(self) -> list[tuple[str, str]]:
        how = "Student" if _intervals.kind_of(self.scores[self.ok]) == "number" else "Wilson"
        rows = [("accuracy", f"{self._told_accuracy().removeprefix('accuracy ')}, 95 %, {how}")]
        rows += [("rows", f"{len(self):,}" + (f", of which {self.failed:,} failed" if self.failed else ""))]
        rows += [("cost", f"{dollars(self.cost)}, {dollars(self.cost / len(self))} a row")]
        rows += [("score's cost", dollars(self.score_cost))] if self.score_cost else []
        rows += [("calls", f"{self.calls.sum():,}")]
        rows += [("tokens", f"{self.input_tokens.sum():,} + {self.output_tokens.sum():,}")]
        rows += (
            [("cut", f"{self.cut.sum():,} answers, in {np.count_nonzero(self.cut):,} rows")] if self.cut.any() else []
        )
        known = self.seconds[self.ok & ~np.isnan(self.seconds)]
        if len(known):
            middle, late = np.quantile(known, [0.5, 0.95])
            rows += [("latency", f"{middle:.3f} s in the median, {late:.3f} s at 95 %")]
        causes = list(self.failures().items())
        rows += [("failed", f"{len(failed):,}: {cause:.200}") for cause, failed in causes[:_TOLD]]
        if more := causes[_TOLD:]:
            rows += [("failed", f"{sum(len(failed) for _, failed in more):,}: for {len(more):,} other causes")]
        return rows

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each row: the data's columns, and behind them what was found.

        A column of the data with the name of a column that was found, such as `answer`, is renamed to `data_answer`.

        **Raises:** `ImportError` without pandas.
        """
        import pandas  # an optional package, which takes a second

        found = {
            "answer": self.answers,
            "score": self.scores,
            "ok": self.ok,
            "failure": self.causes,
            "seconds": self.seconds,
            "calls": self.calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost": self.costs,
            "score_cost": self.score_costs,
            "cut": self.cut,
        }
        named = {f"data_{name}" if name in found else name: column for name, column in self.data.items()}
        return pandas.DataFrame({**named, **found})

    def plot(self, to: "Axes | str | os.PathLike[str] | None" = None) -> "Axes":
        """Draws how many rows are right, wrong and failed; or a histogram, if scores are other than 0 and 1.

        **Arguments:**

        - `to`: matplotlib axes to draw in, or the file that the picture is written to; by default a new figure.

        **Returns:** the axes.

        **Raises:** `ImportError` without matplotlib.
        """
        with picture.axes(to, "result.plot()") as ax:
            if self._is_binary:
                right = int(self.scores[self.ok].sum())
                counts = {"right": right, "wrong": int(self.ok.sum()) - right, "failed": self.failed}
                bars = ax.bar(list(counts), list(counts.values()), color=[picture.RIGHT, picture.WRONG, picture.FAILED])
                ax.bar_label(bars, labels=[f"{n:,}" for n in counts.values()], fontsize=8)
            else:
                ax.hist(self.scores[self.ok], bins=20, color=picture.RIGHT)
                ax.set_xlabel("score")
            ax.set_ylabel("rows")
            ax.set_title(f"{self._told_accuracy()}, {dollars(self.cost)}", loc="left", fontsize=9)
        return ax


def dollars(amount: float) -> str:
    """US dollars in words, with three significant digits, or cents from a hundred dollars on."""
    if math.isnan(amount):
        return "unknown cost"
    return f"${amount:,.2f}" if amount >= 100 else f"${amount:.3g}"
