import asyncio
import hashlib
import json
import math
import subprocess
import sys
import threading

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax.errors import MalformedResponseError, ModelError, ServerError
from ember_jax.providers import prices, registry
from ember_jax.providers.base import Message, Part, Request, Response, Tokens
from ember_jax.providers.callable import Callable
from ember_jax.providers.compatible import Compatible
from ember_jax.providers.openai import OpenAI
from ember_jax.providers.sim import Sim
from ember_jax.testing import ChatServer, Fault, SimModel


def request(prompt="What is 2 + 3?", model="small", sample=None, **parameters):
    return Request("any", model, (Message("user", prompt),), parameters, sample)


@pytest.fixture
def server():
    with ChatServer(SimModel(accuracy=1.0)) as server:
        yield server


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch):
    monkeypatch.setattr(registry, "_providers", {})
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# The contract, for every provider


async def answer_later(request):
    return Response(text="5", model=request.model)


FAMILY = {
    "sim": lambda url: Sim({"small": SimModel(accuracy=1.0, latency=0.0)}),
    "openai": lambda url: OpenAI(url),
    "compatible": lambda url: Compatible("vllm", url),
    "callable": lambda url: Callable(lambda request: "5"),
    "async callable": lambda url: Callable(answer_later),
}


@pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY.keys())
def test_every_provider_keeps_the_contract(make, server):
    provider = make(server.base_url)
    provider.check("small")
    assert repr(provider).startswith(type(provider).__name__)

    async def scenario():
        try:
            return await asyncio.gather(*(provider.complete(request()) for _ in range(20)))
        finally:
            await provider.close()

    # Closed and used again, on another loop.
    for responses in (asyncio.run(scenario()), asyncio.run(scenario())):
        assert [r.text for r in responses] == ["5"] * 20
        assert {r.model for r in responses} == {"small"}
        assert all(r.input_tokens >= 0 and r.output_tokens >= 0 for r in responses)
    asyncio.run(provider.close())


# Functions


def test_a_function_gets_the_whole_request():
    seen = []

    def fn(asked):
        seen.append((asked, threading.current_thread() is threading.main_thread()))
        return asked.messages[-1].content.upper()

    asked = request("shout", temperature=1)
    assert asyncio.run(Callable(fn).complete(asked)).text == "SHOUT"
    assert seen == [(asked, False)]


def test_an_async_function_runs_on_the_loop():
    threads = []

    class Service:
        async def __call__(self, asked):
            threads.append(threading.current_thread())
            return "yes"

    for fn in (Service(), Service().__call__):
        assert asyncio.run(Callable(fn).complete(request())).text == "yes"
    assert threads == [threading.main_thread()] * 2
    assert asyncio.run(Callable(lambda asked: answer_later(asked)).complete(request())).text == "5"


def test_a_function_may_return_a_whole_response():
    response = Response(text="a", cost=1.5, logprob=-2.0)
    assert asyncio.run(Callable(lambda asked: response).complete(request())) is response
    bare = asyncio.run(Callable(lambda asked: "a").complete(request()))
    assert bare.model == "small" and math.isnan(bare.cost)


def test_what_a_function_raises_goes_through():
    def fn(asked):
        raise ServerError("busy", status=503)

    with pytest.raises(ServerError, match="busy"):
        asyncio.run(Callable(fn).complete(request()))


def test_a_function_must_return_words():
    with pytest.raises(MalformedResponseError, match=r"any/small: .* returned int; return a str"):
        asyncio.run(Callable(lambda asked: 5).complete(request()))
    with pytest.raises(TypeError, match="a function of one Request"):
        Callable("words")


# The registry


def test_built_in_providers_are_made_once():
    assert isinstance(registry.get("sim"), Sim)
    assert isinstance(registry.get("openai"), OpenAI)
    assert registry.get("sim") is registry.get("sim")


def test_threads_get_the_same_provider():
    barrier = threading.Barrier(16)
    found = []

    def work():
        barrier.wait()
        found.append(registry.get("openai"))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and len(set(map(id, found))) == 1


def test_registering_again_replaces():
    first, second = Callable(str), Callable(str)
    registry.register("mine", first)
    assert registry.get("mine") is first
    registry.register("mine", second)
    assert registry.get("mine") is second
    registry.register("sim", first)
    assert registry.get("sim") is first


