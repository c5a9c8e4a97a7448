"""Megatron to Hugging Face checkpoint: one tensor at a time, from any parallel layout."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sami_nemo.checkpoint.headers import INDEX, TensorInfo, read_headers
from sami_nemo.checkpoint.hf_map import Layout
from sami_nemo.checkpoint.placement import Placed, place_parameters
from sami_nemo.checkpoint.safetensors_io import DTYPE_NAMES, StreamingWriter
from sami_nemo.errors import CheckpointError
from sami_nemo.geometry import with_dtype
from sami_nemo.progress import report
from sami_nemo.run_dir import read_json, write_json

SHARD_BYTES = 5 * 1000**3  # what the Hugging Face hub recommends at most
# Configuration and tokenizer; weights in other formats are left behind.
COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
CONFIG = "config.json"
NOT_COPIED = {INDEX, CONFIG, "manifest.json"}


@dataclass(frozen=True)
class Part:
    """One rank's part of a Megatron parameter, as announced to rank 0."""

    holder: int
    """Global rank."""
    rank: int
    ranks: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout


Parts = dict[tuple[str, ...], list[Part]]
"""The parts of each Megatron parameter, by the Hugging Face names it consists of, in tensor-parallel order."""


def export_hf(model: torch.nn.Module, base: Path, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model to `directory` in the names and order of the checkpoint `base`; collective.

    The weights are written in the type in which they were trained, whatever the type of `base`: rounded to another, they
    would be another model. Rank 0 receives the parts of one Megatron parameter at a time, so its memory does not grow with
    the model.

    Args:
        model: Megatron's (unwrapped) GPTModel of this rank.
        base: the Hugging Face checkpoint that the model was made from. Configuration and tokenizer are copied, and the
            type of the weights is corrected.
        directory: an empty directory that rank 0 can write.

    Raises:
        CheckpointError: a tensor of `base` that no rank holds, or one that is not finite.
    """
    mine = {placed.hf_names: placed for placed in place_parameters(model) if placed.exported}
    index = read_headers(base)
    parts = _announce(mine, index, base)
    rank = torch.distributed.get_rank()
    writer = None
    if rank == 0:
        tensors = {
            name: TensorInfo(DTYPE_NAMES[held[0].dtype], index[name].shape)
            for names, held in parts.items()
            for name in names
        }
        writer = StreamingWriter(directory, tensors, shard_bytes)
    for done, (names, held) in enumerate(parts.items(), start=1):
        if writer is not None:
            shards = [_receive(mine.get(names), part) for part in held]
            for name, tensor in zip(names, held[0].layout.join(shards), strict=True):
                _refuse_non_finite(name, tensor)
                writer.write(name, tensor)
            report(done, len(parts), "tensors")
        elif any(part.holder == rank for part in held):
            torch.distributed.send(mine[names].parameter.detach().contiguous(), dst=0)
    if writer is not None:
        writer.finish()
        _copy_companions(base, directory)
        dtype = str(next(iter(parts.values()))[0].dtype).removeprefix("torch.")
        write_json(directory / CONFIG, with_dtype(read_json(base / CONFIG), dtype))


def _refuse_non_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise CheckpointError("export", name, f"is not finite as {tensor.dtype}; lower train.lr")


def _announce(mine: dict[tuple[str, ...], Placed], index: dict[str, TensorInfo], base: Path) -> Parts:
    """Who holds what, the same on every rank, in the order of the base checkpoint."""
    own = {
        names: Part(
            torch.distributed.get_rank(),
            placed.rank,
            placed.ranks if placed.layout.sharded else 1,
            tuple(placed.parameter.shape),
            placed.parameter.dtype,
            placed.layout,
        )
        for names, placed in mine.items()
    }
    everyone: list[dict[tuple[str, ...], Part]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    parts: Parts = {}
    for announced in everyone:
        for names, part in announced.items():
            parts.setdefault(names, []).append(part)
    for names, held in parts.items():
        held.sort(key=lambda part: part.rank)
        if [part.rank for part in held] != list(range(held[0].ranks)):
            raise CheckpointError("export", names[0], f"is held by tensor-parallel ranks {[p.rank for p in held]}")
    held_names = {name for names in parts for name in names}
    if held_names != set(index):
        odd = ", ".join(sorted(held_names ^ set(index))[:3])
        raise CheckpointError("export", base, f"and the trained model do not hold the same tensors ({odd}, …)")
    order = {name: position for position, name in enumerate(index)}
    return dict(sorted(parts.items(), key=lambda item: order[item[0][0]]))


def _receive(own: Placed | None, part: Part) -> Tensor:
    if part.holder == 0:
        assert own is not None
        return own.parameter.detach()
    received = torch.empty(part.shape, dtype=part.dtype).cuda()
    torch.distributed.recv(received, src=part.holder)
    return received


def _copy_companions(base: Path, directory: Path) -> None:
    """Generation configuration and tokenizer, unchanged."""
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix in COPIED_SUFFIXES and file.name not in NOT_COPIED:
            shutil.copyfile(file, directory / file.name)
            with (directory / file.name).open("rb") as copied:
                os.fsync(copied.fileno())
