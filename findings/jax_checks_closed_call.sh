#!/usr/bin/env bash
# JAX 0.10.2: with JAX_ENABLE_CHECKS, the gradient of a checkpointed loop, under `vmap` and `jit`, is refused.
#
# Expected: JAX's checks of jaxprs accept every jaxpr that JAX makes itself.
# Behaviour: `jax.jit(jax.vmap(jax.grad(jax.checkpoint(f))))` raises `TypeError: _check_closed_call() got an unexpected
# keyword argument 'name'` where `f` holds a scan: the transposed call carries a name that the check of its kind of
# equation does not take. Without the checks, without `vmap` or without the loop it works. 0.12.0.1 works.
# Whom it hurts: whoever runs a test suite with the checks on, to find out whether the jaxprs that they build are valid.
# Seen with CPython 3.13.0 (JAX 0.12 needs 3.12 or newer: `PYTHON=python3.13 findings/jax_checks_closed_call.sh`):
#   0.10.2 _check_closed_call() got an unexpected keyword argument 'name'
#   0.12.0.1 works
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import jax
import jax.numpy as jnp

run = jax.jit(jax.vmap(jax.grad(jax.checkpoint(lambda x: jax.lax.map(jnp.sin, x).sum()))))
try:
    run(jnp.ones((2, 3)))
    found = "works"
except TypeError as error:
    found = str(error).splitlines()[0]
print(jax.__version__, found)
refused = "_check_closed_call() got an unexpected keyword argument 'name'"
assert found == {"0.10.2": refused, "0.12.0.1": "works"}[jax.__version__], found
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
  JAX_ENABLE_CHECKS=1 "$folder/venv/bin/python" "$folder/run.py"
done
