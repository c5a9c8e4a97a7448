"""Hugging Face checkpoints on disk: reading slices of sharded safetensors, and writing them as a stream."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from sami_nemo.errors import CheckpointError
from sami_nemo.run_dir import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TORCH_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _TORCH_TYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    """Where it is; empty while it is not written."""

    @classmethod
    def of(cls, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorInfo:
        """A tensor to be written."""
        return cls(_NAMES[dtype], shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _TORCH_TYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.torch_dtype.itemsize


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if path.stat().st_size != 8 + length + end:
        raise CheckpointError("checkpoint", path, "is truncated; copy or download it again")
    assert isinstance(header, dict)
    return header


def read_index(checkpoint: Path) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint directory, by name.

    Raises:
        CheckpointError: no safetensors, a missing or truncated file, or a tensor in an unsupported type.
    """
    files = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    if (checkpoint / INDEX).is_file():
        files = sorted(set(json.loads((checkpoint / INDEX).read_text())["weight_map"].values()))
    if not files:
        raise CheckpointError("model.path", checkpoint, "holds no safetensors; convert the weights to safetensors")
    tensors = {}
    for file in files:
        if not (checkpoint / file).is_file():
            raise CheckpointError("model.path", checkpoint / file, "is named by the index and missing")
        for name, entry in _read_header(checkpoint / file).items():
            if entry["dtype"] not in _TORCH_TYPES:
                raise CheckpointError(
                    "model.path", f"{checkpoint / file}: {name} as {entry['dtype']}", "use float or bfloat16 weights"
                )
            tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), file)
    return tensors


@contextlib.contextmanager
def open_slices(checkpoint: Path) -> Iterator[Any]:
    """A function from tensor name to a slice that reads from disk only what is taken of it."""
    index = read_index(checkpoint)
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
        data = tensor.detach().to(device="cpu", dtype=info.torch_dtype).contiguous()
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
