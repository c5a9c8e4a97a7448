"""A dense Mistral checkpoint as a Mixtral that computes the same function.

Every expert is a copy of the dense MLP. Mixtral weighs the chosen experts by a softmax over the router's top k,
which sums to 1, so whatever the router chooses, the sum over experts is the dense MLP's output. The router is small
and random: tokens go to different experts from the start, and the copies grow apart in training.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sami_nemo.config_json import read_geometry
from sami_nemo.errors import CheckpointError
from sami_nemo.geometry import Geometry
from sami_nemo.run_dir import read_json, write_json

# Standard deviation of the router's weights: Mixtral's own initializer_range.
ROUTER_STD = 0.02
EXPERTS_PER_TOKEN = 2
# Mixtral's names of the dense projections.
EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
MLP_KEY = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate_proj|up_proj|down_proj)\.weight")


def upcycle(dense: Path, directory: Path, num_experts: int, seed: int) -> None:
    """Write the Mixtral form of the one-file checkpoint `dense` into `directory`.

    The experts are held in memory at once: meant for small models.

    Raises:
        CheckpointError: `dense` is not a Mistral checkpoint in one safetensors file.
    """
    import torch
    from safetensors.torch import load_file, save_file

    weights = dense / "model.safetensors"
    geometry = read_geometry(dense)
    if geometry.num_experts is not None or not weights.is_file():
        remedy = "upcycling needs a Mistral model in one safetensors file"
        raise CheckpointError(str(dense), geometry.architecture, remedy)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in sorted(load_file(weights).items()):
        match = MLP_KEY.fullmatch(key)
        if match is None:
            tensors[key] = tensor
            continue
        moe = f"model.layers.{match[1]}.block_sparse_moe"
        for expert in range(num_experts):
            # safetensors refuses tensors that share memory.
            tensors[f"{moe}.experts.{expert}.{EXPERT_NAMES[match[2]]}.weight"] = tensor.clone()
        if match[2] == "gate_proj":
            router_EH = torch.randn(num_experts, geometry.hidden_size, generator=generator) * ROUTER_STD
            tensors[f"{moe}.gate.weight"] = router_EH.to(tensor.dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(
        directory / "config.json", _mixtral_config(read_json(dense / "config.json"), mixture(geometry, num_experts))
    )
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                 "chat_template.jinja"):  # fmt: skip
        if (dense / name).is_file():
            shutil.copyfile(dense / name, directory / name)


def mixture(dense: Geometry, num_experts: int) -> Geometry:
    """The geometry of the Mixtral that is made of a dense model."""
    per_token = min(EXPERTS_PER_TOKEN, num_experts)
    return replace(dense, architecture="mixtral", num_experts=num_experts, experts_per_token=per_token)


def _mixtral_config(dense: dict[str, Any], geometry: Geometry) -> dict[str, Any]:
    """config.json of the Mixtral."""
    return {
        **dense,
        **geometry.hf(),
        "architectures": ["MixtralForCausalLM"],
        # SAMI trains without an auxiliary loss.
        "router_aux_loss_coef": 0.0,
        "output_router_logits": False,
        "router_jitter_noise": 0.0,
    }
