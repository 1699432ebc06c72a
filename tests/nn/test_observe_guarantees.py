"""What `observe` promises beside its numbers: nothing changes in the model, memory is bounded, errors are clear."""

import copy
import gc
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from eckart.nn import FactoredLinear, observe
from eckart.nn.observe import WANTED
from families import families

FAMILIES = families()


def net(dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(5, 3))


def rows(count: int = 4, batches: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 6, generator=generator) for _ in range(batches)]


def square(y: Tensor, _: Any) -> Tensor:
    return y.square().mean()


class Boom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("boom")


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = net(0.5).train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.full_like(model[3].weight, 7.0)
    if fails:
        model.append(Boom())
    before = copy.deepcopy(model.state_dict())
    required = [p.requires_grad for p in model.parameters()]
    try:
        observe(model, rows(), WANTED, loss=square)
    except RuntimeError as error:
        if not fails or str(error) != "boom":
            raise
    assert [module.training for module in model] == [True, True, False, True, True][: len(model)]
    assert [p.requires_grad for p in model.parameters()] == required
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad is None
    assert (model[3].weight.grad == 7).all()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(p._backward_hooks for p in model.parameters())


def test_dropout_is_off() -> None:
    wet, dry = (observe(net(p).train(), rows(), ["input_covariance"]) for p in (0.5, 0.0))
    assert torch.equal(wet["3"].input_second_moment, dry["3"].input_second_moment)


def test_no_graph_is_built_unless_a_gradient_is_wanted() -> None:
    modes = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return x

    model = net().append(Spy())
    observe(model, rows(batches=1), ["input_covariance"])
    with torch.no_grad():  # the caller's mode does not matter
        observe(model, rows(batches=1), ["gradient"], loss=square)
    assert modes == [False, True]


@pytest.mark.parametrize("wanted", [["output_gradient_covariance"], ["gradient"]])
def test_a_frozen_model_with_in_place_activations_gives_gradients(wanted: list[str]) -> None:
    frozen, free = (observe(net().requires_grad_(r), rows(), wanted, loss=square) for r in (False, True))
    for name, one in free.items():
        for field in ("gradient", "output_gradient_second_moment"):
            expected = getattr(one, field)
            assert expected is None or torch.equal(getattr(frozen[name], field), expected)
            assert expected is None or expected.norm() > 0


def test_batches_weigh_the_same_in_the_gradient_whatever_their_size() -> None:
    small, large = rows(2, 1)[0], rows(9, 2)[1]
    both, *each = (
        observe(net(), b, ["gradient"], loss=square)["3"].gradient for b in ([small, large], [small], [large])
    )
    torch.testing.assert_close(both, sum(each) / 2)


def test_a_weight_used_in_an_unknown_way_still_has_its_gradient() -> None:
    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,oi->bo", x, self.a.weight) @ self.a.weight + self.b.weight.T.square().mean()

    model = Einsum().double()
    (x,) = rows(batches=1)
    x = x.double()
    with pytest.warns(UserWarning, match="observe") as caught:
        seen = observe(model, [x], WANTED, loss=square)
    expected = torch.autograd.grad(square(model(x), x), [model.a.weight, model.b.weight])
    torch.testing.assert_close((seen["a"].gradient, seen["b"].gradient), expected)
    messages = [str(warning.message) for warning in caught]
    assert any("transposed" in message and message.endswith(": a") for message in messages)
    assert any("inputs left out" in message and message.endswith(": b") for message in messages)
    assert seen["a"].input_second_moment is None


def test_a_weight_multiplied_transposed_is_not_taken_for_itself() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) @ self.a.weight  # y = x Wᵀ W: only the first product reads inputs of W

    (x,) = rows(batches=1)
    with pytest.warns(UserWarning, match="at least in part.*transposed: a"):
        seen = observe(Square(), [x], ["input_covariance"])
    assert seen["a"].tokens == 4
    torch.testing.assert_close(seen["a"].input_second_moment, x.T @ x / 4)


