"""What makes training converge to low rank: masks and the penalties they induce, weight decay, proximal steps.

With masks on the data themselves this is masked self-supervised learning: `train_masked`.
"""

from eckart.regularizers.attention import AttentionProduct, attention_products, rotary_norm
from eckart.regularizers.decay import DecayOptimum, decay_optimum, decay_penalty, imbalance, least_decay
from eckart.regularizers.explicit import FrobeniusDecay, NuclearDecay
from eckart.regularizers.fitting import fit_factors
from eckart.regularizers.image_patches import images_to_patches, patches_to_images
from eckart.regularizers.linear_masked import (
    masked_linear_factors,
    masked_linear_loss,
    masked_linear_optimum,
    masked_linear_penalty,
)
from eckart.regularizers.masked_training import MaskedRun, train_masked
from eckart.regularizers.masking import bernoulli_mask, cosine_rate, exact_mask, hidden_count, linear_rate
from eckart.regularizers.masks import AdaptiveDropout, DropBlock, DropConnect, Dropout
from eckart.regularizers.masks_2d import DropBlock2d
from eckart.regularizers.methods import METHODS, Method
from eckart.regularizers.optima import Optimum, dropblock_optimum, dropout_optimum
from eckart.regularizers.penalties import dropblock_penalty, dropconnect_penalty, dropout_penalty
from eckart.regularizers.proximal import shrink_product
from eckart.regularizers.rates import adaptive_rate, odds
from eckart.regularizers.representation import RepresentationSpectrum, representation_spectrum
from eckart.regularizers.second_order import Comparison, compare_penalties, monte_carlo_penalty, second_order_penalty

__all__ = [
    "METHODS",
    "AdaptiveDropout",
    "AttentionProduct",
    "Comparison",
    "DecayOptimum",
    "DropBlock",
    "DropBlock2d",
    "DropConnect",
    "Dropout",
    "FrobeniusDecay",
    "MaskedRun",
    "Method",
    "NuclearDecay",
    "Optimum",
    "RepresentationSpectrum",
    "adaptive_rate",
    "attention_products",
    "bernoulli_mask",
    "compare_penalties",
    "cosine_rate",
    "decay_optimum",
    "decay_penalty",
    "dropblock_optimum",
    "dropblock_penalty",
    "dropconnect_penalty",
    "dropout_optimum",
    "dropout_penalty",
    "exact_mask",
    "fit_factors",
    "hidden_count",
    "images_to_patches",
    "imbalance",
    "least_decay",
    "linear_rate",
    "masked_linear_factors",
    "masked_linear_loss",
    "masked_linear_optimum",
    "masked_linear_penalty",
    "monte_carlo_penalty",
    "odds",
    "patches_to_images",
    "representation_spectrum",
    "rotary_norm",
    "second_order_penalty",
    "shrink_product",
    "train_masked",
]
