"""nn.SelectedLinear: the dense map with some rows and columns, an ordinary module that its spec makes again."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.nn.selected import SelectedLinear

PLACES = {
    "rows": (torch.tensor([4, 0, 3]), None),
    "columns": (None, torch.tensor([1, 2, 6, 5])),
    "both": (torch.tensor([2, 5]), torch.tensor([0, 6])),
    "all": (None, None),
    "none of the rows": (torch.tensor([], dtype=torch.long), None),
    "none of the columns": (None, torch.tensor([], dtype=torch.long)),
}


def _layer(places: str, generator: torch.Generator, bias: bool = True, dtype=torch.float64) -> SelectedLinear:
    rows, columns = PLACES[places]
    shape = (6 if rows is None else len(rows), 7 if columns is None else len(columns))
    core = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    b = torch.randn(6, dtype=torch.float64, generator=generator).to(dtype) if bias else None
    return SelectedLinear(core, 7, 6, rows, columns, b)


def _dense(layer: SelectedLinear, places: str) -> Tensor:
    rows, columns = PLACES[places]
    W = torch.zeros(6, 7, dtype=layer.core.dtype)
    rows = torch.arange(6) if rows is None else rows
    columns = torch.arange(7) if columns is None else columns
    W[rows[:, None], columns] = layer.core.detach()
    return W


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("places", PLACES)
def test_forward_weight_and_to_dense_are_the_matrix_with_zeros_elsewhere(places, bias, generator):
    layer = _layer(places, generator, bias)
    W, x = _dense(layer, places), torch.randn(2, 3, 7, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(layer(x), F.linear(x, W, layer.bias), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.weight, W)
    torch.testing.assert_close(layer.to_dense()(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("places", PLACES)
def test_its_spec_and_state_make_it_again_also_from_the_meta_device(places, generator):
    layer = _layer(places, generator, dtype=torch.bfloat16)
    spec = json.loads(json.dumps(layer.spec()))
    for device in ("cpu", "meta"):
        again = SelectedLinear.from_spec(spec, torch.bfloat16, device)
        again.load_state_dict(layer.state_dict(), assign=device == "meta")
        x = torch.randn(4, 7, generator=generator).bfloat16()
        assert torch.equal(again(x), layer(x)), device
        assert again.spec() == spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 9}, "rows is 9"),
        ({"columns": True}, "columns is True"),
        ({"bias": 1}, "bias is 1"),
        ({"in_features": 0}, "in_features is 0"),
        ({"kind": "factored"}, "kind is 'factored'"),
        ({"more": 1}, "more is unknown"),
    ],
)
def test_a_damaged_spec_is_named(change, said, generator):
    spec = _layer("both", generator).spec() | change
    with pytest.raises(ValueError, match=said):
        SelectedLinear.from_spec(spec)


@pytest.mark.parametrize("rows", [[0, 0], [0, 6], [-1, 2], [0], [0, 1, 2]])
def test_positions_that_are_not_distinct_ones_of_the_outputs_are_named(rows):
    with pytest.raises(ValueError, match="rows must be 2 distinct positions below 6"):
        SelectedLinear(torch.ones(2, 7), 7, 6, torch.tensor(rows))


def test_a_core_that_is_smaller_needs_positions():
    with pytest.raises(ValueError, match="columns: the core has 5 of 7; say which"):
        SelectedLinear(torch.ones(6, 5), 7, 6)


@pytest.mark.parametrize("places", ["rows", "columns", "both"])
def test_gradients_are_those_of_the_dense_map(places, generator):
    layer = _layer(places, generator)
    x = torch.randn(3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    given = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    found = torch.autograd.grad((layer(x) * given).sum(), [x, layer.core, layer.bias])
    expected = torch.autograd.grad((F.linear(x, layer.weight, layer.bias) * given).sum(), [x, layer.core, layer.bias])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_it_copies_and_counts_its_bytes_with_the_positions(generator):
    layer = _layer("both", generator, dtype=torch.float16)
    assert layer.core.numel() == 4
    assert layer.weight_bytes == 4 * 2 + 6 * 4 + 2 * 4
    twin = copy.deepcopy(layer)
    assert twin.core is not layer.core
    assert torch.equal(twin.weight, layer.weight)
    assert isinstance(twin.to_dense(), nn.Linear)
