"""`learn.pareto`: the frontier by brute force, paired draws in closed form, shared calls paid once."""

import collections
import itertools
import sys

import jax
import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas
import pytest

import ember_jax as ember
from ember_jax import _intervals, learn
from ember_jax._evaluate.result import Result
from ember_jax.learn._pareto import _dominates, _on_frontier
from ember_jax.providers.base import Response
from ember_jax.providers.callable import Callable

matplotlib.use("agg")

PNG = b"\x89PNG\r\n\x1a\n"
PRICES = {"cheap": 0.25, "dear": 1.0, "nobody-knows": float("nan")}
KNOWN = {"cheap": "ab", "dear": "bcd", "nobody-knows": "abcd"}


@pytest.fixture
def asked():
    """What was asked of models that answer the letters that they know in capitals, at a price for each call."""
    counts = collections.Counter()

    def answer(request):
        prompt = request.messages[-1].content
        counts[request.model, prompt] += 1
        words = prompt.upper() if prompt[0] in KNOWN[request.model] else "?"
        return Response(words, 1, 1, PRICES[request.model])

    with ember.session(providers={"mine": Callable(answer)}):  # which keeps answers in memory
        yield counts


class Both(ember.Operator):
    """The cheap model's answer, or the dear one's if there is none."""

    cheap: ember.LLM
    dear: ember.LLM

    def forward(self, question: ember.Text, key: ember.Key | None = None) -> ember.Text:
        draft = self.cheap(question, key)
        return jax.lax.cond(draft == "?", lambda: self.dear(question, key), lambda: draft)


def operators(**more):
    cheap, dear = ember.LLM("mine/cheap"), ember.LLM("mine/dear")
    return {"mine/cheap": cheap, "mine/dear": dear, "both": Both(cheap, dear), **more}


DATA = [(letter, letter.upper()) for letter in "abcd"]


@pytest.mark.parametrize("key", [None, 3])
def test_calls_that_operators_share_are_paid_once_and_are_part_of_each_ones_cost(key, asked):
    found = learn.pareto(operators(), DATA, "exact", key=None if key is None else jax.random.key(key), resamples=10)
    # `both` asks the cheap model everything, and the dear one c and d: all of that is asked by the others as well.
    assert asked == dict.fromkeys(itertools.product(["cheap", "dear"], "abcd"), 1)
    assert {name: r.accuracy for name, r in found.results.items()} == {
        "mine/cheap": 0.5,
        "mine/dear": 0.75,
        "both": 1.0,
    }
    np.testing.assert_array_equal(found.table["cost"], [0.25, 1.0, 0.75])
    np.testing.assert_array_equal(found.results["both"].costs, [0.25, 0.25, 1.25, 1.25])
    assert found.frontier == ("mine/cheap", "both")
    assert found.dominated == {"mine/dear": ("both",)}
    assert repr(found) == "<Frontier: mine/cheap, both; 1 dominated>"
    assert "dominated by both" in str(found)


def test_each_is_evaluated_to_what_it_is_alone(asked):
    together = learn.pareto(operators(), DATA, "exact", resamples=1).results
    for name, op in operators().items():
        alone = ember.evaluate(op, DATA, "exact")
        assert together[name].answers == alone.answers
        for field in ("scores", "costs", "calls", "input_tokens"):
            np.testing.assert_array_equal(getattr(together[name], field), getattr(alone, field))


def test_the_frontier_by_brute_force():
    draw = np.random.default_rng(0)
    for n in (1, 2, 5, 12):
        for _ in range(50):
            accuracy, cost = draw.integers(0, 5, (2, n)) / 4.0
            unknown = draw.random(n) < 0.1
            (accuracy if draw.random() < 0.5 else cost)[unknown] = np.nan

            def beats(i, j):
                known = not (unknown[i] or unknown[j])
                equal = accuracy[i] == accuracy[j] and cost[i] == cost[j]
                return known and accuracy[i] >= accuracy[j] and cost[i] <= cost[j] and not equal

            beaten = [[beats(i, j) for j in range(n)] for i in range(n)]
            np.testing.assert_array_equal(_dominates(accuracy, cost), beaten)
            np.testing.assert_array_equal(_on_frontier(accuracy, cost), ~np.any(beaten, axis=0) & ~unknown)


def given(scores, costs):
    """A result with such scores and costs."""
    n = len(scores)
    none = np.zeros(n, int)
    scores = np.asarray(scores, float)
    return Result(
        {"gold": [""] * n},
        "gold",
        [""] * n,
        scores,
        [""] * n,
        none + np.nan,
        none,
        none,
        none,
        np.asarray(costs),
        none,
        none,
    )


