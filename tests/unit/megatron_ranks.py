"""Builds real Megatron models for chosen ranks of large clusters, without devices, and measures their sizes.

Models lie on the meta device, and the process group is torch's fake one, whose collectives do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import get_megatron_optimizer
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from sami_nemo.config.schema import TrainConfig
from sami_nemo.geometry import Geometry
from sami_nemo.model.cpu_backend import cpu_backend
from sami_nemo.model.megatron_config import nemo_config
from sami_nemo.model.optimizers import SamiOptimizerModule, _without_masters
from sami_nemo.run_dir import write_json

_TYPE = torch.Tensor.type


class _MetaIsCuda(TorchFunctionMode):
    """The optimizer compares the names of tensor types with those of CUDA, which the CPU backend answers for the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.replace(".meta.", ".") if func is _TYPE and isinstance(result, str) else result


@contextlib.contextmanager
def ranks(world: int, rank: int, train: TrainConfig) -> Iterator[None]:
    """Inside, this process is `rank` of `world`."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(
        train.tensor_parallel,
        train.pipeline_parallel,
        expert_model_parallel_size=train.expert_parallel,
        create_gloo_process_groups=False,
    )
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def sizes(geometry: Geometry, train: TrainConfig) -> dict[str, int]:
    """Elements and bytes of this rank's parameters, buffers and optimizer parameters."""
    settings = nemo_config(geometry, train, 1290, on_gpu=False)
    settings.perform_initialization = False
    with torch.device("meta"):
        model = settings.configure_model(None)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        wrapped = DistributedDataParallel(
            settings,
            DistributedDataParallelConfig(
                use_distributed_optimizer=train.distributed_optimizer,
                grad_reduce_in_fp32=train.gradient_type == "fp32",
                check_for_nan_in_grad=False,
            ),
            model,
        )
    in_place = train.precision == "bf16" and train.master_weights == "bf16"
    with _without_masters() if in_place else contextlib.nullcontext(), _MetaIsCuda():
        optimizer = get_megatron_optimizer(SamiOptimizerModule(train).config, [wrapped], use_gloo_process_groups=False)
    inner = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    updated = [p for each in inner if each is not None for group in each.param_groups for p in group["params"]]
    buffers = [*wrapped.buffers, *wrapped.expert_parallel_buffers]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dense": sum(buffer.numel for buffer in wrapped.buffers),
        "expert": sum(buffer.numel for buffer in wrapped.expert_parallel_buffers),
        "weight_bytes": sum(_bytes(buffer.param_data) for buffer in buffers),
        "gradient_bytes": sum(_bytes(buffer.grad_data) for buffer in buffers),
        "updated": sum(parameter.numel() for parameter in updated),
        "updated_bytes": sum(_bytes(parameter) for parameter in updated),
    }


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def measure_sizes(cases: list[dict[str, Any]], report: Path) -> None:
    """Writes the sizes of each case. A case has geometry, train (settings), world and rank."""
    found = []
    with cpu_backend():
        # Megatron puts its buffers on the current device.
        torch.cuda.current_device = lambda: torch.device("meta")  # type: ignore[assignment, return-value]
        for case in cases:
            train = TrainConfig(batch_size=128, batches=2, lr=1e-3, **case["train"])
            with ranks(case["world"], case["rank"], train):
                found.append(sizes(case["geometry"], train))
    write_json(report, found)
