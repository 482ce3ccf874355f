"""Google's protocol: what is sent, against Google's own package; what is read, against its reference; faults over HTTP.

The answers are written after https://ai.google.dev/api/generate-content and google-genai 3.6.1's types.
"""

import asyncio
import json
import math
from typing import NamedTuple

import jax
import loopback
import numpy as np
import pytest
from replies import Replies, Reply

import ember_jax as ember
from ember_jax.errors import (
    AuthenticationError,
    ConnectionFailedError,
    MalformedResponseError,
    NoAnswerError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from ember_jax.providers.base import EMBED, Finish, Message, Request, Tokens
from ember_jax.providers.dialect import Failure, HTTPAnswer, Meaning
from ember_jax.providers.gemini import SERVICE, Gemini, GenerateContent
from ember_jax.providers.sim_vectors import vector

GEMINI = GenerateContent(SERVICE)
KEY = "AIzaSyMARKED0123456789abcdefghijklmnopq"
OTHER_KEY = "AIzaSyANOTHER0123456789abcdefghijklmnop"
RECORDED = loopback.read("gemini")
TURNS = (
    Message("system", "Be brief."),
    Message("user", "What is 2 + 2?"),
    Message("assistant", "4"),
    Message("user", "And 3 + 3?"),
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (*SERVICE.base_variables, *SERVICE.key_variables):
        monkeypatch.delenv(name, raising=False)


def request(model="gemini-2.5-flash", sample=None, **parameters):
    return Request("gemini", model, TURNS, parameters, sample)


def for_vectors(model, **parameters):
    return Request("gemini", model, tuple(Message(EMBED, text) for text in ("a cat", "", "two dogs")), parameters)


def body(**parameters):
    return GEMINI.build(request(**parameters)).body


def config(**parameters):
    return body(**parameters)["generationConfig"]


# -- what is sent ----------------------------------------------------------------------------------------------------

# The calls that `sdk/record_gemini.py` makes of Google's package, in our words.
OURS = {
    "plain": request(),
    "sampled": request(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        max_tokens=100,
        stop="END",
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.2,
    ),
    "log-probabilities": request(logprobs=True, top_logprobs=5),
    "structured": request(
        "gemini-3-pro",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "A", "schema": loopback.SCHEMA, "strict": True},
        },
    ),
    "budget": request(reasoning_effort="low", include_thoughts=True),
    "level": request("gemini-3-pro", reasoning_effort="low"),
    "its own": request(
        "tunedModels/mine",
        safety_settings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        cached_content="cachedContents/x",
        service_tier="flex",
        labels={"a": "b"},
    ),
    "vectors": for_vectors("gemini-embedding-001", encoding_format="base64"),
    "short vectors": for_vectors("gemini-embedding-2", dimensions=256, task_type="RETRIEVAL_DOCUMENT"),
    "titled vectors": for_vectors("gemini-embedding-001", task_type="RETRIEVAL_DOCUMENT", title="Animals"),
}


def test_the_fixture_has_the_calls_that_are_made_here():
    assert RECORDED["sdk"] == "google-genai 3.6.1"
    assert RECORDED["sent"].keys() == {*OURS, "models"}


@pytest.mark.parametrize("call", OURS)
def test_what_is_sent_is_what_googles_package_sends(call):
    url, headers, sent = Gemini("http://host", api_key="(key)").build(OURS[call])
    theirs = RECORDED["sent"][call]
    assert url == f"http://host{theirs['path']}"
    ours = {name.lower(): value for name, value in headers.items()}
    assert {**ours, "accept": "*/*"} == theirs["headers"]  # our client adds it when it sends
    theirs["body"] = {k: v for k, v in theirs["body"].items() if v != {}}  # it sends an empty `generationConfig`
    assert sent == theirs["body"]


def test_models_are_listed_as_googles_package_lists_them():
    theirs = RECORDED["sent"]["models"]
    assert (theirs["method"], theirs["path"]) == ("GET", "/v1/models")
    assert SERVICE.version + GEMINI.listing.page("") == theirs["path"] + "?pageSize=1000"  # which asks for fewer pages


