"""Vertex AI: what is sent, against the vendors' own packages; whose credentials, against a server that gives tokens."""

import asyncio
import http.server
import json
import pickle
import sys
import threading
import urllib.parse

import jax
import loopback
import pytest
from replies import Replies, Reply

import ember_jax as ember
from ember_jax import _cli
from ember_jax.errors import (
    AuthenticationError,
    ConnectionFailedError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from ember_jax.providers import registry
from ember_jax.providers.base import Finish, Message, Request, Tokens
from ember_jax.providers.clouds import GoogleCloud
from ember_jax.providers.dialect import Failure, HTTPAnswer
from ember_jax.providers.vertex import SERVICE, Published, Vertex

PUBLISHED = Published(SERVICE)
SDK = loopback.read("vertex")
KEY = "AIzaSyMARKED0123456789abcdefghijklmnopq"
GEMINI, CLAUDE = "gemini-2.5-flash", "claude-haiku-4-5@20251001"
TURNS = (
    Message("system", "Be brief."),
    Message("user", "What is 2 + 2?"),
    Message("assistant", "4"),
    Message("user", "And 3 + 3?"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(registry, "_providers", {})
    mine = (*SERVICE.base_variables, *SERVICE.key_variables, "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION")
    for name in (*mine, "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def bare(environment):
    """Without Google's package."""
    for name in [name for name in sys.modules if name.startswith("google.auth")]:
        environment.delitem(sys.modules, name)
    for name in ("google.auth", "google.auth.exceptions"):
        environment.setitem(sys.modules, name, None)
    return environment


def request(model=GEMINI, **parameters):
    return Request("vertex", model, TURNS, parameters)


def complete(provider, asked=None):
    async def scenario():
        try:
            return await provider.complete(asked or request())
        finally:
            await provider.close()

    return asyncio.run(scenario())


# -- what is sent ----------------------------------------------------------------------------------------------------

# The calls that `sdk/record_vertex.py` makes of the vendors' packages, in our words.
OURS = {
    "plain": request(),
    "sampled": request(temperature=0.5, top_p=0.9, max_tokens=100, stop="END", seed=7),
    "structured": request(
        "gemini-3-pro",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "A", "schema": loopback.SCHEMA, "strict": True},
        },
    ),
    "budget": request(reasoning_effort="low", include_thoughts=True),
    "another's": request("meta/llama-4-scout"),
    "tuned": request("projects/p-1/locations/us-central1/endpoints/7"),
    "claude": request(CLAUDE, max_tokens=100),
}


def test_the_fixture_has_the_calls_that_are_made_here():
    assert SDK["sdk"] == "google-genai 3.6.1, anthropic 2.14.0"
    assert SDK["sent"].keys() == {*OURS, "express", "models"}


def told(headers):
    """Headers without the one that each client adds in its own way."""
    return {name.lower(): value for name, value in headers.items() if name != "accept"}


@pytest.mark.parametrize("call", OURS)
def test_what_is_sent_is_what_the_vendors_packages_send(call):
    theirs = SDK["sent"][call]
    url, headers, sent = Vertex("http://host", "", project="p-1", location="us-central1").build(OURS[call])
    assert url == f"http://host{theirs['path']}"
    assert told(headers) | {"authorization": "Bearer t"} == told(theirs["headers"])
    assert sent == {k: v for k, v in theirs["body"].items() if v != {}}  # it sends an empty `generationConfig`


def test_a_key_is_sent_as_googles_package_sends_it():
    theirs = SDK["sent"]["express"]
    url, headers, _ = Vertex("http://host", api_key="(key)").build(request())
    assert url == f"http://host{theirs['path']}"
    assert told(headers) == told(theirs["headers"])


def test_betas_of_anthropic_are_asked_for_in_a_header():
    _, headers, body = Vertex("http://host", "k").build(request(CLAUDE, betas=["a", "b"]))
    assert headers["anthropic-beta"] == "a,b" and "anthropic-version" not in headers and "betas" not in body


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("claude-opus-5-5", "v1/publishers/anthropic/models/claude-opus-5-5:rawPredict"),
        ("anthropic/claude-opus-5-5", "v1/publishers/anthropic/models/claude-opus-5-5:rawPredict"),
        ("publishers/anthropic/models/claude-x", "v1/publishers/anthropic/models/claude-x:rawPredict"),
        ("publishers/google/models/gemini-x", "v1beta1/publishers/google/models/gemini-x:generateContent"),
        ("models/7", "v1beta1/models/7:generateContent"),
    ],
)
def test_a_name_tells_whose_model_it_is(model, name):
    assert Vertex("http://host", "k").build(request(model))[0] == f"http://host/{name}"


