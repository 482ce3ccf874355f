"""From an answer to the call that gave it, in a session and in a journal's file; and asking only that again."""

import asyncio
import contextlib
import json
import math
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import ember_jax as ember
from ember_jax import _cli, errors, testing
from ember_jax._runtime.call_log import Log
from ember_jax._runtime.events import Attempt, CallEnded
from ember_jax._runtime.journal.memory import MemoryJournal
from ember_jax._runtime.retry import Retry
from ember_jax.providers.base import Message, Provider, Request, Response
from ember_jax.providers.openai import OpenAI


class Scripted(Provider):
    """Answers in capitals, and counts what it is asked; what `errors` holds comes first, by prompt."""

    def __init__(self, errors=None, answer=str.upper):
        self.errors = errors or {}
        self.answer = answer
        self.asked = []

    def check(self, model):
        pass

    async def complete(self, request: Request) -> Response:
        prompt = request.messages[-1].content
        self.asked.append(prompt)
        await asyncio.sleep(0)  # so that equal calls meet
        if self.errors.get(prompt):
            raise self.errors[prompt].pop(0)
        return Response(self.answer(prompt), 1, 2, 0.5, -0.25, "m-2026", f"req-{len(self.asked)}")

    async def close(self):
        pass


LLM = ember.LLM("openai/m", system="Shout.", temperature=0)


@ember.operator
def inner(word: ember.Text) -> ember.Text:
    return LLM(word + "!")


@ember.operator
def outer(word: ember.Text) -> ember.Text:
    return inner(word) + LLM(word)


@pytest.fixture
def mine():
    return Scripted()


