"""Which operators are worth their price.

Design note. All operators are evaluated in one sweep, row by row side by side: calls that they share are paid once,
and count for each. Differences between operators are then differences on the same questions, so rows are drawn again
for all of them at once, and how often an operator is on the frontier of such a draw says how sure its place is: its own
interval does not, as what makes a draw of questions hard makes it hard for all.
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import RepeatedSampleWarning
from .._evaluate import intervals, picture
from .._evaluate.evaluate import evaluate_all
from .._evaluate.result import Result, dollars
from .._evaluate.scores import Score
from .._types import Key

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Frontier:
    """What `learn.pareto` found.

    An operator is *dominated* if another one is at least as accurate and at most as expensive, and not equal in both.
    The others are the frontier. One whose accuracy or cost is unknown is not compared: it neither dominates nor is on
    the frontier.

    **Fields:** operators stand in the order in which they were given

    - `results`: what each was evaluated to, by name.
    - `level`: of the intervals.
    - `means`: `float64[resamples, 2, operators]`, accuracy and US dollars a row, when rows are drawn again.
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

        `accuracy_low` to `accuracy_high`, and `cost_low` to `cost_high`, are percentiles of the bootstrap means;
        `frontier_share` is the share of the draws in which the operator is on the frontier.
        """
        accuracy, cost = self._found
        low, high = intervals.percentiles(self.means.reshape(len(self.means), -1), self.level).reshape(2, 2, -1)
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

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`."""
        import pandas  # an optional package, which takes a second

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
            # A step: between two operators there is nothing to have but the cheaper one.
            ax.step(cost[line], accuracy[line], where="post", color=picture.RIGHT, linewidth=1)
            for name, x, y in zip(table["operator"], cost, accuracy, strict=True):
                if math.isfinite(x) and math.isfinite(y):
                    ax.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=8)
            if (cost[np.isfinite(cost)] > 0).all():
                ax.set_xscale("log")
            ax.set_xlabel("US dollars a row")
            ax.set_ylabel("accuracy")
        return ax


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

    - `operators`: by the names that they are told by.
    - `data`, `score`, `key`, `gold`: as of `ember.evaluate`.
    - `resamples`: how often the rows are drawn again, with replacement, for the intervals (Efron, 1979); the draws are
        the same each time.
    - `level`: of the intervals.

    **Returns:** a `Frontier`.

    **Raises:** `ValueError` without operators, and what `ember.evaluate` raises.
    """
    if not isinstance(operators, Mapping) or not operators or not all(isinstance(name, str) for name in operators):
        raise ValueError('learn.pareto takes a dict of operators by name, as in {"small": small, "large": large}.')
    if resamples < 1:
        raise ValueError(f"resamples={resamples!r}: the rows are drawn again once at least.")
    intervals.check_level(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepeatedSampleWarning)  # that operators share samples is what is wanted
        results = evaluate_all(operators, data, score, key=key, gold=gold)
    values = [np.stack([getattr(r, name) for r in results.values()], axis=1) for name in ("scores", "costs")]
    means = intervals.bootstrap(np.concatenate(values, axis=1), resamples)
    if np.isnan(values[1]).any():  # a mean of the known costs alone would be too low
        means[:, len(results) :][:, np.isnan(values[1]).any(axis=0)] = np.nan
    return Frontier(results, level, means.reshape(resamples, 2, len(results)))


def _dominates(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """`bool[n, n]`: whether the first is at least as good as the second in both, and not equal; never with NaN."""
    better, cheaper = accuracy[:, None] - accuracy, cost - cost[:, None]
    return (better >= 0) & (cheaper >= 0) & ((better > 0) | (cheaper > 0))


def _on_frontier(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    return ~_dominates(accuracy, cost).any(axis=0) & np.isfinite(accuracy) & np.isfinite(cost)