def test_what_a_dialect_refuses_is_refused():
    with pytest.raises(RefusedRequestError, match="Gemini has no parameter 'logit_bias'"):
        Vertex("http://host", "k").build(request(logit_bias={}))
    with pytest.raises(RefusedRequestError, match=r"'seed' is refused\. Anthropic has no such parameter"):
        Vertex("http://host", "k").build(request(CLAUDE, seed=7))


# -- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "host"),
    [
        (None, "https://aiplatform.googleapis.com"),
        ("global", "https://aiplatform.googleapis.com"),
        ("us", "https://aiplatform.us.rep.googleapis.com"),
        ("eu", "https://aiplatform.eu.rep.googleapis.com"),
        ("europe-west4", "https://europe-west4-aiplatform.googleapis.com"),
    ],
)
def test_a_location_is_a_host(location, host, environment):
    assert Vertex(location=location).endpoint == host
    if location is not None:
        environment.setenv("GOOGLE_CLOUD_LOCATION", location)
    environment.setenv("GOOGLE_CLOUD_PROJECT", "example.com:p")
    url = Vertex(api_key="").build(request())[0]
    assert url.startswith(f"{host}/v1beta1/projects/example.com:p/locations/{location or 'global'}/publishers/google/")


def test_a_location_is_no_way_to_another_host():
    for location in ("evil.example/", "us@evil", "US", "a b"):
        with pytest.raises(RefusedRequestError, match="is no location of Google Cloud"):
            _ = Vertex(location=location).endpoint


def test_a_project_counts_before_a_key_of_the_environment(environment):
    """As in Google's own package: the key is mostly one for Gemini."""
    environment.setenv("GOOGLE_API_KEY", KEY)
    assert Vertex("http://host").build(request())[1]["x-goog-api-key"] == KEY
    for variable in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, "p-1")
            assert not GoogleCloud(None, None).takes_key()
    environment.setenv("GOOGLE_CLOUD_PROJECT", "p-1")
    url, headers, _ = Vertex("http://host").build(request())
    assert "x-goog-api-key" not in headers and "/projects/p-1/" in url
    url, headers, _ = Vertex("http://host", api_key="mine").build(request())  # an argument counts before
    assert headers["x-goog-api-key"] == "mine" and "/projects/" not in url
    assert "/projects/p-2/" in Vertex("http://host", api_key="mine", project="p-2").build(request())[0]


def test_a_missing_project_is_told_by_its_variable(bare):
    with pytest.raises(RefusedRequestError, match=r"There is no project\. Set .* GOOGLE_CLOUD_PROJECT, or give it"):
        Vertex("http://host", api_key="").build(request())


# -- with whose credentials ------------------------------------------------------------------------------------------


def test_without_the_package_its_install_line_is_told(bare):
    words = r"no API key. Set .* GOOGLE_API_KEY .*; or `pip install \"ember_jax\[vertex\]\"`"
    bare.setenv("GOOGLE_CLOUD_PROJECT", "p-1")
    with pytest.raises(AuthenticationError, match=words) as raised:
        ember.LLM(f"vertex/{GEMINI}")("hi")
    assert not raised.value.was_sent
    with pytest.raises(AuthenticationError, match=words):
        ember.models("vertex")


