"""Modules and files: find the matrices of a model, know their roles, observe it in one pass, replace a layer."""

from eckart.nn.factored import FactoredLinear
from eckart.nn.matrices import Matrix, left_out, matrices
from eckart.nn.observation import Observation
from eckart.nn.observe import observe
from eckart.nn.patterns import locate, select
from eckart.nn.pivoted import PivotedLinear
from eckart.nn.replace import replace
from eckart.nn.roles import Role, require, roles

__all__ = [
    "FactoredLinear",
    "Matrix",
    "Observation",
    "PivotedLinear",
    "Role",
    "left_out",
    "locate",
    "matrices",
    "observe",
    "replace",
    "require",
    "roles",
    "select",
]
