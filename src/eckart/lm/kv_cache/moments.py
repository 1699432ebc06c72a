"""What attention is given on calibration text: the moments of keys, values and queries that latents are fitted to.

For the rows x (m,) of the states of one layer, all kv heads side by side, over the N tokens that are not padding:
μ = Σ x / N, C = Σ (x − μ)(x − μ)ᵀ / N (m, m), and of the queries of the heads that share a kv head: Σ q qᵀ / N (d, d).
Memory: m² for each layer, in float64, whatever the text's length.

Keys that a rotary embedding has turned, or a norm has scaled, are told from plain ones by comparison: plain keys are,
bit for bit, what the key projection gave.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eckart.lm.kv_cache.attention import given_cache, register, sdpa
from eckart.nn import Progress, roles
from eckart.nn.batches import Padding, run_model, to_device
from eckart.nn.modes import evaluating

NAME = "eckart_observed"  # the attention that is in place while the text runs
_OBSERVER: ContextVar[Callable[..., None]] = ContextVar("observer")


class Moments:
    """Mean and covariance of rows, summed about the first batch's mean, so that a large mean costs no digits."""

    def __init__(self, rows: Tensor) -> None:  # (N, m)
        m = rows.shape[1]
        self.shift = rows.float().sum(0) / max(1, len(rows))
        self.count, self.sum = 0, rows.new_zeros(m, dtype=torch.float64)
        self.scatter = rows.new_zeros(m, m, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:  # (N, m)
        """Count rows in."""
        x = rows.float() - self.shift
        self.count += len(x)
        self.sum += x.sum(0)
        self.scatter += x.T @ x

    @property
    def mean(self) -> Tensor:  # (m,)
        """The mean row, float64."""
        return self.shift + self.sum / self.count

    @property
    def covariance(self) -> Tensor:  # (m, m)
        """The centred second moment, float64."""
        off = self.sum / self.count
        return self.scatter / self.count - off.outer(off)


@dataclass
class Seen:
    """What one attention module was given."""

    module: nn.Module
    heads: int
    head_dim: int
    plain_keys: bool  # whether the keys are what the key projection gave
    values: Moments
    keys: Moments | None = None  # of plain keys only
    queries: Tensor | None = None  # (kv_heads, d, d) Σ q qᵀ over tokens and over the heads that share a kv head


class _Observer:
    """Is called with what each attention module is given, and keeps the sums."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {module: path for path, module in model.named_modules()}
        self.found: dict[str, Seen] = {}
        self.given: dict[str, Tensor] = {}  # what projections that make keys gave last
        self.projections = {name: role.kind for name, role in roles(model).items() if role.kind in ("k", "qkv")}
        self.cached: set[nn.Module] = set()  # modules that are given a cache by keyword
        self.padding = Padding(None)

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        q, k, v = (states.transpose(1, 2).flatten(2) for states in (query, key, value))  # (batch, T, ·)
        path = self.paths[module]
        if path not in self.found:
            _require_plain(module, path, query, value)
            plain = self._plain(path, k, q.shape[-1])
            values, keys = Moments(self.padding.rows(v)), Moments(self.padding.rows(k)) if plain else None
            self.found[path] = Seen(module, query.shape[1], query.shape[3], plain, values, keys)
        seen = self.found[path]
        seen.values.add(self.padding.rows(v))
        if seen.keys is not None:
            seen.keys.add(self.padding.rows(k))
            rows = self.padding.rows(q).float().unflatten(-1, (key.shape[1], -1, seen.head_dim))
            total = torch.einsum("nghd,nghe->gde", rows, rows).double()
            seen.queries = total if seen.queries is None else seen.queries + total

    def _plain(self, path: str, keys: Tensor, before: int) -> bool:  # (batch, T, m), the width of the queries
        """Whether keys are what a projection of this module gave; one token alone cannot tell (nothing is turned)."""
        for name, kind in self.projections.items():
            if name.startswith(f"{path}.") and name in self.given and keys.shape[1] > 1:
                given = self.given.pop(name)
                given = given[..., before : before + keys.shape[-1]] if kind == "qkv" else given
                return torch.equal(given, keys)
        return False

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keep what key projections give, and which modules are given a cache."""

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    self.given[name] = output

            return hook

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if given_cache(kwargs) is not None:
                self.cached.add(module)

        hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in self.projections]
        hooks += [module.register_forward_pre_hook(note, with_kwargs=True) for module in self.paths]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def observe_states(model: PreTrainedModel, batches: Iterable[Any], progress: Progress | None) -> dict[str, Seen]:
    """Run the model over batches; gives what each attention module was given, by its path, in the model's order.

    Raises:
        TypeError: `batches` is a single one.
        ValueError: there are no batches or tokens, or an attention is not one that can be given latents.
    """
    if isinstance(batches, Tensor | Mapping):
        raise TypeError(f"batches is a single {type(batches).__name__}: put it in a list")
    observer = _Observer(model)
    token, done = _OBSERVER.set(observer), 0
    batches = list(batches)
    try:
        model.set_attn_implementation(NAME)
        with evaluating(model):
            for done, batch in enumerate(batches, 1):
                batch = to_device(batch if isinstance(batch, Mapping) else {"input_ids": batch}, model.device)
                observer.padding = Padding(batch)
                if done == 1:
                    with observer.watching(model):
                        run_model(model, {**batch, "use_cache": True})
                    observer.given.clear()
                else:
                    run_model(model, {**batch, "use_cache": False})
                if progress is not None:
                    progress(done, len(batches), "calibrating the cache")
    finally:
        model.set_attn_implementation("sdpa")
        _OBSERVER.reset(token)
    if not done or not all(seen.values.count for seen in observer.found.values()):
        raise ValueError(f"batches: no token in {done} batches; give some, of text like that to be generated")
    for path, seen in observer.found.items():
        if seen.module not in observer.cached or not hasattr(seen.module, "layer_idx"):
            raise ValueError(
                f"model: {path} is not given its cache as transformers' decoders are; it cannot be changed"
            )
    if not observer.found:
        raise ValueError(f"model: no attention of {type(model).__name__} goes through transformers' attention registry")
    return observer.found


def _require_plain(module: nn.Module, path: str, query: Tensor, value: Tensor) -> None:
    if getattr(module, "is_causal", True) is False:
        raise ValueError(f"model: {path} is not causal (an encoder, or cross-attention): it keeps no cache that grows")
    if value.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"model: {path} has values of dimension {value.shape[-1]} and queries of {query.shape[-1]} (latent "
            "attention already, say); only heads of one dimension are known"
        )


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    _OBSERVER.get()(module, query, key, value)
    return sdpa(module, query, key, value, attention_mask, **kwargs)


register(NAME, _observed_attention)
