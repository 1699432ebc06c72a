"""Train all of a model with optimizer states of low rank: GaLore in a loop of your own, saved and resumed to the bit.

A small transformer learns the bytes of Python's own documentation for a few steps.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.lm import read_text
from eckart.optim import LowRankOptimizer

STEPS, BATCH, LENGTH, RANK = 40, 8, 64, 16

text = torch.frombuffer(bytearray(read_text("pydoc", limit=200_000).encode()), dtype=torch.uint8).long()
sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4}
config = LlamaConfig(vocab_size=256, **sizes)


def built() -> LlamaForCausalLM:
    """The model, the same each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def batch(step: int) -> Tensor:
    """The text of a step, which the step's number says, so that a resumed run reads on where it stopped."""
    starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=torch.Generator().manual_seed(step))
    return torch.stack([text[start : start + LENGTH] for start in starts.tolist()])


def train(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The losses of some steps."""
    losses = []
    for step in steps:
        tokens = batch(step)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all that the optimizer keeps between steps."""
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))


print(f"{sum(p.numel() for p in built().parameters()):,} parameters")

plain = built()
adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2)
train(plain, adamw, range(1))
print(f"AdamW's states: {state_bytes(adamw):,} bytes")

# The linear layers' matrices get a subspace of rank 16; the embedding, the head and the norms get AdamW as before.
model = built()
optimizer = LowRankOptimizer(model, lr=1e-2, rank=RANK, method="galore", gap=20)
losses = train(model, optimizer, range(STEPS))
print(f"GaLore's states: {state_bytes(optimizer):,} bytes; loss {losses[0]:.2f} at first, {losses[-1]:.2f} at the end")

# The same run, cut in the middle of a gap between two refreshes of the bases.
first = built()
optimizer = LowRankOptimizer(first, lr=1e-2, rank=RANK, method="galore", gap=20)
train(first, optimizer, range(STEPS // 2 + 5))
path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, path)

second = built()
optimizer = LowRankOptimizer(second, lr=1e-2, rank=RANK, method="galore", gap=20)
checkpoint = torch.load(path, weights_only=True)
second.load_state_dict(checkpoint["model"])
optimizer.load_state_dict(checkpoint["optimizer"])
train(second, optimizer, range(STEPS // 2 + 5, STEPS))
same = all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))
print(f"saved, loaded, trained on: all weights are {'the same, bit for bit' if same else 'different'}")
