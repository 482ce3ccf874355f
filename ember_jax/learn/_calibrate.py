"""`calibrate_cascade`: chooses the stages of a cascade, their order and their thresholds, under a mean cost.

Design note. FrugalGPT (Chen, Zaharia and Zou, 2023, arXiv 2305.05176) chooses the order and the thresholds of a cascade
for accuracy under a bound of its mean cost. The choice depends on four numbers for each question and each stage: how
good the answer is, what the scorer says of it, and what the stage and the scorer cost. So every stage answers every
question once, in one sweep; the accuracy and the cost of any cascade of these stages are then arithmetic. Orders that
leave stages out are candidates too, down to each single stage, so the chosen cascade is never worse on the data than
the best single stage within the budget.

*On a grid* the best combination of thresholds is found exactly, among thresholds that tell the observed scores apart.
Accuracy and cost of all combinations are products of matrices. Those that no other combination beats in both answer
every budget. *By gradient* acceptance is relaxed to a sigmoid that becomes steeper, and cost above the budget is
penalised. The result is taken as hard thresholds, which are lowered together until the budget is kept.

On the rows that it was chosen by, the best of many cascades looks better than it is. So what is reported is found by
cross-fitting (Stone, 1974): the rows are dealt into folds, the choice is made on all folds but one, and scored on that
one. These numbers are those of a choice from slightly fewer rows, so they err on the side of caution. The cascade that
is returned is chosen by all rows.
"""

import collections
import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._evaluate.data import as_array, asked, check_key, columns_of, gold_of
from .._evaluate.scorer import Answered, Scored, Scorer, answered, scored, scorer
from .._evaluate.scores import Score
from .._evaluate.signatures import takes_key
from .._evaluate.tried import tried
from .._operator.jit import jit
from .._operator.traced import name_of
from .._runtime.typed import typed_errors
from .._types import Key


class Staged(Protocol):
    """What is read of a cascade here: `non.Cascade` has these fields, and so may another dataclass."""

    @property
    def stages(self) -> tuple[Any, ...]: ...
    @property
    def scorer(self) -> Any: ...
    @property
    def thresholds(self) -> Any: ...


_C = TypeVar("_C", bound=Staged)


@dataclass(frozen=True)
class Calibrated:
    """One order of stages with its best thresholds within a budget.

    **Fields:**

    - `stages`: the positions that the stages had in the cascade that was given, in their new order. A stage whose
        position is missing is left out.
    - `thresholds`: one for each stage but the last.
    - `score`: the mean score at questions that the choice has not seen, by cross-fitting; NaN without folds.
    - `cost`: the mean cost of such a question in US dollars, of stages and scorers. It may be above the budget.
    - `fitted_score`, `fitted_cost`: the same on the rows that the thresholds were chosen by: the score is too good, and
        the cost within the budget.
    """

    stages: tuple[int, ...]
    thresholds: tuple[float, ...]
    score: float
    cost: float
    fitted_score: float
    fitted_cost: float


