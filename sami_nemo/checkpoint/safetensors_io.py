"""Hugging Face checkpoints on disk: reading slices of sharded safetensors, and writing them as a stream."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from sami_nemo.checkpoint.headers import INDEX, SINGLE, TensorInfo, read_headers
from sami_nemo.run_dir import write_json

TORCH_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_TYPES.items()}


@contextlib.contextmanager
def open_slices(checkpoint: Path) -> Iterator[Any]:
    """A function from tensor name to a slice that reads from disk only what is taken of it."""
    index = read_headers(checkpoint)
    with contextlib.ExitStack() as stack:
        opened: dict[str, Any] = {}

        def slices(name: str) -> Any:
            file = index[name].file
            if file not in opened:
                opened[file] = stack.enter_context(safe_open(checkpoint / file, framework="pt"))
            return opened[file].get_slice(name)

        yield slices


class StreamingWriter:
    """Writes tensors in a known order into sharded safetensors, holding one at a time.

    Args:
        directory: receives the files.
        tensors: name to dtype and shape, in the order in which `write` will be called.
        shard_bytes: a file is closed before it would grow beyond this; a single tensor may.
    """

    def __init__(self, directory: Path, tensors: Mapping[str, TensorInfo], shard_bytes: int) -> None:
        self.directory = directory
        self.tensors = tensors
        self.shards = _shards(tensors, shard_bytes)
        self.names = iter(tensors)
        self.open_file: IO[bytes] | None = None
        self.weight_map: dict[str, str] = {}
        self._left: list[str] = []

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor, in the dtype that was announced."""
        assert name == next(self.names), f"{name} is out of order"
        info = self.tensors[name]
        assert tuple(tensor.shape) == info.shape, f"{name}: {tuple(tensor.shape)} instead of {info.shape}"
        if not self._left:
            self._begin()
        assert self.open_file is not None
        data = tensor.detach().to(device="cpu", dtype=TORCH_TYPES[info.dtype]).contiguous()
        self.open_file.write(data.view(torch.uint8).numpy().data)
        self._left.pop(0)
        if not self._left:
            self._end()

    def _begin(self) -> None:
        number = len(set(self.weight_map.values()))
        names = self.shards[number]
        count = len(self.shards)
        file = SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            info = self.tensors[name]
            offsets = [offset, offset + info.nbytes]
            header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
            offset += info.nbytes
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
        self.open_file = (self.directory / file).open("wb")
        self.open_file.write(struct.pack("<Q", len(encoded)) + encoded)
        self.weight_map |= dict.fromkeys(names, file)
        self._left = list(names)

    def _end(self) -> None:
        assert self.open_file is not None
        self.open_file.flush()
        os.fsync(self.open_file.fileno())
        self.open_file.close()
        self.open_file = None

    def finish(self) -> None:
        """Write the index of a sharded checkpoint. Every announced tensor must have been written."""
        missing = next(self.names, None)
        assert missing is None, f"{missing} was never written"
        if len(self.shards) > 1:
            total = sum(info.nbytes for info in self.tensors.values())
            write_json(self.directory / INDEX, {"metadata": {"total_size": total}, "weight_map": self.weight_map})


def _shards(tensors: Mapping[str, TensorInfo], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, info in tensors.items():
        if shards[-1] and used + info.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += info.nbytes
    return shards