@pytest.mark.parametrize(
    ("base", "whole"),
    [
        (None, "https://generativelanguage.googleapis.com/v1/models/gemini-2.5-flash:generateContent"),
        ("http://proxy/", "http://proxy/v1/models/gemini-2.5-flash:generateContent"),
        ("http://proxy/v1beta", "http://proxy/v1beta/models/gemini-2.5-flash:generateContent"),
        ("http://proxy/v1/", "http://proxy/v1/models/gemini-2.5-flash:generateContent"),
    ],
)
def test_a_base_url_gets_a_version_if_it_has_none(base, whole):
    assert Gemini(base, api_key="k").build(request())[0] == whole


def test_the_environment_is_that_of_googles_package(monkeypatch):
    with pytest.raises(
        AuthenticationError, match=r"Set the environment variable GOOGLE_API_KEY, or register\('gemini'"
    ):
        Gemini().build(request())
    monkeypatch.setenv("GEMINI_API_KEY", "second")
    assert Gemini().build(request())[1]["x-goog-api-key"] == "second"
    monkeypatch.setenv("GOOGLE_API_KEY", "first")
    assert Gemini().build(request())[1]["x-goog-api-key"] == "first"
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://elsewhere")
    assert Gemini().endpoint == "http://elsewhere/v1"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_completion_tokens": 9}, {"maxOutputTokens": 9}),
        ({"stop": ["a", "b"]}, {"stopSequences": ["a", "b"]}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        ({"logprobs": True}, {"responseLogprobs": True}),
        ({"logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
        ({"response_logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
        ({"reasoning_effort": "none"}, {"thinkingConfig": {"thinking_budget": 0}}),
        ({"reasoning_effort": "high"}, {"thinkingConfig": {"thinking_budget": 24576}}),
        ({"include_thoughts": True}, {"thinkingConfig": {"include_thoughts": True}}),
        ({"thinking_config": {"thinking_budget": 5}}, {"thinkingConfig": {"thinking_budget": 5}}),
        ({"media_resolution": "MEDIA_RESOLUTION_LOW"}, {"mediaResolution": "MEDIA_RESOLUTION_LOW"}),
    ],
)
def test_settings_have_their_place(given, sent):
    assert config(**given) == sent


@pytest.mark.parametrize("given", [{}, {"logprobs": False}, {"response_format": {"type": "text"}}])
def test_what_asks_for_nothing_is_not_sent(given):
    assert "generationConfig" not in body(**given)


def test_samples_with_a_seed_have_seeds_of_their_own():
    seeds = {GEMINI.build(request(sample=s, seed=7)).body["generationConfig"]["seed"] for s in ("00", "01", None)}
    assert len(seeds) == 3 and 7 in seeds and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 2}, "the parameter 'n' is not yours to set."),
        ({"candidate_count": 2}, "the parameter 'candidate_count' is not yours to set."),
        ({"logit_bias": {"1": 2}}, "Gemini has no parameter 'logit_bias'; leave it out."),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "the parameters 'max_tokens' and 'max_completion_tokens' are"),
        ({"response_format": {"type": "xml"}}, "the parameter 'response_format' is of no type that Gemini has"),
        ({"response_format": {"type": "json_schema"}}, "the parameter 'response_format' is of no type that Gemini has"),
    ],
)
def test_what_has_no_place_is_refused_by_name(given, words):
    refused = GEMINI.build(request(**given))
    assert isinstance(refused, Failure) and refused.kind is RefusedRequestError
    assert refused.words.startswith(words)


# -- what is read ----------------------------------------------------------------------------------------------------

USAGE = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}


def whole(*parts, finish="STOP", usage=USAGE, **candidate):
    content = {"content": {"parts": list(parts), "role": "model"}} if parts else {}
    return {
        "candidates": [{**content, "finishReason": finish, "index": 0, **candidate}],
        "usageMetadata": usage,
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r-1",
    }