@dataclass(frozen=True)
class CalibrationTrace:
    """What `calibrate_cascade` compared.

    **Fields:**

    - `orders`: every order that the budget allows, the best on the rows first. The score and cost of each are those of
        choosing its thresholds.
    - `rows`: the number of questions.
    - `failed`: how many were left out, because a stage or the score failed.
    - `best`: the chosen cascade. Its score and cost are those of choosing order and thresholds.
    - `frontier`: the best cascade for every budget, from the cheapest to the best. Each is the best for budgets from
        its `fitted_cost` to that of the next one; scores and costs are as of `best`. With `method="gradient"` it is the
        best one alone.
    """

    orders: tuple[Calibrated, ...]
    rows: int
    failed: int
    best: Calibrated
    frontier: tuple[Calibrated, ...]
    _given: Any = dataclasses.field(repr=False, compare=False)

    def cascade(self, budget_usd_per_query: float) -> tuple[Any, Calibrated]:
        """The best cascade for another budget, from the same answers: nothing is asked, and nothing searched.

        **Returns:** the cascade, and its place on the frontier.

        **Raises:** `ValueError` for a budget that is below the cheapest stage, and, with `method="gradient"`, below the
            cost of the cascade that was found.
        """
        within = [found for found in self.frontier if _within(found.fitted_cost, budget_usd_per_query)]
        if not within:
            raise ValueError(
                f"budget_usd_per_query={budget_usd_per_query:g} is below ${self.frontier[0].fitted_cost:.3g}, the mean "
                "cost of the cheapest cascade of this table."
            )
        return _rebuilt(self._given, within[-1]), within[-1]

    def to_pandas(self) -> Any:
        """A data frame with a row for each order."""
        import pandas

        return pandas.DataFrame([dataclasses.asdict(order) for order in self.orders])

    def __str__(self) -> str:
        lines = [
            f"{o.score:7.4f}  ${o.cost:.6f}  {o.fitted_score:7.4f}  ${o.fitted_cost:.6f}  "
            f"stages {' > '.join(map(str, o.stages))}"
            + (f"  thresholds {', '.join(f'{t:.4g}' for t in o.thresholds)}" if o.thresholds else "")
            for o in self.orders
        ]
        chosen = f"chosen: score {self.best.score:.4f}, ${self.best.cost:.6f} a question, held out"
        heads = ["held out            on the same rows", "  score  cost         score  cost"]
        return "\n".join([f"{self.rows:,} questions, {self.failed:,} failed; {chosen}", *heads, *lines])


def calibrate_cascade(
    cascade: _C,
    data: Any,
    score: str | Score,
    budget_usd_per_query: float,
    *,
    method: Literal["grid", "gradient"] = "grid",
    grid: int = 100,
    key: Key | None = None,
    gold: str | None = None,
    folds: int = 5,
) -> tuple[_C, CalibrationTrace]:
    """Chooses order and thresholds of a cascade for the best mean score that a mean cost allows.

    ```python
    op = non.Cascade([small, medium, large], scorer=non.Grader(small))
    op, trace = learn.calibrate_cascade(op, (questions, golds), "number", 2e-5)
    print(trace)
    cheaper, told = trace.cascade(1e-5)  # another budget, from the same answers
    ```

    **Arguments:**

    - `cascade`: a `non.Cascade`, or another dataclass with `stages`, `scorer` and `thresholds`. Where each stage but
        the last has a scorer of its own, scorers move with their stages, and the last stage stays last.
    - `data`, `score`, `gold`: as of `ember.evaluate`; stages are asked the column `question`, or the only one that may
        be it. The higher a score the better; what it costs does not count.
    - `budget_usd_per_query`: the mean cost, of stages and scorers, that is allowed.
    - `method`: `"grid"` is exact among thresholds at observed scores, for each order; `"gradient"` takes seconds where
        a grid of many stages takes long.
    - `grid`: the most thresholds that are tried at a stage: quantiles of the observed scores, so that about as many
        scores lie between any two. With many stages fewer are tried, so that the arrays of all combinations stay
        within about a hundred megabytes.
    - `key`: a PRNG key, from which every row has a key of its own, as of `ember.evaluate`. If `cascade` is a
        `non.Cascade`, stages and scorers get the same keys as they get inside it; so to evaluate `cascade` with this
        key afterwards asks for no answer again.
    - `folds`: into how many parts the rows are dealt for the scores and costs that are reported: a choice is scored on
        the part that it was not made by. 0 leaves these scores out, and saves their time.

    **Returns:** the cascade with stages, scorers and thresholds chosen by all rows, and a `CalibrationTrace`, with the
    scores of such choices at questions that they have not seen. Every stage is asked every question, once, whatever the
    method, the folds, and the number of budgets.

    **Raises:** `TypeError` for what is no cascade; `ValueError` if a cost is unknown, if all rows fail, if not even the
    cheapest stage is within the budget, for an unknown method, a grid of nothing, or a single fold; `ImportError` for
    the gradient without optax; and what `ember.evaluate` raises.
    """
    missing = [name for name in ("stages", "scorer", "thresholds") if not hasattr(cascade, name)]
    if missing or not dataclasses.is_dataclass(cascade) or isinstance(cascade, type):
        name = name_of(cascade)
        raise TypeError(
            "calibrate_cascade takes a `non.Cascade`, or another dataclass with `stages`, `scorer` and `thresholds`, "
            f"not {'the class ' if isinstance(cascade, type) else ''}{name}"
            f"{', which is without ' + ', '.join(missing) if missing else ''}."
        )
    if method not in ("grid", "gradient"):
        raise ValueError(f"calibrate_cascade(method={method!r}): it is 'grid' or 'gradient'.")
    if grid < 1:
        raise ValueError(f"calibrate_cascade(grid={grid!r}): give a number of thresholds, at least 1.")
    if folds < 0 or folds == 1:
        raise ValueError(f"calibrate_cascade(folds={folds!r}): give at least 2, or 0 for no held-out scores.")
    table = _table(cascade, data, score, key, gold)
    if method == "grid":
        search = functools.partial(_on_grid, grid=grid)
    else:
        search = functools.partial(_by_gradient, budget=budget_usd_per_query)
    found = _Choices(table, list(_orders(cascade)), search, folds)
    orders = found.orders(budget_usd_per_query)
    if not orders:
        raise ValueError(
            f"the cheapest stage costs ${table.cost.mean(0).min():.3g} for a question of this data, more than "
            f"budget_usd_per_query={budget_usd_per_query:g}."
        )
    best = found.best(budget_usd_per_query)
    frontier = found.frontier() if method == "grid" else (best,)
    rows = table.failed + len(table.score)
    return _rebuilt(cascade, best), CalibrationTrace(orders, rows, table.failed, best, frontier, cascade)


