"""What `import eckart` costs beyond `import torch`: medians of interleaved fresh processes.

    python benchmarks/import_cost.py [--rounds 15]

The bound: 5 %.
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
    pairs = [(seconds("import torch"), seconds("import torch, eckart; eckart.measure")) for _ in range(rounds + 1)][1:]
    torch_alone, both = median(p[0] for p in pairs), median(p[1] for p in pairs)
    ratio = median(b / a for a, b in pairs)
    print(f"import torch {torch_alone:.2f} s, import torch, eckart {both:.2f} s: ratio {ratio:.3f} (bound 1.05)")


if __name__ == "__main__":
    main()
