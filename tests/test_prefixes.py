"""Calls that begin alike: who goes first, on a virtual clock; what is billed, by servers that keep what they read."""

import asyncio
import collections
import http.server
import json
import threading

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import Limit, Price, errors, non
from ember_jax._runtime.feed import SpokenWords
from ember_jax._runtime.loop import get_loop
from ember_jax._runtime.prefixes import _common
from ember_jax.providers.anthropic import Anthropic
from ember_jax.providers.base import Message, Provider, Request, Response
from ember_jax.providers.gemini import Gemini
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import VirtualClock

# 5,000 tokens of four characters, in lines, and another such text.
LINES = "".join(f"Rule {i:>3}: a judge weighs what it says.\n" for i in range(600))
LONG, OTHER = LINES[:20_000], LINES[::-1][:20_000]
PRICES = {"openai": Price(1.0, 1.0, cached=0.1)}
QUESTIONS = ember.text([f"Question {i}?" for i in range(100)])
llm = ember.LLM("openai/m", system=LONG)


class Kept(Provider):
    """Takes a second for a call; `fails` says how the calls fail that are sent at a second."""

    def __init__(self, fails=None, marks=False, seconds=1.0):
        self.sent, self.cancelled = [], 0
        self.fails, self.marks, self.seconds = fails or {}, marks, seconds

    def check(self, model):
        pass

    def least_prefix(self, request):
        return 1_024

    def marks_prefix(self, request):
        return self.marks

    async def complete(self, request):
        now = asyncio.get_running_loop().time()
        self.sent.append((now, request))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if now in self.fails:
            raise self.fails[now]
        return Response(request.messages[-1].content[-20:], 5_000, 1)

    async def close(self):
        pass

    @property
    def times(self):
        """How many calls were sent at each second."""
        return dict(collections.Counter(now for now, _ in self.sent))


# So many that nothing holds back a hundred calls.
OPEN = {"openai": Limit(rpm=6e6)}


def running(kept, **how):
    return ember.session(providers={"openai": kept}, **{"journal": "memory", "prices": PRICES, "limits": OPEN, **how})


def asked(fn, *args):
    return jax.block_until_ready(jax.vmap(fn)(*args))


# -- who goes first --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("journal", ["memory", "file"])
def test_one_goes_first_and_the_others_then_go_at_once(marks, journal, tmp_path):
    kept, where = Kept(marks=marks), "memory" if journal == "memory" else tmp_path / "run.db"
    with VirtualClock() as clock, running(kept, journal=where) as run:
        answers = asked(llm, QUESTIONS)
        assert kept.times == {0.0: 1, 1.0: 99} and clock.now == 2.0
        assert answers.tolist() == QUESTIONS.tolist() and run.report().requests == 100
        asked(llm, ember.text([f"Another {i}?" for i in range(10)]))
        assert clock.now == 3.0  # it is kept: nobody waits


def test_it_can_be_switched_off():
    kept = Kept(marks=True)
    with VirtualClock() as clock, running(kept, share_prefixes=False):
        asked(llm, QUESTIONS)
        assert clock.now == 1.0 and all(request.shared == (0, 0) for _, request in kept.sent)
    with pytest.raises(TypeError, match="share_prefixes"):
        ember.session(share_prefixes=1)


@pytest.mark.parametrize("why", ["short", "no price", "as dear", "little of it"])
def test_what_saves_nothing_waits_for_nobody(why):
    kept = Kept()
    prices = {"no price": {}, "as dear": {"openai": Price(1.0, 1.0)}}.get(why, PRICES)
    system = LONG[:4_000] if why == "short" else LONG
    questions = QUESTIONS
    if why == "little of it":  # a tenth
        questions = ember.text([f"{i}{'x' * 180_000}" for i in range(3)])
    with VirtualClock() as clock, running(kept, prices=prices), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ember_jax._runtime.warned.Warned.tell", lambda *_: None)
        asked(llm.replace(system=system), questions)
        assert clock.now == 1.0


