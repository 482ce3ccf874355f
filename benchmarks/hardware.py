"""Says what a benchmark ran on."""

import os
import platform
import resource
import sys

import jax


def show() -> None:
    """Prints the machine on one line."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, JAX {jax.__version__}, {jax.default_backend()}"
    print(f"{model}, {cores} cores; {versions}", flush=True)


def peak_bytes() -> int:
    """Peak memory of this process."""
    if os.path.exists("/proc/self/status"):  # where `ru_maxrss` of a new process begins with its parent's
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
