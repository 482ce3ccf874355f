"""`ember.MCP` against a real server process of the package `mcp`."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import pytest

import ember_jax as ember
from ember_jax.errors import ToolError

pytest.importorskip("mcp", reason="the package mcp is not installed")
SERVER = str(Path(__file__).parent / "mcp_server.py")
COMMAND = [sys.executable, SERVER]
LLM = ember.LLM("sim/small")


def test_its_tools_are_those_of_the_server():
    with ember.MCP(COMMAND) as tools:
        assert [tool.name for tool in tools] == ["add", "fail_now", "hang"]
        add = tools[0]
        assert add.description == "Adds two numbers."
        assert json.loads(add.schema)["required"] == ["a", "b"]


def test_an_agent_calls_them_in_every_lane():
    with ember.MCP(COMMAND, only=["add"]) as tools:
        agent = ember.Agent(LLM, tools)
        answers = jax.vmap(agent)(ember.text([f"add({i}, {i}) then add(1, {i})" for i in range(20)]))
    assert answers.tolist() == [f"The answer is {1 + i}." for i in range(20)]


def test_what_goes_wrong_is_told_to_the_model():
    with ember.MCP(COMMAND, timeout=0.2) as tools:
        agent = ember.Agent(LLM, tools)
        assert "error: Error executing tool fail.now" in str(agent("fail_now()"))  # mcp keeps to itself what was raised
        assert "hang took longer than 0.2 s" in str(agent("hang()"))
        assert str(agent("add(1, 2)")) == "The answer is 3."  # it goes on after both
        assert "error" in str(agent("add(1)"))
    assert "the connection to MCP" in str(agent("add(1, 2)"))


def test_a_server_over_http():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_it_answers(port)
        with ember.MCP(f"http://127.0.0.1:{port}/mcp") as tools:
            assert str(ember.Agent(LLM, tools)("add(20, 22)")) == "The answer is 42."
    finally:
        process.kill()
        process.wait()


def _until_it_answers(port):
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/mcp", timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the server did not come up")


BAD = {
    "no command": (lambda: ember.MCP("uvx server"), ValueError, "as a list"),
    "a timeout": (lambda: ember.MCP(COMMAND, timeout=0), ValueError, "timeout=0"),
    "no program": (lambda: ember.MCP(["no-such-program-here"]).__enter__(), ToolError, "no-such-program-here"),
    "no server": (lambda: ember.MCP("http://127.0.0.1:9/mcp?key=secret").__enter__(), ToolError, "cannot be used"),
    "no tool": (lambda: ember.MCP(COMMAND, only=["sub"]).__enter__(), ToolError, "no tool 'sub'; it has add"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_told(name):
    make, kind, told = BAD[name]
    with pytest.raises(kind, match=told) as caught:
        make()
    assert "secret" not in str(caught.value)
