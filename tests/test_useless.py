"""Answers that are of no use: kept for audit, told as failed, and asked again by a rerun, within a bound."""

import asyncio
import contextlib
import json
import math
import sqlite3
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import _cli
from ember_jax._runtime import session as sessions
from ember_jax._runtime.journal.base import MOST_ANSWERS, Entry, all_digests, superseding
from ember_jax._runtime.journal.memory import MemoryJournal
from ember_jax.errors import CutAnswerWarning, MalformedResponseError, NoAnswerError, SweepError
from ember_jax.providers.base import Finish, Message, Request, Response
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer, Fault

PRICE = ember.Price(1000.0, 2000.0)
BAD, GOOD = '{"answer": "SECRET"}', '{"answer": 7}'
JOURNALS = {"memory": lambda folder: MemoryJournal(), "file": lambda folder: ember.Journal(folder / "run.db")}


class Number(NamedTuple):
    answer: float


class Service:
    """A server that gives answers one after another, and its own books of tokens and dollars."""

    def __init__(self, *answers):
        self._answers = answers
        self._server = ChatServer(faults=self._fault)
        self.input_tokens = self.output_tokens = 0

    def _fault(self, number):
        content = self._answers[min(number, len(self._answers) - 1)]
        read, written = 10 + number, 5 + number
        self.input_tokens += read
        self.output_tokens += written
        message, reason = ({"content": None}, "length") if content is None else ({"content": content}, "stop")
        choice = {"message": message, "finish_reason": reason}
        usage = {"prompt_tokens": read, "completion_tokens": written}
        return Fault(body=json.dumps({"choices": [choice], "usage": usage}))

    @property
    def requests(self):
        return len(self._server.requests)

    @property
    def cost(self):
        return self.input_tokens * 1e-3 + self.output_tokens * 2e-3

    def __enter__(self):
        self._server.__enter__()
        return self

    def __exit__(self, *error):
        self._server.__exit__(*error)

    def session(self, journal, **settings):
        provider = OpenAI(self._server.base_url, api_key="")
        return ember.session(providers={"local": provider}, prices={"local": PRICE}, journal=journal, **settings)


@pytest.fixture(params=JOURNALS)
def journal(request, tmp_path):
    made = JOURNALS[request.param](tmp_path)
    yield made
    made.close()


def ask(prompt="a", **settings):
    return float(ember.LLM("local/m", **settings).structured(prompt, Number, repairs=0).answer)


def fails(prompt="a"):
    with pytest.raises(MalformedResponseError, match="the field `answer` is a string, not a number") as caught:
        ask(prompt)
    assert "SECRET" not in str(caught.value)


# -- in a session ----------------------------------------------------------------------------------------------------


def test_it_is_a_failed_call_with_its_answer_tokens_and_cost(journal):
    with Service(BAD) as service, service.session(journal) as run:
        fails()
        (call,) = run.calls(failed=True)
        report = run.report()
        assert (report.input_tokens, report.output_tokens) == (service.input_tokens, service.output_tokens)
        assert report.cost_usd == run.budget.spent == call.cost == pytest.approx(service.cost)
    assert (call.how, call.answer, call.input_tokens, call.output_tokens) == ("failed", BAD, 10, 5)
    assert call.error.startswith("MalformedResponseError: local/m: the answer is no Number: the field `answer`")
    assert len(call.tried) == 1 and call.tried[0].error == "" and "answer        " not in str(call)
    assert "\n-- answer\n" + BAD in str(call) and not run.calls(failed=False)


def test_equal_calls_of_its_session_share_the_failure_and_do_not_pay_again(journal):
    op = ember.operator(_asking)
    with Service(BAD) as service, service.session(journal) as run:
        fails()
        fails()
        with pytest.raises(SweepError, match="3 of 3 lanes failed"):
            jax.vmap(op)(ember.text(["a", "a", "a"]))
        assert (service.requests, run.report().requests) == (1, 1)
        assert len(run.calls(failed=True)) == 5
        assert run.report().cost_usd == pytest.approx(service.cost)


def _asking(prompt: ember.Text) -> Float[Array, ""]:
    return ember.LLM("local/m").structured(prompt, Number, repairs=0).answer


