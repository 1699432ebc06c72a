"""W_KᵀW_Q and W_OW_V of each head: what the models compute, in every family, as views of their parameters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.nn import FactoredLinear, Role, replace
from eckart.regularizers.attention import AttentionProduct, attention_products, rotary_norm
from families import families

FAMILIES = families()
ATTENTION = ("llama", "mixtral", "gpt2", "bert", "vit", "encoder")


def _tiny(kind: str) -> nn.Module:
    """Models whose query, key and value are one matrix, laid out in several ways."""
    import transformers as hf

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    more = {"intermediate_size": 32, "max_position_embeddings": 32}
    match kind:
        case "neox":
            return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes, **more))
        case "bloom":
            return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=4))
        case "falcon":
            config = hf.FalconConfig(**sizes, num_kv_heads=2, new_decoder_architecture=True, bias=False)
            return hf.FalconForCausalLM(config)
        case _:
            config = hf.Phi3Config(**sizes, **more, num_key_value_heads=2, pad_token_id=0)
            return hf.Phi3ForCausalLM(config)


def _model(family: str) -> nn.Module:
    if family in FAMILIES:
        return FAMILIES[family]()[0]
    model = _tiny(family).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def _attention_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The first layer's input of attention (T, n) and its weights (heads, T, T), without rotation and biases."""
    seen: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    for module in model.modules():
        if "Rotary" in type(module).__name__:
            module.register_forward_hook(lambda _m, _i, out: (torch.ones_like(out[0]), torch.zeros_like(out[1])))
    names = ("q_proj", "c_attn", "query", "query_key_value", "qkv_proj")
    first = next(module for name, module in model.named_modules() if name.rpartition(".")[2] in names)
    first.register_forward_hook(lambda _m, args, _o: seen.append(args[0][0].detach()))
    model.set_attn_implementation("eager")  # type: ignore[operator]
    batch: dict[str, Any] = {"input_ids": torch.tensor([[3, 14, 15, 9, 2, 6]])}
    if hasattr(model, "vit"):
        batch = {"pixel_values": torch.randn(1, 3, 16, 16)}
    with torch.no_grad():
        weights = model(**batch, output_attentions=True).attentions[0][0]
    return seen[0], weights


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit", "neox", "falcon", "phi3"])
def test_the_product_of_queries_and_keys_gives_the_attention_that_the_model_pays(family: str) -> None:
    model = _model(family)
    x, weights = _attention_of(model)
    products = [p for p in attention_products(model, ["qk"]) if p.layer in (0, None)]
    assert len(products) == len(weights)
    for product in products:
        scores = (x @ product.left @ product.right @ x.T).T / product.right.shape[0] ** 0.5
        seen = weights[product.head].log()
        difference = (scores - scores[:, :1]) - (seen - seen[:, :1])  # a softmax forgets a constant in each row
        assert difference.tril().abs().max() < 1e-4  # what a causal mask leaves


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "bloom", "falcon", "phi3"])
def test_outputs_times_values_are_what_a_lone_token_receives(family: str) -> None:
    model = _model(family)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    products = [p for p in attention_products(model, ["ov"]) if p.layer == 0]
    attention = model.get_submodule(products[0].block)
    seen: dict[str, Tensor] = {}
    reader = next(m for n, m in attention.named_children() if n in ("q_proj", "c_attn", "query_key_value", "qkv_proj"))
    writer = next(m for n, m in attention.named_children() if n in ("o_proj", "c_proj", "dense"))
    reader.register_forward_hook(lambda _m, args, _o: seen.update(x=args[0].flatten()))
    writer.register_forward_hook(lambda _m, _i, out: seen.update(y=out.flatten()))
    with torch.no_grad():
        model(torch.tensor([[7]]))
        total = sum(product.left @ product.right for product in products)
    torch.testing.assert_close(total @ seen["x"], seen["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ATTENTION)
def test_grouped_products_are_the_heads_side_by_side(family: str) -> None:
    model = _model(family)
    single, joint = attention_products(model), attention_products(model, grouped=True)
    assert not any(product.shared for product in joint)
    for product in joint:
        size = len(product.lefts) * len(product.rights)
        heads = [p for p in single if (p.block, p.kind, p.head // size) == (product.block, product.kind, product.head)]
        assert len(heads) == size
        assert all(head.shared == (size > 1) for head in heads)
        dense = [head.left @ head.right for head in heads]
        torch.testing.assert_close(
            product.left @ product.right, torch.cat(dense, dim=-1 if product.kind == "qk" else 0)
        )


@pytest.mark.parametrize("family", ATTENTION)
def test_gradients_flow_into_the_parameters_and_writes_change_them(family: str) -> None:
    model = _model(family)
    for product in attention_products(model, grouped=True):
        model.zero_grad()
        (product.left.square().sum() + product.right.square().sum()).backward()
        touched = [p for p in model.parameters() if p.grad is not None and p.grad.any()]
        assert 1 <= len(touched) <= 2
        left, right = product.left.detach().clone(), product.right.detach().clone()
        product.write(2 * left, -right)
        torch.testing.assert_close((product.left, product.right), (2 * left, -right))
        product.write(left, right)


def test_products_follow_a_model_that_changes_dtype() -> None:
    model = _model("llama")
    product = attention_products(model)[0]
    values = product.values
    model.double()
    assert product.left.dtype == torch.float64
    torch.testing.assert_close(product.values.float(), values)


def test_attention_of_torch_with_other_widths_of_keys_and_values() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, bias=False)
    shapes = [(tuple(p.left.shape), tuple(p.right.shape)) for p in attention_products(attention)]
    assert shapes == [((6, 4), (4, 8))] * 2 + [((8, 4), (4, 5))] * 2


def test_a_factored_projection_is_read_but_not_written() -> None:
    model = _model("llama")
    name = "model.layers.0.self_attn.q_proj"
    replace(model, name, FactoredLinear.from_linear(model.get_submodule(name), rank=24))
    product = attention_products(model, ["qk"])[0]
    with pytest.raises(ValueError, match="computes its weight"):
        product.write(product.left, product.right)


def test_what_is_not_known_is_a_named_error() -> None:
    with pytest.raises(ValueError, match=r"role or name 'q'.*overrides"):
        attention_products(FAMILIES["sequential"]()[0])
    with pytest.raises(ValueError, match="kinds must be"):
        attention_products(_model("llama"), ["qv"])
    lone = nn.ModuleDict({"attn": nn.ModuleDict({"q_proj": nn.Linear(8, 8), "o_proj": nn.Linear(8, 8)})})
    with pytest.raises(ValueError, match=r"heads of attn.q_proj \(8, 8\) are unknown.*overrides"):
        attention_products(lone)
    known = {"q_proj": Role("q", heads=2, kv_heads=2, head_dim=4)}
    with pytest.raises(ValueError, match=r"the attention attn has no k.*overrides"):
        attention_products(lone, overrides=known)
    wrong = {"q_proj": Role("q", heads=3, kv_heads=3, head_dim=4)}
    with pytest.raises(ValueError, match="does not fit 3 heads"):
        attention_products(lone, overrides=wrong)


def test_overrides_say_what_names_do_not() -> None:
    parts = {name: nn.Linear(8, 8, bias=False) for name in "abcd"}
    model = nn.ModuleDict({"block": nn.ModuleDict(parts)})
    heads = {"heads": 2, "kv_heads": 2, "head_dim": 4}
    roles = {name: Role(kind, **heads) for name, kind in zip("abcd", "qkvo", strict=True)}
    products: list[AttentionProduct] = attention_products(model, overrides=roles)
    assert len(products) == 4
    torch.testing.assert_close(products[3].left, parts["d"].weight[:, 4:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_rotary_norm_is_the_least_cost_of_factors_with_the_same_rotated_scores(interleaved: bool) -> None:
    attention = nn.MultiheadAttention(6, 1, bias=False, dtype=torch.float64)
    [product] = attention_products(attention, ["qk"])
    norm = rotary_norm(product, interleaved)
    assert product.values.sum() < norm < (product.left.square().sum() + product.right.square().sum()) / 2
    pairs = torch.arange(6).reshape(3, 2) if interleaved else torch.arange(6).reshape(2, 3).T
    scale = torch.ones(6, dtype=torch.float64)
    for pair in pairs:  # the best scale of each pair alone: ‖W_K‖ = ‖W_Q‖ there
        scale[pair] = (product.left[:, pair].norm() / product.right[pair].norm()).sqrt().detach()
    left, right = product.left / scale, scale[:, None] * product.right
    torch.testing.assert_close(norm, (left.square().sum() + right.square().sum()) / 2)
    norm.backward()
    assert attention.in_proj_weight.grad is not None


@pytest.mark.parametrize("interleaved", [False, True])
def test_where_a_part_of_the_head_turns_the_rest_counts_with_its_nuclear_norm(interleaved: bool) -> None:
    attention = nn.MultiheadAttention(6, 1, bias=False, dtype=torch.float64)
    [product] = attention_products(attention, ["qk"])
    K, Q = product.left.mT, product.right
    pairs = [[0, 1], [2, 3]] if interleaved else [[0, 2], [1, 3]]
    turned = sum(K[pair].norm() * Q[pair].norm() for pair in pairs)
    expected = turned + torch.linalg.svdvals(K[4:].mT @ Q[4:]).sum()
    torch.testing.assert_close(rotary_norm(product, interleaved, rotated=4), expected)
    torch.testing.assert_close(rotary_norm(product, interleaved, rotated=6), rotary_norm(product, interleaved))


def test_a_pair_that_is_zero_leaves_the_slope_of_the_rotary_norm_finite() -> None:
    attention = nn.MultiheadAttention(4, 1, bias=False)
    attention.in_proj_weight.data[[0, 2]] = 0  # a pair of the queries
    rotary_norm(attention_products(attention, ["qk"])[0]).backward()
    assert attention.in_proj_weight.grad.isfinite().all()


def test_the_rotary_norm_needs_queries_and_keys_in_pairs() -> None:
    [whole] = attention_products(nn.MultiheadAttention(6, 1, bias=False), ["qk"])
    for rotated in (0, 3, 8):
        with pytest.raises(ValueError, match=f"rotated={rotated}"):
            rotary_norm(whole, rotated=rotated)
    products = attention_products(nn.MultiheadAttention(6, 2, bias=False))
    for product in products:  # heads of three dimensions, and an output
        with pytest.raises(ValueError, match="product must be a qk one"):
            rotary_norm(product)
