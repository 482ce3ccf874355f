"""What a benchmark hands over to the command that runs them all: one row for each claim."""

import json
import os
import sys
from pathlib import Path

# A file that rows are appended to, as lines of JSON; by itself a benchmark only prints.
ROWS = "EMBER_BENCHMARK_ROWS"


def row(what: str, figure: float, baseline: float | None = None, unit: str = "s", target: str = "") -> None:
    """Notes a figure, what it is compared with, and what it is meant to be."""
    if ROWS in os.environ:
        found = {"benchmark": Path(sys.argv[0]).stem, "what": what, "figure": figure, "baseline": baseline}
        with open(os.environ[ROWS], "a") as file:
            file.write(json.dumps({**found, "unit": unit, "target": target}) + "\n")
