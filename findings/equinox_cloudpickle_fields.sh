#!/usr/bin/env bash
# Equinox 0.13.8: a module whose class is sent by cloudpickle with its definition arrives as a pytree without leaves.
#
# cloudpickle sends the definitions of classes that another process cannot import: those of `__main__`, of notebooks, and
# those defined in functions.
# Expected: the module has the same leaves there, or an error says that it cannot be sent.
# Behaviour: cloudpickle makes the class without a body and fills it in afterwards. Equinox's metaclass registers the
# class with JAX when it is made, and has no fields then. The module has its attributes and its `repr`, and calls of it
# line by line work; `jax.tree.leaves` of it is empty, and what JAX rebuilds (`jit`, `vmap`, `grad`) has no attributes.
# Whom it hurts: who sends modules of a script or a notebook with joblib, Ray or Dask. Parameters are silently no leaves:
# an optimiser updates none, a sum over all is 0. (Reported to Equinox in 2022, and open.)
# Seen with CPython 3.11.7, JAX 0.10.2:
#   here:              M(w=f32[2]) [Array([1., 1.], dtype=float32)]
#   in another process M(w=f32[2]) []
#     line by line [2. 2.]
#     filter_jit   AttributeError: 'M' object has no attribute 'w'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  equinox==0.13.8 jax==0.10.2 jaxlib==0.10.2 cloudpickle==3.1.3
"$folder/venv/bin/python" - "$folder/pickle" <<'PYTHON'
import sys

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp


class M(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return self.w * x


module = M(jnp.ones(2))
print("here:             ", module, jax.tree.leaves(module))
with open(sys.argv[1], "wb") as file:
    cloudpickle.dump(module, file)
PYTHON
"$folder/venv/bin/python" - "$folder/pickle" <<'PYTHON'
import pickle
import sys

import equinox as eqx
import jax

with open(sys.argv[1], "rb") as file:
    module = pickle.load(file)
print("in another process", module, jax.tree.leaves(module))
print("  line by line", module(2.0))
try:
    eqx.filter_jit(module)(2.0)
    raise SystemExit("it works")
except AttributeError as error:
    print("  filter_jit   AttributeError:", error)
assert not jax.tree.leaves(module)
PYTHON
