"""Equal blocks with a given sum: F_1, …, F_B of t orthonormal columns each, with Σ_b F_b F_bᵀ = diag(λ).

The factors that attain the optimum of dropout and DropBlock are such frames (in the data's singular basis), since every
block must carry the same share. For t = 1 they are unit vectors, and exist whenever λ ≥ 0 and Σλ = B: turn the columns
of diag(√λ) pair by pair until each has length 1 (Schur and Horn; the proof that every equalised optimum of dropout
exists, arXiv 1806.09777). For t > 1 they exist only if λ satisfies Horn's inequalities: B = 2 wants λ's that pair up to
2. They are found by descent on ‖Σ_b F_b F_bᵀ − diag(λ)‖² + Σ_b ‖F_bᵀF_b − I‖².

Cost: t = 1: B rotations of O(len λ). t > 1: some hundred products of the frames, below a second for tens of blocks.
Paper: 1910.14186 lets the number of blocks grow; the frames for a given number, and the search, are ours.
"""

import torch
from torch import Tensor

from eckart.linalg import truncated_svd

CLOSE = 1e-8  # for each block: how far the two conditions may be from holding
STEPS = 2000


def equal_frames(
    weights: Tensor,  # λ (r,) float64, each from 0 to B, with sum B·t
    blocks: int,  # B
    columns: int,  # t
) -> Tensor | None:  # (B, r, t)
    """Frames of t orthonormal columns whose projections sum to diag(λ), or None where the search finds none.

    Args:
        weights: λ, float64.
        blocks: B.
        columns: t ≤ r.

    Returns:
        F: F_bᵀF_b = I and Σ_b F_b F_bᵀ = diag(λ); None if B projections of rank t do not seem to have that sum.

    Example:
        >>> import torch
        >>> F = equal_frames(torch.tensor([1.5, 0.9, 0.6], dtype=torch.float64), 3, 1)
        >>> (F @ F.mT).sum(0).round(decimals=6).diagonal().tolist(), F.square().sum((1, 2)).round(decimals=6).tolist()
        ([1.5, 0.9, 0.6], [1.0, 1.0, 1.0])
    """
    if len(weights) > blocks * columns:
        return None
    if columns == 1:
        return _unit_vectors(weights, blocks).mT.unsqueeze(-1)
    if len(weights) == columns:
        return torch.eye(columns, dtype=weights.dtype, device=weights.device).repeat(blocks, 1, 1)
    return _search(weights, blocks, columns)


def _unit_vectors(weights: Tensor, count: int) -> Tensor:  # (r, count)
    """Columns of length 1 with F Fᵀ = diag(λ), by count − 1 plane rotations of the columns of diag(√λ)."""
    F = torch.zeros(len(weights), count, dtype=weights.dtype, device=weights.device)
    F.diagonal().copy_(weights.sqrt())
    lengths = F.square().sum(0)
    for _ in range(count - 1):
        short, long = int(lengths.argmin()), int(lengths.argmax())
        below, above = float(lengths[short]) - 1, float(lengths[long]) - 1
        inner = float(F[:, short] @ F[:, long])
        if below >= 0 or above <= 0:
            break
        # tan t with |cos t·f_short + sin t·f_long|² = 1
        tangent = (-inner + (inner**2 - below * above) ** 0.5) / above
        cosine = (1 + tangent**2) ** -0.5
        turn = F.new_tensor([[cosine, -cosine * tangent], [cosine * tangent, cosine]])
        F[:, [short, long]] = F[:, [short, long]] @ turn
        lengths[[short, long]] = F[:, [short, long]].square().sum(0)
    return F


def _search(weights: Tensor, blocks: int, columns: int) -> Tensor | None:
    """L-BFGS on the violation of both conditions, from a fixed random start; then the sum is made exact."""
    r = len(weights)
    draw = torch.randn(blocks, r, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames = (draw / r**0.5).to(weights).requires_grad_()
    total, unit = weights.diag(), torch.eye(columns, dtype=weights.dtype, device=weights.device)
    optimizer = torch.optim.LBFGS(
        [frames], max_iter=STEPS, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def violation() -> Tensor:
        optimizer.zero_grad()
        sums = (frames @ frames.mT).sum(0) - total
        value = sums.square().sum() + (frames.mT @ frames - unit).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(violation)
    if float(violation().detach()) ** 0.5 > CLOSE * blocks:
        return None
    flat = weights.sqrt().unsqueeze(-1) * frames.detach().transpose(0, 1).flatten(1)  # (r, B·t)
    U, _, Vh = truncated_svd(flat, r, method="exact")
    exact = weights.sqrt().unsqueeze(-1) * (U @ Vh)  # the nearest factor of diag(λ)
    return exact.unflatten(1, (blocks, columns)).transpose(0, 1)
