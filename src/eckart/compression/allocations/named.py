"""The allocations by name, and what each of them is told: any may be put in the place of a method's own.

Paper: none; the sources stand in the allocations' files.
"""

from collections.abc import Mapping
from typing import Any

from eckart.compression.allocations.candidates import candidates
from eckart.compression.allocations.menus import PROTECT
from eckart.compression.allocations.rules import Allocation, energy, hulls, uniform
from eckart.compression.allocations.selected_layers import CUT, selected
from eckart.compression.allocations.sensitivity import SHARES, sensitivity

ALLOCATIONS: dict[str, Allocation] = {
    "uniform": uniform,
    "energy": energy,
    "hulls": hulls,
    "sensitivity": sensitivity,
    "candidates": candidates,
    "selected": selected,
}

COMPARING = ("sensitivity", "candidates", "selected")  # those that run the model on held-out batches

OPTIONS: dict[str, Mapping[str, Any]] = {  # allocation → what it reads of `Settings.options`, with the defaults
    "uniform": {},
    "energy": {"protect": PROTECT},
    "hulls": {"protect": PROTECT},
    "sensitivity": {"shares": SHARES, "protect": PROTECT},
    "candidates": {"protect": PROTECT},
    "selected": {"cut": CUT},
}
