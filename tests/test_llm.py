"""`LLM`: settings as data, samples as keys, and what is sent."""

import asyncio
import contextlib
import logging
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import errors, testing
from ember_jax._runtime import session as sessions
from ember_jax.providers.base import Message, Provider, Request, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI

REQUESTS = []
FORMS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit}
KEYS = jax.random.split(jax.random.key(0), 3)
SEVERAL = ember.text(["a", "b", "c"])


def answer(request):
    REQUESTS.append(request)
    return f"{request.messages[-1].content}/{request.sample}"


@pytest.fixture(autouse=True)
def _session():
    REQUESTS.clear()
    with ember.session(providers={"sim": Callable(answer)}) as run:
        yield run


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def parameters():
    return [dict(r.parameters) for r in REQUESTS]


@contextlib.contextmanager
def served(server, api_key="key"):
    """A session whose `openai` is a server on this machine; its connections are closed at the end."""
    provider = OpenAI(base_url=server.base_url, api_key=api_key)
    try:
        with ember.session(providers={"openai": provider}) as run:
            yield run
    finally:
        sessions.loop().submit(provider.close()).result(30)


# -- settings --------------------------------------------------------------------------------------------------------

SEVEN_TENTHS = {
    "a float": 0.7,
    "a NumPy float32": np.float32(0.7),
    "a NumPy double": np.float64(0.7),
    "a JAX array": jnp.float32(0.7),
    "the words of a Text": ember.text("0.7"),
}


def test_a_setting_is_the_same_request_however_it_is_given(_session):
    for value in SEVEN_TENTHS.values():
        ember.LLM("sim/small", temperature=value)("q")
        ember.LLM("sim/small").replace(temperature=value)("q")
        eqx.tree_at(
            lambda m: m.settings,
            ember.LLM("sim/small", temperature=1),
            ember.LLM("sim/small", temperature=value).settings,
        )("q")
    ask = lambda t: ember.LLM("sim/small", temperature=t)("q")
    for traced in (jax.jit(ask), ember.jit(ask), lambda t: jax.vmap(ask)(t[None])[0]):
        traced(jnp.float32(0.7))
    assert parameters() == [{"temperature": 0.7}]
    assert _session.report().requests == 1


@pytest.mark.parametrize(
    "value, sent",
    [
        (0.1, 0.1),
        (1.0, 1),
        (1, 1),
        (jnp.float32(1), 1),
        (jnp.int32(5), 5),
        (np.int64(5), 5),
        (True, True),
        (np.True_, True),
        (jnp.array(False), False),
        (1e-9, 1e-9),
        (jnp.float32(1e-9), 1e-9),
        (1e22, 10**22),
        (2**70, 2**70),
        (-0.5, -0.5),
        ("low", "low"),
        ("5", "5"),
        ("true", "true"),
        ("", ""),
        ('say "x" {y}', 'say "x" {y}'),
        (["a", "b"], ["a", "b"]),
        ([], []),
        ({"b": 1, "a": [None, 0.5]}, {"a": [None, 0.5], "b": 1}),
        (("x",), ["x"]),
    ],
)
def test_values_are_sent_as_the_json_that_they_are(value, sent):
    ember.LLM("sim/small", extra=value)("q")
    ((got,),) = [list(p.values()) for p in parameters()]
    assert got == sent and type(got) is type(sent)


def test_equal_strings_are_one_setting_however_they_came_to_be():
    given = [ember.LLM("sim/small", stop="".join(digits)).settings["stop"] for digits in ("00", ["0", "0"])]
    assert given[0].tolist() == given[1].tolist() == "00"


def test_none_leaves_a_setting_unset_and_zero_does_not():
    ember.LLM("sim/small", temperature=None)("q")
    ember.LLM("sim/small", temperature=0)("q")
    ember.LLM("sim/small", temperature=0.0)("q")
    ember.LLM("sim/small", temperature=jnp.float32(0)).replace(max_tokens=None)("q")
    ember.LLM("sim/small", temperature=0).replace(temperature=None)("q")
    assert parameters() == [{}, {"temperature": 0}]


