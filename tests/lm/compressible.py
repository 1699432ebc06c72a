"""A Llama of three blocks that has learned a little language, and text in it, for the tests of compression."""

import copy
import functools
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(30)]


def tokenizer():
    """One token for each word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", model_max_length=256)


def sentence(count, seed, step=3):
    """Words of a chain: each is mostly `step` after the one before it."""
    draw, words, place = random.Random(seed), [], 0
    for _ in range(count):
        place = (place + step + draw.choice([0, 0, 0, 1, 7])) % len(WORDS)
        words.append(WORDS[place])
    return " ".join(words)


@functools.cache
def _trained():
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        words = tokenizer()
        for step in range(60):
            ids = torch.tensor([words(sentence(48, 100 * step + row))["input_ids"] for row in range(8)])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def model():
    """A copy of the trained model."""
    return copy.deepcopy(_trained())
