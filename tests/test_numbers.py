import math
import re
import subprocess
import sys
import unicodedata
from decimal import Decimal
from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiktoken
from hypothesis import given

import ember_jax as ember
from ember_jax._text.grammar import last_number, written
from ember_jax._text.numbers import _hashes
from ember_jax.errors import TextError

TRANSFORMS = {"eager": lambda f: f, "jit": jax.jit}


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return TRANSFORMS[request.param]


# -- numbers ---------------------------------------------------------------------------------------------------------

NUMBERS = {
    "plain": {"7": 7, "007": 7, "3.14": "3.14", ".5": "0.5", "x=.5": "0.5", "2.": 2, "100": 100},
    "in a sentence": {
        "in 2024, 5.": 5,
        "no. 7.": 7,
        "no.7": 7,
        "№5": 5,
        "It was 3,000.": 3000,
        "5!": 5,
        "“5”": 5,
        "...5": 5,
        "~5": 5,
        "**5**": 5,
        "__5__": 5,
        "_42_": 42,
        "答案是42。": 42,
        "答案是-4": -4,
    },
    "signs": {"-5": -5, "−5": -5, "–5": -5, "+5": 5, "±5": 5, "(-5)": -5, "=-5": -5, "-.5": "-0.5", "-0.0": 0},
    "money": {"$3.50": "3.5", "-$5": -5, "$-5": -5, "$-5$": -5, "$5-$10": 10, "USD 5": 5, r"\$1{,}234": 1234},
    "dashes": {"3-4": 4, "3–4": 4, "10%-20%": 20, "a-5": 5, "5--3": 3, "- 5 apples": 5, "GPT-4": 4, "that—5": 5},
    "separators": {
        "1,234,567.5": "1234567.5",
        "1'234'567.50": "1234567.5",
        "1’234": 1234,
        "1_000": 1000,
        "1\u202f234\u202f567": 1234567,
        "1\u00a0234": 1234,
        r"1\,234": 1234,
        r"10,\!000": 10000,
        "12,34,567": 1234567,
        "1,00,000": 100000,
        "(1,234)": 1234,
    },
    "lists": {
        "1,2,3": 3,
        "1, 200": 200,
        "1,2,345": 345,
        "2,345,1": 1,
        "1,234,56": 56,
        "1,234'567": 567,
        "3,14": 14,
        "1.234,56": 56,
        "10 500": 500,
    },
    "chains": {
        "1.2.3": 3,
        "1.234.567": 567,
        "192.168.0.12": 12,
        "2024-01-15": 15,
        "01/15/2024": 2024,
        "1 / 2 / 3": 3,
        "12:30": 30,
        "1..10": 10,
        "1/2.5/3": 3,
    },
    "exponents": {
        "1e5": 100000,
        "1E-3": "0.001",
        "6.02e+3": 6020,
        "6.02 × 10^{3}": 6020,
        "6.02 × 10³": 6020,
        r"3\times10^{4}": 30000,
        r"3 \cdot 10^4": 30000,
        "3 x 10^-4": "0.0003",
        "10^5": 100000,
        "10⁻³": "0.001",
        "-10^2": -100,
        "5 x 3": 3,
        "1e5x": 1,
        "1e12345678901": 1,
    },
    "fractions": {
        "3/4": "0.75",
        "-3/4": "-0.75",
        "3 / 4": "0.75",
        "1.5/2": "0.75",
        "1,000/8": 125,
        "1/3": "1/3",
        "½": "0.5",
        "-½": "-0.5",
        "⅓": "1/3",
        "3⁄4": "0.75",
        "9/11": "9/11",
        "5/0": 0,
        "3/-4": -4,
        "1e5/2": 2,
        "24/7.": "24/7",
    },
    "mixed": {
        "1 1/2": "1.5",
        "1½": "1.5",
        "1 ½": "1.5",
        "-1 1/2": "-1.5",
        "1 15/16": "1.9375",
        r"1\frac{1}{2}": "1.5",
        "in 2024 9/3": 3,
        "1, 1/2": "0.5",
    },
    "LaTeX": {
        r"\frac{3}{4}": "0.75",
        r"-\dfrac{1}{3}": "-1/3",
        r"\frac{-1}{3}": "-1/3",
        r"\frac34": "0.75",
        r"x\frac{3}{4}": "0.75",
        r"\frac{1}{2}3": 3,
        r"\frac{x}{2}": 2,
        r"x\approx5": 5,
        r"5\%": 5,
        r"\boxed{42}, in 3 steps": 42,
        r"\boxed{1}\boxed{\frac{-1}{3}} 7": "-1/3",
        r"\boxed{\text{5 cm}} 7": 5,
        r"\boxed{x} is 7": 7,
        r"\boxed{4": 4,
    },
    "what follows": {"12.5%": "12.5", "5kg": 5, "3rd": 3, "5k": 5, "3 million": 3, "5″": 5, "90°": 90, "1️⃣": 1},
    "powers and indices": {"5 m²": 5, "5 m^2": 5, "2^10": 2, "42¹": 42, "x²=4": 4, r"\log_2 8": 8, "10^{x}": 10},
    "other scripts": {"１２３": 123, "３．５": "3.5", "٣٫١٤": "3.14", "४२": 42, "①": 1},
}
NO_NUMBER = [
    "", "seven", "inf", "NaN", "x1", "H2O", "CO₂", "v1.2", "x_1", r"a_{12}", "x^2", "x^{-2}", "x²", "0x1F", "USD5", "Ⅷ",
    "item_3", ".", "-", "/", "e5", r"\frac{a}{b}",
]  # fmt: skip
CASES = [(given_, expected) for group in NUMBERS.values() for given_, expected in group.items()]


