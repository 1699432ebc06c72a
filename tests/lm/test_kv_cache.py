"""A cache of latents gives what the same low-rank projections give without one, in the bytes that it says."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache

from eckart.lm import cached_bytes, compress_cache, load_cache
from eckart.lm.kv_cache.fit import parts
from eckart.lm.kv_cache.moments import observe_states
from eckart.nn.files.tensors import save_safetensors
from families import VOCABULARY, families, masked

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0,
    "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
KINDS = ("gqa", "mha", "gpt2", "opt")


def tiny(name, **changed):
    """A model of transformers with matrices large enough to see in the logits, biases included."""
    sizes = SIZES | changed
    kinds = {
        "gqa": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mha": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "opt": (transformers.OPTConfig, transformers.OPTForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "bert": (transformers.BertConfig, transformers.BertForMaskedLM),
        "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration),
    }
    config, kind = kinds[name]
    if name == "mha":
        sizes["num_key_value_heads"] = 6
    if name == "gpt2":
        sizes |= {"n_positions": 64}
    if name == "qwen3":
        sizes |= {"head_dim": 4}
    if name == "bart":
        sizes |= {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
    if name == "opt":
        sizes |= {"ffn_dim": 40, "word_embed_proj_dim": 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config(**sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.1) + (parameter == 1))
    return model


def text(rows=4, length=40, seed=1):
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def projected(model, small):
    """The model with its projections made low-rank by hand, no latent anywhere."""
    plain = copy.deepcopy(model)
    for name, latent in small._latents.items():
        path, _, kind = name.rpartition(".")
        attention = plain.get_submodule(path)
        P, mu = latent.up @ latent.down, latent.mean
        if hasattr(attention, "c_attn"):
            m = latent.full
            part = slice(m, 2 * m) if kind == "keys" else slice(2 * m, 3 * m)
            weight, bias = attention.c_attn.weight.data[:, part], attention.c_attn.bias.data[part]
            weight.copy_(weight @ P.T)
            bias.copy_(P @ bias + mu - P @ mu)
            continue
        at = "k_proj" if kind == "keys" else "v_proj"
        old = getattr(attention, at)
        new = nn.Linear(old.in_features, old.out_features)
        new.weight.data = P @ old.weight.data
        new.bias.data = mu - P @ mu + (P @ old.bias.data if old.bias is not None else 0)
        setattr(attention, at, new)
    return plain


def compressed(name, share=0.5, **options):
    model = tiny(name)
    small = compress_cache(copy.deepcopy(model), [text()], share=share, **options)
    return projected(model, small), small


def close(found, wanted):
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


@torch.no_grad()
def steps(model, ids, sizes, **options):
    """Logits of ids given in pieces, over one cache; and the cache."""
    cache, logits, start = DynamicCache(config=model.config), [], 0
    for size in sizes:
        mask = {name: value[:, : start + size] for name, value in options.items()}
        logits.append(model(ids[:, start : start + size], cache=cache, use_cache=True, **mask).logits)
        start += size
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("sizes", [(12,), (5, 4, 3), (7, 1, 1, 1, 1, 1)], ids=["prefill", "chunked", "decode"])
@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_the_same_projections_without_latents(name, sizes):
    plain, small = compressed(name)
    ids = text(3, 12, seed=2)
    wanted = plain(ids, use_cache=False).logits.detach()
    close(small.model(ids, use_cache=False).logits, wanted)
    close(steps(small.model, ids, sizes)[0], wanted)
    assert (tiny(name)(ids).logits - wanted).abs().max() > 1e-2 * wanted.abs().max()  # and not those of the model


@pytest.mark.parametrize("name", KINDS)
def test_padding_on_the_left_changes_nothing(name):
    plain, small = compressed(name)
    ids, mask = text(2, 12, seed=2), torch.ones(2, 12, dtype=torch.long)
    ids[1, :5] = mask[1, :5] = 0
    wanted = plain.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert small.model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False).equal(wanted)
    close(
        steps(small.model, ids, (8, 2, 1, 1), attention_mask=mask)[0][mask == 1],
        steps(plain, ids, (8, 2, 1, 1), attention_mask=mask)[0][mask == 1],
    )


@pytest.mark.parametrize(("name", "numbers"), [("gqa", 8 + 4), ("mha", 24 + 12), ("gpt2", 12 + 12), ("opt", 12 + 12)])
def test_the_cache_takes_the_bytes_that_the_ranks_say(name, numbers):
    _, small = compressed(name)
    assert small.bytes_after == 2 * numbers * 4
    assert small.bytes_before == 2 * 2 * (8 if name == "gqa" else 24) * 4
    for sizes in ((12,), (7, 1, 1, 1, 1, 1)):
        _, cache = steps(small.model, text(3, 12), sizes)
        assert cached_bytes(cache) == 3 * 12 * small.bytes_after
        held = sum(s.untyped_storage().nbytes() for layer in cache.layers for s in (layer.keys, layer.values))
        assert held == cached_bytes(cache)  # no view keeps more alive


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}], ids=["greedy", "beams", "chunks"]
)
@pytest.mark.parametrize("name", ["gqa", "mha", "gpt2"])
def test_a_rank_that_holds_all_the_values_generates_the_same_tokens(name, options):
    model = tiny(name)
    for module in model.modules():  # values, and the keys of GPT-2, of half the rank
        if hasattr(module, "c_attn"):
            for W in (module.c_attn.weight.data, module.c_attn.bias.data):
                for start in (24, 48):
                    W[..., start : start + 24] = W[..., start : start + 12] @ torch.eye(12, 24).roll(3, 1)
        elif hasattr(module, "v_proj"):
            W = module.v_proj.weight.data
            W[1::2] = W[::2]
    before = model.generate(text(2, 9), max_new_tokens=12, do_sample=False, **options)
    small = compress_cache(model, [text()])
    assert max(row["error"] for row in small.rows()) < 1e-6
    assert model.generate(text(2, 9), max_new_tokens=12, do_sample=False, **options).equal(before)


def test_the_predicted_error_is_that_at_the_output_where_heads_attend_alike():
    model = tiny("gqa")
    seen = observe_states(model, [text()], None)
    part = parts(model, seen, None)["model.layers.0.self_attn.values"]
    values = []
    handle = model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda *a: values.append(a[2]))
    model(text())
    handle.remove()
    x = values[0].reshape(-1, 8).double().detach()
    latent = part.fit(3)
    off = x @ (latent.up @ latent.down - torch.eye(8, dtype=torch.float64)).T
    W = model.model.layers[0].self_attn.o_proj.weight.detach().double()

    S = torch.cat([sum(W[:, 4 * h : 4 * h + 4] for h in heads) for heads in ((0, 1, 2), (3, 4, 5))], 1)
    measured = ((off @ S.T).norm() / (x @ S.T).norm()).item()
    assert part.errors()[3] == pytest.approx(measured, rel=1e-5)
    assert (part.errors()[0], part.errors()[8]) == (1, 0)


def test_the_predicted_error_of_keys_is_that_of_the_scores():
    model = tiny("opt")
    part = parts(model, observe_states(model, [text()], None), None)["model.decoder.layers.0.self_attn.keys"]
    given = {}
    attention = model.model.decoder.layers[0].self_attn
    for each in ("q_proj", "k_proj"):
        getattr(attention, each).register_forward_hook(lambda m, a, out, each=each: given.update({each: out}))
    model(text())
    q, k = (given[each].detach().double().reshape(-1, 6, 4) for each in ("q_proj", "k_proj"))
    latent = part.fit(9)
    k = (k - k.mean(0)).flatten(1)
    off = (k @ (latent.up @ latent.down - torch.eye(24, dtype=torch.float64)).T).unflatten(1, (6, 4))
    k = k.unflatten(1, (6, 4))
    scores = [torch.einsum("nhd,mhd->hnm", q, each).square().sum() for each in (off, k)]
    assert part.errors()[9] == pytest.approx((scores[0] / scores[1]).sqrt().item(), rel=1e-5)


def test_hidden_tokens_are_not_counted():
    model, batches = masked("llama")
    found = observe_states(model, batches[:1], None)
    seen = found["model.layers.0.self_attn"].values
    ids, mask = batches[0]["input_ids"], batches[0]["attention_mask"]
    rows = [observe_states(model, [row[keep == 1][None]], None) for row, keep in zip(ids, mask, strict=True)]
    each = [row["model.layers.0.self_attn"].values for row in rows]
    assert seen.count == 9 + 6 + 4
    assert torch.allclose(seen.mean, sum(r.mean * r.count for r in each) / seen.count, atol=1e-6)


@pytest.mark.parametrize("name", ["gqa", "gpt2"])
def test_saved_and_loaded_it_gives_the_same_bits(name, tmp_path):
    _, small = compressed(name)
    small.save(tmp_path / "cache.safetensors")
    again = load_cache(tmp_path / "cache.safetensors", into=tiny(name))
    assert again.rows() == small.rows()
    assert again.model(text()).logits.equal(small.model(text()).logits)
    with pytest.raises(ValueError, match=r"caches 24 numbers .* where it caches 8|caches no numbers"):
        load_cache(tmp_path / "cache.safetensors", into=tiny("mha"))
    save_safetensors(tmp_path / "other.safetensors", {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="holds no latents of a cache"):
        load_cache(tmp_path / "other.safetensors", into=tiny(name))


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_not_touched_and_remove_gives_the_model_back(name):
    model = tiny(name)
    state, logits = copy.deepcopy(model.state_dict()), model(text()).logits
    small = compress_cache(model, [text()])
    assert all(model.state_dict()[key].equal(value) for key, value in state.items())
    assert list(model.state_dict()) == list(state)
    _, cache = steps(model, text(), (5,))
    assert small.remove() is model
    assert model(text()).logits.equal(logits)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="compressed no more"):
        model(text()[:, 5:6], cache=cache)
    compress_cache(model, [text()])  # and it can be compressed again


def test_a_share_of_one_leaves_all_as_it_is():
    model = tiny("gpt2")
    small = compress_cache(model, [text()], share=1.0)
    assert model.config._attn_implementation == "sdpa"
    assert small.bytes_after == small.bytes_before


def test_a_batch_of_padding_alone_changes_nothing():
    batch = {"input_ids": text(), "attention_mask": torch.ones(4, 40, dtype=torch.long)}
    hidden = {**batch, "attention_mask": torch.zeros(4, 40, dtype=torch.long)}
    first, second = (compress_cache(tiny("gpt2"), batches).rows() for batches in ([batch], [hidden, batch]))
    assert [row["error"] for row in second] == pytest.approx([row["error"] for row in first], rel=1e-4)


def test_a_copy_of_the_model_keeps_its_latents():
    _, small = compressed("gqa")
    assert copy.deepcopy(small.model)(text()).logits.equal(small.model(text()).logits)


def test_half_precision_works():
    plain, small = compressed("gqa")
    half = small.model.to(torch.bfloat16)
    logits, cache = steps(half, text(2, 12), (8, 1, 1, 1, 1))
    assert (logits.float() - plain(text(2, 12)).logits).abs().mean() < 0.05 * logits.float().abs().mean()
    assert cached_bytes(cache) == 2 * 12 * small.bytes_after == 2 * 12 * (2 * 12) * 2


def test_ranks_are_by_name_and_the_report_says_what_became_of_each():
    _, small = compressed("gqa", ranks={"model.layers.1.self_attn.values": 3})
    assert [row["rank"] for row in small.rows()] == [8, 8, 8, 3]
    assert small.bytes_after == (8 + 8 + 8 + 3) * 4
    assert "turned by position" in small.report()
    assert "a token takes 108 bytes of cache, 0.844 of the 128 before" in small.report()


def test_keys_that_are_turned_or_normed_stay_as_they_are():
    for name in ("gqa", "qwen3"):
        _, small = compressed(name)
        assert [row["rank"] for row in small.rows() if row["name"].endswith("keys")] == [8, 8]
        with pytest.raises(ValueError, match=r"keys: those of model.layers.0.self_attn, .* rotary"):
            compressed(name, keys=True)
    _, small = compressed("gpt2", keys=False)
    assert [row["rank"] for row in small.rows()] == [24, 12, 24, 12]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny("bart"), "has cross-attention"),
        (lambda: tiny("gpt2", add_cross_attention=True), "has cross-attention"),
        (lambda: tiny("mistral", sliding_window=4), "DynamicSlidingWindowLayer"),
        (lambda: tiny("bert"), "is not causal"),
        (lambda: tiny("gqa", attn_implementation="eager"), "its attention is 'eager'"),
        (lambda: compressed("gqa")[1].model, "compressed already"),
    ],
    ids=["encoder-decoder", "cross-attention", "sliding", "encoder", "eager", "again"],
)
def test_a_model_whose_cache_cannot_hold_latents_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        compress_cache(make(), [text()])


def test_bad_input_is_named():
    model = tiny("gqa")
    for options, message in (
        ({"share": 0}, "share: 0; give"),
        ({"share": 1.5}, "share: 1.5; give"),
        ({"ranks": {"model.layers.0.self_attn.value": 2}}, "closest: model.layers.0.self_attn.values"),
        ({"ranks": {"model.layers.0.self_attn.values": 9}}, "ranks: 9 for .*; give from 1 to 8"),
    ):
        with pytest.raises(ValueError, match=message):
            compress_cache(model, [text()], **options)
    with pytest.raises(ValueError, match="batches: no token in 0 batches"):
        compress_cache(model, [])
    with pytest.raises(TypeError, match="batches is a single Tensor: put it in a list"):
        compress_cache(model, text())
    with pytest.raises(TypeError, match="model: Sequential; give a decoder"):
        compress_cache(families()["sequential"]()[0], [text()])
    assert model.config._attn_implementation == "sdpa"
    with pytest.warns(UserWarning, match="batches: 4 tokens for 8 numbers"):
        compress_cache(model, [text(1, 4)])


def test_another_kind_of_cache_is_refused():
    plain, small = compressed("gqa")
    with pytest.raises(ValueError, match="its layer 0 is a StaticLayer; a compressed cache needs a new DynamicCache"):
        small.model.generate(text(1, 5), max_new_tokens=2, cache_implementation="static")
    _, begun = steps(plain, text(1, 5), (5,))
    with pytest.raises(ValueError, match="begun without latents"):
        small.model(text(1, 1), cache=begun)