def test_order_of_settings_is_no_difference():
    ember.LLM("sim/small", temperature=1, max_tokens=5)("q")
    ember.LLM("sim/small", max_tokens=5, temperature=1)("q")
    ember.LLM("sim/small", max_tokens=5).replace(temperature=1.0)("q")
    assert len(REQUESTS) == 1
    assert jax.tree.structure(ember.LLM("sim/small", temperature=1, seed=2)) == jax.tree.structure(
        ember.LLM("sim/small", seed=3, temperature=0.5)
    )


SWEEPS = {
    "model": (ember.text(["sim/small", "sim/large"]), ["small", "large"], lambda r: r.model),
    "system": (ember.text(["Be brief.", "Be {kind}."]), ["Be brief.", "Be {kind}."], lambda r: r.messages[0].content),
    "temperature": (jnp.array([0.0, 0.7]), [0, 0.7], lambda r: r.parameters["temperature"]),
    "max_tokens": (jnp.array([5, 100]), [5, 100], lambda r: r.parameters["max_tokens"]),
    "stop": (ember.text(['["a", "b"]', '["\\n"]']), [["a", "b"], ["\n"]], lambda r: r.parameters["stop"]),
    "seed": (jnp.arange(2), [0, 1], lambda r: r.parameters["seed"]),
}


@pytest.mark.parametrize("setting", SWEEPS)
def test_settings_are_swept_under_vmap(setting, form):
    values, expected, read = SWEEPS[setting]

    def ask(value):
        return ember.LLM(**{"model": "sim/small", setting: value})("q")

    # Plain `vmap` makes the calls of a batch at once; an operator's lanes make their own.
    form(jax.vmap(ask))(values)
    assert sorted(map(read, REQUESTS), key=str) == sorted(expected, key=str)
    llms = jax.vmap(lambda value: ember.LLM(**{"model": "sim/small", setting: value}))(values)
    form(jax.vmap(lambda llm: llm("q")))(llms)
    assert len(REQUESTS) == 2  # the same requests again


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "top_p", "seed"])
@pytest.mark.parametrize("value", ["hot", "0.7", [0.1, 0.2], (0.1,), True, {"a": 1}])
def test_a_setting_that_is_a_number_takes_nothing_else(name, value):
    with pytest.raises(TypeError, match=f"the setting {name} of an LLM is .*, which is not a number") as raised:
        ember.LLM("sim/small", **{name: value})
    assert ("jax.vmap" in str(raised.value)) == isinstance(value, list | tuple)
    with pytest.raises(TypeError, match=name):
        ember.LLM("sim/small").replace(**{name: value})
    assert not REQUESTS


def test_a_text_for_a_setting_of_words_is_words(form):
    stops = ember.text(["1", "true", "0.5", "1e3", "stop", '["a", "1"]', '"1"'])
    sent = ["1", "true", "0.5", "1e3", "stop", ["a", "1"], "1"]
    form(jax.vmap(lambda stop: ember.LLM("sim/small", stop=stop)("q")))(stops)
    distinct = sent[:-1]
    assert sorted((r.parameters["stop"] for r in REQUESTS), key=str) == sorted(distinct, key=str)
    REQUESTS.clear()
    for stop, expected in zip(stops, distinct, strict=False):
        llm = ember.LLM("sim/small", stop=stop)
        for same in (llm, llm.replace(max_tokens=None), ember.LLM("sim/small", **llm.settings)):
            jax.vmap(same)(ember.text(["once", "twice"]))
            assert REQUESTS[-1].parameters == {"stop": expected}
    assert len(REQUESTS) == 2 * len(distinct)


def test_a_text_for_another_setting_is_the_json_in_it():
    ember.LLM("sim/small", seed=ember.text("1"), logit_bias=ember.text('{"50256": -100}'))("q")
    assert parameters() == [{"seed": 1, "logit_bias": {"50256": -100}}]


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
def test_an_empty_system_prompt_is_none(form):
    for system in ("", ember.text(""), None):
        form(ember.LLM("sim/small", system=system))(ember.text("q"))
    assert [r.messages for r in REQUESTS] == [(Message("user", "q"),)]
    systems = ember.text(["", "Be brief."])
    form(jax.vmap(lambda system: ember.LLM("sim/small", system=system)("q")))(systems)
    assert [r.messages for r in REQUESTS[1:]] == [(Message("system", "Be brief."), Message("user", "q"))]
    with contextlib.suppress(errors.MalformedResponseError):
        ember.LLM("sim/small", system="").choose("q", ["a", "b"])
    assert [m.role for m in REQUESTS[-1].messages] == ["user"]


