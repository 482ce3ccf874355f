import copy
import dataclasses
import json
import math
from typing import Literal, NamedTuple

import hypothesis
import loopback
import pytest
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax.errors import (
    AuthenticationError,
    MalformedResponseError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from ember_jax.providers import prices
from ember_jax.providers.anthropic import SERVICE, Anthropic, Messages
from ember_jax.providers.base import Finish, Message, Request, Response, Tokens
from ember_jax.providers.dialect import Failure, HTTPAnswer, HTTPRequest
from ember_jax.providers.quota import Allowance, Quota

KEY = "sk-ant-api03-MARKED-0123456789"
RECORDED = loopback.read("anthropic")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (*SERVICE.base_variables, *SERVICE.key_variables):
        monkeypatch.delenv(name, raising=False)


def request(prompt="What is 2 + 2?", model="claude-haiku-4-5", system=None, **parameters):
    messages = (Message("user", prompt),)
    if system is not None:
        messages = (Message("system", system), *messages)
    return Request("anthropic", model, messages, parameters, sample="00ff")


def build(**given):
    """The body that is sent."""
    return Anthropic(api_key=KEY).build(request(**given))[2]


def refusal(**given):
    """The words by which a request is refused before it is sent."""
    with pytest.raises(RefusedRequestError) as caught:
        Anthropic(api_key=KEY).build(request(**given))
    assert caught.value.status is None
    return str(caught.value)


def message(*blocks, **fields):
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "content": list(blocks),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 5, "service_tier": "standard"},
        **fields,
    }


def text(words):
    return {"type": "text", "text": words, "citations": None}


def read(body, status=200, headers=None, asked=None):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Anthropic(api_key=KEY).read(status, headers or {}, content, asked or request())


def error(status, kind, words, headers=None, **more):
    """The error that an answer becomes which says that something went wrong."""
    body = {"type": "error", "error": {"type": kind, "message": words, **more}, "request_id": "req_1"}
    with pytest.raises(ProviderError) as caught:
        read(body, status, headers)
    assert words in str(caught.value)
    return caught.value


# Requests


def test_a_request_is_built_as_data():
    url, headers, body = Anthropic(api_key=KEY).build(
        request(system="Be brief.", temperature=0.5, top_p=0.9, top_k=40, max_tokens=9)
    )
    assert url == "https://api.anthropic.com/v1/messages"
    assert headers == {
        "Content-Type": "application/json",
        "anthropic-version": "2026-10-21",
        "Authorization": f"Bearer {KEY}",
    }
    assert body == {
        "model": "claude-haiku-4-5",
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "What is 2 + 2?"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 9,
    }


def test_a_conversation_keeps_its_turns_and_has_one_system_prompt():
    turns = [
        ("system", "Be brief."),
        ("user", "2 + 2?"),
        ("assistant", "4"),
        ("system", "Be polite."),
        ("user", "Why?"),
    ]
    asked = dataclasses.replace(request(), messages=tuple(Message(*turn) for turn in turns))
    body = Anthropic(api_key=KEY).build(asked)[2]
    assert body["system"] == "Be brief.\n\nBe polite."
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
    assert "system" not in build()


def test_the_environment_names_the_server_and_the_key(monkeypatch):
    provider = Anthropic()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://localhost:1/")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "second")
    assert provider.build(request())[0] == "http://localhost:1/v1/messages"
    assert provider.build(request())[1]["Authorization"] == "Bearer second"
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    assert provider.build(request())[1]["Authorization"] == f"Bearer {KEY}"