@pytest.mark.parametrize(("given_", "expected"), CASES, ids=[given_ for given_, _ in CASES])
def test_the_last_number_is_read(given_, expected):
    assert Fraction(last_number(given_)) == Fraction(expected)
    assert written(last_number(given_)) == str(expected)
    # Words around it change nothing: only a `\boxed` is looked for from the end.
    assert last_number(f"First 17, and then: {given_}") == last_number(given_)
    assert last_number(f"{given_} and so on") == last_number(given_)


@pytest.mark.parametrize("given_", NO_NUMBER)
def test_no_number_is_nan(given_):
    assert last_number(given_) is None
    assert math.isnan(ember.parse_number(given_))


def test_parse_number_gives_an_array(transform):
    t = ember.text([["1,234.5", "x"], ["1/3", "1e39"]])
    for f in (ember.parse_number, jax.vmap(jax.vmap(ember.parse_number))):
        numbers = transform(f)(t)
        assert numbers.dtype == jnp.float32
        np.testing.assert_array_equal(numbers, np.asarray([[1234.5, np.nan], [1 / 3, np.inf]], np.float32))
    assert ember.parse_number("7").shape == ()
    assert ember.parse_number(ember.text([[]])).shape == (1, 0)
    assert transform(jax.vmap(ember.parse_number))(ember.text([])).shape == (0,)
    with pytest.raises(TextError, match="not a string"):
        ember.parse_number(3)


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["{!r}", "{:.3f}", "{:e}", "{:+.6g}", "{:,.2f}"])
)
def test_pythons_own_spellings_are_read(x, spec):
    spelled = spec.format(x)
    with np.errstate(over="ignore"):
        expected = np.float32(float(spelled.replace(",", "")))
    assert ember.parse_number(f"about {spelled}.") == expected
    assert Fraction(last_number(spelled)) == Fraction(Decimal(spelled.replace(",", "")))


@given(st.integers(), st.integers(1), st.integers(1, 999))
def test_fractions_are_read_exactly(top, bottom, whole):
    assert Fraction(last_number(f"{top}/{bottom}")) == Fraction(top, bottom)
    if 0 < top < bottom:
        assert Fraction(last_number(f"-{whole} {top}/{bottom}")) == -(whole + Fraction(top, bottom))


@given(st.text() | st.text("0123456789.,-+/ e^x_'{}\\½²$"))
def test_any_text_is_read(string):
    number = last_number(string)
    if number is not None:
        assert last_number(written(number)) == number
        assert isinstance(float(number), float)


@pytest.mark.parametrize(
    "part", ["1,", "1.", "1/", "1 ", "9", "-", "^", r"\frac{1}{", r"\boxed{", "1,234", "\\frac", "{"]
)
def test_reading_takes_linear_time(part):
    # a quadratic search would take minutes here
    last_number(part * (300_000 // len(part)))


def test_numbers_of_any_size_are_read():
    assert written(last_number("1" + ",000" * 100_000)) == "1e300000"
    assert written(last_number("9" * 10_000 + "/3")) == "3"  # too long for a fraction
    assert float(last_number("1e999999999")) == math.inf


# -- tokens ----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=8), st.integers(1, 12))
def test_byte_tokens_are_the_bytes(string, length):
    ids = ember.tokens(string, length)
    raw = list(string.encode())[:length]
    assert ids.dtype == jnp.int32
    assert ids.tolist() == raw + [-1] * (length - len(raw))


def test_tokens_in_every_context(transform):
    t = ember.text([["a", "bcd"], ["", "é"]])
    expected = [[[97, -1], [98, 99]], [[-1, -1], [195, 169]]]
    assert transform(lambda t: ember.tokens(t, 2))(t).tolist() == expected
    assert transform(jax.vmap(jax.vmap(lambda t: ember.tokens(t, 2))))(t).tolist() == expected
    assert transform(jax.vmap(lambda t: ember.tokens(t, 2)))(ember.text([])).shape == (0, 2)
    assert ember.tokens("é" * 5_000_000, 3).tolist() == [195, 169, 195]


@pytest.fixture
def tiny(monkeypatch):
    """A vocabulary of the bytes, "ab" and one special token, registered as tiktoken's own are."""
    tiktoken.list_encoding_names()
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256}
    made = {"name": "tiny", "pat_str": r"\S+|\s", "mergeable_ranks": ranks, "special_tokens": {"<|end|>": 300}}
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "tiny", lambda: made)
    monkeypatch.setitem(tiktoken.model.MODEL_TO_ENCODING, "tiny-model-1", "tiny")
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("encoding", ["tiny", "tiny-model-1"])
def test_tokens_of_a_vocabulary(encoding, transform):
    f = transform(lambda t: ember.tokens(t, 6, encoding))
    assert f(ember.text(["abb", "aab ab"])).tolist() == [[256, 98, -1, -1, -1, -1], [97, 256, 32, 256, -1, -1]]
    special = list(b"<|end|>")[:6]
    assert f(ember.text("<|end|>")).tolist() == special  # ordinary text, whatever it looks like


