"""Train all of a model with optimizer states of low rank: GaLore and its descendants as rows over a few axes."""

from eckart.optim.groups import param_groups
from eckart.optim.inner import INNER
from eckart.optim.limiters import LIMITERS
from eckart.optim.methods import DEFAULTS, METHODS, Method
from eckart.optim.optimizer import LowRankOptimizer
from eckart.optim.projectors import PROJECTORS
from eckart.optim.residuals import RESIDUALS
from eckart.optim.transports import TRANSPORTS

__all__ = [
    "DEFAULTS",
    "INNER",
    "LIMITERS",
    "METHODS",
    "PROJECTORS",
    "RESIDUALS",
    "TRANSPORTS",
    "LowRankOptimizer",
    "Method",
    "param_groups",
]
