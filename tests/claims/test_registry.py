"""The registry names every claim there is, and every claim says what it must."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eckart import claims
from eckart.claims.registry import CLAIMS, load, names, select

FOLDER = Path(claims.__file__).parent
FILES = [
    path
    for half in ("dynamics", "convergence", "data")
    for path in (FOLDER / half).glob("*.py")
    if re.match(r"[a-z]\d+_", path.name)
]


def test_every_file_of_a_claim_is_in_the_registry_and_the_other_way_round() -> None:
    assert sorted(CLAIMS.values()) == sorted(f"{path.parent.name}.{path.stem}" for path in FILES)


def test_the_order_is_that_of_the_overview() -> None:
    assert names() == sorted(names(), key=lambda id: ("TCD".index(id[0]), int(id[1:])))


@pytest.mark.parametrize("id", names())
def test_a_claim_says_what_it_claims_where_it_is_from_and_what_it_takes(id: str) -> None:
    claim = load(id)
    assert claim.id == id
    assert CLAIMS[id].rpartition(".")[2].startswith(f"{id.lower()}_")
    assert CLAIMS[id].startswith(f"{claim.half}.")
    assert claim.half == {"T": "dynamics", "C": "convergence", "D": "data"}[id[0]]
    assert re.search(r"\d{4}\.\d{4,5}", claim.source), f"source of {id} has no arXiv id: {claim.source}"
    assert claim.title == claim.title.strip(" .")
    assert len(claim.title) <= 70
    assert claim.statement.endswith(".")
    assert not re.search(r"[.!?] +[A-ZΑ-Ω]", claim.statement), f"statement of {id} is several sentences"
    assert len(claim.statement) <= 320
    parameters = list(inspect.signature(claim.run).parameters.values())
    assert [p.name for p in parameters[:3]] == ["seed", "size", "progress"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[2:])
    assert claim.resumable == ("folder" in inspect.signature(claim.run).parameters)


def test_ids_are_taken_in_any_case_and_order_each_once() -> None:
    assert select(["d1", "T2", "t2", "C1"]) == ["T2", "C1", "D1"]
    assert select(["All"]) == names()


@pytest.mark.parametrize(
    ("ids", "words"), [(["T99"], "no claim 'T99'; closest: "), (["all", "X"], "no claim 'X'"), ([], "empty")]
)
def test_an_unknown_id_is_an_error_that_names_the_closest(ids: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        select(ids)


def test_naming_claims_imports_none_of_them_and_no_heavy_library() -> None:
    code = (
        "import sys, eckart; eckart.claims.names(); "
        "print(sorted({'matplotlib', 'sklearn', 'transformers', 'jinja2', 'rich'} & set(sys.modules)), "
        "[m for m in sys.modules if m.startswith('eckart.claims.d')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] []"


def test_loading_all_claims_imports_no_heavy_library() -> None:
    code = (
        "import sys; from eckart.claims import load, names; [load(id) for id in names()]; "
        "print(sorted({'matplotlib', 'sklearn', 'transformers', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
