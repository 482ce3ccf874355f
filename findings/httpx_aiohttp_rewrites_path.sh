#!/usr/bin/env bash
# httpx-aiohttp 0.2.0: a path is sent otherwise than httpx has it, so a signature of it is wrong.
#
# Expected: what `request.url` says is what is sent, as by httpx's own transport: `%3A` stays `%3A`.
# Behaviour: the URL is parsed anew by yarl, which writes `%3A` as `:`. To servers of files that is the same; a signature
# (AWS's SigV4) is of the path as it is sent, and there `%3A` becomes `%253A`, and `:` becomes `%3A`.
# Whom it hurts: who sends requests over it that are signed before, as in an `auth=` of httpx: models of Amazon Bedrock
# have a colon in their names (`…-v1:0`), and AWS's own package writes it as `%3A`.
# Seen with CPython 3.11.7:
#   httpx: /model/a-v1%3A0/converse
#   httpx over aiohttp: /model/a-v1:0/converse
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import asyncio

import httpx
import httpx_aiohttp

lines = []


async def answers(reader, writer):
    lines.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/model/a-v1%3A0/converse"
    for name, transport in {"httpx": None, "httpx over aiohttp": httpx_aiohttp.AiohttpTransport()}.items():
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.post(url)
        assert str(answer.request.url) == url  # so httpx has it in both cases
        print(f"{name}: {lines[-1]}")
    server.close()
    assert lines == ["/model/a-v1%3A0/converse", "/model/a-v1:0/converse"]


asyncio.run(main())
PYTHON
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1 httpx-aiohttp==0.2.0
"$folder/venv/bin/python" "$folder/run.py"
