"""A batch with another adapter for each row gives what each row gives alone, and so do its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import METHODS, activate, adapt
from eckart.adapters.layers.place import places
from eckart.adapters.using.mixing import mixed
from eckart.nn.batches import run_model
from families import families

ROWS = ["law", None, "code"]
THIN = [method for method, row in METHODS.items() if row.shape.thin and "original" not in row.options]


def output(model: nn.Module, batch: Any) -> Tensor:
    """The tensor that a model gives."""
    result = run_model(model, batch)
    return getattr(result, "logits", result)


def stirred(model: nn.Module, name: str, method: str, rank: int, batches: list[Any], **options: Any) -> None:
    """Put an adapter on the model whose Δ is not zero."""
    if METHODS[method].wanted:
        options |= {"batches": batches, "loss": lambda out, batch: getattr(out, "logits", out).square().mean()}
    adapt(model, method, rank=rank, name=name, **options)
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for place in places(model, name).values():
            for parameter in place.held[name].trained():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def built(family: str, methods: tuple[str, str] = ("lora", "lora"), **options: Any) -> tuple[nn.Module, Any]:
    """A model with adapters "law" of rank 2 and "code" of rank 4 on fewer matrices, and a batch of three rows."""
    model, batches = families()[family]()
    batch = batches[0][:3] if isinstance(batches[0], Tensor) else batches[0]
    if family == "vit":
        options["exclude"] = "*patch_embeddings*"
    stirred(model, "law", methods[0], 2, batches, **options)
    stirred(model, "code", methods[1], 4, batches, targets=list(places(model))[::2], bias=True)
    return model, batch


def alone(model: nn.Module, batch: Any, names: list[str | None]) -> Tensor:
    """Each row run by itself with its adapter, joined."""
    outputs = []
    for row, name in enumerate(names):
        activate(model, *([name] if name else []))
        here = slice(row, row + 1)
        one = batch[here] if isinstance(batch, Tensor) else {key: value[here] for key, value in batch.items()}
        outputs.append(output(model, one))
    return torch.cat(outputs)


@pytest.mark.parametrize("family", ["sequential", "gpt2", "llama", "bert", "vit"])
def test_each_row_gives_what_it_gives_alone(family: str) -> None:
    model, batch = built(family)
    expected = alone(model, batch, ROWS)
    with mixed(model, ROWS):
        torch.testing.assert_close(output(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", THIN)
def test_every_thin_method_can_be_mixed(method: str) -> None:
    model, batch = built("gpt2", (method, "dora"))
    expected = alone(model, batch, ROWS)
    with mixed(model, ROWS):
        torch.testing.assert_close(output(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_embeddings_are_looked_up_by_row(method: str) -> None:
    model = nn.Sequential(nn.Embedding(9, 6, padding_idx=0))
    stirred(model, "law", method, 1, [], targets="0")
    stirred(model, "code", "lora", 2, [], targets="0")
    ids = torch.tensor([[0, 3, 4], [5, 1, 0], [8, 8, 2]])
    expected = alone(model, ids, ROWS)
    with mixed(model, ROWS):
        torch.testing.assert_close(model(ids), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["sequential", "gpt2", "llama"])
def test_gradients_are_those_of_the_rows_run_alone(family: str) -> None:
    model, batch = built(family)
    factors = [p for place in places(model).values() for a in place.held.values() for p in a.trained()]
    activate(model, "law", "code")
    with mixed(model, ROWS):
        output(model, batch).square().sum().backward()
    got = [p.grad for p in factors]
    for p in factors:
        p.grad = None
    for row, name in enumerate(ROWS):
        if name:
            activate(model, name)
            here = slice(row, row + 1)
            one = batch[here] if isinstance(batch, Tensor) else {key: value[here] for key, value in batch.items()}
            output(model, one).square().sum().backward()
    for mine, p in zip(got, factors, strict=True):
        scale = p.grad.abs().max()  # type: ignore[union-attr]
        torch.testing.assert_close(mine, p.grad, atol=1e-5 * max(1.0, float(scale)), rtol=1e-4)


def test_rows_without_adapters_are_the_base_bit_for_bit() -> None:
    model, batch = built("llama")
    activate(model)
    base = output(model, batch)
    with mixed(model, [None, None, None]):
        assert torch.equal(output(model, batch), base)


def test_what_is_active_outside_does_not_act_inside_on_parameters_that_no_layer_applies() -> None:
    model, batches = families()["mixtral"]()
    base = output(model, batches[0])
    stirred(model, "law", "lora", 1, [], targets=["*experts*", "q_proj"])
    assert not torch.allclose(output(model, batches[0]), base)
    with mixed(model, [None, None, None]):
        assert torch.equal(output(model, batches[0]), base)
    assert not torch.allclose(output(model, batches[0]), base)


def test_what_is_kept_between_calls_without_gradients_follows_the_parameters() -> None:
    model, batch = built("sequential")
    with torch.no_grad(), mixed(model, ROWS):
        before = model(batch)
        assert torch.equal(model(batch), before)
        for place in places(model, "law").values():
            place.held["law"].B.mul_(2)
        after = model(batch)
    assert not torch.equal(after[0], before[0])
    torch.testing.assert_close(after, alone(model, batch, ROWS), atol=1e-5, rtol=1e-5)


def test_dropout_is_each_rows_own() -> None:
    model = nn.Sequential(nn.Linear(400, 8, bias=False))
    stirred(model, "law", "lora", 1, [], dropout=0.5)
    stirred(model, "code", "lora", 1, [])
    model.train()
    x = torch.ones(2, 400)
    expected = alone(model.eval(), x, ["law", "code"])
    with mixed(model.train(), ["law", "code"]):
        draws = torch.stack([model(x) for _ in range(500)])
    torch.testing.assert_close(draws[0, 1], expected[1], atol=1e-4, rtol=1e-4)
    assert draws[:, 0].std(0).max() > 0.01
    torch.testing.assert_close(draws[:, 0].mean(0), expected[0], atol=0.1, rtol=0.05)


def test_a_half_precision_base_takes_wider_adapters() -> None:
    model, batch = built("gpt2")
    expected = alone(model, batch, ROWS)
    model.bfloat16()
    for place in places(model).values():
        place.adapters.float()
    with mixed(model, ROWS):
        assert (output(model, batch) - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_model_is_as_before_after_the_block_and_after_an_error_in_it() -> None:
    model, batch = built("sequential")
    activate(model, "law")
    before = model(batch)
    with pytest.raises(ValueError, match="rows: 0 is called with a tensor"), mixed(model, ["law"] * 5):
        model(batch)
    assert torch.equal(model(batch), before)


def test_what_cannot_be_mixed_is_named() -> None:
    model, _ = families()["conv2d"]()
    stirred(model, "law", "lora", 1, [])
    with pytest.raises(ValueError, match="law acts on stem, conv; only linear"), mixed(model, ["law"]):
        pass
    model, _ = families()["encoder"]()
    stirred(model, "law", "lora", 1, [], targets="out_proj")
    with pytest.raises(ValueError, match=r"self_attn\.out_proj, whose weight other code reads"), mixed(model, ["law"]):
        pass
    model, _ = families()["sequential"]()
    stirred(model, "law", "lora", 1, [], modules_to_save="4")
    with pytest.raises(ValueError, match="law trained 4 whole"), mixed(model, ["law"]):
        pass
    with pytest.raises(ValueError, match="no adapter 'lwa'; closest: law"), mixed(model, ["lwa"]):
        pass
    with pytest.raises(ValueError, match="none given"), mixed(model, []):
        pass
