"""What HTTP does for every vendor, by a toy dialect and a client that has no socket."""

import asyncio
import json
import pickle
from dataclasses import dataclass
from typing import ClassVar

import httpx
import pytest

from ember_jax.errors import (
    AuthenticationError,
    ConnectionFailedError,
    MalformedResponseError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from ember_jax.providers import quota
from ember_jax.providers.base import Message, Request, Response
from ember_jax.providers.dialect import Dialect, Failure, HTTPAnswer, HTTPRequest, Meaning, Service, decoded
from ember_jax.providers.http import TIMEOUT, HTTPProvider, Vendor
from ember_jax.providers.quota import Allowance, Quota

SERVICE = Service("Toy", "https://toy.example", ("TOY_BASE_URL", "TOY_ENDPOINT"), ("TOY_API_KEY", "TOY_TOKEN"))
KEY = "MARKED.9876/54+3210"


@dataclass
class _Said:
    words: str


@dataclass(frozen=True)
class Toy(Dialect):
    """A protocol with what vendors differ in: the model in the path, a version, another key header, other quotas."""

    service: Service = SERVICE
    quota_headers: ClassVar[tuple[str, ...]] = (quota.ANTHROPIC,)

    def authorization(self, key):
        return {"x-api-key": key}

    def build(self, request):
        if "max_tokens" not in request.parameters:
            return Failure(RefusedRequestError, "give max_tokens; {} is not enough.", (json.dumps(request.parameters),))
        return HTTPRequest(f"/models/{request.model}:ask", {"toy-version": "7"}, {"ask": request.messages[-1].content})

    def read(self, answer: HTTPAnswer, request):
        said = decoded(answer, _Said, "a toy's answer", "is the base URL right?")
        if isinstance(said, Failure):
            return said
        if said.words.startswith("no"):
            return Failure(RefusedRequestError, "declined: {} ({!r})", (said.words, said.words))
        return Response(said.words, request_id=answer.headers.get("request-id", ""))

    def most_output(self, request):
        return 40.0

    def meaning(self, answer):
        return Meaning(AuthenticationError, " Another key!") if answer.status == 400 and b"KEY" in answer.body else None


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*SERVICE.base_variables, *SERVICE.key_variables):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


