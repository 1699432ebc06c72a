"""The spectrum of training in whatever tracker a transformers Trainer has."""

import warnings
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState

if TYPE_CHECKING:  # both take seconds to import
    from transformers import Trainer, TrainingArguments


class Recorder(Protocol):
    """What records: `eckart.spectra.Recorder`, or anything with these two methods."""

    def step(self, t: int) -> Any:
        """Record the model as it is at step t."""

    def scalars(self) -> dict[str, float]:
        """The latest record as numbers with names."""


class SpectraCallback(TrainerCallback):
    """Record spectra every few steps of a Trainer, and log their scalars with the loss.

    `callback.attach(trainer)` puts it before the Trainer's trackers (TensorBoard, Weights & Biases, ...), which then
    see the scalars in the same entry as the loss. In `Trainer(callbacks=[callback])` it stands behind them: the scalars
    reach `trainer.state.log_history` and the callbacks after it, and a warning says which trackers miss them.

    Args:
        recorder: An `eckart.spectra.Recorder` of the model that is trained.
        every: Steps between records, at least 1; the last step is recorded too.

    Raises:
        ValueError: `every` is below 1.

    Example:
        >>> class Still:
        ...     def step(self, t): print("recorded step", t)
        ...     def scalars(self): return {"spectra/effective_rank": 3.0}
        >>> callback = SpectraCallback(Still(), every=10)
        >>> state, logs = TrainerState(global_step=20, max_steps=100), {"loss": 1.0}
        >>> _ = callback.on_step_end(None, state, TrainerControl())
        recorded step 20
        >>> callback.on_log(None, state, TrainerControl(), logs=logs)
        >>> logs
        {'loss': 1.0, 'spectra/effective_rank': 3.0}
    """

    def __init__(self, recorder: Recorder, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"every: {every}; give the number of steps between records, at least 1")
        self.recorder = recorder
        self.every = every
        self._fresh: dict[str, float] = {}  # recorded, and not yet logged
        self._first = False

    def attach(self, trainer: "Trainer") -> "SpectraCallback":
        """Put the callback before all others of a Trainer, so that its trackers see the scalars too.

        Args:
            trainer: A Trainer that has not begun to train.

        Returns:
            The callback itself.
        """
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]
        self._first = True
        return self

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say which trackers will miss the scalars, if any."""
        if args.report_to and not self._first:
            trackers = ", ".join([args.report_to] if isinstance(args.report_to, str) else args.report_to)
            warnings.warn(
                f"the trackers ({trackers}) are called before {type(self).__name__} and will miss its scalars; "
                "call callback.attach(trainer) before trainer.train()",
                stacklevel=2,
            )

    def on_step_end(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Record when it is time, and ask for a log of this step."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.recorder.step(state.global_step)
            self._fresh = dict(self.recorder.scalars())
            control.should_log = True
        return control

    def on_log(
        self,
        args: "TrainingArguments",
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what was recorded since the last log to this one, and to its copy in the history."""
        if logs is not None and self._fresh:
            logs.update(self._fresh)
            if state.log_history:
                state.log_history[-1].update(self._fresh)
            self._fresh = {}
