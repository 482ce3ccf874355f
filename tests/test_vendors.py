"""One contract for all vendors: the same program holds, whichever service answers it.

A vendor is one entry of `WIRES`, which says how its server says things. The servers are on this machine.
"""

import dataclasses
import functools
import http.server
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import errors
from ember_jax.providers import _BUILT_IN, registry
from ember_jax.providers.dialect import Service
from ember_jax.providers.http import Vendor

KEY = "a-MARKED-key-of-no-account-0123456789"
# US dollars for a million tokens, so that costs do not change with the installed table.
PRICE = ember.Price(3, 5)
AT_ONCE, ONCE = ember.Retry(first=0.0), ember.Retry(attempts=1)
# What every answer says that it took.
INPUT, OUTPUT = 11, 7


@dataclass(frozen=True)
class Wire:
    """How a vendor's server says things, in trees of JSON.

    **Fields:**

    - `make`: the vendor's public class.
    - `service`: where its own server is, and which variables its users set.
    - `model`: a name of one of its models.
    - `begin`: what its base URLs end with.
    - `prompt`: the last prompt in the body of a request.
    - `text`: an answer of some words, which the model has ended, of `INPUT` and `OUTPUT` tokens.
    - `cut`: one that was cut at the most tokens that were allowed.
    - `refused`: one that declines with some words; `None` if the service has none.
    - `nothing`: one that is no answer, and says all the same that so many tokens are billed.
    - `error`: the body of an answer whose status is that of a failure, with a message.
    - `calls`: an answer that wants a tool called, once for each pair of an id and its arguments.
    - `results`: of the body of a request, the ids and the words of the results of tools in it.
    - `tools`: of the body of a request, the names of the tools in it with the schemas of their arguments.
    - `quota`: headers that say that 99 of 100 requests are left.
    """

    make: Callable[..., Vendor]
    service: Service
    model: str
    begin: str
    prompt: Callable[[Any], str]
    text: Callable[[str], Any]
    cut: Callable[[str], Any]
    refused: Callable[[str], Any] | None
    nothing: Any
    error: Callable[[int, str], Any]
    calls: Callable[[str, list[tuple[str, dict[str, Any]]]], Any]
    results: Callable[[Any], list[tuple[str, str]]]
    tools: Callable[[Any], dict[str, Any]]
    quota: Mapping[str, str]


def openai(model="gpt-4o-mini"):
    from ember_jax.providers.openai import SERVICE

    def said(finish, **message):
        usage = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        return {"id": "c-1", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}

    return Wire(
        make=ember.providers.OpenAI,
        service=SERVICE,
        model=model,
        begin="/v1",
        prompt=lambda body: body["messages"][-1]["content"],
        text=lambda words: said("stop", content=words),
        cut=lambda words: said("length", content=words),
        refused=lambda words: said("stop", content=None, refusal=words),
        nothing={**said("stop"), "choices": []},
        error=lambda status, words: {"error": {"message": words, "type": "error", "param": None, "code": None}},
        calls=lambda name, calls: said(
            "tool_calls",
            content=None,
            tool_calls=[
                {"id": i, "type": "function", "function": {"name": name, "arguments": json.dumps(a)}} for i, a in calls
            ],
        ),
        results=lambda body: [(m["tool_call_id"], m["content"]) for m in body["messages"] if m["role"] == "tool"],
        tools=lambda body: {t["function"]["name"]: t["function"]["parameters"] for t in body["tools"]},
        quota={"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "99"},
    )


def anthropic():
    from ember_jax.providers.anthropic import SERVICE

    kinds = {401: "authentication_error", 429: "rate_limit_error", 400: "invalid_request_error"}

    def said(reason, words, **more):
        usage = {"input_tokens": INPUT, "output_tokens": OUTPUT}
        blocks = [{"type": "text", "text": words}]
        fields = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "usage": usage}
        return {**fields, "content": blocks, "stop_reason": reason, "stop_sequence": None, **more}

    return Wire(
        make=ember.providers.Anthropic,
        service=SERVICE,
        model="claude-haiku-4-5",
        begin="",
        prompt=lambda body: body["messages"][-1]["content"],
        text=lambda words: said("end_turn", words),
        cut=lambda words: said("max_tokens", words),
        refused=lambda words: said("refusal", "", stop_details={"type": "refusal", "explanation": words}),
        nothing=said("end_turn", "", content=None),
        error=lambda status, words: {
            "type": "error",
            "error": {"type": kinds.get(status, "api_error"), "message": words},
        },
        calls=lambda name, calls: said(
            "tool_use",
            "",
            content=[{"type": "tool_use", "id": i, "name": name, "input": a} for i, a in calls],
        ),
        results=lambda body: [
            (block["tool_use_id"], block["content"])
            for m in body["messages"]
            if isinstance(m["content"], list)
            for block in m["content"]
            if block["type"] == "tool_result"
        ],
        tools=lambda body: {t["name"]: t["input_schema"] for t in body["tools"]},
        quota={"anthropic-ratelimit-requests-limit": "100", "anthropic-ratelimit-requests-remaining": "99"},
    )


