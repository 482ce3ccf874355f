"""Values that leave their process arrive with their words, or what saves them says how: every kind, every way."""

import concurrent.futures
import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import travellers

import ember_jax as ember
from ember_jax._text import failed, store
from ember_jax.errors import FailedTextError, ForeignError, TextError, TracedControlFlowError, UnknownDigestError

NAMES = list(travellers.MADE)
ON_DISK = {
    "pickle 2": lambda value: pickle.dumps(value, 2),
    "pickle": pickle.dumps,
    "cloudpickle": lambda value: cloudpickle().dumps(value),
    "cloudpickle by value": lambda value: by_value(value),
}


def cloudpickle():
    return pytest.importorskip("cloudpickle", reason="joblib, Ray and Dask pickle with it; it is one of the dev extras")


def by_value(value):
    """As cloudpickle sends what is defined in `__main__` or a notebook: with its classes and functions."""
    cloudpickle().register_pickle_by_value(travellers)
    try:
        return cloudpickle().dumps(value)
    finally:
        cloudpickle().unregister_pickle_by_value(travellers)


def child(code, *args):
    """Runs a program, or `-c` and code, in a process that has the tests' modules and none of this one's words."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parent, *sys.path]))}
    command = [sys.executable, *([code] if Path(code).exists() else ["-c", code]), *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def values():
    return travellers.values()


@pytest.fixture(scope="module")
def told(values):
    """What each value says here."""
    return {name: json.loads(json.dumps(travellers.facts(value))) for name, value in values.items()}


@pytest.fixture(scope="module")
def found(values, tmp_path_factory):
    """What another process finds in each value, sent in each way; one process reads all of them."""
    folder = tmp_path_factory.mktemp("pickles")
    for way, dumps in ON_DISK.items():
        try:
            for name, value in values.items():
                (folder / f"{way}, {name}.pickle").write_bytes(dumps(value))
        except pytest.skip.Exception:
            continue
    return dict(map(json.loads, child(travellers.__file__, folder).splitlines()))


@pytest.mark.parametrize("way", ON_DISK)
@pytest.mark.parametrize("name", NAMES)
def test_another_process_finds_what_was_sent(name, way, told, found):
    if way.startswith("cloud"):
        cloudpickle()
    there = found[f"{way}, {name}"]
    if way == "cloudpickle by value" and name == "an operator":
        assert (
            "the class Weighted was sent by cloudpickle with its definition, as it is of 'travellers'"
            in found[f"{way}, {name}"]
        )
    elif way != "cloudpickle by value" or name != "a structured answer":  # of an Equinox module of the user's own
        assert there == told[name]


@pytest.mark.parametrize("name", NAMES)
def test_copies_say_the_same(name, values, told):
    for other in (copy.copy(values[name]), copy.deepcopy(values[name])):
        assert travellers.facts(other) == told[name] or name == "a SweepError"
        assert type(other) is type(values[name])


@pytest.fixture(scope="module")
def pool():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        yield executor


def test_a_pool_of_processes_gets_them_and_gives_them_back(values, told, pool):
    for name, value, found in zip(values, values.values(), pool.map(travellers.echo, values.values()), strict=True):
        back, there = found
        assert json.loads(json.dumps(there)) == told[name], name
        assert json.loads(json.dumps(travellers.facts(back))) == told[name], name
        assert type(back) is type(value)


def test_words_that_a_pool_has_made_come_back(pool):
    made = pool.submit(travellers.said_here, ember.text(["x", "y"])).result()
    (first, who), (second, same) = (words.split(", said by ") for words in made.tolist())
    assert (first, second) == ("x", "y") and who == same != str(os.getpid())


def test_multiprocessing_hands_them_over(values, told):
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        back, there = processes.map_async(travellers.echo, [values["an operator"]]).get(60)[0]
    assert json.loads(json.dumps(there)) == json.loads(json.dumps(travellers.facts(back))) == told["an operator"]


# -- Text itself -----------------------------------------------------------------------------------------------------


def unknown(monkeypatch):
    """As if this were another process."""
    monkeypatch.setattr(store, "_words", store.words_within(1 << 20))
    monkeypatch.setattr(failed, "_causes", type(failed._causes)())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_words_are_pickled_once_each(protocol, monkeypatch):
    long = "no words are as long as these " * 100
    texts = ember.text([[long, "b"], ["\0", long]])
    raw = pickle.dumps(texts, protocol)
    assert raw.count(long.encode()) == 1
    unknown(monkeypatch)
    back = pickle.loads(raw)
    assert back.tolist() == [[long, "b"], ["\0", long]]
    assert (back == pickle.loads(raw)).all()


def test_a_text_stays_on_the_host_or_on_the_device():
    for digests, kind in ((ember.text("a").digests, jax.Array), (np.asarray(ember.text("a").digests), np.ndarray)):
        for other in (pickle.loads(pickle.dumps(ember.Text(digests))), copy.deepcopy(ember.Text(digests))):
            assert isinstance(other.digests, kind) and str(other) == "a"
    host = jax.device_get({"t": ember.text(["a", "b"])})["t"]
    assert host.tolist() == np.asarray(ember.text(["a", "b"])).tolist() == ["a", "b"]
    assert isinstance(host.digests, np.ndarray) and str(host[1] + "!") == "b!"


def test_what_equinox_puts_in_place_of_an_array_is_pickled_as_it_is():
    for held in (None, True, (), jax.ShapeDtypeStruct((2, 4), jnp.uint32), np.ones(3, np.float32)):
        assert str(pickle.loads(pickle.dumps(ember.Text(held))).digests) == str(held)


def test_causes_of_failed_text_come_along(monkeypatch):
    text = travellers.failed_text()
    raw = pickle.dumps(text)
    unknown(monkeypatch)
    back = pickle.loads(raw)
    assert back.tolist() == ["always", None]
    assert (type(back.causes()[1]).__name__, str(back.causes()[1])) == ("RefusedRequestError", "no never")
    assert back.causes()[1].status == 400


def test_a_cause_that_cannot_be_pickled_leaves_its_words():
    class Local(Exception):
        """Known in this function only."""

    digest = failed.digest_for(Local("here"))
    raw = pickle.dumps(ember.Text(jnp.asarray(np.frombuffer(digest, np.uint32))))
    failed._causes.clear()
    back = pickle.loads(raw)
    assert (type(back.causes()), str(back.causes())) == (ForeignError, "Local: here")


def test_a_cause_that_is_not_known_here_is_not_known_there(monkeypatch):
    text = travellers.failed_text("nowhere")
    unknown(monkeypatch)
    assert isinstance(pickle.loads(pickle.dumps(text[1])).causes(), FailedTextError)


def test_a_text_without_its_words_is_refused_when_it_is_pickled():
    lost = ember.Text(jnp.arange(8, dtype=jnp.uint32).reshape(2, 4))
    for save in (pickle.dumps, lambda t: pickle.dumps({"op": [t]}), lambda t: cloudpickle().dumps(t)):
        with pytest.raises(UnknownDigestError, match=r"a Text cannot be pickled: the words(?s:.*)ember\.save"):
            save(lost)
    assert isinstance(copy.deepcopy(lost), ember.Text)
    with pytest.raises(TextError, match="must end in an axis of 4"):
        pickle.dumps(ember.Text(jnp.zeros((4, 3), jnp.uint32)))


def test_a_traced_text_is_copied_and_not_pickled():
    double = lambda t: copy.deepcopy(t) + copy.copy(t)
    assert str(jax.jit(double)(ember.text("a"))) == "aa"
    with pytest.raises(TracedControlFlowError, match=r"a traced Text cannot be pickled.*Pickle what"):
        jax.jit(pickle.dumps)(ember.text("a"))


def test_a_damaged_pickle_is_told(monkeypatch):
    raw = pickle.dumps(ember.text("the words"))
    unknown(monkeypatch)
    with pytest.raises(UnknownDigestError, match="what was pickled of a Text is damaged: it lacks the words of"):
        pickle.loads(raw.replace(b"the words", b"other one"))


def test_words_that_a_function_closes_over_come_along_with_cloudpickle():
    prompt = ember.text("Words in a closure: ")
    raw = by_value(lambda question: prompt + question)
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1]))('x'))"
    assert child(code, raw.hex()) == "Words in a closure: x\n"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_decorated_function_is_pickled_by_its_name_again_and_again(protocol):
    for _ in range(2):
        back = pickle.loads(pickle.dumps(travellers.shout, protocol))
        again = pickle.loads(pickle.dumps(back, protocol))
        assert again.fn is back.fn is travellers.shout.fn
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"(?i)can't (pickle|get)"):
        pickle.dumps(ember.operator(_local()), protocol)


def _local():
    def local(question: ember.Text) -> ember.Text:
        return question

    return local


def test_the_operand_whose_words_are_missing_is_named():
    lost = ember.Text(jnp.arange(4, dtype=jnp.uint32))
    for llm, named in (
        (ember.LLM("sim/small", system=lost), "system prompt"),
        (ember.LLM("sim/small", system="x", temperature=lost), "temperature"),
    ):
        with pytest.raises(UnknownDigestError, match=f"^the {named} of this LLM: the words of digest"):
            llm("q")
    with pytest.raises(UnknownDigestError, match=r"^the prompt of this LLM: the words of digest"):
        ember.LLM("sim/small")(lost)


# -- libraries that see arrays alone ---------------------------------------------------------------------------------


def _saved_by_equinox(folder, tree):
    eqx.tree_serialise_leaves(folder / "tree", tree)
    return f"import equinox as eqx; load = lambda like: eqx.tree_deserialise_leaves({str(folder / 'tree')!r}, like)"


def _saved_by_orbax(folder, tree):
    pytest.importorskip("orbax.checkpoint", reason="Orbax is no dependency; it brings forty packages")
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "tree", tree)
    return (
        "import jax, orbax.checkpoint as ocp\n"
        f"load = lambda like: ocp.StandardCheckpointer().restore({str(folder / 'tree')!r}, like)"
    )


def _saved_by_numpy(folder, tree):
    leaves, _ = jax.tree.flatten(tree)
    np.savez(folder / "tree.npz", *leaves)
    return (
        "import jax, jax.numpy as jnp, numpy as np\n"
        f"saved = np.load({str(folder / 'tree.npz')!r})\n"
        "load = lambda like: jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(saved[k]) for k in saved])"
    )


def _saved_by_us(folder, tree):
    ember.save(folder / "tree", tree)
    return f"load = lambda like: ember.load({str(folder / 'tree')!r}, like)"


USES = """
import ember_jax as ember, travellers
{load}
llm = load(ember.LLM("sim/large", system="other words", temperature=0.3))
for use in (lambda: llm(travellers.QUESTION), lambda: llm.system.tolist(), lambda: llm.system + "!"):
    try:
        print(use())
    except ember.errors.UnknownDigestError as error:
        print("UnknownDigestError", "ember.save" in str(error), "eqx.tree_serialise_leaves" in str(error))
