"""`Embedder`: vectors as arrays, and texts that share requests."""

import asyncio
import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Int

import ember_jax as ember
from ember_jax import errors, testing
from ember_jax._runtime import batches
from ember_jax._runtime import session as sessions
from ember_jax.providers.base import EMBED, BatchLimits, Message, Request, Response
from ember_jax.providers.compatible import Compatible
from ember_jax.providers.openai import OpenAI
from ember_jax.providers.sim_vectors import vector
from ember_jax.providers.vectors import packed, unpacked

DIM = 32
NATIVE = 256  # the simulated model's own length
MODEL = "openai/text-embedding-3-small"
FORMS = {"eager": lambda f: f, "jax.jit": jax.jit, "ember.jit": ember.jit}
FEW = [f"text number {i}" for i in range(8)]
QUICK = ember.Retry(first=0.0)
LIMITS = BatchLimits()


@contextlib.contextmanager
def served(server, api_key="key", **given):
    """A session whose `openai` is a server on this machine; its connections are closed at the end."""
    provider = OpenAI(base_url=server.base_url, api_key=api_key)
    try:
        with ember.session(providers={"openai": provider}, **{"journal": "memory", "retry": QUICK, **given}) as run:
            yield run
    finally:
        sessions.loop().submit(provider.close()).result(30)


def expected(texts, dim=DIM):
    return np.stack([vector(text, dim) for text in texts])


def inputs(server):
    return [request.body["input"] for request in server.requests]


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


# -- vectors ---------------------------------------------------------------------------------------------------------


def test_a_vector_is_that_of_its_text_in_every_form(form):
    embedder = ember.Embedder("sim/small", dim=DIM)
    many = form(jax.vmap(embedder))(ember.text(FEW))
    assert many.shape == (8, DIM) and many.dtype == jnp.float32
    assert np.array_equal(many, expected(FEW))
    assert np.array_equal(form(embedder)(ember.text(FEW[3])), many[3])


def test_simulated_vectors_have_length_one_and_are_near_where_words_are_shared():
    near, far, same = vector("the cat sat", 512), vector("rain falls here", 512), vector("The CAT sat!", 512)
    text = vector("a cat sat", 512)
    assert np.array_equal(same, near) and math.isclose(float(near @ near), 1, rel_tol=1e-6)
    assert text @ near > 0.5 > 0.2 > abs(float(text @ far))
    assert vector("", 3).shape == (3,)


def test_operators_scans_and_loops_take_vectors():
    embedder = ember.Embedder("sim/small", dim=DIM)

    @ember.operator
    def nearest(question: ember.Text, documents: ember.Text["3"]) -> Int[Array, ""]:
        return jnp.argmax(jax.vmap(embedder)(documents) @ embedder(question))

    documents = ember.text(["cats purr", "dogs bark", "birds sing"])
    questions = ember.text(["birds sing songs", "cats purr softly"])
    with ember.session(journal=None) as run:
        assert jax.vmap(nearest, (0, None))(questions, documents).tolist() == [2, 0]
    assert run.report().calls - run.report().merged == 5
    _, scanned = jax.lax.scan(lambda carry, t: (carry, embedder(t)), 0, documents)
    assert np.array_equal(scanned, expected(documents.tolist()))
    assert "for a vector" in ember.lower(nearest)(questions[0], documents).explain()


def test_gradients_pass_through_the_numbers_and_not_the_words(form):
    embedder = ember.Embedder("sim/small", dim=DIM)
    weights = jnp.arange(DIM, dtype=jnp.float32)
    grad = form(jax.grad(lambda w, t: w @ embedder(t)))(weights, ember.text("a b"))
    assert np.array_equal(grad, vector("a b", DIM))


def test_a_model_may_be_mapped():
    a = jax.vmap(lambda m: ember.Embedder(m, dim=DIM)("x y"))(ember.text(["sim/small", "sim/large"]))
    assert np.array_equal(a[0], a[1])  # simulated vectors do not depend on the model
    with ember.session(journal=None) as run:
        jax.vmap(lambda m: ember.Embedder(m, dim=DIM)("x y"))(ember.text(["sim/small", "sim/large"]))
    assert run.report().requests == 2


