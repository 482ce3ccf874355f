"""What services really send: how answers end, what is billed without one, and the forms that they come in.

The server is on this machine. What it was asked, and the tokens and dollars of its answers, are its own count.
"""

import contextlib
import json
import math
import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import errors
from ember_jax.errors import CutAnswerWarning, NoAnswerError, OtherModelWarning, UnknownPriceWarning
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault, SimModel

PRICE = ember.Price(input=1, output=10)
MODEL = ember.LLM("openai/m", max_tokens=50)
PROMPT = "What is 17 * 23?"
AT_ONCE = ember.Retry(attempts=8, first=0.0)
Finish = ember.Finish


def choice(**fields):
    """A fault that changes the choice of an answer; `message` is merged into its message."""

    def edit(completion):
        first = completion["choices"][0]
        message = {**first["message"], **fields.get("message", {})}
        return {**completion, "choices": [{**first, **fields, "message": message}]}

    return Fault(edit=edit)


def whole(**fields):
    """A fault that changes the fields of a completion; `usage` is merged into its usage."""
    return Fault(edit=lambda c: {**c, **fields, "usage": {**c["usage"], **fields.get("usage", {})}})


@contextlib.contextmanager
def serving(*faults, journal=None, timeout=10.0, **settings):
    """A server with faults, and a session that asks it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ChatServer(SimModel(accuracy=1.0), faults=faults))
        yield server, stack.enter_context(asking(server, journal=journal, timeout=timeout, **settings))


def asking(server, *, journal=None, timeout=10.0, **settings):
    provider = OpenAI(server.base_url, api_key="", timeout=timeout)
    given = {"prices": {"openai": PRICE}, "retry": AT_ONCE, "budget_usd": 1.0, **settings}
    return ember.session(providers={"openai": provider}, journal=journal, **given)


def dollars(server):
    return (server.input_tokens * 1 + server.output_tokens * 10) / 1e6


def assert_same_books(run, server):
    """The report, the budget and the server have counted the same."""
    report = run.report()
    # The server counts an answer when it has been sent, which may be after it was read here.
    end = time.monotonic() + 5.0
    while server.output_tokens < report.output_tokens and time.monotonic() < end:
        time.sleep(0.001)
    assert report.requests == len(server.requests)
    assert (report.input_tokens, report.output_tokens) == (server.input_tokens, server.output_tokens)
    assert report.cost_usd == pytest.approx(dollars(server), rel=1e-12)
    assert run.budget.spent - run.budget.lost == pytest.approx(dollars(server), abs=1e-11)
    assert run.budget.lost == pytest.approx(report.lost_usd, abs=1e-11)


@contextlib.contextmanager
def warned():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


# -- how an answer ended ---------------------------------------------------------------------------------------------

REASONS = {
    "stop": Finish.STOP,
    "STOP": Finish.STOP,
    "eos": Finish.STOP,
    "length": Finish.LENGTH,
    "MAX_TOKENS": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
    "insufficient_system_resource": Finish.OTHER,
    None: Finish.OTHER,
    7: Finish.OTHER,
}


@pytest.mark.parametrize(("reason", "finish"), REASONS.items(), ids=map(str, REASONS))
def test_how_an_answer_ended_is_told_everywhere(reason, finish, tmp_path):
    is_cut = finish in (Finish.LENGTH, Finish.CONTENT_FILTER)
    with warned(), serving(choice(finish_reason=reason), journal=tmp_path / "journal.db") as (server, run):
        answer = MODEL.complete(PROMPT)
        again = MODEL.complete(PROMPT)
        (call, replayed), (kept,) = run.calls(), ember.Journal(tmp_path / "journal.db").calls()
        assert_same_books(run, server)
    for told in (answer, again):
        assert (str(told.text), int(told.finish), told.finish.dtype) == ("391", finish, jnp.int32)
    assert call.finish == replayed.finish == kept.finish == finish
    assert kept.row()["finish"] == finish.name.lower()
    assert ("finish" in str(call)) == (finish != Finish.STOP)
    assert run.report().cut == 2 * is_cut
    assert len(server.requests) == 1


def test_lanes_have_their_own_ends():
    faults = {"a": "length", "b": "stop", "c": "content_filter"}
    with warned(), ChatServer(faults=lambda i: ended(server.requests[i], faults)) as server, asking(server) as run:
        for form in (jax.vmap, lambda f: jax.jit(jax.vmap(f)), lambda f: ember.jit(jax.vmap(f))):
            answers = form(MODEL.complete)(ember.text(["a", "b", "c"]))
            np.testing.assert_array_equal(answers.finish == Finish.LENGTH, [True, False, False])
            np.testing.assert_array_equal(answers.finish, [Finish.LENGTH, Finish.STOP, Finish.CONTENT_FILTER])
        _, usage = jax.vmap(ember.metered(MODEL))(ember.text(["a", "b", "c"]))
        assert usage.cut.tolist() == [1, 0, 1]
    assert run.report().cut == 4 * 2


def ended(request, reasons):
    return choice(finish_reason=reasons[request.body["messages"][0]["content"]])


def test_a_cut_answer_is_warned_of_once_for_each_model():
    cut = choice(finish_reason="length")
    with warned() as found, serving(*[cut] * 6):
        for name in ("m", "n"):
            llm = ember.LLM(f"openai/{name}", max_tokens=5)
            jax.vmap(llm)(ember.text(["a", "b"]))
            llm("c")
    told = [str(w.message) for w in found if w.category is CutAnswerWarning]
    assert [words.split()[0] for words in told] == ["openai/m", "openai/n"]
    assert "max_tokens" in told[0] and "run.report().cut" in told[0]


def test_where_warnings_are_errors_a_cut_answer_is_no_failure(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with serving(choice(finish_reason="length")) as (_, run):
            assert str(MODEL(PROMPT)) == "391"
    assert run.report().cut == 1


# -- answers that say nothing ----------------------------------------------------------------------------------------

NOTHING = {
    "null, cut": (choice(message={"content": None}, finish_reason="length"), Finish.LENGTH, "more max_tokens"),
    "empty, cut": (choice(message={"content": ""}, finish_reason="length"), Finish.LENGTH, "more max_tokens"),
    "white space, cut": (choice(message={"content": " \n"}, finish_reason="length"), Finish.LENGTH, "more max_tokens"),
    "all reasoning": (
        choice(message={"content": "", "reasoning_content": "17 * 23 is"}, finish_reason="length"),
        Finish.LENGTH,
        "no text after [0-9]+ tokens",
    ),
    "null, ended": (choice(message={"content": None}), Finish.OTHER, "no text"),
    # llama.cpp's server (xllamacpp 2026.10.11549), of a model that ended before it had closed its thoughts.
    "all reasoning, ended": (
        choice(message={"content": "", "reasoning_content": "17 * 23 is"}),
        Finish.OTHER,
        "no text after [0-9]+ tokens",
    ),
    "all reasoning, without a reason": (
        choice(message={"content": "\n", "reasoning": "17 * 23 is"}, finish_reason=None),
        Finish.OTHER,
        "no text after [0-9]+ tokens",
    ),
    "filtered": (choice(message={"content": None}, finish_reason="content_filter"), Finish.CONTENT_FILTER, "filter"),
    "filtered, empty": (
        choice(message={"content": ""}, finish_reason="content_filter"),
        Finish.CONTENT_FILTER,
        "declined",
    ),
    "refused": (choice(message={"content": None, "refusal": "I can't."}), Finish.REFUSAL, "declined: I can't"),
    "refused in a part": (
        choice(message={"content": [{"type": "refusal", "refusal": "I can't."}]}),
        Finish.REFUSAL,
        "declined: I can't",
    ),
    "refused by reason": (
        choice(message={"content": "I can't."}, finish_reason="refusal"),
        Finish.REFUSAL,
        "declined: I can't",
    ),
    "a tool's call": (choice(message={"content": None}, finish_reason="tool_calls"), Finish.TOOL_CALLS, "tool_calls"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_an_answer_that_says_nothing_is_paid_for_once(name, tmp_path):
    fault, finish, words = NOTHING[name]
    is_cut = finish in (Finish.LENGTH, Finish.CONTENT_FILTER)
    path = tmp_path / "journal.db"
    with warned(), serving(fault, journal=path) as (server, run):
        with pytest.raises(NoAnswerError, match=words) as caught:
            MODEL(PROMPT)
        assert caught.value.finish == finish
        assert_same_books(run, server)
        assert server.output_tokens > 0 and run.report().cut == is_cut
        with asking(server, journal=path) as again:
            with pytest.raises(NoAnswerError, match=words):
                MODEL(PROMPT)
            result = ember.evaluate(MODEL, [(PROMPT, "391"), ("What is 2 + 2?", "4")])
    assert len(server.requests) == 2  # one for each prompt
    assert (again.report().requests, again.report().replayed) == (1, 2)
    assert result.ok.tolist() == [False, True] and result.accuracy == 1.0  # it is not scored as wrong
    assert result.cut.tolist() == [is_cut, 0] and ("cut" in str(result)) == is_cut
    assert result.to_pandas()["cut"].tolist() == [is_cut, 0]
    assert (result.input_tokens.sum(), result.output_tokens.sum()) == (server.input_tokens, server.output_tokens)
    assert result.cost == pytest.approx(dollars(server), rel=1e-6)
    (kept,) = [call for call in ember.Journal(path).calls() if call.messages[0].content == PROMPT]
    assert (kept.finish, kept.output_tokens) == (finish, run.report().output_tokens)


def test_an_empty_text_is_an_answer_of_a_model_that_has_said_all():
    with serving(choice(message={"content": ""}), choice(message={"content": ""}, finish_reason=None)) as (server, _):
        assert str(MODEL("one")) == str(MODEL("two")) == ""
    assert len(server.requests) == 2


class Review(NamedTuple):
    stars: int


USELESS = {
    # llama.cpp's server (xllamacpp 2026.10.11549), under a schema.
    "cut": (
        '{"stars":59475',
        "length",
        "(char 14). It was cut at the most tokens that it was allowed; give it more max_tokens.",
    ),
    # `transformers serve` 5.24.0, which does not read `response_format`.
    "words": (
        "Five stars.",
        "stop",
        "If the service ignores JSON schemas without a word, say in the prompt which JSON",
    ),
    "another field": ('{"star": 5}', "stop", "the field `stars` is missing. Equal calls"),
}


@pytest.mark.parametrize("name", USELESS)
def test_an_answer_of_no_use_is_told_with_its_likely_cause(name):
    words, reason, cause = USELESS[name]
    fault = choice(message={"content": words}, finish_reason=reason)
    with warned(), serving(fault), pytest.raises(errors.MalformedResponseError) as caught:
        MODEL.structured(PROMPT, Review, repairs=0)
    assert cause in str(caught.value) and words not in str(caught.value)


def test_a_choice_that_was_cut_is_told_as_cut():
    fault = choice(message={"content": "The answer"}, finish_reason="length")
    with warned(), serving(fault), pytest.raises(errors.MalformedResponseError, match="it was cut, so give more max_t"):
        MODEL.choose(PROMPT, ["yes", "no"])


# -- failures inside an answer ---------------------------------------------------------------------------------------

CUT_OFF = {"content": "The ans"}
BROKEN = {
    "an error as the reason": choice(message=CUT_OFF, finish_reason="error"),
    "an error in the choice": choice(message=CUT_OFF, finish_reason="error", error={"code": 502, "message": "gone"}),
    "an error without a reason": choice(message=CUT_OFF, finish_reason=None, error={"message": "gone"}),
    "an error beside a stop": choice(message=CUT_OFF, finish_reason="stop", error="gone"),
    "an error beside the choices": Fault(
        edit=lambda c: {**choice(message=CUT_OFF, finish_reason=None).edit(c), "error": {"message": "gone"}}
    ),
    "an error without choices": whole(choices=[], error={"message": "gone"}),
    "no choices": whole(choices=[]),
    "choices that are null": whole(choices=None),
    "no message": whole(choices=[{"finish_reason": "stop"}]),
    "another form": choice(message={"content": ["a", "list"]}),
    "nothing, and no reason": choice(message={"content": None}, finish_reason=None),
    "half of the JSON": Fault(edit=lambda c: json.dumps({"usage": c["usage"], **c})[:-1]),
    "a stream": Fault(edit=lambda c: f"data: {json.dumps({**c, 'choices': []})}\n\ndata: [DONE]\n\n"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_billed_without_an_answer_is_counted_and_tried_again(name):
    with serving(*[BROKEN[name]] * 5) as (server, run):
        answer, usage = ember.metered(MODEL)(PROMPT)
        assert str(answer) == "391"
        assert_same_books(run, server)
    report = run.report()
    assert (report.requests, report.retries, report.failed, report.lost) == (6, 5, 5, 0)
    assert len(server.requests) == 6
    assert (int(usage.input_tokens), int(usage.output_tokens)) == (server.input_tokens, server.output_tokens)
    assert float(usage.cost) == pytest.approx(dollars(server), rel=1e-6)


def test_what_the_service_said_of_its_failure_is_told():
    with serving(BROKEN["an error in the choice"], retry=ember.Retry(1)), pytest.raises(errors.ServerError) as caught:
        MODEL(PROMPT)
    assert str(caught.value) == "openai/m: the service failed while it answered: gone"


@pytest.mark.parametrize("error", [None, {}, "", {"message": "", "code": ""}])
def test_an_error_that_says_nothing_is_none(error):
    with serving(Fault(edit=lambda c: {**choice(error=error).edit(c), "error": error})) as (server, _):
        assert str(MODEL(PROMPT)) == "391"
    assert len(server.requests) == 1


LOST = {
    "late": Fault(delay=60.0),
    "late in the body": Fault(drip=60.0),
    "reset": Fault(reset=True),
    "half of the body": Fault(truncate=True),
    "malformed, without a usage": Fault(body='{"choices": []}'),
    "an error in the choice, without a usage": Fault(
        body='{"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]}'
    ),
    "a usage of nulls": whole(choices=[], usage={"prompt_tokens": None, "completion_tokens": None}),
}


@pytest.mark.parametrize("budget", [1.0, None])
@pytest.mark.parametrize("name", LOST)
def test_an_answer_that_is_lost_is_possibly_billed(name, budget):
    settings = {"timeout": 0.1 if "late" in name else 10.0, "budget_usd": budget}
    with serving(LOST[name], **settings) as (server, run):
        worst = run.pricing.worst(request_of(MODEL))
        assert str(MODEL(PROMPT)) == "391"
        report, funds = run.report(), run.budget
    assert (report.requests, report.failed, report.lost, len(server.requests)) == (2, 1, 1, 2)
    assert report.lost_usd == pytest.approx(worst) and report.lost_usd >= report.cost_usd > 0
    assert funds.lost == pytest.approx(worst) and funds.spent - funds.lost == pytest.approx(report.cost_usd)
    assert f"${worst:,.6f}" in str(report)


def request_of(llm):
    return ember.providers.base.Request(
        "openai", "m", (ember.providers.base.Message("user", PROMPT),), {"max_tokens": 50}
    )


def test_refusals_of_the_service_cost_nothing():
    with serving(*(Fault(status=status) for status in (429, 500, 503))) as (server, run):
        assert str(MODEL(PROMPT)) == "391"
        assert_same_books(run, server)
    assert (run.report().lost, run.report().failed) == (0, 3)


# -- the forms of answers --------------------------------------------------------------------------------------------

LIST = [{"type": "text", "text": "3"}, {"type": "text", "text": "91"}]
TOKENS = [{"token": "391", "logprob": -0.5, "top_logprobs": [{"token": "391", "logprob": -0.5}]}]
SHAPES = {
    "parts": (choice(message={"content": LIST}), {}),
    "parts of no type": (choice(message={"content": [{"text": "391"}]}), {}),
    "parts for output": (choice(message={"content": [{"type": "output_text", "text": "391"}]}), {}),
    "a part that is reasoning": (
        choice(message={"content": [{"type": "reasoning", "text": "hm"}, *LIST]}),
        {"reasoning": "hm"},
    ),
    "a part that is thinking": (
        choice(message={"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, *LIST]}),
        {"reasoning": "hm"},
    ),
    "a part that is no text": (choice(message={"content": [*LIST, {"type": "image_url", "image_url": {}}]}), {}),
    "reasoning_content": (choice(message={"reasoning_content": "hm"}), {"reasoning": "hm"}),
    "reasoning": (choice(message={"reasoning": "hm"}), {"reasoning": "hm"}),
    "empty reasoning": (choice(message={"reasoning_content": "", "reasoning": None, "refusal": ""}), {}),
    "half a character in the reasoning": (choice(message={"reasoning": "a\ud83d"}), {"reasoning": "a\ufffd"}),
    "bytes that are no UTF-8": (
        Fault(edit=lambda c: json.dumps(c).encode().replace(b'"refusal": null', b'"reasoning": "\xff"')),
        {"reasoning": "\ufffd"},
    ),
    "no log-probability": (choice(logprobs={"content": [{}]}), {"logprob": math.nan}),
    "log-probabilities of another form": (choice(logprobs={"content": "?"}), {"logprob": math.nan}),
    "-Infinity": (choice(logprobs={"content": [{**TOKENS[0], "logprob": -math.inf}]}), {"logprob": -math.inf}),
    "NaN": (choice(logprobs={"content": [{**TOKENS[0], "logprob": math.nan}]}), {"logprob": math.nan}),
    "null as a log-probability": (choice(logprobs={"content": [{**TOKENS[0], "logprob": None}]}), {}),
    "numbers in quotes": (whole(usage={"prompt_tokens": "7", "completion_tokens": "5"}), {"input_tokens": 7}),
    "numbers with a point": (whole(usage={"prompt_tokens": 7.0, "completion_tokens": 5.0}), {"input_tokens": 7}),
    "an id that is a number": (whole(id=7, system_fingerprint=["x"], service_tier=1), {}),
    "a usage of another form": (whole(usage={"prompt_tokens_details": "none"}), {"cached_tokens": 0}),
    "a reason of another form": (choice(finish_reason={"type": "stop"}), {"finish": Finish.OTHER}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_is_read_whatever_its_form(name):
    fault, told = SHAPES[name]
    with serving(fault) as (server, run):
        answer = MODEL.complete(PROMPT)
    assert str(answer.text) == "391"
    assert len(server.requests) == 1 and run.report().failed == 0
    for field, value in {"reasoning": "", **told}.items():
        found = getattr(answer, field)
        assert str(found) == value if isinstance(value, str) else np.testing.assert_equal(found.item(), value) is None


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
@pytest.mark.parametrize(("half", "read"), [("a \ud83d b", "a \ufffd b"), ("\ude00", "\ufffd"), ("\ud83d\ude00", "😀")])
def test_half_a_character_is_one_request_and_a_mark(half, read, tmp_path):
    with serving(choice(message={"content": half}), journal=tmp_path / "journal.db") as (server, run):
        assert str(MODEL(PROMPT)) == str(MODEL(PROMPT)) == read
        assert run.calls()[0].answer == read
    assert len(server.requests) == 1


def test_a_body_with_a_mark_before_it_is_read():
    with serving(Fault(edit=lambda c: "\ufeff" + json.dumps(c))) as (server, _):
        assert str(MODEL(PROMPT)) == "391"
    assert len(server.requests) == 1


# -- the tokens of a text among others -------------------------------------------------------------------------------


def token(words, logprob=-0.1, top=()):
    alternatives = [{"token": t, "logprob": math.log(p)} for t, p in top]
    return {"token": words, "logprob": logprob, "bytes": list(words.encode()), "top_logprobs": alternatives}


SURE, UNSURE = [("B", 0.98), ("A", 0.015)], [("A", 0.7), ("B", 0.3)]
THOUGHTS = [token("A"), token(" or"), token(" B", top=SURE), token("?"), token("</think>"), token("\n\n")]
LISTED = {
    "reasoning": [*THOUGHTS, token("B", top=UNSURE), token("<|im_end|>", -3.0)],
    "reasoning that ends alike": [*THOUGHTS, token("B", top=SURE), token("\n"), token("B", top=UNSURE), token("")],
    "an end with the letter": [*THOUGHTS, token("B", top=UNSURE), token("<|B|>", -3.0)],
    "white space before": [*THOUGHTS, token(" B", top=UNSURE), token("</s>", -3.0)],
    "the answer alone": [token("B", top=UNSURE)],
}


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("content", ["B", "B\n"])
def test_only_the_tokens_of_the_text_count(name, content):
    message = {"content": content, "reasoning_content": "A or B?"}
    fault = choice(message=message, logprobs={"content": LISTED[name]})
    with serving(fault, fault) as (server, _):
        found = MODEL.choose("Which?", ["one", "two"])
        answer = MODEL.complete("Which?")
    assert int(found.index) == 1
    np.testing.assert_allclose(found.probs, [0.7, 0.3], rtol=1e-6)
    assert answer.logprob == pytest.approx(-0.1)
    assert len(server.requests) == 2


def test_tokens_that_are_all_reasoning_say_nothing_of_the_text():
    fault = choice(message={"content": "C", "reasoning": "A or B?"}, logprobs={"content": THOUGHTS})
    with serving(fault):
        assert math.isnan(MODEL.complete("Which?").logprob)


def test_a_text_of_several_tokens_is_found_whole():
    tokens = [token("Paris"), token("</think>"), token("\n"), token("Par", -1.0), token("is", -2.0), token("!", -4.0)]
    message = {"content": "\nParis!", "reasoning": "Paris"}
    with serving(choice(message=message, logprobs={"content": [*tokens, token("", -9.0)]})):
        assert MODEL.complete("Where?").logprob == pytest.approx(-7.1)


# -- what is said about an answer ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ember_jax.errors.RepeatedSampleWarning")
def test_the_services_own_details_are_kept(tmp_path):
    fields = {
        "id": "chatcmpl-abc",
        "model": "m-2026-01-31",
        "system_fingerprint": "fp_1",
        "service_tier": "flex",
        "usage": {
            "prompt_tokens": 1000,
            "completion_tokens": 500,
            "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 200},
            "completion_tokens_details": {"reasoning_tokens": 400},
        },
    }
    unnamed = Fault(edit=whole(**fields).edit, headers={"x-request-id": ""})
    path = tmp_path / "journal.db"
    with serving(unnamed, journal=path) as (server, run):
        answer, again = MODEL.complete(PROMPT), MODEL.complete(PROMPT)
        calls = [*run.calls(), *ember.Journal(path).calls()]
    assert len(server.requests) == 1 and len(calls) == 3
    for told in (answer, again):
        assert (int(told.cached_tokens), int(told.reasoning_tokens)) == (600, 400)
    for call in calls:
        assert (call.request_id, call.answered_by) == ("chatcmpl-abc", "m-2026-01-31")
        assert (call.service_tier, call.fingerprint) == ("flex", "fp_1")
        counts = (call.input_tokens, call.output_tokens, call.cached_tokens, call.cache_write_tokens)
        assert (*counts, call.reasoning_tokens) == (1000, 500, 600, 200, 400)
        assert "600 cached, 200 written to a cache, 400 reasoning" in str(call)


def test_the_headers_id_comes_before_the_bodys():
    with serving() as (_, run):
        MODEL(PROMPT)
    assert run.calls()[0].request_id == "req-0"


@pytest.mark.parametrize(
    ("asked", "answered", "is_other"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06", False),
        ("meta/llama-3", "LLaMA-3", False),
        ("mistral-small-latest", "mistral-small-2506", False),
        ("tiny", "/models/tiny.gguf", False),
        ("gpt-4", "gpt-4-0613", False),
        ("gpt-4o", "gpt-4o-mini", True),
        ("gpt-4", "gpt-4.1", True),
        ("claude-sonnet-4", "claude-sonnet-4-5", True),
        ("large", "small", True),
    ],
)
def test_another_model_than_the_one_asked_warns_once(asked, answered, is_other):
    fault = whole(model=answered)
    with warned() as found, serving(*[fault] * 4):
        llm = ember.LLM(f"openai/{asked}", max_tokens=5)
        jax.vmap(llm)(ember.text(["a", "b", "c"]))
        llm("d")
    told = [str(w.message) for w in found if w.category is OtherModelWarning]
    assert len(told) == is_other and all(answered in words and f"openai/{asked}" in words for words in told)


@pytest.mark.parametrize(
    ("fault", "cost"),
    [
        (Fault(headers={"x-litellm-response-cost": "0.0125"}), 0.0125),
        (whole(usage={"cost": 0.25}), 0.25),
        (Fault(edit=whole(usage={"cost": 0}).edit, headers={"x-litellm-response-cost": "0.5"}), 0.0),
        (Fault(headers={"x-litellm-response-cost": "None"}), math.nan),
        (Fault(headers={"x-litellm-response-cost": "-1"}), math.nan),
        (whole(usage={"cost": math.nan}), math.nan),
    ],
)
def test_what_the_service_says_it_costs_counts_where_there_is_no_price(fault, cost):
    with warned() as found, serving(fault, prices={}, budget_usd=None) as (_, run):
        answer = ember.LLM("openai/no-such-model")(PROMPT)
    assert str(answer) == "391"
    np.testing.assert_equal(run.report().cost_usd, cost)
    assert any(w.category is UnknownPriceWarning for w in found) == math.isnan(cost)


def test_a_price_that_is_known_comes_before_what_the_service_says():
    fault = Fault(edit=whole(usage={"cost": 7}).edit, headers={"x-litellm-response-cost": "9"})
    with serving(fault) as (server, run):
        MODEL(PROMPT)
        assert_same_books(run, server)


# -- samples ---------------------------------------------------------------------------------------------------------


def sampled(count, answer=None, **settings):
    """The server's requests for so many keys of one question, and the warnings."""
    keys = jax.random.split(jax.random.key(0), count)
    faults = None if answer is None else (lambda number: choice(message={"content": answer(number)}))
    with ChatServer(faults=faults) as server, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with ember.session(
            providers={"openai": OpenAI(server.base_url, api_key="")}, journal=None, prices={"openai": PRICE}
        ):
            llm = ember.LLM("openai/m", **settings)
            jax.vmap(ember.jit(lambda key: llm(PROMPT, key)))(keys)
        return [r.body for r in server.requests], [w for w in found if w.category is errors.SameAnswerWarning]


