"""Reads the characters of the compact notation: marks and words, JSON, and where an error points."""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from .. import errors

_T = TypeVar("_T")

_SPACE = re.compile(r"\s*")
_JSON = json.JSONDecoder(strict=False)  # not strict, so that strings may go over several lines
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)  # a bracket, or a string whose brackets do not count

# The deepest nesting that is read. The methods of the parser call each other several times for each level, and Python
# allows about a thousand nested calls.
DEEPEST = 100


class Cursor:
    """A text, and how far it is read. It knows nothing of what the words mean."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def skip(self) -> int:
        """Goes over white space; returns the position after it."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches anything
        return self.at

    def take(self, pattern: re.Pattern[str] | str) -> str | None:
        """Reads `pattern` if it stands here, and returns what was read; else reads nothing and returns `None`."""
        at = self.skip()
        if isinstance(pattern, str):
            found = pattern if self.text.startswith(pattern, at) else None
        else:
            match = pattern.match(self.text, at)
            found = match and match.group()
        self.at += len(found or "")
        return found

    def expect(self, mark: str, where: str) -> None:
        if not self.take(mark):
            self.fail(f"expected {where}")

    def fail(self, message: str, at: int | None = None, cause: BaseException | None = None) -> NoReturn:
        at = self.skip() if at is None else at
        raise errors.NotationError(message, self.text, min(at, len(self.text.rstrip()))) from cause

    def made(self, at: int, name: str, make: Callable[[], _T]) -> _T:
        """Calls a constructor; an error that it raises becomes a `NotationError` at the position `at`."""
        try:
            return make()
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            words = str(error)
            self.fail(words if words.startswith(name) else f"{name}: {words}", at, error)

    def json(self) -> Any:
        at = self.skip()
        # Checked here, because Python's own limit for nested JSON differs from release to release.
        if _is_deep(self.text, at):
            self.fail(f"a value is nested more than {DEEPEST} deep", at)
        try:
            value, self.at = _JSON.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            what = "a value: a number, true, false, null, a string in double quotes, or other JSON"
            self.fail(f"expected {what}" if error.pos == at else f"this is not JSON: {error.msg}", error.pos, error)
        except ValueError as error:  # Python refuses to convert an integer of thousands of digits
            self.fail(f"this value cannot be read: {error}", at, error)
        return value

    def on_commas(self) -> str:
        """What an error adds where a comma stands that cannot be read there."""
        return (
            "; several flows stand side by side in brackets, `[… | M, …]`"
            if self.text.startswith(",", self.skip())
            else ""
        )


def _is_deep(text: str, at: int) -> bool:
    """Whether the JSON value that begins at `at` is nested deeper than `DEEPEST`."""
    depth = 0
    for found in _BRACKET.finditer(text, at) if text[at : at + 1] in ("[", "{") else ():
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if not 0 < depth <= DEEPEST:
            return depth > 0
    return False