@pytest.mark.parametrize("name", ["", "a/b", " a", "a\n"])
def test_names_that_cannot_stand_in_a_model_id(name):
    with pytest.raises(ModelError, match="cannot name a provider"):
        registry.register(name, Sim())


def test_only_providers_are_registered():
    with pytest.raises(TypeError, match=r"Callable\(fn\)"):
        registry.register("mine", str)


@pytest.mark.parametrize(
    ("model_id", "halves"),
    [
        ("openai/gpt-4o", ("openai", "gpt-4o")),
        ("router/meta/llama-3", ("router", "meta/llama-3")),
        ("local/a b", ("local", "a b")),
    ],
)
def test_model_ids_are_split_at_the_first_slash(model_id, halves):
    assert registry.split(model_id) == halves


@pytest.mark.parametrize("model_id", ["", "gpt-4o", "/gpt-4o", "openai/", " openai/gpt-4o", "openai/gpt-4o\n", "/"])
def test_malformed_model_ids_are_taught(model_id):
    for function in (registry.split, registry.check):
        with pytest.raises(ModelError, match="write 'provider/model', such as 'sim/small'"):
            function(model_id)


def test_a_vendor_that_is_not_built_in_is_answered_with_the_way_to_add_it(monkeypatch):
    monkeypatch.setattr(registry, "_providers", {"mine": Callable(str)})
    with ember.session(providers={"ours": Callable(str)}), pytest.raises(ModelError) as raised:
        ember.LLM("reka/flash")
    message = str(raised.value)
    listed = message.removeprefix("There is no provider 'reka'; there are ").partition(". Others with an endpoint")[0]
    names = listed.split(", ")
    assert names == sorted(names) and {"anthropic", "gemini", "groq", "mine", "openai", "ours", "sim", "vllm"} <= {
        *names
    }
    assert "Did you mean" not in message
    assert "`ember.register('reka', ember.providers.OpenAI(base_url=\"https://…/v1\", api_key=…))`" in message
    with ember.session(providers={"reka": Callable(lambda request: "here")}):
        assert str(ember.LLM("reka/flash")("x")) == "here"


@pytest.mark.parametrize(
    ("slip", "meant"), [("mein", "mine"), ("opena", "openai"), ("OpenAI", "openai"), ("smi", "sim")]
)
def test_a_slip_of_a_name_is_still_told(slip, meant, monkeypatch):
    monkeypatch.setattr(registry, "_providers", {"mine": Callable(str)})
    with pytest.raises(ModelError, match=f"Did you mean '{meant}'"):
        ember.LLM(f"{slip}/x")


def test_close_names_are_suggested():
    registry.register("local", Callable(str))
    registry.check("sim/small")
    registry.check("openai/anything")
    with pytest.raises(ModelError, match=r"there are .*, local, .*, sim, .*\. Did you mean 'openai'\?"):
        registry.check("opnai/gpt-4o")
    with pytest.raises(ModelError, match=r"Did you mean 'large'\?"):
        registry.check("sim/larg")
    with pytest.raises(ModelError, match=r"Did you mean 'sim/small'\?"):
        registry.check("small")
    with pytest.raises(ModelError) as caught:
        registry.check("xyz/gpt-4o")
    assert "Did you mean" not in str(caught.value)


def test_all_are_closed_even_where_one_fails(server):
    class Broken(Callable):
        async def close(self):
            raise OSError("stuck")

    provider = OpenAI(server.base_url)
    registry.register("broken", Broken(str))
    registry.register("good", provider)

    async def scenario():
        await provider.complete(request())
        client = await provider._http._own_client()
        with pytest.raises(OSError, match="stuck"):
            await registry.close_all()
        return client.is_closed

    assert asyncio.run(scenario())


# Prices


def test_known_models_have_a_price():
    assert prices.cost(Request("openai", "gpt-4o-mini", ()), Tokens(1_000_000, 0)) == pytest.approx(0.15)
    assert prices.cost(Request("openai", "gpt-4o-mini", ()), Tokens(0, 1_000_000)) == pytest.approx(0.60)
    assert prices.cost(Request("openai", "gpt-4o-mini", ()), Tokens()) == 0.0


