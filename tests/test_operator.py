"""Operators as pytrees and as functions: what is traced when, and what Python may do inside."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

import ember_jax as ember
from ember_jax import errors
from ember_jax._engine import island
from ember_jax._text.text import Text

CALLS: list[str] = []
TRACES: list[str] = []


def _shout(word):
    CALLS.append(word)
    return word.upper()


shout = ember.host(_shout, out=ember.Text)
JITS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit, "eqx.filter_jit": eqx.filter_jit}
# For arguments that hold more than arrays.
FILTERED = {name: jit for name, jit in JITS.items() if name != "jax.jit"}
COMPILED = {name: jit for name, jit in JITS.items() if name != "eager"}


@pytest.fixture(autouse=True)
def _fresh():
    CALLS.clear()
    TRACES.clear()
    with ember.session() as run:
        yield run


@pytest.fixture(params=JITS)
def jit(request):
    return JITS[request.param]


class Scaled(ember.Operator):
    """Weights, words and a model in one pytree, with a static field."""

    prefix: ember.Text
    llm: ember.LLM
    weight: Float[Array, "2"]
    how: str = eqx.field(static=True, default="case")

    def forward(self, word: ember.Text) -> tuple[ember.Text, Float[Array, ""]]:
        TRACES.append("Scaled")
        said = shout(self.prefix + word)
        return ember.normalize(said, self.how), jnp.sum(self.weight) * ember.features(said, 1)[0]


def scaled(prefix="<", weight=(1.0, 2.0)):
    return Scaled(ember.text(prefix), ember.LLM("sim/small", temperature=0.5), jnp.asarray(weight))


# -- operators are pytrees -------------------------------------------------------------------------------------------


def test_leaves_are_arrays_and_map_as_in_any_pytree():
    op = scaled()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(op))
    doubled = jax.tree.map(lambda a: a * 2 if a.dtype == jnp.float32 else a, op)
    np.testing.assert_array_equal(doubled.weight, [2, 4])
    assert str(doubled.prefix) == "<"
    assert repr(doubled.llm) == repr(op.llm)
    said, number = doubled("a")
    np.testing.assert_array_equal(number, 2 * op("a")[1])
    assert str(said) == str(op("a")[0]) == "<a"


def test_tree_at_replaces_words_settings_and_weights():
    op = eqx.tree_at(
        lambda o: (o.prefix, o.llm, o.weight),
        scaled(),
        (ember.text(">"), ember.LLM("sim/large", temperature=0.5), jnp.zeros(2)),
    )
    said, number = op("a")
    assert str(said) == ">a" and number == 0
    assert repr(op.llm) == repr(ember.LLM("sim/large", temperature=0.5))


def test_partition_and_combine_are_inverse_and_leave_the_words_out_of_the_trainable_half():
    op = scaled()
    trainable, rest = eqx.partition(op, eqx.is_inexact_array)
    assert [leaf.shape for leaf in jax.tree.leaves(trainable)] == [(2,)]
    for leaf, back in zip(jax.tree.leaves(op), jax.tree.leaves(eqx.combine(trainable, rest)), strict=True):
        np.testing.assert_array_equal(leaf, back)
    assert str(eqx.combine(trainable, rest)("a")[0]) == "<a"
    repr(trainable), repr(rest)


@pytest.mark.parametrize("jit", FILTERED.values(), ids=FILTERED)
def test_gradients_reach_the_weights_through_the_words(jit):
    def loss(op, word):
        return op(word)[1] ** 2

    op, word = scaled(), ember.text("a")
    feature = ember.features("<A", 1)[0]
    grads = jit(eqx.filter_grad(loss))(op, word)
    np.testing.assert_allclose(grads.weight, [6 * feature**2] * 2)
    assert [leaf.shape for leaf in jax.tree.leaves(eqx.filter(grads, eqx.is_inexact_array))] == [(2,)]


@pytest.mark.parametrize("jit", FILTERED.values(), ids=FILTERED)
def test_stacked_instances_run_as_one_operator_each_with_its_own_words(jit):
    ops = [scaled("<", (1.0, 0.0)), scaled(">", (0.0, 3.0))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ops)
    said, numbers = jit(eqx.filter_vmap(lambda op, word: op(word)))(stacked, ember.text(["a", "b"]))
    assert said.tolist() == ["<a", ">b"]
    one = [op(word)[1] for op, word in zip(ops, "ab", strict=True)]
    np.testing.assert_array_equal(numbers, jnp.stack(one))


def test_an_ensemble_made_by_filter_vmap_answers_one_word_with_all_members():
    made = eqx.filter_vmap(lambda w: Scaled(ember.text("<"), ember.LLM("sim/small"), w))(jnp.eye(2) * 2)
    said, numbers = eqx.filter_vmap(lambda op, word: op(word), in_axes=(eqx.if_array(0), None))(made, ember.text("a"))
    assert said.tolist() == ["<a", "<a"]
    np.testing.assert_array_equal(numbers, 2 * jnp.full(2, ember.features("<A", 1)[0]))


def test_serialised_leaves_read_back(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "op.eqx", scaled("«", (5.0, 6.0)))
    back = eqx.tree_deserialise_leaves(tmp_path / "op.eqx", scaled())
    assert str(back.prefix) == "«"
    np.testing.assert_array_equal(back.weight, [5, 6])
    assert str(back("a")[0]) == "«a"


def test_structure_is_equal_for_instances_of_equal_statics_only():
    assert jax.tree.structure(scaled()) == jax.tree.structure(scaled(">", (3.0, 4.0)))
    assert jax.tree.structure(scaled()) != jax.tree.structure(
        Scaled(ember.text("<"), ember.LLM("sim/small", temperature=0.5), jnp.ones(2), how="space")
    )


def test_operators_hash_and_compare_by_identity():
    one, other = scaled(), scaled()
    assert one == one and one != other and [one, other].index(other) == 1
    assert hash(one) == hash(one) and len({one, other, one}) == 2


def test_operators_in_equinox_modules_lists_and_dicts_are_found_as_leaves(jit):
    class Wrapper(eqx.Module):
        layers: list
        table: dict

        def __call__(self, word):
            for layer in self.layers:
                word = layer(word)
            return self.table["scaled"](word)

    @ember.operator
    def twice(word: ember.Text) -> ember.Text:
        return shout(shout(word) + "x")

    wrapper = Wrapper([twice, eqx.nn.Lambda(lambda w: w + "!"), twice], {"scaled": scaled()})
    said, _ = jit(wrapper)(ember.text("a")) if jit is not jax.jit else jax.jit(lambda w: wrapper(w))(ember.text("a"))
    assert str(said) == "<ax!x"


@pytest.mark.parametrize("jit", FILTERED.values(), ids=FILTERED)
def test_equinox_layers_run_inside_and_learn(jit):
    class Gated(ember.Operator):
        gate: eqx.nn.MLP

        def forward(self, word: ember.Text) -> Float[Array, ""]:
            return self.gate(ember.features(shout(word), 4))[0]

    op = Gated(eqx.nn.MLP(4, 1, 3, 1, key=jax.random.key(0)))
    value, grads = jit(eqx.filter_value_and_grad(lambda op, word: op(word)))(op, ember.text("some words"))
    plain = lambda gate: gate(ember.features("SOME WORDS", 4))[0]
    expected, expected_grads = eqx.filter_value_and_grad(plain)(op.gate)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(grads.gate), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_eqx_sequential_takes_operators():
    @ember.operator
    def exclaim(word: ember.Text, *, key: ember.Key | None = None) -> ember.Text:
        return shout(word) + "!"

    assert str(eqx.nn.Sequential([eqx.nn.Lambda(exclaim), eqx.nn.Lambda(exclaim)])(ember.text("a"))) == "A!!"


# -- eager: line by line ---------------------------------------------------------------------------------------------


@ember.operator
def pythonic(word: ember.Text) -> ember.Text:
    while len(str(word)) < 4:
        word = shout(word + "x")
    if "X" in f"{word}":
        print("said", word)  # noqa: T201
    for _ in range(int(ember.parse_number("2"))):
        word = word + "."
    return word


def test_outside_transformations_python_controls_the_flow_and_prints(capsys):
    assert str(pythonic("a")) == "AXXX.."
    assert CALLS == ["ax", "AXx", "AXXx"]
    assert capsys.readouterr().out == "said AXXX\n"


@pytest.mark.parametrize("jit", COMPILED)
def test_disable_jit_runs_line_by_line(jit, capsys):
    with jax.disable_jit():
        assert str(COMPILED[jit](pythonic)(ember.text("a"))) == "AXXX.."
    assert capsys.readouterr().out == "said AXXX\n"
    assert CALLS == ["ax", "AXx", "AXXx"]


def test_disable_jit_still_maps_lanes():
    class Sharp(ember.Operator):
        def forward(self, word: ember.Text) -> ember.Text:
            return jax.lax.cond(word == "a", lambda: shout(word), lambda: word)

    with jax.disable_jit():
        assert jax.vmap(Sharp())(ember.text(["a", "b"])).tolist() == ["A", "b"]
    assert CALLS == ["a"]


def test_eager_asks_in_the_order_of_the_lines():
    @ember.operator
    def op(word: ember.Text) -> ember.Text:
        first = shout(word + "1")
        second = shout(word + "2")
        del first
        return second

    op("a")
    assert CALLS == ["a1", "a2"]


# -- nothing is called while JAX traces ------------------------------------------------------------------------------


@ember.operator
def of_literals() -> ember.Text:
    return shout("a literal")


@ember.operator
def of_words(word: ember.Text) -> ember.Text:
    return shout(word)


LITERALS = {
    "no arguments": lambda: of_literals(),
    "a literal argument": lambda: of_words("a literal"),
    "a closed-over Text": functools.partial(lambda t: of_words(t), ember.text("a literal")),
    "a host function": lambda: shout("a literal"),
    "in a branch": lambda: jax.lax.cond(True, lambda: of_literals(), lambda: ember.text("")),
}


@pytest.mark.parametrize("jit", [jax.jit, ember.jit, eqx.filter_jit])
@pytest.mark.parametrize("program", LITERALS)
def test_a_literal_is_not_called_while_tracing(program, jit):
    f = LITERALS[program]
    jax.eval_shape(f)
    jax.make_jaxpr(f)()
    lowered = jax.jit(f).lower()
    lowered.compile()
    assert CALLS == []
    assert str(jit(f)()) == "A LITERAL"
    assert CALLS == ["a literal"]


def test_a_literal_in_a_grad_is_called_once_per_evaluation():
    def loss(x):
        return x * ember.features(of_literals(), 1)[0]

    assert jax.grad(loss)(1.0) == ember.features("A LITERAL", 1)[0]
    assert CALLS == ["a literal"]


@pytest.mark.parametrize("jit", [jax.jit, ember.jit])
def test_an_unused_call_is_not_made_by_a_plan(jit):
    @ember.operator
    def op(word: ember.Text) -> ember.Text:
        shout(word + " unused")
        return shout(word)

    assert str(jit(op)(ember.text("a"))) == "A"
    assert CALLS == ["a"]


# -- Python control flow on traced values ----------------------------------------------------------------------------


@ember.operator
def uses_if(word: ember.Text) -> ember.Text:
    if shout(word) == "A":  # line of the fault
        return word
    return shout(word)


@ember.operator
def uses_while(word: ember.Text) -> ember.Text:
    while word != "stop":  # line of the fault
        word = shout(word)
    return word


@ember.operator
def uses_range(n: Int[Array, ""]) -> ember.Text:
    word = ember.text("")
    for _ in range(n):  # line of the fault
        word = shout(word)
    return word


@ember.operator
def uses_f_string(word: ember.Text) -> ember.Text:
    return shout(f"<{word}>")  # line of the fault


@ember.operator
def uses_str(word: ember.Text) -> ember.Text:
    return shout(str(word))  # line of the fault


@ember.operator
def uses_bool(word: ember.Text) -> ember.Text:
    return word if bool(word) else shout(word)  # line of the fault


@ember.operator
def uses_float(word: ember.Text) -> ember.Text:
    return shout("x" * int(ember.parse_number(word)))  # line of the fault


@ember.operator
def uses_numpy(word: ember.Text) -> Float[Array, "2"]:
    return jnp.asarray(np.asarray(ember.features(shout(word), 2)))  # line of the fault


@ember.operator
def uses_length(n: Int[Array, ""]) -> Int[Array, ""]:
    return jax.lax.scan(lambda c, _: (c + 1, None), n, None, n)[0]  # line of the fault


WORD, NUMBER = ember.text("a"), jnp.int32(2)
CONTROL = [
    (uses_if, WORD, "jax.lax.cond"),
    (uses_while, WORD, "jax.lax.while_loop"),
    (uses_range, NUMBER, "jax.lax.fori_loop"),
    (uses_f_string, WORD, "ember.format"),
    (uses_str, WORD, "ember.format"),
    (uses_bool, WORD, "jax.lax.cond"),
    (uses_float, WORD, "jax.lax"),
    (uses_numpy, WORD, "jax.lax"),
    (uses_length, NUMBER, "use `while_loop` or `fori_loop`"),
]
TRACED = {
    "jax.jit": jax.jit,
    "ember.jit": ember.jit,
    "eqx.filter_jit": eqx.filter_jit,
    "vmap": lambda op: lambda x: jax.vmap(op)(jax.tree.map(lambda a: jnp.stack([a]), x)),
}


@pytest.mark.parametrize("traced", TRACED)
@pytest.mark.parametrize("op, argument, replacement", CONTROL, ids=lambda v: getattr(v, "fn", None) and v.fn.__name__)
def test_traced_control_flow_names_the_operator_the_line_and_the_replacement(op, argument, replacement, traced):
    with pytest.raises(errors.TracedControlFlowError) as raised:
        TRACED[traced](op)(argument)
    message = str(raised.value)
    assert op.fn.__name__ in message.splitlines()[0]
    assert "test_operator.py:" in message.splitlines()[1] and "line of the fault" in message.splitlines()[1]
    assert replacement in message
    assert CALLS == []


def test_traced_control_flow_in_a_nested_operator_is_told_once_by_the_inner_one():
    class Outer(ember.Operator):
        def forward(self, word: ember.Text) -> ember.Text:
            return uses_if(shout(word))

    with pytest.raises(errors.TracedControlFlowError) as raised:
        jax.jit(Outer())(ember.text("a"))
    assert "uses_if" in str(raised.value) and "Outer" not in str(raised.value)
    assert str(raised.value).count("While JAX traces") == 1


def test_traced_control_flow_in_a_branch_is_told_too():
    @ember.operator
    def op(word: ember.Text) -> ember.Text:
        return jax.lax.cond(word == "a", lambda: shout(f"{word}"), lambda: word)  # in a branch

    with pytest.raises(errors.TracedControlFlowError, match="in a branch"):
        jax.vmap(op)(ember.text(["a"]))


STRINGS = {
    "the carry of a scan": lambda w: jax.lax.scan(lambda c, x: (shout(c), x), "", jnp.arange(2))[0],  # the fault
    "what a scan's body returns": lambda w: jax.lax.scan(lambda c, x: ("a", x), w, jnp.arange(2))[0],  # the fault
    "the carry of a while_loop": lambda w: jax.lax.while_loop(lambda c: c != "", shout, "start"),  # the fault
    "the carry of a fori_loop": lambda w: jax.lax.fori_loop(0, 2, lambda i, c: shout(c), "start"),  # the fault
    "a branch": lambda w: jax.lax.cond(w == "a", lambda: "yes", lambda: w),  # the fault
    "one of several branches": lambda w: jax.lax.switch(0, [lambda: w, lambda: "no"]),  # the fault
    "an operand of a branch": lambda w: jax.lax.cond(w == "a", shout, shout, "b"),  # the fault
    "a list that is mapped": lambda w: jax.vmap(shout)(["a", "b"])[0],  # the fault
    "a list of lax.map": lambda w: jax.lax.map(shout, ["a", "b"])[0],  # the fault
    "an array": lambda w: jnp.where(w == "a", "yes", "no"),  # the fault
}


@pytest.mark.parametrize("where", STRINGS)
def test_a_string_where_jax_takes_arrays_is_told_with_the_way_to_make_one(where, jit):
    @ember.operator
    def asks(word: ember.Text) -> ember.Text:
        return STRINGS[where](word)

    @ember.operator
    def outer(word: ember.Text) -> ember.Text:
        return asks(word)

    for op in (asks, outer, STRINGS[where]) if jit is ember.jit else (asks, outer):
        with pytest.raises(TypeError, match=r'Make a Text of it, as in `ember\.text\(""\)`') as raised:
            jit(op)(ember.text("a"))
        message = str(raised.value)
        name = "<lambda>" if op is STRINGS[where] else "asks"
        assert message.startswith(f"{name} has a plain string") and message.count("Make a Text") == 1
        assert "test_operator.py:" in message and "# the fault" in message
    assert not CALLS


def test_with_a_text_there_the_loop_runs(jit):
    @ember.operator
    def asks(word: ember.Text) -> ember.Text:
        return jax.lax.scan(lambda c, x: (shout(c + word), None), ember.text(""), jnp.arange(3))[0]

    assert str(jit(asks)(ember.text("a"))) == "AAA"


def test_a_type_error_of_the_users_own_is_theirs(jit):
    @ember.operator
    def asks(word: ember.Text) -> ember.Text:
        raise TypeError("I want no value of type <class 'str'>")

    with pytest.raises(TypeError, match=r"^I want no value"):
        jit(asks)(ember.text("a"))


class Strange(Exception):
    pass


@pytest.mark.parametrize("error", [Strange("why"), ValueError("INTERNAL: mine"), KeyError("k"), RuntimeError("r")])
def test_an_exception_raised_in_forward_keeps_its_type(error, jit):
    @ember.operator
    def op(word: ember.Text) -> ember.Text:
        shout(word)
        raise error

    for form, words in ((jit(op), "a"), (jax.vmap(jit(op)), ["a"])):
        with pytest.raises(type(error)) as raised:
            form(ember.text(words))
        assert raised.value is error


# -- signatures ------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    words: ember.Text
    number: jax.Array


class Box(eqx.Module):
    words: ember.Text
    label: str = eqx.field(static=True)


@ember.operator
def rich(
    word: ember.Text,
    /,
    number: Float[Array, ""],
    *others: ember.Text,
    times: int = 1,
    mark: str = "!",
    key: ember.Key | None = None,
    **named: ember.Text,
) -> dict[str, object]:
    said = shout(ember.join("", [word, *others, *named.values()]) + mark * times)
    return {
        "pair": Pair(said, number * 2),
        "box": Box(said, mark),
        "none": None,
        "static": mark,
        "list": [number, (said,)],
        "keyed": key is not None,
    }


def test_arguments_of_every_kind_and_outputs_of_every_kind(jit):
    def call(word, number, key):
        return rich(word, number, ember.text("b"), ember.text("c"), times=2, mark="?", x=ember.text("d"), key=key)

    key = jax.random.key(0)
    out = (eqx.filter_jit if jit is jax.jit else jit)(call)(ember.text("a"), jnp.float32(1.5), key)
    assert isinstance(out["pair"], Pair) and isinstance(out["box"], Box)
    assert str(out["pair"].words) == str(out["box"].words) == str(out["list"][1][0]) == "ABCD??"
    assert out["pair"].number == 3 and out["list"][0] == 1.5
    assert out["none"] is None and out["static"] == "?" == out["box"].label and out["keyed"]
    assert CALLS == ["abcd??"]


def test_defaults_are_filled_in(jit):
    call = lambda word, number: rich(word, number)["pair"].words
    assert str(jit(call)(ember.text("a"), jnp.float32(0))) == "A!"


def test_an_operator_may_return_nothing(jit):
    @ember.operator
    def silent(word: ember.Text) -> None:
        shout(word)

    assert jit(silent)(ember.text("a")) is None
    assert jax.vmap(silent)(ember.text(["a"])) is None


@pytest.mark.parametrize("pure, calls", [(True, []), (False, ["a"])])
def test_a_call_whose_result_is_not_returned_is_made_for_its_effect_only(pure, calls):
    tell = ember.host(_shout, out=ember.Text, pure=pure)

    @ember.operator
    def silent(word: ember.Text) -> None:
        tell(word)

    ember.jit(silent)(ember.text("a"))
    jax.effects_barrier()
    assert calls == CALLS


def test_static_arguments_are_distinguished_by_type_and_value():
    @ember.jit
    def show(word, static):
        return shout(word + f" {static!r}")

    said = [str(show(ember.text("a"), s)) for s in (1, True, 1.0, "1", None, (1, "x"), "1")]
    assert said == ["A 1", "A TRUE", "A 1.0", "A '1'", "A NONE", "A (1, 'X')", "A '1'"]


def test_an_argument_that_is_neither_array_nor_hashable_is_refused_by_name():
    with pytest.raises(TypeError, match="neither an array nor hashable"):
        ember.jit(lambda x: x)(bytearray(b"x"))


def test_wrong_arguments_show_the_signature():
    with pytest.raises(errors.AnnotationError, match=r"of_words.*word.*missing.*'word'|missing.*'word'"):
        of_words()
    with pytest.raises(errors.AnnotationError, match="unexpected"):
        of_words("a", nothing=1)


# -- methods and inheritance -----------------------------------------------------------------------------------------


class Abstract(ember.Operator):
    suffix: ember.Text

    def finish(self, word):
        return shout(word + self.suffix)


class Concrete(Abstract):
    def forward(self, word: ember.Text) -> ember.Text:
        TRACES.append("Concrete")
        return self.finish(self.helper(word))

    @staticmethod
    def helper(word):
        return word + "-"


class Other(Abstract):
    extra: ember.Text

    def forward(self, word: ember.Text) -> ember.Text:
        return self.finish(word) + self.extra


class Inherits(Concrete):
    """Has `forward` from its parent and a method of its own."""

    @staticmethod
    def helper(word):
        return word + "+"


def test_methods_and_fields_are_inherited_and_each_class_is_its_own_program(jit):
    ops = [Concrete(ember.text("s")), Other(ember.text("s"), ember.text("e")), Inherits(ember.text("s"))]
    assert [str(jit(op)(ember.text("a"))) for op in ops] == ["A-S", "ASe", "A+S"]


def test_an_abstract_operator_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Abstract(ember.text("s"))
    with pytest.raises(TypeError, match="abstract"):
        ember.Operator()


def test_an_operator_may_have_its_own_init():
    class Made(ember.Operator):
        llms: list
        count: int = eqx.field(static=True)

        def __init__(self, *models):
            self.llms = [ember.LLM(m, temperature=0) for m in models]
            self.count = len(models)

        def forward(self, word: ember.Text) -> ember.Text["n"]:
            return ember.stack([llm(word) for llm in self.llms])

    op = Made("sim/small", "sim/large")
    assert jax.vmap(op)(ember.text(["1+1", "2+2", "3+3"])).shape == (3, 2)


# -- jax.jit(operator), and ember.jit of anything callable ------------------------------------------------------------


def test_jax_jit_of_an_operator_takes_its_arrays_as_constants():
    class Weighted(ember.Operator):
        weight: Float[Array, "2"]

        def forward(self, word: ember.Text) -> tuple[ember.Text, Float[Array, ""]]:
            TRACES.append("Weighted")
            return shout(word), jnp.sum(self.weight)

    compiled = jax.jit(Weighted(jnp.array([1.0, 2.0])))
    for word in "ab":
        said, number = compiled(ember.text(word))
        assert str(said) == word.upper() and number == 3
    assert TRACES == ["Weighted"]
    assert jax.jit(Weighted(jnp.array([3.0, 4.0])))(ember.text("a"))[1] == 7


@ember.jit
def by_name(word, *, loud=False):
    return shout(word) if loud else word


class Method(eqx.Module):
    prefix: ember.Text

    def say(self, word):
        return shout(self.prefix + word)


CALLABLES = {
    "a lambda": lambda: lambda w: shout(w),
    "a partial": lambda: functools.partial(lambda a, w: shout(a + w), ember.text("")),
    "a partial by keyword": lambda: functools.partial(lambda w, a: shout(a + w), a=ember.text("")),
    "a bound method": lambda: Method(ember.text("")).say,
    "an operator": lambda: of_words,
    "a host function": lambda: shout,
    "a jitted function": lambda: jax.jit(lambda w: shout(w)),
    "an ember.jit": lambda: ember.jit(lambda w: shout(w)),
    "a keyword": lambda: lambda w: by_name(w, loud=True),
    "a callable object": lambda: type("Says", (), {"__call__": lambda self, w: shout(w)})(),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_ember_jit_takes_any_callable(kind):
    f = ember.jit(CALLABLES[kind]())
    assert str(f(ember.text("a"))) == "A"
    assert jax.vmap(f)(ember.text(["b", "c"])).tolist() == ["B", "C"]
    assert CALLS[0] == "a" and sorted(CALLS[1:]) == ["b", "c"]


def test_ember_jit_of_a_method_sees_a_changed_instance():
    say = ember.jit(lambda m, w: m.say(w))
    assert [str(say(Method(ember.text(p)), ember.text("a"))) for p in "xy"] == ["XA", "YA"]


def test_ember_jit_works_as_a_decorator_of_methods():
    class Says(eqx.Module):
        prefix: ember.Text

        @ember.jit
        def say(self, word):
            TRACES.append("say")
            return shout(self.prefix + word)

    assert [str(Says(ember.text(p)).say(ember.text("a"))) for p in "xyz"] == ["XA", "YA", "ZA"]
    assert TRACES == ["say"]


def test_an_array_that_is_closed_over_is_read_when_traced_and_differentiated_through():
    weight = jnp.arange(3.0)

    def loss(w):
        inner = ember.jit(lambda word: jnp.sum(w * weight) * ember.features(shout(word), 1)[0])
        return inner(ember.text("a"))

    feature = ember.features("A", 1)[0]
    np.testing.assert_allclose(jax.grad(loss)(jnp.ones(3)), weight * feature)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.ones(3)), weight * feature)
    assert CALLS == ["a"]  # the second time it is remembered


@pytest.mark.parametrize("outer", [jax.jit, ember.jit])
def test_outer_tracers_that_are_closed_over_become_inputs(outer):
    def program(words, scale):
        def one(word):
            inner = ember.jit(lambda w: (shout(w + words[0]), scale * 2))
            return inner(word)

        return jax.vmap(one)(words)

    said, numbers = outer(program)(ember.text(["a", "b"]), jnp.float32(3))
    assert said.tolist() == ["AA", "BA"]
    np.testing.assert_array_equal(numbers, [6, 6])
    said, _ = outer(program)(ember.text(["c", "d"]), jnp.float32(4))
    assert said.tolist() == ["CC", "DC"]


def test_a_function_without_calls_is_plain_jax():
    before = island.made
    f = ember.jit(lambda x: {"y": jnp.sin(x) ** 2, "n": None, "s": "static"})
    out = f(jnp.arange(3.0))
    np.testing.assert_allclose(out["y"], np.sin(np.arange(3.0)) ** 2, rtol=1e-6)
    assert out["n"] is None and out["s"] == "static"
    np.testing.assert_allclose(
        jax.vmap(jax.grad(lambda x: f(x)["y"]))(jnp.arange(3.0)), np.sin(2 * np.arange(3.0)), atol=1e-6
    )
    assert island.made == before


def test_python_numbers_are_static_arguments_of_ember_jit_and_arrays_are_traced():
    @ember.jit
    def f(x, n):
        TRACES.append("f")
        return ember.format("{x}", x=x), x * jnp.ones(n)

    for x in (np.float32(2), jnp.float32(3), np.array(4, np.float32)):
        said, ones = f(x, 2)
        assert str(said) == f"{float(x)}" and ones.shape == (2,)
    assert TRACES == ["f"]


def test_text_is_exported_as_one_type():
    assert ember.Text is Text
