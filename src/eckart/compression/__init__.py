"""Compress a model through the low rank of its matrices: the whole family from a few axes, `METHODS`."""

from eckart.compression.allocations.named import ALLOCATIONS
from eckart.compression.compressed import Compressed
from eckart.compression.compressing import compress
from eckart.compression.files.densifying import densify
from eckart.compression.files.loading import load
from eckart.compression.files.saving import save
from eckart.compression.methods import METHODS, Method
from eckart.compression.plan import Plan
from eckart.compression.settings import Settings

__all__ = ["ALLOCATIONS", "METHODS", "Compressed", "Method", "Plan", "Settings", "compress", "densify", "load", "save"]