@pytest.mark.parametrize("cause", [OSError("no route to host"), ValueError("Hash mismatch for data")])
def test_a_vocabulary_that_cannot_be_loaded_is_told(monkeypatch, cause):
    def fail(name):
        raise cause

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(TextError) as error:
        jax.jit(lambda t: ember.tokens(t, 3, "gpt-2"))(ember.text("a"))
    message = str(error.value)
    assert message.startswith("the vocabulary of gpt2 is not on this machine and could not be downloaded")
    assert str(cause) in message and "encoding='bytes'" in message and "TIKTOKEN_CACHE_DIR" in message


def test_what_tokens_refuses():
    with pytest.raises(TextError, match=r"knows no encoding 'llama'.*o200k_base.*without its provider"):
        ember.tokens("a", 3, "llama")
    for length in (0, -1, 2.0, True, None):
        with pytest.raises(TextError, match=r"`length` of ember\.tokens is part of a shape"):
            ember.tokens("a", length)
    with pytest.raises(TextError, match="known while JAX traces"):
        jax.jit(lambda n: ember.tokens("a", n))(3)
    assert ember.tokens("a", np.int64(2)).tolist() == [97, -1]


def test_importing_ember_loads_no_tokenizer():
    code = "import ember_jax, sys; assert 'tiktoken' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- features --------------------------------------------------------------------------------------------------------


def mix(x):
    """SplitMix64's finaliser, in Python's integers."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def slow_features(string, dim):
    base, hashes = 6364136223846793005, []
    for word in re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", string).casefold()):
        padded = [ord(c) for c in f" {word} "]
        for a, b, c in zip(padded, padded[1:], padded[2:], strict=False):
            hashes.append(mix((a * base**2 + b * base + c) % 2**64))
        hashes.append(mix(sum(c * base ** (i + 1) for i, c in enumerate(padded[:-1])) % 2**64))
    counts = np.zeros(dim)
    for h in hashes:
        counts[(h >> 32) * dim >> 32] += -1 if h & 1 else 1
    return counts / max(1, np.sqrt(np.sum(counts**2)))


@given(st.text(max_size=30), st.integers(1, 40))
def test_features_are_signed_hashed_counts(string, dim):
    v = ember.features(string, dim)
    assert v.dtype == jnp.float32
    np.testing.assert_allclose(v, slow_features(string, dim), atol=1e-6)


def test_features_are_the_same_on_every_machine():
    v = np.asarray(ember.features("What is 2+2? 答案 é", 8)) * math.sqrt(27)
    np.testing.assert_allclose(v, [-1, 1, 4, 0, 0, 2, 2, -1], atol=1e-5)


def test_features_tell_texts_apart():
    france = ember.features("What is the capital of France?", 256)
    spelled = ember.features("what's the  CAPITAL of france", 256)
    other = ember.features("Integrate x^2 from 0 to 1.", 256)
    assert jnp.linalg.norm(france) == pytest.approx(1)
    assert france @ spelled > 0.7
    assert abs(france @ other) < 0.3


def test_inner_products_of_features_are_unbiased():
    # Between texts that share nothing the inner product is 0 on average, of the size 1/√dim.
    rng = np.random.default_rng(0)
    texts = ["".join(chr(c) for c in rng.integers(0x4E00, 0x9FFF, 40)) for _ in range(200)]
    v = np.asarray(ember.features(ember.text(texts), 64))
    products = (v @ v.T)[np.triu_indices(200, 1)]
    assert abs(products.mean()) < 0.01
    assert products.std() == pytest.approx(1 / 8, rel=0.15)


def test_features_in_every_context(transform):
    t = ember.text([["a b", ""], [" \n", "c"]])
    v = transform(lambda t: ember.features(t, 16))(t)
    assert v.shape == (2, 2, 16)
    np.testing.assert_array_equal(v, transform(jax.vmap(jax.vmap(lambda t: ember.features(t, 16))))(t))
    assert jnp.abs(v).sum(-1).astype(bool).tolist() == [[True, False], [False, True]]
    assert ember.features(ember.text([]), 4).shape == (0, 4)
    assert jnp.linalg.norm(ember.features("word " * 100_000 + "w" * 100_000, 32)) == pytest.approx(1)
    for dim in (0, 2.5, None):
        with pytest.raises(TextError, match=r"`dim` of ember\.features"):
            ember.features("a", dim)


def test_features_of_words_do_not_depend_on_their_place():
    hashes = lambda s: set(_hashes(s).tolist())
    assert hashes("ab cd") == hashes("cd ab") == hashes("ab") | hashes("cd")
    assert len(hashes("ab")) == 3