UNSET = {
    "temperature": (jnp.array([0.0, 0.7, jnp.nan]), 0.7),
    "max_tokens": (jnp.array([3, 50, 0]), 50),
    "reasoning_effort": (ember.text(["high", "low", ""]), "low"),
    "stop": (ember.text(["a", "1", "b"]), "1"),
}


@pytest.mark.parametrize("setting", UNSET)
def test_a_setting_may_be_unset_in_some_lanes(setting, form, _session):
    values, sent = UNSET[setting]
    maybe = ember.Maybe(values, jnp.array([False, True, False]))
    form(jax.vmap(lambda value: ember.LLM("sim/small", **{setting: value})("q")))(maybe)
    assert sorted(parameters(), key=str) == [{setting: sent}, {}]
    form(jax.vmap(lambda value: ember.LLM("sim/small", top_p=0.5).replace(**{setting: value}, top_p=None)("q")))(maybe)
    assert len(REQUESTS) == 2
    llms = jax.vmap(lambda value: ember.LLM("sim/small", **{setting: value}))(maybe)
    form(jax.vmap(lambda llm: llm("q")))(llms)
    ember.LLM("sim/small")("q")  # the same request as of the lanes that leave it unset
    assert len(REQUESTS) == 2 and _session.report().requests == 2


def test_llms_with_and_without_a_setting_are_stacked():
    make = lambda value, is_there: ember.LLM(
        "sim/small", system=ember.Maybe("Be kind.", is_there), temperature=ember.Maybe(value, is_there)
    )
    llms = jax.tree.map(lambda *leaves: jnp.stack(leaves), make(0.7, True), make(None, False))
    jax.vmap(lambda llm: llm("q"))(llms)
    sent = sorted(((len(r.messages), dict(r.parameters)) for r in REQUESTS), key=str)
    assert sent == [(1, {}), (2, {"temperature": 0.7})]
    assert repr(make(0.7, True)) == "LLM('sim/small', system='Be kind.', temperature=0.7)"
    assert repr(make(0.7, False)) == "LLM('sim/small', system='', temperature=null)"


def test_a_system_prompt_may_be_missing_in_some_lanes(form):
    maybe = ember.Maybe(ember.text(["never sent", "Be brief."]), jnp.array([False, True]))
    form(jax.vmap(lambda system: ember.LLM("sim/small", system=system)("q")))(maybe)
    assert sorted((r.messages[0] for r in REQUESTS), key=str) == [Message("system", "Be brief."), Message("user", "q")]


def test_an_unset_temperature_draws_and_zero_does_not(_session):
    keys = jax.random.split(jax.random.key(0), 4)
    ask = lambda is_there, key: ember.LLM("sim/small", temperature=ember.Maybe(0, is_there))("q", key)
    jax.vmap(ember.jit(ask))(jnp.array([True, True, False, False]), keys)
    assert _session.report().requests == 3  # at temperature 0 the key is ignored


def test_an_answer_may_be_a_setting():
    """What a structured answer may leave open, a call may leave unset."""

    class Advice(NamedTuple):
        temperature: float | None

    advised = ember.Maybe(jnp.float32(0.25), jnp.array(True))
    assert jax.tree.structure(advised) == jax.tree.structure(Advice(advised).temperature)
    ember.LLM("sim/small", temperature=Advice(advised).temperature)("q")
    assert parameters() == [{"temperature": 0.25}]


def test_a_list_of_stops_is_one_setting():
    llm = ember.LLM("sim/small", stop=["\n", "END"])
    jax.vmap(llm)(SEVERAL)
    assert parameters() == [{"stop": ["\n", "END"]}] * 3


class Weighted(ember.Operator):
    llm: ember.LLM
    weight: Float[Array, ""]

    def forward(self, question: ember.Text) -> Float[Array, ""]:
        answer = self.llm(question)
        return (self.weight - ember.features(answer, 1)[0]) ** 2


