"""Any Python function as a call: `host`."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._alike import Alike, structural
from ._host import Caller, HostCall, invoke
from ._returns import Returns, packed
from ._runtime import session as sessions
from ._text import failed, store
from ._text.text import Text, as_text, text
from ._types import is_key
from .errors import HostResultError


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
    return bound(fn, out, pure, cache)


def bound(
    fn: Callable[..., Any], out: Any, pure: bool, cache: str | None, has_turns: bool = True
) -> Callable[..., Any]:
    """What `host` makes. An `async def` that waits for calls of others must not have a turn of the session's scheduler,
    as they would wait for it: that is for `has_turns` to say."""
    function = _Function(fn, Returns(out), pure, cache, has_turns)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function.bind(args, kwargs)

    return call


@dataclasses.dataclass(frozen=True, eq=False)
class _Function:
    """A Python function with what it returns."""

    fn: Callable[..., Any]
    returns: Returns
    pure: bool
    cache: str | None
    has_turns: bool

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
        return self.returns.values(invoke(call, self.returns.avals, *arrays))


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
            return self.function.returns.failed(digest)
        if not self.pure or (self.function.cache is None and not caller.remembers):
            return await self._call(session, caller, arrays)
        if self.function.cache is None:
            return await self._remembered(session, caller, arrays, _content(raw))
        key = hashlib.blake2b(digest_size=32)
        for array, content in zip(arrays, raw, strict=True):
            key.update(f"{array.dtype}{array.shape}".encode())
            key.update(content)
        # The journal outlives this process, so what is no array is told by its words.
        static = [k.value for k in self.kinds if isinstance(k, Alike)]
        key.update(f"{self.function.cache}{self.tree}{static!r}".encode())

        async def work() -> bytes:
            return self.function.returns.encoded(await self._call(session, caller, arrays))

        return self.function.returns.decoded(await session.results.journaled(key.digest(), work, self.function.cache))

    @functools.cached_property
    def _is_flat(self) -> bool:
        """Whether all arguments are by position, each an array or a Text."""
        flat = jax.tree.structure(((0,) * len(self.kinds), {}))
        return self.tree == flat and not any(isinstance(k, Alike) for k in self.kinds)

    @functools.cached_property
    def _are_text(self) -> tuple[bool, ...]:
        kinds = tuple(k for k in self.kinds if not isinstance(k, Alike))
        return kinds or (False,)  # without arguments there is an operand that says nothing

    async def _remembered(
        self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray], content: bytes
    ) -> list[np.ndarray]:
        """The result from memory, from an equal call in flight, or of this call."""
        results = session.results
        key = results.key(self, content)
        found = results.known(key)
        if found is None and results.begins(key):
            try:
                made = await self._call(session, caller, arrays)
            except BaseException as error:
                results.failed(key, error)
                raise
            results.succeeded(key, packed(made))
            return made
        if found is None:

            async def work() -> bytes:
                return packed(await self._call(session, caller, arrays))

            found = await results.shared(key, work)
        return self.function.returns.unpacked(found)

    async def _call(self, session: sessions.Session, caller: Caller, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        args, kwargs = self._arguments(arrays)
        fn = self.function.fn
        try:
            if not self.function.is_async:
                # In no turn of a scheduler's: it may run operators, whose calls would wait for it.
                result = await sessions.loop().threads.run(lambda: fn(*args, **kwargs))
            elif session.turns is None or not self.function.has_turns:
                result = await fn(*args, **kwargs)
            else:
                async with session.turns.turn(session.turns.task("host", caller.lane, caller.scope, caller.path)):
                    result = await fn(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as error:  # would end the event loop for everybody
            raise HostResultError(f"the host function {self} raised {type(error).__name__}.") from error
        return self.function.returns.read(self, result)

    def _arguments(self, arrays: Sequence[np.ndarray]) -> Any:
        if self._is_flat:  # as most are
            return list(map(_value, arrays, self.kinds)), {}
        given = iter(arrays)
        leaves = [k.value if isinstance(k, Alike) else _value(next(given), k) for k in self.kinds]
        return jax.tree.unflatten(self.tree, leaves)


def _value(array: np.ndarray, is_text: bool) -> Any:
    if not is_text:
        return array[()]
    return store.get(array.tobytes()) if array.ndim == 1 else Text(array).tolist()


def _content(raw: Sequence[bytes]) -> bytes:
    """What tells arrays from others of the same types: all their bytes, or a digest of them where that is shorter."""
    content = b"".join(raw)
    return content if len(content) <= 64 else hashlib.blake2b(content, digest_size=32).digest()