def gemini():
    from ember_jax.providers.gemini import SERVICE

    def said(reason, *parts, **more):
        usage = {"promptTokenCount": INPUT, "candidatesTokenCount": OUTPUT, "totalTokenCount": INPUT + OUTPUT}
        candidate = {"index": 0, "content": {"role": "model", "parts": list(parts)}, "finishReason": reason}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash", **more}

    signed = {"thoughtSignature": "abc"}
    statuses = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}
    return Wire(
        make=ember.providers.Gemini,
        service=SERVICE,
        model="gemini-2.5-flash",
        begin="/v1",
        prompt=lambda body: body["contents"][-1]["parts"][-1].get("text", ""),
        text=lambda words: said("STOP", {"text": words}),
        cut=lambda words: said("MAX_TOKENS", {"text": words}),
        refused=None,  # it has no refusals, but a filter
        nothing=said("STOP", candidates=[]),
        error=lambda status, words: {
            "error": {"code": status, "message": words, "status": statuses.get(status, "INTERNAL")}
        },
        calls=lambda name, calls: said(
            "STOP", *({"functionCall": {"id": i, "name": name, "args": a}, **signed} for i, a in calls)
        ),
        results=lambda body: [
            (part["functionResponse"]["id"], part["functionResponse"]["response"]["output"])
            for content in body["contents"]
            for part in content["parts"]
            if "functionResponse" in part
        ],
        tools=lambda body: {
            f["name"]: f["parametersJsonSchema"] for tool in body["tools"] for f in tool["functionDeclarations"]
        },
        quota={"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "99"},
    )


def responses():
    def said(status, *items, **more):
        usage = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
        fields = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "status": status, "usage": usage}
        return {**fields, "error": None, "output": list(items), **more}

    def message(kind, **words):
        return {"type": "message", "role": "assistant", "content": [{"type": kind, **words}]}

    def prompt(body):
        content = body["input"][-1].get("content", "")
        return content if isinstance(content, str) else content[-1].get("text", "")

    return dataclasses.replace(
        openai(),
        make=functools.partial(ember.providers.OpenAI, api="responses"),
        model="gpt-5-mini",
        prompt=prompt,
        text=lambda words: said("completed", message("output_text", text=words)),
        cut=lambda words: said(
            "incomplete", message("output_text", text=words), incomplete_details={"reason": "max_output_tokens"}
        ),
        refused=lambda words: said("completed", message("refusal", refusal=words)),
        nothing=said("completed", output=3),
        calls=lambda name, calls: said(
            "completed",
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "abc"},
            *({"type": "function_call", "call_id": i, "name": name, "arguments": json.dumps(a)} for i, a in calls),
        ),
        results=lambda body: [
            (item["call_id"], item["output"]) for item in body["input"] if item.get("type") == "function_call_output"
        ],
        tools=lambda body: {tool["name"]: tool["parameters"] for tool in body["tools"]},
    )


def cohere():
    from ember_jax.providers.cohere import SERVICE

    return dataclasses.replace(
        openai("c4ai-aya-expanse-32b"),  # whose length the price table knows
        make=ember.providers.Cohere,
        service=SERVICE,
        begin="",
        error=lambda status, words: {"id": "1", "message": words},
    )