def test_no_setting_drifts_while_an_operator_is_trained():
    op = Weighted(ember.LLM("sim/small", system="s", temperature=0.7, max_tokens=9), jnp.float32(3))
    optimiser = optax.adamw(0.1)
    trained, state = op, optimiser.init(eqx.filter(op, eqx.is_inexact_array))
    losses = []
    for _ in range(4):
        loss, grads = eqx.filter_value_and_grad(lambda o: jnp.mean(jax.vmap(o)(SEVERAL)))(trained)
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            updates, state = optimiser.update(grads, state, eqx.filter(trained, eqx.is_inexact_array))
        trained = eqx.apply_updates(trained, updates)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True) and trained.weight < 3
    assert eqx.tree_equal(trained.llm, op.llm)
    assert len(REQUESTS) == 3 and parameters() == [{"max_tokens": 9, "temperature": 0.7}] * 3


def test_optax_itself_leaves_the_settings_alone():
    op = Weighted(ember.LLM("sim/small", temperature=0.7), jnp.float32(3))
    params, rest = eqx.partition(op, eqx.is_inexact_array)
    grads = eqx.filter_grad(lambda p: eqx.combine(p, rest)(ember.text("q")))(params)
    updated = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
    eqx.combine(updated, rest)("q")
    assert parameters() == [{"temperature": 0.7}]


@pytest.mark.parametrize(
    "typo, meant",
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("maxtokens", "max_tokens"),
        ("top_P", "top_p"),
        ("stops", "stop"),
    ],
)
def test_a_misspelt_setting_is_named_with_what_was_meant(typo, meant):
    with pytest.raises(TypeError, match=f"{typo}.*Did you mean '{meant}'"):
        ember.LLM("sim/small", **{typo: 1})
    with pytest.raises(TypeError, match=f"Did you mean '{meant}'"):
        ember.LLM("sim/small").replace(**{typo: 1})


def test_an_uncommon_setting_is_sent():
    ember.LLM("sim/small", chat_template="x")("q")
    assert parameters() == [{"chat_template": "x"}]


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, b"x"])
def test_a_setting_that_is_no_json_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"the setting extra of an LLM is .*not JSON"):
        ember.LLM("sim/small", extra=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_a_setting_that_is_no_number_is_refused_with_the_way_to_unset_it(value):
    with pytest.raises(errors.TextError, match=r"setting of an LLM is (nan|inf).*`ember\.Maybe\(value, is_there\)`"):
        ember.LLM("sim/small", temperature=value)


# -- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, message",
    [
        ("sim/smal", "Did you mean 'small'"),
        ("smi/small", "There is no provider 'smi'.*Did you mean 'sim'"),
        ("small", "not a model id.*Did you mean 'sim/small'"),
        ("", "not a model id"),
        ("sim/", "not a model id"),
        (" sim/small", "not a model id"),
        (ember.text(["sim/small", "sim/nothing"]), "no simulated model 'nothing'"),
        (3, "not int"),
        (None, "not NoneType"),
    ],
)
def test_an_unknown_model_is_an_error_where_it_is_written(model, message):
    with ember.session(providers={"sim": testing.Sim()}):
        with pytest.raises(errors.ModelError, match=message):
            ember.LLM(model)
        with pytest.raises(errors.ModelError, match=message):
            ember.LLM("sim/small").replace(model=model)
    assert REQUESTS == []


def test_an_unknown_model_that_is_traced_fails_its_lane_only():
    def ask(model):
        return ember.LLM(model)("q")

    with ember.session(), pytest.raises(errors.SweepError) as raised:
        jax.vmap(ember.jit(ask))(ember.text(["sim/small", "sim/nothing", "nowhere/x", "no id"]))
    assert raised.value.lanes == 4
    assert [f.lane for f in raised.value.failures] == [(1,), (2,), (3,)]
    assert all(isinstance(f.cause, errors.ModelError) for f in raised.value.failures)


# -- prompts ---------------------------------------------------------------------------------------------------------

