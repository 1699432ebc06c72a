"""Adapt a model with few parameters: the whole LoRA family from a few axes, `METHODS`."""

from eckart.adapters.adapter import Adapter
from eckart.adapters.adapting import Adaptation, adapt
from eckart.adapters.changing.adalora import RankSchedule, orthogonality
from eckart.adapters.changing.relora import jagged_cosine, restart
from eckart.adapters.changing.shrinking import shrink
from eckart.adapters.factored.algebra import combine, delta_spectra, truncate, used_ranks
from eckart.adapters.factored.comparing import Compared, Comparison, compare
from eckart.adapters.factored.extraction import Extraction, extract
from eckart.adapters.factored.pairing import attach, pairs, write_pairs
from eckart.adapters.files import Saved, load, save
from eckart.adapters.methods import METHODS, Method
from eckart.adapters.settings import Settings
from eckart.adapters.using.certifying import Certificate, certify
from eckart.adapters.using.merging import Merged, merge
from eckart.adapters.using.mixing import mixed
from eckart.adapters.using.switching import activate, disabled, names, remove, rename

__all__ = [
    "METHODS",
    "Adaptation",
    "Adapter",
    "Certificate",
    "Compared",
    "Comparison",
    "Extraction",
    "Merged",
    "Method",
    "RankSchedule",
    "Saved",
    "Settings",
    "activate",
    "adapt",
    "attach",
    "certify",
    "combine",
    "compare",
    "delta_spectra",
    "disabled",
    "extract",
    "jagged_cosine",
    "load",
    "merge",
    "mixed",
    "names",
    "orthogonality",
    "pairs",
    "remove",
    "rename",
    "restart",
    "save",
    "shrink",
    "truncate",
    "used_ranks",
    "write_pairs",
]
