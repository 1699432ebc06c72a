"""Peak memory of scanning a checkpoint on disk, above the process's own, in units of its largest matrix in fp32.

    python benchmarks/scan.py [--gigabytes 2] [--dtype float32|bfloat16] [--modes fast full] [--json]

Writes a sharded checkpoint of that size with the shapes of a decoder layer (width 2048, intermediate 8192) into a
temporary folder, every second layer with singular values that fall over eight decades (harder for both modes), then
measures it in a fresh process for each mode. Linux only: it reads /proc/self/status.
The bounds: 3 × for fast, 6 × for full.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUNDS = {"fast": 3, "full": 6}
SHAPES = {
    "q_proj": (2048, 2048),
    "k_proj": (512, 2048),
    "o_proj": (2048, 2048),
    "up_proj": (8192, 2048),
    "down_proj": (2048, 8192),
}


def write_checkpoint(folder: Path, gigabytes: float, dtype_name: str) -> int:
    """Write shards of one layer each until the size is reached; return the bytes of the largest matrix in fp32."""
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    layer_bytes = sum(m * n for m, n in SHAPES.values()) * dtype.itemsize
    layers = max(1, round(gigabytes * 1e9 / layer_bytes))
    weight_map = {}
    for layer in range(layers):
        shard = f"model-{layer:05}.safetensors"
        decades = 8.0 * (layer % 2)
        tensors = {
            f"model.layers.{layer}.{kind}.weight": (
                torch.randn(m, n, generator=generator) * torch.logspace(0, -decades, n)
            ).to(dtype)
            for kind, (m, n) in SHAPES.items()
        }
        save_file(tensors, folder / shard)
        weight_map.update(dict.fromkeys(tensors, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return max(m * n for m, n in SHAPES.values()) * 4


def scan(folder: str, mode: str) -> dict[str, float]:
    """Measure in this process: peak resident memory above what it had before, and seconds."""
    import torch

    import eckart

    eckart.measure(torch.nn.Sequential(torch.nn.Linear(300, 300)), mode=mode)  # load the libraries, start the threads
    status = Path("/proc/self/status")

    def kilobytes(field: str) -> int:
        return int(status.read_text().split(field)[1].split()[0])

    before = kilobytes("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    start = time.perf_counter()
    profile = eckart.measure(folder, mode=mode)
    seconds = time.perf_counter() - start
    return {"bytes": (kilobytes("VmHWM:") - before) * 1024, "seconds": seconds, "matrices": len(profile.entries)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--modes", nargs="+", default=["fast", "full"], choices=["fast", "full"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(scan(*arguments.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        largest = write_checkpoint(Path(folder), arguments.gigabytes, arguments.dtype)
        size = sum(f.stat().st_size for f in Path(folder).iterdir())
        for mode in arguments.modes:
            command = [sys.executable, __file__, "--child", folder, mode]
            result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            ratio = result["bytes"] / largest
            row = {"mode": mode, "dtype": arguments.dtype, "checkpoint_gb": size / 1e9, "ratio": ratio, **result}
            if arguments.json:
                print(json.dumps(row))
            else:
                print(
                    f"{mode}: {size / 1e9:.2f} GB {arguments.dtype}, {result['matrices']} matrices, "
                    f"{result['seconds']:.1f} s, peak {ratio:.2f} × the largest matrix in fp32 (bound {BOUNDS[mode]})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
