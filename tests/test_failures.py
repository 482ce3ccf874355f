"""One failed lane never loses another, and what is raised says which, where, why, and how to go on."""

import logging
import re
from collections import Counter

import httpx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import errors, testing
from ember_jax._runtime import session as sessions
from ember_jax._runtime.journal.memory import MemoryJournal
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI

JAX_ERRORS = (jax.errors.JaxRuntimeError, ValueError)
REQUESTS = []
BROKEN = set()


def answer(request):
    said = request.messages[-1].content
    REQUESTS.append(said)
    if said in BROKEN:
        raise errors.ServerError(f"no answer to {said!r}", status=503)
    return said.upper()


@pytest.fixture(autouse=True)
def _session():
    REQUESTS.clear()
    BROKEN.clear()
    with ember.session(providers={"sim": Callable(answer)}, retry=ember.Retry(1)) as run:
        yield run


LLM = ember.LLM("sim/small")


@ember.operator
def chain(word: ember.Text) -> ember.Text:
    return LLM(LLM(word) + "x") + "!"


class Outer(ember.Operator):
    """Lanes in lanes: each row maps an inner operator and joins what it said."""

    def forward(self, row: ember.Text["n"]) -> ember.Text:
        return LLM(ember.join("-", jax.vmap(chain)(row)))


WORDS = ember.text(["a", "b", "c", "d"])
MAPPED = {
    "vmap": jax.vmap(chain),
    "ember.jit of vmap": ember.jit(jax.vmap(chain)),
    "vmap of ember.jit": jax.vmap(ember.jit(lambda w: chain(w))),
}


@pytest.fixture(params=MAPPED)
def mapped(request):
    return MAPPED[request.param]


# -- one lane among others -------------------------------------------------------------------------------------------


def test_the_other_lanes_finish_and_the_error_names_the_failed_one(mapped, _session):
    BROKEN.add("Bx")
    with pytest.raises(errors.SweepError) as raised:
        mapped(WORDS)
    error = raised.value
    assert (error.lanes, len(error.failures)) == (4, 1)
    (failure,) = error.failures
    assert failure.lane == (1,) and "chain" in failure.scope
    assert type(failure.cause) is errors.ServerError and failure.cause.status == 503
    for part in ("1 of 4 lanes failed", "the other 3 finished", "lane [1]", "no answer to 'Bx'", "To resume"):
        assert part in str(error)
    assert sorted(REQUESTS) == sorted([*"abcd", "Ax", "Bx", "Cx", "Dx"])
    assert _session.report().failed == 1


def test_a_rerun_asks_only_what_failed(mapped):
    BROKEN.add("Bx")
    with pytest.raises(errors.SweepError):
        mapped(WORDS)
    BROKEN.clear()
    REQUESTS.clear()
    assert mapped(WORDS).tolist() == ["AX!", "BX!", "CX!", "DX!"]
    assert REQUESTS == ["Bx"]


def test_a_rerun_in_another_session_with_the_same_journal_asks_only_what_failed():
    journal = MemoryJournal()
    BROKEN.update(["a", "d"])
    providers = {"sim": Callable(answer)}
    with (
        pytest.raises(errors.SweepError, match="2 of 4"),
        ember.session(journal=journal, providers=providers, retry=ember.Retry(1)),
    ):
        jax.vmap(chain)(WORDS)
    BROKEN.clear()
    REQUESTS.clear()
    with ember.session(journal=journal, providers=providers) as run:
        jax.vmap(chain)(WORDS)
    assert sorted(REQUESTS) == ["Ax", "Dx", "a", "d"]
    assert (run.report().replayed, run.report().failed) == (4, 0)


def test_a_failed_lane_goes_no_further(mapped):
    BROKEN.add("c")
    with pytest.raises(errors.SweepError):
        mapped(WORDS)
    assert "Cx" not in REQUESTS and len(REQUESTS) == 7


