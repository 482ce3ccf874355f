#!/usr/bin/env bash
# JAX 0.12.0.1 and 0.10.2, CPU: `jnp.asarray` of a NumPy array compiles a program for each shape; `device_put` does not.
#
# Twenty NumPy arrays of twenty shapes are made arrays of JAX, by `jax.device_put`, `jnp.asarray` and `jnp.array`, and the
# compilations of XLA's backend are counted as `jax.monitoring` tells them.
# Expected: none by any of the three. Nothing is computed: the bytes and the dtype stay what they are.
# Behaviour: `jnp.asarray` and `jnp.array` compile twenty programs each, 5 to 40 ms apiece; `device_put` compiles none.
# Whom it hurts: whoever makes arrays of ever new lengths, as text and batches have: each costs more than what is done
# with it, and in a fresh process this is most of the time to the first result of a small program.
# Seen with CPython 3.13.0 (JAX 0.12 needs Python 3.12 or newer: `PYTHON=python3.13 findings/jax_asarray_compiles.sh`):
#   0.10.2 device_put 0, asarray 20, array 20
#   0.12.0.1 device_put 0, asarray 20, array 20
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

compiled = 0


def heard(name, *_, **__):
    global compiled
    compiled += name == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(heard)


def programs(convert, sizes):
    before = compiled
    for size in sizes:
        convert(np.zeros(size, np.uint32))
    return compiled - before


found = [
    programs(jax.device_put, range(1, 21)),
    programs(jnp.asarray, range(101, 121)),
    programs(jnp.array, range(201, 221)),
]
print("{} device_put {}, asarray {}, array {}".format(jax.__version__, *found))
assert found == [0, 20, 20], found
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
  "$folder/venv/bin/python" "$folder/run.py"
done
