"""An adapter as it lies in files, between the model and the formats: settings, and the tensors of each matrix."""

from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings

OWN_CONFIG, OWN_TENSORS = "eckart.json", "eckart.safetensors"


class Held(NamedTuple):
    """One adapter and where it sits."""

    place: Any  # a Place; with `base` where it is a layer
    adapter: Any  # an Adapter, of whatever shape


@dataclass
class Entry:
    """The adapter of one matrix, as read.

    Args:
        rank: r.
        scale: s.
        state: The shape's parameters and buffers by name, with `magnitude` and `bias` where they train.
    """

    rank: int
    scale: float
    state: dict[str, Tensor]


@dataclass
class Stored:
    """A whole adapter, as read.

    Args:
        settings: What it was made with.
        entries: Matrix name → Entry.
        modules: Name of a module trained whole → its tensors by name.
        name: What it was called.
    """

    settings: Settings
    entries: dict[str, Entry]
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    name: str = "default"


def state_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors that make an adapter: its parameters and whatever it keeps frozen."""
    return {key: tensor.detach() for key, tensor in adapter.state_dict().items()}


def gathered(adapter: Adapter) -> Adapter:
    """An adapter whose parameters are whole, where some are sharded (all processes must ask): else itself."""
    if not any(map(is_sharded, adapter._parameters.values())):
        return adapter
    made = copy(adapter)
    held = adapter._parameters.items()
    made._parameters = {key: p if p is None else nn.Parameter(whole(p.detach()), p.requires_grad) for key, p in held}
    return made


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; all processes must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether this process holds a part of the tensor, as under FSDP."""
    return hasattr(tensor, "full_tensor")