def test_a_key_needs_no_package(bare):
    with Replies(Reply(generated("6"))) as server:
        assert complete(Vertex(server.url, api_key=KEY)).text == "6"


def test_without_credentials_it_is_told_where_they_may_be():
    pytest.importorskip("google.auth")
    with pytest.raises(AuthenticationError, match=r"gcloud auth application-default login.* GOOGLE_APPLICATION_CRED"):
        complete(Vertex(project="p-1"))


class TokenServer(http.server.ThreadingHTTPServer):
    """Gives an account a token for its signed assertion, as Google's service does; each is another one."""

    daemon_threads = True

    def __init__(self, seconds=3600, status=200):
        super().__init__(("127.0.0.1", 0), _Gives)
        self.seconds, self.status = seconds, status
        self.asked: list[dict[str, list[str]]] = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def account(self, folder, project="p-account"):
        """A file of the account's, as one is downloaded."""
        serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
        rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        written = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        fields = {
            "type": "service_account",
            "project_id": project,
            "private_key_id": "1",
            "private_key": written.decode(),
            "client_email": "a@p-account.iam.gserviceaccount.com",
            "token_uri": f"http://127.0.0.1:{self.server_port}/token",
        }
        path = folder / "account.json"
        path.write_text(json.dumps(fields))
        return str(path)


