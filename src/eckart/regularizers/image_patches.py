"""Images as patches, the items that a masked autoencoder hides, and back again.

    (N, c, h, w)  ↔  (N, P, p·p·c),     P = (h/p)·(w/p)

Patches go row by row, and within a patch channels vary fastest. Cost: one copy of the images.

Paper: none; the order is that of arXiv 2111.06377.
"""

from torch import Tensor


def images_to_patches(
    images: Tensor,  # (N, c, h, w)
    patch: int,
) -> Tensor:  # (N, P, p·p·c)
    """Cut images into square patches, row by row; within a patch, channels vary fastest.

    Args:
        images: any dtype.
        patch: p, the side of a patch in pixels; divides height and width.

    Returns:
        The patches, P = (h/p)·(w/p), numbers in the order (row, column, channel).

    Raises:
        ValueError: not (N, c, h, w), or p does not divide h and w.

    Example:
        >>> import torch
        >>> images_to_patches(torch.arange(8).view(1, 1, 2, 4), 2).tolist()
        [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (N, c, h, w), got {tuple(images.shape)}; add the channel: images[:, None]")
    N, c, h, w = images.shape
    _require_patch(h, w, patch)
    grid = images.reshape(N, c, h // patch, patch, w // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(N, (h // patch) * (w // patch), patch * patch * c)


def patches_to_images(
    patches: Tensor,  # (N, P, p·p·c)
    patch: int,
    size: tuple[int, int],
) -> Tensor:  # (N, c, h, w)
    """Put patches together again: the inverse of `images_to_patches`.

    Args:
        patches: as it gives them.
        patch: p, the side of a patch in pixels.
        size: height and width of the images.

    Returns:
        The images.

    Raises:
        ValueError: p does not divide the size, or the patches do not fill it.

    Example:
        >>> import torch
        >>> images = torch.arange(24).view(1, 2, 2, 6)
        >>> torch.equal(patches_to_images(images_to_patches(images, 2), 2, (2, 6)), images)
        True
    """
    h, w = size
    _require_patch(h, w, patch)
    rows, columns = h // patch, w // patch
    if patches.ndim != 3 or patches.shape[1] != rows * columns or patches.shape[2] % patch**2:
        raise ValueError(
            f"patches must be (N, {rows * columns}, {patch * patch}·c) for images of {h}×{w} in patches of "
            f"{patch}×{patch}, got {tuple(patches.shape)}"
        )
    grid = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h, w)


def _require_patch(h: int, w: int, patch: int) -> None:
    if patch < 1 or h % patch or w % patch:
        raise ValueError(f"an image of {h}×{w} has no whole patches of {patch}×{patch}: crop, pad or choose a divisor")
