#!/usr/bin/env bash
# JAX 0.10.2: `jax.Array` is not found under its own name, so it cannot be pickled, and cloudpickle sends a copy of it.
#
# Expected: `pickle.loads(pickle.dumps(jax.Array)) is jax.Array`, as for other classes, and as in JAX 0.12.
# Behaviour: its `__module__` is "jax" and its `__qualname__` "jaxlib._jax.Array", which is no attribute of jax. pickle
# raises. cloudpickle takes the class for one that is defined nowhere and sends its definition: what arrives is another
# class, of which no array is an instance.
# Whom it hurts: who sends annotations to another process. A function of `__main__` or a notebook whose arguments are
# annotated `jax.Array` or, with jaxtyping, `Float[Array, "n"]` goes by cloudpickle to joblib, Ray or Dask, and a check of
# its arguments there fails for every array.
# Seen with CPython 3.11.7:
#   0.10.2 <class 'jax.jaxlib._jax.Array'>
#     pickle: Can't pickle <class 'jax.jaxlib._jax.Array'>: attribute lookup jaxlib._jax.Array on jax failed
#     cloudpickle, in another process: an array is an instance: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 cloudpickle==3.1.3
"$folder/venv/bin/python" - "$folder/pickle" <<'PYTHON'
import pickle
import sys

import cloudpickle
import jax

print(jax.__version__, jax.Array)
try:
    pickle.dumps(jax.Array)
    raise SystemExit("it is pickled")
except pickle.PicklingError as error:
    print("  pickle:", error)
with open(sys.argv[1], "wb") as file:
    cloudpickle.dump(jax.Array, file)
PYTHON
"$folder/venv/bin/python" - "$folder/pickle" <<'PYTHON'
import pickle
import sys

import jax.numpy as jnp

with open(sys.argv[1], "rb") as file:
    found = isinstance(jnp.ones(2), pickle.load(file))
print("  cloudpickle, in another process: an array is an instance:", found)
assert not found
PYTHON