def test_what_is_no_text_or_no_length_is_refused():
    embedder = ember.Embedder("sim/small", dim=DIM)
    with pytest.raises(errors.TextError, match="takes one"):
        embedder(ember.text(["a", "b"]))
    with pytest.raises(errors.TextError, match="got int"):
        embedder(3)
    with pytest.raises(ValueError, match="whole number"):
        ember.Embedder("sim/small", dim=0)
    with pytest.raises(TypeError, match="`dim`"):
        ember.Embedder("sim/small", dim=3, dimensions=3)
    with pytest.raises(errors.ModelError, match="no simulated model"):
        ember.Embedder("sim/tiny", dim=3)
    assert repr(embedder) == "Embedder('sim/small', dim=32)"


def test_a_failed_text_is_not_asked_about():
    def answer(request):
        raise errors.RefusedRequestError("mine/bad: no.")

    with ember.session(providers={"mine": ember.providers.Callable(answer)}, journal=None) as run:
        embedder = ember.Embedder("sim/small", dim=DIM)
        answer, ok = ember.attempt(ember.LLM("mine/bad"))(ember.text("q"))
        found = jax.vmap(embedder)(ember.stack([answer, ember.text("a")]))
    assert not ok and jnp.isnan(found[0]).all() and np.array_equal(found[1], vector("a", DIM))
    assert run.report().calls == 2


def test_vectors_are_exact_as_words():
    array = np.array([[1.5, -0.0, 1e-45], [3.4e38, 0.1, -2]], np.float32)
    assert unpacked(packed(array), 2).tobytes() == array.tobytes()
    for words in ("", "?", "AAAA", packed(array[0])):
        with pytest.raises(ValueError):
            unpacked(words, 2)


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["memory", "file"])
def test_a_thousand_lanes_make_eleven_requests(form, kept, tmp_path):
    texts = [f"text number {i}" for i in range(1000)]
    journal = "memory" if kept == "memory" else tmp_path / "run.db"
    with testing.ChatServer() as server, served(server, journal=journal) as run:
        found = form(jax.vmap(ember.Embedder(MODEL, dim=DIM)))(ember.text(texts))
        assert np.array_equal(found, expected(texts))
    assert len(server.requests) == math.ceil(1000 / LIMITS.texts) == run.report().requests
    assert sorted(text for sent in inputs(server) for text in sent) == sorted(texts)
    assert server.requests[0].body.keys() == {"model", "input", "dimensions", "encoding_format"}
    report = run.report()
    assert report.calls == 1000 and report.input_tokens == server.input_tokens == 3000
    told = [call.input_tokens for call in run.calls()]
    assert sum(told) == 3000 and set(told) <= {2, 3, 4}
    assert math.isclose(sum(call.cost for call in run.calls()), report.cost_usd, rel_tol=1e-9) and report.cost_usd > 0


def test_a_call_shows_how_long_its_vector_is(capsys):
    with ember.session(journal=None) as run:
        ember.Embedder("sim/small", dim=1024)("a text")
        ember.LLM("sim/small")("What is 3 + 4?")
        of_vectors, of_words = run.calls()
        run.calls().show()
        printed = capsys.readouterr().out
    assert "-- embed\na text\n\n-- answer\n[1,024 floats]\n" in printed and of_vectors.answer not in printed
    assert of_words.answer in printed