def test_a_missing_key_is_named():
    with pytest.raises(AuthenticationError, match=r"(?s)ANTHROPIC_API_KEY.*Anthropic\(api_key=…\)"):
        Anthropic().build(request())


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("claude-opus-5-5", 21_333),
        ("claude-haiku-4-5", 21_333),
        ("claude-3-7-sonnet-latest", 21_333),
        ("claude-opus-4-1-20250805", 8_192),
        ("claude-opus-4-20250514", 8_192),
        ("claude-3-5-haiku-latest", 8_192),
        ("claude-3-haiku-20240307", 4_096),
        ("a-model-of-a-gateway", 21_333),
    ],
)
def test_an_answer_without_a_limit_gets_one_that_the_model_allows(model, most):
    asked = request(model=model)
    assert Anthropic(api_key=KEY).build(asked)[2]["max_tokens"] == most
    assert Anthropic(api_key=KEY).most_output(asked) == most


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 0}, {"max_tokens": 0}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stop_sequences": ["a"]}, {"stop_sequences": ["a"]}),
        ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "none", "thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ({"output_config": {"effort": "max"}}, {"output_config": {"effort": "max"}}),
        ({"response_format": {"type": "text"}}, {}),
        ({"logprobs": False}, {}),
        ({"service_tier": "standard_only"}, {"service_tier": "standard_only"}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ({"a_new_one": [1, {"x": None}]}, {"a_new_one": [1, {"x": None}]}),
    ],
)  # fmt: skip
def test_parameters_are_sent_by_the_services_own_names(given, sent):
    body = build(**given)
    for name in ("model", "messages"):
        del body[name]
    assert body == {"max_tokens": 21_333, **sent}


def test_what_is_on_trial_is_asked_for_in_a_header():
    _, headers, body = Anthropic(api_key=KEY).build(request(betas=["a-1", "b-2"]))
    assert headers["anthropic-beta"] == "a-1,b-2"
    assert "betas" not in body
    assert Anthropic(api_key=KEY).build(request(betas="a-1"))[1]["anthropic-beta"] == "a-1"


@pytest.mark.parametrize("name", ["model", "messages", "system", "stream"])
def test_parameters_that_are_not_the_users_are_refused(name):
    asked = dataclasses.replace(request(), parameters={name: 1})
    with pytest.raises(RefusedRequestError, match=f"'{name}' is not yours to set"):
        Anthropic(api_key=KEY).build(asked)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("seed", "`llm(prompt, key)` is an independent sample"),
        ("n", "More samples are more calls with other keys."),
        ("logprobs", "does not say how likely"),
        ("top_logprobs", "does not say how likely"),
        ("logit_bias", "Say in the prompt"),
        ("frequency_penalty", "Say in the prompt"),
        ("presence_penalty", "Say in the prompt"),
        ("repetition_penalty", "Say in the prompt"),
        ("min_p", "`temperature`, `top_p` and `top_k`"),
        ("verbosity", "reasoning_effort"),
    ],
)
def test_what_the_service_has_not_is_refused_by_name_with_what_to_do(name, advice):
    words = refusal(**{name: 1})
    assert words.startswith(f"anthropic/claude-haiku-4-5: the parameter '{name}' is refused.")
    assert advice in words
    assert f"`llm.replace({name}=None)`" in words


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"stop": "a", "stop_sequences": ["b"]}, "stop"),
        ({"reasoning_effort": "low", "output_config": {"effort": "high"}}, "reasoning_effort"),
        ({"response_format": {"type": "x"}, "output_config": {"format": {"type": "y"}}}, "response_format"),
        ({"reasoning_effort": "minimal"}, "reasoning_effort"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"anyOf": 7}}}}, "response_format"),
        ({"output_config": "low"}, "output_config"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given, name):
    assert f"the parameter '{name}' is refused." in refusal(**given)