def test_draws_are_the_same_rows_for_all(monkeypatch):
    # With two rows, on each of which another one is right, the dear one is better in the draw of its row alone (1 / 4);
    # with a draw for each, it would be better in 5 / 16.
    results = {"cheap": given([1, 0], [1.0, 1.0]), "dear": given([0, 1], [2.0, 2.0]), "twin": given([1, 0], [2.0, 3.0])}
    monkeypatch.setattr("ember_jax.learn._pareto.evaluate_all", lambda *args, **kwargs: results)
    draws = 20_000
    table = learn.pareto(dict.fromkeys(results), DATA, resamples=draws).table
    np.testing.assert_allclose(table["frontier_share"], [1, 0.25, 0], atol=4 * np.sqrt(0.25 * 0.75 / draws))
    assert table["frontier_share"][2] == 0  # as right as the cheap one in every draw, and dearer
    np.testing.assert_allclose(
        [table["cost_low"][2], table["cost_high"][2]], [2 + end for end in _intervals.wilson(1, 2, 0.95)]
    )


def test_intervals_are_those_of_a_result_and_of_costs(monkeypatch):
    costs = np.random.default_rng(0).lognormal(0, 0.5, 20)
    results = {
        "all": given(np.ones(20), np.ones(20)),
        "half": given([0, 1] * 10, costs),
        "one more": given([1, 1] + [0, 1] * 9, costs),
    }
    monkeypatch.setattr("ember_jax.learn._pareto.evaluate_all", lambda *args, **kwargs: results)
    found = learn.pareto(dict.fromkeys(results), DATA, resamples=10)
    table = found.table
    assert (table["accuracy_low"][0], table["accuracy_high"][0]) == _intervals.wilson(20, 20, 0.95)  # and not [1, 1]
    assert (table["accuracy_low"][1], table["accuracy_high"][1]) == _intervals.wilson(10, 20, 0.95)
    assert (table["cost_low"][0], table["cost_high"][0]) == (1, 1)
    assert (table["cost_low"][1], table["cost_high"][1]) == _intervals.of_numbers(costs, 0.95)
    difference = found.difference("one more", "half")
    # Agresti and Min: of 22 rows, 1.5 in one cell of disagreement and half a one in the other.
    half = 1.959964 * np.sqrt((2 / 22 - (1 / 22) ** 2) / 22)
    assert difference == pytest.approx((0.05, 1 / 22 - half, 1 / 22 + half, 20))
    with pytest.raises(KeyError, match="other"):
        found.difference("half", "other")
    assert "[80%]" in str(learn.pareto(dict.fromkeys(results), DATA, resamples=10, level=0.8))


def test_what_is_unknown_is_not_compared(asked):
    more = {"nobody": ember.LLM("mine/nobody-knows"), "fails": lambda question: ember.LLM("mine/none")(question)}
    found = learn.pareto(operators(**more), DATA, "exact", resamples=20)
    assert found.frontier == ("mine/cheap", "both")
    assert set(found.dominated) == {"mine/dear"}
    table = found.table
    assert np.isnan(table["cost"][3])
    assert np.isnan(table["cost_low"][3])
    assert np.isnan(table["accuracy"][4])
    assert table["failed"].tolist() == [0, 0, 0, 0, 4]
    assert table["frontier_share"][3:].tolist() == [0, 0]
    assert "unknown cost" in str(found)
    ax = found.plot()
    matplotlib.pyplot.close(ax.figure)


def test_a_table_and_a_picture(asked, tmp_path):
    found = learn.pareto(operators(), DATA, "exact")
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["operator"].tolist() == ["mine/cheap", "mine/dear", "both"]
    assert ((frame.accuracy_low <= frame.accuracy) & (frame.accuracy <= frame.accuracy_high)).all()
    figure, ax = matplotlib.pyplot.subplots()
    assert found.plot(ax) is ax
    x, y = ax.lines[-1].get_data()
    assert (list(x), list(y)) == ([0.25, 0.75], [0.5, 1.0])
    assert {text.get_text() for text in ax.texts} == set(found.results)
    assert ax.get_xscale() == "log"
    matplotlib.pyplot.close(figure)
    found.plot(tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(PNG)
    assert not matplotlib.pyplot.get_fignums()


def test_without_matplotlib_a_picture_says_what_to_install(monkeypatch, asked):
    found = learn.pareto(operators(), DATA, "exact", resamples=1)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"frontier.plot\(\) needs matplotlib"):
        found.plot()


@pytest.mark.parametrize(
    ("operators", "settings", "told"),
    [
        ({}, {}, "a dict of operators by name"),
        ([ember.LLM("sim/small")], {}, "a dict of operators by name"),
        ({"a": ember.LLM("sim/small"), 1: ember.LLM("sim/large")}, {}, "a dict of operators by name"),
        ({"a": ember.LLM("sim/small")}, {"resamples": 0}, "resamples=0"),
        ({"a": ember.LLM("sim/small")}, {"level": 1.0}, "level=1.0"),
    ],
)
def test_what_cannot_be_compared_is_told(operators, settings, told):
    with pytest.raises(ValueError, match=told):
        learn.pareto(operators, DATA, **settings)
