"""One set of statistics for all matrices that read the very same tensors.

Which ones do is found in the data flow, batch by batch: two reads are the same when they cut the same rows out of the
same storage, at the same version of its contents. Matrices whose first read is the same form a group. Whatever a group
reads afterwards is computed once, by the first member that reads it, and set aside until every member has read it too;
a member that did not takes a copy of the common past and goes on alone. So a group is never assumed, and a mistaken
guess costs memory, not correctness. A storage is known by a weak reference held for one batch: it keeps no activation
alive, and a storage allocated later at the same address is not mistaken for it.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from eckart.nn.statistics import Statistics

_New = Callable[[int], Statistics]  # empty statistics of a stack of so many
_Fill = Callable[[Statistics, slice], None]  # compute the rows of a read into some slots


@dataclass
class Group:
    """Matrices that have read the same so far."""

    total: Statistics
    members: list[str]
    reads: int = 1
    pending: dict[Hashable, "_Pending"] = field(default_factory=dict)


@dataclass
class _Pending:
    """A read that not every member has confirmed."""

    part: Statistics
    slots: slice
    readers: set[str]


class Sharing:
    """The groups of a model's matrices, kept right on every batch."""

    def __init__(self) -> None:
        self.group_of: dict[str, Group] = {}
        self._first: dict[Hashable, Group] = {}  # first reads of this batch
        self._storages: list[StorageWeakRef] = []  # alive for this batch, so that no address is used twice
        self._times: Counter[tuple[str, Hashable]] = Counter()

    def identity(self, x: Tensor) -> Hashable:
        """What tensors with the same contents at the same place have in common, and no others, within one batch."""
        if x.is_inference():  # its contents may change without a trace
            return object()
        storage = StorageWeakRef(x.untyped_storage())
        self._storages.append(storage)
        # Contiguous tensors with the same last dimension hold the same rows, whatever the shape in front.
        layout = (x.numel(), x.shape[-1]) if x.is_contiguous() else (tuple(x.shape), x.stride())
        return storage.cdata, x.storage_offset(), x.dtype, x._version, layout

    def read(
        self,
        name: str,
        key: Hashable,  # identity of the tensor, and how rows are cut out of it
        slots: slice,  # the matrices of the stack that read it
        stack: int,
        new: _New,
        fill: _Fill,
    ) -> None:
        """Count one read of a matrix."""
        key = (key, slots.start, slots.stop, stack)
        self._times[name, key] += 1
        key = (key, self._times[name, key])
        group = self.group_of.get(name)
        if group is None:
            self._begin(name, key, slots, stack, new, fill)
        elif len(group.members) == 1:
            group.reads += 1
            fill(group.total, slots)
        else:
            self._confirm(group, name, key, slots, new, fill)

    def _begin(self, name: str, key: Hashable, slots: slice, stack: int, new: _New, fill: _Fill) -> None:
        group = self._first.get(key)
        if group is not None and group.reads == 1:  # its past is this one read
            group.members.append(name)
        else:
            group = self._first[key] = Group(new(stack), [name])
            fill(group.total, slots)
        self.group_of[name] = group

    def _confirm(self, group: Group, name: str, key: Hashable, slots: slice, new: _New, fill: _Fill) -> None:
        if key not in group.pending:
            group.reads += 1
            count = slots.stop - slots.start
            part = new(count)
            fill(part, slice(0, count))
            group.pending[key] = _Pending(part, slots, set())
        pending = group.pending[key]
        pending.readers.add(name)
        if len(pending.readers) == len(group.members):
            group.total.merge(pending.part, slots)
            del group.pending[key]

    def end_batch(self) -> None:
        """Settle the batch: part the members that read different tensors, and forget the tensors' identities."""
        for group in {id(group): group for group in self.group_of.values()}.values():
            if group.pending:
                self._part(group)
        self._first.clear()
        self._storages.clear()
        self._times.clear()

    def _part(self, group: Group) -> None:
        alike: dict[tuple[bool, ...], list[str]] = {}
        for name in group.members:
            alike.setdefault(tuple(name in pending.readers for pending in group.pending.values()), []).append(name)
        pendings = list(group.pending.values())
        totals = [group.total, *(group.total.clone() for _ in range(len(alike) - 1))]
        for (pattern, names), total in zip(alike.items(), totals, strict=True):
            for has_read, pending in zip(pattern, pendings, strict=True):
                if has_read:
                    total.merge(pending.part, pending.slots)
            part = Group(total, names, reads=group.reads)
            self.group_of.update(dict.fromkeys(names, part))
