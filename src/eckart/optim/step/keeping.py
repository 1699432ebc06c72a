"""How moments and bases are kept between steps: in float32, or in 8 and 4 bits, or as the seed they were drawn with.

8-bit moments: 1 byte for an entry and 4 for each 64 of a row (`linalg.minifloat`), rounded at random.
4-bit basis: 132 bytes for each 256 entries of a matrix, the last block filled up; matrices of a stack share no block.
Paper: Q-GaLore (2407.08296) keeps the weights in INT8 as well; ours stay in the model's type.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from eckart.linalg import Quantized, dequantize, from_minifloat, quantize, to_minifloat
from eckart.optim.inner import INNER
from eckart.optim.inner.inner import Moments
from eckart.optim.projectors import PROJECTORS
from eckart.optim.step.shapes import BY_ROWS, SHAPES
from eckart.optim.step.slot import Slot

UNSIGNED = ("exp_avg_sq",)
SCALES = "_scales"
BLOCK_8BIT = 64  # entries of a row for each scale of a moment in 8 bits
BLOCK_4BIT = 256  # entries for each scale of a basis in 4 bits, as in Q-GaLore


def start_moments(slot: Slot) -> None:
    """Put moments of zeros into a slot's state."""
    for name, kind in INNER[slot.group["inner"]].moments.items():
        if slot.group["moments"] == "8bit" and kind == "full":
            codes, scales = to_minifloat(_zeros(slot, kind), signed=name not in UNSIGNED, block=BLOCK_8BIT)
            slot.state[name] = slot.shards.place(codes, by_rows=True)
            slot.state[name + SCALES] = slot.shards.place(scales, by_rows=True)
        else:
            slot.state[name] = zeros(slot, kind)


def zeros(slot: Slot, kind: str) -> Tensor:
    """A state of zeros as it is kept; its shape by its name in `SHAPES`."""
    return slot.shards.place(_zeros(slot, kind), kind in BY_ROWS)


def _zeros(slot: Slot, kind: str) -> Tensor:
    *stack, p, q = slot.X.shape
    return slot.X.new_zeros(*stack, *SHAPES[kind](p, q, slot.rank))


def moments(slot: Slot) -> Moments:
    """The moments in float32: the kept tensors themselves, or copies of what is kept in 8 bits."""
    found = {}
    for name in INNER[slot.group["inner"]].moments:
        kept = slot.get(name)
        if kept.dtype == torch.uint8:
            scales = slot.get(name + SCALES)
            kept = from_minifloat(kept, scales, signed=name not in UNSIGNED, block=BLOCK_8BIT).to(slot.X.dtype)
        found[name] = kept
    return found


def keep_moments(slot: Slot, found: Moments) -> None:
    """Write copies back."""
    for purpose, (name, moment) in enumerate(found.items(), start=2):
        kept = slot.get(name)
        if kept.dtype == torch.uint8:
            source = slot.generator(slot.step, purpose)
            codes, scales = to_minifloat(moment, signed=name not in UNSIGNED, block=BLOCK_8BIT, generator=source)
            kept.copy_(codes)
            slot.get(name + SCALES).copy_(scales)


def keep_basis(slot: Slot, V: Tensor) -> Tensor:
    """Put a basis into a slot's state; what a step will find there."""
    form = slot.group["basis"]
    if form == "seed":
        return V
    if form == "4bit":
        entries = V.flatten(-2)
        blocks = -(-entries.shape[-1] // BLOCK_4BIT)
        packed = quantize(pad(entries, (0, -entries.shape[-1] % BLOCK_4BIT)), 4, block=BLOCK_4BIT)
        _put(slot, "basis", packed.codes.view(*V.shape[:-2], blocks * BLOCK_4BIT // 2))
        _put(slot, "basis" + SCALES, packed.scales.view(*V.shape[:-2], blocks))
    else:
        _put(slot, "basis", V.contiguous())
    return basis(slot)


def basis(slot: Slot) -> Tensor:  # (..., q, r), or (r,) integers
    """The basis as it is kept, in float32."""
    if slot.group["basis"] == "seed":
        return PROJECTORS[slot.group["projector"]].first(slot)
    kept = slot.get("basis")
    if kept.dtype == torch.uint8:
        shape = (*kept.shape[:-1], 2 * kept.shape[-1])
        packed = Quantized(kept.flatten(), slot.get("basis" + SCALES).flatten(), shape, 4, BLOCK_4BIT)
        q = slot.X.shape[-1]
        return dequantize(packed, slot.X.dtype)[..., : q * slot.rank].unflatten(-1, (q, slot.rank))
    return kept


def _put(slot: Slot, key: str, value: Tensor) -> None:
    if key in slot.state:
        slot.get(key).copy_(value)
    else:
        slot.state[key] = slot.shards.place(value, by_rows=False, by_member=value.ndim > 1)  # coordinates are of all
