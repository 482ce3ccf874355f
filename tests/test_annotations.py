"""Annotations as an operator's specification: checked eagerly and when traced, in words that name the argument."""

import importlib.util
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Optional

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray, UInt8

import ember_jax as ember
from ember_jax.errors import AnnotationError

FORMS = {"eager": lambda op: op, "jax.jit": jax.jit, "ember.jit": ember.jit}
ONE, TWO = ember.text("a"), ember.text(["a", "b"])
KEY = jax.random.key(0)


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def taking(hint):
    """An operator with one argument, which it gives back."""

    @ember.operator
    def echo(value: hint) -> object:
        return value

    return echo


def giving(hint, value):
    """An operator that returns `value`."""

    @ember.operator
    def give(unused: ember.Text) -> hint:
        return value() if callable(value) else value

    return give


# -- missing annotations ---------------------------------------------------------------------------------------------


def test_a_missing_annotation_is_an_error_at_class_definition():
    with pytest.raises(AnnotationError, match=r"Vote\.forward does not annotate `question`, `key`\..*ember\.Text"):

        class Vote(ember.Operator):
            def forward(self, question, times: int, key=None) -> ember.Text:
                return question


def test_a_missing_result_annotation_is_an_error_at_class_definition():
    with pytest.raises(AnnotationError, match=r"Vote\.forward does not annotate the result"):

        class Vote(ember.Operator):
            def forward(self, question: ember.Text):
                return question


@pytest.mark.parametrize("function", [lambda word: word, lambda: ember.text("")])
def test_a_function_without_annotations_is_no_operator_and_the_error_names_ember_jit(function):
    with pytest.raises(AnnotationError, match=r"does not annotate .*ember\.jit"):
        ember.operator(function)


def test_variadic_parameters_need_annotations_too():
    with pytest.raises(AnnotationError, match="`args`, `kwargs`"):

        @ember.operator
        def op(*args, **kwargs) -> ember.Text:
            return args[0]


def test_an_abstract_forward_needs_none():
    import abc

    class Base(ember.Operator):
        @abc.abstractmethod
        def forward(self, question):
            pass

    class Final(Base):
        def forward(self, question: ember.Text) -> ember.Text:
            return question

    assert str(Final()("a")) == "a"


# -- what fits and what does not -------------------------------------------------------------------------------------

