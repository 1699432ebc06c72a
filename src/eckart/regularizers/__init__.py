"""What makes training converge to low rank: mask laws and the penalties they induce, weight decay, proximal steps."""

from eckart.regularizers.masks import AdaptiveDropout, DropBlock, DropConnect, Dropout
from eckart.regularizers.masks_2d import DropBlock2d
from eckart.regularizers.optima import Optimum, dropblock_optimum, dropout_optimum
from eckart.regularizers.penalties import dropblock_penalty, dropconnect_penalty, dropout_penalty
from eckart.regularizers.rates import adaptive_rate, odds
from eckart.regularizers.second_order import Comparison, compare_penalties, monte_carlo_penalty, second_order_penalty

__all__ = [
    "AdaptiveDropout",
    "Comparison",
    "DropBlock",
    "DropBlock2d",
    "DropConnect",
    "Dropout",
    "Optimum",
    "adaptive_rate",
    "compare_penalties",
    "dropblock_optimum",
    "dropblock_penalty",
    "dropconnect_penalty",
    "dropout_optimum",
    "dropout_penalty",
    "monte_carlo_penalty",
    "odds",
    "second_order_penalty",
]
