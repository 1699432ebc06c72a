"""Matrices shared out between processes are trained as in one: FSDP2, HSDP, DDP, tensor parallelism, stacks."""

from typing import Any

import pytest
import torch
from optim_processes import together
from optim_scenes import (
    PARALLEL,
    SHAPES,
    SHOWN,
    STACKS,
    alone,
    learn,
    losses_of,
    net,
    options,
    start,
    two_layers,
)
from torch import Tensor

from eckart.optim import METHODS, LowRankOptimizer
from eckart.optim.step.view import is_left

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
ROUNDING = 2e-6  # weights up to 3 in float32, some steps
FEW_BITS = tuple(name for name, row in METHODS.items() if row.options()["moments"] == "8bit")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(tmp_path_factory.mktemp("two"), 2, "rows", "loops", "tensor_parallel", "stacks", "refusals")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(tmp_path_factory.mktemp("four"), 4, "rows", "hybrid", "refusals")


def same(method: str, got: list[Tensor], expected: list[Tensor], begun: list[Tensor]) -> None:
    """Equal to float32's rounding; of moments in 8 bits, which are rounded at random, to a tenth of the way."""
    for a, b, W in zip(got, expected, begun, strict=True):
        way = float((b - W).abs().max())
        assert float((a - b).abs().max()) <= (0.1 * way if method in FEW_BITS else ROUNDING)
        assert way > 100 * ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_of_fsdp_make_the_weights_of_one(method: str, two: list[dict[str, Any]]) -> None:
    told = [each["rows"][method] for each in two]
    assert [each["here"] for each in told] == [[7, 4, 3], [6, 4, 2]]  # uneven
    assert told[0]["sides"] == [0, 0, 0]  # the side that is not shared out, smaller or not
    same(method, told[0]["weights"], alone(method), start(SHAPES))


@pytest.mark.parametrize("method", SHOWN)
def test_a_process_without_rows_takes_part(method: str, four: list[dict[str, Any]]) -> None:
    assert [each["rows"][method]["here"][2] for each in four] == [2, 2, 1, 0]
    same(method, four[0]["rows"][method]["weights"], alone(method), start(SHAPES))


@pytest.mark.parametrize("method", METHODS)
def test_every_process_has_the_same_basis_to_the_bit(method: str, two: list[dict[str, Any]]) -> None:
    first, second = (each["rows"][method]["bases"] for each in two)
    assert len(first) == (0 if METHODS[method].options()["basis"] == "seed" else len(SHAPES))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("method", SHOWN)
def test_replicas_of_hsdp_are_the_same_to_the_bit_also_in_bfloat16(method: str, four: list[dict[str, Any]]) -> None:
    told = [each["hybrid"][method] for each in four]
    same(method, told[0]["weights"], alone(method), start(SHAPES))
    for kind in ("here", "bfloat16"):
        for replica, other in ((0, 2), (1, 3)):
            assert all(torch.equal(a, b) for a, b in zip(told[replica][kind], told[other][kind], strict=True))


@pytest.mark.parametrize("method", SHOWN)
def test_parameters_on_different_meshes_share_an_optimizer(method: str, four: list[dict[str, Any]]) -> None:
    same(method, four[0]["hybrid"][method]["mixed"], alone(method), start(SHAPES))


@pytest.mark.parametrize("method", SHOWN)
def test_a_training_loop_in_two_processes_has_the_losses_of_one(method: str, two: list[dict[str, Any]]) -> None:
    fsdp, ddp = (two[0]["loops"][method][kind] for kind in ("fsdp", "ddp"))
    abs_ = 1e-3 if method in FEW_BITS else 2e-5
    side = {} if METHODS[method].options()["side"] else {"side": "right"}
    assert fsdp == pytest.approx([float(loss) for loss in learn(net(), method, **side)], abs=abs_)
    assert ddp == pytest.approx([float(loss) for loss in learn(net(), method)], abs=abs_)


@pytest.mark.parametrize("method", SHOWN)
def test_replicas_of_ddp_are_the_same_to_the_bit_also_in_bfloat16(method: str, two: list[dict[str, Any]]) -> None:
    first, second = (each["loops"][method] for each in two)
    for kind in ("replica", "bfloat16"):
        assert all(torch.equal(a, b) for a, b in zip(first[kind], second[kind], strict=True))


@pytest.mark.parametrize("method", PARALLEL)
def test_tensor_parallelism_puts_the_basis_on_the_side_that_is_whole(method: str, two: list[dict[str, Any]]) -> None:
    told = two[0]["tensor_parallel"][method]
    assert told["sides"] == [0, 1]  # rows of the first weight are shared out, columns of the second
    model = two_layers()
    groups = [{"params": [p]} for p in model.parameters()]
    groups[0]["side"], groups[2]["side"] = "right", "left"  # type: ignore[assignment]
    losses = [loss.item() for loss in losses_of(model, LowRankOptimizer(groups, **options(method)))]
    assert told["losses"] == pytest.approx(losses, abs=2e-5)


def test_a_gradient_that_is_a_sum_to_be_taken_is_taken(two: list[dict[str, Any]]) -> None:
    for each in two:  # the processes hold −½ and 1½ of (1, −1, 0)
        assert torch.allclose(each["tensor_parallel"]["partial"], torch.tensor([0.9, 1.1, 1.0]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STACKS)
def test_stacks_of_experts_are_trained_as_in_one_process(name: str, method: str, two: list[dict[str, Any]]) -> None:
    shape, dim = STACKS[name]
    told = [each["stacks"][f"{name} {method}"] for each in two]
    side = "left" if dim == 2 else "right"
    same(method, told[0]["weights"], alone(method, (shape,), side, stack=True), start((shape,)))
    assert told[0]["gap"] == told[1]["gap"]  # agreed on, also by a process that holds no member


def test_a_side_that_is_shared_out_is_refused_with_the_remedy(two: list[dict[str, Any]]) -> None:
    for each in two:
        for side in ("left", "smaller"):
            message = each["refusals"][side]
            assert f"side: {side!r}" in message
            assert "dimension 0" in message
            assert "Use side='right', or None" in message
    with pytest.raises(ValueError, match=r"dimension 1.*Use side='left', or None"):
        is_left((4, 8), "right", 1, False, "W")


def test_a_gradient_that_is_no_number_in_one_process_is_told_by_all_and_nothing_changes(
    two: list[dict[str, Any]], four: list[dict[str, Any]]
) -> None:
    for told in (two, four):
        messages = {each["refusals"]["nan"] for each in told}
        assert len(messages) == 1
        assert "parameter 1: 1 of 104 entries of its gradient are NaN or infinite on one process" in messages.pop()
        assert all(each["refusals"]["same"] for each in told)


def test_two_axes_of_sharding_and_kernels_that_are_cut_within_are_refused(four: list[dict[str, Any]]) -> None:
    for each in four:
        for kind in ("both", "strided"):
            assert "shared out along 2 axes of its mesh" in each["refusals"][kind]
            assert "fully_shard" in each["refusals"][kind]
        assert "only dimension 0 can be shared out" in each["refusals"]["kernel"]
