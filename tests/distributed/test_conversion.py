"""Hugging Face to Megatron and back, in every layout; log-probs and gradients against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sami_nemo.checkpoint.hf_verify import hf_logits, verify_export
from sami_nemo.errors import CheckpointError
from sami_nemo.run_dir import read_json
from tests.distributed import conversion_worker
from tests.distributed.ranks import run_ranks, tail

pytestmark = pytest.mark.slow

ONE: dict[str, dict[str, Any]] = {"one process": {}, "in bf16": {"precision": "bf16"}}
TWO_DENSE: dict[str, dict[str, Any]] = {
    "tensor parallel": {"tensor_parallel": 2},
    "tensor and sequence parallel": {"tensor_parallel": 2, "sequence_parallel": True},
    "pipeline parallel": {"pipeline_parallel": 2},
    "data parallel": {},
    "tensor parallel in bf16": {"tensor_parallel": 2, "precision": "bf16"},
}
TWO_MOE: dict[str, dict[str, Any]] = {
    "expert parallel": {"expert_parallel": 2},
    "expert parallel in bf16": {"expert_parallel": 2, "precision": "bf16"},
    "tensor and sequence parallel": {"tensor_parallel": 2, "sequence_parallel": True},
    "pipeline parallel": {"pipeline_parallel": 2},
}
FOUR_MOE: dict[str, dict[str, Any]] = {
    "tensor and expert parallel": {"tensor_parallel": 2, "sequence_parallel": True, "expert_parallel": 2},
    "pipeline and expert parallel": {"pipeline_parallel": 2, "expert_parallel": 2},
}


def convert(processes: int, checkpoint: Path, folder: Path, layouts: dict[str, dict[str, Any]]) -> Any:
    log = folder / "ranks.log"
    assert run_ranks(processes, log, conversion_worker.convert, checkpoint, folder, layouts) == 0, tail(log)
    return read_json(folder / "report.json")


@pytest.mark.parametrize("kind", ["dense", "tied", "moe"])
def test_one_process_equals_transformers(kind: str, tiny_mistral: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    checkpoint = {"dense": tiny_mistral, "tied": tmp_path / "base", "moe": tiny_mixtral}[kind]
    if kind == "tied":
        model = AutoModelForCausalLM.from_pretrained(tiny_mistral)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(checkpoint)
        assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
    report, in_bf16 = convert(1, checkpoint, tmp_path, ONE).values()
    assert report["identical"] and in_bf16 == {"identical": True}
    assert report["logprobs"] < 1e-4
    assert report["gradients"] < 1e-4
    refused = report["refused"]
    assert "model.layers.1.input_layernorm.weight: is not finite as torch.bfloat16" in refused["import"]
    assert "model.layers.0.self_attn.o_proj.weight: is not finite as torch.float32" in refused["export"]


def test_two_processes_dense(tiny_mistral: Path, tmp_path: Path) -> None:
    reports = convert(2, tiny_mistral, tmp_path, TWO_DENSE)
    assert reports == {name: {"identical": True} for name in TWO_DENSE}
    sharded = AutoModelForCausalLM.from_pretrained(tmp_path / "tensor_parallel")
    whole = AutoModelForCausalLM.from_pretrained(tiny_mistral)
    assert all(torch.equal(a, b) for a, b in zip(sharded.parameters(), whole.parameters(), strict=True))
    assert len(list((tmp_path / "tensor_parallel").glob("*.safetensors"))) > 1


def test_two_processes_moe(tiny_mixtral: Path, tmp_path: Path) -> None:
    assert convert(2, tiny_mixtral, tmp_path, TWO_MOE) == {name: {"identical": True} for name in TWO_MOE}


def test_four_processes_moe(tiny_mixtral: Path, tmp_path: Path) -> None:
    assert convert(4, tiny_mixtral, tmp_path, FOUR_MOE) == {name: {"identical": True} for name in FOUR_MOE}


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_streamed_logits_equal_transformers(kind: str, tiny_mistral: Path, tiny_mixtral: Path) -> None:
    checkpoint = tiny_mistral if kind == "dense" else tiny_mixtral
    tokens_BS = torch.arange(40).view(2, 20)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected_BSV = model(tokens_BS).logits
    assert torch.allclose(hf_logits(checkpoint, tokens_BS, torch.float32), expected_BSV, atol=1e-5)


def test_verification_fails_closed(tiny_mistral: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_mistral / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"

    def refused(changed: dict[str, torch.Tensor], match: str) -> None:
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=match):
            verify_export(tmp_path, tiny_mistral, torch.bfloat16)

    refused({key: value for key, value in tensors.items() if key != name}, "other tensors")
    refused(tensors | {"extra.weight": torch.zeros(1)}, "extra.weight")
    refused(tensors | {name: tensors[name][:-1].contiguous()}, name)
    refused(tensors | {name: tensors[name].float()}, "F32")
    save_file(tensors, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="instead of"):
        verify_export(tmp_path, tiny_mistral, torch.bfloat16)
