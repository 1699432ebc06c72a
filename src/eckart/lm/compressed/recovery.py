"""What a compressed model lost, won back in part by gradient steps, which stop where held-out text says so.

| how | what trains | towards |
|---|---|---|
| blocks | the compressed layers of one block after another | the dense block's outputs, from the compressed prefix's |
| lora | adapters on the factors of all compressed layers, then merged | the next token, or the dense model's logits |

Both are fitted on the calibration text, and both can learn it by heart: the held-out sequences decide when to stop and
which state is kept, and where none is better than that of the start, the start is what is kept.
Paper: AA-SVD refines blocks so; SVD-LLM (arXiv 2403.07378) recovers by LoRA. Neither stops on held-out text.
"""

import time
from collections.abc import Collection
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from eckart.compression.allocations.trying import mean_loss
from eckart.compression.files.originals import compressed_layers, smaller_linears
from eckart.lm.calibration import Calibration
from eckart.lm.compressed.block_recovery import refine_blocks
from eckart.lm.compressed.lora_recovery import train_adapters
from eckart.nn import Progress

How = Literal["blocks", "lora"]
HOW: tuple[str, ...] = get_args(How)


@dataclass(frozen=True)
class Recovery:
    """What `recover` did.

    Args:
        how: "blocks" or "lora".
        before: The mean next-token loss on held-out sequences before it, in nats.
        after: The same after it; never above `before`.
        steps: Optimizer steps that were made, those that were thrown away included.
        parameters: How many numbers trained.
        fitted_on: Which text, and how many tokens of it.
        measured_on: How many held-out tokens.
        seconds: All of it.
        history: For "lora" {"step", "loss"}: the held-out loss along the way; for "blocks" {"block", "before", "after",
            "passes"}: the relative error of each block's outputs on held-out text.
        notes: What did not work, in sentences.

    Example:
        >>> print(Recovery("lora", 3.25, 3.125, 100, 4096, "32,768 tokens of pydoc", "4,096 held-out tokens", 60.0))
        lora: held-out loss 3.250 → 3.125 on 4,096 held-out tokens, fitted on 32,768 tokens of pydoc in 100 steps
    """

    how: str
    before: float
    after: float
    steps: int
    parameters: int
    fitted_on: str
    measured_on: str
    seconds: float
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"summary": str(self)}

    def __str__(self) -> str:
        return (
            f"{self.how}: held-out loss {self.before:.3f} → {self.after:.3f} on {self.measured_on}, fitted on "
            f"{self.fitted_on} in {self.steps} steps"
        )


def recover(
    model: nn.Module,
    how: How,
    data: Calibration,
    *,
    dense: nn.Module | None = None,
    names: Collection[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Recovery:
    """Train the compressed layers of a model, in place, as long as held-out text gains.

    Args:
        model: A compressed causal language model in float32; it is changed in place, and nothing but its compressed
            layers is.
        how: "blocks" or "lora".
        data: What is fitted on, with held-out sequences.
        dense: The model before it was compressed: needed for "blocks"; for "lora" its logits are learned instead of the
            text's next tokens.
        names: Which layers train; None: all that are compressed.
        progress: Called as progress(done, total, label).
        options: Of the training: see `refine_blocks` and `train_adapters`.

    Returns:
        Recovery: losses before and after, and what it was fitted on.

    Raises:
        ValueError: No compressed layers or no held-out sequences, half precision (whose rounding would eat the steps),
            "blocks" without the dense model or for a model without a chain of blocks, or an option out of its range.
        RuntimeError: A loss is no number: the learning rate is too large.

    Example:
        >>> recover(nn.Linear(2, 2), "blocks", Calibration([], [], {}, {}, 8))
        Traceback (most recent call last):
        ...
        ValueError: data: no held-out sequences; recovery stops by them, so give calibration_data(held_out=8)
    """
    if how not in HOW:
        raise ValueError(f"how: {how!r}; give one of {', '.join(HOW)}")
    if not data.held_out:
        raise ValueError("data: no held-out sequences; recovery stops by them, so give calibration_data(held_out=8)")
    chosen = trainable(model, names)
    dtype = next(model.parameters()).dtype
    if dtype.itemsize < 4:
        raise ValueError(
            f"model: it is {dtype}, whose rounding would eat the steps; load it as float32, and round when it is saved"
        )
    if how == "blocks" and dense is None:
        raise ValueError("dense: blocks are fitted to the dense model's; give it, or recover by 'lora'")
    began = time.perf_counter()
    before = mean_loss(model, data.held_out)
    start = {name: deepcopy(model.get_submodule(name).state_dict()) for name in chosen}
    trained = [(p, p.requires_grad) for p in model.parameters()]
    run: Any = refine_blocks if how == "blocks" else train_adapters
    try:
        steps, parameters, history = run(model, data, chosen, dense=dense, progress=progress, **options)
    except BaseException:
        _undo(model, start)
        raise
    finally:
        for p, flag in trained:
            p.requires_grad_(flag)
    after, notes = mean_loss(model, data.held_out), []
    if not after < before:
        _undo(model, start)
        notes.append(f"recovery by {how} did not lower the held-out loss ({before:.4f} → {after:.4f}): it was undone")
        after = before
    text = " and ".join(f"{each['tokens']:,} tokens of {each['text']}" for each in data.rows())
    held = data.length * sum(len(each["input_ids"]) for each in data.held_out)
    seconds = time.perf_counter() - began
    measured = f"{held:,} held-out tokens"
    return Recovery(how, before, after, steps, parameters, text, measured, seconds, history, notes)


def trainable(model: nn.Module, names: Collection[str] | None) -> list[str]:
    """The layers that train, in the model's order: those named, or all compressed ones.

    Raises:
        ValueError: There are none, or a name is not a layer of the model.
    """
    modules = dict(model.named_modules())
    wanted = {*compressed_layers(model), *smaller_linears(model)} if names is None else set(names)
    if unknown := sorted(wanted - modules.keys()):
        raise ValueError(f"names: {', '.join(unknown[:3])} are no layers of the model")
    chosen = [name for name in modules if name in wanted]
    if not chosen:
        raise ValueError("model: it has no compressed layers to train; compress it first, or give names=")
    return chosen


def _undo(model: nn.Module, start: dict[str, Any]) -> None:
    """Give layers the state that they had."""
    for name, state in start.items():
        model.get_submodule(name).load_state_dict(state)
