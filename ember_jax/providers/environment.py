"""What vendors read of the environment. It is read at each call, so that a variable may be set after all is made."""

import os


def first_set(variables: tuple[str, ...]) -> tuple[str, str]:
    """The name and the value of the first of some environment variables that is not empty; else two empty strings."""
    for name in variables:
        if value := os.environ.get(name, "").strip():
            return name, value
    return "", ""


def settings(*begins: str) -> frozenset[tuple[str, str]]:
    """All variables whose names begin so, with their values: equal as long as none of them changes."""
    return frozenset((name, os.environ.get(name, "")) for name in os.environ if name.startswith(begins))
