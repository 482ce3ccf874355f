"""`select_models`: chooses the model of each of an operator's LLMs.

Design note. An allocation is an array of numbers, one for each LLM of an operator, which index a Text of model ids. The
operator with these models is a function of the allocation. So a sweep over allocations is a `vmap` like any other: all
candidates of one step run on all rows at once, and calls that two allocations have in common are made once. No operator
is mutated. Data, scores and keys are those of `ember.evaluate`. A score that is a Python function is called after a
sweep; a diagnoser is asked where a score is low, so if it is an operator, it runs in a sweep of its own after that.

The greedy search is LLMSelector (Chen et al., 2025, arXiv 2502.14815). It goes round the modules, tries every model at
one module while the others stay, and takes the model that is among the best on most rows. The score of a row cannot
show that a module has become better while another module still spoils the answer. A diagnoser can: it adds to a
candidate's score on the rows where the module is not to blame. A state of the search is an allocation and the module
whose turn it is. The search ends when it reaches a state for the second time, since from there on it would repeat
itself.
"""

import collections
import functools
import itertools
import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._evaluate.data import as_array, asked, check_key, columns_of, gold_of
from .._evaluate.scorer import Answered, Scorer, answered, of_role, scored, scorer
from .._evaluate.scores import Score
from .._model.llm import LLM
from .._operator.enclosing import attempt
from .._operator.jit import jit
from .._runtime.typed import typed_errors
from .._text.text import Text, text
from .._types import Key, is_key
from ..errors import RepeatedSampleWarning

Method = Literal["llmselector", "exhaustive", "random"]
# For each LLM of an operator, the position of its model in the list of models.
Allocation = tuple[int, ...]

# The names of a diagnoser's arguments.
_DIAGNOSED = (("question", "answer", "gold", "module", "model"),)

# The most allocations that an exhaustive search tries without a `budget`. More are taken for a mistake.
_MOST_ALLOCATIONS = 4096


@dataclass(frozen=True)
class Trial:
    """One allocation on all rows.

    **Fields:**

    - `models`: the model of each module, by the module's path in the operator.
    - `score`: the mean over the rows that did not fail; NaN if all failed.
    - `failed`: the number of rows that failed.
    - `calls`: how many answers were asked for, including those that were in the journal already.
    - `cost`: what these answers cost in US dollars when they were paid for.
    """

    models: dict[str, str]
    score: float
    failed: int
    calls: int
    cost: float


