"""Gradients between processes as products of rank k, by PyTorch's PowerSGD hook: DDP sends k (m + n) numbers of m n.

What a step's product leaves out is added to the next step's gradient, in each process. The first steps send all, since
the directions are taken from the last step's.

Paper: PowerSGD, 1905.13727; the hook is PyTorch's own. What it has left out is not in the checkpoints: a resumed run
begins anew with steps that send all, and is not the run without a stop to the bit.
"""

from typing import TYPE_CHECKING, Any

from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState

if TYPE_CHECKING:  # both take seconds to import
    from transformers import Trainer, TrainingArguments


class PowerSGDCallback(TrainerCallback):
    """Let the processes of a Trainer (torchrun, DDP) send each other gradients of low rank.

    Args:
        rank: k, at least 1. An optimizer of rank r sees at most k directions a step, so k of r or more loses least.
        start: Steps that send all, at least 2.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> PowerSGDCallback(rank=8).start
        100
    """

    def __init__(self, rank: int, start: int = 100) -> None:
        if rank < 1:
            raise ValueError(f"powersgd: {rank}; give a rank of at least 1")
        if start < 2:
            raise ValueError(f"start: {start}; give at least 2 steps")
        self.rank, self.start = rank, start
        self._trainer: Any = None

    def attach(self, trainer: "Trainer") -> "PowerSGDCallback":
        """Put the callback on a Trainer.

        Returns:
            The callback itself.

        Raises:
            ValueError: The Trainer trains in one process, or shards the model.
        """
        require_several(trainer.args.world_size)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("powersgd: it is for DDP, and this Trainer shards the model; leave it out")
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the hook on the model that the Trainer has wrapped."""
        wrapped = None if self._trainer is None else self._trainer.model_wrapped
        if not isinstance(wrapped, DistributedDataParallel):
            raise ValueError("PowerSGDCallback: the model is not under DDP; call callback.attach(trainer) first")
        made = PowerSGDState(
            None, matrix_approximation_rank=self.rank, start_powerSGD_iter=self.start, orthogonalization_epsilon=1e-8
        )
        wrapped.register_comm_hook(made, powerSGD_hook)


def require_several(processes: int) -> None:
    """Fail where there is nothing to send."""
    if processes == 1:
        raise ValueError("powersgd: one process sends no gradients; start several with torchrun, or leave it out")
