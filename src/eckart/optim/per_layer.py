"""Stepping in the backward pass: each parameter moves as soon as its gradient is whole, and the gradient is freed.

One layer's gradient is alive at a time, instead of the model's. It is the same optimizer with the same state dict: the
numbers are those of an ordinary step, bit for bit, and a run may go from one mode to the other at any step. A training
loop keeps its `optimizer.step()`, which does what is left: nothing, unless gradients came another way.

Over micro-batches R adds up in the subspace, R = Σ G_j V, where nothing else of the gradient is used: the residual is
dropped and this step keeps its basis. Elsewhere `p.grad` adds up whole; `memory` says what that takes.

Clipping needs a norm that is only known when the backward pass is over. So a gradient G is held to c by the total norm
N of the step before, and by its own norm, which is never more than the total:

    total    G ← G · min(1, c / N of the last step, c / ‖G‖)
    matrix   G ← G · min(1, c / ‖G‖)

with ‖R‖ for ‖G‖ where R is all that there is. N is kept as `grad_norm` in each parameter's state, on the device.
Paper: none; LOMO (2306.09782) frees gradients the same way, without states.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eckart.linalg import working_dtype
from eckart.optim.budget.accounting import adds_up
from eckart.optim.checking import require_finite
from eckart.optim.optimizer import LowRankOptimizer
from eckart.optim.sharding import Shards, gradient, here
from eckart.optim.step.refreshing import project, stays

CLIPS = ("total", "matrix")
NORM = "grad_norm"


def step_in_backward(
    optimizer: LowRankOptimizer,
    *,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    clip: str = "total",
) -> "StepInBackward":
    """Have an optimizer make its steps within `loss.backward()`, one parameter at a time.

    `torch.nn.utils.clip_grad_norm_` finds no gradients then: give `max_grad_norm` here. A GradScaler finds none either;
    train in bfloat16. torch.compile of a whole model hands over its gradients at the end, all at once.

    Args:
        optimizer: Call its `step()` after the backward passes of a step, as ever; the learning rate is read live.
        accumulate: Backward passes for each step. Where fewer came, `step()` takes those.
        max_grad_norm: c > 0; None does not clip.
        clip: "total" or "matrix", see above.

    Returns:
        What undoes it: `.remove()`.

    Raises:
        ValueError: An argument is out of range; the optimizer steps in the backward pass already; or parameters are
            replicas of several processes (DDP averages gradients later than this; use `fully_shard`).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
        >>> optimizer = LowRankOptimizer(model, lr=1e-3, rank=2)
        >>> handle = step_in_backward(optimizer, max_grad_norm=1.0)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> [p.grad for p in model.parameters()]
        [None, None, None, None]
        >>> optimizer.step()
        >>> handle.largest  # bytes of gradients at a time, of 432 in all: one layer's weight
        256
    """
    if optimizer.in_backward is not None:
        raise ValueError("optimizer: it steps in the backward pass already; call remove() of what that gave")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate: {accumulate!r}; a whole number of backward passes, at least 1")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm: {max_grad_norm!r}; above 0, or None")
    if clip not in CLIPS:
        raise ValueError(f"clip: {clip!r}; one of {', '.join(CLIPS)}")
    return StepInBackward(optimizer, accumulate, max_grad_norm, clip)


class StepInBackward:
    """What `step_in_backward` gives; `largest` is how many bytes of gradients were kept at a time, at most."""

    def __init__(self, optimizer: LowRankOptimizer, accumulate: int, limit: float | None, clip: str) -> None:
        self.optimizer, self.accumulate, self.limit, self.clip = optimizer, accumulate, limit, clip
        self.largest = 0
        self.keeps_norms = limit is not None and clip == "total"
        self._came: dict[Tensor, int] = {}  # how many gradients of this step
        self._sums: dict[Tensor, Tensor] = {}  # R of micro-batches
        self._kept: dict[Tensor, int] = {}  # bytes of gradients or sums
        self._total: Tensor | None = None  # the last step's norm; None until this step asks
        trained = [p for p in self._parameters() if p.requires_grad]
        for p in trained:
            self._require_own(p)
        self._hooks = [p.register_post_accumulate_grad_hook(self._receive) for p in trained]
        # What was added up before a state is loaded is in a basis that is gone.
        self._hooks.append(optimizer.register_load_state_dict_post_hook(lambda _: optimizer.zero_grad()))
        optimizer.in_backward = self

    def remove(self) -> None:
        """Back to ordinary steps.

        Raises:
            ValueError: Micro-batches wait for their step, in the subspace; call `optimizer.step()` first.
        """
        if self._sums:
            raise ValueError("remove: micro-batches wait for their step; call optimizer.step() or zero_grad() first")
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.optimizer.in_backward = None

    @torch.no_grad()
    def finish(self, closure: Callable[[], Any] | None) -> None:
        """Step with whatever gradients are left, and begin another step. `optimizer.step()` calls it.

        Raises:
            ValueError: There is a closure.
        """
        if closure is not None:
            raise ValueError("closure: steps are made in the backward pass, so it can't be called again; give none")
        for p in self._parameters():
            if p.grad is not None or p in self._sums:
                self._advance(p)
            elif p not in self._came and NORM in self.optimizer.state.get(p, {}):
                self.optimizer.state[p][NORM].zero_()
        self.forget()

    def forget(self) -> None:
        """Leave what is left of this step. `optimizer.zero_grad()` calls it."""
        self._came.clear()
        self._sums.clear()
        self._kept.clear()
        self._total = None

    def _receive(self, p: Tensor) -> None:
        """Do what there is to do when a gradient has come."""
        came = self._came[p] = self._came.get(p, 0) + 1
        if came > self.accumulate:
            raise RuntimeError(
                f"{self.optimizer.name_of(p)}: gradient {came} since the last optimizer.step(), and accumulate is "
                f"{self.accumulate}. Call optimizer.step() after each {self.accumulate}, or give accumulate; a weight "
                "that two segments share needs checkpoint(use_reentrant=False)"
            )
        self._require_own(p)
        self._keep(p, gradient(p).nbytes + self._bytes_of_sum(p))
        if came == self.accumulate:
            self._advance(p)
        elif p in self._sums or self._adds_up(p):
            self._add(p)

    @torch.no_grad()
    def _advance(self, p: Tensor) -> None:
        """Make a parameter's step, and free its gradient."""
        if p in self._sums and p.grad is not None:
            self._add(p)
        R = self._sums.pop(p, None)
        if p.grad is None:
            p.grad = torch.zeros_like(p)  # not looked at: R is all
        norm = None if self.limit is None else self._hold(p, R, self.limit)
        self.optimizer.advance([p], None if R is None else {p: R})
        if norm is not None and self.keeps_norms:
            self.optimizer.state[p][NORM] = norm
        p.grad = None
        self._keep(p, 0)

    def _adds_up(self, p: Tensor) -> bool:
        """Whether all that this step uses of a gradient is what the basis of now makes of it."""
        return adds_up(p, self.optimizer.group_of(p)) and stays(self.optimizer.slot_of(p))

    @torch.no_grad()
    def _add(self, p: Tensor) -> None:
        """Add a micro-batch's gradient to R, and free it."""
        require_finite([p], self.optimizer.name_of, alone=True)
        R = project(self.optimizer.slot_of(p))
        if p in self._sums:
            self._sums[p].add_(R)
        else:
            self._sums[p] = R
        p.grad = None
        self._keep(p, self._bytes_of_sum(p))

    def _hold(self, p: Tensor, R: Tensor | None, limit: float) -> Tensor:  # ()
        """Scale a gradient, or R, down to the limit; gives the norm that it had."""
        if self._total is None:
            self._total = self._last_norm()
        shards = Shards(p, self.optimizer.group_of(p)["stack"])
        parts = gradient(p) if R is None else R
        square = torch.linalg.vector_norm(parts, dtype=working_dtype(parts.dtype)).float().square()
        if shards.group is not None:
            dist.all_reduce(square, group=shards.group)
        norm = square.sqrt()
        most = norm if self.clip == "matrix" else torch.maximum(norm, self._total.to(norm.device))
        factor = (limit / most).clamp(max=1.0)
        parts.mul_(torch.where(factor.isfinite(), factor, 1.0))  # a NaN is for the check that names it
        return norm

    def _last_norm(self) -> Tensor:  # ()
        states = [self.optimizer.state.get(p, {}) for p in self._parameters()]  # in an order that a resume keeps
        norms = [state[NORM] for state in states if NORM in state]
        if not norms:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))

    def _keep(self, p: Tensor, size: int) -> None:
        self._kept[p] = size
        self.largest = max(self.largest, sum(self._kept.values()))
        if not size:
            del self._kept[p]

    def _bytes_of_sum(self, p: Tensor) -> int:
        return self._sums[p].nbytes if p in self._sums else 0

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _require_own(self, p: Tensor) -> None:
        """Fail where other processes' gradients would come later."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and here(p) is p:
            raise ValueError(
                f"optimizer: {self.optimizer.name_of(p)} is a replica in {dist.get_world_size()} processes, and DDP "
                "averages gradients after a step in the backward pass; shard the model (fully_shard), or step as usual"
            )
