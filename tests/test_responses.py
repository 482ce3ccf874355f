"""OpenAI's Responses: what is sent for settings and conversations, and what answers say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax.errors import MalformedResponseError, RateLimitError, RefusedRequestError, ServerError
from ember_jax.providers import Message, OpenAI, Request
from ember_jax.providers.base import Finish, Part
from ember_jax.providers.dialect import Failure, HTTPAnswer
from ember_jax.providers.openai import SERVICE
from ember_jax.providers.responses import Responses

URL = "http://127.0.0.1:1/v1"
ASKED = (Message("system", "short"), Message("user", "hi"))


def body(messages=ASKED, model="gpt-5-pro", api="responses", **parameters):
    path, _, sent = OpenAI(URL, api_key="", api=api).build(Request("openai", model, messages, parameters))
    return path.removeprefix(URL), sent


def read(answer, **parameters):
    provider = OpenAI(URL, api_key="", api="responses")
    return provider.read(200, {}, json.dumps(answer).encode(), Request("openai", "gpt-5-pro", ASKED, parameters))


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gpt-4o-mini", "/chat/completions"),
        ("gpt-5", "/chat/completions"),
        ("o3", "/chat/completions"),
        ("o3-pro", "/responses"),
        ("gpt-5-pro-2025-10-06", "/responses"),
        ("gpt-5.1-codex", "/responses"),
        ("o4-mini-deep-research", "/responses"),
        ("computer-use-preview", "/responses"),
    ],
)
def test_a_model_is_asked_where_it_is(model, path):
    assert body(model=model, api=None)[0] == path
    assert body(model=model, api="chat")[0] == "/chat/completions"
    assert body(model=model)[0] == "/responses"


def test_settings_of_chat_completions_have_their_places():
    schema = {"name": "Review", "schema": {"type": "object"}, "strict": True}
    path, sent = body(
        max_tokens=9,
        reasoning_effort="low",
        verbosity="low",
        response_format={"type": "json_schema", "json_schema": schema},
        logprobs=True,
        top_logprobs=5,
        temperature=0.5,
        service_tier="flex",
    )
    assert path == "/responses"
    assert sent == {
        "model": "gpt-5-pro",
        "input": [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}],
        "store": False,
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
        "text": {"verbosity": "low", "format": {"type": "json_schema", **schema}},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 5,
        "temperature": 0.5,
        "service_tier": "flex",
    }


def test_a_conversation_is_a_list_of_items():
    thought = {"type": "reasoning", "id": "rs_1", "encrypted_content": "abc"}
    messages = (
        Message.of("user", [Part("text", "look"), Part("image", "data:image/png;base64,AA==")]),
        Message.of(
            "user", [Part("file", "data:application/pdf;base64,AA==", "a.pdf"), Part("file", "https://a/b.pdf")]
        ),
        Message.of(
            "assistant",
            [
                Part("thought", json.dumps(thought), "openai"),
                Part("thought", "{}", "anthropic"),
                Part("text", "well"),
                Part("tool_call", "{}", "add", "c1"),
            ],
        ),
        Message.of("tool", [Part("tool_result", "3", "add", "c1")]),
    )
    tool = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {"type": "object"}}}
    _, sent = body(messages, tools=[tool], tool_choice={"type": "function", "function": {"name": "add"}})
    assert sent["input"] == [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
            ],
        },
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
                {"type": "input_file", "file_url": "https://a/b.pdf"},
            ],
        },
        thought,
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "well"}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ]
    assert sent["tools"] == [
        {"type": "function", "name": "add", "description": "d", "parameters": {"type": "object"}, "strict": False}
    ]
    assert sent["tool_choice"] == {"type": "function", "name": "add"}
    assert sent["include"] == ["reasoning.encrypted_content"]


@pytest.mark.parametrize("name", ["n", "seed", "stop", "frequency_penalty", "logit_bias", "input", "stream"])
def test_what_it_does_not_take_is_told_before_it_is_sent(name):
    with pytest.raises(RefusedRequestError, match=repr(name)):
        body(**{name: 1})


def test_two_limits_are_one():
    with pytest.raises(RefusedRequestError, match="'max_completion_tokens' means the same as 'max_tokens'"):
        body(max_tokens=1, max_completion_tokens=2)


def test_another_api_is_told():
    with pytest.raises(ValueError, match="api='chats'"):
        OpenAI(api="chats")  # type: ignore[arg-type]


def test_an_answer_has_its_words_thoughts_tokens_and_probabilities():
    found = read(
        {
            "id": "resp_1",
            "status": "completed",
            "model": "gpt-5-pro-2025-10-06",
            "service_tier": "default",
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "let me see"}]},
                {
                    "type": "message",
                    "content": [
                        {
                            "type": "output_text",
                            "text": "A",
                            "logprobs": [
                                {"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "B", "logprob": -2.0}]}
                            ],
                        }
                    ],
                },
            ],
            "usage": {
                "input_tokens": 10,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
                "output_tokens": 20,
                "output_tokens_details": {"reasoning_tokens": 19},
            },
        }
    )
    assert (found.text, found.reasoning, found.finish) == ("A", "let me see", Finish.STOP)
    assert (found.input_tokens, found.cached_tokens, found.cache_write_tokens) == (10, 4, 2)
    assert (found.output_tokens, found.reasoning_tokens, found.service_tier) == (20, 19, "default")
    assert (found.logprob, found.alternatives) == (-0.1, (("B", -2.0),))
    assert (found.model, found.request_id) == ("gpt-5-pro-2025-10-06", "resp_1")


FAILURES = {
    "a fault": ({"status": "failed", "error": {"code": "server_error", "message": "boom"}}, ServerError, "boom"),
    "too many": (
        {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow"}},
        RateLimitError,
        "slow",
    ),
    "a bad prompt": (
        {"status": "failed", "error": {"code": "invalid_prompt", "message": "no"}},
        RefusedRequestError,
        "no",
    ),
    "cancelled": ({"status": "cancelled"}, ServerError, "cancelled"),
    "no list": ({"status": "completed", "output": 3}, MalformedResponseError, "output"),
    "no items": ({"status": "completed", "output": [3]}, MalformedResponseError, "output"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_no_answer_is_told(name):
    answer, kind, told = FAILURES[name]
    with pytest.raises(kind, match=told):
        read(answer)


def test_a_model_that_only_thought_has_said_nothing():
    assert read({"status": "completed", "output": [{"type": "reasoning", "summary": []}]}).finish == Finish.OTHER
    assert read({"status": "incomplete", "output": [], "incomplete_details": {"reason": "content_filter"}}).is_cut


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from(["text", "message", "reasoning", "output_text", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "content", "output", "text", "status", "usage", "error", "summary", "logprobs"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_answer_raises_in_the_dialect(tree):
    answer = HTTPAnswer(200, {"content-type": "application/json"}, json.dumps(tree).encode())
    found = Responses(SERVICE).read(answer, Request("openai", "gpt-5-pro", ASKED, {"tools": []}))
    assert isinstance(found, Failure) or isinstance(found.text, str)


def test_a_program_runs_over_it():
    with (
        ember.testing.ChatServer() as server,
        ember.session(providers={"mine": OpenAI(server.base_url, api_key="", api="responses")}, journal=None),
        pytest.raises(RefusedRequestError, match="404"),  # this server has chat completions alone
    ):
        ember.LLM("mine/gpt-5-pro")("hi")
