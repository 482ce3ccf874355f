"""Amazon Bedrock: what is sent and how it is signed, against AWS's own package; what is read; faults over HTTP.

The answers are written after the service's own model, botocore 1.44.8's `bedrock-runtime/2023-09-30`.
"""

import asyncio
import binascii
import concurrent.futures
import datetime
import json
import math
import pickle
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import loopback
import pytest
from replies import Replies, Reply

import ember_jax as ember
from ember_jax import _cli
from ember_jax.errors import (
    AuthenticationError,
    ConnectionFailedError,
    MalformedResponseError,
    ModelError,
    NoAnswerError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from ember_jax.providers import registry
from ember_jax.providers.base import Finish, Message, Part, Request, Tokens
from ember_jax.providers.bedrock import SERVICE, Bedrock, Converse
from ember_jax.providers.clouds import AWS, OneForAll
from ember_jax.providers.dialect import Failure, HTTPAnswer, Meaning

CONVERSE = Converse(SERVICE)
SDK = json.loads((Path(__file__).parent / "sdk" / "bedrock.json").read_text())
KEY = "a-MARKED-key-of-no-account-0123456789"
SECRET = SDK["keys"]["aws_secret_access_key"]
HAIKU = "global.anthropic.claude-haiku-4-5-20251001-v1:0"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"
TURNS = (
    Message("system", "Be brief."),
    Message("user", "What is 2 + 2?"),
    Message("assistant", "4"),
    Message("user", "And 3 + 3?"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(registry, "_providers", {})
    for name in (*SERVICE.base_variables, *SERVICE.key_variables, "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def signed(environment):
    """AWS's package, with the keys of the recorded requests in the environment."""
    pytest.importorskip("botocore")
    for name, value in SDK["keys"].items():
        environment.setenv(name.upper(), value)
    return environment


@pytest.fixture
def still(signed):
    """Likewise, at the moment of the recorded requests."""
    now = datetime.datetime(2026, 12, 1, 12, 0, 0)
    signed.setattr("botocore.auth.get_current_datetime", lambda *_: now)
    return signed


@pytest.fixture
def bare(environment):
    """Without AWS's package."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "botocore"]:
        environment.delitem(sys.modules, name)
    for name in ("botocore", "botocore.exceptions", "botocore.session"):
        environment.setitem(sys.modules, name, None)
    return environment


def request(model=HAIKU, sample=None, messages=TURNS, **parameters):
    return Request("bedrock", model, messages, parameters, sample)


def body(**parameters):
    built = CONVERSE.build(request(**parameters))
    assert not isinstance(built, Failure), built
    return built.body


def complete(provider, asked=None):
    async def scenario():
        try:
            return await provider.complete(asked or request())
        finally:
            await provider.close()

    return asyncio.run(scenario())


# -- what is sent ----------------------------------------------------------------------------------------------------

ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": loopback.SCHEMA}}
THOUGHT = {"reasoningContent": {"reasoningText": {"text": "Well.", "signature": "abc"}}}
HIDDEN = {"reasoningContent": {"redactedContent": "aGlkZGVu"}}
# The calls that `sdk/record_bedrock.py` makes of AWS's package, in our words.
OURS = {
    "plain": request(),
    "by ARN": request(PROFILE),
    "sampled": request(
        max_tokens=100,
        temperature=0.5,
        top_p=0.9,
        stop="END",
        top_k=40,
        service_tier="flex",
        request_metadata={"team": "a"},
    ),
    "structured": request(
        reasoning_effort="low",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "A", "schema": loopback.SCHEMA, "strict": True},
        },
    ),
    "media": request(
        messages=(
            Message.of(
                "user",
                [
                    Part("text", "What is this?"),
                    Part("image", "data:image/png;base64,iVBORw0KGgo="),
                    Part("file", "data:application/pdf;base64,JVBERi0xLjc=", "report.pdf"),
                ],
            ),
        )
    ),
    "tools": request(
        messages=(
            Message("user", "Add."),
            Message.of(
                "assistant",
                [
                    Part("thought", json.dumps(THOUGHT), "bedrock"),
                    Part("thought", json.dumps(HIDDEN), "bedrock"),
                    Part("thought", json.dumps({"another": "vendor's"}), "anthropic"),
                    Part("tool_call", '{"a": 1}', "add", "id-1"),
                ],
            ),
            Message.of("tool", [Part("tool_result", "3", "add", "id-1")]),
        ),
        tools=[ADD],
        tool_choice="required",
    ),
}


def parsed(tree):
    """A body with the schema in it as a tree, which stands there as words."""
    if "outputConfig" in tree:
        held = tree["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
        held["schema"] = json.loads(held["schema"])
    return tree


def test_the_fixture_has_the_calls_that_are_made_here():
    assert SDK["package"] == "boto3 1.44.8"
    assert SDK["sent"].keys() == {*OURS, "session", "models", "bearer"}


@pytest.mark.parametrize("call", OURS)
def test_what_is_sent_is_what_awss_package_sends(call):
    theirs = SDK["sent"][call]
    url, headers, sent = Bedrock("http://host", api_key="k").build(OURS[call])
    assert url == f"http://host{theirs['path']}"
    assert headers["Content-Type"] == theirs["headers"]["content-type"]
    assert parsed(json.loads(json.dumps(sent))) == parsed(json.loads(theirs["raw"]))


def test_a_key_is_sent_as_awss_package_sends_it():
    theirs = SDK["sent"]["bearer"]
    url, headers, _ = Bedrock(region="us-east-1", api_key="k").build(request())
    assert url == theirs["url"]
    assert {name.lower(): value for name, value in headers.items()} == theirs["headers"]


@pytest.mark.parametrize("call", [*OURS, "session", "models"])
def test_a_signature_is_that_of_awss_package(call, still):
    theirs = SDK["sent"][call]
    if call == "session":
        still.setenv("AWS_SESSION_TOKEN", SDK["token"])
    cloud = AWS("us-east-1", None)
    assert cloud.fetch() is None
    headers = {"Content-Type": "application/json"} if theirs["method"] == "POST" else {}
    url = f"http://{theirs['headers']['host']}{theirs['path']}"
    added = cloud.authorization(theirs["method"], url, headers, theirs["raw"].encode())
    expected = {name: value for name, value in theirs["headers"].items() if name not in ("host", "content-type")}
    assert {name.lower(): value for name, value in added.items()} == expected


@pytest.mark.parametrize("package", [None, "httpx", "httpx2"])
@pytest.mark.parametrize("model", [HAIKU, PROFILE])
def test_what_goes_over_the_wire_is_what_was_signed(model, package, still):
    """botocore signs, by itself, what the server got: path, body and headers as they came."""
    auth, awsrequest, credentials = (
        pytest.importorskip(f"botocore.{name}") for name in ("auth", "awsrequest", "credentials")
    )
    client = None if package is None else pytest.importorskip(package).AsyncClient()
    prompt = (Message("user", "\u00e9 \u2603 \ud800"),)
    with Replies(Reply(said("6"))) as server:
        complete(Bedrock(server.url, client=client, region="us-east-1"), request(model, messages=prompt))
    (asked,) = server.asked
    names = asked.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert names == ["content-type", "host", "x-amz-date"]
    received = {name: asked.headers[name] for name in names if name != "x-amz-date"}
    again = awsrequest.AWSRequest("POST", server.url + asked.path, received, asked.raw)
    auth.SigV4Auth(credentials.Credentials(*SDK["keys"].values()), "bedrock", "us-east-1").add_auth(again)
    assert again.headers["Authorization"] == asked.headers["authorization"]


def test_each_attempt_is_signed_anew(signed):
    moments = iter(datetime.datetime(2026, 12, 1, 12, 0, second) for second in range(9))
    signed.setattr("botocore.auth.get_current_datetime", lambda *_: next(moments))
    with Replies(Reply({"message": "wait"}, 503), Reply(said("6"))) as server, session(server, api_key=""):
        assert str(ember.LLM(f"bedrock/{HAIKU}")("3 + 3?")) == "6"
    assert [asked.headers["x-amz-date"] for asked in server.asked] == ["20261201T120000Z", "20261201T120001Z"]
    assert len({asked.headers["authorization"] for asked in server.asked}) == 2


def test_credentials_are_found_once_for_all_in_flight(signed):
    found, kind = [], pytest.importorskip("botocore.session").Session
    get = kind.get_credentials
    signed.setattr(kind, "get_credentials", lambda self: found.append(1) or get(self))
    cloud = AWS("us-east-1", None)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda _: cloud.fetch(), range(32))] == [None] * 32
    assert len(found) == 1
    signed.setenv("AWS_SESSION_TOKEN", "another")  # the environment counts as it is at each call
    assert not cloud.is_ready() and cloud.fetch() is None and cloud.secrets() == (SECRET, "another")


def test_who_waited_for_a_fetch_that_failed_does_not_fetch_again():
    failures = iter([Failure(AuthenticationError, "1"), Failure(AuthenticationError, "2"), None])
    asking = OneForAll()
    asked = lambda since: asking.fetched(since, lambda: False, lambda: next(failures))
    early = [asking.runs] * 4  # all of them ask before the first has an answer
    assert [asked(since).words for since in early] == ["1"] * 4
    assert asked(asking.runs).words == "2" and asked(asking.runs) is None


def test_credentials_that_expire_are_renewed_before(signed):
    now, kinds = datetime.datetime.now(datetime.UTC), pytest.importorskip("botocore.credentials")
    soon, later = ((now + datetime.timedelta(minutes=m)).isoformat() for m in (1, 600))

    def refreshed():
        return {"access_key": "AKID2", "secret_key": "s2", "token": "t2", "expiry_time": later}

    first = {"access_key": "AKID1", "secret_key": "s1", "token": "t1", "expiry_time": soon}
    held = kinds.RefreshableCredentials.create_from_metadata(first, refreshed, "test")
    signed.setattr("botocore.session.Session.get_credentials", lambda self: held)
    cloud = AWS("us-east-1", None)
    assert cloud.fetch() is None and cloud.is_ready()
    added = cloud.authorization("POST", "http://host/", {}, b"")
    assert "Credential=AKID2/" in added["Authorization"] and added["X-Amz-Security-Token"] == "t2"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_completion_tokens": 9}, {"inferenceConfig": {"maxTokens": 9}}),
        ({"stop_sequences": ["a"]}, {"inferenceConfig": {"stopSequences": ["a"]}}),
        ({"stop": ["a", "b"]}, {"inferenceConfig": {"stopSequences": ["a", "b"]}}),
        ({"thinking": {"type": "adaptive"}}, {"additionalModelRequestFields": {"thinking": {"type": "adaptive"}}}),
        ({"additional_model_request_fields": {"k": 1}, "l": 2}, {"additionalModelRequestFields": {"k": 1, "l": 2}}),
        ({"reasoning_effort": "none"}, {"additionalModelRequestFields": {"thinking": {"type": "disabled"}}}),
        ({"guardrail_config": {"guardrailIdentifier": "g"}}, {"guardrailConfig": {"guardrailIdentifier": "g"}}),
        ({"output_config": {"effort": "high"}}, {"outputConfig": {"effort": "high"}}),
        ({"service_tier": {"type": "flex"}}, {"serviceTier": {"type": "flex"}}),
        ({"logprobs": False}, {}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "add"}}},
            {
                "toolConfig": {
                    "tools": [
                        {"toolSpec": {"name": "add", "description": "Adds.", "inputSchema": {"json": loopback.SCHEMA}}}
                    ],
                    "toolChoice": {"tool": {"name": "add"}},
                }
            },
        ),
        (
            {"tools": [{"systemTool": {"name": "nova_grounding"}}], "tool_choice": "auto"},
            {"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}], "toolChoice": {"auto": {}}}},
        ),
    ],
)
def test_settings_have_their_place(given, sent):
    assert body(**given) == {**body(), **sent}


def test_samples_with_a_seed_have_seeds_of_their_own():
    fields = [
        CONVERSE.build(request(sample=s, seed=7)).body["additionalModelRequestFields"] for s in ("00", "01", None)
    ]
    assert len({field["seed"] for field in fields}) == 3 and fields[2] == {"seed": 7}


OPEN = {"type": "object", "additionalProperties": {"type": "integer"}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"modelId": "x"}, "the parameter 'modelId' is not yours to set."),
        ({"stream": True}, "the parameter 'stream' is not yours to set."),
        ({"n": 2}, "the parameter 'n' is refused. Converse has no such parameter. More samples"),
        ({"top_logprobs": 2}, "the parameter 'top_logprobs' is refused. Converse has no such parameter. It does not"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "the parameter 'max_tokens' is refused. It means the same as"),
        ({"reasoning_effort": "minimal"}, "the parameter 'reasoning_effort' is refused. The least effort"),
        ({"response_format": {"type": "json_object"}}, "the parameter 'response_format' is refused. Converse knows"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": OPEN}}},
            "the parameter 'response_format' is refused. Its schema has an object with fields of any name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"anyOf": 3}}}},
            "the parameter 'response_format' is refused. Its schema is no JSON schema",
        ),
        (
            {"reasoning_effort": "low", "output_config": {"effort": "high"}},
            "the parameter 'reasoning_effort' is refused. `output_config` says `effort` too",
        ),
        ({"output_config": 3}, "the parameter 'output_config' is refused. It is an object"),
        ({"additional_model_request_fields": 3}, "the parameter 'additional_model_request_fields' is refused. It is"),
        ({"tools": [ADD], "tool_choice": "none"}, "the parameter 'tool_choice' is refused. There is no"),
    ],
)
def test_what_has_no_place_is_refused_by_name(given, words):
    refused = CONVERSE.build(request(**given))
    assert isinstance(refused, Failure) and refused.kind is RefusedRequestError
    assert refused.words.startswith(words)


def test_no_thinking_is_said_in_a_models_own_words():
    refused = CONVERSE.build(request("amazon.nova-pro-v1:0", reasoning_effort="none"))
    assert isinstance(refused, Failure) and "in a model's own words" in refused.words


def test_what_a_schema_may_not_have_is_told_in_words():
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}
    form = body(response_format={"type": "json_schema", "json_schema": {"schema": schema}})["outputConfig"][
        "textFormat"
    ]
    sent = json.loads(form["structure"]["jsonSchema"]["schema"])
    assert sent["properties"]["a"] == {"type": "integer", "description": "{minimum: 1}"}
    assert sent["additionalProperties"] is False


def blocks(*parts):
    (turn,) = CONVERSE.build(request(messages=(Message.of("user", parts),))).body["messages"]
    return turn["content"]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            Part("image", "s3://b/a.JPEG"),
            {"image": {"format": "jpeg", "source": {"s3Location": {"uri": "s3://b/a.JPEG"}}}},
        ),
        (Part("image", "data:image/jpg;base64,AA=="), {"image": {"format": "jpeg", "source": {"bytes": "AA=="}}}),
        (Part("audio", "data:audio/x-wav;base64,AA=="), {"audio": {"format": "wav", "source": {"bytes": "AA=="}}}),
        (
            Part("file", "data:text/x-python;base64,AA==", "a_b.c/d  e.py"),
            {"document": {"format": "txt", "name": "a b c d e", "source": {"bytes": "AA=="}}},
        ),
        (
            Part("file", "data:text/csv;charset=utf-8;base64,AA=="),
            {"document": {"format": "csv", "name": "document", "source": {"bytes": "AA=="}}},
        ),
        (Part("tool_result", "", "f", "1"), {"toolResult": {"toolUseId": "1", "content": []}}),
    ],
)
def test_what_is_no_text_has_its_form(part, block):
    assert blocks(Part("text", "x"), part) == [{"text": "x"}, block]


def test_documents_have_names_of_their_own():
    twice = [Part("file", "data:application/pdf;base64,AA==", "a.pdf")] * 3
    assert [block["document"]["name"] for block in blocks(*twice)] == ["a", "a (2)", "a (3)"]


def test_an_address_that_it_does_not_follow_is_refused():
    refused = CONVERSE.build(request(messages=(Message.of("user", [Part("image", "https://x/y.png")]),)))
    assert isinstance(refused, Failure) and refused.words.startswith("Bedrock takes an image from S3")


def test_roles_take_turns():
    said = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d"))
    assert CONVERSE.build(request(messages=said)).body["messages"] == [
        {"role": "user", "content": [{"text": "a"}, {"text": "b"}]},
        {"role": "assistant", "content": [{"text": "c"}]},
        {"role": "user", "content": [{"text": "d"}]},
    ]


# -- where, and with whose credentials -------------------------------------------------------------------------------


HOSTS = {
    "eu-central-1": "https://bedrock-runtime.eu-central-1.amazonaws.com",
    "us-gov-west-1": "https://bedrock-runtime.us-gov-west-1.amazonaws.com",
    "cn-north-1": "https://bedrock-runtime.cn-north-1.amazonaws.com.cn",
    "eusc-de-east-1": "https://bedrock-runtime.eusc-de-east-1.amazonaws.eu",
    "us-iso-east-1": "https://bedrock-runtime.us-iso-east-1.c2s.ic.gov",
    "us-isob-east-1": "https://bedrock-runtime.us-isob-east-1.sc2s.sgov.gov",
    "us-isof-south-1": "https://bedrock-runtime.us-isof-south-1.csp.hci.ic.gov",
    "eu-isoe-west-1": "https://bedrock-runtime.eu-isoe-west-1.cloud.adc-e.uk",
}


@pytest.mark.parametrize(("region", "host"), HOSTS.items())
def test_a_region_is_a_host(region, host, environment):
    assert Bedrock(region=region).endpoint == host
    environment.setenv("AWS_DEFAULT_REGION", region)
    assert Bedrock().endpoint == host
    environment.setenv("AWS_REGION", "us-west-2")
    assert Bedrock().endpoint == "https://bedrock-runtime.us-west-2.amazonaws.com"


@pytest.mark.parametrize(("region", "host"), HOSTS.items())
def test_a_region_is_the_host_that_awss_package_asks(region, host):
    session = pytest.importorskip("botocore.session").Session()
    session.set_credentials("a", "b")
    client = session.create_client("bedrock-runtime", region_name=region)
    assert client.meta.endpoint_url == host
    client.close()


def test_a_region_is_no_way_to_another_host():
    for region in ("evil.example/", "us-east-1@evil", "-", "US-EAST-1", "a b", "a\n"):
        with pytest.raises(RefusedRequestError, match="is no region of AWS"):
            _ = Bedrock(region=region).endpoint


def test_a_missing_region_is_told_by_its_variable():
    words = r"There is no region. Set the environment variable AWS_REGION, or give it: Bedrock\(region='us-east-1'\)"
    with pytest.raises(RefusedRequestError, match=words):
        complete(Bedrock(api_key=KEY))


def test_without_the_package_its_install_line_is_told(bare):
    bare.setenv("AWS_REGION", "us-east-1")
    words = r"no API key. Set .* AWS_BEARER_TOKEN_BEDROCK, .*; or `pip install \"ember_jax\[bedrock\]\"`"
    with pytest.raises(AuthenticationError, match=words):
        ember.LLM(f"bedrock/{HAIKU}")("hi")
    with pytest.raises(AuthenticationError, match=words):
        ember.models("bedrock")


def test_a_key_needs_no_package(bare):
    with Replies(Reply(said("6"))) as server:
        assert complete(Bedrock(server.url, api_key=KEY)).text == "6"
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_without_credentials_it_is_told_where_they_may_be(environment):
    pytest.importorskip("botocore")
    places = r"AWS_BEARER_TOKEN_BEDROCK.*AWS_PROFILE.*AWS_ACCESS_KEY_ID"
    with pytest.raises(AuthenticationError, match=places) as raised:
        complete(Bedrock(region="us-east-1"))
    assert not raised.value.was_sent


def test_a_profile_has_its_region_and_its_credentials(environment, tmp_path):
    pytest.importorskip("botocore")
    config, held = tmp_path / "config", tmp_path / "credentials"
    config.write_text("[profile work]\nregion = eu-west-3\n")
    held.write_text(f"[work]\naws_access_key_id = AKIDWORK\naws_secret_access_key = {SECRET}\n")
    environment.setenv("AWS_CONFIG_FILE", str(config))
    environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(held))
    environment.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)  # what is given as an argument counts before
    provider = Bedrock(profile="work")
    assert provider.endpoint == "https://bedrock-runtime.eu-west-3.amazonaws.com"
    with Replies(Reply(said("6"))) as server:
        complete(Bedrock(server.url, profile="work"))
    assert "Credential=AKIDWORK/" in server.asked[0].headers["authorization"]
    assert "/eu-west-3/bedrock/" in server.asked[0].headers["authorization"]
    with pytest.raises(AuthenticationError, match=r"there are no credentials of AWS: .*other.* could not be found"):
        complete(Bedrock("http://host", profile="other"))
    with pytest.raises(RefusedRequestError, match=r"The region cannot be read: .*other"):
        _ = Bedrock(profile="other").endpoint


def test_credentials_are_shown_nowhere(signed, tmp_path, capfd):
    signed.setenv("AWS_SESSION_TOKEN", SDK["token"])
    quoted = f"The canonical string should have been 'x-amz-security-token:{SDK['token']} {SECRET}'"
    refused = Reply({"message": quoted}, 403, {"x-amzn-errortype": "InvalidSignatureException"})
    with Replies(refused) as server, session(server, journal=tmp_path / "run.db", api_key="") as run:
        with pytest.raises(
            AuthenticationError, match=r"security-token:\[key\] \[key\].* Without a key check"
        ) as raised:
            ember.LLM(f"bedrock/{HAIKU}")("3 + 3?")
        shown = [str(raised.value), repr(raised.value), str(run.report()), repr(Bedrock(server.url, api_key=""))]
    shown += [*capfd.readouterr(), *(file.read_bytes().decode("latin-1") for file in tmp_path.iterdir())]
    assert all(secret not in words for words in shown for secret in (SDK["token"], SECRET))


def test_it_travels_without_its_credentials(signed):
    provider = Bedrock("http://host", region="us-east-1")
    assert provider._http.cloud is not None and provider._http.cloud.fetch() is None
    packed = pickle.dumps(provider)
    assert SECRET.encode() not in packed
    again = pickle.loads(packed)
    assert repr(again) == repr(provider) == "Bedrock(base_url='http://host', timeout=600.0, region='us-east-1')"


# -- what is read ----------------------------------------------------------------------------------------------------

USAGE = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}


def said(*content, reason="end_turn", usage=USAGE, **more):
    blocks = [{"text": part} if isinstance(part, str) else part for part in content]
    output = {"message": {"role": "assistant", "content": blocks}}
    return {"output": output, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 1}, **more}


def read(tree, asked=None, **headers):
    raw = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return CONVERSE.read(HTTPAnswer(200, {"content-type": "application/json", **headers}, raw), asked or request())


def test_an_answer_is_read_whole():
    tree = said("6", " is it", serviceTier={"type": "default"})
    response = read(tree, **{"x-amzn-requestid": "r-1"})
    assert (response.text, response.finish, response.model) == ("6 is it", Finish.STOP, HAIKU)
    assert (response.request_id, response.service_tier, response.tokens) == ("r-1", "default", Tokens(10, 5))
    assert response.cost == pytest.approx((10 * 1.0 + 5 * 5.0) / 1e6)  # AWS's prices of a million tokens


def test_what_a_cache_has_to_do_with_is_counted_beside_the_input():
    """As Claude Haiku 4.5 has answered: 18 + 386 + 7502 is 7906."""
    usage = {"inputTokens": 18, "outputTokens": 386, "cacheReadInputTokens": 0, "cacheWriteInputTokens": 7502}
    usage |= {
        "totalTokens": 7906,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 7000}, {"ttl": "5m", "inputTokens": 502}],
    }
    response = read(said("6", usage=usage))
    assert (response.input_tokens, response.output_tokens, response.cache_write_tokens) == (7520, 386, 7502)
    # A token that is written for an hour costs twice as much as others, and for five minutes 1.25 times.
    assert response.cost == pytest.approx((18 * 1.0 + 7000 * 2.0 + 502 * 1.25 + 386 * 5.0) / 1e6)


def test_a_router_tells_the_model_that_answered():
    arn = "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0"
    response = read(said("6", trace={"promptRouter": {"invokedModelId": arn}}))
    assert response.model == arn and response.cost == pytest.approx((10 * 0.06 + 5 * 0.24) / 1e6)


def test_a_model_without_a_price_has_none():
    assert math.isnan(read(said("6"), request(PROFILE)).cost)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", Finish.STOP),
        ("stop_sequence", Finish.STOP),
        ("max_tokens", Finish.LENGTH),
        ("model_context_window_exceeded", Finish.LENGTH),
        ("tool_use", Finish.TOOL_CALLS),
        ("malformed_tool_use", Finish.TOOL_CALLS),
        ("guardrail_intervened", Finish.CONTENT_FILTER),
        ("content_filtered", Finish.CONTENT_FILTER),
        ("malformed_model_output", Finish.ERROR),
        ("a_new_one", Finish.OTHER),
        (None, Finish.OTHER),
    ],
)
def test_how_an_answer_ended(reason, finish):
    assert read(said("6", reason=reason)).finish == finish


def test_every_reason_of_the_services_own_model_is_known():
    loaders = pytest.importorskip("botocore.loaders")
    model = loaders.Loader().load_service_model("bedrock-runtime", "service-2")
    reasons = model["shapes"]["StopReason"]["enum"]
    assert all(read(said("6", reason=reason)).finish != Finish.OTHER for reason in reasons)
    errors = {
        error["shape"] for name in ("Converse", "ConverseStream") for error in model["operations"][name]["errors"]
    }
    assert all(meaning(name) is not None for name in {*errors, "ModelStreamErrorException"})


def test_thoughts_and_cited_words_are_read():
    cited = {"citationsContent": {"content": [{"text": "six"}], "citations": [{"title": "t"}]}}
    response = read(said(THOUGHT, HIDDEN, "It is ", cited))
    assert (response.text, response.reasoning, response.finish) == ("It is six", "Well.", Finish.STOP)
    assert read(said(THOUGHT)).finish == Finish.OTHER  # a model that only thought has said nothing


def test_calls_of_tools_are_read_with_the_thoughts_before_them():
    call = {"toolUse": {"toolUseId": "1", "name": "add", "input": {"a": 1}}}
    done = {"toolUse": {"toolUseId": "2", "name": "grounding", "input": {}, "type": "server_tool_use"}}
    response = read(said(THOUGHT, "Let me.", call, done, reason="tool_use"), request(tools=[ADD]))
    assert response.tool_calls == (
        Part("thought", json.dumps(THOUGHT), "bedrock"),
        Part("tool_call", '{"a": 1}', "add", "1"),
    )
    assert (response.text, response.finish) == ("Let me.", Finish.TOOL_CALLS)
    assert read(said(call, reason="tool_use")).tool_calls == ()


WRONG = "the answer is not of Converse: {}."


@pytest.mark.parametrize(
    ("tree", "kind", "words", "tokens"),
    [
        ({}, MalformedResponseError, "its JSON has another form", None),
        (said("6", output={"message": {"content": "6"}}), MalformedResponseError, "another form", Tokens(10, 5)),
        (said({"text": 6}), MalformedResponseError, "another form", Tokens(10, 5)),
        ({"message": "gone"}, MalformedResponseError, "gone", None),
        ({"__type": "throttlingException", "message": "slow"}, RateLimitError, "slow", None),
        (b"", MalformedResponseError, "it is empty", None),
    ],
)
def test_what_is_no_answer_is_said(tree, kind, words, tokens):
    failure = read(tree)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.words, failure.tokens) == (kind, WRONG, tokens) and words in failure.said[0]


# -- errors ----------------------------------------------------------------------------------------------------------


def meaning(name, status=400, **body):
    raw = json.dumps({"message": "no", **body}).encode()
    return CONVERSE.meaning(HTTPAnswer(status, {"x-amzn-errortype": name} if name else {}, raw))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ThrottlingException", RateLimitError),
        ("ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/", RateLimitError),
        ("ServiceQuotaExceededException", RateLimitError),
        ("ModelNotReadyException", ServerError),
        ("ModelTimeoutException", ServerError),
        ("ModelErrorException", ServerError),
        ("InternalServerException", ServerError),
        ("ServiceUnavailableException", ServerError),
        ("ResourceNotFoundException", RefusedRequestError),
        ("ValidationException", RefusedRequestError),
    ],
)
def test_errors_are_told_by_their_names(name, kind):
    assert meaning(name) == Meaning(kind)
    assert meaning("", __type=f"com.amazon.coral.service#{name}") == Meaning(kind)


@pytest.mark.parametrize(
    "name",
    ["AccessDeniedException", "UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException"],
)
def test_errors_of_credentials_tell_what_to_look_at(name):
    found = meaning(name)
    assert found == Meaning(AuthenticationError, SERVICE.advice)
    assert "AWS_BEARER_TOKEN_BEDROCK" in SERVICE.advice and "AWS_PROFILE" in SERVICE.advice


def test_errors_without_a_known_name_are_told_by_their_status():
    assert meaning("") is None and meaning("NewException") is None and meaning("", __type=[3]) is None
    assert CONVERSE.meaning(HTTPAnswer(502, {}, b"<html>")) is None


def test_a_day_and_a_models_own_refusal_are_not_waited_for():
    day = meaning("ThrottlingException", 429, message="Too many tokens per day, please wait before trying again.")
    assert day == Meaning(RefusedRequestError, " The quota of the day is used up.")
    assert meaning("ModelErrorException", 424, originalStatusCode=400) == Meaning(RefusedRequestError)
    assert meaning("ModelErrorException", 424, originalStatusCode=500) == Meaning(ServerError)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (
            Reply({"message": "slow"}, 429, {"x-amzn-errortype": "ThrottlingException"}),
            RateLimitError,
            "HTTP 429: slow",
        ),
        (
            Reply({"message": "cold"}, 429, {"x-amzn-errortype": "ModelNotReadyException"}),
            ServerError,
            "HTTP 429: cold",
        ),
        (Reply({"Message": "Missing token"}, 403), AuthenticationError, "HTTP 403: .*Missing token.* AWS_PROFILE"),
        (Reply({"message": "x"}, 424, {"x-amzn-errortype": "ModelErrorException"}), ServerError, "HTTP 424: x"),
        (Reply(said("6" * 999), hang_up=True), ConnectionFailedError, "no complete answer"),
        (Reply(b"<html>", headers={"content-type": "text/html"}), MalformedResponseError, "is the base URL right"),
        (Reply({"message": f"with {KEY} in it"}, 500), ServerError, r"with \[key\] in it"),
        (Reply({"message": f"not ABSK{'Qm' * 20}="}, 500), ServerError, r"not \[key\]$"),
    ],
)
def test_faults_over_http_are_typed(reply, kind, words):
    with Replies(reply) as server, pytest.raises(ProviderError, match=words) as raised:
        complete(Bedrock(server.url, api_key=KEY))
    assert type(raised.value) is kind and KEY not in str(raised.value)


# -- streams ---------------------------------------------------------------------------------------------------------


def frame(payload, **headers):
    """One frame of AWS's event stream, as its specification has it: lengths, checksum, headers, payload, checksum."""
    raw = json.dumps(payload).encode()
    head = b"".join(
        bytes([len(name) + 1]) + f":{name}".replace("_", "-").encode() + b"\x07" + struct.pack("!H", len(value)) + value
        for name, value in ((name, value.encode()) for name, value in headers.items())
    )
    prelude = struct.pack("!II", 16 + len(head) + len(raw), len(head))
    frame = prelude + struct.pack("!I", binascii.crc32(prelude)) + head + raw
    return frame + struct.pack("!I", binascii.crc32(frame))


def event(kind, **payload):
    return frame(payload, message_type="event", event_type=kind)


def delta(index, **part):
    return event("contentBlockDelta", contentBlockIndex=index, delta=part)


STREAM = (
    event("messageStart", role="assistant"),
    delta(0, reasoningContent={"text": "Well"}),
    delta(0, reasoningContent={"text": "."}),
    delta(0, reasoningContent={"signature": "abc"}),
    event("contentBlockStop", contentBlockIndex=0),
    delta(1, reasoningContent={"redactedContent": "aGlk"}),
    delta(1, reasoningContent={"redactedContent": "ZGVu"}),
    delta(2, text="It is "),
    delta(2, text="6 \u2603"),
    event("contentBlockStart", contentBlockIndex=3, start={"toolUse": {"toolUseId": "1", "name": "add"}}),
    delta(3, toolUse={"input": '{"a"'}),
    delta(3, toolUse={"input": ": 1}"}),
    event("messageStop", stopReason="tool_use"),
    event("metadata", usage=USAGE, metrics={"latencyMs": 1}),
)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_stream_is_the_answer_that_it_stands_for(size):
    pytest.importorskip("botocore")
    stream = CONVERSE.stream(request())
    raw = b"".join(STREAM)
    told = [stream.feed(raw[start : start + size]) for start in range(0, len(raw), size)]
    assert "".join(told) == "It is 6 \u2603"
    call = {"toolUse": {"toolUseId": "1", "name": "add", "input": {"a": 1}}}
    tree = said(THOUGHT, HIDDEN, "It is 6 \u2603", call, reason="tool_use")
    assert json.loads(stream.whole()) == tree


def test_a_stream_that_ends_too_early_is_no_answer():
    pytest.importorskip("botocore")
    stream = CONVERSE.stream(request())
    stream.feed(b"".join(STREAM[:9]))
    assert stream.whole() is None


def streamed(*frames, api_key=KEY):
    kind = {"content-type": "application/vnd.amazon.eventstream"}
    told = []

    async def scenario(provider):
        try:
            return await provider.stream(request(), told.append)
        finally:
            await provider.close()

    with Replies(Reply(b"".join(frames), headers=kind)) as server:
        response = asyncio.run(scenario(Bedrock(server.url, api_key=api_key, region="us-east-1")))
    return response, "".join(told), server.asked[0]


def test_words_come_as_they_are_said(signed):
    response, told, asked = streamed(*STREAM[7:9], event("messageStop", stopReason="end_turn"), STREAM[-1], api_key="")
    assert told == response.text == "It is 6 \u2603"
    assert (response.tokens, asked.path.rpartition("/")[2]) == (Tokens(10, 5), "converse-stream")
    assert asked.headers["authorization"].startswith("AWS4-HMAC-SHA256")


@pytest.mark.parametrize(
    ("last", "kind", "words"),
    [
        (
            frame({"message": "slow"}, message_type="exception", exception_type="throttlingException"),
            RateLimitError,
            "slow",
        ),
        (frame({}, message_type="error", error_code="InternalServerException", error_message="x"), ServerError, "x"),
        (event("messageStop")[:-1] + b"?", MalformedResponseError, "the stream is damaged"),
        (b"", ConnectionFailedError, "the stream ended before the answer did"),
    ],
)
def test_a_stream_may_fail(last, kind, words):
    pytest.importorskip("botocore")
    with pytest.raises(kind, match=words):
        streamed(*STREAM[:9], last)


def test_without_the_package_an_answer_comes_in_one_piece(bare):
    bare.setattr("ember_jax.providers.converse_events.can_read", lambda: False)
    bare.setattr("ember_jax.providers.bedrock.can_read", lambda: False)
    with Replies(Reply(said("6"))) as server, session(server):
        assert "".join(ember.LLM(f"bedrock/{HAIKU}").stream("3 + 3?")) == "6"
    assert server.asked[0].path.endswith("/converse")


# -- through ember ---------------------------------------------------------------------------------------------------


def session(server, journal=None, api_key=KEY):
    provider = Bedrock(server.url, api_key=api_key, region="us-east-1")
    return ember.session(journal=journal, providers={"bedrock": provider}, retry=ember.Retry(first=0.0))


class Sum(NamedTuple):
    a: int
    words: ember.Text


def test_a_structured_answer_is_asked_for_by_its_schema():
    with Replies(Reply(said('{"a": 6, "words": "six"}'))) as server, session(server):
        found = ember.LLM(f"bedrock/{HAIKU}").structured("3 + 3?", Sum)
    assert (int(found.a), str(found.words)) == (6, "six")
    form = server.asked[0].body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
    assert json.loads(form["schema"])["required"] == ["a", "words"]


@pytest.mark.filterwarnings("ignore::ember_jax.errors.CutAnswerWarning")
def test_a_filtered_answer_fails_its_lane_and_is_not_asked_again():
    with Replies(Reply(said(reason="guardrail_intervened"))) as server, session(server):
        with pytest.raises(NoAnswerError) as raised:
            ember.LLM(f"bedrock/{HAIKU}")("hello")
        assert raised.value.finish == Finish.CONTENT_FILTER and len(server.asked) == 1


def test_a_sweep_is_asked_at_once(signed):
    with Replies(Reply(said("6"))) as server, session(server, api_key=""):
        told = jax.jit(jax.vmap(ember.LLM(f"bedrock/{HAIKU}")))(ember.text([f"{i}?" for i in range(5)]))
    assert told.tolist() == ["6"] * 5
    assert len({asked.headers["authorization"] for asked in server.asked}) == 5


def test_models_are_those_of_the_listing(still):
    listed = Reply({"modelSummaries": [{"modelId": "b.b-v1:0"}, {"modelId": "a.a"}, {"modelName": "no id"}]})
    with Replies(listed) as server, session(server, api_key=""):
        assert ember.models("bedrock") == ["bedrock/a.a", "bedrock/b.b-v1:0"]
    assert (server.asked[0].method, server.asked[0].path) == ("GET", SDK["sent"]["models"]["path"])
    assert "SignedHeaders=host;x-amz-date," in server.asked[0].headers["authorization"]


def test_models_are_listed_by_another_host(environment):
    asked = []

    async def got(url, headers, name):
        asked.append((url, dict(headers)))
        return HTTPAnswer(200, {}, b'{"modelSummaries": []}')

    provider = Bedrock(api_key=KEY, region="us-east-1")
    environment.setattr(provider._http, "_got", got)
    assert asyncio.run(provider.models()) == ()
    assert asked == [("https://bedrock.us-east-1.amazonaws.com/foundation-models", {"Authorization": f"Bearer {KEY}"})]


def test_the_doctor_says_whether_there_are_credentials(environment, capsys):
    def row():
        _cli.main(["doctor"])
        out = capsys.readouterr().out
        assert KEY not in out and SECRET not in out
        return next(line for line in out.splitlines() if line.startswith("bedrock"))

    assert "no AWS_BEARER_TOKEN_BEDROCK" in row() and "Set the environment variable AWS_REGION" in row()
    environment.setenv("AWS_REGION", "us-east-1")
    environment.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
    assert row().split() == ["bedrock", "AWS_BEARER_TOKEN_BEDROCK", "https://bedrock-runtime.us-east-1.amazonaws.com"]
    environment.delenv("AWS_BEARER_TOKEN_BEDROCK")
    pytest.importorskip("botocore")
    for name, value in SDK["keys"].items():
        environment.setenv(name.upper(), value)
    assert "credentials of AWS (env)" in row()


def test_a_name_that_is_like_it_is_hinted_at():
    with pytest.raises(ModelError, match="Did you mean 'bedrock'"):
        ember.LLM("bedrok/x")