class Client(httpx.AsyncClient):
    """A client that answers without a socket, and keeps what was sent."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.sent = answer, []

    async def post(self, url, *, headers, content, follow_redirects):
        assert not follow_redirects
        self.sent.append((str(url), headers, content))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def request(**parameters):
    return Request("toy", "t-1", (Message("user", "hi"),), parameters or {"max_tokens": 9})


def provider(api_key=KEY, base_url=None, client=None):
    return HTTPProvider(Toy(), base_url, api_key, client, TIMEOUT)


def ask(answer, asked=None):
    client = Client(answer)
    return asyncio.run(provider(client=client).complete(asked or request())), client.sent


def error(status, body="", **headers):
    with pytest.raises(ProviderError) as caught:
        provider().read(status, headers, body.encode(), request())
    return caught.value


def test_a_dialects_request_is_sent_with_its_key():
    answer = httpx.Response(200, json={"words": "yes"}, headers={"Request-Id": "r"})
    response, sent = ask(answer)
    headers = {"Content-Type": "application/json", "toy-version": "7", "x-api-key": KEY}
    assert sent == [("https://toy.example/models/t-1:ask", headers, b'{"ask":"hi"}')]
    assert (response.text, response.request_id, response.quota) == ("yes", "r", None)


def test_the_first_variable_that_is_set_counts(environment):
    environment.setenv("TOY_TOKEN", "second")
    environment.setenv("TOY_ENDPOINT", "http://second/v2/")
    assert provider(None).build(request())[:2] == (
        "http://second/v2/models/t-1:ask",
        {"Content-Type": "application/json", "toy-version": "7", "x-api-key": "second"},
    )
    environment.setenv("TOY_API_KEY", " first\n")
    environment.setenv("TOY_BASE_URL", "http://first")
    url, headers, _ = provider(None).build(request())
    assert (url, headers["x-api-key"]) == ("http://first/models/t-1:ask", "first")
    environment.setenv("TOY_BASE_URL", "first")
    with pytest.raises(RefusedRequestError, match=r"^The environment variable TOY_BASE_URL: give a whole URL"):
        provider(None).build(request())
    environment.setenv("TOY_BASE_URL", " ")
    assert provider(None).endpoint == "http://second/v2"


def test_errors_name_the_vendors_class_and_variables(environment):
    with pytest.raises(AuthenticationError) as caught:
        provider("").build(request())
    assert str(caught.value) == (
        "toy/t-1: there is no API key. Set the environment variable TOY_API_KEY, or register('toy', Toy(api_key=…))."
    )
    assert "x-api-key" not in provider("", "http://localhost:1").build(request())[1]
    with pytest.raises(AuthenticationError, match=r"^The API key \(TOY_API_KEY, or Toy\(api_key=…\)\)"):
        provider("a b").build(request())
    with pytest.raises(ValueError, match=r"^Toy\(base_url=…\): give a whole URL"):
        provider(base_url="nowhere")
    said = error(401, '{"error": {"message": "who?"}}')
    assert str(said) == "toy/t-1: HTTP 401: who? Check TOY_API_KEY, or the argument api_key of Toy(api_key=…)."
    with pytest.raises(ConnectionFailedError) as caught:
        ask(httpx.ReadTimeout(""))
    assert str(caught.value) == (
        "toy/t-1: no complete answer from https://toy.example/models/t-1:ask: ReadTimeout. It took 0.0 s, and is "
        "possibly billed: up to 82 tokens of the prompt and up to 9 tokens of the answer. Give Toy(timeout=…) more "
        "seconds."
    )


@pytest.mark.parametrize(
    ("key", "words", "shown"),
    [
        ("k", "k is no key: ask for it", "k is no key: ask for it"),
        ("ollama", "model 'x' not found, try ollama pull", "model 'x' not found, try ollama pull"),
        ("EMPTY", "the prompt is EMPTY", "the prompt is EMPTY"),
        ("", "no key", "no key"),
        ("cat9", "cat9 of concat99: cat9, cat9.", "[key] of concat99: [key], [key]."),
        ("a-long-real-key-of-24-chs", "xa-long-real-key-of-24-chsx", "x[key]x"),
        ("mine.+(1", "mine.+(1 mineee(1", "[key] mineee(1"),
    ],
)
def test_a_key_is_scrubbed_and_an_ordinary_word_is_not(key, words, shown):
    local = provider(key, "http://localhost:1")
    with pytest.raises(ProviderError) as caught:
        local.read(400, {}, json.dumps({"error": {"message": words}}).encode(), request())
    assert str(caught.value) == f"toy/t-1: HTTP 400: {shown}"


@pytest.mark.parametrize(
    ("raised", "kind", "was_sent"),
    [
        (httpx.ConnectError("x"), ConnectionFailedError, False),
        (httpx.ReadError("x"), ConnectionFailedError, True),
        (OSError("x"), ConnectionFailedError, True),
        (httpx.DecodingError("x"), MalformedResponseError, True),
        (httpx.InvalidURL("x"), RefusedRequestError, True),
    ],
)
def test_errors_of_the_transport(raised, kind, was_sent):
    with pytest.raises(ProviderError) as caught:
        ask(raised)
    assert type(caught.value) is kind and caught.value.was_sent is was_sent
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (307, RefusedRequestError),
        (400, RefusedRequestError),
        (403, AuthenticationError),
        (408, ServerError),
        (409, ServerError),
        (429, RateLimitError),
        (503, ServerError),
        (529, ServerError),
        (999, MalformedResponseError),
    ],
)
def test_a_status_means_the_same_in_every_dialect(status, kind):
    said = error(status, '{"type": "error", "error": {"type": "t", "message": "so"}}', **{"retry-after": "3"})
    assert type(said) is kind and (said.status, said.retry_after) == (status, 3.0)
    assert str(said).startswith(f"toy/t-1: HTTP {status}: so")


@pytest.mark.parametrize(("words", "should"), [("true", True), ("False", False), ("perhaps", None), (None, None)])
def test_a_service_may_say_whether_to_try_again(words, should):
    headers = {} if words is None else {"x-should-retry": words}
    for status in (400, 429, 500):
        assert error(status, **headers).should_retry is should
    # A dialect that has read what the answer means knows better.
    known = '{"error": {"code": 400, "message": "KEY not valid", "status": "INVALID_ARGUMENT"}}'
    assert error(400, known, **headers).should_retry is None


def test_a_dialect_may_know_better_what_a_status_means():
    said = error(400, '{"error": {"code": 400, "message": "KEY not valid", "status": "INVALID_ARGUMENT"}}')
    assert type(said) is AuthenticationError and str(said) == "toy/t-1: HTTP 400: KEY not valid. Another key!"


def test_quotas_are_read_from_the_dialects_headers_alone():
    date = {"date": "Wed, 01 May 2024 00:00:00 GMT"}
    names = {"limit": "50", "remaining": "49", "reset": "2024-05-01T00:00:02Z"}
    ours = {quota.ANTHROPIC.format(field=field, what="requests"): value for field, value in names.items()}
    others = {quota.OPENAI.format(field=field, what="tokens"): value for field, value in names.items()}
    expected = Quota(Allowance(50, 49, 2.0), None)
    assert provider().read(200, {**ours, **others, **date}, b'{"words": "yes"}', request()).quota == expected
    assert provider().read(200, others, b'{"words": "yes"}', request()).quota is None
    assert error(429, **ours, **others, **date).quota == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"no {{x}} {KEY} \n sk-other", "declined: no {x} [key] [key] ('no {x} [key] [key]')"),
        ("no" + "o" * 400, f"declined: {'no' + 'o' * 297}… ({'no' + 'o' * 297 + '…'!r})"),
    ],
)
def test_what_a_dialect_quotes_is_scrubbed_trimmed_and_filled_in(body, words):
    said = error(200, json.dumps({"words": body}))
    assert type(said) is RefusedRequestError and str(said) == f"toy/t-1: {words}"
    assert (said.status, said.retry_after, said.quota) == (200, None, None)


def test_a_page_that_is_no_answer_is_told_by_the_dialects_hint():
    said = error(203, f"<p>{KEY}", **{"Content-Type": f"text/{KEY}"})
    assert type(said) is MalformedResponseError and said.status == 203
    assert str(said).startswith("toy/t-1: the answer is not a toy's answer: it is not whole JSON (")
    assert str(said).endswith("). It is 'text/[key]'; is the base URL right?")


def test_a_request_that_a_dialect_refuses_is_not_sent():
    client = Client(httpx.Response(200))
    with pytest.raises(RefusedRequestError) as caught:
        asyncio.run(provider(client=client).complete(request(temperature=KEY)))
    assert str(caught.value) == 'toy/t-1: give max_tokens; {"temperature": "[key]"} is not enough.'
    assert caught.value.status is None and client.sent == []


def test_a_dialect_goes_to_other_processes_and_a_key_does_not():
    own = provider(None, "http://mine")
    assert repr(pickle.loads(pickle.dumps(own))) == repr(own) == "Toy(base_url='http://mine', timeout=600.0)"
    for secret in (provider(), provider(None, client=Client(None))):
        with pytest.raises(TypeError, match=r"^a Toy\(api_key=…\) or Toy\(client=…\) is not pickled.*TOY_API_KEY"):
            pickle.dumps(secret)


def test_what_is_abstract_makes_no_instances():
    for cls in (Dialect, Vendor):
        with pytest.raises(TypeError, match="abstract"):
            cls()
