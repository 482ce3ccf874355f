"""A part of a row that may fail: what it gave, why it failed, and what it used."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._operator.enclosing import Usage, attempt, metered
from .._operator.jit import jit
from .._text import failed
from .._text.text import Text, text


class Attempted(NamedTuple):
    """What a part of a row gave, whether it failed, and what it used; `why` is failed text if it did."""

    out: Any
    why: Text
    ok: Any
    usage: Usage


def tried(name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Attempted:
    """Calls a function or an operator; inside a program, where its calls stand in the scope `name`."""

    def part(*args: Any, **kwargs: Any) -> Any:
        out = jax.tree.map(lambda leaf: text(leaf) if isinstance(leaf, str) else leaf, fn(*args, **kwargs))
        return out, text("")  # which says why if what failed are numbers

    part.__name__ = name
    ((out, why), ok), usage = metered(attempt(jit(part)))(*args, **kwargs)
    return Attempted(out, why, ok, usage)


def causes_of(tried: Attempted) -> list[str]:
    """Why each row failed; empty where it did not. An answer may be failed text though nothing was raised."""
    texts = [leaf for leaf in jax.tree.leaves((tried.why, tried.out), is_leaf=_is_text) if _is_text(leaf)]
    digests = np.concatenate([np.asarray(t.digests).reshape(len(tried.ok), -1) for t in texts], axis=1)
    if failed.among(digests) is None:
        return [""] * len(digests)
    return ["" if digest is None else told(failed.cause_of(digest)) for digest in map(failed.among, digests)]


def told(error: BaseException) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}"


def values_of(out: Any, causes: Sequence[str]) -> list[Any]:
    """What each row gave in Python's values, strings for Texts; `None` where it failed."""
    kept = np.array([not cause for cause in causes])
    leaves, tree = jax.tree.flatten(out, is_leaf=_is_text)
    # Masked in NumPy: JAX would compile for every number of rows that are kept.
    columns = [
        np.asarray(Text(np.asarray(leaf.digests)[kept])) if _is_text(leaf) else np.asarray(leaf)[kept]
        for leaf in leaves
    ]
    rows = iter(zip(*(column.tolist() if column.dtype == object else column for column in columns), strict=True))
    return [jax.tree.unflatten(tree, next(rows)) if is_kept else None for is_kept in kept]


def _is_text(value: Any) -> bool:
    return isinstance(value, Text)