def test_the_same_program_works_and_fails_in_turn(mapped):
    for broken in (set(), {"a"}, set(), {"a", "b"}, set()):
        BROKEN.clear()
        BROKEN.update(broken)
        with ember.session(providers={"sim": Callable(answer)}, retry=ember.Retry(1)):
            if broken:
                with pytest.raises(errors.SweepError, match=f"{len(broken)} of 4 lanes"):
                    mapped(WORDS)
            else:
                assert mapped(WORDS).tolist() == ["AX!", "BX!", "CX!", "DX!"]


def test_all_lanes_failing_are_counted_and_the_first_are_shown(mapped):
    BROKEN.update("abcd")
    with pytest.raises(errors.SweepError) as raised:
        mapped(WORDS)
    assert [f.lane for f in raised.value.failures] == [(0,), (1,), (2,), (3,)]
    assert "4 of 4 lanes failed; the other 0 finished" in str(raised.value)
    # The causes are one but for the prompts that they quote.
    assert "lane [0] and 3 more" in str(raised.value) and "lane [1]" not in str(raised.value)


def test_the_first_causes_are_told_and_how_many_others_there_are():
    found = [errors.LaneFailure((i,), "op", ValueError(f"{word} of 'x'")) for i, word in enumerate("abcd")]
    told = str(errors.SweepError(found, 4))
    assert "lane [2]" in told and "lane [3]" not in told
    assert "and 1 more" in told and "error.failures" in told


def test_a_single_lane_raises_its_own_error(_session):
    BROKEN.add("a")
    for run in (chain, ember.jit(chain), ember.jit(lambda w: chain(w))):
        for _ in range(2):
            with pytest.raises(errors.ServerError, match="no answer to 'a'") as raised:
                run(ember.text("a"))
            assert raised.value.status == 503


def test_lanes_in_lanes_are_told_outermost_first():
    grid = ember.text([["a", "b"], ["c", "d"]])
    BROKEN.update(["b", "Cx"])
    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(jax.vmap(chain))(grid)
    assert [f.lane for f in raised.value.failures] == [(0, 1), (1, 0)] and raised.value.lanes == 4
    REQUESTS.clear()
    BROKEN.clear()
    jax.vmap(jax.vmap(chain))(grid)
    assert sorted(REQUESTS) == ["Bx", "Cx", "b"]


def test_lanes_of_a_nested_operator_are_told_with_their_own_index():
    grid = ember.text([["a", "b"], ["c", "d"]])
    BROKEN.add("Dx")
    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(Outer())(grid)
    (failure,) = raised.value.failures
    assert failure.lane == (1, 1) and failure.scope.startswith("Outer")
    # The other row finished, its own call too.
    assert Counter(REQUESTS)["AX!-BX!"] == 1 and "CX!-DX!" not in REQUESTS
    BROKEN.clear()
    REQUESTS.clear()
    assert jax.vmap(Outer())(grid).tolist() == ["AX!-BX!", "CX!-DX!"]
    assert REQUESTS == ["Dx", "CX!-DX!"]


@pytest.mark.parametrize("where", ["lanes", "a branch", "a loop"])
def test_a_failure_in_a_body_is_told_with_the_operators_it_stands_in(where):
    BROKEN.add("a")
    programs = {
        "lanes": lambda word: jax.vmap(chain)(word.reshape(1)),
        "a branch": lambda word: jax.lax.cond(LLM(word + "?") == "A?", lambda: middle(word), lambda: word),
        "a loop": lambda word: jax.lax.fori_loop(0, 1, lambda i, w: middle(word), word),
    }

    def middle(word):
        with jax.named_scope("middle"):
            return jax.lax.cond(LLM(word + "?") == "A?", lambda: chain(word), lambda: word)

    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(ember.jit(programs[where]))(WORDS[:2])
    (failure,) = raised.value.failures
    assert failure.lane[0] == 0
    assert failure.scope.endswith("chain") and (where == "lanes" or "middle" in failure.scope)


def test_two_failures_of_one_row_are_both_told():
    BROKEN.update("ab")
    with pytest.raises(errors.SweepError) as raised:
        ember.jit(Outer())(ember.text(["a", "b", "c"]))
    assert [f.lane for f in raised.value.failures] == [(0,), (1,)]
    assert sorted(REQUESTS) == ["Cx", "a", "b", "c"]


