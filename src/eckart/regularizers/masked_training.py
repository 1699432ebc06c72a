"""Masked self-supervised learning: train any encoder and decoder to give back what was hidden from them.

At each step: a batch, a mask at the ratio of that step (`masking`), the errors of the items (`masked_kinds`), and

    loss = mean error over the hidden items, or over all that may be hidden

A plain loop in torch: the modules and the optimizer are the caller's, and no step reads a number back to the host.

Paper: arXiv 2111.06377 and 1810.04805 take the loss over hidden items (the default); the theory of `linear_masked`
takes all of them, and masks that are independent: loss="all", law="bernoulli".
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from eckart.nn import Progress
from eckart.regularizers.masked_batches import endless_batches
from eckart.regularizers.masked_kinds import ERRORS, Kind
from eckart.regularizers.masking import Schedule, bernoulli_mask, exact_mask
from eckart.regularizers.rates import require_rate

LAWS = {"exact": exact_mask, "bernoulli": bernoulli_mask}


class MaskedRun(NamedTuple):
    """What `train_masked` gives back; the modules themselves are trained in place.

    Args:
        losses: of every step since the first (steps,), on the CPU.
        state: to go on from: step, losses, and the states of generator, modules, optimizer and scheduler. Like every
            state_dict it refers to the live tensors; `torch.save` it, and load it with weights_only=True.
    """

    losses: Tensor
    state: dict[str, Any]


def train_masked(
    encoder: nn.Module,
    decoder: nn.Module,
    data: Tensor | Iterable[Any],  # (S, T), (S, T, d), or batches of these
    *,
    rate: float | Schedule,
    steps: int,
    kind: Kind = "vector",
    law: Literal["exact", "bernoulli"] = "exact",
    loss: Literal["masked", "all"] = "masked",
    batch_size: int = 64,
    mask_id: int | None = None,
    keep_ids: Sequence[int] = (),
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    stop: int | None = None,
    state: dict[str, Any] | None = None,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> MaskedRun:
    """Train an encoder and a decoder, in place, on data of which a part is hidden at each step.

    Args:
        encoder: for vectors (N, T) → latent; for patches (visible (N, V, d), positions (N, V)) → (N, V, h); for tokens
            ids (N, T) → latent. Both modules are put in training mode.
        decoder: latent → the data's shape; for patches (latents in their places, zero where hidden (N, P, h), hidden
            (N, P)) → (N, P, d); for tokens latent → logits (N, T, vocab).
        data: all samples as one tensor, moved to the encoder's device and drawn from with replacement; or an iterable
            of batches, read again from its start when it ends. A batch is a tensor, or a tuple that begins with it.
        rate: share of the items to hide, in [0, 1), or a schedule such as `cosine_rate(0.25, 0.75)`.
        steps: of the whole run, ≥ 1, over which the schedule goes from 0 to 1.
        kind: "vector" (entries; of (N, T, d) whole items), "patches" (the encoder sees visible ones only) or "tokens".
        law: "exact" hides as many items in every sample, "bernoulli" each item independently (not for patches).
        loss: the mean over "masked" items, or over "all".
        batch_size: samples drawn at a step; only where `data` is one tensor.
        mask_id: the id that stands for a hidden token.
        keep_ids: ids that are neither hidden nor counted in the loss: padding, [CLS], [SEP].
        optimizer: over the parameters of both; None takes AdamW with a learning rate of 1e-3.
        scheduler: of the optimizer's learning rate, stepped after each step; its state is kept too.
        stop: pause after this step of `steps`, to save the state; None runs to the end.
        state: of an earlier run with the same arguments, to go on from. An iterable of batches goes on where it
            stands, and what the modules draw themselves (dropout) comes from torch's own generator: neither is kept.
        progress: called with steps done, `steps`, and "masked training".
        generator: draws batches and masks; None means a fixed seed on the encoder's device.

    Returns:
        The losses so far, and the state to go on from.

    Raises:
        ValueError: a ratio outside [0, 1), or 0 with a loss over masked items; a sample in which nothing may be hidden;
            data, latents or reconstructions of the wrong shape; tokens without mask_id, or keep_ids without tokens; no
            data left; a state that lacks a part.
        TypeError: a batch that is neither a tensor nor a tuple that begins with one.

    Example:
        >>> X = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # each entry tells the other
        >>> encoder = nn.Linear(2, 2, bias=False)
        >>> start = nn.init.zeros_(encoder.weight)
        >>> optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
        >>> run = train_masked(encoder, nn.Identity(), X, rate=0.5, steps=100, optimizer=optimizer)
        >>> encoder.weight.data.round(decimals=4).abs().tolist()  # from the other one, doubled when it is alone
        [[0.0, 0.5], [0.5, 0.0]]
        >>> run.losses[0].item(), run.losses[-1].item() < 1e-6
        (1.0, True)
    """
    _require_choices(kind, law, loss, mask_id, keep_ids)
    _require_positive(steps=steps, batch_size=batch_size)
    parameters = dict.fromkeys([*encoder.parameters(), *decoder.parameters()])
    if not parameters:
        raise ValueError("encoder and decoder have no parameters: there is nothing to train")
    device = next(iter(parameters)).device
    optimizer = optimizer if optimizer is not None else torch.optim.AdamW(list(parameters), lr=1e-3)
    generator = generator if generator is not None else torch.Generator(device).manual_seed(0)
    parts: dict[str, Any] = {"encoder": encoder, "decoder": decoder, "optimizer": optimizer}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    start, losses = _restore(parts, generator, state, device)
    batches = endless_batches(data, kind, keep_ids, device, batch_size, generator)
    encoder.train()
    decoder.train()
    for step in range(start, steps if stop is None else min(stop, steps)):
        now = _rate_at(rate, step, steps, loss)
        x, may_hide = next(batches)
        hidden = LAWS[law](may_hide, now, generator=generator)
        counted = hidden if loss == "masked" else may_hide
        how = {"rate": now} if mask_id is None else {"mask_id": mask_id}
        errors = ERRORS[kind](encoder, decoder, x, hidden, **how)
        value = (errors * counted).sum() / counted.sum().clamp_min(1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(value.detach())
        if progress is not None:
            progress(step + 1, steps, "masked training")
    history = torch.stack(losses).cpu() if losses else torch.zeros(0)
    kept = {name: part.state_dict() for name, part in parts.items()}
    return MaskedRun(history, {"step": len(history), "losses": history, "generator": generator.get_state(), **kept})


def _require_choices(kind: str, law: str, loss: str, mask_id: int | None, keep_ids: Sequence[int]) -> None:
    for name, value, known in (("kind", kind, ERRORS), ("law", law, LAWS), ("loss", loss, ("masked", "all"))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: choose one of {', '.join(known)}")
    if kind == "patches" and law != "exact":
        raise ValueError(f"law={law!r} leaves another number of patches in each sample; for patches take law='exact'")
    if (kind == "tokens") != (mask_id is not None):
        raise ValueError(f"kind={kind!r} with mask_id={mask_id}: tokens need the id that stands for a hidden one")
    if kind != "tokens" and len(keep_ids):
        raise ValueError(f"keep_ids are ids of tokens, and kind is {kind!r}: leave them out")


def _require_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _rate_at(rate: float | Schedule, step: int, steps: int, loss: str) -> float:
    now = rate(step / max(1, steps - 1)) if callable(rate) else rate
    require_rate(now)
    if now == 0 and loss == "masked":
        raise ValueError(f"rate is 0 at step {step}: nothing is hidden; take loss='all', or a ratio above 0")
    return now


def _restore(
    parts: dict[str, Any], generator: torch.Generator, state: dict[str, Any] | None, device: torch.device
) -> tuple[int, list[Tensor]]:
    """Load a state into the modules, the optimizer and the generator; the step it is at, and its losses."""
    if state is None:
        return 0, []
    lacking = sorted(parts.keys() - state.keys())
    if lacking:
        raise ValueError(f"state has no {', '.join(lacking)}: it is of a run without; pass the state of one like this")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    generator.set_state(state["generator"].cpu())
    return state["step"], list(state["losses"].to(device))
