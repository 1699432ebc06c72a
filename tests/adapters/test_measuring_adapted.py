"""An adapted model is measured as the model that it is: the names of before, and the weights that act."""

import copy
import warnings

import pytest
import torch
from torch import nn

import eckart
from eckart.adapters import disabled
from eckart.nn import matrices

MODEL = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3))


def adapted(method="lora", **options):
    torch.manual_seed(0)
    model = copy.deepcopy(MODEL)
    eckart.adapt(model, method, rank=2, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model


def numbers(profile):
    return {(row["name"], row["of"]): row["norm"] for row in profile.rows()}


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapted_model_measures_as_the_merged_one_does(method):
    model = adapted(method)
    batches = [torch.randn(8, 12)] if method == "lora" else None  # DoRA's row norms multiply with the weight too
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = numbers(eckart.measure(model, base=MODEL, batches=batches, targets=["0", "2", "4"]))
    eckart.merge(model)
    merged = numbers(eckart.measure(model, base=MODEL, batches=batches))
    assert seen == pytest.approx(merged, rel=1e-5)
    assert {of for _, of in seen} == {"weights", "updates"} | ({"activations"} if batches else set())


def test_what_the_adapter_changed_has_its_rank_and_is_nothing_where_it_is_disabled():
    model = adapted()
    assert {row["numerical_rank"] for row in eckart.measure(model, base=MODEL, of="updates").rows()} == {2}
    with disabled(model):
        assert set(numbers(eckart.measure(model, base=MODEL, of="updates")).values()) == {0.0}


def test_a_module_trained_whole_is_the_copy_that_acts():
    model = adapted(modules_to_save=("4",))
    assert [matrix.name for matrix in matrices(model)] == ["0", "2", "4"]
    rows = eckart.measure(model, base=MODEL, of="updates", targets="4").rows()
    expected = torch.linalg.matrix_norm(model[4].weight - MODEL[4].weight).detach()
    assert rows[0]["norm"] == pytest.approx(float(expected))
    with disabled(model):
        assert eckart.measure(model, base=MODEL, of="updates", targets="4").rows()[0]["norm"] == 0.0


def test_a_recorder_sees_an_adapter_train():
    model = adapted()
    recorder = eckart.Recorder(model)
    with torch.no_grad():
        model[0].adapters["default"].B.mul_(2.0)
    recorder.step(1)
    assert {row["name"]: row["norm"] > 0 for row in recorder.rows()} == {"0": True, "2": False, "4": False}


def test_ranks_suggested_for_an_adapted_model_adapt_another():
    ranks = eckart.measure(adapted()).suggest_ranks(0.5)
    model = copy.deepcopy(MODEL)
    eckart.adapt(model, rank=ranks)
    assert set(ranks) == {"0", "2", "4"}


def test_a_head_tied_to_its_embedding_is_a_matrix_of_its_own_once_it_is_adapted():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9, bias=False))
    model[1].weight = model[0].weight
    assert [(matrix.name, matrix.tied) for matrix in matrices(model)] == [("0", ("1",))]
    with pytest.warns(UserWarning, match="shares its weight"):
        eckart.adapt(model, rank=2, targets="1")
    assert [(matrix.name, matrix.tied) for matrix in matrices(model)] == [("0", ()), ("1", ())]
    with disabled(model):
        assert [(matrix.name, matrix.tied) for matrix in matrices(model)] == [("0", ("1",))]


def test_a_wrong_base_is_told_in_a_few_words(tmp_path):
    other = nn.Sequential(*[nn.Linear(5, 5) for _ in range(2)])
    deep = nn.Sequential(*[nn.Linear(6, 6) for _ in range(9)])
    eckart.adapt(deep, rank=2)
    eckart.save(deep, tmp_path / "deep")
    with pytest.raises(ValueError, match="and 5 more") as error:
        eckart.load(tmp_path / "deep", into=other)
    assert len(str(error.value)) < 800
