"""Says what a benchmark ran on."""

import os
import platform

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
