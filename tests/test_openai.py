import asyncio
import datetime
import email.utils
import json
import math
import re
import ssl
import threading

import httpx
import pytest

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
from ember_jax.providers.base import Message, Request
from ember_jax.providers.openai import OpenAI
from ember_jax.providers.sim import Sim
from ember_jax.testing import ChatServer, Fault, SimModel

KEY = "sk-proj-MARKED-0123456789"
PLAIN_KEY = "MARKED.9876/54+3210"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def request(prompt="What is 17 * 23?", **parameters):
    messages = (Message("system", "Be brief."), Message("user", prompt))
    return Request("openai", "gpt-4o-mini", messages, parameters, sample="00ff")


def complete(provider, *requests):
    """The answers to requests that are sent at once."""

    async def scenario():
        try:
            return await asyncio.gather(*(provider.complete(r) for r in requests or [request()]))
        finally:
            await provider.close()

    return asyncio.run(scenario())


def failure(fault):
    """The error that one injected fault becomes."""
    with ChatServer(faults=[fault]) as server, pytest.raises(ProviderError) as caught:
        complete(OpenAI(server.base_url, api_key=KEY))
    assert KEY not in str(caught.value)
    return caught.value


def no_answer(fault):
    """The error that a whole answer with nothing in it becomes, and the server that gave it."""
    with ChatServer(faults=[fault]) as server:
        provider = OpenAI(server.base_url, api_key=KEY)
        with ember.session(journal=None, providers={"openai": provider}), pytest.raises(NoAnswerError) as caught:
            ember.LLM("openai/gpt-4o-mini")(ember.text("hello"))
    assert KEY not in str(caught.value)
    return caught.value, server


def completion(**choice):
    return json.dumps({"choices": [choice], "model": "m"}).encode()


def read(body, status=200, headers=None, provider=None):
    return (provider or OpenAI(api_key=KEY)).read(status, headers or {}, body, request())


# Requests


def test_a_request_is_built_as_data():
    url, headers, body = OpenAI(api_key=KEY).build(request(temperature=0.5, max_tokens=9, stop=["\n"]))
    assert url == "https://api.openai.com/v1/chat/completions"
    assert headers == {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    assert body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 * 23?"}],
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": ["\n"],
    }


def test_the_environment_is_read_at_each_call(monkeypatch):
    provider = OpenAI()
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1/")
    url, headers, _ = provider.build(request())
    assert url == "http://localhost:1/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert provider.build(request())[0].startswith("https://api.openai.com/v1/")


def test_arguments_go_before_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other/v1")
    url, headers, _ = OpenAI("http://mine/v1", api_key=KEY).build(request())
    assert url.startswith("http://mine/")
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in OpenAI("http://mine/v1", api_key="").build(request())[1]


@pytest.mark.parametrize("provider", [OpenAI(), OpenAI("https://api.openai.com/v1/"), OpenAI(api_key="")])
def test_a_missing_key_is_named(provider):
    with pytest.raises(AuthenticationError, match=r"(?s)OPENAI_API_KEY.*OpenAI\(api_key=…\)"):
        complete(provider)


def test_a_server_of_ones_own_needs_no_key():
    with ChatServer() as server:
        complete(OpenAI(server.base_url))
        assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize("key", ["sk-MARKED\nX-Evil: 1", "sk-MARKED\u00e9", "sk- MARKED"])
def test_a_key_that_cannot_be_sent_is_not_shown(key):
    with pytest.raises(AuthenticationError, match="copy it again") as caught:
        complete(OpenAI(api_key=key))
    assert "MARKED" not in str(caught.value)


@pytest.mark.parametrize("name", ["model", "messages", "n", "stream"])
def test_parameters_that_are_not_the_users_are_refused(name):
    with pytest.raises(RefusedRequestError, match=f"'{name}' is not yours"):
        OpenAI(api_key=KEY).build(request(**{name: 1}))


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_parameters_that_are_not_json_are_refused(value):
    with pytest.raises(RefusedRequestError, match="not a JSON value"):
        complete(OpenAI("http://localhost:1/v1"), request(temperature=value))


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "", "ftp://host/v1", "http://", "http://host:port/v1", "http://[x"]
)
def test_a_base_url_must_be_whole(url, monkeypatch):
    with pytest.raises(ValueError, match="give a whole URL"):
        OpenAI(url)
    if url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(RefusedRequestError, match=r"OPENAI_BASE_URL: give a whole URL"):
            OpenAI().build(request())


