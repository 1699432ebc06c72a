"""AdaLoRA's rank rule: a budget of triplets that falls from b₀ to b_T, spent where the loss feels them most.

    I_t = |w · ∂L/∂w|,   Ī ← β₁ Ī + (1−β₁) I,   U ← β₂ U + (1−β₂) |I − Ī|                   for every entry w of P, Λ, Q
    S_i = (Ī·U)(λ_i) + mean_j (Ī·U)(P_ji) + mean_j (Ī·U)(Q_ij)                                 for every triplet i
    b(t) = b₀                          t ≤ t_i
         = ⌊b_T + (b₀−b_T)(1 − (t−t_i)/(T−t_f−t_i))³⌋     t_i < t ≤ T−t_f, spent at every Δ-th step
         = b_T                         after

Over all matrices together the b(t) triplets of largest S stay; the others get λ = 0, and may come back while the
budget falls. `shrink` removes them for good, from the model, the optimizer and the schedule's own averages.
Cost: twice the adapter's size in averages, three passes over it a step.
Paper: AdaLoRA 2303.10512. Ours: steps count from 1 as in PEFT; a budget that has not begun to fall prunes nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eckart.adapters.layers.place import adapters
from eckart.adapters.shapes.triplets import Triplets


class RankSchedule:
    """Prunes the triplets of a model as its training goes on.

    Call `step` after `optimizer.step()` and before `zero_grad`, once for each step of the optimizer; it reads the
    gradients that are there. Whenever it is convenient, `shrink(model, optimizer, schedule)` frees what it has pruned;
    with `every` above 1 the outputs stay as they are only right after a step that pruned, as λ trains on in between.

    Args:
        model: A model with an adapter of triplets (`adapt(model, "adalora")`).
        steps: T, how many optimizer steps the training has.
        target: Average rank at the end, above 0 and at most the rank at the start: b_T = target · matrices.
        start: t_i, steps before the budget begins to fall.
        final: t_f, steps after it has ended falling, in which the chosen triplets train.
        every: Δ, steps from one pruning to the next while it falls.
        beta1: β₁, in [0, 1).
        beta2: β₂, in [0, 1).
        name: The adapter.

    Raises:
        ValueError: No such adapter of triplets, a target above the rank at the start, phases longer than T, or a number
            outside its range.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        >>> _ = adapt(model, "adalora", rank=4)
        >>> schedule = RankSchedule(model, steps=10, target=2, start=2, final=2)
        >>> [schedule.budget(t) for t in range(1, 11)]
        [8, 8, 6, 5, 4, 4, 4, 4, 4, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        target: float = 8.0,
        start: int = 0,
        final: int = 0,
        every: int = 1,
        beta1: float = 0.85,
        beta2: float = 0.85,
        name: str = "default",
    ) -> None:
        self.model, self.name = model, name
        held = self.triplets()
        self.first = sum(adapter.rank for adapter in held.values())  # b₀
        self.last = int(target * len(held))  # b_T
        self.steps, self.start, self.final, self.every = steps, start, final, every
        self.beta1, self.beta2 = beta1, beta2
        self.done = 0
        self.averages = {place: _zeros(adapter) for place, adapter in held.items()}
        self._check(target, len(held))

    def _check(self, target: float, count: int) -> None:
        if not 1 <= self.last <= self.first:
            raise ValueError(
                f"target: an average rank of {target} for {count} matrices is {self.last} triplets; they start with "
                f"{self.first}, so give more than 0 and at most {self.first / count:g}"
            )
        if self.start < 0 or self.final < 0 or self.every < 1 or self.start + self.final >= self.steps:
            raise ValueError(
                f"steps: {self.steps} with start={self.start}, final={self.final}, every={self.every}; start + final "
                "must leave steps in which the budget falls, and every is at least 1"
            )
        for label, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{label}: {beta}; give a number of at least 0 and below 1")

    def triplets(self) -> dict[str, Triplets]:
        """The adapters that the schedule looks after, as they are now."""
        found = {place: made for place, made in adapters(self.model, self.name) if isinstance(made, Triplets)}
        if not found:
            raise ValueError(f"model: it has no adapter {self.name!r} of triplets; adapt it with method='adalora'")
        return found

    def budget(self, step: int) -> int:
        """b(t): how many triplets may stay after this step, over all matrices."""
        if step <= self.start:
            return self.first
        if step > self.steps - self.final:
            return self.last
        left = 1 - (step - self.start) / (self.steps - self.final - self.start)
        return int((self.first - self.last) * left**3 + self.last)

    @torch.no_grad()
    def step(self) -> bool:
        """Take in the gradients of this step and prune when it is time; returns whether it was time.

        Raises:
            RuntimeError: No gradients, or triplets that were shrunk without the schedule; nothing is counted then.
        """
        held = self.triplets()
        averaging = self.done + 1 < self.steps - self.final
        for place, adapter in held.items():
            self._fits(place, adapter, averaging)
        self.done += 1
        if averaging:
            for place, adapter in held.items():
                self._average(place, adapter)
        if self.done >= self.steps - self.final or (self.done > self.start and self.done % self.every == 0):
            self._prune(held, self.budget(self.done))
            return True
        return False

    def _fits(self, place: str, adapter: Triplets, averaging: bool) -> None:
        """Refuse triplets that are not those of the averages, or have no gradient where one is to be averaged."""
        for factor, (mean, _) in self.averages[place].items():
            parameter = getattr(adapter, factor)
            if averaging and parameter.grad is None:
                raise RuntimeError(
                    f"{place}.{factor} has no gradient: call step() after optimizer.step() and before zero_grad(), "
                    "with the adapter active"
                )
            if parameter.shape != mean.shape:
                raise RuntimeError(f"{place} was shrunk behind the schedule's back: shrink(model, optimizer, schedule)")

    def _average(self, place: str, adapter: Triplets) -> None:
        for factor, (mean, spread) in self.averages[place].items():
            parameter = getattr(adapter, factor)
            importance = (parameter * parameter.grad).abs().to(mean.dtype)
            mean.mul_(self.beta1).add_(importance, alpha=1 - self.beta1)
            spread.mul_(self.beta2).add_((importance - mean).abs_(), alpha=1 - self.beta2)

    def scores(self) -> dict[str, Tensor]:
        """S of every triplet, matrix name → (r,); a stack's members are averaged."""
        return {place: _score(averages) for place, averages in self.averages.items()}

    def _prune(self, held: Mapping[str, Triplets], budget: int) -> None:
        """Leave the `budget` best in, zero the λ of the others (all that tie with the best of those)."""
        scores = self.scores()
        together = torch.cat([scores[place] for place in held])
        drop = together.numel() - budget
        if drop <= 0:
            return
        threshold = together.kthvalue(drop).values
        for place, adapter in held.items():
            adapter.kept.copy_(scores[place] > threshold)
            adapter.Lambda.masked_fill_(~adapter.kept, 0.0)

    def select(self, place: str, keep: Tensor | None) -> None:
        """Follow `shrink`: keep these triplets' averages of a matrix; None: the matrix is adapted no more."""
        if keep is None:
            del self.averages[place]
            return
        for factor, pair in self.averages[place].items():
            dim = Triplets.rank_dims[factor]
            self.averages[place][factor] = tuple(each.index_select(dim, keep) for each in pair)  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs, as tensors; load it onto a model whose adapter has the same ranks."""
        state = {"done": torch.tensor(self.done), "first": torch.tensor(self.first), "last": torch.tensor(self.last)}
        for place, adapter in self.triplets().items():
            state[f"{place}.kept"] = adapter.kept.clone()
            for factor, (mean, spread) in self.averages[place].items():
                state[f"{place}.{factor}.mean"], state[f"{place}.{factor}.spread"] = mean.clone(), spread.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another run stopped.

        Raises:
            ValueError: The state is of other matrices or ranks.
        """
        mine = self.state_dict()
        wrong = [key for key in {**mine, **state} if key not in mine or key not in state]
        wrong = wrong or [key for key in mine if mine[key].shape != state[key].shape]
        if wrong:
            raise ValueError(f"state: {wrong[0]!r} does not fit this model's adapter; load the adapter as it was saved")
        self.done, self.first, self.last = (int(state[key]) for key in ("done", "first", "last"))
        for place, adapter in self.triplets().items():
            adapter.kept.copy_(state[f"{place}.kept"])
            for factor, (mean, spread) in self.averages[place].items():
                mean.copy_(state[f"{place}.{factor}.mean"])
                spread.copy_(state[f"{place}.{factor}.spread"])