WRONG = {
    "an array for a Text": (ember.Text, jnp.zeros(2), r"`value` of echo is annotated Text, but is float32\[2\]"),
    "a rank for one Text": (ember.Text, TWO, r'annotated Text, but is Text\[2\].*one string.*jax\.vmap.*Text\["n"\]'),
    "one Text for a rank": (ember.Text["n"], ONE, r'annotated Text\["n"\], but is Text\[\]'),
    "another size": (ember.Text["3"], TWO, r'annotated Text\["3"\], but is Text\[2\]'),
    "another rank of Text": (ember.Text["n m"], TWO, r'annotated Text\["n m"\], but is Text\[2\]'),
    "another dtype": (Float[Array, "n"], jnp.zeros(2, jnp.int32), r'annotated Float\[Array, "n"\], but is int32\[2\]'),
    "another rank": (Float[Array, "n"], jnp.zeros((2, 3)), r'Float\[Array, "n"\], but is float32\[2, 3\]'),
    "a fixed size": (Float[Array, "3"], jnp.zeros(2), r'Float\[Array, "3"\], but is float32\[2\]'),
    "equal sizes": (Float[Array, "n n"], jnp.zeros((2, 3)), r'Float\[Array, "n n"\], but is float32\[2, 3\]'),
    "a Text for an array": (Float[Array, ""], ONE, r'Float\[Array, ""\], but is Text\[\]'),
    "another precision": (Float32[Array, ""], jnp.float16(0), r'Float32\[Array, ""\], but is float16\[\]'),
    "a batch of keys": (ember.Key, jax.random.split(KEY), r"annotated Key, but is an array of keys of shape \[2\]"),
    "a batch of legacy keys": (ember.Key, jnp.zeros((2, 2), jnp.uint32), r"uint32\[2, 2\], not a PRNG key.*jax\.vmap"),
    "half a legacy key": (ember.Key, jnp.uint32(1), r"single word of a legacy key: the wrong axis was mapped"),
    "a float for a key": (ember.Key, jnp.float32(1), r"float32\[\], not a PRNG key"),
    "three words for a key": (ember.Key, jnp.zeros(3, jnp.uint32), r"uint32\[3\], not a PRNG key"),
    "no member of a union": (ember.Text | None, jnp.zeros(()), r"annotated Text \| None, but is float32\[\]"),
    "a tuple's length": (tuple[ember.Text, ember.Text], (ONE,), r"but is a tuple of 1"),
    "a tuple's element": (
        tuple[ember.Text, ember.Text],
        (ONE, TWO),
        r"annotated tuple\[Text, Text\], but is a tuple whose element 1 is Text\[2\]",
    ),
    "an element of an open tuple": (
        tuple[ember.Text, ...],
        (ONE, ONE, TWO),
        r"annotated tuple\[Text, \.\.\.\], .* element 2 is Text\[2\]",
    ),
    "a list's element": (list[ember.Text], [ONE, jnp.zeros(())], r"a list whose element 1 is float32\[\]"),
    "a list for a tuple": (tuple[ember.Text], [ONE], r"but is \["),
    "a dict's value": (
        dict[str, ember.Text],
        {"x": ONE, "y": jnp.zeros(())},
        r"annotated dict\[str, Text\], but is a dict whose 'y' is float32\[\]",
    ),
    "no dict": (dict[str, ember.Text], [ONE], r"but is \["),
    "None": (ember.Text, None, r"annotated Text, but is None"),
    "another literal": (Literal["a", "b"], "c", r"but is 'c' of type str"),
    "a static type": (int, "x", r"annotated int, but is 'x' of type str"),
    "an array for a str": (str, ONE, r"annotated str, but is Text\[\]"),
    "a vector for an int": (int, jnp.arange(2), r"annotated int, but is int32\[2\]"),
    "a float for an int": (int, jnp.float32(2), r"annotated int, but is float32\[\]"),
    "another class": (eqx.nn.Linear, ONE, r"annotated Linear, but is Text\[\]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named_with_what_was_meant_and_what_came(wrong, form):
    hint, value, message = WRONG[wrong]
    op = taking(hint)
    call = (lambda: op(value)) if form is jax.jit and not all_arrays(value) else lambda: form(op)(value)
    with pytest.raises(AnnotationError, match=f"(?s){message}") as raised:
        call()
    assert "echo" in str(raised.value) and "value" in str(raised.value)


def all_arrays(value):
    leaves = jax.tree.leaves(value, is_leaf=lambda x: x is None)
    return all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_result_is_named_with_what_was_meant_and_what_came(wrong, form):
    hint, value, message = WRONG[wrong]
    with pytest.raises(
        AnnotationError, match=f"(?s){message.replace('`value` of echo', 'the result of give')}"
    ) as raised:
        form(giving(hint, value))(ONE)
    assert "the result of give" in str(raised.value)


class Pair(NamedTuple):
    words: ember.Text
    number: jax.Array


RIGHT = {
    "Text": (ember.Text, ONE),
    "Text of a rank": (ember.Text["n"], TWO),
    "Text of a size": (ember.Text["2"], TWO),
    "Text of any rank": (ember.Text["..."], TWO),
    "Text of an empty shape": (ember.Text[""], ONE),
    "an array": (Float[Array, "n"], jnp.zeros(2)),
    "a bool array": (Bool[Array, ""], jnp.array(True)),
    "bytes": (UInt8[Array, "n"], jnp.zeros(2, jnp.uint8)),
    "a typed key": (ember.Key, KEY),
    "a legacy key": (ember.Key, jax.random.PRNGKey(0)),
    "a key of jaxtyping": (PRNGKeyArray, KEY),
    "an rbg key": (ember.Key, jax.random.key(0, impl="rbg")),
    "a union's first": (ember.Text | None, ONE),
    "a union's second": (ember.Text | None, None),
    "an Optional": (Optional[ember.Text], None),  # noqa: UP045
    "a union of ranks": (ember.Text | ember.Text["n"], TWO),
    "a union of a rank and None": (ember.Text["n"] | None, None),
    "a tuple": (tuple[ember.Text, Float[Array, ""]], (ONE, jnp.float32(1))),
    "an open tuple": (tuple[ember.Text, ...], (ONE, ONE)),
    "an empty tuple": (tuple[()], ()),
    "a list": (list[ember.Text], [ONE, ONE]),
    "a sequence": (Sequence[ember.Text], (ONE, ONE)),
    "a dict": (dict[str, ember.Text], {"x": ONE}),
    "a nested dict": (dict[str, tuple[ember.Text, ...]], {"x": (ONE, ONE)}),
    "a bare list": (list, [ONE]),
    "a bare dict": (dict, {"x": ONE}),
    "a NamedTuple": (Pair, Pair(ONE, jnp.zeros(()))),
    "a module": (ember.LLM, ember.LLM("sim/small")),
    "an operator": (ember.Operator, taking(ember.Text)),
    "any": (Any, ONE),
    "object": (object, ONE),
    "Annotated": (Annotated[ember.Text, "a question"], ONE),
    "a jax.Array": (jax.Array, jnp.zeros(2)),
    "an int": (int, 3),
    "a traced int": (int, jnp.int32(3)),
    "a traced float": (float, jnp.float32(3)),
    "a bool": (bool, True),
    "a str": (str, "static"),
    "a literal": (Literal["a", 1], "a"),
    "None": (None, None),
}


@pytest.mark.parametrize("right", RIGHT)
def test_a_value_that_fits_goes_in_and_comes_out(right, form):
    hint, value = RIGHT[right]

    @ember.operator
    def echo(value: hint) -> hint:
        return value

    static = not all_arrays(value)
    out = ember.jit(echo)(value) if static and form is jax.jit else form(echo)(value)
    assert jax.tree.structure(out) == jax.tree.structure(value)
    for ours, theirs in zip(jax.tree.leaves(out), jax.tree.leaves(value), strict=True):
        assert bool(jnp.all(ours == theirs)) if isinstance(theirs, jax.Array) else ours == theirs


# -- dimension names -------------------------------------------------------------------------------------------------


class Shared(ember.Operator):
    def forward(
        self, texts: ember.Text["n"], weights: Float[Array, "n d"], *, names: ember.Text["d"]
    ) -> tuple[ember.Text["d n"], Float[Array, "d"]]:
        grid = jnp.broadcast_to(texts.digests, (*names.shape, *texts.digests.shape))
        said = ember.Text(grid) if weights.shape[-1] < 4 else names
        return said, weights.sum(0) if weights.shape[-1] < 3 else weights[0, :1]


def test_dimension_names_are_shared_by_inputs_and_outputs(form):
    op = form(Shared())
    said, total = op(TWO, jnp.ones((2, 1)), names=ember.text(["x"]))
    assert said.tolist() == [["a", "b"]] and total.tolist() == [2]
    said, total = op(ember.text(["a"] * 3), jnp.ones((3, 2)), names=TWO)  # other sizes in another call
    assert said.shape == (2, 3) and total.tolist() == [3, 3]
    with pytest.raises(AnnotationError, match=r'argument `weights` of Shared is annotated Float\[Array, "n d"\]'):
        op(TWO, jnp.ones((3, 1)), names=ember.text(["x"]))
    with pytest.raises(AnnotationError, match=r'argument `names` of Shared is annotated Text\["d"\]'):
        op(TWO, jnp.ones((2, 1)), names=TWO)
    with pytest.raises(AnnotationError, match=r"result of Shared .*element 1 is float32\[1\]"):
        op(TWO, jnp.ones((2, 3)), names=ember.text(list("xyz")))
    with pytest.raises(AnnotationError, match=r"result of Shared .*element 0 is Text\[4\]"):
        op(TWO, jnp.ones((2, 4)), names=ember.text(list("wxyz")))


def test_a_nested_operator_has_dimension_names_of_its_own(form):
    @ember.operator
    def total(xs: Float[Array, "n"]) -> Float[Array, ""]:
        return xs.sum()

    @ember.operator
    def outer(xs: Float[Array, "n"], ys: Float[Array, "m"]) -> Float[Array, ""]:
        return total(xs) + total(ys)

    assert form(outer)(jnp.ones(2), jnp.ones(3)) == 5


def test_the_mapped_axis_is_no_part_of_the_annotation():
    op = taking(Float[Array, "3"])
    assert jax.vmap(jax.vmap(op))(jnp.ones((2, 4, 3))).shape == (2, 4, 3)
    with pytest.raises(AnnotationError, match=r'"3"\], but is float32\[4, 3\]'):
        jax.vmap(op)(jnp.ones((2, 4, 3)))


def test_half_keys_from_a_wrong_axis_are_found():
    op, keys = taking(ember.Key), jax.random.split(jax.random.PRNGKey(0), 3)
    assert jax.vmap(op)(keys).shape == (3, 2)
    with pytest.raises(AnnotationError, match=r"uint32\[3\], not a PRNG key|wrong axis"):
        jax.vmap(op, in_axes=1)(keys)
    with pytest.raises(AnnotationError, match="wrong axis was mapped"):
        jax.vmap(jax.vmap(op))(keys)


# -- conversion ------------------------------------------------------------------------------------------------------

CONVERTED = {
    "a string": (ember.Text, "a", ONE),
    "a list of strings": (ember.Text["n"], ["a", "b"], TWO),
    "a tuple of strings": (ember.Text["n"], ("a", "b"), TWO),
    "nested lists": (ember.Text["n m"], [["a", "b"]], TWO.reshape(1, 2)),
    "strings in a list": (list[ember.Text], ["a", "a"], [ONE, ONE]),
    "a string in a dict": (dict[str, ember.Text], {"x": "a"}, {"x": ONE}),
    "a string in a tuple": (tuple[ember.Text, int], ("a", 3), (ONE, 3)),
    "a string in a union": (ember.Text | None, "a", ONE),
    "a string for str": (str, "a", "a"),
    "a string in a union with str": (ember.Text | str, "a", "a"),
    "a float": (Float[Array, ""], 0.5, jnp.float32(0.5)),
    "an int for a float": (Float[Array, ""], 2, jnp.float32(2)),
    "an int": (Int[Array, ""], 2, jnp.int32(2)),
    "a bool": (Bool[Array, ""], True, jnp.array(True)),
    "a NumPy array": (Float[Array, "n"], np.ones(2, np.float32), jnp.ones(2)),
    "a NumPy array of doubles": (Float[Array, "n"], np.ones(2), jnp.ones(2)),
    "a NumPy double": (Float[Array, ""], np.float64(2), jnp.float32(2)),
    "a NumPy array of strings": (ember.Text["n"], np.array(["a", "b"]), TWO),
    "a NumPy array of objects": (ember.Text["n"], np.array(["a", "b"], object), TWO),
    "a NumPy scalar": (Float[Array, ""], np.float32(2), jnp.float32(2)),
    "a float in a tuple": (tuple[Float[Array, ""], ...], (1.0, 2), (jnp.float32(1), jnp.float32(2))),
    "a float for jax.Array": (jax.Array, 0.5, jnp.float32(0.5)),
    "a static int": (int, 2, 2),
    "an int for a static float": (float, 2, 2),
}


@pytest.mark.parametrize("kind", CONVERTED)
@pytest.mark.parametrize("how", ["argument", "result"])
def test_there_is_one_way_to_convert_so_it_is_gone(kind, how):
    hint, value, expected = CONVERTED[kind]
    out = taking(hint)(value) if how == "argument" else giving(hint, value)(ONE)
    assert jax.tree.structure(out) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        assert type(ours) is type(theirs) or isinstance(ours, jax.Array)
        if isinstance(theirs, jax.Array):
            assert ours.dtype == theirs.dtype and not jax.typeof(ours).weak_type
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs


@pytest.mark.parametrize(
    "hint, value",
    [(Int[Array, ""], 0.5), (Bool[Array, ""], 1), (Float[Array, ""], "x"), (Float[Array, "n"], 1.0), (str, 1)],
)
def test_nothing_is_lost_in_a_conversion(hint, value):
    with pytest.raises(AnnotationError, match="argument `value` of echo"):
        taking(hint)(value)


def test_defaults_are_converted():
    @ember.operator
    def op(word: ember.Text = "default", scale: Float[Array, ""] = 2, *rest: ember.Text, **named: ember.Text) -> object:
        return word, scale, rest, named

    word, scale, rest, named = op()
    assert (str(word), scale.dtype, rest, named) == ("default", jnp.float32, (), {})
    _, _, rest, named = op("a", 1, "b", "c", d="d")
    assert [str(r) for r in rest] == ["b", "c"] and str(named["d"]) == "d"
    with pytest.raises(AnnotationError, match=r"argument `rest\[1\]` of op"):
        op("a", 1, "b", TWO)
    with pytest.raises(AnnotationError, match="argument `d` of op"):
        op(d=3)


# -- where annotations are strings -----------------------------------------------------------------------------------


def imported(tmp_path, name, source):
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_annotations_may_be_strings(tmp_path, form):
    module = imported(
        tmp_path,
        "later",
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        import ember_jax as ember
        import jax
        from jaxtyping import Array, Float

        class Later(ember.Operator):
            inner: ember.Operator

            def forward(self, words: ember.Text["n"], scale: Float[Array, ""]) -> tuple[ember.Text["n"], Out]:
                return jax.vmap(self.inner)(words), scale

        Out = Float[Array, ""]

        @ember.operator
        def shout(word: ember.Text) -> ember.Text:
            return word + "!"
        """,
    )
    said, _ = form(module.Later(module.shout))(TWO, jnp.float32(1))
    assert said.tolist() == ["a!", "b!"]
    with pytest.raises(AnnotationError, match=r'argument `words` of Later is annotated Text\["n"\], but is Text\[\]'):
        form(module.Later(module.shout))(ONE, jnp.float32(1))


def test_string_annotations_may_name_local_types_of_a_closure(tmp_path):
    module = imported(
        tmp_path,
        "local",
        """
        from __future__ import annotations
        import ember_jax as ember

        def make():
            Words = ember.Text

            @ember.operator
            def op(word: Words) -> Words:
                keep = Words
                return word
            return op
        """,
    )
    assert str(module.make()("a")) == "a"


def test_a_name_that_cannot_be_found_is_named(tmp_path):
    module = imported(
        tmp_path,
        "lost",
        """
        from __future__ import annotations
        import ember_jax as ember

        @ember.operator
        def op(word: Nowhere) -> ember.Text:
            return word
        """,
    )
    with pytest.raises(AnnotationError, match=r"an annotation of op names 'Nowhere', which cannot be found"):
        module.op("a")


def test_an_array_of_strings_is_no_number():
    with pytest.raises(AnnotationError, match=r'Float\[Array, "n"\], but is <U1\[1\]'):
        taking(Float[Array, "n"])(np.array(["a"]))
    with pytest.raises(TypeError, match=r"neither an array nor hashable.*Text"):
        ember.jit(lambda words: words)(np.array(["a"]))


def test_annotations_of_ember_jit_are_not_needed_nor_checked():
    assert ember.jit(lambda word: word)(TWO).tolist() == ["a", "b"]


def test_texts_annotation_teaches_its_form():
    with pytest.raises(TypeError, match=r'Text\["n"\]'):
        ember.Text[3]
    with pytest.raises(TypeError, match=r"ember\.text"):
        ember.Text["n"]()
    assert repr(ember.Text["n m"]) == 'Text["n m"]'
