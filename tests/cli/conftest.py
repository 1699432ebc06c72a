"""A tiny language model on disk, rows of text, and `eckart` as its console script runs it."""

import json
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eckart.cli import main

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "its", "own", "rank", "fall"]
TEMPLATE = (
    "{% for turn in messages %}{{ 'the ' + turn['role'] + ' ' + turn['content'] + ' . ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'the assistant ' }}{% endif %}"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Llama of one layer with a tokenizer of words, as save_pretrained writes them."""
    place = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64,
        )
    ).save_pretrained(place)  # fmt: skip
    known = {word: i for i, word in enumerate(["<unk>", *WORDS, "user", "assistant", ".", "<end>"])}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def rows(tmp_path):
    """Forty short texts."""
    file = tmp_path / "train.jsonl"
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(4 + i % 7)) for i in range(40)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return file


@pytest.fixture
def run(monkeypatch, capsys):
    """`eckart` in this process as its console script runs it: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["eckart", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call
