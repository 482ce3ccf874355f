"""What every test runs under: strict JAX promotion, Hypothesis by profile (`HYPOTHESIS_PROFILE=nightly pytest`),
nothing kept in the user's own journal, by child processes neither, no vocabulary downloaded, and nobody's account of a
cloud used."""

import os
import signal

import hypothesis
import jax
import jaxlib

from ember_jax._runtime import sizes
from ember_jax.errors import TextError

os.environ["EMBER_JAX_JOURNAL"] = "memory"
for _name in [name for name in os.environ if name.startswith(("AWS_", "CLOUDSDK_", "GOOGLE_"))]:
    del os.environ[_name]
# Neither files nor the machine that tests run on have credentials.
os.environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "CLOUDSDK_CONFIG": os.devnull}
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true"}
# A shell starts what runs in its background with Ctrl-C ignored, and child processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Nearly all that is compiled runs once or twice, here and in child processes. XLA ends a process that gives it a flag
# which it does not know.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
if jaxlib.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# No deadline: the first example of a shape compiles. Derandomised, so that a change is judged by what it changed.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _no_vocabulary(name):
    raise TextError(f"the vocabulary of {name} is a download, and no test makes one.")


sizes.vocabulary = _no_vocabulary


def pytest_configure(config):
    """What one process has compiled, in this run or before, the others load; but for programs with callbacks."""
    if config.pluginmanager.hasplugin("cacheprovider"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(config, items):
    """Tests that widen what others show are run by night."""
    if os.environ.get("HYPOTHESIS_PROFILE") != "nightly":
        wide = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=wide)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
