"""Distributed checkpoints: saved on 2 processes and loaded on 1 and on 4, and the reverse; every method goes on."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim_checkpoints import BEFORE, MOVES, SOME
from optim_models import Zoo, batches, differences, optimizer_for, train
from optim_processes import together
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from eckart.optim import METHODS

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes saw."""
    told = together(tmp_path_factory.mktemp("reshard"), 4, "optim_checkpoints.reshard")
    return [each["optim_checkpoints.reshard"] for each in told]


@pytest.mark.parametrize(("source", "size"), MOVES)
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_goes_on_among_other_numbers_of_processes(
    method: str, source: int, size: int, played: list[dict[str, Any]]
) -> None:
    saved, loaded = played[0][f"save {source} {source}"], played[0][f"load {source} {size}"]
    mine = [key for key in saved["state"] if key.startswith(f"{method}/")]
    assert mine
    for key in mine:
        assert torch.equal(loaded["state"][key], saved["state"][key]), f"{key} is not what was saved"
        assert loaded["state"][key].dtype == saved["state"][key].dtype
    # 8-bit moments are rounded at random, and each process draws for its own rows
    rounding = 2e-3 if METHODS[method].options()["moments"] == "8bit" else 2e-5
    assert loaded["losses"][method] == pytest.approx(saved["losses"][method], rel=rounding)
    for other in played[1:size]:
        assert other[f"load {source} {size}"]["losses"] == loaded["losses"], "processes differ"


def test_one_whole_state_dict_goes_to_all_processes_and_a_piece_is_refused(tmp_path: Path) -> None:
    for told in together(tmp_path, 2, "optim_checkpoints.from_one_file"):
        went_on, again = told["optim_checkpoints.from_one_file"]["losses"]
        assert list(went_on) == list(SOME)
        assert went_on == again
        error = told["optim_checkpoints.from_one_file"]["error"]
        assert "is in one piece, and experts.up_proj here is shared out over 2 processes" in error
        assert "torch.distributed.checkpoint" in error


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_of_one_process_is_the_same_bit_for_bit_by_names_of_parameters(
    method: str, flat: bool, tmp_path: Path
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    first = Zoo()
    optimizer = optimizer_for(first, method)
    train(first, optimizer, batches()[:BEFORE])
    saved = {"optimizer": get_optimizer_state_dict(first, optimizer, options=options)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    again = copy.deepcopy(first)
    other = optimizer_for(again, method)
    read: dict[str, Any] = {"optimizer": get_optimizer_state_dict(again, other, options=options)}
    dcp.load(read, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(again, other, read["optimizer"], options=options)
    assert train(again, other, batches()) == train(first, optimizer, batches())
    assert differences(first, again) == []
