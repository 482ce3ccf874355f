"""Cohere's protocol: what is sent, against Cohere's own package; what is read, after its types; faults over HTTP."""

import math

import jax
import loopback
import numpy as np
import pytest
from replies import Replies, Reply

import ember_jax as ember
from ember_jax import errors
from ember_jax.providers.base import DOCUMENT, EMBED, RANK, Message, Request
from ember_jax.providers.cohere import SERVICE, Cohere, CohereVersions
from ember_jax.providers.dialect import Failure
from ember_jax.providers.sim_vectors import likeness, vector

RECORDED = loopback.read("cohere")
COHERE = CohereVersions(SERVICE)
DIM = 16
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
DOCUMENTS = ["cats purr", "dogs bark", "the cats sleep all day", ""]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (*SERVICE.base_variables, *SERVICE.key_variables):
        monkeypatch.delenv(name, raising=False)


def vectors(**parameters):
    return Request("cohere", "embed-v4.0", (Message(EMBED, "a cat"), Message(EMBED, "two dogs")), parameters)


def scores(**parameters):
    documents = Message(DOCUMENT, "a cat"), Message(DOCUMENT, "two dogs")
    return Request("cohere", "rerank-v3.5", (Message(RANK, "a dog"), *documents), parameters)


def session(server, **more):
    given = {"journal": None, "retry": ember.Retry(first=0.0), **more}
    return ember.session(providers={"cohere": Cohere(server.url, api_key="k")}, **given)


def embedded(body, change=lambda vectors: None):
    """What Cohere answers to `/v2/embed`: simulated vectors."""
    found = [vector(text, body.get("output_dimension", DIM)).tolist() for text in body["texts"]]
    change(found)
    meta = {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": sum(len(t.split()) for t in body["texts"])},
    }
    said = {"id": "e-1", "response_type": "embeddings_by_type", "embeddings": {"float": found}, "meta": meta}
    return Reply({**said, "texts": body["texts"]})


def ranked(body, change=lambda results: None):
    """What Cohere answers to `/v2/rerank`: simulated scores, the best first."""
    found = [likeness(body["query"], document) for document in body["documents"]]
    results = [{"index": i, "relevance_score": found[i]} for i in sorted(range(len(found)), key=lambda i: -found[i])]
    change(results)
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    return Reply({"id": "r-1", "results": results, "meta": meta})


# -- what is sent ----------------------------------------------------------------------------------------------------

# The calls that `sdk/record_cohere.py` makes of Cohere's package, in our words.
OURS = {
    "vectors": vectors(encoding_format="base64"),
    "short vectors": vectors(
        dimensions=256, input_type="search_query", truncate="NONE", max_tokens=512, priority=3, encoding_format="base64"
    ),
    "scores": scores(),
    "scores of the beginning": scores(max_tokens_per_doc=100, priority=3),
}


def test_the_fixture_has_the_calls_that_are_made_here():
    assert RECORDED["sdk"] == "cohere 7.3.1"
    assert RECORDED["sent"].keys() == {*OURS, "models"}


@pytest.mark.parametrize("call", OURS)
def test_what_is_sent_is_what_coheres_package_sends(call):
    url, headers, sent = Cohere("http://host", api_key="(key)").build(OURS[call])
    theirs = RECORDED["sent"][call]
    assert url == f"http://host{theirs['path']}"
    ours = {name.lower(): value for name, value in headers.items()}
    assert {**ours, "accept": "*/*"} == theirs["headers"]  # our client adds it when it sends
    assert sent == theirs["body"]


def test_models_are_listed_as_coheres_package_lists_them():
    assert COHERE.listing.page("") == RECORDED["sent"]["models"]["path"]
    first = {"models": [{"name": "embed-v4.0"}, {"name": "rerank-v3.5"}], "next_page_token": "t"}
    with Replies(Reply(first), Reply({"models": [{"name": "command-a-03-2025"}]})) as server, session(server):
        assert ember.models("cohere") == ["cohere/command-a-03-2025", "cohere/embed-v4.0", "cohere/rerank-v3.5"]
    assert server.asked[1].path == "/v1/models?page_size=1000&page_token=t"


@pytest.mark.parametrize("name", ["texts", "inputs", "embedding_types", "model"])
def test_what_the_call_itself_sets_is_no_setting_of_vectors(name):
    built = COHERE.build(vectors(**{name: 1}))
    assert isinstance(built, Failure) and f"'{name}' is not yours to set" in built.words


@pytest.mark.parametrize("name", ["query", "documents", "model", "top_n"])
def test_what_the_call_itself_sets_is_no_setting_of_scores(name):
    built = COHERE.build(scores(**{name: 1}))
    assert isinstance(built, Failure) and f"'{name}' is not yours to set" in built.words


