"""Tools and agents: schemas, what is called, what the model is told, lanes, limits, and what a rerun pays."""

import asyncio
import dataclasses
import enum
import json
import signal
import subprocess
import sys
from typing import Annotated, Literal

import jax
import numpy as np
import pytest

import ember_jax as ember
from ember_jax.errors import AnnotationError, MalformedResponseError
from ember_jax.providers import Callable, Message, Request, Response
from ember_jax.providers.base import Finish, Part
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import Sim, SimModel, VirtualClock

LLM = ember.LLM("sim/small")


class Unit(enum.Enum):
    C = "C"
    F = "F"


@dataclasses.dataclass
class Place:
    city: str
    country: str = "FR"


@ember.tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@ember.tool(pure=True)
async def mul(a: float, b: float = 2.0) -> float:
    """Multiplies.

    - `a`: the first factor
    b: the second one
    """
    return a * b


def test_the_schema_is_that_of_the_annotations():
    def look(
        place: Place, unit: Unit, how: Literal["now", "later"] = "now", days: int | None = None, tags: list[str] = ()
    ) -> str:
        "Looks."

    made = ember.tool(look)
    schema = json.loads(made.schema)
    assert (made.name, made.description) == ("look", "Looks.")
    assert schema["required"] == ["place", "unit"]
    assert schema["properties"]["how"]["enum"] == ["later", "now"]
    assert schema["properties"]["days"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    assert schema["$defs"]["Place"]["properties"]["city"] == {"type": "string"}
    assert schema["$defs"]["Unit"]["enum"] == ["C", "F"]


def test_arguments_are_described_by_the_docstring():
    properties = json.loads(mul.schema)["properties"]
    assert properties["a"] == {"type": "number", "description": "the first factor"}
    assert properties["b"] == {"type": "number", "default": 2.0, "description": "the second one"}


def test_arguments_come_as_their_types():
    got = []

    def look(place: Place, unit: Unit = Unit.C) -> str:
        got.append((place, unit))
        return "fine"

    result = asyncio.run(ember.tool(look).answer('{"place": {"city": "Paris"}, "unit": "F"}'))
    assert result == "fine" and got == [(Place("Paris"), Unit.F)]


def test_pydantic_models_are_arguments():
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):
        n: int

    class Outer(pydantic.BaseModel):
        inner: Inner
        name: str = pydantic.Field(description="a name")

    def look(outer: Outer) -> Outer:
        return outer

    made = ember.tool(look)
    schema = json.loads(made.schema)
    assert schema["properties"]["outer"]["properties"]["inner"] == {"$ref": "#/$defs/Inner"}
    assert schema["$defs"]["Inner"]["properties"]["n"]["type"] == "integer"
    given = '{"outer": {"inner": {"n": 1}, "name": "x"}}'
    assert json.loads(asyncio.run(made.answer(given))) == json.loads(given)["outer"]
    assert "error: look does not take" in asyncio.run(made.answer('{"outer": {"inner": {"n": "y"}, "name": "x"}}'))