def test_each_key_has_a_seed_of_its_own_and_always_the_same_one():
    first, _ = sampled(8, seed=7)
    again, _ = sampled(8, seed=7)
    other, _ = sampled(8, seed=8)
    seeds = [sorted(body["seed"] for body in bodies) for bodies in (first, again, other)]
    assert len(set(seeds[0])) == 8 and seeds[0] == seeds[1] and not set(seeds[0]) & set(seeds[2])
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds[0])
    assert all("seed" not in body for body in sampled(2)[0])


def test_a_seed_without_a_key_is_sent_as_it_is():
    with (
        ChatServer() as server,
        ember.session(providers={"openai": OpenAI(server.base_url, api_key="")}, prices={"openai": PRICE}),
    ):
        ember.LLM("openai/m", seed=7)(PROMPT)
        assert [r.body["seed"] for r in server.requests] == [7]


LONG = "The answer to this question is the one that I have always given to it, word for word, as you know. "


@pytest.mark.parametrize(
    ("answer", "count", "is_told"),
    [
        (lambda number: LONG, 8, True),
        (lambda number: LONG, 3, False),
        (lambda number: LONG + str(number), 8, False),
        (lambda number: LONG + str(number == 1), 8, False),
        (lambda number: "391", 8, False),
    ],
)
def test_a_service_that_draws_no_samples_is_told_of_once(answer, count, is_told):
    _, told = sampled(count, answer)
    assert len(told) == is_told
    if told:
        assert "openai/m gives 4 keys the same long answer" in str(told[0].message)
