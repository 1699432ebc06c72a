"""Files: safetensors read one tensor at a time, PEFT's two files, and writing that is whole or not at all."""

from eckart.nn.files.adapter import AdapterFiles, LoraPair, lora_pairs, read_adapter, write_adapter
from eckart.nn.files.atomic import atomic_directory, atomic_write, read_json, require_directory, write_json
from eckart.nn.files.checkpoint import Checkpoint, CheckpointMatrix, open_checkpoint
from eckart.nn.files.tensors import TensorInfo, read_header, read_tensor, save_safetensors

__all__ = [
    "AdapterFiles",
    "Checkpoint",
    "CheckpointMatrix",
    "LoraPair",
    "TensorInfo",
    "atomic_directory",
    "atomic_write",
    "lora_pairs",
    "open_checkpoint",
    "read_adapter",
    "read_header",
    "read_json",
    "read_tensor",
    "require_directory",
    "save_safetensors",
    "write_adapter",
    "write_json",
]