BATCHES = {
    "vmap": jax.vmap(LLM),
    "jax.jit of vmap": jax.jit(jax.vmap(lambda w: LLM(w))),
    "ember.jit of vmap": ember.jit(jax.vmap(LLM)),
}


@pytest.mark.parametrize("broken", [{"b"}, {"b", "d"}])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_failing_call_of_a_batch_leaves_the_others(batch, broken):
    BROKEN.update(broken)
    for _ in range(2):
        with ember.session(providers={"sim": Callable(answer)}, retry=ember.Retry(1)):
            REQUESTS.clear()
            with pytest.raises((errors.SweepError, *JAX_ERRORS), match=rf"{len(broken)} of 4 lanes(?s:.*)lane \[1\]"):
                BATCHES[batch](WORDS)
            assert sorted(REQUESTS) == list("abcd")


def test_a_batch_inside_a_lane_has_the_index_of_both():
    BROKEN.add("d")

    @ember.operator
    def batch(row: ember.Text["n"]) -> ember.Text["n"]:
        return jax.vmap(LLM)(row)

    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(batch)(WORDS.reshape(2, 2))
    assert [f.lane for f in raised.value.failures] == [(1, 1)]
    assert sorted(REQUESTS) == list("abcd")


# -- other things that fail ------------------------------------------------------------------------------------------


def test_a_failing_text_operation_fails_its_lane_only():
    @ember.operator
    def fill(template: ember.Text, x: Float[Array, ""]) -> ember.Text:
        return LLM(ember.format(template, x=x))

    templates = ember.text(["{x:.1f}", "{x:d}", "{x}"])
    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(fill)(templates, jnp.array([1.0, 2.0, 3.0]))
    assert [(f.lane, type(f.cause)) for f in raised.value.failures] == [((1,), errors.TextError)]
    assert "fill" in raised.value.failures[0].scope
    assert sorted(REQUESTS) == ["1.0", "3.0"]


def test_words_that_this_process_does_not_know_fail_their_lane_only():
    digests = WORDS.digests.at[2].set(jnp.uint32(7))
    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(chain)(ember.Text(digests))
    assert [(f.lane, type(f.cause)) for f in raised.value.failures] == [((2,), errors.UnknownDigestError)]
    assert "Cx" not in REQUESTS and len(REQUESTS) == 6


def test_a_failing_host_function_fails_its_lane_only():
    class Odd(Exception):
        pass

    def odd(n):
        if n % 2:
            raise Odd(f"{n} is odd")
        return n

    f = ember.host(odd, out=jax.ShapeDtypeStruct((), jnp.int32))
    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(ember.jit(lambda n: f(n) + 1))(jnp.arange(5))
    assert [(f.lane, type(f.cause), str(f.cause)) for f in raised.value.failures] == [
        ((1,), Odd, "1 is odd"),
        ((3,), Odd, "3 is odd"),
    ]


def test_a_segment_that_fails_is_told_and_ends_the_sweep():
    def fails(x):
        raise RuntimeError("in a numeric segment")

    @ember.operator
    def op(word: ember.Text) -> Float[Array, ""]:
        x = ember.features(LLM(word), 1)[0]
        return jax.pure_callback(fails, jax.ShapeDtypeStruct((), jnp.float32), x, vmap_method="sequential")

    with pytest.raises(errors.SweepError, match="in a numeric segment") as raised:
        jax.vmap(op)(WORDS)
    assert len(raised.value.failures) == 4 and sorted(REQUESTS) == list("abcd")


def test_a_failure_in_a_loop_and_in_a_branch_is_told():
    @ember.operator
    def loop(word: ember.Text) -> ember.Text:
        word = jax.lax.cond(word == "a", lambda: LLM("branch " + word), lambda: word)
        return jax.lax.fori_loop(0, 3, lambda i, w: LLM(ember.format("{w}{i}", w=w, i=i)), word)

    BROKEN.update(["B01", "branch a"])
    with pytest.raises(errors.SweepError) as raised:
        jax.vmap(loop)(ember.text(["a", "b", "c"]))
    assert [f.lane for f in raised.value.failures] == [(0,), (1,)]
    assert sorted(REQUESTS) == ["B01", "C01", "C012", "b0", "branch a", "c0"]