def _orders(cascade: Staged) -> Iterator[tuple[int, ...]]:
    """Every sequence of different stages of which all but the last have a scorer."""
    count = len(cascade.stages)
    has_own = isinstance(cascade.scorer, tuple)
    for length in range(1, count + 1):
        for order in itertools.permutations(range(count), length):
            if not (has_own and count - 1 in order[:-1]):
                yield order


def _rebuilt(cascade: _C, chosen: Calibrated) -> _C:
    own = cascade.scorer
    # The thresholds were chosen for a hard cascade, so the one that is returned has no temperature.
    hard = {"temperature": None} if hasattr(cascade, "temperature") else {}
    return dataclasses.replace(
        cascade,  # pyright: ignore[reportArgumentType]  # a protocol cannot ask for a dataclass
        stages=tuple(cascade.stages[i] for i in chosen.stages),
        scorer=tuple(own[i] for i in chosen.stages[:-1]) if isinstance(own, tuple) else own,
        thresholds=jnp.array(chosen.thresholds, float),
        **hard,
    )


# -- what was recorded -----------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """Numbers of every question and stage, `[rows, stages]`.

    **Fields:**

    - `score`: how good the answer is.
    - `grade`: the scorer's number for the answer; `-inf` if the scorer failed or gives NaN, which is above no
        threshold.
    - `cost`, `check`: what the stage and the scorer cost.
    - `failed`: the number of rows that were left out.
    """

    score: np.ndarray
    grade: np.ndarray
    cost: np.ndarray
    check: np.ndarray
    failed: int

    def of(self, order: Sequence[int], rows: Any = slice(None)) -> "_Ordered":
        """The numbers of a cascade of these stages, in this order, at some rows."""
        stages, gates = list(order), list(order[:-1])
        cost = self.cost[rows][:, stages]
        cost[:, :-1] += self.check[rows][:, gates]
        return _Ordered(self.score[rows][:, stages].T, self.grade[rows][:, gates].T, cost.T)


class _Ordered(NamedTuple):
    """The numbers of the stages of one cascade, `[stages, rows]`. `cost` includes what the stage's scorer costs;
    `grade` has no entry for the last stage, which accepts everything."""

    score: np.ndarray
    grade: np.ndarray
    cost: np.ndarray


class _JudgedCascade(NamedTuple):
    """What is run for every row. It is an argument of `_row` and not closed over, so equal cascades share a program.

    **Fields:**

    - `stages`, `scorers`: of the cascade; a stage that has no scorer has `None`.
    - `judge`: the score, if it is an operator.
    """

    stages: tuple[Any, ...]
    scorers: tuple[Any, ...]
    judge: Scorer | None


class _Graded(NamedTuple):
    """A stage's answer, the scorer's number for it, and what the scorer cost."""

    answered: Answered
    grade: jax.Array
    cost: jax.Array


@jit
def _row(program: _JudgedCascade, key: Key, row: tuple[Any, Any, Key | None]) -> list[_Graded]:
    return [_graded(program, i, row, jax.random.fold_in(key, i)) for i in range(len(program.stages))]


def _graded(program: _JudgedCascade, i: int, row: tuple[Any, Any, Key | None], key: Key) -> _Graded:
    question, _, _ = row
    stage, scorer = program.stages[i], program.scorers[i]
    keyed = {"key": key} if takes_key(stage) else {}
    found = answered(f"stage {i}", program.judge, stage, (question,), keyed, row)
    if scorer is None:
        return _Graded(found, jnp.asarray(-jnp.inf), jnp.zeros(()))
    # The same key as `non.Cascade` gives its scorer, so what the scorer answers here is not asked for again there.
    keyed = {"key": jax.random.fold_in(key, zlib.crc32(b"scorer"))} if takes_key(scorer) else {}
    grade = tried(f"scorer {i}", _as_float, scorer, question, found.answer.out, **keyed)
    return _Graded(found, grade.out, grade.usage.cost)


def _as_float(scorer: Callable[..., Any], *args: Any, **kwargs: Any) -> jax.Array:
    grade = scorer(*args, **kwargs)
    if not eqx.is_array_like(grade) or jnp.ndim(grade):
        raise TypeError(f"a cascade's scorer gives one number for an answer, and {scorer!r:.60} gave {grade!r:.60}.")
    return jnp.asarray(grade, float)


def _table(cascade: Staged, data: Any, score: str | Score, key: Key | None, gold: str | None) -> _Table:
    check_key(key)
    by, columns = scorer(score, key), columns_of(data)
    right = gold_of(columns, gold, {"a stage": _of_question})
    found = asked("a stage of the cascade", _of_question, columns, right, key, is_keyed=True)
    gold_array = None if by.in_program is None else as_array(right, columns[right])
    own, count = cascade.scorer, len(cascade.stages)
    scorers = (*own, None) if isinstance(own, tuple) else (own,) * count
    program = functools.partial(_row, _JudgedCascade(cascade.stages, scorers, by.in_program))
    # As `ember.evaluate` would call the cascade: without a key every row has the key 0, which is `non.Cascade`'s
    # default.
    keys = jnp.broadcast_to(jax.random.key(0), len(columns[right])) if key is None or found.keys is None else found.keys
    with typed_errors():
        stages = jax.vmap(program)(keys, (found.arguments["question"], gold_array, found.keys))
        jax.block_until_ready(stages)
    questions, golds = columns[found.names["question"]], columns[right]
    return _kept(stages, [scored(stage.answered, by, questions, golds) for stage in stages])


def _kept(stages: Sequence[_Graded], found: Sequence[Scored]) -> _Table:
    """The numbers of the rows at which nothing failed.

    **Raises:** `ValueError` if there is none, and for an unknown cost.
    """
    scores = np.stack([of_stage.scores for of_stage in found], 1)
    kept = ~np.isnan(scores).any(1)
    if not kept.any():
        by_row = zip(*(of_stage.causes for of_stage in found), strict=True)
        cause, times = collections.Counter(next(filter(None, row)) for row in by_row).most_common(1)[0]
        raise ValueError(
            "at every question of the data a stage of the cascade, or the score, fails; "
            f"at {times:,} of {len(scores):,} with {cause:.300}"
        )
    costs, checks = (
        np.stack([np.asarray(x, float) for x in of_stages], 1)[kept]
        for of_stages in ([s.answered.answer.usage.cost for s in stages], [s.cost for s in stages])
    )
    if np.isnan(costs).any() or np.isnan(checks).any():
        raise ValueError(
            "calibrate_cascade compares costs, and the price of a model is unknown; say it with "
            "`ember.session(prices={'provider/model': ember.Price(...)})`."
        )
    # Grades keep the dtype in which they were recorded. A threshold is one of the grades, and the cascade compares in
    # this precision, so a conversion could put an equal grade above its threshold.
    grades = np.stack([np.asarray(stage.grade) for stage in stages], 1)[kept]
    return _Table(scores[kept], np.where(np.isnan(grades), -np.inf, grades), costs, checks, int((~kept).sum()))


def _of_question(question: Any) -> None:
    """Has the signature of a stage; the columns of the data are matched with its argument."""


# -- thresholds ------------------------------------------------------------------------------------------------------


class _Hard(NamedTuple):
    """Thresholds, and what cascades with them come to, from the cheapest to the best: each is the best within its cost.

    **Fields:**

    - `thresholds`: `[cascades, stages - 1]`.
    - `score`, `cost`: `float64[cascades]`, both ascending.
    """

    thresholds: np.ndarray
    score: np.ndarray
    cost: np.ndarray

    def at(self, budget: float) -> int:
        """The place of the best within a budget; -1 if there is none."""
        return int(np.searchsorted(self.cost, budget * (1 + 1e-9), side="right")) - 1


class _Fold(NamedTuple):
    """What was found by some rows, for each order, and what that comes to at the others.

    **Fields:**

    - `found`: by the rows.
    - `score`, `cost`: `float64[cascades]` for each order, the sums over the rows that were held out.
    """

    found: list[_Hard]
    score: list[np.ndarray]
    cost: list[np.ndarray]


class _Choices:
    """The best cascades of a table for every budget, and what the choice of one comes to at rows that are held out."""

    def __init__(
        self,
        table: _Table,
        orders: Sequence[tuple[int, ...]],
        search: Callable[[_Ordered], _Hard],
        folds: int,
    ):
        self._table, self._orders, self._search = table, orders, search
        self._found = [search(table.of(order)) for order in orders]
        rows = len(table.score)
        dealt = np.random.default_rng(0).permutation(rows) % min(folds, rows) if folds and rows > 1 else None
        self._folds = [] if dealt is None else [self._fold(dealt == fold) for fold in range(dealt.max() + 1)]

    def _fold(self, held: np.ndarray) -> _Fold:
        found = [self._search(self._table.of(order, ~held)) for order in self._orders]
        sums = [
            [held.sum() * np.array(_outcome(_accepts(t, of), of), float) for t in hard.thresholds]
            for hard, of in zip(found, (self._table.of(order, held) for order in self._orders), strict=True)
        ]
        score, cost = ([np.array(s).reshape(-1, 2)[:, i] for s in sums] for i in range(2))
        return _Fold(found, score, cost)

    def orders(self, budget: float) -> tuple[Calibrated, ...]:
        """The best of each order within a budget, the best of all first."""
        within = [(i, hard.at(budget)) for i, hard in enumerate(self._found) if hard.at(budget) >= 0]
        return tuple(self._told(i, place, budget, [i]) for i, place in sorted(within, key=self._rank))

    def best(self, budget: float) -> Calibrated:
        """The best cascade within a budget, of which there must be one."""
        every = range(len(self._orders))
        within = [(i, self._found[i].at(budget)) for i in every]
        i, place = min((at for at in within if at[1] >= 0), key=self._rank)
        return self._told(i, place, budget, every)

    def frontier(self) -> tuple[Calibrated, ...]:
        """The best cascade for every budget, by cost."""
        places = [(i, place) for i, hard in enumerate(self._found) for place in range(len(hard.cost))]
        places.sort(key=lambda at: (self._found[at[0]].cost[at[1]], *self._rank(at)))
        kept: list[tuple[int, int, float]] = []
        most = -np.inf
        for i, place in places:
            if round(self._found[i].score[place], 9) > most:
                most = round(self._found[i].score[place], 9)
                kept.append((i, place, float(self._found[i].cost[place])))
        every = range(len(self._orders))
        return tuple(self._told(i, place, budget, every) for i, place, budget in kept)

    def _rank(self, at: tuple[int, int]) -> tuple[float, float, int]:
        # By the rounded score, since means that should be equal may differ in their last bits.
        hard, place = self._found[at[0]], at[1]
        return -round(float(hard.score[place]), 9), float(hard.cost[place]), len(self._orders[at[0]])

    def _told(self, i: int, place: int, budget: float, among: Sequence[int]) -> Calibrated:
        """A cascade, with the score and the cost of choosing one among some orders by other rows."""
        hard = self._found[i]
        score, cost = (
            np.sum([self._chosen(fold, budget, among) for fold in self._folds], 0)
            if self._folds
            else (np.full(2, np.nan))
        )
        rows = len(self._table.score)
        return Calibrated(
            self._orders[i],
            tuple(hard.thresholds[place].tolist()),
            float(score) / rows,
            float(cost) / rows,
            float(hard.score[place]),
            float(hard.cost[place]),
        )

    def _chosen(self, fold: _Fold, budget: float, among: Sequence[int]) -> tuple[float, float]:
        """What the best cascade within a budget, by the rows of a fold, comes to at the others; of the cheapest one if
        none is within."""
        places = [(i, fold.found[i].at(budget)) for i in among if len(fold.found[i].cost)]
        within = [at for at in places if at[1] >= 0]
        rank = lambda at: (-round(float(fold.found[at[0]].score[at[1]]), 9), float(fold.found[at[0]].cost[at[1]]))
        if within:
            i, place = min(within, key=lambda at: (*rank(at), len(self._orders[at[0]])))
        else:
            i, place = min(((i, 0) for i, _ in places), key=lambda at: fold.found[at[0]].cost[at[1]])
        return fold.score[i][place], fold.cost[i][place]


def _outcome(accepts: Any, stages: Any) -> tuple[Any, Any]:
    """The mean score and the mean cost of a cascade whose stages accept with given probabilities.

    **Arguments:**

    - `accepts`: `[stages - 1, rows]`, for each stage but the last the probability that it accepts: 0 or 1 if it is
        hard.
    - `stages`: an `_Ordered`, of NumPy or JAX arrays.
    """
    reached, score, cost = 1.0, 0.0, 0.0
    for i, accept in enumerate(accepts):
        cost = cost + (reached * stages.cost[i]).mean()
        score = score + (reached * accept * stages.score[i]).mean()
        reached = reached * (1.0 - accept)
    return score + (reached * stages.score[-1]).mean(), cost + (reached * stages.cost[-1]).mean()


def _accepts(thresholds: np.ndarray, stages: _Ordered) -> np.ndarray:
    return (stages.grade > thresholds[:, None]).astype(float)


def _hard(thresholds: np.ndarray, stages: _Ordered) -> tuple[float, float]:
    """The mean score and cost of a cascade with these thresholds."""
    score, cost = _outcome(_accepts(thresholds, stages), stages)
    return float(score), float(cost)


def _within(cost: Any, budget: float) -> Any:
    """Whether a mean cost is within the budget; the factor allows for the rounding of the mean itself."""
    return cost <= budget * (1 + 1e-9)


_HELD = 10_000_000  # the most numbers that the array `reached` below may have, which as float64 is 80 megabytes


def _on_grid(stages: _Ordered, grid: int) -> _Hard:
    """The best thresholds among observed scores, for every budget; the cheapest of those with an equal mean score."""
    gates, rows = stages.grade.shape
    if gates > 1:
        grid = min(grid, max(2, int((_HELD / rows) ** (1 / (gates - 1)))))
    tried = [_candidates(grade, grid) for grade in stages.grade]
    accepts = [(g > t[:, None]).astype(float) for g, t in zip(stages.grade, tried, strict=True)]
    # How often a row is reached under each combination of the thresholds so far: `[combinations, rows]`.
    reached = np.full((1, rows), 1 / rows)
    score = cost = np.zeros(1)
    for accept, value, price in zip(accepts, stages.score, stages.cost, strict=False):
        cost = (cost + reached @ price)[:, None].repeat(len(accept), 1).ravel()
        score = (score[:, None] + reached @ (accept * value).T).ravel()
        last = accept is accepts[-1]
        # After the last gate only sums over rows are needed. They are products of matrices, so the largest array, that
        # of all combinations by rows, is never made.
        if last:
            score = score + (reached @ ((1 - accept) * stages.score[-1]).T).ravel()
            cost = cost + (reached @ ((1 - accept) * stages.cost[-1]).T).ravel()
        else:
            reached = (reached[:, None] * (1 - accept)).reshape(-1, rows)
    if not gates:
        score, cost = reached @ stages.score[-1], reached @ stages.cost[-1]
    by_cost = np.lexsort((-np.round(score, 9), cost))
    so_far = np.maximum.accumulate(np.round(score[by_cost], 9))
    kept = by_cost[np.concatenate([[True], np.diff(so_far) > 0])]
    places = np.unravel_index(kept, [len(t) for t in tried]) if gates else ()
    chosen = (
        np.array([t[i] for t, i in zip(tried, places, strict=True)], stages.grade.dtype).reshape(gates, len(kept)).T
    )
    # By the same sums as the cascade that is told of, whose last bits differ from those of the products.
    outcomes = np.array([_hard(thresholds, stages) for thresholds in chosen]).reshape(-1, 2)
    return _Hard(chosen, outcomes[:, 0], outcomes[:, 1])


def _candidates(grade: np.ndarray, grid: int) -> np.ndarray:
    """Thresholds that tell the observed scores apart, at most `grid`, ascending.

    They are observed scores themselves: a score is accepted if it is above the threshold, so a threshold at a score
    accepts exactly the scores above that one.
    """
    distinct = np.unique(grade)
    if len(distinct) <= grid:
        return distinct
    return np.unique(np.quantile(grade, np.linspace(0, 1, grid), method="lower"))


_STEPS = 400  # steps of gradient descent


def _by_gradient(stages: _Ordered, budget: float) -> _Hard:
    """Thresholds by gradient, lowered together until the budget is kept; none if it cannot be."""
    gates = len(stages.grade)
    start = np.array([_middle(grade) for grade in stages.grade], np.float32)
    soft = np.asarray(_descended(start, jax.tree.map(jnp.float32, stages), jnp.float32(budget))) if gates else start
    # Lower thresholds accept more answers, so they cost less. Each threshold is lowered to the next lower observed
    # score: a smaller step would change nothing, and a larger one could miss a cascade within the budget.
    thresholds = soft.astype(stages.grade.dtype)
    score, cost = _hard(thresholds, stages)
    while not _within(cost, budget):
        lower = np.array([_below(grade, t) for grade, t in zip(stages.grade, thresholds, strict=True)])
        if np.array_equal(lower, thresholds):
            return _Hard(np.empty((0, gates), stages.grade.dtype), np.empty(0), np.empty(0))
        thresholds = lower.astype(stages.grade.dtype)
        score, cost = _hard(thresholds, stages)
    return _Hard(thresholds[None], np.array([score]), np.array([cost]))


def _middle(grade: np.ndarray) -> float:
    known = grade[np.isfinite(grade)]
    return float(np.median(known)) if len(known) else 0.0


def _below(grade: np.ndarray, threshold: float) -> float:
    lower = grade[grade < threshold]
    return float(lower.max()) if len(lower) else -np.inf


@jax.jit
def _descended(start: jax.Array, stages: _Ordered, budget: jax.Array) -> jax.Array:
    try:
        import optax
    except ImportError:
        raise ImportError(
            "calibrate_cascade(method='gradient') needs optax: `pip install \"ember_jax[learn]\"`. method='grid' does "
            "without it."
        ) from None
    known = jnp.isfinite(stages.grade)
    spread = jnp.maximum(jnp.std(stages.grade, 1, where=known), 1e-3)
    # Grades are counted in standard deviations from the start, so that one step size fits every scorer. An answer of
    # which the scorer said nothing is put far below any threshold.
    grade = jnp.where(known, (stages.grade - start[:, None]) / spread[:, None], -1e3)

    def loss(thresholds: jax.Array, steepness: jax.Array) -> jax.Array:
        score, cost = _outcome(jax.nn.sigmoid(steepness * (grade - thresholds[:, None])), stages)
        return 10 * jax.nn.relu(cost / budget - 1) - score

    descent = optax.adam(0.05)

    def step(carry: Any, steepness: jax.Array) -> tuple[Any, None]:
        thresholds, state = carry
        # Adam's bias correction raises a float to an integer power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = descent.update(jax.grad(loss)(thresholds, steepness), state)
        return (optax.apply_updates(thresholds, updates), state), None

    origin = jnp.zeros_like(start)
    (thresholds, _), _ = jax.lax.scan(step, (origin, descent.init(origin)), jnp.geomspace(3.0, 30.0, _STEPS))
    return start + spread * thresholds