def bedrock():
    from ember_jax.providers.bedrock import SERVICE

    kinds = {401: "UnrecognizedClientException", 400: "ValidationException", 429: "ThrottlingException"}

    def said(reason, *blocks, **more):
        usage = {"inputTokens": INPUT, "outputTokens": OUTPUT, "totalTokens": INPUT + OUTPUT}
        output = {"message": {"role": "assistant", "content": list(blocks)}}
        return {"output": output, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 1}, **more}

    return Wire(
        make=functools.partial(ember.providers.Bedrock, region="us-east-1"),
        service=SERVICE,
        model="anthropic.claude-haiku-4-5-20251001-v1:0",
        begin="",
        prompt=lambda body: body["messages"][-1]["content"][-1].get("text", ""),
        text=lambda words: said("end_turn", {"text": words}),
        cut=lambda words: said("max_tokens", {"text": words}),
        refused=None,  # it has no refusals, but a filter
        nothing=said("end_turn", output={"message": None}),
        error=lambda status, words: {"__type": kinds.get(status, "InternalServerException"), "message": words},
        calls=lambda name, calls: said(
            "tool_use", *({"toolUse": {"toolUseId": i, "name": name, "input": a}} for i, a in calls)
        ),
        results=lambda body: [
            (block["toolResult"]["toolUseId"], block["toolResult"]["content"][0]["text"])
            for m in body["messages"]
            for block in m["content"]
            if "toolResult" in block
        ],
        tools=lambda body: {
            t["toolSpec"]["name"]: t["toolSpec"]["inputSchema"]["json"] for t in body["toolConfig"]["tools"]
        },
        quota={"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "99"},
    )


def vertex(of):
    from ember_jax.providers.vertex import SERVICE

    return dataclasses.replace(of, make=ember.providers.Vertex, service=SERVICE, begin="", quota=gemini().quota)


WIRES = {
    "openai": openai(),
    "anthropic": anthropic(),
    "bedrock": bedrock(),
    "cohere": cohere(),
    "gemini": gemini(),
    "openai, Responses": responses(),
    "vertex": vertex(gemini()),
    "vertex, Claude": vertex(anthropic()),
}


def test_every_vendor_has_an_entry():
    assert {name for name in _BUILT_IN if isinstance(registry.get(name), Vendor)} <= WIRES.keys()


class Answer(NamedTuple):
    """What a server answers: a body as a tree of JSON or as bytes, with a status and headers."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = {}


class Server(http.server.ThreadingHTTPServer):
    """A server at an address of this machine, while the `with` block lasts. `answer` gets the number and the prompt."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, wire, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.wire, self.answer = wire, answer
        self.prompts, self.bodies, self.lock = [], [], threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def provider(self, key: str | None = KEY):
        return self.wire.make(f"http://127.0.0.1:{self.server_port}{self.wire.begin}", api_key=key)

    def session(self, key: str | None = KEY, journal: Any = None, retry: Any = AT_ONCE):
        return ember.session(
            providers={"vendor": self.provider(key)}, prices={"vendor": PRICE}, journal=journal, retry=retry
        )

    @property
    def llm(self):
        return ember.LLM(f"vendor/{self.wire.model}", max_tokens=50)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = self.server.wire.prompt(body)
        with self.server.lock:
            self.server.bodies.append(body)
            number = len(self.server.prompts)
            self.server.prompts.append(prompt)
        answer = self.server.answer(number, prompt)
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"content-type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture(params=WIRES)
def wire(request, monkeypatch):
    found = WIRES[request.param]
    for name in (*found.service.base_variables, *found.service.key_variables):
        monkeypatch.delenv(name, raising=False)
    return found


def always(wire, make, words):
    return Server(wire, lambda number, prompt: Answer(make(words)))


def in_turn(wire, *answers):
    """A server that gives one answer after another, and the last one for ever."""
    return Server(wire, lambda number, prompt: answers[min(number, len(answers) - 1)])


# What is answered


def test_an_answer_is_its_words(wire):
    with always(wire, wire.text, "It is 4. ☃") as server, server.session() as run:
        assert str(server.llm(ember.text("What is 2 + 2?"))) == "It is 4. ☃"
        assert server.prompts == ["What is 2 + 2?"]
        assert (run.report().calls, run.report().requests, run.report().failed) == (1, 1, 0)


def test_a_completion_tells_what_it_took_and_how_it_ended(wire):
    with always(wire, wire.text, "4") as server, server.session() as run:
        answer = server.llm.complete(ember.text("What is 2 + 2?"))
        assert str(answer.text) == "4"
        assert (int(answer.input_tokens), int(answer.output_tokens)) == (INPUT, OUTPUT)
        assert int(answer.finish) == ember.Finish.STOP
        assert float(answer.cost) == pytest.approx((INPUT * 3 + OUTPUT * 5) / 1e6, rel=1e-6)
        assert (run.report().input_tokens, run.report().output_tokens) == (INPUT, OUTPUT)


@pytest.mark.filterwarnings("ignore::ember_jax.errors.CutAnswerWarning")
def test_an_answer_that_was_cut_is_told(wire):
    with always(wire, wire.cut, "It is") as server, server.session() as run:
        answer = server.llm.complete(ember.text("What is 2 + 2?"))
        assert (str(answer.text), int(answer.finish)) == ("It is", ember.Finish.LENGTH)
        assert run.report().cut == 1


def test_a_model_that_declines_fails_its_call_and_is_asked_once(wire):
    if wire.refused is None:
        return
    with always(wire, wire.refused, "I would rather not.") as server, server.session() as run:
        with pytest.raises(errors.NoAnswerError, match="I would rather not") as caught:
            server.llm(ember.text("hello"))
        assert caught.value.finish == ember.Finish.REFUSAL
        assert len(server.prompts) == 1
        assert run.report().output_tokens == OUTPUT


def test_a_choice_is_one_request_and_names_an_option(wire):
    with always(wire, wire.text, "B") as server, server.session() as run:
        choice = server.llm.choose(ember.text("2 + 2 = 5?"), ["yes", "no"])
        assert (int(choice.index), str(choice.text)) == (1, "no")
        np.testing.assert_array_equal(choice.probs, np.asarray([0.0, 1.0], np.float32))
        assert (len(server.prompts), run.report().requests, run.report().failed) == (1, 1, 0)


def _said_by_model(answer):
    return answer.body["candidates"][0]["content"]["parts"]


def test_tools_are_called_and_their_results_given_back(wire):
    @ember.tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    wanted = [("id-1", {"a": 1, "b": 2}), ("id-2", {"a": 3, "b": 4})]
    answers = Answer(wire.calls("add", wanted)), Answer(wire.text("10"))
    with in_turn(wire, *answers) as server, server.session() as run:
        done = ember.Agent(server.llm, [add]).run("add all")
        assert (str(done.answer), int(done.calls), bool(done.is_done)) == ("10", 2, True)
        assert wire.tools(server.bodies[0]) == {"add": json.loads(add.schema)}
        if "candidates" in answers[0].body:  # what it said comes back to it as it was
            assert server.bodies[1]["contents"][1] == {"parts": _said_by_model(answers[0]), "role": "model"}
        if isinstance(answers[0].body.get("output"), list):
            assert server.bodies[1]["input"][1] == answers[0].body["output"][0]
        assert [wire.results(body) for body in server.bodies] == [[], [("id-1", "3"), ("id-2", "7")]]
        assert (run.report().requests, run.report().output_tokens) == (2, 2 * OUTPUT)


def test_a_prompt_that_cannot_fit_is_not_sent(wire):
    (name,) = [name.partition(",")[0] for name, found in WIRES.items() if found is wire]
    window = int(registry.get(name).most_output(ember.providers.Request(name, wire.model, ())))
    window = max(window, 1_100_000 if name in ("gemini", "vertex") else 410_000)  # more than any of these models reads
    with always(wire, wire.text, "4") as server:
        provider = server.provider()
        with ember.session(providers={name: provider}, journal=None, retry=ONCE):
            llm = ember.LLM(f"{name}/{wire.model}", max_tokens=5)
            with pytest.raises(errors.RefusedRequestError, match="tokens or more, and the model reads"):
                llm("a " * window)
            assert str(llm("a " * 1000)) == "4"
        assert len(server.prompts) == 1


def test_a_conversation_is_sent_turn_by_turn(wire):
    chat = [("system", "short"), ("user", "a"), ("assistant", "b"), ("user", ["c", ember.image(np.zeros((1, 1)))])]
    with always(wire, wire.text, "d") as server, server.session():
        assert str(server.llm(chat)) == "d"
        sent = json.dumps(server.bodies[0])
        places = [sent.index(f'"{words}"') for words in "abc"]
        assert places == sorted(places) and '"short"' in sent and "iVBORw0KGgo" in sent


class Review(NamedTuple):
    """What somebody says of a film."""

    score: int
    mood: Literal["glad", "sad"]
    tags: list[str]
    note: str | None


def test_a_structured_answer_is_one_request(wire):
    said = json.dumps({"score": 4, "mood": "sad", "tags": ["long", "blue"], "note": None})
    with always(wire, wire.text, said) as server, server.session():
        review = server.llm.structured(ember.text("I wept."), Review)
        assert (int(review.score), server.prompts) == (4, ["I wept."])
        assert [str(tag) for tag in review.tags.values][:2] == ["long", "blue"]


def test_a_service_that_refuses_a_schema_is_asked_in_the_prompt(wire):
    said = Answer(wire.text(json.dumps({"score": 4, "mood": "sad", "tags": [], "note": "well"})))

    def answer(number, prompt):
        return said if "JSON schema" in prompt else Answer(wire.error(400, "no schemas here"), 400)

    with Server(wire, answer) as server, server.session():
        assert int(server.llm.structured(ember.text("I wept."), Review).score) == 4
        assert server.prompts[0] == "I wept."


# Many at once


def test_lanes_are_asked_at_once_and_each_gets_its_own_answer(wire):
    # No answer is given before ten have been asked, which are as many as a service of unknown limits gets at first.
    gathered = threading.Event()

    def answer(number, prompt):
        if number == 9:
            gathered.set()
        assert gathered.wait(timeout=30)
        return Answer(wire.text(f"<{prompt}>"))

    with Server(wire, answer) as server, server.session() as run:
        prompts = [f"question {i}" for i in range(20)]
        answers = jax.vmap(server.llm)(ember.text(prompts))
        assert answers.tolist() == [f"<{prompt}>" for prompt in prompts]
        assert sorted(server.prompts) == sorted(prompts)
        assert run.report().cost_usd == pytest.approx(20 * (INPUT * 3 + OUTPUT * 5) / 1e6)


def test_choices_of_many_lanes_are_one_request_each(wire):
    with always(wire, wire.text, "A") as server, server.session() as run:
        choices = jax.vmap(lambda p: server.llm.choose(p, ["yes", "no"]))(ember.text([f"q {i}" for i in range(20)]))
        assert choices.index.tolist() == [0] * 20
        assert (run.report().requests, run.report().failed) == (20, 0)


def test_what_is_kept_is_not_paid_for_again(wire, tmp_path):
    prompts = ember.text([f"question {i}" for i in range(20)])
    with Server(wire, lambda number, prompt: Answer(wire.text(f"<{prompt}>"))) as server:
        with server.session(journal=tmp_path / "run.db"):
            first = jax.vmap(server.llm)(prompts).tolist()
        with server.session(journal=tmp_path / "run.db") as run:
            assert jax.vmap(server.llm)(prompts).tolist() == first
            assert (run.report().requests, run.report().replayed, run.report().cost_usd) == (0, 20, 0.0)
        assert len(server.prompts) == 20
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


# What goes wrong


def test_a_refusal_as_one_too_many_is_tried_again(wire):
    busy = Answer(wire.error(429, "too many"), 429, {"retry-after": "0"})
    with in_turn(wire, busy, Answer(wire.text("4"))) as server, server.session() as run:
        assert str(server.llm(ember.text("hello"))) == "4"
        assert (run.report().requests, run.report().throttled) == (2, 1)


@pytest.mark.parametrize("status", [500, 503, 529])
def test_a_failure_of_the_service_is_tried_again(wire, status):
    busy = Answer(wire.error(status, "busy"), status)
    with in_turn(wire, busy, Answer(wire.text("4"))) as server, server.session() as run:
        assert str(server.llm(ember.text("hello"))) == "4"
        assert (run.report().requests, run.report().failed) == (2, 1)


def test_a_request_that_is_at_fault_is_not_tried_again(wire):
    with in_turn(wire, Answer(wire.error(400, "no such thing"), 400)) as server, server.session():
        with pytest.raises(errors.RefusedRequestError, match="HTTP 400: no such thing"):
            server.llm(ember.text("hello"))
        assert len(server.prompts) == 1


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b'{"', b"[]", b"null", b'{"x": 1}'])
def test_garbage_is_malformed_and_tried_again(wire, body):
    with in_turn(wire, Answer(body), Answer(wire.text("4"))) as server, server.session() as run:
        assert str(server.llm(ember.text("hello"))) == "4"
        assert run.report().failed == 1
    with (
        in_turn(wire, Answer(body)) as server,
        server.session(retry=ONCE),
        pytest.raises(errors.MalformedResponseError),
    ):
        server.llm(ember.text("hello"))


