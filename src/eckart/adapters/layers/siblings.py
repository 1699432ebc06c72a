"""Which layers read the same tensor one after another (q, k and v; gate and up), seen from the calls themselves.

The first call of each layer only looks: a layer that is called with the very tensor that the layer before it was called
with joins its group. From then on the first of a group computes for all of it in one fused step, and the others hand
out what is ready. A group that turns out wrong twice in a row (a member called with another tensor, or not at all) is
taken apart and each computes alone, with a right result in every case. What gradient checkpointing computes again in
the backward pass of the first call is computed alone once more, as it was then.

Paper: none; peers patch the source text of each architecture instead.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import Tensor, nn

from eckart.adapters.layers.conditions import in_backward

Layer = nn.Module


class Waiting(NamedTuple):
    """Outputs made from one input, until they are fetched: put there as one, so that threads never mix two inputs."""

    x: Tensor
    version: int
    outputs: dict[Layer, tuple[Tensor, Hashable]]


class Group:
    """Layers in the order of their calls, and the outputs that wait to be fetched."""

    def __init__(self, members: list[Layer], note: str = "") -> None:
        self.members = members
        self.note = note  # why the members are computed one by one
        self.used = False  # whether a forward pass was computed as a group
        self.misses = 0
        self.switch = 0
        self.waiting: Waiting | None = None

    def fetch(self, layer: Layer, x: Tensor, state: Hashable) -> Tensor | None:
        """The layer's output, if it was computed on this x, as it is now, with the layer as it is now."""
        waiting = self.waiting
        if waiting is None or waiting.x is not x or waiting.version != x._version:
            return None
        y, then = waiting.outputs.get(layer, (None, None))
        if y is None or then != state:
            return None
        waiting.outputs.pop(layer, None)
        if not waiting.outputs:
            self.waiting, self.misses = None, 0
        return y


class Siblings:
    """The groups of one model; all of its adapted layers hold the same object."""

    def __init__(self) -> None:
        self._groups: weakref.WeakKeyDictionary[Layer, Group] = weakref.WeakKeyDictionary()
        self._last: tuple[weakref.ref[Tensor], int, Group] | None = None
        self._switch = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Siblings":
        return Siblings()  # a copy of the model looks for itself

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def of(self, layer: Layer) -> list[Layer]:
        """The layers that are computed together with this one, itself included."""
        group = self._groups.get(layer)
        return group.members if group is not None else [layer]

    def note(self, layer: Layer) -> str:
        """Why the layer is computed without its siblings, found out in its calls; empty where it is not."""
        group = self._groups.get(layer)
        return group.note if group is not None else ""

    def dissolve(self, layer: Layer, note: str = "") -> None:
        """Take the layer's group apart for good."""
        group = self._groups.get(layer)
        for member in group.members if group is not None else [layer]:
            self._groups[member] = Group([member], note)
        if group is not None:
            group.waiting = None

    def forget(self) -> None:
        """Look again at the next calls, as after layers were adapted or put back."""
        self._groups.clear()
        self._last = None

    def restore(self, groups: list[list[Layer]]) -> None:
        """Know these groups without looking: a run that goes on from a checkpoint adds up in the order it had."""
        self.forget()
        for members in groups:
            group = Group(members)
            self._groups.update(dict.fromkeys(members, group))

    def switched(self) -> None:
        """Hand out nothing that was computed before, as other adapters act now; the groups stay."""
        self._switch += 1

    def run(
        self,
        layer: Layer,
        x: Tensor,
        state: Callable[[Layer], Hashable],
        apart: Callable[[list[Layer]], str],
        compute: Callable[[Tensor, list[Layer]], tuple[Tensor, ...]],
    ) -> Tensor:
        """The layer's output on x, computed with its siblings' or fetched.

        Args:
            layer: The layer that is called.
            x: What it is called with.
            state: What a layer's output depends on beside x; an output made in another state is not handed out.
            apart: Why these layers cannot be one step as things stand now; empty where they can.
            compute: The outputs of some layers on one input.
        """
        group = self._groups.get(layer)
        if group is None:
            self._learn(layer, x)
            return compute(x, [layer])[0]
        if len(group.members) == 1:
            return compute(x, group.members)[0]
        if not group.used and in_backward():
            return compute(x, [layer])[0]
        group.used = True
        if group.switch != self._switch:
            group.waiting = None
            group.switch = self._switch
        if group.waiting is not None and (y := group.fetch(layer, x, state(layer))) is not None:
            return y
        if note := apart(group.members):
            group.note = note
            return compute(x, [layer])[0]
        if (group.waiting is not None or layer is not group.members[0]) and self._missed(group, layer):
            return compute(x, [layer])[0]
        first, *others = compute(x, group.members)
        group.note = ""
        made = zip(group.members[1:], others, strict=True)
        group.waiting = Waiting(x, x._version, {member: (y, state(member)) for member, y in made})
        return first

    def _missed(self, group: Group, layer: Layer) -> bool:
        """Count a pass that did not go as the group expects; whether the layer is to be computed alone.

        Once can be a pass that was broken off; after two in a row the group is taken apart.
        """
        group.waiting = None
        group.misses += 1
        if group.misses > 1:
            self.dissolve(layer, "its siblings were not called with one tensor each time")
            return True
        return layer is not group.members[0]

    def _learn(self, layer: Layer, x: Tensor) -> None:
        last = self._last
        if last is not None and last[0]() is x and last[1] == x._version:
            group = last[2]
            group.members.append(layer)
        else:
            group = Group([layer])
        self._groups[layer] = group
        self._last = (weakref.ref(x), x._version, group)