def test_a_batch_is_bounded_by_bytes():
    texts = [str(i) * (LIMITS.tokens // 3) for i in range(7)]
    with testing.ChatServer() as server, served(server):
        jax.vmap(ember.Embedder(MODEL, dim=DIM))(ember.text(texts))
    assert sorted(len(sent) for sent in inputs(server)) == [1, 3, 3]


def test_each_text_by_itself_has_to_fit_the_model_and_not_a_batch():
    texts = [f"{i} " * 100 for i in range(96)]  # more words together than the model reads at once, which is 8,192
    long = ["few words", "word " * 8193]
    embedder = ember.Embedder(MODEL, dim=DIM)
    with testing.ChatServer() as server, served(server):
        assert np.array_equal(jax.vmap(embedder)(ember.text(texts)), expected(texts))
        with pytest.raises(errors.SweepError) as caught:
            jax.vmap(embedder)(ember.text(long))
    assert [len(sent) for sent in inputs(server)] == [96, 1]
    (failure,) = caught.value.failures
    assert failure.lane == (1,) and "not sent, as the text has 8,193 tokens or more" in str(failure.cause)


@pytest.mark.parametrize(
    "name, sent, most", [("mistral", "output_dimension", 16_384), ("vllm", "dimensions", LIMITS.tokens)]
)
def test_services_have_their_own_names_and_limits(name, sent, most):
    """Of OpenAI's dialect; a token has a byte at least."""
    texts = [f"{i} {'x' * 1000}" for i in range(48)]
    with testing.ChatServer() as server:
        provider = Compatible(name, base_url=server.base_url, api_key="k")
        try:
            with ember.session(providers={name: provider}, journal=None, retry=ember.Retry(attempts=1)):
                # The server, which has no such parameter as Mistral's, gives vectors of its own length.
                found = jax.vmap(ember.Embedder(f"{name}/an-embedder", dim=NATIVE))(ember.text(texts))
        finally:
            sessions.loop().submit(provider.close()).result(30)
    assert np.array_equal(found, expected(texts, NATIVE))
    assert {request.body.get(sent) for request in server.requests} == {NATIVE}
    assert len({"dimensions", "output_dimension"} & server.requests[0].body.keys()) == 1
    sizes = [sum(map(len, request)) for request in inputs(server)]
    assert max(sizes) <= most and len(sizes) == {"mistral": 48 // 16, "vllm": 1}[name]


def test_equal_texts_are_one_and_a_larger_sweep_pays_for_what_is_new(tmp_path):
    embedder = ember.Embedder(MODEL, dim=DIM)
    with testing.ChatServer() as server:
        with served(server, journal=tmp_path / "run.db"):
            first = jax.vmap(embedder)(ember.text(["a", "b", "a", "c"]))
        assert inputs(server) == [["a", "b", "c"]]
        with served(server, journal=tmp_path / "run.db", budget_usd=0) as run:
            again = jax.jit(jax.vmap(embedder))(ember.text(["a", "b", "a", "c"]))
        assert np.array_equal(first, again) and run.report().replayed == 4 and len(server.requests) == 1
        with served(server, journal=tmp_path / "run.db"):
            jax.vmap(embedder)(ember.text(["d", "c", "b", "e", "a"]))
        assert inputs(server)[1:] == [["d", "e"]]
        with served(server, journal=tmp_path / "run.db"):  # of another length it is another question
            jax.vmap(ember.Embedder(MODEL, dim=8))(ember.text(["a"]))
        assert len(server.requests) == 3


def test_a_question_for_a_vector_is_none_for_words():
    ask = Request("p", "m", (Message("user", "q"),))
    assert ask.digest() != Request("p", "m", (Message(EMBED, "q"),)).digest()
    assert not ask.embeds


@pytest.mark.parametrize("limit", [ember.Limit(in_flight=1), ember.Limit(rpm=600), ember.Limit(tpm=10**6)])
def test_a_batch_is_one_request_for_limits(limit):
    with testing.ChatServer() as server, served(server, limits={"openai": limit}) as run:
        jax.vmap(ember.Embedder(MODEL, dim=DIM))(ember.text([f"t {i}" for i in range(300)]))
    assert len(server.requests) == 4
    assert run.statistics()[MODEL].admitted == 4
    assert server.in_flight_max == 1 or limit.in_flight is None


def test_a_scheduler_and_a_budget_see_batches():
    given = {"scheduler": ember.CriticalPath(), "budget_usd": 0.01}
    with testing.ChatServer() as server, served(server, **given) as run:
        jax.vmap(ember.Embedder(MODEL, dim=DIM))(ember.text([f"t {i}" for i in range(200)]))
    assert len(server.requests) == 3
    assert math.isclose(run.budget.spent, run.report().cost_usd, rel_tol=1e-6) and not run.budget.reserved


def test_batching_takes_no_time():
    sim = ember.providers.Sim({"quarter": ember.providers.SimModel(latency=0.25)})
    with testing.VirtualClock() as clock, ember.session(providers={"sim": sim}, journal=None) as run:
        jax.block_until_ready(jax.vmap(ember.Embedder("sim/quarter", dim=DIM))(ember.text(FEW * 50)))
        assert clock.now == 0.25
        jax.block_until_ready(ember.jit(jax.vmap(ember.Embedder("sim/quarter", dim=8)))(ember.text(FEW)))
        assert clock.now == 0.5
    assert run.report().requests == 2


def test_shares_are_whole_and_sum_to_the_total():
    for total, sizes in [(10, [1, 1, 1]), (0, [3, 4]), (7, [0, 0]), (1000, [5, 0, 95]), (3, [1] * 7)]:
        given = batches.shares(total, sizes)
        assert sum(given) == total
        whole = sum(sizes)
        assert not whole or all(abs(g - total * s / whole) < 1 for g, s in zip(given, sizes, strict=True))


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_batch_is_tried_again_as_one(status):
    faults = [testing.Fault(status=status)] * 3
    with testing.ChatServer(faults=faults) as server, served(server) as run:
        found = jax.vmap(ember.Embedder(MODEL, dim=DIM))(ember.text(FEW))
    assert np.array_equal(found, expected(FEW))
    assert [len(sent) for sent in inputs(server)] == [8] * 4
    assert run.report().retries == 3 and run.report().throttled == 3 * (status == 429)
    assert [call.attempts for call in run.calls()] == [4] * 8


def test_a_batch_that_fails_is_told_to_each_lane():
    with (
        testing.ChatServer(faults=lambda i: testing.Fault(status=500)) as server,
        pytest.raises(errors.SweepError) as caught,
        served(server, retry=ember.Retry(attempts=2, first=0.0)),
    ):
        jax.vmap(ember.Embedder(MODEL, dim=DIM))(ember.text(FEW))
    assert len(server.requests) == 2
    assert [failure.lane for failure in caught.value.failures] == [(i,) for i in range(8)]
    assert all(isinstance(failure.cause, errors.ServerError) for failure in caught.value.failures)
    assert len({id(failure.cause) for failure in caught.value.failures}) == 8


def test_a_bad_text_fails_its_own_lane_alone(tmp_path):
    texts = [*FEW[:5], "", *FEW[5:]]
    embedder = ember.Embedder(MODEL, dim=DIM)
    with testing.ChatServer() as server:
        with pytest.raises(errors.SweepError) as caught, served(server, journal=tmp_path / "run.db"):
            jax.vmap(embedder)(ember.text(texts))
        (failure,) = caught.value.failures
        assert failure.lane == (5,) and isinstance(failure.cause, errors.RefusedRequestError)
        paid = len(server.answered)
        with served(server, journal=tmp_path / "run.db") as run:
            assert np.array_equal(jax.vmap(embedder)(ember.text(FEW)), expected(FEW))
        assert len(server.answered) == paid and run.report().replayed == 8


def test_a_wrong_key_is_told_once_and_without_it():
    secret = "sk-wrong-0123456789abcdef"
    with (
        testing.ChatServer(api_key="right") as server,
        pytest.raises(errors.SweepError) as caught,
        served(server, api_key=secret),
    ):
        jax.vmap(ember.Embedder(MODEL, dim=DIM))(ember.text([f"t {i}" for i in range(300)]))
    assert len(caught.value.failures) == 300 and secret not in str(caught.value)
    assert all(isinstance(failure.cause, errors.AuthenticationError) for failure in caught.value.failures)
    assert len(server.requests) <= 4


def edited(change):
    def edit(body):
        change(body)
        return body

    return lambda i: testing.Fault(edit=edit)


def test_another_length_names_the_models_own():
    def ignore(body):
        for item in body["data"]:
            item["embedding"] = [0.0] * 7

    with testing.ChatServer(faults=edited(ignore)) as server, served(server):
        with pytest.raises(errors.MalformedResponseError, match=r"length 7, not 32.*Embedder\('openai/.*', dim=7\)"):
            ember.Embedder(MODEL, dim=DIM)("a")
        assert np.array_equal(ember.Embedder(MODEL, dim=7)("a"), np.zeros(7))


def test_an_answer_without_a_vector_for_each_text_is_none():
    with (
        testing.ChatServer(faults=edited(lambda body: body["data"].pop())) as server,
        pytest.raises(errors.SweepError, match="7 vectors for 8 texts"),
        served(server, retry=ember.Retry(attempts=1)) as run,
    ):
        jax.vmap(ember.Embedder(MODEL, dim=DIM))(ember.text(FEW))
    assert run.report().input_tokens == 24  # billed all the same


@pytest.mark.parametrize("name", ["dimensions", "encoding_format"])
def test_a_server_that_refuses_a_parameter_is_asked_without(name):
    def refuse(i):
        return testing.Fault(status=400) if name in server.requests[i].body else None

    with testing.ChatServer(faults=refuse) as server, served(server):
        found = jax.vmap(ember.Embedder(MODEL, dim=NATIVE))(ember.text(FEW))
        assert np.array_equal(found, expected(FEW, NATIVE))
        jax.vmap(ember.Embedder(MODEL, dim=NATIVE))(ember.text(["more"]))
    assert [len(sent) for sent in inputs(server)] == [8, 8, 1]  # what is known is not found out again
    assert [name in request.body for request in server.requests] == [True, False, False]


def test_decimals_may_be_asked_for():
    with testing.ChatServer() as server, served(server):
        found = ember.Embedder(MODEL, dim=DIM, encoding_format="float")("a b")
    assert np.array_equal(found, vector("a b", DIM))
    assert server.requests[0].body["encoding_format"] == "float"


def test_a_service_without_vectors_says_so():
    anthropic = ember.providers.Anthropic(api_key="k", base_url="http://127.0.0.1:9/v1")
    with (
        ember.session(providers={"anthropic": anthropic}, journal=None),
        pytest.raises(errors.RefusedRequestError, match="Anthropic is not asked for vectors"),
    ):
        ember.Embedder("anthropic/claude", dim=3)("a")


# -- functions -------------------------------------------------------------------------------------------------------


def test_a_function_gives_vectors():
    asked = []

    def encode(texts):
        asked.append(texts)
        return expected(texts).astype(np.float64)

    with ember.session(providers={"mine": ember.providers.Encoder(encode)}, journal=None):
        found = jax.vmap(ember.Embedder("mine/model", dim=DIM))(ember.text(FEW))
        assert np.array_equal(found, expected(FEW)) and asked == [FEW]
        with pytest.raises(errors.RefusedRequestError, match="vectors and no words"):
            ember.LLM("mine/model")("q")
    with pytest.raises(TypeError, match="Encoder"):
        ember.providers.Encoder(3)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 0)])
