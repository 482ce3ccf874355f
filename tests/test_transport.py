"""The ways to send a request: they answer alike, and fail alike, whatever client is below."""

import asyncio
import gzip
import socket
import threading

import httpx
import httpx2
import httpx_aiohttp
import pytest
from replies import Replies, Reply

from ember_jax.providers.openai import OpenAI
from ember_jax.providers.transport import GivenClient, NoAnswer, OwnClient
from ember_jax.testing import ChatServer, Fault

WAYS = {
    "own": lambda timeout: OwnClient(timeout),
    "httpx": lambda timeout: GivenClient(httpx.AsyncClient(timeout=timeout), timeout),
    "httpx2": lambda timeout: GivenClient(httpx2.AsyncClient(timeout=timeout), timeout),
    "httpx over aiohttp": lambda timeout: GivenClient(
        httpx.AsyncClient(transport=httpx_aiohttp.AiohttpTransport(), timeout=timeout), timeout
    ),
}
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer k"}
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def post(way, url, content=BODY, timeout=30.0):
    async def once():
        transport = way(timeout)
        try:
            return await transport.post(url, HEADERS, content)
        finally:
            await (transport._client.aclose() if isinstance(transport, GivenClient) else transport.close())

    return asyncio.run(once())


def test_what_is_only_looked_up_is_got(way):
    async def once():
        transport = way(30.0)
        try:
            return await transport.get(f"{server.url}/v1/models?a=b", HEADERS)
        finally:
            await (transport._client.aclose() if isinstance(transport, GivenClient) else transport.close())

    with Replies(Reply({"data": []})) as server:
        answer = asyncio.run(once())
    assert (answer.status, bytes(answer.body)) == (200, b'{"data": []}')
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("GET", "/v1/models?a=b", None)
    assert asked.headers["authorization"] == "Bearer k"


@pytest.mark.parametrize("way", ["own", "httpx", "httpx2"])  # findings/httpx_aiohttp_rewrites_path.sh
@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/model/a%3A0/converse", "/model/a%3A0/converse"),
        ("/model/arn%3Aaws%2Fb/x", "/model/arn%3Aaws%2Fb/x"),
        ("/models/a@1:get?b=c%2Bd", "/models/a@1:get?b=c%2Bd"),
        ("/a b/\u00e9", "/a%20b/%C3%A9"),
    ],
)
def test_a_url_is_sent_as_it_is_written(way, path, sent):
    """A signature is of the path as it is sent, and `%3A` is another than `:`."""
    with Replies(Reply({})) as server:
        post(WAYS[way], server.url + path)
    assert server.asked[0].path == sent


def fails(way, url, **kwargs):
    with pytest.raises(NoAnswer) as caught:
        post(way, url, **kwargs)
    assert caught.value.words and caught.value.__cause__ is None
    return caught.value


def of(server):
    return f"{server.base_url}/chat/completions"


def test_an_answer_comes_whole(way):
    headers = [("X-Twice", "1"), ("x-twice", "2"), ("Set-Cookie", "a=b")]
    with ChatServer(faults=[Fault(headers=headers, body=b"{}"), None]) as server:
        answer = post(way, of(server))
        assert (answer.status, bytes(answer.body)) == (200, b"{}")
        assert answer.headers["x-twice"] == "1, 2" and all(name == name.lower() for name in answer.headers)
        assert b"choices" in post(way, of(server)).body
        for received in server.requests:
            assert received.body["messages"][0]["content"] == "hi" and "Cookie" not in received.headers
            assert received.headers["Content-Type"] == "application/json"


def test_a_large_body_is_sent_whole(way):
    words = "x" * (3 << 20)
    with ChatServer(faults=[Fault(body=b"{}")]) as server:
        content = BODY.replace(b"hi", words.encode())
        assert post(way, of(server), content).status == 200
        assert server.requests[0].body["messages"][0]["content"] == words
        assert server.requests[0].headers["Content-Length"] == str(len(content))


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_a_status_is_an_answer_and_redirects_are_not_followed(way, status):
    with ChatServer(faults=[Fault(status=status, headers={"Location": "http://127.0.0.1:1/"})]) as server:
        assert post(way, of(server)).status == status
        assert len(server.requests) == 1


def test_what_was_sent_may_be_billed_whatever_became_of_the_answer(way):
    faults = [Fault(reset=True), Fault(truncate=True)]
    with ChatServer(faults=faults) as server:
        for _ in faults:
            failed = fails(way, of(server))
            assert failed.was_sent and not failed.timed_out and not failed.is_unreadable


def test_an_answer_that_does_not_come_in_time(way):
    with ChatServer(faults=[Fault(delay=5.0)]) as server:
        failed = fails(way, of(server), timeout=0.2)
        assert failed.was_sent and failed.timed_out


def test_an_answer_that_drips_for_ever_is_given_up(way):
    with ChatServer(faults=[Fault(drip=0.25)]) as server:  # ten pieces in 2.5 s
        failed = fails(way, of(server), timeout=0.35)
        assert failed.was_sent and failed.timed_out


def test_an_answer_that_comes_in_pieces_comes(way):
    with ChatServer(faults=[Fault(drip=0.05)]) as server:
        assert b"choices" in post(way, of(server), timeout=10.0).body


def test_what_cannot_be_decompressed_is_unreadable_and_what_can_is_read(way):
    packed = Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"{}"))
    with ChatServer(faults=[Fault(headers={"Content-Encoding": "gzip"}, body=b"{}"), packed]) as server:
        failed = fails(way, of(server))
        assert failed.is_unreadable and failed.was_sent
        assert bytes(post(way, of(server)).body) == b"{}"


def test_what_finds_no_server_was_not_sent(way):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        assert not fails(way, url).was_sent
    assert not fails(way, "http://no-such-host.invalid/").was_sent


def test_an_answer_that_is_not_http(way):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def junk():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-server\r\n\r\n")

        thread = threading.Thread(target=junk)
        thread.start()
        failed = fails(way, f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
        assert failed.was_sent and not failed.timed_out


@pytest.mark.parametrize("name", ["own", "httpx"])
def test_what_is_no_url_is_a_value_error(name):
    with pytest.raises(ValueError, match=r"."):
        post(WAYS[name], "http://[::1/x")


def test_a_provider_takes_clients_of_httpx_and_httpx2_and_names_what_it_does_not_take():
    for package in (httpx, httpx2):

        class Mine(package.AsyncClient):
            pass

        assert OpenAI(client=Mine())
    with pytest.raises(TypeError, match=r"OpenAI\(client=…\): it takes an AsyncClient of httpx or httpx2, not Client"):
        OpenAI(client=httpx.Client())