def test_what_is_billed_without_an_answer_is_counted(wire):
    with in_turn(wire, Answer(wire.nothing)) as server, server.session(retry=ONCE) as run:
        with pytest.raises(errors.MalformedResponseError):
            server.llm(ember.text("hello"))
        assert (run.report().input_tokens, run.report().output_tokens) == (INPUT, OUTPUT)
        assert run.report().lost == 0


# Keys


def test_a_wrong_key_says_which_variable_to_check_and_shows_no_key(wire, tmp_path, capfd):
    wrong = Answer(wire.error(401, f"wrong key {KEY}"), 401, {"x-key": KEY})
    with in_turn(wire, wrong) as server, server.session(journal=tmp_path / "run.db") as run:
        with pytest.raises(errors.AuthenticationError) as caught:
            server.llm(ember.text("hello"))
        assert len(server.prompts) == 1
        assert wire.service.key_variables[0] in str(caught.value)
        shown = [str(caught.value), repr(caught.value), repr(server.provider()), str(run.report()), str(run.calls())]
    shown += [*capfd.readouterr(), *(file.read_bytes().decode("latin-1") for file in tmp_path.iterdir())]
    assert all(KEY not in words for words in shown)


def test_the_vendors_own_server_is_not_asked_without_a_key(wire):
    providers = {"vendor": wire.make()}
    with (
        ember.session(providers=providers, prices={"vendor": PRICE}, journal=None),
        pytest.raises(errors.AuthenticationError, match=wire.service.key_variables[0]),
    ):
        ember.LLM(f"vendor/{wire.model}")(ember.text("hello"))


