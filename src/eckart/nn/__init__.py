"""Modules and files: find the matrices of a model, know their roles, observe it in one pass, replace a layer."""

from eckart.nn.factored import FactoredLinear
from eckart.nn.matrices import Matrix, left_out, matrices
from eckart.nn.observation import Observation
from eckart.nn.observe import observe
from eckart.nn.patterns import Patterns, Progress, locate, member_name, select, split_member
from eckart.nn.pivoted import PivotedLinear
from eckart.nn.replace import replace
from eckart.nn.roles import Role, require, roles

__all__ = [
    "FactoredLinear",
    "Matrix",
    "Observation",
    "Patterns",
    "PivotedLinear",
    "Progress",
    "Role",
    "left_out",
    "locate",
    "matrices",
    "member_name",
    "observe",
    "replace",
    "require",
    "roles",
    "select",
    "split_member",
]
