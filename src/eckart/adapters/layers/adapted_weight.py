"""A bare parameter with adapters: W + Δ is formed at each use, in the place of W.

For weights that no module of their own applies: the experts of a mixture (E, m, n), with factors B (E, m, r) and
A (E, r, n), and the projections that attention keeps as one parameter.

Cost: E·m·n numbers for W + Δ and 2·E·m·n·r operations each time it is formed, for all experts whether tokens go to them
or not; as much again for the dense gradient of Δ in training. An experts module forms it once for each call; attention
at each read. In half precision W + Δ is rounded to the weight's dtype, as a merge is.

Paper: none; PEFT's target_parameters does the same.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eckart.adapters.layers.place import Place
from eckart.nn import Matrix


class AdaptedWeight(Place):
    """A parametrization of the parameter that holds a matrix; `put` sets it up.

    Args:
        matrix: The matrix.
    """

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix)
        self.read = True
        self.parameter = matrix.parameter
        self._owner = (matrix.module,)  # in a tuple: as a child module it would close a circle
        self._order = list(matrix.module._parameters)
        self._inside = False  # the owner is being called: what is formed stays for the length of the call
        self._formed: tuple[bool, Tensor] | None = None  # whether with gradients, and W + Δ
        self._hooks: list[Any] = []

    @classmethod
    def put(cls, matrix: Matrix) -> "AdaptedWeight":
        """Parametrize the matrix's parameter; the place has no adapter yet."""
        place = cls(matrix)
        parametrize.register_parametrization(matrix.module, matrix.parameter, place)
        if matrix.kind == "experts":
            place._hooks = [
                matrix.module.register_forward_pre_hook(place._enter),
                matrix.module.register_forward_hook(place._exit, always_call=True),
            ]
        return place

    def forward(self, W: Tensor) -> Tensor:
        """W with the active adapters; W itself where there are none."""
        if not self.active:
            return W
        formed = self._formed
        if formed is not None and formed[0] == torch.is_grad_enabled():
            return formed[1]
        changed = self.as_stored(self.changed_weight(self.as_matrix(W)))
        if self._inside:
            self._formed = torch.is_grad_enabled(), changed
        return changed

    def original(self) -> nn.Parameter:
        """The frozen parameter."""
        return self._list().original

    def weight_matrix(self) -> Tensor:
        return self.as_matrix(self.original().detach())

    def as_stored(self, W: Tensor) -> Tensor:
        return W.mT if self.transposed else W

    def write(self, W: Tensor) -> None:
        """Give the parameter other values, in a new tensor of W's dtype."""
        old = self.original()
        self._list().original = nn.Parameter(self.as_stored(W).contiguous(), requires_grad=old.requires_grad)

    def leave(self, model: nn.Module) -> None:
        """Make the parameter a plain one again, in its old place among the owner's."""
        for hook in self._hooks:
            hook.remove()
        (owner,), held = self._owner, self._list()
        if len(held) > 1:
            del held[next(index for index, each in enumerate(held) if each is self)]
            return
        parametrize.remove_parametrizations(owner, self.parameter, leave_parametrized=False)
        for name in self._order:
            if name in owner._parameters:
                owner._parameters[name] = owner._parameters.pop(name)

    def _list(self) -> Any:
        return self._owner[0].parametrizations[self.parameter]  # type: ignore[index]

    def _enter(self, *_: Any) -> None:
        self._inside = not torch.compiler.is_compiling()

    def _exit(self, *_: Any) -> None:
        self._inside, self._formed = False, None

    def extra_repr(self) -> str:
        m, n = self.shape
        return f"{super().extra_repr()}, W + Δ formed at each use: {self.stack * m * n:,} numbers"
