"""`select_models`: which model each of an operator's LLMs should be.

Design note. An allocation is an array of numbers, one for each LLM of an operator, that index a Text of model ids; the
operator with these models is a function of it. So a sweep over allocations is a `vmap` like any other, all candidates
of one step run on all rows at once, and calls that two allocations have in common are made once. Nothing is mutated.

The greedy search is LLMSelector (Chen et al., 2025, arXiv 2502.14815): it goes round the modules, tries every model at
one of them while the others stay, and takes the one that is among the best on most rows. A row's score alone cannot
tell a module that has become better from one that has not while another one still spoils the answer; a diagnoser can,
and adds to a candidate's score where the module is not to blame. The search ends when it comes to a state, an
allocation and the module whose turn it is, for the second time: what follows would be what followed.
"""

import functools
import inspect
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

from .._enclosing import attempt, metered
from .._errors import RepeatedSampleWarning
from .._jit import jit
from .._llm import LLM
from .._text.text import Text, text
from .._types import Key, is_key
from ._rows import check, columns, number, row_keys

Method = Literal["llmselector", "exhaustive", "random"]
# Of each LLM of an operator, the place of its model in the list of models.
Allocation = tuple[int, ...]

# Beyond this nobody means "try them all"; a `budget` says otherwise.
_MOST_ALLOCATIONS = 4096


@dataclass(frozen=True)
class Trial:
    """One allocation on all rows.

    **Fields:**

    - `models`: the model of each module, by the module's path in the operator.
    - `score`: the mean over the rows that did not fail; NaN if all did.
    - `failed`: the number of rows that did.
    - `calls`: the answers asked for, also those that were there already.
    - `cost`: US dollars that these answers cost when they were paid.
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
    - `best`: the place of the one that was taken.
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
    data: tuple[Any, Any],
    score: Callable[..., Any],
    models: Sequence[str],
    *,
    diagnoser: Callable[..., Any] | None = None,
    method: Method = "llmselector",
    budget: int | None = None,
    key: Key | None = None,
) -> tuple[Any, SelectionTrace]:
    """Chooses a model for each of an operator's LLMs, by how well the whole operator does.

    ```python
    op, trace = learn.select_models(op, (questions, golds), lambda a, gold: a == gold, ["sim/small", "sim/large"])
    print(trace)
    ```

    **Arguments:**

    - `op`: an operator of a question, and of a key if it takes one. Its `LLM`s are the modules, wherever in it they
        are; their first allocation is what they are, where that is among `models`, else the first of these.
    - `data`: the questions, and what is right: a Text, an array or a list with a row for each.
    - `score`: of `(answer, gold)`, gives a number, the higher the better: a function that JAX can trace, or an
        operator. Plain Python on the words is an `ember.host` function.
    - `models`: model ids.
    - `diagnoser`: a function or an operator of `(question, answer, gold, module, model)`: whether that module, named
        by its path in `op`, is to blame for the answer: 1 if it is, 0 if not, 1/2 if that is unclear. It is asked where
        a score is below 1. `answer` is all that `op` returns, so one that returns its drafts too shows them.
    - `method`: `"llmselector"` is greedy by module; `"exhaustive"` tries every allocation, `"random"` as many as
        `budget` says, drawn without repetition.
    - `budget`: the most allocations that are tried. Greedy steps that it does not suffice for are not begun.
    - `key`: a PRNG key, of which every row has its own, the same under all allocations; random search draws by it too.

    **Returns:** `op` with the models of the best allocation that was tried, by the mean score (the last one taken among
    equals), and a `SelectionTrace`.

    **Raises:** `ValueError` for an operator without LLMs, for no models, an unknown method, a budget below 1, and an
    exhaustive search of more than 4096 allocations that no budget is given for; `ModelError` for an unknown model.
    """
    search = _Search(op, data, score, models, diagnoser, key)
    count = len(models) ** len(search.paths)
    if budget is not None and budget < 1:
        raise ValueError(f"select_models(budget={budget}): give a number of allocations, at least 1.")
    if method == "llmselector":
        last = _greedy(search, budget)
    elif method == "exhaustive":
        if count > (_MOST_ALLOCATIONS if budget is None else budget):
            raise ValueError(
                f"{len(models)} models at {len(search.paths)} modules are {count:,} allocations, more than "
                f"{_MOST_ALLOCATIONS if budget is None else budget:,}. Give a budget of as many, or search with "
                "method='llmselector'."
            )
        last = _all(search, range(count))
    elif method == "random":
        if budget is None:
            raise ValueError("select_models(method='random') takes a budget, the number of allocations that it draws.")
        last = _all(search, _distinct(count, budget, search.key))
    else:
        raise ValueError(f"select_models(method={method!r}): it is 'llmselector', 'exhaustive' or 'random'.")
    best = search.best(last)
    return search.allocated(best), SelectionTrace(tuple(search.trials.values()), list(search.trials).index(best))


def _greedy(search: "_Search", budget: int | None) -> Allocation:
    """Where LLMSelector ends."""
    current = search.first
    seen = set()
    for module in itertools.cycle(range(len(search.paths))):
        candidates = [(*current[:module], model, *current[module + 1 :]) for model in range(len(search.models))]
        new = len(set(candidates) - search.trials.keys())
        if (module, current) in seen or (budget is not None and len(search.trials) + new > budget):
            break
        seen.add((module, current))
        scores = search.run(candidates, module)
        # A candidate that failed at a row is not among its best, and where all did there is none.
        scores = np.where(np.isnan(scores), -np.inf, scores)
        is_best = np.isfinite(scores) & (scores == scores.max(0))
        current = candidates[int(np.argmax(is_best.sum(1)))]
    if not search.trials:  # the budget does not suffice for one step
        search.run([current])
    return current


def _all(search: "_Search", places: Sequence[int]) -> Allocation:
    base, modules = len(search.models), len(search.paths)
    allocations = [tuple(place // base**i % base for i in reversed(range(modules))) for place in places]
    search.run(allocations)
    return allocations[0]


def _distinct(count: int, budget: int, key: Key) -> list[int]:
    """Different places below `count`, which may be too large for any integer of NumPy's."""
    seed = jax.random.key_data(key) if is_key(key) else key
    draw = random.Random(np.asarray(seed).tobytes())
    return draw.sample(range(count), min(budget, count))


