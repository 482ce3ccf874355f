"""Runs every benchmark, each in a process of its own, and ends with one table of all figures.

`python benchmarks`, with `--quick` for fewer lanes and calls, and with names for some of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hardware
import report

HERE = Path(__file__).parent
HELPERS = {"__main__", "against", "hardware", "report", "serving"}
# Arguments of a quick run.
QUICK = {
    "chaos": ["500"],
    "http_cost": ["1000", "30"],
    "kill": ["300", "2"],
    "lanes": ["1000"],
    "lowering": ["200", "2000"],
    "million": ["--quick"],
    "overhead": ["1000", "10000"],
    "segments": ["1", "256"],
    "simulated": ["1000"],
    "votes": ["200", "2"],
}


def run(name: str, arguments: list[str]) -> tuple[bool, list[dict[str, Any]]]:
    """Runs one benchmark; says whether it ended well, and which rows it handed over."""
    print(f"\n== {name} {' '.join(arguments)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        environment = {**os.environ, report.ROWS: str(rows)}
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments], env=environment)
        lines = rows.read_text().splitlines() if rows.exists() else []
    return done.returncode == 0, [json.loads(line) for line in lines]


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as a table."""
    heads = ("benchmark", "what", "figure", "baseline", "ratio", "target")
    cells = [heads, *map(_cells, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    for row in cells:
        words = [
            f"{c:<{w}}" if i in (0, 1, 5) else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(words).rstrip())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    figure, baseline = row["figure"], row["baseline"]
    of = lambda value: "" if value is None else f"{value:,.4g} {row['unit']}"
    ratio = f"{figure / baseline:.3g}" if baseline else ""
    return row["benchmark"], row["what"], of(figure), of(baseline), ratio, row["target"]


def main() -> None:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in HELPERS)
    parser = argparse.ArgumentParser(prog="python benchmarks", description="Runs the benchmarks, one after another.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which ones: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="fewer lanes and calls")
    given = parser.parse_args()
    if unknown := set(given.names).difference(names):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in given.names or names:
        well, found = run(name, QUICK.get(name, []) if given.quick else [])
        rows += found
        failed += [] if well else [name]
    print()
    hardware.show()
    show(rows)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