def test_two_prefixes_run_side_by_side():
    kept = Kept()
    with VirtualClock() as clock, running(kept):
        systems = ember.text([LONG, OTHER] * 50)
        asked(lambda system, question: llm.replace(system=system)(question), systems, QUESTIONS)
        assert kept.times == {0.0: 2, 1.0: 98} and clock.now == 2.0
    kept = Kept()
    with VirtualClock() as clock, running(kept):  # they begin alike, and go on otherwise
        systems = ember.text([LONG, LONG[:5_000] + OTHER] * 50)
        asked(lambda system, question: llm.replace(system=system)(question), systems, QUESTIONS)
        assert kept.times == {0.0: 2, 1.0: 98}


@pytest.mark.parametrize("marks", [False, True])
def test_the_text_of_a_template_is_a_prefix_too(marks):
    kept = Kept(marks=marks)
    with VirtualClock(), running(kept):
        asked(lambda q: llm.replace(system=None)(ember.format("{rules}\nQ: {q}", rules=LONG, q=q)), QUESTIONS)
        assert kept.times == {0.0: 1, 1.0: 99}
        # The mark is where a line ends, and not where the questions begin alike by chance.
        assert {request.shared for _, request in kept.sent} == {(0, len(LONG) + 1 if marks else 0)}


@pytest.mark.parametrize("status", [400, 500])
def test_if_the_first_fails_the_next_goes_first(status):
    error = errors.RefusedRequestError("no", status=400) if status == 400 else errors.ServerError("no", status=500)
    kept = Kept({0.0: error})
    with VirtualClock() as clock, running(kept, retry=ember.Retry(first=0.0)):
        if status == 400:
            with pytest.raises(errors.SweepError, match="1 of 100"):
                asked(llm, QUESTIONS)
            assert kept.times == {0.0: 1, 1.0: 1, 2.0: 98}
        else:
            asked(llm, QUESTIONS)
            assert kept.times == {0.0: 1, 1.0: 1, 2.0: 99}
        assert clock.now == 3.0


def test_after_three_failures_nobody_waits():
    kept = Kept({float(i): errors.RefusedRequestError("no", status=400) for i in range(3)})
    with VirtualClock(), running(kept), pytest.raises(errors.SweepError, match="3 of 100"):
        asked(llm, QUESTIONS)
    assert kept.times == {0.0: 1, 1.0: 1, 2.0: 1, 3.0: 97}


def test_what_is_kept_is_so_for_five_minutes_after_it_was_read():
    kept = Kept()
    with VirtualClock() as clock, running(kept):
        for begin, wait in ((0, 290), (10, 290), (20, 310), (30, 0)):
            began = clock.now
            asked(llm, QUESTIONS[begin : begin + 10])
            assert clock.now - began == (2.0 if begin in (0, 30) else 1.0)
            sleep = ember.host(_sleep, out=jax.ShapeDtypeStruct((), "float32"), pure=False)
            jax.block_until_ready(ember.jit(sleep)(float(wait)))


async def _sleep(seconds):
    await asyncio.sleep(float(seconds))
    return seconds


def test_nobody_waits_longer_than_half_a_minute():
    kept = Kept(seconds=100.0)
    with VirtualClock() as clock, running(kept):
        asked(llm, QUESTIONS)
        assert kept.times == {0.0: 1, 30.0: 99} and clock.now == 130.0


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ({"limits": {"openai": Limit(in_flight=1)}}, 100.0),
        ({"limits": {"openai": Limit(rpm=6e6, in_flight=10)}}, 11.0),
        ({"limits": {"openai": Limit(rpm=60)}}, None),
        ({"scheduler": ember.Topological(1)}, 100.0),
        ({"scheduler": ember.Topological(10)}, 11.0),
        ({"scheduler": ember.CriticalPath()}, 2.0),
        ({"budget_usd": 0.07}, None),
        ({"retry": ember.Retry(deadline=1.5)}, 2.0),
    ],
    ids=["one in flight", "ten", "a minute's", "one slot", "ten slots", "order", "budget", "deadline"],
)
def test_it_fits_with_limits_schedulers_budgets_and_deadlines(how, seconds, marks):
    kept = Kept(marks=marks)
    with VirtualClock() as clock, running(kept, **how) as run:
        try:
            asked(llm.replace(max_tokens=1), QUESTIONS)
        except errors.SweepError:
            assert "budget_usd" in how
        assert kept.times[0.0] == 1 and (seconds is None or clock.now == seconds)
        assert run.budget.reserved == 0
        if "limits" in how:
            stats = run.statistics()["openai/m"]
            assert (stats.admitted, stats.in_flight, stats.waiting) == (100, 0, 0)