def test_only_the_failed_calls_are_asked_again(journal):
    op = ember.operator(_asking)
    with Service(GOOD, BAD, GOOD) as service:
        with service.session(journal), pytest.raises(SweepError, match="1 of 2 lanes failed"):
            jax.vmap(op)(ember.text(["a", "b"]))
        with service.session(journal) as run:
            np.testing.assert_array_equal(jax.vmap(op)(ember.text(["a", "b"])), [7, 7])
        assert (run.report().requests, run.report().replayed) == (1, 1) and service.requests == 3
        with service.session(journal) as run:
            np.testing.assert_array_equal(jax.vmap(op)(ember.text(["a", "b"])), [7, 7])
        assert (run.report().requests, run.report().replayed, run.report().cost_usd) == (0, 2, 0)


def test_a_choice_without_an_option_is_asked_again_too(journal):
    with Service("neither", "B") as service:
        with service.session(journal), pytest.raises(MalformedResponseError, match="names none of the options"):
            ember.LLM("local/m").choose("Which?", ["yes", "no"])
        with service.session(journal):
            assert int(ember.LLM("local/m").choose("Which?", ["yes", "no"]).index) == 1
    assert service.requests == 2


def test_there_is_a_bound_and_who_forgets_the_answers_asks_anew(journal):
    with Service(*[BAD] * MOST_ANSWERS, GOOD) as service:
        for sent in (1, 1, 1, 0, 0):
            with service.session(journal) as run:
                fails()
                fails()
            assert run.report().requests == sent
            (call, _) = run.calls(failed=True)
            assert call.answer == BAD and len(call.tried) == sent
        with service.session(journal) as run:
            fails()
            assert run.forget(run.calls(failed=True)) == MOST_ANSWERS
            assert ask() == 7
            assert run.report().requests == 1
        assert service.requests == MOST_ANSWERS + 1


def test_samples_are_counted_by_their_keys(journal):
    llm = lambda key: ember.LLM("local/m").structured("a", Number, key, repairs=0)
    with Service(BAD, BAD, GOOD) as service:
        for sent in (2, 2):
            with service.session(journal) as run, contextlib.suppress(MalformedResponseError):
                for key in jax.random.split(jax.random.key(0), 2):
                    with contextlib.suppress(MalformedResponseError):
                        llm(key)
            assert run.report().requests == sent
    assert service.requests == 4


def test_without_a_journal_each_call_asks(tmp_path):
    with Service(BAD, BAD, GOOD) as service, service.session(None):
        fails()
        fails()
        assert ask() == 7 and service.requests == 3


def test_an_answer_without_a_text_is_failed_too_and_is_not_asked_again(journal):
    with Service(None) as service:
        for sent in (1, 0):
            with service.session(journal) as run:
                with pytest.warns(CutAnswerWarning), pytest.raises(NoAnswerError, match="5 tokens"):
                    ask()
                with pytest.raises(NoAnswerError):
                    ask()
            assert run.report().requests == sent
            assert [(call.finish, call.answer) for call in run.calls(failed=True)] == [(Finish.LENGTH, "")] * 2
        assert service.requests == 1


# -- in a journal's file ---------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.db"


def test_the_old_answer_is_kept_and_marked(path, capsys):
    with Service(BAD, BAD, GOOD) as service:
        for outcome in (fails, fails, ask):
            with service.session(path):
                outcome()
    kept = ember.Journal(path)
    first, second, last = kept.calls()
    assert [(c.answer, c.how, c.superseded) for c in (first, second, last)] == [
        (BAD, "failed", True),
        (BAD, "failed", True),
        (GOOD, "answered", False),
    ]
    assert [c.digest for c in (last, first, second)] == all_digests(last.digest)
    assert first.messages == last.messages and first.parameters == last.parameters
    assert "the field `answer` is a string" in first.error and last.error == ""
    assert sum(c.input_tokens for c in kept.calls()) == service.input_tokens
    assert math.fsum(c.cost for c in kept.calls()) == pytest.approx(service.cost)
    assert [c.digest for c in kept.calls(failed=True)] == [first.digest, second.digest]
    assert [c.digest for c in kept.calls(failed=False)] == [last.digest]
    assert kept.stats().calls == 3
    for asked, digests in (("yes", [first.digest, second.digest]), ("no", [last.digest])):
        _cli.main(["journal", "export", "--path", str(path), "--failed", asked])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [bytes.fromhex(line["digest"]) for line in lines] == digests
        assert {(line["how"], line["superseded"]) for line in lines} == {
            ("failed", True) if asked == "yes" else ("answered", False)
        }
    _cli.main(["journal", "show", "--path", str(path), first.digest.hex()])
    shown = capsys.readouterr().out
    assert "failed, asked again since" in shown and "the field `answer` is a string" in shown
    with pytest.raises(SystemExit):
        _cli.main(["journal", "list", "--path", str(path), "--failed", "maybe"])
    assert kept.forget(last) == 3 and kept.stats().calls == 0


