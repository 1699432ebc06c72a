"""ReLoRA's restarts as a Trainer's callback, with the learning rate that rises anew after each.

The draw of a restart depends on the run's seed and the step alone, so all processes make the same one, and a run that
is resumed makes it again. What is finished lies in the adapter's files, the rate's place in the Trainer's.
Paper: ReLoRA 2307.05695.
"""

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eckart.adapters import jagged_cosine, restart

REWARM = 10  # steps of the rise after a restart, at most half of what lies between two


class Restarts(TrainerCallback):
    """Let an adapter begin again every so many optimizer steps, the last one left out.

    Args:
        every: Steps from one restart to the next.
        name: The adapter.
    """

    def __init__(self, every: int, name: str = "default") -> None:
        self.every, self.name = every, name

    def rate(self, optimizer: torch.optim.Optimizer, *, steps: int, warmup: int) -> LambdaLR:
        """The scheduler that belongs to it, for a training of so many steps."""
        rewarm = min(REWARM, self.every // 2)
        return jagged_cosine(optimizer, steps=steps, every=self.every, warmup=warmup, rewarm=rewarm)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Before the checkpoint of this step is written."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            drawn = torch.Generator().manual_seed(args.seed + state.global_step)
            restart(model, optimizer, generator=drawn, name=self.name)
