#!/usr/bin/env bash
# JAX 0.12.0.1 and 0.10.2, CPU: `jax.device_put(x, may_alias=False)` shares memory with the NumPy array `x`.
#
# Sixty NumPy arrays of zeros, of three sizes, are made arrays of JAX and then filled with sevens. Counted are the arrays of
# JAX that hold a seven afterwards.
# Expected with `may_alias=False`: none; the documentation says "If False, `x` will be copied".
# Behaviour: a part of them do, some 15 to 30 of the sixty, as without the argument. Which ones depends on where NumPy's
# memory happens to lie, as it is taken over where it is aligned. A copy that the caller makes is never shared.
# Whom it hurts: whoever fills one NumPy buffer again and again, and says `may_alias=False` to be safe: an array of JAX
# changes under a program that takes it for a constant, in some runs and not in others.
# Seen with CPython 3.13.0 (JAX 0.12 needs Python 3.12 or newer: `PYTHON=python3.13 findings/jax_device_put_may_alias.sh`):
#   0.10.2 plain some, may_alias=False some, of a copy none
#   0.12.0.1 plain some, may_alias=False some, of a copy none
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import jax
import numpy as np


def changed(convert):
    """How many of sixty arrays change with the NumPy array that they were made of."""
    count = 0
    for size in (4, 1000, 100_000):
        for _ in range(20):
            x = np.zeros(size, np.uint32)
            y = jax.block_until_ready(convert(x))
            x[:] = 7
            count += bool((np.asarray(y) == 7).any())
    return count


counts = [
    changed(jax.device_put),
    changed(lambda x: jax.device_put(x, may_alias=False)),
    changed(lambda x: jax.device_put(x.copy())),
]
words = ["some" if 0 < count < 60 else "none" if not count else "all" for count in counts]
print("{} plain {}, may_alias=False {}, of a copy {}".format(jax.__version__, *words))
assert words == ["some", "some", "none"], counts
PYTHON
for version in 0.10.2 0.12.0.1; do
  "${PYTHON:-python3}" -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
  "$folder/venv/bin/python" "$folder/run.py"
done
