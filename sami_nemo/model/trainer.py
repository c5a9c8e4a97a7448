"""NeMo's trainer for the layout of a configuration, on GPUs or on the CPU backend."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from megatron.core.distributed import DistributedDataParallelConfig

from sami_nemo.checkpoint.hf_import import load_hf_weights
from sami_nemo.config.schema import Config
from sami_nemo.config_json import read_geometry
from sami_nemo.model.cpu_backend import cpu_backend
from sami_nemo.model.megatron_config import nemo_config
from sami_nemo.model.sami_model import SamiModel

# Rank 0 verifies an export while the others wait; a 47 B model takes it the better part of an hour.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


def backend(config: Config) -> contextlib.AbstractContextManager[None]:
    """Inside, the stack runs on the configuration's accelerator."""
    return cpu_backend() if config.hardware.accelerator == "cpu" else contextlib.nullcontext()


def layout_for(config: Config, checkpoint: Path) -> Config:
    """The configuration with a layout that the checkpoint fits: Megatron spreads no experts of a dense model.

    For an instruct baseline, which may be dense where the base model is a mixture. The ranks of the experts go back to
    data parallelism, so all batch sizes stay.
    """
    if read_geometry(checkpoint).num_experts is not None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"expert_parallel": 1})})


def build_model(config: Config, checkpoint: Path, sequence_length: int) -> SamiModel:
    """The model with the weights of a Hugging Face checkpoint, loaded when the trainer builds it."""
    on_gpu = config.hardware.accelerator == "gpu"
    settings = nemo_config(read_geometry(checkpoint), config.train, sequence_length, on_gpu)
    return SamiModel(settings, config.train, lambda module: load_hf_weights(module, checkpoint))


def build_trainer(
    config: Config, max_steps: int, callbacks: Sequence[pl.Callback] = (), setup_optimizers: bool = True
) -> nl.Trainer:
    """A trainer for `max_steps` gradient steps, or for `test` without optimizers."""
    train, hardware = config.train, config.hardware
    in_fp32 = train.precision == "fp32"
    reduce_in_fp32 = train.gradient_type == "fp32"
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=train.tensor_parallel,
        pipeline_model_parallel_size=train.pipeline_parallel,
        expert_model_parallel_size=train.expert_parallel,
        sequence_parallel=train.sequence_parallel,
        ddp=DistributedDataParallelConfig(
            use_distributed_optimizer=train.distributed_optimizer,
            grad_reduce_in_fp32=reduce_in_fp32,
            # GradientCheck does it, and names the groups.
            check_for_nan_in_grad=False,
        ),
        process_group_backend="gloo" if hardware.accelerator == "cpu" else "nccl",
        timeout=COLLECTIVE_TIMEOUT,
        setup_optimizers=setup_optimizers,
        ckpt_async_save=False,
        replace_progress_bar=False,
    )
    precision = nl.MegatronMixedPrecision(
        precision="32" if in_fp32 else "bf16-mixed",
        params_dtype=torch.float32 if in_fp32 else torch.bfloat16,
        grad_reduce_in_fp32=reduce_in_fp32,
    )
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return nl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices_per_node,
        num_nodes=hardware.nodes,
        strategy=strategy,
        plugins=precision,
        max_steps=max_steps,
        callbacks=list(callbacks),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **quiet,
    )