print(llm)
"""


@pytest.mark.parametrize("save", [_saved_by_equinox, _saved_by_orbax, _saved_by_numpy])
def test_arrays_alone_are_told_at_their_first_use_with_the_way_to_save_them(save, tmp_path):
    load = save(tmp_path, ember.LLM("sim/small", system="Nobody else says this.", temperature=0.9))
    told = child(USES.format(load=load)).splitlines()
    assert told == ["UnknownDigestError True True"] * 3 + [
        "LLM(<unknown words>, system=<unknown words>, temperature=<unknown words>)"
    ]
    # The same words, given to `ember.text` there, are found again.
    again = "ember.LLM('sim/small', system='Nobody else says this.', temperature=0.9)\n"
    told = child(f"import ember_jax as ember\n{again}{USES.format(load=load)}").splitlines()
    assert told[1:3] == ["Nobody else says this.", "Nobody else says this.!"]


def test_ember_save_keeps_the_words_with_them(tmp_path):
    load = _saved_by_us(tmp_path, ember.LLM("sim/small", system="Nobody else says this.", temperature=0.9))
    answer = str(ember.LLM("sim/small", system="Nobody else says this.", temperature=0.9)(travellers.QUESTION))
    assert child(USES.format(load=load)).splitlines() == [
        answer,
        "Nobody else says this.",
        "Nobody else says this.!",
        "LLM('sim/small', system='Nobody else says this.', temperature=0.9)",
    ]
