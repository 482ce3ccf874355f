"""`attempt` and `metered`: what failed, and what was used, as values of the program.

Design note. Both are operators whose plan is one step that holds the function's (`ir.Enclosed`), under every
transformation and inside every other operator. Nothing of it is merged or dropped from outside, so what is caught or
counted is what the function does, whatever stands around it. What comes after waits for all of it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._jax.nan import nan_is_a_value
from .._plan import ir
from .._text import failed
from .._text.text import Text
from .._types import is_key
from .boundary import Boundary
from .traced import explained, name_of

P = ParamSpec("P")
R = TypeVar("R")


class Usage(NamedTuple):
    """What LLM calls have used, as arrays of rank 0, or with the axes of a `vmap`.

    **Fields:**

    - `calls`: `int32`, the answers that were asked for, whether a service or the journal gave them; equal ones count
        once.
    - `input_tokens`, `output_tokens`: `int32`, as the services counted them.
    - `cost`: `float32`, US dollars when they were paid; NaN if the price of one is unknown.
    - `cut`: `int32`, the answers that ended before all was said.

    Tokens and dollars are also those of requests that a service billed although it gave no answer.
    """

    calls: jax.Array
    input_tokens: jax.Array
    output_tokens: jax.Array
    cost: jax.Array
    cut: jax.Array


def attempt(fn: Callable[P, R]) -> Callable[P, tuple[R, jax.Array]]:
    """Makes values of failures: a function, or an operator, that tells whether it failed instead of raising.

    ```python
    answer, ok = ember.attempt(strong)(question)
    answer = jax.lax.cond(ok, lambda: answer, lambda: cheap(question))
    ```

    Under `vmap` each lane fails, or not, by itself.

    **Returns:** a function of the same arguments that returns `(out, ok)`; `ok` is a boolean array of rank 0. If it is
    false, each Text of `out` is *failed text*, numbers are NaN, integers the least of their type, and booleans false.
    Failed text spreads like NaN: text operations and calls on it give it again and are not made, and it equals nothing.
    Its words are `None`, in `tolist` and `ember.table` too, and `answer.causes()` says why. Like `ember.jit` it traces
    `fn`.

    What stops everything is not caught: Ctrl-C, a spent budget, a journal that cannot be written. Calls that are in
    flight when another one fails are finished and kept, and none of `fn` is begun after it.
    """
    enclosed = _enclosed(fn, "attempt")

    @functools.wraps(fn, updated=())
    def call(*args: P.args, **kwargs: P.kwargs) -> tuple[R, jax.Array]:
        out, (cause,) = enclosed(*args, **kwargs)
        ok = jnp.all(cause == np.uint32(0), axis=-1)
        fill = lambda leaf: _unless_failed(ok, cause, leaf)
        with nan_is_a_value():
            return jax.tree.map(fill, out, is_leaf=lambda x: isinstance(x, Text)), ok

    return call


def metered(fn: Callable[P, R]) -> Callable[P, tuple[R, Usage]]:
    """Counts what a function, or an operator, uses.

    ```python
    answers, usage = jax.vmap(ember.metered(op))(questions)
    print(usage.cost.sum())
    ```

    **Returns:** a function of the same arguments that returns `(out, usage)`, with the `Usage` of the LLM calls that it
    made, in each lane of its own. Like `ember.jit` it traces `fn`.
    """
    enclosed = _enclosed(fn, "metered")

    @functools.wraps(fn, updated=())
    def call(*args: P.args, **kwargs: P.kwargs) -> tuple[R, Usage]:
        out, used = enclosed(*args, **kwargs)
        return out, Usage(*used)

    return call


def _enclosed(fn: Callable[..., Any], how: ir.How) -> Callable[..., Any]:
    if not callable(fn):
        raise TypeError(f"ember.{how} takes a function or an operator, not {fn!r:.40}; call what it returns.")
    if isinstance(fn, eqx.Module):  # its arrays are arguments like the others, so another one is the same program
        return functools.partial(_of_modules(how), fn)

    def called(*args: Any, **kwargs: Any) -> Any:
        return _called(fn, *args, **kwargs)

    return Boundary(called, how, how)


@functools.cache
def _of_modules(how: ir.How) -> Boundary:
    return Boundary(_called, how, how)


def _called(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with explained(name_of(fn)):
        return fn(*args, **kwargs)


def _unless_failed(ok: jax.Array, cause: jax.Array, leaf: Any) -> Any:
    if isinstance(leaf, Text):
        return Text(jnp.where(ok, leaf.digests, cause))
    if not isinstance(leaf, jax.Array) or is_key(leaf):
        return leaf
    return jnp.where(ok, leaf, jnp.asarray(failed.number(leaf.dtype), leaf.dtype))
