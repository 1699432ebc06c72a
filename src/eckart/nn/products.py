"""What a layer computes with another matrix in the place of its own, and with a product B·A that is never formed.

The matrix is W (m, n) in the orientation of `nn.matrices`, whatever the layer: a convolution's is
(out, in/groups · k …), an embedding's (words, width), whose rows are looked up. Bias is left out.

Paper: none.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
CALLED = ("linear", "conv1d", "conv", "embedding")  # the kinds of matrices whose layer is called as a module


def product(layer: Any, kind: str, x: Tensor, W: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Apply the layer with the matrix W instead of its own weight, without bias.

    Args:
        layer: a Linear, transformers' Conv1D, Conv1d/2d/3d, Embedding or EmbeddingBag; its stride, padding and the like
            are used.
        kind: as `matrices` names it.
        x: the layer's input: (..., n), images, or ids.
        W: (m, n), or (groups, m, n) for a grouped convolution.
        args: what the layer is called with beside x (the offsets of an EmbeddingBag); as keywords too.

    Returns:
        What the layer would give, less its bias.

    Raises:
        ValueError: the kind is of a weight that no module applies by itself (experts, attention).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        >>> x = torch.randn(2, 4, 5, 5)
        >>> torch.allclose(product(conv, "conv", x, conv.weight.flatten(1)), conv(x), atol=1e-6)
        True
    """
    if kind in ("linear", "conv1d"):
        return F.linear(x, W)
    if kind == "conv":
        return _conv(layer, x, _filters(layer, W))
    if kind == "embedding":
        return _lookup(layer, x, W, *args, **kwargs)
    raise ValueError(f"kind: {kind!r} is not applied by a module of its own; one of {', '.join(CALLED)} is")


def pair_product(layer: Any, kind: str, x: Tensor, B: Tensor, A: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Apply the layer with B·A as its matrix, first one factor, then the other.

    Args:
        layer: as for `product`.
        kind: as for `product`.
        x: the layer's input.
        B: (m, r), or (groups, m, r).
        A: (r, n), or (groups, r, n).
        args: as for `product`.

    Returns:
        What `product(layer, kind, x, B @ A)` gives, at a cost of r(m+n) for each token instead of mn.

    Raises:
        ValueError: the kind is not applied by a module, or the layer takes the largest of several rows.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> B, A = torch.randn(8, 2), torch.randn(2, 5)
        >>> ids, table = torch.tensor([[1, 7]]), nn.Embedding(8, 5)
        >>> torch.allclose(pair_product(table, "embedding", ids, B, A), (B @ A)[ids], atol=1e-6)
        True
    """
    if kind in ("linear", "conv1d"):
        return F.linear(F.linear(x, A), B)
    if kind == "conv":
        z = _conv(layer, x, _filters(layer, A))
        kernel = (1,) * len(layer.kernel_size)
        return _CONVOLVE[len(kernel) - 1](z, B.reshape(-1, B.shape[-1], *kernel), groups=layer.groups)
    if kind == "embedding":
        return _lookup(layer, x, B, *args, **kwargs) @ A
    raise ValueError(f"kind: {kind!r} is not applied by a module of its own; one of {', '.join(CALLED)} is")


def scale_rows(layer: Any, kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """What the layer would give if each row i of its matrix were multiplied by c_i.

    Args:
        layer: as for `product`.
        kind: as for `product`.
        x: the layer's input (an embedding's ids say which row each output is).
        y: the layer's output without bias.
        c: (m,) one factor for each row, or (groups, m).

    Returns:
        y with each output scaled.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> y, c = torch.tensor([[1.0, 3.0]]), torch.tensor([2.0, 0.5])
        >>> scale_rows(nn.Linear(2, 2), "linear", torch.ones(1, 2), y, c)
        tensor([[2.0000, 1.5000]])
    """
    if kind == "embedding":
        return y * c[x].unsqueeze(-1)
    return y * along_outputs(layer, kind, c)


def along_outputs(layer: Any, kind: str, c: Tensor) -> Tensor:
    """A vector (m,) shaped to be added to, or multiplied with, the outputs of a layer."""
    return c.reshape(-1, *(1,) * len(layer.kernel_size)) if kind == "conv" else c


def _filters(layer: Any, W: Tensor) -> Tensor:  # (m, n), or (groups, m, n) -> (groups · m, in/groups, kernel...)
    return W.reshape(-1, layer.in_channels // layer.groups, *layer.kernel_size)


def _conv(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return layer._conv_forward(x, weight, None)  # with its own stride, padding, dilation and padding mode


def _lookup(
    layer: Any, ids: Tensor, rows: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Tensor:
    if hasattr(layer, "include_last_offset"):  # an EmbeddingBag
        if layer.mode == "max":
            raise ValueError("the largest of several rows is not linear in the table: it has no product of its own")
        return F.embedding_bag(
            ids,
            rows,
            offsets,
            scale_grad_by_freq=layer.scale_grad_by_freq,
            mode=layer.mode,
            per_sample_weights=None if per_sample_weights is None else per_sample_weights.to(rows.dtype),
            include_last_offset=layer.include_last_offset,
            padding_idx=layer.padding_idx,
        )
    return F.embedding(ids, rows, layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq)
