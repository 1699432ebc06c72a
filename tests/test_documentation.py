"""What the documentation shows is what happens: README's first block, the examples, the public docstrings."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eckart import compression, optim
from eckart.optim import checking
from eckart.optim.inner import Inner

ROOT = Path(__file__).parents[1]
MODULES = (
    "eckart", "eckart.adapters", "eckart.adapters.optimizers", "eckart.compression", "eckart.linalg", "eckart.nn",
    "eckart.nn.files", "eckart.optim", "eckart.spectra", "eckart.theory", "eckart.regularizers", "eckart.lm",
    "eckart.report", "eckart.claims",
)  # fmt: skip


def _block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found, f"no {language} block"
    return found[1]


def test_the_first_block_of_the_readme_prints_what_it_says() -> None:
    text = (ROOT / "README.md").read_text()
    code = _block(text, "python")
    assert text[: text.index(code)].count("\n") + code.count("\n") <= 26, "the first result comes too late"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = os.times()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == _block(text, "text")
    after = os.times()  # of a processor, which does not hang on what else is running
    assert sum(after[2:4]) - sum(before[2:4]) < 10


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run_and_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 100
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) > 2


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_says_what_it_takes_gives_and_shows_an_example(module: str) -> None:
    lacking = []
    for name in importlib.import_module(module).__all__:
        thing = getattr(importlib.import_module(module), name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue  # a constant or the name of a type
        text = thing.__doc__ or ""
        automatic = text.startswith(f"{name}(")  # what a dataclass or a NamedTuple writes by itself
        taught = isinstance(thing, type) or any(part in text for part in ("Args:", "Returns:", "Example"))
        if not text.strip() or automatic or not taught:
            lacking.append(name)
    assert lacking == []


def test_pages_of_the_docs_are_in_the_navigation_and_links_between_them_lead_somewhere() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation
        for target in re.findall(r"\]\(([\w./-]+\.md)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in re.findall(r"\]\(([\w./-]+\.md)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), f"README.md links to {target}"


def test_names_in_the_linalg_page_are_exported() -> None:
    init = ast.parse((ROOT / "src/eckart/linalg/__init__.py").read_text())
    imported = {alias.name for node in init.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(importlib.import_module("eckart.linalg").__all__)


def test_the_map_names_what_exists_and_every_claim() -> None:
    text = (ROOT / "docs" / "map.md").read_text()
    known = {name for module in MODULES for name in importlib.import_module(module).__all__}
    known |= {f"Profile.{name}" for name in dir(importlib.import_module("eckart").Profile)}
    for shown in re.findall(r"`([^`]+)`", text):
        if shown.startswith("examples/"):
            assert (ROOT / shown).is_file(), shown
        elif not shown.startswith("eckart claims"):
            name = shown.partition("(")[0]
            assert name in known or name.split(".")[-1] in known, shown
    assert set(re.findall(r"\b[TCD]\d\b", text)) == set(importlib.import_module("eckart.claims").names())


def test_every_figure_of_the_docs_is_there() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name} shows {target}"


def test_the_table_of_methods_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "adapting.md").read_text()
    for name, method in importlib.import_module("eckart.adapters").METHODS.items():
        wanted = " and ".join(each.replace("_", " ") for each in method.wanted)
        assert f"| `{name}` | {method.says} | {wanted} | {method.peft} | {method.source} |" in text, name


def test_the_table_of_ways_to_compress_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "compressing.md").read_text()
    for name, method in compression.METHODS.items():
        looks = " and ".join(each.replace("_", " ") for each in method.metric.wanted)
        row = f"| `{name}` | {method.says} | {looks} | {method.allocation} | {method.inputs} | {method.source} |"
        assert row in text, row


def test_the_tables_of_training_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    for name, method in optim.METHODS.items():
        axes = (method.projector, method.inner, method.residual, method.transport, method.limiter)
        assert f"| `{name}` | {method.says} | {' | '.join(axes)} | {method.source} |" in text, name
    for axis in ("projector", "inner", "residual", "transport", "limiter"):
        table = re.search(rf"\| `{axis}` \|.*?\n\n", text, re.DOTALL)
        assert table, axis
        named = re.findall(r"^\| `([\w-]+)` \|", table[0], re.MULTILINE)
        assert named[1:] == [*getattr(optim, "INNER" if axis == "inner" else f"{axis.upper()}S")], axis


@pytest.mark.parametrize("name", optim.METHODS)
def test_states_take_the_bytes_that_the_guide_says(name: str) -> None:
    method, (m, n, r) = optim.METHODS[name], (128, 256, 64)
    text = (ROOT / "docs" / "training.md").read_text()
    line = re.search(rf"^\| `{re.escape(name)}` \| ([\dmnr+/ ]+) \| (.*) \|$", text, re.MULTILINE)
    assert line, name
    settings = [
        f"{key}={value:.3g}" if type(value) is float else f"{key}={value}" for key, value in method.settings.items()
    ]
    assert line[2].split(" | ") == [str(method.rank), f"{method.lr:g}", ", ".join(settings)]
    weight = torch.nn.Parameter(torch.zeros(m, n))
    weight.grad = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    optimizer = optim.LowRankOptimizer([weight], rank=r, method=name)
    optimizer.step()
    kept = sum(t.nbytes for t in optimizer.state[weight].values() if t.numel() > 1)
    assert kept == eval(re.sub(r"(?<=[\dmnr])(?=[mnr])", "*", line[1]), {"m": m, "n": n, "r": r})


def test_the_snippets_of_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 144, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = torch.randint(64, (2, 4, 16), generator=torch.Generator().manual_seed(0))
    given = {
        "model": LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)),  # type: ignore[arg-type]
        "batches": [{"input_ids": each, "labels": each} for each in tokens],
        "scheduler": SimpleNamespace(step=lambda: None),
        "Trainer": lambda model, args, **given: given,
        "args": None,
        "data": None,
    }
    text = (ROOT / "docs" / "training.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        exec(block, given)
    assert isinstance(given["trainer"]["optimizers"][0], optim.LowRankOptimizer)  # type: ignore[index]


def test_the_optimizer_added_as_an_example_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "adding-a-method.md").read_text().partition("## An optimizer")[2]
    row, rule, other = (textwrap.dedent(each) for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    defined: dict[str, Any] = {}
    exec(rule, defined)
    monkeypatch.setitem(optim.INNER, "rowwise", Inner(defined["rowwise"], {"exp_avg": "full", "row": "row"}))
    monkeypatch.setitem(checking.CHOICES, "inner", tuple(optim.INNER))
    for name, method in eval(f"{{{row}{other}}}", {"Method": optim.Method}).items():
        monkeypatch.setitem(optim.METHODS, name, method)
        weight = torch.nn.Parameter(torch.ones(6, 4))
        optimizer = optim.LowRankOptimizer([weight], lr=0.1, rank=2, method=name, gap=5)
        for _ in range(100):
            weight.grad = weight.detach().clone()  # of ‖W‖²/2
            optimizer.step()
        assert weight.norm() < 0.5, name  # 4.9 at first
