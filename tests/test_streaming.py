"""`llm.stream`: the words of one answer as they come; else the very call that `llm(prompt)` is."""

import dataclasses
import json
import threading

import httpx
import jax
import pytest

import ember_jax as ember
from ember_jax._runtime.loop import get_loop
from ember_jax.errors import ConnectionFailedError, RateLimitError, ServerError, TextError, UnsupportedError
from ember_jax.providers.base import Message, Request, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.chunks import Chunks
from ember_jax.providers.dialect import HTTPAnswer
from ember_jax.providers.openai import SERVICE, ChatCompletions, OpenAI
from ember_jax.providers.sse import ServerEvents
from ember_jax.testing import ChatServer, Fault, SimModel, VirtualClock

PROMPT = "Name three rivers."
USAGE = {"prompt_tokens": 3, "completion_tokens": 5}
PRICES = {"openai": ember.Price(1.0, 2.0)}


@pytest.fixture(params=["own", "httpx"])
def client(request):
    if request.param == "own":
        yield None
        return
    client = httpx.AsyncClient()
    yield client
    get_loop().submit(client.aclose()).result()


def session(server, client=None, journal=None, **settings):
    provider = OpenAI(server.base_url, api_key="", client=client)
    return ember.session(journal=journal, providers={"openai": provider}, prices=PRICES, **settings)


def counted(report):
    return {name: value for name, value in dataclasses.asdict(report).items() if name != "held_s"}


def test_a_streamed_call_is_the_call_itself_and_is_replayed_as_one_piece(client, tmp_path):
    llm = ember.LLM("openai/m", temperature=0.5)
    with ChatServer(faults=[None, Fault(drip=0.01)]) as server:
        with session(server, journal=tmp_path / "whole.db") as run:
            whole = llm.complete(PROMPT)
            (expected,), report = run.calls(), counted(run.report())
        with session(server, client, journal=tmp_path / "streamed.db") as run:
            pieces = list(llm.stream(PROMPT))
            (streamed,) = run.calls()
            assert counted(run.report()) == report and report["cost_usd"] > 0
            assert (streamed.digest, streamed.answer, streamed.how) == (expected.digest, expected.answer, "answered")
            assert "".join(pieces) == str(whole.text) and len(pieces) > 1
            assert str(llm(PROMPT)) == "".join(pieces)
            assert list(llm.stream(PROMPT)) == ["".join(pieces)]
            assert run.report().replayed == 2
        with session(server, client, journal=tmp_path / "streamed.db") as run:
            answer = llm.complete(PROMPT)
            same = [answer.input_tokens, answer.output_tokens, answer.cost, answer.finish]
            assert same == [whole.input_tokens, whole.output_tokens, whole.cost, whole.finish]
            assert list(llm.stream(PROMPT)) == [str(whole.text)] and run.report().requests == 0
        first, second = (request.body for request in server.requests)
        assert second == {**first, "stream": True, "stream_options": {"include_usage": True}}


def test_words_are_given_before_the_answer_has_ended():
    with ChatServer(faults=[Fault(drip=0.05)]) as server, session(server):
        pieces = ember.LLM("openai/m").stream(PROMPT)
        assert not server.requests  # the model is asked when the first piece is
        assert next(pieces) and not server.answered
        assert list(pieces)


def test_a_key_is_a_sample_and_a_conversation_a_prompt():
    key = jax.random.key(3)
    with ChatServer(fresh=True) as server, session(server, journal="memory") as run:
        llm = ember.LLM("openai/m", temperature=1.0)
        chat = ember.Conversation([("user", PROMPT), ("assistant", "Nile."), ("user", "More.")])
        for prompt in (PROMPT, chat):
            assert "".join(llm.stream(prompt, key)) == str(llm(prompt, key))
        assert run.report().requests == 2


