"""A tiny training with low-rank states, alone or as one of two; run by test_training.

python two_training.py FOLDER          torchrun --nproc-per-node 2 two_training.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from two_processes import data, model

from eckart.lm import Trained, train
from eckart.lm.run_folder import processes

RUN = {"steps": 8, "save_every": 2, "lr": 1e-2, "packed": False, "rank": 3, "gap": 3}


def trained(folder: Path, **options: object) -> Trained:
    """A run of a fresh model."""
    return train(model(), None, data(), out=folder, **{**RUN, **options})  # type: ignore[arg-type]


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    trained(place / "plain", batch=4 // processes())
    trained(place / "whole", batch=4 // processes(), powersgd=24)  # of 24 × 40 nothing is left out
    trained(place / "thin", batch=4 // processes(), powersgd=1)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads at times abort a process that ends by itself