@pytest.mark.parametrize(
    "model",
    [
        "claude-opus-4-7",
        "claude-opus-4-8",
        "claude-opus-4-7-20260416",
        "claude-opus-5",
        "claude-opus-5-5",
        "claude-sonnet-5",
        "claude-haiku-5-5",
        "claude-fable-5-2",
        "claude-mythos-preview",
        "claude-sonnet-latest",
        "claude-opus-10",
    ],
)
@pytest.mark.parametrize("given", [{"temperature": 0.7}, {"temperature": 0}, {"top_p": 0.9}, {"top_k": 5}])
def test_models_that_draw_in_their_own_way_refuse_what_would_change_it(model, given):
    (name,) = given
    assert f"the parameter '{name}' is refused. This model takes none" in refusal(model=model, **given)
    assert build(model=model, temperature=1)["temperature"] == 1


@pytest.mark.parametrize(
    "model",
    [
        "claude-opus-4-6",
        "claude-opus-4-1-20250805",
        "claude-opus-4-20250514",
        "claude-sonnet-4-6",
        "claude-sonnet-4-0",
        "claude-haiku-4-5-20251001",
        "claude-3-5-haiku-latest",
        "mine",
        "my-claude-opus-5",
    ],
)
def test_other_models_are_sent_how_to_draw(model):
    assert build(model=model, temperature=0.2)["temperature"] == 0.2


# Against the vendor's own client

SETTINGS = {
    "stop": "END",
    "thinking": {"type": "adaptive", "display": "summarized"},
    "reasoning_effort": "low",
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
    "service_tier": "standard_only",
    "metadata": {"user_id": "u1"},
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "Review", "schema": RECORDED["schema"], "strict": True}}
# The same call by the names that it has here.
OURS = {
    "plain": {},
    "system": {"system": "Be brief."},
    "settings": SETTINGS,
    "schema": {"response_format": SCHEMA, "reasoning_effort": "low"},
    "no thinking": {"reasoning_effort": "none"},
    "on trial": {"speed": "fast", "betas": ["fast-mode-2026-02-01"]},
}
# By what ours differs, and why.
DIFFERENCES = {
    # Our client adds its own when it sends, and accepts all types: an error of a gateway may be a web page.
    "accept": "application/json",
}


# What is left of a schema is told in the schema's own order; the client puts some of it behind the rest.
DESCRIPTIONS = {"how": "{format: color, pattern: ^#}", "pair": "{minItems: 2, maxItems: 2}"}


@pytest.mark.parametrize("name", RECORDED["sent"])
def test_what_is_sent_is_what_the_vendors_own_client_sends(name):
    theirs = copy.deepcopy(RECORDED["sent"][name])
    if name == "schema":
        for field, words in DESCRIPTIONS.items():
            theirs["body"]["output_config"]["format"]["schema"]["properties"][field]["description"] = words
    asked = request(model="claude-opus-5-5", max_tokens=256, **OURS[name])
    url, headers, body = Anthropic("http://host", api_key=KEY).build(asked)
    assert body == theirs["body"]
    ours = {k.lower(): v.replace(KEY, "(key)") for k, v in headers.items()}
    assert {**ours, **DIFFERENCES} == theirs["headers"]
    assert url == f"http://host{theirs['path']}"


def test_the_fixture_is_of_a_client_that_this_file_knows():
    assert RECORDED["sdk"] == "anthropic 2.14.0"
    assert RECORDED["sent"].keys() == OURS.keys()


# Schemas


def schema_of(**properties):
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "X", "schema": schema, "strict": True}}
    return build(response_format=form)["output_config"]["format"]["schema"]["properties"]


def test_what_a_schema_may_not_say_stands_in_its_description():
    fitted = schema_of(
        age={"type": "integer", "minimum": 0, "maximum": 130},
        name={"type": "string", "maxLength": 9, "description": "In full."},
        pair={"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    )
    assert fitted == {
        "age": {"type": "integer", "description": "{minimum: 0, maximum: 130}"},
        "name": {"type": "string", "description": "In full.\n\n{maxLength: 9}"},
        "pair": {"type": "array", "items": {"type": "number"}, "description": "{minItems: 2, maxItems: 2}"},
    }


def test_a_schema_that_is_asked_with_is_left_as_it_was():
    schema = {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2}
    before = json.dumps(schema)
    schema_of(a=schema)
    assert json.dumps(schema) == before


@pytest.mark.parametrize("extra", [True, {"type": "integer"}])
def test_an_object_of_any_fields_is_refused_and_not_closed_in_silence(extra):
    counts = {"type": "object", "additionalProperties": extra}
    for schema in (counts, {"type": "array", "items": counts}, {"anyOf": [counts, {"type": "null"}]}):
        form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"c": schema}}}}
        assert "fields of any name (`additionalProperties`)" in refusal(response_format=form)


