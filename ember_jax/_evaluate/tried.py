"""A part of a row that may fail: what it gave, why it failed, and what it used."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._operator.enclosing import Usage, attempt, metered
from .._operator.jit import jit
from .._text import failed
from .._text.text import Text, text
from ..errors import told


class Attempted(NamedTuple):
    """The outcome of a part of a row.

    **Fields:**

    - `out`: what it gave.
    - `why`: failed text if it failed, whose cause is the error; else the empty text.
    - `ok`: whether it did not fail.
    - `usage`: what its calls have used.
    """

    out: Any
    why: Text
    ok: Any
    usage: Usage


def tried(name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Attempted:
    """Calls a function or an operator inside a program. Its calls stand in the scope `name`."""

    def part(*args: Any, **kwargs: Any) -> Any:
        out = jax.tree.map(lambda leaf: text(leaf) if isinstance(leaf, str) else leaf, fn(*args, **kwargs))
        # The text is there for its cause. If the part fails, all texts that it gives are failed texts, which have the
        # cause; but it may give numbers only, and those have none.
        return out, text("")

    part.__name__ = name
    ((out, why), ok), usage = metered(attempt(jit(part)))(*args, **kwargs)
    return Attempted(out, why, ok, usage)


def causes_of(tried: Attempted) -> list[str]:
    """Why each row failed, in words; empty if it did not.

    The answers are looked at too: a part that did not fail may still give failed text.
    """
    texts = [leaf for leaf in jax.tree.leaves((tried.why, tried.out), is_leaf=_is_text) if _is_text(leaf)]
    digests = np.concatenate([np.asarray(t.digests).reshape(len(tried.ok), -1) for t in texts], axis=1)
    if failed.among(digests) is None:
        return [""] * len(digests)
    return ["" if digest is None else told(failed.cause_of(digest)) for digest in map(failed.among, digests)]


def values_of(out: Any, causes: Sequence[str]) -> list[Any]:
    """What each row gave, as Python's values, with strings for Texts; `None` for a row with a cause."""
    kept = np.array([not cause for cause in causes])
    leaves, tree = jax.tree.flatten(out, is_leaf=_is_text)
    # The failed rows are left out with NumPy. JAX would compile anew for every number of rows that are left.
    columns = [
        np.asarray(Text(np.asarray(leaf.digests)[kept])) if _is_text(leaf) else np.asarray(leaf)[kept]
        for leaf in leaves
    ]
    rows = iter(zip(*(column.tolist() if column.dtype == object else column for column in columns), strict=True))
    return [jax.tree.unflatten(tree, next(rows)) if is_kept else None for is_kept in kept]


def _is_text(value: Any) -> bool:
    return isinstance(value, Text)
