"""`Operator`: an Equinox module whose `forward` is an island of calls in a JAX program."""

import abc
import dataclasses
import functools
import importlib
import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

import equinox as eqx
import jax

from .. import _annotations, _callback
from .._runtime.repeats import one_lane
from .boundary import Boundary
from .traced import explained, strings_explained

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class _Forward(Protocol[R_co]):
    """What an operator is to whoever calls it: its result is what `forward` is annotated with.

    Its arguments are not typed, as strings are taken for Text, and numbers for arrays.
    """

    def forward(self, *args: Any, **kwargs: Any) -> R_co: ...


class _ForwardSignature:
    """What `inspect.signature` says of an operator; of its class, it says how one is made, as it does without this."""

    def __get__(self, operator: "Operator | None", cls: type) -> inspect.Signature:
        if operator is None:
            raise AttributeError
        return boundary_of(operator).specification.signature


class Operator(eqx.Module):
    """The abstract base of operators: a pytree of settings, weights and other operators, with a `forward`.

    ```python
    class Pair(ember.Operator):
        first: ember.LLM
        second: ember.LLM

        def forward(self, question: ember.Text) -> ember.Text:
            return ember.join("\\n", [self.first(question), self.second(question)])
    ```

    Calling an operator runs `forward`. With concrete inputs and outside every JAX transformation (and under
    `jax.disable_jit()`) that happens line by line, one call after another. Under a transformation `forward` is traced
    once, and its calls run as parallel as their data allows, each `vmap` lane at its own pace.

    `forward` must annotate its inputs and its result; they are checked when it is traced or run. Strings given for
    Text, and Python numbers given for arrays, are converted.

    Operators compare and hash by identity, so that `jax.jit(operator)` works; its arrays are then constants of that
    program, which `ember.jit` and Equinox's filtered transformations lift.

    **Raises:** `AnnotationError` when a subclass lacks an annotation, or a call breaks one; `TracedControlFlowError`
    for Python control flow on traced values; `SweepError` if some lanes failed.
    """

    __signature__ = _ForwardSignature()

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the operator does; written as eager JAX and calls."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__ and not getattr(cls.__dict__["forward"], "__isabstractmethod__", False):
            _annotations.require(cls.__dict__["forward"], f"{cls.__qualname__.rsplit('.', 1)[-1]}.forward", True)

    def __call__(self: _Forward[R], *args: Any, **kwargs: Any) -> R:
        operator = cast("Operator", self)
        through = boundary_of(operator)
        args, kwargs = through.specification.bind(args, kwargs)
        if _callback.all_concrete((operator, args, kwargs)) and _callback.is_eager():
            with strings_explained(through.boundary.name), one_lane():
                return through.forward(operator, *args, **kwargs)
        return through.boundary(operator, *args, **kwargs)

    # cloudpickle takes the definition of a class along that it cannot import elsewhere. It makes the class without a
    # body and fills that in afterwards; but Equinox tells JAX of the fields when the class is made, and there are none.
    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        children = jax.tree.leaves(self, is_leaf=lambda node: node is not self)
        if len(children) < sum(not field.metadata.get("static") for field in dataclasses.fields(self)):
            raise TypeError(
                f"the class {type(self).__qualname__} was sent by cloudpickle with its definition, as it is of "
                f"{type(self).__module__!r}, and Equinox's modules do not survive that: it arrives without its fields. "
                "Define it in a module that both processes import."
            )

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # JAX names what it compiles so
        return (self.fn if isinstance(self, FunctionOperator) else type(self)).__name__

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class FunctionOperator(Operator, Generic[R]):
    """An annotated function as an operator; made by `ember.operator`."""

    fn: Callable[..., R] = eqx.field(static=True)

    def forward(self, *args: Any, **kwargs: Any) -> R:
        return self.fn(*args, **kwargs)

    # Python pickles a function by its name, under which a decorated one is not found: the operator is. As the field
    # `fn` of the operator it is found, but not by the protocols before 4, which have no dotted names.
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        module, name = getattr(self.fn, "__module__", ""), getattr(self.fn, "__qualname__", "").removesuffix(".fn")
        named: Any = sys.modules.get(module)
        for part in name.split("."):
            named = getattr(named, part, None)
        if isinstance(named, FunctionOperator) and named.fn is self.fn:
            if protocol < 4:
                return _by_name, (module, name)
            self.fn.__qualname__ = f"{name}.fn"
        return FunctionOperator, (self.fn,)


def _by_name(module: str, name: str) -> Any:
    """What a module has under a dotted name."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def operator(fn: Callable[..., R]) -> FunctionOperator[R]:
    """Makes an operator of an annotated function.

    ```python
    @ember.operator
    def shout(answer: ember.Text) -> ember.Text:
        return answer + "!"
    ```

    **Raises:** `AnnotationError` if an annotation is missing.
    """
    _annotations.require(fn, fn.__name__, False)
    return FunctionOperator(fn)


class _OperatorBoundary:
    """What an operator class is called through: its specification, and the boundary around its checked `forward`."""

    def __init__(self, function: Callable[..., Any], name: str, specification: _annotations.Specification):
        self.specification = specification
        self._forward = function
        self.boundary = Boundary(self._explained_forward, name)

    def forward(self, operator: Operator, *args: Any, **kwargs: Any) -> Any:
        """Runs `forward` with its inputs and result checked."""
        return self.specification.run(functools.partial(self._forward, operator), args, kwargs)

    def _explained_forward(self, operator: Operator, *args: Any, **kwargs: Any) -> Any:
        with explained(self.boundary.name):
            return self.forward(operator, *args, **kwargs)


# One boundary for each operator class, or function: instances share what is traced and compiled.
_boundaries: weakref.WeakKeyDictionary[Any, _OperatorBoundary] = weakref.WeakKeyDictionary()


def boundary_of(operator: Operator) -> _OperatorBoundary:
    """The boundary that an operator is called through."""
    is_function = isinstance(operator, FunctionOperator)
    key: Any = operator.fn if is_function else type(operator)
    found = _boundaries.get(key)
    if found is None:
        name = key.__name__
        specification = _annotations.Specification.of(key if is_function else key.forward, name, not is_function)
        # taken from the instance: a boundary that held on to its key would keep it alive
        forward = lambda operator, *args, **kwargs: type(operator).forward(operator, *args, **kwargs)
        found = _boundaries[key] = _OperatorBoundary(forward, name, specification)
    return found
