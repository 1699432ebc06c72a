"""A model whose cache holds latents: what became of each layer, the bytes, its file, and the way back."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from eckart.lm.kv_cache.attention import NAME, PLACE, Latent, Latents, use_latents
from eckart.nn import roles
from eckart.nn.files.tensors import read_header, save_safetensors

KEY = "eckart_kv_cache"  # where a file's header holds the rows


class CompressedCache:
    """A model whose cache holds latents, and what it is predicted to lose.

    `rows()` and `report()` say what became of each layer's keys and values; `remove()` gives the model back.
    """

    def __init__(self, model: PreTrainedModel, latents: Mapping[str, Latent], rows: list[dict[str, Any]]) -> None:
        self.model, self._rows = model, rows
        self._latents = dict(latents)
        self._placed: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []
        for path in dict.fromkeys(name.rpartition(".")[0] for name in latents):
            module = model.get_submodule(path)
            pair = Latents(latents.get(f"{path}.keys"), latents.get(f"{path}.values"))
            module.add_module(PLACE, pair.to(next(module.parameters()).device, model.dtype))
            self._placed.append(module)
            self._hooks.append(module.register_forward_pre_hook(use_latents, with_kwargs=True))
        if self._placed:
            model.set_attn_implementation(NAME)

    @property
    def bytes_before(self) -> int:
        """Bytes that one token takes in the model's own cache, at the model's dtype."""
        return sum(row["full"] for row in self._rows) * self.model.dtype.itemsize

    @property
    def bytes_after(self) -> int:
        """Bytes that one token takes now."""
        return sum(row["rank"] for row in self._rows) * self.model.dtype.itemsize

    def rows(self) -> list[dict[str, Any]]:
        """For each layer's keys and values: name, full (m), rank, error (predicted, relative), why (it stays whole)."""
        return [dict(row) for row in self._rows]

    def report(self) -> str:
        """The rows as a table, and the bytes of a token before and after."""
        lines = [f"{'':44} {'rank':>6} {'of':>6} {'error':>8}"]
        for row in self._rows:
            lines.append(f"{row['name']:44} {row['rank']:6} {row['full']:6} {row['error']:8.4f}  {row['why']}".rstrip())
        ratio = self.bytes_after / self.bytes_before
        lines.append(f"a token takes {self.bytes_after} bytes of cache, {ratio:.3f} of the {self.bytes_before} before")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the latents' matrices as one safetensors file, for `load_cache` onto the same model.

        Args:
            path: The file to make.
            force: Replace a file that is already there.

        Raises:
            FileExistsError: it exists and `force` is false.
        """
        tensors = {
            f"{name}.{key}": value for name, each in self._latents.items() for key, value in each.named_buffers()
        }
        save_safetensors(path, tensors, {KEY: json.dumps(self._rows)}, force=force)

    def remove(self) -> PreTrainedModel:
        """Give the model back as it was, bit for bit; caches begun with latents are refused from then on."""
        for hook in self._hooks:
            hook.remove()
        for module in self._placed:
            getattr(module, PLACE).removed = True
            delattr(module, PLACE)
        if self._placed:
            self.model.set_attn_implementation("sdpa")
        self._placed, self._hooks = [], []
        return self.model


def load_cache(path: str | os.PathLike[str], into: PreTrainedModel) -> CompressedCache:
    """Compress a model's cache with the latents that `CompressedCache.save` wrote.

    Args:
        path: The file.
        into: The model that they were fitted to, its cache not compressed. It is changed in place.

    Returns:
        The `CompressedCache`, as `compress_cache` gave it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or was written for another model; or as `compress_cache`.
    """
    require_plain(into)
    read_header(Path(path))
    with safe_open(path, "pt") as file:
        if KEY not in (file.metadata() or {}):
            raise ValueError(f"path: {path} holds no latents of a cache; give a file that CompressedCache.save wrote")
        rows = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    widths = _widths(into)
    for row in rows:
        module = row["name"].rpartition(".")[0]
        if widths.get(module) != row["full"]:
            raise ValueError(
                f"into: {module} caches {widths.get(module, 'no')} numbers for a token, and {path} was written for a "
                f"model where it caches {row['full']}; give the model that it was written for"
            )
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    latents = {name: Latent(*(tensors[f"{name}.{key}"] for key in ("down", "up", "mean"))) for name in names}
    return CompressedCache(into, latents, rows)


def cached_bytes(cache: Cache) -> int:
    """The bytes that a cache's keys and values take now, of all sequences and layers together.

    Example:
        >>> import torch
        >>> cache = DynamicCache()
        >>> _ = cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
        >>> cached_bytes(cache)
        192
    """
    states = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(each.nbytes for each in states if each is not None)


def require_plain(model: PreTrainedModel) -> None:
    """Refuse, by name, a model whose cache cannot hold latents."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: {type(model).__name__}; give a decoder of transformers")
    config = model.config
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise ValueError(
            f"model: {type(model).__name__} has cross-attention, whose cache does not grow; not compressed"
        )
    if config.get_text_config(decoder=True) is not config:
        raise ValueError(f"model: {type(model).__name__} holds its text model inside; give that one alone")
    if any(hasattr(module, PLACE) for module in model.modules()):
        raise ValueError("model: its cache is compressed already; call remove() of that result first")
    if config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        raise ValueError(
            f"model: its attention is {config._attn_implementation!r}; latents work with 'sdpa' through transformers' "
            "attention registry: load the model with attn_implementation='sdpa'"
        )
    others = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) is not DynamicLayer}
    if others:
        raise ValueError(
            f"model: {type(model).__name__} has cache layers of the kind {', '.join(sorted(others))} (sliding windows, "
            "say); only caches that keep every token can hold latents"
        )


def _widths(model: nn.Module) -> dict[str, int]:
    """kv_heads · head_dim of each attention module, by its path."""
    told = {name.rpartition(".")[0]: role for name, role in roles(model).items() if role.kv_heads and role.head_dim}
    return {path: (role.kv_heads or 0) * (role.head_dim or 0) for path, role in told.items()}