PROMPTS = ["{x} {{y}} {", "a\0b\0", "🦜 é \u202e", "", " \n\t", "x" * 2**20, "\\n", '"quoted"', "\ufeff", "{question}"]


def test_prompts_of_every_kind_are_sent_as_they_are(form):
    llm = ember.LLM("sim/small")
    for prompt in PROMPTS:
        assert str(form(lambda p: llm(p))(ember.text(prompt))) == f"{prompt}/None"
    jax.vmap(form(lambda p: llm(p)))(ember.text(PROMPTS))
    assert [r.messages[-1].content for r in REQUESTS] == PROMPTS


def test_prompts_of_every_kind_reach_a_server():
    prompts = [p if len(p) < 100 else p[: 2**19] for p in PROMPTS]
    with testing.ChatServer() as server, served(server):
        jax.vmap(ember.LLM("openai/m", system="{s}\0"))(ember.text(prompts))
    assert sorted(r.body["messages"][1]["content"] for r in server.requests) == sorted(prompts)
    assert {r.body["messages"][0]["content"] for r in server.requests} == {"{s}\0"}


def test_a_prompt_of_a_megabyte_reaches_a_server_without_a_warning():
    with testing.ChatServer() as server, served(server):
        ember.LLM("openai/m")("x" * 2**20)
    assert len(server.requests[0].body["messages"][0]["content"]) == 2**20


def test_a_prompt_of_rank_one_says_vmap(form):
    with pytest.raises(errors.TextError, match=r"shape \[3\].*jax\.vmap\(llm\)\(prompts\)"):
        form(lambda p: ember.LLM("sim/small")(p))(SEVERAL)


def test_several_models_in_one_say_vmap():
    llms = ember.LLM("sim/small", temperature=jnp.array([0.1, 0.2]))
    with pytest.raises(errors.TextError, match=r"temperature of this LLM has shape \[2\].*jax\.vmap"):
        llms("q")


@pytest.mark.parametrize("prompt", [3, None, b"x", ["a"], jnp.zeros(2)])
def test_a_prompt_that_is_no_text_is_refused(prompt):
    with pytest.raises(errors.TextError, match=f"got {type(prompt).__name__}"):
        ember.LLM("sim/small")(prompt)


# -- samples ---------------------------------------------------------------------------------------------------------


def test_typed_and_legacy_keys_of_equal_bits_are_one_sample(form):
    llm = ember.LLM("sim/small")
    typed, legacy = jax.random.key(7), jax.random.PRNGKey(7)
    said = [str(form(lambda k: llm("q", k))(k)) for k in (typed, legacy)]
    assert said[0] == said[1] and len(REQUESTS) == 1
    said = jax.vmap(lambda k: llm("q", k))(jax.random.split(legacy, 2)).tolist()
    assert said == jax.vmap(lambda k: llm("q", k))(jax.random.split(typed, 2)).tolist()
    assert len(REQUESTS) == 3 and len({r.sample for r in REQUESTS}) == 3


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
def test_no_key_is_a_sample_of_its_own_the_same_for_ever(form):
    llm = ember.LLM("sim/small")
    for _ in range(2):
        form(lambda p: llm(p))(ember.text("q"))
        form(lambda p, k: llm(p, k))(ember.text("q"), KEYS[0])
    assert [r.sample is None for r in REQUESTS] == [True, False]


@pytest.mark.parametrize("zero", [0, 0.0, jnp.float32(0), ember.text("0"), ember.text("0.0"), jnp.float32(-0.0)])
def test_at_temperature_zero_a_key_means_nothing(zero):
    llm = ember.LLM("sim/small", temperature=zero)
    assert jax.vmap(lambda k: llm("q", k))(KEYS).tolist() == ["q/None"] * 3
    llm("q")
    assert [r.sample for r in REQUESTS] == [None]


