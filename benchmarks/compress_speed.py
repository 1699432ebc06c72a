"""Tokens per second of a compressed SmolLM2-135M beside dense and plain int8, at prefill and decode, taking turns.

    python benchmarks/compress_speed.py                  # keep 0.6 by `auto`
    python benchmarks/compress_speed.py --keep 0.8 --method two-sided

Speed hangs on shapes alone, so calibration is short (16 × 256 tokens of pydoc); of quality compress_quality.py tells.
The embedding and the tied head stay dense, and prefill computes the head at every position.
"""

import argparse

import eckart.lm as lm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    small = lm.compress(
        "smollm2-135m", text="pydoc", keep=given.keep, method=given.method, sequences=16, length=256, held_out=2,
        gradient_batches=8,
    )  # fmt: skip
    print(small.plan.title("compressed"))
    print(small.measure_speed(int8=True, prompt=given.prompt, new=given.new, rounds=given.rounds))


if __name__ == "__main__":
    main()