@pytest.mark.parametrize("url", ["http://me:MARKED@host/v1", "http://host/v1?key=MARKED", "http://host/v1#MARKED"])
def test_a_base_url_holds_no_secret(url):
    with pytest.raises(ValueError, match="without user, password") as caught:
        OpenAI(url)
    assert "MARKED" not in str(caught.value)


def test_repr_does_not_show_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", PLAIN_KEY)
    for provider in (OpenAI(), OpenAI(api_key=KEY), OpenAI("http://host/v1", api_key=KEY)):
        assert "MARKED" not in f"{provider!r} {provider}"
    assert "http://host/v1" in repr(OpenAI("http://host/v1"))


# Answers


def test_an_answer_over_http_is_the_simulated_one():
    model = SimModel(accuracy=1.0, verbosity=4)
    asked = request(temperature=0.7, logprobs=True)
    expected = Sim({"gpt-4o-mini": model}).answer(asked)
    with ChatServer(model, api_key=KEY) as server:
        (response,) = complete(OpenAI(server.base_url, api_key=KEY), asked)
        (recorded,) = server.requests
    assert response.text.endswith("The answer is 391.")
    assert (response.input_tokens, response.output_tokens) == (expected.input_tokens, expected.output_tokens)
    assert response.logprob == pytest.approx(expected.logprob)
    assert response.model == "gpt-4o-mini"
    assert response.request_id == "req-0"
    assert response.cost == pytest.approx((0.15 * response.input_tokens + 0.60 * response.output_tokens) / 1e6)
    assert recorded.body["temperature"] == 0.7
    assert "sample" not in recorded.body and "00ff" not in json.dumps(recorded.body)


def test_any_words_survive_the_way_there():
    prompt = 'quotes " \\ newline \n nul \0 emoji 🜂 half a pair \ud800'
    with ChatServer() as server:
        complete(OpenAI(server.base_url), request(prompt))
        assert server.requests[0].body["messages"][1]["content"] == prompt


def test_logprobs_are_summed():
    tokens = [{"token": "a", "logprob": -0.25, "bytes": None, "top_logprobs": []}, {"token": "b", "logprob": -0.5}]
    assert read(completion(message={"content": "ab"}, logprobs={"content": tokens})).logprob == -0.75
    for logprobs in (None, {"content": None}, {"content": []}, {"token_logprobs": [-1.0]}):
        assert math.isnan(read(completion(message={"content": "ab"}, logprobs=logprobs)).logprob)


def test_an_answer_need_not_say_more_than_its_text():
    response = read(b'{"choices": [{"message": {"content": ""}}]}')
    assert (response.text, response.input_tokens, response.output_tokens) == ("", 0, 0)
    assert response.model == "gpt-4o-mini"
    assert response.request_id == ""
    assert math.isnan(response.cost)


def test_an_answer_may_say_much_more():
    body = {
        "id": "chatcmpl-1",
        "service_tier": "default",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi", "annotations": []}}
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 0}},
    }
    response = read(json.dumps(body).encode(), headers={"X-Request-ID": "req_abc"})
    assert response.request_id == "req_abc"
    assert response.model == "gpt-4o-mini-2024-07-18"
    assert response.cost == pytest.approx((1000 * 0.15 + 100 * 0.60) / 1e6)


def test_an_unpriced_name_is_priced_as_the_model_that_was_asked_for():
    body = {"model": "deploy-7", "choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 10}}
    assert read(json.dumps(body).encode()).cost == pytest.approx(10 * 0.15 / 1e6)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it is empty"),
        (b"{", "it is not whole JSON"),
        (b"<html>hello</html>", "it is not whole JSON"),
        (b'{"choices": 1}', "its JSON has another form .*choices"),
        (b"{}", "its JSON has another form .*choices"),
        (b"[]", "its JSON has another form"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": [{}]}', "its JSON has another form .*message"),
        (b'{"choices": [{"message": {}}]}', "no text"),
        (b'{"choices": [{"message": {"content": ["a"]}}]}', "its JSON has another form .*content"),
        (b'{"choices": [{"message": {"content": "\xff"}}', r"it is not UTF-8 \(byte 38\)"),
        (b'{"error": {"message": "upstream is down", "code": 502}}', "upstream is down"),
        (b'{"choices": [], "x": ' + b"[" * 200_000, "its JSON is nested too deeply"),
    ],
)
def test_malformed_answers(body, words):
    error = failure(Fault(body=body))
    assert type(error) is MalformedResponseError
    assert error.status == 200
    assert str(error).startswith("openai/gpt-4o-mini: the answer")
    with pytest.raises(MalformedResponseError, match=words):
        read(body)


