"""Adapters in two processes give the losses of one: copied (DDP), and sharded by block and by layer (FSDP2).

What is saved from there is the whole adapter, which the workers check.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "distributed.py"
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")


def losses(mode: str, folder: Path) -> tuple[list[float], str]:
    """The losses of three steps, and how the first layer says that it is computed."""
    world = 1 if mode == "single" else 2
    command = [sys.executable, str(WORKER), mode]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder / mode)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs[0][1][-3000:]
    *numbers, told = outputs[0][0].strip().splitlines()
    return [float(number) for number in numbers], told


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses("single", tmp_path_factory.mktemp("single"))[0]


@pytest.mark.parametrize("mode", ["ddp", "fsdp", "fsdp-layers"])
def test_two_processes_give_the_losses_of_one_and_say_how_they_compute(
    mode: str, single: list[float], tmp_path: Path
) -> None:
    got, told = losses(mode, tmp_path)
    assert got == pytest.approx(single, abs=2e-5)
    assert ("grouped with 0.k" in told) == (mode != "fsdp-layers"), told
    assert ("computed apart" in told) == (mode == "fsdp-layers"), told
