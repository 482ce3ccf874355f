"""Services that imitate OpenAI, by short name: where they are asked, with which key, and what they are sent."""

import asyncio
import json
import math
import pickle
import subprocess
import sys

import pytest
from replies import Replies, Reply

import ember_jax as ember
from ember_jax.errors import AuthenticationError, ModelError, RefusedRequestError
from ember_jax.providers import prices, registry
from ember_jax.providers.base import Message, Request, Tokens
from ember_jax.providers.compatible import SERVICES, Compatible
from ember_jax.providers.dialect import Failure, HTTPAnswer
from ember_jax.testing import ChatServer, Fault, SimModel

# By the services' own references: the whole address of chat completions, and the variable of the key.
HOSTED = {
    "cerebras": ("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "fireworks": ("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "huggingface": ("https://router.huggingface.co/v1", "HF_TOKEN"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "nvidia": ("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together": ("https://api.together.ai/v1", "TOGETHER_API_KEY"),
    "xai": ("https://api.x.ai/v1", "XAI_API_KEY"),
}
LOCAL = {"llamacpp": 8080, "lmstudio": 1234, "ollama": 11434, "sglang": 30000, "transformers": 8000, "vllm": 8000}
KEY = "MARKED.9876/54+3210abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(registry, "_providers", {})
    for dialect in SERVICES.values():
        for name in (*dialect.service.base_variables, *dialect.service.key_variables):
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


def request(name, model="m", **parameters):
    return Request(name, model, (Message("user", "hi"),), parameters)


def test_the_table_has_these_services():
    assert {*SERVICES} == {*HOSTED, *LOCAL, "azure"}
    assert list(SERVICES) == [*sorted({*HOSTED, "azure"}), *sorted(LOCAL)]


@pytest.mark.parametrize("name", HOSTED)
def test_a_hosted_service_is_asked_at_its_address_with_its_key(name, environment):
    base, variable = HOSTED[name]
    provider = registry.get(name)
    with pytest.raises(AuthenticationError, match=f"Set the environment variable {variable}, or register") as raised:
        provider.build(request(name))
    assert f"register('{name}', Compatible('{name}', api_key=…))" in str(raised.value)
    environment.setenv(variable, KEY)
    url, headers, body = provider.build(request(name, "org/model-1"))
    assert url == f"{base}/chat/completions"
    assert headers == {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    assert body == {"model": "org/model-1", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_server_needs_no_key(name):
    url, headers, _ = registry.get(name).build(request(name))
    assert url == f"http://localhost:{LOCAL[name]}/v1/chat/completions"
    assert "Authorization" not in headers


def test_azure_has_a_host_for_each_user_and_a_header_of_its_own(environment):
    provider = registry.get("azure")
    with pytest.raises(RefusedRequestError, match=r"Set the environment variable AZURE_OPENAI_ENDPOINT, or give it"):
        provider.build(request("azure"))
    environment.setenv("AZURE_OPENAI_ENDPOINT", "https://mine.openai.azure.com/")
    with pytest.raises(AuthenticationError, match="AZURE_OPENAI_API_KEY"):
        provider.build(request("azure"))
    environment.setenv("AZURE_OPENAI_API_KEY", KEY)
    url, headers, _ = provider.build(request("azure"))
    assert url == "https://mine.openai.azure.com/openai/v1/chat/completions"
    assert headers == {"Content-Type": "application/json", "api-key": KEY}
    environment.setenv("AZURE_OPENAI_ENDPOINT", "https://mine.openai.azure.com/openai/v1/")
    assert provider.build(request("azure"))[0] == url


# groq 1.7.0 and together 3.1.1 read these with the host alone.
@pytest.mark.parametrize("base", ["http://proxy", "http://proxy/", "http://proxy/openai/v1"])
def test_an_address_of_ones_own_gets_the_version(base, environment):
    environment.setenv("GROQ_BASE_URL", base)
    assert registry.get("groq").endpoint == "http://proxy/openai/v1"
    assert Compatible("groq", base).endpoint == "http://proxy/openai/v1"


# What mistralai 3.7.0 and together 3.1.1 have no other name for.
@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("mistral", {"max_completion_tokens": 9, "seed": 7}, {"max_tokens": 9, "random_seed": 7}),
        ("mistral", {"max_tokens": 9, "logprobs": True}, {"max_tokens": 9, "logprobs": True}),
        ("together", {"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ("together", {"logprobs": True}, {"logprobs": 1}),
        ("together", {"logprobs": 3}, {"logprobs": 3}),
        ("groq", {"max_completion_tokens": 9, "seed": 7}, {"max_completion_tokens": 9, "seed": 7}),
        ("ollama", {"max_completion_tokens": 9}, {"max_tokens": 9}),
        ("deepseek", {"max_completion_tokens": 9}, {"max_tokens": 9}),
    ],
)
def test_parameters_have_the_names_of_the_service(name, given, sent):
    body = SERVICES[name].build(request(name, **given)).body
    assert {k: v for k, v in body.items() if k not in ("model", "messages")} == sent


def test_one_parameter_under_two_names_is_refused():
    refused = SERVICES["mistral"].build(request("mistral", max_tokens=1, max_completion_tokens=2))
    words = "the parameters 'max_completion_tokens' and 'max_tokens' are one; give one of them."
    assert refused == Failure(RefusedRequestError, words)


# -- answers ---------------------------------------------------------------------------------------------------------


def read(name, choice):
    tree = {"choices": [{"finish_reason": "stop", **choice}], "model": "m"}
    return SERVICES[name].read(HTTPAnswer(200, {}, json.dumps(tree).encode()), request(name))


@pytest.mark.parametrize(
    ("tops", "alternatives"),
    [
        ([{"B": -0.25, "A": -1.5}, {}], (("B", -0.25), ("A", -1.5))),
        ([None, None], ()),
        (None, ()),
        ([{"B": -0.25}], (("B", -0.25),)),
        ({"B": -0.25}, ()),  # as together 3.1.1 has it typed; it does not say of which token
    ],
)
def test_togethers_log_probabilities_are_lists_side_by_side(tops, alternatives):
    logprobs = {"tokens": ["B", "."], "token_logprobs": [-0.25, -0.5], "top_logprobs": tops}
    response = read("together", {"message": {"content": "B."}, "logprobs": logprobs})
    assert response.text == "B."
    assert response.logprob == -0.75
    assert response.alternatives == alternatives


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("groq", {"content": "6", "reasoning": "3 + 3"}),
        ("deepseek", {"content": "6", "reasoning_content": "3 + 3"}),
        (
            "mistral",
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "3 + 3"}]},
                    {"type": "text", "text": "6"},
                ]
            },
        ),
    ],
)
def test_reasoning_is_read_wherever_it_stands(name, message):
    response = read(name, {"message": message})
    assert (response.text, response.reasoning) == ("6", "3 + 3")


