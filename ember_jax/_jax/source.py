"""Lines of the user's program: where an error, or a call that is made or traced now, stands in it.

JAX keeps a traceback of each equation too, but of its innermost frames alone: of a call that stands behind several of
ours they do not reach the user's.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import equinox
import jax
import jaxlib
import jaxtyping
import numpy

# Whose lines are not the user's.
_LIBRARIES = (
    *(os.path.dirname(m.__file__ or "") + os.sep for m in (jax, jaxlib, equinox, jaxtyping, numpy)),
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
)


class SourceLine(NamedTuple):
    """A line of the user's program."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.number}"


UNKNOWN = SourceLine("<unknown>", 0)


def of_caller() -> SourceLine | None:
    """The line of the user's program that is running in this thread."""

    def lines() -> Iterable[SourceLine]:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            yield SourceLine(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back

    return _first(lines())


def of_error(traceback: TracebackType | None) -> SourceLine | None:
    """The innermost line of the user's program on an error's way."""
    lines: list[SourceLine] = []
    while traceback is not None:
        lines.append(SourceLine(traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return _first(reversed(lines))


def _first(lines: Iterable[SourceLine]) -> SourceLine | None:
    return next((line for line in lines if _is_users(line.file)), None)


def _is_users(file: str) -> bool:
    """Whether a file is no library's; generated code, as of dataclasses, is nobody's, and a typed line is."""
    return not file.startswith(_LIBRARIES) and (not file.startswith("<") or file.startswith(("<stdin", "<ipython")))


# By file: what Python keeps in a module of the warnings that were shown of its lines.
_shown: dict[str, dict[Any, Any]] = {}


def warn(words: str, kind: type[Warning], line: SourceLine | None) -> None:
    """Warns of a line of the user's program, as if it had itself."""
    if line is None:
        warnings.warn(words, kind, stacklevel=2)
    else:
        warnings.warn_explicit(words, kind, *line, registry=_shown.setdefault(line.file, {}))
