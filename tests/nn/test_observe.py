"""Every statistic of `observe` against brute force in float64, over all families."""

import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eckart.nn import Matrix, matrices, observe
from eckart.nn.observe import WANTED
from families import families

FAMILIES = families()


def _double(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: _double(value) for name, value in batch.items()}
    return batch.double() if batch.is_floating_point() else batch


def built(family: str) -> tuple[nn.Module, list[Any]]:
    """A family in float64."""
    model, batches = FAMILIES[family]()
    if family == "mixtral":
        model.set_experts_implementation("eager")  # torch's grouped product has no float64
    return model.double(), [_double(batch) for batch in batches]


def loss(output: Any, batch: Any) -> Tensor:
    """The model's own loss, or something that depends on all of its output."""
    if isinstance(output, Tensor):
        return (output.square() * torch.linspace(0.5, 1.5, output.shape[-1], dtype=output.dtype)).mean()
    return output.loss


def _call(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(batch)


class Capture:
    """All rows and output gradients of a model, by module hooks and by hand, each as (stack, N, n) for every batch."""

    def __init__(self, model: nn.Module, found: list[Matrix]) -> None:
        self.inputs: dict[str, list[list[Tensor]]] = defaultdict(list)  # name -> reads -> stack of (N, n)
        self.outputs: dict[str, list[Tensor]] = defaultdict(list)  # name -> outputs with retained gradients
        self.hooks = []
        for matrix in found:
            for name in (matrix.name, *matrix.tied):
                owner = model.get_submodule(name) if matrix.parameter == "weight" else matrix.module
                if not isinstance(owner, nn.Embedding):
                    self.hooks.append(owner.register_forward_hook(self._hook(matrix, owner)))

    def _hook(self, matrix: Matrix, owner: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if matrix.kind == "conv":
                self.inputs[matrix.name].append(conv_rows(owner, args[0].detach(), matrix))
            elif matrix.kind == "experts":
                self.inputs[matrix.name].append(expert_rows(owner, matrix, *args))
            elif matrix.kind == "attention":
                self.inputs[matrix.name].append([args[0].detach().flatten(0, -2)])
                self.inputs[matrix.name.replace("in_proj_weight", "out_proj")].append([mixed(owner, args[0].detach())])
            else:
                self.inputs[matrix.name].append([args[0].detach().flatten(0, -2)])
            if isinstance(output, Tensor) and output.requires_grad and matrix.kind != "experts":
                output.retain_grad()
                self.outputs[matrix.name].append(output)

        return hook

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def conv_rows(conv: nn.Module, x: Tensor, matrix: Matrix) -> list[Tensor]:
    """A convolution's patches by F.unfold, for each group."""
    if isinstance(conv, nn.Conv1d):
        x, pad = x.unsqueeze(2), (0, conv.padding[0])
        sizes = ((1, conv.kernel_size[0]), (1, conv.dilation[0]), pad, (1, conv.stride[0]))
    else:
        sizes = (conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    rows = F.unfold(x, *sizes).transpose(1, 2).flatten(0, 1)
    return list(rows.split(matrix.shape[1], dim=1))


def mixed(attention: nn.Module, x: Tensor) -> Tensor:
    """What MultiheadAttention gives its output projection, which it never calls."""
    q, k, v = (
        (x @ attention.in_proj_weight.T + attention.in_proj_bias)
        .detach().unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    )  # fmt: skip
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2).flatten(0, 1)


def expert_rows(experts: nn.Module, matrix: Matrix, hidden: Tensor, chosen: Tensor, _: Tensor) -> list[Tensor]:
    """The rows that each expert of a Mixtral layer reads, computed anew from the router's choice."""
    rows = []
    for expert in range(matrix.stack):
        x = hidden.detach()[(chosen == expert).any(-1)]
        if matrix.parameter == "down_proj":
            gate, up = (x @ experts.gate_up_proj[expert].detach().T).chunk(2, dim=-1)
            x = experts.act_fn(gate) * up
        rows.append(x)
    return rows


def brute_force(model: nn.Module, batches: list[Any]) -> tuple[list[Matrix], dict[str, list[Tensor]], dict, dict]:
    """(matrices, name -> stack of all rows, name -> all output gradient rows, name -> mean gradient)."""
    found = matrices(model)
    parameters = {m.name: getattr(m.module, m.parameter).requires_grad_(True) for m in found}
    rows: dict[str, list[Tensor]] = {}
    output_rows: dict[str, Tensor] = {}
    gradients = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for batch in batches:
        capture = Capture(model, found)
        value = loss(_call(model, batch), batch)
        value.backward()
        capture.remove()
        for name, p in parameters.items():
            if p.grad is not None:
                gradients[name] += p.grad / len(batches)
        model.zero_grad(set_to_none=True)
        for name, reads in capture.inputs.items():
            new = [torch.cat(parts) for parts in zip(*reads, strict=True)]
            rows[name] = [torch.cat(pair) for pair in zip(rows[name], new, strict=True)] if name in rows else new
        for matrix in found:
            for output in capture.outputs[matrix.name]:
                g = output.grad
                if matrix.kind == "conv":
                    g = g.flatten(2).unflatten(1, (matrix.stack, -1)).permute(1, 0, 3, 2).flatten(1, 2)
                else:
                    g = g.flatten(0, -2)[None]
                old = output_rows.get(matrix.name)
                output_rows[matrix.name] = g if old is None else torch.cat([old, g], 1)
    return found, rows, output_rows, {m.name: m.as_matrix(gradients[m.name]) for m in found}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest) -> tuple:
    """(what brute force gives, what observe gives) for each family."""
    model, batches = built(request.param)
    expected = brute_force(model, batches)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # frozen, as a base model is
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out of any family
        seen = observe(model, batches, WANTED, loss=loss, sample_size=11)
    return expected, seen


def test_every_matrix_is_observed(case: tuple) -> None:
    (found, *_), seen = case
    assert list(seen) == [matrix.name for matrix in found]


def test_rows_are_counted(case: tuple) -> None:
    (found, rows, *_), seen = case
    for matrix in found:
        if matrix.name in rows:
            counts = [len(x) for x in rows[matrix.name]]
            assert seen[matrix.name].tokens == (sum(counts) if matrix.kind == "experts" else counts[0])
            if matrix.stack > 1:
                assert seen[matrix.name].stack_tokens.tolist() == counts


def test_input_statistics_are_those_of_all_rows_at_once(case: tuple) -> None:
    (found, rows, *_), seen = case
    for matrix in found:
        if matrix.name not in rows:
            assert seen[matrix.name].input_sum is None
            continue
        got, n = seen[matrix.name], matrix.shape[1]
        shape = (matrix.stack,) if matrix.stack > 1 else ()
        expected = rows[matrix.name]
        sums = torch.stack([x.sum(0) for x in expected]).view(*shape, n)
        moments = torch.stack([x.T @ x / max(1, len(x)) for x in expected]).view(*shape, n, n)
        means = torch.stack([x.sum(0) / max(1, len(x)) for x in expected]).view(*shape, n)
        torch.testing.assert_close(got.input_sum, sums)
        torch.testing.assert_close(got.input_second_moment, moments)
        torch.testing.assert_close(got.input_norms, moments.diagonal(dim1=-2, dim2=-1).sqrt())
        torch.testing.assert_close(got.mean, means)
        torch.testing.assert_close(got.covariance, moments - means.unsqueeze(-1) * means.unsqueeze(-2))


def test_samples_are_rows_that_were_read(case: tuple) -> None:
    (found, rows, *_), seen = case
    for matrix in found:
        if matrix.name in rows:
            sample, read = seen[matrix.name].input_sample, torch.cat(rows[matrix.name])
            assert sample.shape == (min(11, len(read)), matrix.shape[1])
            assert torch.cdist(sample, read, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-9


def test_gradients_are_the_mean_of_the_batches_gradients(case: tuple) -> None:
    (found, _, _, gradients), seen = case
    for matrix in found:
        torch.testing.assert_close(seen[matrix.name].gradient, gradients[matrix.name])


def test_output_gradients_have_their_second_moment(case: tuple) -> None:
    (found, rows, output_rows, _), seen = case
    for matrix in found:
        got = seen[matrix.name].output_gradient_second_moment
        if matrix.kind == "embedding" and matrix.name not in rows:
            assert got is None
        elif matrix.kind not in ("experts", "attention"):
            g = output_rows.get(matrix.name)
            if g is None:  # MultiheadAttention never calls its out_proj
                continue
            expected = g.mT @ g / g.shape[1]
            torch.testing.assert_close(got, expected if matrix.stack > 1 else expected[0], rtol=1e-6, atol=1e-14)


def test_gradient_is_output_gradients_times_inputs_for_attention_and_experts() -> None:
    """Tr(Σ g gᵀ) and the gradient come from the same g: a rank-one input makes them determine each other."""
    model = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    x = torch.randn(1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = observe(
        model, [(x, x, x)], ["gradient", "output_gradient_covariance"], loss=lambda y, _: y[0].square().sum(),
        targets="in_proj_weight",
    )["in_proj_weight"]  # fmt: skip
    g = seen.gradient @ x.flatten() / x.square().sum()  # G = g xᵀ
    assert g.norm() > 0
    torch.testing.assert_close(seen.output_gradient_second_moment, torch.outer(g, g))


@pytest.mark.filterwarnings("ignore:Using padding=.same")
def test_padding_modes_and_same_padding_are_observed_as_they_are_computed() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=generator)
    for conv in (
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(3, 1)),
        nn.Conv2d(3, 4, 3, padding=(2, 1), stride=(1, 2), bias=False),
    ):
        conv = conv.double()
        got = observe(nn.Sequential(conv), [x], ["input_covariance", "output_gradient_covariance", "gradient"],
                      loss=lambda y, _: (y**2).sum() / 2)["0"]  # fmt: skip
        # With loss ½‖y‖², the gradient is Σ y xᵀ = W Σ x xᵀ + b (Σ x)ᵀ: it checks rows and positions at once.
        W, b = conv.weight.detach().flatten(1), 0 if conv.bias is None else conv.bias.detach()
        expected = W @ got.input_second_moment * got.tokens + torch.outer(b + torch.zeros(4), got.input_sum)
        torch.testing.assert_close(got.gradient, expected)
        torch.testing.assert_close(
            got.output_gradient_second_moment.diagonal().sum() * got.tokens, conv(x).square().sum().detach()
        )


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_experts_are_observed_under_each_implementation(experts: str) -> None:
    model, batches = built("mixtral")
    _, rows, _, gradients = brute_force(model, batches)
    model.float().set_experts_implementation(experts)
    seen = observe(model, batches, WANTED, targets="*.experts.*")
    assert len(seen) == 4
    for name, got in seen.items():
        expected = torch.stack([x.T @ x / len(x) for x in rows[name]])
        torch.testing.assert_close(got.input_second_moment.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.gradient.double(), gradients[name], rtol=1e-4, atol=1e-5)
        assert got.output_gradient_second_moment.shape == (4, *[got.gradient.shape[1]] * 2)
        assert got.output_gradient_second_moment.diagonal(dim1=-2, dim2=-1).sum(-1).min() > 0


def test_experts_that_cannot_be_followed_are_left_out_by_name() -> None:
    model, batches = built("mixtral")
    model.set_experts_implementation("batched_mm")
    with pytest.warns(UserWarning, match=r"inputs left out: .*model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        seen = observe(model, batches, ["input_covariance", "gradient"], targets=["*.layers.0.*"])
    expert = seen["model.layers.0.mlp.experts.down_proj"]
    assert expert.input_second_moment is None
    torch.testing.assert_close(expert.gradient, brute_force(model, batches)[3]["model.layers.0.mlp.experts.down_proj"])
