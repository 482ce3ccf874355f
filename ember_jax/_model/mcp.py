"""`MCP`: the tools of a server of the Model Context Protocol.

Design note. The package `mcp` keeps a connection within one task, which must also close it. So a task on the event loop
holds the connection as long as the `with` block lasts, and the calls of lanes go through it from their own tasks.
"""

import asyncio
import concurrent.futures
import contextlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from .._runtime import session as sessions
from ..errors import ToolError
from .tools import Tool

# The seconds that a server may take to start and to list its tools.
_START = 60.0


class MCP:
    """The tools of a server of the Model Context Protocol, while the `with` block lasts.

    ```python
    with ember.MCP(["uvx", "mcp-server-time"]) as tools:
        agent = ember.Agent(ember.LLM("openai/gpt-4o-mini"), tools)
        print(agent("What time is it in Oslo?"))
    ```

    **Arguments:**

    - `server`: the command that starts the server, which is spoken to by its standard streams, as a list; or the URL of
        a server over HTTP.
    - `only`: the names of the tools to take; by default all.
    - `env`: environment variables for the command, besides the few that `mcp` passes on.
    - `timeout`: seconds after which a call is given up, and the model told.

    The server's own process ends with the block. It needs the package `mcp` (`pip install mcp`).

    **Raises:** when the block is entered, `ToolError` if the server does not start, is not reached, or lacks a tool of
    a name in `only`; `ImportError` without the package.
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        only: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ):
        is_url = isinstance(server, str) and server.startswith(("http://", "https://"))
        if not is_url and (isinstance(server, str) or not server):
            raise ValueError(f"MCP({server!r}): give a command as a list, or a URL that begins with http.")
        if not timeout > 0:
            raise ValueError(f"MCP(timeout={timeout!r}): give seconds, more than 0.")
        self._server = server
        self._only = only
        self._env = env
        self._timeout = timeout
        self._stop: asyncio.Event | None = None
        self._ended: concurrent.futures.Future[Any] | None = None

    def __enter__(self) -> list[Tool]:
        target = self._target()
        ready: concurrent.futures.Future[list[Tool]] = concurrent.futures.Future()
        self._ended = sessions.loop().submit(self._hold(target, ready))
        try:
            return ready.result(_START)
        except BaseException as error:
            self._close()
            if isinstance(error, concurrent.futures.TimeoutError):
                raise ToolError(f"{self}: no tools were listed within {_START:g} s.") from None
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __repr__(self) -> str:
        # Neither the arguments of a command nor the question of a URL, which may hold a key.
        shown = self._server.partition("?")[0] if isinstance(self._server, str) else self._server[0]
        return f"MCP({shown!r})"

    def _target(self) -> Any:
        package = _package()
        if isinstance(self._server, str):
            return self._server
        command, *arguments = self._server
        return package.StdioServerParameters(
            command=command, args=arguments, env=None if self._env is None else {**self._env}
        )

    async def _hold(self, target: Any, ready: "concurrent.futures.Future[list[Tool]]") -> None:
        """Holds the connection until the block ends."""
        self._stop = asyncio.Event()
        try:
            async with _package().Client(target) as client:
                ready.set_result(await self._tools(client))
                await self._stop.wait()
                self._stop = None
        except Exception as error:
            if ready.done():
                raise
            causes = ", ".join(sorted({str(cause) or type(cause).__name__ for cause in _leaves(error)}))
            ready.set_exception(ToolError(f"{self}: the server cannot be used: {causes}."))

    def _close(self) -> None:
        if self._stop is not None:
            stop = self._stop
            sessions.loop().call(stop.set)
        elif self._ended is not None:
            self._ended.cancel()
        if self._ended is not None:
            with contextlib.suppress(Exception, concurrent.futures.CancelledError):
                self._ended.result(10.0)
            self._ended = None

    async def _tools(self, client: Any) -> list[Tool]:
        found, cursor = [], None
        while True:
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        names = [tool.name for tool in found]
        if self._only is not None and (missing := sorted({*self._only} - {*names})):
            raise ToolError(f"{self} has no tool {missing[0]!r}; it has {', '.join(names) or 'none'}")
        return [self._tool(client, tool) for tool in found if self._only is None or tool.name in self._only]

    def _tool(self, client: Any, tool: Any) -> Tool:
        async def call(**given: Any) -> str:
            if self._stop is None:
                return f"error: the connection to {self} is closed."
            result = await client.call_tool(tool.name, given)
            said = "\n".join(map(_in_words, result.content))
            return f"error: {said}" if result.is_error else said

        schema = tool.input_schema or {"type": "object", "properties": {}}
        name = re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:64]
        call.__name__ = call.__qualname__ = name
        return Tool(call, name, tool.description or "", json.dumps(schema), False, None, self._timeout, None)


def _package() -> Any:
    try:
        return importlib.import_module("mcp")
    except ImportError as error:
        raise ImportError("ember.MCP needs the package mcp: `pip install mcp`.") from error


def _in_words(part: Any) -> str:
    text = getattr(part, "text", None)
    if text is None:
        text = getattr(getattr(part, "resource", None), "text", None)
    return text if isinstance(text, str) else f"[{part.type}]"


def _leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a group, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
