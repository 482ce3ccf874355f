"""What other packages return from a call of a model, behind `Callable`: the packages themselves, against our server."""

import asyncio
import importlib
import os
import types
import warnings

import jax
import pytest

import ember_jax as ember
from ember_jax.errors import MalformedResponseError, ServerError
from ember_jax.providers import Callable, Message, Request, chat
from ember_jax.providers.base import Finish, Part
from ember_jax.testing import ChatServer, SimModel

COMPLETION = {
    "id": "c1",
    "model": "m-1",
    "choices": [{"message": {"role": "assistant", "content": "4"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
}
MESSAGE = types.SimpleNamespace(
    content=[{"type": "text", "text": "4"}],
    usage_metadata={"input_tokens": 5, "output_tokens": 2, "input_token_details": {"cache_read": 3}},
    response_metadata={"model_name": "m-1", "finish_reason": "length"},
    tool_calls=[{"name": "add", "args": {"a": 1}, "id": "x"}],
)
FORMS = {
    "a chat completion": (COMPLETION, 5, Finish.LENGTH),
    "an object that is one": (types.SimpleNamespace(model_dump=lambda mode: COMPLETION), 5, Finish.LENGTH),
    "a message of LangChain": (MESSAGE, 5, Finish.LENGTH),
    "texts of DSPy": (["4", "5"], 0, Finish.STOP),
    "objects of DSPy": ([{"text": "4"}], 0, Finish.STOP),
    "a pipeline's text": ([{"generated_text": "4"}], 0, Finish.STOP),
    "a pipeline's conversation": (
        [{"generated_text": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}]}],
        0,
        Finish.STOP,
    ),
}


def complete(result, **parameters):
    request = Request("mine", "m", (Message("user", "2 + 2?"),), parameters)
    return asyncio.run(Callable(lambda request: result).complete(request))


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_read(name):
    result, tokens, finish = FORMS[name]
    found = complete(result)
    assert (found.text, found.input_tokens, found.finish) == ("4", tokens, finish)
    assert found.cached_tokens == (3 if tokens else 0)


def test_calls_of_tools_are_taken_where_tools_were_given():
    assert complete(MESSAGE).tool_calls == ()
    assert complete(MESSAGE, tools=[]).tool_calls == (Part("tool_call", '{"a": 1}', "add", "x"),)


def test_a_failure_in_a_completion_is_raised():
    with pytest.raises(ServerError, match=r"mine/m: .*boom"):
        complete({**COMPLETION, "error": {"message": "boom"}, "choices": [{"message": {}, "finish_reason": "error"}]})


@pytest.mark.parametrize("result", [3, {}, {"generated_text": 3}, object()])
def test_what_is_of_no_form_is_told(result):
    with pytest.raises(MalformedResponseError, match="return a str, a Response, or what the openai, litellm"):
        complete(result)


def test_messages_are_those_of_chat_completions():
    parts = (Part("tool_call", "{}", "add", "x"),)
    messages = (
        Message("system", "s"),
        Message.of("assistant", parts),
        Message.of("tool", [Part("tool_result", "3", "add", "x")]),
    )
    assert chat(Request("mine", "m", messages)) == [
        {"role": "system", "content": "s"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "x", "content": "3"},
    ]


# -- the packages themselves -----------------------------------------------------------------------------------------


def openai_sync(url):
    client = importlib.import_module("openai").OpenAI(base_url=url, api_key="none")
    return lambda r: client.chat.completions.create(model=r.model, messages=chat(r), **r.parameters)


def openai_async(url):
    client = importlib.import_module("openai").AsyncOpenAI(base_url=url, api_key="none")
    return lambda r: client.chat.completions.create(model=r.model, messages=chat(r), **r.parameters)


def litellm(url):
    package = importlib.import_module("litellm")
    return lambda r: package.acompletion(
        model=f"openai/{r.model}", messages=chat(r), base_url=url, api_key="none", **r.parameters
    )


def langchain(url):
    model = importlib.import_module("langchain_openai").ChatOpenAI(model="m", base_url=url, api_key="none")
    return lambda r: model.ainvoke(chat(r))


def dspy(url):
    lm = importlib.import_module("dspy").LM("openai/m", api_base=url, api_key="none", cache=False)
    return lambda r: lm(messages=chat(r))


PACKAGES = {
    "openai": openai_sync,
    "openai, async": openai_async,
    "litellm": litellm,
    "langchain_openai": langchain,
    "dspy": dspy,
}


def needs(name):
    """A package, without which a test is skipped; but none where `.ci/given` has brought all."""
    return importlib.import_module(name) if os.environ.get("EMBER_JAX_GIVEN") else pytest.importorskip(name)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.filterwarnings("default")
def test_a_package_answers_a_sweep(name):
    needs(name.partition(",")[0])
    with ChatServer(SimModel(accuracy=1.0)) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages warn of at import and use
        provider = Callable(PACKAGES[name](server.base_url))
        with ember.session(providers={"mine": provider}, journal=None) as run:
            llm = ember.LLM("mine/m")
            answers = jax.vmap(llm)(ember.text([f"What is {i} + 1?" for i in range(5)]))
            assert answers.tolist() == [str(i + 1) for i in range(5)]
        assert len(server.requests) == 5
        if name != "dspy":  # whose texts come without their tokens
            assert (run.report().input_tokens, run.report().output_tokens) == (
                server.input_tokens,
                server.output_tokens,
            )


@pytest.mark.filterwarnings("default")
def test_a_pipeline_in_this_process_answers(tmp_path):
    """With a model of random weights, whose nonsense is always the same."""
    needs("torch")
    transformers = needs("transformers")
    importlib.import_module("servers.random_model").write(tmp_path)
    pipe = transformers.pipeline("text-generation", str(tmp_path), device="cpu")
    settings = {"max_new_tokens": 6, "do_sample": False}
    prompts = [f"hello {i}" for i in range(4)]
    with ember.session(providers={"mine": Callable(lambda r: pipe(chat(r), **settings))}, journal=None):
        answers = jax.vmap(ember.LLM("mine/m"))(ember.text(prompts)).tolist()
    alone = [pipe([{"role": "user", "content": prompt}], **settings) for prompt in prompts]
    assert answers == [found[0]["generated_text"][-1]["content"] for found in alone]
    assert len(set(answers)) > 1
