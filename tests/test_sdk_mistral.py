"""What ours sends to Mistral, against what Mistral's own SDK does, both to a server on this machine: field by field.

`sdk/record_mistral.py` has the SDK's calls, and here stand the same calls in our words. The server answers both alike.
"""

import base64

import jax
import loopback
import pydantic
import pytest
import record_mistral as theirs
from loopback import NOT_SENT, different, plain

import ember_jax as ember
from ember_jax.providers.compatible import Compatible

RECORDED = loopback.read("mistral")
Review = theirs.review(pydantic)


@ember.tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def samples(llm):
    keys = jax.random.split(jax.random.key(0), 3)
    jax.vmap(llm, in_axes=(None, 0))(ember.text(theirs.ASKED), keys)


def attachments(llm):
    pictures, page = map(ember.image, (theirs.PIXEL, theirs.FAR)), ember.file(theirs.PAGE, name="a.pdf")
    llm([("user", ["Look and listen.", *pictures, page, ember.audio(base64.b64decode(theirs.SOUND))])])


def with_results(llm):
    chat = ember.Conversation([("user", theirs.ASKED)])
    reply = llm.tools(chat, [add])
    llm.tools(reply.added_to(chat, reply.results([add])), [add])


OURS = {
    "plain": lambda llm: llm(theirs.ASKED),
    "system": lambda llm: llm.replace(system="Be brief.")(theirs.ASKED),
    "settings": lambda llm: llm.replace(max_completion_tokens=100, seed=7, **theirs.SETTINGS)(theirs.ASKED),
    "samples": samples,
    "attachments": attachments,
    "tools": with_results,
    "schema": lambda llm: llm.structured(theirs.ASKED, Review),
    "stream": lambda llm: "".join(llm.stream(theirs.ASKED)),
    "vectors": lambda llm: jax.vmap(ember.Embedder(f"mistral/{theirs.VECTORS}", dim=3))(ember.text(theirs.TEXTS)),
}


@pytest.fixture(scope="module")
def sent():
    """What ours sends, by the name of the call."""
    with loopback.listening(theirs.answer) as server:
        provider = Compatible("mistral", server.url, api_key=loopback.KEY)
        with ember.session(providers={"mistral": provider}, journal=None):
            llm = ember.LLM(f"mistral/{theirs.MODEL}")
            return server.sent({name: lambda call=call: call(llm) for name, call in OURS.items()})


# Where theirs and ours differ, beside titles of schemas, which say nothing to a model. An error of a gateway may be a
# web page; and answers that are not streamed are what is meant where nothing is said.
ACCEPT, WHOLE = {"headers.accept": ("application/json", "*/*")}, {"body.stream": (False, NOT_SENT)}
DIFFERENCES = {
    "stream": {"headers.accept": ("text/event-stream", "*/*")},
    "vectors": ACCEPT,
    # What ours gives back of an answer is what every service takes: no content, and no place in a list.
    "tools": ACCEPT
    | WHOLE
    | {
        "body.messages[1].content": ("", None),
        "body.messages[1].prefix": (False, NOT_SENT),
        "body.messages[1].tool_calls[0].index": (0, NOT_SENT),
    },
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_sent_is_what_the_vendors_own_sdk_sends(name, sent):
    found = different(plain(RECORDED["sent"][name]), plain(sent[name]))
    assert found == DIFFERENCES.get(name, ACCEPT | WHOLE)


def test_the_fixture_has_the_calls_that_are_made_here():
    assert RECORDED["sdk"] == "mistralai 3.7.0"
    assert RECORDED["sent"].keys() == OURS.keys()
