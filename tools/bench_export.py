"""How fast a trained model is exported, beside a plain safetensors save of the same bytes.

.venv/train/bin/python tools/bench_export.py [--model models/smollm2-135m] [--repeats N]

The export gathers, renames and splits Megatron's parameters one at a time; its verification is not part of it. Both write
through to the disk, in turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core import parallel_state
from safetensors.torch import load_file, save_file

from sami_nemo.bench.measure import machine, paired, table
from sami_nemo.checkpoint.hf_export import export_hf
from sami_nemo.checkpoint.hf_import import load_hf_weights
from sami_nemo.config.compose import compose
from sami_nemo.config_json import read_geometry
from sami_nemo.errors import EXIT_USER_ERROR, UserError
from sami_nemo.model.cpu_backend import cpu_backend
from sami_nemo.model.megatron_config import nemo_config


def measure(checkpoint: Path, folder: Path, repeats: int) -> tuple[list[float], list[float], int]:
    """Seconds of each export and of each plain save, after one of both that is not counted, and the bytes written.

    Raises:
        UserError: `checkpoint` is none, or of another architecture.
    """
    model = nemo_config(read_geometry(checkpoint), compose([]).train, 1024, on_gpu=False).configure_model(None)
    load_hf_weights(model, checkpoint)
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.glob("*.safetensors"):
        # As many bytes as the export has, and copies: pages of a mapped file would be read while they are written.
        dtype = model.config.params_dtype
        tensors |= {name: tensor.to(dtype, copy=True) for name, tensor in load_file(file).items()}

    def export(target: Path) -> None:
        export_hf(model, checkpoint, target)

    def save(target: Path) -> None:
        save_file(tensors, target / "model.safetensors")
        with (target / "model.safetensors").open("rb") as file:
            os.fsync(file.fileno())

    exports, saves = [], []
    for _ in range(repeats + 1):
        exports.append(_seconds(export, folder))
        saves.append(_seconds(save, folder))
    return exports[1:], saves[1:], sum(tensor.nbytes for tensor in tensors.values())


def _seconds(write: Callable[[Path], None], folder: Path) -> float:
    """Of a write into a directory of its own."""
    target = folder / "checkpoint"
    target.mkdir()
    began = time.monotonic()
    write(target)
    passed = time.monotonic() - began
    shutil.rmtree(target)
    return passed


def bench(checkpoint: Path, repeats: int) -> str:
    """The table."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder, cpu_backend():
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        exports, saves, size = measure(checkpoint, Path(folder), repeats)
        torch.distributed.destroy_process_group()
    rates = [f"{size / 1e6 / statistics.median(times):.0f} MB/s" for times in (exports, saves)]
    row = [checkpoint.name, f"{size / 1e6:.0f} MB", *rates, f"**{paired(exports, saves):.0%}**"]
    return table(("model", "size", "export", "plain save", "as fast"), [row])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{machine()}; medians of {arguments.repeats}, ratios paired\n", flush=True)
    try:
        print(bench(arguments.model, arguments.repeats))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
