"""Lists of models: what is asked, page by page, what is raised, what later errors learn from them; and the doctor."""

import pytest
from replies import Replies, Reply

import ember_jax as ember
from ember_jax import _cli
from ember_jax.errors import (
    AuthenticationError,
    ConnectionFailedError,
    MalformedResponseError,
    ModelError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
    UnsupportedError,
)
from ember_jax.providers import registry
from ember_jax.providers.base import Message, Request
from ember_jax.providers.compatible import SERVICES, Compatible
from ember_jax.providers.dialect import Failure, HTTPAnswer, Listing
from ember_jax.providers.gemini import SERVICE, Gemini
from ember_jax.providers.openai import OpenAI

KEY = "sk-proj-MARKED-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(registry, "_providers", {})
    services = [SERVICE, *(dialect.service for dialect in SERVICES.values())]
    names = {name for service in services for name in (*service.base_variables, *service.key_variables)}
    for name in (*names, "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def listed(provider, name="there"):
    with ember.session(journal=None, providers={name: provider}):
        return ember.models(name)


def of_openai(*names):
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 1} for name in names]}


# -- as data ---------------------------------------------------------------------------------------------------------

# As Anthropic's reference has it.
ANTHROPIC = Listing("/v1/models?limit=1000", {"anthropic-version": "2023-06-01"}, cursor=("last_id", "after_id"))


@pytest.mark.parametrize(
    ("listing", "body", "page"),
    [
        (Listing(), b'{"data": [{"id": "b"}, {"id": "a"}]}', (("b", "a"), "")),
        (Listing(), b'{"data": [], "has_more": true, "last_id": "a"}', ((), "")),
        (Listing(), b'[{"id": "a"}, {"no": "id"}, 7]', (("a",), "")),  # Together's
        (Listing(models="models", id="name", prefix="models/"), b'{"models": []}', ((), "")),
        (ANTHROPIC, b'{"data": [{"id": "a"}], "has_more": true, "last_id": "a"}', (("a",), "a")),
        (ANTHROPIC, b'{"data": [{"id": "a"}], "has_more": false, "last_id": "a"}', (("a",), "")),
    ],
)
def test_a_page_is_read_as_data(listing, body, page):
    assert listing.read(HTTPAnswer(200, {}, body)) == page


@pytest.mark.parametrize(
    ("body", "said"), [(b"<html>", "…"), (b'{"data": 7}', "…"), (b'{"error": {"message": "no"}}', "no")]
)
def test_what_is_no_list_is_said_as_data(body, said):
    failure = Failure(MalformedResponseError, "the answer is not a list of models: {}", (said,))
    assert Listing().read(HTTPAnswer(200, {}, body)) == failure


def test_the_next_page_is_asked_for_by_its_begin():
    assert ANTHROPIC.page("") == "/v1/models?limit=1000"
    assert ANTHROPIC.page("a/b&c") == "/v1/models?limit=1000&after_id=a%2Fb%26c"
    assert Listing(cursor=("next", "from")).page("a") == "/models?from=a"


# -- over HTTP -------------------------------------------------------------------------------------------------------


def test_models_of_openai_are_ids_to_call():
    with Replies(Reply(of_openai("gpt-4o", "gpt-4o-mini", "dall-e-3"))) as server:
        ids = listed(OpenAI(f"{server.url}/v1", api_key=KEY), "openai")
    assert ids == ["openai/dall-e-3", "openai/gpt-4o", "openai/gpt-4o-mini"]
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("GET", "/v1/models", None)
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_models_of_gemini_come_in_pages():
    first = {"models": [{"name": "models/gemini-2.5-pro"}], "nextPageToken": "p=2"}
    last = {"models": [{"name": "models/gemini-2.5-flash"}, {"name": "tunedModels/mine"}]}
    with Replies(Reply(first), Reply(last)) as server:
        ids = listed(Gemini(server.url, api_key=KEY), "gemini")
    assert ids == ["gemini/gemini-2.5-flash", "gemini/gemini-2.5-pro", "gemini/tunedModels/mine"]
    paths = [asked.path for asked in server.asked]
    assert paths == ["/v1/models?pageSize=1000", "/v1/models?pageSize=1000&pageToken=p%3D2"]
    assert all(asked.headers["x-goog-api-key"] == KEY for asked in server.asked)


def test_a_page_that_is_followed_by_itself_ends_the_list():
    same = Reply({"models": [{"name": "models/a"}], "nextPageToken": "t"})
    with Replies(same) as server:
        assert listed(Gemini(server.url, api_key=KEY)) == ["there/a"]
    assert len(server.asked) == 2


def test_simulated_models_are_listed():
    assert ember.models("sim") == ["sim/large", "sim/medium", "sim/small"]


def test_a_session_s_own_provider_is_asked():
    with pytest.raises(ModelError, match=r"Callable\(str\) has no list of its models"):
        listed(ember.providers.Callable(str))
    with pytest.raises(ModelError, match="There is no provider 'there'"):
        ember.models("there")


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (
            Reply({"error": {"message": f"Bad {KEY}"}}, 401),
            AuthenticationError,
            r"^openai: HTTP 401: Bad \[key\] Check",
        ),
        (Reply({}, 404), RefusedRequestError, "^openai: HTTP 404: "),
        (Reply({}, 429, {"retry-after": "2"}), RateLimitError, "HTTP 429"),
        (Reply({}, 503), ServerError, "HTTP 503"),
        (Reply({"data": 7}), MalformedResponseError, "^openai: the answer is not a list of models: …"),
        (Reply(of_openai("a"), hang_up=True), ConnectionFailedError, "^openai: no complete answer from http"),
    ],
)
def test_faults_are_typed(reply, kind, words):
    with Replies(reply) as server, pytest.raises(kind, match=words) as raised:
        listed(OpenAI(server.url, api_key=KEY))
    assert type(raised.value) is kind and KEY not in str(raised.value)
    assert len(server.asked) == 1


