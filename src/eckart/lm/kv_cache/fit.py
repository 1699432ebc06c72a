"""The best latents of keys and of values: rank r, in the metric of what attention does with them.

With states x (m,) of second moment C about μ, the code x' = μ + B A (x − μ) that minimises E‖G^{1/2}(x' − x)‖² is the
weighted approximation of the identity in C and G (`linalg.weighted_approximation`); the least error² is the tail
Σ_{i>r} σ_i²(G^{1/2} C^{1/2}).

    values   μ = 0. Most attention goes to a first token whose value is near zero: about 0 it is coded without error,
             about the mean with the mean's (SmolLM2-135M, share 0.5, 1022 tokens of pydoc: perplexity 18.2 about 0,
             30.5 about the mean; dense 14.2).
    keys     μ is the mean: keys that all shift by one vector change no weight of attention.

    values   G = SᵀS, S (width, m) the columns of the output projection, those of query heads that share a kv head
             summed: the error at the layer's output where all heads attend alike. Taking their errors as unrelated
             (a sum of products, block by block) is worse: perplexity 18.2 for 17.2 there, 20.5 without a metric.
    keys     G = blockdiag over kv heads of Σ_h E[q_h q_hᵀ]: the error of the scores

For values v = W x of a projection W this is its low-rank approximation in the second moment of its inputs
(C = W C_x Wᵀ), as in SVD-LLM (arXiv 2403.07378). Cost: three `eigh` of m × m for each layer, in float64.

Paper: Palu (arXiv 2407.21118) whitens by the input covariance; the metrics G are ours.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eckart.linalg import weighted_approximation, weighted_singular_values
from eckart.lm.kv_cache.attention import Latent
from eckart.lm.kv_cache.moments import Seen
from eckart.nn import matrices, roles


@dataclass
class Part:
    """The keys, or the values, of one layer: what may be cached as latents."""

    name: str  # the attention module's path, then ".keys" or ".values"
    second_moment: Tensor  # (m, m) C about μ, float64
    mean: Tensor  # (m,) μ: of keys their mean, of values 0
    metric: Tensor | None  # (m, m) G; None: the identity

    @property
    def full(self) -> int:
        """m: how many numbers a token takes as it is."""
        return len(self.mean)

    @property
    def _identity(self) -> Tensor:  # (m, m)
        return torch.eye(self.full, dtype=self.second_moment.dtype, device=self.second_moment.device)

    def errors(self) -> list[float]:
        """The predicted relative error √(tail ÷ whole) at the ranks 0, 1, … m."""
        energy = weighted_singular_values(
            self._identity,
            input_covariance=self.second_moment,
            output_covariance=self.metric,
        ).square()
        tail = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
        return (tail / tail[0].clamp_min(torch.finfo(tail.dtype).tiny)).sqrt().tolist()

    def fit(self, rank: int) -> Latent:
        """The best code of this rank, below m."""
        B, A = weighted_approximation(
            self._identity,
            rank,
            input_covariance=self.second_moment,
            output_covariance=self.metric,
        )
        return Latent(A, B, self.mean)


def parts(model: nn.Module, found: dict[str, Seen], keys: bool | None) -> dict[str, Part]:
    """All that may be cached as latents, by name, each layer's keys before its values."""
    outputs = {name: role for name, role in roles(model).items() if role.kind == "o"}
    every = {}
    for path, seen in found.items():
        if seen.keys is not None and seen.queries is not None and keys is not False:
            name = f"{path}.keys"
            G = torch.block_diag(*seen.queries / seen.keys.count)
            every[name] = Part(name, seen.keys.covariance, seen.keys.mean, G)
        name, count, mean = f"{path}.values", seen.values.count, seen.values.mean
        C = seen.values.covariance + mean.outer(mean)
        every[name] = Part(name, C, torch.zeros_like(mean), _output_metric(model, path, seen, outputs))
        if count <= every[name].full:
            warnings.warn(
                f"batches: {count} tokens for {every[name].full} numbers of {name}; the latents fit these tokens and "
                f"no others: give ten times as many",
                stacklevel=4,
            )
    return every


def _output_metric(model: nn.Module, path: str, seen: Seen, outputs: dict) -> Tensor | None:  # (m, m)
    """SᵀS from the output projection of this attention; None where that is unknown."""
    name = next((name for name in outputs if name.startswith(f"{path}.")), None)
    if name is None:
        warnings.warn(f"model: no output projection is known in {path}; its values are weighed alike", stacklevel=5)
        return None
    (matrix,) = matrices(model, name)
    W = matrix.weight().detach().double()  # (width, heads · d)
    S = W.unflatten(1, (len(seen.values.shift) // seen.head_dim, -1, seen.head_dim)).sum(2).flatten(1)
    return S.T @ S
