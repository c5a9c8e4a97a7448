"""Checkpoints made by hand: the right header over a hole in the file, for what looks at headers alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save

from sami_nemo.checkpoint.headers import ITEM_BYTES, model_tensors
from sami_nemo.config_json import geometry_of
from sami_nemo.run_dir import RunDir


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """A safetensors file of zeros that takes no room on the disk."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * ITEM_BYTES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def weights(config: Mapping[str, Any], shards: int = 1) -> list[bytes]:
    """The weights that a config.json describes, all 0, spread over safetensors files."""
    shapes = list(model_tensors(geometry_of(dict(config), Path("m"))).items())
    files = []
    for number in range(shards):
        part = dict(shapes[number::shards])
        tensors = {name: numpy.zeros(shape, dtype=numpy.float16) for name, shape in part.items()}
        files.append(save(tensors, metadata={"format": "pt"}))
    return files


def write_weights(directory: Path, config: Mapping[str, Any], name: str = "model.safetensors") -> None:
    """The weights that a config.json describes, in one file."""
    write_safetensors(directory / name, model_tensors(geometry_of(dict(config), directory)))


def give(run: RunDir, checkpoint: Path, iteration: int = 0) -> None:
    """The model of an iteration, the base model if not given, as stage `model` leaves it: but for a link in one piece."""
    run.iteration(iteration).mkdir(parents=True, exist_ok=True)
    run.hf(iteration).symlink_to(checkpoint.absolute())
