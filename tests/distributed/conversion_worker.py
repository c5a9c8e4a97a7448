"""Runs on every rank: imports a checkpoint in several layouts, exports it, and reports as JSON."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sami_nemo.checkpoint.headers import read_headers
from sami_nemo.checkpoint.safetensors_io import open_slices
from sami_nemo.config.schema import TrainConfig
from sami_nemo.errors import CheckpointError
from sami_nemo.model.cpu_backend import cpu_backend

TOKENS_BS = (torch.arange(48) * 37 % 1000 + 5).view(2, 24)


def identical(base: Path, exported: Path, dtype: torch.dtype) -> bool:
    names = read_headers(base).keys()
    if names != read_headers(exported).keys():
        return False
    with open_slices(base) as before, open_slices(exported) as after:
        pairs = [(before(name)[:].to(dtype), after(name)[:]) for name in names]
        return all(after.dtype == dtype and torch.equal(before, after) for before, after in pairs)


def differences(model: torch.nn.Module, base: Path) -> dict[str, float]:
    """Largest difference of token log-probs, and of each gradient relative to its norm, from transformers'."""
    from transformers import AutoModelForCausalLM

    from sami_nemo.checkpoint.placement import place_parameters

    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    labels_BS = TOKENS_BS.roll(-1, dims=1)
    theirs_BS = reference(TOKENS_BS).logits.log_softmax(-1).gather(-1, labels_BS[..., None])[..., 0]
    positions_BS = torch.arange(TOKENS_BS.shape[1]).expand_as(TOKENS_BS)
    ours_BS = -model(TOKENS_BS, positions_BS, None, labels=labels_BS)
    # A loss that weighs every token differently, so that errors cannot cancel out.
    weights_BS = torch.linspace(0.1, 1.0, TOKENS_BS.numel()).view_as(TOKENS_BS)
    (ours_BS * weights_BS).sum().backward()
    (theirs_BS * weights_BS).sum().backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    worst = 0.0
    for placed in place_parameters(model):
        assert placed.parameter.grad is not None
        for name, ours in zip(placed.hf_names, placed.layout.join([placed.parameter.grad]), strict=True):
            theirs = expected[name]
            assert theirs is not None
            worst = max(worst, float((ours - theirs).norm() / theirs.norm()))
    return {"logprobs": float((ours_BS - theirs_BS).abs().max()), "gradients": worst}


def refusals(model: torch.nn.Module, base: Path, folder: Path) -> dict[str, str]:
    """What is said of a weight that bf16 has no number for, and of one that training has made infinite."""
    from sami_nemo.checkpoint.hf_export import export_hf
    from sami_nemo.checkpoint.hf_import import load_hf_weights

    found = {}
    (folder / "huge").mkdir()
    weights = load_file(base / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    # fp32's largest number rounds to infinity in bf16.
    weights[name] = torch.full_like(weights[name], torch.finfo(torch.float32).max, dtype=torch.float32)
    save_file(weights, folder / "huge" / "model.safetensors")
    (folder / "infinite").mkdir()
    parameter = model.decoder.layers[0].self_attention.linear_proj.weight
    with torch.no_grad():
        parameter[0, 0] = torch.inf
    for case, attempt in {
        "export": lambda: export_hf(model, base, folder / "infinite"),
        "import": lambda: load_hf_weights(model.bfloat16(), folder / "huge"),
    }.items():
        try:
            attempt()
        except CheckpointError as error:
            found[case] = str(error)
    return found


@cpu_backend()
def convert(base: Path, folder: Path, layouts: dict[str, dict[str, Any]]) -> None:
    """Writes report.json into `folder`.

    Args:
        layouts: names and training settings. Reported is of each whether the export holds the weights to the bit, in the
            type that they were trained in; and in one process how far log-probs and gradients in fp32 are from
            transformers', and what is said of a weight that is not finite.
    """
    from megatron.core import parallel_state

    from sami_nemo.checkpoint.hf_export import export_hf
    from sami_nemo.checkpoint.hf_import import load_hf_weights
    from sami_nemo.checkpoint.hf_verify import verify_export
    from sami_nemo.config_json import read_geometry
    from sami_nemo.model.megatron_config import nemo_config

    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=10))
    reports: dict[str, Any] = {}
    for name, layout in layouts.items():
        settings: dict[str, Any] = {"batch_size": 1, "batches": 1, "optimizer": "adamw", "lr": 1.0, "precision": "fp32"}
        train = TrainConfig(**settings | layout)
        parallel_state.initialize_model_parallel(
            train.tensor_parallel, train.pipeline_parallel, expert_model_parallel_size=train.expert_parallel
        )
        model = nemo_config(read_geometry(base), train, 64, on_gpu=False).configure_model(None)
        load_hf_weights(model, base)
        exported = folder / name.replace(" ", "_")
        if torch.distributed.get_rank() == 0:
            exported.mkdir()
        torch.distributed.barrier()
        export_hf(model, base, exported, shard_bytes=300_000)
        if torch.distributed.get_rank() == 0:
            dtype = model.config.params_dtype
            verify_export(exported, base, dtype)
            reports[name] = {"identical": identical(base, exported, dtype)}
            if torch.distributed.get_world_size() == 1 and train.precision == "fp32":
                reports[name] |= differences(model, base) | {"refused": refusals(model, base, folder)}
        torch.distributed.barrier()
        parallel_state.destroy_model_parallel()
    if torch.distributed.get_rank() == 0:
        (folder / "report.json").write_text(json.dumps(reports))


@cpu_backend()
def compare(pairs: dict[str, tuple[Path, Path]], folder: Path) -> None:
    """Writes report.json into `folder`: by name, how far the model of the first checkpoint is in fp32 from what transformers
    computes of the second.
    """
    from megatron.core import parallel_state

    from sami_nemo.checkpoint.hf_import import load_hf_weights
    from sami_nemo.config_json import read_geometry
    from sami_nemo.model.megatron_config import nemo_config

    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=10))
    parallel_state.initialize_model_parallel()
    train = TrainConfig(batch_size=1, batches=1, optimizer="adamw", lr=1.0, precision="fp32")
    reports = {}
    for name, (checkpoint, reference) in pairs.items():
        model = nemo_config(read_geometry(checkpoint), train, 64, on_gpu=False).configure_model(None)
        load_hf_weights(model, checkpoint)
        reports[name] = differences(model, reference)
    (folder / "report.json").write_text(json.dumps(reports))
