"""Record how the weights move while a model trains: the overview's Figure 1 for any model.

At each recorded step t, for each matrix, D = W(t) − W(0): its leading r singular values and subspaces. What training
theory predicts (paper.md T1, T6) is that D stays of low rank at every t and that its leading subspace is found early:
the angle to the final subspace falls at once, then stays.

Cost per recorded step and matrix: one block-Lanczos SVD, O(mnr). Memory: W(0), and r(m+n) numbers per recorded step and
matrix, kept on the CPU since the angle to the last step can only be known at the end; record every few dozen steps.
Paper: 2406.04112, 2503.19859 Figure 1. The angles are of the leading r-dimensional subspaces, not of single vectors.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.nn import Matrix, Patterns, matrices

from .entry import Entry, rounding_of
from .rows import row
from .spectrum import TOP
from .updates import wide


@dataclass(frozen=True)
class Snapshot:
    """W(t) − W(0) of one matrix at one step: its leading spectrum and subspaces."""

    name: str
    step: int
    shape: tuple[int, int]
    values: Tensor  # (k,) float64
    energy: float
    left: Tensor  # (m, r)
    right: Tensor  # (n, r)


class Recorder:
    """Keeps the spectrum of W(t) − W(0) and the angles of its leading subspaces over a training run.

    Args:
        model: The model, before training; its weights now are W(0), and a copy of them is kept.
        targets: Glob patterns of the matrices to follow; None follows all.
        exclude: Glob patterns of those to leave out.
        rank: Dimension r of the subspaces that are compared.

    Example:
        >>> import torch
        >>> from eckart.spectra import Recorder
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
        >>> _ = torch.nn.init.eye_(model[0].weight)
        >>> recorder = Recorder(model, rank=1)
        >>> for t in range(1, 3):
        ...     model[0].weight.data[0, 0] += 1.0
        ...     recorder.step(t)
        >>> [(r["step"], r["norm"], round(r["angle_to_last"], 3)) for r in recorder.rows()]
        [(1, 1.0, 0.0), (2, 2.0, 0.0)]
    """

    def __init__(self, model: nn.Module, targets: Patterns = None, exclude: Patterns = None, *, rank: int = 8) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        self._matrices = matrices(model, targets, exclude)
        self._start = {matrix.name: matrix.weight().detach().clone() for matrix in self._matrices}
        self.snapshots: dict[str, list[Snapshot]] = {}

    @torch.no_grad()
    def step(self, t: int) -> None:
        """Record the weights as they are now, as those of step `t`; steps must ascend."""
        if any(history and history[-1].step >= t for history in self.snapshots.values()):
            raise ValueError(f"steps must ascend, got {t} after {next(iter(self.snapshots.values()))[-1].step}")
        for matrix in self._matrices:
            for name, D in self._changes(matrix):
                self.snapshots.setdefault(name, []).append(_snapshot(name, t, D, self.rank))

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each matrix and recorded step, in the order of the model, then of time.

        Returns:
            Dicts with name, step, norm = ‖W(t) − W(0)‖_F, stable_rank, effective_rank (intervals where only the
            leading values are known), values (the leading σ), and angle_to_first, angle_to_last: the largest
            principal angle, in radians, between the leading subspaces now and at the first and the last step, the
            larger of the left and the right one. Angles are None where W has not moved.
        """
        result = []
        for history in self.snapshots.values():
            moved = [snapshot for snapshot in history if snapshot.energy]
            for now in history:
                angles = (_angle(now, moved[0]), _angle(now, moved[-1])) if now.energy else (None, None)
                result.append(_scalars(now) | {"angle_to_first": angles[0], "angle_to_last": angles[1]})
        return result

    def scalars(self) -> dict[str, float]:
        """The newest step's numbers as flat scalars for a tracker, named `spectra/<matrix>/<statistic>`."""
        flat: dict[str, float] = {}
        for name, history in self.snapshots.items():
            now = history[-1]
            flat[f"spectra/{name}/norm"] = now.energy**0.5
            if now.energy:
                first = next(snapshot for snapshot in history if snapshot.energy)
                flat[f"spectra/{name}/stable_rank"] = now.energy / float(now.values[0]) ** 2
                flat[f"spectra/{name}/angle_to_first"] = _angle(now, first)
        return flat

    def _changes(self, matrix: Matrix) -> list[tuple[str, Tensor]]:
        W0 = self._start[matrix.name]
        W = matrix.weight().detach()
        D = wide(W) - wide(W0.to(W.device))
        return [(name, D if matrix.stack == 1 else D[index]) for index, (name, _) in enumerate(matrix.members())]


def _snapshot(name: str, step: int, D: Tensor, rank: int) -> Snapshot:
    U, S, Vh = linalg.truncated_svd(D, min(max(rank, TOP), *D.shape), method="krylov")
    energy = float(D.double().square().sum())
    kept = min(rank, len(S))
    return Snapshot(
        name,
        step,
        (D.shape[0], D.shape[1]),
        S.to("cpu", torch.float64),
        energy,
        U[:, :kept].cpu().clone(),
        Vh[:kept].mT.cpu().clone(),
    )


def _scalars(snapshot: Snapshot) -> dict[str, Any]:
    rounding = rounding_of(snapshot.energy**0.5, snapshot.shape, torch.float32)
    statistics = row(Entry(snapshot.name, "updates", snapshot.shape, snapshot.values, snapshot.energy, rounding))
    kept = {key: statistics[key] for key in ("norm", "stable_rank", "effective_rank")}
    return {"name": snapshot.name, "step": snapshot.step} | kept | {"values": snapshot.values.tolist()}


def _angle(now: Snapshot, then: Snapshot) -> float:
    """The largest principal angle between the leading subspaces, left or right, in radians."""
    left = linalg.principal_angles(now.left, then.left)
    right = linalg.principal_angles(now.right, then.right)
    return float(torch.maximum(left[-1], right[-1]))
