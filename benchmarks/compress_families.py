"""Compress models of other families, each judged by its own task: an encoder, a ViT, a convolutional net.

    python benchmarks/compress_families.py          # two cores: under ten minutes

- MiniLM finds, for the beginning of each of Python's help topics, the passage that follows it, among those of all
  topics; calibrated on half of the topics, judged on the other half, the share found at once.
- A small ViT and a small convolutional net, trained here for a minute, name scikit-learn's digits; calibrated on the
  images that they were trained on, judged on the others, the share named right.

Every matrix but embeddings and heads. Output gradients are those of the task's own loss.
"""

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import ViTConfig, ViTForImageClassification

import eckart
import eckart.lm as lm

METHODS, KEEPS = ("svd", "svd-llm", "two-sided", "auto"), (0.8, 0.6, 0.4, 0.2)
WORDS = 32  # tokens of a passage


class Task(NamedTuple):
    """A model, what it is calibrated on, and how well it does."""

    model: nn.Module
    batches: list[Any]
    held_out: list[Any]
    loss: Callable[[Any, Any], Tensor]
    forward: Callable[[nn.Module, Any], Any]
    score: Callable[[nn.Module], float]


def retrieval() -> Task:
    """The next passage of a help topic, by MiniLM."""
    model, tokenizer, _ = lm.load("minilm")
    rows = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for _, text in sorted(topics.items())]
    rows = [ids for ids in rows if len(ids) >= 2 * WORDS]

    def passages(start: int) -> Tensor:  # (N, WORDS + 2)
        edge = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        return torch.tensor([edge[0] + ids[start : start + WORDS] + edge[1] for ids in rows])

    first, second = passages(0), passages(WORDS)
    seen, unseen = torch.arange(0, len(rows), 2), torch.arange(1, len(rows), 2)

    def forward(model: nn.Module, batch: Tensor) -> Tensor:  # (2N, WORDS + 2) -> (2N, d)
        hidden = model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state
        return normalize(hidden.mean(1), dim=-1)

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        ours, theirs = output.chunk(2)
        return cross_entropy(20 * ours @ theirs.T, torch.arange(len(ours)))

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        found = forward(model, first[unseen]) @ forward(model, second[unseen]).T
        return float((found.argmax(1) == torch.arange(len(unseen))).float().mean())

    batches = [torch.cat((first[part], second[part])) for part in seen.split(16)]
    return Task(model, batches[2:], batches[:2], loss, forward, score)


def digits(model: nn.Module, shape: tuple[int, ...], logits: Callable[[Any], Tensor]) -> Task:
    """Handwritten digits, after some training."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.tensor(images, dtype=torch.float32).view(-1, *shape) / 16, torch.tensor(labels)

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return logits(model(batch[0]))

    def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(output, batch[1])

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for epoch in range(40):
        for part in torch.randperm(1200, generator=torch.Generator().manual_seed(epoch)).split(100):
            optimizer.zero_grad()
            loss(forward(model, (X[part], y[part])), (X[part], y[part])).backward()
            optimizer.step()
    model.zero_grad()

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        return float((forward(model.eval(), (X[1200:], y[1200:])).argmax(1) == y[1200:]).float().mean())

    batches = [(X[i : i + 100], y[i : i + 100]) for i in range(0, 1200, 100)]
    return Task(model, batches[2:], batches[:2], loss, forward, score)


def vit() -> Task:
    """A vision transformer of four layers on patches of 2 × 2."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384, image_size=8, patch_size=2,
        num_channels=1, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return digits(ViTForImageClassification(config), (1, 8, 8), lambda output: output.logits)


def convolutional() -> Task:
    """Three convolutions, and a linear head."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return digits(nn.Sequential(*layers), (1, 8, 8), lambda output: output)


def main() -> None:
    print("| model | dense | method | " + " | ".join(f"keep {keep}" for keep in KEEPS) + " |")
    print("|---|---|---|" + "---|" * len(KEEPS))
    for name, make in (("MiniLM", retrieval), ("ViT", vit), ("convolutions", convolutional)):
        task = make()
        dense = task.score(task.model)
        for method in METHODS:
            plan = eckart.compress(
                task.model, task.batches, keep=1.0, method=method, held_out=task.held_out, loss=task.loss,
                forward=task.forward, dry_run=True,
            )  # fmt: skip
            scores = []
            for keep in KEEPS:
                with plan.at(keep=keep).standing() as model:
                    scores.append(task.score(model))
            told = " | ".join(f"{score:.3f}" for score in scores)
            print(f"| {name} | {dense:.3f} | `{method}` | {told} |", flush=True)


if __name__ == "__main__":
    main()
