"""Claim: a call over HTTP costs less CPU than a hand-written program does over httpx with the same client below it.

Lanes of three stages, a thousand in flight, through a real server on this machine in a process of its own. By hand: one
coroutine for each lane, the same prompts and bodies, aiohttp with a connection for each request in flight. Beside it
the same program over httpx, with aiohttp as its transport and with its own. CPU time of this process, paired runs,
medians. Arguments: the number of lanes, and of lanes over httpx's own transport; `--tls` for a server with TLS, whose
certificate is made for the run.
"""

import asyncio
import contextlib
import functools
import json
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import hardware
import httpx
import httpx_aiohttp
import jax
import report
import serving

import ember_jax as ember
from ember_jax._runtime.garbage import calm

STAGES, LATENCY, RUNS, OURS, HTTPX = 3, 0.2, 5, "ours", "by hand, httpx over aiohttp"
TEMPLATE = "What is {n} + 1?"
PRICES = {"openai": ember.Price(input=1, output=1)}
LLM = ember.LLM("openai/model", temperature=0.5)


@ember.operator
def chain(number: ember.Text) -> ember.Text:
    for _ in range(STAGES):
        number = LLM(ember.format(TEMPLATE, n=number))
    return number


Post = Callable[[str, dict[str, str], bytes], Coroutine[Any, Any, bytes]]


async def by_hand(post: Post, url: str, numbers: list[str]) -> list[str]:
    headers = {"Content-Type": "application/json"}

    async def lane(number: str) -> str:
        for _ in range(STAGES):
            messages = [{"role": "user", "content": TEMPLATE.format(n=number)}]
            body = json.dumps({"model": "model", "messages": messages, "temperature": 0.5}).encode()
            answer = await post(f"{url}/chat/completions", headers, body)
            number = json.loads(answer)["choices"][0]["message"]["content"]
        return number

    return await asyncio.gather(*map(lane, numbers))


def session() -> aiohttp.ClientSession:
    trusted = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    # Idle connections are kept over the turns of the others: opening them anew is no part of a call.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0, ssl=trusted)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def over_aiohttp(client: aiohttp.ClientSession) -> Post:
    async def post(url: str, headers: dict[str, str], body: bytes) -> bytes:
        async with client.post(url, headers=headers, data=body) as answer:
            answer.raise_for_status()
            return await answer.read()

    return post


def over_httpx(client: httpx.AsyncClient) -> Post:
    async def post(url: str, headers: dict[str, str], body: bytes) -> bytes:
        answer = await client.post(url, headers=headers, content=body)
        return answer.raise_for_status().content

    return post


def own_transport() -> httpx.AsyncClient:
    return httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=120)


def calmly(runner: asyncio.Runner, work: Coroutine[Any, Any, list[str]]) -> list[str]:
    """Runs the program by hand with as few garbage collections as ours makes, and the one afterwards that ours pays."""
    with calm():
        return runner.run(work)


def cpu(work: Callable[[], list[str]], first: int, lanes: int) -> float:
    """The CPU seconds of one sweep, per call; the answers must be right."""
    start = time.process_time()
    answers = work()
    seconds = time.process_time() - start
    assert answers == [str(first + 10 * i + STAGES) for i in range(lanes)]
    return seconds / (STAGES * lanes)


def swept(run: Callable[[ember.Text], ember.Text], numbers: list[str]) -> list[str]:
    return run(ember.text(numbers)).tolist()


def compare(url: str, lanes: int, folder: Path) -> dict[str, list[float]]:
    """CPU seconds per call of each way, in runs that take turns."""
    mapped = jax.vmap(chain)
    found = {name: [] for name in ("by hand", HTTPX, OURS, "ours, with a journal", "ours, no limit given")}
    # All at once, as the program by hand sends them. Where no pace is given it is found out first, and calls are
    # spaced: the event loop then wakes for each of them, where it else wakes for many.
    at_once = {"openai": ember.Limit(in_flight=lanes, rpm=60_000_000)}
    ember.register("openai", ember.providers.OpenAI(url, api_key=""))
    with asyncio.Runner() as runner:
        clients = runner.run(opened())
        posts = over_aiohttp(clients[0]), over_httpx(clients[1])
        for i in range(-1, RUNS):  # the first opens the connections
            first = 10**6 * (i + 2)
            numbers = [str(first + 10 * j) for j in range(lanes)]  # whose chains have no call in common
            seconds = [cpu(lambda: calmly(runner, by_hand(post, url, numbers)), first, lanes) for post in posts]
            for journal, limits in ((None, at_once), (folder / "journal.db", at_once), (None, {})):
                with ember.session(journal=journal, limits=limits, prices=PRICES) as run:
                    seconds.append(cpu(functools.partial(swept, mapped, numbers), first, lanes))
                assert run.report().requests == STAGES * lanes
            if i >= 0:
                for name, of_one in zip(found, seconds, strict=True):
                    found[name].append(of_one)
        runner.run(closed(*clients))
    return found


async def opened() -> tuple[aiohttp.ClientSession, httpx.AsyncClient]:
    transport = httpx_aiohttp.AiohttpTransport(client=session)
    return session(), httpx.AsyncClient(transport=transport, timeout=120)


async def closed(client: aiohttp.ClientSession, other: httpx.AsyncClient) -> None:
    await client.close()
    await other.aclose()


def main() -> None:
    hardware.show()
    numbers = [int(word) for word in sys.argv[1:] if word != "--tls"]
    lanes, few = numbers or (1000, 1000)
    with contextlib.ExitStack() as inside:
        folder = inside.enter_context(tempfile.TemporaryDirectory())
        certificate = None
        if "--tls" in sys.argv:
            certificate = serving.certify(Path(folder))
            os.environ["SSL_CERT_FILE"] = str(Path(folder) / "cert.pem")  # whom all clients here trust
        url = inside.enter_context(serving.serving(LATENCY, certificate))
        found = compare(url, lanes, Path(folder))
        numbers = [str(10 * i) for i in range(few)]

        async def plain() -> list[str]:
            async with own_transport() as client:
                return await by_hand(over_httpx(client), url, numbers)

        own = cpu(lambda: asyncio.run(plain()), 0, few)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    hand = found["by hand"]
    print(f"{STAGES * lanes:,} calls, {lanes:,} in flight: CPU of the client for one call")
    for name, seconds in found.items():
        ratio = statistics.median(s / h for s, h in zip(seconds, hand, strict=True))
        print(f"  {name:<38} {1e6 * medians[name]:8.0f} us   ratio {ratio:5.2f}")
        if name != "by hand":
            target = f"<= {medians[HTTPX] / medians['by hand']:.1f}, httpx over aiohttp" if name == OURS else ""
            base = 1e6 * medians["by hand"]
            report.row(f"CPU of a call over HTTP, {name}; by hand", ratio * base, base, "us", target)
    name = f"by hand, httpx's transport, {few:,} lanes"
    print(f"  {name:<38} {1e6 * own:8.0f} us   ratio {own / medians['by hand']:5.2f}")
    print(f"ours is 1/{own / medians[OURS]:.1f} of httpx's own transport")
    what = f"CPU of a call over HTTP, ours; httpx's own transport, {few:,} lanes"
    report.row(what, 1e6 * medians[OURS], 1e6 * own, "us", "<= 0.1 at 1,000 lanes")


if __name__ == "__main__":
    main()
