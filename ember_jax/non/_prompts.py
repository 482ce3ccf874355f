"""Prompts that constructs fill in."""

from collections.abc import Sequence

from .. import Text, text


def template(prompt: str | Text, construct: str, argument: str, fields: Sequence[str]) -> Text:
    """A prompt as a Text.

    **Raises:** `ValueError` for a `str` that names none of the fields, which every question would be lost in.
    """
    if isinstance(prompt, str) and not any(f"{{{field}}}" in prompt for field in fields):
        listed = ", ".join(f"{{{field}}}" for field in fields)
        raise ValueError(
            f"{construct}({argument}={prompt!r:.60}) names none of its fields, {listed}. If these words are meant as "
            "they stand, give `ember.text(…)`."
        )
    return text(prompt)