def orthogonality(model: nn.Module, name: str = "default") -> Tensor:
    """What AdaLoRA adds to the loss, times a weight (0.5 in PEFT, 0.1 in the paper): mean ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F.

    Args:
        model: A model with an adapter of triplets.
        name: The adapter.

    Returns:
        A scalar: the mean over all factors P and Q of the model.

    Raises:
        ValueError: No such adapter of triplets.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 6))
        >>> _ = adapt(model, "adalora", rank=4)
        >>> round(orthogonality(model).item(), 1)  # P and Q start small, and ‖I₄‖_F = 2
        2.0
    """
    found = [made for _, made in adapters(model, name) if isinstance(made, Triplets)]
    if not found:
        raise ValueError(f"model: it has no adapter {name!r} of triplets; adapt it with method='adalora'")
    return torch.stack([_apart(rows) for made in found for rows in (made.P.mT, made.Q)]).mean()


def _apart(rows: Tensor) -> Tensor:  # (..., r, k)
    """‖R Rᵀ − I‖_F, the mean over a stack."""
    eye = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    return torch.linalg.matrix_norm(rows @ rows.mT - eye).mean()


def _zeros(adapter: Triplets) -> dict[str, tuple[Tensor, Tensor]]:
    """Averages of I and of |I − Ī| for each factor, in float32 or wider."""
    return {
        factor: tuple(torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for _ in range(2))  # type: ignore[misc]
        for factor in Triplets.factors
        for p in [getattr(adapter, factor).detach()]
    }


def _score(averages: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:  # (r,)
    products = {factor: mean * spread for factor, (mean, spread) in averages.items()}
    score = products["Lambda"] + products["P"].mean(-2) + products["Q"].mean(-1)
    return score if score.ndim == 1 else score.mean(0)
