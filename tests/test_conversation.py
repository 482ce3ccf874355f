"""`Conversation`: what was said, as a handle that grows in loops; attachments; what is sent of it."""

import base64
import pickle
import struct
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax.errors import TextError
from ember_jax.providers import Callable, Response
from ember_jax.providers.openai import OpenAI

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
ROLES = st.sampled_from(["system", "user", "assistant"])
SAID = st.lists(st.tuples(ROLES, WORDS), max_size=5)


def asked(prompt, **settings):
    """The messages that a model is sent for a prompt."""
    sent = []

    def answer(request):
        sent.append(request.messages)
        return "yes"

    with ember.session(providers={"mine": Callable(answer)}, journal=None):
        ember.LLM("mine/model", **settings)(prompt)
    return sent[0]


@given(SAID)
def test_it_holds_what_was_said_and_is_sent_as_it_was_said(said):
    chat = ember.Conversation(said)
    assert [(m.role, m.content) for m in chat.messages] == said
    assert chat.length == len(said)
    assert str(chat.last) == (said[-1][1] if said else "")
    grown = ember.Conversation()
    for role, words in said:
        grown = grown.say(role, words)
    assert grown == chat
    assert jax.tree.leaves(chat)[0].shape == (4,)
    if said:
        assert [(m.role, m.content) for m in asked(chat)] == said


@given(SAID, SAID)
def test_two_are_equal_exactly_if_the_same_was_said(one, other):
    assert bool(ember.Conversation(one) == ember.Conversation(other)) == (one == other)
    assert bool(ember.Conversation(one) != ember.Conversation(other)) == (one != other)


def test_words_that_look_like_a_conversation_are_words():
    chat = ember.Conversation([("user", "secret")])
    assert [m.content for m in asked(chat.turns)] == [str(chat.turns)]


def test_the_system_prompt_of_the_model_comes_first():
    assert [m.role for m in asked([("system", "a"), ("user", "b")], system="c")] == ["system", "system", "user"]


def test_it_grows_in_a_scan_and_lanes_have_their_own():
    def step(chat, i):
        chat = chat.user(ember.format("{i}", i=i))
        return chat.assistant(chat.last + "!"), chat.length

    def grown(first):
        return jax.lax.scan(step, ember.Conversation([("system", first)]), jnp.arange(3))

    chats, lengths = jax.vmap(grown)(ember.text(["a", "b"]))
    assert chats.shape == (2,) and len(chats) == 2
    assert lengths.tolist() == [[2, 4, 6]] * 2
    for first, chat in zip("ab", [chats[0], chats[1]], strict=True):
        assert [m.content for m in chat.messages] == [first, "0", "0!", "1", "1!", "2", "2!"]
    assert (chats == jax.jit(jax.vmap(grown))(ember.text(["a", "b"]))[0]).all()


def test_one_of_two_is_chosen_in_each_lane():
    one, other = (
        jax.vmap(lambda w, r=r: ember.Conversation([(r, w)]))(ember.text([*"ab"])) for r in ("user", "system")
    )
    chosen = ember.where(jnp.array([True, False]), one, other)
    assert str(chosen[0]) == "user: a" and str(chosen[1]) == "system: b"


def test_a_while_loop_carries_it():
    def may_go_on(chat):
        return chat.length < 4

    chat = jax.lax.while_loop(may_go_on, lambda chat: chat.user("x"), ember.Conversation())
    assert str(chat) == "\n".join(["user: x"] * 4)


def test_it_takes_its_words_along(tmp_path):
    chat = ember.Conversation([("user", ["look", ember.image(np.zeros((2, 2), np.uint8))]), ("assistant", "black")])
    script = (
        "import pickle, sys, ember_jax as ember\n"
        "chat = pickle.load(open(sys.argv[1], 'rb')); print(chat)\n"
        "print(ember.load(sys.argv[2], ember.Conversation()))\n"
    )
    (tmp_path / "chat.pickle").write_bytes(pickle.dumps(chat))
    ember.save(tmp_path / "chat.ember", chat)
    files = [str(tmp_path / "chat.pickle"), str(tmp_path / "chat.ember")]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True, check=True)
    assert done.stdout == f"{chat}\n{chat}\n"


def test_one_of_failed_text_has_failed():
    def answer(request):
        raise ember.errors.RefusedRequestError("no")

    with ember.session(providers={"mine": Callable(answer)}, journal=None):
        failed, ok = ember.attempt(ember.LLM("mine/model"))("hi")
    chat = ember.Conversation([("user", failed)])
    assert not ok
    assert chat.turns.tolist() is None


def test_a_list_of_turns_is_a_prompt():
    assert [m.content for m in asked([("user", "a"), {"role": "assistant", "content": "b"}, ("user", "c")])] == [*"abc"]
    llm = ember.LLM("sim/medium", temperature=0)
    chat = [("user", "What is 2 + 2?")]
    assert str(llm.choose([("user", "What is 2 + 2?")], ["4", "5"]).text) in ("4", "5")
    assert str(llm(chat)) == str(llm("What is 2 + 2?"))


