"""Export a trained model as a Hugging Face checkpoint, and prove that it is the same model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.utils import unwrap_model
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from sami_nemo.checkpoint.hf_export import export_hf
from sami_nemo.checkpoint.hf_verify import hf_logits, verify_export
from sami_nemo.errors import CheckpointError

# Mean difference of log-probs, nats, by the type that was trained and exported. In fp32 the two implementations differ by
# rounding in another order, 5e-6 for SmolLM2; weights rounded to bf16 give 4e-2 there, to fp16 4e-3 in a tiny model. In
# bf16 they round after other operations: 0.08 for SmolLM2, as far as bf16 is from fp32 there (0.09); one layer with gate
# and up projection swapped gives 0.58, with its key heads rolled 0.46.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
# Enough positions for every projection and expert to matter; a multiple of every tensor-parallel size.
FIXED_SHAPE = (2, 64)


def export_and_verify(trainer: Any, base: Path, directory: Path) -> None:
    """Write `directory` and check it: keys and shapes against `base`, then logits; collective.

    Args:
        trainer: NeMo's trainer after `fit`.
        base: the Hugging Face checkpoint that training started from.
        directory: an empty directory.

    Raises:
        CheckpointError: on every rank, if the export does not hold the model that was trained.
    """
    model = trainer.strategy.model
    export_hf(unwrap_model(model.module.module), base, directory)
    tokens_BS = fixed_tokens(model.module.config.geometry.vocab_size)
    dtype = model.module.config.params_dtype
    logits_BSV = megatron_logits(model, tokens_BS)
    problem = ""
    if torch.distributed.get_rank() == 0:
        try:
            verify_export(directory, base, dtype)
            assert logits_BSV is not None
            compare_logits(logits_BSV, hf_logits(directory, tokens_BS, dtype), dtype, directory)
        except CheckpointError as error:
            problem = error.remedy
    problems = [problem]
    torch.distributed.broadcast_object_list(problems, src=0)
    if problems[0]:
        raise CheckpointError("export", directory, problems[0])


def fixed_tokens(vocabulary: int) -> Tensor:
    """Token ids `[B, S]` all over the vocabulary, the same in every run."""
    count = FIXED_SHAPE[0] * FIXED_SHAPE[1]
    # A prime step visits ids far apart.
    return (torch.arange(count) * 7919 % vocabulary).view(FIXED_SHAPE)


def compare_logits(ours_BSV: Tensor, theirs_BSV: Tensor, dtype: torch.dtype, directory: Path) -> None:
    """Hold the log-probs of Megatron and of transformers against each other.

    Args:
        dtype: of weights and computation on both sides.
        directory: the export, for the message.

    Raises:
        CheckpointError: they are further apart than rounding in `dtype` brings them.
    """
    difference = (ours_BSV.float().log_softmax(-1) - theirs_BSV.float().log_softmax(-1)).abs().mean().item()
    print(f"export: mean difference of log-probs between Megatron and transformers {difference:.2e} nats", flush=True)
    if not difference <= TOLERANCE[dtype]:
        raise CheckpointError(
            "export", directory, f"gives other log-probs than the trained model: {difference:.3g} nats apart on average"
        )


class _LogitsReduction(MegatronLossReduction[Any, Any]):
    """Keeps the logits of the last micro-batch, gathered over the tensor-parallel ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.logits_BSV: Tensor | None = None

    def forward(self, batch: Any, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.logits_BSV = tensor_parallel.gather_from_tensor_model_parallel_region(forward_out)
        return forward_out.new_zeros(()), {}

    def reduce(self, losses_reduced_per_micro_batch: Any) -> Tensor:
        return torch.zeros(())


def megatron_logits(model: Any, tokens_BS: Tensor) -> Tensor | None:
    """Logits `[B, S, V]` of the model in training on rank 0, None elsewhere; collective.

    Args:
        model: NeMo's MegatronParallel after `fit`.
    """
    positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS).contiguous()
    batch = {"tokens": tokens_BS, "position_ids": positions_BS}
    reduction = _LogitsReduction()
    with torch.no_grad():
        model.validation_step(
            # As many micro-batches as a training step has; all are the same.
            itertools.repeat(batch),
            data_step=lambda iterator: {name: tensor.cuda() for name, tensor in next(iterator).items()},
            forward_step=lambda chunk, batch: chunk(batch["tokens"], batch["position_ids"]),
            loss_reduction=reduction,
        )
    logits = reduction.logits_BSV
    if logits is not None:
        # Behind the vocabulary there may be rows that make the ranks' parts equal: no token has them.
        logits = logits[..., : model.module.config.geometry.vocab_size]
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        holder = [logits.cpu() if logits is not None else None]
        torch.distributed.broadcast_object_list(holder, last, parallel_state.get_pipeline_model_parallel_group())
        logits = holder[0]
    return logits.cpu() if logits is not None and torch.distributed.get_rank() == 0 else None