def test_samples_of_a_question_are_one_request_that_goes_first():
    class Many(Kept):
        def most_samples(self, request):
            return 128

        async def complete(self, request):
            response = await super().complete(request)
            if request.answers == 1:
                return response
            return response._replace(answers=tuple(Response(f"{i}") for i in range(request.answers)))

    many = Many()
    with VirtualClock() as clock, running(many):
        vote = non.Vote(llm.replace(temperature=1.0), n=4)
        asked(vote, QUESTIONS[:10], jax.random.split(jax.random.key(0), 10))
        assert many.times == {0.0: 1, 1.0: 9} and {r.answers for _, r in many.sent} == {4} and clock.now == 2.0


def test_answers_that_are_there_make_nobody_wait(tmp_path):
    for questions, seconds in ((QUESTIONS[:50], 2.0), (QUESTIONS[:50], 0.0), (QUESTIONS[:51], 1.0)):
        with VirtualClock() as clock, running(Kept(), journal=tmp_path / "run.db"):
            asked(llm, questions)
            assert clock.now == seconds


def test_if_the_first_is_cancelled_the_next_goes_first():
    kept = Kept()
    with VirtualClock(), running(kept) as run:
        requests = [Request("openai", "m", (Message("system", LONG), Message("user", str(i)))) for i in range(5)]

        async def cancel():
            tasks = [asyncio.ensure_future(run.ask(request)) for request in requests]
            await asyncio.sleep(0.5)
            tasks[0].cancel()
            tasks[3].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        ended = get_loop().submit(cancel()).result()
        assert [isinstance(one, asyncio.CancelledError) for one in ended] == [True, False, False, True, False]
        assert kept.times == {0.0: 1, 0.5: 1, 1.5: 2} and kept.cancelled == 1


def test_of_an_answer_that_comes_in_pieces_the_first_words_are_enough():
    class Speaking(Kept):
        async def stream(self, request, told):
            told("")
            await asyncio.sleep(0.25)
            told("4")
            return await self.complete(request)

    kept = Speaking()
    with VirtualClock(), running(kept) as run:
        first, then = (Request("openai", "m", (Message("system", LONG), Message("user", q))) for q in "ab")

        async def both():
            speaking = asyncio.ensure_future(run.ask(first, words=SpokenWords()))
            await asyncio.sleep(0.125)
            await asyncio.gather(speaking, run.ask(then))

        get_loop().submit(both()).result()
        assert kept.times == {0.25: 2}


def test_a_call_alone_is_sent_as_it_is_and_the_next_is_marked():
    kept = Kept(marks=True)
    with VirtualClock() as clock, running(kept):
        for i in range(4):
            str(llm(f"{i}?"))
        assert clock.now == 4.0
        assert [request.shared for _, request in kept.sent] == [(0, 0), *[(1, 0)] * 3]


@given(st.text("ab", max_size=40), st.text("ab", max_size=9), st.text("ab", max_size=9))
def test_the_common_beginning_is_found(begin, one, other):
    one, other = begin + one, begin + other
    agree = [a == b for a, b in zip(one, other, strict=False)]
    assert _common(one, other) == (agree.index(False) if False in agree else len(agree))


# -- what is told before ---------------------------------------------------------------------------------------------


def test_a_plan_says_that_one_call_goes_first():
    with running(Kept()):
        of = lambda llm, *args: ember.lower(jax.vmap(llm))(*args).explain()
        told = "one call first, then the others at once: they read some 5,002 tokens that the service has kept"
        assert told in of(llm, QUESTIONS)
        assert "first," not in of(llm.replace(system=LONG[:4_000]), QUESTIONS) + of(llm, QUESTIONS[:1])
        both = lambda system, question: llm.replace(system=system)(question)
        each = "one call first for each of 2 system prompts and models, then the others at once: they read up to 5,0"
        assert each in of(both, ember.text([LONG, OTHER]), QUESTIONS[:2])
    with running(Kept(), share_prefixes=False):
        assert "first," not in of(llm, QUESTIONS)


