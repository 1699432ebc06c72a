"""VeRA: P = diag(b) B diag(d) A, with B (m, r) and A (r, n) random, frozen and one for the whole model; b and d train.

m + r parameters for each matrix. The shared pair is as large as the largest sides of all matrices; each takes the first
rows of B and columns of A that it needs. It comes from a seed, so that files hold b and d alone. Its entries are
uniform in ±√(6/columns), as kaiming_uniform draws them for a ReLU. d joins B, so that A is constant in each layer's
product and x is not kept for the backward pass.

Paper: 2310.11454, whose code keeps to linear layers, as PEFT does; here every matrix goes.
"""

import math
from threading import Lock
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.settings import Settings
from eckart.nn import Matrix


class SharedPair(nn.Module):
    """The frozen random B and A of all adapters of one name, in no state dict.

    Args:
        settings: Of those adapters; the largest sides are its options' "sizes", the source of the numbers its "seed".
        dtype: Of the numbers, which are drawn in float32 on the CPU.
        device: Where they lie.
    """

    B: Tensor  # (M, r)
    A: Tensor  # (r, N)

    def __init__(self, settings: Settings, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.settings = settings
        (M, N), rank = settings.options["sizes"], max(settings.ranks.values())
        generator = torch.Generator().manual_seed(settings.options["seed"])
        A = _uniform(rank, N, generator)  # first A, then B, as PEFT does: its files name the same numbers by their seed
        B = _uniform(M, rank, generator)
        self.register_buffer("A", A.to(device, dtype), persistent=False)
        self.register_buffer("B", B.to(device, dtype), persistent=False)


_PAIRS: WeakValueDictionary[tuple[int, torch.dtype, torch.device], SharedPair] = WeakValueDictionary()
_LOCK = Lock()  # adapters are made side by side


class Vectors(Adapter):
    """P = diag(b) B diag(d) A."""

    factors = ("b", "d")
    bounded = False  # r costs one number, so it may well be above min(m, n)

    @staticmethod
    def share(found: list[Matrix], settings: Settings) -> None:
        """Note the largest sides, which the shared pair has."""
        sizes = [max(sides) for sides in zip(*(matrix.shape for matrix in found), strict=True)]
        settings.options.setdefault("sizes", sizes)

    def __init__(
        self, matrix: Matrix, rank: int, scale: float, settings: Settings, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(matrix, rank, scale, settings, dtype, device)
        self.b = self.make(matrix.shape[0])
        self.d = self.make(rank)
        self.shared = _shared(settings, dtype, device)

    def pair(self) -> tuple[Tensor, Tensor]:
        m, n = self.shape
        B, A = self.shared.B[:m, : self.rank], self.shared.A[: self.rank, :n]
        B = B * (self.b.unsqueeze(-1) @ self.d.unsqueeze(-2))  # so autograd keeps b and d, not another (m, r)
        return B, A.expand(*B.shape[:-2], *A.shape)


def _shared(settings: Settings, dtype: torch.dtype, device: torch.device) -> SharedPair:
    """One pair for all adapters with these settings, which it holds: their id stays theirs while it lives."""
    key = (id(settings), dtype, device)
    with _LOCK:
        pair = _PAIRS.get(key)
        if pair is None:
            _PAIRS[key] = pair = SharedPair(settings, dtype, device)
    return pair


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(columns))  # in this order, for the same bits as PEFT's
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)
