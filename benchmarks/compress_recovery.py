"""What gradient steps win back after compression: both ways of `recover`, with their defaults, on SmolLM2-135M.

    python benchmarks/compress_recovery.py --data wikitext-2/                  # both, about six minutes each
    python benchmarks/compress_recovery.py --data wikitext-2/ --how blocks --keep 0.8 --method auto

Calibrated and fitted on 32 sequences of 256 tokens, three of WikiText-2's validation text to one of pydoc; perplexity
of the first 4,096 tokens of WikiText-2's test text and of pydoc, before and after the steps.
"""

import argparse
from pathlib import Path

import eckart.lm as lm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of WikiText-2's test.txt and valid.txt")
    parser.add_argument("--how", nargs="+", default=["blocks", "lora"])
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--method", default="two-sided")
    given = parser.parse_args()
    for how in given.how:
        small = lm.compress(
            "smollm2-135m", text={given.data / "valid.txt": 3, "pydoc": 1}, keep=given.keep, method=given.method,
            sequences=32, length=256, evaluate={"wikitext-2": given.data / "test.txt", "pydoc": "pydoc"}, tokens=4096,
            curve=[given.keep], recover=how,
        )  # fmt: skip
        print(f"{small.recovery}, {small.recovery.seconds:.0f} s")
        for name, before in small.curve[0]["perplexities"].items():
            dense, after = small.before.perplexities[name], small.after.perplexities[name]
            print(f"  {name}: perplexity {before:.1f} → {after:.1f} (dense {dense:.1f})", flush=True)


if __name__ == "__main__":
    main()
