"""Learning through calls: the numeric parts of networks, by gradients, and their models, by search."""

from ._pareto import Frontier as Frontier
from ._pareto import pareto as pareto
from ._sample import sample as sample
