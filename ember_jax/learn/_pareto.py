"""`pareto`: which operators are worth their price.

Design note. All operators are evaluated in one sweep, on the same rows. Calls that operators share are paid once, and
count for each of them. An operator's interval tells how accurate it is over all questions that could be asked, and not
whether it is better than another one: a draw of hard questions is hard for all operators, so intervals of two operators
may overlap although one is better in every draw. `Frontier.difference` compares two operators row by row. How sure a
place on the frontier is, is told by the share of bootstrap draws in which an operator is on the frontier; the bootstrap
draws rows again for all operators at once.
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _intervals
from .._evaluate import picture
from .._evaluate.evaluate import evaluate_all
from .._evaluate.result import Result, dollars
from .._evaluate.scores import Score
from .._types import Key
from ..errors import RepeatedSampleWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Frontier:
    """What `learn.pareto` found.

    An operator is *dominated* if another one is at least as accurate and at most as expensive, and not equal in both.
    The others are the frontier. An operator whose accuracy or cost is unknown is not compared: it dominates none and is
    not on the frontier.

    **Fields:** operators stand in the order in which they were given

    - `results`: the evaluation of each operator, by name.
    - `level`: the probability that the intervals have, as 0.95.
    - `means`: `float64[resamples, 2, operators]`, the mean accuracy and the mean US dollars a row in each draw of rows.
    """

    results: Mapping[str, Result]
    level: float
    means: np.ndarray

    @property
    def frontier(self) -> tuple[str, ...]:
        """The names of the operators that are not dominated, by cost."""
        names, (accuracy, cost) = list(self.results), self._found
        rows = np.flatnonzero(_on_frontier(accuracy, cost))
        return tuple(names[i] for i in sorted(rows, key=lambda i: cost[i]))

    @property
    def dominated(self) -> dict[str, tuple[str, ...]]:
        """The other operators whose accuracy and cost are known, each with those on the frontier that dominate it."""
        names, accuracy, cost = list(self.results), *self._found
        over = _dominates(accuracy, cost)
        best = {names.index(name) for name in self.frontier}
        return {
            names[j]: tuple(names[i] for i in np.flatnonzero(over[:, j]) if i in best)
            for j in np.flatnonzero(over.any(axis=0))
        }

    @property
    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        found = self.results.values()
        return np.array([r.accuracy for r in found]), np.array([r.cost / len(r) for r in found])

    @property
    def table(self) -> dict[str, Any]:
        """Columns with a row for each operator: accuracy, US dollars a row, and how sure they are.

        `accuracy_low` to `accuracy_high` are those of `Result.interval`; `cost_low` to `cost_high` are those of
        Student's t, corrected for skewness, and NaN if a cost is unknown. `frontier_share` is the share of the draws in
        which the operator is on the frontier.
        """
        accuracy, cost = self._found
        found = self.results.values()
        ends = [[r.interval(self.level) for r in found], [_intervals.of_numbers(r.costs, self.level) for r in found]]
        low, high = np.array(ends).transpose(2, 0, 1)
        return {
            "operator": list(self.results),
            "accuracy": accuracy,
            "accuracy_low": low[0],
            "accuracy_high": high[0],
            "cost": cost,
            "cost_low": low[1],
            "cost_high": high[1],
            "failed": np.array([r.failed for r in self.results.values()]),
            "on_frontier": _on_frontier(accuracy, cost),
            "frontier_share": np.mean([_on_frontier(*draw) for draw in self.means], axis=0),
        }

    def difference(self, one: str, other: str) -> "Difference":
        """How much more accurate an operator is than another one on the same rows, those at which neither failed.

        With rights and wrongs the interval is that of Agresti and Min (2005), else that of Student's t.

        **Arguments:** the names of two operators.

        **Raises:** `KeyError` for another name.
        """
        first, second = (self.results[name].scores for name in (one, other))
        both = ~np.isnan(first) & ~np.isnan(second)
        low, high = _intervals.of_difference(first[both], second[both], self.level)
        mean = float(np.mean(first[both] - second[both])) if both.any() else math.nan
        return Difference(mean, low, high, int(both.sum()))

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`."""
        import pandas  # imported here: it is optional, and the import takes a second

        return pandas.DataFrame(self.table)

    def __repr__(self) -> str:
        return f"<Frontier: {', '.join(self.frontier)}; {len(self.dominated):,} dominated>"

    def __str__(self) -> str:
        table, over = self.table, self.dominated
        width = max(len(name) for name in ["operator", *self.results])
        lines = [f"{'operator':<{width}}  accuracy  [{self.level:.0%}]          cost a row  failed  on the frontier"]
        for i, name in enumerate(self.results):
            interval = f"[{table['accuracy_low'][i]:.3f}, {table['accuracy_high'][i]:.3f}]"
            by = f", dominated by {', '.join(over[name])}" if name in over else ""
            share = f"{table['frontier_share'][i]:.0%} of draws{by}"
            cost, failed = dollars(table["cost"][i]), table["failed"][i]
            lines.append(
                f"{name:<{width}}  {table['accuracy'][i]:>8.3f}  {interval}  {cost:>10}  {failed:>6,}  {share}"
            )
        return "\n".join(lines)

    def plot(self, to: "Axes | str | os.PathLike[str] | None" = None) -> "Axes":
        """Draws accuracy against US dollars a row: the frontier as a line, what is dominated in grey.

        **Arguments:**

        - `to`: matplotlib axes to draw in, or the file that the picture is written to; by default a new figure.

        **Returns:** the axes, whose cost is on a logarithmic scale if nothing is free.

        **Raises:** `ImportError` without matplotlib.
        """
        table = self.table
        accuracy, cost, best = table["accuracy"], table["cost"], table["on_frontier"]
        spread = lambda name: np.abs(np.stack([table[f"{name}_low"], table[f"{name}_high"]]) - table[name])
        with picture.axes(to, "frontier.plot()") as ax:
            for chosen, colour in ((~best, picture.FAILED), (best, picture.RIGHT)):
                errors = spread("accuracy")[:, chosen], spread("cost")[:, chosen]
                ax.errorbar(cost[chosen], accuracy[chosen], *errors, fmt="o", color=colour, elinewidth=0.8)
            line = [table["operator"].index(name) for name in self.frontier]
            # Steps and not a sloped line: for a price between those of two operators one can only have the cheaper one.
            ax.step(cost[line], accuracy[line], where="post", color=picture.RIGHT, linewidth=1)
            for name, x, y in zip(table["operator"], cost, accuracy, strict=True):
                if math.isfinite(x) and math.isfinite(y):
                    ax.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=8)
            if (cost[np.isfinite(cost)] > 0).all():
                ax.set_xscale("log")
            ax.set_xlabel("US dollars a row")
            ax.set_ylabel("accuracy")
        return ax


