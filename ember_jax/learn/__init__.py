"""Learning through calls: the numeric parts of networks, by gradients, and their models, by search."""

from typing import TYPE_CHECKING

from .._later import later as _later
from . import scaling as scaling
from ._calibrate import Calibrated as Calibrated
from ._calibrate import CalibrationTrace as CalibrationTrace
from ._calibrate import calibrate_cascade as calibrate_cascade
from ._gradients import value_and_grad as value_and_grad
from ._pareto import Difference as Difference
from ._pareto import Frontier as Frontier
from ._pareto import pareto as pareto
from ._relaxed import gumbel_softmax as gumbel_softmax
from ._relaxed import straight_through as straight_through
from ._sample import sample as sample
from ._select import SelectionTrace as SelectionTrace
from ._select import Trial as Trial
from ._select import select_models as select_models

__all__ = [
    "Calibrated",
    "CalibrationTrace",
    "Difference",
    "Frontier",
    "SelectionTrace",
    "Trial",
    "calibrate_cascade",
    "gumbel_softmax",
    "pareto",
    "sample",
    "scaling",
    "select_models",
    "straight_through",
    "value_and_grad",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = _later(__name__, {}, __all__)