def answer(tree, status=200):
    raw = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return HTTPAnswer(status, {"content-type": "application/json; charset=UTF-8"}, raw)


def read(tree):
    return GEMINI.read(answer(tree), request())


def test_an_answer_is_read_whole():
    response = read(whole({"text": "6"}, {"text": " is it"}))
    assert (response.text, response.finish, response.model) == ("6 is it", Finish.STOP, "gemini-2.5-flash")
    assert (response.request_id, response.reasoning) == ("r-1", "")
    assert response.tokens == Tokens(10, 5)
    assert response.cost == pytest.approx((10 * 0.30 + 5 * 2.50) / 1e6)  # Google's prices of a million tokens
    assert math.isnan(response.logprob)


def test_thoughts_are_reasoning_and_are_billed_as_output():
    usage = {
        "promptTokenCount": 100,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 40,
        "cachedContentTokenCount": 60,
        "totalTokenCount": 145,
    }
    response = read(
        whole({"text": "Sum: ", "thought": True}, {"text": "3 + 3", "thought": True}, {"text": "6"}, usage=usage)
    )
    assert (response.text, response.reasoning) == ("6", "Sum: 3 + 3")
    assert response.tokens == Tokens(100, 45, 60, 0, 40)
    # 40 tokens at 0.30 dollars a million, 60 from the cache at 0.03, 45 at 2.50.
    assert response.cost == pytest.approx((40 * 0.30 + 60 * 0.03 + 45 * 2.50) / 1e6)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"promptTokenCount": 10, "thoughtsTokenCount": 7, "totalTokenCount": 17}, Tokens(10, 7, 0, 0, 7)),
        ({"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 7}, Tokens(10, 12, 0, 0, 7)),
        # A gateway that counts thoughts among the candidates' tokens.
        (
            {"promptTokenCount": 10, "candidatesTokenCount": 12, "thoughtsTokenCount": 7, "totalTokenCount": 22},
            Tokens(10, 12, 0, 0, 7),
        ),
        (
            {
                "promptTokenCount": 10,
                "toolUsePromptTokenCount": 4,
                "candidatesTokenCount": 5,
                "totalTokenCount": 19,
            },
            Tokens(14, 5),
        ),
        ({"promptTokenCount": 10, "totalTokenCount": 10}, Tokens(10, 0)),
    ],
)
def test_tokens_are_counted_as_they_are_billed(usage, tokens):
    assert read(whole({"text": "6"}, usage=usage)).tokens == tokens


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", Finish.STOP),
        ("MAX_TOKENS", Finish.LENGTH),
        ("SAFETY", Finish.CONTENT_FILTER),
        ("RECITATION", Finish.CONTENT_FILTER),
        ("BLOCKLIST", Finish.CONTENT_FILTER),
        ("PROHIBITED_CONTENT", Finish.CONTENT_FILTER),
        ("SPII", Finish.CONTENT_FILTER),
        ("MALFORMED_FUNCTION_CALL", Finish.TOOL_CALLS),
        ("MALFORMED_RESPONSE", Finish.ERROR),
        ("LANGUAGE", Finish.OTHER),
        ("OTHER", Finish.OTHER),
        ("A_NEW_ONE", Finish.OTHER),
        (None, Finish.OTHER),
    ],
)
def test_how_an_answer_ended(reason, finish):
    assert read(whole({"text": "6"}, finish=reason)).finish == finish


def test_a_call_of_a_tool_is_no_end():
    assert read(whole({"functionCall": {"name": "add", "args": {}}})).finish == Finish.TOOL_CALLS


