"""Complete a matrix of which 70 % was never seen: handwritten digits with most of their pixels hidden.

python examples/complete_matrix.py
"""

import torch

from eckart.theory import complete_matrix, tuned_soft_impute

try:
    from sklearn.datasets import load_digits

    data = torch.tensor(load_digits().data[:500], dtype=torch.float32)  # 500 images of 8×8 pixels, 0 to 16
except ImportError:  # without scikit-learn: smooth images of our own
    places = torch.linspace(0, 3, 64)
    phases = 6 * torch.rand(500, 3, generator=torch.Generator().manual_seed(1))
    data = 8 + 8 * torch.stack([torch.sin(places * (k + 1) + phases[:, k, None]) for k in range(3)]).mean(0)

generator = torch.Generator().manual_seed(0)
mask = torch.rand(data.shape, generator=generator) < 0.3  # True where a pixel was seen
observed = torch.where(mask, data, float("nan"))


def error(matrix: torch.Tensor) -> float:
    """Root mean square error on the pixels that were hidden."""
    return float((matrix - data)[~mask].square().mean().sqrt())


found = complete_matrix(observed, mask, rank=16)
means = observed.nanmean(dim=0).expand_as(data)
soft = tuned_soft_impute(observed, mask, ranks=(10,))

print(f"matrix {tuple(data.shape)}, {mask.float().mean():.0%} seen")
print("error on hidden pixels (grey levels of 16)")
print(f"  mean of each pixel   {error(means):.2f}")
print(f"  softImpute, tuned    {error(soft.matrix):.2f}")
print(f"  deep completion      {error(found.matrix):.2f}")
print("chosen on held-out pixels:", ", ".join(f"decay {decay:g} for {steps} steps" for decay, steps in found.phases))
