"""The layers that stand in a compressed matrix's place, by the kind that their spec names: what a file may build.

Each is a plain module with

| member | meaning |
|---|---|
| `kind` | its key in `LAYERS` |
| `seen_as` | "linear" or "conv": for `nn.matrices` it is one matrix of that kind, and nothing inside it is another |
| `in_features`, `out_features` | (n, m) of its matrix |
| `weight` | the dense matrix (m, n), formed anew at each read |
| `weight_bytes` | what is stored for it: indices, codes and scales included, the bias not |
| `spec()`, `from_spec(spec, dtype, device)` | its sizes in JSON's types, and the empty layer of those |
| `to_dense()` | the `nn.Linear` or convolution of the same map |

Only these kinds are ever built from a file: a spec names no code.
Paper: none.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from eckart.nn.convolved import FactoredConv, PivotedConv
from eckart.nn.factored import FactoredLinear
from eckart.nn.patterns import closest
from eckart.nn.pivoted import PivotedLinear
from eckart.nn.quantized_layer import QuantizedLinear
from eckart.nn.selected import SelectedLinear
from eckart.nn.sparse_layer import SparseLinear
from eckart.nn.specs import check_keys, flag, whole
from eckart.nn.summed import SumLinear

LAYERS: dict[str, Any] = {
    "factored": FactoredLinear,
    "pivoted": PivotedLinear,
    "factored_conv": FactoredConv,
    "pivoted_conv": PivotedConv,
    "selected": SelectedLinear,
    "quantized": QuantizedLinear,
    "sparse": SparseLinear,
    "sum": SumLinear,
}


def is_compressed(module: nn.Module) -> bool:
    """Whether a module is one of `LAYERS`.

    Example:
        >>> is_compressed(nn.Linear(2, 2)), is_compressed(FactoredLinear.from_linear(nn.Linear(2, 2), rank=1))
        (False, True)
    """
    return type(module) in LAYERS.values()


def layer_from_spec(
    spec: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The empty layer that a spec tells of, ready for `load_state_dict`.

    Args:
        spec: what a layer's `spec()` gave; or of kind "linear", a plain `nn.Linear` with in_features, out_features
            and bias.
        dtype: of its floating-point parameters; None is torch's default.
        device: where it is made; "meta" takes no memory.

    Raises:
        ValueError: the kind is unknown, or the spec is damaged (the key is named).

    Example:
        >>> layer_from_spec({"kind": "factored", "in_features": 3, "out_features": 4, "rank": 2, "bias": True})
        FactoredLinear(in_features=3, out_features=4, rank=2, bias=True)
        >>> layer_from_spec({"kind": "linear", "in_features": 3, "out_features": 4, "bias": False}, device="meta")
        Linear(in_features=3, out_features=4, bias=False)
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if kind == "linear":
        check_keys(spec, "linear", ("in_features", "out_features", "bias"))
        sizes = whole(spec, "in_features", 1), whole(spec, "out_features", 1)
        return nn.Linear(*sizes, bias=flag(spec, "bias"), dtype=dtype, device=device)
    if not isinstance(kind, str) or kind not in LAYERS:
        near = f"; closest: {closest(kind, LAYERS, whole=True)}" if isinstance(kind, str) else ""
        raise ValueError(f"spec of a layer: kind is {kind!r}; give one of {', '.join(['linear', *LAYERS])}{near}")
    return LAYERS[kind].from_spec(spec, dtype, device)
