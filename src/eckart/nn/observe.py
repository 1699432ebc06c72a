"""Run a model over batches once and keep what its matrices read and what the loss tells them, in bounded memory.

For a matrix W (m, n) with rows x (n,) as inputs, y = W x, and g = ∂loss/∂y (m,) at its output, over N counted rows:
Σ x, C = Σ x xᵀ / N (n, n), √(Σ x∘x / N) (n,), Σ g gᵀ / N (m, m), the gradient ∂loss/∂W (m, n), and a sample of rows.
Cost: the model's own pass, 2 N n² operations for each different input where C is wanted, 2 N m² where Σ g gᵀ is.

Paper: none; these are the calibration statistics of EVA (arXiv 2410.07170), CorDA (arXiv 2406.05223), LoRA-GA (arXiv
2407.05000), SVD-LLM (arXiv 2403.07378) and ASVD (arXiv 2312.05821) from one pass.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from eckart.nn.batches import run_model, to_device
from eckart.nn.convolution import CompressedConv
from eckart.nn.gradients import WeightGradients, loss_of
from eckart.nn.matrices import Matrix, matrices
from eckart.nn.modes import evaluating
from eckart.nn.observation import Observation, collect
from eckart.nn.observer import Observer
from eckart.nn.patterns import Patterns, Progress
from eckart.nn.reads import Read, Reads
from eckart.nn.storage import Weights

WANTED = ("input_covariance", "output_gradient_covariance", "gradient", "input_norms", "input_sample")


def observe(
    model: nn.Module,
    batches: Iterable[Any],
    wanted: Collection[str],
    *,
    targets: Patterns = None,
    exclude: Patterns = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    sample_size: int = 2048,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Observation]:
    """Observe the matrices of a model on batches.

    The model runs in eval mode, without gradients where none are wanted; its modes, `requires_grad` and `.grad` are as
    before at the end, also after an error. Matrices that read the very same tensor in every batch (q, k and v; gate and
    up) share one set of statistics.

    Rows that the batch's `attention_mask` (B, T) hides are left out of inputs and output gradients shaped (B, T, ...)
    or (B · T, ...), and of the rows that experts pick from those. A decoder beside an encoder has a
    `decoder_attention_mask` of its own, told by its T; where T is the same and the masks are not, nothing is left out.
    Inputs with one row per sequence are counted whole, and so are others that cannot be matched to a mask with zeros,
    which a warning names. The gradient is the loss's own: a mask does not change it. Convolutions read patches
    (n = in/groups · kernel), at every position. Embeddings read ids: they have a gradient, and no statistics of inputs
    and outputs.

    Memory does not grow with the batches, but all that is wanted is held at once: (n, n) for each different input,
    (m, m) for each output, (m, n) for each gradient, in float32. For a large model observe block by block, reading the
    batches again for each: `observe(model, batches, wanted, targets=f"layers.{block}.*")`.

    Args:
        model: any module. What is not used by the batches, or in a way that cannot be followed, is left out of the
            result or of the field, and a warning names it.
        batches: an iterable of batches, read once: a dict (given to the model by keyword), a tuple or list (by
            position) or a tensor. They are moved to the model's device.
        wanted: any of "input_covariance", "input_norms", "input_sample", "gradient", "output_gradient_covariance".
        targets: glob patterns of the matrices to observe (see `select`); None means all.
        exclude: glob patterns of those not to observe.
        loss: (what the model gave, the batch) → scalar, for the gradients; None takes the output's own `loss`.
        forward: (model, batch) → output, for batches that the model does not take as they are, such as
            `lambda model, batch: model(batch[0])` for pairs of inputs and labels.
        sample_size: rows kept of each input for "input_sample", at most.
        progress: called with batches done, how many there are (0 if unknown) and "observing".
        generator: draws the sample; None means a fixed seed.

    Returns:
        Matrix name → Observation, in the order of `matrices`.

    Raises:
        ValueError: `wanted` or a pattern names nothing known; there are no batches, or no row is unmasked; the loss is
            missing, not finite, not a scalar, or independent of the matrices; an input or a gradient is not finite (the
            matrix is named).
        TypeError: a batch, or `batches`, has the wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> batches = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])]
        >>> seen = observe(model, batches, ["input_covariance", "gradient"], loss=lambda y, batch: y.sum())
        >>> seen["0"].tokens, seen["0"].input_second_moment
        (4, tensor([[2.5000, 0.0000],
                [0.0000, 2.0000]]))
        >>> seen["2"].gradient.shape
        torch.Size([1, 3])
    """
    wanted = _checked(wanted, batches, sample_size)
    found = matrices(model, targets, exclude)
    stored = [matrix for matrix in found if _stays(matrix)]
    computed = [matrix for matrix in found if not _stays(matrix)]
    observer = Observer({matrix.name for matrix in computed}, wanted, sample_size)
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True
    reads = Reads(Weights(stored), observer.on_read, encoder_decoder)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(_hooked(computed, reads))
        if wanted & {"gradient", "output_gradient_covariance"}:
            asked = stored if "gradient" in wanted else []
            observer.weights = stack.enter_context(WeightGradients(model, asked, observer.check))
        count = _run(model, batches, reads, observer, forward or run_model, loss, progress, generator)
    if not count:
        raise ValueError("batches is empty: give at least one batch (an iterator that was read once stays empty)")
    return collect(found, observer, reads, wanted, count)


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    reads: Reads,
    observer: Observer,
    forward: Callable[[nn.Module, Any], Any],
    loss: Callable[[Any, Any], Tensor] | None,
    progress: Progress | None,
    generator: torch.Generator | None,
) -> int:
    """Run all batches; returns how many there were."""
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    total = len(batches) if isinstance(batches, Sized) else 0
    count = 0
    for batch in batches:
        batch = to_device(batch, device)
        reads.begin_batch(batch)
        observer.begin_batch(generator)
        _pass(model, batch, reads, observer, forward, loss)
        observer.end_batch()
        count += 1
        if progress is not None:
            progress(count, total, "observing")
    return count


def _pass(
    model: nn.Module,
    batch: Any,
    reads: Reads,
    observer: Observer,
    forward: Callable[[nn.Module, Any], Any],
    loss: Callable[[Any, Any], Tensor] | None,
) -> None:
    """One batch, forward and (if gradients are wanted) backward."""
    weights = observer.weights
    with torch.inference_mode(False), torch.set_grad_enabled(weights is not None), _uncompiled(), reads:
        output = forward(model, batch)
        observer.settle("input")  # before the loss is looked at: the first bad layer says more than a bad loss
        value = loss_of(output, batch, loss) if weights is not None else None
    if weights is not None and value is not None:
        weights.backward(value)
        observer.settle("gradient")


def _checked(wanted: Collection[str], batches: object, sample_size: int) -> set[str]:
    wanted = {wanted} if isinstance(wanted, str) else set(wanted)
    if not wanted or not wanted <= set(WANTED):
        raise ValueError(f"wanted is {sorted(wanted)}: choose one or more of {', '.join(WANTED)}")
    if isinstance(batches, Tensor | Mapping):
        raise TypeError(f"batches is a single {type(batches).__name__}: put it in a list")
    if sample_size < 1:
        raise ValueError(f"sample_size is {sample_size}: it counts rows, at least 1")
    return wanted


def _stays(matrix: Matrix) -> bool:
    """Whether the weight is a plain parameter that stays where it is, so that its uses can be told by its storage."""
    parameter = matrix.module._parameters.get(matrix.parameter)
    return type(parameter) is nn.Parameter and not parameter.is_meta


@contextmanager
def _hooked(computed: Sequence[Matrix], reads: Reads) -> Iterator[None]:
    """See the inputs and outputs of layers whose weight is computed (factored, parametrized, offloaded) by hooks."""
    hooks = []
    for matrix in computed:
        if matrix.kind not in ("linear", "conv1d") and not isinstance(matrix.module, CompressedConv):
            reads.weights.notes[matrix.name] = "has a weight that is computed for each use"
            continue

        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any], out: Tensor, matrix: Matrix = matrix) -> Tensor:
            x = args[0] if args else next(iter(kwargs.values()))
            return reads.on_read([_read(reads, matrix, x, out)], out)

        hooks.append(matrix.module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _read(reads: Reads, matrix: Matrix, x: Tensor, out: Tensor) -> Read:
    """The read of a layer that was called with x and gave `out`."""
    layer = matrix.module
    if not isinstance(layer, CompressedConv):
        return reads.product(matrix, slice(0, 1), x)
    x, padding = layer.padded(x)
    return reads.convolution(matrix, slice(0, 1), x, out, layer.kernel_size, layer.stride, padding, layer.dilation)


def _uncompiled() -> Any:
    """A context in which compiled modules run as written, so that their products are seen."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
