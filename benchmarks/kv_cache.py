"""What a cache of latents costs in perplexity and saves in bytes, and how fast it decodes.

    OMP_NUM_THREADS=1 python benchmarks/kv_cache.py                     # SmolLM2-135M: under three minutes
    python benchmarks/kv_cache.py --shares 0.9,0.75 --text wiki.txt     # perplexity on another text too

Values are fitted on 8 × 1024 tokens of pydoc and perplexity is measured on others, in context 1024. The cache is that
of one prompt; its bytes are counted and compared with the formula. Decoding: that prompt is prefilled, then tokens
follow one by one, ways taking turns; the median ratio to the whole cache.
"""

import argparse
import statistics
import time

import torch
from transformers import PreTrainedModel

from eckart.lm import batches, cached_bytes, compress_cache, load, perplexity, read_text

CONTEXT = 1024


@torch.inference_mode()
def prefilled(model: PreTrainedModel, prompt: torch.Tensor) -> tuple[object, float]:  # (1, T)
    """A cache with a prompt in it, and the seconds that it took."""
    start = time.perf_counter()
    return model(prompt, use_cache=True, logits_to_keep=1).past_key_values, time.perf_counter() - start


@torch.inference_mode()
def decoded(model: PreTrainedModel, cache: object, tokens: int) -> float:
    """Seconds for so many tokens, one by one."""
    ids = torch.ones(1, 1, dtype=torch.long)
    start = time.perf_counter()
    for _ in range(tokens):
        model(ids, past_key_values=cache, use_cache=True)
    return time.perf_counter() - start


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shares", default="1,0.75,0.5")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--calibration", type=int, default=8, help="sequences of 1024 tokens")
    parser.add_argument("--text", help="a text file, for perplexity on it too")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer, _ = load(options.model)
    text = read_text("pydoc", limit=40 * options.tokens)
    half = len(text) // 2
    texts = {"pydoc": text[:half]} | ({"text": read_text(options.text)} if options.text else {})
    calibration = batches(tokenizer, text[half:], length=CONTEXT, count=options.calibration)
    prompt = batches(tokenizer, texts["pydoc"], length=CONTEXT, count=1)[0]["input_ids"]
    base = dict.fromkeys(texts, 0.0)
    print(f"{'share':>6} {'bytes/token':>12} {'cache MB':>9} {'of whole':>9} {'prefill':>8} {'decode':>7}  perplexity")
    for share in [float(each) for each in options.shares.split(",")]:
        small = compress_cache(load(options.model)[0], calibration, share=share)
        cache, _ = prefilled(small.model, prompt)
        held = cached_bytes(cache)
        assert held == small.bytes_after * prompt.numel(), "the cache's bytes are not those of the formula"
        found = {
            name: perplexity(small.model, tokenizer, each, context=CONTEXT, tokens=options.tokens).value
            for name, each in texts.items()
        }
        base = {name: base[name] or found[name] for name in found}
        ratios = timed(model, small.model, prompt, options.turns)
        told = ", ".join(f"{name} {value:.3f} (× {value / base[name]:.4f})" for name, value in found.items())
        print(
            f"{share:6.2f} {small.bytes_after:12} {held / 1e6:9.2f} {small.bytes_after / small.bytes_before:9.3f} "
            f"{ratios[0]:8.2f} {ratios[1]:7.2f}  {told}"
        )


def timed(whole: PreTrainedModel, small: PreTrainedModel, prompt: torch.Tensor, turns: int) -> tuple[float, float]:
    """Time ÷ time with the whole cache, of prefill and of decode: medians, taking turns."""
    prefill, decode = [], []
    for _ in range(turns):
        (cache, first), (other, second) = prefilled(whole, prompt), prefilled(small, prompt)
        prefill.append(second / first)
        decode.append(decoded(small, other, 16) / decoded(whole, cache, 16))
    return statistics.median(prefill), statistics.median(decode)


if __name__ == "__main__":
    main()
