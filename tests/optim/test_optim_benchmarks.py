"""The benchmarks of training: runs in the file are not done again, and contestants are what they are said to be."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks' folder as it is when one of them runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in ("train_quality", "train_step"):
        sys.modules.pop(name, None)


def test_a_run_is_one_line_and_is_not_done_again(
    scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_quality

    text, results = tmp_path / "text.txt", tmp_path / "runs.jsonl"
    text.write_text("a line that is said again and again\n" * 200)
    monkeypatch.setattr(sys, "argv", ["train_quality.py", "--data", f"t={text}", "--results", str(results),
                                      "--methods", "adamw", "fira", "--steps", "2", "--seeds", "2"])  # fmt: skip
    for name, small in (("HIDDEN", 24), ("LENGTH", 16), ("WINDOWS", 2)):
        monkeypatch.setattr(train_quality, name, small)
    train_quality.main()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    runs = Counter((line["method"], line["seed"]) for line in lines)
    for method in ("adamw", "fira"):  # three rates or more on the first seed, the best one on the second
        assert runs[method, 0] >= 3
        assert runs[method, 1] == 1
    monkeypatch.setattr(train_quality, "train", lambda *_: pytest.fail("it is there"))
    train_quality.main()
    assert len(results.read_text().splitlines()) == len(lines)


def test_all_methods_of_the_quality_benchmark_train_the_same_matrices(scripts: None) -> None:
    import train_quality

    def matrices(method: str) -> list[tuple[int, ...]]:
        groups = train_quality.optimizer_of(train_quality.llama(0), method, 1e-3).param_groups
        return [tuple(p.shape) for group in groups if group["lr"] == 1e-3 for p in group["params"]]

    assert len(matrices("adamw")) == 4 * 7
    assert all(matrices(method) == matrices("adamw") for method in ("galore", "apollo-mini", "dion"))


def test_a_timed_refresh_renews_every_basis_and_an_ordinary_step_none(scripts: None) -> None:
    import train_step

    W = torch.nn.Parameter(torch.randn(12, 8))
    W.grad = torch.randn(12, 8)
    optimizer = train_step.LowRankOptimizer([W], lr=1e-3, rank=2)

    def renewed(**how: Any) -> bool:
        train_step.timed(optimizer, **how)
        return int(optimizer.state[W]["basis_step"]) == int(optimizer.state[W]["step"])

    assert [renewed(renew=each) for each in (False, False, True, False)] == [True, False, True, False]
    assert train_step.state_bytes(optimizer) == 4 * (8 * 2 + 2 * 12 * 2)
