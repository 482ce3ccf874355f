"""JAX's own tests of control flow, with the numbers of every `jax.jit` computed by the engine, after calls.

`python tests/jax_control_flow.py PATH [PATTERN ...]`, where `PATH` is `tests/lax_control_flow_test.py` of JAX's
repository at the tag of the installed JAX. Patterns, such as `"*scan*"`, choose tests. Each test is run as it stands,
and with `jax.jit(f)` replaced by `through_engine(f)`. Exits with 1 if outcomes differ where `DIFFER` does not say so.
"""

import argparse
import collections
import fnmatch
import functools
import importlib.util
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ember_jax as ember

# Nearly all that is compiled runs once or twice.
jax.config.update("jax_disable_most_optimizations", True)


class Reason(NamedTuple):
    """What a test raises by right where the engine computes, and why."""

    raised: str
    why: str


_ASKS = Reason("object has no attribute", "it asks what `jax.jit` returned for compiled text, or to forget it")
_SELECT = Reason('"select" not in str(jaxpr)', "of a `vmap`; each lane of an operator records the branch that it takes")
_WEAK = Reason("TypePromotionError", "an operator's inputs are never weakly typed: 1 and an array are the same program")
_SAME = Reason("must have equal types, got int16 and int32", _WEAK.why)
_WHILE = Reason("GradientError", "the numbers of a `while_loop` that makes calls are recorded while it runs")
_ERROR = Reason("TracedControlFlowError", "an operator's name for this error of JAX, which it is raised from")
_INDEX = Reason("UnsupportedError: `while_loop` over the axis 'i'", "the lanes of an operator do not meet")

# Tests that may fail in the engine, as patterns.
DIFFER = {
    "testCondBatched": _SELECT,
    "testCondOneBranchConstant*": _WEAK,
    "testIssue810": _ASKS,
    "testSwitchBatched": _SELECT,
    "testWhile*_jit_loop=True_jit_body=*True*": _WHILE,
    "testWhileLoopAxisIndexBatched": _INDEX,
    "test_cond_memory_leak": _ASKS,
    "test_fori_loop_with_dynamic_indices_cannot_unroll": _SAME,
    "test_platform_dependent_*": _ASKS,
    "test_scan_length_concrete_error": _ERROR,
    "test_scan_lowering_doesnt_introduce_singleton": _ASKS,
    "test_scan_unroll": _ASKS,
    "test_scan_unroll_concrete_error": _ERROR,
}


# -- the adapter -----------------------------------------------------------------------------------------------------


def through_engine(fn: Callable[..., Any] | None = None, *, static_argnums: Any = (), **options: Any) -> Any:
    """In the place of `jax.jit`: `ember.jit` of a function of what calls answer, its numbers are after them."""
    if fn is None:
        return functools.partial(through_engine, static_argnums=static_argnums, **options)
    static = {static_argnums} if isinstance(static_argnums, int) else set(static_argnums)

    @functools.wraps(fn)
    def answered(*args: Any, **kwargs: Any) -> Any:
        return fn(*[a if i in static else _answered(a) for i, a in enumerate(args)], **_answered(kwargs))

    compiled = ember.jit(answered)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled(*[a if i in static else _arrays(a) for i, a in enumerate(args)], **_arrays(kwargs))

    return call


def _arrays(tree: Any) -> Any:
    """Python's numbers as arrays, which `ember.jit` traces."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, bool | int | float | complex) else x, tree)


def _answered(tree: Any) -> Any:
    """Numbers as they were, but known only after a call; keys and what is no array are left alone."""
    return jax.tree.map(lambda x: _plus_zeros(x) if isinstance(x, jax.Array) and _is_number(x) else x, tree)


def _is_number(array: jax.Array) -> bool:
    return array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)


def _plus_zeros(array: jax.Array) -> jax.Array:
    zeros = _zeros(array.shape, array.dtype)(array)
    return array ^ zeros if array.dtype == bool else array + zeros


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[Any], Any]:
    """A call that answers zeros to an array of some type."""
    return ember.host(lambda _: np.zeros(shape, dtype), out=jax.ShapeDtypeStruct(shape, dtype))


class Module:
    """The module `jax`, with another `jit`; notes whether it was asked for."""

    def __init__(self, jit: Callable[..., Any]):
        self._jit = jit
        self.asked = False

    @property
    def jit(self) -> Callable[..., Any]:
        self.asked = True
        return self._jit

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)


# -- the tests -------------------------------------------------------------------------------------------------------


class Outcomes(unittest.TestResult):
    """How each test ended, in a word and with what it raised."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, tuple[str, str]] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.of.setdefault(_name(test), ("passed", ""))

    def addError(self, test: Any, err: Any) -> None:
        self.of[_name(test)] = ("failed", self._exc_info_to_string(err, test))  # type: ignore

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.of[_name(test)] = ("skipped", reason)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    addFailure = addError

    def __str__(self) -> str:
        counted = collections.Counter(word for word, _ in self.of.values())
        return ", ".join(f"{n} {word}" for word, n in counted.items())


def _name(test: unittest.TestCase) -> str:
    return test.id().split(".", 2)[-1]


def load(path: str) -> types.ModuleType:
    """JAX's file as a module."""
    spec = importlib.util.spec_from_file_location("lax_control_flow_test", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tests(suite: Any) -> Iterator[unittest.TestCase]:
    """The tests of a suite of suites."""
    for part in suite:
        yield from tests(part) if isinstance(part, unittest.TestSuite) else [part]


def run(test: unittest.TestCase, module: Any, jit: Callable[..., Any], outcomes: Outcomes) -> bool:
    """Runs a test with some `jax.jit`; says whether it asked for it."""
    module.jax = Module(jit)
    test.run(outcomes)
    return module.jax.asked


def reason(name: str, words: str) -> str | None:
    """Why a test may end with an error in the engine, of which these are the words."""
    known = (r for pattern, r in DIFFER.items() if fnmatch.fnmatchcase(name, pattern))
    return next((f"{r.raised}: {r.why}" for r in known if r.raised in words), None)


def main() -> int:
    """Runs the tests both ways, and prints where the outcomes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("patterns", nargs="*", default=["*"])
    chosen = parser.parse_args()
    module = load(chosen.path)
    plain, engine = Outcomes(), Outcomes()
    known = unknown = 0
    for test in tests(unittest.defaultTestLoader.loadTestsFromModule(module)):
        name = _name(test)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in chosen.patterns):
            continue
        if not run(test, module, jax.jit, plain):
            continue  # would be the same again
        run(test, module, through_engine, engine)
        (before, _), (after, words) = plain.of[name], engine.of[name]
        if before != after:
            why = reason(name, words)
            known, unknown = known + (why is not None), unknown + (why is None)
            print(f"{name} {before}, and {after} in the engine: {why or words}", flush=True)
    print(f"JAX {jax.__version__}: {len(plain.of)} tests ({plain}), {len(engine.of)} of which ask for `jax.jit`.")
    print(f"These in the engine: {engine}. {known} differ as they may, {unknown} as they may not.")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
