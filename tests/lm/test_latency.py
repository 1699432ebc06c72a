"""Speeds: both phases of every model in one interleaved run, and ratios to the first."""

import copy

import pytest
import torch
from compressible import model

import eckart.compression as compression
from eckart.lm import bench, quantized
from eckart.lm.judging.speeds import speeds_of
from eckart.nn import FactoredLinear
from eckart.nn.quantized_layer import QuantizedLinear


@pytest.fixture
def small():
    """A compressed model."""
    made = model()
    compression.compress(made, keep=0.5, method="svd")
    return made


def test_models_take_turns_in_every_round_and_the_first_is_what_ratios_are_to(monkeypatch):
    called = []
    first, second = model(), model()
    for name, each in (("first", first), ("second", second)):
        each.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: called.append((name, kwargs["input_ids"].shape[1])),
            with_kwargs=True,
        )
    found = bench({"first": first, "second": second}, prompt=8, new=3, batch=2, rounds=2)
    one = [[(name, 8)] + [(name, 1)] * 3 for name in ("first", "second")]
    assert called == [*one[0], *one[1], *one[1], *one[0], *one[0], *one[1]]
    assert [(each.model, each.phase, each.tokens) for each in found.speeds] == [
        ("first", "prefill", 16), ("second", "prefill", 16), ("first", "decode", 6), ("second", "decode", 6),
    ]  # fmt: skip
    assert found.speeds[0].ratio == found.speeds[2].ratio == 1
    assert found.rows()[1]["quartiles"][0] <= found.rows()[1]["per_second"] <= found.rows()[1]["quartiles"][1]
    assert "decode" in str(found)


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    taken = {"a": [(1.0, 1.0), (4.0, 1.0), (9.0, 1.0)], "b": [(2.0, 1.0), (2.0, 1.0), (3.0, 1.0)]}
    models = {name: torch.nn.Linear(2, 2) for name in taken}
    found = {(each.model, each.phase): each for each in speeds_of(models, taken, (12, 1))}
    assert found["b", "prefill"].ratio == 2.0  # of 0.5, 2 and 3
    assert found["b", "prefill"].per_second == 6.0
    assert found["b", "prefill"].bytes == 24


def test_decoding_with_the_cache_gives_what_one_pass_gives():
    one, seen = model(), []
    one.register_forward_hook(lambda module, args, output: seen.append(output.logits))
    bench({"one": one}, prompt=5, new=3, rounds=1)
    ids = torch.randint(32, (1, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model()(input_ids=ids).logits
    torch.testing.assert_close(torch.cat(seen[:4], 1), whole, atol=1e-4, rtol=1e-4)


def test_a_model_of_fewer_neurons_alone_is_compared_with_its_dense_form():
    made = model()
    batch = {"input_ids": torch.arange(1, 25).view(2, 12)}
    compression.compress(made, [batch], keep=0.6, method="modegpt", targets="*mlp*")
    assert {each.model for each in bench(made, prompt=4, new=1, rounds=1).speeds} == {"dense", "compressed"}


def test_a_compressed_model_alone_is_compared_with_its_own_dense_form(small):
    found = bench(small, prompt=4, new=2, rounds=1)
    assert [each.model for each in found.speeds] == ["dense", "compressed"] * 2
    assert found.speeds[0].bytes > found.speeds[1].bytes
    assert any(type(module) is FactoredLinear for module in small.modules())


def test_one_dense_model_has_no_ratio():
    found = bench(model(), prompt=4, new=2, rounds=1)
    assert [each.ratio for each in found.speeds] == [None, None]
    assert "×" not in str(found)


def test_a_quantised_copy_has_few_bits_in_every_layer_but_the_head():
    dense = model()
    copied = quantized(dense, bits=4)
    kinds = [type(module) for name, module in copied.named_modules() if name.endswith("_proj")]
    assert kinds == [QuantizedLinear] * 21
    assert type(copied.lm_head) is torch.nn.Linear
    assert not any(type(module) is QuantizedLinear for module in dense.modules())
    bench({"dense": dense, "int4": copied}, prompt=4, new=2, rounds=1)


def test_what_cannot_be_measured_is_refused(small):
    for models, options, said in (
        ({}, {}, "models: none"),
        (small, {"new": 0}, "new: 0"),
        (small, {"prompt": 250, "new": 10}, "250 \\+ 10 tokens, but dense takes at most 256"),
        ({"a": small, "b": copy.deepcopy(small).to("meta")}, {}, "they are on cpu, meta"),
    ):
        with pytest.raises(ValueError, match=said):
            bench(models, **options)
