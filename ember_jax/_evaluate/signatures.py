"""Which arguments a function takes, by its signature."""

import inspect
from collections.abc import Mapping
from typing import Any


def parameters_of(fn: Any, what: str) -> Mapping[str, inspect.Parameter]:
    """A function's parameters, by name.

    `what` names the function in errors.

    **Raises:** `TypeError` for what cannot be called, and for a function whose parameters Python does not know, such as
    some that are written in C.
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
    """Whether a function is to be called with a key: if it has an argument `key` without a default.

    If the default is `None`, it is called with a key only if the user has given one (`is_given`). Any other default is
    a key that is bound already. `non` has the same rule, and a test compares the two.
    """
    parameter = parameters_of(fn, "what is called").get("key")
    if parameter is None:
        return False
    return parameter.default is parameter.empty or (is_given and parameter.default is None)