@pytest.fixture(params=["memory", "file", "none"])
def run(request, mine, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBER_JAX_JOURNAL", "memory")
    journal = {"memory": {}, "file": {"journal": tmp_path / "run.db"}, "none": {"journal": None}}[request.param]
    with ember.session(providers={"openai": mine}, retry=Retry(first=0, longest=0), **journal) as run:
        yield run


def sweep(words):
    return jax.block_until_ready(jax.vmap(outer)(ember.text(words)))


def prompts(calls):
    return sorted(call.messages[-1].content for call in calls)


# -- who asks --------------------------------------------------------------------------------------------------------


def test_a_vmap_around_a_call_is_no_name(run):
    def each(letter):
        return jax.vmap(lambda number: LLM(ember.format("{l}{n}", l=letter, n=number)))(jnp.arange(2))

    @ember.operator
    def grid(letters: ember.Text["n"]) -> ember.Text["n 2"]:
        return jax.vmap(each)(letters)

    jax.block_until_ready(jax.jit(grid)(ember.text(["a", "b"])))
    assert {call.scope for call in run.calls()} == {"grid"} and len(run.calls()) == 4


# -- finding ---------------------------------------------------------------------------------------------------------


def test_an_answer_leads_to_the_prompt_that_was_sent_and_to_who_sent_it(run):
    answer = jax.vmap(inner)(ember.text(["a", "b"]))
    for asked in (answer[1], "B!"):
        (call,) = run.calls(answer=asked)
        assert call.messages == (Message("system", "Shout."), Message("user", "b!"))
        assert (call.lane, call.scope, call.model, call.parameters) == ((1,), "inner", "openai/m", {"temperature": 0})
        assert (call.answer, call.how, call.error, call.attempts) == ("B!", "answered", "", 1)
        assert (call.input_tokens, call.output_tokens, call.cost, call.logprob) == (1, 2, 0.5, -0.25)
        assert (call.answered_by, call.request_id) in {("m-2026", "req-1"), ("m-2026", "req-2")}
        ((began, ended, error),) = call.tried
        assert call.began <= began <= ended <= call.ended and error == ""
    assert prompts(run.calls(answer=answer)) == ["a!", "b!"]
    assert not run.calls(answer="b!") and not run.calls(answer="B")


def test_calls_are_found_by_the_lane_of_nested_vmaps_outermost_first(run):
    words = [[f"{i}{j}" for j in range(3)] for i in range(2)]
    jax.block_until_ready(jax.vmap(jax.vmap(inner))(ember.text(words)))
    assert prompts(run.calls(lane=(1, 2))) == ["12!"]
    assert prompts(run.calls(lane=1)) == prompts(run.calls(lane=(np.int32(1),))) == ["10!", "11!", "12!"]
    assert {call.lane for call in run.calls()} == {(i, j) for i in range(2) for j in range(3)}
    assert not run.calls(lane=2) and not run.calls(lane=(0, 3))


def test_a_call_that_is_made_once_for_all_lanes_is_each_lanes(run):
    @ember.operator
    def with_plan(word: ember.Text) -> ember.Text:
        return LLM("plan") + LLM(word)

    jax.block_until_ready(jax.vmap(with_plan)(ember.text(["a", "b", "c"])))
    for i, word in enumerate("abc"):
        assert prompts(run.calls(lane=i)) == [word, "plan"]
    (plan,) = run.calls(answer="PLAN")
    assert (plan.lane, plan.stands_for) == ((), 3)


def test_calls_are_found_by_any_operator_they_stand_in(run):
    sweep(["a", "b"])
    inside = ["a!", "b!"]
    assert prompts(run.calls(op="inner")) == prompts(run.calls(op="outer/inner")) == inside
    assert prompts(run.calls(op="outer")) == ["a", "a!", "b", "b!"]
    assert prompts(run.calls(op="inner", lane=1)) == ["b!"]
    assert not run.calls(op="inn") and not run.calls(op="inner/outer")


def test_lanes_that_shared_a_request_all_find_it(run, mine):
    jax.block_until_ready(jax.vmap(inner)(ember.text(["a", "b", "a", "a"])))
    assert sorted(mine.asked) == ["a!", "b!"]
    assert sorted(call.lane for call in run.calls(answer="A!")) == [(0,), (2,), (3,)]
    assert sorted(call.how for call in run.calls(answer="A!")) == ["answered", "merged", "merged"]
    assert [run.calls(lane=i)[0].answer for i in range(4)] == ["A!", "B!", "A!", "A!"]


def test_an_answer_that_several_calls_gave_finds_them_all():
    with ember.session(providers={"openai": Scripted(answer=lambda prompt: "yes")}, journal=None) as run:
        jax.block_until_ready(jax.vmap(inner)(ember.text(["a", "b"])))
        assert prompts(run.calls(answer="yes")) == ["a!", "b!"]


def test_replayed_calls_are_found_with_what_they_replayed(mine, tmp_path):
    for how, attempts in (("answered", 1), ("replayed", 0)):
        with ember.session(providers={"openai": mine}, journal=tmp_path / "run.db") as run:
            str(inner("a"))
            (call,) = run.calls(answer="A!")
        assert (call.how, call.attempts, call.request_id, call.cost) == (how, attempts, "req-1", 0.5)


def test_failed_calls_say_where_they_stand_what_was_tried_and_why(run, mine):
    weak = [errors.ServerError("weak 1"), errors.ServerError("weak 2")]
    mine.errors = {"b!": [errors.AuthenticationError("no key")], "c!": weak}
    with pytest.raises(Exception, match="1 of 3 lanes failed"):
        jax.block_until_ready(jax.vmap(inner)(ember.text(["a", "b", "c"])))
    (call,) = run.calls(failed=True)
    assert (call.lane, call.scope, call.how, call.answer) == ((1,), "inner", "failed", None)
    assert call.error == call.tried[0].error == "AuthenticationError: no key"
    assert prompts([call]) == ["b!"] and math.isnan(call.cost)
    (other,) = run.calls(lane=2, failed=False)
    assert [t.error for t in other.tried] == ["ServerError: weak 1", "ServerError: weak 2", ""]
    assert prompts(run.calls(failed=False)) == ["a!", "c!"]


def test_simulated_models_choices_and_structured_answers_are_found_too():
    llm = ember.LLM("sim/small")
    with ember.session(journal=None) as run:
        llm.choose("Is it?", ["yes", "no"])
        str(llm("What is 1 + 1?"))
        assert [call.model for call in run.calls()] == ["sim/small"] * 2
        assert "A. yes" in run.calls()[0].messages[-1].content
        assert run.calls(answer=run.calls()[1].answer)


@pytest.mark.parametrize("wrong", [{"lane": "one"}, {"lane": 1.5}, {"answer": 3}])
def test_what_cannot_be_looked_for_is_an_error_that_says_how(run, wrong, tmp_path):
    for calls in (run.calls, ember.Journal(tmp_path / "none.db").calls):
        with pytest.raises(TypeError, match=rf"calls\({next(iter(wrong))}="):
            calls(**wrong)


# -- showing ---------------------------------------------------------------------------------------------------------


def test_calls_are_a_sequence_that_shows_itself_in_full_only_when_asked(run, mine, capsys):
    mine.errors = {"a!": [errors.ServerError("busy")]}
    sweep(["a", "b"])
    calls = run.calls()
    assert len(calls) == 4 and [c.digest for c in calls] == [calls[i].digest for i in range(4)]
    assert isinstance(calls[1:3], type(calls)) and [c.digest for c in calls[1:3]] == calls.digests()[1:3]
    with pytest.raises(IndexError):
        calls[4]
    assert repr(calls) == "<Calls: 4, 4 answered, 4 openai/m>"
    assert repr(run.calls(lane=5)) == "<Calls: 0>"
    assert not any(words in repr(calls) + repr(calls[0]) for words in ("Shout", "a!", "A!"))
    calls.show()
    out = capsys.readouterr().out
    assert out == f"{calls}\n"
    for shown in (
        "outer/inner",
        "[1]",
        "-- system\nShout.",
        "-- user\nb!",
        "-- answer\nB!",
        "ServerError: busy",
        "req-",
    ):
        assert shown in out
    calls.show(1)
    assert "3 more: show(4)" in capsys.readouterr().out


def test_a_table_has_a_row_for_each_call(run):
    sweep(["a", "b"])
    frame = run.calls().to_pandas()
    assert sorted(frame["answer"]) == ["A", "A!", "B", "B!"] and set(frame["lane"]) == {(0,), (1,)}
    assert frame["cost_usd"].sum() == 2.0 and len(frame.groupby(["scope", "lane"])) == 4
    assert list(run.calls(lane=9).to_pandas().columns) == list(frame.columns)
    assert isinstance(frame, pandas.DataFrame)


def test_no_credential_is_in_what_is_shown(tmp_path):
    key, path = "sk-marked-0123456789", tmp_path / "run.db"
    with testing.ChatServer(api_key=key) as server:
        for given, how in ((key, "answered"), (key + "-wrong", "failed")):
            client = OpenAI(base_url=server.base_url, api_key=given)
            with ember.session(providers={"openai": client}, journal=path) as run:
                with contextlib.suppress(errors.AuthenticationError):
                    ember.LLM("openai/m")(f"What is 1 + {len(given)}?")
                (call,) = run.calls()
            assert call.how == how
            assert "marked" not in f"{run.calls()}{call!r}{call.row()}"
    assert "marked" not in str(ember.Journal(path).calls())


# -- memory ----------------------------------------------------------------------------------------------------------


def ended(i):
    request = Request("mine", "m", (Message("user", str(i)),), {"response_format": {"schema": "x" * 2000}})
    response = Response(str(-i), 1, 2, 0.5, request_id=f"req-{i:08}")
    return CallEnded(
        i.to_bytes(32), request, (i,), "outer/inner", "answered", i, i + 1, response, None, [Attempt(i, i + 0.5)], 1
    )


def test_a_call_takes_some_hundred_bytes_and_the_oldest_make_room():
    count = 5000
    for i in range(count):  # their words are known from now on
        Log().note(ended(i))
    events = map(ended, range(2 * count))
    tracemalloc.start()
    try:
        log = Log(count)
        for _ in range(count):
            log.note(next(events))
        one, _ = tracemalloc.get_traced_memory()
        assert one / count < 600
    finally:
        tracemalloc.stop()
    assert "no longer" not in repr(log.calls())
    for event in events:
        log.note(event)
    calls = log.calls()
    assert len(calls) == count and [calls[0].lane, calls[-1].lane] == [(count,), (2 * count - 1,)]
    for told in (repr(calls), str(calls)):
        assert "5,000 earlier calls of the session are no longer remembered" in told
    assert len(log.calls(lane=count + 7)) == 1 and not log.calls(lane=7)


def test_what_a_provider_may_say_is_noted_whatever_it_is():
    odd = Response("half \ud800", 2**80, np.int64(2), np.float64(0.5), model="\ud800", request_id="é\0")
    request = Request("mine", "m", (Message("user", "a"),), {"stop": "\ud800", "n": 2**70})
    log = Log()
    log.note(CallEnded(bytes(32), request, (), "", "answered", 0.0, 1.0, odd, None, (), 1))
    (call,) = log.calls()
    assert (call.input_tokens, call.output_tokens, call.cost) == (2**80, 2, 0.5)
    assert (call.answer, call.answered_by, call.request_id) == ("half ?", "\ud800", "é\0")
    assert call.parameters == {"stop": "\ud800", "n": 2**70}


# -- forgetting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["memory", "file"])
def test_exactly_what_is_forgotten_is_asked_again(mine, tmp_path, monkeypatch, journal):
    monkeypatch.setenv("EMBER_JAX_JOURNAL", "memory")
    named = {} if journal == "memory" else {"journal": tmp_path / "run.db"}
    with ember.session(providers={"openai": mine}, **named) as run:
        words = ["a", "b", "c", "a"]
        sweep(words)
        for forget, again in (
            (lambda: run.calls(op="inner", lane=1), ["b!"]),
            (lambda: run.calls(answer="A"), ["a"]),
            (lambda: run.calls(lane=2), ["c", "c!"]),
            (lambda: run.calls(lane=2)[0], None),
            (lambda: [call for call in run.calls() if call.answer in ("A!", "B!")], ["a!", "b!"]),
            (lambda: run.calls(answer="nowhere"), []),
        ):
            calls, mine.asked = forget(), []
            again = prompts([calls]) if again is None else again
            assert run.forget(calls) == len(again)
            assert run.forget(calls) == 0
            sweep(words)
            assert sorted(mine.asked) == again
        with pytest.raises(TypeError, match=r"forget\(calls\) takes what"):
            run.forget(["b!"])


def test_what_was_made_of_a_forgotten_answer_is_made_again(mine):
    made = []
    fn = ember.host(lambda word: made.append(str(LLM(word))) or made[-1], out=ember.Text)
    whole = ember.jit(jax.checkpoint(fn))
    with ember.session(providers={"openai": mine}, journal=MemoryJournal()) as run:
        for again in (0, 0, 1):
            if again:
                run.forget(run.calls(answer="A"))
            assert str(whole(ember.text("a"))) == "A"
        assert (mine.asked, made) == (["a"] * 2, ["A"] * 2)


def test_a_forgotten_call_is_still_shown_and_its_words_leave_the_file(mine, tmp_path):
    path = tmp_path / "run.db"
    with ember.session(providers={"openai": mine}, journal=path) as run:
        sweep(["first", "second"])
        calls = run.calls(lane=0)
        kept = ember.Journal(path).calls(lane=0)
        assert run.forget(calls) == 2
        assert "-- answer\nFIRST!" in str(calls)
        with pytest.raises(IndexError, match="deleted"):
            kept[0]
    ember.Journal(path).compact()
    assert b"first" not in path.read_bytes() and b"second" in path.read_bytes()
    assert b"Shout." in path.read_bytes()  # which others use
    assert ember.Journal(path).stats().texts == 3


# -- in the file -----------------------------------------------------------------------------------------------------


def test_the_file_knows_in_a_new_process_who_asked_what(tmp_path, mine):
    path = tmp_path / "run.db"
    with ember.session(providers={"openai": mine}, journal=path) as run:
        words = [[f"{i}{j}" for j in range(12)] for i in range(2)]
        jax.block_until_ready(jax.vmap(jax.vmap(outer))(ember.text(words)))
        here = run.calls(lane=(1, 1), op="inner")[0]
    script = """
import sys, ember_jax as ember
journal = ember.Journal(sys.argv[1])
print(*(len(journal.calls(**asked)) for asked in (
    {}, {"lane": 1}, {"lane": (1, 1)}, {"lane": (1, 12)}, {"op": "inner"}, {"op": "outer/inner", "lane": (1, 1)},
    {"answer": "11!"}, {"answer": ember.text(["11!", "11", "no"])}, {"model": "openai/m"}, {"model": "openai"},
    {"contains": "Shout"}, {"contains": "11!"}, {"since": "2020-01-01"}, {"before": "2020-01-01"},
)))
(call,) = journal.calls(op="inner", lane=(1, 1))
print(call)
print(journal.forget(journal.calls(lane=(1, 1))))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    counts, *shown, forgotten = done.stdout.splitlines()
    assert list(map(int, counts.split())) == [48, 24, 2, 0, 24, 1, 1, 2, 48, 0, 48, 3, 48, 0]
    assert "-- user" in shown and here.digest.hex() in "\n".join(shown) and forgotten == "2"
    mine.asked = []
    with ember.session(providers={"openai": mine}, journal=path):
        jax.block_until_ready(jax.vmap(jax.vmap(outer))(ember.text(words)))
    assert sorted(mine.asked) == ["11", "11!"]


def test_a_call_read_from_the_file_is_the_one_that_was_made(tmp_path, mine):
    path = tmp_path / "run.db"
    with ember.session(providers={"openai": mine}, journal=path) as run:
        sweep(["a"])
    for here, there in zip(run.calls(), ember.Journal(path).calls(), strict=True):
        different = {"tried", "began", "ended", "endpoint"}
        one, other = here.row(), there.row()
        assert {k: v for k, v in one.items() if k not in different} == {
            k: v for k, v in other.items() if k not in different
        }
        assert (there.began, there.ended) == here.tried[0][:2]


def test_the_command_line_lists_shows_and_forgets_by_who_asked(tmp_path, mine, capsys):
    path = tmp_path / "run.db"
    search = ember.host(str.upper, out=ember.Text, cache="search:v1")
    with ember.session(providers={"openai": mine}, journal=path):
        sweep(["a", "b"])
        str(ember.jit(search)(ember.text("c")))

    def command(*words):
        _cli.main(["journal", words[0], "--path", str(path), *words[1:]])
        return capsys.readouterr().out

    assert command("list", "--model", "host/search:v1").split()[-1] == "host/search:v1"
    lines = command("list", "--op", "inner", "--lane", "1").splitlines()
    assert len(lines) == 1 and "-- answer\nB!" in command("show", lines[0].split()[0])
    (line,) = map(json.loads, command("export", "--lane", "0", "--op", "inner").splitlines())
    assert (line["lane"], line["scope"], line["answer"]) == ([0], "outer/inner", "A!")
    with pytest.raises(SystemExit, match="say which"):
        command("forget")
    assert "1 calls would be deleted" in command("forget", "--op", "inner", "--lane", "1")
    assert "1 calls were deleted" in command("forget", "--digest", lines[0].split()[0], "--yes")
    assert len(command("list").splitlines()) == 4


def test_keyed_samples_are_told_apart(run):
    keys = jax.random.split(jax.random.key(0), 2)
    warm = LLM.replace(temperature=1)
    jax.block_until_ready(jax.vmap(lambda key: ember.jit(warm)("a", key))(keys))
    assert len({call.sample for call in run.calls(answer="A")}) == 2
