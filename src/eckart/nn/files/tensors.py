"""One safetensors file: its header alone, one tensor (or one slice of a stack) at a time, and writing it whole.

The format is 8 bytes with the header's length, the header as JSON, then the raw little-endian values. A tensor is read
with one seek and one read into its own memory, so no mapping of the file stays alive and nothing else is touched.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from eckart.nn.files.atomic import atomic_write

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit

# What a file that is not safetensors begins with, and what to do with it.
IMPOSTORS = {
    b"PK\x03\x04": "is a PyTorch pickle; {pickle}",
    b"\x80": "is a pickle; {pickle}",
    b"GGUF": "is a GGUF file; load it with eckart.lm.load",
    b"version ": "is a Git LFS pointer without its content; run `git lfs pull` in its repository",
    b"<": "is a web page, not the file that was asked for; download it again",
}
PICKLE_REMEDY = (
    "eckart reads no pickles, since opening one can run code. Convert it once: "
    "`from safetensors.torch import save_file; save_file(torch.load('{file}', weights_only=True), '{safe}')`"
)


class TensorInfo(NamedTuple):
    """A tensor in a file, known from the header alone."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: a packed or newer type that torch cannot hold
    file: Path
    bytes: int
    start: int  # where its values begin in the file, bytes


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read which tensors a safetensors file holds, checking that they are all there.

    Args:
        file: A safetensors file.

    Returns:
        Name → TensorInfo, in the order of the values in the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, corrupt or something else (a pickle, a GGUF file, …); the message has the remedy.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_safetensors(file, {"head.weight": torch.ones(2, 3, dtype=torch.bfloat16)})
        >>> info = read_header(file)["head.weight"]
        >>> info.shape, info.dtype, info.bytes
        ((2, 3), torch.bfloat16, 12)
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    size = file.stat().st_size
    with file.open("rb") as handle:
        first = handle.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or 8 + length > size or length > LONGEST_HEADER:
            raise ValueError(_not_safetensors(file, first, size))
        text = handle.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        infos = {name: _info(file, 8 + length, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is corrupt: its header cannot be read ({error}); download or write it again"
        ) from None
    infos = dict(sorted(infos.items(), key=lambda item: item[1].start))
    _check_layout(file, infos, 8 + length, size)
    return infos


def read_tensor(info: TensorInfo, index: int | None = None) -> Tensor:
    """Read one tensor, or one slice along its first dimension, into memory of its own.

    Args:
        info: What `read_header` said of it.
        index: Which slice of a stack (0 ≤ index < shape[0]); None reads the whole.

    Returns:
        The tensor as stored, on the CPU.

    Raises:
        IndexError: `index` is outside the stack.
        ValueError: torch has no type for it, or the file is shorter than when its header was read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_safetensors(file, {"experts": torch.arange(12.0).reshape(3, 2, 2)})
        >>> read_tensor(read_header(file)["experts"], index=2).tolist()
        [[8.0, 9.0], [10.0, 11.0]]
    """
    if info.dtype is None:
        raise ValueError(
            f"{info.file}: a tensor of shape {info.shape} has a type that torch cannot hold; dequantise it first"
        )
    shape, start = info.shape, info.start
    if index is not None:
        if not shape or not 0 <= index < shape[0]:
            raise IndexError(f"index: {index} is outside a tensor of shape {shape} in {info.file}")
        shape = shape[1:]
        start += index * (info.bytes // info.shape[0])
    tensor = torch.empty(shape, dtype=info.dtype)
    if tensor.numel() == 0:
        return tensor
    view = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    with info.file.open("rb") as handle:
        handle.seek(start)
        if handle.readinto(view) < len(view):
            raise ValueError(f"{info.file} became shorter while it was read; download or write it again")
    return tensor


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    force: bool = False,
) -> None:
    """Write tensors as one safetensors file, atomically.

    Args:
        path: The file to make.
        tensors: Name → tensor, on any device. Tensors that share memory are written as copies of their own.
        metadata: Strings to keep in the header.
        force: Replace a file that is already there.

    Raises:
        FileExistsError: `path` exists and `force` is false.
        TypeError: A value that is not a dense tensor.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "factors.safetensors"
        >>> W = torch.eye(2)
        >>> save_safetensors(file, {"B": W, "A": W.T})
        >>> {name: info.shape for name, info in read_header(file).items()}
        {'A': (2, 2), 'B': (2, 2)}
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise TypeError(f"tensors[{name!r}] is {type(tensor).__name__}; only dense tensors can be written")
    with atomic_write(path, force=force) as beside:
        beside.touch()
        permissions = (
            beside.stat().st_mode
        )  # the user's usual ones; safetensors would leave the file to its owner alone
        save_file(_apart(tensors), beside, metadata={"format": "pt", **(metadata or {})})
        beside.chmod(permissions)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as the format demands."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        values = tensor.detach().contiguous()
        shared = values.untyped_storage().data_ptr() in seen or values.untyped_storage().nbytes() > values.nbytes
        apart[name] = values.clone() if shared else values
        seen.add(values.untyped_storage().data_ptr())
    return apart


def _not_safetensors(file: Path, first: bytes, size: int) -> str:
    for magic, told in IMPOSTORS.items():
        if first.startswith(magic):
            return f"{file} " + told.format(pickle=pickle_remedy(file))
    if len(first) < 8 or int.from_bytes(first, "little") <= LONGEST_HEADER:
        return f"{file} is truncated: its {size} bytes do not hold the header; download or write it again"
    return f"{file} is not a safetensors file, or is corrupt; download or write it again"


def pickle_remedy(file: Path) -> str:
    """What to tell someone who brings a pickle."""
    return PICKLE_REMEDY.format(file=file, safe=file.with_suffix(".safetensors"))


def _info(file: Path, base: int, entry: dict) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    dtype = DTYPES.get(entry["dtype"])
    info = TensorInfo(shape, dtype, file, end - begin, base + begin)
    if dtype is not None and torch.Size(shape).numel() * dtype.itemsize != info.bytes:
        raise ValueError(f"shape {shape} of {entry['dtype']} does not fill {info.bytes} bytes")
    return info


def _check_layout(file: Path, infos: dict[str, TensorInfo], start: int, size: int) -> None:
    """The values must follow one another from the header to the file's end."""
    for name, info in infos.items():
        if info.start != start or info.bytes < 0:
            raise ValueError(f"{file} is corrupt: the values of {name!r} are out of place; download or write it again")
        start += info.bytes
    if size < start:
        raise ValueError(f"{file} is truncated: {size} bytes of {start}; download or write it again")
    if size > start:
        raise ValueError(f"{file} is corrupt: {size - start} bytes follow its last tensor; download or write it again")