@pytest.mark.parametrize("content", [{}, {"role": "model"}, {"parts": []}, {"parts": [{"text": ""}]}, None])
def test_a_content_may_be_empty(content):
    cut = read(whole(finish="MAX_TOKENS", content=content))
    assert (cut.text, cut.finish) == ("", Finish.LENGTH)
    assert read(whole(content=content)).finish == Finish.STOP
    thought = {**USAGE, "thoughtsTokenCount": 5, "candidatesTokenCount": 0}
    assert read(whole(content=content, usage=thought)).finish == Finish.OTHER


def test_a_blocked_prompt_is_an_outcome():
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 10}}
    response = read({**blocked, "modelVersion": "gemini-2.5-flash"})
    assert (response.text, response.finish, response.tokens) == ("", Finish.CONTENT_FILTER, Tokens(10))


MALFORMED = "the answer is not of generateContent: its JSON has another form (no list of parts in `content`)."


@pytest.mark.parametrize(
    ("tree", "failure"),
    [
        ({}, Failure(MalformedResponseError, "the answer has no candidates: {}", ("nothing",))),
        (
            {"error": {"message": "upstream"}, "usageMetadata": USAGE},
            Failure(MalformedResponseError, "the answer has no candidates: {}", ("upstream",), Tokens(10, 5)),
        ),
        (whole(content={"parts": "6"}), Failure(MalformedResponseError, MALFORMED, (), Tokens(10, 5))),
        (whole(content="6"), Failure(MalformedResponseError, MALFORMED, (), Tokens(10, 5))),
        (
            {"candidates": 6, "usageMetadata": USAGE, "promptFeedback": None},
            Failure(MalformedResponseError, "the answer has no candidates: {}", ("nothing",), Tokens(10, 5)),
        ),
        (b"", Failure(MalformedResponseError, "the answer is not of generateContent: {}.", ("it is empty",))),
    ],
)
def test_what_is_no_answer_is_said(tree, failure):
    assert read(tree) == failure


def place(*pairs):
    return {"candidates": [{"token": token, "logProbability": p, "tokenId": 7} for token, p in pairs]}


def test_log_probabilities_are_those_of_the_text():
    chosen = [{"token": "Hm", "logProbability": -1.0}, {"token": "B", "logProbability": -0.25}]
    result = {"chosenCandidates": chosen, "topCandidates": [place(("Hm", -1)), place(("B", -0.25), ("A", -1.5))]}
    response = read(whole({"text": "Hm", "thought": True}, {"text": "B"}, logprobsResult=result))
    assert response.logprob == -0.25
    assert response.alternatives == (("B", -0.25), ("A", -1.5))


@pytest.mark.parametrize(("usage", "logprob"), [(USAGE, -0.5), ({**USAGE, "thoughtsTokenCount": 2}, math.nan)])
def test_a_mean_stands_for_what_is_not_listed_if_it_is_the_texts(usage, logprob):
    assert read(whole({"text": "6"}, avgLogprobs=-0.1, usage=usage)).logprob == pytest.approx(logprob, nan_ok=True)


# -- errors ----------------------------------------------------------------------------------------------------------


def error(code, status, message, *details):
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


INVALID = error(
    400,
    "INVALID_ARGUMENT",
    "API key not valid. Please pass a valid API key.",
    {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"},
)
WAIT = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "27.5s"}


def over(quota):
    violation = {"quotaMetric": "generativelanguage.googleapis.com/requests", "quotaId": quota, "quotaValue": "10"}
    failure = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}
    return error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", failure, WAIT)


MINUTE, DAY = (over(f"GenerateRequestsPer{p}PerProjectPerModel-FreeTier") for p in ("Minute", "Day"))


