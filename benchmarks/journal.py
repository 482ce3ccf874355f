"""Claim: the journal costs a call at most 60 us, and answers at least 10,000 calls a second.

A thousand calls in flight through a session, of a provider that answers at once. Prints microseconds per call without
a journal (the baseline), with one in memory, with one in a file, and when the file answers; medians of paired runs.
Then how long a commit takes that is alone. Arguments: numbers of calls.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import hardware
import report

from ember_jax import providers
from ember_jax._runtime.garbage import calm
from ember_jax._runtime.journal.memory import MemoryJournal
from ember_jax._runtime.session import Session, loop

IN_FLIGHT, RUNS = 1000, 7


async def answer(request: providers.Request) -> providers.Response:
    await asyncio.sleep(0)
    return providers.Response(
        "An answer to " + request.messages[-1].content, 12, 5, 1e-6, -0.5, "model-2026-01-01", "req-0123"
    )


def requests(count: int) -> list[providers.Request]:
    parameters = {"temperature": 0.7, "max_tokens": 100}
    return [
        providers.Request("ours", "model", (providers.Message("user", f"Question number {i}"),), parameters)
        for i in range(count)
    ]


def microseconds(session: Session, asked: list[providers.Request]) -> float:
    """Of one call, with so many in flight."""

    async def run() -> float:
        left = iter(asked)

        async def lane() -> None:
            for request in left:
                await session.ask(request)

        start = time.perf_counter()
        with calm():
            await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
        return (time.perf_counter() - start) / len(asked) * 1e6

    return loop().submit(run()).result()


def compare(calls: int, folder: Path) -> None:
    asked = requests(calls)
    found: dict[str, list[float]] = {"none": [], "memory": [], "file": [], "replay": []}
    for i in range(RUNS):
        for name, journal in (("none", None), ("memory", MemoryJournal()), ("file", folder / f"{i}.db")):
            session = Session(journal, {"ours": providers.Callable(answer)})
            found[name].append(microseconds(session, asked))
            if name == "file":
                found["replay"].append(microseconds(session, asked))
                assert session.report().requests == calls
            session.close()
    none, memory, file, replay = map(statistics.median, found.values())
    on = statistics.median(f - n for f, n in zip(found["file"], found["none"], strict=True))
    print(
        f"{calls:>7,} calls, {IN_FLIGHT:,} in flight: {none:5.1f} us without a journal, {memory:5.1f} in memory, "
        f"{file:5.1f} in a file (+{on:.1f}); replayed {replay:5.1f} us, {1e6 / replay:,.0f} calls a second"
    )
    report.row(f"a call kept in a file, {calls:,} calls; without a journal", file, none, "us", "+60 us")
    report.row(f"calls replayed, {calls:,} calls", 1e6 / replay, None, "/s", "10,000 /s")


def alone(folder: Path) -> None:
    session = Session(folder / "alone.db", {"ours": providers.Callable(answer)})

    async def run() -> float:
        seconds = []
        for request in requests(1000):
            start = time.perf_counter()
            await session.ask(request)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    seconds = loop().submit(run()).result()
    session.close()
    print(f"one call at a time: {seconds * 1e6:.0f} us each, with a commit of its own")
    report.row("a call alone, with a commit of its own", seconds * 1e6, None, "us")


def main() -> None:
    hardware.show()
    with tempfile.TemporaryDirectory() as folder:
        for calls in map(int, sys.argv[1:] or ("10000", "50000")):
            (where := Path(folder) / str(calls)).mkdir()
            compare(calls, where)
        alone(Path(folder))


if __name__ == "__main__":
    main()
