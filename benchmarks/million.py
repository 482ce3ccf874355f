"""Claim: a million different prompts in one sweep stay within a bound of memory, and the last cost what the first did.

`jax.vmap` of an operator that writes a prompt from its integer and asks a simulated model that answers at once. Every
prompt and every answer is another text; nothing else holds them than this library. A fresh process makes the sweep, and
reads answers back from all over it. Prints microseconds of CPU per call by tenths of the sweep. Beside each, 6 kB are
hashed, which tells how fast the machine is just then, and the last tenth is compared with the first by it. (When the
bounds are reached, after 10 and 30 % of a million, each call spills an answer and two texts besides: some 15 us.) Then
the peak memory, and the bound it is to stay within:

- a process that makes one call, with JAX and the program (measured);
- lanes in flight, a window of them at most, and the texts and answers that lie in memory: bounds of this library;
- what `run.calls` remembers of the last 262,144 calls, 300 bytes each, and `run.trace` of the first million, 98 bytes
  and what is allocated ahead;
- for every call 200 bytes: the places of its two texts and its answer in the files (40 each), its input and output (20,
  and as much for XLA's copy), and what allocators leave.

Then the same for as many prompts through a chain of two pure host functions, with a journal file: the tenths, and the
peak memory of the process.

`--quick`, or a number of calls.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hardware
import jax
import jax.numpy as jnp
import report

import ember_jax as ember
from ember_jax._engine.window import WINDOW
from ember_jax._runtime import call_log
from ember_jax._text import store
from ember_jax.providers import Provider, Request, Response, Sim, SimModel

TENTHS, PER_LANE, PER_CALL, LOGGED, TRACED = 10, 10_000, 200, 300, 120
BLOCK = bytes(6000)
TEXTS, ANSWERS = 128 << 20, 64 << 20  # what `_text.store` and `MemoryJournal` keep in memory


class Timed(Provider):
    """Simulated models, and when each tenth of the calls was answered."""

    is_local, endpoint = True, None

    def __init__(self, calls: int):
        self.times, self.beside = [time.process_time()], [0.0]
        self._sim = Sim({"now": SimModel(accuracy=1.0, latency=0)})
        self._calls, self._answered = calls, 0

    def check(self, model: str) -> None:
        self._sim.check(model)

    async def complete(self, request: Request) -> Response:
        response = await self._sim.complete(request)
        start = time.process_time()
        hashlib.blake2b(BLOCK).digest()
        self.beside[-1] += time.process_time() - start
        self._answered += 1
        if self._answered * TENTHS >= self._calls * len(self.times):
            self.times.append(time.process_time())
            self.beside.append(0.0)
        return response

    async def close(self) -> None:
        await self._sim.close()


class Successor(ember.Operator):
    """Asks for the number after a number."""

    llm: ember.LLM

    def forward(self, i: jax.Array) -> ember.Text:
        return self.llm(ember.format("What is {i} + 1? Answer with a number and nothing else, please.", i=i))


def sweep(calls: int) -> None:
    """Makes the sweep, and prints what was measured."""
    provider = Timed(calls)
    with ember.session(providers={"sim": provider}) as run:
        provider.times[0] = time.process_time()
        answers = jax.block_until_ready(jax.vmap(Successor(ember.LLM("sim/now")))(jnp.arange(calls)))
        assert run.report().requests == calls
    where = [i * (calls - 1) // 1000 for i in range(1000)]
    assert answers[jnp.array(where)].tolist() == [str(i + 1) for i in where]
    beside = provider.beside[:-1]
    seconds = [b - a - c for a, b, c in zip(provider.times, provider.times[1:], beside, strict=False)]
    tenths = [s / calls * TENTHS * 1e6 for s in seconds]
    measured = [s / c for s, c in zip(seconds, beside, strict=True)]
    print(
        json.dumps({"tenths": tenths, "measured": measured, "peak": hardware.peak_bytes(), "texts": store.in_memory()})
    )


def chain(prompts: int) -> None:
    """Takes prompts through two host functions, and prints what was measured."""
    times, begun = [time.process_time()], 0

    async def mark(words: str) -> str:
        nonlocal begun
        begun += 1
        if begun * TENTHS >= 2 * prompts * len(times):
            times.append(time.process_time())
        return words + "."

    call = ember.host(mark, out=ember.Text)
    both = ember.jit(lambda i: call(call(ember.format("What is {i} + 1? Answer with a number, please.", i=i))))
    with tempfile.TemporaryDirectory() as folder, ember.session(journal=Path(folder) / "run.db"):
        times[0] = time.process_time()
        jax.block_until_ready(jax.vmap(both)(jnp.arange(prompts)).digests)
    tenths = [(b - a) / (2 * prompts) * TENTHS * 1e6 for a, b in itertools.pairwise(times)]
    print(json.dumps({"tenths": tenths, "peak": hardware.peak_bytes()}))


def measured(calls: int, what: str = "--sweep") -> dict:
    """What a fresh process measures."""
    command = [sys.executable, __file__, what, str(calls)]
    environment = {**os.environ, "EMBER_JAX_JOURNAL": "memory"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    if sys.argv[1:2] == ["--sweep"]:
        sweep(int(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--chain"]:
        chain(int(sys.argv[2]))
        return
    hardware.show()
    calls = 100_000 if sys.argv[1:] == ["--quick"] else int((sys.argv[1:] or ["1_000_000"])[0])
    alone, found = measured(1)["peak"], measured(calls)
    tenths, relative, peak = found["tenths"], found["measured"], found["peak"]
    notes = min(calls, call_log.MOST) * LOGGED + min(calls, 1_000_000) * TRACED
    bound = alone + min(calls, WINDOW) * PER_LANE + TEXTS + ANSWERS + notes + calls * PER_CALL
    print(f"{calls:,} calls, us each by tenths: " + " ".join(f"{t:.1f}" for t in tenths))
    print("as multiples of the hash beside it: " + " ".join(f"{r:.1f}" for r in relative))
    print(f"the last tenth: {relative[-1] / relative[0]:.2f} x the first")
    print(
        f"peak memory {peak / 1e6:,.0f} MB; bound {bound / 1e6:,.0f} MB = {alone / 1e6:,.0f} for one call + "
        f"{min(calls, WINDOW) * PER_LANE / 1e6:,.0f} for lanes in flight + {TEXTS / 1e6:,.0f} for texts + "
        f"{ANSWERS / 1e6:,.0f} for answers + {notes / 1e6:,.0f} for notes of calls "
        f"+ {calls * PER_CALL / 1e6:,.0f} for {calls:,} calls; "
        f"{found['texts']:,} of {2 * calls:,} texts lie in memory"
    )
    report.row(f"the last tenth of {calls:,} calls, in hashes; the first", relative[-1], relative[0], "x", "1.25 x")
    report.row(f"peak memory of {calls:,} calls; its bound", peak / 1e6, bound / 1e6, "MB", "1 x")
    found = measured(calls, "--chain")
    tenths, peak = found["tenths"], found["peak"] / 1e6
    print(f"{calls:,} prompts through two host functions, us a call by tenths: " + " ".join(f"{t:.1f}" for t in tenths))
    print(f"the last tenth: {tenths[-1] / tenths[0]:.2f} x the first; peak memory {peak:,.0f} MB")
    report.row(f"the last tenth of {calls:,} prompts; the first", tenths[-1], tenths[0], "us", "1.1 x")
    report.row(f"peak memory of {calls:,} prompts", peak, None, "MB", "700 MB")


if __name__ == "__main__":
    main()
