"""Calls to the host: `host`, and what it has in common with an LLM call.

A host call is an equation whose callback is a `HostCall`. Inside an operator the plan runs it on the event loop, lane
by lane; outside one, in an ordinary JAX program, the callback does so itself, for all lanes of a batch at once.
"""

import abc
import asyncio
import base64
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _callback
from ._alike import Alike, structural
from ._errors import EmberError, HostResultError, LaneFailure, SweepError
from ._jax import source
from ._jax.source import SourceLine
from ._jax.values import Aval
from ._providers.base import Response, Tokens
from ._runtime import failures, interrupt, repeats
from ._runtime import session as sessions
from ._runtime.loop import forbid_in_loop
from ._runtime.progress import Tally
from ._runtime.scheduler import NOWHERE, Path
from ._runtime.typed import typed_errors
from ._text import failed, store
from ._text.text import Text, TextAnnotation, as_text, digests_of, text
from ._types import is_key

# How many calls of a batch begin at once. Between blocks the loop takes in the answers that have come. Would all begin
# at once, it would see none before the last had begun, and a process that is killed then would have kept none.
_BLOCK = 1024


class Used:
    """What the calls of some part of a program have used, answered anew or from the journal."""

    def __init__(self) -> None:
        self._counts = np.zeros(4, np.int64)
        self._cost = 0.0

    def add(self, response: Response) -> None:
        """Counts an answer."""
        self._counts += 1, response.input_tokens, response.output_tokens, response.is_cut
        self._cost += response.cost

    def bill(self, tokens: Tokens, cost: float) -> None:
        """Counts what was billed for a request that was not answered."""
        self._counts += 0, int(tokens.input), int(tokens.output), 0
        self._cost += cost

    def arrays(self) -> list[np.ndarray]:
        """Calls, input tokens, output tokens, US dollars, and answers that were cut."""
        calls, read, written, cut = (np.int32(n) for n in np.minimum(self._counts, 2**31 - 1))
        return [calls, read, written, np.float32(self._cost), cut]  # type: ignore[list-item]


class Caller(NamedTuple):
    """Who makes a call: which lane, in which operator, and whom to tell when it is a sample without a key.

    `remembers` says whether a pure function's earlier result may be given again; line by line, it is run each time.
    `saw` is told of samples without a key, with the lane and the step that draw them. `stands_for` counts the equal
    calls of the program that this one is made for; what it uses is added to `used`. `path` is where it stands in its
    plan, for a scheduler; `tally` is told of the sweep's calls of models.
    """

    lane: tuple[int, ...] = ()
    scope: str = ""
    remembers: bool = True
    saw: Callable[[Any, Any, bytes], None] | None = None
    of_lane: Any = None
    of_step: Any = None
    stands_for: int = 1
    used: tuple[Used, ...] = ()
    path: Path = NOWHERE
    tally: Tally = Tally()  # one that nobody reads

    def unkeyed(self, digest: bytes) -> None:
        """Tells of a sample without a key."""
        if self.saw is not None:
            self.saw(self.of_lane, self.of_step, digest)