@pytest.mark.parametrize(("reason", "words"), [("tool_calls", "no text.*tool_calls"), ("length", "more max_tokens")])
def test_a_whole_answer_without_text_is_not_asked_for_again(reason, words):
    error, server = no_answer(Fault(body=completion(message={"content": None}, finish_reason=reason)))
    assert re.search(words, str(error))
    assert len(server.requests) == 1


def test_malformed_answers_do_not_quote_the_completion():
    for body in (
        b'{"choices": [{"message": {"content": ["WORDS"]}}]}',
        b'{"choices": [{"message": {"content": "WORDS"}',
        b'{"choices": [{"message": {"content": "WORDS \xff"}}',
    ):
        with pytest.raises(MalformedResponseError) as caught:
            read(body)
        assert "WORDS" not in str(caught.value)


def test_a_web_page_is_known_by_its_type():
    error = failure(Fault(body="<html>Welcome</html>", headers={"Content-Type": "text/html"}))
    assert type(error) is MalformedResponseError
    assert "'text/html'; does the base URL end with /v1?" in str(error)


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": None, "refusal": "I cannot help with that."}, "finish_reason": "stop"},
        {"message": {"content": None}, "finish_reason": "content_filter"},
    ],
)
def test_a_model_that_declines_is_a_refusal(choice):
    error, server = no_answer(Fault(body=completion(**choice)))
    assert "declined" in str(error)
    assert len(server.requests) == 1


# Failures


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (307, RefusedRequestError),
        (400, RefusedRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, RefusedRequestError),
        (408, ServerError),
        (409, ServerError),
        (413, RefusedRequestError),
        (422, RefusedRequestError),
        (429, RateLimitError),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
        (529, ServerError),
        (600, MalformedResponseError),
    ],
)
def test_each_status_is_its_own_error(status, kind):
    error = failure(Fault(status=status))
    assert type(error) is kind
    assert error.status == status
    assert error.retry_after is None
    assert f"openai/gpt-4o-mini: HTTP {status}: This fault was asked for." in str(error)


def test_an_unknown_model_is_named():
    body = {"error": {"message": "The model does not exist", "code": "model_not_found"}}
    error = failure(Fault(status=404, body=json.dumps(body)))
    assert "openai/gpt-4o-mini" in str(error) and "does not exist" in str(error)


def test_a_wrong_key_is_refused():
    with ChatServer(api_key="right") as server:
        for provider in (OpenAI(server.base_url, api_key=KEY), OpenAI(server.base_url)):
            with pytest.raises(AuthenticationError, match="OPENAI_API_KEY") as caught:
                complete(provider)
            assert caught.value.status == 401
        assert [r.headers.get("Authorization") for r in server.requests] == ["Bearer (masked)", None]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"llm_provider-retry-after": "7"}, 7.0),
        ({"llm_provider-retry-after-ms": "1500"}, 1.5),
        ({"llm_provider-retry-after": "7", "retry-after": "8"}, 8.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "2, 3"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 -0000", "date": "Wed, 21 Oct 2015 07:28:00 -0000"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(headers, seconds, status):
    kind = RateLimitError if status == 429 else ServerError
    with pytest.raises(kind) as caught:
        read(b"", status, headers)
    assert caught.value.retry_after == seconds


def test_retry_after_over_http():
    assert failure(Fault(status=429, headers={"retry-after-ms": "20"})).retry_after == 0.02
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    date = email.utils.format_datetime(later, usegmt=True)
    # The server states its own time, to the second.
    assert 97 <= failure(Fault(status=503, headers={"retry-after": date})).retry_after <= 101


@pytest.mark.parametrize(
    "body",
    [
        "<html><body>502 Bad Gateway</body></html>",
        '{"error": "502 Bad Gateway"}',
        '{"message": "502 Bad Gateway"}',
        '{"detail": "502 Bad Gateway"}',
        '{"error": {"detail": "502 Bad Gateway"}}',
        '{"errors": [{"title": "502 Bad Gateway"}]}',
        '["502 Bad Gateway"]',
        '"502 Bad Gateway"',
        b"\xff 502 Bad Gateway",
    ],
)
def test_the_providers_own_words_are_kept(body):
    assert "502 Bad Gateway" in str(failure(Fault(status=502, body=body)))


def test_the_providers_words_are_trimmed_to_one_line():
    error = failure(Fault(status=500, body="a \n b " * 10_000))
    assert "\n" not in str(error)
    assert len(str(error)) < 350
    assert "(no message)" in str(failure(Fault(status=500, body="")))


@pytest.mark.parametrize("key", [KEY, PLAIN_KEY])
@pytest.mark.parametrize("status", [200, 401, 429, 500])
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "Incorrect API key provided: {}. Get another.",
        '{{"error": {{"message": "bad key {}"}}}}',
        '{{"error": {{"message": "\\u0062ad key {}"}}}}',
        '{{"error": {{"info": ["{}"]}}}}',
        '{{"choices": [{{"message": {{"refusal": "not with {}"}}}}]}}',
        "<p>Authorization: Bearer {}</p>",
    ],
)
def test_no_message_holds_the_key(key, status, form):
    body = form.format(key).encode()
    # As it is; where trimming would cut the key in two; and behind escapes, which only JSON has.
    bodies = [body, b"x" * 290 + body]
    if form.startswith("{{"):
        bodies.append(body.replace(b"MARKED", b"\\u004dARKED"))
    for hidden in bodies:
        try:
            told = repr(read(hidden, status, provider=OpenAI(api_key=key)))
            assert "REFUSAL" in told  # the model's own words, which become those of an error
        except ProviderError as error:
            told = str(error)
        assert "ARKED" not in told and key[-6:] not in told


