#!/usr/bin/env bash
# JAX 0.10.2 and 0.12.0.1: leaving `jax.debug_nans(False)` turns the check for NaN off for good.
#
# `jax_debug_nans` is set for all; a thread goes into `with jax.debug_nans(False):` and out again.
# Expected: outside of the context everything is as before, and a function of `jax.jit` that gives NaN raises.
# Behaviour: one that has been compiled gives NaN in silence, in this thread, from then on. The flag itself reads as set.
# The check after compiled functions is a hook with a value for each thread beside the one for all; when the context ends,
# the thread's is set to "no hook", where it had been not set.
# Whom it hurts: whoever sees no FloatingPointError, and takes it that there was no NaN.
# Seen with CPython 3.13.0 (JAX 0.12 needs 3.12 or newer: `PYTHON=python3.13 findings/jax_debug_nans_context.sh`):
#   0.10.2 raises before True, after False; the flag True
#   0.12.0.1 raises before True, after False; the flag True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import jax
import jax.numpy as jnp

log = jax.jit(jnp.log)
jax.config.update("jax_debug_nans", True)


def raises():
    try:
        log(-1.0)
    except FloatingPointError:
        return True
    return False


log(1.0), log(1.0)
before = raises()
with jax.debug_nans(False):
    pass
after = raises()
print(f"{jax.__version__} raises before {before}, after {after}; the flag {jax.config.jax_debug_nans}")
assert (before, after, jax.config.jax_debug_nans) == (True, False, True)
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
  "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null
done
