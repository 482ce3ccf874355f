"""The dialect of chat completions as data in and data out: no client, no key, no environment."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember_jax.errors import MalformedResponseError, RefusedRequestError
from ember_jax.providers import quota
from ember_jax.providers.base import Finish, Message, Request, Response, Tokens
from ember_jax.providers.dialect import Failure, HTTPAnswer, HTTPRequest, Meaning, Service, readable, stated
from ember_jax.providers.openai import ChatCompletions

CHAT = ChatCompletions(Service("Chat", "https://chat.example/v1", ("CHAT_BASE_URL",), ("CHAT_API_KEY",)))
JSON = {"content-type": "application/json"}


def request(**parameters):
    messages = (Message("system", "Be brief."), Message("user", "What is 17 * 23?"))
    return Request("openai", "gpt-4o-mini", messages, parameters, sample="00ff")


def answer(body, status=200, **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTPAnswer(status, {**JSON, **headers}, raw)


def read(body, **headers):
    return CHAT.read(answer(body, **headers), request())


def said(text, *, finish=Finish.OTHER, **fields):
    """What is read of `whole`."""
    counted = {"input_tokens": 10, "output_tokens": 5, "cost": 4.5e-06, "model": "gpt-4o-mini", "request_id": "req_1"}
    return Response(text, finish=finish, **{**counted, **fields})


def whole(**choice):
    return {"choices": [choice], "model": "gpt-4o-mini", "usage": {"prompt_tokens": 10, "completion_tokens": 5}}


# Requests


def test_a_request_is_a_path_headers_and_a_tree():
    assert CHAT.build(request(temperature=0.5, stop=["\n"])) == HTTPRequest(
        path="/chat/completions",
        headers={},
        body={
            "model": "gpt-4o-mini",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 * 23?"}],
            "temperature": 0.5,
            "stop": ["\n"],
        },
    )


def test_a_key_is_sent_as_a_bearer_token():
    assert CHAT.authorization("k") == {"Authorization": "Bearer k"}


@pytest.mark.parametrize("name", ["model", "messages", "n", "stream"])
def test_what_is_not_the_users_to_set_is_refused_as_data(name):
    words = (
        f"the parameter {name!r} is not yours to set. The model id and the prompt set `model` and `messages`; more "
        "samples are more calls with other keys; `llm.stream(prompt)` streams."
    )
    assert CHAT.build(request(**{name: 1})) == Failure(RefusedRequestError, words)


# Answers

TOKENS = [
    {"token": "3", "logprob": -0.25, "top_logprobs": [{"token": "3", "logprob": -0.25}, {"token": "4", "logprob": -2}]},
    {"token": "91", "logprob": -0.5},
]
READ = {
    "whole": (
        whole(message={"content": "391"}, finish_reason="stop", logprobs={"content": TOKENS}),
        said("391", finish=Finish.STOP, logprob=-0.75, alternatives=(("3", -0.25), ("4", -2.0))),
    ),
    "least": (
        {"choices": [{"message": {"content": ""}}]},
        Response("", 0, 0, float("nan"), float("nan"), "gpt-4o-mini", "req_1"),
    ),
    "of an unpriced name": (
        {**whole(message={"content": "391"}), "model": "deploy-7"},
        said("391", model="deploy-7"),
    ),
    "of negative counts": (
        {**whole(message={"content": "391"}), "usage": {"prompt_tokens": -1, "completion_tokens": None}},
        said("391", input_tokens=0, output_tokens=0, cost=0.0),
    ),
    "no choices": ({"choices": []}, Failure(MalformedResponseError, "the answer has no choices.")),
    "a refusal": (
        whole(message={"content": None, "refusal": "Not {that}."}, finish_reason="stop"),
        said("Not {that}.", finish=Finish.REFUSAL),
    ),
    "a refusal without words": (
        whole(message={"content": None, "refusal": ""}),
        said("", finish=Finish.REFUSAL),
    ),
    "no refusal, in other words": (
        whole(message={"content": "391", "refusal": ""}, finish_reason="stop"),
        said("391", finish=Finish.STOP),
    ),
    "a filter": (
        whole(message={"content": None}, finish_reason="content_filter"),
        said("", finish=Finish.CONTENT_FILTER),
    ),
    "cut short": (whole(message={"content": None}, finish_reason="length"), said("", finish=Finish.LENGTH)),
    "a tool's call": (whole(message={"content": None}, finish_reason="tool_calls"), said("", finish=Finish.TOOL_CALLS)),
    "only thoughts": (
        whole(message={"content": None, "reasoning": "17 * 23"}, finish_reason="stop"),
        said("", finish=Finish.OTHER, reasoning="17 * 23"),
    ),
    "nothing": (
        whole(message={}),
        Failure(MalformedResponseError, "the answer has no text (finish_reason None).", (), Tokens(10, 5)),
    ),
    "an error with status 200": (
        {"error": {"message": "upstream is down", "code": 502}},
        Failure(MalformedResponseError, "the answer is not a chat completion: {}.", ("upstream is down",)),
    ),
    "empty": (b"", Failure(MalformedResponseError, "the answer is not a chat completion: {}.", ("it is empty",))),
    "half of UTF-8": (
        b'{"choices": [{"message": {"content": "\xff"}}',
        Failure(MalformedResponseError, "the answer is not a chat completion: {}.", ("it is not UTF-8 (byte 38)",)),
    ),
    "too deep": (
        b'{"choices": [], "x": ' + b"[" * 200_000,
        Failure(MalformedResponseError, "the answer is not a chat completion: {}.", ("its JSON is nested too deeply",)),
    ),
}


@pytest.mark.parametrize(("body", "expected"), READ.values(), ids=READ)
def test_an_answer_is_read_as_data(body, expected):
    assert repr(read(body, **{"x-request-id": "req_1"})) == repr(expected)  # as NaN is unequal to NaN


@pytest.mark.parametrize(
    ("body", "begin"),
    [
        (b'{"choices": 1}', "its JSON has another form ("),
        (b'{"choices": [{"message": {"content": "WORDS"}', "it is not whole JSON ("),
    ],
)
def test_the_readers_own_words_come_after_ours_and_quote_nothing(body, begin):
    failure = read(body)
    assert failure[:2] == (MalformedResponseError, "the answer is not a chat completion: {}.")
    assert failure.said[0].startswith(begin) and failure.said[0].endswith(")") and "WORDS" not in failure.said[0]


def test_a_web_page_is_told_by_its_type():
    words = "the answer is not a chat completion: {}. It is {!r}; does the base URL end with /v1?"
    failure = CHAT.read(HTTPAnswer(200, {"content-type": "text/html"}, b""), request())
    assert failure == Failure(MalformedResponseError, words, ("it is empty", "text/html"))
    assert CHAT.read(HTTPAnswer(200, {}, b""), request()) == failure._replace(said=("it is empty", ""))


def test_a_quota_is_not_the_dialects_to_read_but_its_headers_are_told():
    limits = {f"x-ratelimit-{field}-requests": "60" for field in ("limit", "remaining", "reset")}
    assert read(whole(message={"content": "391"}), **limits).quota is None
    assert CHAT.quota_headers == quota.FAMILIES


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
FIELDS = st.sampled_from(
    ["choices", "message", "content", "refusal", "finish_reason", "logprobs", "usage", "prompt_tokens", "error"]
)
TREES = st.recursive(PLAIN, lambda t: st.lists(t, max_size=2) | st.dictionaries(FIELDS, t, max_size=4), max_leaves=12)


@given(st.binary() | TREES.map(lambda tree: json.dumps(tree).encode()), st.integers(100, 699))
def test_no_body_makes_a_dialect_raise(body, status):
    said = HTTPAnswer(status, {}, body)
    assert isinstance(CHAT.read(said, request()), Response | Failure)
    assert isinstance(CHAT.meaning(said), Meaning | None)
    assert isinstance(stated(body) + readable(body), str)


# Errors


def test_an_account_without_credit_is_not_a_rate_limit():
    spent = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    meaning = Meaning(RefusedRequestError, " The account has no credit; waiting does not help.")
    assert CHAT.meaning(answer(spent, 429)) == meaning
    assert CHAT.meaning(answer(spent, 500)) is None
    assert CHAT.meaning(answer({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429)) is None


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"error": {"message": "OpenAI's", "type": "t", "code": "c"}}, "OpenAI's"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Anthropic's"}}, "Anthropic's"),
        ({"error": {"code": 503, "message": "Google's", "status": "UNAVAILABLE"}}, "Google's"),
        ({"error": "vLLM's"}, "vLLM's"),
        ({"message": "a gateway's"}, "a gateway's"),
        ({"detail": "FastAPI's"}, "FastAPI's"),
        ({"error": {"detail": "a proxy's"}}, "a proxy's"),
        ({"detail": [{"msg": "another form"}]}, ""),
        (["another form"], ""),
        ("another form", ""),
    ],
)
def test_every_vendors_errors_are_found_in_their_places(tree, words):
    assert stated(json.dumps(tree).encode()) == words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"errors": ["\\u0062ad"]}', '{"errors": ["bad"]}'),
        (b"<p>\xff bad</p>", "<p>\ufffd bad</p>"),
        (b"", ""),
    ],
)
def test_other_bodies_are_readable(body, words):
    assert stated(body) == "" and readable(body) == words
