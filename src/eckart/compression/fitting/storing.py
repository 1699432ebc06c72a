"""Where learned tensors are kept: in memory, or in a folder, from which an interrupted run goes on where it was.

One safetensors file for each piece, and job.json, which says of what model, method and text they are. Files appear
whole or not at all, and are read only when a piece is asked for.
Paper: none.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from eckart.nn.files import read_header, read_json, read_tensor, save_safetensors, write_json

JOB = "job.json"


class Store(Protocol):
    """Key → tensors; a dict is one."""

    def __contains__(self, key: object, /) -> bool: ...

    def __getitem__(self, key: str, /) -> dict[str, Tensor]: ...

    def __setitem__(self, key: str, tensors: dict[str, Tensor], /) -> None: ...


class FolderStore:
    """Key → tensors, on disk.

    Args:
        folder: Where; made if it is not there.
        job: What the tensors belong to, as JSON.

    Raises:
        ValueError: The folder is of another job.

    Example:
        >>> import tempfile, torch
        >>> store = FolderStore(tempfile.mkdtemp(), {"method": "svd"})
        >>> store["layers.0.q_proj"] = {"spectrum": torch.ones(2)}
        >>> store["layers.0.q_proj"], "layers.1.q_proj" in store
        ({'spectrum': tensor([1., 1.])}, False)
    """

    def __init__(self, folder: str | os.PathLike[str], job: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / JOB).is_file():
            if any(self.folder.iterdir()):
                raise ValueError(f"work: {folder} holds other files; give an empty folder, or one of an earlier run")
            write_json(self.folder / JOB, job)
        elif (told := read_json(self.folder / JOB)) != job:
            differ = [key for key in job if not isinstance(told, dict) or told.get(key) != job[key]]
            raise ValueError(f"work: {folder} is of another run (other {', '.join(differ)}); give another folder")

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        if key not in self:
            raise KeyError(key)
        return {name: read_tensor(info) for name, info in read_header(self._file(key)).items()}

    def __setitem__(self, key: str, tensors: dict[str, Tensor]) -> None:
        save_safetensors(self._file(key), tensors, force=True)

    def __contains__(self, key: object) -> bool:
        return self._file(str(key)).is_file()

    def _file(self, key: str) -> Path:
        """A file name of any key: its own letters where a file may have them, and a digest, so that none meet."""
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in key)[:100]
        return self.folder / f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.safetensors"