@pytest.mark.parametrize(
    ("status", "tree", "meaning"),
    [
        (400, INVALID, Meaning(AuthenticationError, SERVICE.advice)),
        (400, [INVALID], Meaning(AuthenticationError, SERVICE.advice)),
        (
            400,
            {"error": {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}},
            Meaning(AuthenticationError, f" LiteLLM does not know the key.{SERVICE.advice}"),
        ),
        (400, error(400, "INVALID_ARGUMENT", "no"), None),
        (403, error(403, "PERMISSION_DENIED", "no"), None),
        (429, MINUTE, Meaning(RateLimitError, "", 27.5)),
        (429, DAY, Meaning(RefusedRequestError, " The quota of the day is used up.")),
        (429, {"error": {"message": "slow"}}, Meaning(RateLimitError)),
        (503, error(503, "UNAVAILABLE", "busy", WAIT), Meaning(ServerError, "", 27.5)),
        (503, error(503, "UNAVAILABLE", "busy"), None),
        (500, {"error": {"details": [1, {"retryDelay": "soon", "violations": 3}]}}, None),
    ],
)
def test_errors_are_read_as_google_writes_them(status, tree, meaning):
    assert GEMINI.meaning(answer(tree, status)) == meaning


def complete(provider, asked=None):
    async def scenario():
        try:
            return await provider.complete(asked or request())
        finally:
            await provider.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("reply", "kind", "words", "wait"),
    [
        (Reply(INVALID, 400), AuthenticationError, "API key not valid. .* Check GOOGLE_API_KEY", None),
        (Reply(MINUTE, 429), RateLimitError, "You exceeded", 27.5),
        (Reply(MINUTE, 429, {"retry-after": "3"}), RateLimitError, "You exceeded", 27.5),
        (Reply({"error": {"message": "x"}}, 429, {"retry-after": "3"}), RateLimitError, "x", 3.0),
        (Reply(DAY, 429), RefusedRequestError, "quota of the day is used up", None),
        (Reply([error(503, "UNAVAILABLE", "overloaded")], 503), ServerError, "HTTP 503: overloaded", None),
        (Reply(whole({"text": "6" * 999}), hang_up=True), ConnectionFailedError, "no complete answer", None),
        (
            Reply(b"<html>", headers={"content-type": "text/html"}),
            MalformedResponseError,
            "is the base URL right",
            None,
        ),
        (Reply(error(500, "INTERNAL", f"with {KEY} in it"), 500), ServerError, r"with \[key\] in it", None),
        (Reply(error(500, "INTERNAL", f"not {OTHER_KEY}"), 500), ServerError, r"not \[key\]$", None),
    ],
)
def test_faults_over_http_are_typed(reply, kind, words, wait):
    with Replies(reply) as server, pytest.raises(ProviderError, match=words) as raised:
        complete(Gemini(server.url, api_key=KEY))
    assert type(raised.value) is kind and raised.value.retry_after == wait
    assert KEY not in str(raised.value) and OTHER_KEY not in str(raised.value)


# -- through ember ---------------------------------------------------------------------------------------------------


def session(server, **more):
    provider = Gemini(server.url, api_key=KEY)
    return ember.session(journal=None, providers={"gemini": provider}, retry=ember.Retry(first=0.0), **more)


def test_a_choice_has_probabilities():
    result = {
        "chosenCandidates": [{"token": "B", "logProbability": math.log(0.6)}],
        "topCandidates": [place(("B", math.log(0.6)), ("A", math.log(0.2)))],
    }
    with Replies(Reply(whole({"text": "B"}, logprobsResult=result))) as server, session(server):
        choice = ember.LLM("gemini/gemini-2.5-flash").choose("Which?", ["yes", "no"])
    assert int(choice.index) == 1
    assert choice.probs.tolist() == pytest.approx([0.25, 0.75])
    assert server.asked[0].body["generationConfig"] == {"responseLogprobs": True, "logprobs": 20}


def test_a_choice_does_without_log_probabilities_where_they_are_refused():
    refused = Reply(error(400, "INVALID_ARGUMENT", "Logprobs is not enabled for models/gemini-2.5-flash"), 400)
    with Replies(refused, Reply(whole({"text": "A"}))) as server, session(server):
        choice = ember.LLM("gemini/gemini-2.5-flash").choose("Which?", ["yes", "no"])
    assert choice.probs.tolist() == [1.0, 0.0]
    assert "generationConfig" not in server.asked[1].body