@pytest.mark.parametrize("names", [("openai", "no-such-model"), ("nobody", "gpt-4o-mini"), ("local", ""), ("", "")])
def test_unknown_models_have_none(names):
    assert math.isnan(prices.cost(Request(*names, ()), Tokens(10, 10)))


# The server for tests


def post(server, body, key=None):
    # Without certificates, which take longer to load than the call takes and are not used for plain HTTP.
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.base_url}/chat/completions", content=body, headers=headers, verify=False)


def body_of(prompt, **parameters):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}], **parameters})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"model": "m", "messages": 3}',
        '{"model": "m", "messages": ["a"]}',
        '{"model": "m", "messages": [{"role": "user", "content": ["a"]}]}',
        body_of("a", max_tokens=0),
    ],
)
def test_the_server_refuses_what_is_no_request(server, body):
    answer = post(server, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request_error"


def test_the_server_knows_no_other_path(server):
    assert httpx.get(f"{server.base_url}/nothing", verify=False).status_code == 404


def test_fresh_servers_draw_anew():
    def texts(server, prompt):
        return [post(server, body_of(prompt)).json()["choices"][0]["message"]["content"] for _ in range(12)]

    with ChatServer(SimModel(accuracy=0.5)) as server:
        assert len(set(texts(server, "2 + 2"))) == 1
    with ChatServer(SimModel(accuracy=0.5), fresh=True) as server:
        once = texts(server, "2 + 2")
        other = texts(server, "3 + 3")
    with ChatServer(SimModel(accuracy=0.5), fresh=True) as server:
        assert texts(server, "3 + 3") == other
        assert texts(server, "2 + 2") == once
    assert len(set(once)) > 1


def test_faults_by_number():
    with ChatServer(faults=lambda number: Fault(status=503) if number % 2 else None) as server:
        assert [post(server, body_of("a")).status_code for _ in range(4)] == [200, 503, 200, 503]
        assert [r.body["messages"][0]["content"] for r in server.requests] == ["a"] * 4
        times = [r.time for r in server.requests]
    assert times == sorted(times)


def test_recorded_requests_do_not_hold_the_key():
    with ChatServer(api_key="MARKED") as server:
        assert post(server, body_of("a"), key="MARKED").status_code == 200
        assert post(server, body_of("a"), key="other").status_code == 401
        assert "MARKED" not in repr(server.requests)
        assert server.requests[0].headers["Authorization"] == "Bearer (masked)"


def test_a_server_ends_with_requests_that_still_wait():
    with ChatServer(together=2) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.base_url}/chat/completions", content=body_of("a"), timeout=0.05, verify=False)
        assert server.in_flight_max == 1
    assert not [t for t in threading.enumerate() if t.name == "ChatServer"]


def test_a_server_runs_only_within_its_block():
    server = ChatServer()
    with pytest.raises(RuntimeError, match="with ChatServer"):
        _ = server.base_url
    with server, pytest.raises(RuntimeError, match="already running"):
        server.__enter__()
    # And again, on another port.
    with server:
        assert post(server, body_of("a")).status_code == 200


# Imports


def test_importing_is_cheap():
    heavy = ["httpx", "httpx_aiohttp", "aiohttp", "genai_prices", "msgspec", "pydantic"]
    code = (
        f"import sys, ember_jax.providers.registry, ember_jax.testing; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Digests

words = st.text()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)


@given(
    words,
    words,
    st.lists(
        st.builds(Message, words, words)
        | st.builds(Message, words, words, st.lists(st.builds(Part, words, words, words, words)).map(tuple)),
        max_size=3,
    ).map(tuple),
    st.dictionaries(words, json_values, max_size=3),
    st.none() | words,
    words,
)
def test_a_digest_is_of_the_canonical_json_of_what_is_asked(provider, model, messages, parameters, sample, endpoint):
    # Journals are kept by it, so it is the same for ever.
    said = [[m.role, m.content, *([m.parts] if m.parts else [])] for m in messages]
    asked = [provider, model, said, parameters, sample, *([endpoint] if endpoint else [])]
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()
    digest = Request(provider, model, messages, parameters, sample).digest(endpoint)
    assert digest == hashlib.blake2b(canonical, digest_size=32).digest()