@pytest.mark.parametrize(
    "key, message",
    [
        (KEYS, r"an array of keys of shape \[3\].*jax\.vmap"),
        (jnp.uint32(3), r"a single word of a legacy key: the wrong axis was mapped"),
        (jnp.zeros(3, jnp.uint32), r"uint32\[3\], not a PRNG key"),
        (jnp.zeros((3, 2), jnp.uint32), r"uint32\[3, 2\], not a PRNG key.*jax\.vmap"),
        (jnp.float32(3), r"float32\[\], not a PRNG key"),
        (3, r"3 of type int, not a PRNG key; make one with jax\.random\.key"),
        ("seed", r"'seed' of type str, not a PRNG key"),
        (np.zeros(2, np.uint32), r"array\(\[0, 0\], dtype=uint32\) of type ndarray, not a PRNG key"),
    ],
)
def test_what_is_no_key_is_told_so(key, message):
    with pytest.raises(TypeError, match=f"the key of an LLM call is {message}"):
        ember.LLM("sim/small")("q", key)
    assert REQUESTS == []


def test_half_a_key_from_a_wrong_axis_is_found_when_traced():
    llm, legacy = ember.LLM("sim/small"), jax.random.split(jax.random.PRNGKey(0), 3)
    with pytest.raises(TypeError, match=r"uint32\[3\], not a PRNG key"):
        jax.vmap(lambda k: llm("q", k), in_axes=1)(legacy)
    with pytest.raises(TypeError, match="the wrong axis was mapped"):
        jax.vmap(jax.vmap(lambda k: llm("q", k)))(legacy)


# -- what an LLM shows -----------------------------------------------------------------------------------------------


def test_repr_shows_model_system_and_settings():
    llm = ember.LLM("sim/small", system="Be brief.", temperature=0.7, stop=["a"], effort="low")
    assert repr(llm) == """LLM('sim/small', system='Be brief.', effort=low, stop=["a"], temperature=0.7)"""
    assert repr(llm) == str(llm)
    repr(jax.vmap(lambda t: ember.LLM("sim/small", temperature=t))(jnp.arange(3.0)))
    repr(eqx.filter(llm, eqx.is_inexact_array)), repr(jax.tree.structure(llm))
    jax.eval_shape(lambda m: repr(m) and m.model.digests, llm)


def test_replace_changes_what_is_named_and_nothing_else():
    llm = ember.LLM("sim/small", system="s", temperature=0.5, max_tokens=3)
    assert repr(llm.replace()) == repr(llm)
    changed = llm.replace(model="sim/large", temperature=1, max_tokens=None, seed=4)
    assert repr(changed) == "LLM('sim/large', system='s', seed=4, temperature=1)"
    assert repr(llm.replace(system=None)) == "LLM('sim/small', max_tokens=3, temperature=0.5)"
    assert repr(llm) == "LLM('sim/small', system='s', max_tokens=3, temperature=0.5)"
    traced = jax.jit(lambda t: llm.replace(temperature=t)("q"))
    traced(jnp.float32(0.25))
    assert parameters() == [{"max_tokens": 3, "temperature": 0.25}]


@pytest.mark.parametrize("many", [False, True])
def test_complete_gives_what_the_model_gave(many, form):
    sim = testing.Sim({"tiny": testing.SimModel(accuracy=0.9, latency=0, input_price=2, output_price=3, verbosity=4)})
    ember.register("sim", sim)
    try:
        with ember.session(providers={"sim": sim}):
            llm, prompt = ember.LLM("sim/tiny", system="Be right."), "What is 1 + 2 ?"
            if many:
                got = jax.tree.map(lambda a: a[1], form(jax.vmap(llm.complete))(ember.text(["x", prompt])))
            else:
                got = form(lambda p: llm.complete(p))(ember.text(prompt))
    finally:
        ember.register("sim", testing.Sim())
    expected = sim.answer(
        Request(
            "sim",
            "tiny",
            (Message("system", "Be right."), Message("user", prompt)),
        )
    )
    assert str(got.text) == expected.text and len(expected.text.split()) == 8
    assert (got.input_tokens, got.output_tokens) == (8, 8)
    assert (got.input_tokens.dtype, got.cost.dtype, got.logprob.dtype) == (jnp.int32, jnp.float32, jnp.float32)
    np.testing.assert_allclose(got.cost, (8 * 2 + 8 * 3) / 1e6)
    np.testing.assert_allclose(got.logprob, np.log(0.9), rtol=1e-6)


# -- a batch outside operators ----------------------------------------------------------------------------------------