def test_the_environment_is_that_of_coheres_package(monkeypatch):
    with pytest.raises(errors.AuthenticationError, match=r"CO_API_KEY, or register\('cohere', Cohere"):
        Cohere().build(vectors())
    monkeypatch.setenv("COHERE_API_KEY", "second")
    assert Cohere().build(vectors())[:2] == (
        "https://api.cohere.com/v2/embed",
        {"Content-Type": "application/json", "Authorization": "Bearer second"},
    )
    monkeypatch.setenv("CO_API_KEY", "first")
    monkeypatch.setenv("CO_API_URL", "http://proxy/")
    url, headers, _ = Cohere().build(scores())
    assert (url, headers["Authorization"]) == ("http://proxy/v2/rerank", "Bearer first")


def test_chat_goes_to_the_endpoint_for_openais_clients_and_is_not_streamed():
    answer = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE}
    with Replies(Reply(answer)) as server, session(server):
        llm = ember.LLM("cohere/command-a", max_completion_tokens=5, stop="x")
        assert "".join(llm.stream("hello")) == "hi"
    (asked,) = server.asked
    assert asked.path == "/compatibility/v1/chat/completions"
    messages = [{"role": "user", "content": "hello"}]
    assert asked.body == {"model": "command-a", "messages": messages, "max_tokens": 5, "stop": "x"}


# -- vectors ---------------------------------------------------------------------------------------------------------


def test_two_hundred_lanes_are_three_requests():
    texts = [f"text number {i}" for i in range(200)]
    with Replies(embedded) as server, session(server) as run:
        found = jax.vmap(ember.Embedder("cohere/embed-v4.0", dim=DIM))(ember.text(texts))
    assert np.array_equal(found, np.stack([vector(text, DIM) for text in texts]))
    assert sorted(len(asked.body["texts"]) for asked in server.asked) == [200 - 2 * 96, 96, 96]
    assert {asked.body["input_type"] for asked in server.asked} == {"search_document"}
    report = run.report()
    assert (report.calls, report.requests, report.input_tokens) == (200, 3, 600)
    assert report.cost_usd == pytest.approx(600 * 0.12e-6)


def test_questions_are_another_kind_of_input_and_share_no_batch_with_documents():
    documents = ember.Embedder("cohere/embed-v4.0", dim=DIM)
    questions = ember.Embedder("cohere/embed-v4.0", dim=DIM, input_type="search_query")
    with Replies(embedded) as server, session(server):
        jax.vmap(lambda text: documents(text) @ questions(text))(ember.text(["a", "b"]))
    assert {(one.body["input_type"], *one.body["texts"]) for one in server.asked} == {
        ("search_document", "a", "b"),
        ("search_query", "a", "b"),
    }


@pytest.mark.parametrize("change", [lambda found: found.pop(), lambda found: found[1].pop()])
def test_vectors_that_are_not_one_for_each_text_are_asked_for_again(change):
    with Replies(lambda body: embedded(body, change), embedded) as server, session(server) as run:
        found = jax.vmap(ember.Embedder("cohere/embed-v4.0", dim=DIM))(ember.text(["a b", "c"]))
    assert np.array_equal(found, np.stack([vector("a b", DIM), vector("c", DIM)]))
    assert len(server.asked) == 2 and run.report().input_tokens == 6


def test_a_model_of_one_length_is_asked_without_dimensions():
    refused = Reply({"id": "1", "message": "output_dimension is not supported by embed-english-v3.0"}, 400)
    with Replies(refused, embedded) as server, session(server):
        found = ember.Embedder("cohere/embed-english-v3.0", dim=DIM)("a")
    assert np.array_equal(found, vector("a", DIM))
    assert ["output_dimension" in asked.body for asked in server.asked] == [True, False]


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ember_jax.errors.UnknownPriceWarning")
def test_scores_are_those_of_the_documents_in_their_order(tmp_path):
    reranker = ember.Reranker("cohere/rerank-v3.5")
    queries = ember.text(["cats", "dogs bark", "cats"])
    expected = [[likeness(query, document) for document in DOCUMENTS] for query in queries.tolist()]
    with Replies(ranked) as server:
        with session(server, journal=tmp_path / "run.db") as run:
            found = jax.vmap(reranker, (0, None))(queries, ember.text(DOCUMENTS))
        np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
        assert sorted(one.body["query"] for one in server.asked) == ["cats", "dogs bark"]
        assert all(one.body["documents"] == DOCUMENTS for one in server.asked)
        assert math.isnan(run.report().cost_usd)  # which is counted in search units
        with session(server, journal=tmp_path / "run.db", budget_usd=0) as run:
            again = jax.vmap(reranker, (0, None))(queries, ember.text(DOCUMENTS))
        np.testing.assert_array_equal(again, found)
        assert len(server.asked) == 2 and (run.report().replayed, run.report().cost_usd) == (3, 0)


def test_what_a_service_says_of_an_error_is_told():
    said = Reply({"id": "1", "message": "invalid request: documents must not be empty strings"}, 400)
    with (
        Replies(said) as server,
        session(server),
        pytest.raises(errors.RefusedRequestError, match="HTTP 400: invalid request: documents must not be empty"),
    ):
        ember.Reranker("cohere/rerank-v3.5")("a", [""])
    assert len(server.asked) == 1