@pytest.mark.parametrize("where", ["system", "template"])
def test_an_estimate_is_with_and_without(where):
    """By openai's own prices: gpt-4o-mini reads a million tokens for 0.15 dollars, or 0.075 if they were kept."""
    mini = ember.LLM("openai/gpt-4o-mini", max_tokens=10)
    ask = {"system": mini.replace(system=LONG), "template": lambda q: mini(ember.format("{l}\n{q}", l=LONG, q=q))}[
        where
    ]
    with ember.session(journal=None):
        found = ember.lower(jax.vmap(ask))(QUESTIONS).estimate()
        saved = found.uncached_usd.least - found.cost_usd.least
        words = len(LONG.split())
        assert saved == pytest.approx(99 * words * 0.075e-6, rel=0.01) and saved > 0.02
        assert found.uncached_usd.most == found.cost_usd.most
        assert "if the service keeps nothing" in str(found)
    with ember.session(journal=None, share_prefixes=False):
        off = ember.lower(jax.vmap(ask))(QUESTIONS).estimate()
        assert off.cost_usd == off.uncached_usd == found.uncached_usd and "keeps nothing" not in str(off)


# -- what is billed --------------------------------------------------------------------------------------------------


class Caching:
    """A server that bills as OpenAI or Anthropic do: a beginning counts as kept when a request with it was answered.

    A token is four characters. OpenAI keeps every prompt, Anthropic what is marked; both from 1,024 tokens on.
    """

    def __init__(self, dialect):
        self.bodies, self.kept, self.lock = [], [], threading.Lock()
        self.billed = collections.Counter()
        caching = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with caching.lock:
                    caching.bodies.append(body)
                    usage, keeps, message = dialect(body, caching.kept)
                    caching.billed.update({k: v for k, v in usage.items() if isinstance(v, int)})
                answer = json.dumps({**message, "model": body["model"], "usage": usage}).encode()
                with caching.lock:
                    caching.kept += keeps
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

        self._server = Server(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def openai(body, kept):
    text = "".join(message["content"] for message in body["messages"])
    cached = max((_common(text, other) // 4 // 128 * 128 for other in kept), default=0)
    cached = cached if cached >= 1024 else 0
    usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 1}
    usage["prompt_tokens_details"] = {"cached_tokens": cached}
    usage["cached"] = cached
    message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}]}
    return usage, [text], message


def anthropic(body, kept):
    blocks = []
    for content in (body.get("system", ""), *(turn["content"] for turn in body["messages"])):
        blocks += content if isinstance(content, list) else [{"type": "text", "text": content}]
    marks = [i for i, block in enumerate(blocks) if "cache_control" in block]
    assert len(marks) <= 4 and all(block["text"].strip() for block in blocks if block.get("text"))
    marked = "".join(block["text"] for block in blocks[: marks[-1] + 1]) if marks else ""
    size, rest = len(marked) // 4, (sum(len(block["text"]) for block in blocks) - len(marked)) // 4
    size, rest = (size, rest) if size >= 1024 else (0, size + rest)
    is_kept = marked in kept
    usage = {"input_tokens": rest, "output_tokens": 1}
    usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"] = (size, 0) if is_kept else (0, size)
    message = {"type": "message", "content": [{"type": "text", "text": "4"}], "stop_reason": "end_turn"}
    return usage, [marked] if size else [], message


