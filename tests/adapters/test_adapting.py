"""What `adapt` refuses: the message names the argument, its value and the remedy, and the model is as it was."""

from typing import Any

import pytest
import torch
from torch import nn

from eckart.adapters import METHODS, activate, adapt, load, save
from eckart.adapters.layers.magnitude import row_factor
from eckart.adapters.layers.place import places
from eckart.adapters.optimizers import param_groups
from families import families

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a method that there is not": ({"method": "lorra"}, r"method: there is no 'lorra'; closest: lora"),
    "another method's option": ({"rho": 3.0}, r"rho: lora has no such option; it has none"),
    "an unknown target": ({"targets": "q_porj"}, r"targets: 'q_porj' matches none of \d+ names; closest: q_proj"),
    "an unknown exclusion": ({"exclude": "q_porj"}, r"exclude: 'q_porj' matches none of \d+ names; closest: q_proj"),
    "nothing left": ({"targets": "q_proj", "exclude": "*"}, r"targets: no matrix of this MixtralForCausalLM is left"),
    "a layer that there is not": ({"layers": [0, 7]}, r"layers: there is no layer 7; those .* numbers from 0 to 1"),
    "a rank above the sides": ({"targets": "k_proj", "rank": 9}, r"rank: 9 for .*k_proj \(8, 24\); .* from 1 to 8"),
    "a rank of an unknown matrix": ({"rank": {"q_porj": 2}}, r"rank: 'q_porj' is not a matrix to adapt; closest:"),
    "ranks of zero": ({"rank": {"model.layers.0.self_attn.q_proj": 0}}, r"rank: every matrix has rank 0"),
    "another word": ({"rank": "most"}, r'rank: \'most\'; give a whole number, matrix name → rank, or "auto"'),
    "a budget without a rule": ({"budget": 0.1}, r'budget: 0.1 is for rank="auto"'),
    "no batches": ({"method": "eva"}, r"batches: eva starts from data \(input_covariance\); give some batches"),
    "an alpha of zero": ({"alpha": 0}, r"alpha: 0; give a number above 0"),
    "a negative alpha": ({"method": "pissa", "alpha": -8.0}, r"alpha: -8.0; give a number above 0"),
    "an alpha that is none": ({"alpha": float("nan")}, r"alpha: nan; give a number above 0"),
    "an alpha that is a word": ({"alpha": "x"}, r"alpha: 'x'; give a number above 0"),
    "a dropout that is a word": ({"dropout": "x"}, r"dropout: 'x'; give a share of at least 0 and below 1"),
    "an adapter of integers": ({"dtype": torch.int8}, r"dtype: torch.int8; adapters train"),
    "an alpha without a scale": ({"method": "vera", "alpha": 8}, r"alpha: 8, but vera is not scaled by one; leave it"),
    "dropping everything": ({"dropout": 1.0}, r"dropout: 1.0; give a share of at least 0 and below 1"),
    "dropout of a weight": ({"targets": "experts.*", "dropout": 0.1}, r"dropout: 0.1, but .*experts.* are read as"),
    "a bias of a weight": ({"targets": "experts.*", "bias": True}, r"bias: .*experts.* have none that can be trained"),
    "a name with a dot": ({"name": "a.b"}, r"name: 'a.b' is no name for an adapter; give letters"),
    "a name that modules use": ({"name": "train"}, r"name: 'train' is what torch's modules call something of their"),
    "an unknown module": ({"modules_to_save": "haed"}, r"modules_to_save: 'haed' matches none of \d+ names"),
}


def mixtral() -> nn.Module:
    return families()["mixtral"]()[0]


def look(model: nn.Module) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """All modules and parameters with what trains, and a copy of all values."""
    modules = [(name, type(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return modules + parameters, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_argument_is_named_with_the_remedy_and_the_model_is_as_it_was(what: str) -> None:
    options, message = REFUSED[what]
    model = mixtral()
    before, values = look(model)
    with pytest.raises(ValueError, match=message):
        adapt(model, **{"rank": 2, **options})
    after, now = look(model)
    assert after == before
    assert all(torch.equal(now[name], value) for name, value in values.items())


def test_a_name_in_use_is_refused_and_the_first_adapter_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapt(model, rank=1)
    with pytest.raises(ValueError, match="name: the model has an adapter 'default' already"):
        adapt(model, rank=2)
    assert model[0].live()[0].rank == 1


def test_a_model_that_is_one_layer_itself_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"model: this Linear is itself the layer to adapt.*nn\.Sequential\(model\)"):
        adapt(nn.Linear(4, 4), rank=1)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.magnitude])
def test_a_magnitude_starts_at_one_also_where_the_start_moves_the_model(method: str) -> None:
    model, batches = families()["sequential"]()
    options: dict[str, Any] = {"batches": batches, "loss": lambda y, _: y.square().mean()}
    options = options if METHODS[method].wanted else {}
    if method == "loftq":
        options["original"] = {name: p + 0.1 * p.sin() for name, p in model.named_parameters()}
    adapt(model, method, rank=2, magnitude=True, **options)
    for place in places(model).values():
        (adapter,) = place.live()
        factor = row_factor(adapter, place.weight_matrix())
        assert torch.equal(factor, torch.ones_like(factor))


def test_biases_of_a_grouped_convolution_are_saved_and_loaded(tmp_path: Any) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(8, 12, 3, groups=4))

    model, images = build(), torch.randn(2, 8, 5, 5)
    adapt(model, rank=1, bias=True)
    with torch.no_grad():
        model[0].live()[0].bias.normal_()
    save(model, tmp_path / "adapter")
    again = build()
    load(tmp_path / "adapter", into=again)
    assert torch.equal(again(images), model(images))
    assert torch.equal(model[0].bias, model[0].base.bias + model[0].live()[0].bias)
    activate(model)
    assert model[0].bias is model[0].base.bias


@pytest.mark.parametrize("options", [{"method": "eva", "rank": 2}, {"rank": "auto", "budget": 40}])
def test_pairs_of_inputs_and_labels_are_run_by_forward(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    pairs = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(4)]
    options |= {"loss": lambda y, batch: nn.functional.cross_entropy(y, batch[1])}
    done = adapt(model, batches=pairs, forward=lambda model, batch: model(batch[0]), **options)
    assert set(done.settings.ranks) <= {"0", "2"}
    assert done.trained > 0


def test_what_needs_adapters_says_so_on_a_bare_model() -> None:
    bare = nn.Sequential(nn.Linear(6, 5))
    with pytest.raises(ValueError, match="model: it has no adapters; call adapt first"):
        param_groups(bare, lr=1e-3)
    with pytest.raises(ValueError, match="adapters: the model has no adapters; put some on it"):
        activate(bare, "default")


def test_the_folder_of_a_run_points_to_the_adapter_inside(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    adapt(model, rank=2)
    save(model, tmp_path / "tuned" / "adapter")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*tuned/adapter\?"):
        load(tmp_path / "tuned", into=nn.Sequential(nn.Linear(6, 5)))
