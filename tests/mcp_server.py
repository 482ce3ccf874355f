"""A server of the Model Context Protocol, by the package `mcp` itself: `mcp_server.py [PORT]`, without a port by its
standard streams."""

import asyncio
import sys

from mcp.server import MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool(name="fail.now")
def fail() -> str:
    """Fails."""
    raise ValueError("it is broken")


@server.tool()
async def hang() -> str:
    """Takes for ever."""
    await asyncio.sleep(3600)
    return ""


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