# -- sweeps ----------------------------------------------------------------------------------------------------------


class _Program(NamedTuple):
    """What is run for every allocation and row; an argument, so that equal searches are one program.

    **Fields:**

    - `op`: the operator, with any models.
    - `models`, `modules`: their names.
    - `score`, `diagnoser`: as they were given.
    - `is_keyed`: whether the operator is called with a key.
    """

    op: Any
    models: Text
    modules: Text
    score: Callable[..., Any]
    diagnoser: Callable[..., Any] | None
    is_keyed: bool

    def allocated(self, allocation: Any) -> Any:
        """The operator with the models that a sequence of numbers names, also traced ones."""
        leaves, tree = jax.tree.flatten(self.op, is_leaf=_is_llm)
        chosen = iter(allocation)
        return jax.tree.unflatten(
            tree, [x.replace(model=self.models[next(chosen)]) if _is_llm(x) else x for x in leaves]
        )


class _Row(NamedTuple):
    """What an allocation gives for one row.

    **Fields:**

    - `score`: NaN where the row failed.
    - `merit`: 1 where the module is not to blame, 0 where it is.
    - `calls`, `cost`: of the operator.
    """

    score: Any
    merit: Any
    calls: Any
    cost: Any


@jit
def _row(program: _Program, allocation: jax.Array, module: jax.Array, question: Text, gold: Any, key: Key) -> _Row:
    keyed = {"key": key} if program.is_keyed else {}
    (answer, ok), usage = metered(attempt(program.allocated(allocation)))(question, **keyed)
    score = jnp.where(ok, number(program.score, answer, gold), jnp.nan)
    diagnoser = program.diagnoser
    if diagnoser is None:
        return _Row(score, jnp.zeros(()), usage.calls, usage.cost)
    asked = question, answer, gold, program.modules[module], program.models[allocation[module]]
    # A diagnoser that fails is one that does not know.
    merit = lambda: 1 - jnp.nan_to_num(number(diagnoser, *asked), nan=0.5)
    return _Row(score, jax.lax.cond(score < 1, merit, lambda: jnp.ones(())), usage.calls, usage.cost)