def test_plain_products_with_the_weight_are_seen() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            W = self.a.weight
            return x @ W.T + torch.matmul(x, W.t()) + torch.mm(x, mat2=W.T) + torch.addmm(x, x, W.mT)

    seen = observe(Products(), rows(), ["input_covariance"])
    assert seen["a"].tokens == 4 * 8


def test_experts_in_one_batched_product_are_seen() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size, self.up_proj = 6, nn.Parameter(torch.randn(3, 6, 4))

        def forward(self, x: Tensor) -> Tensor:  # (N, 6)
            return torch.bmm(x.expand(3, -1, -1) * torch.arange(3.0).view(3, 1, 1), self.up_proj)

    seen = observe(nn.ModuleList([Experts()]), rows(), WANTED, forward=lambda m, x: m[0](x), loss=square)["0.up_proj"]
    x = torch.cat(rows())
    assert (seen.tokens, seen.stack_tokens.tolist()) == (24, [8, 8, 8])
    for expert in range(3):
        torch.testing.assert_close(seen.input_second_moment[expert], expert**2 * x.T @ x / 8)
    assert seen.gradient.shape == (3, 4, 6)
    assert seen.output_gradient_second_moment.shape == (3, 4, 4)


def test_gradients_are_never_alive_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    grad = torch.autograd.grad

    def spy(*args: Any, **options: Any) -> Any:
        given = grad(*args, **options)
        sizes.extend(g.untyped_storage().nbytes() for g in given if g is not None)
        return given

    monkeypatch.setattr(torch.autograd, "grad", spy)
    observe(net(), rows(batches=1), ["gradient"], loss=square)
    assert sizes == [4, 4]  # one number instead of each gradient


def test_sparse_gradients_of_an_embedding_are_summed() -> None:
    ids = torch.tensor([[0, 2, 2]])
    dense, sparse = (nn.Sequential(nn.Embedding(5, 3, sparse=s, _weight=torch.ones(5, 3))) for s in (False, True))
    one, two = (
        observe(model, [ids], ["gradient"], loss=lambda y, _: y.square().sum())["0"] for model in (dense, sparse)
    )
    assert torch.equal(one.gradient, two.gradient)
    assert one.tokens == 3


def test_it_works_inside_inference_mode() -> None:
    model, batches = net(), rows()
    expected = observe(model, batches, WANTED, loss=square)
    with torch.inference_mode():
        got = observe(model, batches, WANTED, loss=square)
    assert torch.equal(got["3"].gradient, expected["3"].gradient)
    assert torch.equal(got["3"].input_second_moment, expected["3"].input_second_moment)


def test_cross_attention_is_left_out_by_name_but_for_its_gradient() -> None:
    model = nn.MultiheadAttention(6, 2, batch_first=True)
    q, kv = torch.randn(2, 3, 6), torch.randn(2, 4, 6)
    with pytest.warns(UserWarning, match="in parts, or transposed: in_proj_weight"):
        seen = observe(model, [(q, kv, kv)], ["input_covariance", "gradient"], loss=lambda y, _: y[0].square().mean())
    assert seen["in_proj_weight"].input_second_moment is None
    assert seen["in_proj_weight"].gradient.norm() > 0
    assert seen["out_proj"].tokens == 6


def test_layers_with_computed_weights_are_observed() -> None:
    plain = net().double()
    factored = copy.deepcopy(plain)
    with torch.no_grad():
        factored[3] = FactoredLinear.from_linear(plain[3], 2)
        plain[3].weight.copy_(factored[3].weight)
    normed = copy.deepcopy(plain)
    parametrizations.weight_norm(normed[3])
    batches = [x.double() for x in rows()]
    expected = observe(plain, batches, WANTED, loss=square)["3"]
    for model in (factored, normed):
        got = observe(model.requires_grad_(False), batches, WANTED, loss=square)["3"]
        assert got.tokens == 8
        for field in ("input_second_moment", "input_norms", "gradient", "output_gradient_second_moment"):
            torch.testing.assert_close(getattr(got, field), getattr(expected, field))