BAD = {
    "a string": (lambda: ember.Conversation("hi"), "list of turns"),
    "another role": (lambda: ember.Conversation([("robot", "hi")]), "system, user, assistant, not by 'robot'"),
    "no pair": (lambda: ember.Conversation(["hi"]), "a pair of who speaks"),
    "nothing": (lambda: ember.Conversation([("user", [])]), "what is said is words"),
    "a number": (lambda: ember.Conversation([("user", 3)]), "what is said is words"),
    "other keys": (lambda: ember.Conversation([{"role": "user", "words": "x"}]), "role and content"),
    "an axis": (lambda: ember.Conversation([("user", ember.text(["a", "b"]))]), r"shape \[2\].*vmap"),
    "no image": (lambda: ember.image(b"hello"), "no PNG, JPEG, GIF or WebP"),
    "no image array": (lambda: ember.image(np.zeros((2, 2, 7), np.uint8)), r"uint8\[2, 2, 7\]"),
    "no audio": (lambda: ember.audio(b"hello"), "neither"),
    "no type": (lambda: ember.file(b"hello"), "name="),
    "an empty one": (lambda: ember.LLM("sim/small")(ember.Conversation()), "nothing was said"),
    "several": (lambda: ember.LLM("sim/small")(jax.vmap(ember.Conversation().user)(ember.text(["a"]))), "vmap"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_said_is_told(name):
    make, told = BAD[name]
    with pytest.raises(TextError, match=told):
        make()


# -- attachments -----------------------------------------------------------------------------------------------------


def decoded(png):
    """The rows of a PNG file without filters or interlacing, and its header."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        name, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + data)
        chunks[name], at = data, at + 12 + length
    width, height, depth, color, *_ = struct.unpack(">2I5B", chunks[b"IHDR"])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 0).all() and depth == 8
    return rows[:, 1:].reshape(height, width, -1), color


@pytest.mark.parametrize(("channels", "color"), [((), 0), ((3,), 2), ((4,), 6)])
def test_an_array_is_sent_as_a_png_of_its_pixels(channels, color):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, *channels)).astype(np.uint8)
    url = str(ember.image(pixels).url)
    assert url.startswith("data:image/png;base64,")
    found, kind = decoded(base64.b64decode(url.partition(",")[2]))
    assert (found.reshape(pixels.shape) == pixels).all() and kind == color


def test_floats_are_pixels_from_0_to_1():
    assert str(ember.image(jnp.ones((2, 2))).url) == str(ember.image(np.full((2, 2), 255, np.uint8)).url)


def test_parts_are_sent_as_chat_completions_has_them(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    said = ["look", ember.image("https://example.com/a.png"), ember.file(tmp_path / "a.pdf"), ember.audio(b"ID3x")]
    messages = asked([("system", "short"), ("user", said)])
    from ember_jax.providers import Request

    _, _, body = OpenAI("http://127.0.0.1:1/v1", api_key="").build(Request("openai", "m", messages))
    assert body["messages"] == [
        {"role": "system", "content": "short"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {
                    "type": "file",
                    "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0xLjQ="},
                },
                {"type": "input_audio", "input_audio": {"data": "SUQzeA==", "format": "mp3"}},
            ],
        },
    ]


def test_images_are_mapped():
    images = ember.image([np.full((2, 2), i, np.uint8) for i in range(3)])
    chats = jax.vmap(lambda image: ember.Conversation([("user", ["what?", image])]))(images)
    assert chats.shape == (3,)
    assert len({m.parts[1].value for i in range(3) for m in chats[i].messages}) == 3


def test_a_journal_keeps_its_parts(tmp_path):
    chat = ember.Conversation([("user", ["a", ember.image("https://example.com/a.png")]), ("assistant", "b")])
    with ember.session(
        journal=tmp_path / "run.db", providers={"mine": Callable(lambda request: Response("yes"))}
    ) as run:
        ember.LLM("mine/model")(chat)
        assert run.calls()[0].messages == chat.messages
    assert ember.Journal(tmp_path / "run.db").calls()[0].messages == chat.messages
    assert "image https://example.com/a.png" in str(ember.Journal(tmp_path / "run.db").calls()[0])


def test_an_estimate_bounds_what_is_said():
    @ember.operator
    def op(question: ember.Text) -> ember.Text:
        llm = ember.LLM("sim/small", max_tokens=10)
        chat = ember.Conversation([("user", question)])
        return llm(chat.assistant(llm(chat)).user("Are you sure?"))

    question = ember.text("What is 12 + 30?")
    estimate = ember.lower(op)(question).estimate()
    with ember.session(journal=None) as run:
        op(question)
    bounds = estimate.models["sim/small"].input_tokens
    assert bounds.least <= run.report().input_tokens <= bounds.most < 500
