"""Adapt a real model in a training loop of your own: ranks from its gradients, plain torch, files that PEFT reads.

SmolLM2-135M learns the English of Python's own documentation for a few steps.
"""

import tempfile
from pathlib import Path

import torch

import eckart
from eckart.adapters import pairs, used_ranks
from eckart.lm import load, training_data

STEPS, LENGTH = 4, 48

model, tokenizer, _ = load("smollm2-135m")
data = training_data(tokenizer, "pydoc", length=LENGTH)
batches = data.batches(STEPS, batch=2)
print(f"{len(data.train)} documents to learn from; {data.notes[0]}")

# Which matrices, which ranks, which α: two halves of a few batches say where they agree.
done = eckart.adapt(model, rank="auto", budget=100_000, batches=data.batches(2), targets="layers.29.*")
print(done)

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
losses = []
for batch in batches:
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} at first, {sum(losses[-2:]) / 2:.2f} at the end")

# What was learned: the rank that each change really needs.
used, given = used_ranks(pairs(model)), done.settings.ranks
print(f"of {sum(given.values())} directions, {sum(used.values())} hold 99 % of what was learned")

folder = Path(tempfile.mkdtemp()) / "adapter"
print("saved", eckart.save(model, folder).says)
again = load("smollm2-135m").model
eckart.load(folder, into=again)
with torch.no_grad():
    difference = (again(**batches[0]).logits - model(**batches[0]).logits).abs().max().item()
print(f"loaded again: the logits differ by {difference:.0e}")
