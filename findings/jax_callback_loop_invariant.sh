#!/usr/bin/env bash
# JAX 0.12.0.1 (and 0.10.2): a `pure_callback` in a `while_loop` that never runs is called.
#
# Expected: a callback in the body of a loop is called as often as the loop turns, or less; in a loop whose condition is
# false at the start, never.
# Behaviour: under `jit`, a callback whose operands do not change in the loop is called exactly once: XLA moves it in
# front of the loop, as if it cost nothing, and does not ask whether there is a first turn.
# Whom it hurts: whoever pays for what the callback asks. (Inside `jax.disable_jit()` it is called as expected. An
# `io_callback` is not moved.)
# Seen with CPython 3.11.7 (0.10.2) and 3.13.0 (both):
#   0.10.2 no turn: 1 call, five turns: 1 call
#   0.12.0.1 no turn: 1 call, five turns: 1 call
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

calls = []


def ask(x):
    calls.append(x)
    return np.asarray(x)


@jax.jit
def run(turns, x):
    one = lambda: jax.pure_callback(ask, jax.ShapeDtypeStruct((), jnp.float32), x)
    return jax.lax.while_loop(lambda i: i < turns, lambda i: i + one(), jnp.float32(0))


found = []
for turns in (0.0, 5.0):
    calls.clear()
    jax.block_until_ready(run(jnp.float32(turns), jnp.float32(1)))
    found.append(len(calls))
print(jax.__version__, f"no turn: {found[0]} call, five turns: {found[1]} call")
assert found == [1, 1], found
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
  "$folder/venv/bin/python" "$folder/run.py"
done