def test_a_compiled_model_is_run_as_written() -> None:
    expected = observe(net(), rows(), ["input_covariance"])
    got = observe(torch.compile(net()), rows(), ["input_covariance"])
    assert torch.equal(got["_orig_mod.3"].input_second_moment, expected["3"].input_second_moment)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_summed_in_single_precision(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    batches = [torch.cat([x * 300, x]).to(dtype) for x in rows(500)]  # Σ x² overflows half precision
    seen = observe(model, batches, WANTED, loss=lambda y, _: y.float().square().mean())
    x = torch.cat(batches).double()
    torch.testing.assert_close(seen["0"].input_second_moment.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-2)
    for one in seen.values():
        for field in ("input_sum", "input_second_moment", "input_norms", "gradient", "output_gradient_second_moment"):
            assert getattr(one, field).dtype == torch.float32
        assert one.input_sample.dtype == dtype


def test_autocast_does_not_lower_the_precision_of_the_sums() -> None:
    def forward(model: nn.Module, batch: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(batch)

    seen = observe(net(), rows(), ["input_covariance"], forward=forward)
    x = torch.cat(rows())
    torch.testing.assert_close(seen["0"].input_second_moment, x.T @ x / len(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # looking at every object wakes deprecated ones
def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    def alive() -> int:
        gc.collect()
        return sum(t.untyped_storage().nbytes() for t in gc.get_objects() if isinstance(t, Tensor))

    sizes = []

    def batches() -> Iterator[Tensor]:
        for batch in range(12):
            if batch in (2, 11):
                sizes.append(alive())
            yield torch.randn(512, 6)

    observe(net(), batches(), WANTED, loss=square, sample_size=64)
    assert abs(sizes[1] - sizes[0]) < 512 * 6 * 4  # less than one batch


def test_the_sample_is_uniform_over_tokens_and_fixed_by_its_generator() -> None:
    batches = [
        torch.arange(start, start + size, dtype=torch.float32).view(-1, 1) for start, size in ((0, 30), (30, 10))
    ]
    model = nn.Sequential(nn.Linear(1, 1))
    hits = torch.zeros(40)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        sample = observe(model, batches, ["input_sample"], sample_size=8, generator=generator)["0"].input_sample
        assert len(sample.unique()) == 8
        hits[sample.flatten().long()] += 1
    # Each token is drawn with probability 1/5: 80 ± 8 times (five deviations allowed).
    assert (hits - 80).abs().max() < 40
    assert abs(hits[30:].sum() - 800) < 5 * 26
    one, two = (
        observe(model, batches, ["input_sample"], sample_size=8, generator=torch.Generator().manual_seed(3))["0"]
        for _ in range(2)
    )
    assert torch.equal(one.input_sample, two.input_sample)


def test_samples_of_different_layers_hold_the_same_tokens() -> None:
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3)).double()
    seen = observe(model, [x.double() for x in rows(50)], ["input_sample"], sample_size=9)
    torch.testing.assert_close(seen["1"].input_sample, model[0](seen["0"].input_sample).detach())


def test_progress_and_forward_are_called() -> None:
    told = []
    pairs = [(x, x.sum(1)) for x in rows()]
    seen = observe(
        net(), pairs, ["gradient"], forward=lambda model, batch: model(batch[0]),
        loss=lambda y, batch: (y[:, 0] - batch[1]).square().mean(),
        progress=lambda done, total, label: told.append((done, total, label)),
    )  # fmt: skip
    assert told == [(1, 2, "observing"), (2, 2, "observing")]
    assert seen["3"].gradient.norm() > 0


def test_mappings_of_any_kind_are_given_by_keyword() -> None:
    model, batches = FAMILIES["llama"]()
    dicts, others = (observe(model, b, ["input_norms"]) for b in (batches, [UserDict(batch) for batch in batches]))
    one, two = (seen["model.layers.0.mlp.up_proj"] for seen in (dicts, others))
    assert torch.equal(one.input_norms, two.input_norms)


class Poison(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(x.shape[-1]) == 1, self.value, x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_matrix_whose_input_is_not_finite_is_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Poison(value), nn.Linear(6, 6), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"the input of 2 has values that are not finite"):
        observe(model, rows(), ["input_covariance", "gradient"], loss=square)


def test_a_matrix_whose_gradient_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"the gradient of 1 has values that are not finite"):
        observe(model, rows(), ["gradient"], loss=lambda y, _: (y * 0).sqrt().sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"batches": iter(())}, "batches is empty"),
        ({"batches": [torch.zeros(0, 6)]}, "no rows to count in 1 batches"),
        ({"wanted": []}, "choose one or more of input_covariance"),
        ({"wanted": ["covariance"]}, r"wanted is \['covariance'\]"),
        ({"sample_size": 0}, "sample_size is 0"),
        ({"targets": "nothing"}, "matches none"),
        ({"wanted": ["gradient"]}, "a loss is needed, and the model's Tensor carries none"),
        ({"wanted": ["gradient"], "loss": lambda y, _: y}, r"shape \(4, 3\), not a scalar"),
        ({"wanted": ["gradient"], "loss": lambda y, _: y.sum() * float("nan")}, "loss is nan"),
        ({"wanted": ["gradient"], "loss": lambda y, _: y.detach().sum()}, "does not depend on any observed matrix"),
    ],
)
def test_bad_input_is_a_clear_error(arguments: dict[str, Any], message: str) -> None:
    arguments = {"batches": rows(), "wanted": ["input_norms"], **arguments}
    with pytest.raises(ValueError, match=message):
        observe(net(), **arguments)


