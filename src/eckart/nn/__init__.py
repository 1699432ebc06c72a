"""Modules and files: find the matrices of a model, know their roles, observe it in one pass, replace a layer."""

from eckart.nn.matrices import Matrix, left_out, matrices
from eckart.nn.patterns import locate, select

__all__ = ["Matrix", "left_out", "locate", "matrices", "select"]
