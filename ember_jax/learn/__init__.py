"""Learning through calls: the numeric parts of networks, by gradients, and their models, by search."""

from . import scaling as scaling
from ._sample import sample as sample
