#!/usr/bin/env bash
# JAX 0.12.0.1: the parameters of two `jnp.searchsorted` equations are equal, whatever they search in.
#
# `jnp.searchsorted` (so `jnp.digitize`, `jnp.interp`, `jnp.histogram` too) is one equation of the primitive
# `call_hi_primitive`, whose only parameter is an object that says what it computes (`expand`).
# Expected: two such objects are equal if they compute the same, since equations' parameters are compared and hashed, and
# this one holds the types of its operands (`in_avals`) and cannot be used on others.
# Behaviour: it compares by its other parameters alone. One that searches 3 float32s and one that searches 5 int32s are
# equal, with equal hashes; what is kept by the parameter of one is found for the other.
# Whom it hurts: whoever caches by (primitive, params), as one does to recognise equal equations.
# Seen with CPython 3.13.0 (JAX 0.12 needs 3.12 or newer: `PYTHON=python3.13 findings/jax_searchsorted_equal.sh`):
#   0.12.0.1 equal True, same hash True
#     [ShapedArray(float32[3]), ShapedArray(float32[])]
#     [ShapedArray(int32[5]), ShapedArray(int32[2])]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.12.0.1 jaxlib==0.12.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.extend
import jax.numpy as jnp


def primitive(*args):
    (call,) = jax.make_jaxpr(jnp.searchsorted)(*args).eqns
    (eqn,) = [e for e in call.params["jaxpr"].eqns if e.primitive.name == "call_hi_primitive"]
    return eqn.params["_prim"]


one = primitive(jnp.arange(3.0), jnp.float32(1))
other = primitive(jnp.arange(5), jnp.arange(2))
print(jax.__version__, f"equal {one == other}, same hash {hash(one) == hash(other)}")
print(f"  {one.in_avals_flat}\n  {other.in_avals_flat}")
assert one == other and hash(one) == hash(other)
assert [a.shape for a in one.in_avals_flat] != [a.shape for a in other.in_avals_flat]
PYTHON
