#!/usr/bin/env bash
# pyreqwest 0.15.1: a request that was sent, and whose answer was lost, raises an error of connecting.
#
# Expected: `ConnectError` and `ConnectTimeoutError` ("while connecting", as their docstrings say) mean that no
# connection was made, so that nothing was sent; a `read_timeout` that passes raises `ReadTimeoutError`.
# Behaviour: where the server has read the request and then hangs up, or says nothing for the read timeout, the same two
# are raised as for a port that nobody listens on. Only `details["causes"]` tells: "client error (Connect)" is in it
# where no connection was made, "client error (SendRequest)", or neither, where the request was sent.
# Whom it hurts: who sends again, or counts as unpaid, what raised an error of connecting: the service may have done the
# work, and bill it.
# Seen with CPython 3.11.7 and 3.13.0:
#   nobody listens: ConnectError, (Connect) True
#   hangs up after the request: ConnectError, (Connect) False
#   says nothing after the request: ConnectTimeoutError, (Connect) False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import asyncio
import datetime

from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import RequestError

seconds = lambda s: datetime.timedelta(seconds=s)
read = []


async def hangs_up(reader, writer):
    read.append(await reader.readuntil(b"the body"))
    writer.close()


async def says_nothing(reader, writer):
    read.append(await reader.readuntil(b"the body"))
    await reader.read()  # until the client hangs up
    writer.close()


async def outcome(client, port):
    try:
        await client.post(f"http://127.0.0.1:{port}/").body_bytes(b"the body").build().send()
    except RequestError as error:
        causes = [cause["message"] for cause in error.details["causes"]]
        return type(error).__name__, "client error (Connect)" in causes


async def main():
    client = ClientBuilder().connect_timeout(seconds(30)).read_timeout(seconds(1)).build()
    found = {}
    for name, handler in ("hangs up", hangs_up), ("says nothing", says_nothing):
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        found[f"{name} after the request"] = await outcome(client, port)
        server.close()
    found = {"nobody listens": await outcome(client, port), **found}
    await client.close()
    for name, (error, is_connect) in found.items():
        print(f"{name}: {error}, (Connect) {is_connect}")
    assert len(read) == 2  # the servers have got both requests whole
    assert [*found.values()] == [("ConnectError", True), ("ConnectError", False), ("ConnectTimeoutError", False)]
    await asyncio.sleep(1)  # for the client's thread to come to rest


asyncio.run(main())
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyreqwest==0.15.1
"$folder/venv/bin/python" "$folder/run.py"