class Sum(NamedTuple):
    a: int
    words: ember.Text


def test_a_structured_answer_is_asked_for_by_its_schema():
    with Replies(Reply(whole({"text": '{"a": 6, "words": "six"}'}))) as server, session(server):
        found = ember.LLM("gemini/gemini-2.5-flash").structured("3 + 3?", Sum)
    assert (int(found.a), str(found.words)) == (6, "six")
    asked = server.asked[0].body["generationConfig"]
    assert asked["responseMimeType"] == "application/json"
    assert asked["responseJsonSchema"]["required"] == ["a", "words"]


def test_a_schema_that_is_refused_goes_into_the_prompt():
    refused = Reply(error(400, "INVALID_ARGUMENT", "The schema is too complex"), 400)
    with Replies(refused, Reply(whole({"text": '{"a": 6, "words": "six"}'}))) as server, session(server):
        ember.LLM("gemini/gemini-2.5-flash").structured("3 + 3?", Sum)
    assert server.asked[1].body["generationConfig"] == {"responseMimeType": "application/json"}
    assert '"additionalProperties"' in server.asked[1].body["contents"][0]["parts"][0]["text"]


def test_a_blocked_prompt_fails_its_lane_and_is_not_asked_again():
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 10}}
    with Replies(Reply(blocked)) as server, session(server), pytest.raises(NoAnswerError) as raised:
        ember.LLM("gemini/gemini-2.5-flash")("hello")
    assert raised.value.finish == Finish.CONTENT_FILTER
    assert len(server.asked) == 1


def test_a_wait_that_the_body_asks_for_is_kept():
    soon = over("GenerateRequestsPerMinute")
    soon["error"]["details"][1]["retryDelay"] = "0.01s"
    with Replies(Reply(soon, 429), Reply(whole({"text": "6"}))) as server, session(server):
        assert str(ember.jit(ember.LLM("gemini/gemini-2.5-flash"))("3 + 3?")) == "6"
    assert len(server.asked) == 2


def test_a_sweep_is_asked_at_once():
    with Replies(Reply(whole({"text": "6"}))) as server, session(server):
        said = jax.jit(jax.vmap(ember.LLM("gemini/gemini-2.5-flash")))(ember.text([f"{i}?" for i in range(5)]))
    assert said.tolist() == ["6"] * 5
    assert {asked.path for asked in server.asked} == {"/v1/models/gemini-2.5-flash:generateContent"}
    assert len(server.asked) == 5


# -- vectors ---------------------------------------------------------------------------------------------------------

DIM = 16
EMBEDDER = "gemini/gemini-embedding-001"


def texts_in(body):
    """The texts of a request, each of which is the one part of a content of its own."""
    contents = [one["content"]["parts"] for one in body["requests"]]
    assert all(len(parts) == 1 for parts in contents)
    return [part["text"] for (part,) in contents]


def embedded(body, change=lambda vectors: None):
    """What Google answers: simulated vectors, in the order of the texts; with something changed in their list."""
    texts = texts_in(body)
    vectors = [vector(t, one["outputDimensionality"]) for t, one in zip(texts, body["requests"], strict=True)]
    words = sum(len(text.split()) for text in texts)
    values = [{"values": v.tolist()} for v in vectors]
    change(values)
    return Reply({"embeddings": values, "usageMetadata": {"promptTokenCount": words}})


def expected(texts):
    return np.stack([vector(text, DIM) for text in texts])


def test_a_thousand_lanes_are_ten_requests_of_a_hundred_contents():
    texts = [f"text number {i}" for i in range(1000)]
    with Replies(embedded) as server, session(server) as run:
        found = jax.vmap(ember.Embedder(EMBEDDER, dim=DIM))(ember.text(texts))
        assert np.array_equal(found, expected(texts))
    assert [len(asked.body["requests"]) for asked in server.asked] == [100] * 10
    assert sorted(text for asked in server.asked for text in texts_in(asked.body)) == sorted(texts)
    report = run.report()
    assert (report.calls, report.requests, report.input_tokens) == (1000, 10, 3000)
    assert report.cost_usd == pytest.approx(3000 * 0.15e-6)


