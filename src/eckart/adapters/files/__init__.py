"""Adapters in files: PEFT's two, which other tools load, and eckart's own beside them, from which training goes on."""

from eckart.adapters.files.loading import load
from eckart.adapters.files.saving import Saved, save

__all__ = ["Saved", "load", "save"]