def test_answers_of_a_large_batch_come_in_before_its_last_call_begins():
    asked, asked_at_first_answer = [], []

    async def answer(request):
        asked.append(request)
        await asyncio.sleep(0)
        asked_at_first_answer.append(len(asked))
        return "yes"

    prompts = ember.text([f"row {i}" for i in range(5000)])
    with ember.session(providers={"mine": ember.providers.Callable(answer)}):
        answers = jax.vmap(ember.LLM("mine/m", temperature=0))(prompts)
        assert jnp.all(answers == "yes") and len(asked) == 5000
    assert asked_at_first_answer[0] <= 2 * 1024


# -- over HTTP -------------------------------------------------------------------------------------------------------


def test_numbers_are_numbers_in_the_body():
    with testing.ChatServer() as server, served(server) as run:
        llm = ember.LLM("openai/gpt", system="Be.", temperature=0.7, max_tokens=5, stop=["x"], logprobs=True, seed=3)
        llm("q")
        ask = lambda t, n: ember.LLM("openai/gpt", temperature=t, max_tokens=n)("q")
        jax.vmap(ember.jit(ask))(jnp.array([0.1, 1.0]), jnp.array([7, 8]))
        assert run.report().requests == 3
    first, *swept = [r.body for r in server.requests]
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "q"}]
    assert first == {
        "model": "gpt",
        "messages": messages,
        "temperature": 0.7,
        "max_tokens": 5,
        "stop": ["x"],
        "logprobs": True,
        "seed": 3,
    }
    assert sorted((b["temperature"], b["max_tokens"]) for b in swept) == [(0.1, 7), (1, 8)]
    assert all(
        type(b["max_tokens"]) is int and set(b) == {"model", "messages", "temperature", "max_tokens"} for b in swept
    )


def test_lanes_are_in_flight_together():
    with testing.ChatServer(together=10) as server, served(server):
        jax.vmap(ember.LLM("openai/gpt"))(ember.text([f"q{i}" for i in range(10)]))
    assert server.in_flight_max == 10


def test_keys_of_one_prompt_are_independent_requests_and_are_not_sent():
    with testing.ChatServer(fresh=True) as server, served(server):
        llm = ember.LLM("openai/gpt", temperature=1)
        said = jax.vmap(lambda k: llm("What is 123 * 456 ?", k))(jax.random.split(jax.random.key(1), 8)).tolist()
        assert (
            said == jax.vmap(lambda k: llm("What is 123 * 456 ?", k))(jax.random.split(jax.random.key(1), 8)).tolist()
        )
    (request,) = server.requests
    assert request.body["n"] == 8 and "seed" not in request.body
    assert len(set(said)) > 1


def test_no_key_is_in_reprs_reports_or_logs(caplog):
    secret = "sk-marked-0123456789"
    with (
        caplog.at_level(logging.DEBUG),
        testing.ChatServer(api_key=secret) as server,
        served(server, secret) as run,
    ):
        llm, provider = ember.LLM("openai/gpt"), OpenAI(base_url=server.base_url, api_key=secret)
        jax.vmap(llm)(SEVERAL)
        shown = [repr(x) for x in (llm, provider, run, run.report(), jax.make_jaxpr(llm.complete)(SEVERAL[0]))]
    assert len(server.requests) == 3
    assert secret not in "".join([*shown, caplog.text])


class Closing(Provider):
    """A provider with a connection to free."""

    def __init__(self):
        self.closed = 0

    def check(self, model):
        pass

    async def complete(self, request):
        return Response("answer")

    async def close(self):
        self.closed += 1


def test_a_session_frees_the_connections_of_its_own_providers():
    provider = Closing()
    with ember.session(providers={"sim": provider}):
        ember.LLM("sim/small")("q")
    assert provider.closed == 1


def test_a_provider_of_a_session_is_known_where_a_model_is_written():
    with ember.session(providers={"mine": Callable(answer)}):
        assert str(ember.LLM("mine/model")("q")) == "q/None"


def test_an_llm_itself_can_be_compiled():
    llm = ember.LLM("sim/small")
    assert str(jax.jit(llm)(ember.text("q"))) == str(llm("q"))
