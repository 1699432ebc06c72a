"""Attention over keys and values that are cached as latents: r numbers per token in place of m = kv_heads · head_dim.

    latent   z = A (v − μ)          A (r, m), μ (m,): what the cache keeps of a token's values v (m,), or keys
    values   v' = B z + μ           B (m, r): what attention sees, with a cache or without one

One token at a time, v' is never formed. With softmax weights p (T,) of one head, and B_h (d, r) the rows of B that
belong to its values, its output is Σ p_t v'_t = B_h (Σ p_t z_t) + μ_h; where the keys are latents too, its scores are
(B_hᵀ q) · z_t, since q · μ adds the same to all of them. Cost for each new token and layer: T · r · heads products
where forming v' takes T · r · m; a prompt forms v' once.

Paper: Palu (arXiv 2407.21118) caches latents and folds B into the output projection; MLA (arXiv 2405.04434) is trained
so. We leave the model's weights as they are: A and B stand between the projections and the attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "eckart_latent"  # the attention implementation, as transformers' registry knows it
PLACE = "cache_latents"  # where an attention module holds its `Latents`


class Latent(nn.Module):
    """The code of the keys, or of the values, of one layer: not trained, and no part of the model's state_dict.

    Args:
        down: A (r, m).
        up: B (m, r).
        mean: μ (m,).

    Example:
        >>> latent = Latent(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 5.0]))
        >>> states = torch.tensor([3.0, 7.0]).view(1, 2, 1, 1)  # one token, two heads of dimension 1
        >>> latent.encode(states).shape, latent.decode(latent.encode(states), head_dim=1).flatten().tolist()
        (torch.Size([1, 1, 1, 1]), [3.0, 5.0])
    """

    down: Tensor
    up: Tensor
    mean: Tensor

    def __init__(
        self,
        down: Tensor,  # (r, m)
        up: Tensor,  # (m, r)
        mean: Tensor,  # (m,)
    ) -> None:
        super().__init__()
        for name, value in {"down": down, "up": up, "mean": mean}.items():
            self.register_buffer(name, value.detach().clone(), persistent=False)
        self.full, self.rank = up.shape

    def encode(self, states: Tensor) -> Tensor:  # (batch, kv_heads, T, d) -> (batch, 1, T, r)
        """What the cache keeps."""
        return ((states.transpose(1, 2).flatten(2) - self.mean) @ self.down.T).unsqueeze(1)

    def decode(self, latents: Tensor, head_dim: int) -> Tensor:  # (batch, 1, T, r) -> (batch, kv_heads, T, d)
        """What attention sees."""
        return (latents.squeeze(1) @ self.up.T + self.mean).unflatten(-1, (-1, head_dim)).transpose(1, 2)

    def encoded(self, states: Tensor) -> bool:  # (batch, kv_heads, T, d), or (batch, 1, T, r)
        """Whether states are latents: r < m tells."""
        return states.shape[1] * states.shape[3] == self.rank

    def seen(self, states: Tensor, head_dim: int) -> Tensor:  # (batch, kv_heads, T, d), or (batch, 1, T, r)
        """What attention sees of states, whether they come from a cache or not."""
        return self.decode(states if self.encoded(states) else self.encode(states), head_dim)

    def heads(self, head_dim: int) -> Tensor:  # (kv_heads, d, r)
        """B, for each head."""
        return self.up.view(-1, head_dim, self.rank)


class Latents(nn.Module):
    """The codes of one attention module; None: those states are cached as they are."""

    def __init__(self, keys: Latent | None, values: Latent | None) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.removed = False  # set when the model is given back: caches that were made before are of no use then


class LatentLayer(DynamicLayer):
    """A layer of transformers' dynamic cache that grows in latents."""

    def __init__(self, latents: Latents) -> None:
        super().__init__()
        self.latents = latents

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Encode and keep what is new; gives all that is kept, encoded."""
        if self.latents.removed:
            raise ValueError("cache: it holds latents, and the model's cache is compressed no more; start a new one")
        keys = self.latents.keys.encode(key_states) if self.latents.keys else key_states
        values = self.latents.values.encode(value_states) if self.latents.values else value_states
        return super().update(keys, values, *args, **kwargs)


def given_cache(kwargs: dict[str, Any]) -> Any:
    """The cache that a block gives its attention, under the name of either generation of transformers; or None."""
    return kwargs.get("cache", kwargs.get("past_key_values"))


def use_latents(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A hook before attention: make the module's layer of a new cache one of latents.

    Raises:
        ValueError: the cache is of another kind, or was begun without latents.
    """
    cache: Any = given_cache(kwargs)
    index: Any = module.layer_idx
    if cache is None:
        return
    while cache.layer_class_to_replicate is DynamicLayer and len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    layer = cache.layers[index]
    if isinstance(layer, LatentLayer):
        return
    if type(layer) is not DynamicLayer or layer.get_seq_length():
        state = "begun without latents" if type(layer) is DynamicLayer else f"a {type(layer).__name__}"
        raise ValueError(
            f"cache: its layer {index} is {state}; a compressed cache needs a new DynamicCache (leave out "
            f"cache_implementation, or pass DynamicCache(config=model.config)), or remove() the compression first"
        )
    cache.layers[index] = LatentLayer(getattr(module, PLACE))


def latent_attention(
    module: nn.Module,
    query: Tensor,  # (batch, heads, q, d)
    key: Tensor,  # (batch, kv_heads, T, d), or latents (batch, 1, T, r)
    value: Tensor,  # likewise
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # (batch, q, heads, d)
    """Attention as transformers' "sdpa" has it, over what the latents of the keys and values stand for."""
    latents: Latents | None = getattr(module, PLACE, None)
    if latents is None:
        return sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    coded = [each for each, state in ((latents.keys, key), (latents.values, value)) if each]
    cached = all(each.encoded(key if each is latents.keys else value) for each in coded)
    if cached and query.shape[2] == 1 and not dropout and kwargs.get("position_bias") is None:
        return _attend(latents, query, key, value, attention_mask, scaling), None
    key = latents.keys.seen(key, query.shape[-1]) if latents.keys else key
    value = latents.values.seen(value, query.shape[-1]) if latents.values else value
    return sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def _attend(
    latents: Latents,
    query: Tensor,  # (batch, heads, 1, d)
    key: Tensor,  # (batch, kv_heads, T, d), or (batch, 1, T, r)
    value: Tensor,  # likewise
    mask: Tensor | None,
    scaling: float | None,
) -> Tensor:  # (batch, 1, heads, d)
    """One new token over all that is cached, without forming keys or values from their latents."""
    batch, heads, _, d = query.shape
    if latents.keys:
        up = latents.keys.heads(d)
        query = (query.reshape(batch, len(up), -1, d) @ up).view(batch, 1, heads, -1)
    else:
        query = query.reshape(batch, key.shape[1], -1, d)
    scores = (query @ key.mT).view(batch, heads, 1, -1) * (d**-0.5 if scaling is None else scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = weights.view(batch, value.shape[1], -1, value.shape[2]) @ value
    if latents.values:
        up = latents.values.heads(d)
        mixed = mixed.view(batch, len(up), -1, latents.values.rank) @ up.mT + latents.values.mean.view(-1, 1, d)
    return mixed.reshape(batch, 1, heads, d)


def sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Transformers' attention by torch's scaled_dot_product_attention, as the registry has it now."""
    return ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)


def register(name: str, attention: Any) -> None:
    """Make an attention known to transformers' registry, with the masks of "sdpa"."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


register(NAME, latent_attention)
