"""What processes send to make a step: the collectives of every row, counted and compared with the documentation."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_processes import together
from optim_scenes import GAP, SHAPES, STACKS, STEPS, options

from eckart.optim import METHODS

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
PAGE = (Path(__file__).parents[2] / "docs" / "distributed-training.md").read_text()
TABLE = {row[1]: [cell.strip() for cell in row[2].split("|")] for row in re.finditer(r"\| `(\S+)` \|(.*)\|\n", PAGE)}
FINITE = ("allreduce", 1)  # the first message of each step on a CPU: whether gradients are finite
FIRST, ORDINARY, REFRESH = 0, 1, 2  # steps
PADDED = [(p + p % 2, q) for p, q in SHAPES]  # parts are gathered at the size of the largest


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first of two processes sent."""
    return together(tmp_path_factory.mktemp("two"), 2, "rows", "stacks", "gathers")[0]


def documented(formula: str, rank: int) -> int:
    """The numbers of all matrices."""
    return sum(eval(formula.replace("·", "*"), {"p": p, "q": q, "r": rank}) for p, q in PADDED)


def sent(messages: list[tuple[str, int]]) -> int:
    assert messages[0] == FINITE
    return sum(size for _, size in messages[1:])


def test_the_table_has_every_row() -> None:
    assert set(TABLE) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_sends_what_the_documentation_says(method: str, told: dict[str, Any]) -> None:
    traffic, rank = told["rows"][method]["traffic"], options(method)["rank"]
    assert GAP == REFRESH
    *formulas, messages = TABLE[method]
    for step, formula in zip((ORDINARY, REFRESH, FIRST), formulas, strict=True):
        assert sent(traffic[step]) == documented(formula, rank), f"step {step}"
    a_matrix = len(SHAPES)
    count = {"1 + one a matrix": 1 + a_matrix, "one a matrix": a_matrix, "two a matrix": 2 * a_matrix}
    assert len(traffic[ORDINARY]) - 1 == (count[messages] if messages in count else int(messages))
    assert len(traffic) == STEPS


@pytest.mark.parametrize(
    "method", ["galore", "galore-8bit", "q-galore", "fira", "apollo", "apollo-mini", "golore", "frugal"]
)
def test_the_usual_rows_send_no_matrix_in_an_ordinary_step(method: str, told: dict[str, Any]) -> None:
    traffic = told["rows"][method]["traffic"]
    for step in range(ORDINARY, STEPS, GAP):
        assert len(traffic[step]) <= 2  # finite, and one packed message of norms
        assert sent(traffic[step]) <= 3 * len(SHAPES)


@pytest.mark.parametrize("projector", ["svd", "range"])
def test_projectors_that_need_the_whole_gradient_gather_it_at_a_refresh(projector: str, told: dict[str, Any]) -> None:
    traffic = told["gathers"][projector]
    assert [size for name, size in traffic[REFRESH] if name.startswith("all_gather")] == [p * q for p, q in PADDED]
    assert sent(traffic[ORDINARY]) == 0


@pytest.mark.parametrize("name", [name for name, (_, dim) in STACKS.items() if dim == 0])
@pytest.mark.parametrize("method", METHODS)
def test_a_stack_that_is_cut_along_its_members_sends_scalars(name: str, method: str, told: dict[str, Any]) -> None:
    for messages in told["stacks"][f"{name} {method}"]["traffic"]:
        assert sent(messages) <= (3 if method == "q-galore" else 1)
