#!/usr/bin/env bash
# mcp 2.3.0: what a tool raised is not told to the client, only that it raised.
#
# Expected: a tool that raises gives a result with `is_error`, whose text says why, so that a model can mend its call.
# Behaviour: of an ordinary exception the text is "Error executing tool NAME" alone; the exception and its words are in
# the server's log. Only what is raised as `mcp.server.mcpserver.exceptions.ToolError` reaches the client with its words.
# Whom it hurts: agents whose tools raise ValueError("no such city: Osl") for the model to read: it reads that something
# went wrong, and tries the same again.
# Seen with CPython 3.13.0 and 3.11.7:
#   ValueError: Error executing tool look
#   ToolError: Error executing tool look_and_tell: no such city: Osl
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import logging

from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

logging.disable(logging.CRITICAL)
server = MCPServer("places")


@server.tool()
def look(city: str) -> str:
    raise ValueError(f"no such city: {city}")


@server.tool()
def look_and_tell(city: str) -> str:
    raise ToolError(f"no such city: {city}")


async def main():
    async with Client(server) as client:
        told = {}
        for kind, name in ("ValueError", "look"), ("ToolError", "look_and_tell"):
            result = await client.call_tool(name, {"city": "Osl"})
            assert result.is_error
            told[kind] = result.content[0].text
            print(f"{kind}: {told[kind]}")
    assert told["ValueError"] == "Error executing tool look"
    assert "no such city: Osl" in told["ToolError"]


asyncio.run(main())
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mcp==2.3.0
"$folder/venv/bin/python" "$folder/run.py"
