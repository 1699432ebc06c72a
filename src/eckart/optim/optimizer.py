"""`LowRankOptimizer`: training all of a model with optimizer states of low rank.

For each matrix, turned so that the basis is on its columns (`view`): R = X V, a direction D from R and moments of R's
size, and the update D Vᵀ with whatever the residual rule makes of the rest. See `methods` for the family and its axes.

State elements for a matrix (m, n), smaller side: r min(m, n) for the basis and 2 r max(m, n) for the moments (GaLore).
Cost of an ordinary step: 4 m n r flops, of a warm refresh 4 m n r more.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eckart.optim.checking import in_subspace, require_finite, require_group, require_known
from eckart.optim.describing import described
from eckart.optim.groups import param_groups, split_by_rank
from eckart.optim.inner import INNER
from eckart.optim.limiters import LIMITERS
from eckart.optim.loading import tensors_as_kept
from eckart.optim.noting import note_update, start_noting
from eckart.optim.projectors import PROJECTORS
from eckart.optim.residuals import RESIDUALS
from eckart.optim.step import dense
from eckart.optim.step.keeping import keep_moments, moments
from eckart.optim.step.portions import portions
from eckart.optim.step.refreshing import prepare
from eckart.optim.step.slot import Slot, generator
from eckart.optim.step.state import slot_of
from eckart.optim.step.writing import ROUNDING, write

if TYPE_CHECKING:
    from eckart.optim.per_layer import StepInBackward


class LowRankOptimizer(torch.optim.Optimizer):
    """GaLore and its descendants: a method by name, or any choice on each axis.

    Args:
        params: A model; or parameters, named parameters or groups, as for any torch optimizer. Groups from
            `param_groups` leave embeddings and heads to AdamW; of plain parameters every matrix is projected. A group
            with `rank=None`, and every vector, gets AdamW.
        lr: Learning rate; None is the method's own.
        rank: r; or below 1 a share of each matrix's smaller dimension; or a mapping from name to these (then `params`
            are a model or named); None is the method's own.
        method: A row of `METHODS`, which gives the default of each option below.
        options: The axes, projector, inner, residual, transport and limiter (see their tables), and the numbers and
            forms of `methods.DEFAULTS`.

    Raises:
        ValueError: An unknown name (with the closest), a rank of 0 or above a dimension, options that can't go
            together.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
        >>> optimizer = LowRankOptimizer(model, lr=1e-3, rank=4)
        >>> loss = model(torch.ones(8, 64)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> {key: tuple(value.shape) for key, value in optimizer.state[model[0].weight].items() if value.ndim}
        {'basis': (32, 4), 'exp_avg': (64, 4), 'exp_avg_sq': (64, 4)}
    """

    __repr__ = described

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | None = None,
        rank: float | Mapping[str, float] | None = None,
        *,
        method: str = "galore",
        **options: Any,
    ) -> None:
        row = require_known(method, options)
        chosen = row.options() | options
        r = row.rank if rank is None else rank
        if isinstance(params, nn.Module):
            params = param_groups(params, r, **options)
        elif isinstance(r, Mapping):
            params = split_by_rank(params, r)
        each = None if isinstance(r, Mapping) else r
        self.in_backward: StepInBackward | None = None  # set by `step_in_backward`
        self.seen: dict[Tensor, dict[str, Any]] | None = None  # set by `watch`
        super().__init__(params, {"lr": row.lr if lr is None else lr, "rank": each, **chosen})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it leaves out is as the optimizer was made with.

        Raises:
            ValueError: As for the class, with the parameter's name; the optimizer is as before.
        """
        super().add_param_group(param_group)
        try:
            require_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise
        self._list()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; after `step_in_backward`, what is left of it.

        Args:
            closure: Reevaluates the model and returns the loss.

        Returns:
            What the closure gave.

        Raises:
            ValueError: A gradient is sparse, or holds NaN or infinity (with the parameter's name); nothing has changed.
        """
        if self.in_backward is not None:
            return self.in_backward.finish(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.advance([p for group in self.param_groups for p in group["params"] if p.grad is not None])
        return loss

    @torch.no_grad()
    def advance(self, parameters: Sequence[Tensor], given: Mapping[Tensor, Tensor] | None = None) -> None:
        """Make a step of these parameters alone, from their gradients.

        Args:
            parameters: Some of the optimizer's.
            given: Parameter → R where it is known and its basis stays; its gradient is not looked at then.

        Raises:
            ValueError: As for `step`.
        """
        require_finite(parameters, self.name_of, alone=self.in_backward is not None)
        homes: dict[int, list[Tensor]] = {}
        for p in parameters:
            homes.setdefault(self._homes[p], []).append(p)
        for home, mine in homes.items():
            group = self.param_groups[home]
            low = [p for p in mine if in_subspace(p, group)]
            plain = [p for p in mine if not in_subspace(p, group)]
            for some in portions(low, group):
                self._advance_matrices([self.slot_of(p, given) for p in some], group)
            self._advance_plain(plain, group)

    def _advance_matrices(self, slots: list[Slot], group: dict[str, Any]) -> None:
        slots = prepare(slots)
        if not slots:
            return
        found = [moments(slot) for slot in slots]
        for slot in slots:
            slot.state["since"] += 1
        projector, residual = PROJECTORS[group["projector"]], RESIDUALS[group["residual"]]
        directions = INNER[group["inner"]].directions(slots, found)
        if projector.after is not None:
            for slot, D in zip(slots, directions, strict=True):
                projector.after(slot, D)
        residual(slots, directions)
        LIMITERS[group["limiter"]](slots)
        for slot in slots:
            note_update(slot)
        for slot, each in zip(slots, found, strict=True):
            write(slot)
            keep_moments(slot, each)

    def _advance_plain(self, plain: list[Tensor], group: dict[str, Any]) -> None:
        for p in plain:
            if not self.state[p]:
                dense.start(p, self.state[p])
        moves = dense.moving(plain, [self.state[p] for p in plain])
        plain = [p for p, move in zip(plain, moves, strict=True) if move]
        if plain:
            states = [self.state[p] for p in plain]
            dense.step(plain, states, group, lambda i: self._generator(plain[i], group))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave: rates and further numbers of the groups, and a copy of each tensor.

        Torch's own gives every tensor the parameter's type; here each keeps its own.

        Raises:
            ValueError: It is of another model, method or rank, or of other processes; nothing has changed.
        """
        with tensors_as_kept(self):
            super().load_state_dict(dict(state_dict))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and states, from a copy, a pickle or a state dict."""
        super().__setstate__(state)
        self.__dict__.setdefault("in_backward", None)
        self.__dict__.setdefault("seen", None)
        self._list()

    def _list(self) -> None:
        """Say of each parameter where it is: its position, which random numbers hang on, its name, its group."""
        self._order: dict[Tensor, int] = {}
        self._names: dict[Tensor, str] = {}
        self._homes: dict[Tensor, int] = {}
        for home, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                self._order[p] = len(self._order)
                self._names[p] = group["param_names"][i] if "param_names" in group else f"parameter {self._order[p]}"
                self._homes[p] = home

    def slot_of(self, p: Tensor, given: Mapping[Tensor, Tensor] | None = None) -> Slot:
        """The slot of a parameter that has a gradient; see `advance`."""
        slot = slot_of(p, self.state[p], self.group_of(p), self.name_of(p), self._order[p])
        slot.given = None if given is None else given.get(p)
        if self.seen is not None:
            start_noting(self.seen, slot)
        return slot

    def group_of(self, p: Tensor) -> dict[str, Any]:
        """The group that a parameter is in."""
        return self.param_groups[self._homes[p]]

    def name_of(self, p: Tensor) -> str:
        """A parameter's name; its position where it has none."""
        return self._names[p]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Torch's; after `step_in_backward` what is left of a step is forgotten too."""
        if self.in_backward is not None:
            self.in_backward.forget()
        super().zero_grad(set_to_none)

    def _generator(self, p: Tensor, group: dict[str, Any]) -> torch.Generator:
        return generator(p.device, group["seed"], self._order[p], int(self.state[p]["step"]), ROUNDING)