def test_a_sweep_reads_what_its_first_call_has_paid_for_at_openai():
    with Caching(openai) as server:
        provider = OpenAI(base_url=server.base_url, api_key="k")
        plain = []
        for shares in (True, False):
            server.kept.clear()
            server.billed.clear()
            with ember.session(providers={"openai": provider}, journal=None, share_prefixes=shares) as run:
                asked(ember.LLM("openai/gpt-4o-mini", system=LONG), QUESTIONS)
                report = run.report()
            assert report.cached_tokens == server.billed["cached"]
            # Of gpt-4o-mini a million tokens cost 0.15 dollars, or half of that where they were kept.
            assert report.cache_saved_usd == pytest.approx(report.cached_tokens * 0.075e-6)
            plain.append(report.cost_usd + report.cache_saved_usd)
            if shares:
                assert report.cached_tokens == 99 * (len(LONG) // 4 // 128 * 128)
        assert plain[0] == pytest.approx(plain[1])


@pytest.mark.parametrize("where", ["system", "template", "turns"])
def test_a_sweep_reads_what_its_first_call_has_marked_at_anthropic(where):
    model = ember.LLM("anthropic/claude-opus-4-8", max_tokens=10)
    match where:
        case "system":
            ask = model.replace(system=LONG)
        case "template":
            ask = lambda q: model(ember.format("{rules}\nQuestion: {q}", rules=LONG, q=q))
        case "turns":
            ask = lambda q: model(ember.Conversation([("user", LONG), ("assistant", "Yes.")]).user(q))
    with Caching(anthropic) as server:
        provider = Anthropic(base_url=server.base_url, api_key="k")
        with ember.session(providers={"anthropic": provider}, journal=None) as run:
            asked(ask, QUESTIONS)
            report, calls = run.report(), run.calls()
        written, read = server.billed["cache_creation_input_tokens"], server.billed["cache_read_input_tokens"]
        assert written >= len(LONG) // 4 and read == 99 * written == report.cached_tokens
        assert sum(c.cached_tokens for c in calls) == read and sum(c.cache_write_tokens for c in calls) == written
        plain = 5e-6  # of claude-opus-4-8; a tenth when read, a quarter more when written
        assert report.cache_saved_usd == pytest.approx(plain * (0.9 * read - 0.25 * written))
        assert "cache_control" not in json.dumps(run.calls()[0].parameters)


@pytest.mark.parametrize("own", [{"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "tools"])
def test_marks_of_the_users_own_are_left_as_they_are(own):
    tool = {"name": "look", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    own = {"tools": [tool]} if own == "tools" else own
    with Caching(anthropic) as server:
        provider = Anthropic(base_url=server.base_url, api_key="k")
        with ember.session(providers={"anthropic": provider}, journal=None):
            asked(ember.LLM("anthropic/claude-opus-4-8", system=LONG, max_tokens=9, **own), QUESTIONS[:3])
        for body in server.bodies:
            assert body["system"] == LONG and own.items() <= body.items()


def test_where_a_mark_stands():
    def body(shared, *messages):
        request = Request("anthropic", "claude-opus-4-8", messages, {"max_tokens": 1}, shared=shared)
        _, _, sent = Anthropic(api_key="k").build(request)
        return sent.get("system"), [turn["content"] for turn in sent["messages"]]

    said = [Message("system", "Be brief."), Message("user", "A B"), Message("assistant", "C"), Message("user", "D E")]
    kept = lambda words: {"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}
    text = lambda words: {"type": "text", "text": words}
    assert body((0, 0), *said) == ("Be brief.", ["A B", "C", "D E"])
    assert body((1, 0), *said) == ([kept("Be brief.")], ["A B", "C", "D E"])
    assert body((0, 3), *said) == ([kept("Be "), text("brief.")], ["A B", "C", "D E"])
    assert body((1, 2), *said) == ("Be brief.", [[kept("A "), text("B")], "C", "D E"])
    assert body((3, 0), *said) == ("Be brief.", ["A B", [kept("C")], "D E"])
    assert body((3, 3), *said) == ("Be brief.", ["A B", "C", [kept("D E")]])
    # A system prompt that stands behind a turn is read before it, so the turn is no common beginning.
    late = (*said[:3], Message("system", "Now."), said[3])
    assert body((3, 0), *late) == ([kept("Be brief."), text("\n\nNow.")], ["A B", "C", "D E"])
    assert body((5, 0), *late) == ("Be brief.\n\nNow.", ["A B", "C", [kept("D E")]])


def test_the_least_prefix_is_that_of_the_model():
    least = lambda provider, model: provider.least_prefix(Request("any", model, ()))
    assert [least(Anthropic(), f"claude-{m}") for m in ("haiku-4-5", "opus-4-7", "sonnet-5", "opus-5-5")] == [
        *(4_096, 2_048, 1_024, 512)
    ]
    assert least(OpenAI(), "gpt-5") == least(OpenAI(), "o3-pro") == 1_024
    assert [least(Gemini(), f"gemini-{m}") for m in ("2.5-pro", "2.5-flash", "3.1-pro")] == [2_048, 1_024, 4_096]
