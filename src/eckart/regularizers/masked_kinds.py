"""How an encoder and a decoder meet a mask: for vectors, for patches, and for tokens.

    vector    x̃ = visible/(1 − p), zero where hidden     decoder(encoder(x̃)) → x                        squared error
    patches   the encoder sees the visible patches only   decoder(latent, hidden) → all patches          squared error
    tokens    hidden ids are replaced by the mask's id    decoder(encoder(ids)) → logits (N, T, vocab)   cross-entropy

Each returns the error of each item (N, T), a patch's being the mean over its numbers, in float32 or float64.

Paper: `vector` rescales as dropout does: a linear model then has the optimum of `linear_masked`, and an encoder that is
given whole inputs sees the mean that it was trained on. `patches` is the masked autoencoder (arXiv 2111.06377): latents
go back to their places with zeros at hidden ones, and the decoder, which is told which are hidden, adds its mask token
and its positions. `tokens` is BERT's masking (arXiv 1810.04805) without its 10 % of kept and 10 % of random ids.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eckart.linalg import working_dtype
from eckart.regularizers.masking import hidden_count

Kind = Literal["vector", "patches", "tokens"]


def vector_errors(
    encoder: nn.Module,  # (N, T) → latent
    decoder: nn.Module,  # latent → (N, T)
    x: Tensor,  # (N, T), or (N, T, d)
    hidden: Tensor,  # (N, T) bool
    rate: float,
) -> Tensor:  # (N, T)
    """Squared errors with hidden entries, or whole items of (N, T, d), at zero and the rest divided by 1 − rate."""
    mask = hidden if x.ndim == 2 else hidden.unsqueeze(-1)
    return _squared(decoder(encoder(x.masked_fill(mask, 0) / (1 - rate))), x)


def patch_errors(
    encoder: nn.Module,  # visible (N, V, d), positions (N, V) → (N, V, h)
    decoder: nn.Module,  # (N, P, h), hidden (N, P) → (N, P, d)
    x: Tensor,  # (N, P, d)
    hidden: Tensor,  # (N, P) bool, as many in each row as `exact_mask` hides
    rate: float,
) -> Tensor:  # (N, P)
    """Squared errors where the encoder sees visible patches and their positions only."""
    N, P, d = x.shape
    visible = P - int(hidden_count(torch.tensor(P), rate))  # known on the host: the mask is not read back
    positions = hidden.int().argsort(dim=1, stable=True)[:, :visible]
    latent = encoder(x.gather(1, positions.unsqueeze(-1).expand(-1, -1, d)), positions)
    if latent.shape[:2] != positions.shape or latent.ndim != 3:
        raise ValueError(
            f"encoder gave {tuple(latent.shape)} for {visible} visible patches of {N} samples; it must give "
            f"({N}, {visible}, h), a latent for each, without a class token"
        )
    places = positions.unsqueeze(-1).expand_as(latent)
    whole = latent.new_zeros(N, P, latent.shape[2]).scatter(1, places, latent)
    return _squared(decoder(whole, hidden), x)


def token_errors(
    encoder: nn.Module,  # ids (N, T) → latent
    decoder: nn.Module,  # latent → (N, T, vocab)
    x: Tensor,  # (N, T) ids
    hidden: Tensor,  # (N, T) bool
    mask_id: int,
) -> Tensor:  # (N, T)
    """Cross-entropies where hidden ids are replaced by the mask's, in nats."""
    logits = decoder(encoder(x.masked_fill(hidden, mask_id)))
    if logits.shape[:2] != x.shape or logits.ndim != 3:
        raise ValueError(f"decoder gave {tuple(logits.shape)} for ids {tuple(x.shape)}; it must give (N, T, vocab)")
    wide = logits.to(working_dtype(logits.dtype))
    return F.cross_entropy(wide.flatten(0, 1), x.flatten(), reduction="none").view(x.shape)


ERRORS: dict[Kind, Callable[..., Tensor]] = {"vector": vector_errors, "patches": patch_errors, "tokens": token_errors}


def _squared(guess: Tensor, x: Tensor) -> Tensor:
    if guess.shape != x.shape:
        raise ValueError(f"decoder gave {tuple(guess.shape)} where the data are {tuple(x.shape)}; they must agree")
    wide = working_dtype(x.dtype)
    error = (guess.to(wide) - x.to(wide)).square()
    return error if x.ndim == 2 else error.mean(-1)