@pytest.mark.parametrize("fault", [Fault(429, {"retry-after": "0"}), Fault(503), Fault(reset=True)])
def test_what_fails_before_the_first_piece_is_tried_again(client, fault):
    with ChatServer(faults=[fault]) as server, session(server, client, journal="memory") as run:
        llm = ember.LLM("openai/m")
        said = "".join(llm.stream(PROMPT))
        assert said == str(llm(PROMPT))
        report = run.report()
        assert (report.requests, report.retries, len(server.requests)) == (2, 1, 2)
        assert report.throttled == (fault.status == 429) and report.lost == fault.reset


def test_a_refusal_that_stays_is_raised_with_its_type():
    with ChatServer(faults=lambda number: Fault(429)) as server, session(server, retry=ember.Retry(attempts=1)):
        with pytest.raises(RateLimitError):
            list(ember.LLM("openai/m").stream(PROMPT))
        assert len(server.requests) == 1


def test_a_stream_that_is_cut_after_words_is_lost_and_not_tried_again_but_asked_anew_by_another_call(client):
    with ChatServer(faults=[Fault(truncate=True)]) as server, session(server, client, journal="memory") as run:
        llm, got = ember.LLM("openai/m"), []
        with pytest.raises(ConnectionFailedError, match="no complete answer"):
            for piece in llm.stream(PROMPT):
                got.append(piece)
        report = run.report()
        assert got and (report.requests, report.retries, report.lost) == (1, 0, 1) and report.lost_usd > 0
        assert str(llm(PROMPT)).startswith("".join(got)) and len(server.requests) == 2


def test_an_error_in_the_stream_is_the_services():
    failing = 'data: {"choices": [{"delta": {"content": "Wa"}}]}\n\ndata: {"error": {"message": "out of memory"}}\n\n'
    fault = Fault(body=failing, headers={"Content-Type": "text/event-stream"})
    with ChatServer(faults=[fault]) as server, session(server) as run:
        pieces = ember.LLM("openai/m").stream(PROMPT)
        assert next(pieces) == "Wa"
        with pytest.raises(ServerError, match="out of memory"):
            next(pieces)
        assert (run.report().requests, run.report().failed) == (1, 1)


def test_a_stream_that_ends_too_early_without_any_error_is_lost_too(client):
    torn = 'data: {"choices": [{"delta": {"content": "Wa"}}]}\n\n'
    fault = Fault(body=torn, headers={"Content-Type": "text/event-stream"})
    with ChatServer(faults=[fault]) as server, session(server, client) as run:
        with pytest.raises(ConnectionFailedError, match="the stream ended before the answer did"):
            list(ember.LLM("openai/m").stream(PROMPT))
        assert (run.report().requests, run.report().lost) == (1, 1)


def test_a_server_that_does_not_stream_gives_one_piece(client):
    body = json.dumps({"choices": [{"message": {"content": "The Nile."}, "finish_reason": "stop"}], "usage": USAGE})
    with ChatServer(faults=[Fault(body=body)]) as server, session(server, client):
        assert list(ember.LLM("openai/m").stream(PROMPT)) == ["The Nile."]


def test_an_abandoned_stream_is_a_cancelled_call_lost_and_asked_anew():
    with ChatServer(faults=[Fault(drip=0.5)]) as server, session(server, journal="memory") as run:
        llm = ember.LLM("openai/m")
        pieces = llm.stream(PROMPT)
        assert next(pieces)
        pieces.close()
        report = run.report()
        assert (report.requests, report.lost, report.cost_usd) == (1, 1, 0.0) and report.lost_usd > 0
        assert [call.how for call in run.calls()] == ["failed"]
        assert str(llm(PROMPT)) and len(server.requests) == 2


def test_equal_calls_that_are_in_flight_are_one():
    with ChatServer(faults=[Fault(drip=0.03)]) as server, session(server, journal="memory") as run:
        llm, found = ember.LLM("openai/m"), []
        pieces = llm.stream(PROMPT)
        first = next(pieces)
        other = threading.Thread(target=lambda: found.append(str(llm(PROMPT))))
        other.start()
        assert first + "".join(pieces) == (other.join() or found[0])
        assert len(server.requests) == 1 and run.report().requests == 1


