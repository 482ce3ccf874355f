"""Which JAX is tested, where that is written, and what a newer one is told."""

import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import jax
import pytest

import ember_jax as ember
from ember_jax import _cli, errors
from ember_jax._jax import versions
from ember_jax._operator import boundary

ROOT = Path(__file__).parents[1]


@pytest.fixture
def says(monkeypatch):
    """Makes JAX say that it is of another version, to a process that was told of none."""
    boundary._warn_if_untested.cache_clear()
    yield lambda version: monkeypatch.setattr(jax, "__version__", version)
    boundary._warn_if_untested.cache_clear()


def traced(words):
    """Traces an operator that was never traced before, and runs it."""
    ask = ember.LLM("sim/small")
    with ember.session():
        ember.jit(lambda question: ask(question))(ember.text(words))


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.10.2", (0, 10, 2)),
        ("0.12.0.1", (0, 12, 0, 1)),
        ("0.13.0.dev2026", (0, 13, 0)),
        ("0.13.0.dev20261101+abcdef", (0, 13, 0)),
        ("0.11.0rc1", (0, 11, 0)),
        ("1.0", (1, 0)),
        ("unknown", ()),
    ],
)
def test_the_numbers_of_a_version(version, numbers):
    assert versions.release(version) == numbers


@pytest.mark.parametrize("version", ["0.13.0", "0.13.0.dev2026", "0.13.0rc1", "0.20.1", "1.0"])
def test_a_newer_jax_warns_once_at_the_first_trace(says, version):
    says(version)
    with pytest.warns(errors.UntestedVersionWarning) as caught:
        traced("one")
        traced("two")
    (warning,) = caught
    assert str(warning.message).startswith(f"JAX {version} is newer than JAX 0.12.0, ")
    assert 'pip install "jax<0.13" "jaxlib<0.13"' in str(warning.message)


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0rc1", "0.11.7", "0.12.0", "0.12.0.1", "0.12.9", "unknown"])
def test_a_tested_jax_does_not_warn_nor_does_its_patch(says, version):
    says(version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced("one")


def test_importing_does_not_warn():
    script = "import jax; jax.__version__ = '9.0.0'; import ember_jax; print(ember_jax.__version__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, ember.__version__, "")


def test_the_command_line_says_the_versions(capsys):
    with pytest.raises(SystemExit) as stopped:
        _cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"ember_jax {ember.__version__} with JAX {jax.__version__}\n"


def test_the_oldest_jax_is_the_one_that_is_asked_for_and_the_range_the_one_that_the_front_door_names():
    oldest = ".".join(map(str, versions.OLDEST))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {f"jax>={oldest}", f"jaxlib>={oldest}"} <= {*project["dependencies"]}
    newest = ".".join(map(str, versions.NEWEST[:2]))
    assert f"JAX {oldest} to {newest}" in " ".join((ROOT / "README.md").read_text().split())