class _Gives(http.server.BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked.append(urllib.parse.parse_qs(raw))
        token = f"ya29.MARKED-token-{len(self.server.asked)}"
        answer = {"access_token": token, "expires_in": self.server.seconds, "token_type": "Bearer"}
        if self.server.status != 200:
            answer = {"error": "invalid_grant", "error_description": "Bad account."}
        body = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def tokens(environment, tmp_path):
    pytest.importorskip("google.auth")
    with TokenServer() as server:
        environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", server.account(tmp_path))
        yield server


def session(server, journal=None, **given):
    return ember.session(
        journal=journal, providers={"vertex": Vertex(server.url, **given)}, retry=ember.Retry(first=0.0)
    )


def test_a_file_that_is_not_there_is_named(environment, tmp_path):
    pytest.importorskip("google.auth")
    environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(AuthenticationError, match=r"It says: .*nothing\.json was not found"):
        complete(Vertex(project="p-1"))


def test_a_token_is_got_once_for_all_in_flight(tokens):
    with Replies(Reply(generated("6"))) as server, session(server):
        said = jax.jit(jax.vmap(ember.LLM(f"vertex/{GEMINI}")))(ember.text([f"{i}?" for i in range(12)]))
    assert said.tolist() == ["6"] * 12
    assert len(tokens.asked) == 1
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer ya29.MARKED-token-1"}
    (path,) = {asked.path for asked in server.asked}  # the project is that of the account
    assert path == f"/v1beta1/projects/p-account/locations/global/publishers/google/models/{GEMINI}:generateContent"
    assert tokens.asked[0]["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]


def test_a_token_is_renewed_before_it_expires(tokens):
    tokens.seconds = 60  # which google-auth takes for expired
    with Replies(Reply(generated("6"))) as server, session(server):
        llm = ember.LLM(f"vertex/{GEMINI}")
        assert [str(llm("1?")), str(llm("2?"))] == ["6", "6"]
    assert [asked.headers["authorization"][-1] for asked in server.asked] == ["1", "2"]


def test_a_token_is_waited_for_beside_the_loop(tokens):
    """The loop goes on while the service that gives tokens says nothing."""
    may_answer, ticks = threading.Event(), []
    give = _Gives.do_POST

    def late(handler):
        assert may_answer.wait(30)
        give(handler)

    async def scenario(provider):
        async def tick():
            for _ in range(3):
                await asyncio.sleep(0)
                ticks.append(1)
            may_answer.set()

        ticking = asyncio.create_task(tick())
        answer = await provider.complete(request())
        await ticking
        await provider.close()
        return answer

    with pytest.MonkeyPatch.context() as patch, Replies(Reply(generated("6"))) as server:
        patch.setattr(_Gives, "do_POST", late)
        assert asyncio.run(scenario(Vertex(server.url))).text == "6"
    assert len(ticks) == 3


def test_a_refused_account_is_told(tokens):
    tokens.status = 400
    with (
        Replies(Reply({})) as server,
        pytest.raises(AuthenticationError, match=r"credentials of Google: .*invalid_grant"),
    ):
        complete(Vertex(server.url))
    assert not server.asked


def test_a_service_of_tokens_that_does_not_answer_is_tried_again(tokens):
    tokens.shutdown()
    tokens.server_close()
    with (
        Replies(Reply({})) as server,
        pytest.raises(ConnectionFailedError, match="Google is not reached for credentials") as raised,
    ):
        complete(Vertex(server.url))
    assert not raised.value.was_sent and not server.asked


def test_a_quota_project_is_told_to_the_service(tokens, environment):
    environment.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "p-quota")
    with Replies(Reply(generated("6"))) as server:
        complete(Vertex(server.url))
    assert server.asked[0].headers["x-goog-user-project"] == "p-quota"


def test_another_account_counts_from_the_next_call(tokens, environment, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with Replies(Reply(generated("6"))) as server, session(server):
        llm = ember.LLM(f"vertex/{GEMINI}")
        llm("1?")
        environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", tokens.account(other, "p-other"))
        llm("2?")
    assert [asked.path.split("/")[3] for asked in server.asked] == ["p-account", "p-other"]
    assert len(tokens.asked) == 2


def test_a_token_is_shown_nowhere(tokens, tmp_path, capfd):
    token = "ya29.MARKED-token-1"
    refused = Reply({"error": {"code": 403, "message": f"{token} may not", "status": "PERMISSION_DENIED"}}, 403)
    with Replies(refused) as server, session(server, journal=tmp_path / "run.db") as run:
        provider = Vertex(server.url)
        with pytest.raises(AuthenticationError, match=r"\[key\] may not.* Without a key check") as raised:
            ember.LLM(f"vertex/{GEMINI}")("3 + 3?")
        shown = [str(raised.value), repr(raised.value), str(run.report()), str(run.calls()), repr(provider)]
    packed = pickle.dumps(provider)
    shown += [
        *capfd.readouterr(),
        packed.decode("latin-1"),
        *(p.read_bytes().decode("latin-1") for p in tmp_path.glob("run*")),
    ]
    assert all(token not in words for words in shown)
    assert repr(pickle.loads(packed)) == repr(provider)


# -- what is read ----------------------------------------------------------------------------------------------------


def generated(words, **more):
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    candidate = {"content": {"parts": [{"text": words}], "role": "model"}, "finishReason": "STOP"}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": GEMINI, "responseId": "r-1", **more}


def message(words):
    usage = {"input_tokens": 10, "output_tokens": 5}
    blocks = [{"type": "text", "text": words}]
    fields = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5-20251001"}
    return {**fields, "content": blocks, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}


@pytest.mark.parametrize(
    ("model", "tree", "cost"),
    [
        (GEMINI, generated("6"), (10 * 0.30 + 5 * 2.50) / 1e6),  # the vendors' prices of a million tokens
        (CLAUDE, message("6"), (10 * 1.0 + 5 * 5.0) / 1e6),
    ],
)
def test_an_answer_is_read_as_its_publishers(model, tree, cost):
    answer = HTTPAnswer(200, {"content-type": "application/json"}, json.dumps(tree).encode())
    response = PUBLISHED.read(answer, request(model))
    assert not isinstance(response, Failure)
    assert (response.text, response.finish, response.tokens) == ("6", Finish.STOP, Tokens(10, 5))
    assert response.cost == pytest.approx(cost)


def error(code, status, words):
    return {"error": {"code": code, "message": words, "status": status}}


BUSY = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}


@pytest.mark.parametrize(
    ("model", "reply", "kind", "words"),
    [
        (GEMINI, Reply(error(429, "RESOURCE_EXHAUSTED", "slow"), 429), RateLimitError, "HTTP 429: slow"),
        (CLAUDE, Reply(error(429, "RESOURCE_EXHAUSTED", "slow"), 429), RateLimitError, "HTTP 429: slow"),
        (GEMINI, Reply([error(503, "UNAVAILABLE", "busy")], 503), ServerError, "HTTP 503: busy"),
        (CLAUDE, Reply(BUSY, 529), ServerError, "HTTP 529: busy"),
        (GEMINI, Reply(error(404, "NOT_FOUND", "no model"), 404), RefusedRequestError, "HTTP 404: no model"),
        (
            GEMINI,
            Reply(error(403, "PERMISSION_DENIED", "no"), 403),
            AuthenticationError,
            "Check GOOGLE_API_KEY, or",
        ),
        (GEMINI, Reply(generated("6" * 999), hang_up=True), ConnectionFailedError, "no complete answer"),
        (GEMINI, Reply(error(500, "INTERNAL", f"with {KEY} in it"), 500), ServerError, r"with \[key\] in it"),
        (GEMINI, Reply(error(500, "INTERNAL", "not ya29.abc-def"), 500), ServerError, r"not \[key\]$"),
    ],
)
def test_faults_over_http_are_typed(model, reply, kind, words):
    with Replies(reply) as server, pytest.raises(ProviderError, match=words) as raised:
        complete(Vertex(server.url, api_key=KEY), request(model))
    assert type(raised.value) is kind and KEY not in str(raised.value)


# -- lists and the doctor --------------------------------------------------------------------------------------------


def test_models_are_those_of_google(environment):
    first = {"publisherModels": [{"name": f"publishers/google/models/{GEMINI}"}], "nextPageToken": "p=2"}
    last = {"publisherModels": [{"name": "publishers/google/models/gemini-3-pro"}]}
    with Replies(Reply(first), Reply(last)) as server, session(server, api_key=KEY, project="p-1"):
        assert ember.models("vertex") == [f"vertex/{GEMINI}", "vertex/gemini-3-pro"]
    path = SDK["sent"]["models"]["path"]
    assert [asked.path for asked in server.asked] == [f"{path}?pageSize=1000", f"{path}?pageSize=1000&pageToken=p%3D2"]


def test_models_are_listed_with_credentials(tokens):
    with Replies(Reply({"publisherModels": []})) as server, session(server):
        assert ember.models("vertex") == []
    assert server.asked[0].headers["authorization"] == "Bearer ya29.MARKED-token-1"


def row(capsys):
    _cli.main(["doctor"])
    out = capsys.readouterr().out
    assert KEY not in out and "MARKED" not in out
    return next(line for line in out.splitlines() if line.startswith("vertex"))


def test_the_doctor_says_whether_there_is_a_key(environment, capsys):
    assert row(capsys).startswith("vertex      no GOOGLE_API_KEY, no ")
    environment.setenv("GOOGLE_API_KEY", KEY)
    assert row(capsys).split() == ["vertex", "GOOGLE_API_KEY", "https://aiplatform.googleapis.com"]
    environment.setenv("GOOGLE_CLOUD_PROJECT", "p-1")
    assert row(capsys).startswith("vertex      no GOOGLE_API_KEY, no ")


def test_the_doctor_says_whether_there_are_credentials(tokens, environment, capsys):
    assert "credentials of Google (p-account)" in row(capsys)
    assert not tokens.asked
    environment.setenv("GOOGLE_CLOUD_PROJECT", "p-1")
    assert "credentials of Google (p-1)" in row(capsys)