@dataclass(frozen=True)
class SelectionTrace:
    """What `select_models` tried.

    **Fields:**

    - `trials`: every allocation, in the order in which it was tried.
    - `best`: the index in `trials` of the allocation that was taken.
    """

    trials: tuple[Trial, ...]
    best: int

    def to_pandas(self) -> Any:
        """A data frame with a row for each trial: its models, by module, and the other fields."""
        import pandas

        return pandas.DataFrame([{**t.models, **_numbers(t)} for t in self.trials])

    def __str__(self) -> str:
        header = [*self.trials[0].models, "score", "failed", "calls", "cost"]
        rows = [
            [*t.models.values(), f"{t.score:.4f}", f"{t.failed:,}", f"{t.calls:,}", _dollars(t.cost)]
            for t in self.trials
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        line = lambda cells, mark: (
            f"{mark} " + "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()
        )
        marks = ["*" if i == self.best else " " for i in range(len(rows))]
        return "\n".join([line(header, " "), *map(line, rows, marks)])


def _dollars(cost: float) -> str:
    return "unknown" if math.isnan(cost) else f"${cost:,.6f}"


def _numbers(trial: Trial) -> dict[str, Any]:
    return {"score": trial.score, "failed": trial.failed, "calls": trial.calls, "cost": trial.cost}


def select_models(
    op: Any,
    data: Any,
    score: str | Score,
    models: Sequence[str],
    *,
    diagnoser: Callable[..., Any] | None = None,
    method: Method = "llmselector",
    budget: int | None = None,
    key: Key | None = None,
    gold: str | None = None,
) -> tuple[Any, SelectionTrace]:
    """Chooses a model for each of an operator's LLMs, by how well the whole operator does.

    ```python
    op, trace = learn.select_models(op, (questions, golds), "number", ["sim/small", "sim/large"])
    print(trace)
    ```

    **Arguments:**

    - `op`: an operator. The `ember.LLM`s in it, at any depth, are the modules. The first allocation gives each module
        the model that it has, if that is among `models`, and else the first of `models`.
    - `data`, `score`, `gold`: as of `ember.evaluate`; the higher a score the better.
    - `models`: model ids; one that is there twice counts once.
    - `diagnoser`: says whether a module is to blame for an answer: 1 if it is, 0 if it is not, 1/2 if that is unclear.
        It is a Python function `(question, answer, gold, module, model)` of strings, or an operator with the same
        arguments and, if it takes one, `key`. `module` is the module's path in `op`. An operator that fails counts as
        1/2. Only `"llmselector"` asks a diagnoser, on rows whose score is below 1. `answer` is all that `op` returns,
        so the diagnoser sees drafts if `op` returns them.
    - `method`: `"llmselector"` is greedy by module; `"exhaustive"` tries every allocation, `"random"` as many as
        `budget` says, drawn without repetition.
    - `budget`: the most allocations that are tried. The greedy search ends before a step that would exceed it.
    - `key`: a PRNG key, from which every row has a key of its own, as of `ember.evaluate`. A row's key is the same
        under all allocations. The random search draws by `key` too.

    **Returns:** `op` with the models of the best allocation that was tried, by the mean score (the last one taken among
    equals), and a `SelectionTrace`.

    **Raises:** `ValueError` for an operator without LLMs, for no models, an unknown method, a diagnoser with a method
    that does not ask it, a budget below 1, an exhaustive search of more allocations than the budget (by default 4096),
    and if every row fails under every allocation; `ModelError` for an unknown model; and what `ember.evaluate` raises.
    """
    if method not in ("llmselector", "exhaustive", "random"):
        raise ValueError(f"select_models(method={method!r}): it is 'llmselector', 'exhaustive' or 'random'.")
    if diagnoser is not None and method != "llmselector":
        raise ValueError(f"select_models(method={method!r}) asks no diagnoser, leave it out; 'llmselector' does.")
    if method == "random" and budget is None:
        raise ValueError("select_models(method='random') takes a budget, the number of allocations that it draws.")
    if budget is not None and budget < 1:
        raise ValueError(f"select_models(budget={budget}): give a number of allocations, at least 1.")
    search = _Search(op, data, score, models, diagnoser, key, gold)
    count = len(search.models) ** len(search.paths)
    most = _MOST_ALLOCATIONS if budget is None else budget
    if method == "llmselector":
        last = _greedy(search, budget)
    elif method == "random":
        last = _all(search, _distinct(count, most, search.key))
    elif count <= most:
        last = _all(search, range(count))
    else:
        raise ValueError(
            f"{len(search.models)} models at {len(search.paths)} modules are {count:,} allocations, more than "
            f"{most:,}. Give a budget of as many, or search with method='llmselector'."
        )
    best = search.best(last)
    return search.allocated(best), SelectionTrace(tuple(search.trials.values()), list(search.trials).index(best))


def _greedy(search: "_Search", budget: int | None) -> Allocation:
    """Searches by LLMSelector; returns the allocation at which it ends."""
    current = search.first
    seen = set()
    for module in itertools.cycle(range(len(search.paths))):
        candidates = [(*current[:module], model, *current[module + 1 :]) for model in range(len(search.models))]
        new = len(set(candidates) - search.trials.keys())
        if (module, current) in seen or (budget is not None and len(search.trials) + new > budget):
            break
        seen.add((module, current))
        scores = search.run(candidates, module)
        # A candidate that failed at a row is not among the best of that row; if all failed, the row has no best one.
        scores = np.where(np.isnan(scores), -np.inf, scores)
        is_best = np.isfinite(scores) & (scores == scores.max(0))
        current = candidates[int(np.argmax(is_best.sum(1)))]
    # The budget was too small for even one step: the first allocation is the only one that is tried.
    if not search.trials:
        search.run([current])
    return current


def _all(search: "_Search", places: Sequence[int]) -> Allocation:
    """Tries the allocations with given numbers, in one sweep; returns the first. An allocation's models are the digits
    of its number, to the base of the number of models."""
    base, modules = len(search.models), len(search.paths)
    allocations = [tuple(place // base**i % base for i in reversed(range(modules))) for place in places]
    search.run(allocations)
    return allocations[0]


def _distinct(count: int, budget: int, key: Key) -> list[int]:
    """`budget` different numbers below `count`, or all of them if `count` is less.

    They are drawn one by one until there are enough. `count` may be too large for NumPy's integers, and `random.sample`
    of a range refuses one that is longer than a C integer.
    """
    seed = jax.random.key_data(key) if is_key(key) else key
    draw = random.Random(np.asarray(seed).tobytes())
    found: dict[int, None] = {}  # in the order in which they were drawn
    while len(found) < min(budget, count):
        found[draw.randrange(count)] = None
    return list(found)


# -- sweeps ----------------------------------------------------------------------------------------------------------


class _JudgedOperator(NamedTuple):
    """What is run for every allocation and row. It is an argument of `_row`, so equal searches share a program.

    **Fields:**

    - `op`: the operator; the models that it has are replaced.
    - `models`: their names.
    - `question`: the name of the operator's first argument.
    - `judge`: the score, if it is an operator.
    """

    op: Any
    models: Text
    question: str
    judge: Scorer | None

    def allocated(self, allocation: Any) -> Any:
        """The operator with the models that an allocation names; its numbers may be traced."""
        leaves, tree = jax.tree.flatten(self.op, is_leaf=_is_llm)
        chosen = iter(allocation)
        return jax.tree.unflatten(
            tree, [x.replace(model=self.models[next(chosen)]) if _is_llm(x) else x for x in leaves]
        )


@jit
def _row(
    program: _JudgedOperator, allocation: jax.Array, arguments: dict[str, Any], key: Key | None, gold: Any
) -> Answered:
    row = arguments[program.question], gold, key
    return answered("operator", program.judge, program.allocated(allocation), (), arguments, row)


class _AllocationResult(NamedTuple):
    """What an allocation gave for all rows: the results as arrays, the answers as Python values, and the scores."""

    out: Any
    answers: list[Any]
    scores: np.ndarray


class _Rows(NamedTuple):
    """The rows of a data set.

    **Fields:**

    - `questions`, `golds`: as Python values.
    - `question`: the name of the operator's first argument.
    - `lanes`: what is mapped over: the operator's arguments, the rows' keys, and the gold answers as arrays (`None`
        unless a score or a diagnoser is an operator).
    """

    questions: list[Any]
    golds: list[Any]
    question: str
    lanes: tuple[dict[str, Any], Key | None, Any]


def _rows(op: Any, data: Any, gold: str | None, key: Key | None, scorers: Sequence[Scorer]) -> _Rows:
    columns = columns_of(data)
    right = gold_of(columns, gold, {"the operator": op})
    found = asked("the operator", op, columns, right, key, any(by.is_keyed for by in scorers))
    golds = as_array(right, columns[right]) if any(by.in_program for by in scorers) else None
    lanes = found.arguments, found.keys, golds
    return _Rows(columns[found.names[found.question]], columns[right], found.question, lanes)


class _Search:
    """The state of a search: the program, the rows that it is tried on, and the trials so far. No allocation is run
    twice, and no diagnoser is asked twice about one module of an allocation."""

    def __init__(
        self,
        op: Any,
        data: Any,
        score: str | Score,
        models: Sequence[str],
        diagnoser: Callable[..., Any] | None,
        key: Key | None,
        gold: str | None,
    ):
        leaves, _ = jax.tree_util.tree_flatten_with_path(op, is_leaf=_is_llm)
        modules = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves if _is_llm(x)}
        if not modules or not len(models) or isinstance(models, str):
            raise ValueError(
                "select_models takes an operator with at least one `ember.LLM` in it, and a list of model ids; this "
                f"one has {len(modules)}, and the models are {models!r:.60}."
            )
        self.paths, self.models = tuple(modules), tuple(dict.fromkeys(text(models).tolist()))
        self.first = tuple(self._place(path, llm) for path, llm in modules.items())
        self.trials: dict[Allocation, Trial] = {}
        self._outcomes: dict[Allocation, _AllocationResult] = {}
        self._merits: dict[tuple[Allocation, int], np.ndarray] = {}
        self._causes: collections.Counter[str] = collections.Counter()
        check_key(key)
        self.key = jax.random.key(0) if key is None else key
        self._score = scorer(score, key)
        self._diagnoser = None if diagnoser is None else of_role("diagnoser", diagnoser, _DIAGNOSED, key)
        scorers = (self._score,) if self._diagnoser is None else (self._score, self._diagnoser)
        self._rows = _rows(op, data, gold, key, scorers)
        ids = LLM(text(self.models)).model  # `LLM` checks the ids and raises for one that is unknown
        self._program = _JudgedOperator(op, ids, self._rows.question, self._score.in_program)

    def _place(self, path: str, llm: LLM) -> int:
        name = llm.model.tolist()
        if not isinstance(name, str):
            raise ValueError(f"the LLM at {path} is {len(name)} models in one; select_models takes one at each place.")
        return self.models.index(name) if name in self.models else 0

    def allocated(self, allocation: Allocation) -> Any:
        """The operator with these models."""
        return self._program.allocated(allocation)

    def run(self, allocations: Sequence[Allocation], module: int | None = None) -> np.ndarray:
        """Tries allocations on all rows.

        **Returns:** `float[allocations, rows]`: the scores, NaN where the operator failed. If `module` is given and
        there is a diagnoser, the merit of that module (see `_merits`) is added.
        """
        # A module that keeps its model gives one sample under all allocations. That is meant, so there is no warning.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RepeatedSampleWarning)
            if new := [a for a in allocations if a not in self._outcomes]:
                self._try(new)
            scores = np.stack([self._outcomes[a].scores for a in allocations])
            if self._diagnoser is None or module is None:
                return scores
            if new := [a for a in allocations if (a, module) not in self._merits]:
                tried = [(self.models[a[module]], self._outcomes[a]) for a in new]
                found = _merits(self._diagnoser, self._rows, self.paths[module], tried)
                self._merits |= {(a, module): merit for a, merit in zip(new, found, strict=True)}
        return scores + np.stack([self._merits[a, module] for a in allocations])

    def _try(self, allocations: Sequence[Allocation]) -> None:
        over_rows = lambda allocation: jax.vmap(functools.partial(_row, self._program, allocation))(*self._rows.lanes)
        with typed_errors():
            found = jax.block_until_ready(jax.vmap(over_rows)(jnp.array(allocations)))
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
        count = len(allocations)
        answers, scores, causes = scored(flat, self._score, self._rows.questions * count, self._rows.golds * count)
        self._causes.update(filter(None, causes))
        usage, rows = found.answer.usage, len(self._rows.golds)
        of_each = zip(scores.reshape(count, rows), np.asarray(usage.calls), np.asarray(usage.cost, float), strict=True)
        for i, (allocation, (score, calls, cost)) in enumerate(zip(allocations, of_each, strict=True)):
            out = jax.tree.map(lambda leaf, i=i: leaf[i], found.answer.out)
            self._outcomes[allocation] = _AllocationResult(out, answers[i * rows : (i + 1) * rows], score)
            failed = np.isnan(score)
            self.trials[allocation] = Trial(
                models={path: self.models[model] for path, model in zip(self.paths, allocation, strict=True)},
                score=math.nan if failed.all() else float(score[~failed].mean()),
                failed=int(failed.sum()),
                calls=int(calls.sum()),
                cost=float(cost.sum()),
            )

    def best(self, last: Allocation) -> Allocation:
        """The allocation with the highest mean score. Among equals `last` is taken if it is one of them, and else the
        one that was tried first.

        **Raises:** `ValueError` if every allocation failed at every row.
        """
        if all(math.isnan(trial.score) for trial in self.trials.values()):
            cause, count = self._causes.most_common(1)[0]
            raise ValueError(
                f"every allocation fails at every row of the data; {count:,} of {self._causes.total():,} times with "
                f"{cause:.300}"
            )
        rank = lambda allocation: (np.nan_to_num(self.trials[allocation].score, nan=-np.inf), allocation == last)
        return max(self.trials, key=rank)


# -- diagnoses -------------------------------------------------------------------------------------------------------


def _merits(by: Scorer, rows: _Rows, module: str, tried: Sequence[tuple[str, _AllocationResult]]) -> np.ndarray:
    """The merit of a module: `float[allocations, rows]`, 1 where it is not to blame, 0 where it is, 1/2 if unknown."""
    # A row that failed has the score NaN, which is not below 1, so no diagnoser is asked about it.
    is_asked = np.stack([outcome.scores for _, outcome in tried]) < 1
    blame = (_blamed_by_function if by.in_program is None else _blamed_by_operator)(by, rows, module, tried, is_asked)
    return np.where(is_asked, 1 - np.nan_to_num(blame, nan=0.5), 1.0)


def _blamed_by_function(
    by: Scorer, rows: _Rows, module: str, tried: Sequence[tuple[str, _AllocationResult]], is_asked: np.ndarray
) -> np.ndarray:
    blame = np.zeros(is_asked.shape)
    for i, row in np.argwhere(is_asked).tolist():
        model, outcome = tried[i]
        blame[i, row] = by.fn(rows.questions[row], outcome.answers[row], rows.golds[row], module, model)
    return blame


def _blamed_by_operator(
    by: Scorer, rows: _Rows, module: str, tried: Sequence[tuple[str, _AllocationResult]], is_asked: np.ndarray
) -> np.ndarray:
    models, outcomes = zip(*tried, strict=True)
    answers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(outcome.out for outcome in outcomes))
    arguments, keys, golds = rows.lanes
    questions = arguments[rows.question]
    told = lambda asks, answer, question, gold, key, model: _blame(
        by, asks, (question, answer, gold, text(module), model), key
    )
    over_rows = lambda asks, answers, model: jax.vmap(functools.partial(told, model=model))(
        asks, answers, questions, golds, keys
    )
    with typed_errors():
        return np.asarray(jax.vmap(over_rows)(jnp.asarray(is_asked), answers, text(models)))


@jit
def _blame(by: Scorer, is_asked: jax.Array, row: tuple[Any, ...], key: Key | None) -> jax.Array:
    """A diagnoser's number for one row; 0, and no call, for a row that it is not asked about; NaN if it fails."""
    return jax.lax.cond(is_asked, lambda: attempt(by)(row, key)[0], lambda: jnp.zeros(()))


def _is_llm(value: Any) -> bool:
    return isinstance(value, LLM)
