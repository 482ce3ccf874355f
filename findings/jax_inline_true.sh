#!/usr/bin/env bash
# JAX 0.12.0.1: `jax.jit(f, inline=True)` leaves the call in the jaxpr.
#
# Expected, as until 0.10: the equations of `f` stand in the jaxpr of whoever calls it, and no `jit` equation does.
# Behaviour: a `jit` equation with the name of `f` is there. `inline` has become an enumeration, `True` is one of the later
# ways to inline, and `jax.Inline.JAX_EARLY` is what `True` meant. Nothing warns.
# Whom it hurts: whoever reads jaxprs and marks a helper as inlined so that its name does not show.
# Seen with CPython 3.13.0 (JAX 0.12 needs 3.12 or newer: `PYTHON=python3.13 findings/jax_inline_true.sh`):
#   0.10.2 ['sin', 'mul']
#   0.12.0.1 ['jit'] ['sin', 'mul']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import jax

names = lambda how: [e.primitive.name for e in jax.make_jaxpr(jax.jit(lambda x: jax.numpy.sin(x) * 2, inline=how))(1.0).eqns]
found = [names(True), *([names(jax.Inline.JAX_EARLY)] if hasattr(jax, "Inline") else [])]
print(jax.__version__, *found)
wanted = {"0.10.2": [["sin", "mul"]], "0.12.0.1": [["jit"], ["sin", "mul"]]}
assert found == wanted[jax.__version__], found
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
  "$folder/venv/bin/python" "$folder/run.py"
done
