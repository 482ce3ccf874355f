"""The main job and the front door: what README promises runs."""

import io
import json
import pathlib
import re

import pytest

import ember_jax as ember
from ember_jax import _cli, _demo

ROOT = pathlib.Path(__file__).parent.parent


def table(output):
    rows = re.findall(r"^(\S.*?) +([\d.]+)% +([\d,]+) +\$([\d.]+) +[\d.]+$", output, re.M)
    return {name: (float(accuracy), int(calls.replace(",", "")), float(cost)) for name, accuracy, calls, cost in rows}


@pytest.fixture(scope="module")
def output():
    out = io.StringIO()
    _demo.demo(120, 0, out)
    return out.getvalue()


def test_the_demo_shows_plan_answers_calls_cost_and_accuracy(output):
    assert "plan of Network" in output
    assert "3 calls of sim/small, at once" in output
    assert len(re.findall(r"^What is \d+ \* \d+ \+ \d+\?  -?\d+", output, re.M)) == 5
    assert set(table(output)) == {"one small model", "vote of three", "network", "one large model"}


def test_the_network_is_as_right_as_the_large_model_and_cheaper(output):
    rows = table(output)
    assert rows["network"][0] > rows["vote of three"][0] > rows["one small model"][0]
    assert rows["network"][2] < 0.75 * rows["one large model"][2]


def test_the_demo_makes_exactly_the_calls_its_lanes_need(output):
    calls = {name: calls for name, (_, calls, _) in table(output).items()}
    assert calls["one small model"] == calls["one large model"] == 120
    assert calls["vote of three"] == 3 * 120
    assert 4 * 120 < calls["network"] < 5 * 120  # three samples, a verdict, and some doubts


def test_the_command_line_takes_a_number_of_questions(capsys):
    _cli.main(["demo", "--questions", "3"])
    assert capsys.readouterr().out.startswith("3 questions")


def test_the_command_line_writes_the_networks_timeline(tmp_path):
    _cli.main(["demo", "--questions", "3", "--trace", str(tmp_path / "trace.json")])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    models = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert {"sim/small", "sim/medium"} <= models <= {"sim/small", "sim/medium", "sim/large"}
    assert {e["name"] for e in events if e["ph"] == "X"} == {"Network", "Network/Vote"}


@pytest.mark.parametrize("wrong", [["demo", "--questions", "0"], ["dmeo"], []])
def test_the_command_line_refuses_what_it_does_not_know(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(wrong)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_twenty_lines_of_the_readme_run(capsys):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    shown = capsys.readouterr().out
    assert "Cascade makes 1 to 2 calls" in shown
    assert re.search(r"^calls +\d+$", shown, re.M)


def test_the_readmes_providers_can_be_built():
    assert ember.LLM("openai/gpt-4o-mini", temperature=0.7, max_tokens=256)
    assert ember.providers.OpenAI(base_url="http://localhost:8000/v1")
    assert ember.providers.Callable(lambda request: request.messages[-1].content.upper())
