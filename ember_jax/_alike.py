"""Static values compared by what they are: equal ones that are not alike are different programs.

Design note. What is static about a call decides which program answers it, and JAX compares it by `==`: to Python `1`,
`1.0` and `True` are equal, `0.0` and `-0.0` are, and so are `Decimal("1.0")` and `Decimal("1.00")`, though a program
that writes them into a prompt asks something else for each. So values are compared by type and words as well: by
`repr`, without the addresses in it, which differ between objects that are the same in all else. Static fields of a
module, and keys of a dictionary, are no leaves but part of the tree's structure, in which JAX compares them itself;
they are taken out of it and compared again.

Mostly a value is the very object that it was, or a string, and its words are not asked for.
"""

import dataclasses
import re
import types
from collections.abc import Set
from typing import Any

import jax
import numpy as np

# Equal ones of the same of these types are alike.
_PLAIN = frozenset({str, bytes, int, bool, type(None), type, types.FunctionType, types.MethodType})
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


class Alike:
    """A static value; compared by value, type and words, and by identity if it cannot be hashed."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        try:
            return hash(self.value)
        except TypeError:
            return id(self.value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Alike):
            return NotImplemented
        a, b = self.value, other.value
        return a is b or (type(a) is type(b) and bool(a == b) and are_alike(a, b))


def are_alike(a: Any, b: Any) -> bool:
    """Whether equal values are the same in type and words, and so is what they hold."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) in _PLAIN or isinstance(a, jax.Array | np.ndarray):  # arrays hold words of no kind
        return True
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(are_alike, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(are_alike, a.items(), b.items()))
    if isinstance(a, Set):  # in no order
        return sorted(map(_words, a)) == sorted(map(_words, b))
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a) if field.compare]
        return all(are_alike(getattr(a, name, None), getattr(b, name, None)) for name in names)
    return _words(a) == _words(b)


def _words(value: Any) -> str:
    return f"{type(value).__qualname__} {_ADDRESS.sub('', repr(value))}"


def structural(tree: Any) -> tuple[Any, ...]:
    """The values that are part of a tree's structure, one after another."""
    found: list[Any] = []
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        data = node.node_data()
        if data is not None:  # else a leaf
            if data[1] is not None and data[0] is not tuple and data[0] is not list:
                found.append(data[1])
            nodes += node.children()
    return tuple(found)
