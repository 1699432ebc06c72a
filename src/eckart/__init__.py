"""eckart: see, adapt, train and compress neural networks through their low-rank structure.

The verbs are imported when they are first used, so that `import eckart` costs hardly more than `import torch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "adapt": "eckart.adapters",
    "compress": "eckart.compression",
    "densify": "eckart.compression",
    "load": "eckart.verbs",
    "LowRankOptimizer": "eckart.optim",
    "measure": "eckart.spectra",
    "merge": "eckart.adapters",
    "Profile": "eckart.spectra",
    "Recorder": "eckart.spectra",
    "save": "eckart.verbs",
}
_PARTS = (
    "adapters",
    "claims",
    "compression",
    "linalg",
    "lm",
    "nn",
    "optim",
    "regularizers",
    "report",
    "spectra",
    "theory",
)

__all__ = [
    "LowRankOptimizer",
    "Profile",
    "Recorder",
    "__version__",
    "adapt",
    "compress",
    "densify",
    "load",
    "measure",
    "merge",
    "save",
]

if TYPE_CHECKING:
    from eckart.adapters import adapt, merge
    from eckart.compression import compress, densify
    from eckart.optim import LowRankOptimizer
    from eckart.spectra import Profile, Recorder, measure
    from eckart.verbs import load, save


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"eckart.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'eckart' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *_PARTS]
