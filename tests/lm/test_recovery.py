"""Recovery: the held-out loss falls or everything stays as it was; sizes, layers and the rest of the model stay."""

import copy

import pytest
import torch
from compressible import model, sentence, tokenizer

import eckart.compression as compression
from eckart.compression.allocations.trying import mean_loss
from eckart.lm import calibration_data, recover
from eckart.lm.compressed.opened_factors import opened
from eckart.nn import FactoredLinear, PivotedLinear, replace
from eckart.nn.quantized_layer import QuantizedLinear
from eckart.nn.summed import SumLinear


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sequences of the language that the model knows."""
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text(sentence(4000, seed=5))
    return calibration_data(tokenizer(), file, sequences=12, length=64, held_out=3, batch=2)


@pytest.fixture
def pair(data):
    """The dense model and a compressed copy that has lost much."""
    dense = model()
    small = copy.deepcopy(dense)
    compression.compress(small, data.batches, keep=0.4, method="svd")
    return dense, small


def _mixed(small):
    """One layer of every kind that can be opened."""
    mlp = small.model.layers[0].mlp
    linear = model().model.layers[0].mlp
    replace(small, "model.layers.0.mlp.up_proj", PivotedLinear.from_linear(linear.up_proj, rank=5))
    rest = QuantizedLinear.from_linear(torch.nn.Linear(48, 32, bias=False))
    replace(small, "model.layers.0.mlp.down_proj", SumLinear(FactoredLinear.from_linear(linear.down_proj, 5), rest))
    return mlp


@pytest.mark.parametrize("how", ["blocks", "lora"])
def test_the_held_out_loss_falls_and_nothing_but_compressed_layers_moves(how, data, pair):
    dense, small = pair
    _mixed(small)
    before, shapes = mean_loss(small, data.held_out), {n: v.shape for n, v in small.state_dict().items()}
    old = copy.deepcopy(small.state_dict())
    classes = [type(module) for module in small.modules()]
    options = {"steps": 12, "every": 6, "lr": 1e-2} if how == "lora" else {"passes": 2, "lr": 1e-2}
    found = recover(small, how, data, dense=dense, **options)
    assert found.before == pytest.approx(before)
    assert found.after == pytest.approx(mean_loss(small, data.held_out))
    assert found.after < found.before - 0.05
    assert {n: v.shape for n, v in small.state_dict().items()} == shapes
    assert [type(module) for module in small.modules()] == classes
    moved = {name for name, value in small.state_dict().items() if not torch.equal(value, old[name])}
    assert moved
    assert {name.rsplit(".", 1)[-1] for name in moved} <= {"A", "B", "P", "C"}
    assert all(p.requires_grad for p in small.parameters())
    assert "768 tokens of" in found.fitted_on
    assert found.measured_on == "192 held-out tokens"
    assert found.to_json()["summary"].startswith(how)


def test_next_tokens_are_learned_where_there_is_no_dense_model(data, pair):
    _, small = pair
    found = recover(small, "lora", data, steps=12, every=6, lr=1e-2)
    assert found.after < found.before - 0.05
    assert [row["step"] for row in found.history][:2] == [0, 6]


@pytest.mark.parametrize("how", ["blocks", "lora"])
def test_recovery_that_gains_nothing_leaves_every_bit_as_it_was(how, data, pair):
    dense, small = pair
    old = copy.deepcopy(small.state_dict())
    options = {"steps": 4, "every": 1, "patience": 2, "lr": 3.0} if how == "lora" else {"passes": 1, "lr": 3.0}
    found = recover(small, how, data, dense=dense, **options)
    assert found.after == found.before
    assert "was undone" in found.notes[0]
    assert all(torch.equal(value, old[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize("how", ["blocks", "lora"])
def test_an_error_on_the_way_gives_the_model_back(how, data, pair):
    dense, small = pair
    old = copy.deepcopy(small.state_dict())

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(small, how, data, dense=dense, progress=stop)
    assert all(torch.equal(value, old[name]) for name, value in small.state_dict().items())
    assert all(p.requires_grad for p in small.parameters())


def test_blocks_are_closer_to_the_dense_ones_on_held_out_text(data, pair):
    dense, small = pair
    found = recover(small, "blocks", data, dense=dense, passes=2, lr=1e-2)
    assert [row["block"] for row in found.history] == [f"model.layers.{i}" for i in range(3)]
    assert all(row["after"] <= row["before"] for row in found.history)


def test_opened_layers_compute_what_the_closed_ones_do(data, pair):
    _, small = pair
    _mixed(small)
    names = [f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")]
    ids = data.held_out[0]["input_ids"]
    with torch.no_grad():
        closed = small(input_ids=ids).logits
        with opened(small, names) as found:
            torch.testing.assert_close(small(input_ids=ids).logits, closed)
        assert len(found) == 6
        assert torch.equal(small(input_ids=ids).logits, closed)


def test_a_basis_that_layers_share_is_left_to_all_of_them(pair):
    _, small = pair
    attention = small.model.layers[0].self_attn
    attention.k_proj.A = attention.q_proj.A = torch.nn.Parameter(attention.q_proj.A[:2].detach().clone())
    for each in (attention.k_proj, attention.q_proj):
        each.B, each.rank = torch.nn.Parameter(each.B[:, :2].detach().clone()), 2
    with opened(small, ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]) as found:
        assert found == ["model.layers.0.self_attn.q_proj.outer", "model.layers.0.self_attn.k_proj.outer"]
    assert attention.k_proj.A is attention.q_proj.A


def test_what_cannot_be_recovered_is_refused(data, pair):
    dense, small = pair
    for given, options, said in (
        (small, {"how": "magic"}, "how: 'magic'"),
        (small, {"how": "blocks"}, "dense: blocks are fitted to the dense"),
        (dense, {"how": "lora"}, "it has no compressed layers"),
        (copy.deepcopy(small).bfloat16(), {"how": "lora"}, "bfloat16, whose rounding"),
        (small, {"how": "lora", "names": ["model.layers.9"]}, "model.layers.9 are no layers"),
        (small, {"how": "lora", "steps": 0}, "steps: 0"),
        (small, {"how": "blocks", "dense": dense, "lr": -1}, "lr: -1"),
    ):
        with pytest.raises(ValueError, match=said):
            recover(given, data=data, **options)
    with pytest.raises(RuntimeError, match="the loss is no number"):
        recover(small, "lora", data, lr=1e30, steps=5)
