"""`stream`: the lanes of a sweep as they finish.

Design note. It is the sweep of `jax.vmap(fn)` with a delivery at the end of each lane, which puts what the lane gives
into a queue; nothing is recorded to be replayed. Whoever takes the answers runs in another thread than the lanes, so
that what it does in between, calls of its own included, can hold up none of them. Of lanes that wait for their answers
to be taken there are as many at most as the window has places (`_engine/window.py`): when they are that many, no other
lane begins. They hold nothing else that a call could need, so there is nothing to wait for in a circle.
"""

import asyncio
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from .. import _callback
from .._engine.island import Island
from .._jax.internals import device_array
from .._jax.nan import nan_is_a_value
from .._jax.values import from_raw, to_raw
from .._runtime import session as sessions
from .._runtime.feed import Feed
from .._runtime.loop import Loop, forbid_in_loop
from .._text.text import Text
from ..errors import UnsupportedError
from .boundary import boundary_for, no_mesh
from .delivery import addresses, deliver, receiving
from .lower import program_of
from .traced import name_of

# How many answers may wait to be taken before lanes wait too.
_AHEAD = 1024


P = ParamSpec("P")
R = TypeVar("R")


class _Answers(Feed[tuple[int, Any]]):
    """The answers of lanes, of which not too many wait to be taken."""

    def __init__(self, loop: Loop):
        super().__init__()
        self._loop = loop
        self._is_full = False
        self._room: asyncio.Event | None = None

    def deliver(self, lane: int, tree: Any, arrays: Sequence[np.ndarray]) -> Any:
        """Gives an answer; where many wait, what is to be awaited before its lane ends. On the event loop."""
        self.give((lane, (tree, arrays)))
        if self.waiting <= _AHEAD:
            return None
        if self._room is None:
            self._room = asyncio.Event()
        # In this order. Whoever takes an answer after the flag is set sees it, and wakes the lanes; and if all are
        # taken before, none waits.
        self._room.clear()
        self._is_full = True
        return self._room.wait() if self.waiting > _AHEAD else None

    def took(self) -> None:
        """Lets lanes go on if few answers wait by now. From the thread that has taken one."""
        if self._is_full and self.waiting <= _AHEAD // 2:
            self._is_full = False
            assert self._room is not None
            self._loop.call(self._room.set)


def stream(fn: Callable[P, R]) -> Callable[P, Iterator[tuple[int, R]]]:
    """Maps a function, or an operator, over the first axis of its arguments, and gives each answer when it is there.

    ```python
    for index, answer in ember.stream(op)(questions, keys):
        print(index, answer)
    ```

    It makes the calls of `jax.vmap(fn)(questions, keys)`, and traces `fn` as that does. What answers cannot be written
    of is not lost: run again, or as the `vmap`, it pays only for what is missing.

    A lane that fails does not stop the others, and gives nothing. When all have ended their failures are raised
    together. To have them one by one as they come, take them as values: with `ember.stream(ember.attempt(op))` each
    answer is a pair `(out, ok)`, and `out.causes()` says why.

    **Returns:** a function of the same arguments, with a first axis, that returns an iterator of pairs: the number of
    a lane, from 0, and what it gives, without the axis. They come in the order in which the lanes finish. The first
    call is made when the first pair is asked for; to close the iterator before its end cancels what is in flight, and
    no other lane begins. Lanes run ahead of whoever takes their answers, but no more than 16,384 of them.

    **Raises:** when the iterator is made, what tracing `fn` raises, `ValueError` for arguments without a first axis or
    with unequal ones, and `UnsupportedError` under a transformation of JAX; at its end `SweepError`, or the error of
    the only lane.
    """
    name = name_of(fn)

    def lane(address: jax.Array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        deliver(address, fn(*args, **kwargs))

    lane.__name__ = name
    boundary = boundary_for(lane)

    def streamed(*args: P.args, **kwargs: P.kwargs) -> Iterator[tuple[int, R]]:
        if not _callback.is_now((args, kwargs)):
            raise UnsupportedError(
                "ember.stream gives answers while they come, to Python that runs line by line. Under a transformation "
                "of JAX, and in an operator, use `jax.vmap`."
            )
        forbid_in_loop("ember.stream")
        count = _lanes((args, kwargs))
        with nan_is_a_value(), no_mesh():
            one = jax.tree.map(lambda x: _lane(x) if _is_array(x) else x, (args, kwargs))
            program, inputs = program_of(boundary, (addresses(0, 1)[0], *one), {})
        if not count:
            return iter(())
        mapped = [x for x in jax.tree.leaves((args, kwargs)) if _is_array(x)]
        shared = [to_raw(x) for x in inputs[: len(inputs) - 1 - len(mapped)]]
        island = Island(program, ((count, (False,) * len(shared) + (True,) * (1 + len(mapped))),))
        return _pairs(island, shared, [np.asarray(to_raw(x)) for x in mapped], count)

    return streamed


def _pairs(island: Island, shared: list[Any], mapped: list[Any], count: int) -> Generator[tuple[int, Any], None, None]:
    loop = sessions.loop()
    answers = _Answers(loop)
    with receiving(answers.deliver) as receiver:
        values = [np.asarray(x) for x in (*shared, addresses(receiver, count), *mapped)]
        taken = answers.taken(loop, island.sweep(values, sessions.current()))
        try:
            while True:
                try:
                    index, (tree, arrays) = next(taken)
                except StopIteration as end:
                    repeated = end.value[1]
                    break
                answers.took()
                yield index, jax.tree.unflatten(tree, [device_array(x) for x in arrays])
        finally:
            taken.close()
    if repeated:
        repeated.warn()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _lane(array: Any) -> Any:
    """What a lane gets of an array, to trace with; where there is no lane, zeros in its place."""
    if len(array):
        return array[0]
    raw = to_raw(array)
    return from_raw(np.zeros(raw.shape[1:], raw.dtype), jax.typeof(array))


def _lanes(arguments: Any) -> int:
    """How many lanes there are. Raises `ValueError` if the arguments do not say."""
    is_text = lambda leaf: isinstance(leaf, Text)  # whose arrays have an axis more
    leaves = [leaf for leaf in jax.tree.leaves(arguments, is_leaf=is_text) if _is_array(leaf) or is_text(leaf)]
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or () in counts:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            f"ember.stream(fn)(…) maps over the first axis of all arguments, which have the shapes {shapes}. Give "
            "arrays and Texts with one lane for each entry; what all lanes share, bind with `functools.partial`."
        )
    ((count,),) = counts
    return count