def test_simulated_models_say_word_by_word_in_the_time_of_the_call():
    with VirtualClock() as clock, ember.session(providers={"sim": ember.providers.Sim({"m": SimModel(latency=8.0)})}):
        llm = ember.LLM("sim/m")
        began = clock.now
        pieces = list(llm.stream(PROMPT))
        took = clock.now - began
        whole = str(llm(PROMPT))
        assert len(pieces) == len(whole.split()) > 1
        assert "".join(pieces) == whole and took == pytest.approx(8.0)


def test_other_providers_give_one_piece():
    with ember.session(providers={"mine": Callable(lambda request: Response("  so it is ", 3, 2, 0.5))}) as run:
        assert list(ember.LLM("mine/m").stream(PROMPT)) == ["  so it is "]
        assert run.report().cost_usd == 0.5


def test_it_is_for_one_call_line_by_line():
    llm = ember.LLM("sim/small")
    with pytest.raises(TextError, match="an LLM takes one"):
        llm.stream(ember.text(["a", "b"]))
    for transformed in (jax.jit, ember.jit, lambda f: lambda x: jax.vmap(f)(ember.stack([x]))):
        with pytest.raises(UnsupportedError, match=r"call the LLM: `llm\(prompt\)`"):
            transformed(lambda prompt: llm.stream(prompt) and prompt)(ember.text("a"))


# -- the protocol, without IO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_are_found_however_their_bytes_are_cut(newline, size):
    lines = [": ping", "", "event: x", "data: a", "data:b", "", "data", "", "id: 3", "data:  é", "", "data: torn"]
    raw = newline.join(lines).encode()
    events = ServerEvents()
    found = [event for i in range(0, len(raw), size) for event in events.feed(raw[i : i + size])]
    assert found == [b"a\nb", " é".encode()]


def read(*chunks, done=True, size=7):
    raw = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n" * done
    stream, raw = Chunks(), raw.encode()
    said = "".join(stream.feed(raw[i : i + size]) for i in range(0, len(raw), size))
    return said, stream.whole()


def response(whole, **parameters):
    request = Request("openai", "m", (Message("user", "hi"),), parameters)
    return ChatCompletions(SERVICE).read(HTTPAnswer(200, {}, whole), request)


def chunk(finish=None, index=0, **delta):
    return {"id": "c-1", "model": "m-1", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_chunks_make_the_answer_that_they_stand_for():
    first = chunk(content="The")
    tokens = [{"token": token, "logprob": -0.25, "top_logprobs": []} for token in ("The", " Nile.")]
    first["choices"][0]["logprobs"] = {"content": tokens}
    said, whole = read(
        chunk(reasoning_content="hm, "),
        chunk(reasoning_content="so"),
        first,
        chunk(content="other", index=1),
        chunk(content=[{"type": "text", "text": " Nile"}]),
        chunk(content="."),
        chunk("stop"),
        {"choices": [], "usage": USAGE},
    )
    assert said == "The Nile."
    expected = Response(said, 3, 5, logprob=-0.5, model="m-1", request_id="c-1", reasoning="hm, so")
    found = response(whole)
    assert found._replace(cost=0.0) == expected._replace(cost=0.0)


def test_chunks_of_tool_calls_are_put_together():
    call = lambda index, **fields: chunk(tool_calls=[{"index": index, **fields}])
    said, whole = read(
        call(0, id="a", function={"name": "add", "arguments": '{"x"'}),
        call(1, id="b", function={"name": "sub", "arguments": "{}"}),
        call(0, function={"arguments": ": 1}"}),
        chunk("tool_calls"),
    )
    calls = response(whole, tools=[]).tool_calls
    assert said == "" and [(c.id, c.name, c.value) for c in calls] == [("a", "add", '{"x": 1}'), ("b", "sub", "{}")]


def test_a_stream_has_ended_when_it_says_so_and_not_before():
    words = chunk(content="a")
    assert read(words, done=False)[1] is None and read(done=False)[1] is None
    assert read(words)[1] is not None and read(words, chunk("stop"), done=False)[1] is not None
    assert b"no" in read("no")[1]