def test_a_field_may_be_called_as_a_word_of_schemas_is():
    fitted = schema_of(additionalProperties={"type": "string"}, items={"type": "string"}, enum={"type": "integer"})
    assert fitted["enum"] == {"type": "integer"}
    assert fitted["additionalProperties"] == {"type": "string"}


def test_a_form_of_the_services_own_is_sent_as_it_is():
    form = {"type": "json_schema", "schema": {"type": "object", "additionalProperties": False, "properties": {}}}
    assert build(response_format=form)["output_config"] == {"format": form}


class Review(NamedTuple):
    score: int
    mood: Literal["glad", "sad"]
    tags: list[str]
    note: str | None


class Asked(ember.providers.Provider):
    """Refuses all, and keeps what it was asked."""

    def __init__(self):
        self.requests = []

    def check(self, model):
        pass

    async def complete(self, request):
        self.requests.append(request)
        raise RefusedRequestError("no")

    async def close(self):
        pass


def asked_by(ask):
    """The request that a program makes."""
    provider = Asked()
    with ember.session(providers={"anthropic": provider}, journal=None), pytest.raises(RefusedRequestError):
        ask(ember.LLM("anthropic/claude-opus-5-5", max_tokens=50))
    return provider.requests[0]


def test_the_schema_of_a_class_is_one_that_the_service_takes():
    asked = asked_by(lambda llm: llm.structured(ember.text("hello"), Review))
    _, _, body = Anthropic(api_key=KEY).build(asked)
    assert body["output_config"]["format"]["type"] == "json_schema"
    schema = body["output_config"]["format"]["schema"]
    tags = schema["properties"]["tags"].pop("description")
    assert tags.startswith("{maxItems: ")
    assert schema == {
        "type": "object",
        "properties": {
            "score": {"type": "integer"},
            "mood": {"enum": ["glad", "sad"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "additionalProperties": False,
        "required": ["score", "mood", "tags", "note"],
    }


def test_a_choice_is_sent_in_the_form_without_probabilities():
    asked = asked_by(lambda llm: llm.choose(ember.text("2 + 2 = 4?"), ["yes", "no"]))
    assert asked.parameters["logprobs"] is True
    _, _, body = Anthropic(api_key=KEY).build(asked)
    assert body.keys() == {"model", "max_tokens", "messages"}
    assert body["messages"][0]["content"].startswith("2 + 2 = 4?\n\nA. yes\nB. no\n")


def test_a_question_whose_forms_are_all_refused_is_refused_as_its_first_one():
    asked = asked_by(lambda llm: llm.replace(n=2).choose(ember.text("2 + 2 = 4?"), ["yes", "no"]))
    with pytest.raises(RefusedRequestError, match="'n' is refused"):
        Anthropic(api_key=KEY).build(asked)


# Answers


def test_an_answer_is_read():
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 200,
        "cache_read_input_tokens": 3000,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 30},
        "service_tier": "standard",
        "inference_geo": "global",
    }
    thought = {"type": "thinking", "thinking": "Two and two.", "signature": "x"}
    answer = read(message(thought, text("It is "), text("4."), usage=usage), headers={"Request-Id": "req_7"})
    assert answer.text == "It is 4."
    assert answer.reasoning == "Two and two."
    assert answer.finish == Finish.STOP
    assert answer.tokens == Tokens(3210, 40, 3000, 200, 30)
    assert answer.model == "claude-haiku-4-5-20251001"
    assert answer.request_id == "req_7"
    assert answer.service_tier == "standard"
    assert math.isnan(answer.logprob)
    # US dollars for a million tokens of Claude Haiku 4.5, by the public list: 1, cached 0.1, written 1.25, answer 5.
    assert answer.cost == pytest.approx((10 * 1 + 3000 * 0.1 + 200 * 1.25 + 40 * 5) / 1e6, rel=1e-9)


def test_without_a_header_the_id_is_that_of_the_message():
    assert read(message(text("4"))).request_id == "msg_01"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", Finish.STOP),
        ("stop_sequence", Finish.STOP),
        ("max_tokens", Finish.LENGTH),
        ("model_context_window_exceeded", Finish.LENGTH),
        ("tool_use", Finish.TOOL_CALLS),
        ("pause_turn", Finish.OTHER),
        ("refusal", Finish.REFUSAL),
        ("content_filter", Finish.CONTENT_FILTER),
        ("a_new_one", Finish.OTHER),
        (None, Finish.OTHER),
    ],
)
def test_how_an_answer_ended_is_told(reason, finish):
    assert read(message(text("4"), stop_reason=reason)).finish == finish