class Difference(NamedTuple):
    """How much more accurate an operator is than another one.

    **Fields:**

    - `mean`: the mean difference of their scores; NaN without rows.
    - `low`, `high`: its interval, of the level of the frontier; NaN for less than two rows. If it does not hold 0, the
        rows show which of the two is better.
    - `rows`: how many rows were compared.
    """

    mean: float
    low: float
    high: float
    rows: int


def pareto(
    operators: Mapping[str, Callable[..., Any]],
    data: Any,
    score: str | Score = "normalized",
    *,
    key: Key | None = None,
    gold: str | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> Frontier:
    """Evaluates operators on a data set, in one sweep, and says which of them are worth their price.

    ```python
    frontier = learn.pareto({"small": small, "vote": non.Vote(small, n=5), "large": large}, data, "number")
    print(frontier)
    frontier.plot("frontier.png")
    ```

    Calls that operators have in common are paid once, and are part of the cost of each; in a session with
    `journal=None` that is so only while they are in flight at once. Rows that fail are left out of an operator's
    accuracy, and counted; what they used is part of its cost.

    **Arguments:**

    - `operators`: a dictionary from names, which the result uses, to operators.
    - `data`, `score`, `key`, `gold`: as of `ember.evaluate`.
    - `resamples`: how often the rows are drawn again, with replacement, for the shares of draws (Efron, 1979); the
        draws are the same each time.
    - `level`: the probability of the intervals, between 0 and 1.

    **Returns:** a `Frontier`.

    **Raises:** `ValueError` without operators, for `resamples` below 1 and a `level` that is no probability; and what
    `ember.evaluate` raises.
    """
    if not isinstance(operators, Mapping) or not operators or not all(isinstance(name, str) for name in operators):
        raise ValueError('learn.pareto takes a dict of operators by name, as in {"small": small, "large": large}.')
    if resamples < 1:
        raise ValueError(f"resamples={resamples!r}: the rows are drawn again once at least.")
    _intervals.check_level(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepeatedSampleWarning)  # operators are meant to share their samples
        results = evaluate_all(operators, data, score, key=key, gold=gold)
    values = [np.stack([getattr(r, name) for r in results.values()], axis=1) for name in ("scores", "costs")]
    means = _intervals.bootstrap(np.concatenate(values, axis=1), resamples)
    # `bootstrap` leaves NaN out of its means: right for rows that failed and have no score. An operator of which some
    # cost is unknown gets NaN as its mean cost instead, since the mean of the costs that are known may be too low.
    if np.isnan(values[1]).any():
        means[:, len(results) :][:, np.isnan(values[1]).any(axis=0)] = np.nan
    return Frontier(results, level, means.reshape(resamples, 2, len(results)))


def _dominates(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """`bool[n, n]`: whether operator i is at least as good as j in accuracy and cost, and not equal; false for NaN."""
    better, cheaper = accuracy[:, None] - accuracy, cost - cost[:, None]
    return (better >= 0) & (cheaper >= 0) & ((better > 0) | (cheaper > 0))


def _on_frontier(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    return ~_dominates(accuracy, cost).any(axis=0) & np.isfinite(accuracy) & np.isfinite(cost)
