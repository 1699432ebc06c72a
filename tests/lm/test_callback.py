"""A real Trainer logs the scalars of a recorder, to its history and to its trackers."""

import pytest
import torch
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from eckart.lm import SpectraCallback


class Recorder:
    """Says what it was asked for."""

    def __init__(self):
        self.steps = []

    def step(self, t):
        self.steps.append(t)

    def scalars(self):
        return {"spectra/effective_rank": 10.0 + self.steps[-1]}


class Tracker(TrainerCallback):
    """Keeps what a tracker would send away."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append({"step": state.global_step, **logs})


def _trainer(tiny_model, folder, callbacks, report_to="none", steps=7):
    model = LlamaForCausalLM(tiny_model.config)
    rows = [{"input_ids": torch.arange(1, 9), "labels": torch.arange(1, 9)}] * 16
    arguments = TrainingArguments(
        folder, max_steps=steps, logging_steps=2, per_device_train_batch_size=2, report_to=report_to, use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)


def _logged(entries):
    return {entry["step"]: entry["spectra/effective_rank"] for entry in entries if "spectra/effective_rank" in entry}


def test_the_scalars_stand_in_the_history_at_the_step_they_were_recorded(tiny_model, tmp_path):
    recorder = Recorder()
    trainer = _trainer(tiny_model, tmp_path, [SpectraCallback(recorder, every=3)])
    trainer.train()
    assert recorder.steps == [3, 6, 7]
    assert _logged(trainer.state.log_history) == {3: 13.0, 6: 16.0, 7: 17.0}
    assert all("loss" in entry for entry in trainer.state.log_history[:-1])
    assert {2, 4, 6} <= {entry["step"] for entry in trainer.state.log_history}


def test_an_attached_callback_reaches_the_trackers_that_were_there_before(tiny_model, tmp_path):
    tracker, recorder = Tracker(), Recorder()
    callback = SpectraCallback(recorder, every=3)
    trainer = _trainer(tiny_model, tmp_path, [tracker, callback])
    assert callback.attach(trainer) is callback
    trainer.train()
    assert _logged(tracker.seen) == _logged(trainer.state.log_history) == {3: 13.0, 6: 16.0, 7: 17.0}
    assert recorder.steps == [3, 6, 7]  # once each, though it was in the list already


def test_a_callback_that_is_not_attached_reaches_those_after_it_and_warns_of_the_trackers_before(tiny_model, tmp_path):
    tracker, callback = Tracker(), SpectraCallback(Recorder(), every=3)
    trainer = _trainer(tiny_model, tmp_path, [callback, tracker])
    trainer.args.report_to = ["tensorboard"]
    with pytest.warns(UserWarning, match=r"trackers \(tensorboard\).*callback.attach"):
        trainer.train()
    assert _logged(tracker.seen) == {3: 13.0, 6: 16.0, 7: 17.0}


def test_every_below_one_is_refused():
    with pytest.raises(ValueError, match="every: 0"):
        SpectraCallback(Recorder(), every=0)
