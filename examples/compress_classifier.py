"""Compress a classifier of handwritten digits to several sizes, and save and load the smallest.

    python examples/compress_classifier.py

One calibration serves every budget. At equal bytes, the metric and the allocation decide how much accuracy is left:
"svd" sees the weights alone, "svd-llm" what the layers read, "two-sided" what the loss says of their outputs as well.
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import eckart


def trained(X: Tensor, y: Tensor) -> nn.Module:
    """A network with far more width than the task needs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(model(X), y).backward()
        optimizer.step()
    return model


def accuracy(model: nn.Module, X: Tensor, y: Tensor) -> float:
    """The share of images that it names right."""
    with torch.no_grad():
        return float((model(X).argmax(-1) == y).float().mean())


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    X, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = trained(X[:1200], y[:1200])
    batches = [(X[i : i + 100], y[i : i + 100]) for i in range(0, 1200, 100)]
    options = {
        "loss": lambda output, batch: cross_entropy(output, batch[1]),
        "forward": lambda model, batch: model(batch[0]),
    }
    print(f"dense: {accuracy(model, X[1200:], y[1200:]):.3f} of the held-out images")
    for method in ("svd", "svd-llm", "two-sided"):
        plan = eckart.compress(model, batches, method=method, keep=0.3, dry_run=True, **options)
        told = []
        for keep in (0.3, 0.15, 0.08):
            smaller = plan.at(keep=keep)
            with smaller.standing():
                told.append(f"{smaller.kept:.2f}: {accuracy(model, X[1200:], y[1200:]):.3f}")
        print(f"{method:10} kept {', '.join(told)}")
    done = plan.at(keep=0.08).apply()  # the last plan, of "two-sided", at another budget
    folder = Path(tempfile.mkdtemp()) / "small"
    eckart.save(done.model, folder)
    again = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    eckart.load(folder, into=again)
    print("loaded: the same outputs bit for bit:", torch.equal(again(X[:9]), done.model(X[:9])))


if __name__ == "__main__":
    main()