@pytest.mark.parametrize(
    "change",
    [lambda vectors: vectors.pop(), lambda vectors: vectors.clear(), lambda vectors: vectors.append(vectors[0])],
)
def test_vectors_that_are_not_one_for_each_text_are_asked_for_again(change):
    texts = ["a b", "c", "d e f"]
    with Replies(lambda body: embedded(body, change), embedded) as server, session(server) as run:
        found = jax.vmap(ember.Embedder(EMBEDDER, dim=DIM))(ember.text(texts))
    assert np.array_equal(found, expected(texts))
    assert len(server.asked) == 2 and run.report().input_tokens == 12  # the first is billed, too


@pytest.mark.parametrize("values", [[math.nan] * DIM, [], ["a"] * DIM, None])
def test_a_vector_that_is_none_is_told(values):
    def change(vectors):
        vectors[0]["values"] = values

    with (
        Replies(lambda body: embedded(body, change)) as server,
        ember.session(
            journal=None, providers={"gemini": Gemini(server.url, api_key=KEY)}, retry=ember.Retry(attempts=1)
        ),
        pytest.raises(MalformedResponseError, match=r"not finite|no numbers"),
    ):
        ember.Embedder(EMBEDDER, dim=DIM)("a")


def test_an_empty_text_that_is_refused_fails_its_own_lane_alone():
    refused = Reply(error(400, "INVALID_ARGUMENT", "The text content is empty."), 400)

    def answer(body):
        return embedded(body) if all(texts_in(body)) else refused

    texts = [f"t {i}" for i in range(64)]
    texts[9] = texts[40] = ""
    with Replies(answer) as server, pytest.raises(ember.errors.SweepError) as caught, session(server):
        jax.vmap(ember.Embedder(EMBEDDER, dim=DIM))(ember.text(texts))
    assert [failure.lane for failure in caught.value.failures] == [(9,), (40,)]
    cause = caught.value.failures[0].cause
    assert isinstance(cause, RefusedRequestError) and "text content is empty. The text has no words" in str(cause)
    # All of them, without dimensions too as they may be why; then the empty one likewise, and the others.
    assert sorted(len(asked.body["requests"]) for asked in server.asked) == [1, 1, 62, 63, 63]


def test_a_text_that_is_too_long_is_not_sent_and_the_others_are():
    texts = ["a b", "c " * 9000, "d"]
    with Replies(embedded) as server, pytest.raises(ember.errors.SweepError) as caught, session(server):
        jax.vmap(ember.Embedder("gemini/gemini-embedding-2", dim=DIM))(ember.text(texts))
    assert [failure.lane for failure in caught.value.failures] == [(1,)]
    assert "the text has 9,000 tokens or more, and the model reads 8,192" in str(caught.value.failures[0].cause)
    assert [texts_in(asked.body) for asked in server.asked] == [["a b", "d"]]


def test_a_model_that_cannot_shorten_is_asked_without_dimensions():
    native = {"embeddings": [{"values": [0.5] * DIM}]}
    refused = Reply(error(400, "INVALID_ARGUMENT", "output_dimensionality is not supported"), 400)
    with Replies(refused, Reply(native)) as server, session(server):
        found = ember.Embedder("gemini/embedding-001", dim=DIM, task_type="CLUSTERING")("a")
    assert found.tolist() == [0.5] * DIM
    asked = [one.body["requests"][0] for one in server.asked]
    assert [one.get("outputDimensionality") for one in asked] == [DIM, None]
    assert {one["taskType"] for one in asked} == {"CLUSTERING"}


def test_vectors_have_few_parameters():
    built = GEMINI.build(for_vectors("gemini-embedding-001", temperature=0.5))
    assert isinstance(built, Failure) and "no parameter 'temperature' for vectors" in built.words
