"""A model under torch.compile trains as it does without."""

import pytest
import torch
from optim_models import choices
from torch import nn

from eckart.optim import LowRankOptimizer


def trained(method: str, compiled: bool) -> tuple[list[torch.Tensor], LowRankOptimizer]:
    """Weights after three steps, and the optimizer, which was given the model as it was trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, 4))
    running = torch.compile(model, backend="aot_eager") if compiled else model
    optimizer = LowRankOptimizer(running, lr=1e-2, **choices(method, gap=2))
    x, y = torch.randn(20, 12), torch.randn(20, 4)
    for _ in range(3):
        optimizer.zero_grad()
        (running(x) - y).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], optimizer


@pytest.mark.parametrize("method", ["galore", "fira", "apollo", "ldadam"])
def test_a_compiled_model_comes_to_the_same_weights(method: str) -> None:
    plain, compiled = (trained(method, each)[0] for each in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)


def test_the_head_and_vectors_of_a_compiled_model_get_adamw_as_without() -> None:
    groups = [trained("galore", each)[1].param_groups for each in (False, True)]
    sizes = [[(group["rank"], [tuple(p.shape) for p in group["params"]]) for group in each] for each in groups]
    assert sizes[0] == sizes[1]
