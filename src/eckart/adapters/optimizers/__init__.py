"""Optimizers that know that two factors make one matrix: a rate for each factor, and gradients made right for the pair.

Each wraps any torch optimizer, and goes with `param_groups`:

    optimizer = Riemannian(torch.optim.AdamW(param_groups(model, 1e-4, plus=16)), model)
"""

from eckart.adapters.optimizers.alternating import Alternating
from eckart.adapters.optimizers.factor_optimizer import FactorOptimizer, Pair
from eckart.adapters.optimizers.groups import param_groups
from eckart.adapters.optimizers.lora_pro import LoraPro
from eckart.adapters.optimizers.preconditioned import LoraFA, Riemannian

__all__ = ["Alternating", "FactorOptimizer", "LoraFA", "LoraPro", "Pair", "Riemannian", "param_groups"]