def test_a_wish_to_call_tools_is_no_text():
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 2}}
    answer = read(message(text("I add."), call, stop_reason="tool_use"))
    assert (answer.text, answer.finish) == ("I add.", Finish.TOOL_CALLS)


@pytest.mark.parametrize("thought", [{"type": "thinking", "thinking": ""}, {"type": "redacted_thinking", "data": "x"}])
def test_a_model_that_only_thought_has_not_answered(thought):
    answer = read(message(thought))
    assert answer.finish == Finish.OTHER
    assert not answer.is_answer
    assert read(message()).is_answer  # all is said, with nothing


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"type": "refusal", "category": "bio", "explanation": "It could harm."}, "It could harm."),
        ({"type": "refusal", "category": "cyber", "explanation": None}, "(category cyber)"),
        (None, "I can"),
    ],
)
def test_a_model_that_declines_says_why(details, words):
    answer = read(message(text("I can"), stop_reason="refusal", stop_details=details))
    assert (answer.text, answer.finish) == (words, Finish.REFUSAL)
    assert answer.tokens == Tokens(12, 5)


def test_a_reason_to_decline_that_quotes_the_key_is_scrubbed():
    details = {"type": "refusal", "explanation": f"{KEY} is a key."}
    assert read(message(stop_reason="refusal", stop_details=details)).text == "[key] is a key."


@pytest.mark.parametrize(
    "body",
    [
        message(text("4"), usage=None),
        message(text("4"), usage={"input_tokens": "12", "output_tokens": None}),
        message(text("4"), usage={"input_tokens": -1, "output_tokens": 5}, stop_details=7, model=None),
        {"content": [text("4")]},
        {"content": [text("4"), {"type": "a_new_block", "text": "not the answer's"}]},
    ],
)
def test_an_answer_is_not_lost_for_what_is_said_about_it(body):
    assert read(body).text == "4"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it is empty"),
        (b"<html>", "does the base URL end before /v1?"),
        (b'{"content": [{"ty', "it is not whole JSON"),
        ({"detail": "Not Found"}, "Not Found"),
        (message(7), "no list of blocks in `content`"),
        (message({"type": "text"}), "no list of blocks in `content`"),
        (message(content="4"), "no list of blocks in `content`"),
        ([], "its JSON has another form"),
    ],
)
def test_what_is_no_message_is_malformed(body, words):
    with pytest.raises(MalformedResponseError) as caught:
        read(body)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "body", [message(7), b'{"content": "4", "usage": {"input_tokens": 12, "output_tokens": 5}, "x']
)
def test_what_is_billed_is_counted_although_it_is_no_answer(body):
    with pytest.raises(MalformedResponseError) as caught:
        read(body)
    assert caught.value.tokens == Tokens(12, 5)


