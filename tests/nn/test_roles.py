"""nn.roles: who is q, k, v, o, gate, up, down, with how many heads, in every family."""

import pytest
import torch
from torch import nn

from eckart.nn import Role, require, roles
from families import families

FAMILIES = families()


def _kinds(family: str, layer: int | None = 1) -> dict[str, str]:
    found = roles(FAMILIES[family]()[0])
    return {name.split(f".{layer}.")[-1]: role.kind for name, role in found.items() if role.layer == layer}


def test_llama():
    assert _kinds("llama") == {
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }
    assert _kinds("llama", None) == {"model.embed_tokens": "embedding", "lm_head": "head"}


def test_gpt2():
    assert _kinds("gpt2") == {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"}


def test_bert():
    assert _kinds("bert") == {
        "attention.self.query": "q",
        "attention.self.key": "k",
        "attention.self.value": "v",
        "attention.output.dense": "o",
        "intermediate.dense": "up",
        "output.dense": "down",
    }
    assert _kinds("bert", None)["cls.predictions.decoder"] == "head"


def test_vit():
    assert set(_kinds("vit").values()) == {"q", "k", "v", "o", "up", "down"}
    assert _kinds("vit", None)["classifier"] == "head"


def test_mixture_of_experts():
    kinds = _kinds("mixtral")
    assert (kinds["mlp.experts.gate_up_proj"], kinds["mlp.experts.down_proj"]) == ("gate_up", "down")


@pytest.mark.parametrize(
    ("family", "heads"),
    [("llama", (6, 2, 4)), ("mixtral", (6, 2, 4)), ("gpt2", (4, 4, 4)), ("bert", (4, 4, 4)), ("vit", (4, 4, 4)),
     ("encoder", (4, 4, 4))],
)  # fmt: skip
def test_all_of_attention_knows_its_heads_and_nothing_else_has_any(family, heads):
    for role in roles(FAMILIES[family]()[0]).values():
        expected = heads if role.kind in ("q", "k", "v", "o", "qkv") else (None, None, None)
        assert (role.heads, role.kv_heads, role.head_dim) == expected


class _Attention(nn.Module):
    def __init__(self, rows: dict[str, int], width: int = 24, **attributes: int) -> None:
        super().__init__()
        for name, m in rows.items():
            self.add_module(name, nn.Linear(width, m))
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("rows", "attributes", "heads"),
    [
        ({"query_key_value": 40}, {"num_heads": 6, "head_dim": 4}, (6, 2, 4)),  # grouped, fused
        ({"qkv_proj": 48}, {"num_heads": 6}, (6, 3, 4)),  # grouped, fused, as many rows as fused keys and values
        ({"query_key_value": 32}, {"num_heads": 6}, (6, 1, 4)),  # multi-query, fused
        ({"q": 32, "k": 16, "v": 16, "o": 24}, {"d_kv": 8}, (4, 2, 8)),  # wider than the model
        ({"wq": 24, "wk": 12, "wv": 12, "wo": 24}, {"n_heads": 4}, (4, 2, 6)),
    ],
)
def test_heads_come_from_shapes_with_whatever_the_module_tells(rows, attributes, heads):
    for role in roles(nn.ModuleDict({"attention": _Attention(rows, **attributes)})).values():
        assert (role.heads, role.kv_heads, role.head_dim) == heads


def test_cross_attention_of_keys_and_values_fused_is_kv():
    model = nn.ModuleDict({"crossattention": _Attention({"c_attn": 48, "q_attn": 24, "c_proj": 24}, num_heads=3)})
    found = {name.rpartition(".")[2]: role for name, role in roles(model).items()}
    assert [found[name].kind for name in ("c_attn", "q_attn", "c_proj")] == ["kv", "q", "o"]
    assert found["c_proj"] == Role("o", None, 3, 3, 8)


def test_w1_is_the_gate_only_beside_w3():
    gated = roles(nn.ModuleDict({"mlp": _Attention({"w1": 8, "w2": 8, "w3": 8})}))
    plain = roles(nn.ModuleDict({"mlp": _Attention({"w1": 8, "w2": 8})}))
    assert [role.kind for role in gated.values()] == ["gate", "down", "up"]
    assert [role.kind for role in plain.values()] == ["up", "down"]


def test_overrides_say_the_kind_and_the_shapes_give_the_heads():
    model = nn.ModuleDict({"block": _Attention({"a": 24, "b": 8, "c": 8, "d": 24}, num_heads=6)})
    assert {role.kind for role in roles(model).values()} == {"other"}
    found = roles(model, {"a": "q", "b": "k", "c": "v", "d": "o"})
    assert found["block.d"] == Role("o", None, 6, 2, 4)


def test_an_override_by_role_replaces_only_the_fields_it_sets():
    model = FAMILIES["llama"]()[0]
    found = roles(model, {"q_proj": Role("q", heads=3)})
    assert found["model.layers.1.self_attn.q_proj"] == Role("q", 1, 3, 2, 4)


def test_an_override_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="matches none"):
        roles(FAMILIES["llama"]()[0], {"w_q": "q"})


def test_require_gives_all_matrices_of_a_kind_or_one_by_name():
    found = roles(FAMILIES["llama"]()[0])
    assert list(require(found, "o")) == ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"]
    assert require(found, "lm_head") == {"lm_head": Role("head")}


def test_a_role_that_is_missing_or_unknown_is_a_named_error_with_the_remedy():
    found = roles(FAMILIES["sequential"]()[0])
    with pytest.raises(ValueError, match=r"no matrix has the role or name 'gate'.*3 of unknown role.*overrides"):
        require(found, "gate")
    with pytest.raises(ValueError, match=r"the role of 0 is unknown.*overrides"):
        require(found, "0")


def test_roles_do_not_read_weights():
    with torch.device("meta"):
        model = nn.TransformerEncoderLayer(16, 4, 32)
    assert roles(model)["linear2"].kind == "down"
