"""Whether the weights of a checkpoint are whole, told from their headers."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from sami_nemo.base_model import random_model
from sami_nemo.checkpoint.headers import INDEX, SINGLE, check_weights, model_tensors, read_headers
from sami_nemo.config_json import geometry_of, read_geometry
from sami_nemo.errors import CheckpointError
from sami_nemo.geometry import Geometry
from tests.checkpoints import write_safetensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.fixture
def checkpoint(tiny_mistral: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return Path(shutil.copytree(tiny_mistral, tmp_path / "own"))


@pytest.fixture
def sharded(tiny_mistral: Path, tmp_path: Path) -> Path:
    """The same in several shards with an index."""
    directory = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_mistral).save_pretrained(directory, max_shard_size="500KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


def check(checkpoint: Path) -> dict[str, Any]:
    return check_weights(checkpoint, read_geometry(checkpoint), "model.path")


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check(checkpoint)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"model.path = {checkpoint}")
    return str(caught.value)


@pytest.mark.parametrize("architecture", ["mistral", "mixtral", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_names_and_shapes_are_those_of_transformers(architecture: Any, tied: bool, tmp_path: Path) -> None:
    experts = 3 if architecture == "mixtral" else None
    geometry = random_model.geometry(architecture, num_experts=experts, num_key_value_heads=1)
    config = geometry.hf() | {"tie_word_embeddings": tied}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16).save_pretrained(tmp_path)
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / SINGLE).items()}
    assert model_tensors(read_geometry(tmp_path)) == stored
    assert {name: info.shape for name, info in check(tmp_path).items()} == stored


def test_sharded_checkpoint_is_read_by_its_index(sharded: Path, tiny_mistral: Path) -> None:
    assert check(sharded).keys() == read_headers(tiny_mistral).keys()
    (sharded / INDEX).unlink()
    assert check(sharded).keys() == read_headers(tiny_mistral).keys()


def test_what_lies_beside_the_weights_is_not_looked_at(sharded: Path, checkpoint: Path) -> None:
    for directory in (sharded, checkpoint):
        for name in ("consolidated.safetensors", "adapter_model.safetensors"):
            (directory / name).write_bytes(b"of another form")
        check(directory)


def test_an_index_that_was_left_behind_does_not_count(checkpoint: Path, sharded: Path) -> None:
    shutil.copyfile(sharded / INDEX, checkpoint / INDEX)
    assert {info.file for info in check(checkpoint).values()} == {SINGLE}


Damage = Callable[[Path], object]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda path: path.write_bytes(POINTER), "is a Git LFS pointer; run `git lfs pull`"),
        (lambda path: path.write_bytes(b""), "is cut off: it has 0 bytes"),
        (lambda path: cut(path, 5), "is cut off: it has 5 bytes"),
        (lambda path: cut(path, 500), "is cut off"),
        (lambda path: cut(path, path.stat().st_size - 100), "bytes instead of"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "bytes instead of"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "no safetensors file"),
        (lambda path: path.write_bytes(struct.pack("<Q", 9) + b'{"a": 1}}'), "damaged header"),
        (lambda path: path.write_bytes(struct.pack("<Q", 8) + b'{"a": 1}'), "damaged header"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"), "damaged header"),
        (lambda path: path.write_bytes(b"PK\x03\x04 a zip file of pickles " * 10), "no safetensors file"),
    ],
    ids=["pointer", "empty", "five bytes", "cut header", "cut data", "too long", "no header", "no JSON", "no entry",
         "no object", "pickle"],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused(checkpoint: Path, damage: Damage, part: str) -> None:
    damage(checkpoint / SINGLE)
    assert part in refusal(checkpoint)


@pytest.mark.parametrize(
    ("index", "part"),
    [
        (POINTER.decode(), "Git LFS pointer"),
        ('{"weight_map": {"model.norm.weight": "model-000', "cannot be read as JSON"),
        ("[]", "not a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"model.norm.weight": 3}}', "has no weight_map"),
        ('{"weight_map": {"model.norm.weight": "../other/model-00001-of-00001.safetensors"}}', "has no weight_map"),
        ('{"weight_map": {"model.norm.weight": "model-00009-of-00009.safetensors"}}', "the index names it"),
    ],
)
def test_a_broken_index_is_refused(sharded: Path, index: str, part: str) -> None:
    (sharded / INDEX).write_text(index)
    assert part in refusal(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    assert f"{missing}: the index names it" in refusal(sharded)
    (sharded / INDEX).unlink()
    assert "shards; copy or download the others" in refusal(sharded)


def test_an_index_that_names_more_than_is_there(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.7.mlp.up_proj.weight"] = sorted(index["weight_map"].values())[0]
    (sharded / INDEX).write_text(json.dumps(index))
    assert "names model.layers.7.mlp.up_proj.weight, which the files do not hold" in refusal(sharded)


def test_other_forms_alone_are_no_weights(checkpoint: Path) -> None:
    (checkpoint / SINGLE).rename(checkpoint / "consolidated.safetensors")
    assert "holds no model.safetensors and no shards of it (consolidated.safetensors are other forms)" in refusal(
        checkpoint
    )
    (checkpoint / "consolidated.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "pickle is not read" in refusal(checkpoint)


def change(checkpoint: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or, where None, remove tensors; `__` in a name stands for a dot."""
    held = load_file(checkpoint / SINGLE)
    for name, tensor in tensors.items():
        held.pop(name.replace("__", "."), None)
        if tensor is not None:
            held[name.replace("__", ".")] = tensor
    save_file(held, checkpoint / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"lm_head__weight": None}, "lacks lm_head.weight"),
        ({"model__norm__weight": None, "lm_head__weight": None}, "lacks model.norm.weight, lm_head.weight"),
        ({"model__layers__2__mlp__up_proj__weight": torch.zeros(2)}, "has no place for: model.layers.2.mlp.up_proj.weight"),
        ({"model__layers__0__self_attn__q_proj__bias": torch.zeros(128)}, "has no place for"),
        ({"lm_head__weight": torch.zeros(1030, 128)}, "has the shape [1030, 128], and [1024, 128] by its config.json"),
        ({"model__norm__weight": torch.zeros(128, dtype=torch.float64)}, "is stored as F64"),
        ({"model__norm__weight": torch.zeros(128, dtype=torch.int8)}, "is stored as I8"),
        ({"model__norm__weight": torch.zeros(128).to(torch.float8_e4m3fn)}, "is stored as F8_E4M3"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused(checkpoint: Path, tensors: dict[str, Any], part: str) -> None:
    change(checkpoint, **tensors)
    assert part in refusal(checkpoint)


def test_stored_rotary_frequencies_are_ignored(checkpoint: Path) -> None:
    before = check(checkpoint).keys()
    change(checkpoint, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(16))
    assert check(checkpoint).keys() == before


def test_a_tied_head_that_is_stored_has_to_be_the_embedding(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert "ties the embeddings, and lm_head.weight is another tensor" in refusal(checkpoint)
    embedding = load_file(checkpoint / SINGLE)["model.embed_tokens.weight"]
    change(checkpoint, lm_head__weight=embedding.clone())
    assert "lm_head.weight" not in check(checkpoint)
    embedding = embedding.clone()
    embedding[-1, -1] += 1
    change(checkpoint, lm_head__weight=embedding)
    assert "is another tensor" in refusal(checkpoint)


def test_a_tensor_that_stands_twice_is_refused(checkpoint: Path) -> None:
    geometry = read_geometry(checkpoint)
    (checkpoint / SINGLE).unlink()
    shapes = model_tensors(geometry)
    write_safetensors(checkpoint / "model-00001-of-00002.safetensors", shapes)
    write_safetensors(checkpoint / "model-00002-of-00002.safetensors", {"lm_head.weight": shapes["lm_head.weight"]})
    assert "lm_head.weight stands in it and in model-00001-of-00002.safetensors" in refusal(checkpoint)


def test_a_large_model_takes_no_time(tmp_path: Path) -> None:
    """Mixtral 8x22B: 1,739 tensors, 281 GB, of which nothing but headers is read."""
    large: Geometry = geometry_of(
        {
            "model_type": "mixtral", "num_hidden_layers": 56, "hidden_size": 6144, "intermediate_size": 16384,
            "num_attention_heads": 48, "num_key_value_heads": 8, "num_local_experts": 8, "vocab_size": 32768,
        },
        tmp_path,
    )  # fmt: skip
    shapes = model_tensors(large)
    write_safetensors(tmp_path / SINGLE, shapes)
    assert sum(info.nbytes for info in check_weights(tmp_path, large, "model.path").values()) > 280e9
