"""What every test runs under: strict JAX promotion, Hypothesis by profile (`HYPOTHESIS_PROFILE=nightly pytest`), and
nothing kept in the user's own journal, by child processes neither."""

import os

import hypothesis
import jax

os.environ["EMBER_JAX_JOURNAL"] = "memory"
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# No deadline: the first example of a shape compiles. Derandomised, so that a change is judged by what it changed.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
