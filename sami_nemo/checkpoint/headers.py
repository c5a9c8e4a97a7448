"""What the safetensors files of a checkpoint hold, from their headers alone: seconds for any size. Needs no torch.

The weights are those of `model.safetensors`, else of the files that the index names, else of all shards that are there.
What else lies beside them (Mistral's own `consolidated.safetensors`, adapters) is none of the model's.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_nemo.config_json import is_pointer, read_json_file
from sami_nemo.errors import CheckpointError
from sami_nemo.geometry import Geometry

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
# Bytes of an element, by safetensors' names of the types that weights are trained in.
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# safetensors' own limit.
LONGEST_HEADER = 100_000_000
# Buffers that older versions of transformers stored. They are computed from the geometry.
COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Of an equal copy of the embedding, bytes compared at a time.
PIECE = 1 << 24


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor."""

    dtype: str
    """As safetensors calls it: "BF16"."""
    shape: tuple[int, ...]
    file: str = ""
    """Where it is; empty while it is not written."""
    offset: int = 0
    """Bytes in the file before it."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def check_weights(checkpoint: Path, geometry: Geometry, source: str) -> dict[str, TensorInfo]:
    """The tensors of the model, each there once, whole, in its shape and in a type that is trained.

    Raises:
        CheckpointError: the first that is not; or a tensor that the model has no place for.
    """
    stored = read_headers(checkpoint, source)
    expected = model_tensors(geometry)
    found = {name: info for name, info in stored.items() if not COMPUTED.fullmatch(name)}
    for name, info in found.items():
        if info.dtype not in ITEM_BYTES:
            remedy = f"{name} is stored as {info.dtype}; take the checkpoint in bfloat16, float16 or float32"
            raise CheckpointError(source, checkpoint / info.file, remedy)
    if geometry.tied_embeddings and {HEAD, EMBEDDING} <= found.keys():
        copy = found.pop(HEAD)
        if not _same_bytes(checkpoint, found[EMBEDDING], copy):
            remedy = f"its config.json ties the embeddings, and {HEAD} is another tensor; correct one of them"
            raise CheckpointError(source, checkpoint, remedy)
    _compare_names(found, expected, checkpoint, source)
    for name, info in found.items():
        if info.shape != expected[name]:
            shapes = f"has the shape {list(info.shape)}, and {list(expected[name])} by its config.json"
            raise CheckpointError(source, checkpoint / info.file, f"{name} {shapes}; one of them is of another model")
    return found


def _compare_names(found: dict[str, TensorInfo], expected: dict[str, Any], checkpoint: Path, source: str) -> None:
    missing, unknown = [name for name in expected if name not in found], sorted(found.keys() - expected.keys())
    if missing:
        remedy = f"lacks {_some(missing)}, which its config.json asks for; copy or download it again"
        raise CheckpointError(source, checkpoint, remedy)
    if unknown:
        remedy = f"holds tensors that its config.json has no place for: {_some(unknown)}"
        raise CheckpointError(source, checkpoint, remedy)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


def model_tensors(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model."""
    hidden, ffn, vocabulary = geometry.hidden_size, geometry.ffn_hidden_size, geometry.vocab_size
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (vocabulary, hidden)}
    for number in range(geometry.num_layers):
        layer = f"model.layers.{number}."
        tensors |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attn.q_proj.weight": (geometry.query_size, hidden),
            f"{layer}self_attn.k_proj.weight": (geometry.key_size, hidden),
            f"{layer}self_attn.v_proj.weight": (geometry.key_size, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, geometry.query_size),
            f"{layer}post_attention_layernorm.weight": (hidden,),
        }
        if geometry.num_experts is None:
            blocks = {f"{layer}mlp.": ("gate_proj", "down_proj", "up_proj")}
        else:
            moe = f"{layer}block_sparse_moe."
            tensors[f"{moe}gate.weight"] = (geometry.num_experts, hidden)
            blocks = {f"{moe}experts.{expert}.": ("w1", "w2", "w3") for expert in range(geometry.num_experts)}
        for block, (gate, down, up) in blocks.items():
            tensors |= {
                f"{block}{gate}.weight": (ffn, hidden),
                f"{block}{down}.weight": (hidden, ffn),
                f"{block}{up}.weight": (ffn, hidden),
            }
    tensors["model.norm.weight"] = (hidden,)
    return tensors if geometry.tied_embeddings else tensors | {HEAD: (vocabulary, hidden)}


