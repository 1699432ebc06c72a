"""The loss whose gradients have the Fisher matrix as their second moment: labels drawn from the model's own words.

    loss = −mean log p(ŷ_t | x_≤t),   ŷ_t ~ p(· | x_≤t)          E[g gᵀ] = F, the true Fisher

With the labels of a text the second moment is the empirical Fisher, which is large where the model is wrong and not
only where its output is sensitive; the true one is the Hessian of KL(p ‖ p′), of what a change does to the predictions.

A label is found where a uniform number u_t meets the cumulated p, and u_t is a hash of the seed, the position and all
tokens up to it: the same sequence gets the same labels in every pass, in any batch, on any device of equal rounding;
nothing is drawn from a global generator and nothing is read back from the device. Cost: a softmax and a cumulated sum
of the logits.
Paper: 1906.05567 (which tells the two apart); none of the compression papers that use gradients draws labels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_MULTIPLIERS = (0x3F58476D1CE4E5B9, 0x14D049BB133111EB)  # as splitmix64 mixes, below 2^63
_BITS = 24  # of a uniform number: all that float32 holds


@dataclass(frozen=True)
class SampledLoss:
    """−mean log p of labels that the model draws, as a loss for `eckart.compress(gradient_loss=…)`.

    Args:
        seed: Another seed draws other labels.

    Raises:
        ValueError: When called: the output has no logits over words.

    Example:
        >>> from types import SimpleNamespace
        >>> batch = {"input_ids": torch.tensor([[3, 1]]), "attention_mask": torch.ones(1, 2)}
        >>> SampledLoss()(SimpleNamespace(logits=torch.zeros(1, 2, 4)), batch)  # ln 4, whatever is drawn
        tensor(1.3863)
    """

    seed: int = 0

    def __call__(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a model's output on a batch with input_ids, and attention_mask where some of it is padding."""
        logits = getattr(output, "logits", None)  # (B, T, words)
        if logits is None:
            raise ValueError("labels are drawn from a model that predicts tokens, this one gave no logits; give a loss")
        logits, ids = logits.float(), batch["input_ids"].to(logits.device)
        labels = drawn(logits.detach(), uniform(ids, self.seed))
        if "attention_mask" in batch:
            labels = labels.masked_fill(batch["attention_mask"].to(logits.device) == 0, -100)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def uniform(ids: Tensor, seed: int) -> Tensor:  # (B, T) int -> (B, T) float32
    """A number from [0, 1) for each position, which depends on the seed and on all tokens up to there."""
    positions = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    mixed = _mixed(ids.long() + (positions << 32)).cumsum(1)  # sums of int64 wrap around, which is well here
    return (_mixed(mixed + _mixed(positions + (seed << 20))) >> 30 & (1 << _BITS) - 1).float() / (1 << _BITS)


def drawn(logits: Tensor, u: Tensor) -> Tensor:  # (B, T, words), (B, T) -> (B, T)
    """The words at which the cumulated probabilities pass u."""
    cumulated = logits.softmax(-1).cumsum(-1)
    found = torch.searchsorted(cumulated, (u * cumulated[..., -1]).unsqueeze(-1), right=True)
    return found.squeeze(-1).clamp_max(logits.shape[-1] - 1)  # rounding may leave u at the very end


def _mixed(x: Tensor) -> Tensor:  # int64
    """splitmix64's finaliser: every bit of the input moves about half of those of the output."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ _shifted(x, shift)) * multiplier
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return x >> by & (1 << 64 - by) - 1
