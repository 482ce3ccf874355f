import dataclasses
import itertools
from typing import NamedTuple

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

import ember_jax as ember
from ember_jax.errors import TextError

few = settings(max_examples=max(25, settings.default.max_examples // 4))
names = st.sampled_from(["a", "b", "c", "d", "e"])


@few
@given(st.lists(st.tuples(names, st.integers(0, 3)), max_size=3, unique_by=lambda axis: axis[0]))
def test_a_table_has_one_row_for_each_lane_outermost_slowest(axes):
    shape = tuple(length for _, length in axes)
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    words = np.empty(shape, object)
    for index in np.ndindex(shape):
        words[index] = str(index)
    labels = {name: [f"{name}{i}" for i in range(length)] for name, length in axes}
    table = ember.table({"number": jnp.asarray(numbers), "word": ember.text(words)}, **labels)
    rows = list(zip(*table.values(), strict=True))
    expected = [
        (*(labels[name][i] for (name, _), i in zip(axes, index, strict=True)), numbers[index], str(index))
        for index in itertools.product(*(range(n) for n in shape))
    ]
    assert list(table) == [*labels, "number", "word"]
    assert rows == expected
    assert all(type(word) is str for word in table["word"])


def test_a_table_of_nested_vmaps_in_pandas():
    questions = ember.text(["q0", "q1", "q2"])
    f = lambda prefix, q: {"answer": ember.format("{p}:{q}", p=prefix, q=q), "ok": q == "q1"}
    results = jax.vmap(jax.vmap(f, (None, 0)), (0, None))(ember.text(["x", "y"]), questions)
    metadata = {"question": questions, "subject": pd.Series(["art", "art", "law"], index=[7, 8, 9])}
    frame = pd.DataFrame(ember.table(results, model=["X", "Y"], question=metadata))
    assert list(frame.columns) == ["model", "question", "subject", "answer", "ok"]
    assert frame["answer"].tolist() == ["x:q0", "x:q1", "x:q2", "y:q0", "y:q1", "y:q2"]
    assert frame["subject"].tolist() == ["art", "art", "law"] * 2
    assert frame.groupby("subject")["ok"].mean().to_dict() == {"art": 0.5, "law": 0.0}
    assert frame["ok"].dtype == bool


class Usage(NamedTuple):
    cost: jax.Array
    calls: jax.Array


class Answer(eqx.Module):
    text: ember.Text
    usage: Usage


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Scored:
    answer: Answer
    score: jax.Array


def test_columns_are_named_by_their_paths():
    answer = Answer(ember.text(["a", "b"]), Usage(jnp.ones(2), jnp.zeros(2, jnp.int32)))
    table = ember.table({"r": Scored(answer, jnp.ones(2)), "l": [jnp.ones(2), jnp.ones(2)], "none": None}, q=2)
    assert list(table) == ["q", "l.0", "l.1", "r.answer.text", "r.answer.usage.cost", "r.answer.usage.calls", "r.score"]
    assert list(ember.table(answer.text, q=2)) == list(ember.table(jnp.ones(2), q=2)) == ["q", "value"]


@pytest.mark.parametrize(
    ("labels", "column"),
    [
        (["x", "y"], ["x", "y"]),
        (("x", "y"), ["x", "y"]),
        (np.asarray(["x", "y"]), ["x", "y"]),
        (pd.Series(["x", "y"]), ["x", "y"]),
        (pd.Index([3, 4]), [3, 4]),
        (ember.text(["x", "y"]), ["x", "y"]),
        (ember.text([["x", "y"], ["z", "w"]]), [["x", "y"], ["z", "w"]]),
        (jnp.asarray([0.5, 1.5]), [0.5, 1.5]),
        (jnp.asarray([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (range(5, 7), [5, 6]),
        ([None, {"a": 1}], [None, {"a": 1}]),
    ],
)
def test_what_labels_may_be(labels, column):
    table = ember.table(jnp.ones(2), q=labels)
    assert list(table["q"]) == column
    table = ember.table(jnp.ones((2, 2)), q={"name": labels, "other": ["u", "v"]}, r=2)
    assert list(table) == ["name", "other", "r", "value"]
    assert list(table["name"]) == [column[0]] * 2 + [column[1]] * 2
    assert list(table["other"]) == ["u", "u", "v", "v"]


def test_labels_may_be_counted():
    for length in (2, np.int64(2)):
        assert ember.table(jnp.ones((2, 2)), q=length, m=["a", "b"])["q"].tolist() == [0, 0, 1, 1]


def test_axes_beyond_those_named_are_nested_lists():
    numbers = np.arange(12).reshape(2, 3, 2)
    table = ember.table({"n": jnp.asarray(numbers), "t": ember.text([["a", "b"], ["c", "d"]])}, q=2)
    assert table["n"] == numbers.tolist()
    assert table["t"] == [["a", "b"], ["c", "d"]]
    assert pd.DataFrame(table).shape == (2, 3)


def test_dtypes_that_pandas_does_not_know():
    table = ember.table(
        {
            "half": jnp.asarray([0.5, 1], jnp.bfloat16),
            "small": jnp.asarray([1, -2], jnp.int4),
            "key": jax.random.split(jax.random.key(0), 2),
        },
        q=jnp.asarray([1, 2], jnp.bfloat16),
    )
    assert table["half"].dtype == table["q"].dtype == np.float32 and table["half"].tolist() == [0.5, 1]
    assert table["small"].dtype == np.int32 and table["small"].tolist() == [1, -2]
    assert table["key"] == jax.random.key_data(jax.random.split(jax.random.key(0), 2)).tolist()
    assert len(pd.DataFrame(table)) == 2


def test_a_result_without_axes_is_one_row():
    table = ember.table({"t": ember.text("a"), "x": jnp.asarray(1.5), "n": 3, "s": "words"})
    assert {name: list(column) for name, column in table.items()} == {"t": ["a"], "x": [1.5], "n": [3], "s": ["words"]}


def test_an_axis_may_be_named_results():
    assert list(ember.table(jnp.ones(2), results=2)) == ["results", "value"]


@dataclasses.dataclass
class Unregistered:
    a: int


ONES = jnp.ones((2, 2))


@pytest.mark.parametrize(
    ("results", "axes", "message"),
    [
        ({"a": ONES}, {"m": ["x", "y"], "q": 4}, "axis `q` of ember.table has length 4, but the results' leaf `a`"),
        ({"a": ONES}, {"m": ["x", "y"], "q": 4}, "has shape (2, 2), in which it would be axis 1. Name the axes in"),
        (jnp.ones((2, 3)), {"q": 3, "m": 2}, "in the order of the vmaps, the outermost first"),
        (ember.text(["a"]), {"q": 1, "m": 1}, "axis `m` of ember.table has length 1, but"),
        ({"a": ONES, "b": 1.0}, {"q": 2}, "leaf `b` has shape ()"),
        ({"q": ONES}, {"q": 2}, "two columns of ember.table are named `q`; the second is from the results"),
        (ONES, {"q": 2, "m": {"q": [1, 2]}}, "the second is from axis `m`"),
        (ONES, {"q": "xy"}, "`q` of ember.table is 'xy'; an axis takes a sequence of its labels, a dictionary"),
        (ONES, {"q": {"name": "xy"}}, "`q['name']` of ember.table is 'xy'"),
        (ONES, {"q": {"name": 2}}, "`q['name']` of ember.table is 2"),
        (ONES, {"q": True}, "`q` of ember.table is True"),
        (ONES, {"q": None}, "`q` of ember.table is None"),
        (ONES, {"q": {1, 2}}, "`q` of ember.table is {1, 2}"),
        (ONES, {"q": ember.text("x")}, "`q` of ember.table is 'x'"),
        (ONES, {"q": jnp.asarray(2)}, "an axis takes a sequence"),
        (ONES, {"q": {"a": [1, 2], "b": [1]}}, "axis `q` of ember.table have lengths {'a': 2, 'b': 1}"),
        (ONES, {"q": {}}, "axis `q` of ember.table have lengths {}"),
        (Unregistered(1), {}, "of type Unregistered; it takes arrays and Texts. Register its class with"),
    ],
)
def test_what_table_refuses(results, axes, message):
    with pytest.raises(TextError) as error:
        ember.table(results, **axes)
    assert message in str(error.value)
