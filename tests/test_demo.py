"""The main job and the front door: what README promises runs."""

import io
import pathlib
import re

import jax
import numpy as np
import pytest

import ember_jax as ember
from ember_jax import _cli
from ember_jax._cli import demo

ROOT = pathlib.Path(__file__).parent.parent


def frontier(output):
    """Accuracy and dollars a row, by operator."""
    rows = re.findall(r"^(\S.*?) +([\d.]+)  \[[\d., ]+\] +\$([\d.e-]+) +0  ", output, re.M)
    return {name: (float(accuracy), float(cost)) for name, accuracy, cost in rows}


def curve(output, name):
    (row,) = re.findall(rf"^{name} +(.*)$", output, re.M)
    return [float(x) for x in re.findall(r"[\d.]+", row)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What a small demo prints, and the folder of its pictures."""
    out, folder = io.StringIO(), tmp_path_factory.mktemp("demo") / "pictures"
    demo.demo(120, 0, out, folder)
    return out.getvalue(), folder


def test_the_demo_shows_the_plan_answers_and_a_report(shown):
    output, _ = shown
    assert "Cascade makes 4 to 5 calls" in output and "3 calls of sim/small, at once" in output
    assert len(re.findall(r"^What is \d+ \* \d+ \+ \d+\?  -?\d+", output, re.M)) == 3
    # Each lane's own: one, three, three and a verdict and perhaps a doubt, and one.
    (calls,) = re.findall(r"^calls +([\d,]+)$", output, re.M)
    assert 9 * 120 < int(calls.replace(",", "")) < 9.5 * 120


def test_the_network_is_almost_as_right_as_the_large_model_and_cheaper(shown):
    rows = frontier(shown[0])
    assert set(rows) == {"one small model", "vote of three", "network", "one large model"}
    assert rows["network"][0] > rows["vote of three"][0] > rows["one small model"][0]
    assert rows["network"][0] > 0.95 * rows["one large model"][0]
    assert rows["network"][1] < 0.75 * rows["one large model"][1]


def test_votes_get_better_and_then_worse_as_the_law_says(shown):
    output, _ = shown
    law, measured = curve(output, "exact law"), curve(output, "measured")
    assert law[0] == 65.0 and law[1] == 67.8 and law[-1] < 62  # F(1), F(5) of the published table
    assert max(abs(m - x) for m, x in zip(measured, law, strict=True)) < 100 * 4 * 0.5 / 120**0.5
    assert re.search(r"From 20 samples of each question: (\d calls are best|not known)", output)


def test_the_demo_writes_three_pictures(shown):
    output, folder = shown
    for name in ("frontier", "timeline", "votes"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"{name}.png" in output


def test_the_command_line_takes_a_number_of_questions_and_a_folder(capsys, tmp_path):
    _cli.main(["demo", "--questions", "3", "--out", str(tmp_path)])
    assert capsys.readouterr().out.startswith("3 questions")
    assert (tmp_path / "votes.png").exists()


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


def test_readmes_conversations_and_agents_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (code,) = [block for block in blocks if "ember.Conversation(" in block]
    offline = code[: code.index("with ember.MCP(")]
    llm, pixels = ember.LLM("sim/small"), np.zeros((4, 4), np.uint8)
    given = {"ember": ember, "jax": jax, "llm": llm, "pixels": pixels, "__name__": "readme"}
    exec(compile(offline, "README.md", "exec"), given)
    said = capsys.readouterr().out
    assert "['The answer is 2.', 'The answer is 2.']" in said
    assert "assistant: The answer is 5." in said
    assert len(given["chat"].messages) == 4
