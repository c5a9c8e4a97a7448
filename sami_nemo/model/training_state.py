"""Checkpoints inside a training stage: every rank's optimizer parameters and states, as safetensors.

A run never changes its layout while it trains, so each rank saves and loads what it holds, exactly and
without pickle. Model weights need not be stored: they follow from the optimizer's parameters. A checkpoint
is a directory that appears under its final name when all ranks have written.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sami_nemo.errors import CheckpointError
from sami_nemo.model.optimizers import unchained
from sami_nemo.run_dir import commit, partial, read_json, sha256_file, write_json

_NAME = re.compile(r"step_(\d+)")
_PARAMETER = "parameter"


def _rank() -> int:
    return torch.distributed.get_rank()


def _parameters(optimizer: Any) -> list[tuple[str, Tensor, dict[str, Any]]]:
    """Name, tensor and optimizer state of every parameter, in an order that the layout determines."""
    return [
        (f"{part}.{group}.{index}", parameter, inner.optimizer.state[parameter])
        for part, inner in enumerate(unchained(optimizer))
        for group, settings in enumerate(inner.optimizer.param_groups)
        for index, parameter in enumerate(settings["params"])
    ]


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy on the host: safetensors takes no views that share memory, and GPUs have no room for another state."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def save_training_state(optimizer: Any, directory: Path, step: int) -> None:
    """Write `directory`/step_<step>; collective over all ranks. Older checkpoints are removed afterwards."""
    final = directory / f"step_{step}"
    temporary = partial(final)
    if _rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    tensors = {}
    for name, parameter, state in _parameters(optimizer):
        tensors[f"{name}.{_PARAMETER}"] = _host_copy(parameter)
        for key, value in state.items():
            tensors[f"{name}.{key}"] = _host_copy(torch.as_tensor(value))
    file = temporary / f"rank_{_rank()}.safetensors"
    save_file(tensors, file)
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    write_json(temporary / f"rank_{_rank()}.json", {"sha256": sha256_file(file)})
    torch.distributed.barrier()
    if _rank() == 0:
        commit(final)
        for older in checkpoints(directory)[:-1]:
            shutil.rmtree(directory / f"step_{older}")
    torch.distributed.barrier()


def checkpoints(directory: Path) -> list[int]:
    """Steps of the whole checkpoints in `directory`, oldest first."""
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in directory.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def load_training_state(optimizer: Any, directory: Path, step: int) -> None:
    """Bring optimizer and model to the state of `directory`/step_<step>; collective over all ranks.

    Raises:
        CheckpointError: the file of this rank is damaged or from another layout.
    """
    file = directory / f"step_{step}" / f"rank_{_rank()}.safetensors"
    if not file.is_file() or sha256_file(file) != read_json(file.with_suffix(".json"))["sha256"]:
        raise CheckpointError("checkpoint", file, f"is missing or damaged; remove {directory} to train again")
    tensors = load_file(file)
    for name, parameter, state in _parameters(optimizer):
        saved = {key.rpartition(".")[2]: tensors.pop(key) for key in list(tensors) if key.rpartition(".")[0] == name}
        if _PARAMETER not in saved or saved[_PARAMETER].shape != parameter.shape:
            raise CheckpointError("checkpoint", file, f"was made by another layout; remove {directory} to train again")
        parameter.data.copy_(saved.pop(_PARAMETER))
        # `step` stays on the host, as torch's optimizers keep it.
        state.update({k: v if k == "step" else v.to(parameter.device) for k, v in saved.items()})
    assert not tensors, f"{file} holds parameters that the model lacks: {sorted(tensors)[:3]}"
    for inner in unchained(optimizer):
        if hasattr(inner, "_copy_main_params_to_model_params"):
            inner._copy_main_params_to_model_params()
        for chunk in getattr(inner, "model_chunks", []):
            chunk.start_param_sync(force_sync=True)
