"""The folder of one training run: what lies where, whether it may be written, and whether a run can go on in it.

run.json             what the run was started with        checkpoints/   checkpoint-N, the last two
adapter/ or model/   the result, when training is done     report.json    what was learned
start.safetensors    of a whole model: its weights before training, which what was learned is measured against
"""

import os
import shutil
from pathlib import Path
from typing import Any

from eckart.nn.files import read_json, write_json


class RunFolder:
    """Where one run writes.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.record = self.path / "run.json"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.before = self.path / "start.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report.json"

    def require_writable(self, *, resume: bool, force: bool) -> None:
        """Fail before the work where the run could not be written, would overwrite something, or cannot go on.

        Raises:
            FileExistsError: There is something in the folder, and neither `resume` nor `force` was asked for.
            FileNotFoundError: `resume`, and the folder holds no checkpoint.
            ValueError: A file is in the way.
        """
        blocking = next((place for place in (self.path, *self.path.resolve().parents) if place.is_file()), None)
        if blocking is not None:
            raise ValueError(f"out: {self.path} can't be written: {blocking} is a file, not a folder")
        if resume:
            self.last_checkpoint()
        elif self.path.is_dir() and any(self.path.iterdir()):
            if not force:
                raise FileExistsError(
                    f"out: {self.path} exists and is not empty; resume=True (--resume) goes on with its run, "
                    "force=True (--force) replaces it; or give another folder"
                )
            if not self.record.is_file():
                raise FileExistsError(
                    f"out: {self.path} holds other files and no run.json, so force does not replace it; "
                    "give another folder"
                )

    def last_checkpoint(self) -> Path:
        """The latest checkpoint of the run.

        Raises:
            FileNotFoundError: There is none.
        """
        found = [entry for entry in self.checkpoints.glob("checkpoint-*") if _is_whole(entry)]
        if not found or not self.record.is_file():
            raise FileNotFoundError(f"out: {self.path} holds no checkpoint to resume from; leave out --resume")
        return max(found, key=lambda entry: int(entry.name.rpartition("-")[2]))

    def start(self, settings: dict[str, Any]) -> None:
        """Make the folder and write down what the run is started with; what an earlier run left there goes."""
        for folder in (self.adapter, self.model, self.checkpoints):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.report, self.before):
            file.unlink(missing_ok=True)
        write_json(self.record, settings, force=True)

    def require_same(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What the run was started with, which must be what it is to go on with.

        Raises:
            ValueError: Something differs; the message names it.
        """
        known = read_json(self.record)
        for key, value in settings.items():
            if known.get(key) != value:
                raise ValueError(
                    f"{key}: the run in {self.path} was started with {known.get(key)!r}, and {value!r} is given now; "
                    "give the same, or start a new run in another folder"
                )
        return known


def _is_whole(checkpoint: Path) -> bool:
    """Whether a Trainer has written all of a checkpoint: its own state comes last."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return False
    return True


def first_process() -> bool:
    """Whether this process is the one that writes; torchrun starts several."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
