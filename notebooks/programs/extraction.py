"""2,000 rows are extracted, killed with `kill -9` in the middle, and resumed: the rerun pays only for the rest."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

import jax

import ember_jax as ember

ROWS, KILLED_AT = 2000, 900


class Order(NamedTuple):
    """An order of a customer."""

    count: int
    fruit: Literal["apples", "pears", "plums"]
    express: bool


FRUITS = ("apples", "pears", "plums")
rows = [f"Please send {i % 50 + 1} {FRUITS[i % 3]}{' at once' if i % 7 == 0 else ''}. Order {i}." for i in range(ROWS)]


def extract(journal, asked, killed_at):
    """Extracts all rows; ends this process, without a word, when it has asked so often."""

    def model(request):
        time.sleep(0.002)
        with asked.open("a") as file:
            file.write("x")
        if asked.stat().st_size >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count, fruit = re.search(r"(\d+) (\w+)\b", request.messages[-1].content).groups()
        return json.dumps({"count": int(count), "fruit": fruit, "express": "at once" in request.messages[-1].content})

    ember.register("mine", ember.providers.Callable(model))
    llm = ember.LLM("mine/extractor", temperature=0)
    with ember.session(journal=journal, limits={"mine": ember.Limit(in_flight=8)}) as run:
        return jax.vmap(lambda row: llm.structured(row, Order))(ember.text(rows)), run.report()


if __name__ == "__main__" and sys.argv[1:]:
    extract(*map(Path, sys.argv[1:]), KILLED_AT)
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        journal, asked = Path(folder) / "run.db", Path(folder) / "asked"
        child = subprocess.run([sys.executable, __file__, journal, asked])
        kept, before = ember.Journal(journal).stats().calls, asked.stat().st_size
        orders, report = extract(journal, asked, float("inf"))
        after = asked.stat().st_size - before
    print(f"asked {before}, kept {kept}, killed; asked {after} more, replayed {report.replayed}")
    assert child.returncode == -signal.SIGKILL and KILLED_AT <= before < ROWS
    assert after == report.requests == ROWS - kept and report.replayed == kept > 0
    assert orders.count.tolist() == [i % 50 + 1 for i in range(ROWS)]
    assert orders.fruit.tolist() == [FRUITS[i % 3] for i in range(ROWS)]
    assert orders.express.tolist() == [i % 7 == 0 for i in range(ROWS)]
