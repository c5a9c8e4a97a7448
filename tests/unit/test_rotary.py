"""Positions turn by the same angles in all engines: vLLM and transformers 5, which sample, against what training takes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.config_json import geometry_of, plain_config
from tests.unit.test_config_json import LLAMA3, YARN, values

POSITIONS = 24
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"rope_theta": 3e5},
    "no base": {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8}},
    "yarn": {"rope_scaling": YARN | {"original_max_position_embeddings": 8}},
    "yarn, own temperature": {"rope_scaling": YARN | {"original_max_position_embeddings": 8, "attention_factor": 0.7}},
    "yarn, scales": {
        "rope_scaling": YARN | {"original_max_position_embeddings": 8, "mscale": 0.8, "mscale_all_dim": 0.5}
    },
    "yarn, bounds": {
        "rope_scaling": YARN
        | {"original_max_position_embeddings": 8, "beta_fast": 4, "beta_slow": 2, "truncate": False}
    },
}
ENGINES = """
import json, sys, torch
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
found = {}
with set_current_vllm_config(VllmConfig()):
    for name in json.load(sys.stdin):
        config = AutoConfig.from_pretrained(name)
        rope = get_rope(config.head_dim, 32, True, config.rope_parameters, dtype=torch.float32)
        vllm = rope.cos_sin_cache[: int(sys.argv[1])]
        positions = torch.arange(int(sys.argv[1]))[None]
        cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
        half = config.head_dim // 2
        theirs = torch.cat([cos[0, :, :half], sin[0, :, :half]], -1)
        found[name] = {"vllm": vllm.tolist(), "transformers": theirs.tolist()}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_all_engines_turn_by_the_same_angles(tmp_path: Path, generate_python: Path) -> None:
    import torch

    from sami_nemo.model.rotary import rotation

    expected = {}
    for number, (name, changes) in enumerate(FORMS.items()):
        stated = values() | changes
        geometry = geometry_of(stated, tmp_path)
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(plain_config(stated, geometry, "float32")))
        if geometry.rope_scaling is None:
            turns = geometry.rope_theta ** (-torch.arange(0, geometry.head_dim, 2) / geometry.head_dim)
            magnitude = 1.0
        else:
            turns, magnitude = rotation(geometry)
        angles = torch.outer(torch.arange(POSITIONS).float(), turns)
        expected[str(directory)] = name, torch.cat([angles.cos(), angles.sin()], -1) * magnitude
    command = [str(generate_python), "-c", ENGINES, str(POSITIONS)]
    finished = subprocess.run(command, input=json.dumps(list(expected)), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    for directory, (name, ours) in expected.items():
        for engine, theirs in found[directory].items():
            assert torch.allclose(ours, torch.tensor(theirs), atol=1e-5), (name, engine)
    # Forms differ, so that one taken for another would be seen.
    tables = [table for _, table in expected.values()]
    assert all((tables[0] - table).abs().max() > 0.05 for table in tables[1:])
