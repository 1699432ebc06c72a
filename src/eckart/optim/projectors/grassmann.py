"""A basis that follows the gradient along a geodesic of the Grassmann manifold, by rank 1 (SubTrack++, 2502.01586).

    T = ∂‖X − R Vᵀ‖² / ∂V = −2 (X − R Vᵀ)ᵀ R ≈ σ u vᵀ,   R = X V
    V' = V + (V v (cos ησ − 1) − u sin ησ) vᵀ,             η = `basis_lr`

The angle ησ hangs on the gradient's scale: σ is quadratic in it. Only the plane of V v and u turns.

Cost: 4 p q r a refresh, and the leading singular pair of (q, r). Where rows are shared out, q·r travels once.
Paper: its equation goes along +T with the sign of u left open; its code, and we, go down. It starts from an SVD, we
from three rounds of power. V' is orthonormalised, so that roundings do not add up.
"""

import torch
from torch import Tensor

from eckart.linalg import truncated_svd
from eckart.linalg.orthonormal import fast_orthonormal
from eckart.optim.step.slot import Slot


def geodesic(slot: Slot) -> Tensor:  # (..., q, r)
    V = slot.V
    Y = slot.shards.sum(slot.X.mT @ (slot.X @ V))
    T = 2 * (V @ (V.mT @ Y) - Y)
    u, size, vh = truncated_svd(T, 1)
    angle = slot.group["basis_lr"] * size[..., None]
    along = (V @ vh.mT) * (torch.cos(angle) - 1) - u * torch.sin(angle)
    return fast_orthonormal(V + along @ vh)
