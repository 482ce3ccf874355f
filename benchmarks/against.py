"""Compares benchmarks of this tree with those of another revision, run in turn on this machine.

`python benchmarks/against.py REVISION NAME…`, with `--pairs 3` and `--arguments "1000"` for each benchmark. The
revision's package is taken from a worktree of its own; the benchmarks are this tree's, so that both are measured alike.
Prints, for each row that a benchmark reports, both medians, the ratio of each pair's figures and their spread. The
order within pairs alternates, as a machine that gets slower would favour the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import hardware
import report

HERE = Path(__file__).parent


def measured(name: str, arguments: list[str], package: Path) -> dict[str, tuple[float, str]]:
    """What one run of a benchmark reports, with the package that stands in a folder: figures and units by row."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        environment = {**os.environ, report.ROWS: str(rows), "PYTHONPATH": str(package)}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), *arguments],
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        lines = rows.read_text().splitlines() if rows.exists() else []
    if done.returncode:
        print(f"{name} ended with {done.returncode} on {package.name or package}", flush=True)
    return {row["what"]: (row["figure"], row["unit"]) for row in map(json.loads, lines)}


def compare(name: str, arguments: list[str], folders: tuple[Path, Path], pairs: int) -> None:
    """Runs a benchmark on both trees in turn, and prints a line for each row that both report."""
    runs: list[dict[Path, dict[str, tuple[float, str]]]] = []
    for i in range(pairs):
        order = folders if i % 2 == 0 else folders[::-1]
        runs.append({folder: measured(name, arguments, folder) for folder in order})
    theirs, ours = folders
    print(f"\n== {name} {' '.join(arguments)}: {pairs} pairs")
    for what, (_, unit) in runs[0][ours].items():
        both = [(r[theirs][what][0], r[ours][what][0]) for r in runs if what in r[theirs] and what in r[ours]]
        if not both:
            print(f"  {what}: {statistics.median(r[ours][what][0] for r in runs):,.4g} {unit}, and none before")
            continue
        before, now = (statistics.median(side) for side in zip(*both, strict=True))
        ratios = sorted(b / a for a, b in both)
        print(
            f"  {what}: {before:,.4g} -> {now:,.4g} {unit}, ratio {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/against.py", description=__doc__.split("\n")[0])
    parser.add_argument("revision", help="a commit, branch or tag")
    parser.add_argument("names", nargs="+", metavar="name", help="benchmarks")
    parser.add_argument("--pairs", type=int, default=3, help="how often each side is run (default 3)")
    parser.add_argument("--arguments", default="", help="what each benchmark is given, in one word")
    given = parser.parse_args()
    hardware.show()
    repository = HERE.parent
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(repository), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), given.revision], check=True)
        try:
            for name in given.names:
                compare(name, given.arguments.split(), (tree, repository), given.pairs)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


if __name__ == "__main__":
    main()
