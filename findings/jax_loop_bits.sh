#!/usr/bin/env bash
# JAX 0.12.0.1, CPU: `m @ x` in a loop has other last bits if `x` is a row of an array than if it is an argument.
#
# A `fori_loop` with a dynamic number of steps computes `m @ x` for each step; once `x` is `xs[i]`, once the same row given
# as an argument of its own.
# Expected, as in 0.10.2 and 0.11.0: the same bits, as the same product of the same numbers is computed.
# Behaviour: some bits differ. What no step changes is moved out of the loop, and there a product is computed in another
# way: since 0.12 a loop that contains a product is compiled to one function ("xla_cpu_small_call" in the optimized HLO),
# in which LLVM code computes it, while outside it is a call of a library. So whether another argument is an array of rows
# changes the numbers of a loop that merely reads it.
# If both are computed in a branch of a `cond` in the loop, nothing is moved, and the bits are the same.
# Whom it hurts: whoever runs lanes in a loop rather than under `vmap`, for the sake of the same bits.
# Seen with CPython 3.13.0 on an AMD EPYC with AVX-512 (JAX 0.12 needs Python 3.12 or newer: `PYTHON=python3.13
# findings/jax_loop_bits.sh`); how many of 32 numbers differ, and which of the two loops is one function:
#   0.10.2 plain 0, in a branch 0; row one function False, argument one function True, with the product in it False False
#   0.12.0.1 plain 15, in a branch 0; row one function True, argument one function True, with the product in it True False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

m = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
xs = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)


def loop(product):
    """`product` for some steps; also as a program's text, and what it has in its loop."""
    run = jax.jit(lambda n, m, x: lax.fori_loop(0, n, lambda i, y: y.at[i].set(product(i, n, m, x)), jnp.zeros((8, 32))))
    return lambda x: (np.asarray(run(1, m, x))[0].view(np.uint32), run.lower(1, m, x).compile().as_text())


in_branch = lambda i, n, f: lax.cond(i < n, f, lambda: jnp.zeros(32))
row, one = loop(lambda i, n, m, xs: m @ xs[i])(xs), loop(lambda i, n, m, x: m @ x)(xs[0])
branch_row = loop(lambda i, n, m, xs: in_branch(i, n, lambda: m @ xs[i]))(xs)
branch_one = loop(lambda i, n, m, x: in_branch(i, n, lambda: m @ x))(xs[0])
differ = lambda a, b: int((a[0] != b[0]).sum())
function = ["xla_cpu_small_call" in text for _, text in (row, one)]
inside = [f and " dot(" not in text[text.index("ENTRY") :] for f, (_, text) in zip(function, (row, one))]
print(
    f"{jax.__version__} plain {differ(row, one)}, in a branch {differ(branch_row, branch_one)};",
    f"row one function {function[0]}, argument one function {function[1]}, with the product in it", *inside
)
assert differ(branch_row, branch_one) == 0
assert (differ(row, one) > 0) == (jax.__version__ == "0.12.0.1")
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
  "$folder/venv/bin/python" "$folder/run.py"
done
