"""`Reranker`: the scores of documents as arrays, one request for a query and its documents."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from replies import Replies, Reply

import ember_jax as ember
from ember_jax import errors, non, testing
from ember_jax._runtime import session as sessions
from ember_jax.providers.compatible import Compatible
from ember_jax.providers.sim_vectors import likeness

FORMS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit}
DOCUMENTS = ["cats purr", "dogs bark", "the cats sleep all day", ""]
QUERIES = ["cats", "who barks? dogs bark", "rain", "cats sleep"]
VLLM = "vllm/BAAI/bge-reranker-base"
ONCE = ember.Retry(attempts=1)

pytestmark = pytest.mark.filterwarnings("ignore::ember_jax.errors.UnknownPriceWarning")


def expected(queries, documents):
    return np.array([[likeness(query, document) for document in documents] for query in queries], np.float32)


@contextlib.contextmanager
def served(server, url="", **given):
    """A session whose `vllm` is a server on this machine; its connections are closed at the end."""
    provider = Compatible("vllm", base_url=url or server.base_url)
    try:
        quick = {"journal": None, "retry": ember.Retry(first=0.0)}
        with ember.session(providers={"vllm": provider}, **{**quick, **given}) as run:
            yield run
    finally:
        sessions.loop().submit(provider.close()).result(30)


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


# -- scores ----------------------------------------------------------------------------------------------------------


def test_simulated_scores_are_the_cosine_of_the_words():
    assert likeness("cats", "Cats purr!") == 1 / math.sqrt(2)
    assert likeness("a b c", "c d e f a a") == 2 / math.sqrt(3 * 5)  # a, c, d, e, f
    assert likeness("a b", "b a") == pytest.approx(1) and likeness("a", "b") == likeness("", "a") == 0


def test_scores_are_those_of_the_documents_in_every_form(form):
    reranker = ember.Reranker("sim/small")
    documents = ember.text(DOCUMENTS)
    many = form(jax.vmap(reranker, (0, None)))(ember.text(QUERIES), documents)
    assert many.shape == (4, 4) and many.dtype == jnp.float32
    assert np.array_equal(many, expected(QUERIES, DOCUMENTS))
    assert np.array_equal(form(reranker)(ember.text(QUERIES[1]), documents), many[1])
    both = ember.text([DOCUMENTS, DOCUMENTS[::-1]])
    own = form(jax.vmap(jax.vmap(reranker, (None, 0)), (0, None)))(ember.text(QUERIES), both)
    assert np.array_equal(own, np.stack([many, many[:, ::-1]], 1))


def test_one_document_has_one_score(form):
    score = form(ember.Reranker("sim/small"))(ember.text("cats"), ember.text("cats purr"))
    assert score.shape == () and score == np.float32(1 / math.sqrt(2))


def test_documents_may_be_a_list():
    reranker = ember.Reranker("sim/small")
    found = expected(["cats"], DOCUMENTS)[0]
    assert np.array_equal(reranker("cats", DOCUMENTS), found)
    assert np.array_equal(reranker("cats", [ember.text(DOCUMENTS[0]), *DOCUMENTS[1:]]), found)


def test_nothing_is_asked_about_no_documents_and_in_no_lanes(form):
    reranker = ember.Reranker("sim/small")
    with ember.session(journal=None) as run:
        assert form(reranker)(ember.text("cats"), ember.text(DOCUMENTS)[:0]).shape == (0,)
        assert reranker("cats", []).shape == (0,) and reranker("cats", []).dtype == jnp.float32
        none = form(jax.vmap(reranker, (0, None)))(ember.text(QUERIES)[:0], ember.text(DOCUMENTS))
        assert none.shape == (0, 4)
        assert form(jax.vmap(ember.Embedder("sim/small", dim=3)))(ember.text(QUERIES)[:0]).shape == (0, 3)
    assert run.report().calls == 0


def test_gradients_pass_through_the_numbers_and_not_the_words(form):
    reranker = ember.Reranker("sim/small")
    loss = lambda w, query: w @ reranker(query, DOCUMENTS)
    grad = form(jax.grad(loss))(jnp.arange(4.0), ember.text("cats"))
    assert np.array_equal(grad, expected(["cats"], DOCUMENTS)[0])


def test_a_model_may_be_mapped():
    with ember.session(journal=None) as run:
        jax.vmap(lambda m: ember.Reranker(m)("a", ["a", "b"]))(ember.text(["sim/small", "sim/large", "sim/small"]))
    assert (run.report().calls, run.report().requests) == (3, 2)


def test_a_failed_text_is_not_asked_about():
    def answer(request):
        raise errors.RefusedRequestError("mine/bad: no.")

    with ember.session(providers={"mine": ember.providers.Callable(answer)}, journal=None) as run:
        answer, _ = ember.attempt(ember.LLM("mine/bad"))(ember.text("q"))
        found = ember.Reranker("sim/small")("cats", ember.stack([answer, ember.text("cats")]))
    assert jnp.isnan(found).all() and run.report().calls == 1


def test_a_plan_says_for_what_it_asks():
    @ember.operator
    def best(query: ember.Text, documents: ember.Text["4"]) -> ember.Text:
        return documents[jnp.argmax(ember.Reranker("sim/small")(query, documents))]

    query, documents = ember.text("cats"), ember.text(DOCUMENTS)
    plan = ember.lower(best)(query, documents)
    assert "ask sim/small for scores" in plan.explain()
    with ember.session(journal=None) as run:
        assert str(ember.jit(best)(query, documents)) == "cats purr"
    bounds, report = plan.estimate(), run.report()
    assert bounds.input_tokens.least <= report.input_tokens <= bounds.input_tokens.most
    assert (bounds.output_tokens.most, report.output_tokens, bounds.calls.most) == (0, 0, 1)
    assert bounds.cost_usd.least <= report.cost_usd <= bounds.cost_usd.most


def test_an_estimate_bounds_a_query_that_is_not_known_and_is_read_with_each_document():
    def wordy(request):
        return " ".join(["word"] * 300)

    @ember.operator
    def program(question: ember.Text, documents: ember.Text["4"]) -> jax.Array:
        return ember.Reranker("sim/small")(ember.LLM("mine/wordy", max_tokens=300)(question), documents)

    arguments = ember.text("a"), ember.text(DOCUMENTS)
    with ember.session(providers={"mine": ember.providers.Callable(wordy)}, journal=None) as run:
        bounds = ember.lower(program)(*arguments).estimate()
        ember.jit(program)(*arguments)
    assert run.report().input_tokens == 4 * 300 + 9 <= bounds.input_tokens.most < 2 * (4 * 300 + 9)
    assert bounds.input_tokens.least == 1 + 9  # the words of the question and of the documents


def test_what_are_no_texts_is_refused():
    reranker = ember.Reranker("sim/small")
    with pytest.raises(errors.TextError, match=r"the query has shape \[2\]; a Reranker takes one"):
        reranker(ember.text(["a", "b"]), DOCUMENTS)
    with pytest.raises(errors.TextError, match=r"have shape \[1, 2\].*for each query, `jax.vmap\(reranker\)"):
        reranker("a", ember.text([["a", "b"]]))
    with pytest.raises(errors.TextError, match="documents as a Text or a list of strings; got int"):
        reranker("a", 3)
    with pytest.raises(TypeError, match="top_k"):
        ember.Reranker("sim/small", top_n=3)
    for asked in (ember.Reranker, lambda *args, **given: ember.Embedder(*args, dim=3, **given)):
        with pytest.raises(TypeError, match="no system prompt"):
            asked("sim/small", system="Be brief.")
    with pytest.raises(errors.ModelError, match="no simulated model"):
        ember.Reranker("sim/tiny")
    assert repr(ember.Reranker("sim/small", max_tokens_per_doc=9)) == "Reranker('sim/small', max_tokens_per_doc=9)"


# -- over HTTP -------------------------------------------------------------------------------------------------------


def test_a_query_and_its_documents_are_one_request_that_is_kept(form, tmp_path):
    reranker, documents = ember.Reranker(VLLM), ember.text(DOCUMENTS)
    with testing.ChatServer() as server:
        for turn in range(2):
            with served(server, journal=tmp_path / "run.db") as run:
                found = form(jax.vmap(reranker, (0, None)))(ember.text(QUERIES), documents)
            assert np.array_equal(found, expected(QUERIES, DOCUMENTS))
            assert (len(server.requests), run.report().replayed) == (4, 4 * turn)
        with served(server, journal=tmp_path / "run.db"):  # among others it is another question
            reranker(QUERIES[0], DOCUMENTS[:3])
    assert len(server.requests) == 5
    asked = {"model": "BAAI/bge-reranker-base", "query": QUERIES[0], "documents": DOCUMENTS[:3]}
    assert server.requests[-1].body == asked
    assert run.report().input_tokens == 0  # all of it was replayed


def edited(change):
    """A fault in the first answer."""

    def edit(body):
        change(body["results"])
        return body

    return [testing.Fault(edit=edit)]


FAULTS = [
    (lambda results: results.pop(), "3 scores for 4 documents"),
    (lambda results: results.clear(), "0 scores for 4 documents"),
    (lambda results: results[0].update(index=4), "4 scores for 4 documents, or not one for each"),
    (lambda results: results[0].update(index=results[1]["index"]), "or not one for each"),
    (lambda results: results[0].update(relevance_score=math.nan), "score of document 0 is no finite number"),
    (lambda results: results[1].pop("relevance_score"), "score of document 2 is no finite number"),
    (lambda results: results[0].update(index="first"), "not a list of scores"),
]


@pytest.mark.parametrize("change, words", FAULTS)
def test_an_answer_without_a_score_for_each_document_is_asked_for_again(change, words):
    with testing.ChatServer(faults=edited(change)) as server, served(server) as run:
        assert np.array_equal(ember.Reranker(VLLM)("cats", DOCUMENTS), expected(["cats"], DOCUMENTS)[0])
    assert (len(server.requests), run.report().failed) == (2, 1)
    assert run.report().input_tokens == server.input_tokens  # what the first has taken is billed
    with (
        testing.ChatServer(faults=edited(change)) as server,
        pytest.raises(errors.MalformedResponseError, match=words),
        served(server, retry=ONCE),
    ):
        ember.Reranker(VLLM)("cats", DOCUMENTS)


@pytest.mark.parametrize(
    "made",
    [
        lambda found: [{"index": i, "score": s, "document": "x", "meta_info": {}} for i, s in found],  # SGLang
        lambda found: {
            "results": [{"index": i, "relevance_score": s} for i, s in found],
            "object": "list",
        },  # llama.cpp
        lambda found: {"usage": None, "results": [{"index": str(i), "relevance_score": str(s)} for i, s in found]},
    ],
)
def test_servers_say_scores_in_several_ways(made):
    def answer(body):
        scored = [(i, likeness(body["query"], document)) for i, document in enumerate(body["documents"])]
        return Reply(made(sorted(scored, key=lambda pair: -pair[1])))

    with Replies(answer) as server, served(server, server.url):
        found = ember.Reranker(VLLM)("cats", DOCUMENTS)
    assert np.array_equal(found, expected(["cats"], DOCUMENTS)[0])
    assert server.asked[0].path == "/v1/rerank"


def test_scores_below_zero_are_scores():
    results = [{"index": 1, "relevance_score": 3.5}, {"index": 0, "relevance_score": -11.25}]
    with Replies(Reply({"results": results})) as server, served(server, server.url):
        assert ember.Reranker(VLLM)("a", ["b", "c"]).tolist() == [-11.25, 3.5]


def test_a_lane_that_fails_is_named():
    refuse = lambda i: testing.Fault(status=400) if server.requests[i].body["query"] == "rain" else None
    with (
        testing.ChatServer(faults=refuse) as server,
        pytest.raises(errors.SweepError) as caught,
        served(server),
    ):
        jax.vmap(ember.Reranker(VLLM), (0, None))(ember.text(QUERIES), ember.text(DOCUMENTS))
    assert [failure.lane for failure in caught.value.failures] == [(2,)] and len(server.requests) == 4


def test_a_budget_knows_what_scores_may_cost():
    price = {"vllm": ember.Price(1.0, 5.0)}
    with testing.ChatServer() as server, served(server, prices=price, budget_usd=1e-3) as run:
        ember.Reranker(VLLM)("cats", DOCUMENTS)
        words = 4 * 1 + 9  # the query before each document, and the documents
        assert run.report().cost_usd == pytest.approx(words * 1e-6) and not run.budget.reserved
    with (
        testing.ChatServer() as server,
        served(server, prices=price, budget_usd=1e-6),
        pytest.raises(errors.BudgetError),
    ):
        ember.Reranker(VLLM)("cats", DOCUMENTS)
    assert not server.requests


def test_documents_that_are_too_long_are_not_sent():
    provider = ember.providers.Cohere("http://127.0.0.1:9", api_key="k")
    with (
        ember.session(providers={"cohere": provider}, journal=None),
        pytest.raises(errors.RefusedRequestError, match="query with the longest document has 128,002 tokens or more"),
    ):
        ember.Reranker("cohere/embed-v4.0")("a b", ["c", "d " * 128_000])  # a model whose window the table knows


def test_a_service_without_scores_says_so():
    anthropic = ember.providers.Anthropic(api_key="k", base_url="http://127.0.0.1:9/v1")
    with (
        ember.session(providers={"anthropic": anthropic}, journal=None),
        pytest.raises(errors.RefusedRequestError, match=r"Anthropic is not asked for scores.*cohere/rerank"),
    ):
        ember.Reranker("anthropic/claude")("a", ["b"])


# -- functions -------------------------------------------------------------------------------------------------------


def test_a_function_gives_scores():
    asked = []

    def predict(pairs):
        asked.append(pairs)
        return np.array([likeness(*pair) for pair in pairs], np.float64)

    provider = ember.providers.Encoder(scores=predict)
    assert repr(provider).startswith("Encoder(scores=test_a_function_gives_scores")
    with ember.session(providers={"mine": provider}, journal=None):
        found = ember.Reranker("mine/model")("cats", DOCUMENTS)
        assert np.array_equal(found, expected(["cats"], DOCUMENTS)[0])
        assert asked == [[("cats", document) for document in DOCUMENTS]]
        with pytest.raises(errors.RefusedRequestError, match=r"gives no vectors; Encoder\(encode\) does"):
            ember.Embedder("mine/model", dim=3)("a")
    with (
        ember.session(providers={"mine": ember.providers.Encoder(predict)}, journal=None),
        pytest.raises(errors.RefusedRequestError, match=r"gives no scores; Encoder\(scores=predict\) does"),
    ):
        ember.Reranker("mine/model")("cats", DOCUMENTS)
    for given in ({}, {"scores": 3}, {"fn": predict, "scores": 3}):
        with pytest.raises(TypeError, match="Encoder"):
            ember.providers.Encoder(**given)


@pytest.mark.parametrize("made, words", [([1.0], r"\[1\] for 2 pairs"), ([[1.0], [2.0]], "one number for each")])
def test_a_function_that_gives_another_shape_is_told(made, words):
    provider = ember.providers.Encoder(scores=lambda pairs: np.array(made))
    with (
        ember.session(providers={"mine": provider}, journal=None, retry=ONCE),
        pytest.raises(errors.MalformedResponseError, match=words),
    ):
        ember.Reranker("mine/model")("a", ["b", "c"])


def test_numbers_that_are_not_finite_fail_the_lane_that_they_are_of():
    def encode(texts):
        return np.array([[math.nan if text == "b" else 1.0] for text in texts])

    provider = ember.providers.Encoder(encode, scores=lambda pairs: np.array([math.inf] * len(pairs)))
    with ember.session(providers={"mine": provider}, journal=None, retry=ONCE):
        with pytest.raises(errors.MalformedResponseError, match="score of document 0 is no finite number"):
            ember.Reranker("mine/model")("a", ["b", "c"])
        with pytest.raises(errors.SweepError) as caught:
            jax.vmap(ember.Embedder("mine/model", dim=1))(ember.text(["a", "b", "c"]))
    assert [failure.lane for failure in caught.value.failures] == [(1,)]
    assert "not finite" in str(caught.value.failures[0].cause)


def test_words_are_no_scores():
    for answer in ("hello", ember.providers.Response("AAAAAAAAAAA=")):
        provider = ember.providers.Callable(lambda request, answer=answer: answer)
        with (
            ember.session(providers={"mine": provider}, journal=None, retry=ONCE),
            pytest.raises(errors.MalformedResponseError, match=r"Encoder\(scores=…\)|2 scores for 1 document"),
        ):
            ember.Reranker("mine/model")("a", ["b"])


# -- in constructs ---------------------------------------------------------------------------------------------------


def test_the_best_of_several_answers_may_be_the_rerankers():
    @ember.operator
    def cats(question: ember.Text) -> ember.Text:
        return ember.text("cats sleep")

    @ember.operator
    def rain(question: ember.Text) -> ember.Text:
        return ember.text("rain falls")

    op = non.BestOfN([rain, cats], ember.Reranker("sim/small"))
    with ember.session(journal=None) as run:
        found = jax.vmap(op)(ember.text(["Where do cats sleep?", "Where is rain?"]))
    assert found.tolist() == ["cats sleep", "rain falls"]
    assert run.report().calls == 4
