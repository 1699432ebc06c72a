"""What all compressed layers have in common: what they are called, what they take, and how one is made of its spec.

Paper: none.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from eckart.nn.specs import check_keys


class CompressedLayer(nn.Module):
    """A layer that holds its matrix (m, n) in another form; a plain module, as the dense one is."""

    kind: ClassVar[str]
    seen_as: ClassVar[str]  # what `nn.matrices` takes it for

    @property
    def weight_bytes(self) -> int:
        """Bytes that hold the weight: factors, indices, codes and scales; the bias not."""
        return sum(t.nbytes for name, t in self.state_dict().items() if name.rpartition(".")[2] != "bias")

    @classmethod
    def from_spec(
        cls,
        spec: Mapping[str, Any],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The empty layer that a `spec` tells of, whose numbers are yet to be loaded (`load_state_dict`).

        Raises:
            ValueError: the spec is damaged (the key is named).

        Example:
            >>> from eckart.nn import PivotedLinear
            >>> spec = PivotedLinear.empty(3, 4, rank=2).spec()
            >>> PivotedLinear.from_spec({**spec, "rank": 5})
            Traceback (most recent call last):
            ...
            ValueError: spec of a pivoted layer: rank is 5; give a whole number from 0 to 4
        """
        check_keys(spec, cls.kind, cls.keys())
        return cls.made(spec, dtype=dtype, device=device)

    @classmethod
    @abstractmethod
    def keys(cls) -> tuple[str, ...]:
        """What a spec holds besides the kind."""

    @classmethod
    @abstractmethod
    def made(cls, spec: Mapping[str, Any], **place: Any) -> Self:
        """The empty layer of a spec that holds these keys, its dtype and device as `empty` takes them."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """All that is needed to make an empty one, in JSON's types."""