def test_an_answer_that_was_kept_without_a_reason_is_asked_again(path):
    with Service(BAD, GOOD) as service:
        with service.session(path):
            fails()
        # As a file of version 2 is after its migration.
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("update calls set error = ''")
        assert not ember.Journal(path).calls(failed=True)
        with service.session(path):
            assert ask() == 7
    (call,) = ember.Journal(path).calls(failed=True)
    assert call.superseded and "the field `answer`" in call.error


def test_an_answer_that_can_be_read_by_now_is_read(path):
    with Service(GOOD) as service:
        for sent in (1, 0):
            with service.session(path) as run:
                assert ask() == 7
            assert run.report().requests == sent
            with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("update calls set error = 'an earlier version could not read it'")


# -- the contract of every journal -----------------------------------------------------------------------------------


def entry(answer, supersedes=None):
    request = Request("local", "m", (Message("user", "a"),))
    return request.digest(), Entry(request, Response(answer, cost=1.0, logprob=-1.0), supersedes=supersedes)


def on_loop(coroutine):
    return sessions.loop().submit(coroutine).result(60)


def test_an_answer_takes_the_place_of_the_one_that_it_supersedes(journal):
    digest, first = entry("one")
    on_loop(journal.put(digest, first))
    for i, words in enumerate(["two", "three"], 1):
        old = superseding(journal, digest, journal.get(digest)._replace(fault="why"))
        assert old is not None and old.digest == all_digests(digest)[i]
        _, new = entry(words, old)
        assert on_loop(journal.put(digest, new)) == new.response
        assert journal.get(old.digest) == old.response and journal.get(digest) == new.response
    assert superseding(journal, digest, journal.get(digest)) is None
    assert journal.drop(all_digests(digest)) == 3 and journal.get(digest) is None


def test_of_two_that_supersede_the_same_answer_the_first_stays(journal):
    digest, first = entry("one")
    on_loop(journal.put(digest, first))
    old = superseding(journal, digest, journal.get(digest)._replace(fault="why"))
    (_, new), (_, late) = entry("two", old), entry("three", old)
    assert on_loop(journal.put(digest, new)) == new.response
    assert on_loop(journal.put(digest, late)) == new.response
    assert journal.get(digest) == new.response and journal.get(old.digest) == old.response
    assert journal.get(all_digests(digest)[2]) is None


def test_one_that_supersedes_what_was_forgotten_meanwhile_is_kept(journal):
    digest, first = entry("one")
    on_loop(journal.put(digest, first))
    old = superseding(journal, digest, journal.get(digest))
    journal.drop([digest])
    _, new = entry("two", old)
    assert on_loop(journal.put(digest, new)) == new.response == journal.get(digest)
    assert journal.get(old.digest) is None


def test_many_sessions_at_once_keep_one_answer(path):
    digest, first = entry("one")
    journals = [ember.Journal(path) for _ in range(8)]
    on_loop(journals[0].put(digest, first))
    old = superseding(journals[0], digest, journals[0].get(digest)._replace(fault="why"))

    async def all_of_them():
        return await asyncio.gather(*(each.put(digest, entry(f"new {i}", old)[1]) for i, each in enumerate(journals)))

    kept = {response.text for response in on_loop(all_of_them())}
    assert len(kept) == 1 and len(ember.Journal(path).calls()) == 2
    for each in journals:
        each.close()
