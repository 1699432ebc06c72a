"""What `import eckart`, and the first use of `measure`, cost beyond `import torch`: medians of interleaved processes.

    python benchmarks/import_cost.py [--rounds 15]

The bound: 1.05 for `import torch, eckart`.
"""

import argparse
import subprocess
import sys
import time
from statistics import median


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    codes = ("import torch", "import torch, eckart", "import torch, eckart; eckart.measure")
    times = [[seconds(code) for code in codes] for _ in range(rounds + 1)][1:]
    for code, column in zip(codes, zip(*times, strict=True), strict=True):
        ratio = median(each / alone for each, (alone, *_) in zip(column, times, strict=True))
        print(f"{code:40} {median(column):6.2f} s   {ratio:.3f} × import torch")


if __name__ == "__main__":
    main()