def test_key_and_server_are_those_of_the_environment(wire, monkeypatch):
    with always(wire, wire.text, "4") as server:
        monkeypatch.setenv(wire.service.base_variables[0], f"http://127.0.0.1:{server.server_port}{wire.begin}")
        monkeypatch.setenv(wire.service.key_variables[0], KEY)
        provider = wire.make()
        asked = ember.providers.Request("vendor", wire.model, (ember.providers.Message("user", "hello"),))
        url, headers, _ = provider.build(asked)
        assert sum(KEY in value for value in headers.values()) == 1
        assert url.startswith(f"http://127.0.0.1:{server.server_port}")
        with ember.session(providers={"vendor": provider}, prices={"vendor": PRICE}, journal=None):
            assert str(server.llm(ember.text("hello"))) == "4"


# As data


def test_limits_are_read_from_headers(wire):
    provider = wire.make(api_key=KEY)
    asked = ember.providers.Request("vendor", wire.model, (ember.providers.Message("user", "hello"),))
    answer = provider.read(200, wire.quota, json.dumps(wire.text("4")).encode(), asked)
    assert answer.quota is not None
    assert answer.quota.requests is not None
    assert (answer.quota.requests.limit, answer.quota.requests.left) == (100, 99)


def test_a_model_has_the_price_of_its_vendors_table(wire):
    (name,) = [name.partition(",")[0] for name, found in WIRES.items() if found is wire]
    assert isinstance(wire.make(), type(registry.get(name)))
    asked = ember.providers.Request(name, wire.model, (ember.providers.Message("user", "hello"),))
    answer = wire.make(api_key=KEY).read(200, {}, json.dumps(wire.text("4")).encode(), asked)
    assert 0 < answer.cost < 1e-3
    elsewhere = dataclasses.replace(asked, provider="nobody")
    assert math.isnan(wire.make(api_key=KEY).read(200, {}, json.dumps(wire.text("4")).encode(), elsewhere).cost)