def test_a_call_that_is_not_needed_cannot_fail():
    BROKEN.add("unused")

    @ember.operator
    def op(word: ember.Text) -> ember.Text:
        LLM("unused")
        return jax.lax.cond(word == "", lambda: LLM("unused"), lambda: LLM(word))

    assert jax.vmap(op)(WORDS).tolist() == list("ABCD")


# -- JAX's errors ----------------------------------------------------------------------------------------------------


def test_a_session_raises_the_typed_error_in_place_of_jaxs():
    BROKEN.add("b")
    sweep = jax.jit(jax.vmap(chain))
    for _ in range(2):  # JAX's fast path, which the second call takes, raises another type
        with pytest.raises(JAX_ERRORS, match=r"1 of 4 lanes failed(?s:.*)To resume"):
            sweep(WORDS)
    for _ in range(2):
        with (
            pytest.raises(errors.SweepError) as raised,
            ember.session(providers={"sim": Callable(answer)}, retry=ember.Retry(1)),
        ):
            sweep(WORDS)
        assert [f.lane for f in raised.value.failures] == [(1,)]
        assert isinstance(raised.value.__cause__, JAX_ERRORS)


def test_a_session_leaves_other_errors_alone():
    BROKEN.add("a")
    with pytest.raises(errors.ServerError):
        chain("a")
    mine = ValueError("INTERNAL: not yours, though it says ServerError")
    with pytest.raises(ValueError) as raised, ember.session():
        raise mine
    assert raised.value is mine


def test_gradients_fail_as_values_do():
    BROKEN.add("b")

    @ember.operator
    def loss(word: ember.Text, w: Float[Array, ""]) -> Float[Array, ""]:
        return w * ember.features(LLM(word), 1)[0]

    with pytest.raises(errors.SweepError, match="lane \\[1\\]"):
        jax.grad(lambda w: jnp.sum(jax.vmap(loss, in_axes=(0, None))(WORDS, w)))(1.0)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [3, None, b"x", jnp.zeros(2), ["a"], ember.text(["a"])])
def test_a_wrong_type_is_told_before_anything_is_asked(bad):
    with pytest.raises(TypeError, match="argument `word` of chain is annotated Text"):
        chain(bad)
    assert REQUESTS == []


def test_a_missing_api_key_is_told_and_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    llm = ember.LLM("openai/gpt-4o-mini")

    class Refusing(httpx.AsyncClient):
        """A client that must not be used."""

        async def post(self, *args, **kwargs):
            raise AssertionError("a request was sent")

    with ember.session(providers={"openai": OpenAI(client=Refusing())}, retry=ember.Retry(1)) as run:
        for ask in (llm, ember.jit(lambda p: llm(p))):
            with pytest.raises(errors.AuthenticationError, match=r"OPENAI_API_KEY.*register\('openai'"):
                ask(ember.text("q"))
        with pytest.raises(errors.SweepError, match="OPENAI_API_KEY"):
            jax.vmap(ember.jit(lambda p: llm(p)))(WORDS)
    assert run.report().failed == 6


SECRET = "sk-marked-0123456789"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_no_credential_is_in_an_error_or_a_log(status, caplog, capfd):
    body = f'{{"error": {{"message": "Incorrect key {SECRET}", "code": "x"}}}}'
    fault = testing.Fault(status=status, body=body)
    with caplog.at_level(logging.DEBUG), testing.ChatServer(faults=lambda i: fault if i != 1 else None) as server:
        provider = OpenAI(base_url=server.base_url, api_key=SECRET)
        llm = ember.LLM("openai/gpt")
        shown = []
        with ember.session(providers={"openai": provider}, retry=ember.Retry(1)) as run:
            for ask in (llm, jax.vmap(ember.jit(lambda p: llm(p))), jax.jit(jax.vmap(llm))):
                with pytest.raises((errors.EmberError, *JAX_ERRORS)) as raised:
                    ask(WORDS[0] if ask is llm else WORDS)
                error = raised.value
                while error is not None:
                    shown += [str(error), repr(error), str(vars(error))]
                    error = error.__cause__ or error.__context__
        sessions.loop().submit(provider.close()).result(30)
    printed = capfd.readouterr()
    everything = "".join([*shown, caplog.text, repr(run), repr(run.report()), printed.out, printed.err])
    assert SECRET not in everything
    assert re.search(f"HTTP {status}", everything)


