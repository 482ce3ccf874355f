"""Checks the prompts that constructs fill in."""

from collections.abc import Sequence

from .. import Text, text
from ._members import shown


def template(prompt: str | Text, construct: str, argument: str, fields: Sequence[str]) -> Text:
    """A prompt as a Text, checked.

    **Raises:** `ValueError` for a `str` that has none of the fields, since no question would reach the model; a Text is
    not checked for fields. `TypeError` for anything that is neither a `str` nor a Text.
    """
    if not isinstance(prompt, str | Text):
        raise TypeError(f"{construct}({argument}={shown(prompt)}): give a string or a Text with {_listed(fields)}.")
    if isinstance(prompt, str) and not any(f"{{{field}}}" in prompt for field in fields):
        raise ValueError(
            f"{construct}({argument}={shown(prompt)}) names none of its fields, {_listed(fields)}. If these words are "
            "meant as they stand, give `ember.text(…)`."
        )
    return text(prompt)


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(f"{{{field}}}" for field in fields)
