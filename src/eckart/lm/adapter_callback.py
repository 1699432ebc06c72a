"""Checkpoints of a transformers Trainer that hold the adapter and not the base model, and from which it goes on.

A Trainer saves through the model's `save_pretrained`, and loads through two methods of its own that know PEFT's wrapper
and whole models. `attach` puts itself before these on the one Trainer it is given: while the Trainer saves, the model's
`save_pretrained` writes the adapter's files; when it loads (to resume, or for the best model at the end), the adapter's
numbers are copied into the parameters that are there, so that the optimizer keeps them. Optimizer, scheduler and random
states stay the Trainer's business. No class is patched, and nothing of the model is changed.

Paper: none.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

import eckart.adapters as adapters
from eckart.adapters.layers.place import places
from eckart.adapters.using.switching import names
from eckart.lm.adapter_state import holds_adapter, put_back, write_groups

if TYPE_CHECKING:  # both take seconds to import
    from transformers import Trainer, TrainingArguments


class AdapterCallback(TrainerCallback):
    """Let a Trainer (transformers' own, or one of TRL's) save and resume adapters only.

    A checkpoint then holds what `eckart.save` writes (adapter_config.json and adapter_model.safetensors, which PEFT
    reads too), and the Trainer's own files (optimizer, scheduler, random states). A run that goes on from it gives the
    bits of one that was never stopped, on one process in float32. `trainer.train(resume_from_checkpoint=…)` needs a
    model that was adapted in the same way.

    Args:
        name: Which adapter; None is the one that acts.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
        >>> _ = adapters.adapt(model, rank=2)
        >>> folder = tempfile.mkdtemp()
        >>> trainer = Trainer(model=model, args=TrainingArguments(folder, use_cpu=True))
        >>> _ = AdapterCallback().attach(trainer)
        >>> trainer.save_model()
        >>> sorted(file.name for file in Path(folder).iterdir() if "adapter_" in file.name)
        ['adapter_config.json', 'adapter_groups.json', 'adapter_model.safetensors']
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._attached = False

    def attach(self, trainer: "Trainer") -> "AdapterCallback":
        """Put the callback on a Trainer.

        Args:
            trainer: A Trainer of a model that has adapters, before it trains.

        Returns:
            The callback itself.

        Raises:
            ValueError: The model has no adapter of that name, or several act; or the Trainer shards the model (FSDP,
                DeepSpeed), whose checkpoints are those of the whole model.
        """
        model: Any = trainer.model
        self.name = acting(model, self.name)
        _check(trainer)
        hooked: Any = trainer
        save, load = trainer._save, trainer._load_from_checkpoint

        def save_adapter(output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
            with _writes_adapter(hooked.model, self.name):
                save(output_dir, state_dict)

        def load_adapter(resume_from_checkpoint: str, model: Any = None) -> None:
            if holds_adapter(resume_from_checkpoint):
                put_back(hooked.model, str(self.name), resume_from_checkpoint)
            else:
                load(resume_from_checkpoint, model)  # a checkpoint of the whole model, or an error that says so

        def load_best() -> None:
            put_back(hooked.model, str(self.name), str(hooked.state.best_model_checkpoint))

        hooked._save = save_adapter
        hooked._load_from_checkpoint = load_adapter
        hooked._load_best_model = load_best
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._attached = True
        return self

    def on_train_begin(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse to train where the checkpoints would be the Trainer's own."""
        if not self._attached:
            raise ValueError(
                "AdapterCallback was given to a Trainer but not attached, so whole models would be saved; "
                "call callback.attach(trainer) before trainer.train()"
            )


def save_into(model: Any, name: str, folder: str | os.PathLike[str]) -> None:
    """Write an adapter's files into a folder that may hold other files, which stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-") as beside:
        adapters.save(model, Path(beside) / "files", name=name)
        for file in (Path(beside) / "files").iterdir():
            file.replace(folder / file.name)
    write_groups(model, name, folder)


@contextmanager
def _writes_adapter(model: Any, name: str | None) -> Iterator[None]:
    """The model's `save_pretrained` writes the adapter, for the length of a `with` block."""

    def save_pretrained(folder: str, *args: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        if is_main_process:
            save_into(model, str(name), folder)

    model.save_pretrained = save_pretrained
    try:
        yield
    finally:
        del model.save_pretrained


def acting(model: Any, name: str | None) -> str:
    """The name of the adapter to train: the one given, or the only one that acts."""
    known = names(model)
    if name is None:
        acting = list(dict.fromkeys(each for place in places(model).values() for each in place.active))
        if len(acting) != 1:
            said = f"{', '.join(acting)} act" if acting else "no adapter acts"
            raise ValueError(
                f"model: {said} on it; call eckart.adapt or eckart.activate first, or say AdapterCallback(name)"
            )
        return acting[0]
    if name not in known:
        raise ValueError(f"name: the model has no adapter {name!r}; it has {', '.join(known) or 'none'}")
    return name


def _check(trainer: "Trainer") -> None:
    if not isinstance(trainer.model, PreTrainedModel):
        raise ValueError(
            f"trainer: its model is a {type(trainer.model).__name__}, whose weights a Trainer saves without asking it; "
            "give it a transformers model"
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "trainer: it shards the model, so its checkpoints are those of the whole model; leave this callback out, "
            "and save the adapter when training is done (eckart.save)"
        )
