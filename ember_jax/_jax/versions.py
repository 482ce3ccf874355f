"""The releases of JAX that ember_jax is tested with.

ember_jax reads jaxprs and the primitives in them, of which JAX promises little: a new minor release may write a program
in another way. A patch release does not, so only major and minor numbers are compared.
"""

import re

OLDEST = (0, 10, 2)  # the same as in pyproject.toml, where it makes pip refuse an older JAX; so nothing checks it here
NEWEST = (0, 12, 0)


def tested() -> str:
    """The range, in words."""
    return f"JAX {words(OLDEST)} to {words(NEWEST)}"


def words(version: tuple[int, ...]) -> str:
    """A version as it is written."""
    return ".".join(map(str, version))


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (0, 13, 0) for `"0.13.0.dev2026"`."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def untested(installed: str) -> str | None:
    """A warning for the user of a JAX that is newer than any tested one; `None` for any other version."""
    major, minor, _ = NEWEST
    if release(installed)[:2] <= (major, minor):
        return None
    below = f"<{major}.{minor + 1}"
    return (
        f"JAX {installed} is newer than JAX {words(NEWEST)}, the newest that this version of ember_jax is "
        "tested with: a program that it writes in a new way may be refused, or run wrongly. Take a newer ember_jax "
        f'(`pip install -U ember_jax`), or a JAX that is tested (`pip install "jax{below}" "jaxlib{below}"`). To hear '
        'no more of it: `warnings.simplefilter("ignore", ember_jax.errors.UntestedVersionWarning)`.'
    )
