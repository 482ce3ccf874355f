"""Gradients of an expected loss through the draws of a program.

Design note. The expectation of a loss over a program's draws has two estimators here.

*Score* (Williams, 1992): the gradient of E[L] is E[∇L + (L - b) ∇ log p]. Here p is the probability of all that was
drawn on the way, ∇L is the gradient that flows through numbers with the draws held fixed, and b is any baseline that
does not depend on the draws of this sample. With several samples of an example, the baseline of one is the mean loss of
the others ("loo": Kool, van Hoof and Welling, 2019); it needs no further call and lowers the variance.

*Enumerate*: E[L] = Σ p L over every way in which the draws may come out. Each way is a lane of the plan, and calls that
are equal in several lanes are made once. This is exact in the draws. Whatever else is random, such as an answer that is
sampled with a key, is still one sample.

The loss is traced for one example and mapped over samples and examples, so all calls are made in one sweep.

What is drawn anew in each epoch are the decisions, as they are what is learned. All else that is random by the loss's
key, and so which sample of an answer is asked for, stays: an answer that was paid for in one epoch is not paid for in
the next. So the loss gets a key that depends on the example and the number of the sample alone, wherever the example
stands in a batch, and each draw folds the epoch's bits into its key. (If the epoch's key were the loss's, a router that
hands it to its members would buy new answers in each epoch.)
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from .._operator.boundary import Boundary
from .._operator.traced import explained, name_of
from .._text.text import Text
from .._types import Key, is_key, key_problem
from ..errors import GradientError
from ._draws import Redraw, evaluated, outcomes, trace
from ._reach import can_learn

# The most outcomes that are enumerated, as each is a lane that may make calls of its own. More are taken for a mistake.
_MOST_OUTCOMES = 4096

Baseline = Literal["loo", "none"] | Callable[..., jax.Array]


def value_and_grad(
    loss: Callable[..., jax.Array],
    samples: int = 1,
    baseline: Baseline | None = None,
    estimator: Literal["score", "enumerate"] = "score",
    fresh: bool = False,
) -> Callable[[Any, Sequence[Any], Key], tuple[jax.Array, Any]]:
    """The expected loss of an operator that draws, and its gradient.

    ```python
    def loss(op, question, gold, key):
        answer, usage = ember.metered(op)(question, key)
        return 100 * usage.cost - (ember.parse_number(answer) == gold).astype(float)

    value, grads = learn.value_and_grad(loss, samples=4)(op, (questions, golds), key)
    ```

    **Arguments:**

    - `loss`: `loss(op, *example, key)`, of one example, gives the float of rank 0 that is to be small. It draws with
        `learn.sample`, itself or in any operator that it calls.
    - `samples`: how many times the loss of each example is sampled, each with a key of its own.
    - `baseline`: what is taken from the loss before it weighs the draws; it changes the variance alone. `"loo"`, the
        mean of the other samples of the example, is the default where there are several; `"none"` otherwise. A
        function `baseline(op, *example)` of rank 0 is learned: what it reads of `op` has the gradient of its halved
        mean squared error too, so give it parameters of its own there.
    - `estimator`: `"score"` samples the draws and is unbiased; `"enumerate"` takes every outcome, weighted by its
        probability, and is exact: for few draws.
    - `fresh`: whether other keys ask for other samples of the answers too. By default the key that is given draws the
        decisions of `learn.sample` alone. All else that the loss draws by its own key depends on the example and the
        number of the sample, so an answer that was paid for in one epoch is paid for no more.

    **Returns:** a function `(op, batch, key) -> (value, grads)`. Every leaf of the tuple `batch` has a leading axis of
    examples. `value` is the mean loss; `grads` is like `op`, `None` in place of what is no floating-point array. It may
    stand under `jax.jit`, `ember.jit` or `eqx.filter_jit`. Samples keep their keys when more of them are asked for.

    **Raises:** `ValueError` for settings that do not fit each other, or a batch without examples; when called,
    `GradientError` for a draw that has no gradient (in a `while_loop`), too many outcomes, or a loss that no parameter
    of `op` reaches through a draw or a derivative, so that its gradient would be zero.
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"learn.value_and_grad(samples={samples!r}): give a whole number, at least 1.")
    if estimator not in ("score", "enumerate"):
        raise ValueError(f"learn.value_and_grad(estimator={estimator!r}): it is 'score' or 'enumerate'.")
    if estimator == "enumerate" and baseline is not None:
        raise ValueError("learn.value_and_grad: estimator='enumerate' draws nothing, so leave out baseline=.")
    baseline = baseline or ("loo" if samples > 1 and estimator == "score" else "none")
    if not callable(baseline) and baseline not in ("loo", "none"):
        raise ValueError(f"learn.value_and_grad(baseline={baseline!r}): it is 'loo', 'none' or a function.")
    if baseline == "loo" and samples < 2:
        raise ValueError(
            "learn.value_and_grad(baseline='loo') compares the samples of an example with each other: give samples=2 "
            "or more, or baseline='none'."
        )
    name = name_of(loss)

    def of_example(
        op: Any, example: Sequence[Any], key: Key, bits: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        with explained(name):
            closed = _traced_loss(loss, op, example, key)
            _require_path(closed, op)
            expected = _expected(baseline(op, *example)) if callable(baseline) else jnp.zeros(())
        if estimator == "enumerate":
            return _expectation(closed, name), jnp.zeros(()), expected
        (value,), score = evaluated(closed, (), None if fresh else Redraw(bits))
        return value, score, expected

    boundary = Boundary(of_example, name, warns=False)

    def objective(op: Any, batch: Sequence[Any], keys: Key) -> tuple[jax.Array, jax.Array]:
        of_sample = lambda example, key, bits: boundary(op, example, key, bits)
        bits = jax.vmap(jax.vmap(jax.random.bits))(keys)
        own = keys if fresh else jax.vmap(_lasting)(keys, tuple(batch))
        losses, scores, expected = jax.vmap(jax.vmap(of_sample, (None, 0, 0)))(tuple(batch), own, bits)
        if baseline == "loo":
            expected = (losses.sum(axis=1, keepdims=True) - losses) / (samples - 1)
        fixed = jax.lax.stop_gradient
        # The gradient of the surrogate is the estimate ∇L + (L - b) ∇ log p; its value means nothing, so the mean loss
        # is returned beside it.
        surrogate = losses + fixed(losses - expected) * scores
        if callable(baseline):
            surrogate += (fixed(losses) - expected) ** 2 / 2
        # A draw from no distribution has the log-probability NaN. The value is made NaN too; otherwise only the
        # gradient would show it.
        return surrogate.mean(), jnp.where(jnp.isnan(scores), scores, losses).mean()

    differentiated = eqx.filter_value_and_grad(objective, has_aux=True)

    def estimate(op: Any, batch: Sequence[Any], key: Key) -> tuple[jax.Array, Any]:
        (_, value), grads = differentiated(op, batch, _keys(key, _size(batch), samples))
        return value, grads

    return estimate


def _traced_loss(loss: Callable[..., jax.Array], op: Any, example: Sequence[Any], key: Key) -> jex.ClosedJaxpr:
    """The jaxpr of the loss of one example; raises `TypeError` if it does not return one float of rank 0."""
    closed = trace(lambda: loss(op, *example, key))
    avals = closed.out_avals
    if len(avals) != 1 or avals[0].shape or not jnp.issubdtype(avals[0].dtype, jnp.floating):
        raise TypeError(
            "a loss returns one float of rank 0, of one example, not "
            f"({', '.join(a.str_short() for a in avals)}). For right or wrong: `1 - right.astype(float)`."
        )
    return closed


def _require_path(closed: jex.ClosedJaxpr, op: Any) -> None:
    """Raises `GradientError` for a loss whose gradient is zero, whatever its parameters are."""
    learned = jax.tree.leaves(eqx.filter(op, eqx.is_inexact_array))
    if learned and not can_learn(closed, learned):
        raise GradientError(
            "the gradient is zero, whatever the parameters are: none reaches the loss through numbers that have a "
            "derivative, nor a draw of `learn.sample`. A decision that is to be learned is drawn by "
            "`learn.sample(logits, key)`, which draws what `jax.random.categorical(key, logits)` does; an `argmax`, a "
            "comparison or the words of an answer have no derivative."
        )


def _expected(value: Any) -> jax.Array:
    """The value of a learned baseline, as a float of rank 0. Another shape raises: it would broadcast against the
    losses without a word."""
    if not eqx.is_array_like(value) or jnp.shape(value):
        raise TypeError(
            f"a baseline returns one float of rank 0, the loss that it expects of one example, not {value!r:.60}."
        )
    return jnp.asarray(value, float)


def _expectation(closed: jex.ClosedJaxpr, name: str) -> jax.Array:
    """The expected value of a jaxpr: the sum over all outcomes of its draws, each a lane, weighted by probability."""
    count = outcomes(closed)
    if count > _MOST_OUTCOMES:
        raise GradientError(
            f"the draws of {name} may come out in {count:,} ways, and estimator='enumerate' takes them all; "
            f"{_MOST_OUTCOMES:,} are the most. Use estimator='score'."
        )

    def of_outcome(outcome: jax.Array) -> tuple[jax.Array, jax.Array]:
        (value,), score = evaluated(closed, (), outcome)
        return value, jnp.exp(score)

    values, weights = jax.vmap(Boundary(of_outcome, name))(jnp.arange(count, dtype=jnp.int32))
    return jnp.sum(values * weights)


def _lasting(keys: Key, example: Sequence[Any]) -> Key:
    """Keys of the samples of an example that depend on it and on their numbers, and not on the keys that are given."""
    words = [_words(jnp.asarray(leaf)) for leaf in jax.tree.leaves(example)]
    every = jnp.concatenate([jnp.zeros(1, jnp.uint32), *words])
    # Odd multipliers, each of its own: the words of a text are a digest, of which any such sum is as good as random.
    odd = jnp.arange(every.size, dtype=jnp.uint32) * np.uint32(0x9E3779B2) + np.uint32(1)
    key = jax.random.key(0, impl=jax.random.key_impl(keys)) if is_key(keys) else jnp.zeros_like(keys[0])
    key = jax.random.fold_in(key, jnp.sum(every * odd, dtype=jnp.uint32))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(keys.shape[0]))


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array, `uint32[n]`."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag])
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    low = array.astype(jnp.uint32).ravel()
    return jnp.concatenate([low, (array >> 32).astype(jnp.uint32).ravel()]) if array.dtype.itemsize == 8 else low


def _size(batch: Sequence[Any]) -> int:
    """The number of examples in a batch."""
    if not isinstance(batch, tuple | list):
        raise TypeError(
            "learn.value_and_grad takes its batch as a tuple of what the loss takes of an example, as in "
            f"(questions, golds), not {type(batch).__name__}."
        )
    leaves = jax.tree.leaves(batch, is_leaf=lambda leaf: isinstance(leaf, Text))
    lengths = {leaf.shape[:1] if isinstance(leaf, Text) else jnp.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            "every leaf of a batch has the same leading axis of examples, of length 1 or more; here they are "
            f"{sorted(lengths)}. What all examples share may be part of `op`; a list of strings is `ember.text([…])`."
        )
    return lengths.pop()[0]


def _keys(key: Key, examples: int, samples: int) -> Key:
    """Keys `[examples, samples]`, each folded from its two indices, so a key does not depend on how many there are."""
    problem = key_problem(key)
    if problem is not None:
        raise TypeError(f"learn.value_and_grad: `key` is {problem}.")
    fold = lambda key, count: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda key: fold(key, samples))(fold(key, examples))