def test_keys_of_others_are_scrubbed_too():
    with pytest.raises(ProviderError) as caught:
        read(b'{"error": {"message": "sk-live-MARKED*** and Bearer MARKED are wrong, not risk-averse"}}', 401)
    assert "MARKED" not in str(caught.value)
    assert "are wrong, not risk-averse" in str(caught.value)


def carries(error, needle):
    """Whether an error, or any it came from, shows `needle`."""
    while error is not None:
        if needle in f"{error} {error!r} {vars(error)}":
            return True
        error = error.__cause__ or error.__context__
    return False


def test_errors_of_the_connection_do_not_carry_the_key():
    for fault in (Fault(reset=True), Fault(truncate=True), Fault(status=500), Fault(body="{")):
        error = failure(fault)
        assert not carries(error, "MARKED")


@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(truncate=True), Fault(status=500, truncate=True)])
def test_a_broken_connection(fault):
    error = failure(fault)
    assert type(error) is ConnectionFailedError
    assert error.status is None
    assert "no complete answer from http://127.0.0.1:" in str(error)


def test_nobody_listens():
    with ChatServer() as server:
        url = server.base_url
    with pytest.raises(ConnectionFailedError, match="no complete answer"):
        complete(OpenAI(url))


def test_an_answer_that_is_not_http():
    async def scenario():
        async def babble(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        provider = OpenAI(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", api_key=KEY)
        try:
            with pytest.raises(ConnectionFailedError) as caught:
                await provider.complete(request())
        finally:
            await provider.close()
            server.close()
            await server.wait_closed()
        assert not carries(caught.value, "MARKED")

    asyncio.run(scenario())


def test_a_body_that_cannot_be_decompressed():
    error = failure(Fault(body=b"not gzip", headers={"Content-Encoding": "gzip"}))
    assert type(error) is MalformedResponseError
    assert "decompressed" in str(error)


def test_a_slow_answer_runs_into_the_timeout():
    with ChatServer(faults=[Fault(delay=3600)]) as server:
        with pytest.raises(ConnectionFailedError, match=r"OpenAI\(timeout=…\)"):
            complete(OpenAI(server.base_url, timeout=0.05))
        assert complete(OpenAI(server.base_url))


def test_an_answer_that_stalls_in_the_middle_runs_into_the_timeout_and_one_that_drips_does_not():
    with ChatServer(faults=[Fault(drip=3600), Fault(drip=0.15)]) as server:
        with pytest.raises(ConnectionFailedError, match=r"OpenAI\(timeout=…\)"):
            complete(OpenAI(server.base_url, timeout=0.1))
        # ten pieces take longer than the timeout, but none of them does
        assert complete(OpenAI(server.base_url, timeout=1.0))[0].text
    assert server.answered == [1]


def test_an_answer_that_drips_without_end_is_given_up():
    with (
        ChatServer(faults=[Fault(drip=0.15)]) as server,
        pytest.raises(
            ConnectionFailedError, match=r"It took 1\.\d* s, and is possibly billed: up to \d+ tokens"
        ) as caught,
    ):
        complete(OpenAI(server.base_url, timeout=0.2))
    assert caught.value.was_sent and server.answered == []


def test_ten_megabytes_around_an_answer_and_in_it():
    words = "ÿ" * 5_000_000
    faults = [Fault(pad=10_000_000), Fault(body=completion(message={"content": words}))]
    with ChatServer(SimModel(accuracy=1.0), faults=faults) as server:
        provider = OpenAI(server.base_url, api_key="")
        assert complete(provider)[0].text == "391"
        assert complete(provider)[0].text == words


def test_cancelling_leaves_the_provider_usable():
    with ChatServer(SimModel(accuracy=1.0), faults=[Fault(delay=3600)]) as server:
        provider = OpenAI(server.base_url)

        async def scenario():
            stalled = asyncio.create_task(provider.complete(request()))
            while not server.requests:
                await asyncio.sleep(0.001)
            stalled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stalled
            response = await provider.complete(request())
            await provider.close()
            return response

        assert asyncio.run(scenario()).text


# Connections


def test_a_thousand_requests_are_a_thousand_connections():
    with ChatServer(SimModel(accuracy=1.0), together=1000) as server:
        # A client of fewer connections gets no answer at all, and the timeout ends the wait for one.
        provider = OpenAI(server.base_url, timeout=20.0)
        responses = complete(provider, *(request(f"What is {i} + 1?") for i in range(1000)))
        assert server.in_flight_max == 1000
    assert [r.text for r in responses] == [str(i + 1) for i in range(1000)]


def test_no_cookie_goes_from_one_call_to_the_next():
    with ChatServer(faults=lambda number: Fault(headers={"Set-Cookie": "session=1; Path=/"})) as server:
        provider = OpenAI(server.base_url)

        async def scenario():
            for _ in range(2):
                await provider.complete(request())
            await provider.close()

        asyncio.run(scenario())
        assert len(server.requests) == 2 and not any("Cookie" in r.headers for r in server.requests)


def test_the_client_is_used_again_and_made_anew_for_each_loop():
    # The server ends each connection, so that none is left behind when a loop ends without `close`.
    with ChatServer(faults=lambda number: Fault(headers={"Connection": "close"})) as server:
        provider = OpenAI(server.base_url)
        clients = []

        async def ask_twice():
            for _ in range(2):
                await provider.complete(request())
                clients.append(await provider._http._own_client())

        asyncio.run(ask_twice())
        asyncio.run(ask_twice())
        assert clients[0] is clients[1] and clients[2] is clients[3] and clients[0] is not clients[2]
        assert clients[0].is_closed and not clients[2].is_closed
        asyncio.run(provider.close())
        assert clients[2].is_closed


def test_a_client_of_another_running_loop_is_closed_there():
    with ChatServer() as server:
        provider = OpenAI(server.base_url)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(provider.complete(request()), loop).result()
            client = asyncio.run_coroutine_threadsafe(provider._http._own_client(), loop).result()
            complete(provider)

            async def settled():
                await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
                return client.is_closed

            assert asyncio.run_coroutine_threadsafe(settled(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def test_a_provider_may_be_used_again_after_close():
    with ChatServer() as server:
        provider = OpenAI(server.base_url)
        first, second = complete(provider), complete(provider)
        asyncio.run(provider.close())
        assert first[0].text == second[0].text
        assert len(server.requests) == 2


def test_a_client_of_ones_own_is_used_and_left_open():
    with ChatServer() as server:

        async def scenario():
            async with httpx.AsyncClient(headers={"x-mine": "1"}) as client:
                provider = OpenAI(server.base_url, client=client)
                await provider.complete(request())
                await provider.close()
                assert not client.is_closed
                await provider.complete(request())

        asyncio.run(scenario())
        assert [r.headers["x-mine"] for r in server.requests] == ["1", "1"]


def test_certificates_are_checked():
    # A plain server behind an https URL fails in the handshake, which shows that there is one.
    with ChatServer() as server, pytest.raises(ConnectionFailedError):
        complete(OpenAI(server.base_url.replace("http://", "https://"), api_key=KEY))
    assert httpx.create_ssl_context().verify_mode is ssl.CERT_REQUIRED
