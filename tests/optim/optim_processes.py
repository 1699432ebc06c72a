"""Processes that hold one model together; run by test_optim_sharded and test_optim_traffic through `together`.

python optim_processes.py FOLDER WORLD SCENE...     forks WORLD processes, each of which plays the scenes
"""

import importlib
import os
import signal
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

LOCAL = ("wait_tensor", "_wrap_tensor_autograd")  # these send nothing


class Traffic(TorchDispatchMode):
    """Counts what collectives carry: for each message its name and how many numbers its result has."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._opname
        if func.namespace in ("c10d", "_c10d_functional") and name not in LOCAL:
            self.messages.append((name.rstrip("_"), sum(_numbers(args[0] if name.endswith("_") else out))))
        return out


def _numbers(t: Any) -> list[int]:
    if isinstance(t, Tensor):
        return [t.numel()]
    return [n for each in t for n in _numbers(each)] if isinstance(t, list | tuple) else []


def together(folder: Path, world: int, *scenes: str) -> list[dict[str, Any]]:
    """Play scenes in some processes; gives what each of them tells."""
    command = [sys.executable, str(Path(__file__)), str(folder), str(world), *scenes]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _scene(name: str) -> Any:
    """A function of optim_scenes, or of another module that the name gives."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module or "optim_scenes"), function)


def _play(folder: Path, rank: int, world: int, scenes: list[str]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meet'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    told = {scene: _scene(scene)(rank, world) for scene in scenes}
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _child(*what: Any) -> int:
    child = os.fork()
    if not child:
        try:
            _play(*what)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def main(folder: Path, world: int, scenes: list[str]) -> int:
    """One import of torch for all: they are forked before it has started a thread. Where one fails, the others end."""
    for scene in scenes:
        _scene(scene)
    (folder / "meet").unlink(missing_ok=True)
    children = {_child(folder, rank, world, scenes) for rank in range(world)}
    worst = 0
    while children:
        child, status = os.wait()
        children.discard(child)
        if status and not worst:
            worst = 1
            for other in children:
                os.kill(other, signal.SIGKILL)
    return worst


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
