"""Files and folders that appear whole or not at all: written beside their place, then renamed into it.

A reader never sees half a file, and a run that is interrupted leaves what was there before. Nothing that exists is
replaced unless the caller says `force` (`--force` on the command line).
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Give a path to write to, which becomes the file `path` when the block ends without an error.

    Args:
        path: The file to make. Missing parent folders are made.
        force: Replace a file that is already there.

    Returns:
        (through `with`) A fresh path in the same folder with the same suffix, removed if the block raises.

    Raises:
        FileExistsError: `path` exists and `force` is false, or `path` is a folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_write(folder / "page.html") as beside:
        ...     _ = beside.write_text("whole")
        ...     print((folder / "page.html").exists())
        False
        >>> (folder / "page.html").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise FileExistsError(f"path: {path} is a folder, and a file is to be written there; name a file inside it")
    if target.exists() and not force:
        raise FileExistsError(f"path: {path} already exists; choose another path, or pass force=True (--force)")
    with _parents(target):
        beside = _beside(target)
        try:
            yield beside
            _flush(beside)
            beside.replace(target)
            _flush(target.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, force: bool = False, mark: str | None = None) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes the folder `path` when the block ends without an error.

    Args:
        path: The folder to make. Missing parent folders are made; an empty folder may be there already.
        force: Replace a folder that is already there, and all the files in it.
        mark: The name of a file by which a folder of this kind is known ("profile.json"): `force` replaces only a
            folder that holds it and no folders, so that a slip of the hand cannot cost other work. None: no folder.

    Returns:
        (through `with`) A fresh folder beside `path`, removed with its contents if the block raises.

    Raises:
        FileExistsError: `path` is a file, or a folder that is not empty and `force` is false or that lacks the mark.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "profile"
        >>> with atomic_directory(place) as beside:
        ...     _ = (beside / "profile.json").write_text("{}")
        >>> [file.name for file in place.iterdir()]
        ['profile.json']
        >>> with atomic_directory(place):
        ...     pass  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileExistsError: path: ...profile already exists and is not empty; choose another ...
    """
    target = Path(path).resolve()
    require_directory(path, force=force, mark=mark)
    with _parents(target):
        beside = _beside(target)
        beside.mkdir()
        try:
            yield beside
            for each in (*beside.rglob("*"), beside):
                _flush(each)
            _swap(beside, target)
            _flush(target.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any, *, force: bool = False) -> None:
    """Write a value as indented JSON, atomically.

    Args:
        path: The file to make.
        value: What `json` can write. NaN and infinity are refused, since JSON has no word for them.
        force: Replace a file that is already there.

    Raises:
        FileExistsError: `path` exists and `force` is false.
        ValueError: A NaN or an infinity in `value`.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "ranks.json"
        >>> write_json(place, {"layers.0.q_proj": 16})
        >>> read_json(place)
        {'layers.0.q_proj': 16}
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, force=force) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file, naming it where it cannot be read.

    Args:
        path: The file.

    Returns:
        The value that it holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON; the message names the file, the line and what was expected.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "ranks.json"
        >>> _ = place.write_text("{oops")
        >>> read_json(place)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...ranks.json is not valid JSON (line 1: Expecting property name enclosed in double quotes); ...
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}: {error.msg}"
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8 text"
    raise ValueError(f"{path} is not valid JSON ({reason}); write or download it again")


def _beside(target: Path) -> Path:
    """A name in the same folder (so that the rename stays on one disk) with the suffix that savers go by."""
    return target.with_name(f".{target.stem}-{secrets.token_hex(6)}{target.suffix}")


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the missing folders above `target`, and take them away again if the block raises."""
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # another run may have put something there since
                folder.rmdir()
        raise


def _flush(path: Path) -> None:
    """Have a file's bytes, or a folder's entries, on the disk, or a crash could leave an empty file under the name.

    Folders are flushed where the system can (Windows opens none, and keeps their entries itself).
    """
    if path.is_dir():
        with contextlib.suppress(OSError):
            _sync(path)
    elif path.is_file():
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_directory(path: str | os.PathLike[str], *, force: bool = False, mark: str | None = None) -> None:
    """Fail before long work where `atomic_directory` could not make its folder afterwards.

    Args:
        path: The folder to make.
        force: Replace a folder that is already there.
        mark: See `atomic_directory`.

    Raises:
        FileExistsError: `path` is a file, or a folder that is not empty and `force` is false or that lacks the mark.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> require_directory(place / "model", mark="config.json")
        >>> _ = (place / "notes.txt").write_text("mine")
        >>> require_directory(place, force=True, mark="config.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileExistsError: path: ... holds other files and no config.json, so force does not replace it; choose ...
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"path: {path} is a file, and a folder is to be made there; choose another path")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise FileExistsError(
            f"path: {path} already exists and is not empty; choose another path, or pass force=True (--force)"
        )
    folders = sorted(entry.name for entry in target.iterdir() if entry.is_dir())
    if folders:
        raise FileExistsError(
            f"path: {path} holds folders ({', '.join(folders[:3])}), which force does not delete; choose another path"
        )
    if mark is None or not (target / mark).is_file():
        raise FileExistsError(
            f"path: {path} holds other files and no {mark or 'mark of its kind'}, so force does not replace it; "
            "choose another path"
        )


def _swap(beside: Path, target: Path) -> None:
    """Rename `beside` to `target`, putting what was there back if that fails."""
    if not target.exists():
        beside.rename(target)
        return
    aside = _beside(target)
    target.rename(aside)
    try:
        beside.rename(target)
    except BaseException:  # an interrupt too must not leave the place empty
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
