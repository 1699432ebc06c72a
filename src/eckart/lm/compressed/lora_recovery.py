"""Recovery by adapters on the factors of all compressed layers, trained together and merged: the sizes stay.

    loss = −mean log p(next token), or with the dense model at hand mean KL(p_dense ‖ p)

Cost: about three forward passes for each sequence of a step, one more of the dense model; a pass over the held-out
sequences every `every` steps. Memory: the gradients of the adapters and the activations of one batch.
Paper: SVD-LLM (arXiv 2403.07378): next tokens of 50,000 instructions, one factor after the other; we train both at
once, stop on held-out text, and can learn from the dense model's logits.
"""

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart import adapters
from eckart.compression.allocations.trying import mean_loss
from eckart.lm.calibration import Calibration
from eckart.lm.compressed.opened_factors import opened
from eckart.lm.compressed.recovery_steps import Best, Trained, clip, endless, rate, require_finite, require_positive
from eckart.lm.look import next_token_loss
from eckart.nn import Progress
from eckart.nn.batches import to_device
from eckart.nn.modes import evaluating

NAME = "recovery"


def train_adapters(
    model: nn.Module,
    data: Calibration,
    names: list[str],
    *,
    dense: nn.Module | None = None,
    rank: int = 8,
    steps: int = 200,
    lr: float = 5e-4,
    accumulate: int = 1,
    every: int = 20,
    patience: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """Train adapters on compressed layers, and merge the best state into them.

    Args:
        model: The compressed model.
        data: What is fitted on; the held-out sequences decide.
        names: The compressed layers.
        dense: The dense model, whose logits are then what is learned; None learns the text.
        rank: Of the adapter of each factor.
        steps: Optimizer steps, at most.
        lr: Largest learning rate of AdamW.
        accumulate: Batches for each step.
        every: Steps from one look at the held-out sequences to the next.
        patience: How many looks without a gain end the run.
        seed: Of the order of the batches and of the adapters' start.
        progress: Called as progress(done, total, label).

    Returns:
        Steps that were made, how many numbers trained, and the held-out losses along the way.

    Raises:
        ValueError: None of the layers has factors, or a number is not positive.
        RuntimeError: The loss is no number.
    """
    require_positive(rank=rank, steps=steps, lr=lr, accumulate=accumulate, every=every, patience=patience)
    with opened(model, names) as found:
        if not found:
            raise ValueError(f"names: none of the {len(names)} compressed layers has factors of its own to adapt")
        linears: dict[str, Any] = {name: model.get_submodule(name) for name in found}
        ranks = {name: min(rank, *linear.weight.shape) for name, linear in linears.items()}
        adapters.adapt(model, rank=ranks, name=NAME, generator=torch.Generator().manual_seed(seed))
        parameters = [p for p in model.parameters() if p.requires_grad]
        done, since = 0, 0
        try:
            best = Best(parameters, mean_loss(model, data.held_out))
            history = [{"step": 0, "loss": best.loss}]
            for done in _steps(model, data, dense, parameters, steps, lr, accumulate, seed):
                if done % every == 0 or done == steps:
                    loss = mean_loss(model, data.held_out)
                    since = 0 if best.offer(loss) else since + 1
                    history.append({"step": done, "loss": loss})
                    if since == patience:
                        break
                if progress is not None:
                    progress(done, steps, "recovering")
        except BaseException:
            adapters.remove(model, NAME)
            raise
        best.restore()
        if best.loss < history[0]["loss"]:
            adapters.merge(model, NAME)
        else:
            adapters.remove(model, NAME)
    return done, sum(p.numel() for p in parameters), history


def _steps(
    model: nn.Module,
    data: Calibration,
    dense: nn.Module | None,
    parameters: list[nn.Parameter],
    steps: int,
    lr: float,
    accumulate: int,
    seed: int,
) -> Any:
    """Make one step after another; yields how many were made."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    order, device = endless(len(data.batches), seed), parameters[0].device
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step, steps)
        for number in islice(order, accumulate):
            batch = to_device(data.batches[number], device)
            with evaluating(model):
                loss = _loss(model, dense, batch) / accumulate
            require_finite(loss, step, lr)
            loss.backward()
        clip(parameters)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1


def _loss(model: nn.Module, dense: nn.Module | None, batch: dict[str, Tensor]) -> Tensor:
    """How far the model is from the text, or from the dense model."""
    fed: dict[str, Any] = {key: batch[key] for key in ("input_ids", "attention_mask")} | {"use_cache": False}
    output = model(**fed)
    if dense is None:
        return next_token_loss(output, batch)
    with torch.no_grad(), evaluating(dense):
        wanted = dense(**fed).logits.float().log_softmax(-1)
    found = output.logits.float().log_softmax(-1)
    apart = F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)  # (B, T)
    real = batch["attention_mask"].to(apart)
    return (apart * real).sum() / real.sum()