@pytest.mark.parametrize(
    ("model_id", "dollars"),
    [("groq/llama-3.3-70b-versatile", 0.59 + 0.79), ("xai/grok-3", 3 + 15), ("azure/gpt-4o-mini", 0.15 + 0.60)],
)
def test_prices_are_found_by_the_short_name(model_id, dollars):
    name, model = registry.split(model_id)
    assert prices.cost(request(name, model), Tokens(1e6, 1e6)) == pytest.approx(dollars)


@pytest.mark.parametrize("name", LOCAL)
def test_what_ones_own_machine_costs_is_not_known(name):
    assert math.isnan(registry.get(name).cost(request(name, "gpt-4o-mini"), Tokens(1, 1)))


# -- through ember ---------------------------------------------------------------------------------------------------


def test_a_model_id_is_all_that_is_needed(environment):
    with ChatServer(SimModel(accuracy=1.0), api_key=KEY) as server:
        environment.setenv("TOGETHER_API_KEY", KEY)
        environment.setenv("TOGETHER_BASE_URL", server.base_url)
        with ember.session(journal=None):
            assert str(ember.LLM("together/meta-llama/Llama-3.3-70B", max_completion_tokens=9)("What is 3 + 3?")) == "6"
    assert server.requests[0].body["model"] == "meta-llama/Llama-3.3-70B"
    assert server.requests[0].body["max_tokens"] == 9


def test_a_key_shows_in_no_error():
    said = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}})
    with ChatServer(faults=[Fault(status=401, body=said)]) as server, pytest.raises(AuthenticationError) as raised:
        asyncio.run(_once(Compatible("groq", server.base_url, api_key=KEY), request("groq")))
    assert "Check GROQ_API_KEY, or the argument api_key of Compatible('groq', api_key=…)." in str(raised.value)
    assert KEY not in str(raised.value)


async def _once(provider, asked):
    try:
        return await provider.complete(asked)
    finally:
        await provider.close()


def test_a_choice_of_together_has_probabilities():
    logprobs = {
        "tokens": ["B"],
        "token_logprobs": [math.log(0.6)],
        "top_logprobs": [{"B": math.log(0.6), "A": math.log(0.2)}],
    }
    choice = {"message": {"content": "B"}, "finish_reason": "stop", "logprobs": logprobs}
    with Replies(Reply({"choices": [choice], "model": "m"})) as server:
        provider = Compatible("together", server.url, api_key=KEY)
        with ember.session(journal=None, providers={"together": provider}):
            chosen = ember.LLM("together/org/m").choose("Which?", ["yes", "no"])
    assert chosen.probs.tolist() == pytest.approx([0.25, 0.75])
    assert (server.asked[0].path, server.asked[0].body["logprobs"]) == ("/v1/chat/completions", 20)


def test_a_slip_of_a_name_is_told():
    with pytest.raises(ModelError, match=r"There is no service 'grok' in the table; .* Did you mean 'groq'\?"):
        Compatible("grok")
    with pytest.raises(ModelError, match="Did you mean 'fireworks'"):
        ember.LLM("firework/x")


def test_a_provider_is_shown_and_pickled_by_its_name():
    provider = Compatible("groq", "http://proxy")
    assert repr(provider) == "Compatible('groq', base_url='http://proxy', timeout=600.0)"
    assert repr(pickle.loads(pickle.dumps(provider))) == repr(provider)
    with pytest.raises(TypeError, match=r"a Compatible\('groq', api_key=…\) or .* reads GROQ_API_KEY"):
        pickle.dumps(Compatible("groq", api_key=KEY))


def test_the_table_is_imported_only_when_a_name_is_looked_for():
    script = (
        "import sys, ember_jax as ember; ember.LLM('sim/small'); ember.providers.OpenAI; "
        "print('ember_jax.providers.compatible' in sys.modules); ember.LLM('groq/x'); "
        "print('ember_jax.providers.compatible' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"]
