"""A smaller KV cache: values, and keys that do not turn with their position, are cached as latents of lower rank.

A decoder's cache holds 2 m numbers for each token and layer, m = kv_heads · head_dim. The values are approximated by
v' = B A v of rank r_v, and only A v (r_v numbers) is cached; attention works on that (`kv_cache_attention`). Keys are
cached after the rotary embedding, which turns each position's by another angle, so they stay as they are where there is
one; with learned positions (GPT-2, OPT) or none they are approximated too.

    bytes per token = Σ over layers (r_k + r_v) · bytes of a number, r = m for what stays as it is

The model's weights are not touched: what is compressed is what attention sees, with a cache or without one, so that
perplexity measures what generation does. Transformers' own `generate` works as before (greedy, sampling, beams,
padding, chunked prefill), since its dynamic cache is given layers that hold latents.

Cost: one pass over the text and three `eigh` of m × m for each layer; decoding takes T · r · heads products for each
layer and token where attention over whole values takes T · m · heads / kv_heads: fewer only where r < head_dim. So
this buys memory, and the time that its traffic takes, not arithmetic.

Paper: Palu (arXiv 2407.21118) also codes keys before the rotary embedding and turns them again at each step; we do not.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel

from eckart.lm.kv_cache.fit import Part, parts
from eckart.lm.kv_cache.moments import Seen, observe_states
from eckart.lm.kv_cache.result import CompressedCache, cached_bytes, load_cache, require_plain
from eckart.nn import Progress
from eckart.nn.patterns import closest

__all__ = ["CompressedCache", "cached_bytes", "compress_cache", "load_cache"]


def compress_cache(
    model: PreTrainedModel,
    batches: Iterable[Any],
    *,
    share: float = 0.5,
    ranks: Mapping[str, int] | None = None,
    keys: bool | None = None,
    progress: Progress | None = None,
) -> CompressedCache:
    """Make a model cache its values, and keys that do not turn with their position, as latents of lower rank.

    Args:
        model: A decoder of transformers with attention "sdpa", a dynamic cache in every layer (no sliding windows)
            and heads of one dimension. It is changed in place, its weights are not.
        batches: Token ids (B, T), or dicts with them and an attention_mask, of text like that to be generated.
        share: The rank of each, as a share of the m = kv_heads · head_dim numbers that it takes as it is, above 0, at
            most 1. At 1 it is left as it is.
        ranks: In place of `share`: name → rank, from 1 to m; what is not named is left as it is. Names are those of
            `rows()`: an attention module's path, then ".values" or ".keys".
        keys: Whether keys become latents: None where they can, False nowhere, True everywhere or an error.
        progress: Called as progress(done, total, label) after every batch.

    Returns:
        A `CompressedCache`: the predicted errors, the bytes of a token before and after, `remove()`, `save()`.

    Raises:
        TypeError: The model is none of transformers', or `batches` is a single one.
        ValueError: Its cache cannot hold latents (an encoder, cross-attention, sliding windows, another attention than
            "sdpa", compressed already), the keys turn and `keys` is True, no tokens, a share or rank out of range, a
            name that is not known.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16,
        ...     num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2))
        >>> small = compress_cache(model, [torch.arange(32).view(2, 16)], share=0.5)
        >>> [(row["name"], row["rank"], row["full"]) for row in small.rows()]
        [('model.layers.0.self_attn.keys', 8, 8), ('model.layers.0.self_attn.values', 4, 8)]
        >>> cache = model(torch.arange(5).view(1, 5), use_cache=True).past_key_values
        >>> small.bytes_before, small.bytes_after, cached_bytes(cache) / 5
        (64, 48, 48.0)
    """
    require_plain(model)
    if not 0 < share <= 1:
        raise ValueError(f"share: {share}; give the share of a token's numbers to keep, above 0 and at most 1")
    found = observe_states(model, batches, progress)
    turning = [path for path, seen in found.items() if not seen.plain_keys]
    if keys and turning:
        raise ValueError(
            f"keys: those of {', '.join(turning[:3])} are cached after a rotary embedding or a norm, or come from a "
            "projection of unknown layout; leave keys=None, which codes the values there"
        )
    every = parts(model, found, keys)
    chosen = _ranks(every, share, ranks)
    latents = {name: part.fit(chosen[name]) for name, part in every.items() if chosen[name] < part.full}
    return CompressedCache(model, latents, _rows(found, every, chosen))


def _ranks(every: Mapping[str, Part], share: float, ranks: Mapping[str, int] | None) -> dict[str, int]:
    """The rank of each part, checked."""
    if ranks is None:
        return {name: max(1, int(share * part.full + 1e-9)) for name, part in every.items()}
    for name, rank in ranks.items():
        if name not in every:
            raise ValueError(
                f"ranks: {name!r} is not cached, or cannot be; closest: {closest(name, every, whole=True)}"
            )
        if not 1 <= rank <= every[name].full:
            raise ValueError(f"ranks: {rank} for {name}; give from 1 to {every[name].full}")
    return {name: ranks.get(name, part.full) for name, part in every.items()}


def _rows(found: Mapping[str, Seen], every: Mapping[str, Part], chosen: Mapping[str, int]) -> list[dict[str, Any]]:
    """What becomes of each layer's keys and values."""
    rows = []
    for path, seen in found.items():
        for name in (f"{path}.keys", f"{path}.values"):
            full, why = len(seen.values.shift), "not asked for" if seen.plain_keys else "turned by position, or normed"
            row = {"name": name, "full": full, "rank": full, "error": 0.0, "why": why}
            if name in every:
                row |= {"rank": chosen[name], "error": every[name].errors()[chosen[name]], "why": ""}
            rows.append(row)
    return rows
