"""Token estimates of the limiter: counted by a real tokeniser, corrected by usage, and by characters without one."""

import logging

import numpy as np
import pytest
import tiktoken

from ember_jax._runtime import sizes
from ember_jax._runtime.sizes import Sizes
from ember_jax.errors import TextError
from ember_jax.providers.base import Message, Request, Response

# Bytes, and two words that are one token each: English is many characters a token, everything else one.
RANKS = {bytes([i]): i for i in range(256)} | {
    pair: 256 + i for i, pair in enumerate([b"to", b"ke", b"toke", b"token", b"wo", b"rd", b"word"])
}
ENCODING = tiktoken.Encoding("ours", pat_str=r"\w+|\W", mergeable_ranks=RANKS, special_tokens={"<|end|>": 300})


def request(*words, **parameters):
    return Request("p", "org/model", tuple(Message("user", w) for w in words), parameters)


@pytest.fixture
def asked(monkeypatch):
    """The names that a vocabulary was loaded by; there is one for every name."""
    names = []
    monkeypatch.setattr(sizes, "vocabulary", lambda name: names.append(name) or ENCODING)
    sizes._loading.cache_clear()
    yield names
    sizes._loading.cache_clear()


def ready(model="org/model"):
    """Sizes whose vocabulary is loaded, or known not to be."""
    sizes._loading(model).result(timeout=60)
    return Sizes(model)


def test_tokens_are_counted_by_the_vocabulary(asked):
    words = "token token word <|end|> ü"
    assert ready().estimate(request(words, "word"), count=True) == len(ENCODING.encode_ordinary(words)) + 1 + 256
    assert ready().estimate(request("word", max_tokens=7), count=True) == 1 + 7
    assert ready().estimate(request("word" * 4)) == 4 + 256  # nobody limits tokens: characters will do


@pytest.mark.parametrize(
    ("model", "name"),
    [("gpt-4", "cl100k_base"), ("openai/gpt-4o", "o200k_base"), ("llama-3-70b", "o200k_base")],
)
def test_the_vocabulary_is_the_models_own_where_it_is_known(asked, model, name):
    ready(model)
    assert asked == [name]


def test_usage_corrects_the_count(asked):
    """A service with marks of its own around messages, whose prompts differ in characters per token."""
    found, draw = ready(), np.random.default_rng(0)
    errors = {True: [], False: []}
    for _ in range(200):
        pieces = ["token ", "ü"][draw.integers(2)], draw.integers(50, 200)
        asking = request(pieces[0] * pieces[1], max_tokens=10)
        used = 1.1 * len(ENCODING.encode_ordinary(asking.messages[0].content))
        for count, off in errors.items():
            off.append(abs(found.estimate(asking, count=count) - 10 - used) / used)
        found.learn(asking, Response("", int(used), 10), count=True)
    assert np.mean(errors[True][50:]) < 0.02, "exact but for rounding"
    assert np.mean(errors[False][50:]) > 0.2, "characters are no measure of these"


def test_a_text_is_counted_once_and_a_long_one_by_its_beginning(monkeypatch, asked):
    counted = []

    class Counting:
        def encode_to_numpy(self, words, disallowed_special):
            counted.append(len(words))
            return ENCODING.encode_to_numpy(words, disallowed_special=disallowed_special)

    monkeypatch.setattr(sizes, "vocabulary", lambda name: Counting())
    found, long = ready(), "word" * 100_000
    for _ in range(3):
        assert found.estimate(request("word", long), count=True) == 1 + 100_000 + 256
    assert counted == [4, 32_768]


def test_without_the_vocabulary_characters_are_counted_and_the_log_says_so(monkeypatch, asked, caplog):
    def missing(name):
        raise TextError("no network")

    monkeypatch.setattr(sizes, "vocabulary", missing)
    with caplog.at_level(logging.INFO, "ember_jax"):
        found = ready()
    assert [(r.event, r.model) for r in caplog.records] == [("not_counted", "org/model")]
    assert found.estimate(request("word" * 4), count=True) == 4 + 256
    found.learn(request("word" * 100), Response("", 400, 5), count=True)
    assert found.estimate(request("word" * 100), count=True) == pytest.approx(400 + 5, rel=0.01)
