"""A checkpoint on disk, seen as matrices: names and shapes from the headers, then one matrix at a time.

No model code is needed, so names, shapes and orientation are those of the file. That differs from `nn.matrices` of the
loaded model in three ways: transformers' Conv1D (GPT-2) is stored as (in, out); a grouped convolution is one matrix
(out, in/groups · k); and a model that merges or renames weights as it loads has its own names in memory.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from eckart.nn.files.folder import locate_tensors
from eckart.nn.files.tensors import TensorInfo, read_tensor
from eckart.nn.patterns import Patterns, member_name, select


class CheckpointMatrix(NamedTuple):
    """One matrix of a checkpoint, or one stack of equal matrices."""

    name: str  # the key without ".weight"
    shape: tuple[int, int]  # (m, n) as stored, trailing dimensions of a convolution flattened into n
    stack: int  # 1, or the number of experts
    key: str  # what `read` takes

    def members(self) -> list[tuple[str, int | None]]:
        """Each matrix's name and the index that `read` takes: itself, or the members of a stack."""
        return [(self.name, None)] if self.stack == 1 else [(member_name(self.name, e), e) for e in range(self.stack)]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a safetensors file or folder, none of them loaded; `open_checkpoint` makes one."""

    path: Path
    infos: dict[str, TensorInfo] = field(repr=False)

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor's shape, dtype, file and size in bytes, from the headers alone."""
        return dict(self.infos)

    def matrices(self, targets: Patterns = None, exclude: Patterns = None) -> list[CheckpointMatrix]:
        """List the matrices, named as `nn.matrices` names a model's.

        Args:
            targets: Glob patterns of the names wanted (see `patterns.select`); None means all.
            exclude: Glob patterns of the names not wanted.

        Returns:
            The matrices in the order of the files. What is left out is told by `left_out`.

        Raises:
            ValueError: There are no matrices, or a pattern matches nothing.

        Example:
            >>> import tempfile, torch
            >>> from eckart.nn.files import save_safetensors
            >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
            >>> save_safetensors(file, {"conv.weight": torch.ones(8, 4, 3, 3), "conv.bias": torch.ones(8)})
            >>> open_checkpoint(file).matrices()
            [CheckpointMatrix(name='conv', shape=(8, 36), stack=1, key='conv.weight')]
        """
        found = self._all()
        if not found:
            raise ValueError(
                f"{self.path} holds no matrices: none of its {len(self.infos)} tensors is a weight of two or "
                "more dimensions in a float type"
            )
        names = select(found, targets, exclude)
        if not names:
            raise ValueError(
                f"no matrices are left of {len(found)}: exclude={exclude!r} drops all of targets={targets!r}"
            )
        return [found[name] for name in names]

    def left_out(self, targets: Patterns = None, exclude: Patterns = None) -> dict[str, str]:
        """Say which tensors of two or more dimensions are not among the matrices, key → reason.

        Raises:
            ValueError: A pattern matches nothing.

        Example:
            >>> import tempfile, torch
            >>> from eckart.nn.files import save_safetensors
            >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
            >>> save_safetensors(file, {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)})
            >>> open_checkpoint(file).left_out(targets="a")
            {'b.weight': 'not chosen by targets and exclude'}
        """
        found = self._all()
        chosen = {found[name].key for name in select(found, targets, exclude)}
        return {
            key: _reason(info) if _matrix(key, info) is None else "not chosen by targets and exclude"
            for key, info in self.infos.items()
            if len(info.shape) >= 2 and key not in chosen
        }

    def _all(self) -> dict[str, CheckpointMatrix]:
        return {m.name: m for m in (_matrix(key, info) for key, info in self.infos.items()) if m is not None}

    def read(self, key: str, index: int | None = None) -> Tensor:
        """Read one tensor, leaving nothing open.

        Args:
            key: The tensor's name in the file (`CheckpointMatrix.key`).
            index: Which matrix of a stack; None reads the whole.

        Returns:
            The tensor as stored, on the CPU: reshape to `CheckpointMatrix.shape` for a convolution's matrix.

        Raises:
            IndexError: `index` is outside the stack.
            ValueError: There is no such tensor.

        Example:
            >>> import tempfile, torch
            >>> from eckart.nn.files import save_safetensors
            >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
            >>> save_safetensors(file, {"head.weight": torch.tensor([[1.0, 2.0]])})
            >>> open_checkpoint(file).read("head.weight")
            tensor([[1., 2.]])
        """
        if key not in self.infos:
            raise ValueError(f"key: {self.path} holds no tensor {key!r}; tensors() lists what it holds")
        return read_tensor(self.infos[key], index)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """See what a checkpoint holds, reading headers only.

    Args:
        path: A .safetensors file, or a folder with model.safetensors, or with shards and their
            *.safetensors.index.json, or with a single *.safetensors file.

    Returns:
        A Checkpoint.

    Raises:
        FileNotFoundError: There is nothing at `path`, no safetensors file in the folder, or a shard is missing.
        ValueError: A file is truncated, corrupt or a pickle; the message names it and the remedy.

    Example:
        >>> import tempfile
        >>> open_checkpoint(tempfile.mkdtemp())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: path: ... is an empty folder; ...
    """
    return Checkpoint(Path(path), locate_tensors(Path(path)))


def _matrix(key: str, info: TensorInfo) -> CheckpointMatrix | None:
    """The matrix that a tensor is, judged by its name and shape, or None."""
    name = key.removesuffix(".weight")
    if len(info.shape) < 2 or 0 in info.shape or _quantised(info):
        return None
    experts = len(info.shape) == 3 and any("expert" in part or "moe" in part for part in key.split("."))
    if experts and "bias" not in key:
        return CheckpointMatrix(name, (info.shape[1], info.shape[2]), info.shape[0], key)
    if name == key and not key.endswith("in_proj_weight"):
        return None
    columns = math.prod(info.shape[1:])
    return CheckpointMatrix(name, (info.shape[0], columns), 1, key)


def _reason(info: TensorInfo) -> str:
    if _quantised(info):
        return f"stored as {info.dtype or 'a packed type'}: ids, or values that mean nothing without their scales"
    return "not named as a layer's weight: a table, a position, a bias or a buffer"


def _quantised(info: TensorInfo) -> bool:
    """Integers, packed types and 8-bit floats, which mean nothing without their scales."""
    return info.dtype is None or not info.dtype.is_floating_point or info.dtype.itemsize == 1
