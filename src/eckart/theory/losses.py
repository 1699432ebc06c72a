"""Losses of a deep linear network's product P (m, n), each as a slope for `descend`: P → (loss, ∂loss/∂P).

    factorization    ½‖P − Φ‖²                          all of a matrix is seen (T2, T3)
    completion       ½‖mask∘(P − Φ)‖²                   some of its entries are (T4)
    sensing          ½ Σ_i (⟨A_i, P⟩ − y_i)² / k        k linear measurements are (T5)
    regression       ½‖P X − Y‖²                        a network trained on data; XXᵀ = I is whitened data (T1)

Paper: T4's code divides the loss by the number of entries; here the learning rate is that much smaller instead.
"""

from torch import Tensor

from eckart.theory.descent import Slope
from eckart.theory.observed import seen_part


def factorization(
    target: Tensor,  # (m, n)
) -> Slope:
    """The loss ½‖P − Φ‖² of fitting a whole matrix.

    Args:
        target: Φ.

    Returns:
        The slope P → (loss, P − Φ).

    Example:
        >>> import torch
        >>> loss, G = factorization(torch.eye(2))(torch.zeros(2, 2))
        >>> loss.item(), G.tolist()
        (1.0, [[-1.0, 0.0], [0.0, -1.0]])
    """

    def slope(P: Tensor) -> tuple[Tensor, Tensor]:
        _require_shape(P, target)
        G = P - target
        return G.square().sum() / 2, G

    return slope


def completion(
    observed: Tensor,  # (m, n)
    mask: Tensor,  # (m, n)
) -> Slope:
    """The loss ½‖mask∘(P − Φ)‖² of fitting the observed entries.

    Args:
        observed: Φ, with anything where it is not observed, NaN included.
        mask: 1 or True where it is.

    Returns:
        The slope P → (loss, mask∘(P − Φ)).

    Raises:
        ValueError: the shapes differ, or nothing is observed.

    Example:
        >>> import torch
        >>> seen = torch.tensor([[1.0, float("nan")]])
        >>> loss, G = completion(seen, torch.tensor([[True, False]]))(torch.zeros(1, 2))
        >>> loss.item(), (G + 0.0).tolist()
        (0.5, [[-1.0, 0.0]])
    """
    target = seen_part(observed, mask)
    weight = mask.bool().to(observed.dtype)

    def slope(P: Tensor) -> tuple[Tensor, Tensor]:
        _require_shape(P, target)
        G = P.mul(weight).sub_(target)
        return G.square().sum() / 2, G

    return slope


def sensing(
    operators: Tensor,  # (k, m, n)
    values: Tensor,  # (k,)
) -> Slope:
    """The loss ½ Σ_i (⟨A_i, P⟩ − y_i)² / k of fitting k linear measurements.

    Args:
        operators: A_1, …, A_k, with independent entries of variance 1, so that the loss is ½‖P − Φ‖² in expectation.
        values: y_i = ⟨A_i, Φ⟩.

    Returns:
        The slope P → (loss, Σ_i (⟨A_i, P⟩ − y_i) A_i / k).

    Raises:
        ValueError: as many values as operators were not given.

    Example:
        >>> import torch
        >>> A = torch.eye(2)[None]  # one measurement: the trace
        >>> loss, G = sensing(A, torch.tensor([2.0]))(torch.zeros(2, 2))
        >>> loss.item(), (G + 0.0).tolist()
        (2.0, [[-2.0, 0.0], [0.0, -2.0]])
    """
    require_measurements(operators, values)
    flat = operators.flatten(1)

    def slope(P: Tensor) -> tuple[Tensor, Tensor]:
        error = flat @ P.flatten() - values
        return error.square().mean() / 2, (error @ flat).view_as(P) / len(values)

    return slope


def regression(
    inputs: Tensor,  # X (n, N)
    targets: Tensor,  # Y (m, N)
) -> Slope:
    """The loss ½‖P X − Y‖² of a linear network on data; a classifier's Y has one-hot columns.

    Args:
        inputs: X, a sample in each column.
        targets: Y, likewise.

    Returns:
        The slope P → (loss, (P X − Y) Xᵀ). The samples enter once, through X Xᵀ and Y Xᵀ, so a step's cost does not
        grow with them, and a loss far below ‖Y‖² is known to the rounding of ‖Y‖² only; it is never negative.

    Raises:
        ValueError: the numbers of samples differ.

    Example:
        >>> import torch
        >>> loss, G = regression(torch.tensor([[2.0]]), torch.tensor([[1.0]]))(torch.tensor([[1.0]]))
        >>> loss.item(), G.item()
        (0.5, 2.0)
    """
    if inputs.shape[-1] != targets.shape[-1]:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} differ in their samples, the columns"
        )
    gram, cross = inputs @ inputs.mT, targets @ inputs.mT
    energy = targets.square().sum()

    def slope(P: Tensor) -> tuple[Tensor, Tensor]:
        PC = P @ gram
        return ((P * PC).sum() - 2 * (P * cross).sum() + energy).clamp(min=0) / 2, PC - cross

    return slope


def require_measurements(operators: Tensor, values: Tensor) -> None:
    """Raise unless there is one value for each of one or more operators (k, m, n)."""
    if operators.ndim != 3 or values.shape != operators.shape[:1] or not len(values):
        raise ValueError(
            f"operators must be (k, m, n) and values (k,) with k ≥ 1, got {tuple(operators.shape)} and "
            f"{tuple(values.shape)}"
        )


def _require_shape(P: Tensor, target: Tensor) -> None:
    """Else the smaller one would be repeated, and another target fitted."""
    if P.shape[-2:] != target.shape[-2:]:  # several networks may share one target
        raise ValueError(
            f"the network gives {tuple(P.shape)} and the target is {tuple(target.shape)}; widths and target must agree"
        )
