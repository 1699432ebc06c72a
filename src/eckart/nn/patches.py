"""The rows that a convolution multiplies by its weight: patches of the input, n = in/groups · kernel numbers each.

A patch is a strided view of the padded input, so the input is not copied; the k² times larger rows are made for a few
images at a time. Cost: one copy of the rows.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 24  # numbers in the rows made at a time


def patches(
    x: Tensor,  # (B, in, L...), or (in, L...)
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Iterator[Tensor]:  # each (groups, N, n)
    """Yield the rows of a convolution's input, image after image and position after position.

    Args:
        x: the input, with or without a batch dimension.
        kernel: the kernel's size along each spatial dimension.
        stride: as the convolution's, one number or one per dimension.
        padding: as the convolution's, "same" and "valid" included; the padding is zeros.
        dilation: as the convolution's.
        groups: as the convolution's.

    Returns:
        Chunks (groups, N, in/groups · kernel) whose N sum to B times the output positions.

    Example:
        >>> import torch
        >>> list(patches(torch.arange(5.0).view(1, 1, 5), kernel=(3,), stride=2))
        [tensor([[[0., 1., 2.],
                 [2., 3., 4.]]])]
    """
    d = len(kernel)
    stride, dilation = _each(stride, d), _each(dilation, d)
    x = x if x.ndim == d + 2 else x.unsqueeze(0)
    x = F.pad(x, _pads(padding, kernel, dilation))
    reach = [step * (k - 1) + 1 for step, k in zip(dilation, kernel, strict=True)]
    outputs = [(size - r) // s + 1 for size, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    inner = x.stride()[2:]
    windows = x.as_strided(
        (len(x), groups, x.shape[1] // groups, *outputs, *kernel),
        (
            x.stride(0),
            x.stride(1) * (x.shape[1] // groups),
            x.stride(1),
            *(a * b for a, b in zip(inner, stride, strict=True)),
            *(a * b for a, b in zip(inner, dilation, strict=True)),
        ),
        x.storage_offset(),
    )
    order = (1, 0, *range(3, 3 + d), 2, *range(3 + d, 3 + 2 * d))  # groups, B, positions, channel, kernel
    n = x.shape[1] // groups * prod(kernel)
    images = max(1, _CHUNK // max(1, groups * prod(outputs) * n))
    for some in windows.split(images):
        yield some.permute(order).reshape(groups, -1, n)


def positions(
    y: Tensor,  # (B, out, L...), or (out, L...): a convolution's output, or its gradient
    dims: int,
    groups: int = 1,
) -> Tensor:  # (groups, B · positions, out/groups)
    """See a convolution's output as rows, in the order of `patches`.

    Example:
        >>> import torch
        >>> positions(torch.arange(6.0).view(1, 2, 3), dims=1)
        tensor([[[0., 3.],
                 [1., 4.],
                 [2., 5.]]])
    """
    y = (y if y.ndim == dims + 2 else y.unsqueeze(0)).flatten(2)
    m = y.shape[1] // groups
    return y.unflatten(1, (groups, m)).permute(1, 0, 3, 2).reshape(groups, -1, m)


def _each(value: int | Sequence[int], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _pads(padding: int | str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """The argument of F.pad, last dimension first; "same" puts the odd zero at the end, as torch does."""
    if padding == "same":
        totals = [step * (k - 1) for step, k in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        each = [0] * len(kernel) if isinstance(padding, str) else _each(padding, len(kernel))
        sides = [(p, p) for p in each]
    return [p for side in reversed(sides) for p in side]
