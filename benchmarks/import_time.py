"""Claim: `import ember_jax` adds less than a quarter to what importing JAX and Equinox costs.

Pairs of fresh interpreters, one after the other: `import jax, equinox`, and the same with `ember_jax`. Each times its
imports itself, so that the interpreter's own start is left out. All read bytecode from one cache that a first run
fills, as an installed package does. (A third of the difference is no code of ours: allocating a little more makes
CPython's collector walk JAX's modules once more, which takes 70 ms.)
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile

import report

PAIRS = 15
BASE = "import jax, equinox"


def seconds(imports: str, cache: str) -> float:
    script = f"import time; start = time.perf_counter(); {imports}; print(time.perf_counter() - start)"
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {platform.system()}")
    with tempfile.TemporaryDirectory() as cache:
        seconds(f"{BASE}, ember_jax", cache)  # compiles to bytecode
        pairs = [(seconds(BASE, cache), seconds(f"{BASE}, ember_jax", cache)) for _ in range(PAIRS)]
    base = statistics.median(b for b, _ in pairs)
    more = statistics.median(e - b for b, e in pairs)
    print(f"jax and equinox                {base * 1e3:7.1f} ms (median of {PAIRS})")
    print(f"ember_jax on top of them       {more * 1e3:7.1f} ms (median of {PAIRS} paired differences)")
    print(f"ratio                          {more / base:7.3f}")
    report.row("importing ember_jax; jax and equinox", more * 1e3, base * 1e3, "ms", "ratio < 0.25")


if __name__ == "__main__":
    main()