class _Search:
    """A program, the rows that it is tried on, and the trials so far."""

    def __init__(
        self,
        op: Any,
        data: tuple[Any, Any],
        score: Callable[..., Any],
        models: Sequence[str],
        diagnoser: Callable[..., Any] | None,
        key: Key | None,
    ):
        leaves, _ = jax.tree_util.tree_flatten_with_path(op, is_leaf=_is_llm)
        modules = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves if _is_llm(x)}
        if not modules or not models or isinstance(models, str):
            raise ValueError(
                "select_models takes an operator with at least one `ember.LLM` in it, and a list of model ids; this "
                f"one has {len(modules)}, and the models are {models!r:.60}."
            )
        self.paths, self.models = tuple(modules), tuple(models)
        self.first = tuple(self._place(path, llm) for path, llm in modules.items())
        self.trials: dict[Allocation, Trial] = {}
        self._found: dict[tuple[Allocation, int], np.ndarray] = {}
        self.key = jax.random.key(0) if key is None else key
        check(score, self.key, "select_models")
        parameter = inspect.signature(op).parameters.get("key")
        is_keyed = parameter is not None and (key is not None or parameter.default is parameter.empty)
        ids = LLM(text(list(models))).model  # which checks them
        self._program = _Program(op, ids, text(list(modules)), score, diagnoser, is_keyed)
        questions, golds = columns(data, "select_models")
        self._rows = questions, golds, row_keys(self.key, questions)

    def _place(self, path: str, llm: LLM) -> int:
        name = llm.model.tolist()
        if not isinstance(name, str):
            raise ValueError(f"the LLM at {path} is {len(name)} models in one; select_models takes one at each place.")
        return self.models.index(name) if name in self.models else 0

    def allocated(self, allocation: Allocation) -> Any:
        """The operator with these models."""
        return self._program.allocated(allocation)

    def run(self, allocations: Sequence[Allocation], module: int = 0) -> np.ndarray:
        """Tries allocations on all rows: `[allocations, rows]`, the score and the merit of a module together."""
        of_module = 0 if self._program.diagnoser is None else module
        if new := [a for a in allocations if (a, of_module) not in self._found]:
            found = self._sweep(new, module)
            for allocation, *row in zip(new, *found, strict=True):
                self.trials.setdefault(allocation, self._trial(allocation, _Row(*row)))
            self._found |= {(a, of_module): row for a, row in zip(new, found.score + found.merit, strict=True)}
        return np.stack([self._found[a, of_module] for a in allocations])

    def _sweep(self, allocations: Sequence[Allocation], module: int) -> _Row:
        one = lambda allocation, *row: _row(self._program, allocation, jnp.array(module), *row)
        over_rows = lambda allocation: jax.vmap(functools.partial(one, allocation))(*self._rows)
        with warnings.catch_warnings():  # a module that stays is one sample under all allocations, as it is meant
            warnings.simplefilter("ignore", RepeatedSampleWarning)
            return _Row(*(np.asarray(x, float) for x in jax.vmap(over_rows)(jnp.array(allocations))))

    def _trial(self, allocation: Allocation, row: _Row) -> Trial:
        failed = np.isnan(row.score)
        return Trial(
            models={path: self.models[model] for path, model in zip(self.paths, allocation, strict=True)},
            score=float("nan") if failed.all() else float(row.score[~failed].mean()),
            failed=int(failed.sum()),
            calls=int(row.calls.sum()),
            cost=float(row.cost.sum()),
        )

    def best(self, last: Allocation) -> Allocation:
        """The allocation with the highest mean; among equals the last one, or the first that was tried."""
        rank = lambda allocation: (np.nan_to_num(self.trials[allocation].score, nan=-np.inf), allocation == last)
        return max(self.trials, key=rank)


def _is_llm(value: Any) -> bool:
    return isinstance(value, LLM)