def test_a_function_that_gives_another_shape_is_told(shape):
    provider = ember.providers.Encoder(lambda texts: np.zeros(shape))
    with (
        ember.session(providers={"mine": provider}, journal=None, retry=ember.Retry(attempts=1)),
        pytest.raises(errors.SweepError, match="for 2 texts"),
    ):
        jax.vmap(ember.Embedder("mine/model", dim=3))(ember.text(["a", "b"]))


def test_words_are_no_vector():
    for answer in ("hello", Response("AAAA")):
        provider = ember.providers.Callable(lambda request, answer=answer: answer)
        with (
            ember.session(providers={"mine": provider}, journal=None, retry=ember.Retry(attempts=1)),
            pytest.raises(errors.MalformedResponseError, match="Encoder"),
        ):
            ember.Embedder("mine/model", dim=3)("a")


@pytest.mark.parametrize("rounds, with_journal", [(1, False), (3, False), (50, True)])
def test_a_batch_waits_for_what_the_loop_still_brings(rounds, with_journal):
    sent = []

    async def send(request, attempts, task):
        sent.append(len(request.messages))
        return Response(packed(np.ones((len(request.messages), 2))))

    async def ask(share, text, wait):
        request = Request("p", "m", (Message(EMBED, text),))
        batch = share.batch(request) if with_journal else None  # expected, while the journal is asked
        for _ in range(wait):
            await asyncio.sleep(0)
        return await (batch or share.batch(request)).join(request, [], None)

    async def main():
        share = batches.Batches(send)
        await asyncio.gather(*(ask(share, str(i), i * rounds) for i in range(5)))

    asyncio.run(main())
    assert sent == [5]


# -- cancellation ----------------------------------------------------------------------------------------------------


def test_a_batch_ends_with_the_last_that_waits_for_it():
    ended = []

    async def send(request, attempts, task):
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append(len(request.messages))

    async def main():
        share = batches.Batches(send)
        asks = [Request("p", "m", (Message(EMBED, text),)) for text in "abc"]
        waiting = [asyncio.create_task(share.batch(ask).join(ask, [], None)) for ask in asks]
        for _ in range(20):
            await asyncio.sleep(0)
        waiting[0].cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not ended
        for task in waiting[1:]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert ended == [3]