@pytest.mark.parametrize("how", [lambda op: jax.vmap(ember.jit(op)), lambda op: ember.jit(jax.vmap(op)), jax.vmap])
@pytest.mark.parametrize(
    ("journal", "kept", "resume"),
    [
        ("run.db", "is kept in the journal:", "with the same journal: only what failed is asked again"),
        ("memory", "is kept as long as this session:", "in this session: only what failed is asked again"),
        ("off", "is kept nowhere, as the session has no journal:", "everything is asked again"),
    ],
)
def test_the_error_says_what_becomes_of_the_answers(tmp_path, monkeypatch, how, journal, kept, resume):
    monkeypatch.chdir(tmp_path)
    asked = []

    def answer(request):
        asked.append(request.messages[-1].content)
        if request.messages[-1].content == "b" and asked.count("b") == 1:
            raise errors.AuthenticationError("no")
        return "x"

    questions, provider = ember.text(["a", "b", "c"]), ember.providers.Callable(answer)
    with ember.session(providers={"mine": provider}, journal=journal):
        llm = ember.LLM("mine/m")
        with pytest.raises(Exception, match="1 of 3 lanes failed") as told:
            jax.block_until_ready(how(llm)(questions))
        assert kept in str(told.value) and resume in str(told.value)
        jax.block_until_ready(how(llm)(questions))
    again = {"off": ["a", "b", "c"]}.get(journal, ["b"])  # what the error has said, counted
    assert sorted(asked) == sorted(["a", "b", "c", *again])


def test_prompts_with_braces_fail_no_format():
    said = jax.vmap(chain)(ember.text(["{x}", "{", "}{", "{0}"]))
    assert said.tolist() == ["{X}X!", "{X!", "}{X!", "{0}X!"]


def test_an_equal_cause_is_told_once_and_spent_budgets_first():
    spent = errors.BudgetError("the budget is spent.", cap=1.0, spent=1.0, reserved=0.0, worst=0.1)
    causes = [errors.ServerError("down")] * 5 + [spent] * 1200 + [ValueError(str(i)) for i in range(4)]
    told = errors.SweepError([errors.LaneFailure((i,), "op", cause) for i, cause in enumerate(causes)], 2000)
    assert str(told).splitlines() == [
        "1209 of 2000 lanes failed; the other 791 finished, and what they were answered is kept in the journal:",
        "  - lane [5] and 1,199 more, op: BudgetError: the budget is spent.",
        "  - lane [0] and 4 more, op: ServerError: down",
        "  - lane [1205], op: ValueError: 0",
        "  - … and 3 more (`error.failures` has them all)",
    ]
    assert [f.lane for f in told.failures] == [(i,) for i in range(len(causes))]


@pytest.mark.parametrize(
    "mode", [lambda f: jax.vmap(f), lambda f: jax.jit(jax.vmap(f)), lambda f: ember.jit(jax.vmap(f))]
)
def test_the_words_of_a_sweeps_error_say_where_it_can_be_caught(mode):
    def fails(request):
        raise ValueError("no such thing")

    questions = ember.text(["a", "b"])
    provider = ember.providers.Callable(fails)
    with pytest.raises(errors.SweepError) as typed, ember.session(providers={"mine": provider}):
        llm = ember.LLM("mine/m")
        with pytest.raises(Exception, match=r"(?s)2 of 2 lanes.*catches this around `ember\.jit\(jax\.vmap\(f\)\)`"):
            jax.block_until_ready(mode(llm)(questions))
        with pytest.raises(errors.SweepError):
            jax.block_until_ready(ember.jit(jax.vmap(llm))(questions))
        jax.block_until_ready(mode(llm)(questions))
    assert len(typed.value.failures) == 2
