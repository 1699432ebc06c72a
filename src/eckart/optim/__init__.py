"""Train all of a model with optimizer states of low rank: GaLore and its descendants as rows over a few axes."""

from eckart.optim.budget.measuring import Bytes, Memory, memory, peak
from eckart.optim.budget.planning import Plan, plan
from eckart.optim.groups import param_groups
from eckart.optim.inner import INNER
from eckart.optim.limiters import LIMITERS
from eckart.optim.methods import DEFAULTS, METHODS, Method
from eckart.optim.noting import telemetry, watch
from eckart.optim.optimizer import LowRankOptimizer
from eckart.optim.per_layer import StepInBackward, step_in_backward
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
    "Bytes",
    "LowRankOptimizer",
    "Memory",
    "Method",
    "Plan",
    "StepInBackward",
    "memory",
    "param_groups",
    "peak",
    "plan",
    "step_in_backward",
    "telemetry",
    "watch",
]