ANSWERS = {
    "a number": (lambda: 3, "3"),
    "words": (lambda: "as they are", "as they are"),
    "an array": (lambda: np.arange(3), "[0,1,2]"),
    "a class": (lambda: Place("Paris"), '{"city":"Paris","country":"FR"}'),
    "nothing": (lambda: None, "null"),
    "what is no JSON": (lambda: object, json.dumps(str(object))),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_tool_returns_is_told_in_words(name):
    function, told = ANSWERS[name]
    assert asyncio.run(ember.tool(function, name="tool").answer("{}")) == told


def test_constraints_beside_an_annotation_are_told_and_checked():
    pydantic = pytest.importorskip("pydantic")

    def odd(value):
        if value % 2 == 0:
            raise ValueError("give an odd number")
        return value

    @ember.tool
    def look(
        days: Annotated[int, pydantic.Field(gt=0, le=9, description="How many days.")],
        place: Annotated[str, pydantic.Field(pattern="^[A-Z]")] = "Paris",
        lane: Annotated[int, pydantic.AfterValidator(odd)] = 1,
    ) -> str:
        return f"{days} {place} {lane}"

    properties = json.loads(look.schema)["properties"]
    assert properties["days"] == {
        "type": "integer",
        "exclusiveMinimum": 0,
        "maximum": 9,
        "description": "How many days.",
    }
    assert properties["place"]["pattern"] == "^[A-Z]" and json.loads(look.schema)["required"] == ["days"]
    with ember.session(journal=None):
        agent = ember.Agent(LLM, [look])
        told = [str(agent(f"look({said})")) for said in ("3", '3, "Rome", 5', "0", '3, "rome"', '3, "Rome", 2')]
    assert told[:2] == ["The answer is 3 Paris 1.", "The answer is 3 Rome 5."]
    assert "greater than 0" in told[2] and "`$.days`" in told[2]
    assert "pattern '^[A-Z]'" in told[3] and "give an odd number" in told[4]


def test_what_goes_wrong_is_told_to_the_model():
    def fail() -> int:
        raise KeyError("k")

    @ember.tool(timeout=0.01)
    async def hang() -> str:
        await asyncio.sleep(60)
        return ""

    assert asyncio.run(add.answer("{}")) == ("error: add does not take {}: Object missing required field `a`")
    assert asyncio.run(add.answer("{")).startswith("error: add does not take {: that is no JSON")
    assert "unknown field `c`" in asyncio.run(add.answer('{"a": 1, "b": 2, "c": 3}'))
    assert asyncio.run(ember.tool(fail).answer("{}")) == "error: KeyError: 'k'"
    assert asyncio.run(hang.answer("{}")) == "error: hang took longer than 0.01 s"


def unannotated(x):
    return x


def variadic(*words: str):
    return words


BAD = {
    "no annotation": (lambda: ember.tool(unannotated), AnnotationError, "annotate its argument, as in `x: str`"),
    "no names": (lambda: ember.tool(variadic), AnnotationError, "words"),
    "a name": (lambda: ember.tool(lambda: 1), ValueError, "'<lambda>' is no name"),
    "no function": (lambda: ember.tool(3), TypeError, "int"),
    "a timeout": (lambda: ember.tool(add.function, timeout=0), ValueError, "timeout=0"),
    "a cache": (lambda: ember.tool(add.function, cache="add:v1"), ValueError, "pure=True"),
    "two of a name": (lambda: LLM.tools("x", [add, add.function]), ValueError, "two tools are called 'add'"),
    "none": (lambda: LLM.tools("x", []), ValueError, "no tools"),
    "an agent without": (lambda: ember.Agent(LLM, []), ValueError, "no tools"),
    "steps": (lambda: ember.Agent(LLM, [add], max_steps=0), ValueError, "max_steps=0"),
    "most": (lambda: LLM.tools("x", [add], most=0), ValueError, "most=0"),
    "a setting": (lambda: ember.LLM("sim/small", tools="[]").tools("x", [add]), TypeError, "setting tools"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_tool_is_told(name):
    make, kind, told = BAD[name]
    with pytest.raises(kind, match=told):
        make()


def test_a_model_without_words_that_was_not_asked_for_calls_is_told():
    def answer(request):
        return Response("", finish=Finish.TOOL_CALLS, tool_calls=(Part("tool_call", "{}", "add", "1"),))

    with (
        ember.session(providers={"mine": Callable(answer)}, journal=None),
        pytest.raises(MalformedResponseError, match=r"wants 'add' called.*llm.tools"),
    ):
        ember.LLM("mine/model")("x")


def test_calls_and_their_results():
    reply = LLM.tools("add(2, 3) and mul(4) and nothing else, then add(1, 1)", [add, mul])
    assert reply.calls.length == 2 and reply.text.tolist() == ""
    assert [json.loads(call) for call in reply.calls.tolist()] == [
        {"name": "add", "arguments": '{"a": 2, "b": 3}'},
        {"name": "mul", "arguments": '{"a": 4}'},
    ]
    results = reply.results([add, mul])
    assert results.tolist() == ["5", "8.0", *[""] * 6]
    chat = reply.added_to(ember.Conversation([("user", "x")]), results)
    assert chat.messages[1:] == (
        Message.of(
            "assistant",
            (Part("tool_call", '{"a": 2, "b": 3}', "add", "call_0"), Part("tool_call", '{"a": 4}', "mul", "call_1")),
        ),
        Message.of("tool", (Part("tool_result", "5", "add", "call_0"), Part("tool_result", "8.0", "mul", "call_1"))),
    )


def test_an_unknown_tool_is_told_to_the_model():
    def answer(request):
        return Response("", finish=Finish.TOOL_CALLS, tool_calls=(Part("tool_call", "{}", "fly", "1"),))

    with ember.session(providers={"mine": Callable(answer)}, journal=None):
        reply = ember.LLM("mine/model").tools("x", [add, mul])
        assert reply.results([add, mul]).tolist()[0] == "error: there is no tool 'fly'; there are add, mul."


def test_chat_completions_are_asked_and_read():
    openai = OpenAI("http://127.0.0.1:1/v1", api_key="")
    reply = LLM.tools("add(2, 3)", [add])
    chat = reply.added_to(ember.Conversation([("user", "x")]), reply.results([add]))
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    request = Request("openai", "m", chat.messages, {"tools": tools})
    _, _, body = openai.build(request)
    called = {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
    assert body["messages"] == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_0", "content": "5"},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": [called, {"function": {"name": "b"}}]}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 1}}
    read = openai.read(200, {}, json.dumps(answer).encode(), request)
    assert read.finish == Finish.TOOL_CALLS and read.is_answer
    assert read.tool_calls == (
        Part("tool_call", '{"a": 2, "b": 3}', "add", "call_0"),
        Part("tool_call", "{}", "b", "call_1"),
    )


# -- agents ----------------------------------------------------------------------------------------------------------

PROMPTS = [f"{'add(1, 1), ' * i} then what is 2 + 2?" for i in range(5)]


def test_an_agent_makes_the_calls_that_its_model_wants():
    run = ember.Agent(LLM, [add, mul]).run("add(2, 3) and mul(4, 5), then add(1, 1)")
    assert str(run.answer) == "The answer is 2."
    assert (run.steps, run.calls, bool(run.is_done)) == (3, 3, True)
    assert [m.role for m in run.chat.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert "[add gave: 5]\n[mul gave: 20.0]" in str(run.chat)


def test_lanes_have_as_many_turns_as_they_need():
    agent = ember.Agent(ember.LLM("sim/large", temperature=0), [add])
    with ember.session(journal=None) as run:
        answers = jax.vmap(agent)(ember.text(PROMPTS))
    assert answers.tolist()[1:] == ["The answer is 2."] * 4
    assert run.report().requests == sum(i + 1 for i in range(5))
    assert run.report().barriers == 0


def test_a_sweep_takes_as_long_as_its_longest_lane():
    @ember.tool
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    model = SimModel(accuracy=1.0, latency=2.0)
    agent = ember.Agent(ember.LLM("sim/small"), [wait])
    prompts = ["wait(1)", "wait(3) and wait(5) and wait(4)", "wait(1), wait(1)", "nothing: 1 + 1?"]
    with VirtualClock() as clock, ember.session(journal=None, providers={"sim": Sim({"small": model})}):
        jax.vmap(agent)(ember.text(prompts))
        assert clock.now == pytest.approx(max(2 + 1 + 2, 2 + 5 + 2, 2 + 1 + 2 + 1 + 2, 2))


def test_a_hundred_lanes_make_the_calls_that_they_need_and_take_as_long_as_the_longest():
    @ember.tool
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    draws = np.random.default_rng(0)
    waits = [draws.integers(1, 6, draws.integers(0, 7)).tolist() for _ in range(100)]
    prompts = [f"{''.join(f'wait({s}), ' for s in of_one)}what is {i} + 2?" for i, of_one in enumerate(waits)]
    agent = ember.Agent(LLM, [wait])
    providers = {"sim": Sim({"small": SimModel(accuracy=1.0, latency=2.0)})}
    with VirtualClock() as clock, ember.session(journal=None, providers=providers) as run:
        runs = jax.vmap(agent.run)(ember.text(prompts))
        assert clock.now == pytest.approx(max(2 * (len(of_one) + 1) + sum(of_one) for of_one in waits))
    assert runs.steps.tolist() == [len(of_one) + 1 for of_one in waits]
    assert runs.calls.tolist() == [len(of_one) for of_one in waits]
    assert run.report().requests == sum(len(of_one) + 1 for of_one in waits)


def test_a_tool_that_runs_an_operator_waits_for_no_turn_of_its_own():
    @ember.tool
    def ask(question: str) -> str:
        return str(LLM(question))

    agent = ember.Agent(LLM, [ask])
    with ember.session(journal=None, scheduler=ember.Topological(slots=1)) as run:
        jax.vmap(agent)(ember.text(["ask(1 + 1) and ask(2 + 2)", "ask(3 + 3)"]))
    assert run.report().requests == 2 + 2 + 1 + 2


def test_limits_end_a_run():
    long = "add(1, 1), " * 9
    by_steps = ember.Agent(LLM, [add], max_steps=3).run(long)
    assert (by_steps.steps, bool(by_steps.is_done)) == (3, False)
    assert str(by_steps.answer) == ""
    by_tokens = ember.Agent(LLM, [add], max_tokens=60).run(long)
    used = by_tokens.input_tokens + by_tokens.output_tokens
    assert not by_tokens.is_done and by_tokens.steps < 9 and used >= 60
    by_cost = ember.Agent(LLM, [add], max_cost_usd=1e-5).run(long)
    assert not by_cost.is_done and by_cost.cost >= 1e-5
    assert by_cost.steps < 9


def test_a_failing_tool_leaves_other_lanes_alone():
    @ember.tool
    def div(a: int, b: int) -> float:
        return a / b

    agent = ember.Agent(LLM, [div])
    answers = jax.vmap(agent)(ember.text(["div(1, 0)", "div(4, 2)"])).tolist()
    assert answers == ["The answer is error: ZeroDivisionError: division by zero.", "The answer is 2.0."]


def test_a_conversation_goes_on():
    agent = ember.Agent(LLM, [add])
    before = agent.run("add(1, 2)")
    after = agent.run(before.chat.user("add(3, 4)"))
    assert str(after.answer) == "The answer is 7."
    assert after.chat.messages[: len(before.chat.messages)] == before.chat.messages


def test_an_agent_is_a_tool_and_a_member():
    inner = ember.Agent(LLM, [add])
    outer = ember.Agent(LLM, [ember.tool(inner, name="ask", description="Asks another.")])
    assert json.loads(outer.tools[0].schema)["properties"] == {"question": {"type": "string"}}
    assert str(outer("ask(add 1)")).startswith("The answer is ")
    vote = ember.non.Vote(inner, n=3)
    assert str(vote("add(2, 2)", jax.random.key(0))) == "The answer is 4."


AGENTS = """
import os, signal, sys
import jax
import ember_jax as ember
from ember_jax.providers import Callable, Response
from ember_jax.providers.base import Finish, Part

journal, asked, dies_at = sys.argv[1], sys.argv[2], int(sys.argv[3])

@ember.tool
def add(x: int) -> int:
    return x + 1

def answer(request):
    with open(asked, "a") as file:
        file.write(".")
    if os.path.getsize(asked) >= dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    number = int(request.messages[-1].content)
    if number % 8 == 0:
        return Response(f"{number}", 1, 1)
    call = Part("tool_call", f'{{"x": {number}}}', "add", f"call-{number}")
    return Response("", 1, 1, finish=Finish.TOOL_CALLS, tool_calls=(call,))

numbers = [100 * i + i % 8 for i in range(1, 31)]
with ember.session(journal=journal, providers={"mine": Callable(answer)}) as run:
    agent = ember.Agent(ember.LLM("mine/model"), [add])
    answers = jax.vmap(agent)(ember.text([str(n) for n in numbers])).tolist()
assert answers == [str(-(-n // 8) * 8) for n in numbers]
print(sum(-n % 8 + 1 for n in numbers), run.report().replayed)
"""


def test_a_killed_sweep_of_agents_goes_on_where_it_was(tmp_path):
    def of(dies_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", AGENTS, str(tmp_path / "run.db"), str(asked), str(dies_at)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    asked = tmp_path / "asked"
    assert of(70).returncode == -signal.SIGKILL
    kept, before = ember.Journal(tmp_path / "run.db").stats().calls, asked.stat().st_size
    assert before - 30 <= kept < before  # a lane asks on when its last answer is kept
    done = of(10**6)
    assert done.returncode == 0, done.stderr
    needed, replayed = map(int, done.stdout.split())
    assert (replayed, asked.stat().st_size - before) == (kept, needed - kept)


def test_what_is_run_again_pays_nothing_and_pure_tools_are_not_called(tmp_path):
    made = {"pure": 0, "other": 0}

    @ember.tool(pure=True, cache="twice:v1")
    def twice(x: int) -> int:
        made["pure"] += 1
        return 2 * x

    @ember.tool
    def thrice(x: int) -> int:
        made["other"] += 1
        return 3 * x

    def answer(request):
        done = sum(part.kind == "tool_result" for m in request.messages for part in m.parts)
        if done == 2:
            return Response(request.messages[-1].content, 1, 1)
        name = ("twice", "thrice")[done]
        # another id each time, as services give them
        call = Part("tool_call", '{"x": 5}', name, f"call-{np.random.default_rng().integers(10**9)}")
        return Response("", 1, 1, finish=Finish.TOOL_CALLS, tool_calls=(call,))

    reports = []
    for _ in range(2):
        with ember.session(journal=tmp_path / "run.db", providers={"mine": Callable(answer)}) as run:
            agent = ember.Agent(ember.LLM("mine/model"), [twice, thrice])
            assert str(agent("go")) == "15"
        reports.append(run.report())
    assert [(r.requests, r.replayed) for r in reports] == [(3, 0), (0, 3)]
    assert made == {"pure": 1, "other": 2}
