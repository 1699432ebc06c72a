"""Scikit-learn's 1797 digits of 8×8 pixels, and a plain training loop on them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

CLASSES = 10
HELD_OUT = 360

Change = Callable[[Tensor], Tensor]  # a gradient → what the optimizer gets in its place


class Digits(NamedTuple):
    """Centred images and their labels, split by the seed."""

    images: Tensor  # (N, 64) float32
    labels: Tensor  # (N,)
    held_out_images: Tensor  # (360, 64)
    held_out_labels: Tensor  # (360,)

    def accuracy(self, model: nn.Module) -> float:
        """The share of the held-out images that the model gets right."""
        with torch.no_grad():
            return float((model(self.held_out_images).argmax(dim=1) == self.held_out_labels).double().mean())


def all_digits() -> tuple[Tensor, Tensor]:  # (1797, 64) float64, (1797,)
    """All images in [0, 1], and what they show."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float64) / 16, torch.tensor(labels)


def load_digits(generator: torch.Generator) -> Digits:
    """The digits, in [0, 1] less the training images' mean, in a drawn order; the last 360 are held out."""
    images, labels = all_digits()
    order = torch.randperm(len(labels), generator=generator)
    images, labels = images.float()[order], labels[order]
    images = images - images[:-HELD_OUT].mean(dim=0)
    return Digits(images[:-HELD_OUT], labels[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:])


def train(
    model: nn.Module,
    digits: Digits,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
    change: Change | None = None,
) -> Iterator[int]:
    """Train with cross-entropy on batches drawn by the generator.

    Yields:
        t = 1, …, steps, after each step.
    """
    for t in range(1, steps + 1):
        drawn = torch.randint(len(digits.labels), (batch,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(digits.images[drawn]), digits.labels[drawn]).backward()
        if change is not None:
            change_gradients(model, change)
        optimizer.step()
        yield t


def change_gradients(model: nn.Module, change: Change) -> None:
    """Put something else in the place of the gradient of each weight that is no vector."""
    for weight in model.parameters():
        if weight.grad is not None and weight.ndim > 1:
            weight.grad = change(weight.grad)