# Errors


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", RefusedRequestError),
        (401, "authentication_error", AuthenticationError),
        (402, "billing_error", RefusedRequestError),
        (403, "permission_error", AuthenticationError),
        (404, "not_found_error", RefusedRequestError),
        (413, "request_too_large", RefusedRequestError),
        (429, "rate_limit_error", RateLimitError),
        (500, "api_error", ServerError),
        (504, "timeout_error", ServerError),
        (529, "overloaded_error", ServerError),
    ],
)
def test_a_status_of_failure_is_the_error_that_it_means(status, kind, expected):
    raised = error(status, kind, "Something is wrong")
    assert type(raised) is expected
    assert raised.status == status


def test_a_wrong_key_says_where_the_key_comes_from():
    assert "Check ANTHROPIC_API_KEY, or the argument api_key of Anthropic(api_key=…)." in str(
        error(401, "authentication_error", "invalid x-api-key")
    )


@pytest.mark.parametrize("code", ["contract_spend_limit_reached", "enforced_spend_limit_reached"])
def test_a_spent_budget_is_final_although_its_status_says_to_wait(code):
    raised = error(429, "rate_limit_error", "Limit reached", {"retry-after": "60"}, details={"error_code": code})
    assert type(raised) is RefusedRequestError
    assert "waiting does not help" in str(raised)


@pytest.mark.parametrize("details", [{"error_code": "ramp_limit_exceeded"}, None, "spend", {}])
def test_other_refusals_as_one_too_many_pass(details):
    raised = error(429, "rate_limit_error", "Slower", {"Retry-After": "7"}, details=details)
    assert type(raised) is RateLimitError
    assert raised.retry_after == 7.0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", ServerError),
        ("api_error", ServerError),
        ("a_new_error", ServerError),
        ("rate_limit_error", RateLimitError),
        ("authentication_error", AuthenticationError),
        ("invalid_request_error", RefusedRequestError),
        ("billing_error", RefusedRequestError),
    ],
)
def test_an_error_may_stand_in_an_answer_that_says_success(kind, expected):
    raised = error(200, kind, "It broke")
    assert type(raised) is expected
    assert "the service failed while it answered: It broke" in str(raised)


def test_the_key_stands_in_no_error():
    raised = error(401, "authentication_error", "bad key", headers={"x": KEY}, param=KEY)
    assert KEY not in str(raised)
    with pytest.raises(AuthenticationError) as caught:
        read({"type": "error", "error": {"message": f"wrong: {KEY}"}}, 401)
    assert "wrong: [key]" in str(caught.value)


def test_the_limits_that_headers_tell_are_read():
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-11-30T10:00:07Z",
        "anthropic-ratelimit-tokens-limit": "90000",
        "anthropic-ratelimit-tokens-remaining": "88000",
        "anthropic-ratelimit-tokens-reset": "2026-11-30T10:01:00Z",
        "date": "Mon, 30 Nov 2026 10:00:00 GMT",
    }
    assert read(message(text("4")), headers=headers).quota == Quota(
        Allowance(50, 49, 7.0), Allowance(90000, 88000, 60.0)
    )


