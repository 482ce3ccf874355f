"""What ours sends to OpenAI, against what OpenAI's own SDK does, both to a server on this machine: field by field.

`sdk/record_openai.py` has the SDK's calls, and here stand the same calls in our words. The server answers both alike.
"""

import base64

import jax
import loopback
import pydantic
import pytest
import record_openai as theirs
from loopback import NOT_SENT, different, plain

import ember_jax as ember
from ember_jax.providers import OpenAI, responses
from ember_jax.providers.dialect import Failure
from ember_jax.providers.openai import SERVICE, ChatCompletions

RECORDED = loopback.read("openai")
Review = theirs.review(pydantic)


@ember.tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def with_results(llm):
    """An answer to the results of the tools that a model has wanted."""
    chat = ember.Conversation([("user", theirs.ASKED)])
    reply = llm.tools(chat, [add])
    llm.tools(reply.added_to(chat, reply.results([add])), [add])


def samples(llm):
    keys = jax.random.split(jax.random.key(0), 3)
    jax.vmap(llm, in_axes=(None, 0))(ember.text(theirs.ASKED), keys)


def show(llm, words, *attached):
    llm([("user", [words, *map(ember.image, (theirs.PIXEL, theirs.FAR[0])), *attached])])


def page():
    return ember.file(theirs.PAGE, name="a.pdf")


def settings(**given):
    """Settings by name, also those that a name has in Responses alone."""
    shared = {name: theirs.SETTINGS[name] for name in theirs.SHARED}
    return {**shared, "max_tokens": 100, "reasoning_effort": "low", "verbosity": "low", "logprobs": True, **given}


CHAT = {
    "plain": lambda llm: llm(theirs.ASKED),
    "system": lambda llm: llm.replace(system="Be brief.")(theirs.ASKED),
    "turns": lambda llm: llm([("user", theirs.ASKED), ("assistant", "4"), ("user", "And 3 + 3?")]),
    "settings": lambda llm: llm.replace(**theirs.SETTINGS)(theirs.ASKED),
    "samples": samples,
    "attachments": lambda llm: show(llm, "Look and listen.", page(), ember.audio(base64.b64decode(theirs.SOUND))),
    "wanted tools": lambda llm: llm.replace(tool_choice="required", parallel_tool_calls=False).tools(
        theirs.ASKED, [add]
    ),
    "tools": with_results,
    "schema": lambda llm: llm.structured(theirs.ASKED, Review),
    "stream": lambda llm: "".join(llm.stream(theirs.ASKED)),
    "vectors": lambda llm: jax.vmap(ember.Embedder(f"openai/{theirs.VECTORS}", dim=3))(ember.text(theirs.TEXTS)),
}
RESPONSES = {
    "responses: plain": CHAT["plain"],
    "responses: system": CHAT["system"],
    "responses: settings": lambda llm: llm.replace(**settings(reasoning={"summary": "auto"}, truncation="auto"))(
        theirs.ASKED
    ),
    "responses: attachments": lambda llm: show(llm, "Look.", page(), ember.file(theirs.FAR[1])),
    "responses: tools": with_results,
    "responses: schema": CHAT["schema"],
}


@pytest.fixture(scope="module")
def sent():
    """What ours sends, by the name of the call."""
    found = {}
    with loopback.listening(theirs.answer) as server:
        for api, calls in (("chat", CHAT), ("responses", RESPONSES)):
            provider = OpenAI(f"{server.url}/v1", api_key=loopback.KEY, api=api)
            with ember.session(providers={"openai": provider}, journal=None):
                llm = ember.LLM(f"openai/{theirs.MODEL}")
                found |= server.sent({name: lambda call=call: call(llm) for name, call in calls.items()})
    return found


# -- differences -----------------------------------------------------------------------------------------------------

# Where theirs and ours differ, beside titles and definitions of schemas, which say nothing to a model.
# All bodies are JSON, and an error of a gateway may be a web page.
EACH = {"headers.accept": ("application/json", "*/*")}
# A tool's arguments that do not fit are told to the model, which mends them. A strict schema would have all of them
# required, and the default values of Python functions are then of no use.
TOOL = "body.tools[0].function"
# What a class says beyond types is not asked of the model, as the arrays that come back are not held to it.
_FORM, _TEXT = "body.response_format.json_schema.schema", "body.text.format.schema"
BOUNDS = {
    "properties.score.minimum": (1, NOT_SENT),
    "properties.score.maximum": (5, NOT_SENT),
    "properties.by.properties.name.maxLength": (40, NOT_SENT),
    "properties.others.items.properties.name.maxLength": (40, NOT_SENT),
}
DIFFERENCES = {
    "wanted tools": {f"{TOOL}.strict": (True, NOT_SENT)},
    "tools": {f"{TOOL}.strict": (True, NOT_SENT)},
    # It is what is meant where nothing is said.
    "schema": {"body.stream": (False, NOT_SENT)} | {f"{_FORM}.{at}": both for at, both in BOUNDS.items()},
    "responses: schema": {f"{_TEXT}.{at}": both for at, both in BOUNDS.items()},
    "responses: tools": {
        "body.tools[0].strict": (True, False),
        # A call is known by its `call_id`; the service keeps nothing that its own id would name.
        "body.input[2].id": ("fc_1", NOT_SENT),
        "body.input[2].status": ("completed", NOT_SENT),
    },
}


@pytest.mark.parametrize("name", [*CHAT, *RESPONSES])
def test_what_is_sent_is_what_the_vendors_own_sdk_sends(name, sent):
    assert different(plain(RECORDED["sent"][name]), plain(sent[name])) == EACH | DIFFERENCES.get(name, {})


def test_the_fixture_has_the_calls_that_are_made_here():
    assert RECORDED["sdk"] == "openai 3.57.0"
    assert RECORDED["sent"].keys() == {*CHAT, *RESPONSES}


def test_no_difference_hides_in_what_is_compared():
    assert different({"a": [1, {"b": None}]}, {"a": [1.0, {}]}) == {
        "a[0]": (1, 1.0),
        "a[1].b": (None, NOT_SENT),
    }
    assert different([1], [1, 2]) == {"": ([1], [1, 2])}


# -- settings --------------------------------------------------------------------------------------------------------


def test_each_name_that_responses_lacks_is_known():
    """By the SDK's types: what chat completions takes and Responses does not has another name here, or is refused."""
    lacking = {*RECORDED["fields"]["chat/completions"]} - {*RECORDED["fields"]["responses"]}
    known = responses._MAPPED | responses._TAKEN | responses._UNKNOWN
    assert lacking - known == set()
    assert not responses._UNKNOWN & {*RECORDED["fields"]["responses"]}
    built = responses.Responses(SERVICE)
    for name in lacking & responses._UNKNOWN:
        asked = ember.providers.Request("openai", "m", (ember.providers.Message("user", "?"),), {name: 1})
        assert isinstance(built.build(asked), Failure)
        assert not isinstance(ChatCompletions(SERVICE).build(asked), Failure)


def test_the_settings_that_are_known_by_name_are_the_services():
    """But for those of open servers, which OpenAI does not know."""
    known = {*ember._model.llm._KNOWN_SETTINGS} - {*RECORDED["fields"]["chat/completions"]}
    assert known == {"min_p", "repetition_penalty", "speed", "top_k"}
