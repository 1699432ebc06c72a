"""The house's rules, enforced: imports point down, areas do not import each other, only linalg factorises."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "eckart"
AREAS = ("spectra", "adapters", "optim", "compression", "regularizers", "theory")
LAYERS = {"linalg": 0, "nn": 1, **dict.fromkeys(AREAS, 2), "lm": 3, "report": 3, "claims": 4, "verbs": 4, "cli": 5}
FACTORISATIONS = {
    "svd", "svdvals", "svd_lowrank", "pca_lowrank", "eig", "eigh", "eigvals", "eigvalsh", "lobpcg", "qr", "geqrf",
    "ormqr", "cholesky", "cholesky_ex", "cholesky_solve", "lu", "lu_factor", "lu_factor_ex", "lu_solve", "ldl_factor",
    "lstsq", "solve", "solve_ex", "solve_triangular", "inv", "inv_ex", "pinv", "pinverse", "matrix_rank",
    "householder_product",
}  # fmt: skip
THIRD_PARTY = {
    "linalg": {"torch"},
    "nn": {"torch", "numpy", "safetensors"},
    **{area: {"torch", "numpy", "safetensors"} for area in AREAS},
}


def _files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def _part(path: Path) -> str:
    """The layer that a file belongs to: the first name below `eckart`."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Every imported module of a file, absolute, function-local imports included, type-checking ones left out."""
    tree = ast.parse(path.read_text())
    package = ["eckart", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "eckart" else [module]


def _violations(path: Path) -> Iterator[str]:
    here = _part(path)
    if here == "__init__":
        return
    for module in _imports(path):
        top, *rest = module.split(".")
        if top == "eckart" and rest:
            there = rest[0]
            if there == here or there == "__version__":
                continue
            if there not in LAYERS or LAYERS[there] >= LAYERS[here]:
                yield f"{path.relative_to(ROOT)} imports {module}"
        elif here in THIRD_PARTY and top not in THIRD_PARTY[here] | set(sys.stdlib_module_names) | {"eckart"}:
            yield f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    assert list(_violations(path)) == []


@pytest.mark.parametrize(
    "path", [p for p in _files() if _part(p) != "linalg"], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_only_linalg_factorises(path: Path) -> None:
    calls = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in FACTORISATIONS
        and ast.unparse(node.value) in ("torch", "torch.linalg", "np.linalg", "numpy.linalg")
    }
    aliases = [m for m in _imports(path) if m.startswith(("torch.linalg", "numpy.linalg", "scipy"))]
    assert not calls
    assert not aliases


def test_the_import_rule_sees_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "spectra" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("def f():\n    from eckart.adapters import lora\n    import pandas\n    from ..report import html\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert len(list(_violations(bad))) == 3


def test_every_file_opens_with_a_docstring_and_is_short() -> None:
    for path in _files():
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path} has no module docstring"
        assert len(text.splitlines()) <= 250, f"{path} is long: give its second idea a file of its own"


def test_importing_eckart_loads_no_heavy_library() -> None:
    code = (
        "import sys, eckart; "
        "heavy = {'transformers', 'matplotlib', 'pandas', 'typer', 'rich', 'jinja2', 'datasets', 'safetensors'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_measuring_a_model_loads_no_heavy_library() -> None:
    code = (
        "import sys, torch, eckart; eckart.measure(torch.nn.Sequential(torch.nn.Linear(4, 4))).rows(); "
        "print(sorted({'transformers', 'matplotlib', 'pandas', 'typer', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
