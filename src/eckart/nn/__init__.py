"""Modules and files: find the matrices of a model, know their roles, observe it in one pass, replace a layer."""

from eckart.nn.compressed import LAYERS, is_compressed, layer_from_spec
from eckart.nn.convolved import FactoredConv, PivotedConv
from eckart.nn.factored import FactoredLinear
from eckart.nn.matrices import Matrix, left_out, matrices
from eckart.nn.observation import Observation
from eckart.nn.observe import observe
from eckart.nn.patterns import Patterns, Progress, locate, member_name, select, split_member
from eckart.nn.pivoted import PivotedLinear
from eckart.nn.quantized_layer import QuantizedLinear
from eckart.nn.replace import replace
from eckart.nn.roles import Role, require, roles
from eckart.nn.selected import SelectedLinear
from eckart.nn.sparse_layer import SparseLinear
from eckart.nn.summed import SumLinear

__all__ = [
    "LAYERS",
    "FactoredConv",
    "FactoredLinear",
    "Matrix",
    "Observation",
    "Patterns",
    "PivotedConv",
    "PivotedLinear",
    "Progress",
    "QuantizedLinear",
    "Role",
    "SelectedLinear",
    "SparseLinear",
    "SumLinear",
    "is_compressed",
    "layer_from_spec",
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
