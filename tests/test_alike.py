"""Static values that are equal and not alike are programs of their own; those that are alike are traced once."""

import copy
import dataclasses
import enum
import fractions
import functools
from decimal import Decimal
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import ember_jax as ember
from ember_jax._alike import Alike


class Mode(enum.StrEnum):
    FAST = "fast"


@dataclasses.dataclass(frozen=True)
class Holder:
    held: Any
    note: Any = dataclasses.field(default=None, compare=False)


class Nameless:
    """Equal to others of its number, and told by its address."""

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return isinstance(other, Nameless) and self.number == other.number

    def __hash__(self):
        return hash(self.number)

    def method(self):
        """Is found anew each time."""


SHARED = Nameless(5)
# All of a group are equal, and no two are alike.
GROUPS = {
    "numbers": [True, 1.0, 1, 1 + 0j, Decimal("1.0"), Decimal("1.00"), fractions.Fraction(1)],
    "zeros": [0.0, -0.0, 0, False, Decimal("-0")],
    "words": ["fast", Mode.FAST],
    "tuples": [(1, "a"), (1.0, "a"), (True, "a")],
    "tuples in tuples": [((0.0,), 2), ((-0.0,), 2), ((0,), 2)],
    "dataclasses": [Holder(1), Holder(1.0), Holder((True,)[0])],
    "dataclasses of tuples": [Holder((1,)), Holder((1.0,))],
    "sets": [frozenset({1, "a"}), frozenset({1.0, "a"})],
}
ORDERS = [lambda group: group, lambda group: group[::-1]]


class Asks(eqx.Module):
    value: Any = eqx.field(static=True)
    weight: jax.Array = eqx.field(default_factory=lambda: jnp.zeros(3))


class Outer(eqx.Module):
    inner: dict[str, Asks]


echo = ember.host(lambda words: words, ember.Text)


def asked(value):
    """The words that a program makes of a value; a set is written in some order."""
    return f"q {type(value).__name__} {sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)}"


class Counted:
    """A function that asks for the words of a value, and counts how often it is traced."""

    def __init__(self, find):
        self.find, self.traced = find, 0

    def __call__(self, tree):
        self.traced += 1
        return echo(ember.text(asked(self.find(tree))))


# How a value is given, and how it is found again.
PLACES = {
    "leaf": (lambda value: [value], lambda tree: tree[0]),
    "static field": (Asks, lambda tree: tree.value),
    "nested field": (lambda value: (Outer({"a": Asks(value)}),), lambda tree: tree[0].inner["a"].value),
    "key": (lambda value: {value: jnp.zeros(2)}, lambda tree: next(iter(tree))),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("group", GROUPS)
def test_each_of_equal_values_is_a_program_of_its_own(group, place, order):
    make, find = PLACES[place]
    values = order(GROUPS[group])
    assert all(a == b and hash(a) == hash(b) for a in values for b in values)
    if place == "key" and group == "sets":
        pytest.skip("JAX sorts keys")
    one = Counted(find)
    jitted = ember.jit(one)
    for _ in range(2):
        assert [str(jitted(make(value))) for value in values] == [asked(value) for value in values]
        assert [str(jitted(make(copy.deepcopy(value)))) for value in values] == [asked(value) for value in values]
    assert one.traced == len(values)


@pytest.mark.parametrize("group", GROUPS)
def test_host_functions_are_given_what_they_are_called_with(group):
    values, given = GROUPS[group], []
    told = ember.host(lambda value, x: given.append(asked(value)) or x, jax.ShapeDtypeStruct((), jnp.float32))
    with ember.session():
        for _ in range(2):
            for value in values:
                ember.jit(lambda x, value=value: told(Asks(value), x))(jnp.float32(1))
    static = lambda module: asked(module.value)
    words = ember.host(lambda value: static(value), ember.Text)
    found = [str(ember.jit(lambda value=value: words(Asks(value)))()) for value in values]
    assert found == [asked(value) for value in values]
    assert len(given) == len(values)  # equal ones that are alike are one call


def test_modules_under_vmap_and_operators():
    class Op(ember.Operator):
        n: Any = eqx.field(static=True)

        def forward(self, x: ember.Text) -> ember.Text:
            return echo(x + f" {self.n}")

    for n in (True, 1.0, 1, Decimal("1.0"), Decimal("1.00"), -0.0, 0.0):
        for form in (
            jax.vmap(Op(n)),
            ember.jit(jax.vmap(Op(n))),
            jax.jit(jax.vmap(Op(n))),
            ember.attempt(jax.vmap(Op(n))),
        ):
            found = form(ember.text(["a", "b"]))
            found = found[0] if isinstance(found, tuple) else found
            assert found.tolist() == [f"a {n}", f"b {n}"]


def test_what_is_alike_is_traced_once():
    values = [
        lambda: Nameless(1),
        lambda: Holder(Nameless(2)),
        lambda: (Nameless(3), [1.5, "a"][0]),
        lambda: Holder(4, note=object()),  # its owner does not compare notes
        lambda: frozenset(f"{n}" for n in range(50)),
        lambda: SHARED.method,
        lambda: functools.partial,
        lambda: float,
    ]
    for make in values:
        for put in (Asks, lambda value: [value]):
            counted = Counted(lambda tree: 0)
            jitted = ember.jit(counted)
            for _ in range(3):
                jitted(put(make()))
            assert counted.traced == 1


def test_words_are_asked_for_of_other_objects_only():
    class Costly:
        asked = 0

        def __eq__(self, other):
            return isinstance(other, Costly)

        def __hash__(self):
            return 1

        def __repr__(self):
            Costly.asked += 1
            return "costly"

    one, other = Costly(), Costly()
    assert Alike((one, "a")) == Alike((one, "a")) and Costly.asked == 0
    assert Alike((one, "a")) == Alike((other, "a")) and Costly.asked == 2
    assert Alike(one) != Alike("costly") and Alike(one) != one


def test_what_cannot_be_hashed_is_told_as_it_was():
    with pytest.raises(TypeError, match="neither an array nor hashable"):
        ember.jit(lambda value: value)(bytearray(b"a"))
