"""Adapt a model with few parameters: the whole LoRA family from a few axes, `METHODS`."""

from eckart.adapters.adalora import RankSchedule, orthogonality
from eckart.adapters.adapter import Adapter
from eckart.adapters.adapting import Adaptation, adapt
from eckart.adapters.files import Saved, load, save
from eckart.adapters.methods import METHODS, Method
from eckart.adapters.relora import jagged_cosine, restart
from eckart.adapters.settings import Settings
from eckart.adapters.shrinking import shrink
from eckart.adapters.switching import activate, disabled, names

__all__ = [
    "METHODS",
    "Adaptation",
    "Adapter",
    "Method",
    "RankSchedule",
    "Saved",
    "Settings",
    "activate",
    "adapt",
    "disabled",
    "jagged_cosine",
    "load",
    "names",
    "orthogonality",
    "restart",
    "save",
    "shrink",
]
