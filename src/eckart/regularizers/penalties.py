"""What a mask adds to the squared loss of a linear product, in closed form: deterministic dropout.

With Y (m, N), X (n, N), U (m, d), V (n, d), a mask of keep probability θ and c = (1 − θ)/θ = rate/(1 − rate),

    E‖Y − U diag(z/θ) VᵀX‖² = ‖Y − U VᵀX‖² + penalty

    dropout         z_i for each column            c Σ_i ‖u_i‖² ‖Xᵀv_i‖²                arXiv 1710.05092
    DropBlock       one z_b for a block of k       c Σ_b ‖U_b V_bᵀ X‖²                  arXiv 1910.14186
    DropConnect     Z on U, entry by entry         c Σ_i ‖u_i‖² ‖Xᵀv_i‖²                dropout's
                    Z on V, entry by entry         c Σ_i ‖u_i‖² v_iᵀ diag(XXᵀ) v_i      dropout's if XXᵀ is diagonal

for a mask drawn for every sample as for one that serves the batch. For `nn.Linear` layers V = first.weight.mT and
U = second.weight; samples are columns here, and a mean over samples divides loss and penalty alike. With other losses
or networks the penalty has no such form: `second_order_penalty` is what it is to second order.

Cost: one product VᵀX; only XXᵀ counts, so any square root of it may stand for X.
Paper: none; that DropConnect on V differs is our derivation.
"""

from typing import Literal

from torch import Tensor

from eckart.linalg import working_dtype
from eckart.regularizers.rates import odds, require_block


def dropout_penalty(
    U: Tensor,  # (m, d)
    V: Tensor,  # (n, d)
    rate: float,
    *,
    inputs: Tensor | None = None,  # X (n, N)
) -> Tensor:  # ()
    """c Σ_i ‖u_i‖² ‖Xᵀv_i‖², what dropout between two linear layers adds to the squared loss, differentiable.

    Args:
        U: the second layer's weight.
        V: the first layer's weight, transposed.
        rate: share dropped, in [0, 1); for the width-adaptive law pass `adaptive_rate(rate, d)`.
        inputs: X, a sample in each column; None for the identity (matrix factorisation).

    Returns:
        The penalty on ‖Y − UVᵀX‖², a scalar in float32, or float64 for float64.

    Raises:
        ValueError: rate outside [0, 1), or shapes that do not fit.

    Example:
        >>> import torch
        >>> U, V = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
        >>> dropout_penalty(U, V, 0.5).item()  # 1·9 + 4·1
        13.0
    """
    U, H = _product(U, V, inputs)
    return odds(rate) * (U.square().sum(0) * H.square().sum(1)).sum()


def dropblock_penalty(
    U: Tensor,  # (m, d)
    V: Tensor,  # (n, d)
    rate: float,
    block: int,
    *,
    inputs: Tensor | None = None,  # X (n, N)
) -> Tensor:  # ()
    """c Σ_b ‖U_b V_bᵀ X‖², what DropBlock between two linear layers adds to the squared loss, differentiable.

    Args:
        U: the second layer's weight.
        V: the first layer's weight, transposed.
        rate: share of the blocks that is dropped, in [0, 1).
        block: columns in a block; must divide d.
        inputs: X, a sample in each column; None for the identity.

    Returns:
        The penalty on ‖Y − UVᵀX‖², a scalar in float32, or float64 for float64.

    Raises:
        ValueError: rate outside [0, 1), block does not divide d, or shapes that do not fit.

    Example:
        >>> import torch
        >>> U, V = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
        >>> dropblock_penalty(U, V, 0.5, 2).item()  # the product's own square: (3 + 2)²
        25.0
    """
    U, H = _product(U, V, inputs)
    require_block(block, U.shape[1])
    left = U.mT.reshape(-1, block, U.shape[0])  # (B, k, m)
    right = H.reshape(-1, block, H.shape[1])  # (B, k, N)
    return odds(rate) * ((left @ left.mT) * (right @ right.mT)).sum()  # ‖U_b H_b‖² = ⟨U_bᵀU_b, H_b H_bᵀ⟩


def dropconnect_penalty(
    U: Tensor,  # (m, d)
    V: Tensor,  # (n, d)
    rate: float,
    *,
    inputs: Tensor | None = None,  # X (n, N)
    layer: Literal["first", "second"] = "second",
) -> Tensor:  # ()
    """What DropConnect on one of two linear layers adds to the squared loss, differentiable.

    Args:
        U: the second layer's weight.
        V: the first layer's weight, transposed.
        rate: share of the weights that is dropped, in [0, 1).
        inputs: X, a sample in each column; None for the identity.
        layer: which weight is masked. "second" (U): dropout's penalty. "first" (V): sees only the inputs' variances,
            and is dropout's if the inputs are uncorrelated.

    Returns:
        The penalty on ‖Y − UVᵀX‖², a scalar in float32, or float64 for float64.

    Raises:
        ValueError: rate outside [0, 1), an unknown layer, or shapes that do not fit.

    Example:
        >>> import torch
        >>> U, V, X = torch.ones(1, 1), torch.ones(2, 1), torch.ones(2, 1)  # two inputs that are one
        >>> [dropconnect_penalty(U, V, 0.5, inputs=X, layer=layer).item() for layer in ("second", "first")]
        [4.0, 2.0]
    """
    if layer == "second":
        return dropout_penalty(U, V, rate, inputs=inputs)
    if layer != "first":
        raise ValueError(f"layer must be 'first' or 'second', got {layer!r}")
    scale = None if inputs is None else inputs.to(working_dtype(inputs.dtype)).square().sum(1).sqrt().diag()
    return dropout_penalty(U, V, rate, inputs=scale)


def _product(U: Tensor, V: Tensor, inputs: Tensor | None) -> tuple[Tensor, Tensor]:  # (m, d), (d, N)
    """U and H = VᵀX in the working dtype."""
    if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[1]:
        raise ValueError(
            f"U {tuple(U.shape)} and V {tuple(V.shape)} must be (m, d) and (n, d), the factors of UVᵀ; "
            "the first layer's weight is Vᵀ"
        )
    if inputs is not None and (inputs.ndim != 2 or inputs.shape[0] != V.shape[0]):
        raise ValueError(
            f"inputs {tuple(inputs.shape)} must be (n, N) with n = {V.shape[0]} and a sample in each column"
        )
    U, V = U.to(working_dtype(U.dtype)), V.to(working_dtype(V.dtype))
    return U, V.mT if inputs is None else V.mT @ inputs.to(V.dtype)