def test_the_limits_of_a_gateway_count_where_the_vendors_are_not_told():
    theirs = {"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "9"}
    ours = {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49"}
    assert read(message(text("4")), headers=theirs).quota == Quota(Allowance(10, 9))
    assert read(message(text("4")), headers={**theirs, **ours}).quota == Quota(Allowance(50, 49))


def test_a_proxy_that_looks_for_a_key_in_no_database_does_not_know_the_key():
    # As LiteLLM 1.108.7 answers a wrong key.
    body = {"error": {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}}
    with pytest.raises(AuthenticationError, match=r"LiteLLM does not know the key\. Check ANTHROPIC_API_KEY"):
        read(body, 400)


# Costs


def cost(usage, headers=None, model="claude-opus-5-5", **parameters):
    usage = {"input_tokens": 1000, "output_tokens": 100, **usage}
    return read(
        message(text("4"), model=model, usage=usage), headers=headers, asked=request(model=model, **parameters)
    ).cost


def test_costs_are_by_the_table_and_by_the_speed_that_was_granted():
    plain = (1000 * 4 + 100 * 20) / 1e6  # Claude Opus 5.5, by the public list
    assert cost({}) == pytest.approx(plain, rel=1e-9)
    assert cost({"service_tier": "standard"}, service_tier="auto") == pytest.approx(plain, rel=1e-9)
    assert cost({"speed": "fast"}, speed="fast") == pytest.approx(2 * plain, rel=1e-9)
    assert cost({"speed": "standard"}, speed="fast") == pytest.approx(plain, rel=1e-9)
    assert cost({}, speed="fast") == pytest.approx(2 * plain, rel=1e-9)


def test_what_is_cached_for_an_hour_has_a_price_of_its_own():
    created = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 300}
    usage = {"cache_creation_input_tokens": 400, "cache_creation": created}
    # Claude Opus 5.5: 4 a million, written into a cache 5, for an hour 8.
    assert cost(usage) == pytest.approx((1000 * 4 + 100 * 5 + 300 * 8 + 100 * 20) / 1e6, rel=1e-9)


@pytest.mark.parametrize(
    "usage",
    [
        {"server_tool_use": {"web_search_requests": 1}},
        {"inference_geo": "us"},
        {"service_tier": "priority"},
    ],
)
def test_what_the_table_does_not_tell_leaves_a_cost_unknown_unless_a_gateway_says_it(usage):
    assert math.isnan(cost(usage))
    assert cost(usage, {"x-litellm-response-cost": "0.25"}) == 0.25


def test_a_cost_is_that_of_the_model_that_was_asked_where_the_answers_has_none():
    assert not math.isnan(read(message(text("4"), model="claude-haiku-4-5@somewhere-else")).cost)


def test_most_that_a_call_costs_has_the_limit_that_is_sent():
    provider, asked = Anthropic(api_key=KEY), request(model="claude-opus-5-5")
    most = provider.most_cost(asked, Tokens(1000, provider.most_output(asked)))
    assert most >= (1000 * 4 + 21_333 * 20) / 1e6
    assert prices.cost(asked, Tokens(1000, 21_333)) <= most


# A dialect raises nothing

NAMES = [
    "betas",
    "max_tokens",
    "output_config",
    "reasoning_effort",
    "response_format",
    "stop",
    "temperature",
    "thinking",
]
WORDS = st.sampled_from([*NAMES, "type", "json_schema", "schema", "properties", "items", "$defs", "anyOf", "object"])
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
)


@hypothesis.given(st.dictionaries(st.sampled_from(NAMES), TREES), TREES)
def test_whatever_the_parameters_are_a_request_is_built_or_refused(given, schema):
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    for parameters in (given, {**given, "response_format": form}):
        asked = dataclasses.replace(request(), parameters=parameters)
        built = Messages(SERVICE).build(asked)
        assert isinstance(built, HTTPRequest) or built.words.format() == built.words


FIELDS = ["content", "id", "model", "stop_reason", "stop_details", "usage", "error"]


@hypothesis.given(st.dictionaries(st.sampled_from(FIELDS), TREES), st.lists(TREES, max_size=3))
def test_whatever_is_answered_is_read_or_said_to_be_none(fields, blocks):
    for tree in (fields, message(text("4"), **fields), message(*blocks)):
        answer = HTTPAnswer(200, {}, json.dumps(tree).encode())
        assert isinstance(Messages(SERVICE).read(answer, request()), Failure | Response)
        Messages(SERVICE).meaning(answer._replace(status=429))
