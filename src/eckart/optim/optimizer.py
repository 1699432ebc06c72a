"""`LowRankOptimizer`: training all of a model with optimizer states of low rank.

For each matrix, turned so that the basis is on its columns (`view`): R = X V, a direction D from R and moments of R's
size, and the update D Vᵀ with whatever the residual rule makes of the rest. See `methods` for the family, and
`projectors`, `inner`, `residuals`, `transports`, `limiters` for the axes.

State elements for a matrix (m, n), smaller side: r min(m, n) for the basis and 2 r max(m, n) for the moments (GaLore).
Cost of an ordinary step: 4 m n r flops, of a warm refresh 4 m n r more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eckart.optim import dense
from eckart.optim.checking import in_subspace, require_finite, require_group, require_same_model
from eckart.optim.groups import param_groups, split_by_rank
from eckart.optim.inner import INNER
from eckart.optim.keeping import keep_moments, moments
from eckart.optim.limiters import LIMITERS
from eckart.optim.methods import METHODS
from eckart.optim.projectors import PROJECTORS
from eckart.optim.refreshing import prepare
from eckart.optim.residuals import RESIDUALS
from eckart.optim.slot import Slot, generator
from eckart.optim.state import HOST, slot_of
from eckart.optim.view import as_matrix_shape
from eckart.optim.writing import ROUNDING, write

TOGETHER = 1 << 24  # projected numbers that are alive at a time: 64 MiB


class LowRankOptimizer(torch.optim.Optimizer):
    """GaLore and its descendants: a method by name, or any choice on each axis.

    Args:
        params: A model; or parameters, named parameters or groups, as for any torch optimizer. Groups from
            `param_groups` leave embeddings and heads to AdamW; of plain parameters every matrix is projected. A group
            with `rank=None`, and every vector, gets AdamW.
        lr: Learning rate; None is the method's own.
        rank: r, or a mapping from name to r (then `params` are a model or named); None is the method's own.
        method: A row of `METHODS`, which gives the default of each option below.
        options: projector, inner, residual, transport, limiter (see their tables), side, gap, schedule, scale, betas,
            eps, weight_decay, residual_scale, limit, moments, basis, seed: see `methods.DEFAULTS`.

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

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | None = None,
        rank: int | Mapping[str, int] | None = None,
        *,
        method: str = "galore",
        **options: Any,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method: {method!r}; one of {', '.join(METHODS)}")
        row = METHODS[method]
        chosen = row.options() | options
        if unknown := set(options) - set(row.options()):
            raise TypeError(f"LowRankOptimizer takes no {min(unknown)!r}; options are {', '.join(row.options())}")
        r = row.rank if rank is None else rank
        if isinstance(params, nn.Module):
            params = param_groups(params, r, **options)
        elif isinstance(r, Mapping):
            params = split_by_rank(params, r)
        each = None if isinstance(r, Mapping) else r
        self._order: dict[Tensor, int] = {}  # parameter → position, which random numbers hang on
        self._names: dict[Tensor, str] = {}
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
        names = self.param_groups[-1].get("param_names")
        for i, p in enumerate(self.param_groups[-1]["params"]):
            self._order[p] = len(self._order)
            self._names[p] = names[i] if names else f"parameter {self._order[p]}"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: Reevaluates the model and returns the loss.

        Returns:
            What the closure gave.

        Raises:
            ValueError: A gradient is sparse, or holds NaN or infinity (with the parameter's name); nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.advance([p for group in self.param_groups for p in group["params"] if p.grad is not None])
        return loss

    @torch.no_grad()
    def advance(self, parameters: Sequence[Tensor]) -> None:
        """Make a step of these parameters alone, from their gradients.

        Args:
            parameters: Some of the optimizer's.

        Raises:
            ValueError: As for `step`.
        """
        require_finite(parameters, self._name)
        wanted = set(map(id, parameters))
        for group in self.param_groups:
            mine = [p for p in group["params"] if id(p) in wanted]
            low = [p for p in mine if in_subspace(p, group)]
            plain = [p for p in mine if not in_subspace(p, group)]
            for some in _portions(low, group):
                self._advance_matrices([self._slot(p, group) for p in some], group)
            self._advance_plain(plain, group)

    def _advance_matrices(self, slots: list[Slot], group: dict[str, Any]) -> None:
        slots = [slot for slot in slots if prepare(slot)]
        if not slots:
            return
        found = [moments(slot) for slot in slots]
        for slot in slots:
            slot.state["since"] += 1
        projector, residual = PROJECTORS[group["projector"]], RESIDUALS[group["residual"]]
        for slot, D in zip(slots, INNER[group["inner"]].directions(slots, found), strict=True):
            if projector.after is not None:
                projector.after(slot, D)
            residual(slot, D)
        LIMITERS[group["limiter"]](slots)
        for slot, each in zip(slots, found, strict=True):
            write(slot)
            keep_moments(slot, each)

    def _advance_plain(self, plain: list[Tensor], group: dict[str, Any]) -> None:
        for p in plain:
            if not self.state[p]:
                dense.start(p, self.state[p])
        if plain:
            states = [self.state[p] for p in plain]
            dense.step(plain, states, group, lambda i: self._generator(plain[i], group))

    def state_dict(self) -> dict[str, Any]:
        """Torch's: numbers, strings and tensors, which `torch.load(weights_only=True)` reads."""
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave; each tensor keeps its type.

        Raises:
            ValueError: It is of another model; nothing has changed.
        """
        require_same_model(self.param_groups, state_dict)
        super().load_state_dict(dict(state_dict))
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, key in zip(group["params"], saved["params"], strict=True):
                if key in state_dict["state"]:  # torch's own gives every tensor the parameter's type
                    self.state[p] = {k: _moved(k, v, p) for k, v in state_dict["state"][key].items()}

    def _slot(self, p: Tensor, group: dict[str, Any]) -> Slot:
        return slot_of(p, self.state[p], group, self._name(p), self._order[p])

    def _generator(self, p: Tensor, group: dict[str, Any]) -> torch.Generator:
        return generator(p.device, group["seed"], self._order[p], int(self.state[p]["step"]), ROUNDING)

    def _name(self, p: Tensor) -> str:
        return self._names[p]


def _portions(parameters: list[Tensor], group: dict[str, Any]) -> Iterator[list[Tensor]]:
    """Cut a list so that the projected gradients of a part take no more than `TOGETHER` numbers."""
    part: list[Tensor] = []
    size = 0
    for p in parameters:
        projected = p.numel() // min(as_matrix_shape(p.shape, group["stack"])[-2:]) * group["rank"]
        if part and size + projected > TOGETHER:
            yield part
            part, size = [], 0
        part.append(p)
        size += projected
    if part:
        yield part


def _moved(key: str, value: Any, p: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.clone() if key in HOST else value.to(p.device, copy=True)