def read_headers(checkpoint: Path, source: str = "model.path") -> dict[str, TensorInfo]:
    """Every tensor of the weights, by name, file by file.

    Raises:
        CheckpointError: there are none; a file is missing, cut, damaged or a pointer of Git LFS; a tensor stands twice.
    """
    index = _read_index(checkpoint, source) if (checkpoint / INDEX).is_file() else None
    tensors: dict[str, TensorInfo] = {}
    for file in _weight_files(checkpoint, index, source):
        for name, info in _read_header(checkpoint / file, source).items():
            if index is not None and name not in index:
                continue
            if name in tensors:
                remedy = f"{name} stands in it and in {tensors[name].file}; keep the weights of one copy"
                raise CheckpointError(source, checkpoint / file, remedy)
            tensors[name] = info
    if index is not None and (missing := [name for name in index if name not in tensors]):
        remedy = f"names {_some(missing)}, which the files do not hold; copy or download the checkpoint again"
        raise CheckpointError(source, checkpoint / INDEX, remedy)
    return tensors


def _weight_files(checkpoint: Path, index: dict[str, str] | None, source: str) -> list[str]:
    if index is not None:
        files = sorted(set(index.values()))
        for file in files:
            if not (checkpoint / file).is_file():
                remedy = "the index names it, and it is not there; copy or download it again"
                raise CheckpointError(source, checkpoint / file, remedy)
        return files
    there = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    if SINGLE in there:
        return [SINGLE]
    shards = {file: match[1] for file in there if (match := SHARD.fullmatch(file))}
    if not shards:
        others = f"({', '.join(there)} are other forms)" if there else "(pickle is not read)"
        remedy = f"holds no {SINGLE} and no shards of it {others}; convert the weights to the form of transformers"
        raise CheckpointError(source, checkpoint, remedy)
    if len(shards) != int(next(iter(shards.values()))):
        remedy = f"holds {len(shards)} of {int(next(iter(shards.values())))} shards; copy or download the others"
        raise CheckpointError(source, checkpoint, remedy)
    return list(shards)


def _read_index(checkpoint: Path, source: str) -> dict[str, str] | None:
    """File by tensor; None where the one file of the weights stands beside an index that was left behind."""
    names = read_json_file(checkpoint / INDEX, checkpoint, source).get("weight_map")
    sound = isinstance(names, dict) and all(
        isinstance(file, str) and Path(file).name == file for file in names.values()
    )
    if not sound or not names:
        raise CheckpointError(source, checkpoint / INDEX, "has no weight_map of files; copy or download it again")
    assert isinstance(names, dict)
    return None if (checkpoint / SINGLE).is_file() and SINGLE not in names.values() else names


def _read_header(path: Path, source: str) -> dict[str, TensorInfo]:
    again = "copy or download it again"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if is_pointer(head):
            raise CheckpointError(source, path, "is a Git LFS pointer; run `git lfs pull` there")
        if len(head) < 8:
            raise CheckpointError(source, path, f"is cut off: it has {size} bytes; {again}")
        (length,) = struct.unpack("<Q", head[:8])
        if length > min(LONGEST_HEADER, size - 8):
            raise CheckpointError(source, path, f"is cut off or no safetensors file; {again}")
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(entry["dtype"], tuple(entry["shape"]), path.name, 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise CheckpointError(source, path, f"has a damaged header; {again}") from None
    if size != 8 + length + end:
        raise CheckpointError(source, path, f"has {size} bytes instead of {8 + length + end}; {again}")
    return tensors


def _same_bytes(checkpoint: Path, one: TensorInfo, other: TensorInfo) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with (checkpoint / one.file).open("rb") as first, (checkpoint / other.file).open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        for start in range(0, one.nbytes, PIECE):
            count = min(PIECE, one.nbytes - start)
            if first.read(count) != second.read(count):
                return False
    return True
