"""Adapt a model with few parameters: the whole LoRA family from a few axes, `METHODS`."""

from eckart.adapters.adapter import Adapter
from eckart.adapters.adapting import Adaptation, adapt
from eckart.adapters.files import Saved, load, save
from eckart.adapters.methods import METHODS, Method
from eckart.adapters.settings import Settings
from eckart.adapters.switching import activate, disabled, names

__all__ = [
    "METHODS",
    "Adaptation",
    "Adapter",
    "Method",
    "Saved",
    "Settings",
    "activate",
    "adapt",
    "disabled",
    "load",
    "names",
    "save",
]