class HostCall(_callback.EagerFunction):
    """A call that the event loop makes for one lane.

    **Attributes:**

    - `ranks`: the rank of each operand of one call; further leading axes are a batch.
    - `pure`: whether equal calls are the same call.
    - `asks_model`: whether it is a call of a model. Such calls are what a session counts, and what its bar shows.
    """

    ranks: tuple[int, ...]
    pure: bool
    asks_model: ClassVar[bool] = False

    # Whether calls draw samples that equal calls share; the line is then known that makes them.
    draws_shared = False

    @abc.abstractmethod
    async def run(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Makes one call."""

    async def run_batch(
        self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Makes the calls of a batch at once, and stacks their results.

        **Raises:** what a single call raised; `SweepError` if calls of a batch failed, after the others finished.
        """
        batch = arrays[0].shape[: arrays[0].ndim - self.ranks[0]]
        if not batch:
            return await self.run(session, caller, arrays)
        failed: list[LaneFailure] = []
        outer, of_all = caller.lane, caller[1:]

        async def call(lane: tuple[int, ...]) -> list[np.ndarray]:
            outputs: list[np.ndarray] = []
            try:
                outputs = await self.run(session, Caller(outer + lane, *of_all), [a[lane] for a in arrays])
            except Exception as error:
                failed.append(LaneFailure(outer + lane, caller.scope or str(self), error))
            return outputs

        lanes = list(itertools.product(*map(range, batch)))
        create_task = asyncio.get_running_loop().create_task
        calls: list[asyncio.Task[list[np.ndarray]]] = []
        try:
            for start in range(0, len(lanes), _BLOCK):
                if start:
                    await asyncio.sleep(0)
                calls += [create_task(call(lane)) for lane in lanes[start : start + _BLOCK]]
            # One after another, where `gather` would be called back by each: mostly all have ended with the first.
            outcomes = [await call for call in calls]
        except asyncio.CancelledError:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            raise
        if failed:
            raise SweepError(sorted(failed, key=lambda failure: failure.lane), len(lanes), session.keeping)
        return [np.array(c).reshape(*batch, *c[0].shape) for c in zip(*outcomes, strict=True)]

    async def _sweep(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Makes the calls of a batch, and says so; a single call is no sweep."""
        batch = arrays[0].shape[: arrays[0].ndim - self.ranks[0]]
        if not batch:
            return await self.run(session, caller, arrays)
        tally = Tally(math.prod(batch) if self.asks_model else 0)
        with session.sweeping(caller.scope, tally):
            return await self.run_batch(session, caller._replace(tally=tally), arrays)

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        return self._wait(arrays, in_callback=True)[0]

    def call_now(self, *arrays: Any) -> list[np.ndarray]:
        """Makes the call from ordinary Python, outside any JAX program."""
        results, drawn, session = self._wait(arrays, in_callback=False)
        for digest in drawn:
            if repeated := repeats.of_line(str(self), session, digest):
                repeated.warn()
        return results

    def call_at(self, place: "Placed", arrays: Sequence[Any]) -> list[np.ndarray]:
        """Makes the calls of a JAX program whose line is known."""
        results, drawn, _ = self._wait(arrays, in_callback=True)
        if repeated := repeats.of_batch(str(self), place.line, drawn, place.asked_before):
            repeated.warn()
        return results

    def _wait(
        self, arrays: Sequence[Any], *, in_callback: bool
    ) -> tuple[list[np.ndarray], list[bytes], sessions.Session]:
        """Makes the calls of a batch; also returns the digests of samples drawn without a key, and the session."""
        forbid_in_loop(str(self))
        values = [np.asarray(a) for a in arrays]
        loop, session = sessions.loop(), sessions.current()
        drawn: list[bytes] = []
        saw = lambda lane, step, digest: drawn.append(digest)
        work = loop.work(self._sweep(session, Caller(scope=str(self), remembers=in_callback, saw=saw), values))
        try:
            return interrupt.wait(work, in_callback=in_callback), drawn, session
        except Exception as error:  # also a host function's own
            raise failures.raised(error) from None


@dataclasses.dataclass(frozen=True)
class Placed(_callback.HostFunction):
    """A call that stands in a line of the user's program; the callback that JAX sees.

    It compares by its line too: JAX keeps programs by their callbacks, and each is to know its own.
    """

    call: HostCall
    line: SourceLine | None
    asked_before: bool

    def __str__(self) -> str:
        return str(self.call)

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        return self.call.call_at(self, arrays)


def invoke(call: HostCall, out: Sequence[jax.ShapeDtypeStruct], *arrays: Any) -> tuple[jax.Array, ...]:
    """Makes a call: line by line where nothing is traced, as a callback where something is.

    **Raises:** what the call raised, with its own type, where no `jax.jit` stands around it.
    """
    with typed_errors():
        if not call.draws_shared or _callback.is_now(arrays):
            return _callback.invoke(call, out, *arrays, effectful=not call.pure)
        line = source.of_caller()
        placed = Placed(call, line, repeats.asked_before(line, call, arrays))
        return _callback.bind_values(placed, out, *arrays)


# -- any Python function ---------------------------------------------------------------------------------------------


def host(fn: Callable[..., Any], out: Any, pure: bool = True, cache: str | None = None) -> Callable[..., Any]:
    """Makes any Python function callable from JAX programs.

    **Arguments:**

    - `fn`: a `def` or `async def` function. It gets one lane's values: a `str` for a Text of rank 0 and nested lists
        for others, NumPy for arrays, the static values as they are. A `def` runs in a thread, an `async def` on the
        event loop, which it must not block.
    - `out`: what it returns: `ember.Text`, `ember.Text["3"]`, a `jax.ShapeDtypeStruct`, or a pytree of them. `str`
        is `ember.Text`; `bool`, `int`, `float` and `complex` are an array of rank 0 of JAX's dtype for them.
    - `pure`: whether equal arguments give equal results, so that unused calls may be dropped, and equal ones in JAX
        programs be made once in a session. With `pure=False` every call is made, each time.
    - `cache`: a name with a version, such as `"search:v1"`, under which the journal keeps results. Only for pure
        functions.

    **Returns:** a function of the same arguments, usable eagerly and under every JAX transformation. Its results have
    derivative zero.

    **Raises:** `HostResultError`, when it runs, if what `fn` returns does not match `out`. Numbers are cast where
    nothing is lost (an `int` for a float), never the other way.
    """
    if cache is not None and not pure:
        raise ValueError("ember.host: cache= keeps results for later, which pure=False forbids; drop one of them.")
    leaves, tree = jax.tree.flatten(out, is_leaf=_is_spec)
    specs = tuple(_out_spec(leaf) for leaf in leaves)
    function = _Function(fn, specs, tree, pure, cache)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function.bind(args, kwargs)

    return call


@dataclasses.dataclass(frozen=True)
class _Out:
    """One result of a host function, without batch axes."""

    is_text: bool
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def aval(self) -> Aval:
        return Aval((*self.shape, store.DIGEST_WORDS), np.uint32) if self.is_text else Aval(self.shape, self.dtype)

    def __str__(self) -> str:
        return f"Text{list(self.shape)}" if self.is_text else f"{self.dtype}{list(self.shape)}"


def _is_spec(value: Any) -> bool:
    return value is Text or isinstance(value, TextAnnotation | Aval)


def _out_spec(leaf: Any) -> _Out:
    if leaf is Text or leaf is str:
        return _Out(True, (), np.dtype(object))
    if isinstance(leaf, TextAnnotation):
        try:
            return _Out(True, tuple(map(int, leaf.dimensions.split())), np.dtype(object))
        except ValueError:
            raise TypeError(f"ember.host: out={leaf!r} needs numbers as dimensions, as in ember.Text['3'].") from None
    if isinstance(leaf, Aval):
        return _Out(False, tuple(leaf.shape), np.dtype(jax.dtypes.canonicalize_dtype(leaf.dtype)))
    if any(leaf is scalar for scalar in (bool, int, float, complex)):
        return _Out(False, (), np.dtype(jax.dtypes.canonicalize_dtype(leaf)))
    raise TypeError(
        f"ember.host: out= holds {leaf!r}; it takes ember.Text, bool, int, float, a jax.ShapeDtypeStruct, or a pytree "
        "of them, such as jax.ShapeDtypeStruct((3,), jnp.float32)."
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Function:
    """A Python function with what it returns."""

    fn: Callable[..., Any]
    out: tuple[_Out, ...]
    out_tree: Any
    pure: bool
    cache: str | None

    @functools.cached_property
    def is_async(self) -> bool:
        # an object may have an async `__call__`
        return inspect.iscoroutinefunction(self.fn) or inspect.iscoroutinefunction(type(self.fn).__call__)

    def bind(self, args: Any, kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Text))
        leaves = [text(x) if isinstance(x, str) else x for x in leaves]
        arrays, kinds = [], []
        for leaf in leaves:
            if isinstance(leaf, Text):
                arrays.append(as_text(leaf).digests)
                kinds.append(True)
            elif isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
                array = jnp.asarray(leaf)
                arrays.append(jax.random.key_data(array) if is_key(array) else array)
                kinds.append(False)
            elif self.cache is not None and " at 0x" in repr(leaf):
                raise TypeError(
                    f"ember.host: with cache= results are kept by the words of their arguments, and {leaf!r} has none "
                    "that mean the same in another process. Close over it, and name it in cache=."
                )
            else:
                kinds.append(Alike(leaf))
        if not arrays:  # a callback needs an operand for its batch axes to show
            arrays = [jnp.zeros((), jnp.int32)]
        types = tuple((str(a.dtype), tuple(jnp.shape(a))) for a in arrays)
        call = FunctionCall(self, tree, Alike(structural(tree)), tuple(kinds), types)
        results = invoke(call, [o.aval for o in self.out], *arrays)
        values = [Text(r) if o.is_text else r for o, r in zip(self.out, results, strict=True)]
        return jax.tree.unflatten(self.out_tree, values)


@dataclasses.dataclass(frozen=True)
class FunctionCall(HostCall):
    """A call of a Python function, as the callback that JAX sees.

    `structural` is what the tree of the arguments holds. `kinds` says of each leaf of them whether it is text (`True`),
    an array (`False`) or static; `types` are the arrays' dtypes and shapes.
    """

    function: _Function
    tree: Any
    structural: Alike
    kinds: tuple[Any, ...]
    types: tuple[tuple[str, tuple[int, ...]], ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:  # asked for with every call
        return hash((self.function, self.tree, self.kinds, self.types))

    @functools.cached_property
    def ranks(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(len(shape) for _, shape in self.types)

    @property
    def pure(self) -> bool:  # type: ignore[override]
        return self.function.pure

    def __str__(self) -> str:
        return getattr(self.function.fn, "__qualname__", type(self.function.fn).__name__).rsplit(".", 1)[-1]

    async def run(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        sessions.admit(session, caller.lane)
        raw = [a.tobytes() for a in arrays]
        digest = failed.first_in([r for r, is_text in zip(raw, self._are_text, strict=True) if is_text])
        if digest is not None:  # the call is not made
            return [failed.result(digest, s.shape, None if s.is_text else s.dtype) for s in self.function.out]
        if not self.pure or (self.function.cache is None and not caller.remembers):
            return await self._call(session, caller, arrays)
        if self.function.cache is None:
            packed = await session.results.remember(self, _content(raw), self._packed, session, caller, arrays)
            return self._unpacked(packed)
        key = hashlib.blake2b(digest_size=32)
        for array, content in zip(arrays, raw, strict=True):
            key.update(f"{array.dtype}{array.shape}".encode())
            key.update(content)
        # The journal outlives this process, so what is no array is told by its words.
        static = [k.value for k in self.kinds if isinstance(k, Alike)]
        key.update(f"{self.function.cache}{self.tree}{static!r}".encode())

        async def work() -> bytes:
            return self._encode(await self._call(session, caller, arrays))

        return self._decode(await session.results.journaled(key.digest(), work, self.function.cache))

    @functools.cached_property
    def _is_one(self) -> bool:
        """Whether it returns one Text or array, and no tree of them."""
        return self.function.out_tree == jax.tree.structure(0)

    @functools.cached_property
    def _is_flat(self) -> bool:
        """Whether all arguments are by position, each an array or a Text."""
        flat = jax.tree.structure(((0,) * len(self.kinds), {}))
        return self.tree == flat and not any(isinstance(k, Alike) for k in self.kinds)

    @functools.cached_property
    def _are_text(self) -> tuple[bool, ...]:
        kinds = tuple(k for k in self.kinds if not isinstance(k, Alike))
        return kinds or (False,)  # without arguments there is an operand that says nothing

    async def _packed(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> bytes:
        return b"".join([r.tobytes() for r in await self._call(session, caller, arrays)])

    def _unpacked(self, packed: bytes) -> list[np.ndarray]:
        if self._is_one:
            aval = self._avals[0]
            return [np.frombuffer(packed, aval.dtype).reshape(aval.shape)]
        results, at = [], 0
        for aval in self._avals:
            size = aval.size * aval.dtype.itemsize
            results.append(np.frombuffer(packed[at : at + size], aval.dtype).reshape(aval.shape))
            at += size
        return results

    @functools.cached_property
    def _avals(self) -> tuple[Aval, ...]:
        return tuple(o.aval for o in self.function.out)

    async def _call(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        args, kwargs = self._arguments(arrays)
        fn = self.function.fn
        try:
            if not self.function.is_async:
                # In no turn of a scheduler's: it may run operators, whose calls would wait for it.
                result = await sessions.loop().threads.run(lambda: fn(*args, **kwargs))
            elif session.turns is None:
                result = await fn(*args, **kwargs)
            else:
                async with session.turns.turn(session.turns.task("host", caller.lane, caller.scope, caller.path)):
                    result = await fn(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as error:  # would end the event loop for everybody
            raise HostResultError(f"the host function {self} raised {type(error).__name__}.") from error
        return self._results(result)

    def _arguments(self, arrays: Sequence[np.ndarray]) -> Any:
        if self._is_flat:  # as most are
            return list(map(_value, arrays, self.kinds)), {}
        given = iter(arrays)
        leaves = [k.value if isinstance(k, Alike) else _value(next(given), k) for k in self.kinds]
        return jax.tree.unflatten(self.tree, leaves)

    def _results(self, result: Any) -> list[np.ndarray]:
        if self._is_one:
            return [self._result(self.function.out[0], result)]
        try:
            leaves = self.function.out_tree.flatten_up_to(result)
        except ValueError:
            declared = jax.tree.unflatten(self.function.out_tree, list(map(str, self.function.out)))
            raise HostResultError(
                f"the host function {self} returned {_describe(result)}, but its out= says {declared}."
            ) from None
        return [self._result(spec, leaf) for spec, leaf in zip(self.function.out, leaves, strict=True)]

    def _result(self, spec: _Out, leaf: Any) -> np.ndarray:
        if spec.is_text:
            return self._words(spec, leaf)
        if type(leaf) is np.ndarray and leaf.dtype == spec.dtype and leaf.shape == spec.shape:
            return leaf.copy()  # the function may write into its own again
        try:
            array = np.asarray(leaf)
        except ValueError:  # ragged lists
            array = np.asarray(None)
        whole = spec.dtype.kind in "iu" and array.dtype.kind in "iu"
        fits = array.shape == spec.shape and (whole or np.can_cast(array.dtype, spec.dtype, "same_kind"))
        if not fits or (whole and not np.array_equal(array, array.astype(spec.dtype))):
            raise HostResultError(
                f"the host function {self} returned {_describe(leaf)}, but its out= says {spec}. "
                "Convert it in the function, or declare what it returns."
            )
        return array.astype(spec.dtype)

    def _words(self, spec: _Out, leaf: Any) -> np.ndarray:
        if isinstance(leaf, str | list | tuple | Text) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OU"):
            try:
                digests = np.asarray(leaf.digests) if isinstance(leaf, Text) else digests_of(leaf)
            except EmberError as error:
                raise HostResultError(f"the host function {self} returned what is no Text: {error}") from None
            if digests.shape[:-1] == spec.shape:
                return digests
        raise HostResultError(f"the host function {self} returned {_describe(leaf)}, but its out= says {spec}.")

    def _encode(self, results: Sequence[np.ndarray]) -> bytes:
        rows = [
            store.get_array(r) if spec.is_text else base64.b64encode(r.tobytes()).decode()
            for spec, r in zip(self.function.out, results, strict=True)
        ]
        return json.dumps(rows).encode()

    def _decode(self, row: bytes) -> list[np.ndarray]:
        results = []
        for spec, kept in zip(self.function.out, json.loads(row), strict=True):
            if spec.is_text:
                words = np.empty(len(kept), object)
                words[:] = kept
                results.append(store.put_array(words).reshape(*spec.shape, store.DIGEST_WORDS))
            else:
                results.append(np.frombuffer(base64.b64decode(kept), spec.dtype).reshape(spec.shape))
        return results


def _value(array: np.ndarray, is_text: bool) -> Any:
    if not is_text:
        return array[()]
    return store.get(array.tobytes()) if array.ndim == 1 else Text(array).tolist()


def _content(raw: Sequence[bytes]) -> bytes:
    """What tells arrays from others of the same types: all their bytes, or a digest of them where that is shorter."""
    content = b"".join(raw)
    return content if len(content) <= 64 else hashlib.blake2b(content, digest_size=32).digest()


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray | jax.Array):
        return f"an array {value.dtype}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}: {value!r:.80}"
    return f"{value!r:.80} of type {type(value).__name__}"