def test_nobody_is_asked_without_a_key():
    with pytest.raises(AuthenticationError, match=r"openai: there is no API key. Set .* OPENAI_API_KEY"):
        ember.models("openai")
    with pytest.raises(AuthenticationError, match=r"groq: there is no API key. Set .* GROQ_API_KEY"):
        ember.models("groq")


def test_it_does_not_wait_for_the_loop_on_the_loop():
    async def tool(words):
        return str(ember.models("sim"))

    with (
        ember.session(journal=None),
        pytest.raises(UnsupportedError, match=r"ember\.models was called from an `async def`"),
    ):
        ember.host(tool, out=ember.Text)(ember.text("x"))


# -- what errors learn -----------------------------------------------------------------------------------------------

UNKNOWN = {"error": {"message": "The model does not exist", "code": "model_not_found"}}


@pytest.mark.parametrize("status", [400, 404])
def test_an_error_names_the_nearest_model_once_they_were_listed(status):
    def error():
        with pytest.raises(RefusedRequestError) as raised:
            ember.LLM("openai/gpt-4o-mni")("hi")
        return str(raised.value)

    unknown = Reply(UNKNOWN, status)
    with Replies(unknown, Reply(of_openai("gpt-4o-mini", "gpt-4o")), unknown) as server:
        provider = OpenAI(f"{server.url}/v1", api_key=KEY)
        with ember.session(journal=None, providers={"openai": provider}):
            assert "Did you mean" not in error()
            ember.models("openai")
            assert error().endswith("The model does not exist. Did you mean 'openai/gpt-4o-mini'?")
    assert [asked.method for asked in server.asked] == ["POST", "GET", "POST"]  # no list that nobody asked for


@pytest.mark.parametrize(("model", "status"), [("gpt-4o", 400), ("zzz", 404), ("gpt-4o-mni", 403), ("gpt-4o-mni", 400)])
def test_an_error_of_another_kind_is_told_as_it_was(model, status):
    provider = OpenAI("http://host/v1", api_key=KEY)
    provider._http._listed = ("gpt-4o-mini", "gpt-4o")
    with pytest.raises(ember.errors.ProviderError) as raised:
        provider.read(status, {}, b"{}", Request("openai", model, (Message("user", "hi"),)))
    assert "Did you mean" not in str(raised.value)


# -- the doctor ------------------------------------------------------------------------------------------------------


def rows(capsys):
    out = capsys.readouterr().out
    return out, {line.split()[0]: line for line in out.partition("\n\n")[2].splitlines()}


def test_the_doctor_names_variables_and_shows_no_key(environment, capsys):
    environment.setenv("GROQ_API_KEY", KEY)
    _cli.main(["doctor"])
    out, said = rows(capsys)
    assert KEY not in out
    assert out.startswith(f"ember_jax {ember.__version__}, JAX ")
    assert said["groq"].split() == ["groq", "GROQ_API_KEY", "https://api.groq.com/openai/v1"]
    assert said["mistral"].split() == ["mistral", "no", "MISTRAL_API_KEY", "https://api.mistral.ai/v1"]
    assert said["ollama"].split() == ["ollama", "needs", "no", "key", "http://localhost:11434/v1"]
    assert "set AZURE_OPENAI_ENDPOINT to a whole URL" in said["azure"]
    assert {"gemini", "openai", *SERVICES} <= {*said}


def test_the_doctor_asks_whom_it_has_a_key_for(environment, capsys):
    for name, dialect in SERVICES.items():  # nothing of this machine is asked
        if not dialect.service.needs_key:
            environment.setenv(dialect.service.base_variables[0], "http://127.0.0.1:1")
            assert name != "groq"
    with Replies(Reply(of_openai("a", "b"))) as right, Replies(Reply(UNKNOWN, 401)) as wrong:
        environment.setenv("GROQ_API_KEY", KEY)
        environment.setenv("GROQ_BASE_URL", right.url)
        environment.setenv("GEMINI_API_KEY", KEY)
        environment.setenv("GOOGLE_GEMINI_BASE_URL", wrong.url)
        _cli.main(["doctor", "--ask"])
    out, said = rows(capsys)
    assert said["groq"].endswith("answers: 2 models")
    assert "GEMINI_API_KEY" in said["gemini"] and "AuthenticationError: gemini: HTTP 401" in said["gemini"]
    assert said["vllm"].endswith("does not answer")
    assert said["openai"].endswith("https://api.openai.com/v1")
    assert KEY not in out and len(right.asked) == len(wrong.asked) == 1


def test_every_list_is_a_new_one():
    with Replies(Reply(of_openai("a"))) as server:
        provider = Compatible("vllm", server.url)
        assert listed(provider) == listed(provider) == ["there/a"]
    assert len(server.asked) == 2
