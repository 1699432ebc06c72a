"""Placeholder while the factored layers are written."""

from torch import nn


class FactoredLinear(nn.Module): ...


class PivotedLinear(nn.Module): ...
