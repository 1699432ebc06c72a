"""Adapters and whole models on disk: merge one into the other, or extract it from two.

Paper: none.
"""

import os
from pathlib import Path
from typing import Any

import torch

from eckart.adapters import Extraction, Merged, extract, merge, write_pairs
from eckart.adapters import load as load_adapter
from eckart.lm.load import LanguageModel, load
from eckart.lm.pretrained import MARK, write_pretrained
from eckart.lm.resolve import checkpoint_path
from eckart.lm.text import batches, read_text
from eckart.nn import Patterns, Progress
from eckart.nn.files import atomic_directory, read_json

CALIBRATION = 16  # sequences


def merge_adapter(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    tolerance: float = 0.01,
    stochastic: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Merge an adapter into its model, and save that as a model of its own.

    Args:
        model: What `load` takes.
        adapter: The adapter's folder.
        out: Folder to save the merged model and its tokenizer to.
        dtype: Of the merged model; None is that of the model on disk.
        tolerance: How large a share of any matrix's change rounding may take.
        stochastic: Round stochastically (bfloat16 only): the mean change is kept where rounding to nearest loses it.
        force: Replace a model that is already there.
        progress: Called as progress(done, total, label).

    Returns:
        Merged: what rounding took of each change.

    Raises:
        FileExistsError: `out` holds something and `force` is false.
        ValueError: The adapter is of another model, or rounding takes more than the tolerance; nothing is written then.
    """
    with atomic_directory(out, force=force, mark=MARK) as beside:  # first, so that nothing is computed in vain
        loaded = load(model, progress=progress)
        load_adapter(adapter, into=loaded.model)
        wanted = dtype or stored_dtype(model)
        rounding: Any = "stochastic" if stochastic else "nearest"
        merged = merge(loaded.model, dtype=wanted, tolerance=tolerance, rounding=rounding, progress=progress)
        _save(loaded, wanted, beside)
    return merged


def extract_adapter(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    targets: Patterns = None,
    exclude: Patterns = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """The adapter that makes one model on disk nearly into another, written to a folder.

    Args:
        base: The model before tuning, as `load` takes it.
        tuned: The model after it.
        out: Folder for the adapter.
        rank: Of each matrix; or
        energy: the share of each change to hold.
        calibrate: Text whose activations weigh the change: a file, or "pydoc".
        targets: Patterns of the matrices.
        exclude: Patterns of those to leave out.
        force: Replace an adapter that is already there.
        progress: Called as progress(done, total, label).

    Returns:
        Extraction: how much of each change is held, and what else differs.

    Raises:
        FileExistsError: `out` holds something and `force` is false.
        ValueError: Not one of rank and energy; models that do not match or do not differ.
    """
    with atomic_directory(out, force=force, mark="adapter_config.json") as beside:
        before, after = load(base, progress=progress), load(tuned, progress=progress)
        seen = None
        if calibrate is not None:
            seen = batches(after.tokenizer, read_text(calibrate), length=512, count=CALIBRATION)
        found = extract(
            before.model, after.model, rank=rank, energy=energy, targets=targets, exclude=exclude, batches=seen,
            progress=progress,
        )  # fmt: skip
        if not found.pairs:
            raise ValueError(f"tuned: {tuned} has the same matrices as {base}; there is nothing to extract")
        write_pairs(Path(beside) / "files", found.pairs, before.model)
        for file in (Path(beside) / "files").iterdir():
            file.rename(Path(beside) / file.name)
        (Path(beside) / "files").rmdir()
    return found


def stored_dtype(model: str | os.PathLike[str]) -> torch.dtype:
    """The type of a model's weights on disk, as its config says; float32 where it does not.

    Example:
        >>> stored_dtype("minilm")
        torch.float32
    """
    folder = checkpoint_path(model)
    config = read_json(folder / MARK) if folder is not None and (folder / MARK).is_file() else {}
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    known = getattr(torch, name, torch.float32)
    return known if isinstance(known, torch.dtype) else torch.float32


def _save(loaded: LanguageModel, dtype: torch.dtype, folder: Path) -> None:
    model: Any = loaded.model.to(dtype)  # type: ignore[arg-type]
    model.config.dtype = dtype
    write_pretrained(model, loaded.tokenizer, folder)
