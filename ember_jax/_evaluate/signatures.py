"""What a function is called with, as its signature says."""

import inspect
from collections.abc import Mapping
from typing import Any


def parameters_of(fn: Any, what: str) -> Mapping[str, inspect.Parameter]:
    """A function's parameters, by name.

    **Raises:** `TypeError` for what cannot be called, and for what Python does not know the parameters of.
    """
    if not callable(fn):
        model = f"; for a model id, `ember.LLM({fn!r:.60})`" if isinstance(fn, str) else ""
        raise TypeError(f"{what}: give an operator, an LLM or a function, not {fn!r:.60}{model}.")
    try:
        return inspect.signature(fn).parameters
    except ValueError:
        raise TypeError(
            f"{what}, {fn!r:.60}, does not tell its arguments; call it in a function that does, as in `lambda x, y: "
            "f(x, y)`."
        ) from None


def takes_key(fn: Any, is_given: bool = True) -> bool:
    """Whether a function is called with a key: if it has an argument `key` that is not bound to one already.

    Without a key that was given (`is_given`), one that may do without is called so. `non` has the same rule, and a test
    compares them.
    """
    parameter = parameters_of(fn, "what is called").get("key")
    if parameter is None:
        return False
    return parameter.default is parameter.empty or (is_given and parameter.default is None)
