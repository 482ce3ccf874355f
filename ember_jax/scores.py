"""Scores of an answer against what is right, from 0 to 1; `ember.evaluate` takes each by its name.

They are plain functions of strings, which can be called, and given arguments by `functools.partial`, as in
`functools.partial(ember.scores.number, tolerance=0.01)`. The right answer (`gold`) may be a list of accepted answers:
the best score counts.
"""

from typing import TYPE_CHECKING

from ._evaluate.scores import choice as choice
from ._evaluate.scores import exact as exact
from ._evaluate.scores import f1 as f1
from ._evaluate.scores import normalized as normalized
from ._evaluate.scores import number as number
from ._evaluate.scores import regex as regex
from ._later import later as _later

__all__ = [
    "choice",
    "exact",
    "f1",
    "normalized",
    "number",
    "regex",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = _later(__name__, {}, __all__)