@pytest.mark.parametrize(
    ("batches", "message"),
    [(torch.zeros(2, 6), "single Tensor"), ({"x": 1}, "single dict"), ([3], "not int")],
)
def test_batches_of_the_wrong_type_are_named(batches: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        observe(net(), batches, ["input_norms"])


def test_a_loss_of_the_wrong_type_is_named() -> None:
    with pytest.raises(TypeError, match="loss gave float"):
        observe(net(), rows(), ["gradient"], loss=lambda y, _: 1.0)


def test_matrices_that_are_not_used_are_left_out_by_name() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.side = nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.side(x)
            return self.used(x)

    with pytest.warns(UserWarning, match="observe") as caught:
        seen = observe(Partly(), rows(), WANTED, loss=square)
    messages = [str(warning.message) for warning in caught]
    assert list(seen) == ["used", "side"]
    assert any(message.startswith("observe: inputs left out") and message.endswith(": idle") for message in messages)
    assert any("gradient left out" in message and message.endswith(": idle, side") for message in messages)
    assert all(warning.filename == __file__ for warning in caught)
    with (
        pytest.warns(UserWarning, match="inputs left out"),
        pytest.raises(ValueError, match="nothing was observed of idle"),
    ):
        observe(Partly(), rows(), ["input_norms"], targets="idle")


def test_a_channel_with_a_large_mean_keeps_the_digits_of_its_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(4000, 6, generator=generator)
    X[:, 0] = 1000.3  # a constant channel
    X[:, 1] += 1000
    seen = observe(nn.Sequential(nn.Linear(6, 3)), list(X.split(500)), {"input_covariance", "input_norms"})["0"]
    centred = X.double() - X.double().mean(0)
    torch.testing.assert_close(seen.covariance.double(), centred.T @ centred / len(X), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        seen.input_second_moment.double(), X.double().T @ X.double() / len(X), rtol=1e-6, atol=1e-2
    )
    torch.testing.assert_close(seen.input_norms.double(), X.double().square().mean(0).sqrt(), rtol=1e-5, atol=0)
