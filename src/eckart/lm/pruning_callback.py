"""AdaLoRA's schedule as a Trainer's callback: triplets are scored and pruned as it trains, and freed when it is done.

    before a step      ∂/∂P, ∂/∂Q of  0.5 · orthogonality(model)  join the gradients, once for each optimizer step
    after a step       RankSchedule.step()
    with a checkpoint  the schedule's averages, in adapter_schedule.safetensors
    at the end         shrink(model, optimizer, schedule), where one process trains; several only mask

The penalty is no part of the loss that is logged, so that it can be compared with that of other methods.
Paper: AdaLoRA 2303.10512; t_i is a tenth of the steps and t_f a half, in between those of its GLUE runs.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eckart.adapters import RankSchedule, orthogonality, shrink
from eckart.nn.files.tensors import read_header, read_tensor, save_safetensors

AVERAGES = "adapter_schedule.safetensors"
WEIGHT = 0.5  # of the penalty, as in PEFT
START, FINAL = 0.1, 0.5  # shares of the steps before the budget falls, and after it


class PruneTriplets(TrainerCallback):
    """Prune the triplets of one adapter while a Trainer trains it.

    Args:
        model: A model with an adapter of triplets.
        steps: Optimizer steps of the whole training.
        target: Average rank at the end.
        name: The adapter.

    Raises:
        ValueError: No adapter of triplets, or a target above the rank at the start.
    """

    def __init__(self, model: nn.Module, *, steps: int, target: float, name: str = "default") -> None:
        start, final = int(START * steps), int(FINAL * steps)
        self.schedule = RankSchedule(model, steps=steps, target=target, start=start, final=final, name=name)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the averages of the checkpoint that the training goes on from."""
        if state.global_step:
            infos = read_header(_checkpoint(args, state) / AVERAGES)
            self.schedule.load_state_dict({key: read_tensor(info) for key, info in infos.items()})

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The penalty's gradients, to which those of the batches are added."""
        factors = [f for held in self.schedule.triplets().values() for f in (held.P, held.Q) if f.requires_grad]
        penalty = WEIGHT * orthogonality(self.schedule.model, self.schedule.name)
        for factor, gradient in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
            factor.grad = gradient if factor.grad is None else factor.grad + gradient

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score and prune, while the gradients are still there."""
        self.schedule.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the averages beside the adapter."""
        if args.should_save:
            save_safetensors(_checkpoint(args, state) / AVERAGES, self.schedule.state_dict(), force=True)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Free what is pruned, unless other processes hold the same parameters."""
        if args.world_size == 1:
            shrink(self.schedule.model, optimizer, self.schedule, name=self.schedule.name)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
